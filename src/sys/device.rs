// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls of a mounted `/dev/extfuse` and the mapping of its stamps (`include/extfuse.h`).

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::abi::{self, Counters, Opcodes, Setup, StampsLayout, Status};

mod ioc {
    use crate::abi::{Counters, IOC_MAGIC, Opcodes, Setup, Status};

    nix::ioctl_readwrite!(setup, IOC_MAGIC, 1, Setup);
    nix::ioctl_read!(status, IOC_MAGIC, 2, Status);
    nix::ioctl_write_ptr!(opcodes, IOC_MAGIC, 3, Opcodes);
    nix::ioctl_read!(counters, IOC_MAGIC, 4, Counters);
}

/// The numbers of the ioctls, as the header has them: SETUP, STATUS, OPCODES, COUNTERS.
pub const IOCTLS: [(&str, u64); 4] = [
    (
        "EXTFUSE_IOC_SETUP",
        nix::request_code_readwrite!(abi::IOC_MAGIC, 1, size_of::<Setup>()),
    ),
    (
        "EXTFUSE_IOC_STATUS",
        nix::request_code_read!(abi::IOC_MAGIC, 2, size_of::<Status>()),
    ),
    (
        "EXTFUSE_IOC_OPCODES",
        nix::request_code_write!(abi::IOC_MAGIC, 3, size_of::<Opcodes>()),
    ),
    (
        "EXTFUSE_IOC_COUNTERS",
        nix::request_code_read!(abi::IOC_MAGIC, 4, size_of::<Counters>()),
    ),
];

/// A mounted `/dev/extfuse`. All errors are the module's errno: ENOTTY on a device of the stock
/// FUSE, EPERM on one that is not mounted.
#[derive(Debug)]
pub struct Device<F: AsFd = OwnedFd>(F);

impl<F: AsFd> Device<F> {
    /// The device behind `fd`; the first ioctl tells whether it is one.
    pub fn new(fd: F) -> Self {
        Self(fd)
    }

    /// Gives the connection its stamps and its key, and says what attaching needs. Later calls give
    /// the same again.
    ///
    /// # Errors
    ///
    /// EPROTO if the module was built for another [`abi::ABI`].
    pub fn setup(&self) -> io::Result<Setup> {
        let mut setup = Setup {
            abi: abi::ABI,
            ..Setup::default()
        };
        // SAFETY: the number of the ioctl says how much of `setup` the module reads and writes.
        unsafe { ioc::setup(self.raw(), &raw mut setup) }?;
        Ok(setup)
    }

    /// What is attached, and why the last program set no longer is.
    ///
    /// # Errors
    ///
    /// See [`Device`].
    pub fn status(&self) -> io::Result<Status> {
        let mut status = Status::default();
        // SAFETY: as in `setup`.
        unsafe { ioc::status(self.raw(), &raw mut status) }?;
        Ok(status)
    }

    /// Replaces the bitmaps of opcodes with a handler of the attached program set.
    ///
    /// # Errors
    ///
    /// ENOENT if no program set is attached.
    pub fn set_opcodes(&self, opcodes: u64, replies: u64) -> io::Result<()> {
        let bitmaps = Opcodes { opcodes, replies };
        // SAFETY: as in `setup`.
        unsafe { ioc::opcodes(self.raw(), &raw const bitmaps) }?;
        Ok(())
    }

    /// Requests by opcode and outcome, since the mount.
    ///
    /// # Errors
    ///
    /// See [`Device`].
    pub fn counters(&self) -> io::Result<Counters> {
        let mut counters = Counters::default();
        // SAFETY: as in `setup`.
        unsafe { ioc::counters(self.raw(), &raw mut counters) }?;
        Ok(counters)
    }

    /// Maps the stamps of the connection, which must have been [set up](Self::setup). The mapping
    /// keeps the device open as the descriptor does: the connection lives until both are gone.
    ///
    /// # Errors
    ///
    /// See [`Device`], and mmap(2).
    pub fn map_stamps(&self) -> io::Result<StampsMapping> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<StampsLayout>()).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of exactly what the header
        // says is there.
        let address = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, &self.0, 0) }?;
        Ok(StampsMapping(address))
    }

    fn raw(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }
}

/// The stamps of a connection: memory that the module shares, unmapped on drop.
pub struct StampsMapping(NonNull<c_void>);

impl AsRef<[AtomicU64]> for StampsMapping {
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped to this length until drop, and every party, the kernel
        // included, goes through atomic operations of 8 bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of::<StampsLayout>() / 8) }
    }
}

impl Drop for StampsMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is our own, and no reference to it outlives `self`.
        let unmapped = unsafe { munmap(self.0, size_of::<StampsLayout>()) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: it is reached through atomic operations only, from whichever thread.
unsafe impl Send for StampsMapping {}
// SAFETY: the same.
unsafe impl Sync for StampsMapping {}

impl fmt::Debug for StampsMapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("StampsMapping").field(&self.0).finish()
    }
}
