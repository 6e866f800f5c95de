// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to the server, as long as it holds.

use std::io::BufReader;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::calls::Break;
use super::epoch::Epoch;
use super::greeting::{ConnectError, Target, greet};
use crate::ebpf::boot_time;
use crate::remote::Stream;
use crate::remote::wire::message::{HelloReply, SessionId};
use crate::remote::wire::{FrameReader, FrameWriter, Header, Side};

#[derive(Debug)]
struct Writer {
    frames: FrameWriter<Stream>,
    /// When the last frame went out.
    last: Instant,
}

/// One connected stream: the direction to the server.
#[derive(Debug)]
pub(super) struct Line {
    /// Which one of this mount's.
    pub number: u64,
    /// The session that it is for.
    pub epoch: Epoch,
    /// To shut it down, whoever is just using it.
    stream: Stream,
    writer: Mutex<Writer>,
    timeout: Duration,
}

/// The direction from the server.
pub(super) type Reader = FrameReader<BufReader<Stream>>;

/// A line before anybody uses it.
#[derive(Debug)]
pub(super) struct Dialed {
    pub hello: HelloReply,
    /// When it was asked for, ns since boot.
    pub asked: u64,
    pub reader: Reader,
    stream: Stream,
    frames: FrameWriter<Stream>,
}

/// Connects, agrees on what is spoken, and proves to have the token; to go on with a session, if the server still has it.
pub(super) fn dial(target: &Target, resume: Option<SessionId>) -> Result<Dialed, ConnectError> {
    let timeout = target.timeout;
    let stream = target.address.connect(timeout);
    let stream = stream.map_err(|error| ConnectError::Connect {
        address: target.address.clone(),
        error,
    })?;
    let asked = boot_time();
    let greeted = greet(&stream, target, resume)?;
    let system = ConnectError::System;
    stream.set_read_timeout(None).map_err(system)?;
    stream.set_write_timeout(Some(timeout)).map_err(system)?;

    // A small reply is one read.
    let receiving = BufReader::new(stream.try_clone().map_err(system)?);
    let mut reader = FrameReader::new(receiving, Side::Server);
    let mut frames = FrameWriter::new(stream.try_clone().map_err(system)?, Side::Client);
    reader.set_sizes(greeted.hello.sizes);
    frames.set_sizes(greeted.hello.sizes);
    if let Some(key) = &greeted.key {
        reader.sign_with(key);
        frames.sign_with(key);
    }
    Ok(Dialed {
        hello: greeted.hello,
        asked,
        reader,
        stream,
        frames,
    })
}

impl Dialed {
    pub fn into_line(self, number: u64, epoch: Epoch, timeout: Duration) -> (Line, Reader) {
        let line = Line {
            number,
            epoch,
            stream: self.stream,
            writer: Mutex::new(Writer {
                frames: self.frames,
                last: Instant::now(),
            }),
            timeout,
        };
        (line, self.reader)
    }
}

impl Line {
    /// Puts one frame on the stream. `Err(Ok(_))` is what the caller gets, and nothing was sent; with `Err(Err(_))` the
    /// line is of no more use.
    pub fn write(&self, header: &Header, payload: &[u8]) -> Result<(), Result<Errno, Break>> {
        let Some(mut writer) = self.writer.try_lock_for(self.timeout) else {
            return Err(Err(Break::Stuck(self.timeout)));
        };
        match writer.frames.write_frame(header, 0, &[payload]) {
            Ok(()) => {
                writer.last = Instant::now();
                Ok(())
            }
            Err(error) if error.closes() => Err(Err(error.into())),
            Err(error) => Err(Ok(error.errno())),
        }
    }

    /// How long nothing was sent; none at all if somebody is just sending.
    pub fn idle(&self) -> Duration {
        let writer = self.writer.try_lock();
        writer.map_or(Duration::ZERO, |writer| writer.last.elapsed())
    }

    /// However long a write may take otherwise.
    pub fn hurry(&self, limit: Duration) {
        // If it does not keep to the limit, it keeps to the timeout.
        let _ = self.stream.set_write_timeout(Some(limit));
    }

    /// Whoever reads or writes returns.
    pub fn cut(&self) {
        // If it cannot be shut down, it is down.
        let _ = self.stream.shutdown();
    }
}
