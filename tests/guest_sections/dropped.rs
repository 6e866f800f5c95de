// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that leave the cache while they are written: the kernel copies into one, lets go of it, and makes the
//! request afterwards, maybe much later.

use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::harness::{PATIENCE, Read, Served, within};

const PAGE: usize = 4096;
const NOTIFY_INVAL_INODE: u32 = 2;

/// All pages of a node, as the daemon asks for it.
fn drop_pages(served: &Served, nodeid: u64) {
    let body = [0, nodeid, 0, 0].map(u64::to_ne_bytes).concat();
    let length = 8 + body.len() as u32;
    let message = [
        &length.to_ne_bytes()[..],
        &NOTIFY_INVAL_INODE.to_ne_bytes(),
        &body,
    ]
    .concat();
    served.message(&message).unwrap();
}

/// The file as it is before, or after.
fn answer(read: Read, byte: u8) {
    let size = read.size as usize;
    read.data(&vec![byte; size]);
}

#[test]
fn a_page_that_is_dropped_while_it_is_written_and_read_again_is_not_an_older_one() {
    let served = Served::new(2 * PAGE as u64);
    // What holds the write up, when it has copied its first page: the second one comes out of a mapping, of a
    // file that nobody has read.
    let source = served.open("cached-withheld");
    let length = NonZeroUsize::new(PAGE).unwrap();
    // SAFETY: a new mapping, unmapped below, of a file that nobody truncates.
    let mapped = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ,
            MapFlags::MAP_SHARED,
            &source,
            0,
        )
    }
    .unwrap();
    let second = mapped.as_ptr() as usize;
    let file = served.open("cached");
    let writing = thread::spawn(move || {
        let first = [2_u8; PAGE];
        let parts = [first.as_ptr() as usize, second].map(|address| libc::iovec {
            iov_base: address as *mut _,
            iov_len: PAGE,
        });
        // SAFETY: both parts are there until the call is over, and are only read.
        unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), 2, 0) }
    });
    let holding = served.read();
    assert_eq!(holding.nodeid, 4);

    drop_pages(&served, 2);
    // To be closed later: a FLUSH waits for who writes.
    let other = Arc::new(served.open("cached"));
    let seen = |length, byte| {
        let file = Arc::clone(&other);
        let read = move || {
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, 0).unwrap();
            buffer
        };
        served.while_running(read, |read| answer(read, byte))
    };
    assert!(seen(PAGE, 1) == [1; PAGE], "nothing is written yet");

    answer(holding, 2);
    let write = served.write();
    assert!(write.offset == 0 && write.data == [2; 2 * PAGE]);
    write.written(2 * PAGE as u32);
    assert_eq!(within(writing, PATIENCE), 2 * PAGE as isize);
    assert!(seen(2 * PAGE, 2) == [2; 2 * PAGE], "an older page");
    // SAFETY: nobody has a reference into it.
    unsafe { munmap(mapped, PAGE) }.unwrap();
}
