// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server: a process that answers requests with frames that it has prepared, and receives frames.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::frame::{self, META, Message, Operation, SERIAL};
use crate::party;

/// What the server says about the frames that it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Since it was last asked.
    pub frames: u64,
    /// Of these, whose payload did not begin and end with a new serial number.
    pub wrong: u64,
    /// Bytes of the last one's payload.
    pub length: usize,
    /// Every byte of the last one was right.
    pub intact: bool,
    /// Its footer told the right CRC.
    pub summed: bool,
}

/// Where it listens.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Listening {
    pub port: u16,
}

#[derive(Debug, Default)]
struct Log {
    frames: u64,
    wrong: u64,
    serial: u64,
    /// The last frame.
    frame: Vec<u8>,
}

impl Log {
    /// A frame was received.
    fn count(&mut self) {
        let payload = &self.frame[META..self.frame.len() - META];
        let serial = |bytes: Option<&[u8]>| {
            bytes
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_le_bytes)
        };
        let (first, last) = (
            serial(payload.get(..SERIAL)),
            serial(payload.len().checked_sub(SERIAL).and_then(|at| payload.get(at..))),
        );
        self.frames += 1;
        if first != last || first <= Some(self.serial) {
            self.wrong += 1;
        }
        self.serial = first.unwrap_or_default();
    }

    fn report(&mut self) -> Received {
        let (frames, wrong) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.wrong));
        let Some(length) = self.frame.len().checked_sub(2 * META) else {
            return Received::default();
        };
        let (payload, footer) = self.frame[META..].split_at(length);
        let middle = SERIAL..length.saturating_sub(SERIAL).max(SERIAL);
        Received {
            frames,
            wrong,
            length,
            intact: payload.get(middle.clone()) == frame::payload(length).get(middle)
                && footer[4..] == frame::footer(0)[4..],
            summed: frame::expect_crc(footer, crc32c::crc32c(payload)).is_ok(),
        }
    }
}

/// One connection, to its end.
fn answer(client: BorrowedFd<'_>, log: &Mutex<Log>) -> io::Result<()> {
    let mut frames: HashMap<usize, Vec<u8>> = HashMap::new();
    let mut request = [0; frame::MESSAGE];
    while frame::receive(client, &mut [io::IoSliceMut::new(&mut request)])? {
        let message = Message::parse(&request)?;
        match message.operation {
            Operation::Read => {
                let frame = frames
                    .entry(message.length)
                    .or_insert_with(|| frame::answer(message.length));
                frame::send(client, &[IoSlice::new(frame)])?;
            }
            Operation::Write => {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.frame.resize(2 * META + message.length, 0);
                log.frame[..request.len()].copy_from_slice(&request);
                frame::receive_exact(client, &mut log.frame[request.len()..])?;
                log.count();
                let written = Message {
                    operation: Operation::Written,
                    ..message
                };
                frame::send(client, &[IoSlice::new(&written.bytes())])?;
            }
            Operation::Written => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}

/// Serves on a port of the loopback and at `path`, until standard input ends.
pub fn run(path: &Path) -> Result<()> {
    let log = Arc::new(Mutex::new(Log::default()));
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback")?;
    let unix = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let port = tcp.local_addr()?.port();
    let serve = |log: &Arc<Mutex<Log>>, client: OwnedFd| {
        let log = Arc::clone(log);
        thread::spawn(move || {
            if let Err(error) = answer(client.as_fd(), &log) {
                eprintln!("server: {error}");
            }
        });
    };
    let theirs = Arc::clone(&log);
    thread::spawn(move || {
        for client in tcp.incoming().flatten() {
            if client.set_nodelay(true).is_ok() {
                serve(&theirs, client.into());
            }
        }
    });
    let theirs = Arc::clone(&log);
    thread::spawn(move || {
        for client in unix.incoming().flatten() {
            serve(&theirs, client.into());
        }
    });
    party::report_until_end(&Listening { port }, || {
        log.lock().unwrap_or_else(PoisonError::into_inner).report()
    })
}
