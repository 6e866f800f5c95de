// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one that has the directory.
//!
//! Each client has a session: a [`Stack`] over the export, whose nodes and handles go with it, and a connection: a
//! thread that takes requests off the stream, and as many as there are requests at a time, which answer them in
//! any order. What a client can make the server hold is bounded: descriptors, connections, requests in flight, bytes and
//! time before it has proved that it has the token, time that it does not read or says nothing.
//!
//! Who may do what: as with a local mount, permissions are checked by the kernel that an application runs on, the
//! client's; the server does what it is asked with its own rights, and gives what is made to the user who is named.
//! So whoever has the token may do in the export whatever the server's user may, and nothing outside of it: a
//! request names a node that it was given before, or one component below it, and no link is followed.

mod answers;
mod done;
mod exports;
mod grace;
mod greeting;
mod ids;
mod leases;
mod listener;
mod locks;
mod prompt;
mod reads;
mod session;
mod sessions;
mod shares;
mod sums;
mod touches;
mod version;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex, RwLock};

use self::exports::Exports;
use self::grace::Grace;
use self::greeting::Part;
pub use self::ids::{Ids, Mapping};
use self::leases::Leases;
pub use self::listener::Listener;
use self::locks::{Locks, Releases};
use self::sessions::{Common, Sessions};
use self::shares::{SPARE, Shares};
use self::sums::Sums;
use super::tls::{Secured, ServerTls};
use super::wire::auth::{Binding, Token};
use super::wire::{Export as ExportName, Sizes};
use super::{Address, Stream};
use crate::fs::{Stack, StackError, StackOptions};
use crate::session::DEFAULT_TTL;
use crate::sys::process::{Capability, has_capability, has_descriptors};

/// How soon an accept that failed for want of descriptors or memory is tried again.
const BREATH: Duration = Duration::from_millis(100);

/// Connections that are not served yet, when there are few descriptors.
const FEW: usize = 16;

/// How long clients are given to forget what they keep when the server ends.
const RECALL: Duration = Duration::from_secs(1);

/// A directory that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients call it; the empty name is the one that they get who name none.
    pub name: ExportName,
    /// Where it is.
    pub directory: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
}

impl Export {
    /// What there is at a relative path.
    fn stack(&self, below: &Path) -> Result<Stack, StackError> {
        let options = StackOptions {
            passthrough: false,
            read_only: self.read_only,
            ..StackOptions::default()
        };
        Stack::below(&self.directory, below, options)
    }
}

/// How they are served.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a client has to prove that it has. None: everybody is served.
    pub token: Option<Token>,
    /// Who it is, if clients have to speak TLS; whether they need a certificate.
    pub tls: Option<ServerTls>,
    /// Headers and footers are at least as large.
    pub sizes: Sizes,
    /// How long a client may use what it was told after it has last said something: so long a change waits, at most,
    /// for one that is not there any more, and so long its session waits for it to come back.
    pub lease: Duration,
    /// A file that is there while clients may keep what they were told: a server that finds it makes no change before
    /// their leases are over. None: there was no server before, or everybody has forgotten it.
    pub leases: Option<PathBuf>,
    /// How long an answer may be kept at most, for changes that are made in the directory without this server. None:
    /// there are none.
    pub keep: Option<Duration>,
    /// How many nodes and names a client may keep; what it is told beyond that it may not.
    pub told: usize,
    /// Memory for the CRCs of what files hold, in bytes: a thousandth of what is read is enough for all of it to be sent
    /// the next time without being looked at.
    pub sums: usize,
    /// How long a connection may say nothing before it is closed.
    pub silence: Duration,
    /// How long a client may take until it is served, all in all.
    pub greeting: Duration,
    /// How long a client may take to read a reply.
    pub sending: Duration,
    /// Connections that are served at the same time, but for those that have joined another one's session; further
    /// ones are closed when they have greeted.
    pub connections: usize,
    /// Connections that are not served yet at the same time; for a further one the oldest is closed.
    pub strangers: usize,
    /// Files and directories that a client may have open here at the same time. Each has a descriptor. What is only
    /// read a client need not open, if we may read any file.
    pub open: usize,
    /// Nodes that a client may know at the same time: those that its kernel remembers. Each has a descriptor, too, and
    /// of these no client gets more than a share (`shares.rs`).
    pub nodes: usize,
    /// Whom clients call by other numbers.
    pub ids: Mapping,
    /// Threads that answer the requests of a connection, at most; as many as it has requests at a time. At least
    /// one.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            tls: None,
            sizes: Sizes::default(),
            lease: Duration::from_secs(10),
            leases: None,
            keep: Some(DEFAULT_TTL),
            told: 1 << 20,
            sums: 16 << 20,
            silence: Duration::from_secs(60),
            greeting: Duration::from_secs(10),
            sending: Duration::from_secs(30),
            connections: 1024,
            strangers: 256,
            open: 1 << 16,
            nodes: 1 << 20,
            ids: Mapping::default(),
            threads: 16,
        }
    }
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An export cannot be served.
    #[error(transparent)]
    Export(#[from] StackError),
    /// Two exports have the same name.
    #[error("two exports are called {0:?}")]
    Twice(ExportName),
    /// Nobody can connect there.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: Address,
        /// What the system said.
        error: io::Error,
    },
    /// The file of leases cannot be read or written.
    #[error("cannot use {path}, which tells of leases: {error}")]
    Leases {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system does not let us wait for clients.
    #[error("cannot wait for clients: {0}")]
    Wait(#[from] io::Error),
}

/// Exports that are about to be served.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    /// Readable at its end: to stop.
    stop: UnixStream,
    stopper: Stopper,
    grace: Option<Grace>,
    shared: Arc<Shared>,
}

/// Stops a server.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<UnixStream>);

impl Stopper {
    /// Ends [`Server::serve`]: no more clients, and those that there are get no more answers.
    pub fn stop(&self) {
        // It fails only if the server is gone.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// What tells who is who.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// See [`Options::token`].
    pub token: Option<Token>,
    /// See [`Options::tls`].
    pub tls: Option<ServerTls>,
}

/// Gives a server other credentials, and other exports.
#[derive(Clone, Debug)]
pub struct Reloader(Weak<Shared>);

impl Reloader {
    /// Who connects from here on is asked for these, and shown these. Those who are served already go on.
    pub fn reload(&self, credentials: Credentials) {
        if let Some(shared) = self.0.upgrade() {
            *shared.credentials.write() = credentials;
        }
    }

    /// These are served from here on. Who has one that is among them as it was goes on with it; the others' sessions
    /// end, with what they had open and locked, and they connect anew, if there is still something for them.
    ///
    /// # Errors
    /// Those of [`Server::over`]; nothing is another then.
    pub fn export(&self, exports: Vec<Export>) -> Result<(), ServerError> {
        let Some(shared) = self.0.upgrade() else {
            return Ok(());
        };
        shared.exports.replace(exports)?;
        // Who was greeted with those of before has a session by now, or looks at these when there is one.
        let now = shared.exports.now();
        shared.sessions.keep(|common| common.is_of(&now));
        Ok(())
    }
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    exports: Exports,
    credentials: RwLock<Credentials>,
    options: Options,
    /// No file is refused us, so that nobody has to open one to know that he may read it.
    reads_nodes: bool,
    leases: Arc<Leases>,
    releases: Arc<Releases>,
    sums: Sums,
    sessions: Sessions,
    shares: Shares,
    live: Mutex<Live>,
    ended: Condvar,
}

/// Connections. The lock is held for moments, and no other is taken meanwhile.
#[derive(Debug, Default)]
struct Live {
    next: u64,
    streams: HashMap<u64, Arc<Stream>>,
    /// Those that are not served yet, the oldest first. One that made room is not among
    /// them any more, and its thread ends.
    strangers: BTreeSet<u64>,
    served: usize,
}

impl Shared {
    /// Those of a session that begins.
    fn locks(&self) -> Locks {
        // Whoever waits takes a thread of the connection's.
        Locks::new(Arc::clone(&self.releases), self.options.threads / 4)
    }

    /// Those who came first and are not served yet make room, and their threads end, until there are no more than so
    /// many.
    fn send_strangers_away(&self, most: usize) {
        let mut live = self.live.lock();
        while live.strangers.len() > most
            && let Some(oldest) = live.strangers.pop_first()
        {
            if let Some(stream) = live.streams.get(&oldest) {
                let _ = stream.shutdown();
            }
        }
    }
}

/// A connection's place among those that there are, until it is dropped.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    number: u64,
    served: bool,
}

impl Place {
    fn take(shared: &Arc<Shared>, stream: &Arc<Stream>) -> Self {
        let most = match has_descriptors(&**stream, SPARE) {
            true => shared.options.strangers,
            false => shared.options.strangers.min(FEW),
        };
        // Whoever says nothing must not keep others out.
        shared.send_strangers_away(most.saturating_sub(1));
        let mut live = shared.live.lock();
        let number = live.next;
        live.next += 1;
        live.strangers.insert(number);
        live.streams.insert(number, Arc::clone(stream));
        Self {
            shared: Arc::clone(shared),
            number,
            served: false,
        }
    }

    /// The client has greeted. False if it had to make room, or if too many others have been faster; one that
    /// has joined a session is counted there.
    fn is_served(&mut self, part: &Part<'_>) -> bool {
        let mut live = self.shared.live.lock();
        let known = live.strangers.remove(&self.number);
        match part {
            Part::Joined(_) => known,
            Part::Own { .. } | Part::Resumed(_) => {
                self.served = known && live.served < self.shared.options.connections;
                live.served += usize::from(self.served);
                self.served
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut live = self.shared.live.lock();
        live.strangers.remove(&self.number);
        live.streams.remove(&self.number);
        live.served -= usize::from(self.served);
        drop(live);
        self.shared.ended.notify_all();
    }
}

impl Server {
    /// Listens at `address`. Whoever connects waits for [`serve`](Self::serve).
    ///
    /// # Errors
    /// If an export is no directory, or nobody can connect there.
    pub fn bind(address: &Address, exports: Vec<Export>, options: Options) -> Result<Self, ServerError> {
        Self::over(Listener::bind(address)?, exports, options)
    }

    /// The same, where it listens already: what else there is to do needs none of the privileges that may take.
    ///
    /// # Errors
    /// If an export is no directory, or two have the same name.
    pub fn over(listener: Listener, exports: Vec<Export>, options: Options) -> Result<Self, ServerError> {
        let exports = Exports::new(exports)?;
        let (stop, stopper) = UnixStream::pair()?;
        let (grace, not_before) = match &options.leases {
            None => (None, None),
            Some(path) => {
                let begun = Grace::begin(path, options.lease);
                let (grace, until) = begun.map_err(|error| ServerError::Leases {
                    path: path.clone(),
                    error,
                })?;
                (Some(grace), until)
            }
        };
        if not_before.is_some() {
            tracing::info!("changes wait until the leases of a server before are over");
        }
        Ok(Self {
            listener,
            stop,
            stopper: Stopper(Arc::new(stopper)),
            grace,
            shared: Arc::new(Shared {
                credentials: RwLock::new(Credentials {
                    token: options.token.clone(),
                    tls: options.tls.clone(),
                }),
                leases: Arc::new(Leases::new(options.lease, options.told, not_before)),
                releases: Arc::default(),
                reads_nodes: has_capability(Capability::DacReadSearch),
                sums: Sums::new(options.sums),
                exports,
                options,
                sessions: Sessions::default(),
                shares: Shares::default(),
                live: Mutex::default(),
                ended: Condvar::new(),
            }),
        })
    }

    /// Where clients connect: with the port that the system has chosen, if it was told to choose.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<Address> {
        self.listener.address()
    }

    /// To give it other credentials and exports with, from elsewhere.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader(Arc::downgrade(&self.shared))
    }

    /// To end it with, from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves, until it is [stopped](Stopper). All connections are closed then, and requests that had begun are
    /// done; a disk that does not answer keeps nobody for longer than [`Options::sending`].
    ///
    /// # Errors
    /// If waiting for clients is impossible.
    pub fn serve(self) -> Result<(), ServerError> {
        let end = self.accept();
        let forgotten = self.shared.leases.close(RECALL.min(self.shared.options.lease));
        self.shared.sessions.close();
        let deadline = Instant::now() + self.shared.options.sending;
        let mut live = self.shared.live.lock();
        for stream in live.streams.values() {
            // One that is closed already has no need of it.
            let _ = stream.shutdown();
        }
        while !live.streams.is_empty() {
            if self.shared.ended.wait_until(&mut live, deadline).timed_out() {
                tracing::warn!("{} connections have not ended", live.streams.len());
                break;
            }
        }
        if let Some(grace) = self.grace.filter(|_| forgotten) {
            grace.end();
        }
        end
    }

    fn accept(&self) -> Result<(), ServerError> {
        loop {
            let ready = PollFlags::POLLIN;
            let mut fds = [
                PollFd::new(self.listener.as_fd(), ready),
                PollFd::new(self.stop.as_fd(), ready),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
            let has = |i: usize| {
                let events = fds.get(i).and_then(|fd: &PollFd<'_>| fd.revents());
                events.is_some_and(|events| !events.is_empty())
            };
            if has(1) {
                return Ok(());
            }
            if !has(0) {
                continue;
            }
            match self.listener.accept() {
                Ok(Some(stream)) => self.begin(stream),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!("cannot take a connection: {error}");
                    // For want of descriptors, as a rule.
                    self.shared.send_strangers_away(FEW);
                    thread::sleep(BREATH);
                }
            }
        }
    }

    fn begin(&self, stream: Stream) {
        let stream = Arc::new(stream);
        let place = Place::take(&self.shared, &stream);
        let thread = thread::Builder::new().name("extfuse-client".into());
        // A place that is dropped with the thread that was not made is free again.
        if let Err(error) = thread.spawn(move || converse(place, &stream)) {
            tracing::warn!("a connection was closed: {error}");
        }
    }
}

/// A connection, from its first byte to its last.
fn converse(mut place: Place, line: &Arc<Stream>) {
    let shared = Arc::clone(&place.shared);
    let deadline = Instant::now() + shared.options.greeting;
    let tls = shared.credentials.read().tls.clone();
    let left = match tls.map(|tls| Secured::accept(&tls, line, deadline)).transpose() {
        Ok(None) => talk(&mut place, line, None, deadline),
        Ok(Some(secured)) => {
            let stream = Arc::new(secured.stream);
            let left = talk(&mut place, &stream, Some(&secured.binding), deadline);
            // What it was told last is on its way before its place is another's.
            if let Some(pump) = secured.pump {
                pump.join();
            }
            left
        }
        Err(error) => {
            tracing::info!("a client is not served: {error}");
            None
        }
    };
    let _ = line.shutdown();
    drop(place);
    if let Some(session) = left {
        let options = &shared.options;
        shared.sessions.wait(&session, options.lease, options.connections);
    }
}

/// What is said in frames. A session that may be gone on with is left.
fn talk(
    place: &mut Place,
    stream: &Arc<Stream>,
    tls: Option<&Binding>,
    deadline: Instant,
) -> Option<Arc<Common>> {
    let shared = Arc::clone(&place.shared);
    let mut left = None;
    match greeting::greet(&shared, stream, tls, deadline) {
        Ok(Some(greeted)) if place.is_served(&greeted.part) => {
            let encrypts = tls.is_some() && matches!(**stream, Stream::Unix(_));
            match session::serve(&shared, greeted, stream, encrypts) {
                Ok(session) => left = session,
                Err(error) => tracing::warn!("a client is not served: {error}"),
            }
        }
        Ok(Some(_)) => tracing::warn!("a client is not served: there are too many"),
        Ok(None) => {}
        Err(error) => tracing::info!("a client is not served: {error}"),
    }
    // A client that waits is told, though its own requests may still hold the stream.
    let _ = stream.shutdown();
    left
}
