// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes from and to descriptors, none of which may keep the caller waiting beyond a moment in time.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, getsockopt, recv, sendmsg, setsockopt, shutdown};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::uio::{pread, pwritev};
use nix::unistd::{Whence, lseek, read, write};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

/// The moment at which waiting ends.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now on.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        let now = Instant::now();
        // A year is for ever.
        Self(
            now.checked_add(time)
                .unwrap_or(now + Duration::from_secs(365 * 86400)),
        )
    }

    /// Milliseconds until then.
    #[must_use]
    pub fn left(&self) -> u32 {
        let left = self.0.saturating_duration_since(Instant::now());
        // Rounded up: what is left is not nothing.
        u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
    }

    /// Waits until `fd` has something, or takes something.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT.
    pub fn wait(&self, fd: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
        loop {
            let left = i32::try_from(self.left()).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(fd, events)], timeout) {
                Ok(0) if left > 0 => {}
                Ok(0) => return Err(Errno::ETIMEDOUT.into()),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socket,
    Pipe,
    /// Never waits for anybody.
    Other,
}

/// A descriptor, and where in it byte 0 is.
#[derive(Clone, Copy, Debug)]
pub struct Stream<'b> {
    fd: BorrowedFd<'b>,
    kind: Kind,
    pos: Option<u64>,
}

impl<'b> Stream<'b> {
    /// From `pos` on, or from the descriptor's own position.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn new(fd: BorrowedFd<'b>, pos: Option<u64>) -> io::Result<Self> {
        let kind = match SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFSOCK => Kind::Socket,
            SFlag::S_IFIFO => Kind::Pipe,
            _ => Kind::Other,
        };
        Ok(Self { fd, kind, pos })
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'b> {
        self.fd
    }

    /// Where byte `done` is, if not at the descriptor's own position.
    ///
    /// # Errors
    ///
    /// EOVERFLOW.
    pub fn at(&self, done: usize) -> io::Result<Option<u64>> {
        let past = |pos: u64| {
            pos.checked_add(done as u64)
                .filter(|pos| i64::try_from(*pos).is_ok())
        };
        self.pos
            .map(|pos| past(pos).ok_or_else(|| Errno::EOVERFLOW.into()))
            .transpose()
    }

    /// Waits until there is something to read, where that can take long.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT.
    pub fn wait(&self, deadline: Deadline) -> io::Result<()> {
        match self.kind {
            Kind::Other => Ok(()),
            Kind::Socket | Kind::Pipe => deadline.wait(self.fd, PollFlags::POLLIN),
        }
    }

    /// Reads some bytes, the first of them byte `done`; 0 at the end.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT, and those of recv(2) and read(2).
    pub fn read(&self, done: usize, into: &mut [u8], deadline: Deadline) -> io::Result<usize> {
        if self.kind == Kind::Pipe {
            self.wait(deadline)?;
        }
        let at = self.at(done)?;
        loop {
            let result = match (self.kind, at) {
                (Kind::Socket, _) => recv(self.fd.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT),
                (_, Some(at)) => pread(self.fd, into, at.cast_signed()),
                (_, None) => read(self.fd, into),
            };
            match result {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => deadline.wait(self.fd, PollFlags::POLLIN)?,
                result => return Ok(result?),
            }
        }
    }

    /// Writes all bytes, the first of them at byte `done`; gives how many went, and why not all.
    pub fn write_all(&self, parts: &[&[u8]], deadline: Deadline) -> (usize, io::Result<()>) {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        while done < total {
            // A pipe that has room for anything has room for a page.
            if self.kind == Kind::Pipe
                && let Err(error) = deadline.wait(self.fd, PollFlags::POLLOUT)
            {
                return (done, Err(error));
            }
            match self.write_some(parts, done) {
                Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    if let Err(error) = deadline.wait(self.fd, PollFlags::POLLOUT) {
                        return (done, Err(error));
                    }
                }
                Err(error) => return (done, Err(error.into())),
            }
        }
        (done, Ok(()))
    }

    fn write_some(&self, parts: &[&[u8]], done: usize) -> nix::Result<usize> {
        let rest = rest_of(parts, done);
        match (self.kind, self.at(done).map_err(|_| Errno::EFBIG)?) {
            (Kind::Socket, _) => sendmsg::<()>(
                self.fd.as_raw_fd(),
                &rest,
                &[],
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                None,
            ),
            (_, Some(at)) => pwritev(self.fd, &rest, at.cast_signed()),
            (_, None) => write(self.fd, rest.first().map_or(&[], |part| atom(self.kind, part))),
        }
    }
}

/// As much as can be written at once without waiting, after poll(2).
fn atom(kind: Kind, bytes: &[u8]) -> &[u8] {
    match kind {
        Kind::Pipe => bytes.get(..libc::PIPE_BUF).unwrap_or(bytes),
        Kind::Socket | Kind::Other => bytes,
    }
}

/// What comes behind the first `skip` bytes.
fn rest_of<'p>(parts: &[&'p [u8]], mut skip: usize) -> Vec<IoSlice<'p>> {
    let mut rest = Vec::with_capacity(parts.len());
    for part in parts {
        let left = part.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(part.len());
        if !left.is_empty() {
            rest.push(IoSlice::new(left));
        }
    }
    rest
}

/// The own position of a descriptor that can seek.
#[must_use]
pub fn position(fd: BorrowedFd<'_>) -> Option<u64> {
    lseek(fd, 0, Whence::SeekCur).ok().map(i64::cast_unsigned)
}

/// Moves it.
///
/// # Errors
///
/// See lseek(2).
pub fn seek(fd: BorrowedFd<'_>, pos: u64) -> io::Result<()> {
    lseek(fd, pos.cast_signed(), Whence::SeekSet)?;
    Ok(())
}

sockopt_impl!(
    /// The family of a socket.
    Domain,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_DOMAIN,
    i32
);

/// Whether it is a socket to a process of this machine: AF_UNIX.
pub fn is_local(fd: &impl AsFd) -> bool {
    // What is no socket has no family.
    getsockopt(&fd.as_fd(), Domain).is_ok_and(|family| family == libc::AF_UNIX)
}

sockopt_impl!(
    /// See tcp(7).
    TcpCork,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_CORK,
    bool
);

/// Has a TCP socket send nothing but full segments until it is told otherwise: what MSG_MORE alone does not keep from being
/// sent when the next acknowledgement comes.
///
/// # Errors
///
/// Those of setsockopt(2).
pub fn cork(tcp: &impl AsFd, corked: bool) -> nix::Result<()> {
    setsockopt(tcp, TcpCork, &corked)
}

/// Ends a stream socket for good, whoever else holds it: nothing that is still in it will be read as
/// the beginning of something else. Any other descriptor stays as it is.
pub fn end(fd: impl AsFd) {
    // What is no socket, or not connected any more, has nothing to end.
    let _ = shutdown(fd.as_fd().as_raw_fd(), Shutdown::Both);
}
