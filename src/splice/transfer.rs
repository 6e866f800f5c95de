// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payload from one buffer to another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd;

use super::buf::{BufFlags, CopyFlags, Fd, FuseBuf};
use super::copy::invalid;
use super::pipe::{Pipe, again, position, splice, with_pipe};
use crate::sys::pipe::page_size;

/// What is read at a time where bytes go through memory.
const BOUNCE: usize = 128 << 10;
/// What goes through this thread's pipe at a time: what a user without privilege gets.
const PIPE: usize = 1 << 20;

/// Why a transfer ended before all was moved.
#[derive(Debug)]
pub(super) enum Stop {
    /// The source has no more.
    End,
    /// A short transfer that is not to be followed by another.
    Short,
    /// One of the two failed.
    Error(io::Error),
}

/// A descriptor, and where in it.
#[derive(Debug)]
pub(super) struct End<'b> {
    fd: BorrowedFd<'b>,
    pos: Option<u64>,
}

impl<'b> End<'b> {
    /// Byte `at` behind `base`; the descriptor's own position without one.
    pub(super) fn new(fd: Option<&'b Fd<'_>>, base: Option<u64>, at: usize) -> io::Result<Self> {
        let fd = fd.ok_or_else(invalid)?.as_fd();
        let past = || io::Error::from(Errno::EOVERFLOW);
        let pos = base
            .map(|base| base.checked_add(at as u64).ok_or_else(past))
            .transpose()?;
        Ok(Self { fd, pos })
    }

    /// Where payload byte `off` of a buffer is.
    fn payload(buf: &'b FuseBuf<'_>, off: usize) -> io::Result<Self> {
        let header = if buf.is_section() { buf.header } else { 0 };
        let base = buf.flags.contains(BufFlags::FD_SEEK).then_some(buf.pos);
        Self::new(buf.fd.as_ref(), base, header.saturating_add(off))
    }

    fn pos(&self, done: usize) -> Option<u64> {
        self.pos.map(|pos| pos.saturating_add(done as u64))
    }

    pub(super) fn read(&self, done: usize, into: &mut [u8]) -> io::Result<usize> {
        match self.pos(done).map(position).transpose()? {
            Some(pos) => again(|| pread(self.fd, into, pos)),
            None => again(|| unistd::read(self.fd, into)),
        }
    }

    pub(super) fn write(&self, done: usize, bytes: &[u8]) -> io::Result<usize> {
        match self.pos(done).map(position).transpose()? {
            Some(pos) => again(|| pwrite(self.fd, bytes, pos)),
            None => again(|| unistd::write(self.fd, bytes)),
        }
    }

    fn is_pipe(&self) -> io::Result<bool> {
        let mode = SFlag::from_bits_truncate(fstat(self.fd)?.st_mode);
        Ok(mode & SFlag::S_IFMT == SFlag::S_IFIFO)
    }
}

/// How far a transfer came.
type Progress = (usize, Option<Stop>);

/// The transfers of one copy.
#[derive(Debug)]
pub(super) struct Transfer {
    flags: CopyFlags,
    bounce: Vec<u8>,
}

impl Transfer {
    pub(super) fn new(flags: CopyFlags) -> Self {
        Self {
            flags,
            bounce: Vec::new(),
        }
    }

    /// Moves up to `len` bytes from `at.1` of `src` to `at.0` of `dst`; says why if it were fewer.
    pub(super) fn run(
        &mut self,
        dst: &mut FuseBuf<'_>,
        src: &mut FuseBuf<'_>,
        at: (usize, usize),
        len: usize,
    ) -> Progress {
        let result = match (src.is_fd(), dst.is_fd()) {
            _ if !src.taken.is_empty() => from_taken(dst, src, at.0, len),
            (false, _) => from_memory(dst, src, at, len),
            (true, false) => to_memory(dst, src, at, len),
            (true, true) => self.between_fds(dst, src, at, len),
        };
        result.unwrap_or_else(|error| (0, Some(Stop::Error(error))))
    }

    fn between_fds(
        &mut self,
        dst: &mut FuseBuf<'_>,
        src: &mut FuseBuf<'_>,
        at: (usize, usize),
        len: usize,
    ) -> io::Result<Progress> {
        if self.flags.contains(CopyFlags::NO_SPLICE) {
            return self.through_memory(dst, src, at, len);
        }
        let (from, to) = (End::payload(src, at.1)?, End::payload(dst, at.0)?);
        let spliced = if from.is_pipe()? || to.is_pipe()? {
            self.directly(dst, src, at, len)?
        } else {
            let room = len.saturating_add(page_size()).min(PIPE);
            with_pipe(room, |pipe| self.through_pipe(pipe, dst, src, at, len))
                // No pipe is to be had.
                .unwrap_or_else(|error| (0, Way::Refused(error)))
        };
        match spliced {
            (done, Way::Taken(stop)) => Ok((done, stop)),
            (done, Way::Refused(error)) if self.flags.contains(CopyFlags::FORCE_SPLICE) => {
                Ok((done, Some(Stop::Error(error))))
            }
            (done, Way::Refused(_)) => {
                let rest = self.through_memory(dst, src, (at.0 + done, at.1 + done), len - done);
                let (more, stop) = rest.unwrap_or_else(|error| (0, Some(Stop::Error(error))));
                Ok((done + more, stop))
            }
        }
    }

    /// One end is a pipe.
    fn directly(
        &self,
        dst: &FuseBuf<'_>,
        src: &FuseBuf<'_>,
        at: (usize, usize),
        len: usize,
    ) -> io::Result<(usize, Way)> {
        let (to, from) = (End::payload(dst, at.0)?, End::payload(src, at.1)?);
        let retries = src.retries() || dst.retries();
        let mut done = 0;
        while done < len {
            match splice(
                from.fd,
                from.pos(done),
                to.fd,
                to.pos(done),
                len - done,
                self.flags,
            ) {
                Ok(0) => return Ok((done, Way::Taken(Some(Stop::End)))),
                Ok(n) => done += n,
                Err(error) => return Ok((done, Way::of(error))),
            }
            if done < len && !retries {
                return Ok((done, Way::Taken(Some(Stop::Short))));
            }
        }
        Ok((done, Way::Taken(None)))
    }

    /// Neither end is a pipe.
    fn through_pipe(
        &self,
        pipe: &mut Pipe,
        dst: &mut FuseBuf<'_>,
        src: &mut FuseBuf<'_>,
        at: (usize, usize),
        len: usize,
    ) -> io::Result<(usize, Way)> {
        // A range of a file that begins within a page takes one slot more.
        let chunk = pipe.slots().saturating_sub(1).max(1) * page_size();
        let mut done = 0;
        while done < len {
            let (to, from) = (End::payload(dst, at.0)?, End::payload(src, at.1)?);
            let want = chunk.min(len - done);
            let got = match pipe.fill(from.fd, from.pos(done), want, self.flags) {
                Ok(0) => return Ok((done, Way::Taken(Some(Stop::End)))),
                Ok(got) => got,
                Err(error) => return Ok((done, Way::of(error))),
            };
            let until = done + got;
            while done < until {
                let error = match pipe.drain(to.fd, to.pos(done), until - done, self.flags) {
                    Ok(0) => io::ErrorKind::WriteZero.into(),
                    Ok(n) => {
                        done += n;
                        continue;
                    }
                    Err(error) => error,
                };
                pipe.poison();
                let rest = match pipe.take() {
                    Ok(rest) => rest,
                    Err(error) => return Ok((done, Way::Taken(Some(Stop::Error(error))))),
                };
                let (more, way) = self.rescue(rest, dst, src, at.0 + done, error);
                return Ok((done + more, way));
            }
            if got < want && !src.retries() && !dst.retries() {
                return Ok((done, Way::Taken(Some(Stop::Short))));
            }
        }
        Ok((done, Way::Taken(None)))
    }

    /// What to do with bytes that the destination did not take out of the pipe.
    fn rescue(
        &self,
        rest: Vec<u8>,
        dst: &mut FuseBuf<'_>,
        src: &mut FuseBuf<'_>,
        at: usize,
        error: io::Error,
    ) -> (usize, Way) {
        match Way::of(error) {
            Way::Refused(error) if !self.flags.contains(CopyFlags::FORCE_SPLICE) => {
                let (written, stop) = deliver(dst, at, &rest, true);
                keep(src, rest.get(written..));
                match stop {
                    None => (written, Way::Refused(error)),
                    stop => (written, Way::Taken(stop)),
                }
            }
            way => {
                keep(src, Some(&rest));
                (0, way)
            }
        }
    }

    /// By read(2) and write(2).
    fn through_memory(
        &mut self,
        dst: &mut FuseBuf<'_>,
        src: &mut FuseBuf<'_>,
        at: (usize, usize),
        len: usize,
    ) -> io::Result<Progress> {
        // What is taken out of a stream goes on until an error: it can't be put back.
        let persist = dst.retries() || !src.flags.contains(BufFlags::FD_SEEK);
        self.bounce.resize(BOUNCE.min(len), 0);
        let mut done = 0;
        while done < len {
            let want = self.bounce.len().min(len - done);
            let room = self.bounce.get_mut(..want).unwrap_or_default();
            let got = match End::payload(src, at.1)?.read(done, room) {
                Ok(0) => return Ok((done, Some(Stop::End))),
                Ok(got) => got,
                Err(error) => return Ok((done, Some(Stop::Error(error)))),
            };
            let bytes = room.get(..got).unwrap_or_default();
            let (written, stop) = deliver(dst, at.0 + done, bytes, persist);
            done += written;
            if stop.is_some() {
                keep(src, bytes.get(written..));
                return Ok((done, stop));
            }
            if got < want && !src.retries() {
                return Ok((done, Some(Stop::Short)));
            }
        }
        Ok((done, None))
    }
}

/// What came of splicing.
#[derive(Debug)]
enum Way {
    /// It is the way to go.
    Taken(Option<Stop>),
    /// One of the two ends can't be spliced.
    Refused(io::Error),
}

impl Way {
    fn of(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => Self::Refused(error),
            _ => Self::Taken(Some(Stop::Error(error))),
        }
    }
}

/// Keeps what was taken out of a descriptor whose position has moved.
fn keep(src: &mut FuseBuf<'_>, rest: Option<&[u8]>) {
    if !src.flags.contains(BufFlags::FD_SEEK) {
        src.taken.extend_from_slice(rest.unwrap_or_default());
    }
}

/// What an earlier copy took out of the source.
fn from_taken(dst: &mut FuseBuf<'_>, src: &mut FuseBuf<'_>, at: usize, len: usize) -> io::Result<Progress> {
    let bytes = src.taken.get(..len).unwrap_or(&src.taken);
    let (written, stop) = deliver(dst, at, bytes, true);
    src.taken.drain(..written);
    Ok((written, stop))
}

fn from_memory(
    dst: &mut FuseBuf<'_>,
    src: &FuseBuf<'_>,
    at: (usize, usize),
    len: usize,
) -> io::Result<Progress> {
    let bytes = src.mem.as_slice().and_then(|mem| mem.get(at.1..at.1 + len));
    let retries = dst.retries();
    Ok(deliver(dst, at.0, bytes.ok_or_else(invalid)?, retries))
}

fn to_memory(
    dst: &mut FuseBuf<'_>,
    src: &FuseBuf<'_>,
    at: (usize, usize),
    len: usize,
) -> io::Result<Progress> {
    let room = dst
        .mem
        .as_mut_slice()
        .and_then(|mem| mem.get_mut(at.0..at.0 + len));
    let room = room.ok_or_else(invalid)?;
    let from = End::payload(src, at.1)?;
    let mut done = 0;
    while let Some(rest) = room.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match from.read(done, rest) {
            Ok(0) => return Ok((done, Some(Stop::End))),
            Ok(n) => done += n,
            Err(error) => return Ok((done, Some(Stop::Error(error)))),
        }
        if done < len && !src.retries() {
            return Ok((done, Some(Stop::Short)));
        }
    }
    Ok((done, None))
}

/// Puts bytes at `at` of the payload of `dst`; with `persist`, until all are there or it fails.
fn deliver(dst: &mut FuseBuf<'_>, at: usize, bytes: &[u8], persist: bool) -> Progress {
    let mut put = |done: &mut usize| -> io::Result<()> {
        if !dst.is_fd() {
            let room = dst
                .mem
                .as_mut_slice()
                .and_then(|mem| mem.get_mut(at..at + bytes.len()));
            room.ok_or_else(invalid)?.copy_from_slice(bytes);
            *done = bytes.len();
            return Ok(());
        }
        let to = End::payload(dst, at)?;
        while let Some(rest) = bytes.get(*done..).filter(|rest| !rest.is_empty()) {
            match to.write(*done, rest)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => *done += n,
            }
            if !persist {
                break;
            }
        }
        Ok(())
    };
    let mut done = 0;
    let stop = match put(&mut done) {
        Err(error) => Some(Stop::Error(error)),
        Ok(()) => (done < bytes.len()).then_some(Stop::Short),
    };
    (done, stop)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use nix::fcntl::{self, FcntlArg};
    use proptest::prelude::*;

    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// Socket to file through a pipe of one slot.
    #[test]
    fn a_pipe_that_is_too_small_is_only_slower() {
        let data = pattern(50_000);
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| far.write_all(&data).unwrap());
            let mut src = FuseBuf::fd(&near, data.len()).with(BufFlags::FD_RETRY);
            let mut dst = FuseBuf::file(&file, 0, data.len());
            let mut pipe = Pipe::new(1).unwrap();
            fcntl::fcntl(pipe.writer(), FcntlArg::F_SETPIPE_SZ(1)).unwrap();
            let pipe_size = fcntl::fcntl(pipe.writer(), FcntlArg::F_GETPIPE_SZ).unwrap();
            assert_eq!(pipe_size as usize, page_size());
            let transfer = Transfer::new(CopyFlags::empty());
            let (done, way) = transfer
                .through_pipe(&mut pipe, &mut dst, &mut src, (0, 0), data.len())
                .unwrap();
            assert_eq!(done, data.len());
            assert!(matches!(way, Way::Taken(None)), "{way:?}");
        });
        let mut read = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, data);
    }

    /// Which pipe this thread keeps.
    fn kept() -> u64 {
        with_pipe(1, |pipe| Ok(fstat(pipe.reader())?.st_ino)).unwrap()
    }

    #[test]
    fn a_pipe_whose_transfer_failed_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.path().join("log"))
            .unwrap();
        let (file, (gone, _)) = (tempfile::tempfile().unwrap(), UnixStream::pair().unwrap());
        let transfer = |dst: &mut FuseBuf<'_>, flags| {
            let (mut far, near) = UnixStream::pair().unwrap();
            far.write_all(b"1234").unwrap();
            let mut src = FuseBuf::fd(&near, 4);
            let (done, _) = Transfer::new(flags).run(dst, &mut src, (0, 0), 4);
            done + src.taken.len()
        };
        let first = kept();
        assert_eq!(transfer(&mut FuseBuf::file(&file, 0, 4), CopyFlags::empty()), 4);
        assert_eq!(kept(), first);
        for flags in [CopyFlags::empty(), CopyFlags::FORCE_SPLICE] {
            for mut dst in [FuseBuf::fd(&gone, 4), FuseBuf::fd(&log, 4)] {
                let before = kept();
                assert_eq!(transfer(&mut dst, flags), 4, "delivered or kept");
                assert_ne!(kept(), before, "{dst:?} {flags:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A destination that refuses after the source gave: what is in the pipe is written once.
        #[test]
        fn bytes_in_the_pipe_reach_a_file_in_append_mode(len in 1usize..20_000) {
            let data = pattern(len);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            let (mut far, near) = UnixStream::pair().unwrap();
            far.write_all(&data).unwrap();
            let mut src = FuseBuf::fd(&near, len).with(BufFlags::FD_RETRY);
            let mut dst = FuseBuf::fd(&file, len);
            let mut transfer = Transfer::new(CopyFlags::empty());
            let (done, stop) = transfer.run(&mut dst, &mut src, (0, 0), len);
            prop_assert_eq!(done, len);
            prop_assert!(stop.is_none());
            prop_assert_eq!(std::fs::read(&path).unwrap(), data);
        }
    }
}
