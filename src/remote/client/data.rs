// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections for data: a READ of many bytes goes over one of its own, whose payload the module takes from the
//! socket into the request's pages. A small one takes such a connection if there is one that has nothing to do: who asks
//! is then who hears the answer, and no other thread is woken.
//!
//! They have joined the session of the mount's own connection, and end with it. A READ has one to itself, so that its
//! payload is where the module expects it, and nothing waits behind it. What goes wrong before
//! a payload has begun costs nothing: the READ is asked over the mount's own connection then. One whose payload breaks off,
//! or is not what was sent, is asked again over another, some times: nobody has seen any of it. Only one that the server
//! owes for too long is given up.

use std::time::{Duration, Instant};

use fuser::ReplyData;
use nix::errno::Errno;
use parking_lot::Mutex;
use tracing::{debug, warn};

use super::calls::{AGAIN, Shared};
use super::connection::About;
use super::epoch::{Epoch, request_outward};
use super::greeting::Target;
use super::line::{DataLine, dial};
use super::questions::{ask_again, data as data_of};
use crate::remote::wire::message::{Read, SessionId, Wanted};
use crate::remote::wire::{Body, Flags, Header, Kind, Request, WireError};
use crate::splice::{self, Channel, FuseBuf, FuseBufVec, ReplyError, Unanswered, Way};

/// From how many bytes on a READ is worth a connection that is made for it: below, nothing goes past us.
const FROM: u32 = splice::FILL_FROM as u32;

/// How many there are at the same time, at most.
const MOST: usize = 8;

/// How long it may take to have one. Meanwhile a READ waits, which has another way.
const CONNECTING: Duration = Duration::from_secs(3);

/// After one could not be had, how long nobody tries again.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Idle {
    session: SessionId,
    line: DataLine,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Idle>,
    /// Those that are in use.
    out: usize,
    not_before: Option<Instant>,
}

/// The connections for data of a mount.
#[derive(Debug)]
pub(super) struct Data {
    /// Where the server is, and little patience: it is there already.
    quickly: Target,
    timeout: Duration,
    pool: Mutex<Pool>,
}

/// One that is in use. It is closed unless it is [given back](Self::give_back).
struct Taken<'d> {
    data: &'d Data,
    session: SessionId,
    line: Option<DataLine>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut pool = self.data.pool.lock();
        pool.out -= 1;
        if let Some(line) = self.line.take() {
            let session = self.session;
            pool.idle.push(Idle { session, line });
        }
    }
}

/// What became of a READ.
pub(crate) enum Outcome {
    /// It was answered; with an error, that one.
    Answered(Result<(), Errno>),
    /// It was not, and is to be asked otherwise.
    Not(ReplyData),
}

/// A READ of the kernel's.
#[derive(Debug)]
pub(crate) struct Question<'q> {
    pub about: &'q About,
    /// Bytes.
    pub size: u32,
    /// fuser's number of it.
    pub unique: u64,
    /// Whether only so many bytes are an answer for the kernel; what else the server says is for
    /// [`call`](super::Connection::call) to find out.
    pub exact: bool,
}

impl Data {
    pub fn new(target: Target) -> Self {
        let timeout = target.timeout;
        Self {
            quickly: Target {
                timeout: timeout.min(CONNECTING),
                ..target
            },
            timeout,
            pool: Mutex::default(),
        }
    }

    /// One for this session and for so many bytes, and whether it has been in use before. None if there are too many,
    /// or none can be had.
    fn take(&self, session: SessionId, bytes: u32) -> Option<(Taken<'_>, DataLine, bool)> {
        let mut pool = self.pool.lock();
        // Those of an old one are closed already, by the server.
        pool.idle.retain(|idle| idle.session == session);
        if pool.out >= MOST || pool.not_before.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        let idle = pool.idle.pop();
        if idle.is_none() && bytes < FROM {
            return None;
        }
        pool.out += 1;
        drop(pool);
        let taken = Taken {
            data: self,
            session,
            line: None,
        };
        if let Some(idle) = idle {
            return Some((taken, idle.line, true));
        }
        let line = dial(&self.quickly, Wanted::Joined(session))
            .and_then(|dialed| dialed.into_data_line(self.timeout));
        match line {
            Ok(line) => Some((taken, line, false)),
            Err(error) => {
                debug!(%error, "no connection for data");
                self.pool.lock().not_before = Some(Instant::now() + PAUSE);
                None
            }
        }
    }

    /// The bytes of a READ, and the file's version. None if they are to be had otherwise, or not at all.
    pub fn fetch(
        &self,
        (session, epoch): (SessionId, Epoch),
        about: &About,
        size: u32,
        shared: &Shared,
    ) -> Option<(Vec<u8>, u64)> {
        let deadline = Instant::now() + self.timeout;
        let mut failures = 0;
        loop {
            let (mut taken, mut line, used) = self.take(session, size)?;
            match line.fetch(epoch, about, size, flags(failures)) {
                Ok(fetched) => {
                    taken.line = Some(line);
                    if fetched.is_some() {
                        shared.counts.answered();
                    }
                    return fetched;
                }
                Err(error) if used && !matches!(error, WireError::PayloadCrc | WireError::Idle) => {
                    debug!(%error, "a connection for data has ended");
                }
                Err(error) => {
                    warn!(%error, "a connection for data is lost");
                    failures += 1;
                    if failures > AGAIN || Instant::now() >= deadline {
                        return None;
                    }
                }
            }
        }
    }

    /// Asks, and answers the kernel through `channel`.
    pub fn read(
        &self,
        (session, epoch): (SessionId, Epoch),
        question: &Question<'_>,
        shared: &Shared,
        channel: &Channel,
        reply: ReplyData,
    ) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let read = splice::Read::new(question.unique, question.size).crc(true);
        let mut unanswered = Unanswered::new(read, reply);
        let mut failures = 0;
        loop {
            let Some((mut taken, mut line, used)) = self.take(session, question.size) else {
                return otherwise(question, shared, channel, unanswered);
            };
            let (tried, whole) = line.read(epoch, question, flags(failures), shared, channel, unanswered);
            taken.line = whole.then_some(line);
            unanswered = match tried {
                Tried::Answered(answered) => return Outcome::Answered(answered),
                // Those that were idle for too long the server has closed.
                Tried::Not(unanswered) if used && !whole => unanswered,
                Tried::Not(unanswered) => return otherwise(question, shared, channel, unanswered),
                Tried::Failed(unanswered, errno) => {
                    failures += 1;
                    let in_time = Instant::now() < deadline;
                    match errno {
                        _ if in_time && failures <= AGAIN => unanswered,
                        Errno::ECONNRESET if in_time => {
                            return otherwise(question, shared, channel, unanswered);
                        }
                        _ => {
                            unanswered.error(Errno::EIO);
                            return Outcome::Answered(Err(Errno::EIO));
                        }
                    }
                }
            };
        }
    }
}

/// The first time the server need not look at what it sends. If that was wrong, it has to know.
fn flags(failures: u32) -> Flags {
    match failures {
        0 => Flags::KNOWN_CRC,
        _ => Flags::empty(),
    }
}

/// What one connection made of a READ.
enum Tried {
    Answered(Result<(), Errno>),
    /// Nothing of an answer has come.
    Not(Unanswered),
    /// Something has, but not all (`ECONNRESET`), or not what was sent (`EBADMSG`).
    Failed(Unanswered, Errno),
}

/// There is no connection for data: whoever asks has another way. Where only a channel gives the kernel
/// an answer, that way is gone here.
fn otherwise(question: &Question<'_>, shared: &Shared, channel: &Channel, unanswered: Unanswered) -> Outcome {
    let unanswered = match unanswered.into_reply() {
        Ok(reply) => return Outcome::Not(reply),
        Err(unanswered) => unanswered,
    };
    let Question {
        about, size, exact, ..
    } = *question;
    let (answer, _) = shared.call(about, &Request::Read(Read { size }), shared.timeout);
    let answered = answer.map_err(ask_again).and_then(|answer| {
        let bytes = data_of(&answer, size)?;
        match exact && bytes.len() != size as usize {
            true => Err(Errno::EIO),
            false => Ok(bytes.to_vec()),
        }
    });
    match answered {
        Ok(bytes) => {
            let mut bufs = FuseBuf::memory(&bytes).into();
            let given = channel.answer(unanswered, &mut bufs, |_, _| Ok(()));
            // Otherwise nobody waits any more, or the kernel wants nothing: a reply that is dropped is EIO.
            if given.is_ok() {
                shared.counts.read(bytes.len() as u64, false);
            }
            Outcome::Answered(given.map_err(|_| Errno::EIO))
        }
        Err(errno) => {
            unanswered.error(errno);
            Outcome::Answered(Err(errno))
        }
    }
}

impl DataLine {
    /// Puts a READ on the line; None if it cannot be asked in this session.
    fn ask(
        &mut self,
        epoch: Epoch,
        about: &About,
        size: u32,
        flags: Flags,
    ) -> Result<Option<Header>, WireError> {
        let request = Request::Read(Read { size });
        let Ok((about, request)) = request_outward(about, &request, epoch) else {
            return Ok(None);
        };
        let header = Header {
            flags,
            node: about.node,
            handle: about.handle,
            offset: about.offset,
            file_version: about.file_version,
            ..Header::request(Kind::Read, self.number())
        };
        self.frames.write_frame(&header, 0, &[&request.payload()?])?;
        Ok(Some(header))
    }

    /// The bytes, and the file's version. None if they are not to be had; with an error the line is of no more use.
    fn fetch(
        &mut self,
        epoch: Epoch,
        about: &About,
        size: u32,
        flags: Flags,
    ) -> Result<Option<(Vec<u8>, u64)>, WireError> {
        let Some(asked) = self.ask(epoch, about, size, flags)? else {
            return Ok(None);
        };
        let arriving = self.reader.read_header()?.ok_or(WireError::Truncated)?;
        let header = *arriving.header();
        if !header.is_reply_to(&asked) || header.length > size {
            return Err(WireError::NotThat(header.kind));
        }
        let mut bytes = Vec::new();
        let version = arriving.read(&mut bytes)?.footer.file_version;
        Ok(header.error().is_none().then_some((bytes, version)))
    }

    /// Asks, and answers; and whether the next one can be asked here.
    fn read(
        &mut self,
        epoch: Epoch,
        question: &Question<'_>,
        flags: Flags,
        shared: &Shared,
        channel: &Channel,
        unanswered: Unanswered,
    ) -> (Tried, bool) {
        let Question {
            about,
            size,
            exact,
            unique,
        } = *question;
        let request = Request::Read(Read { size });
        let asked = match self.ask(epoch, about, size, flags) {
            Ok(Some(header)) => header,
            Ok(None) => return (Tried::Not(unanswered), true),
            Err(error) => {
                debug!(%error, "a connection for data has ended");
                return (Tried::Not(unanswered), false);
            }
        };
        let arriving = match self.reader.read_header() {
            Ok(Some(arriving)) => arriving,
            Ok(None) => return (Tried::Not(unanswered), false),
            Err(WireError::Idle) => {
                warn!("the server owes the answer to a READ");
                shared.kept.not_to_be_kept(about, &request);
                unanswered.error(Errno::ETIMEDOUT);
                return (Tried::Answered(Err(Errno::ETIMEDOUT)), false);
            }
            Err(error) => {
                warn!(%error, "a connection for data is lost");
                return (Tried::Not(unanswered), false);
            }
        };
        let header = *arriving.header();
        if !header.is_reply_to(&asked) || header.length > size {
            warn!("the server has answered something else than it was asked");
            return (Tried::Not(unanswered), false);
        }
        shared.counts.answered();
        if exact && header.length > 0 && header.length != size {
            // What there is of it goes with the connection.
            return (Tried::Not(unanswered), false);
        }
        // Before the application sees a byte: one that is told of the change must not find what was before.
        let take_back = || {
            if !header.flags.contains(Flags::KEEP) {
                shared.kept.not_to_be_kept(about, &request);
            }
        };
        if header.length == 0 {
            if let Err(error) = arriving.read_footer(Body::Bytes(&[])) {
                warn!(%error, "a connection for data is lost");
                return (Tried::Not(unanswered), false);
            }
            if exact {
                return (Tried::Not(unanswered), true);
            }
            take_back();
            if let Some(errno) = header.error().map(ask_again) {
                unanswered.error(errno);
                return (Tried::Answered(Err(errno)), true);
            }
            let given = channel.answer(unanswered, &mut FuseBuf::memory(&[]).into(), |_, _| Ok(()));
            return (Tried::Answered(given.map_err(|_| Errno::EIO)), true);
        }
        let section = FuseBuf::section(&self.socket, 0, header.length as usize, self.footer);
        let mut bufs: FuseBufVec<'_> = section.into();
        let past = !matches!(
            channel.way(&splice::Read::new(unique, size).crc(true), &bufs),
            Way::Copy
        );
        let mut in_step = false;
        let answered = channel.answer(unanswered, &mut bufs, |bufs, crcs| {
            let footer = bufs.get(0).map(FuseBuf::footer_bytes).unwrap_or_default();
            let crc = crcs.first().copied().flatten().ok_or(Errno::EIO)?;
            arriving.verify(Body::Crc(crc), footer).map_err(|error| {
                warn!(%error, "the answer to a READ is not what was sent");
                Errno::EBADMSG
            })?;
            in_step = true;
            take_back();
            Ok(())
        });
        match answered {
            Ok(()) => {
                shared.counts.read(header.length.into(), past);
                (Tried::Answered(Ok(())), true)
            }
            Err((ReplyError::Refused(errno), Some(unanswered))) => {
                (Tried::Failed(unanswered, errno), in_step)
            }
            Err((ReplyError::Broken { error, .. }, Some(unanswered))) => {
                warn!(%error, "a connection for data is lost");
                (Tried::Failed(unanswered, Errno::ECONNRESET), false)
            }
            // Nobody waits any more, or the kernel does not take it: a reply that is dropped is EIO.
            Err((error, _)) => {
                warn!(%error, "a READ has failed");
                (Tried::Answered(Err(Errno::EIO)), in_step)
            }
        }
    }
}
