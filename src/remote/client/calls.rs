// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests of many threads, and their replies in any order, over a line that may break.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use tracing::{debug, info, warn};

use super::connection::{About, Answer};
use super::epoch::{self, Epoch, invalidation_inward, request_outward};
use super::figures::Counts;
use super::greeting::{Disconnected, Target};
use super::keeper::Duties;
use super::kept::Kept;
use super::line::{Dialed, Line, Reader, dial};
use crate::control::Remote;
use crate::ebpf::boot_time;
use crate::remote::wire::message::{HelloReply, SessionId, Wanted};
use crate::remote::wire::{Flags, Header, Kind, Request, WireError};

/// HELLO has number 1 and AUTHENTICATE 2.
pub(super) const FIRST: u64 = 3;

/// How often a READ is asked again, of which no whole answer has come. It changes nothing, and nobody has seen a byte.
pub(super) const AGAIN: u32 = 2;

/// How soon a line that broke is tried again: at first, and after many failures.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Why a line is of no more use.
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

/// What somebody hears who waits for a reply.
#[derive(Debug)]
pub(super) enum Heard {
    Answer(Answer),
    /// There is another line, and the session goes on: the request may not have arrived.
    Again,
}

/// Who waits for a reply: what was asked, and where the answer goes.
#[derive(Debug)]
struct Waiting {
    asked: Header,
    /// When, ns since boot.
    at: u64,
    /// The line that it was last put on.
    line: u64,
    /// Answers whose payload was not what had been sent.
    damaged: u32,
    hear: Sender<Heard>,
}

#[derive(Debug)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// When the server has last said something.
    heard: Instant,
    /// None while there is no way to the server.
    line: Option<Arc<Line>>,
    /// Since when there is none.
    down: Instant,
    /// Requests that may wait for replies at the same time.
    most: usize,
    session: SessionId,
    epoch: Epoch,
    /// The session's server reads by node.
    reads_nodes: bool,
    lines: u64,
    /// Whoever had the connection has let it go.
    over: bool,
}

impl Calls {
    /// Somebody waits for the reply to what is about to be put on a line.
    fn wait_for(&mut self, asked: Header, line: &Line) -> Receiver<Heard> {
        let (hear, heard) = channel();
        let waiting = Waiting {
            asked,
            at: boot_time(),
            line: line.number,
            damaged: 0,
            hear,
        };
        self.waiting.insert(asked.request, waiting);
        heard
    }
}

/// How long the server holds to what it says.
fn lease(hello: &HelloReply) -> Duration {
    Duration::from_millis(hello.lease_ms.into())
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
            | Kind::SetLock
    )
}

/// Whether nobody needs the answer once the line is gone: what is open goes with the session, and
/// nobody waits for it but an unmounted mount's end.
fn goes_with_the_line(kind: Kind) -> bool {
    matches!(kind, Kind::Release | Kind::Releasedir)
}

/// What the connection and its two threads have in common.
///
/// Lock order: none. Each of `calls`, `duties`, `kept` and a line's writer is taken while none of the others is held.
#[derive(Debug)]
pub(super) struct Shared {
    calls: Mutex<Calls>,
    /// There is a line, or room for one more who waits, or it is over.
    changed: Condvar,
    pub(super) duties: Duties,
    /// What the kernel keeps of the answers.
    pub(super) kept: Kept,
    pub(super) counts: Counts,
    /// What the kernel was promised: how long an answer may be kept at most.
    keep_ms: Option<u32>,
    pub(super) timeout: Duration,
    disconnected: Disconnected,
}

/// A request that was put on a line.
#[derive(Debug)]
struct Sent<'p> {
    header: Header,
    payload: Cow<'p, [u8]>,
    heard: Receiver<Heard>,
}

impl Shared {
    /// A session that begins, on the line that was dialed for it.
    pub(super) fn begin(dialed: Dialed, target: &Target) -> (Self, Arc<Line>, Reader) {
        let hello = dialed.hello.clone();
        let kept = Kept::new(lease(&hello), dialed.asked);
        let (line, reader) = dialed.into_line(1, 0, target.timeout);
        let line = Arc::new(line);
        let shared = Self {
            calls: Mutex::new(Calls {
                next: FIRST,
                waiting: HashMap::new(),
                heard: Instant::now(),
                line: Some(Arc::clone(&line)),
                down: Instant::now(),
                most: usize::from(hello.requests.max(1)),
                session: hello.session,
                epoch: 0,
                reads_nodes: hello.reads_nodes,
                lines: 1,
                over: false,
            }),
            changed: Condvar::new(),
            duties: Duties::default(),
            kept,
            counts: Counts::default(),
            keep_ms: hello.keep_ms,
            timeout: target.timeout,
            disconnected: target.disconnected,
        };
        (shared, line, reader)
    }

    /// Takes what comes, over this line and those after it, until it is over.
    pub(super) fn run(&self, line: Arc<Line>, reader: Reader, target: &Target) {
        let mut current = Some((line, reader));
        while let Some((line, reader)) = current {
            let reason = self.receive(&line, reader);
            self.fail(&line, &reason);
            current = self.reconnect(target);
        }
    }

    /// It is over: nobody connects again.
    pub(super) fn end(&self) {
        self.calls.lock().over = true;
        self.changed.notify_all();
        self.duties.end();
    }

    /// This line is of no more use, whatever the reason. Only the first reason counts.
    pub(super) fn fail(&self, line: &Line, reason: &Break) {
        let (gone, waiting, over) = {
            let mut calls = self.calls.lock();
            if calls
                .line
                .as_ref()
                .is_none_or(|current| current.number != line.number)
            {
                return;
            }
            calls.line = None;
            calls.down = Instant::now();
            let waiting = calls.waiting.len();
            // Their receivers see that nobody answers.
            let gone = match self.disconnected == Disconnected::Fail || calls.over {
                true => std::mem::take(&mut calls.waiting),
                false => {
                    let gone = |_: &u64, waiting: &mut Waiting| goes_with_the_line(waiting.asked.kind);
                    calls.waiting.extract_if(gone).collect()
                }
            };
            (gone, waiting, calls.over)
        };
        match over {
            true => debug!(%reason, "the connection to the server has ended"),
            false => warn!(%reason, requests = waiting, "the connection to the server is lost"),
        }
        // What nobody would hear the end of is not current any more.
        self.kept.void();
        line.cut();
        self.changed.notify_all();
        drop(gone);
    }

    /// The way to the server, now or soon.
    fn line(&self, kind: Kind) -> Result<Arc<Line>, Errno> {
        let mut calls = self.calls.lock();
        loop {
            if calls.over {
                return Err(Errno::EIO);
            }
            if let Some(line) = &calls.line {
                return Ok(Arc::clone(line));
            }
            if self.disconnected == Disconnected::Fail || goes_with_the_line(kind) {
                return Err(Errno::EIO);
            }
            let until = calls.down + self.timeout;
            if until <= Instant::now() {
                return Err(Errno::ETIMEDOUT);
            }
            self.changed.wait_until(&mut calls, until);
        }
    }

    /// How it stands.
    pub(super) fn state(&self) -> Remote {
        let (connected, connections) = {
            let calls = self.calls.lock();
            (calls.line.is_some(), calls.lines)
        };
        let [round_trips, filled, copied, spooled] = self.counts.all();
        let spool = self.kept.spool.spool().map(|spool| spool.figures());
        Remote {
            connected,
            connections,
            lease_left: self.kept.left().as_secs_f64(),
            round_trips,
            filled,
            copied,
            spooled,
            spool,
        }
    }

    /// The session that there is now, if there is a line.
    pub(super) fn session(&self) -> Option<(SessionId, Epoch)> {
        let calls = self.calls.lock();
        calls.line.as_ref().map(|_| (calls.session, calls.epoch))
    }

    /// Whether the server can be asked to read this node as it is, without a handle.
    pub(super) fn reads_node(&self, node: u64) -> bool {
        let calls = self.calls.lock();
        calls.line.is_some() && calls.reads_nodes && epoch::is_known(node, calls.epoch)
    }

    /// The line, if there is one.
    pub(super) fn current(&self) -> Option<Arc<Line>> {
        self.calls.lock().line.clone()
    }

    pub(super) fn is_over(&self) -> bool {
        self.calls.lock().over
    }

    /// Until there is a line, or it is over, or for so long.
    pub(super) fn wait_for_line(&self, pause: Duration) {
        let mut calls = self.calls.lock();
        if calls.line.is_none() && !calls.over {
            self.changed.wait_for(&mut calls, pause);
        }
    }

    /// Puts a frame on a line; if that breaks over it, `EIO`.
    fn write(&self, line: &Line, header: &Header, payload: &[u8]) -> Result<(), Errno> {
        line.write(header, payload).map_err(|error| match error {
            Ok(errno) => errno,
            Err(reason) => {
                self.fail(line, &reason);
                Errno::EIO
            }
        })
    }

    /// Sends what has no reply.
    pub(super) fn tell(&self, line: &Line, number: Option<u64>, request: &Request<'_>) -> Result<(), Errno> {
        let number = number.unwrap_or_else(|| self.number());
        let payload = request.payload().map_err(|error| error.errno())?;
        self.write(line, &Header::request(request.kind(), number), &payload)
    }

    fn number(&self) -> u64 {
        let mut calls = self.calls.lock();
        let number = calls.next;
        // 2^64 of them pass over no connection.
        calls.next = calls.next.wrapping_add(1);
        number
    }

    /// PING on this line. Whether there is a way back yet, its answer tells.
    pub(super) fn ping(&self, line: &Line) -> Result<Receiver<Heard>, Errno> {
        let header = Header::request(Kind::Ping, self.number());
        let heard = self.calls.lock().wait_for(header, line);
        self.write(line, &header, &[]).inspect_err(|_| {
            self.calls.lock().waiting.remove(&header.request);
        })?;
        Ok(heard)
    }

    /// Sends a request.
    fn send<'p>(&self, about: &About, request: &'p Request<'p>) -> Result<Sent<'p>, Errno> {
        let (line, header, payload, heard) = loop {
            let line = self.line(request.kind())?;
            let (about, outward) = request_outward(about, request, line.epoch)?;
            let payload = match outward {
                Cow::Borrowed(request) => request.payload(),
                Cow::Owned(request) => request.payload().map(|bytes| bytes.into_owned().into()),
            };
            let payload = payload.map_err(|error| error.errno())?;
            let mut calls = self.calls.lock();
            let deadline = Instant::now() + self.timeout;
            while !calls.over && calls.waiting.len() >= calls.most {
                if self.changed.wait_until(&mut calls, deadline).timed_out() {
                    return Err(Errno::ETIMEDOUT);
                }
            }
            // Of one that has broken meanwhile nobody would hear, and the numbers are its session's only.
            if calls
                .line
                .as_ref()
                .is_none_or(|current| current.number != line.number)
            {
                continue;
            }
            let header = Header {
                flags: about.flags,
                node: about.node,
                handle: about.handle,
                offset: about.offset,
                file_version: about.file_version,
                ..Header::request(request.kind(), calls.next)
            };
            calls.next = calls.next.wrapping_add(1);
            let heard = calls.wait_for(header, &line);
            break (line, header, payload, heard);
        };
        let sent = Sent {
            header,
            payload,
            heard,
        };
        match line.write(&sent.header, &sent.payload) {
            Ok(()) => {}
            Err(Ok(errno)) => {
                self.forget_call(&sent);
                return Err(errno);
            }
            Err(Err(reason)) => {
                self.fail(&line, &reason);
                self.send_again(&sent)?;
            }
        }
        Ok(sent)
    }

    /// Nobody waits for it any more.
    fn forget_call(&self, sent: &Sent<'_>) {
        self.calls.lock().waiting.remove(&sent.header.request);
        self.changed.notify_all();
    }

    /// Puts it on the line that there is now, if it was not yet put on that one.
    fn send_again(&self, sent: &Sent<'_>) -> Result<(), Errno> {
        loop {
            let line = {
                let mut calls = self.calls.lock();
                let Some(line) = calls.line.clone() else {
                    return Ok(());
                };
                match calls.waiting.get_mut(&sent.header.request) {
                    Some(waiting) if waiting.line != line.number => waiting.line = line.number,
                    // It is on this line already, or was answered, or given up.
                    _ => return Ok(()),
                }
                line
            };
            match line.write(&sent.header, &sent.payload) {
                Ok(()) => return Ok(()),
                Err(Ok(errno)) => return Err(errno),
                Err(Err(reason)) => self.fail(&line, &reason),
            }
        }
    }

    /// The answer, and whether it may be kept. If not, the kernel is kept from it.
    pub(super) fn call(
        &self,
        about: &About,
        request: &Request<'_>,
        timeout: Duration,
    ) -> (Result<Answer, Errno>, bool) {
        let answer = match self.ask(about, request, timeout) {
            Ok(answer) => answer,
            // Nobody knows what the server has done, or would have said.
            Err(errno) => {
                self.kept.not_to_be_kept(about, request);
                return (Err(errno), false);
            }
        };
        let keep = answer.header.flags.contains(Flags::KEEP);
        match request {
            Request::Statfs(_) => self.duties.space_was_told(),
            _ if !keep => self.kept.not_to_be_kept(about, request),
            _ => {}
        }
        (answer.header.error().map_or(Ok(answer), Err), keep)
    }

    /// The answer, whatever its status.
    fn ask(&self, about: &About, request: &Request<'_>, timeout: Duration) -> Result<Answer, Errno> {
        let kind = request.kind();
        let sent = self.send(about, request)?;
        let mut left = timeout;
        loop {
            match sent.heard.recv_timeout(left) {
                Ok(Heard::Answer(answer)) => return Ok(answer),
                Ok(Heard::Again) => {
                    self.send_again(&sent).inspect_err(|_| self.forget_call(&sent))?;
                    left = timeout;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Errno::EIO),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let (line, down, silent) = {
                let calls = self.calls.lock();
                (calls.line.clone(), calls.down.elapsed(), calls.heard.elapsed())
            };
            left = match &line {
                None => timeout.saturating_sub(down),
                // The disk may have to write all that there is. That the server is there, its other answers tell:
                // to a PING, if nothing else is asked.
                Some(_) if takes_its_time(kind) => timeout.saturating_sub(silent),
                Some(_) => Duration::ZERO,
            };
            if left.is_zero() {
                self.forget_call(&sent);
                if let Some(line) = line {
                    self.fail(&line, &Break::Silent { kind, timeout });
                }
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// Hands a frame that came over a line to whoever waits for it.
    fn dispatch(&self, line: &Line, answer: Answer) -> Result<(), Break> {
        let header = &answer.header;
        if !header.is_reply() {
            // The server sends no other request.
            let Request::Invalidate(mut invalidate) = Request::decode(header, &answer.payload)? else {
                return Err(Break::Stray(header.kind));
            };
            for what in &mut invalidate.what {
                invalidation_inward(what, line.epoch);
            }
            // Here, in the order of the frames: an answer behind it may be kept again.
            self.kept.invalidate(&invalidate);
            return match self.duties.acknowledge(line.number, header.request) {
                true => Ok(()),
                false => Err(Break::Flooded),
            };
        }
        let waiting = {
            let mut calls = self.calls.lock();
            calls.heard = Instant::now();
            let known = header.request >= FIRST && header.request < calls.next;
            let again = calls.lines > 1;
            match calls.waiting.entry(header.request) {
                Entry::Occupied(waiting) => waiting.remove(),
                // What was sent again may be answered twice, and who has lost his patience is answered late.
                Entry::Vacant(_) if again && known => return Ok(()),
                Entry::Vacant(_) => return Err(Break::Stray(header.kind)),
            }
        };
        self.changed.notify_all();
        self.counts.answered();
        self.kept.renewed(waiting.at);
        if !header.is_reply_to(&waiting.asked) {
            return Err(Break::Stray(header.kind));
        }
        // Nobody may be waiting any more; it is an answer all the same.
        let _ = waiting.hear.send(Heard::Answer(answer));
        Ok(())
    }

    /// What came in answer to a READ is not what was sent. The next line is asked again, but not for ever.
    fn damaged(&self, asked: u64) {
        let mut calls = self.calls.lock();
        let Some(waiting) = calls.waiting.get_mut(&asked) else {
            return;
        };
        waiting.damaged += 1;
        if waiting.damaged > AGAIN {
            // Its receiver sees that nobody answers.
            calls.waiting.remove(&asked);
            self.changed.notify_all();
        }
    }

    fn receive(&self, line: &Line, mut reader: Reader) -> Break {
        loop {
            let arriving = match reader.read_header() {
                Ok(Some(arriving)) => arriving,
                Ok(None) => return Break::Ended,
                Err(error) => return error.into(),
            };
            let header = *arriving.header();
            // One buffer each: the payload is the answer's.
            let mut payload = Vec::new();
            let footer = match arriving.read(&mut payload) {
                Ok(frame) => frame.footer,
                Err(error) => {
                    if header.kind == Kind::Read && matches!(error, WireError::PayloadCrc) {
                        self.damaged(header.request);
                    }
                    return error.into();
                }
            };
            let answer = Answer {
                header,
                payload,
                file_version: footer.file_version,
                epoch: line.epoch,
            };
            if let Err(reason) = self.dispatch(line, answer) {
                return reason;
            }
        }
    }

    /// From here on there is a line. If it is for another session, all that was asked in the old one is lost.
    fn install(&self, dialed: Dialed) -> Option<(Arc<Line>, Reader)> {
        let (hello, asked) = (dialed.hello.clone(), dialed.asked);
        let allowed = hello.keep_ms.unwrap_or(u32::MAX) >= self.keep_ms.unwrap_or(u32::MAX);
        if !allowed {
            warn!("the server allows less to be kept than before: nothing is, until it is mounted anew");
        }
        let lease = if allowed { lease(&hello) } else { Duration::ZERO };
        self.kept.begins(lease, asked);
        let mut calls = self.calls.lock();
        let resumed = hello.session == calls.session;
        if !resumed {
            calls.epoch = epoch::next(calls.epoch)?;
        }
        calls.session = hello.session;
        calls.reads_nodes = hello.reads_nodes;
        calls.most = usize::from(hello.requests.max(1));
        calls.lines += 1;
        calls.heard = Instant::now();
        let (line, reader) = dialed.into_line(calls.lines, calls.epoch, self.timeout);
        let line = Arc::new(line);
        calls.line = Some(Arc::clone(&line));
        let lost = match resumed {
            true => {
                for waiting in calls.waiting.values() {
                    // Whoever has gone needs nothing.
                    let _ = waiting.hear.send(Heard::Again);
                }
                HashMap::new()
            }
            false => std::mem::take(&mut calls.waiting),
        };
        drop(calls);
        match resumed {
            true => info!("the server is there again"),
            false => warn!(
                requests = lost.len(),
                "the server is there again, and knows nothing of what was: files that are open have to be opened anew"
            ),
        }
        self.changed.notify_all();
        Some((line, reader))
    }

    /// Tries until there is a line again. None if nobody wants one any more.
    fn reconnect(&self, target: &Target) -> Option<(Arc<Line>, Reader)> {
        let mut pause = PAUSE.0;
        loop {
            let session = {
                let mut calls = self.calls.lock();
                if !calls.over {
                    self.changed.wait_for(&mut calls, pause);
                }
                if calls.over {
                    return None;
                }
                calls.session
            };
            match dial(target, Wanted::Resumed(session)) {
                Ok(dialed) => return self.install(dialed),
                Err(error) => debug!(%error, "the server is not there"),
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
