// SPDX-License-Identifier: MIT OR Apache-2.0
//! What nix does not say of pipes.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

mod ioc {
    nix::ioctl_read_bad!(fionread, libc::FIONREAD, std::ffi::c_int);
}

/// Bytes that a pipe or socket holds, ready to be read.
///
/// # Errors
///
/// ENOTTY of a descriptor that has no such number.
pub fn readable(fd: impl AsFd) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, and `bytes` is one.
    unsafe { ioc::fionread(fd.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Bytes of a page: what a slot of a pipe holds at most.
#[must_use]
pub fn page_size() -> usize {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
