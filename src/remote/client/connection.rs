// SPDX-License-Identifier: MIT OR Apache-2.0
//! One connection: requests of many threads, and their replies in any order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use tracing::{debug, warn};

use super::greeting::{ConnectError, Target, greet};
use super::keeper::{Duties, keep};
use super::kept::Kept;
use crate::Kernel;
use crate::ebpf::boot_time;
use crate::remote::Stream;
use crate::remote::wire::message::{Empty, Forgotten};
use crate::remote::wire::{
    Flags, FrameReader, FrameWriter, Header, Kind, Reply, Request, Side, Sizes, WireError,
};

/// HELLO has number 1 and AUTHENTICATE 2.
const FIRST: u64 = 3;

/// How long a connection that is given up waits for the answer to its GOODBYE, at most.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the header of a request says, but its kind, number and length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// What else it is.
    pub flags: Flags,
    /// The node.
    pub node: u64,
    /// The open file or directory.
    pub handle: u64,
    /// Where in it.
    pub offset: u64,
    /// The version of the file that is known.
    pub file_version: u64,
}

/// A reply whose status is 0.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its header, with the kind of the request.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The version of the file after the operation; 0 if there is none to tell.
    pub file_version: u64,
}

impl Answer {
    /// What the payload means.
    ///
    /// # Errors
    ///
    /// [`WireError::Message`] if it means nothing.
    pub fn reply(&self) -> Result<Reply<'_>, WireError> {
        Reply::decode(&self.header, &self.payload)
    }
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Break {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the server closed the connection")]
    Ended,
    #[error("the server owes the answer to {kind:?} for {timeout:?}")]
    Silent { kind: Kind, timeout: Duration },
    #[error("the server has taken nothing for {0:?}")]
    Stuck(Duration),
    #[error("a {0:?} came in answer to no request: the server does not keep to the protocol")]
    Stray(Kind),
    #[error("the server takes none of the answers to its INVALIDATE frames")]
    Flooded,
    #[error("it was given up")]
    Closed,
}

/// Who waits for a reply: what was asked, and where the answer goes.
#[derive(Debug)]
struct Waiting {
    asked: Header,
    /// When, ns since boot.
    at: u64,
    answer: SyncSender<Answer>,
}

#[derive(Debug)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// When the server has last said something.
    heard: Instant,
    /// No reply comes any more: nobody may begin to wait.
    broken: bool,
}

#[derive(Debug)]
struct Writer {
    frames: FrameWriter<Stream>,
    /// When the last frame went out.
    last: Instant,
}

/// Whether a server that is well may take longer for this than any timeout: it waits for a disk to write, or moves as
/// many bytes as there are.
fn takes_its_time(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Fsync
            | Kind::Fsyncdir
            | Kind::Flush
            | Kind::Release
            | Kind::Setattr
            | Kind::Fallocate
            | Kind::CopyFileRange
    )
}

/// What the connection and its two threads have in common.
///
/// Lock order: none. Each of `writer`, `calls`, `duties` and `kept` is taken while none of the others is held.
#[derive(Debug)]
pub(super) struct Shared {
    /// To shut it down, whoever is just using it.
    stream: Stream,
    writer: Mutex<Writer>,
    calls: Mutex<Calls>,
    pub(super) duties: Duties,
    /// What the kernel keeps of the answers.
    pub(super) kept: Kept,
    pub(super) timeout: Duration,
    /// Requests that may wait for replies; whoever asks beyond that waits for `room`.
    most: usize,
    room: Condvar,
    /// Whoever had the connection has let it go: an end is no news.
    closing: AtomicBool,
}

impl Shared {
    /// The end, whatever the reason: all who wait hear of it at once, and so do the threads. Only the first
    /// reason counts.
    pub(super) fn fail(&self, reason: &Break) {
        let waiting = {
            let mut calls = self.calls.lock();
            if calls.broken {
                return;
            }
            calls.broken = true;
            std::mem::take(&mut calls.waiting)
        };
        if self.closing.load(Ordering::Relaxed) {
            debug!(%reason, "the connection to the server has ended");
        } else {
            warn!(%reason, requests = waiting.len(), "the connection to the server is lost");
        }
        // What nobody would hear the end of is not current any more.
        self.kept.void();
        self.room.notify_all();
        // Whoever reads or writes returns. If it cannot be shut down, it is down.
        let _ = self.stream.shutdown();
        self.duties.end();
        // The answers' senders go, and that is what their receivers see.
        drop(waiting);
    }

    /// Puts one frame on the stream.
    fn write(&self, header: &Header, payload: &[u8]) -> Result<(), Errno> {
        let Some(mut writer) = self.writer.try_lock_for(self.timeout) else {
            self.fail(&Break::Stuck(self.timeout));
            return Err(Errno::EIO);
        };
        let written = writer.frames.write_frame(header, 0, &[payload]);
        if written.is_ok() {
            writer.last = Instant::now();
        }
        drop(writer);
        match written {
            Ok(()) => Ok(()),
            Err(error) if error.closes() => {
                self.fail(&error.into());
                Err(Errno::EIO)
            }
            // Nothing was sent.
            Err(error) => Err(error.errno()),
        }
    }

    /// Sends what has no reply.
    pub(super) fn tell(&self, number: Option<u64>, request: &Request<'_>) -> Result<(), Errno> {
        let number = number.map_or_else(|| self.number(), Ok)?;
        let payload = request.payload().map_err(|error| error.errno())?;
        self.write(&Header::request(request.kind(), number), &payload)
    }

    fn number(&self) -> Result<u64, Errno> {
        let mut calls = self.calls.lock();
        if calls.broken {
            return Err(Errno::EIO);
        }
        let number = calls.next;
        // 2^64 of them pass over no connection.
        calls.next = calls.next.wrapping_add(1);
        Ok(number)
    }

    /// Sends a request. The answer is what arrives; if none can any more, the other end of the channel goes.
    pub(super) fn send(&self, about: &About, request: &Request<'_>) -> Result<Receiver<Answer>, Errno> {
        let payload = request.payload().map_err(|error| error.errno())?;
        let header = Header {
            flags: about.flags,
            node: about.node,
            handle: about.handle,
            offset: about.offset,
            file_version: about.file_version,
            ..Header::request(request.kind(), self.number()?)
        };
        let (answer, receiver) = sync_channel(1);
        {
            let mut calls = self.calls.lock();
            let deadline = Instant::now() + self.timeout;
            while !calls.broken && calls.waiting.len() >= self.most {
                if self.room.wait_until(&mut calls, deadline).timed_out() {
                    return Err(Errno::ETIMEDOUT);
                }
            }
            if calls.broken {
                return Err(Errno::EIO);
            }
            let (asked, at) = (header, boot_time());
            calls
                .waiting
                .insert(header.request, Waiting { asked, at, answer });
        }
        self.write(&header, &payload).inspect_err(|_| {
            self.calls.lock().waiting.remove(&header.request);
        })?;
        Ok(receiver)
    }

    /// The answer, and whether it may be kept. If not, the kernel is kept from it.
    fn call(&self, about: &About, request: &Request<'_>, timeout: Duration) -> (Result<Answer, Errno>, bool) {
        let answer = match self.ask(about, request, timeout) {
            Ok(answer) => answer,
            // Nobody knows what the server has done, or would have said.
            Err(errno) => {
                self.kept.not_to_be_kept(about, request);
                return (Err(errno), false);
            }
        };
        let keep = answer.header.flags.contains(Flags::KEEP);
        if !keep {
            self.kept.not_to_be_kept(about, request);
        }
        let answer = match answer.header.status {
            0 => Ok(answer),
            status => Err(match Errno::from_raw(status as i32) {
                Errno::UnknownErrno => Errno::EIO,
                errno => errno,
            }),
        };
        (answer, keep)
    }

    /// The answer, whatever its status.
    fn ask(&self, about: &About, request: &Request<'_>, timeout: Duration) -> Result<Answer, Errno> {
        let (kind, receiver) = (request.kind(), self.send(about, request)?);
        let mut left = timeout;
        loop {
            match receiver.recv_timeout(left) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(Errno::EIO),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // The disk may have to write all that there is. That the server is there, its other answers tell:
            // to a PING, if nothing else is asked.
            let silent = self.calls.lock().heard.elapsed();
            left = match takes_its_time(kind) {
                true => timeout.saturating_sub(silent),
                false => Duration::ZERO,
            };
            if left.is_zero() {
                self.fail(&Break::Silent { kind, timeout });
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// How long nothing was sent; none at all if somebody is just sending.
    pub(super) fn idle(&self) -> Duration {
        let writer = self.writer.try_lock();
        writer.map_or(Duration::ZERO, |writer| writer.last.elapsed())
    }

    /// Hands a frame to whoever waits for it.
    fn dispatch(&self, answer: Answer) -> Result<(), Break> {
        let header = &answer.header;
        self.calls.lock().heard = Instant::now();
        if !header.is_reply() {
            // The server sends no other request.
            let Request::Invalidate(what) = Request::decode(header, &answer.payload)? else {
                return Err(Break::Stray(header.kind));
            };
            // Here, in the order of the frames: an answer behind it may be kept again.
            self.kept.invalidate(&what);
            return match self.duties.acknowledge(header.request) {
                true => Ok(()),
                false => Err(Break::Flooded),
            };
        }
        let waiting = match self.calls.lock().waiting.entry(header.request) {
            Entry::Occupied(waiting) => waiting.remove(),
            Entry::Vacant(_) => return Err(Break::Stray(header.kind)),
        };
        self.room.notify_one();
        self.kept.renewed(waiting.at);
        let asked = &waiting.asked;
        if (asked.kind, asked.node, asked.handle) != (header.kind, header.node, header.handle) {
            return Err(Break::Stray(header.kind));
        }
        // Nobody may be waiting any more; it is an answer all the same.
        let _ = waiting.answer.send(answer);
        Ok(())
    }

    fn receive(&self, mut reader: FrameReader<BufReader<Stream>>) {
        let reason = loop {
            // One buffer each: the payload is the answer's.
            let mut payload = Vec::new();
            let (header, footer) = match reader.read_frame(&mut payload) {
                Ok(Some(frame)) => (frame.header, frame.footer),
                Ok(None) => break Break::Ended,
                Err(error) => break error.into(),
            };
            let answer = Answer {
                header,
                payload,
                file_version: footer.file_version,
            };
            if let Err(reason) = self.dispatch(answer) {
                break reason;
            }
        };
        self.fail(&reason);
    }
}

/// A connection to a server, which many threads may use at once: each [`call`](Self::call) is one request on
/// the way, and does not wait for those of others.
///
/// When the connection breaks, everybody who waits gets `EIO` at once, and everybody who calls later: it is
/// not made again. A server that owes a reply for longer than the target's timeout counts as dead, unless it is
/// one that a disk may take its time for (FSYNC and the like) and the server says something else meanwhile; so
/// does one that leaves a PING unanswered, which is sent when nothing else was for a third of that timeout, or of
/// the session's lease.
///
/// Dropping it says GOODBYE, waits a second at most, and ends its two threads.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    read_only: bool,
    keep: Option<Duration>,
}

impl Connection {
    /// Connects, agrees on what is spoken, and proves to have the token.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn open(target: &Target) -> Result<Self, ConnectError> {
        let timeout = target.timeout;
        let stream = target.address.connect(timeout);
        let stream = stream.map_err(|error| ConnectError::Connect {
            address: target.address.clone(),
            error,
        })?;
        let asked = boot_time();
        let greeted = greet(&stream, target)?;
        let system = ConnectError::System;
        stream.set_read_timeout(None).map_err(system)?;
        stream.set_write_timeout(Some(timeout)).map_err(system)?;

        let sizes: Sizes = greeted.hello.sizes;
        // A small reply is one read.
        let receiving = BufReader::new(stream.try_clone().map_err(system)?);
        let mut reader = FrameReader::new(receiving, Side::Server);
        let mut frames = FrameWriter::new(stream.try_clone().map_err(system)?, Side::Client);
        reader.set_sizes(sizes);
        frames.set_sizes(sizes);
        if let Some(key) = &greeted.key {
            reader.sign_with(key);
            frames.sign_with(key);
        }
        let shared = Arc::new(Shared {
            stream,
            writer: Mutex::new(Writer {
                frames,
                last: Instant::now(),
            }),
            calls: Mutex::new(Calls {
                next: FIRST,
                waiting: HashMap::new(),
                heard: Instant::now(),
                broken: false,
            }),
            duties: Duties::default(),
            kept: Kept::new(Duration::from_millis(greeted.hello.lease_ms.into()), asked),
            timeout,
            most: usize::from(greeted.hello.requests.max(1)),
            room: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        let mut connection = Self {
            shared,
            threads: Vec::new(),
            read_only: greeted.hello.read_only,
            keep: greeted.hello.keep_ms.map(|ms| Duration::from_millis(ms.into())),
        };
        let lease = Duration::from_millis(greeted.hello.lease_ms.into());
        let shared = Arc::clone(&connection.shared);
        connection.spawn("remote-reader", move || shared.receive(reader))?;
        let shared = Arc::clone(&connection.shared);
        connection.spawn("remote-keeper", move || keep(&shared, lease))?;
        Ok(connection)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ConnectError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(ConnectError::System)?);
        Ok(())
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// The server's errno; `EIO` if the connection is broken; `ETIMEDOUT` if it is now, because this answer
    /// did not come in time; those of [`WireError::errno`] for a request that cannot be sent, such as one
    /// that is too long.
    pub fn call(&self, about: &About, request: &Request<'_>) -> Result<Answer, Errno> {
        self.call_kept(about, request).0
    }

    /// The same, and whether the answer, or the error, may be kept.
    pub(super) fn call_kept(&self, about: &About, request: &Request<'_>) -> (Result<Answer, Errno>, bool) {
        self.shared.call(about, request, self.shared.timeout)
    }

    /// Takes lookups back. It does not wait until they are sent; many of them may go together.
    pub fn forget(&self, node: u64, nlookup: u64) {
        self.shared.duties.forget(Forgotten { node, nlookup });
    }

    /// Whether the server refuses every change.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// How long answers may be kept at most; none: until the server says otherwise.
    #[must_use]
    pub fn keep(&self) -> Option<Duration> {
        self.keep
    }

    /// From here on the kernel may keep answers. They are void when the server says so, and when it has not been
    /// heard of for its lease.
    pub fn keep_in(&self, kernel: Kernel) {
        self.shared.kept.keep_in(kernel);
    }

    /// How long the lease on what was answered still holds.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.shared.kept.left()
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.shared.kept
    }

    /// Whether it has broken: nothing but `EIO` comes of it then.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.calls.lock().broken
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.closing.store(true, Ordering::Relaxed);
        if !self.is_broken() {
            let limit = shared.timeout.min(GOODBYE);
            // If it does not keep to the limit, it keeps to the timeout.
            let _ = shared.stream.set_write_timeout(Some(limit));
            // The session ends without it, too, only later.
            let _ = shared.call(&About::default(), &Request::Goodbye(Empty), limit);
        }
        shared.fail(&Break::Closed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a thread of the connection panicked");
            }
        }
    }
}
