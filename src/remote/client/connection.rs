// SPDX-License-Identifier: MIT OR Apache-2.0
//! A session with a server, as those who ask have it.

use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::ReplyData;
use nix::errno::Errno;
use tracing::warn;

use super::calls::{Break, Shared};
use super::data::{Data, Outcome, Question};
use super::epoch::{Epoch, reply_inward};
use super::figures::Counts;
use super::greeting::{ConnectError, Target};
use super::keeper::keep;
use super::kept::Kept;
use super::line::dial;
use crate::Kernel;
use crate::control::{Remote, TellsRemote};
use crate::remote::wire::message::{Empty, Forgotten, Read, Wanted};
use crate::remote::wire::{Flags, Header, Reply, Request, WireError};
use crate::splice::Channel;

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
    /// The session that its numbers are of.
    pub(super) epoch: Epoch,
}

impl Answer {
    /// What the payload means. Its nodes and handles have the session's number in their top 16 bits.
    ///
    /// # Errors
    ///
    /// [`WireError::Message`] if it means nothing, [`WireError::Bytes`] if a number in it is too large.
    pub fn reply(&self) -> Result<Reply<'_>, WireError> {
        reply_inward(Reply::decode(&self.header, &self.payload)?, self.epoch)
    }
}

/// A session with a server, which many threads may use at once: each [`call`](Self::call) is one request on
/// the way, and does not wait for those of others.
///
/// When the line breaks, it is made again, and so it goes on until the server is there: with the same session,
/// if the server still has it; what had no answer yet is asked again then, and done once. With another session (the
/// server was started anew, or has waited too long) what had no answer gets `EIO`, and nodes and handles that were known
/// are `ESTALE`, but for the root. Meanwhile whoever asks waits, for the target's timeout at most (`ETIMEDOUT`), or gets `EIO`
/// at once: see [`Disconnected`](super::Disconnected).
///
/// A server that owes a reply for longer than that timeout counts as dead, unless it is
/// one that a disk may take its time for (FSYNC and the like) and the server says something else meanwhile; so
/// does one that leaves a PING unanswered, which is sent when nothing else was for a third of that timeout, or of
/// the session's lease.
///
/// Over TLS that the kernel does not do, a third thread carries the bytes.
///
/// Dropping it says GOODBYE, waits a second at most, with that thread two, and ends its threads.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    data: Data,
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
        let dialed = dial(target, Wanted::New)?;
        let hello = dialed.hello.clone();
        let (shared, line, reader) = Shared::begin(dialed, target);
        let shared = Arc::new(shared);
        let mut connection = Self {
            shared,
            data: Data::new(target.clone()),
            threads: Vec::new(),
            read_only: hello.read_only,
            keep: hello.keep_ms.map(|ms| Duration::from_millis(ms.into())),
        };
        let (shared, again) = (Arc::clone(&connection.shared), target.clone());
        connection.spawn("remote-reader", move || {
            shared.run(line, reader, &again);
        })?;
        let shared = Arc::clone(&connection.shared);
        connection.spawn("remote-keeper", move || keep(&shared))?;
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
    /// The server's errno; `EIO` if nobody knows what has become of it; `ETIMEDOUT` if the answer
    /// did not come in time; `ESTALE` for nodes and handles of a session that is no more; those of [`WireError::errno`] for a
    /// request that cannot be sent, such as one that is too long.
    pub fn call(&self, about: &About, request: &Request<'_>) -> Result<Answer, Errno> {
        self.call_kept(about, request).0
    }

    /// The same, and whether the answer, or the error, may be kept.
    pub(super) fn call_kept(&self, about: &About, request: &Request<'_>) -> (Result<Answer, Errno>, bool) {
        self.shared.call(about, request, self.shared.timeout)
    }

    /// Whether a file needs no handle of the server's to be read: a READ with none is of the node.
    pub(super) fn reads_node(&self, node: u64) -> bool {
        self.shared.reads_node(node)
    }

    /// Answers a READ through `channel`, over a connection that is for data; or gives the reply back: then nothing has
    /// happened yet, and it is for [`call`](Self::call).
    pub(crate) fn read(&self, question: &Question<'_>, channel: &Channel, reply: ReplyData) -> Outcome {
        match self.shared.session() {
            Some(session) => self.data.read(session, question, &self.shared, channel, reply),
            None => Outcome::Not(reply),
        }
    }

    /// Bytes of an open file, and its version if one is known; none if they are not to be had.
    pub(super) fn fetch(&self, about: &About, size: u32) -> Option<(Vec<u8>, u64)> {
        if let Some(session) = self.shared.session()
            && let Some(fetched) = self.data.fetch(session, about, size, &self.shared)
        {
            return Some(fetched);
        }
        let answer = self.call(about, &Request::Read(Read { size })).ok()?;
        let version = answer.file_version;
        (answer.payload.len() <= size as usize).then_some((answer.payload, version))
    }

    /// How long anybody waits for an answer.
    pub(super) fn timeout(&self) -> Duration {
        self.shared.timeout
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

    /// For those who ask on threads of their own.
    pub(super) fn asks(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.shared.kept
    }

    /// Who tells how it stands, for as long as there is the connection.
    #[must_use]
    pub fn figures(&self) -> Arc<dyn TellsRemote> {
        Arc::new(Figures(Arc::downgrade(&self.shared)))
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Whether there is no way to the server at the moment.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.current().is_none()
    }
}

#[derive(Debug)]
struct Figures(Weak<Shared>);

impl TellsRemote for Figures {
    fn remote(&self) -> Remote {
        let shared = self.0.upgrade();
        shared.map_or_else(Remote::default, |shared| shared.state())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let shared = &self.shared;
        if let Some(line) = shared.current() {
            let limit = shared.timeout.min(GOODBYE);
            line.hurry(limit);
            // The session ends without it, too, only later.
            let _ = shared.call(&About::default(), &Request::Goodbye(Empty), limit);
        }
        shared.end();
        let reader_is_waited_for = match shared.current() {
            Some(line) => {
                shared.fail(&line, &Break::Closed);
                line.join();
                true
            }
            // It may be about to connect to who does not answer, and ends by itself.
            None => false,
        };
        for thread in self.threads.drain(..) {
            if thread.thread().name() == Some("remote-reader") && !reader_is_waited_for {
                continue;
            }
            if thread.join().is_err() {
                warn!("a thread of the connection panicked");
            }
        }
    }
}
