// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stream to a client, which is not waited for for ever.

use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::remote::Stream;
use crate::remote::wire::Sealed;
use crate::sys::sendfile::{send_bytes, send_file};
use crate::sys::stream::Deadline;

/// The stream, on which every frame has the same time, however slowly it is taken: the limit of a write begins anew
/// with each byte.
#[derive(Debug)]
pub struct Prompt {
    stream: Arc<Stream>,
    timeout: Duration,
    /// Of the frame that has begun.
    deadline: Option<Instant>,
    /// The limit of a write is less than the timeout.
    is_hurried: bool,
}

impl Prompt {
    pub fn new(stream: Arc<Stream>, timeout: Duration) -> Self {
        Self {
            stream,
            timeout,
            deadline: None,
            is_hurried: false,
        }
    }

    /// The time that is left for the next part of the frame.
    fn hurry(&mut self) -> io::Result<()> {
        let Some(deadline) = self.deadline else {
            self.deadline = Some(Instant::now() + self.timeout);
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.is_hurried = true;
        self.stream.set_write_timeout(Some(left))
    }

    /// Sends a frame whose payload is a range of a file, which goes there without coming here. The frame is ended only if
    /// that is `right` still, once all of the payload was handed over. Nobody else may use the stream meanwhile, not for
    /// reading either.
    ///
    /// # Errors
    ///
    /// The frame has begun, and will not end: the stream is of no more use.
    pub fn send_file(
        &mut self,
        frame: &Sealed,
        file: &impl AsFd,
        range: Range<u64>,
        right: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let deadline = Deadline::after(self.timeout);
        self.stream.set_nonblocking(true)?;
        self.stream.set_corked(true)?;
        send_bytes(&*self.stream, &frame.header, deadline)?;
        send_file(&*self.stream, file, range, deadline)?;
        if !right() {
            return Err(io::Error::other("a file was changed while it was sent"));
        }
        send_bytes(&*self.stream, &frame.footer, deadline)?;
        self.stream.set_corked(false)?;
        self.stream.set_nonblocking(false)
    }
}

impl Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        (&*self.stream).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.hurry()?;
        (&*self.stream).write_vectored(slices)
    }

    /// The frame is whole.
    fn flush(&mut self) -> io::Result<()> {
        self.deadline = None;
        match std::mem::take(&mut self.is_hurried) {
            true => self.stream.set_write_timeout(Some(self.timeout)),
            false => Ok(()),
        }
    }
}
