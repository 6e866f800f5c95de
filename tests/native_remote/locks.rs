// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of several clients of one server.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::{Mounted, Scratch};
use crate::link::Link;
use crate::locker::Locker;
use crate::{Served, mount};

/// A signal, a hand-over, a close: all of it is noticed within this.
const SOON: Duration = Duration::from_secs(1);

/// A file that is on two mounts.
struct Scene {
    mounts: [Mounted; 2],
    _mountpoints: [Scratch; 2],
    _served: Served,
    source: Scratch,
}

impl Scene {
    fn new(serve: &[&str], mount: &[&str]) -> Self {
        Self::by(serve, mount, |served| [served.url(), served.url()])
    }

    fn by(serve: &[&str], more: &[&str], urls: impl FnOnce(&Served) -> [String; 2]) -> Self {
        let source = Scratch::new();
        source.write("file", &"x".repeat(100));
        let served = Served::tcp(&source.source(), serve);
        let mountpoints = [Scratch::new(), Scratch::new()];
        let urls = urls(&served);
        let mounts = [0, 1].map(|at: usize| mount(&urls[at], &mountpoints[at], more));
        Self {
            mounts,
            _mountpoints: mountpoints,
            _served: served,
            source,
        }
    }

    fn file(&self, mount: usize) -> PathBuf {
        self.mounts[mount].join("file")
    }

    fn there(&self) -> PathBuf {
        self.source.source().join("file")
    }

    /// A process on each mount.
    fn lockers(&self) -> [Locker; 2] {
        [0, 1].map(|at| Locker::of(&self.file(at)))
    }
}

/// Many processes, which start at the same time.
fn lockers(number: usize, path: &Path) -> Vec<Locker> {
    let mut lockers: Vec<_> = (0..number).map(|_| Locker::new()).collect();
    for locker in &mut lockers {
        locker.open("f", path, "os.O_RDWR");
    }
    lockers
}

const ALL: &str = "lock('f', 'write', 0, 0)";
const WAITS: &str = "lock('f', 'write', 0, 0, F_SETLKW)";
const NONE: &str = "lock('f', 'none', 0, 0)";
const WHOLE: &str = "whole('f', LOCK_EX | LOCK_NB)";

#[test]
fn locks_exclude_across_mounts_and_programs_of_the_server() {
    let scene = Scene::new(&[], &[]);
    let [mut one, mut two] = scene.lockers();
    let mut there = Locker::of(&scene.there());
    assert_eq!(one.says("lock('f', 'write', 10, 10)"), "ok");
    for other in [&mut two, &mut there] {
        assert_eq!(other.says("lock('f', 'read', 19, 1)"), "EAGAIN");
        assert_eq!(other.says("lock('f', 'read', 20, 5)"), "ok");
        assert_eq!(other.says("lock('f', 'write', 0, 10)"), "ok");
        assert_eq!(other.says("lock('f', 'none', 0, 10)"), "ok");
    }
    // Both others have it.
    assert_eq!(one.says("lock('f', 'write', 15, 10)"), "EAGAIN");
    assert_eq!(one.says("lock('f', 'read', 15, 10)"), "ok");
    // That was a downgrade; here is an upgrade.
    assert_eq!(two.says("lock('f', 'read', 15, 1)"), "ok");
    assert_eq!(one.says("lock('f', 'write', 15, 1)"), "EAGAIN");
    assert_eq!(two.says("lock('f', 'none', 15, 1)"), "ok");
    assert_eq!(one.says("lock('f', 'write', 15, 1)"), "ok");
    // What is in the way is told, without a process that means nothing here.
    assert_eq!(two.says("way('f', 'read', 0, 0)"), "1 10 6 0");
    assert_eq!(two.says("way('f', 'read', 50, 0)"), "none");
    assert_eq!(two.says(ALL), "EAGAIN");
    assert_eq!(one.says(NONE), "ok");
    assert_eq!(there.says(NONE), "ok");
    assert_eq!(two.says(ALL), "ok");
    assert_eq!(there.says("lock('f', 'read', 1000, 1)"), "EAGAIN");
    // On the same mount, whose it is.
    let mut beside = Locker::of(&scene.file(1));
    let expected = format!("1 0 0 {}", two.pid());
    assert_eq!(beside.says("way('f', 'read', 7, 1)"), expected);

    // The other kind is another matter.
    assert_eq!(one.says(WHOLE), "ok");
    for other in [&mut two, &mut there] {
        assert_eq!(other.says(WHOLE), "EAGAIN");
        assert_eq!(other.says("whole('f', LOCK_SH | LOCK_NB)"), "EAGAIN");
    }
    assert_eq!(one.says("whole('f', LOCK_SH | LOCK_NB)"), "ok");
    assert_eq!(two.says("whole('f', LOCK_SH | LOCK_NB)"), "ok");
    assert_eq!(there.says(WHOLE), "EAGAIN");
    assert_eq!(one.says("whole('f', LOCK_UN)"), "ok");
    assert_eq!(two.says("whole('f', LOCK_UN)"), "ok");
    assert_eq!(there.says(WHOLE), "ok");
    assert_eq!(two.says(WHOLE), "EAGAIN");
}

/// Numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<'t>(&mut self, what: &[&'t str]) -> &'t str {
        what[self.roll(what.len() as u64) as usize]
    }
}

/// Two processes on two mounts, and two on this machine, to which the same happens.
#[test]
fn two_mounts_lock_as_one_kernel_does() {
    let scene = Scene::new(&[], &[]);
    let local = Scratch::new();
    local.write("file", "x");
    let here = local.source().join("file");
    let mut pairs = [0, 1].map(|at| [(Locker::new(), scene.file(at)), (Locker::new(), here.clone())]);
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let names = ["a", "b", "r"];
    let flags = |name: &str| if name == "r" { "os.O_RDONLY" } else { "os.O_RDWR" };
    for pair in &mut pairs {
        for (locker, path) in pair {
            names.iter().for_each(|name| locker.open(name, path, flags(name)));
        }
    }
    let (mut refused, mut granted) = (0, 0);
    for step in 0..800 {
        let who = dice.roll(2) as usize;
        let name = dice.pick(&names);
        let (start, length) = (dice.roll(12), dice.roll(5));
        let kind = dice.pick(&["read", "write", "none"]);
        let what = match dice.roll(12) {
            0..=4 => format!("lock({name:?}, {kind:?}, {start}, {length})"),
            5..=7 => format!("lock({name:?}, {kind:?}, {start}, {length}, F_OFD_SETLK)"),
            8 => format!("way({name:?}, 'write', {start}, {length})"),
            9 => format!("way({name:?}, 'read', {start}, {length}, F_OFD_GETLK)"),
            10 => {
                let how = dice.pick(&["LOCK_SH | LOCK_NB", "LOCK_EX | LOCK_NB", "LOCK_UN"]);
                format!("whole({name:?}, {how})")
            }
            _ => format!("leave({name:?})"),
        };
        let [(mounted, path), (locally, other)] = &mut pairs[who];
        // Which of several is named, and whose process it is, is another matter.
        let strip = |said: String| match said.split(' ').count() {
            4 => "in the way".to_owned(),
            _ => said,
        };
        let expected = strip(locally.says(&what));
        let start = Instant::now();
        let mut said = strip(mounted.says(&what));
        // What was closed the server hears a little later.
        while said != expected && start.elapsed() < SOON {
            thread::sleep(Duration::from_millis(2));
            said = strip(mounted.says(&what));
        }
        assert_eq!(said, expected, "seed {seed}, step {step}: {who} {what}");
        refused += usize::from(said == "EAGAIN" || said == "in the way");
        granted += usize::from(said == "ok");
        if what.starts_with("leave") {
            mounted.open(name, path, flags(name));
            locally.open(name, other, flags(name));
        }
    }
    println!("{granted} granted, {refused} refused");
    assert!(refused > 50 && granted > 200);
}

#[test]
fn who_waits_gets_the_lock_when_it_is_let_go() {
    let scene = Scene::new(&[], &[]);
    let [mut one, mut two] = scene.lockers();
    let mut there = Locker::of(&scene.there());
    let ways = [
        (ALL, WAITS, NONE),
        (WHOLE, "whole('f', LOCK_EX)", "whole('f', LOCK_UN)"),
        (
            "lock('f', 'write', 3, 4, F_OFD_SETLK)",
            "lock('f', 'read', 0, 0, F_OFD_SETLKW)",
            "lock('f', 'none', 0, 0, F_OFD_SETLK)",
        ),
    ];
    for (now, waits, none) in ways {
        for local in [false, true] {
            let holder = if local { &mut there } else { &mut one };
            assert_eq!(holder.says(now), "ok");
            two.begin(waits);
            assert_eq!(two.ends_within(Duration::from_millis(400)), None, "{waits}");
            assert_eq!(holder.says(none), "ok");
            assert_eq!(two.ends_within(SOON).as_deref(), Some("ok"), "{waits}");
            assert_eq!(holder.says(now), "EAGAIN");
            assert_eq!(two.says(none), "ok");
        }
    }
}

/// The mount has two threads at least and eight at most, and the one who lets go needs one.
#[test]
fn more_wait_than_the_mount_has_threads() {
    let scene = Scene::new(&[], &[]);
    for (now, waits, none) in [
        (ALL, WAITS, NONE),
        (WHOLE, "whole('f', LOCK_EX)", "whole('f', LOCK_UN)"),
    ] {
        let mut holder = Locker::of(&scene.file(0));
        assert_eq!(holder.says(now), "ok");
        let mut waiters = lockers(16, &scene.file(0));
        waiters.iter_mut().for_each(|waiter| waiter.begin(waits));
        thread::sleep(Duration::from_millis(300));
        // Everything else goes on.
        assert_eq!(holder.says("os.fstat(files['f']).st_size"), "100");
        assert_eq!(holder.says(none), "ok");
        let start = Instant::now();
        while !waiters.is_empty() {
            let mut has = None;
            for (at, waiter) in waiters.iter_mut().enumerate() {
                if let Some(said) = waiter.ends_within(Duration::from_millis(1)) {
                    assert_eq!(said, "ok");
                    assert_eq!(has.replace(at), None, "two have it");
                }
            }
            if let Some(at) = has {
                assert_eq!(waiters.swap_remove(at).says(none), "ok");
            }
            assert!(
                start.elapsed() < Duration::from_secs(15),
                "{} wait",
                waiters.len()
            );
        }
    }
}

#[test]
fn a_signal_ends_the_waiting_and_nothing_is_locked_later() {
    let scene = Scene::new(&[], &[]);
    let [mut one, mut two] = scene.lockers();
    let file_lock = "whole('f', LOCK_EX)";
    let few = [(Signal::SIGALRM, WAITS), (Signal::SIGKILL, file_lock)];
    // So many that the server does not wait for each of them.
    let many = [
        (Signal::SIGALRM, WAITS),
        (Signal::SIGALRM, file_lock),
        (Signal::SIGTERM, WAITS),
        (Signal::SIGTERM, file_lock),
        (Signal::SIGKILL, WAITS),
        (Signal::SIGKILL, file_lock),
    ];
    for cases in [&few[..], &many[..]] {
        assert_eq!(one.says(ALL), "ok");
        assert_eq!(one.says(WHOLE), "ok");
        // One that is stopped and goes on waits as before.
        let mut waiters = lockers(cases.len() + 1, &scene.file(1));
        let mut stopped = waiters.pop().unwrap();
        stopped.begin(WAITS);
        for (waiter, (_, waits)) in waiters.iter_mut().zip(cases) {
            waiter.begin(waits);
        }
        thread::sleep(Duration::from_millis(300));
        stopped.signal(Signal::SIGSTOP);
        for (waiter, (signal, waits)) in waiters.iter_mut().zip(cases) {
            assert_eq!(waiter.ends_within(Duration::ZERO), None);
            waiter.signal(*signal);
            match signal {
                Signal::SIGALRM => assert_eq!(waiter.ends_within(SOON).as_deref(), Some("EINTR"), "{waits}"),
                _ => assert!(waiter.is_gone_within(SOON), "{signal} {waits}"),
            }
        }
        stopped.signal(Signal::SIGCONT);
        assert_eq!(stopped.ends_within(Duration::from_millis(300)), None);
        assert_eq!(one.says(NONE), "ok");
        assert_eq!(stopped.end(), "ok");
        drop(stopped);
        assert_eq!(one.says("whole('f', LOCK_UN)"), "ok");
        // Those who are still there have nothing.
        two.says_soon(ALL, "ok");
        two.says_soon(WHOLE, "ok");
        assert_eq!(two.says(NONE), "ok");
        assert_eq!(two.says("whole('f', LOCK_UN)"), "ok");
    }
}

#[test]
fn a_close_lets_go_what_it_does_on_one_machine() {
    let scene = Scene::new(&[], &[]);
    let [mut one, mut two] = scene.lockers();
    let read = "lock('r', 'read', 0, 0)";
    // Through a file that is open for reading only.
    one.open("r", &scene.file(0), "os.O_RDONLY");
    assert_eq!(one.says(read), "ok");
    assert_eq!(two.says(ALL), "EAGAIN");
    assert_eq!(one.says("leave('r')"), "ok");
    assert_eq!(two.says(ALL), "ok");
    assert_eq!(two.says(NONE), "ok");
    // Through another one of the same file, that was opened for reading only.
    assert_eq!(one.says(ALL), "ok");
    one.open("r", &scene.file(0), "os.O_RDONLY");
    assert_eq!(one.says("leave('r')"), "ok");
    assert_eq!(two.says(ALL), "ok");
    assert_eq!(two.says(NONE), "ok");
    // A descriptor of the same open file.
    assert_eq!(one.says(ALL), "ok");
    assert_eq!(one.says(WHOLE), "ok");
    assert_eq!(one.says("again('f', 'g')"), "ok");
    assert_eq!(one.says("leave('g')"), "ok");
    assert_eq!(two.says(ALL), "ok", "of a process: with any of them");
    assert_eq!(
        two.says(WHOLE),
        "EAGAIN",
        "of the open file: with the last of them"
    );
    assert_eq!(two.says(NONE), "ok");
    // A child has no locks of its parent's, but its open files.
    assert_eq!(one.says(ALL), "ok");
    assert_eq!(one.says(&format!("in_child({ALL:?})")), "EAGAIN");
    assert_eq!(one.says(&format!("in_child({NONE:?})")), "ok");
    assert_eq!(two.says(ALL), "EAGAIN");
    assert_eq!(one.says(&format!("in_child({WHOLE:?})")), "ok");
    assert_eq!(two.says(WHOLE), "EAGAIN");
    assert_eq!(one.says("leave('f')"), "ok");
    assert_eq!(two.says(ALL), "ok");
    two.says_soon(WHOLE, "ok");
    // With the process.
    let mut killed = Locker::of(&scene.file(0));
    assert_eq!(two.says(NONE), "ok");
    assert_eq!(two.says("whole('f', LOCK_UN)"), "ok");
    assert_eq!(killed.says(ALL), "ok");
    assert_eq!(killed.says(WHOLE), "ok");
    killed.signal(Signal::SIGKILL);
    two.says_soon(ALL, "ok");
    two.says_soon(WHOLE, "ok");
}

#[test]
fn a_file_that_is_open_for_reading_can_be_locked_against_everybody() {
    let scene = Scene::new(&[], &[]);
    let mut lockers = [0, 1].map(|at| {
        let mut locker = Locker::new();
        locker.open("f", &scene.file(at), "os.O_RDONLY");
        locker
    });
    assert_eq!(lockers[0].says(WHOLE), "ok");
    assert_eq!(lockers[1].says("whole('f', LOCK_SH | LOCK_NB)"), "EAGAIN");
    assert_eq!(lockers[0].says(ALL), "EBADF", "that is for flock(2) alone");
    assert_eq!(lockers[0].says("leave('f')"), "ok");
    lockers[1].says_soon(WHOLE, "ok");
    // It can be executed meanwhile: nobody has it open for writing for that.
    let program = scene.source.source().join("program");
    fs::copy("/bin/true", &program).unwrap();
    let mut reader = Locker::new();
    reader.open("f", &scene.mounts[0].join("program"), "os.O_RDONLY");
    assert_eq!(reader.says("lock('f', 'read', 0, 0)"), "ok");
    assert_eq!(reader.says(WHOLE), "ok");
    assert!(Command::new(&program).status().unwrap().success());
}

#[test]
fn who_closes_a_file_that_was_only_read_asks_nobody() {
    let scene = Scene::new(&[], &[]);
    // What came up but FLUSH, FLUSH, and what was asked.
    let counts = || {
        let report = scene.mounts[0].report();
        let upcalls = |flush| {
            let rows = report.opcodes.iter();
            let rows = rows.filter(|(opcode, _)| (*opcode == "FLUSH") == flush && !opcode.contains("FORGET"));
            rows.map(|(_, row)| row.upcalls).sum::<u64>()
        };
        [
            upcalls(false),
            upcalls(true),
            report.remote.as_ref().unwrap().round_trips,
        ]
    };
    let before = counts();
    for _ in 0..100 {
        drop(fs::File::open(scene.file(0)).unwrap());
    }
    thread::sleep(Duration::from_millis(200));
    let after = counts();
    let [others, flushes, asked] = [0, 1, 2].map(|at| after[at] - before[at]);
    assert!(flushes >= 100, "{flushes} come from the kernel");
    // Beside them a PING or two.
    assert!(asked <= others + 10, "{asked} for {others}");
}

#[test]
fn a_client_that_is_killed_loses_its_locks_with_its_lease() {
    let scene = Scene::new(&["--lease", "2"], &[]);
    let [mut one, mut two] = scene.lockers();
    assert_eq!(one.says(ALL), "ok");
    assert_eq!(one.says(WHOLE), "ok");
    scene.mounts[0].signal(Signal::SIGKILL);
    thread::sleep(Duration::from_millis(500));
    // It might come back.
    assert_eq!(two.says(ALL), "EAGAIN");
    two.begin(WAITS);
    assert_eq!(two.ends_within(Duration::from_secs(5)).as_deref(), Some("ok"));
    two.says_soon(WHOLE, "ok");
}

#[test]
fn a_client_that_ends_in_order_has_no_locks() {
    let mut scene = Scene::new(&["--lease", "30"], &[]);
    let [mut one, mut two] = scene.lockers();
    let mut waits = Locker::of(&scene.file(0));
    assert_eq!(one.says(WHOLE), "ok");
    assert_eq!(two.says(ALL), "ok");
    waits.begin(WAITS);
    assert_eq!(waits.ends_within(Duration::from_millis(300)), None);
    // The mount is in use, but nobody is answered any more; so its daemon ends.
    let _ = umount2(scene.mounts[0].path(), MntFlags::MNT_FORCE);
    let start = Instant::now();
    scene.mounts[0].wait();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(waits.end(), "ECONNABORTED");
    two.says_soon(WHOLE, "ok");
}

#[test]
fn locks_outlive_a_connection_that_breaks() {
    let mut link = None;
    let scene = Scene::by(&[], &[], |served| {
        let through = Link::to(&served.address.parse().unwrap());
        let url = format!("extfuse://{}", through.address());
        link = Some(through);
        [url, served.url()]
    });
    let link = link.unwrap();
    let [mut one, mut two] = scene.lockers();
    let mut waits = Locker::of(&scene.file(0));
    assert_eq!(one.says(ALL), "ok");
    assert_eq!(one.says(WHOLE), "ok");
    waits.begin(WAITS);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(100));
        link.cut();
        assert_eq!(two.says(ALL), "EAGAIN");
        assert_eq!(two.says(WHOLE), "EAGAIN");
        // There is a way again.
        assert_eq!(fs::read(scene.file(0)).unwrap().len(), 100);
        assert_eq!(two.says(ALL), "EAGAIN");
        assert_eq!(two.says(WHOLE), "EAGAIN");
    }
    // What is let go while there is none is let go.
    link.hold();
    one.begin(NONE);
    assert_eq!(one.ends_within(Duration::from_millis(200)), None);
    link.cut();
    link.go_on();
    assert_eq!(one.end(), "ok");
    assert_eq!(waits.end(), "ok");
    assert_eq!(two.says(ALL), "EAGAIN");
    // Also if it goes with the file, of whose end the server is told once.
    assert_eq!(one.says("whole('f', LOCK_UN)"), "ok");
    let mut reader = Locker::new();
    reader.open("r", &scene.file(0), "os.O_RDONLY");
    assert_eq!(reader.says("whole('r', LOCK_SH | LOCK_NB)"), "ok");
    link.hold();
    assert_eq!(reader.says("leave('r')"), "ok");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(two.says(WHOLE), "EAGAIN");
    link.cut();
    link.go_on();
    two.begin("whole('f', LOCK_EX)");
    assert_eq!(two.ends_within(Duration::from_secs(5)).as_deref(), Some("ok"));
}

#[test]
fn who_has_the_lock_reads_what_was_written_before() {
    let scene = Scene::new(&[], &[]);
    let read = "os.pread(files['f'], 8, 0)";
    let mut reader = Locker::of(&scene.file(0));
    for (now, none) in [(ALL, NONE), (WHOLE, "whole('f', LOCK_UN)")] {
        for text in ["before", "behind"] {
            assert_eq!(reader.says(now), "ok");
            // As it may be within one tick of the server's clock: neither size nor time tell that it has changed.
            let there = fs::OpenOptions::new().write(true).open(scene.there()).unwrap();
            let when = there.metadata().unwrap().modified().unwrap();
            reader.says(read);
            there.write_all_at(text.as_bytes(), 0).unwrap();
            there.set_modified(when).unwrap();
            assert_eq!(reader.says(none), "ok");
            assert_eq!(reader.says(now), "ok");
            assert_eq!(reader.says(read), format!("b'{text}xx'"), "{now}");
            assert_eq!(reader.says(none), "ok");
        }
    }
    for file_lock in ["True", "False"] {
        fs::write(scene.there(), "00000000").unwrap();
        let [mut one, mut two] = scene.lockers();
        let mut beside = Locker::of(&scene.file(1));
        let count = format!("count('f', 150, {file_lock})");
        let mut all = [&mut one, &mut two, &mut beside];
        all.iter_mut().for_each(|locker| locker.begin(&count));
        all.iter_mut().for_each(|locker| assert_eq!(locker.end(), "ok"));
        assert_eq!(fs::read_to_string(scene.there()).unwrap(), "00000450");
    }
}

#[test]
fn two_writers_of_one_database_lose_nothing() {
    let scene = Scene::new(&[], &[]);
    let base = |mount: usize| scene.mounts[mount].join("base");
    let mut lockers = [Locker::new(), Locker::new()];
    let query = |path: &Path, text: &str| format!("query({path:?}, {text:?})");
    assert_eq!(
        lockers[0].says(&query(&base(0), "create table t (who, row)")),
        "[]"
    );
    for (who, locker) in lockers.iter_mut().enumerate() {
        locker.begin(&format!("insert({:?}, {who}, 200)", base(who)));
    }
    for locker in &mut lockers {
        assert_eq!(locker.ends_within(Duration::from_secs(60)).as_deref(), Some("ok"));
    }
    for (who, locker) in lockers.iter_mut().enumerate() {
        let rows = "select who, count(distinct row) from t group by who order by who";
        assert_eq!(locker.says(&query(&base(who), rows)), "[(0, 200), (1, 200)]");
        let checked = locker.says(&query(&base(who), "pragma integrity_check"));
        assert_eq!(checked, "[('ok',)]");
    }
}

#[test]
fn a_client_can_hold_so_many_locks_and_no_more() {
    let scene = Scene::new(&[], &[]);
    let [mut one, mut two] = scene.lockers();
    let many = "[lock('f', 'write', 2 * at, 1) for at in range(4096)] and None";
    assert_eq!(one.says(many), "ok");
    assert_eq!(one.says("lock('f', 'write', 10000, 1)"), "ENOLCK");
    assert_eq!(one.says(WHOLE), "ENOLCK");
    // Two become one.
    assert_eq!(one.says("lock('f', 'write', 1, 1)"), "ok");
    assert_eq!(one.says(WHOLE), "ok");
    // Another client has its own.
    assert_eq!(two.says("lock('f', 'write', 10000, 1)"), "ok");
}

#[test]
fn locks_that_are_local_are_local() {
    let scene = Scene::new(&[], &["--locks", "local"]);
    let [mut one, mut two] = scene.lockers();
    let mut beside = Locker::of(&scene.file(1));
    for locker in [&mut one, &mut two] {
        assert_eq!(locker.says(ALL), "ok");
        assert_eq!(locker.says(WHOLE), "ok");
    }
    assert_eq!(beside.says(ALL), "EAGAIN");
    assert_eq!(beside.says(WHOLE), "EAGAIN");
    let report = scene.mounts[0].report();
    assert!(!report.opcodes.contains_key("SETLK"), "{:?}", report.opcodes);
}
