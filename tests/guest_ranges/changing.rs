// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges that grow and vanish under readers. The file consists of the number of its version, over and
//! over: nobody sees one that is older than a change that was complete, or than what he has seen there, nor
//! a page of two versions.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use extfuse::ebpf::{BackingError, BackingOptions};
use fuser::INodeNo;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::harness::{PAGE, Served};
use crate::kinds::{COPY, OWN};

const PAGES: u64 = 12;
const SIZE: u64 = PAGES * PAGE;
/// Words of the file, each a version.
const WORDS: usize = SIZE as usize / 8;
const TIME: Duration = Duration::from_secs(4);
/// Where the machine is busy.
const MOST: Duration = Duration::from_secs(60);

fn content(version: u64) -> Vec<u8> {
    version.to_ne_bytes().repeat((SIZE / 8) as usize)
}

/// How the data changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// By the daemon, which withdraws what was valid, and has the pages dropped.
    Withdrawn,
    /// The same, but nobody drops pages: for who has none.
    WithdrawnOnly,
    /// By a write through the mount: the change of the data takes back what is valid, nobody else.
    Written,
}

/// What the readers go by, in memory that processes share.
struct Changes {
    /// A page in the cache may be of two versions, as it is written to while it is read.
    torn: bool,
    /// The last version whose change is complete.
    complete: AtomicU64,
    /// Through the mount, just now.
    being_written: AtomicBool,
    over: AtomicBool,
    /// Of the reader that is a process: how many words, and what was wrong, after which version.
    words: AtomicU64,
    wrong: [AtomicU64; 2],
}

impl Changes {
    /// Version 1 is complete. Never freed.
    fn begin(torn: bool) -> &'static Self {
        let length = NonZeroUsize::new(size_of::<Self>()).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, large enough, aligned to a page, and never unmapped.
        unsafe {
            let shared = mmap_anonymous(None, length, access, MapFlags::MAP_SHARED)
                .unwrap()
                .cast();
            shared.write(Self {
                torn,
                complete: AtomicU64::new(1),
                being_written: AtomicBool::new(false),
                over: AtomicBool::new(false),
                words: AtomicU64::new(0),
                wrong: [const { AtomicU64::new(0) }; 2],
            });
            shared.as_ref()
        }
    }

    /// A page that was read since a version was complete, by someone who saw others there.
    #[track_caller]
    fn check(&self, before: u64, page: &[u8], seen: &mut [u64], way: &str, whole: bool) {
        let words: Vec<u64> = page
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        let (least, most) = (words.iter().min().unwrap(), words.iter().max().unwrap());
        assert!(*least >= before, "{way}: {least}, after {before} was complete");
        assert!(!whole || least == most, "{way}: {least} and {most} in one page");
        // Nor one from the future: that of the change that is under way, at most.
        assert!(*most <= self.complete.load(Ordering::SeqCst) + 1, "{way}: {most}");
        for (word, seen) in words.into_iter().zip(seen) {
            assert!(word >= *seen, "{way}: {word} after {seen} was seen");
            *seen = word;
        }
    }
}

/// The words of one page.
fn words_of(page: u64) -> Range<usize> {
    let words = PAGE as usize / 8;
    page as usize * words..(page as usize + 1) * words
}

type Reader = fn(&Path, &Changes, u64) -> u64;

/// Pages in an order that nothing is read ahead in; how many were read.
fn pages(path: &Path, changes: &Changes, seed: u64, flags: i32) -> u64 {
    let mut options = File::options();
    let file = options.read(true).custom_flags(flags).open(path).unwrap();
    let mut memory = vec![0; 2 * PAGE as usize];
    let start = memory.as_ptr().align_offset(PAGE as usize);
    let buffer = &mut memory[start..start + PAGE as usize];
    let is_direct = flags & libc::O_DIRECT != 0;
    let way = if is_direct { "a page, directly" } else { "a page" };
    let mut seen = [0; WORDS];
    let (mut number, mut count) = (seed, 0);
    while !changes.over.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let before = changes.complete.load(Ordering::SeqCst);
        let which = (number >> 33) % PAGES;
        file.read_exact_at(buffer, which * PAGE).unwrap();
        let whole = is_direct || !changes.torn;
        changes.check(before, buffer, &mut seen[words_of(which)], way, whole);
        count += 1;
    }
    count
}

fn cached(path: &Path, changes: &Changes, seed: u64) -> u64 {
    pages(path, changes, seed, 0)
}

fn direct(path: &Path, changes: &Changes, seed: u64) -> u64 {
    pages(path, changes, seed, libc::O_DIRECT)
}

/// From the first page to the last one, with readahead.
fn in_order(path: &Path, changes: &Changes, _: u64) -> u64 {
    let file = File::open(path).unwrap();
    let mut page = vec![0; PAGE as usize];
    let mut seen = [0; WORDS];
    let mut count = 0;
    while !changes.over.load(Ordering::Relaxed) {
        let before = changes.complete.load(Ordering::SeqCst);
        let which = count % PAGES;
        file.read_exact_at(&mut page, which * PAGE).unwrap();
        let seen = &mut seen[words_of(which)];
        changes.check(before, &page, seen, "in order", !changes.torn);
        count += 1;
    }
    count
}

/// A mapping that lasts, in a process of its own: who waits for a page may hold what the daemon's
/// threads, in this process, need to get memory. A page of it may go and come back between two words.
fn mapped(path: &Path, changes: &Changes, seed: u64) -> u64 {
    let file = File::open(path).unwrap();
    // SAFETY: the child allocates nothing, takes no lock, and ends without running anything of ours.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let right = set_pdeathsig(Signal::SIGKILL).is_ok() && words_are_right(&file, changes, seed);
            // SAFETY: always is.
            unsafe { libc::_exit(i32::from(!right)) }
        }
    };
    let ended = waitpid(child, None).unwrap();
    let wrong = changes.wrong.each_ref().map(|word| word.load(Ordering::Relaxed));
    assert_eq!(
        ended,
        WaitStatus::Exited(child, 0),
        "mapped: {wrong:?} (seen, complete or seen before)"
    );
    changes.words.load(Ordering::Relaxed)
}

fn words_are_right(file: &File, changes: &Changes, seed: u64) -> bool {
    let length = const { NonZeroUsize::new(SIZE as usize).unwrap() };
    // SAFETY: a new mapping, which ends with the process, of a file that nobody truncates.
    let Ok(address) = (unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) })
    else {
        return false;
    };
    let mut seen = [0; WORDS];
    let (mut number, mut count) = (seed, 0);
    while !changes.over.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (number >> 33) as usize % WORDS;
        let before = changes.complete.load(Ordering::SeqCst);
        // SAFETY: inside the mapping, and aligned.
        let word = unsafe { address.cast::<u64>().add(at).read_volatile() };
        let least = before.max(seen[at]);
        if word < least || word > changes.complete.load(Ordering::SeqCst) + 1 {
            changes.wrong[0].store(word, Ordering::Relaxed);
            changes.wrong[1].store(least, Ordering::Relaxed);
            return false;
        }
        seen[at] = word;
        count += 1;
        changes.words.store(count, Ordering::Relaxed);
        // What is mapped stays in the cache.
        let unmapped = if changes.torn && count.is_multiple_of(64) {
            // SAFETY: what is mapped is what the file has, before as after.
            unsafe { madvise(address, length.get(), MmapAdvise::MADV_DONTNEED) }
        } else {
            Ok(())
        };
        if unmapped.is_err() {
            return false;
        }
    }
    true
}

fn race(options: BackingOptions, how: How) {
    let served = Served::new();
    let path = served.file("cached", 0);
    let nodeid = served.state.nodeid("cached");
    let node = served.state.node(nodeid).unwrap();
    node.truth.write_all_at(&content(1), 0).unwrap();
    let spool = served.spool(&content(1));
    let backing = served.register("cached", &spool, options, 0..SIZE);
    let changes = Changes::begin(how == How::Written);
    let readers: Vec<(&str, Reader)> = if how != How::WithdrawnOnly {
        vec![
            ("cached", cached),
            ("in order", in_order),
            ("direct", direct),
            ("mapped", mapped),
        ]
    } else {
        // Nobody takes back what the page cache has.
        vec![("direct", direct); 4]
    };
    let running: Vec<_> = (1_u64..)
        .zip(readers)
        .map(|(seed, (way, read))| {
            let path = path.clone();
            (way, thread::spawn(move || read(&path, changes, seed * 77)))
        })
        .collect();
    // Who has read new bytes may have to ask for them again while they are written.
    let dropping = (how == How::Written).then(|| {
        let notifier = served.notifier.clone();
        thread::spawn(move || {
            while !changes.over.load(Ordering::Relaxed) {
                if changes.being_written.load(Ordering::SeqCst) {
                    notifier.inval_inode(INodeNo(nodeid), 0, 0).unwrap();
                }
                thread::sleep(Duration::from_micros(300));
            }
        })
    });
    let writer = File::options().write(true).open(&path).unwrap();
    let start = Instant::now();
    let mut version = 1;
    let enough = |version| version > 20 && served.filled() > 100 && served.upcalls() > 10;
    let declare = || {
        let at = served.snapshot();
        for end in (1..=6).map(|part| part * SIZE / 6) {
            match backing.extend(0..end, at) {
                // Told that the data changed, a little late.
                Err(BackingError::Stale) if how == How::Written => return,
                done => done.unwrap(),
            }
            thread::sleep(Duration::from_micros(300));
        }
    };
    let alive = || running.iter().all(|(_, reader)| !reader.is_finished());
    while alive() && (start.elapsed() < TIME || !enough(version) && start.elapsed() < MOST) {
        version += 1;
        let new = content(version);
        if how == How::Written {
            changes.being_written.store(true, Ordering::SeqCst);
            writer.write_all_at(&new, 0).unwrap();
            changes.being_written.store(false, Ordering::SeqCst);
            changes.complete.store(version, Ordering::SeqCst);
            // What was declared is void, so it may be overwritten.
            spool.write_all_at(&new, 0).unwrap();
            declare();
            // What is in the cache would be read from there.
            posix_fadvise(&writer, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            continue;
        }
        // In some rounds in two steps, so that readers meet a part.
        if version.is_multiple_of(2) {
            backing.withdraw(SIZE / 2..SIZE).unwrap();
        }
        backing.withdraw(0..u64::MAX).unwrap();
        // What the daemon answers is of one version in every page, as it is asked for and written in pages.
        for at in (0..SIZE).step_by(PAGE as usize) {
            let page = at as usize..(at + PAGE) as usize;
            let whole = node.whole.write().unwrap();
            node.truth.write_all_at(&new[page.clone()], at).unwrap();
            drop(whole);
            spool.write_all_at(&new[page], at).unwrap();
        }
        if how == How::Withdrawn {
            served.notifier.inval_inode(INodeNo(nodeid), 0, 0).unwrap();
        }
        changes.complete.store(version, Ordering::SeqCst);
        declare();
    }
    changes.over.store(true, Ordering::Relaxed);
    dropping.map(JoinHandle::join).transpose().unwrap();
    for (way, reader) in running {
        let count = reader.join().unwrap();
        assert!(count > 10, "{way}: {count}");
        println!("{way}: {count}");
    }
    let (filled, upcalls) = (served.filled(), served.upcalls());
    println!("{version} versions, {filled} filled, {upcalls} upcalls");
    assert!(enough(version));
}

#[test]
fn own_files_with_pages_invalidated() {
    race(OWN, How::Withdrawn);
}

#[test]
fn copies_with_pages_invalidated() {
    race(COPY, How::Withdrawn);
}

#[test]
fn own_files_read_directly() {
    race(OWN, How::WithdrawnOnly);
}

#[test]
fn copies_read_directly() {
    race(COPY, How::WithdrawnOnly);
}

#[test]
fn copies_of_what_is_written_through_the_mount() {
    race(COPY, How::Written);
}
