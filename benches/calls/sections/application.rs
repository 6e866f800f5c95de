// SPDX-License-Identifier: MIT OR Apache-2.0
//! The application: reads and writes, on the mount or, where there is none, by itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::uio::{pread, pwrite};

use super::daemon::FILES;
use super::frame::{self, LONGEST, META, Message, Operation, SERIAL};
use super::{Access, Case};
use crate::pages::drop_pages;

#[repr(align(0x20_0000))]
struct Buffer([u8; LONGEST]);

/// Its memory, and what it expects to find in there.
pub struct Application {
    buffer: Box<Buffer>,
    /// Header, footer.
    meta: [[u8; META]; 2],
    payload: Vec<u8>,
    serial: u64,
}

/// From where the payload comes, or where it goes.
pub enum Peer {
    /// The server, without a file system.
    Server(OwnedFd),
    /// A file of the mount.
    File(File),
}

/// Makes the kernel read ahead as far as the longest payload, and not farther.
pub fn set_readahead(mountpoint: &Path) -> Result<()> {
    let dev = fs::metadata(mountpoint)?.dev();
    let path = format!(
        "/sys/class/bdi/{}:{}/read_ahead_kb",
        nix::sys::stat::major(dev),
        nix::sys::stat::minor(dev)
    );
    fs::write(&path, format!("{}", LONGEST >> 10)).with_context(|| format!("cannot write {path}"))
}

/// Opens the file for this case.
pub fn open(case: Case, mountpoint: &Path) -> Result<Peer> {
    let path = mountpoint.join(FILES[usize::from(case.crc)]);
    let mut options = OpenOptions::new();
    match case.access {
        Access::Direct => options.read(true).custom_flags(libc::O_DIRECT),
        Access::Buffered => options.read(true),
        Access::Write => options.write(true).custom_flags(libc::O_DIRECT),
    };
    let file = options
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if case.access == Access::Buffered {
        // Read-ahead beyond what is asked for would be somebody else's read.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
    }
    Ok(Peer::File(file))
}

impl Application {
    pub fn new() -> Self {
        Self {
            buffer: Box::new(Buffer([0; LONGEST])),
            meta: [[0; META]; 2],
            payload: frame::payload(LONGEST),
            serial: 0,
        }
    }

    /// Between runs: nothing of the file is left in the page cache.
    pub fn forget(&mut self, case: Case, peer: &Peer) -> Result<()> {
        if let (Access::Buffered, Peer::File(file)) = (case.access, peer) {
            drop_pages(file)?;
        }
        if case.access == Access::Write {
            self.buffer.0.copy_from_slice(&self.payload);
        }
        Ok(())
    }

    /// Call `number` of a run.
    pub fn call(&mut self, case: Case, peer: &Peer, number: usize) -> io::Result<()> {
        if case.access == Access::Write {
            return self.write(case, peer);
        }
        let length = case.bytes;
        let buffer = &mut self.buffer.0[..length];
        buffer[..SERIAL].fill(0);
        buffer[length - SERIAL..].fill(0);
        match peer {
            Peer::Server(server) => {
                let message = Message {
                    operation: Operation::Read,
                    length,
                };
                frame::send(server.as_fd(), &[IoSlice::new(&message.bytes())])?;
                let [header, footer] = &mut self.meta;
                let mut parts = [&mut header[..], buffer, &mut footer[..]].map(IoSliceMut::new);
                if !frame::receive(server.as_fd(), &mut parts)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                message.expect(header)?;
                if case.crc {
                    frame::expect_crc(footer, crc32c::crc32c(&self.buffer.0[..length]))?;
                }
            }
            Peer::File(file) => {
                // Where there is a cache, a range that is not in it.
                let at = match case.access {
                    Access::Buffered => number * length,
                    Access::Direct | Access::Write => 0,
                };
                if pread(file, buffer, at as i64)? != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        let (seen, meant) = (&self.buffer.0[..length], &self.payload[..length]);
        let last = length - SERIAL;
        if seen[..SERIAL] == meant[..SERIAL] && seen[last..] == meant[last..] {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the payload begins or ends with other bytes",
        ))
    }

    fn write(&mut self, case: Case, peer: &Peer) -> io::Result<()> {
        let length = case.bytes;
        self.serial += 1;
        let (serial, buffer) = (self.serial.to_le_bytes(), &mut self.buffer.0[..length]);
        buffer[..SERIAL].copy_from_slice(&serial);
        buffer[length - SERIAL..].copy_from_slice(&serial);
        match peer {
            Peer::Server(server) => send_frame(server.as_fd(), buffer, case.crc),
            Peer::File(file) if pwrite(file, buffer, 0)? == length => Ok(()),
            Peer::File(_) => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Fails unless every byte that the last call read is right.
    pub fn check(&self, case: Case) -> Result<()> {
        let right = case.access == Access::Write || self.buffer.0[..case.bytes] == self.payload[..case.bytes];
        ensure!(right, "a byte of the payload is wrong");
        Ok(())
    }
}

fn send_frame(server: BorrowedFd<'_>, payload: &[u8], crc: bool) -> io::Result<()> {
    let message = |operation| Message {
        operation,
        length: payload.len(),
    };
    let header = message(Operation::Write).header();
    let footer = frame::footer(if crc { crc32c::crc32c(payload) } else { 0 });
    frame::send(server, &[&header, payload, &footer].map(IoSlice::new))?;
    let mut written = [0; frame::MESSAGE];
    frame::receive_exact(server, &mut written)?;
    message(Operation::Written).expect(&written)
}
