// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sources that change while they are mounted, and servers that go away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Mounted, eventually};
use crate::merged::{Scene, Served, read_at};

const FILES: &str = r#"
[[file]]
path = "f"
parts = [{ local = "source/a" }, { server = "east", path = "b" }, { zeros = 100 }]
[[file]]
path = "here"
parts = [{ local = "source/a" }]
"#;

/// Each as long as four pages.
const LEN: usize = 4 * 4096;

/// The sources, and the mount. Every answer is of the moment.
fn begin() -> (Scene, Mounted, Vec<u8>) {
    let mut scene = Scene::new();
    let model = [
        scene.source("source/a", LEN),
        scene.source("east/b", LEN),
        vec![0; 100],
    ]
    .concat();
    let mounted = scene.mount(FILES, &["--stock", "--ttl", "0"]);
    assert!(fs::read(mounted.join("f")).unwrap() == model);
    (scene, mounted, model)
}

fn direct(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

fn error_at(file: &File, offset: usize) -> Option<i32> {
    let read = file.read_at(&mut [0; 10], offset as u64);
    read.unwrap_err().raw_os_error()
}

/// How many READs come up while something is done.
fn reads(mounted: &Mounted, what: impl FnOnce()) -> u64 {
    let count = || mounted.report().opcodes.get("READ").map_or(0, |row| row.upcalls);
    let before = count();
    what();
    count() - before
}

#[test]
fn what_a_source_has_lost_is_an_error_and_the_rest_is_as_it_was() {
    let (scene, mounted, model) = begin();
    let open = [File::open(mounted.join("f")).unwrap(), direct(&mounted.join("f"))];
    let new = |what: &str| {
        let opened = [File::open(mounted.join("f")).unwrap(), direct(&mounted.join("f"))];
        for file in opened.iter().chain(&open) {
            assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "{what}");
        }
        opened
    };
    for (name, begin) in [("source/a", 0), ("east/b", LEN)] {
        let source = OpenOptions::new().write(true).open(scene.path(name)).unwrap();
        source.set_len(5000).unwrap();
        for file in new(name).iter().chain(&open) {
            let there = [0, 4096 - 10].map(|at| begin + at);
            for at in there {
                assert!(read_at(file, at, 10) == model[at..at + 10], "{name}: {at}");
            }
            for at in [begin + 5000, begin + 8192, begin + LEN - 10] {
                assert_eq!(error_at(file, at), Some(libc::EIO), "{name}: {at}");
            }
            let other = LEN - begin;
            assert!(
                read_at(file, other, LEN) == model[other..other + LEN],
                "{name}: the other part"
            );
            assert!(read_at(file, 2 * LEN, 200) == [0; 100], "{name}: zeros");
        }
        // Where pages have no part in it, not a byte more is lost.
        assert!(read_at(&open[1], begin, 5000) == model[begin..begin + 5000]);
        // What it gets back, or more, is there again; more than it had is not.
        fs::write(scene.path(name), [&model[begin..begin + LEN], b"more"].concat()).unwrap();
        for file in new(name).iter().chain(&open) {
            assert!(read_at(file, 0, 3 * LEN) == model, "{name}: grown");
        }
    }
}

#[test]
fn what_replaces_a_source_is_seen_by_all_who_have_the_file_open() {
    let (mut scene, mounted, mut model) = begin();
    let (open, direct) = (File::open(mounted.join("f")).unwrap(), direct(&mounted.join("f")));
    for (name, begin) in [("source/a", 0), ("east/b", LEN)] {
        let new = scene.source("new", LEN);
        model[begin..begin + LEN].copy_from_slice(&new);
        fs::rename(scene.path("new"), scene.path(name)).unwrap();
        assert!(
            fs::read(mounted.join("f")).unwrap() == model,
            "{name}: opened anew"
        );
        assert!(read_at(&open, 0, 3 * LEN) == model, "{name}");
        assert!(read_at(&direct, 0, 3 * LEN) == model, "{name}");
    }
    // Without anybody opening it: stat, or a look before pages are used, is enough.
    let new = scene.source("new", LEN);
    model[..LEN].copy_from_slice(&new);
    fs::rename(scene.path("new"), scene.path("source/a")).unwrap();
    assert!(read_at(&open, 0, 3 * LEN) == model);
    assert!(read_at(&direct, 0, 3 * LEN) == model);
    // With older times, too; the second time the newest stays what it was.
    for seconds in [1, 2] {
        let old = scene.source("new", LEN);
        let file = OpenOptions::new().write(true).open(scene.path("new")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds))
            .unwrap();
        model[..LEN].copy_from_slice(&old);
        fs::rename(scene.path("new"), scene.path("source/a")).unwrap();
        assert!(read_at(&open, 0, 3 * LEN) == model);
        assert!(fs::read(mounted.join("f")).unwrap() == model);
    }
}

#[test]
fn what_changes_in_place_is_seen_and_what_does_not_is_kept() {
    let (scene, mounted, mut model) = begin();
    let direct = direct(&mounted.join("f"));
    let open = File::open(mounted.join("f")).unwrap();
    let all = || fs::read(mounted.join("f")).unwrap();
    assert!(all() == model);
    assert_eq!(
        reads(&mounted, || assert!(all() == model)),
        0,
        "nothing has changed"
    );
    for (name, begin) in [("source/a", 0), ("east/b", LEN)] {
        let source = OpenOptions::new().write(true).open(scene.path(name)).unwrap();
        source.write_all_at(b"changed", 4090).unwrap();
        model[begin + 4090..][..7].copy_from_slice(b"changed");
        assert!(read_at(&direct, 0, 3 * LEN) == model, "{name}: at once");
        assert!(read_at(&open, 0, 3 * LEN) == model, "{name}: {begin}");
        let modified = source.metadata().unwrap().modified().unwrap();
        let shown = fs::metadata(mounted.join("f")).unwrap().modified().unwrap();
        // More, if something has changed twice in a tick of the clock.
        let late = shown.duration_since(modified).unwrap();
        assert!(late <= Duration::from_nanos(1), "{late:?}");
        assert!(all() == model, "{name}");
        assert_eq!(reads(&mounted, || assert!(all() == model)), 0, "{name}");
    }
}

#[test]
fn attributes_are_no_older_than_the_ttl() {
    let mut scene = Scene::new();
    scene.source("source/a", LEN);
    scene.source("east/b", LEN);
    let mounted = scene.mount(FILES, &["--stock", "-o", "ttl=0.3"]);
    let path = mounted.join("here");
    fs::metadata(&path).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let source = OpenOptions::new()
        .write(true)
        .open(scene.path("source/a"))
        .unwrap();
    let start = Instant::now();
    source.set_modified(time).unwrap();
    while fs::metadata(&path).unwrap().modified().unwrap() != time {
        std::thread::sleep(Duration::from_millis(5));
        assert!(start.elapsed() < Duration::from_secs(3), "still not seen");
    }
    let seen = start.elapsed();
    assert!(seen < Duration::from_secs(1), "{seen:?}");
}

/// What is asked, and that it took no longer than it may: 2 seconds for an answer, and another 2 for a connection.
fn in_time<T>(what: &str, ask: impl FnOnce() -> io::Result<T>) -> Option<i32> {
    let start = Instant::now();
    let error = ask().err().unwrap_or_else(|| panic!("{what}: no error"));
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{what}: {:?}",
        start.elapsed()
    );
    error.raw_os_error()
}

#[test]
fn a_server_that_is_killed_is_an_error_in_time_and_goes_on_when_it_is_back() {
    let (mut scene, mounted, model) = begin();
    let (path, here) = (mounted.join("f"), mounted.join("here"));
    let file = direct(&path);
    assert!(read_at(&file, 0, 3 * LEN) == model);
    scene.east.kill();
    let errors = [Some(libc::EIO), Some(libc::ETIMEDOUT)];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let read = in_time("read", || file.read_at(&mut [0; 10], LEN as u64));
                assert!(errors.contains(&read), "{read:?}");
                let opened = in_time("open", || File::open(&path));
                assert!(errors.contains(&opened), "{opened:?}");
            });
        }
        // What needs no server is not held up.
        let start = Instant::now();
        assert!(fs::read(&here).unwrap() == model[..LEN]);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    });
    let stat = in_time("stat", || fs::metadata(&path));
    assert!(errors.contains(&stat), "{stat:?}");
    let socket = scene.east.socket.clone();
    scene.east = Served::start(&scene.path("east"), &socket);
    eventually(|| fs::metadata(&path).is_ok());
    assert!(read_at(&file, 0, 3 * LEN) == model, "what was open goes on");
    assert!(fs::read(&path).unwrap() == model);
}

#[test]
fn a_server_that_says_nothing_is_an_error_in_time() {
    let (scene, mounted, model) = begin();
    let file = direct(&mounted.join("f"));
    scene.east.stop();
    let read = in_time("read", || file.read_at(&mut [0; 10], LEN as u64));
    assert!(
        [Some(libc::EIO), Some(libc::ETIMEDOUT)].contains(&read),
        "{read:?}"
    );
    assert!(fs::read(mounted.join("here")).unwrap() == model[..LEN]);
    scene.east.signal(Signal::SIGCONT);
    eventually(|| fs::metadata(mounted.join("f")).is_ok());
    assert!(read_at(&file, 0, 3 * LEN) == model);
}

#[test]
fn a_source_that_is_gone_is_an_error_until_it_is_back() {
    let (scene, mounted, model) = begin();
    let path = mounted.join("f");
    let number = fs::metadata(&path).unwrap().ino();
    for name in ["source/a", "east/b"] {
        let (source, away) = (scene.path(name), scene.path("away"));
        fs::rename(&source, &away).unwrap();
        for error in [File::open(&path).unwrap_err(), fs::metadata(&path).unwrap_err()] {
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
        }
        // Not the file of the list, which is there.
        let names = fs::read_dir(mounted.path()).unwrap().count();
        assert_eq!(names, 2);
        fs::rename(&away, &source).unwrap();
        assert!(fs::read(&path).unwrap() == model);
        assert_eq!(fs::metadata(&path).unwrap().ino(), number);
    }
}

#[test]
fn who_opens_a_file_reads_nothing_older_than_what_was_there_before() {
    let scene = Scene::new();
    let all = |version: u64| version.to_ne_bytes().repeat(LEN / 8);
    let replace = |version: u64| {
        for name in ["source/a", "east/b"] {
            fs::write(scene.path("new"), all(version)).unwrap();
            fs::rename(scene.path("new"), scene.path(name)).unwrap();
        }
    };
    replace(1);
    let mounted = scene.mount(FILES, &["--stock", "--ttl", "1000"]);
    let (published, over) = (AtomicU64::new(1), AtomicBool::new(false));
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let before = published.load(Ordering::SeqCst);
                    let bytes = fs::read(mounted.join("f")).unwrap();
                    let after = published.load(Ordering::SeqCst);
                    for word in bytes[..2 * LEN].chunks(8) {
                        let version = u64::from_ne_bytes(word.try_into().unwrap());
                        assert!(
                            (before..=after + 1).contains(&version),
                            "{before} {version} {after}"
                        );
                    }
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let start = Instant::now();
        for version in 2.. {
            replace(version);
            published.store(version, Ordering::SeqCst);
            // Some find it changed, others as they have left it.
            std::thread::sleep(Duration::from_micros(version % 7 * 300));
            if start.elapsed() > Duration::from_secs(3) {
                break;
            }
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(reads.into_inner() > 100);
}
