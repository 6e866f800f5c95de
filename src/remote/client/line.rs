// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to the server, as long as it holds.

use std::io::{BufReader, Read};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::calls::{Break, FIRST};
use super::epoch::Epoch;
use super::greeting::{ConnectError, Target, greet, secure};
use crate::ebpf::boot_time;
use crate::remote::Stream;
use crate::remote::tls::Pump;
use crate::remote::wire::message::{HelloReply, Wanted};
use crate::remote::wire::{FrameReader, FrameWriter, Header, SessionKey, Side, Sizes};

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
    /// What carries its bytes, if it is TLS that the kernel does not do.
    pump: Mutex<Option<Pump>>,
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
    stream: Stream,
    /// The same, for each direction.
    receiving: Stream,
    sending: Stream,
    key: Option<SessionKey>,
    pump: Option<Pump>,
}

/// Connects, with TLS if the server is to speak it, agrees on what is spoken, and proves to have the token.
pub(super) fn dial(target: &Target, session: Wanted) -> Result<Dialed, ConnectError> {
    let timeout = target.timeout;
    let stream = target.address.connect(timeout);
    let stream = stream.map_err(|error| ConnectError::Connect {
        address: target.address.clone(),
        error,
    })?;
    let deadline = Instant::now() + timeout;
    let secured = secure(&stream, target, deadline)?;
    let (stream, pump, binding) = match secured {
        // A pump ends with the stream, however that ends.
        Some(secured) => (secured.stream, secured.pump, Some(secured.binding)),
        None => (stream, None, None),
    };
    let asked = boot_time();
    let greeted = greet(&stream, target, session, binding.as_ref(), deadline)?;
    let system = ConnectError::System;
    stream.set_read_timeout(None).map_err(system)?;
    stream.set_write_timeout(Some(target.timeout)).map_err(system)?;
    Ok(Dialed {
        hello: greeted.hello,
        asked,
        receiving: stream.try_clone().map_err(system)?,
        sending: stream.try_clone().map_err(system)?,
        stream,
        key: greeted.key,
        pump,
    })
}

/// Both directions from now on.
fn frames<R: Read>(
    sizes: Sizes,
    key: Option<&SessionKey>,
    receiving: R,
    sending: Stream,
) -> (FrameReader<R>, FrameWriter<Stream>) {
    let mut reader = FrameReader::new(receiving, Side::Server);
    let mut writer = FrameWriter::new(sending, Side::Client);
    reader.set_sizes(sizes);
    writer.set_sizes(sizes);
    if let Some(key) = key {
        reader.sign_with(key);
        writer.sign_with(key);
    }
    (reader, writer)
}

impl Dialed {
    /// The way for everything.
    pub fn into_line(self, number: u64, epoch: Epoch, timeout: Duration) -> (Line, Reader) {
        // A small reply is one read.
        let receiving = BufReader::new(self.receiving);
        let (reader, frames) = frames(self.hello.sizes, self.key.as_ref(), receiving, self.sending);
        let line = Line {
            number,
            epoch,
            stream: self.stream,
            writer: Mutex::new(Writer {
                frames,
                last: Instant::now(),
            }),
            pump: Mutex::new(self.pump),
            timeout,
        };
        (line, reader)
    }

    /// The way for data, where nobody waits for longer than `timeout`.
    pub fn into_data_line(self, timeout: Duration) -> Result<DataLine, ConnectError> {
        let timed = self.stream.set_read_timeout(Some(timeout));
        timed.map_err(ConnectError::System)?;
        let sizes = self.hello.sizes;
        let (reader, writer) = frames(sizes, self.key.as_ref(), self.receiving, self.sending);
        Ok(DataLine {
            socket: self.stream,
            footer: sizes.footer(),
            reader,
            frames: writer,
            next: FIRST,
        })
    }
}

/// A connection that has one request on the way at most. Nothing is read ahead of who takes it: a payload may
/// be taken from the socket itself.
#[derive(Debug)]
pub(super) struct DataLine {
    pub socket: Stream,
    /// Bytes of a footer.
    pub footer: usize,
    pub reader: FrameReader<Stream>,
    pub frames: FrameWriter<Stream>,
    next: u64,
}

impl DataLine {
    /// The next request's number.
    pub fn number(&mut self) -> u64 {
        // 2^64 of them pass over no connection.
        self.next = self.next.wrapping_add(1);
        self.next
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

    /// Once it is cut: until nothing carries its bytes any more, a second at most.
    pub fn join(&self) {
        let pump = self.pump.lock().take();
        if let Some(pump) = pump {
            pump.join();
        }
    }
}
