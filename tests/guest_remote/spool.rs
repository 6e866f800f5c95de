// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies of what was read, which the module reads by itself.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::server::Options;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::common::{Mounted, pages};
use crate::exerciser::in_every_mode;
use crate::guest::seed;
use crate::{Scene, pattern, while_running};

fn kept(mounts: &[&[&str]]) -> Scene {
    let options = Options {
        keep: None,
        ..Options::default()
    };
    Scene::new(options, mounts)
}

fn drop_pages(path: &Path) {
    pages::drop_pages(&File::open(path).unwrap()).unwrap();
}

fn passed_through(mounted: &Mounted) -> u64 {
    let report = mounted.report();
    report
        .opcodes
        .get("READ")
        .and_then(|row| row.passthru)
        .unwrap_or(0)
}

/// What a mapping of the file shows.
fn mapped(path: &Path, len: usize) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let size = len.try_into().unwrap();
    // SAFETY: a mapping of its own, which nobody truncates meanwhile, and which ends after its bytes are copied.
    unsafe {
        let map = mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0).unwrap();
        let bytes = std::slice::from_raw_parts(map.as_ptr().cast::<u8>(), len).to_vec();
        munmap(map, len).unwrap();
        bytes
    }
}

#[test]
fn the_kernel_reads_what_is_here_by_itself() {
    for (place, rounds) in [("memory", 1), ("/var/tmp/spool-of-the-test", 2)] {
        let scene = kept(&[&["--spool", place], &[]]);
        let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
        for round in 0..rounds {
            let bytes = pattern((2 << 20) + 4321, round);
            fs::write(there.join("file"), &bytes).unwrap();
            assert!(
                fs::read(here.join("file")).unwrap() == bytes,
                "{place}, round {round}"
            );
            // What is shown is what is here when a READ comes up; by now all is.
            drop_pages(&here.join("file"));
            assert!(fs::read(here.join("file")).unwrap() == bytes);
            let began = Instant::now();
            let (trips, reads) = (here.report().remote.unwrap().round_trips, passed_through(here));
            let asked = while_running(here, || {
                for _ in 0..2 {
                    drop_pages(&here.join("file"));
                    assert!(fs::read(here.join("file")).unwrap() == bytes);
                    drop_pages(&here.join("file"));
                    assert!(mapped(&here.join("file"), bytes.len()) == bytes);
                }
            });
            assert!(asked.is_empty(), "{place}, round {round}: {asked:?}");
            // But for a PING every third of ten seconds.
            let pings = 1 + began.elapsed().as_secs() / 3;
            assert!(here.report().remote.unwrap().round_trips <= trips + pings);
            assert!(passed_through(here) > reads);
        }
        // It comes back when the kernel has forgotten the file.
        let bytes = pattern(1 << 20, 77);
        fs::write(there.join("file"), &bytes).unwrap();
        thread::sleep(Duration::from_millis(3500));
        assert!(fs::read(here.join("file")).unwrap() == bytes);
        let before = here.report().remote.unwrap().spool.unwrap();
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        drop_pages(&here.join("file"));
        assert!(fs::read(here.join("file")).unwrap() == bytes);
        let after = here.report().remote.unwrap().spool.unwrap();
        assert!(after.fetched <= before.fetched + bytes.len() as u64, "{after:?}");
        drop(scene);
    }
    let _ = fs::remove_dir_all("/var/tmp/spool-of-the-test");
}

/// Pages are dropped all the time: each read is one of a copy, by whoever has it, of a file that changes.
#[test]
fn a_copy_is_never_read_that_is_not_right_any_more() {
    const LEN: usize = 160 << 10;
    let scene = kept(&[&["--spool", "memory"], &["--spool", "memory"]]);
    let (one, two) = (&scene.mounts[0], &scene.mounts[1]);
    fs::write(one.join("file"), vec![0; LEN]).unwrap();
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let mut readers = Vec::new();
        for mounted in [one, two] {
            readers.push(scope.spawn(|| {
                let mut rounds = 0u64;
                while !over.load(Ordering::Relaxed) {
                    let path = mounted.join("file");
                    let before = done.load(Ordering::SeqCst);
                    let read = fs::read(&path).unwrap();
                    assert_eq!(read.len(), LEN);
                    for page in read.chunks(4096) {
                        let version = u64::from_le_bytes(page[..8].try_into().unwrap());
                        assert!(version >= before, "{version} after {before}");
                    }
                    drop_pages(&path);
                    rounds += 1;
                }
                rounds
            }));
        }
        let open = |mounted: &Mounted| OpenOptions::new().write(true).open(mounted.join("file")).unwrap();
        let files = [open(one), open(two)];
        let until = Instant::now() + Duration::from_secs(4);
        let mut version = 0u64;
        while Instant::now() < until {
            version += 1;
            let bytes = version.to_le_bytes().repeat(LEN / 8);
            files[version as usize % 2].write_all_at(&bytes, 0).unwrap();
            done.store(version, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(version % 5 * 30));
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            let rounds = reader.join().unwrap();
            assert!(rounds > 3, "{rounds}");
        }
        assert!(version > 5, "{version}");
    });
    assert!(passed_through(one) + passed_through(two) > 0);
}

#[test]
fn fsx_finds_nothing_where_copies_are_kept() {
    let scene = kept(&[&["--spool", "memory", "--spool-size=1M"]]);
    in_every_mode(scene.mounted().path(), 300, seed());
}
