// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon's side.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::socket;
use parking_lot::Mutex;

use super::ask::connect;
use super::question::Question;
use super::{AGAIN, GONE, Handler, PATIENCE, Refusal, Report, name, peer_uid};
use crate::ebpf::Object;
use crate::sys::mountinfo::Dev;

/// The longest question, but for the object behind it.
const QUESTION_MAX: usize = 512;

/// Who knows the answers.
pub trait Daemon: Send + Sync {
    /// Whether the mount is there still.
    fn is_mounted(&self) -> bool;
    /// What it tells about itself.
    fn report(&self) -> Report;
    /// See [`handlers`](super::handlers()).
    fn handlers(&self) -> Result<Vec<Handler>, Refusal>;
    /// See [`load`](super::load()).
    fn load(&self, opcode: u32, object: &Object) -> Result<(), Refusal>;
    /// See [`unload`](super::unload()).
    fn unload(&self, opcode: u32) -> Result<(), Refusal>;
}

/// The daemon's side: a thread that answers until it is dropped.
pub struct Server {
    place: Arc<Mutex<Place>>,
    thread: Option<JoinHandle<()>>,
}

/// Where questions come in. None while the daemon of a mount before, which had the same number, has not ended yet.
#[derive(Debug, Default)]
struct Place {
    listener: Option<Arc<UnixListener>>,
    /// The mount has been there for all to see: when it is not any more, the place is another's.
    shown: bool,
    over: bool,
}

impl Place {
    /// Whether somebody else is there still.
    fn take(&mut self, address: &SocketAddr) -> io::Result<bool> {
        match UnixListener::bind_addr(address) {
            Ok(listener) => self.listener = Some(Arc::new(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(true),
            Err(error) => return Err(error),
        }
        Ok(false)
    }
}

/// Answers, once the place is free; until it is over.
fn serve(place: &Mutex<Place>, dev: Dev, address: &SocketAddr, owner: u32, daemon: &dyn Daemon) {
    let listener = loop {
        {
            let mut place = place.lock();
            if place.over {
                return;
            }
            if let Some(listener) = &place.listener {
                break Arc::clone(listener);
            }
            if let Err(error) = place.take(address) {
                return tracing::warn!("extfuse stat and handler will not work: {error}");
            }
        }
        nudge(dev);
        std::thread::sleep(AGAIN);
    };
    // Ends with the error that shutting the listener down gives.
    while let Ok((mut stream, _)) = listener.accept() {
        // Whoever asks means a mount that has the number now.
        let gone = place.lock().shown && !daemon.is_mounted();
        if let Err(error) = answer(&mut stream, owner, daemon) {
            tracing::debug!("control: {error}");
        }
        if gone {
            place.lock().listener = None;
            return;
        }
    }
}

/// Has the daemon of a mount before, if it is that, notice that its mount is gone.
fn nudge(dev: Dev) {
    if let Ok(mut stream) = connect(dev) {
        // It may have gone by now.
        let _ = stream.write_all(Question::Stat.line().as_bytes());
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens for the mount with device number `dev`; `owner` and root may ask. If the daemon of a mount before takes
    /// its time to end, it listens when that has.
    pub fn start(dev: Dev, owner: u32, daemon: Arc<dyn Daemon>) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(name(dev))?;
        let (start, mut place) = (Instant::now(), Place::default());
        while place.take(&address)? && start.elapsed() < PATIENCE {
            nudge(dev);
            std::thread::sleep(AGAIN);
        }
        let place = Arc::new(Mutex::new(place));
        let ours = Arc::clone(&place);
        let thread = std::thread::Builder::new()
            .name("extfuse-control".into())
            .spawn(move || serve(&ours, dev, &address, owner, &*daemon))?;
        Ok(Self {
            place,
            thread: Some(thread),
        })
    }

    /// The mount is there for all to see. When it is not any more, whoever comes next with its number may have the place.
    pub fn is_shown(&self) {
        self.place.lock().shown = true;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let listener = {
            let mut place = self.place.lock();
            place.over = true;
            place.listener.take()
        };
        if let Some(listener) = listener {
            let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One question, one answer. Strangers get none, and cannot keep the thread waiting.
fn answer(stream: &mut UnixStream, owner: u32, daemon: &dyn Daemon) -> io::Result<()> {
    let peer = peer_uid(stream)?;
    if peer != 0 && peer != owner {
        return Ok(());
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    let (line, rest) = read_line(stream)?;
    let answer = match Question::parse(&line) {
        _ if !daemon.is_mounted() => GONE.to_vec(),
        Some(Question::Stat) => serde_json::to_vec(&daemon.report())?,
        Some(Question::Handlers) => serde_json::to_vec(&daemon.handlers())?,
        Some(Question::Load { opcode, size, name }) => {
            let object = Object::new(name, read_object(stream, rest, size)?);
            serde_json::to_vec(&daemon.load(opcode, &object))?
        }
        Some(Question::Unload { opcode }) => serde_json::to_vec(&daemon.unload(opcode))?,
        None => br#"{"error":"unknown question"}"#.to_vec(),
    };
    stream.write_all(&answer)?;
    stream.shutdown(Shutdown::Both)
}

/// A question with its end, and what came behind it.
fn read_line(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut question = Vec::new();
    let mut part = [0; QUESTION_MAX];
    while question.len() < QUESTION_MAX && !question.contains(&b'\n') {
        match read_before(stream, &mut part, deadline)? {
            0 => break,
            length => question.extend_from_slice(&part[..length]),
        }
    }
    let end = question.iter().position(|byte| *byte == b'\n');
    let rest = question.split_off(end.map_or(question.len(), |end| end + 1));
    Ok((question, rest))
}

/// The bytes of an object, of which `begin` came with the question.
fn read_object(stream: &mut UnixStream, begin: Vec<u8>, size: usize) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut object = begin;
    let mut at = object.len();
    if at > size {
        return Err(io::Error::other("more than an object"));
    }
    object.resize(size, 0);
    while at < size {
        match read_before(stream, &mut object[at..], deadline)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => at += length,
        }
    }
    Ok(object)
}

fn read_before(stream: &mut UnixStream, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.read(into)
}
