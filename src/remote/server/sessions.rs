// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions, and the connections that have them.
//!
//! A session has one connection of its own at a time, and others that have joined it. It ends when its client says
//! goodbye, and some time after its own connection has broken: until then another one may go on with it, once
//! all that was asked on the broken one is done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::Export;
use super::done::Done;
use super::exports::goes_on;
use super::leases::Holder;
use super::locks::Locks;
use super::shares::Share;
use crate::fs::Stack;
use crate::remote::Stream;
use crate::remote::wire::Export as ExportName;
use crate::remote::wire::message::SessionId;

/// Connections that may join one session.
pub const MOST_JOINED: usize = 16;

/// The connection that a session has for its own.
#[derive(Debug)]
enum Own {
    /// None has been served yet.
    New,
    /// This one.
    Served(Arc<Stream>),
    /// None: it has broken.
    Broken,
    /// None any more.
    Over,
}

/// What a session is of.
#[derive(Debug)]
pub struct Of {
    pub name: ExportName,
    pub export: Arc<Export>,
}

/// What a session has of its own.
#[derive(Debug)]
pub struct Has {
    pub stack: Stack,
    pub locks: Locks,
    pub share: Share,
}

/// What all connections of a session have.
#[derive(Debug)]
pub struct Common {
    pub id: SessionId,
    /// What was asked for.
    pub name: ExportName,
    /// What that was.
    export: Arc<Export>,
    /// Its nodes and handles.
    pub stack: Stack,
    /// What was answered on its own connection.
    pub done: Done,
    /// What its users have locked.
    pub locks: Locks,
    /// Its descriptors.
    pub share: Share,
    /// Of a client that keeps what it is told.
    holder: Mutex<Option<Arc<Holder>>>,
    own: Mutex<Own>,
    changed: Condvar,
    joined: Mutex<Joined>,
}

#[derive(Debug, Default)]
struct Joined {
    over: bool,
    next: u64,
    streams: HashMap<u64, Arc<Stream>>,
}

impl Common {
    fn new(id: SessionId, of: Of, has: Has, requests: usize) -> Self {
        Self {
            id,
            name: of.name,
            export: of.export,
            stack: has.stack,
            done: Done::new(requests),
            locks: has.locks,
            share: has.share,
            holder: Mutex::new(None),
            own: Mutex::new(Own::New),
            changed: Condvar::new(),
            joined: Mutex::default(),
        }
    }

    /// The client, if it keeps what it is told.
    pub fn holder(&self) -> Option<Arc<Holder>> {
        self.holder.lock().clone()
    }

    /// It keeps what it is told from here on, and nothing of before.
    pub fn held_by(&self, holder: Option<Arc<Holder>>) {
        *self.holder.lock() = holder;
    }

    /// Counts the descriptors that it has, and tells how many of them are not of connections.
    pub fn count(&self) -> usize {
        let held = self.stack.known() + self.stack.open_ones() + self.locks.owners();
        let connections = 1 + self.joined.lock().streams.len();
        self.share.counts(held, connections);
        held
    }

    /// This is its own connection from here on. The one before is cut, and all that was asked on it is done when this
    /// comes back. False: it is over, or the one before does not end in time.
    pub fn is_served(&self, stream: &Arc<Stream>, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut own = self.own.lock();
        loop {
            match &*own {
                Own::New | Own::Broken => {
                    *own = Own::Served(Arc::clone(stream));
                    self.changed.notify_all();
                    return true;
                }
                Own::Over => return false,
                Own::Served(before) => {
                    // What is down already needs no more.
                    let _ = before.shutdown();
                }
            }
            if self.changed.wait_until(&mut own, deadline).timed_out() {
                return false;
            }
        }
    }

    /// Its own connection has ended without a goodbye, and all that was asked on it is done.
    pub fn breaks(&self) {
        self.done.breaks();
        let mut own = self.own.lock();
        if matches!(*own, Own::Served(_)) {
            *own = Own::Broken;
            self.changed.notify_all();
        }
    }

    /// Until another one goes on with it, for so long at most: whether one does, or it is over.
    fn goes_on(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut own = self.own.lock();
        while matches!(*own, Own::Broken) {
            if self.changed.wait_until(&mut own, deadline).timed_out() {
                // Nobody can go on with it from here on.
                let still = matches!(*own, Own::Broken);
                if still {
                    *own = Own::Over;
                }
                return !still;
            }
        }
        true
    }

    /// Whether it is of one of these.
    pub fn is_of(&self, exports: &[Arc<Export>]) -> bool {
        goes_on(exports, &self.name, &self.export)
    }

    /// Nobody has it any more; whoever has joined it goes, too.
    fn end(&self) {
        self.locks.end();
        if let Own::Served(stream) = std::mem::replace(&mut *self.own.lock(), Own::Over) {
            let _ = stream.shutdown();
        }
        self.changed.notify_all();
        let mut joined = self.joined.lock();
        joined.over = true;
        for stream in joined.streams.values() {
            let _ = stream.shutdown();
        }
    }

    fn is_new(&self) -> bool {
        matches!(*self.own.lock(), Own::New)
    }
}

/// A connection's place in the session that it has joined, until it is dropped.
#[derive(Debug)]
pub struct Member {
    pub common: Arc<Common>,
    number: u64,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.common.joined.lock().streams.remove(&self.number);
        self.common.count();
    }
}

/// All of them. A session is known before its number is told, until it ends.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<SessionId, Arc<Common>>>);

impl Sessions {
    /// A session over this begins; its client waits for so many replies at most. If it is not served before what this
    /// gives is dropped, it ends then.
    pub fn begin(&self, id: SessionId, of: Of, has: Has, requests: usize) -> Begun<'_> {
        let common = Arc::new(Common::new(id, of, has, requests));
        self.0.lock().insert(id, Arc::clone(&common));
        Begun {
            common,
            sessions: self,
        }
    }

    /// One that there is.
    pub fn find(&self, id: SessionId) -> Option<Arc<Common>> {
        self.0.lock().get(&id).map(Arc::clone)
    }

    /// One more connection for a session.
    ///
    /// # Errors
    ///
    /// `ESTALE` if there is no such session (any more), `EMFILE` if it has too many.
    pub fn join(&self, id: SessionId, stream: &Arc<Stream>) -> Result<Member, Errno> {
        let common = self.find(id).ok_or(Errno::ESTALE)?;
        let number = {
            let mut joined = common.joined.lock();
            if joined.over {
                return Err(Errno::ESTALE);
            }
            if joined.streams.len() >= MOST_JOINED {
                return Err(Errno::EMFILE);
            }
            joined.next += 1;
            let number = joined.next;
            joined.streams.insert(number, Arc::clone(stream));
            number
        };
        common.count();
        Ok(Member { common, number })
    }

    /// The own connection of a session has broken. Waits until another one goes on with it, for so long at most; then it
    /// ends. At once if there are more than `most`.
    pub fn wait(&self, common: &Common, patience: Duration, most: usize) {
        let patience = match self.0.lock().len() > most {
            true => Duration::ZERO,
            false => patience,
        };
        if !common.goes_on(patience) {
            self.end(common);
        }
    }

    /// Nobody goes on with it.
    pub fn end(&self, common: &Common) {
        self.0.lock().remove(&common.id);
        common.end();
    }

    /// All but these end.
    pub fn keep(&self, keeps: impl Fn(&Common) -> bool) {
        let ended: Vec<_> = {
            let mut all = self.0.lock();
            all.extract_if(|_, common| !keeps(common)).collect()
        };
        for (_, common) in ended {
            common.end();
        }
    }

    /// All of them end.
    pub fn close(&self) {
        self.keep(|_| false);
    }
}

/// A session that may never be served.
#[derive(Debug)]
pub struct Begun<'s> {
    pub common: Arc<Common>,
    sessions: &'s Sessions,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.common.is_new() {
            self.sessions.end(&self.common);
        }
    }
}
