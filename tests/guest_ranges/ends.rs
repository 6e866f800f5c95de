// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fill that is under way when something ends: the backing file is on a mount whose daemon waits.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use extfuse::abi::{NodeId, SlotKind};
use extfuse::ebpf::stamps::Slot;
use extfuse::ebpf::{Backing, BackingOptions};
use fuser::Errno;
use nix::mount::{MntFlags, umount2};

use crate::common::eventually;
use crate::harness::{Mounting, PAGE, Served, assert_bytes, daemon_bytes, within};
use crate::kinds::{COPY, OWN};
use crate::reading::{one_by_one, page};

const SIZE: u64 = 4 * PAGE;

/// Where the READs of the backing file wait.
#[derive(Default)]
struct Gate {
    /// How many are there, and with what they may go.
    state: Mutex<(u32, Option<Option<Errno>>)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) -> Option<Errno> {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let state = self.changed.wait_while(state, |state| state.1.is_none()).unwrap();
        state.1.unwrap()
    }

    fn wait_for(&self, readers: u32) {
        let state = self.state.lock().unwrap();
        let patience = Duration::from_secs(20);
        let (_state, timeout) = self
            .changed
            .wait_timeout_while(state, patience, |state| state.0 < readers)
            .unwrap();
        assert!(!timeout.timed_out(), "no fill");
    }

    fn open(&self, with: Option<Errno>) {
        self.state.lock().unwrap().1 = Some(with);
        self.changed.notify_all();
    }
}

/// A mount with a file whose fills wait at the gate.
struct Blocked {
    gate: Arc<Gate>,
    backing: Option<Backing>,
    outer: Served,
    /// Last: the outer mount lets go of its file first.
    _inner: Served,
}

impl Blocked {
    fn new(options: BackingOptions) -> Self {
        let inner = Served::with(Mounting {
            passthrough: false,
            set_up: false,
        });
        let below = File::open(inner.file("inner", SIZE)).unwrap();
        // Other bytes than those of the daemon above.
        let truth = inner.state.node(inner.state.nodeid("inner")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&truth.truth, &[7; SIZE as usize], 0).unwrap();
        let gate = Arc::<Gate>::default();
        let at = Arc::clone(&gate);
        inner.on_read(move |_, _| at.pass());
        let outer = Served::new();
        outer.file("cached", SIZE);
        let backing = outer.register("cached", &below, options, 0..SIZE);
        Self {
            gate,
            backing: Some(backing),
            outer,
            _inner: inner,
        }
    }

    /// A page that is being filled.
    fn reader(&self) -> JoinHandle<Vec<u8>> {
        let file = File::open(self.outer.path("cached")).unwrap();
        let reader = thread::spawn(move || page(&file, 1));
        self.gate.wait_for(1);
        reader
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.gate.open(None);
    }
}

fn is_inner(seen: &[u8]) {
    assert_bytes(seen, &[7; PAGE as usize], "of the backing file");
}

#[track_caller]
fn is_outer(seen: &[u8]) {
    assert_bytes(seen, &daemon_bytes(PAGE, PAGE as usize), "of the daemon");
}

#[test]
fn nothing_ends() {
    for options in [OWN, COPY] {
        let blocked = Blocked::new(options);
        let reader = blocked.reader();
        // More of it becomes valid meanwhile.
        let backing = blocked.backing.as_ref().unwrap();
        backing.extend(0..SIZE, blocked.outer.snapshot()).unwrap();
        blocked.gate.open(None);
        is_inner(&within(reader));
        assert_eq!(blocked.outer.upcalls(), 0);
    }
}

/// Whoever withdraws does not wait, and yet nothing is read from there any more.
#[test]
fn the_range_is_withdrawn() {
    type End = fn(&mut Blocked);
    let ends: [(&str, BackingOptions, End); 6] = [
        ("all", OWN, |b| {
            b.backing.as_ref().unwrap().withdraw(0..u64::MAX).unwrap()
        }),
        ("its part", COPY, |b| {
            b.backing.as_ref().unwrap().withdraw(PAGE..PAGE + 1).unwrap()
        }),
        ("and declared again", COPY, |b| {
            let backing = b.backing.as_ref().unwrap();
            backing.withdraw(0..SIZE).unwrap();
            backing.extend(0..SIZE, b.outer.snapshot()).unwrap();
        }),
        ("with its file", OWN, |b| b.backing = None),
        ("for another file", OWN, |b| {
            let other = b.outer.spool(&[9; SIZE as usize]);
            b.backing = Some(b.outer.register("cached", &other, OWN, 0..0));
        }),
        ("by a stamp", COPY, |b| {
            let nodeid = NodeId(b.outer.state.nodeid("cached"));
            let slot = Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_DATA);
            b.outer.stamps.as_ref().unwrap().changed(&[slot]);
        }),
    ];
    for (what, options, end) in ends {
        let mut blocked = Blocked::new(options);
        let reader = blocked.reader();
        let start = Instant::now();
        end(&mut blocked);
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: waits");
        assert!(!reader.is_finished());
        blocked.gate.open(None);
        is_outer(&within(reader));
        assert_eq!(blocked.outer.upcalls(), 1, "{what}");
    }
}

#[test]
fn the_backing_file_fails() {
    for options in [OWN, COPY] {
        let blocked = Blocked::new(options);
        let reader = blocked.reader();
        blocked.gate.open(Some(Errno::EIO));
        is_outer(&within(reader));
        assert_eq!(blocked.outer.upcalls(), 1);
    }
}

#[test]
fn the_connection_is_aborted() {
    for force in [false, true] {
        let blocked = Blocked::new(OWN);
        let file = File::open(blocked.outer.path("cached")).unwrap();
        let reader = thread::spawn(move || std::os::unix::fs::FileExt::read_at(&file, &mut [0; 10], 0));
        blocked.gate.wait_for(1);
        if force {
            umount2(&blocked.outer.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).unwrap();
        } else {
            blocked.outer.abort();
        }
        let late = blocked
            .backing
            .as_ref()
            .unwrap()
            .extend(0..1, blocked.outer.snapshot());
        assert!(late.is_err());
        blocked.gate.open(None);
        within(reader).unwrap_err();
        let late = blocked
            .outer
            .try_register("cached", &blocked.outer.spool(&[1]), OWN, 0..1);
        assert!(late.is_err());
    }
}

fn reading_process(blocked: &Blocked) -> Child {
    let mut command = Command::new("dd");
    let from = format!("if={}", blocked.outer.path("cached").display());
    command
        .args([&from, "of=/dev/null", "bs=4096"])
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn the_reader_is_killed() {
    let blocked = Blocked::new(OWN);
    let mut child = reading_process(&blocked);
    blocked.gate.wait_for(1);
    child.kill().unwrap();
    blocked.gate.open(None);
    eventually_ends(&mut child);
    // Nobody is the worse for it.
    let seen = one_by_one(&blocked.outer.path("cached"));
    assert_bytes(&seen, &[7; SIZE as usize], "after");
}

fn eventually_ends(child: &mut Child) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "hangs");
        thread::sleep(Duration::from_millis(5));
    }
}

/// By each of the ways in which a connection ends, at each of the times: nothing stays open, which the
/// end of `Served` proves, and nothing hangs.
#[test]
fn no_file_outlives_its_connection() {
    type Use = fn(&Served);
    let uses: [(&str, Use); 4] = [
        ("registered", |_| {}),
        ("read", |served| {
            one_by_one(&served.path("cached"));
        }),
        ("forgotten", |served| {
            one_by_one(&served.path("cached"));
            let nodeid = served.state.nodeid("cached");
            eventually(|| {
                Served::forget_unused();
                served.state.forgotten.lock().unwrap().contains(&nodeid)
            });
        }),
        ("replaced", |served| {
            std::mem::forget(served.register("cached", &served.spool(&[1]), OWN, 0..1));
        }),
    ];
    for (what, used) in uses {
        for end in ["unmount", "abort", "force"] {
            let served = Served::new();
            served.file("cached", SIZE);
            let backing = served.register("cached", &served.spool(&[8; SIZE as usize]), OWN, 0..u64::MAX);
            used(&served);
            std::mem::forget(backing); // nor does it need to be taken back
            println!("{what}, {end}");
            match end {
                "abort" => served.abort(),
                "force" => umount2(&served.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).unwrap(),
                _ => {}
            }
        }
    }
}

/// The daemon is a process of its own here: this test, run again by itself, and killed.
#[test]
fn the_daemon_is_killed() {
    const MARK: &str = "EXTFUSE_TEST_DAEMON";
    if let Ok(ready) = std::env::var(MARK) {
        let served = Served::new();
        served.file("cached", SIZE);
        std::mem::forget(served.register("cached", &served.spool(&[8; SIZE as usize]), OWN, 0..u64::MAX));
        let places = format!("{}\n{}", served.at.display(), served.spools.display());
        std::fs::write(format!("{ready}.new"), places).unwrap();
        std::fs::rename(format!("{ready}.new"), ready).unwrap();
        loop {
            thread::park();
        }
    }
    let place = tempfile::tempdir().unwrap();
    let ready = place.path().join("ready");
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ends::the_daemon_is_killed"])
        .env(MARK, &ready)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually(|| ready.exists());
    let places = std::fs::read_to_string(&ready).unwrap();
    let (at, spools) = places.split_once('\n').unwrap();
    let file = File::open(format!("{at}/cached")).unwrap();
    assert_bytes(&page(&file, 1), &[8; PAGE as usize], "while it lives");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let read = |at| std::os::unix::fs::FileExt::read_at(&file, &mut [0; 10], at);
    assert!(read(2 * PAGE).is_err(), "nothing is filled for a dead daemon");
    // The file is let go of with the connection, and not only with what is open on it.
    eventually(|| umount2(spools, MntFlags::empty()).is_ok());
    drop(file);
    eventually(|| umount2(at, MntFlags::empty()).is_ok());
}

/// Registrations that come and go leave nothing.
#[test]
fn nothing_leaks() {
    let slab = || -> u64 {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = info.lines().find(|line| line.starts_with("SUnreclaim")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let served = Served::new();
    served.file("cached", SIZE);
    let spool = served.spool(&[8; SIZE as usize]);
    let nodeid = NodeId(served.state.nodeid("cached"));
    let stale = served.snapshot();
    let slot = Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_DATA);
    served.stamps.as_ref().unwrap().changed(&[slot]);
    let round = |times| {
        for _ in 0..times {
            let backing = served.register("cached", &spool, OWN, 0..u64::MAX);
            backing.withdraw(PAGE..2 * PAGE).unwrap();
            Backing::register(&served.device, nodeid, &spool, COPY, 0..SIZE, stale).unwrap_err();
        }
        // What waits for a grace period.
        thread::sleep(Duration::from_millis(500));
    };
    round(1000);
    let before = slab();
    round(40_000);
    let after = slab();
    // 40 000 of the smallest thing that may leak, a file, are 10 MB.
    assert!(after < before + 4096, "{before} kB, then {after} kB");
}
