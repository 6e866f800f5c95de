// SPDX-License-Identifier: MIT OR Apache-2.0
//! An answer that goes through a pipe: its header and its data put into it, then all of it into the device.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::answer::ReplyError;
use super::buf::{CopyFlags, FuseBufVec};
use super::incoming::{Incoming, Room};
use super::pipe::{Pipe, with_pipe};
use crate::sys::pipe::page_size;

enum Spliced {
    Answered,
    /// Not, and so many bytes of payload are in the pipe.
    Left(usize),
}

/// Bytes of a `fuse_out_header`.
const OUT_HEADER: usize = 16;

/// Without error. The length is that of a READ's answer at most, which fits.
fn out_header(payload: usize, unique: u64) -> [u8; OUT_HEADER] {
    let length = u32::try_from(OUT_HEADER + payload).unwrap_or(u32::MAX);
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// True if that has answered it. If not, what was received so far is in `room`, and the check, if it was asked, gone.
pub(super) fn gather<'a, C>(
    device: &OwnedFd,
    unique: u64,
    incoming: &mut Incoming<'_, 'a>,
    room: &mut Room,
    check: &mut Option<C>,
) -> Result<bool, ReplyError>
where
    C: FnOnce(&FuseBufVec<'a>, &[Option<u32>]) -> Result<(), Errno>,
{
    // Each fragment of a socket's data takes a slot.
    let wanted = incoming.bufs.size() + incoming.bufs.size() / 2 + 16 * page_size();
    let mut spliced = None;
    // An error is that no pipe is to be had: then all of it goes by memory.
    let _ = with_pipe(wanted, |pipe| {
        let mut result = splice(device, unique, incoming, pipe, check);
        if !matches!(result, Ok(Spliced::Answered)) {
            pipe.poison();
        }
        if let Ok(Spliced::Left(len)) = result {
            match pipe.take() {
                Ok(left) => {
                    room.append(left.get(left.len().saturating_sub(len)..).unwrap_or_default());
                }
                Err(error) => result = Err(ReplyError::Device(error)),
            }
        }
        spliced = Some(result);
        Ok(())
    });
    match spliced {
        Some(Ok(Spliced::Answered)) => Ok(true),
        Some(Err(error)) => Err(error),
        Some(Ok(Spliced::Left(_))) | None => Ok(false),
    }
}

/// Header and payload into the pipe, the check, and the pipe into the device.
fn splice<'a, C>(
    device: &OwnedFd,
    unique: u64,
    incoming: &mut Incoming<'_, 'a>,
    pipe: &mut Pipe,
    check: &mut Option<C>,
) -> Result<Spliced, ReplyError>
where
    C: FnOnce(&FuseBufVec<'a>, &[Option<u32>]) -> Result<(), Errno>,
{
    // Both numbers are checked: is_sound().
    let wanted = incoming.bufs.size();
    let header = out_header(wanted, unique);
    let headed = pipe.vmsplice(&[IoSlice::new(&header)], CopyFlags::SPLICE_NONBLOCK);
    if !headed.is_ok_and(|n| n == OUT_HEADER) {
        return Ok(Spliced::Left(0));
    }
    let held = |pipe: &Pipe| {
        let held = pipe.held().map_err(ReplyError::Device)?;
        Ok(held.saturating_sub(OUT_HEADER))
    };
    match incoming.splice_to(pipe) {
        Ok(true) => {}
        Ok(false) => return held(pipe).map(Spliced::Left),
        Err(error) => {
            return Err(ReplyError::Broken {
                buf: incoming.bufs.idx,
                done: incoming.done,
                error,
            });
        }
    }
    let payload = held(pipe)?;
    if payload != wanted {
        // The end of the file, and the header says another length.
        return Ok(Spliced::Left(payload));
    }
    if let Some(check) = check.take() {
        let none = vec![None; incoming.bufs.count()];
        check(incoming.bufs, &none).map_err(ReplyError::Refused)?;
    }
    let message = OUT_HEADER + payload;
    let sent = pipe.drain(device, None, message, CopyFlags::empty());
    match sent {
        Ok(n) if n == message => Ok(Spliced::Answered),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(ReplyError::Gone {
            buf: incoming.bufs.idx,
            done: 0,
        }),
        // The message is whole in the pipe, or its request is not there any more.
        Err(_) if pipe.held().is_ok_and(|held| held == message) => Ok(Spliced::Left(payload)),
        Err(error) => Err(ReplyError::Device(error)),
        Ok(_) => Err(ReplyError::Device(io::ErrorKind::WriteZero.into())),
    }
}
