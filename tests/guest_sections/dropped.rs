// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that leave the cache while they are written: the kernel copies into one, lets go of it, and makes the
//! request afterwards. Until that is answered, nobody has the new bytes but such pages.

use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::common::eventually;
use crate::harness::{PATIENCE, Read, Served, Shared, Write, within};

const PAGE: usize = 4096;
const NOTIFY_INVAL_INODE: u32 = 2;
/// The node of the file "cached".
const CACHED: u64 = 2;
/// In which who waits for nothing gets as far as a request.
const SOON: Duration = Duration::from_millis(500);

/// All pages of the file, as the daemon asks for it.
fn drop_pages(device: &Shared) {
    let body = [0, CACHED, 0, 0].map(u64::to_ne_bytes).concat();
    let length = 8 + body.len() as u32;
    let message = [
        &length.to_ne_bytes()[..],
        &NOTIFY_INVAL_INODE.to_ne_bytes(),
        &body,
    ]
    .concat();
    nix::unistd::write(&device.raw, &message).unwrap();
}

/// All bytes are the same.
fn answer(read: Read, byte: u8) {
    let size = read.size as usize;
    read.data(&vec![byte; size]);
}

/// Two pages are written; the request is there, and not answered.
fn write_two(served: &Served, file: &Arc<File>) -> (Write, JoinHandle<()>) {
    let writer = Arc::clone(file);
    let writing = thread::spawn(move || writer.write_all_at(&[2; 2 * PAGE], 0).unwrap());
    let write = served.write();
    assert!(write.offset == 0 && write.data == [2; 2 * PAGE]);
    (write, writing)
}

fn read(file: &Arc<File>, length: usize, at: usize) -> JoinHandle<Vec<u8>> {
    let file = Arc::clone(file);
    thread::spawn(move || {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, at as u64).unwrap();
        buffer
    })
}

/// Nothing of what is written; the rest has other bytes.
#[track_caller]
fn nothing_is_read(served: &Served) {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if let Some(read) = served.try_read() {
            assert!(read.offset >= 2 * PAGE as u64, "who asks now gets older bytes");
            answer(read, 1);
        }
    }
}

#[test]
fn who_reads_again_what_is_written_gets_no_older_bytes() {
    let served = Served::new(16 * PAGE as u64);
    // To be closed later: a FLUSH waits for who writes.
    let file = Arc::new(served.open("cached"));
    let (write, writing) = write_two(&served, &file);
    assert!(within(read(&file, 2 * PAGE, 0), PATIENCE) == [2; 2 * PAGE]);

    drop_pages(&served.device);
    // The second page by itself, and both with what is read ahead.
    let readers = [(PAGE, PAGE), (2 * PAGE, 0)].map(|(length, at)| read(&file, length, at));
    nothing_is_read(&served);
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    // What is dropped once more holds nobody up, either.
    drop_pages(&served.device);

    write.written(2 * PAGE as u32);
    within(writing, PATIENCE);
    let start = Instant::now();
    while readers.iter().any(|reader| !reader.is_finished()) {
        if let Some(read) = served.try_read() {
            answer(read, 2);
        }
        assert!(start.elapsed() < PATIENCE, "a reader hangs");
    }
    for reader in readers {
        assert!(reader.join().unwrap().iter().all(|byte| *byte == 2));
    }
}

#[test]
fn who_reads_something_else_waits_for_nobody() {
    let served = Served::new(16 * PAGE as u64);
    let file = Arc::new(served.open("cached"));
    let (write, writing) = write_two(&served, &file);
    drop_pages(&served.device);
    let other = served.while_running(
        {
            let file = Arc::clone(&file);
            move || within(read(&file, PAGE, 2 * PAGE), PATIENCE)
        },
        |read| answer(read, 1),
    );
    assert!(other == [1; PAGE]);
    write.written(2 * PAGE as u32);
    within(writing, PATIENCE);
}

#[test]
fn who_waits_for_what_is_written_can_be_killed() {
    let served = Served::new(16 * PAGE as u64);
    // Begun before there is a file that it would have, too, and close.
    let mut reader = Command::new("sh")
        .args(["-c", "read line; exec cat \"$0\""])
        .arg(served.path("cached"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let file = Arc::new(served.open("cached"));
    let (write, writing) = write_two(&served, &file);
    drop_pages(&served.device);
    reader.stdin.take().unwrap().write_all(b"\n").unwrap();
    let wchan = format!("/proc/{}/wchan", reader.id());
    let waits = || fs::read_to_string(&wchan).unwrap() == "extfuse_read_folio";
    eventually(waits);
    reader.kill().unwrap();
    // It isn't gone yet: it closes its file by a FLUSH, which waits for who writes.
    eventually(|| !waits());
    write.written(2 * PAGE as u32);
    within(writing, PATIENCE);
    let ended = thread::spawn(move || reader.wait().unwrap());
    assert!(within(ended, PATIENCE).code().is_none());
}

#[test]
fn a_write_that_fails_lets_readers_go_on() {
    let served = Served::new(16 * PAGE as u64);
    let file = Arc::new(served.open("cached"));
    let writer = Arc::clone(&file);
    let writing = thread::spawn(move || writer.write_at(&[2; 2 * PAGE], 0).map_err(|e| e.raw_os_error()));
    let write = served.write();
    drop_pages(&served.device);
    let reader = read(&file, PAGE, PAGE);
    nothing_is_read(&served);
    write.reject(fuser::Errno::EIO);
    assert_eq!(within(writing, PATIENCE), Err(Some(libc::EIO)));
    let seen = served.while_running(move || within(reader, PATIENCE), |read| answer(read, 1));
    assert!(seen == [1; PAGE]);
}

/// The next write may have begun before a reader that the last one has woken looks: it finds the pages there.
#[test]
fn who_waits_for_one_write_does_not_wait_for_all_that_follow() {
    let served = Served::new(2 * PAGE as u64);
    let file = Arc::new(served.open("cached"));
    let over = Arc::new(AtomicBool::new(false));
    let writing = {
        let (file, over) = (Arc::clone(&file), Arc::clone(&over));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                file.write_all_at(&[2; 2 * PAGE], 0).unwrap();
            }
        })
    };
    // So that who is woken does not run at once.
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || while !over.load(Ordering::Relaxed) {})
        })
        .collect();
    let answered = |write: Write| {
        // The next one is there, as a rule, before anyone who waits for this one looks.
        thread::sleep(Duration::from_millis(5));
        write.written(2 * PAGE as u32);
    };
    for _ in 0..20 {
        let write = served.write();
        drop_pages(&served.device);
        let reader = read(&file, PAGE, PAGE);
        thread::sleep(Duration::from_millis(5));
        answered(write);
        let mut more = 0;
        while !reader.is_finished() {
            if let Some(write) = served.try_write() {
                answered(write);
                more += 1;
            }
            if let Some(read) = served.try_read() {
                answer(read, 2);
            }
            assert!(more < 50, "it waits for every write");
        }
        assert!(reader.join().unwrap() == [2; PAGE]);
    }
    over.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|busy| within(busy, PATIENCE));
    served.while_writing(move || within(writing, PATIENCE), answered);
}

/// Pages of the file go all the time, while its first page is written, and its second one from a mapping
/// of the first: who writes never waits for himself, and copies what he has written.
#[test]
fn a_write_from_the_file_that_it_goes_to() {
    const ROUNDS: u8 = 100;
    let served = Served::new(2 * PAGE as u64);
    let file = served.open("cached");
    let length = const { NonZeroUsize::new(PAGE).unwrap() };
    // SAFETY: a new mapping, unmapped below, of a file that nobody truncates.
    let mapped = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    // A process of its own: who waits for a page may hold what threads of this one need to get memory.
    // SAFETY: the child allocates nothing, takes no lock, and ends without running anything of ours.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let mut right = set_pdeathsig(Signal::SIGKILL).is_ok();
            for round in 1..=ROUNDS {
                let first = [round; PAGE];
                let parts = [first.as_ptr().cast_mut().cast(), mapped.as_ptr()].map(|iov_base| libc::iovec {
                    iov_base,
                    iov_len: PAGE,
                });
                // SAFETY: both parts are there until the call is over, and are only read.
                let written = unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), 2, 0) };
                right &= written == 2 * PAGE as isize;
            }
            // SAFETY: always is.
            unsafe { libc::_exit(i32::from(!right)) }
        }
    };
    let over = Arc::new(AtomicBool::new(false));
    let dropping = {
        let (over, device) = (Arc::clone(&over), Arc::clone(&served.device));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                drop_pages(&device);
            }
        })
    };
    let mut there = vec![0; 2 * PAGE];
    let mut in_parts = 0;
    let start = Instant::now();
    let ended = loop {
        if let Some(read) = served.try_read() {
            let at = read.offset as usize;
            let end = there.len().min(at + read.size as usize);
            read.data(&there[at..end]);
        }
        while let Some(write) = served.try_write() {
            let (at, length) = (write.offset as usize, write.data.len());
            there[at..at + length].copy_from_slice(&write.data);
            in_parts += u32::from(length == PAGE && at > 0);
            assert!(
                at == 0 || write.data.iter().all(|byte| *byte == there[0]),
                "older"
            );
            write.written(length as u32);
        }
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => assert!(start.elapsed() < 3 * PATIENCE, "the write hangs"),
            ended => break ended,
        }
    };
    over.store(true, Ordering::Relaxed);
    within(dropping, PATIENCE);
    assert_eq!(ended, WaitStatus::Exited(child, 0));
    assert!(there == [ROUNDS; 2 * PAGE]);
    println!("{in_parts} of {ROUNDS} in parts");
    // SAFETY: nobody has a reference into it.
    unsafe { munmap(mapped, PAGE) }.unwrap();
}
