// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions that are served, and the connections that have joined them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::leases::Holder;
use crate::fs::Stack;
use crate::remote::Stream;
use crate::remote::wire::message::SessionId;

/// Connections that may join one session.
pub const MOST_JOINED: usize = 16;

/// What all connections of a session have.
#[derive(Debug)]
pub struct Common {
    /// Its nodes and handles.
    pub stack: Stack,
    /// Of a client that keeps what it is told, once it is served.
    pub holder: OnceLock<Arc<Holder>>,
    joined: Mutex<Joined>,
}

#[derive(Debug, Default)]
struct Joined {
    over: bool,
    next: u64,
    streams: HashMap<u64, Arc<Stream>>,
}

impl Common {
    /// A session with no connection but its own.
    fn new(stack: Stack) -> Self {
        Self {
            stack,
            holder: OnceLock::new(),
            joined: Mutex::default(),
        }
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
    }
}

/// All of them. A session is known before its number is told, until its own connection ends.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<SessionId, Arc<Common>>>);

impl Sessions {
    /// A session over this begins; it is over when what this gives is dropped.
    pub fn begin(&self, id: SessionId, stack: Stack) -> Begun<'_> {
        let common = Arc::new(Common::new(stack));
        self.0.lock().insert(id, Arc::clone(&common));
        Begun {
            common,
            sessions: self,
            id,
        }
    }

    /// One more connection for a session.
    ///
    /// # Errors
    ///
    /// `ESTALE` if there is no such session (any more), `EMFILE` if it has too many.
    pub fn join(&self, id: SessionId, stream: &Arc<Stream>) -> Result<Member, Errno> {
        let common = self.0.lock().get(&id).map(Arc::clone).ok_or(Errno::ESTALE)?;
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
        Ok(Member { common, number })
    }
}

/// A session that is served.
#[derive(Debug)]
pub struct Begun<'s> {
    pub common: Arc<Common>,
    sessions: &'s Sessions,
    id: SessionId,
}

impl Drop for Begun<'_> {
    /// Whoever has joined it goes with it.
    fn drop(&mut self) {
        self.sessions.0.lock().remove(&self.id);
        let mut joined = self.common.joined.lock();
        joined.over = true;
        for stream in joined.streams.values() {
            // What is down already needs no more.
            let _ = stream.shutdown();
        }
    }
}
