// SPDX-License-Identifier: MIT OR Apache-2.0
//! An answer that the module puts together: section by section, each staged or filled.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::PollFlags;

use super::answer::{Read, ReplyError, Way};
use super::buf::{BufFlags, FuseBuf, FuseBufVec, Mem};
use super::copy::invalid;
use super::incoming::{goes_through_memory, splice_some, stream};
use super::pipe::with_pipe;
use crate::abi::{self, Fill, Section};
use crate::sys::device::{Device, STAGE_HEADER};
use crate::sys::pipe::page_size;
use crate::sys::stream::{Deadline, position, seek};

/// Where one section goes.
struct Place<'r> {
    device: Device<&'r OwnedFd>,
    read: &'r Read,
    /// COMMIT only what a program at the gate accepts.
    gated: bool,
    /// In the request.
    offset: u32,
    deadline: Deadline,
}

/// How far one section got.
#[derive(Default)]
struct Progress {
    /// Bytes that are gone from the source.
    done: usize,
    /// It ended the request.
    answered: bool,
    /// All of it is gone from the source, and a program at the gate refused it.
    refused: bool,
}

/// Puts all into the request: so many bytes. None if it has been answered; with `gated`, that is because a program at
/// the gate accepted everything.
pub(super) fn gather(
    device: Device<&OwnedFd>,
    read: &Read,
    way: Way,
    gated: bool,
    bufs: &mut FuseBufVec<'_>,
    crcs: &mut [Option<u32>],
    deadline: Deadline,
) -> Result<Option<u32>, ReplyError> {
    let mut place = Place {
        device,
        read,
        gated,
        offset: 0,
        deadline,
    };
    let mut answered = false;
    let mut refused = None;
    while !bufs.is_done() {
        let idx = bufs.idx;
        let last = idx + 1 == bufs.count();
        let Some(buf) = bufs.get_mut(idx) else { break };
        let mut progress = Progress::default();
        let result = match way {
            _ if !buf.is_fd() => place.stage_memory(buf),
            Way::Stage => place.stage_spliced(buf, last, &mut progress.done),
            _ => {
                let commit = last && way == Way::FillCommit && refused.is_none();
                place.fill(buf, last, commit, &mut progress)
            }
        };
        answered |= progress.answered;
        let done = progress.done;
        let (length, crc) = match result {
            // The frames of the others come all the same.
            Err(error) if progress.refused => {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                refused.get_or_insert(errno);
                (buf.size, 0)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Err(ReplyError::Gone { buf: idx, done });
            }
            Err(error) => {
                return Err(ReplyError::Broken {
                    buf: idx,
                    done,
                    error,
                });
            }
            Ok(whole) => whole,
        };
        if let Some(slot) = crcs.get_mut(idx) {
            *slot = read.crc.then_some(crc);
        }
        buf.framed = buf.framing();
        place.offset += u32::try_from(length).unwrap_or(0);
        bufs.idx += 1;
        bufs.off = 0;
    }
    match refused {
        Some(errno) => Err(ReplyError::Refused(errno)),
        None => Ok((!answered).then_some(place.offset)),
    }
}

/// Length of the payload, and its CRC32C.
type Whole = (usize, u32);

impl Place<'_> {
    fn flags(&self) -> u32 {
        if self.read.crc { abi::SECTION_CRC } else { 0 }
    }

    fn fill(
        &self,
        buf: &mut FuseBuf<'_>,
        may_be_short: bool,
        commit: bool,
        progress: &mut Progress,
    ) -> io::Result<Whole> {
        let fd = buf.fd.clone().ok_or_else(invalid)?;
        let own = match buf.flags.contains(BufFlags::FD_SEEK) {
            true => None,
            // None of streams.
            false => position(fd.as_fd()),
        };
        let section = buf.is_section();
        let (header, footer) = if section { (buf.header, buf.footer) } else { (0, 0) };
        let mut fill = Fill {
            unique: self.read.unique,
            pos: if seeks(buf) { buf.pos } else { own.unwrap_or(0) },
            fd: fd.as_fd().as_raw_fd(),
            header: number(header)?,
            payload: number(buf.size)?,
            footer: number(footer)?,
            offset: self.offset,
            flags: match (commit, self.gated) {
                (false, _) => self.flags(),
                (true, false) => self.flags() | abi::SECTION_COMMIT,
                (true, true) => self.flags() | abi::SECTION_COMMIT | abi::SECTION_GATED,
            },
            ..Fill::default()
        };
        let mem = match section {
            true => buf.mem.as_mut_slice().unwrap_or_default(),
            false => &mut [],
        };
        loop {
            fill.timeout = self.deadline.left();
            let result = self.device.fill(&mut fill, mem);
            progress.done = fill.done as usize;
            progress.refused = fill.flags & abi::SECTION_REFUSED != 0;
            match result.as_ref().err().and_then(io::Error::raw_os_error) {
                None => break,
                // Whatever errno the program has taken.
                Some(_) if progress.refused => return result.map(|()| (0, 0)),
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => self.deadline.wait(fd.as_fd(), PollFlags::POLLIN)?,
                // The end of the file. What came is in its place.
                Some(libc::ENODATA) if may_be_short && !section && fill.payload > fill.done => {
                    fill.payload = fill.done;
                }
                // Not one of the kinds that the module reads.
                Some(libc::EOPNOTSUPP) if fill.done == 0 => {
                    return self.stage_read(buf, Vec::new(), may_be_short, &mut progress.done);
                }
                Some(_) => return result.map(|()| (0, 0)),
            }
        }
        if let Some(own) = own {
            seek(fd.as_fd(), own.saturating_add(u64::from(fill.done)))?;
        }
        progress.answered = fill.flags & abi::SECTION_COMMIT != 0;
        Ok((fill.payload as usize, fill.crc))
    }

    /// Memory is a section of payload only.
    fn stage_memory(&self, buf: &FuseBuf<'_>) -> io::Result<Whole> {
        let bytes = buf.mem.as_slice().and_then(|mem| mem.get(..buf.size));
        self.stage(bytes.ok_or_else(invalid)?, (0, 0), &mut Mem::None)
    }

    /// A frame that is here.
    fn stage(&self, frame: &[u8], (header, footer): (usize, usize), mem: &mut Mem<'_>) -> io::Result<Whole> {
        let mut section = self.section(header, footer)?;
        let mut room = vec![0; header + footer + 4];
        let parts = [IoSlice::new(frame)];
        let parts = if frame.is_empty() { &[][..] } else { &parts };
        self.device
            .stage(self.read.unique, &mut section, parts, &mut room)?;
        give(&room, header + footer, mem)?;
        Ok((frame.len() - header - footer, crc_behind(&room, header + footer)))
    }

    /// A frame of which some bytes are here, and the rest is to be read.
    fn stage_read(
        &self,
        buf: &mut FuseBuf<'_>,
        mut frame: Vec<u8>,
        may_be_short: bool,
        done: &mut usize,
    ) -> io::Result<Whole> {
        let meta = if buf.is_section() {
            (buf.header, buf.footer)
        } else {
            (0, 0)
        };
        let whole = buf.framing().saturating_add(buf.size);
        let mut at = frame.len();
        frame.resize(whole, 0);
        while let Some(rest) = frame.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match stream(buf)?.read(at, rest, self.deadline)? {
                0 if may_be_short && !buf.is_section() => break,
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
            *done = at;
        }
        frame.truncate(at);
        self.stage(&frame, meta, &mut buf.mem)
    }

    fn stage_spliced(
        &self,
        buf: &mut FuseBuf<'_>,
        may_be_short: bool,
        done: &mut usize,
    ) -> io::Result<Whole> {
        let meta = if buf.is_section() {
            (buf.header, buf.footer)
        } else {
            (0, 0)
        };
        let (header, footer) = meta;
        let whole = buf.framing().saturating_add(buf.size);
        let mut section = self.section(header, footer)?;
        let mut room = vec![0; header + footer + 4];
        let from = stream(buf)?;
        let mut left = None;
        let staged = with_pipe(whole + whole / 2 + 16 * page_size(), |pipe| {
            let mut at = 0;
            let mut stuck = false;
            let frame = |to: BorrowedFd<'_>| {
                while at < whole {
                    match splice_some(from, at, whole - at, to, self.deadline) {
                        Ok(n) if n > 0 => at += n,
                        Err(error) if !goes_through_memory(&error) => return Err(error),
                        // The end, or no way through this pipe.
                        Ok(_) | Err(_) => {
                            stuck = true;
                            return Err(io::ErrorKind::BrokenPipe.into());
                        }
                    }
                }
                Ok(())
            };
            let ends = (pipe.reader(), pipe.writer());
            let staged =
                self.device
                    .stage_through(self.read.unique, &mut section, &mut room, ends, whole, frame);
            *done = at;
            if stuck {
                pipe.poison();
                left = Some(pipe.take()?.split_off(STAGE_HEADER));
                return Ok(());
            }
            staged
        });
        staged?;
        if let Some(frame) = left {
            return self.stage_read(buf, frame, may_be_short, done);
        }
        give(&room, header + footer, &mut buf.mem)?;
        Ok((buf.size, crc_behind(&room, header + footer)))
    }

    fn section(&self, header: usize, footer: usize) -> io::Result<Section> {
        Ok(Section {
            header: number(header)?,
            footer: number(footer)?,
            offset: self.offset,
            flags: self.flags(),
            ..Section::default()
        })
    }
}

fn seeks(buf: &FuseBuf<'_>) -> bool {
    buf.flags.contains(BufFlags::FD_SEEK)
}

fn number(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| Errno::EINVAL.into())
}

fn crc_behind(room: &[u8], meta: usize) -> u32 {
    let crc = room.get(meta..).and_then(|crc| crc.first_chunk());
    crc.map_or(0, |crc| u32::from_ne_bytes(*crc))
}

fn give(room: &[u8], meta: usize, mem: &mut Mem<'_>) -> io::Result<()> {
    if meta > 0 {
        let to = mem.as_mut_slice().and_then(|mem| mem.get_mut(..meta));
        let from = room.get(..meta);
        to.zip(from)
            .ok_or_else(invalid)
            .map(|(to, from)| to.copy_from_slice(from))?;
    }
    Ok(())
}
