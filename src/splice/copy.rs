// SPDX-License-Identifier: MIT OR Apache-2.0
//! From one row of buffers to another: `fuse_buf_copy`, and the headers and footers of sections.

use std::io;

use thiserror::Error;

use super::buf::{BufFlags, CopyFlags, FuseBuf, FuseBufVec};
use super::transfer::{End, Stop, Transfer};

/// The source ended before a section was whole. It is what an [`io::ErrorKind::UnexpectedEof`] of
/// [`copy`] carries.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the source ended inside a section, after {header} bytes of its header, {payload} of its payload \
     and {footer} of its footer"
)]
pub struct SectionEnded {
    /// Bytes of the header that arrived.
    pub header: usize,
    /// Bytes of the payload that were delivered.
    pub payload: usize,
    /// Bytes of the footer that arrived.
    pub footer: usize,
}

/// Copies payload from `src` to `dst`, each from its current position on, until one of them has no more,
/// and advances both by exactly what was delivered. Gives how much that was.
///
/// The copy ends early, with a smaller number, where a source ends, where a transfer of a descriptor
/// without [`BufFlags::FD_RETRY`] is short, and where an error comes after something was delivered. The
/// next call goes on from there, and meets the end or the error again as its first thing.
///
/// **Sections.** A source's header is received before its payload, and its footer right behind; the same
/// way a destination's are sent. A section is begun only if its payload is empty or there is payload on
/// the other side. So all payload may be delivered while the footer is still missing, or the source may
/// have failed there: a section is whole once the vector is past it ([`FuseBufVec::is_done`]).
///
/// **What was taken is never lost.** An error of the destination can come when bytes have already been
/// taken out of a source without [`BufFlags::FD_SEEK`] (a socket, a pipe, a file's own position). Those not
/// delivered are kept in that source's buffer ([`FuseBuf::taken`]), and are the first to be delivered by
/// the next copy from it, wherever to. Bytes that were delivered, which is what the count says, are never
/// sent again. What an error leaves open is only what the destination itself leaves open, such as
/// data that a socket had accepted when its peer went away. Dropping the vector drops what it kept.
///
/// **How.** Between two descriptors, splice(2): directly if one is a pipe, otherwise through a pipe of this
/// thread. Where it refuses (EINVAL: files in append mode, most devices), bytes are read and
/// written, unless [`CopyFlags::FORCE_SPLICE`] is given; then it is an error. The way never
/// changes which bytes arrive. A file that is spliced is read when the destination takes the bytes: who
/// changes it meanwhile changes them. Ranges of one file must not overlap.
///
/// A process that writes to sockets or pipes ignores SIGPIPE, as Rust's runtime makes it.
///
/// # Errors
///
/// Those of the calls made, if nothing was delivered: WouldBlock of a descriptor that does not wait is one
/// of them. [`SectionEnded`] of a source that ends inside a section, or at its beginning. EINVAL of a
/// buffer that is not what its flags say: memory that is missing, shorter than `size` or only for
/// reading, or no descriptor.
pub fn copy(dst: &mut FuseBufVec<'_>, src: &mut FuseBufVec<'_>, flags: CopyFlags) -> io::Result<usize> {
    let mut transfer = Transfer::new(flags);
    let mut copied = 0;
    match advance(dst, src, &mut transfer, &mut copied) {
        Err(error) if copied == 0 => Err(error),
        _ => Ok(copied),
    }
}

fn advance(
    dst: &mut FuseBufVec<'_>,
    src: &mut FuseBufVec<'_>,
    transfer: &mut Transfer,
    copied: &mut usize,
) -> io::Result<()> {
    loop {
        settle(src, Framing::Receive, dst.has_payload())?;
        settle(dst, Framing::Send, src.has_payload())?;
        if !src.has_payload() || !dst.has_payload() {
            return Ok(());
        }
        let at = (dst.off, src.off);
        let (Some(to), Some(from)) = (dst.current_mut(), src.current_mut()) else {
            return Ok(());
        };
        let len = (to.size - at.0).min(from.size - at.1);
        let (moved, stop) = transfer.run(to, from, at, len);
        let ended_inside = from.is_section() && matches!(stop, Some(Stop::End));
        dst.off += moved;
        src.off += moved;
        *copied += moved;
        match stop {
            None => {}
            Some(Stop::End) if ended_inside => return Err(section_ended(src)),
            Some(Stop::End | Stop::Short) => return Ok(()),
            Some(Stop::Error(error)) => return Err(error),
        }
    }
}

#[derive(Clone, Copy)]
enum Framing {
    Receive,
    Send,
}

/// Brings a vector to its next byte of payload, by way of the footers before it and the header in front
/// of it. A header of a section with payload waits until the other side has some.
fn settle(vec: &mut FuseBufVec<'_>, framing: Framing, other_has_payload: bool) -> io::Result<()> {
    loop {
        let off = vec.off;
        let Some(buf) = vec.current_mut() else {
            return Ok(());
        };
        let left = buf.size.saturating_sub(off);
        let until = match left {
            0 => buf.framing(),
            _ if other_has_payload && buf.is_section() => buf.header,
            _ => 0,
        };
        if !frame(buf, framing, off, until)? {
            return Err(section_ended(vec));
        }
        if left > 0 {
            return Ok(());
        }
        vec.idx += 1;
        vec.off = 0;
    }
}

/// Transfers header and footer up to byte `until` of both; false at the end of the descriptor.
fn frame(buf: &mut FuseBuf<'_>, framing: Framing, off: usize, until: usize) -> io::Result<bool> {
    while buf.framed < until {
        // The payload lies between the two.
        let (end, passed) = match buf.framed < buf.header {
            true => (buf.header.min(until), 0),
            false => (until, off),
        };
        let base = buf.flags.contains(BufFlags::FD_SEEK).then_some(buf.pos);
        let at = buf.framed.saturating_add(passed);
        let end_of = End::new(buf.fd.as_ref(), base, at)?;
        let n = match framing {
            Framing::Receive => {
                let mem = buf.mem.as_mut_slice().unwrap_or_default();
                end_of.read(0, mem.get_mut(buf.framed..end).ok_or_else(invalid)?)?
            }
            Framing::Send => {
                let mem = buf.mem.as_slice().unwrap_or_default();
                match end_of.write(0, mem.get(buf.framed..end).ok_or_else(invalid)?)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => n,
                }
            }
        };
        if n == 0 {
            return Ok(false);
        }
        buf.framed += n;
    }
    Ok(true)
}

fn section_ended(vec: &FuseBufVec<'_>) -> io::Error {
    let (header, footer) = vec.current().map(FuseBuf::arrived).unwrap_or_default();
    let payload = vec.off;
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        SectionEnded {
            header,
            payload,
            footer,
        },
    )
}

pub(super) fn invalid() -> io::Error {
    nix::errno::Errno::EINVAL.into()
}
