// SPDX-License-Identifier: MIT OR Apache-2.0
//! TLS in user space: a thread between the socket and one end of a pair, whose other end is used like a socket.
//!
//! It holds a piece of each direction and takes no further one before that is gone: who does not read is not
//! read for, in both directions. It ends when the other end of the pair is shut down or closed and what was said there has
//! left, a moment later at most, or when the connection is of no use any more. That the line's end says no more it passes on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::Connection;

use super::TlsError;
use crate::remote::Stream;

/// Bytes of a direction that are taken at once.
const PIECE: usize = 64 << 10;

/// Begins to carry. Gives the end to use, and the thread.
pub(super) fn start(
    mut tls: Connection,
    line: Stream,
    linger: Duration,
) -> io::Result<(Stream, JoinHandle<()>)> {
    let (theirs, local) = UnixStream::pair()?;
    line.set_nonblocking(true)?;
    local.set_nonblocking(true)?;
    // What it holds is bounded here.
    tls.set_buffer_limit(None);
    let pump = Pump {
        tls,
        line,
        local,
        linger,
        piece: vec![0; PIECE],
        inward: Vec::new(),
        taken: 0,
        line_ended: false,
        end_told: false,
        local_ended: false,
        hung_up: None,
    };
    let thread = thread::Builder::new().name("extfuse-tls".into());
    Ok((Stream::Unix(theirs), thread.spawn(move || pump.run())?))
}

struct Pump {
    tls: Connection,
    line: Stream,
    local: UnixStream,
    linger: Duration,
    piece: Vec<u8>,
    /// Decrypted; the first `taken` bytes have been passed on.
    inward: Vec<u8>,
    taken: usize,
    /// Nothing more comes from the line; and the local end has been told so.
    line_ended: bool,
    end_told: bool,
    /// Nothing more comes from the local end.
    local_ended: bool,
    /// The local end is not used any more: until when what was said there may take to leave.
    hung_up: Option<Instant>,
}

/// Whether it was to be expected of a descriptor that does not wait.
fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Pump {
    fn run(mut self) {
        match self.carry() {
            Ok(()) => tracing::debug!("a TLS connection has ended"),
            // Whoever uses the local end only sees that it ends.
            Err(error) if self.hung_up.is_none() => tracing::warn!("a TLS connection has ended: {error}"),
            Err(error) => tracing::debug!("a TLS connection has ended: {error}"),
        }
        // Others have these sockets, too. One that is down already has no need of it.
        let _ = self.line.shutdown();
        let _ = self.local.shutdown(Shutdown::Both);
    }

    fn carry(&mut self) -> Result<(), TlsError> {
        while !self.local_ended || self.tls.wants_write() {
            let timeout = match self.hung_up {
                None => PollTimeout::NONE,
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(());
                    }
                    // Rounded up: what is left is not nothing.
                    let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
                    PollTimeout::from(millis)
                }
            };
            let (line, local) = self.wait(timeout)?;
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
            if self.hung_up.is_none() && local.intersects(gone) {
                self.hang_up();
            }
            if line.intersects(PollFlags::POLLOUT | gone) && self.tls.wants_write() {
                self.send()?;
            }
            if line.intersects(PollFlags::POLLIN | gone) && self.hears_line() {
                self.receive()?;
            }
            if local.intersects(PollFlags::POLLOUT) {
                self.pass_on();
            }
            if local.intersects(PollFlags::POLLIN | gone) && !self.tls.wants_write() {
                self.take()?;
            }
        }
        Ok(())
    }

    /// Nobody reads what is passed on any more; what was said may still leave.
    fn hang_up(&mut self) {
        self.hung_up.get_or_insert(Instant::now() + self.linger);
        self.inward.clear();
        self.taken = 0;
    }

    /// Whether anything more from the line has a place to go to.
    fn hears_line(&self) -> bool {
        self.inward.is_empty() && !self.line_ended && self.hung_up.is_none()
    }

    /// Waits until there is something to do; gives what the two descriptors have.
    fn wait(&self, timeout: PollTimeout) -> Result<(PollFlags, PollFlags), TlsError> {
        let wanted = |flags: PollFlags, wanted: bool| if wanted { flags } else { PollFlags::empty() };
        let line =
            wanted(PollFlags::POLLIN, self.hears_line()) | wanted(PollFlags::POLLOUT, self.tls.wants_write());
        let local = wanted(PollFlags::POLLIN, !self.tls.wants_write())
            | wanted(PollFlags::POLLOUT, !self.inward.is_empty());
        // That one has hung up would be said again and again, wanted or not. Of the local end it has to be heard once,
        // of the line it is as soon as anything is wanted of it.
        let watched = [
            (self.line.as_fd(), line, !line.is_empty()),
            (
                self.local.as_fd(),
                local,
                !local.is_empty() || self.hung_up.is_none(),
            ),
        ];
        let fds = watched.iter().filter(|(.., watched)| *watched);
        let mut fds: Vec<PollFd<'_>> = fds.map(|(fd, events, _)| PollFd::new(*fd, *events)).collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let mut had = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let [line, local] = watched.map(|(.., watched)| match watched {
            true => had.next().unwrap_or(PollFlags::empty()),
            false => PollFlags::empty(),
        });
        Ok((line, local))
    }

    /// From here to the line.
    fn send(&mut self) -> Result<(), TlsError> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.line) {
                Ok(_) => {}
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// From the line to here.
    fn receive(&mut self) -> Result<(), TlsError> {
        let read = match self.line.read(&mut self.piece) {
            Ok(read) => read,
            Err(error) if would_block(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.line_ended = read == 0;
        let mut arrived = self.piece.get(..read).unwrap_or_default();
        while !arrived.is_empty() && !self.line_ended {
            self.tls.read_tls(&mut arrived)?;
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // It is told why, if it listens.
                    let _ = self.tls.write_tls(&mut self.line);
                    return Err(error.into());
                }
            };
            let start = self.inward.len();
            self.inward.resize(start + state.plaintext_bytes_to_read(), 0);
            let room = self.inward.get_mut(start..).unwrap_or_default();
            self.tls.reader().read_exact(room)?;
            self.line_ended = state.peer_has_closed();
        }
        self.pass_on();
        Ok(())
    }

    /// From here to the local end; and the end, once all has gone.
    fn pass_on(&mut self) {
        while let Some(rest @ [_, ..]) = self.inward.get(self.taken..) {
            match self.local.write(rest) {
                Ok(written) => self.taken += written,
                Err(error) if would_block(&error) => return,
                Err(_) => return self.hang_up(),
            }
        }
        self.inward.clear();
        self.taken = 0;
        if self.line_ended && !self.end_told {
            self.end_told = true;
            // It fails if nobody is there to hear of it.
            let _ = self.local.shutdown(Shutdown::Write);
        }
    }

    /// From the local end to the line.
    fn take(&mut self) -> Result<(), TlsError> {
        match self.local.read(&mut self.piece) {
            Ok(0) => {
                self.local_ended = true;
                self.tls.send_close_notify();
            }
            Ok(read) => {
                let said = self.piece.get(..read).unwrap_or_default();
                self.tls.writer().write_all(said)?;
                self.send()?;
            }
            Err(error) if would_block(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
