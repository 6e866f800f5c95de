// SPDX-License-Identifier: MIT OR Apache-2.0
//! The side of who asks.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, setsockopt};
use nix::sys::time::TimeVal;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::question::Question;
use super::{AGAIN, GONE, Handler, PATIENCE, Refusal, Report, name, peer_uid};
use crate::ebpf::Object;
use crate::sys::mountinfo::Dev;

/// How long the answer may take: counting the rows of large maps is a system call a row, and a program
/// may keep the verifier busy.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer: some 60 opcodes with a few numbers each take a tenth.
const ANSWER_MAX: u64 = 256 << 10;

/// Why a daemon could not be asked.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("its daemon is not running")]
    Dead,
    /// It listens, but does not answer.
    #[error("its daemon does not answer")]
    Silent,
    /// Only the owner and root may ask.
    #[error("only its owner and root may ask its daemon")]
    Refused,
    /// Somebody else has taken the socket's name.
    #[error("the socket of its daemon belongs to uid {0}")]
    Impostor(u32),
    /// What came is not an answer.
    #[error("its daemon answers something else: {0}")]
    Garbled(String),
    /// It will not.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// Anything else.
    #[error("its daemon cannot be asked: {0}")]
    Io(#[from] io::Error),
}

/// Asks the daemon of the mount with device number `dev`, which `owner` may have started.
pub fn ask(dev: Dev, owner: Option<u32>) -> Result<Report, AskError> {
    question(dev, owner, &Question::Stat, &[])
}

/// Which opcodes have a handler, and whose.
///
/// # Errors
///
/// [`AskError`]; a [`Refusal`] if the mount has no handlers.
pub fn handlers(dev: Dev, owner: Option<u32>) -> Result<Vec<Handler>, AskError> {
    question::<Result<_, Refusal>>(dev, owner, &Question::Handlers, &[])?.map_err(Into::into)
}

/// Has the program of `object` answer the requests of `opcode`.
///
/// # Errors
///
/// [`AskError`]; a [`Refusal`] if the object can't be used.
pub fn load(dev: Dev, owner: Option<u32>, opcode: u32, object: &Object) -> Result<(), AskError> {
    let load = Question::load(opcode, object);
    question::<Result<_, Refusal>>(dev, owner, &load, object.bytes())?.map_err(Into::into)
}

/// Has extfuse's own handler of `opcode` back.
///
/// # Errors
///
/// [`AskError`]; a [`Refusal`] if it was not replaced.
pub fn unload(dev: Dev, owner: Option<u32>, opcode: u32) -> Result<(), AskError> {
    question::<Result<_, Refusal>>(dev, owner, &Question::Unload { opcode }, &[])?.map_err(Into::into)
}

fn question<T: DeserializeOwned>(
    dev: Dev,
    owner: Option<u32>,
    question: &Question,
    object: &[u8],
) -> Result<T, AskError> {
    let start = Instant::now();
    loop {
        let mut stream = match connect(dev) {
            // One daemon may have just gone, and the next one not have come.
            Err(AskError::Dead) if start.elapsed() < 10 * AGAIN => {
                std::thread::sleep(AGAIN);
                continue;
            }
            connected => connected?,
        };
        let peer = peer_uid(&stream)?;
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() && Some(peer) != owner {
            return Err(AskError::Impostor(peer));
        }
        let mut asked = stream.write_all(question.line().as_bytes());
        // A daemon that will not have it answers all the same.
        if asked.is_ok() && !object.is_empty() {
            asked = match stream.write_all(object) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written,
            };
        }
        asked.map_err(unanswered)?;
        let answer = read_until(&mut stream, start + ANSWER_PATIENCE).map_err(unanswered)?;
        match answer.as_slice() {
            b"" => return Err(AskError::Refused),
            GONE if start.elapsed() < PATIENCE => std::thread::sleep(AGAIN),
            GONE => return Err(AskError::Dead),
            answer => {
                return serde_json::from_slice(answer).map_err(|error| AskError::Garbled(error.to_string()));
            }
        }
    }
}

/// A connection to the daemon of the mount with device number `dev`.
pub(super) fn connect(dev: Dev) -> Result<UnixStream, AskError> {
    let fd = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(io::Error::from)?;
    // Before connecting: a full queue would keep us waiting too.
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&fd, SendTimeout, &patience).map_err(io::Error::from)?;
    let address = UnixAddr::new_abstract(&name(dev)).map_err(io::Error::from)?;
    socket::connect(fd.as_raw_fd(), &address).map_err(|errno| match errno {
        nix::errno::Errno::ECONNREFUSED => AskError::Dead,
        nix::errno::Errno::EAGAIN => AskError::Silent,
        errno => AskError::Io(errno.into()),
    })?;
    Ok(fd.into())
}

fn unanswered(error: io::Error) -> AskError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent,
        // It saw who asks and hung up.
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => AskError::Refused,
        _ => AskError::Io(error),
    }
}

/// Reads to the end of the stream, at most [`ANSWER_MAX`] bytes and until `deadline`.
fn read_until(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => return Ok(answer),
            length => answer.extend_from_slice(&part[..length]),
        }
        if answer.len() as u64 > ANSWER_MAX {
            return Err(io::Error::other("more than an answer can be"));
        }
    }
}
