// SPDX-License-Identifier: MIT OR Apache-2.0
//! What both ends need for HELLO and AUTHENTICATE.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::Stream;
use super::wire::VERSION;
use super::wire::auth::Nonce;
use super::wire::message::Versions;

/// What is spoken here.
pub(super) const VERSIONS: Versions = Versions {
    min: VERSION,
    max: VERSION,
};

/// 32 bytes that nobody can guess.
pub(super) fn random() -> io::Result<Nonce> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A stream that ends at a deadline, however slowly it trickles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until<'s> {
    stream: &'s Stream,
    deadline: Instant,
}

impl<'s> Until<'s> {
    /// It ends then.
    pub fn by(stream: &'s Stream, deadline: Instant) -> Self {
        Self { stream, deadline }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
