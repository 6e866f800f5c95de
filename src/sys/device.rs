// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls of a mounted `/dev/extfuse` and the mapping of its stamps (`include/extfuse.h`).

use std::ffi::c_void;
use std::fmt;
use std::io::{self, IoSlice};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::SpliceFFlags;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::abi::{
    self, Backing, Counters, Drain, Fill, NodeId, Opcodes, Section, Sections, Setup, StampsLayout, Status,
    Wire,
};

mod ioc {
    use crate::abi::{Backing, Counters, Drain, Fill, IOC_MAGIC, Opcodes, Sections, Setup, Status};

    nix::ioctl_readwrite!(setup, IOC_MAGIC, 1, Setup);
    nix::ioctl_read!(status, IOC_MAGIC, 2, Status);
    nix::ioctl_write_ptr!(opcodes, IOC_MAGIC, 3, Opcodes);
    nix::ioctl_read!(counters, IOC_MAGIC, 4, Counters);
    nix::ioctl_write_ptr!(sections, IOC_MAGIC, 5, Sections);
    nix::ioctl_readwrite!(fill, IOC_MAGIC, 6, Fill);
    nix::ioctl_readwrite!(drain, IOC_MAGIC, 7, Drain);
    nix::ioctl_readwrite!(backing, IOC_MAGIC, 8, Backing);
}

/// The numbers of the ioctls, as the header has them.
pub const IOCTLS: [(&str, u64); 8] = [
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
    (
        "EXTFUSE_IOC_SECTIONS",
        nix::request_code_write!(abi::IOC_MAGIC, 5, size_of::<Sections>()),
    ),
    (
        "EXTFUSE_IOC_FILL",
        nix::request_code_readwrite!(abi::IOC_MAGIC, 6, size_of::<Fill>()),
    ),
    (
        "EXTFUSE_IOC_DRAIN",
        nix::request_code_readwrite!(abi::IOC_MAGIC, 7, size_of::<Drain>()),
    ),
    (
        "EXTFUSE_IOC_BACKING",
        nix::request_code_readwrite!(abi::IOC_MAGIC, 8, size_of::<Backing>()),
    ),
];

/// What STAGE's message starts with: `fuse_out_header`, then [`Section`].
pub const STAGE_HEADER: usize = 16 + size_of::<Section>();

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
        self.setup_with(0)
    }

    /// The same, with `EXTFUSE_HOLDS_NODES` or other flags, of which those of the first call count.
    ///
    /// # Errors
    ///
    /// EPROTO if the module was built for another [`abi::ABI`], EINVAL if it does not know a flag.
    pub fn setup_with(&self, flags: u32) -> io::Result<Setup> {
        let mut setup = Setup {
            abi: abi::ABI,
            flags,
            ..Setup::default()
        };
        // SAFETY: the number of the ioctl says how much of `setup` the module reads and writes.
        unsafe { ioc::setup(self.raw(), &raw mut setup) }?;
        Ok(setup)
    }

    /// Whether the kernel holds an inode of that nodeid; if so, its attributes are asked again
    /// (`FUSE_NOTIFY_INVAL_INODE`, without its pages). Waits while the kernel evicts it, which may need an
    /// answer from the daemon: not to be called by the only one who serves.
    ///
    /// # Errors
    ///
    /// See [`Device`].
    pub fn has_inode(&self, node: NodeId) -> io::Result<bool> {
        const INVAL_INODE: u32 = 2;
        const LENGTH: u32 = 16 + 24;
        let mut message = Vec::with_capacity(LENGTH as usize);
        // Header: length, code, no unique. Then the node, and a range that is none.
        message.extend(LENGTH.to_ne_bytes());
        message.extend(INVAL_INODE.to_ne_bytes());
        message.extend(0_u64.to_ne_bytes());
        message.extend(node.0.to_ne_bytes());
        message.extend((-1_i64).to_ne_bytes());
        message.extend(0_i64.to_ne_bytes());
        match nix::unistd::write(self.0.as_fd(), &message) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
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

    /// Allows [`stage`](Self::stage) on this connection, by this address space only; with `withhold`,
    /// every WRITE of so many bytes and more comes without its payload.
    ///
    /// # Errors
    ///
    /// EBUSY if another address space has it.
    pub fn sections(&self, withhold: Option<u32>) -> io::Result<()> {
        let sections = Sections {
            flags: withhold.map_or(0, |_| abi::SECTIONS_WITHHOLD),
            withhold_from: withhold.unwrap_or(0),
        };
        // SAFETY: as in `setup`.
        unsafe { ioc::sections(self.raw(), &raw const sections) }?;
        Ok(())
    }

    /// Receives a frame: the payload into the READ `fill.unique`, header and footer into `mem`, which
    /// `fill.mem` is set to. `fill.done` and `fill.crc` say how far it got, after an error too.
    ///
    /// # Errors
    ///
    /// EINVAL if `mem` is too short, or as the module finds (see `include/extfuse.h`): EINTR, EAGAIN,
    /// ETIMEDOUT and ENODATA (the source ended) can be called again, ENOENT means that nobody waits
    /// for the answer any more; else what receiving gave.
    pub fn fill(&self, fill: &mut Fill, mem: &mut [u8]) -> io::Result<()> {
        fill.mem = address(mem, [fill.header, fill.footer, 0])?;
        // SAFETY: as in `setup`; and the module writes `header + footer` bytes at `mem` at most.
        unsafe { ioc::fill(self.raw(), &raw mut *fill) }?;
        Ok(())
    }

    /// Sends a frame: header and footer from `mem`, which `drain.mem` is set to, the payload from the
    /// WRITE `drain.unique`. The module may put the CRC into the footer there.
    ///
    /// # Errors
    ///
    /// As [`fill`](Self::fill); EPIPE or ECONNRESET if the receiver is gone (no SIGPIPE).
    pub fn drain(&self, drain: &mut Drain, mem: &mut [u8]) -> io::Result<()> {
        drain.mem = address(mem, [drain.header, drain.footer, 0])?;
        // SAFETY: as in `setup`; and the module reads and writes `header + footer` bytes at `mem`.
        unsafe { ioc::drain(self.raw(), &raw mut *drain) }?;
        Ok(())
    }

    /// Stages a frame that is in memory: the payload into the READ `unique`, header, footer and the
    /// CRC, if asked for, into `mem`.
    ///
    /// # Errors
    ///
    /// EPERM without [`sections`](Self::sections), EINVAL if `mem` or `frame` is too short, ENOENT if
    /// there is no such request, ERANGE if the payload goes beyond its end.
    pub fn stage(
        &self,
        unique: u64,
        section: &mut Section,
        frame: &[IoSlice<'_>],
        mem: &mut [u8],
    ) -> io::Result<()> {
        let length = frame.iter().map(|part| part.len()).sum();
        let header = stage_header(unique, section, length, mem)?;
        let parts: Vec<_> = [IoSlice::new(&header)]
            .into_iter()
            .chain(frame.iter().copied())
            .collect();
        let written = nix::sys::uio::writev(&self.0, &parts)?;
        debug_assert_eq!(written, header.len() + length);
        Ok(())
    }

    /// [Stages](Self::stage) a frame of `length` bytes through a pipe (its read end, its write end), which
    /// must be empty and have room: `frame` puts the bytes behind what is there already. After an error
    /// the pipe may hold anything.
    ///
    /// # Errors
    ///
    /// As [`stage`](Self::stage), and those of `frame`; EPIPE if the pipe took or gave less.
    pub fn stage_through(
        &self,
        unique: u64,
        section: &mut Section,
        mem: &mut [u8],
        pipe: (BorrowedFd<'_>, BorrowedFd<'_>),
        length: usize,
        frame: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (from, to) = pipe;
        let header = stage_header(unique, section, length, mem)?;
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        if nix::unistd::write(to, &header)? != header.len() {
            return Err(broken());
        }
        frame(to)?;
        let total = header.len() + length;
        let spliced = nix::fcntl::splice(from, None, &self.0, None, total, SpliceFFlags::empty())?;
        if spliced == total { Ok(()) } else { Err(broken()) }
    }

    /// Registers a node's backing file, or changes what of it is valid. [`crate::ebpf::Backing`] is
    /// what to use.
    ///
    /// # Errors
    ///
    /// EPERM without `CAP_SYS_ADMIN`, or before `FUSE_PASSTHROUGH` is negotiated; for the others see
    /// `docs/abi.md`.
    pub fn backing(&self, backing: &mut Backing) -> io::Result<()> {
        // SAFETY: as in `setup`.
        unsafe { ioc::backing(self.raw(), &raw mut *backing) }?;
        Ok(())
    }

    fn raw(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }
}

/// The address of `mem`, if it has room for parts of these lengths.
fn address(mem: &mut [u8], parts: [u32; 3]) -> io::Result<u64> {
    let length: u64 = parts.into_iter().map(u64::from).sum();
    if length > mem.len() as u64 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(mem.as_mut_ptr() as u64)
}

/// The start of STAGE's message, with a frame of `length` bytes behind it. It makes the module write
/// header, footer and CRC to `mem`. EINVAL if that is too short, or the message longer than it can say.
fn stage_header(
    unique: u64,
    section: &mut Section,
    length: usize,
    mem: &mut [u8],
) -> io::Result<[u8; STAGE_HEADER]> {
    let crc = if section.flags & abi::SECTION_CRC == 0 {
        0
    } else {
        4
    };
    section.mem = address(mem, [section.header, section.footer, crc])?;
    let total =
        u32::try_from(STAGE_HEADER + length).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut header = [0; STAGE_HEADER];
    header[..4].copy_from_slice(&total.to_ne_bytes());
    header[4..8].copy_from_slice(&abi::STAGE.to_ne_bytes());
    header[8..16].copy_from_slice(&unique.to_ne_bytes());
    header[16..].copy_from_slice(section.bytes());
    Ok(header)
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
