// SPDX-License-Identifier: MIT OR Apache-2.0
//! Large folios in the page cache (`kernel/folios.c`): who reads finds them, who writes does not, and nobody sees
//! anything else than without them.

#[path = "common/mod.rs"]
mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/daemon.rs"]
#[allow(dead_code)]
mod harness;

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Errno, INodeNo};
use nix::errno::Errno as Error;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use nix::unistd::truncate;

use harness::{PAGE, Served, assert_bytes, daemon_bytes};

const SIZE: u64 = 4 << 20;
const PAGES: u64 = SIZE / PAGE;

/// A file that is mapped as a whole.
struct Mapped(NonNull<u8>, usize);

impl Mapped {
    fn new(file: &File, prot: ProtFlags) -> Self {
        let length = file.metadata().unwrap().len() as usize;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping, of which nobody else knows.
        let at = unsafe { mmap(None, NonZeroUsize::new(length).unwrap(), prot, flags, file, 0) };
        Self(at.unwrap().cast(), length)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: it is mapped as long as this lives, and the file as long as that.
        unsafe { slice::from_raw_parts(self.0.as_ptr(), self.1) }
    }

    fn set(&self, at: u64, byte: u8) {
        assert!((at as usize) < self.1);
        // SAFETY: within the mapping, which is for writing where this is called.
        unsafe { self.0.as_ptr().add(at as usize).write_volatile(byte) }
    }

    fn sync(&self) {
        // SAFETY: the mapping as a whole.
        unsafe { msync(self.0.cast(), self.1, MsFlags::MS_SYNC) }.unwrap();
    }

    /// How many of its pages are parts of large folios, as /proc/kpageflags has it.
    fn large(&self) -> u64 {
        const COMPOUND: u64 = 1 << 15 | 1 << 16;
        let (pages, flags) = (
            File::open("/proc/self/pagemap").unwrap(),
            File::open("/proc/kpageflags").unwrap(),
        );
        let word = |file: &File, at: u64| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, at * 8).unwrap();
            u64::from_ne_bytes(word)
        };
        let first = self.0.as_ptr() as u64 / PAGE;
        let is_large = |page: &u64| {
            let entry = word(&pages, first + page);
            assert!(entry >> 63 == 1, "page {page} is not there");
            word(&flags, entry & ((1 << 55) - 1)) & COMPOUND != 0
        };
        (0..self.1 as u64 / PAGE).filter(is_large).count() as u64
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to it any more.
        unsafe { munmap(self.0.cast(), self.1) }.unwrap();
    }
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// How many of its pages lie in large folios; brings none there that was not.
fn large(file: &File) -> u64 {
    Mapped::new(file, ProtFlags::PROT_READ).large()
}

fn to_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn what_is_read_ahead_lies_in_large_folios_and_is_right() {
    let served = Served::new();
    let path = served.file("read", SIZE + 3 * PAGE + 100);
    let right = daemon_bytes(0, (SIZE + 3 * PAGE + 100) as usize);
    let file = File::open(&path).unwrap();
    assert_bytes(&read(&file), &right, "read");
    let mapped = Mapped::new(&file, ProtFlags::PROT_READ);
    assert_bytes(mapped.bytes(), &right, "mapped");
    let large = mapped.large();
    assert!(large > PAGES * 3 / 4, "{large} of {PAGES} pages");
    // In pieces that begin and end anywhere, and what is read ahead behind holes.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    drop(mapped);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    for at in (5000..SIZE - 100_000).step_by(300_001) {
        let mut piece = vec![0; 77_777];
        file.read_exact_at(&mut piece, at).unwrap();
        assert_bytes(&piece, &right[at as usize..][..77_777], "a piece");
    }
    assert_bytes(&read(&file), &right, "all of it");
}

#[test]
fn pages_that_a_daemon_gives_away_are_copied_into_large_folios() {
    let served = Served::new();
    served.give_pages_away();
    let path = served.file("given", SIZE + 100);
    let right = daemon_bytes(0, SIZE as usize + 100);
    let file = File::open(&path).unwrap();
    assert_bytes(&read(&file), &right, "read");
    let mapped = Mapped::new(&file, ProtFlags::PROT_READ);
    assert_bytes(mapped.bytes(), &right, "mapped");
    assert!(mapped.large() > PAGES / 2);
    drop(mapped);
    // Single pages they may replace.
    let writer = to_write(&path);
    assert_bytes(&read(&writer), &right, "in single pages");
    assert_eq!(large(&file), 0);
}

#[test]
fn who_opens_for_writing_finds_single_pages_and_what_he_writes_stays() {
    let served = Served::new();
    let path = served.file("written", SIZE);
    let mut right = daemon_bytes(0, SIZE as usize);
    let reader = File::open(&path).unwrap();
    let mapped = Mapped::new(&reader, ProtFlags::PROT_READ);
    assert_bytes(mapped.bytes(), &right, "before");
    assert!(mapped.large() > 0);
    let writer = to_write(&path);
    assert_bytes(mapped.bytes(), &right, "in the old mapping");
    assert_eq!(large(&reader), 0);
    for (at, length) in [(0, 1), (4095, 2), (200_000, 150_000), (SIZE - 10, 10)] {
        let bytes = vec![7; length];
        writer.write_all_at(&bytes, at).unwrap();
        right[at as usize..][..length].fill(7);
    }
    let shared = Mapped::new(&writer, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    for at in (999..SIZE).step_by(250_007) {
        shared.set(at, 9);
        right[at as usize] = 9;
    }
    shared.sync();
    assert_bytes(mapped.bytes(), &right, "what others have mapped");
    drop(shared);
    drop(writer);
    // And what the daemon was given.
    let node = served.state.node(served.state.nodeid("written")).unwrap();
    assert_bytes(&read(&node.truth), &right, "at the daemon");
    assert_bytes(&read(&File::open(&path).unwrap()), &right, "read again");
    assert_eq!(large(&reader), 0, "once written to, always in single pages");
}

#[test]
fn a_page_that_cannot_be_read_spoils_no_other() {
    const BAD: u64 = 333 * PAGE;
    let served = Served::new();
    let path = served.file("bad", SIZE);
    let right = daemon_bytes(0, SIZE as usize);
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    served.on_read(move |_, range| {
        counted.fetch_add(1, Ordering::Relaxed);
        (range.start <= BAD && BAD < range.end).then_some(Errno::EIO)
    });
    let file = File::open(&path).unwrap();
    for page in 0..PAGES {
        let mut bytes = vec![0; PAGE as usize];
        let got = file.read_exact_at(&mut bytes, page * PAGE);
        if page * PAGE == BAD {
            assert_eq!(got.unwrap_err().raw_os_error(), Some(Error::EIO as i32));
            continue;
        }
        got.unwrap_or_else(|error| panic!("page {page}: {error}"));
        assert_bytes(
            &bytes,
            &right[(page * PAGE) as usize..][..PAGE as usize],
            "a good page",
        );
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked < PAGES, "{asked} READs");
}

#[test]
fn what_is_cut_off_in_the_middle_is_gone_and_what_is_invalidated_is_asked_for() {
    let served = Served::new();
    let path = served.file("cut", SIZE);
    let right = daemon_bytes(0, SIZE as usize);
    let file = File::open(&path).unwrap();
    assert_bytes(&read(&file), &right, "before");
    assert!(large(&file) > 0);
    let end = 1_000_003;
    truncate(&path, end as i64).unwrap();
    assert_bytes(&read(&file), &right[..end], "cut off");
    truncate(&path, SIZE as i64).unwrap();
    let mut longer = right[..end].to_vec();
    longer.resize(SIZE as usize, 0);
    assert_bytes(&read(&file), &longer, "made longer");
    assert_bytes(
        Mapped::new(&file, ProtFlags::PROT_READ).bytes(),
        &longer,
        "mapped",
    );
    // One page of a large folio is told of.
    let nodeid = served.state.nodeid("cut");
    let node = served.state.node(nodeid).unwrap();
    node.truth.write_all_at(&[1; 4096], 100 * PAGE).unwrap();
    longer[100 * PAGE as usize..][..4096].fill(1);
    served
        .notifier
        .inval_inode(INodeNo(nodeid), (100 * PAGE) as i64, PAGE as i64)
        .unwrap();
    assert_bytes(&read(&file), &longer, "told of");
}

/// A page has its number all over it, and how often it was written to.
fn page(number: u64, version: u64) -> Vec<u8> {
    let words = [number, version].map(u64::to_ne_bytes).concat();
    words.repeat(PAGE as usize / 16)
}

/// A page that somebody may be writing to: the right one, each part of it as it was at some time.
fn check(bytes: &[u8], number: u64) {
    for words in bytes.chunks_exact(16) {
        let word = |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), number, "version {}", word(8));
    }
}

#[test]
fn readers_and_those_who_begin_to_write_get_along() {
    let served = Served::new();
    let size = 1 << 20;
    let pages = size / PAGE;
    let end = Instant::now() + guest::seconds("EXTFUSE_FOLIOS_SECONDS", 10, 120);
    let done = AtomicBool::new(false);
    let mut rounds = 0;
    while Instant::now() < end {
        let name = format!("raced-{rounds}");
        let path = served.file(&name, size);
        let node = served.state.node(served.state.nodeid(&name)).unwrap();
        for number in 0..pages {
            node.truth.write_all_at(&page(number, 0), number * PAGE).unwrap();
        }
        done.store(false, Ordering::Relaxed);
        let versions = Mutex::new(vec![0; pages as usize]);
        thread::scope(|scope| {
            for kind in 0..3 {
                let (path, done) = (&path, &done);
                scope.spawn(move || {
                    let file = File::open(path).unwrap();
                    while !done.load(Ordering::Relaxed) {
                        if kind == 0 {
                            let mapped = Mapped::new(&file, ProtFlags::PROT_READ);
                            for (number, bytes) in mapped.bytes().chunks(PAGE as usize).enumerate() {
                                check(bytes, number as u64);
                            }
                        } else {
                            for (number, bytes) in read(&file).chunks(PAGE as usize).enumerate() {
                                check(bytes, number as u64);
                            }
                        }
                        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
                    }
                });
            }
            for writer in 0..2 {
                let (path, versions) = (&path, &versions);
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(10 + writer * rounds % 40));
                    let file = to_write(path);
                    let mapped = Mapped::new(&file, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
                    for number in (writer..pages).step_by(2 * 5) {
                        let version = 1 + rounds;
                        if number % 3 == 0 {
                            let bytes = page(number, version);
                            (0..)
                                .zip(bytes)
                                .for_each(|(at, byte)| mapped.set(number * PAGE + at, byte));
                        } else {
                            file.write_all_at(&page(number, version), number * PAGE).unwrap();
                        }
                        versions.lock().unwrap()[number as usize] = version;
                    }
                    mapped.sync();
                });
            }
            thread::sleep(Duration::from_millis(150));
            done.store(true, Ordering::Relaxed);
        });
        let versions = versions.into_inner().unwrap();
        let right: Vec<u8> = (0..).zip(versions).flat_map(|(n, v)| page(n, v)).collect();
        assert_bytes(&read(&node.truth), &right, "at the daemon");
        assert_bytes(&read(&File::open(&path).unwrap()), &right, "through the mount");
        rounds += 1;
    }
    assert!(rounds > 3, "{rounds} rounds");
}
