// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames on their way into memory, or into a pipe.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::buf::{BufFlags, CopyFlags, FuseBuf, FuseBufVec};
use super::copy::{SectionEnded, copy, invalid};
use super::pipe::{Pipe, splice};
use crate::sys::stream::{Deadline, Stream};

thread_local! {
    /// What the last answer of this thread was put together in: fresh memory costs a fault a page.
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Payload in memory.
#[derive(Debug)]
pub(super) struct Room {
    memory: Vec<u8>,
    len: usize,
}

impl Room {
    pub fn new() -> Self {
        Self {
            memory: KEPT.try_with(Cell::take).unwrap_or_default(),
            len: 0,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.more(bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Room for `len` bytes more, of which the caller says how many it [added](Self::added).
    fn more(&mut self, len: usize) -> &mut [u8] {
        let end = self.len + len;
        if self.memory.len() < end {
            self.memory.resize(end, 0);
        }
        self.memory.get_mut(self.len..end).unwrap_or_default()
    }

    fn added(&mut self, len: usize) {
        self.len += len;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // Fails only while the thread ends.
        let _ = KEPT.try_with(|kept| kept.set(memory));
    }
}

/// Where a buffer's descriptor has its frame.
pub(super) fn stream<'b>(buf: &'b FuseBuf<'_>) -> io::Result<Stream<'b>> {
    let fd = buf.fd.as_ref().ok_or_else(invalid)?;
    Stream::new(
        fd.as_fd(),
        buf.flags.contains(BufFlags::FD_SEEK).then_some(buf.pos),
    )
}

/// Whether a copy has begun with the current buffer of a vector.
pub(super) fn is_begun(bufs: &FuseBufVec<'_>) -> bool {
    let begun = |buf: &FuseBuf<'_>| buf.framed > 0 || !buf.taken.is_empty();
    bufs.off > 0 || bufs.current().is_some_and(begun)
}

/// A vector on its way, frame by frame from its current buffer on.
#[derive(Debug)]
pub(super) struct Incoming<'v, 'a> {
    pub bufs: &'v mut FuseBufVec<'a>,
    /// Bytes of the current buffer's frame that are gone from its source.
    pub done: usize,
    pub deadline: Deadline,
}

impl<'v, 'a> Incoming<'v, 'a> {
    pub fn new(bufs: &'v mut FuseBufVec<'a>, deadline: Deadline) -> Self {
        Self {
            bufs,
            done: 0,
            deadline,
        }
    }

    /// All of it into memory, behind what is there. `lengths` gets what of it is each
    /// buffer's.
    pub fn receive(&mut self, room: &mut Room, lengths: &mut Vec<usize>) -> io::Result<()> {
        if self.done == 0 && is_begun(self.bufs) {
            return self.rest_to_memory(room, lengths);
        }
        while !self.bufs.is_done() {
            let before = room.len;
            let ended = self.frame_to_memory(room)?;
            lengths.push(room.len - before);
            if ended {
                break;
            }
        }
        Ok(())
    }

    /// A copy has begun with it: it goes on, without a time limit of ours.
    fn rest_to_memory(&mut self, room: &mut Room, lengths: &mut Vec<usize>) -> io::Result<()> {
        let first = self.bufs.idx;
        while let Some(buf) = self.bufs.current() {
            let (idx, left) = (self.bufs.idx, buf.size.saturating_sub(self.bufs.off));
            let mut dst = FuseBuf::memory_mut(room.more(left)).into();
            let n = copy(&mut dst, self.bufs, CopyFlags::NO_SPLICE)?;
            room.added(n);
            lengths.resize(idx - first + 1, 0);
            if let Some(length) = lengths.last_mut() {
                *length += n;
            }
            if n == 0 && self.bufs.idx == idx {
                return self.ended().map(drop);
            }
        }
        Ok(())
    }

    fn payload_done(&self) -> usize {
        self.bufs.current().map_or(0, |buf| {
            let header = if buf.is_section() { buf.header } else { 0 };
            self.done.saturating_sub(header).min(buf.size)
        })
    }

    /// The rest of one frame; true if the source ended in a buffer that may be short.
    fn frame_to_memory(&mut self, room: &mut Room) -> io::Result<bool> {
        while let Some(part) = self.part()? {
            let n = match part {
                Part::Meta(n) => n,
                Part::Memory(from, to) => {
                    room.append(memory(self.current()?, from, to)?);
                    to - from
                }
                Part::Payload(left) => {
                    let (done, deadline) = (self.done, self.deadline);
                    let n = stream(self.current()?)?.read(done, room.more(left), deadline)?;
                    room.added(n);
                    n
                }
            };
            if n == 0 {
                return self.ended();
            }
            self.done += n;
        }
        self.next();
        Ok(false)
    }

    /// All of it into a pipe, header and footer of sections into their memory. False if the rest has to go
    /// through memory: the pipe is full, or the source cannot be spliced.
    pub fn splice_to(&mut self, pipe: &mut Pipe) -> io::Result<bool> {
        if is_begun(self.bufs) {
            return Ok(false);
        }
        while !self.bufs.is_done() {
            while let Some(part) = self.part()? {
                let n = match part {
                    Part::Meta(n) => Ok(n),
                    Part::Memory(from, to) => {
                        let bytes = memory(self.current()?, from, to)?;
                        pipe.vmsplice(&[io::IoSlice::new(bytes)], CopyFlags::SPLICE_NONBLOCK)
                    }
                    Part::Payload(left) => splice_some(
                        stream(self.current()?)?,
                        self.done,
                        left,
                        pipe.writer(),
                        self.deadline,
                    ),
                };
                match n {
                    Ok(0) => return self.ended(),
                    Ok(n) => self.done += n,
                    Err(error) if goes_through_memory(&error) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            self.next();
        }
        Ok(true)
    }

    fn current(&self) -> io::Result<&FuseBuf<'a>> {
        self.bufs.current().ok_or_else(invalid)
    }

    /// What comes next of the current frame; header and footer are received here.
    fn part(&mut self) -> io::Result<Option<Part>> {
        let (done, deadline) = (self.done, self.deadline);
        let buf = self.bufs.current_mut().ok_or_else(invalid)?;
        if !buf.is_fd() {
            return Ok((done < buf.size).then_some(Part::Memory(done, buf.size)));
        }
        let (header, framing) = (if buf.is_section() { buf.header } else { 0 }, buf.framing());
        let payload_end = header.saturating_add(buf.size);
        if (header..payload_end).contains(&done) {
            return Ok(Some(Part::Payload(payload_end - done)));
        }
        let (from, to) = match done < header {
            true => (done, header),
            false => (done - buf.size, framing),
        };
        if from >= to {
            buf.framed = framing;
            return Ok(None);
        }
        let mut mem = std::mem::take(&mut buf.mem);
        let room = mem.as_mut_slice().and_then(|mem| mem.get_mut(from..to));
        let read = room
            .ok_or_else(invalid)
            .and_then(|room| stream(buf)?.read(done, room, deadline));
        buf.mem = mem;
        let n = read?;
        buf.framed = from + n;
        Ok(Some(Part::Meta(n)))
    }

    /// The source has no more. What is no section may be short at the end of the answer.
    fn ended(&mut self) -> io::Result<bool> {
        let last = self.bufs.idx + 1 == self.bufs.count();
        let payload = self.payload_done();
        let buf = self.current()?;
        if !buf.is_section() && last {
            self.next();
            return Ok(true);
        }
        let (header, footer) = buf.arrived();
        let ended = SectionEnded {
            header,
            payload,
            footer,
        };
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, ended))
    }

    fn next(&mut self) {
        self.bufs.idx += 1;
        self.bufs.off = 0;
        self.done = 0;
    }
}

enum Part {
    /// So many bytes of header or footer have been received.
    Meta(usize),
    /// This range of the buffer's memory.
    Memory(usize, usize),
    /// So many bytes of payload are missing.
    Payload(usize),
}

fn memory<'b>(buf: &'b FuseBuf<'_>, from: usize, to: usize) -> io::Result<&'b [u8]> {
    let bytes = buf.mem.as_slice().and_then(|mem| mem.get(from..to));
    bytes.ok_or_else(invalid)
}

/// Some bytes into a pipe's write end; 0 at the end of the source.
pub(super) fn splice_some(
    from: Stream<'_>,
    done: usize,
    len: usize,
    pipe: BorrowedFd<'_>,
    deadline: Deadline,
) -> io::Result<usize> {
    // A TCP socket waits for its first byte whatever the flags say.
    from.wait(deadline)?;
    splice(
        from.fd(),
        from.at(done)?,
        pipe,
        None,
        len,
        CopyFlags::SPLICE_NONBLOCK,
    )
}

/// After [`Stream::wait`], EAGAIN means that the pipe is full.
pub(super) fn goes_through_memory(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EAGAIN | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS)
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_vector_that_a_copy_has_begun_with_goes_on_where_that_was() {
        let (mut far, near) = UnixStream::pair().unwrap();
        far.write_all(b"HEADpayload!FOOTERrest").unwrap();
        let mut bufs: FuseBufVec<'_> = [
            FuseBuf::memory(b"before"),
            FuseBuf::section(&near, 4, 8, 6),
            FuseBuf::fd(&near, 4),
            FuseBuf::memory(b"behind"),
        ]
        .into_iter()
        .collect();
        let mut begun = [0; 9];
        let mut dst = FuseBuf::memory_mut(&mut begun).into();
        assert_eq!(copy(&mut dst, &mut bufs, CopyFlags::empty()).unwrap(), 9);
        assert_eq!((&begun, bufs.idx, bufs.off), (b"beforepay", 1, 3));
        assert!(is_begun(&bufs));
        let (mut room, mut lengths) = (Room::new(), Vec::new());
        let deadline = Deadline::after(Duration::from_secs(5));
        Incoming::new(&mut bufs, deadline)
            .receive(&mut room, &mut lengths)
            .unwrap();
        assert_eq!(room.bytes(), b"load!restbehind");
        assert_eq!(lengths, [5, 4, 6]);
        let section = bufs.get(1).unwrap();
        assert_eq!(
            (section.header_bytes(), section.footer_bytes()),
            (&b"HEAD"[..], &b"FOOTER"[..])
        );
        assert!(bufs.is_done());
    }
}
