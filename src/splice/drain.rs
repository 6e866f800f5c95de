// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload of a WRITE on its way out, between header and footer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use thiserror::Error;

use super::buf::{BufFlags, CopyFlags, FuseBuf, FuseBufVec};
use super::copy::{copy, invalid};
use super::incoming::stream;
use super::pipe::with_pipe;
use crate::abi;
use crate::sys::device::Device;
use crate::sys::stream::{Deadline, position, seek};

/// Of a buffer that stands for the payload of a WRITE, which is still in the kernel: `fd` is the mount's
/// device, `pos` the request's id. Nothing but [`drain`] can read it.
pub const WITHHELD: BufFlags = BufFlags::from_bits_retain(1 << 31);

/// How to send a payload.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Compute the CRC32C of the payload.
    pub crc: bool,
    /// Where in the footer to put it, four bytes, little-endian.
    pub crc_at: Option<usize>,
    /// How long the receiver may take.
    pub timeout: Duration,
}

impl Default for Drain {
    /// No checksum, and half a minute.
    fn default() -> Self {
        Self {
            crc: false,
            crc_at: None,
            timeout: Duration::from_secs(30),
        }
    }
}

impl Drain {
    /// With the CRC32C of the payload at byte `at` of the footer.
    #[must_use]
    pub fn crc_at(self, at: usize) -> Self {
        Self {
            crc: true,
            crc_at: Some(at),
            ..self
        }
    }
}

/// The receiver failed: a stream is somewhere inside a frame then, and of no more use. All of the payload
/// is still there, to be sent elsewhere.
#[derive(Debug, Error)]
#[error("after {done} bytes of the frame: {error}")]
pub struct DrainError {
    /// Bytes of header, payload and footer that went.
    pub done: usize,
    /// Why no more.
    pub error: io::Error,
}

impl DrainError {
    fn new(done: usize, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Self { done, error }
    }
}

impl From<io::Error> for DrainError {
    fn from(error: io::Error) -> Self {
        Self::new(0, error)
    }
}

/// Sends the next `dst.size` bytes of `src`, in memory or [withheld](WITHHELD), to `dst`: as a section
/// between the header and the footer that are in its memory, or as they are to another descriptor or to
/// memory. `src` advances once all went. Gives the CRC32C of the payload, if it was asked for.
///
/// # Errors
///
/// EINVAL of buffers that are not what their flags say, or of a `src` with less than that; ETIMEDOUT; ENOENT
/// if the WRITE has been aborted; and those of the receiver: no SIGPIPE comes of a socket.
pub fn drain(
    src: &mut FuseBufVec<'_>,
    dst: &mut FuseBuf<'_>,
    how: &Drain,
) -> Result<Option<u32>, DrainError> {
    let deadline = Deadline::after(how.timeout);
    let room = dst.mem.as_slice().map_or(0, <[u8]>::len);
    let needed = if dst.is_fd() { dst.framing() } else { dst.size };
    let in_footer = |at: usize| dst.is_section() && at.checked_add(4).is_some_and(|end| end <= dst.footer);
    if src.size() < dst.size || room < needed || !how.crc_at.is_none_or(in_footer) {
        return Err(DrainError::new(0, Errno::EINVAL));
    }
    let crc = match src.current() {
        Some(buf) if is_withheld(buf) && dst.is_fd() && buf.size - src.off.min(buf.size) >= dst.size => {
            drain_kernel(buf, src.off, dst, how, deadline)?
        }
        _ => drain_memory(src, dst, how, deadline)?,
    };
    advance(src, dst.size);
    Ok(crc)
}

fn is_withheld(buf: &FuseBuf<'_>) -> bool {
    buf.flags.contains(WITHHELD)
}

fn advance(src: &mut FuseBufVec<'_>, mut by: usize) {
    while let Some(buf) = src.current() {
        let left = buf.size.saturating_sub(src.off);
        if by < left {
            src.off += by;
            return;
        }
        by -= left;
        src.idx += 1;
        src.off = 0;
    }
}

/// By the module, from the request's pages.
fn drain_kernel(
    buf: &FuseBuf<'_>,
    off: usize,
    dst: &mut FuseBuf<'_>,
    how: &Drain,
    deadline: Deadline,
) -> Result<Option<u32>, DrainError> {
    let fd = dst.fd.clone().ok_or_else(invalid)?;
    let fd = fd.as_fd();
    let own = if dst.flags.contains(BufFlags::FD_SEEK) {
        None
    } else {
        position(fd)
    };
    let section = dst.is_section();
    let (header, footer) = if section { (dst.header, dst.footer) } else { (0, 0) };
    let pos = if own.is_some() { own } else { Some(dst.pos) };
    let number = |length: usize| u32::try_from(length).map_err(|_| DrainError::new(0, Errno::EINVAL));
    let mut args = abi::Drain {
        pos: pos.unwrap_or_default(),
        header: number(header)?,
        payload: number(dst.size)?,
        footer: number(footer)?,
        offset: number(off)?,
        crc_at: how.crc_at.map_or(Ok(abi::NOWHERE), number)?,
        ..abi::Drain::default()
    };
    let mem = match section {
        true => dst.mem.as_mut_slice(),
        false => None,
    };
    // A header that may not be written to is sent from a copy.
    let mut copied = Vec::new();
    let mem = match mem {
        Some(mem) => mem,
        None => {
            copied.extend_from_slice(dst.mem.as_slice().filter(|_| section).unwrap_or_default());
            &mut copied
        }
    };
    let crc = ioctl(buf, fd, &mut args, mem, how.crc, deadline);
    match crc {
        Err(DrainError { done: 0, error }) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            // Not one of the kinds that the module writes to.
            let bytes = to_memory(buf, off, dst.size, deadline)?;
            send(&[&bytes], dst, how, deadline)
        }
        Err(error) => Err(error),
        Ok(crc) => {
            if let Some(own) = own {
                seek(fd, own.saturating_add(u64::from(args.done)))?;
            }
            Ok(how.crc.then_some(crc))
        }
    }
}

/// DRAIN, until all went.
fn ioctl(
    buf: &FuseBuf<'_>,
    fd: BorrowedFd<'_>,
    args: &mut abi::Drain,
    mem: &mut [u8],
    crc: bool,
    deadline: Deadline,
) -> Result<u32, DrainError> {
    let device = Device::new(buf.fd.as_ref().ok_or_else(invalid)?);
    args.unique = buf.pos;
    args.fd = fd.as_raw_fd();
    args.flags = if crc { abi::SECTION_CRC } else { 0 };
    loop {
        args.timeout = deadline.left();
        let Err(error) = device.drain(args, mem) else {
            return Ok(args.crc);
        };
        let done = args.done as usize;
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => deadline
                .wait(fd, PollFlags::POLLOUT)
                .map_err(|error| DrainError::new(done, error))?,
            _ => return Err(DrainError::new(done, error)),
        }
    }
}

/// A withheld payload as bytes, through a pipe.
fn to_memory(buf: &FuseBuf<'_>, off: usize, len: usize, deadline: Deadline) -> Result<Vec<u8>, DrainError> {
    let mut bytes = Vec::with_capacity(len);
    let piped = with_pipe(len, |pipe| {
        while bytes.len() < len {
            let some = (len - bytes.len()).min(pipe.capacity());
            let number = |length: usize| u32::try_from(length).map_err(|_| invalid());
            let mut args = abi::Drain {
                payload: number(some)?,
                offset: number(off + bytes.len())?,
                crc_at: abi::NOWHERE,
                ..abi::Drain::default()
            };
            let writer = pipe.writer();
            ioctl(buf, writer, &mut args, &mut [], false, deadline).map_err(|error| error.error)?;
            bytes.append(&mut pipe.take()?);
        }
        Ok(())
    });
    piped?;
    Ok(bytes)
}

/// From memory, or to it.
fn drain_memory(
    src: &mut FuseBufVec<'_>,
    dst: &mut FuseBuf<'_>,
    how: &Drain,
    deadline: Deadline,
) -> Result<Option<u32>, DrainError> {
    let plain = src
        .iter()
        .skip(src.idx)
        .all(|buf| !buf.is_fd() && !is_withheld(buf));
    if !plain {
        let at = (src.idx, src.off);
        let gathered = gather(src, dst.size, deadline);
        // The caller advances it.
        (src.idx, src.off) = at;
        return send(&[&gathered?], dst, how, deadline);
    }
    let mut parts = Vec::with_capacity(src.count());
    let (mut off, mut left) = (src.off, dst.size);
    for buf in src.iter().skip(src.idx) {
        let take = left.min(buf.size.saturating_sub(off));
        let bytes = buf.mem.as_slice().and_then(|mem| mem.get(off..off + take));
        parts.push(bytes.ok_or_else(invalid)?);
        left -= take;
        off = 0;
    }
    send(&parts, dst, how, deadline)
}

/// The next bytes of buffers of any kind.
fn gather(src: &mut FuseBufVec<'_>, len: usize, deadline: Deadline) -> Result<Vec<u8>, DrainError> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let Some(buf) = src.current() else { break };
        if is_withheld(buf) {
            let some = (len - bytes.len()).min(buf.size - src.off);
            bytes.append(&mut to_memory(buf, src.off, some, deadline)?);
            advance(src, some);
        } else {
            let begin = bytes.len();
            let some = (len - begin).min(buf.size - src.off);
            bytes.resize(begin + some, 0);
            let room = bytes.get_mut(begin..).unwrap_or_default();
            let copied = copy(&mut FuseBuf::memory_mut(room).into(), src, CopyFlags::NO_SPLICE)?;
            if copied != some {
                return Err(DrainError::new(0, io::ErrorKind::UnexpectedEof));
            }
        }
    }
    Ok(bytes)
}

fn send(
    parts: &[&[u8]],
    dst: &mut FuseBuf<'_>,
    how: &Drain,
    deadline: Deadline,
) -> Result<Option<u32>, DrainError> {
    let crc = how
        .crc
        .then(|| parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)));
    if !dst.is_fd() {
        let mut room = dst.mem.as_mut_slice().ok_or_else(invalid)?;
        for part in parts {
            let (to, rest) = room.split_at_mut_checked(part.len()).ok_or_else(invalid)?;
            to.copy_from_slice(part);
            room = rest;
        }
        return Ok(crc);
    }
    let mut sealed = Vec::new();
    if let (Some(at), Some(crc)) = (how.crc_at, crc) {
        sealed.extend_from_slice(dst.mem.as_slice().unwrap_or_default());
        let to = sealed.get_mut(dst.header + at..dst.header + at + 4);
        to.ok_or_else(invalid)?.copy_from_slice(&crc.to_le_bytes());
        if let Some(mem) = dst.mem.as_mut_slice() {
            mem.copy_from_slice(&sealed);
        }
    }
    let mem = if sealed.is_empty() {
        dst.mem.as_slice().unwrap_or_default()
    } else {
        &sealed
    };
    let (header, footer) = if dst.is_section() {
        (dst.header, dst.framing())
    } else {
        (0, 0)
    };
    let mut frame = vec![mem.get(..header).unwrap_or_default()];
    frame.extend_from_slice(parts);
    frame.push(mem.get(header..footer).unwrap_or_default());
    match stream(dst)?.write_all(&frame, deadline) {
        (_, Ok(())) => Ok(crc),
        (done, Err(error)) => Err(DrainError::new(done, error)),
    }
}
