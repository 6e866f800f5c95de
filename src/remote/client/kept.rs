// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine's kernel keeps of the server's answers, and until when.
//!
//! The kernel keeps an answer with the clock of before it was asked (`docs/abi.md`), so it is enough to void it before
//! INVALIDATED is sent: one that is still on its way is old when it arrives. The lease is the stamps' deadline: when
//! the server is not heard any more nothing is current, without anybody doing anything.

use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::connection::About;
use super::spool::Losing;
use crate::Kernel;
use crate::abi::NodeId;
use crate::ebpf::{Cache, Key, Snapshot, boot_time};
use crate::remote::wire::Request;
use crate::remote::wire::message::{Invalidate, Invalidation};

/// The share of a lease that is not used: so much slower than the server's may this machine's clock be.
const DRIFT: u32 = 100;

/// Extensions of the deadline that are worth no store.
const STEP: u32 = 64;

/// What the kernel keeps, if there is one that does.
#[derive(Debug)]
pub(super) struct Kept {
    kernel: RwLock<Option<Kernel>>,
    /// Locked while the kernel is told.
    term: Mutex<Term>,
    /// Copies of what the server has told.
    pub spool: Losing,
}

#[derive(Debug)]
struct Term {
    /// As long as it is used.
    lease: Duration,
    /// Until when the server holds to what it has said, ns since boot.
    until: u64,
}

impl Term {
    fn of(lease: Duration, asked: u64) -> Self {
        let lease = lease - lease / DRIFT;
        Self {
            lease,
            until: asked.saturating_add(nanos(lease)),
        }
    }
}

impl Kept {
    /// Nothing yet. The lease begins with what was sent at `asked`, ns since boot.
    pub fn new(lease: Duration, asked: u64) -> Self {
        Self {
            kernel: RwLock::new(None),
            term: Mutex::new(Term::of(lease, asked)),
            spool: Losing::default(),
        }
    }

    /// The line has broken, and there is another one: nothing that was kept is any more.
    pub fn begins(&self, lease: Duration, asked: u64) {
        self.void();
        let mut term = self.term.lock();
        *term = Term::of(lease, asked);
        self.with(|cache| cache.deadline_at(term.until));
    }

    /// How long the server holds to what it says.
    pub fn lease(&self) -> Duration {
        self.term.lock().lease
    }

    /// From here on the kernel may keep answers.
    pub fn keep_in(&self, kernel: Kernel) {
        let term = self.term.lock();
        if let Some(cache) = kernel.cache() {
            cache.deadline_at(term.until);
        }
        *self.kernel.write() = Some(kernel);
    }

    fn with(&self, tell: impl FnOnce(&Cache)) {
        if let Some(cache) = self.kernel.read().as_ref().and_then(Kernel::cache) {
            tell(&cache);
        }
    }

    /// The clock, to be read before the server is asked what is then published.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let mut snapshot = None;
        self.with(|cache| snapshot = Some(cache.snapshot()));
        snapshot
    }

    /// Publishes, if there is a kernel that keeps.
    pub fn publish(&self, publish: impl FnOnce(&Cache)) {
        self.with(publish);
    }

    /// The server has answered what was sent at `asked`, ns since boot.
    pub fn renewed(&self, asked: u64) {
        let mut term = self.term.lock();
        let until = asked.saturating_add(nanos(term.lease));
        if until > term.until.saturating_add(nanos(term.lease / STEP)) {
            term.until = until;
            self.with(|cache| cache.deadline_at(until));
        }
    }

    /// How long the lease still holds.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.term.lock().until.saturating_sub(boot_time()))
    }

    /// The server has said INVALIDATE. Nothing of it is used once this returns.
    pub fn invalidate(&self, invalidate: &Invalidate) {
        let spool = self.spool.spool();
        // What the spool has is as good as its attributes.
        let copied = |what: &Invalidation| {
            let spool = spool.as_ref()?;
            match what {
                Invalidation::Attributes { node } | Invalidation::Data { node, .. } => {
                    spool.lose(*node).then_some(Key::Data(NodeId(*node)))
                }
                Invalidation::Everything => {
                    spool.lose_all();
                    None
                }
                Invalidation::Listing { .. } | Invalidation::Entry { .. } => None,
            }
        };
        let copied: Vec<_> = invalidate.what.iter().filter_map(copied).collect();
        self.with(|cache| {
            let keys: Vec<_> = invalidate.what.iter().flat_map(changed).chain(copied).collect();
            cache.invalidate(&keys);
        });
    }

    /// The answer to this is not to be kept.
    pub fn not_to_be_kept(&self, about: &About, request: &Request<'_>) {
        if let Some(key) = told(about, request) {
            self.with(|cache| cache.invalidate(&[key]));
        }
    }

    /// What the server has said of free space is too old.
    pub fn space_is_old(&self) {
        self.with(|cache| cache.invalidate(&[SPACE]));
    }

    /// What the kernel has of a node's data may not be what the server has.
    pub fn data_is_void(&self, node: u64) {
        let node = NodeId(node);
        self.with(|cache| cache.invalidate(&[Key::Data(node), Key::Attr(node)]));
    }

    /// The server is gone.
    pub fn void(&self) {
        if let Some(spool) = self.spool.spool() {
            spool.lose_all();
        }
        self.with(Cache::invalidate_all);
    }
}

/// A name that does not exist: all that this says is that the clock goes on, which ends what is kept of free space.
const SPACE: Key<'static> = Key::Entry(NodeId(0), b"statfs");

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// What the kernel knows by other names.
fn changed(what: &Invalidation) -> Vec<Key<'_>> {
    match what {
        Invalidation::Attributes { node } => vec![Key::Attr(NodeId(*node)), Key::Xattr(NodeId(*node))],
        Invalidation::Data { node, .. } => vec![Key::Data(NodeId(*node)), Key::Attr(NodeId(*node))],
        Invalidation::Listing { node } => vec![Key::Data(NodeId(*node))],
        Invalidation::Entry { parent, name } => vec![Key::Entry(NodeId(*parent), name.as_bytes())],
        Invalidation::Everything => vec![Key::All],
    }
}

/// What the kernel might keep of the answer to this.
fn told<'r>(about: &About, request: &'r Request<'_>) -> Option<Key<'r>> {
    let node = NodeId(about.node);
    Some(match request {
        Request::Lookup(m) => Key::Entry(node, m.name.as_bytes()),
        Request::Mknod(m) => Key::Entry(node, m.name.as_bytes()),
        Request::Mkdir(m) => Key::Entry(node, m.name.as_bytes()),
        Request::Symlink(m) => Key::Entry(node, m.name.as_bytes()),
        Request::Create(m) => Key::Entry(node, m.name.as_bytes()),
        Request::Link(m) => Key::Entry(NodeId(m.parent), m.name.as_bytes()),
        Request::Rename(m) => Key::Entry(NodeId(m.new_parent), m.new_name.as_bytes()),
        Request::Getattr(_) | Request::Setattr(_) => Key::Attr(node),
        Request::Read(_) | Request::Readdir(_) => Key::Data(node),
        Request::Statfs(_) => SPACE,
        // Nothing else is kept that is not published.
        _ => return None,
    })
}
