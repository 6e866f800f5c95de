// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies of what was read: of use while they are right, and never when they are not.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use extfuse::control::Spool;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount as mount_fs, umount};
use nix::sys::signal::Signal;

use crate::common::pages::drop_pages;
use crate::common::{Mounted, Scratch, eventually, extfuse, refusal};
use crate::exerciser::in_every_mode;
use crate::{Served, mount, text};

/// Longer than a file may be without a version after a change.
const SETTLED: Duration = Duration::from_millis(3500);

/// Bytes that are other ones at each place, and for each seed.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(next());
    }
    bytes.truncate(len);
    bytes
}

/// A server whose clients may keep what they are told until it says otherwise.
struct Scene {
    scratch: Scratch,
    served: Served,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new();
        let served = Served::tcp(&scratch.source(), &["--exclusive"]);
        Self { scratch, served }
    }

    fn there(&self, name: &str) -> PathBuf {
        self.scratch.source().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.scratch.path().join("cache")
    }

    fn mount(&self, more: &[&str]) -> Mounted {
        mount(&self.served.url(), &self.scratch, more)
    }

    /// With copies in the directory.
    fn mount_kept(&self) -> Mounted {
        self.mount(&["--spool", text(&self.cache())])
    }
}

fn figures(mounted: &Mounted) -> Spool {
    mounted.report().remote.unwrap().spool.unwrap()
}

/// A file, once more from the daemon.
fn read_anew(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    drop_pages(&file).unwrap();
    drop(file);
    fs::read(path).unwrap()
}

#[test]
fn what_was_read_is_not_fetched_again() {
    let scene = Scene::new();
    let large = bytes(1, (3 << 20) + 77);
    fs::write(scene.there("large"), &large).unwrap();
    fs::write(scene.there("small"), "small").unwrap();
    fs::write(scene.there("empty"), "").unwrap();
    let cache = scene.cache();
    for place in ["memory", text(&cache)] {
        let mounted = scene.mount(&["--spool", place]);
        for round in 0..3 {
            let before = figures(&mounted);
            assert_eq!(read_anew(&mounted.join("large")), large, "{place}");
            assert_eq!(read_anew(&mounted.join("small")), b"small");
            assert_eq!(read_anew(&mounted.join("empty")), b"");
            let now = figures(&mounted);
            assert_eq!(now.passed, 0, "{place}");
            assert_eq!(
                now.misses > before.misses,
                round == 0,
                "{place}, {round}: {now:?}"
            );
            assert!(now.hits > before.hits || round == 0, "{now:?}");
            assert_eq!(now.bytes, large.len() as u64 + 5);
        }
        assert!(mounted.report().remote.unwrap().spooled >= 3 * large.len() as u64);
    }
}

#[test]
fn copies_are_of_use_to_the_next_mount_if_they_are_whole() {
    let scene = Scene::new();
    let large = bytes(2, 1 << 20);
    fs::write(scene.there("file"), &large).unwrap();
    thread::sleep(SETTLED);
    let read = |wanted: &[u8]| {
        let mounted = scene.mount_kept();
        assert_eq!(fs::read(mounted.join("file")).unwrap(), wanted);
        figures(&mounted).fetched
    };
    let found = |kind: &str| {
        let found = fs::read_dir(scene.cache())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = found
            .filter(|path| path.extension().is_some_and(|is| is == kind))
            .collect();
        assert_eq!(found.len(), 1, "{kind}");
        found.pop().unwrap()
    };
    assert_ne!(read(&large), 0);
    assert_eq!(read(&large), 0);
    let (data, index) = (found("data"), found("index"));
    // One bit of one chunk.
    let at = 700_000;
    let mut wrong = large[at];
    wrong ^= 4;
    let file = OpenOptions::new().write(true).open(&data).unwrap();
    file.write_all_at(&[wrong], at as u64).unwrap();
    assert_eq!(read(&large), 128 << 10);
    assert_eq!(read(&large), 0);
    // Bytes that never came to the disk.
    file.set_len(300_000).unwrap();
    assert_ne!(read(&large), 0);
    assert_eq!(read(&large), 0);
    // An index that is not whole, is of something else, or was tampered with.
    let whole = fs::read(&index).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for broken in [&whole[..whole.len() - 1], b"", b"extfuse spool 1\n", &flipped] {
        fs::write(&index, broken).unwrap();
        assert_ne!(read(&large), 0);
        assert_eq!(fs::read(&index).unwrap(), whole);
    }
    // Another file of the same size, and one that has only been touched.
    let other = bytes(3, 1 << 20);
    fs::write(scene.there("file"), &other).unwrap();
    assert_ne!(read(&other), 0);
    thread::sleep(SETTLED);
    assert_ne!(read(&other), 0);
    assert_eq!(read(&other), 0);
    let mode = fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for nobody else to read");
}

#[test]
fn what_is_changed_is_read_anew() {
    let scene = Scene::new();
    let elsewhere = Scratch::new();
    let one = scene.mount_kept();
    let two = mount(&scene.served.url(), &elsewhere, &["--spool", "memory"]);
    let strict = Scratch::new();
    let three = mount(
        &scene.served.url(),
        &strict,
        &["--spool", "memory", "--consistency", "strict"],
    );
    let path = one.join("file");
    fs::write(&path, bytes(0, 200_000)).unwrap();
    for round in 1..60 {
        let mounts = [&one, &two, &three];
        let writer = mounts[round % 3];
        // Of the same size, and within a tick of the one before.
        let now = bytes(round as u64, 200_000);
        let file = OpenOptions::new().write(true).open(writer.join("file")).unwrap();
        file.write_all_at(&now, 0).unwrap();
        drop(file);
        for mounted in mounts {
            assert_eq!(read_anew(&mounted.join("file")), now, "{round}");
        }
    }
    // In each way that a file can change.
    let mut now = bytes(59, 200_000);
    let open = |mounted: &Mounted| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(mounted.join("file"))
            .unwrap()
    };
    let all = |now: &[u8], how: &str| {
        for mounted in [&one, &two, &three] {
            assert_eq!(read_anew(&mounted.join("file")), now, "{how}");
        }
    };
    open(&one).set_len(150_000).unwrap();
    now.truncate(150_000);
    all(&now, "truncated");
    open(&two).set_len(300_000).unwrap();
    now.resize(300_000, 0);
    all(&now, "extended");
    let mut end = OpenOptions::new().append(true).open(one.join("file")).unwrap();
    end.write_all(b"the end").unwrap();
    drop(end);
    now.extend(b"the end");
    all(&now, "appended to");
    let (from, to) = (open(&two), open(&two));
    // SAFETY: both offsets outlive the call.
    let copied = unsafe {
        let (mut from_offset, mut to_offset) = (0, 250_000);
        libc::copy_file_range(
            std::os::fd::AsRawFd::as_raw_fd(&from),
            &raw mut from_offset,
            std::os::fd::AsRawFd::as_raw_fd(&to),
            &raw mut to_offset,
            1000,
            0,
        )
    };
    assert_eq!(copied, 1000);
    drop((from, to));
    now.copy_within(0..1000, 250_000);
    all(&now, "copied into");
    fs::write(two.join("new"), "another file").unwrap();
    fs::rename(two.join("new"), two.join("file")).unwrap();
    all(b"another file", "replaced");
    fs::write(one.join("file"), "").unwrap();
    all(b"", "emptied");
    File::create(three.join("file"))
        .unwrap()
        .write_all(b"made")
        .unwrap();
    all(b"made", "made anew");
}

/// Nobody tells of it: a mount that asks each time sees it at once, others after `--ttl`.
#[test]
fn what_is_changed_behind_the_server_is_seen_when_it_was_promised() {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &["--ttl", "0.3"]);
    let file = scratch.source().join("file");
    let strict = ["--spool", "memory", "--consistency", "strict"];
    let mounted = mount(&served.url(), &scratch, &strict);
    let old = bytes(9, 300_000);
    fs::write(&file, &old).unwrap();
    thread::sleep(SETTLED);
    for _ in 0..3 {
        assert_eq!(read_anew(&mounted.join("file")), old);
    }
    assert!(figures(&mounted).hits > 0, "{:?}", figures(&mounted));
    for round in 0..30 {
        let now = bytes(round, 300_000);
        fs::write(&file, &now).unwrap();
        assert_eq!(read_anew(&mounted.join("file")), now, "{round}");
    }
    drop(mounted);
    let mounted = mount(&served.url(), &scratch, &["--spool", "memory"]);
    for round in 0..5 {
        let now = bytes(round, 300_000);
        read_anew(&mounted.join("file"));
        let open = OpenOptions::new().write(true).open(&file).unwrap();
        open.write_all_at(&now, 0).unwrap();
        thread::sleep(Duration::from_millis(310));
        assert_eq!(read_anew(&mounted.join("file")), now, "{round}");
    }
}

#[test]
fn there_are_never_more_than_there_is_room_for() {
    let scene = Scene::new();
    let name = |number: u64| format!("file-{number}");
    for number in 0..12 {
        fs::write(scene.there(&name(number)), bytes(number, 1 << 20)).unwrap();
    }
    fs::write(scene.there("large"), bytes(99, 3 << 20)).unwrap();
    thread::sleep(SETTLED);
    let cache = scene.cache();
    for place in ["memory", text(&cache)] {
        let mounted = scene.mount(&["--spool", place, "--spool-size", "4M"]);
        let read = |number: u64| {
            assert_eq!(read_anew(&mounted.join(&name(number))), bytes(number, 1 << 20));
            let now = figures(&mounted);
            assert!(now.bytes <= now.limit && now.limit == 4 << 20, "{now:?}");
            now.misses
        };
        for number in 0..12 {
            let before = figures(&mounted).misses;
            assert!(read(number) > before);
            // The first is read all the time, and stays.
            let before = figures(&mounted).misses;
            assert_eq!(read(0), before, "{place}, {number}");
        }
        // More than its share.
        let before = figures(&mounted);
        assert_eq!(read_anew(&mounted.join("large")), bytes(99, 3 << 20));
        let now = figures(&mounted);
        assert_eq!((now.bytes, now.misses), (before.bytes, before.misses));
        assert!(now.passed > before.passed);
    }
    let there = fs::read_dir(&cache)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap());
    let there: u64 = there
        .map(|file| std::os::unix::fs::MetadataExt::blocks(&file) * 512)
        .sum();
    assert!(there <= (4 << 20) + (1 << 18), "{there}");
}

#[test]
fn little_of_a_large_file_and_direct_reads_are_not_kept() {
    let scene = Scene::new();
    let large = bytes(5, 8 << 20);
    fs::write(scene.there("large"), &large).unwrap();
    let mounted = scene.mount(&["--spool", "memory"]);
    let file = File::open(mounted.join("large")).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    let read = |at: usize| {
        drop_pages(&file).unwrap();
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, at as u64).unwrap();
        assert_eq!(page, large[at..at + 4096]);
        figures(&mounted)
    };
    let far = [1 << 20, 5 << 20, 3 << 20, 7 << 20];
    for at in far {
        let now = read(at);
        assert_eq!((now.bytes, now.misses), (0, 0), "{at}");
        assert!(now.passed > 0);
    }
    // The second time it is worth it; the third time it is there.
    for (at, bytes) in far.into_iter().zip(1u64..) {
        assert!(read(at).bytes >= bytes * (128 << 10));
        let before = figures(&mounted);
        let now = read(at + 8192);
        assert_eq!((now.misses, now.passed), (before.misses, before.passed));
    }
    let before = figures(&mounted);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(mounted.join("large"))
        .unwrap();
    let mut page = vec![0; 1 << 20];
    direct.read_exact_at(&mut page, 2 << 20).unwrap();
    assert!(page == large[2 << 20..3 << 20]);
    let now = figures(&mounted);
    assert_eq!((now.bytes, now.misses), (before.bytes, before.misses));
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_wrong() {
    let scene = Scene::new();
    let all: Vec<_> = (0..8).map(|number| bytes(number, 2 << 20)).collect();
    for (number, bytes) in all.iter().enumerate() {
        fs::write(scene.there(&number.to_string()), bytes).unwrap();
    }
    thread::sleep(SETTLED);
    for round in 0..3 {
        let mut mounted = scene.mount_kept();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for (number, bytes) in all.iter().enumerate() {
                        // Once it is killed there is nothing to read.
                        if let Ok(read) = fs::read(mounted.join(&number.to_string())) {
                            assert!(read == *bytes, "{number} in round {round}");
                        }
                    }
                }
            });
            thread::sleep(Duration::from_millis(30 + 900 * (round % 2) * 7));
            mounted.signal(Signal::SIGKILL);
            thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
        });
        mounted.wait();
        let _ = Command::new("umount").arg("-l").arg(mounted.path()).output();
    }
    let mounted = scene.mount_kept();
    for (number, bytes) in all.iter().enumerate() {
        assert!(fs::read(mounted.join(&number.to_string())).unwrap() == *bytes);
    }
    // What was written down by then was of use.
    assert!(figures(&mounted).hits > 0);
}

#[test]
fn what_was_new_when_it_was_read_is_kept_when_it_has_a_version() {
    let scene = Scene::new();
    let new = bytes(4, 500_000);
    let mut mounted = scene.mount_kept();
    fs::write(scene.there("file"), &new).unwrap();
    assert_eq!(fs::read(mounted.join("file")).unwrap(), new);
    // It is asked now and then, and written down.
    eventually(|| {
        let found = fs::read_dir(scene.cache())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        found
            .into_iter()
            .any(|path| path.extension().is_some_and(|is| is == "index"))
    });
    mounted.signal(Signal::SIGKILL);
    mounted.wait();
    let _ = Command::new("umount").arg("-l").arg(mounted.path()).output();
    let mounted = scene.mount_kept();
    assert_eq!(fs::read(mounted.join("file")).unwrap(), new);
    assert_eq!(figures(&mounted).fetched, 0);
}

#[test]
fn a_disk_that_is_full_costs_nobody_anything() {
    let scene = Scene::new();
    let all: Vec<_> = (0..8).map(|number| bytes(number, 1 << 20)).collect();
    for (number, bytes) in all.iter().enumerate() {
        fs::write(scene.there(&number.to_string()), bytes).unwrap();
    }
    let disk = scene.cache();
    fs::create_dir(&disk).unwrap();
    let tmpfs = Some("tmpfs");
    mount_fs(tmpfs, &disk, tmpfs, MsFlags::empty(), Some("size=3m")).unwrap();
    {
        let mounted = scene.mount_kept();
        for _ in 0..2 {
            for (number, bytes) in all.iter().enumerate() {
                assert!(read_anew(&mounted.join(&number.to_string())) == *bytes);
            }
        }
        let now = figures(&mounted);
        assert!(now.hits > 0 && now.passed > 0 && now.bytes <= 3 << 20, "{now:?}");
    }
    umount(&disk).unwrap();
}

#[test]
fn a_server_that_was_started_again_says_what_is_still_right() {
    let scratch = Scratch::new();
    let socket = format!("unix:{}", text(&scratch.path().join("socket")));
    let serve = || {
        Served::start(&[
            "--exclusive",
            "--lease",
            "1",
            "--listen",
            &socket,
            text(&scratch.source()),
        ])
    };
    let served = serve();
    let (same, other) = (bytes(1, 1 << 20), bytes(2, 1 << 20));
    for name in ["same", "other"] {
        fs::write(scratch.source().join(name), &same).unwrap();
    }
    thread::sleep(SETTLED);
    let cache = scratch.path().join("cache");
    let mounted = mount(&served.url(), &scratch, &["--spool", text(&cache)]);
    for name in ["same", "other"] {
        assert_eq!(fs::read(mounted.join(name)).unwrap(), same);
    }
    drop(served);
    fs::write(scratch.source().join("other"), &other).unwrap();
    let _served = serve();
    eventually(|| fs::metadata(mounted.join("same")).is_ok());
    let before = figures(&mounted);
    assert_eq!(read_anew(&mounted.join("same")), same);
    let now = figures(&mounted);
    assert_eq!(now.misses, before.misses, "{now:?}");
    assert!(now.hits > before.hits);
    assert_eq!(read_anew(&mounted.join("other")), other);
}

/// Versions of a file that many write and many read: each reader sees one after the other.
#[test]
fn readers_see_one_version_after_the_other() {
    let scene = Scene::new();
    let elsewhere = Scratch::new();
    let one = scene.mount_kept();
    let two = mount(&scene.served.url(), &elsewhere, &["--spool", "memory"]);
    const LEN: usize = 64 << 10;
    fs::write(scene.there("file"), vec![0; LEN]).unwrap();
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let mut readers = Vec::new();
        for mounted in [&one, &one, &two] {
            readers.push(scope.spawn(|| {
                let mut rounds = 0u64;
                while !over.load(Ordering::Relaxed) {
                    let before = done.load(Ordering::SeqCst);
                    let read = read_anew(&mounted.join("file"));
                    // Only a page is read or written at once.
                    for page in read.chunks(4096) {
                        let version = u64::from_le_bytes(page[..8].try_into().unwrap());
                        assert!(version >= before, "{version} after {before}");
                    }
                    rounds += 1;
                }
                rounds
            }));
        }
        let file = OpenOptions::new().write(true).open(one.join("file")).unwrap();
        let other = OpenOptions::new().write(true).open(two.join("file")).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let mut version = 0u64;
        while Instant::now() < until {
            version += 1;
            let file = if version.is_multiple_of(3) { &other } else { &file };
            file.write_all_at(&version.to_le_bytes().repeat(LEN / 8), 0)
                .unwrap();
            done.store(version, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(version % 40));
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
        assert!(version > 50, "{version}");
    });
}

#[test]
fn fsx_finds_nothing_in_it() {
    let scene = Scene::new();
    let mounted = scene.mount(&["--spool", text(&scene.cache()), "--spool-size", "1M"]);
    in_every_mode(
        mounted.path(),
        1500,
        SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    );
}

#[test]
fn a_spool_that_cannot_be_is_refused() {
    let scene = Scene::new();
    let (url, cache) = (scene.served.url(), scene.cache());
    let at = scene.scratch.mountpoint();
    let refused =
        |code, more: &[&str]| refusal(code, &[&["mount", "--stock"], more, &[&url, text(&at)]].concat());
    for (size, why) in [
        ("1", "at least 1M"),
        ("x", "a number of bytes expected"),
        ("99999999999T", "a number of bytes expected"),
    ] {
        let said = refused(2, &["--spool", "memory", "--spool-size", size]);
        assert!(said.contains(why), "{said}");
    }
    refused(2, &["--spool-size", "1G"]);
    let mounted = scene.mount_kept();
    let elsewhere = Scratch::new();
    let there = elsewhere.mountpoint();
    let said = refusal(
        1,
        &["mount", "--stock", "--spool", text(&cache), &url, text(&there)],
    );
    assert!(said.contains("another mount keeps its copies there"), "{said}");
    drop(mounted);
    let file = scene.scratch.path().join("a-file");
    fs::write(&file, "").unwrap();
    let said = refused(1, &["--spool", text(&file)]);
    assert!(said.contains("a-file"), "{said}");
    let inside = at.join("inside");
    let said = refused(1, &["--spool", text(&inside)]);
    assert!(said.contains("in the mount itself"), "{said}");
    let local = text(&scene.scratch.source()).to_owned();
    let said = refusal(2, &["mount", "--stock", "--spool", "memory", &local, text(&at)]);
    assert!(said.contains("is on no server"), "{said}");
}

#[test]
fn what_was_fetched_is_here() {
    let scene = Scene::new();
    fs::create_dir_all(scene.there("tree/below/it")).unwrap();
    let mut all = Vec::new();
    for number in 0..40usize {
        let name = ["tree", "tree/below", "tree/below/it"][number % 3].to_owned() + &format!("/{number}");
        let bytes = bytes(number as u64, number * 9_000);
        fs::write(scene.there(&name), &bytes).unwrap();
        all.push((name, bytes));
    }
    std::os::unix::fs::symlink("/etc", scene.there("tree/link")).unwrap();
    fs::write(scene.there("large"), bytes(1, 3 << 20)).unwrap();
    thread::sleep(SETTLED);
    let total: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
    let mounted = scene.mount(&["--spool", "memory", "--spool-size", "10M"]);
    let fetch = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| mounted.join(path)).collect();
        let paths = paths.iter().map(|path| text(path));
        let output = extfuse(&["fetch"].into_iter().chain(paths).collect::<Vec<_>>());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, said, errors) = fetch(&["tree"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{said}");
    assert!(
        said.starts_with("extfuse: 40 files, 6.7 MiB, of which 6.7 MiB came"),
        "{said}"
    );
    let now = figures(&mounted);
    assert_eq!(now.bytes, total as u64);
    for (name, bytes) in &all {
        assert!(read_anew(&mounted.join(name)) == *bytes, "{name}");
    }
    assert_eq!(figures(&mounted).fetched, now.fetched);
    let (code, said, _) = fetch(&["tree/below", "tree/9"]);
    assert_eq!(code, 0);
    assert!(said.contains("of which 0 B came from the server"), "{said}");
    // What cannot be done is said, and the rest is done.
    let (code, said, errors) = fetch(&["large", "tree/3"]);
    assert_eq!((code, errors.lines().count()), (1, 1), "{errors}");
    assert!(errors.contains("larger than a quarter of the spool"), "{errors}");
    assert!(said.starts_with("extfuse: 1 file, 26.4 KiB"), "{said}");
    let missing = text(&mounted.join("missing")).to_owned();
    assert!(refusal(1, &["fetch", &missing]).contains("missing"));
    assert!(refusal(1, &["fetch", "/proc/self/exe"]).contains("on no extfuse mount"));
    refusal(2, &["fetch"]);
    let elsewhere = Scratch::new();
    let without = mount(&scene.served.url(), &elsewhere, &[]);
    let said = refusal(1, &["fetch", text(without.path())]);
    assert!(said.contains("no mount that has a spool"), "{said}");
    let said = refusal(1, &["fetch", text(mounted.path()), text(without.path())]);
    assert!(said.contains("is on another mount"), "{said}");
}
