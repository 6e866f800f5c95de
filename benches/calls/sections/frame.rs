// SPDX-License-Identifier: MIT OR Apache-2.0
//! What travels between a client and the server: `header | payload | footer`, either way.
//!
//! A client asks with a message of 16 bytes, and gets a frame; or it sends a frame, whose header
//! begins with such a message, and gets a message back. The footer begins with the CRC32C of the
//! payload.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::socket::{MsgFlags, recvmsg, sendmsg};

/// Bytes of a header, and of a footer.
pub const META: usize = 102;
/// Bytes of a message.
pub const MESSAGE: usize = 16;
/// Bytes of a serial number, at the beginning and the end of a payload that is written.
pub const SERIAL: usize = 8;
/// The longest payload.
pub const LONGEST: usize = 1 << 20;

const MAGIC: u32 = 0x4d_41_52_46;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Written,
}

/// A request, its answer, or the beginning of a header: about so many bytes of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub operation: Operation,
    pub length: usize,
}

impl Message {
    pub fn bytes(self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.operation as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.length as u64).to_le_bytes());
        bytes
    }

    /// The message that `bytes` begin with.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let all = [Operation::Read, Operation::Write, Operation::Written];
        let (Some(magic), Some(operation), Some(length)) = (
            bytes.get(..4).and_then(|b| b.try_into().ok()),
            bytes.get(4..8).and_then(|b| b.try_into().ok()),
            bytes.get(8..MESSAGE).and_then(|b| b.try_into().ok()),
        ) else {
            return Err(invalid("a message is too short"));
        };
        let operation = u32::from_le_bytes(operation);
        let length = u64::from_le_bytes(length) as usize;
        match all.into_iter().find(|&known| known as u32 == operation) {
            Some(operation) if u32::from_le_bytes(magic) == MAGIC && length <= LONGEST => {
                Ok(Self { operation, length })
            }
            _ => Err(invalid("no such message")),
        }
    }

    /// Fails unless `bytes` begin with this message.
    pub fn expect(self, bytes: &[u8]) -> io::Result<()> {
        if Self::parse(bytes)? == self {
            return Ok(());
        }
        Err(invalid("a message about something else"))
    }

    /// A header that begins with this message.
    pub fn header(self) -> [u8; META] {
        let mut header = [b'H'; META];
        header[..MESSAGE].copy_from_slice(&self.bytes());
        header
    }
}

pub fn footer(crc: u32) -> [u8; META] {
    let mut footer = [b'F'; META];
    footer[..4].copy_from_slice(&crc.to_le_bytes());
    footer
}

/// The CRC that a footer tells.
pub fn told_crc(footer: &[u8]) -> io::Result<u32> {
    let crc = footer.get(..4).and_then(|bytes| bytes.try_into().ok());
    crc.map(u32::from_le_bytes)
        .ok_or_else(|| invalid("a footer is too short"))
}

/// Fails unless the footer tells this CRC.
pub fn expect_crc(footer: &[u8], crc: u32) -> io::Result<()> {
    if told_crc(footer)? == crc {
        return Ok(());
    }
    Err(invalid("the CRC is not the footer's"))
}

/// A payload: no two of its words are the same.
pub fn payload(length: usize) -> Vec<u8> {
    let words = (1..).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.flatten().take(length).collect()
}

/// The frame that the server answers a request for `length` bytes with.
pub fn answer(length: usize) -> Vec<u8> {
    let payload = payload(length);
    let header = Message {
        operation: Operation::Read,
        length,
    }
    .header();
    [&header[..], &payload, &footer(crc32c::crc32c(&payload))].concat()
}

/// Sends all in one call.
pub fn send(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<()> {
    let sent = sendmsg::<()>(socket.as_raw_fd(), parts, &[], MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == parts.iter().map(|part| part.len()).sum::<usize>() {
        return Ok(());
    }
    Err(io::ErrorKind::WriteZero.into())
}

/// Receives all in one call; false if there is nothing any more.
pub fn receive(socket: BorrowedFd<'_>, parts: &mut [IoSliceMut<'_>]) -> io::Result<bool> {
    let wanted = parts.iter().map(|part| part.len()).sum::<usize>();
    let got = recvmsg::<()>(socket.as_raw_fd(), parts, None, MsgFlags::MSG_WAITALL)?.bytes;
    if got != wanted && got != 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(got == wanted)
}

/// Receives all of `bytes`.
pub fn receive_exact(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<()> {
    if receive(socket, &mut [IoSliceMut::new(bytes)])? {
        return Ok(());
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(formatter, "tcp:{port}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("tcp", port)) => port.parse().map(Self::Tcp).map_err(|error| format!("{error}")),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            _ => Err("neither tcp:PORT nor unix:PATH".into()),
        }
    }
}

impl Address {
    pub fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Self::Unix(path) => Ok(UnixStream::connect(path)?.into()),
        }
    }
}
