// SPDX-License-Identifier: MIT OR Apache-2.0
//! What fuser does not tell of who asks for a lock: by which call, and whether a signal wants him back.
//!
//! fuser leaves out the flag that tells a lock of flock(2) from one of fcntl(2), and refuses INTERRUPT, after which the
//! kernel interrupts nobody any more. /proc knows both: the caller is in his system call until he is answered.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long a caller may take to go to sleep after he has asked: what he is in, /proc tells only then.
const ASLEEP: Duration = Duration::from_millis(500);

/// flock(2)'s number in a program of 32 bits on x86-64; there is no call with that number that asks for locks in one of
/// 64.
const FLOCK_32: i64 = 143;

/// Whether this thread, which waits for an answer, is in flock(2). None if that cannot be known: it is
/// somebody else's, and this process may not look, or in another PID namespace (0).
pub fn is_in_flock(thread: u32) -> Option<bool> {
    let path = format!("/proc/{thread}/syscall");
    let until = Instant::now() + ASLEEP;
    loop {
        let text = fs::read_to_string(&path).ok()?;
        let first = text.split_whitespace().next()?;
        if first != "running" {
            let number: i64 = first.parse().ok()?;
            return Some(number == libc::SYS_flock || cfg!(target_arch = "x86_64") && number == FLOCK_32);
        }
        if Instant::now() >= until {
            return None;
        }
        thread::sleep(Duration::from_micros(50));
    }
}

/// A thread that waits for a lock.
#[derive(Debug)]
pub struct Waiter {
    thread: u32,
    /// Signals to its process that were pending at the last look.
    shared: u64,
}

impl Waiter {
    pub fn new(thread: u32) -> Self {
        Self { thread, shared: 0 }
    }

    /// Whether there is a signal for it, which its system call has to end for; or it is gone. To be asked now and then.
    ///
    /// Only where it is sure that the kernel means this thread: a system call that ends for a signal of another
    /// one would give its caller the kernel's own code for that.
    pub fn is_interrupted(&mut self) -> bool {
        if self.thread == 0 {
            return false;
        }
        let Some(status) = Status::of(&format!("/proc/{}/status", self.thread)) else {
            return true;
        };
        if status.own & !status.blocked != 0 {
            return true;
        }
        let shared = status.shared & !status.blocked;
        // Another thread that is awake may be about to take it.
        let stays = shared & self.shared;
        self.shared = shared;
        stays != 0 && (status.threads == 1 || status.leads || stays & others_block(&status, self.thread) != 0)
    }
}

/// What /proc tells of a thread's signals, one bit each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    process: u32,
    /// The process is called after it: its signals are for this one first, unless it blocks them.
    leads: bool,
    threads: u64,
    own: u64,
    shared: u64,
    blocked: u64,
}

impl Status {
    /// None if there is no such thread.
    fn of(path: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
        };
        let signals = |name| u64::from_str_radix(field(name)?, 16).ok();
        let (process, thread): (u32, u32) = (field("Tgid")?.parse().ok()?, field("Pid")?.parse().ok()?);
        Some(Self {
            process,
            leads: process == thread,
            threads: field("Threads")?.parse().ok()?,
            own: signals("SigPnd")?,
            shared: signals("ShdPnd")?,
            blocked: signals("SigBlk")?,
        })
    }
}

/// Signals that all threads of its process block but this one.
fn others_block(status: &Status, thread: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", status.process)) else {
        return 0;
    };
    let others = tasks.flatten().map(|task| task.file_name());
    others
        .filter_map(|name| name.to_str()?.parse().ok())
        .filter(|other: &u32| *other != thread)
        .filter_map(|other| Status::of(&format!("/proc/{}/task/{other}/status", status.process)))
        .fold(u64::MAX, |all, other| all & other.blocked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_the_kernel_writes_it() {
        let text = "Name:\tx\nTgid:\t7\nPid:\t9\nThreads:\t2\nSigQ:\t0/1\nSigPnd:\t0000000000000100\n\
                    ShdPnd:\t0000000000004000\nSigBlk:\t00000000000000ff\nSigIgn:\t0000000000001000\n";
        let expected = Status {
            process: 7,
            leads: false,
            threads: 2,
            own: 0x100,
            shared: 0x4000,
            blocked: 0xff,
        };
        assert_eq!(Status::parse(text), Some(expected));
        assert!(Status::of("/proc/self/status").is_some_and(|status| status.leads));
        assert_eq!(Status::parse("Tgid:\t7\n"), None);
    }

    #[test]
    fn a_thread_that_waits_in_flock_is_told_from_one_that_does_not() {
        use std::sync::mpsc::channel;
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (file.reopen().unwrap(), file.reopen().unwrap());
        one.lock().unwrap();
        let (tell, told) = channel();
        let waits = thread::spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            two.lock().unwrap();
        });
        let thread = told.recv().unwrap().as_raw().cast_unsigned();
        let until = Instant::now() + Duration::from_secs(10);
        // It may not be there yet.
        while is_in_flock(thread) != Some(true) {
            assert!(Instant::now() < until);
        }
        assert!(!Waiter::new(thread).is_interrupted());
        one.unlock().unwrap();
        waits.join().unwrap();
        assert_eq!(is_in_flock(thread), None);
        assert!(Waiter::new(thread).is_interrupted(), "it is gone");
        assert!(!Waiter::new(0).is_interrupted() && is_in_flock(0).is_none());
    }
}
