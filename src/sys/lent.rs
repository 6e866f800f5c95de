// SPDX-License-Identifier: MIT OR Apache-2.0
//! A descriptor whose owner never closes it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

/// The number of a descriptor that was given away, to somebody who may have forgotten to close it.
#[derive(Debug)]
pub struct Lent(RawFd);

impl Lent {
    /// To be called before it is given away.
    #[must_use]
    pub fn of(fd: &OwnedFd) -> Self {
        Self(fd.as_raw_fd())
    }

    /// Closes it.
    ///
    /// # Safety
    ///
    /// It is open still, and whoever owned it neither uses nor closes it any more.
    pub unsafe fn close(self) {
        // SAFETY: the caller says that the number is open and nobody's.
        drop(unsafe { OwnedFd::from_raw_fd(self.0) });
    }

    /// Closes what is behind it, for whoever may use the number still: that is from then on a descriptor
    /// that can neither be read nor written.
    ///
    /// # Safety
    ///
    /// It is open still.
    ///
    /// # Errors
    ///
    /// EMFILE or ENFILE: nothing has happened then.
    pub unsafe fn disable(self) -> io::Result<()> {
        let inert = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/")?;
        // SAFETY: two open descriptors; the number stays taken, so nobody gets another file by it.
        Errno::result(unsafe { libc::dup3(inert.as_raw_fd(), self.0, libc::O_CLOEXEC) })?;
        Ok(())
    }
}
