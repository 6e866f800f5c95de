// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a file system of fuser answers READs and takes WRITEs through.
//!
//! ```
//! use extfuse::splice::{Channel, FuseBuf, Read};
//! use fuser::{FileHandle, Filesystem, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyData, Request};
//!
//! struct OneFile {
//!     channel: Channel,
//!     file: std::fs::File,
//! }
//!
//! impl Filesystem for OneFile {
//!     fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
//!         self.channel.negotiate(config);
//!         Ok(())
//!     }
//!
//!     fn read(
//!         &self,
//!         req: &Request,
//!         _ino: INodeNo,
//!         _fh: FileHandle,
//!         offset: u64,
//!         size: u32,
//!         _flags: OpenFlags,
//!         _lock_owner: Option<LockOwner>,
//!         reply: ReplyData,
//!     ) {
//!         let read = Read::new(req.unique().into(), size);
//!         let mut bufs = FuseBuf::file(&self.file, offset, size as usize).into();
//!         if let Err(error) = self.channel.reply_data(read, reply, &mut bufs, |_, _| Ok(())) {
//!             eprintln!("{error}"); // it has been answered, with EIO
//!         }
//!     }
//! }
//! ```

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fuser::{FopenFlags, InitFlags, KernelConfig, ReplyData, WriteFlags};
use nix::errno::Errno;
use thiserror::Error;

use super::answer::{FILL_FROM, Read, ReplyError, SPLICE_FROM, STAGE_TO, Unanswered, Way};
use super::buf::{FuseBuf, FuseBufVec};
use super::drain::WITHHELD;
use super::incoming::{Incoming, Room, is_begun};
use crate::abi::{self, Commit, Wire};
use crate::ebpf::{Context, Object, context};
use crate::sys::device::Device;
use crate::sys::stream::{self, Deadline};

/// From how many bytes on it is cheaper to send a withheld payload than one that came with its WRITE, and
/// the default of [`MountOptions::withhold_from`](super::MountOptions): the two cross between 11 and 14 KiB.
pub const WITHHOLD_FROM: u32 = 16 << 10;

/// What became of the payload.
pub(super) enum Gathered {
    /// It is here.
    Data(Room),
    /// So many bytes of it are in the request, which waits for a reply.
    Staged(u32),
    /// It has been answered.
    Answered,
}

/// The device of a mount, for answers and payloads beside what fuser does with it. A clone is the same.
#[derive(Clone, Debug)]
pub struct Channel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gate: Gate,
    device: Arc<OwnedFd>,
    sections: bool,
    timeout: Duration,
    splices: AtomicBool,
    forgotten: AtomicU64,
}

/// Who looks into frames before the application does, beside the check.
#[derive(Debug)]
enum Gate {
    /// Nobody; that is how it was wanted.
    Unwanted,
    /// A program was wanted, and can't be had here.
    Missing,
    /// A program: until it is ejected, which the module knows.
    Attached { _context: Box<Context> },
}

/// Why there is no channel.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The module does not do what it should.
    #[error("the module does not work with this library: {0}")]
    Device(#[from] io::Error),
    /// The program at the gate can't be used.
    #[error("the gate: {0}")]
    Gate(#[from] context::Error),
}

impl Channel {
    /// For the device of a mount that was made and whose INIT is not answered yet: the module can't give
    /// it sections later. With `withhold`, WRITEs of so many bytes and more come without their payload
    /// then ([`WITHHOLD_FROM`]); without it, those of files that are opened [so](Self::withholding).
    ///
    /// `timeout` is how long an answer may take to come from its sources.
    ///
    /// # Errors
    ///
    /// Those of the module; it not being there is none.
    pub fn new(device: impl AsFd, withhold: Option<u32>, timeout: Duration) -> io::Result<Self> {
        let device = device.as_fd().try_clone_to_owned()?;
        let sections = set_up(&device, withhold)?.is_some();
        Ok(Self::of(device, sections, timeout, Gate::Unwanted))
    }

    /// The same with a program at the gate: a `section` program (`EXTFUSE_GATE` of `include/extfuse_bpf.h`)
    /// that sees header, footer and CRC32C of every section in the kernel, and accepts it or refuses it
    /// with an errno. [`Way::Auto`] then answers in one call; where the program accepts, the check is not
    /// asked. It is asked for what does not go through the module, so the two are to say the same.
    ///
    /// The program sees the sections of all ways through the module, of buffers of memory and of plain files
    /// too: those have neither header nor footer.
    ///
    /// Where there is no module, or no privilege for BPF, the check alone decides: no error, see
    /// [`has_gate`](Self::has_gate). The same after the module has ejected the program for its errors.
    ///
    /// # Errors
    ///
    /// If the object has no such program, or the verifier refuses it; or as [`new`](Self::new).
    pub fn with_gate(
        device: impl AsFd,
        withhold: Option<u32>,
        timeout: Duration,
        gate: &Object,
    ) -> Result<Self, ChannelError> {
        let device = device.as_fd().try_clone_to_owned()?;
        let conn = set_up(&device, withhold)?;
        let gate = match conn.map(|conn| Context::attach_gate(conn, gate)) {
            Some(Ok(context)) => Gate::Attached {
                _context: Box::new(context),
            },
            Some(Err(error)) if error.is_of_the_machine() => {
                tracing::warn!("frames are checked in user space: {error}");
                Gate::Missing
            }
            Some(Err(error)) => return Err(error.into()),
            None => Gate::Missing,
        };
        Ok(Self::of(device, conn.is_some(), timeout, gate))
    }

    fn of(device: OwnedFd, sections: bool, timeout: Duration, gate: Gate) -> Self {
        Self(Arc::new(Inner {
            gate,
            device: Arc::new(device),
            sections,
            timeout,
            splices: AtomicBool::new(false),
            forgotten: AtomicU64::new(0),
        }))
    }

    /// Whether a program at the gate was attached. The module may have ejected it since.
    #[must_use]
    pub fn has_gate(&self) -> bool {
        matches!(self.0.gate, Gate::Attached { .. })
    }

    /// Whether the module is there.
    #[must_use]
    pub fn has_sections(&self) -> bool {
        self.0.sections
    }

    /// To be called in the file system's `init`: asks the kernel for splicing.
    pub fn negotiate(&self, config: &mut KernelConfig) {
        let splice = InitFlags::FUSE_SPLICE_WRITE | InitFlags::FUSE_SPLICE_MOVE | InitFlags::FUSE_SPLICE_READ;
        let agreed = config.add_capabilities(splice).is_ok();
        self.0.splices.store(agreed, Ordering::Relaxed);
    }

    /// Answers a READ with the payload of `bufs`, from its current buffer on, if `check` agrees: it is
    /// asked once all is received, with header and footer of each section in its memory, and the checksum
    /// of each buffer's payload, if wanted. Until then the application sees nothing.
    /// What it says instead is what the application gets.
    ///
    /// The last buffer may turn out shorter if it is no section: that is the end of the file.
    ///
    /// The request is answered in any case, with EIO if there is an error.
    ///
    /// # Errors
    ///
    /// See [`ReplyError`]; EINVAL of more payload than the READ wants, or of buffers that are not what
    /// their flags say.
    pub fn reply_data<'a>(
        &self,
        read: Read,
        reply: ReplyData,
        bufs: &mut FuseBufVec<'a>,
        check: impl FnOnce(&FuseBufVec<'a>, &[Option<u32>]) -> Result<(), Errno>,
    ) -> Result<(), ReplyError> {
        let answered = self.answer(Unanswered::new(read, reply), bufs, check);
        answered.map_err(|(error, unanswered)| {
            if let Some(unanswered) = unanswered {
                unanswered.error(error.errno());
            }
            error
        })
    }

    /// As [`reply_data`](Self::reply_data), but for what becomes of the request if there is an error: it is given back, if
    /// somebody still waits for it.
    ///
    /// # Errors
    ///
    /// The same.
    pub(crate) fn answer<'a>(
        &self,
        unanswered: Unanswered,
        bufs: &mut FuseBufVec<'a>,
        check: impl FnOnce(&FuseBufVec<'a>, &[Option<u32>]) -> Result<(), Errno>,
    ) -> Result<(), (ReplyError, Option<Unanswered>)> {
        let Unanswered { reply, read, staged } = unanswered;
        let read = if staged { read.way(Way::Fill) } else { read };
        let (way, first) = (self.way(&read, bufs), bufs.idx);
        match self.gather(read, way, bufs, check) {
            Ok(Gathered::Data(room)) => reply.data(room.bytes()),
            Ok(Gathered::Staged(size)) if staged => reply.data(Commit { size, reserved: 0 }.bytes()),
            Ok(Gathered::Staged(_)) => reply.data(&[]),
            Ok(Gathered::Answered) => self.forget(reply),
            Err(error @ ReplyError::Gone { .. }) => {
                self.forget(reply);
                return Err((error, None));
            }
            Err(error) => {
                let sections = matches!(way, Way::Stage | Way::Fill | Way::FillCommit);
                let staged = staged || sections && bufs.idx > first;
                return Err((error, Some(Unanswered { reply, read, staged })));
            }
        }
        Ok(())
    }

    fn gather<'a>(
        &self,
        read: Read,
        way: Way,
        bufs: &mut FuseBufVec<'a>,
        check: impl FnOnce(&FuseBufVec<'a>, &[Option<u32>]) -> Result<(), Errno>,
    ) -> Result<Gathered, ReplyError> {
        let deadline = Deadline::after(self.0.timeout);
        if !is_sound(bufs, read.size as usize) {
            return Err(ReplyError::Broken {
                buf: bufs.idx,
                done: 0,
                error: Errno::EINVAL.into(),
            });
        }
        let mut crcs = vec![None; bufs.count()];
        if matches!(way, Way::Stage | Way::Fill | Way::FillCommit) {
            let gated = !matches!(self.0.gate, Gate::Unwanted);
            let staged =
                super::sections::gather(self.device(), &read, way, gated, bufs, &mut crcs, deadline)?;
            let Some(size) = staged else {
                return Ok(Gathered::Answered);
            };
            check(bufs, &crcs).map_err(ReplyError::Refused)?;
            return Ok(Gathered::Staged(size));
        }

        let mut room = Room::new();
        let mut incoming = Incoming::new(bufs, deadline);
        if way == Way::Splice {
            let mut check = Some(check);
            let device = &self.0.device;
            if super::spliced::gather(device, read.unique, &mut incoming, &mut room, &mut check)? {
                return Ok(Gathered::Answered);
            }
            self.to_memory(&mut incoming, &mut room, &mut Vec::new())?;
            if let Some(check) = check {
                check(bufs, &crcs).map_err(ReplyError::Refused)?;
            }
            return Ok(Gathered::Data(room));
        }

        let first = incoming.bufs.idx;
        let mut lengths = Vec::with_capacity(crcs.len());
        self.to_memory(&mut incoming, &mut room, &mut lengths)?;
        if read.crc {
            let mut rest = room.bytes();
            for (crc, length) in crcs.iter_mut().skip(first).zip(lengths) {
                let (payload, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                *crc = Some(crc32c::crc32c(payload));
                rest = behind;
            }
        }
        check(bufs, &crcs).map_err(ReplyError::Refused)?;
        Ok(Gathered::Data(room))
    }

    fn to_memory(
        &self,
        incoming: &mut Incoming<'_, '_>,
        room: &mut Room,
        lengths: &mut Vec<usize>,
    ) -> Result<(), ReplyError> {
        incoming
            .receive(room, lengths)
            .map_err(|error| ReplyError::Broken {
                buf: incoming.bufs.idx,
                done: incoming.done,
                error,
            })
    }

    /// The way that an answer goes.
    #[must_use]
    pub fn way(&self, read: &Read, bufs: &FuseBufVec<'_>) -> Way {
        let size = bufs.size();
        let in_memory = bufs.iter().skip(bufs.idx).all(|buf| !buf.is_fd());
        let in_frames = bufs.iter().skip(bufs.idx).all(FuseBuf::is_section);
        let splices = self.0.splices.load(Ordering::Relaxed) && !read.crc;
        match read.way {
            // What a copy has begun with is in several places.
            _ if is_begun(bufs) => Way::Copy,
            Way::Copy => Way::Copy,
            Way::Splice if splices => Way::Splice,
            Way::Splice => Way::Copy,
            way @ (Way::Stage | Way::Fill | Way::FillCommit) if self.0.sections && has_room(bufs) => way,
            _ if in_memory => Way::Copy,
            // In one call it pays at any size. What has no frame is for the check.
            Way::Auto if self.has_gate() && in_frames && has_room(bufs) => Way::FillCommit,
            _ if self.0.sections && size >= FILL_FROM && has_room(bufs) => {
                if size <= STAGE_TO && are_local(bufs) {
                    Way::Stage
                } else {
                    Way::Fill
                }
            }
            _ if !self.0.sections && splices && size >= SPLICE_FROM => Way::Splice,
            _ => Way::Copy,
        }
    }

    fn device(&self) -> Device<&OwnedFd> {
        Device::new(&self.0.device)
    }

    /// A reply object whose request has been answered. Its own answer would be an error; and dropping it
    /// is answering. It holds nothing but a count of fuser's device, which is never given back: see
    /// [`Session`](crate::Session).
    fn forget(&self, reply: ReplyData) {
        self.0.forgotten.fetch_add(1, Ordering::Relaxed);
        mem::forget(reply);
    }

    /// How many READs were answered without fuser's reply object, in one call.
    #[must_use]
    pub fn answered_in_one_call(&self) -> u64 {
        self.0.forgotten.load(Ordering::Relaxed)
    }

    /// Flags for the answer to an OPEN or CREATE with which the WRITEs of this one open file come without
    /// their payload. None where the module isn't there: they bring it along then, and
    /// [`write_buf`](Self::write_buf) gives the same bytes.
    ///
    /// ```
    /// # use extfuse::splice::Channel;
    /// # use fuser::{FileHandle, ReplyOpen};
    /// fn opened(channel: &Channel, reply: ReplyOpen) {
    ///     reply.opened(FileHandle(1), channel.withholding());
    /// }
    /// ```
    #[must_use]
    pub fn withholding(&self) -> FopenFlags {
        match self.0.sections {
            true => FopenFlags::from_bits_retain(abi::OPEN_WITHHOLD),
            false => FopenFlags::empty(),
        }
    }

    /// The payload of a WRITE, in memory or still in the kernel: [`drain`](super::drain()) sends it from
    /// wherever it is. To be used before the WRITE is answered.
    #[must_use]
    pub fn write_buf<'d>(&self, unique: u64, data: &'d [u8], write_flags: WriteFlags) -> FuseBufVec<'d> {
        let flags = write_flags.bits();
        if !self.0.sections || flags & abi::WRITE_WITHHELD == 0 {
            return FuseBuf::memory(data).into();
        }
        let size = (flags >> abi::WRITE_SIZE_SHIFT) & abi::WRITE_SIZE_MASK;
        FuseBuf {
            size: size as usize,
            flags: WITHHELD,
            fd: Some(Arc::clone(&self.0.device).into()),
            pos: unique,
            ..FuseBuf::default()
        }
        .into()
    }
}

/// Gives the connection what sections need; its id, if it is one of the module's.
fn set_up(device: &OwnedFd, withhold: Option<u32>) -> io::Result<Option<u64>> {
    let ioctls = Device::new(device);
    match ioctls.setup() {
        Ok(setup) => {
            ioctls.sections(withhold)?;
            Ok(Some(setup.conn))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the buffers are what their flags say, and no more than is wanted.
fn is_sound(bufs: &FuseBufVec<'_>, wanted: usize) -> bool {
    let sound = |buf: &FuseBuf<'_>| {
        let room = buf.mem.as_slice().map_or(0, <[u8]>::len);
        match (buf.is_fd(), buf.is_section()) {
            _ if buf.flags.contains(WITHHELD) => false,
            (false, _) => room >= buf.size,
            (true, false) => buf.fd.is_some(),
            (true, true) => {
                let meta = buf.framing();
                let writable = meta == 0 || !matches!(buf.mem, super::Mem::Ref(_));
                buf.fd.is_some() && room >= meta && writable
            }
        }
    };
    bufs.size() <= wanted && bufs.iter().skip(bufs.idx).all(sound)
}

/// Whether headers and footers are as small as the module wants them.
fn has_room(bufs: &FuseBufVec<'_>) -> bool {
    let max = abi::SECTION_META_MAX;
    let small = |buf: &FuseBuf<'_>| !buf.is_section() || buf.header <= max && buf.footer <= max;
    bufs.iter().skip(bufs.idx).all(small)
}

/// Whether every descriptor is a local socket. Asked anew for each answer: a number may be another's the
/// next time, and it is one cheap call, of those answers only whose way hangs on it.
fn are_local(bufs: &FuseBufVec<'_>) -> bool {
    let mut fds = bufs.iter().skip(bufs.idx).filter(|buf| buf.is_fd());
    fds.all(|buf| buf.fd.as_ref().is_some_and(stream::is_local))
}
