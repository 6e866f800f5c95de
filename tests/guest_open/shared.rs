// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small files that are only read share the file that the daemon registered. Nobody sees that they do.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, splice};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::common::eventually;
use crate::guest::Tree;

const SMALL: usize = 20_000;
const LARGE: usize = 1 << 20;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 + at % 251) as u8).collect()
}

/// A mount with a small file that is opened without the daemon.
fn with_a_small_file() -> Tree {
    let tree = Tree::mount(&["--require-module", "--exclusive"]);
    fs::write(tree.at("file"), bytes(SMALL)).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read(tree.at("file")).unwrap(), bytes(SMALL));
    }
    tree
}

fn read_at(file: &File, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length + 1];
    let mut got = 0;
    loop {
        match file.read_at(&mut buffer[got..], got as u64).unwrap() {
            0 => break,
            more => got += more,
        }
    }
    buffer.truncate(got);
    buffer
}

/// What a mapping of the whole file shows.
fn mapped(file: &File, length: usize, flags: MapFlags) -> Vec<u8> {
    let size = NonZeroUsize::new(length).unwrap();
    // SAFETY: a new mapping, which is read within its length and the file's, and then removed.
    unsafe {
        let at = mmap(None, size, ProtFlags::PROT_READ, flags, file, 0).unwrap();
        let copy = std::slice::from_raw_parts(at.as_ptr().cast::<u8>(), length).to_vec();
        munmap(at, length).unwrap();
        copy
    }
}

#[test]
fn it_is_read_in_every_way() {
    let tree = with_a_small_file();
    let open = || File::open(tree.at("file")).unwrap();
    let all = bytes(SMALL);

    assert_eq!(read_at(&open(), SMALL), all);
    assert_eq!(mapped(&open(), SMALL, MapFlags::MAP_PRIVATE), all);
    assert_eq!(mapped(&open(), SMALL, MapFlags::MAP_SHARED), all);
    // Read first, then mapped, then read again, by one open file.
    let file = open();
    assert_eq!(read_at(&file, SMALL), all);
    assert_eq!(mapped(&file, SMALL, MapFlags::MAP_SHARED), all);
    assert_eq!(read_at(&file, SMALL), all);

    let (from, to) = nix::unistd::pipe().unwrap();
    let mut offset = 0;
    let moved = splice(open(), Some(&mut offset), &to, None, SMALL, SpliceFFlags::empty()).unwrap();
    drop(to);
    let mut piped = Vec::new();
    File::from(from).read_to_end(&mut piped).unwrap();
    assert!(moved > 0 && piped == all[..moved]);

    // The position is the open file's own.
    let (mut one, mut other) = (open(), open());
    let mut half = vec![0; SMALL / 2];
    one.read_exact(&mut half).unwrap();
    other.read_exact(&mut half).unwrap();
    assert_eq!(half, all[..SMALL / 2]);
    one.read_exact(&mut half).unwrap();
    assert_eq!(half, all[SMALL / 2..]);
}

#[test]
fn it_grows_while_it_is_open() {
    for behind in [false, true] {
        let tree = with_a_small_file();
        let file = File::open(tree.at("file")).unwrap();
        assert_eq!(read_at(&file, SMALL), bytes(SMALL));
        let grown = if behind {
            tree.behind("file")
        } else {
            tree.at("file")
        };
        let writer = OpenOptions::new().write(true).open(grown).unwrap();
        writer.write_all_at(&bytes(LARGE), 0).unwrap();
        assert!(read_at(&file, LARGE) == bytes(LARGE), "behind: {behind}");
        writer.set_len(10).unwrap();
        assert_eq!(read_at(&file, LARGE), bytes(10));
    }
}

#[test]
fn its_access_time_is_as_each_who_opened_it_wants() {
    let tree = with_a_small_file();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let age = || {
        let file = OpenOptions::new().write(true).open(tree.behind("file")).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(old)).unwrap();
    };
    let accessed = || fs::metadata(tree.behind("file")).unwrap().atime();
    age();
    let quiet = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOATIME)
        .open(tree.at("file"))
        .unwrap();
    assert_eq!(read_at(&quiet, SMALL), bytes(SMALL));
    assert_eq!(accessed(), 1_000_000);
    let file = File::open(tree.at("file")).unwrap();
    assert_eq!(read_at(&file, SMALL), bytes(SMALL));
    assert!(accessed() > 1_000_000);
}

#[test]
fn one_open_file_may_read_around_the_page_cache_from_some_day_on() {
    let tree = with_a_small_file();
    let file = File::open(tree.at("file")).unwrap();
    assert_eq!(read_at(&file, SMALL), bytes(SMALL));
    nix::fcntl::fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_DIRECT)).unwrap();
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    assert_eq!(file.read_at(&mut page.0, 4096).unwrap(), 4096);
    assert_eq!(page.0, bytes(SMALL)[4096..8192]);
    // Not aligned: a call that went through the page cache would not mind.
    assert_eq!(
        file.read_at(&mut page.0[1..], 1).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
}

/// Some stop sharing in the middle of others' reads by the same open file.
#[test]
fn many_use_one_open_file_at_once() {
    let tree = with_a_small_file();
    let source = File::open(tree.behind("")).unwrap();
    let inodes = || nix::sys::statvfs::fstatvfs(&source).unwrap().files_free();
    let free = inodes();
    for _ in 0..30 {
        let file = File::open(tree.at("file")).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            assert_eq!(read_at(&file, SMALL), bytes(SMALL));
                        }
                    })
                })
                .collect();
            let mappers = [MapFlags::MAP_SHARED, MapFlags::MAP_PRIVATE].map(|flags| {
                scope.spawn({
                    let file = &file;
                    move || assert_eq!(mapped(file, SMALL, flags), bytes(SMALL))
                })
            });
            for mapper in mappers {
                mapper.join().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().unwrap();
            }
        });
    }
    // Who has lost the race to be the file's own is gone: the source's inode goes with its name.
    fs::remove_file(tree.at("file")).unwrap();
    eventually(|| inodes() > free);
}
