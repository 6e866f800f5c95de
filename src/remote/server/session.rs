// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requests of a client that is served.

use std::io::{self, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::answers::{Answer, answer};
use super::done::Done;
use super::greeting::{Greeted, Part};
use super::leases::{self, Change, Leases, Thing};
use super::prompt::Prompt;
use super::sessions::Common;
use super::touches::{self, inodes, names, told};
use super::version::version;
use super::{FEW, Options, Shared};
use crate::abi::NodeId;
use crate::ebpf::Absent;
use crate::remote::Stream;
use crate::remote::bare;
use crate::remote::wire::message::{Entry, Invalidate, Invalidation, Renewed};
use crate::remote::wire::{
    Flags, FrameReader, FrameWriter, Header, Kind, Reply, Request, Sealed, Side, WireError,
};
use crate::sys::process::has_descriptors;

/// Descriptors that are left for what requests need for a moment, whoever has the others.
const MOMENT: u64 = 16;

/// Requests that wait for a thread. With those that are being answered it bounds what a client makes us hold.
pub const WAITING: usize = 16;

/// A request as it came.
type Job = (Header, Vec<u8>);

/// The direction from the client to us.
type Reader<'s> = FrameReader<BufReader<&'s Stream>>;

/// The direction from us to the client.
#[derive(Debug)]
pub struct Line {
    stream: Arc<Stream>,
    /// It has joined a session for READs, one after the other, and what is written to it goes to the client: nobody here
    /// has to encrypt it.
    pub sends_files: bool,
    /// Locked for one frame, and nothing else is locked meanwhile.
    writer: Mutex<FrameWriter<Prompt>>,
}

impl Line {
    fn send(&self, header: &Header, payload: &[u8]) -> Result<(), WireError> {
        self.writer.lock().write_frame(header, 0, &[payload])
    }

    /// Sends what a file of that version holds.
    pub fn send_data(&self, header: &Header, version: u64, crc: u32, data: &[u8]) -> Result<(), WireError> {
        self.writer.lock().write_data(header, version, crc, data)
    }

    /// The same, where `send` puts it on the stream, between header and footer. After an error the stream is of no more
    /// use.
    pub fn send_file(
        &self,
        header: &Header,
        version: u64,
        crc: u32,
        send: impl FnOnce(&mut Prompt, &Sealed) -> io::Result<()>,
    ) -> Result<(), WireError> {
        let mut writer = self.writer.lock();
        let sealed = writer.seal(header, version, crc)?;
        Ok(send(writer.get_mut(), &sealed)?)
    }

    /// Sends a reply that must not get lost. When it is sent again, it has no version.
    fn conclude(&self, done: &Done, header: &Header, version: u64, payload: &[u8]) -> Result<(), WireError> {
        let mut writer = self.writer.lock();
        // In the order in which they are sent.
        done.sends(header, payload);
        writer.write_frame(header, version, &[payload])
    }
}

impl leases::Line for Line {
    fn tell(&self, number: u64, what: Vec<Invalidation>) -> Result<(), WireError> {
        let invalidate = Request::Invalidate(Invalidate { what });
        self.send(&Header::request(Kind::Invalidate, number), &invalidate.payload()?)
    }

    fn cut(&self) {
        // What is down already needs no more.
        let _ = self.stream.shutdown();
    }
}

/// A connection, and what its session has.
pub struct Session<'s> {
    pub shared: &'s Shared,
    pub common: Arc<Common>,
    pub line: Arc<Line>,
}

/// Both directions of a connection from now on.
fn frames<'s>(
    options: &Options,
    greeted: &Greeted<'_>,
    stream: &'s Arc<Stream>,
    encrypts: bool,
) -> io::Result<(Reader<'s>, Arc<Line>)> {
    // A small request is one read.
    let mut reader = FrameReader::new(BufReader::new(&**stream), Side::Client);
    let prompt = Prompt::new(Arc::clone(stream), options.sending);
    let mut writer = FrameWriter::new(prompt, Side::Server);
    reader.set_sizes(greeted.sizes);
    writer.set_sizes(greeted.sizes);
    if let Some(key) = &greeted.key {
        reader.sign_with(key);
        writer.sign_with(key);
    }
    stream.set_read_timeout(Some(options.silence))?;
    stream.set_write_timeout(Some(options.sending))?;
    let line = Line {
        stream: Arc::clone(stream),
        sends_files: matches!(greeted.part, Part::Joined(_)) && !encrypts,
        writer: Mutex::new(writer),
    };
    Ok((reader, Arc::new(line)))
}

/// Answers, until the client says goodbye, is gone, says nothing for too long, or nonsense. A session that has not been said
/// goodbye to may be gone on with. `encrypts`: a thread of this process takes what is written.
pub fn serve(
    shared: &Shared,
    greeted: Greeted<'_>,
    stream: &Arc<Stream>,
    encrypts: bool,
) -> io::Result<Option<Arc<Common>>> {
    let (mut reader, line) = frames(&shared.options, &greeted, stream, encrypts)?;
    let common = match &greeted.part {
        Part::Joined(member) => {
            let session = Session {
                shared,
                common: Arc::clone(&member.common),
                line,
            };
            tell_end(session.answer_reads(&mut reader));
            return Ok(None);
        }
        Part::Own { begun, before } => {
            if let Some(before) = before {
                shared.leases.left(*before);
            }
            if !begun.common.share.begins() {
                tracing::warn!("a client is not served: there are too few descriptors");
                return Ok(None);
            }
            Arc::clone(&begun.common)
        }
        Part::Resumed(common) => Arc::clone(common),
    };
    if !common.is_served(stream, shared.options.sending) {
        tracing::info!("a client is not served: its session cannot go on yet");
        return Ok(None);
    }
    // What it was told on the connection before it has forgotten.
    shared.leases.left(common.id);
    let keeps = greeted.keeps;
    common.held_by(keeps.then(|| shared.leases.holder(common.id, Arc::clone(&line) as _)));
    common.locks.may_wait(true);
    let session = Session {
        shared,
        common: Arc::clone(&common),
        line,
    };
    if answer_all(&session, &mut reader) {
        shared.sessions.end(&common);
        return Ok(None);
    }
    common.breaks();
    Ok(Some(common))
}

/// Answers with as many threads as there are requests at a time; whether it was said goodbye.
fn answer_all(session: &Session<'_>, reader: &mut Reader<'_>) -> bool {
    let options = &session.shared.options;
    let (jobs, waiting) = sync_channel::<Job>(WAITING);
    let waiting = Mutex::new(waiting);
    let (free, mut threads) = (AtomicUsize::new(0), 0);
    thread::scope(|scope| {
        let end = session.listen(reader, |job| {
            // Only this thread takes from those that are free, so each is counted on once. One that waits for a
            // disk keeps nobody waiting but who comes when all are there.
            let taken = |n: usize| n.checked_sub(1);
            let is_free = free
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, taken)
                .is_ok();
            if !is_free && threads < options.threads.max(1) {
                let thread = thread::Builder::new().name("extfuse-answer".into());
                match thread.spawn_scoped(scope, || session.work(&waiting, &free)) {
                    Ok(_) => threads += 1,
                    Err(error) => tracing::warn!("a client has a thread less: {error}"),
                }
            }
            // Without a single one nobody would ever answer.
            threads > 0 && jobs.send(job).is_ok()
        });
        let goodbye = tell_end(end);
        // Changes by others wait for it no longer than its lease.
        if let Some(holder) = session.common.holder() {
            holder.ended(goodbye);
        }
        session.common.locks.may_wait(false);
        // No frame will be understood from here on, and none be waited for; what was asked is still done.
        drop(jobs);
        goodbye
    })
}

/// How the frames of a client have ended.
enum End {
    Goodbye,
    Gone,
}

/// Whether it was said goodbye.
fn tell_end(end: Result<End, WireError>) -> bool {
    match end {
        Ok(End::Goodbye) => return true,
        Ok(End::Gone) => tracing::debug!("a client has gone"),
        Err(WireError::Idle) => tracing::info!("a client has said nothing for too long"),
        Err(error) => tracing::warn!("a client was sent away: {error}"),
    }
    false
}

impl Session<'_> {
    /// Of a connection that has joined: one READ after the other.
    fn answer_reads(&self, reader: &mut Reader<'_>) -> Result<End, WireError> {
        let mut buffer = Vec::new();
        loop {
            let Some(frame) = reader.read_frame(&mut buffer)? else {
                return Ok(End::Gone);
            };
            let header = frame.header;
            match header.kind {
                Kind::Read => self.answer(&header, frame.payload)?,
                Kind::Ping => self.send(&header.reply(), &Reply::Ping(Default::default()))?,
                Kind::Goodbye => {
                    self.send(&header.reply(), &Reply::Goodbye(Default::default()))?;
                    return Ok(End::Goodbye);
                }
                kind => return Err(WireError::NotThat(kind)),
            }
        }
    }

    fn listen(
        &self,
        reader: &mut Reader<'_>,
        mut hand_over: impl FnMut(Job) -> bool,
    ) -> Result<End, WireError> {
        loop {
            let mut buffer = Vec::new();
            let Some(frame) = reader.read_frame(&mut buffer)? else {
                return Ok(End::Gone);
            };
            let header = frame.header;
            if let Some(holder) = self.common.holder() {
                holder.heard();
            }
            match header.kind {
                Kind::Ping => self.send(&header.reply(), &Reply::Ping(Default::default()))?,
                Kind::Renew => {
                    let lease_ms = millis(self.shared.options.lease);
                    self.send(&header.reply(), &Reply::Renew(Renewed { lease_ms }))?;
                }
                Kind::Goodbye => {
                    self.send(&header.reply(), &Reply::Goodbye(Default::default()))?;
                    return Ok(End::Goodbye);
                }
                Kind::Invalidated => {
                    if let Some(holder) = self.common.holder() {
                        holder.acknowledged(header.request);
                    }
                }
                Kind::Hello | Kind::Authenticate => return Err(WireError::NotThat(header.kind)),
                // Here, so that it needs none of the places that are for what has a reply.
                Kind::Forget => self.forget(&header, &buffer),
                _ => match self.common.done.find(&header) {
                    Some((reply, payload)) => self.line.conclude(&self.common.done, &reply, 0, &payload)?,
                    None if hand_over((header, buffer)) => {}
                    None => return Ok(End::Gone),
                },
            }
        }
    }

    fn send(&self, header: &Header, reply: &Reply<'_>) -> Result<(), WireError> {
        self.line.send(header, &reply.payload()?)
    }

    fn forget(&self, header: &Header, payload: &[u8]) {
        let nodes = match Request::decode(header, payload) {
            Ok(Request::Forget(forget)) => forget.nodes,
            Ok(_) => return,
            Err(error) => return tracing::warn!("a request cannot be understood: {error}"),
        };
        for forgotten in nodes {
            let node = NodeId(forgotten.node);
            self.common.stack.forget(node, forgotten.nlookup);
            if let Some(holder) = self.common.holder()
                && self.common.stack.inode(node).is_err()
            {
                holder.forget(forgotten.node);
            }
        }
        self.common.count();
    }

    fn work(&self, waiting: &Mutex<Receiver<Job>>, free: &AtomicUsize) {
        loop {
            // The lock is held by who waits: the others wait for it.
            let job = waiting.lock().recv();
            let Ok((header, payload)) = job else { return };
            if let Err(error) = self.answer(&header, &payload) {
                tracing::info!("a reply did not reach its client: {error}");
                // Nobody can be answered any more: the requests that are still to come are not to be done.
                let _ = self.line.stream.shutdown();
            }
            free.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Announces what the request changes, and takes down what its reply tells; whether that may be kept.
    fn begin(&self, header: &Header, request: &Request<'_>) -> Result<(Option<Change<'_>>, bool), Errno> {
        let leases: &Leases = &self.shared.leases;
        let by = self.common.holder();
        let patience = self.shared.options.sending;
        let change = match touches::changes(request) {
            true => Some(leases.change(
                by.as_ref(),
                names(&self.common.stack, header, request)?,
                patience,
                || inodes(&self.common.stack, header, request),
            )?),
            false => None,
        };
        let Some(holder) = by else {
            return Ok((change, false));
        };
        let keep = match told(&self.common.stack, header, request)? {
            Some((node, thing)) => holder.note(
                node,
                &thing,
                change.as_ref().map_or(&[], |change| change.things()),
            ),
            None => false,
        };
        Ok((change, keep))
    }

    /// An entry is about to be told: its attributes once more, now that it is known whose they are. Whether they may
    /// be kept, and, if so, what is known of a node without extended attributes.
    fn entry(&self, entry: &mut Entry, change: Option<&Change<'_>>) -> Result<(bool, Absent), Errno> {
        let Some(holder) = self.common.holder() else {
            return Ok((false, Absent::UNKNOWN));
        };
        let node = NodeId(entry.node);
        let thing = Thing::Of(self.common.stack.inode(node)?, leases::Part::Attributes);
        let keep = holder.note(entry.node, &thing, change.map_or(&[], |change| change.things()));
        entry.attr = (&self.common.stack.getattr(node)?).into();
        let bare = match keep {
            true => self.common.stack.bare(node)?,
            false => Absent::UNKNOWN,
        };
        Ok((keep, bare))
    }

    /// Whether the client may have one more of what the request would give it.
    fn has_room(&self, header: &Header, request: &Request<'_>) -> Result<(), Errno> {
        let (options, stack, locks) = (&self.shared.options, &self.common.stack, &self.common.locks);
        let room = match request {
            Request::Open(_) | Request::Opendir(_) => stack.open_ones() < options.open,
            Request::Create(_) => stack.open_ones() < options.open && stack.known() < options.nodes,
            Request::Lookup(_) | Request::Mknod(_) | Request::Mkdir(_) | Request::Symlink(_) => {
                stack.known() < options.nodes
            }
            // Of these it may have as many as `locks` says.
            Request::SetLock(wish) if locks.is_new(header, wish) => true,
            _ => return Ok(()),
        };
        // Nothing has been done yet: one that comes too late could not be asked for again.
        let room = room && self.common.share.has_room(self.common.count());
        if !room {
            tracing::debug!("a client has as many files as it may");
        }
        let room = room && self.has_descriptors();
        room.then_some(()).ok_or(Errno::ENFILE)
    }

    /// Whether there are descriptors for one more, whoever has the others.
    fn has_descriptors(&self) -> bool {
        let has = has_descriptors(&*self.line.stream, MOMENT);
        if !has {
            tracing::debug!("there are no descriptors");
            self.shared.send_strangers_away(FEW);
        }
        has
    }

    fn answer(&self, header: &Header, payload: &[u8]) -> Result<(), WireError> {
        let request = match Request::decode(header, payload) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!("a request cannot be understood: {error}");
                return self.refuse(header, error.errno() as u32, false);
            }
        };
        let mut request = request;
        let allowed = self
            .has_room(header, &request)
            .and_then(|()| self.shared.options.ids.request(&mut request));
        if let Err(errno) = allowed {
            return self.refuse(header, errno as u32, false);
        }
        let (change, mut keep) = match self.begin(header, &request) {
            Ok(begun) => begun,
            Err(errno) => return self.refuse(header, errno as u32, false),
        };
        if let Request::Read(read) = &request {
            return self.read(header, read.size, keep);
        }
        let now = SystemTime::now();
        let mut answered = answer(&self.common.stack, &self.common.locks, header, request);
        if let Ok(Answer { reply, number }) = &mut answered
            && let Some(entry) = reply.entry_mut()
        {
            match self.entry(entry, change.as_ref()) {
                Ok((both, bare)) => {
                    keep &= both;
                    *number = bare::number(bare);
                }
                Err(errno) => answered = Err(errno),
            }
        }
        drop(change);
        // What this gave, or gave back, before anybody hears of it and asks for more.
        self.common.count();
        match answered {
            Ok(Answer { mut reply, number }) => {
                if let Some(attr) = reply.attr_mut() {
                    self.shared.options.ids.attr(attr);
                }
                let header = Header {
                    offset: number,
                    ..reply_to(header, keep)
                };
                let reply = reply.as_reply();
                let version = match &reply {
                    Reply::Getattr(attr) => version(attr, now),
                    _ => 0,
                };
                self.line
                    .conclude(&self.common.done, &header, version, &reply.payload()?)
            }
            Err(errno) => self.refuse(header, errno as u32, keep),
        }
    }

    pub fn refuse(&self, header: &Header, errno: u32, keep: bool) -> Result<(), WireError> {
        let header = Header {
            status: errno.min(511),
            ..reply_to(header, keep)
        };
        self.line.conclude(&self.common.done, &header, 0, &[])
    }
}

pub fn reply_to(header: &Header, keep: bool) -> Header {
    let mut reply = header.reply();
    reply.flags.set(Flags::KEEP, keep);
    reply
}

/// Milliseconds, as messages have them.
pub fn millis(duration: Duration) -> u32 {
    duration.as_millis().try_into().unwrap_or(u32::MAX)
}
