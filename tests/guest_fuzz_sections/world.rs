// SPDX-License-Identifier: MIT OR Apache-2.0
//! What all threads share, and what has happened.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::unistd::{Pid, gettid};

use crate::guest::Random;
use crate::harness::{Read, Served, Shared, errno};

/// Milliseconds. A READ that takes longer hangs: no daemon holds one as long.
pub const HANGS: u64 = 20_000;

fn show_where_threads_are() {
    let mut tasks: Vec<_> = fs::read_dir("/proc/self/task").unwrap().flatten().collect();
    tasks.sort_by_key(DirEntry::file_name);
    for task in tasks {
        let stack = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        println!("thread {:?}\n{stack}", task.file_name());
    }
}

/// A request that somebody has, or had.
#[derive(Clone, Copy)]
pub struct Known {
    pub unique: u64,
    pub nodeid: u64,
    pub offset: u64,
    pub size: u32,
}

impl Known {
    pub fn of(read: &Read) -> Self {
        Self {
            unique: read.unique,
            nodeid: read.nodeid,
            offset: read.offset,
            size: read.size,
        }
    }
}

pub struct World {
    pub device: Arc<Shared>,
    /// A program is at the gate, now and then: then all that is committed is what it would accept.
    pub gated: bool,
    /// Odd while it is attached for certain.
    pub attached: AtomicU64,
    pub began: Instant,
    pub stop: AtomicBool,
    known: Mutex<Vec<Known>>,
    /// How often each attempt ended how.
    outcomes: Mutex<BTreeMap<(&'static str, i32), u64>>,
    /// Milliseconds since `began` at which each application began to wait; 0: it does not.
    waiting: Vec<AtomicU64>,
    /// Threads that signals may hit.
    threads: Mutex<Vec<Pid>>,
}

impl World {
    pub fn new(served: &Served, gated: bool, applications: u64) -> Self {
        Self {
            device: Arc::clone(&served.device),
            gated,
            attached: AtomicU64::new(0),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            known: Mutex::default(),
            outcomes: Mutex::default(),
            waiting: (0..applications).map(|_| AtomicU64::new(0)).collect(),
            threads: Mutex::default(),
        }
    }

    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub fn note<T>(&self, what: &'static str, result: &io::Result<T>) {
        self.count(what, errno(result));
    }

    pub fn count(&self, what: &'static str, error: i32) {
        let mut outcomes = self.outcomes.lock().unwrap();
        *outcomes.entry((what, error)).or_default() += 1;
    }

    /// Some request, most often `mine`.
    pub fn victim(&self, mine: Known, random: &mut Random) -> Known {
        let mut known = self.known.lock().unwrap();
        known.push(mine);
        if known.len() > 40 {
            known.remove(0);
        }
        match random.below(6) {
            0 => known[random.below(known.len() as u64) as usize],
            _ => mine,
        }
    }

    /// From now on, signals may hit the thread that calls this.
    pub fn may_be_hit(&self) {
        self.threads.lock().unwrap().push(gettid());
    }

    pub fn one_to_hit(&self, random: &mut Random) -> Option<Pid> {
        let threads = self.threads.lock().unwrap();
        match threads.len() as u64 {
            0 => None,
            some => Some(threads[random.below(some) as usize]),
        }
    }

    /// The application `nr` does something that must end soon.
    pub fn waits(&self, nr: usize) {
        let now = self.began.elapsed().as_millis() as u64 + 1;
        self.waiting[nr].store(now, Ordering::Relaxed);
    }

    pub fn has_what_it_wanted(&self, nr: usize) {
        self.waiting[nr].store(0, Ordering::Relaxed);
    }

    #[track_caller]
    pub fn assert_nobody_hangs(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        for (nr, waiting) in self.waiting.iter().enumerate() {
            let since = waiting.load(Ordering::Relaxed);
            if since != 0 && now.saturating_sub(since) >= HANGS {
                println!("{:?}", self.outcomes);
                show_where_threads_are();
                panic!("application {nr} hangs");
            }
        }
    }

    /// A run in which something never happened has not tried it.
    #[track_caller]
    pub fn assert_all_happened(&self) {
        let outcomes = self.outcomes.lock().unwrap();
        println!("{outcomes:?}");
        let times = |what: &str, error: i32| -> u64 {
            let these = outcomes
                .iter()
                .filter(|((did, ended), _)| *did == what && *ended == error);
            these.map(|(_, count)| count).sum()
        };
        let well = [
            "fill", "stage", "drain", "read", "write", "killed", "signal", "resend",
        ];
        let gated = ["accepted", "spoilt", "attach"];
        for what in well.iter().chain(gated.iter().filter(|_| self.gated)) {
            assert!(times(what, 0) > 0, "no {what} ended well");
        }
        assert!(
            times("fill", libc::EINTR) > 0 && times("drain", libc::EINTR) > 0,
            "nobody was interrupted"
        );
        assert!(
            !self.gated || times("spoilt", libc::EBADMSG) > 0 && times("spoilt", libc::EACCES) > 0,
            "nothing was refused"
        );
    }
}
