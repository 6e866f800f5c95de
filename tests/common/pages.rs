// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pages that the kernel has of a file.

// Every program uses a part of it.
#![allow(dead_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// The kernel looks after pages that somebody else holds just then within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What cachestat(2) counts, but evictions.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    pub cached: u64,
    pub dirty: u64,
    pub writeback: u64,
}

impl Pages {
    pub fn of(file: &File) -> io::Result<Self> {
        /// libc does not know it.
        const CACHESTAT: libc::c_long = 451;
        // An offset and a length, where 0 is all.
        let range = [0_u64; 2];
        let mut pages = [0_u64; 5];
        // SAFETY: it reads two numbers and writes five.
        let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, 0) };
        let [cached, dirty, writeback, ..] = pages;
        (done == 0)
            .then_some(Self {
                cached,
                dirty,
                writeback,
            })
            .ok_or_else(io::Error::last_os_error)
    }
}

/// Takes all pages from the cache. Nothing of the file may be dirty or mapped.
///
/// POSIX_FADV_DONTNEED alone leaves, and does not tell, what somebody holds at that moment: the CPU that
/// reclaims, migrates or compacts memory.
///
/// # Errors
/// `TimedOut` if pages stay; those of posix_fadvise(2) and cachestat(2).
pub fn drop_pages(file: &File) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let pages = Pages::of(file)?;
        if pages.cached == 0 {
            return Ok(());
        }
        if Instant::now() > end {
            let why = format!("a file keeps what was to be dropped: {pages:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        sleep(Duration::from_millis(1));
    }
}
