// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes that are held when the kernel has forgotten them, and how they go.
//!
//! What was published of a node is of use for as long as the node is known: the kernel makes its inode anew
//! from the maps, without a LOOKUP, and tells nobody when it drops it. So FORGET does not end a node, it
//! begins to wait (`table.rs`), and a thread lets go of those that
//!
//! - are more than are to be held: the longest forgotten first;
//! - have no name any more: their descriptor keeps the file's space;
//! - have waited for longer than what was published of them is valid.
//!
//! To let go is to void what was published, and then to ask the kernel whether it has the inode (docs/abi.md,
//! "Nodes that are held"). That may wait for an inode on its way out, which may want an answer of ours: hence the
//! thread. A node that the kernel has is in use: it waits anew.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::table::{Node, NodeTable, Waiting};
use crate::abi::NodeId;
use crate::ebpf::{Cache, Key, Validity};
use crate::sys::at;
use crate::sys::device::Device;

/// Which nodes are held when the kernel has forgotten them.
#[derive(Clone, Debug)]
pub struct Hold {
    /// How many at most, but for those that the kernel has made an inode of again.
    pub nodes: usize,
    /// The connection's, which tells of that.
    pub device: Weak<Device<OwnedFd>>,
}

/// How many nodes are held, for as long as there is the file system. It keeps none of them.
#[derive(Clone, Debug)]
pub struct Holding {
    pub(super) table: Weak<NodeTable>,
    /// [`Hold::nodes`].
    pub most: usize,
}

impl Holding {
    /// Nodes that the kernel has forgotten and that are known still, just now.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.table.upgrade().map_or(0, |table| table.longest().1)
    }
}

/// Between two looks at what was in use: at a node without a name at first, and, at most, at anything.
const SOON: Duration = Duration::from_millis(10);
const LATE: Duration = Duration::from_secs(1);

/// No node is asked about more often only because it is old.
const OLD: Duration = Duration::from_secs(5);

/// What there is to do. Locked with nothing else locked but the table.
#[derive(Debug, Default)]
struct Todo {
    over: bool,
    /// Some have begun to wait.
    forgotten: bool,
    /// Nodes that have lost their last name.
    nameless: Vec<NodeId>,
}

#[derive(Debug, Default)]
struct Bell {
    todo: Mutex<Todo>,
    rung: Condvar,
}

/// The nodes that are held. Dropping it ends the thread; they stay as they are.
#[derive(Debug)]
pub(super) struct Held {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Starts to let go of nodes of `table`.
    pub(super) fn start(
        hold: Hold,
        cache: &Arc<Cache>,
        valid: Validity,
        table: &Arc<NodeTable>,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::default());
        let keeper = Keeper {
            hold,
            cache: Arc::downgrade(cache),
            age: match valid {
                Validity::For(time) => Some(time.max(OLD)),
                Validity::UntilChanged => None,
            },
            table: Arc::clone(table),
            bell: Arc::clone(&bell),
        };
        let thread = thread::Builder::new()
            .name("extfuse-held".into())
            .spawn(move || keeper.run())?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }

    /// A node has begun to wait.
    pub(super) fn forgotten(&self, node: &Node) {
        // What a name that is still there has, somebody will ask for.
        if at::stat(node).is_ok_and(|stat| stat.nlink == 0) {
            self.ring(|todo| todo.nameless.push(node.id));
        } else {
            self.ring(|todo| todo.forgotten = true);
        }
    }

    /// A node that waits has lost a name.
    pub(super) fn lost_a_name(&self, node: &Node) {
        if at::stat(node).is_ok_and(|stat| stat.nlink == 0) {
            self.ring(|todo| todo.nameless.push(node.id));
        }
    }

    fn ring(&self, what: impl FnOnce(&mut Todo)) {
        what(&mut self.bell.todo.lock());
        self.bell.rung.notify_one();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ring(|todo| todo.over = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A node without a name that was in use when it was last looked at.
#[derive(Debug)]
struct Nameless {
    id: NodeId,
    next: Instant,
    pause: Duration,
}

/// The thread's.
#[derive(Debug)]
struct Keeper {
    hold: Hold,
    cache: Weak<Cache>,
    /// How long a node may wait.
    age: Option<Duration>,
    table: Arc<NodeTable>,
    bell: Arc<Bell>,
}

impl Keeper {
    fn run(&self) {
        let mut nameless = Vec::new();
        let mut next = None;
        while self.wait(&mut nameless, next) {
            next = [self.nameless(&mut nameless), self.many(), self.old()]
                .into_iter()
                .flatten()
                .min();
        }
    }

    /// Waits until there is something to do, at `next` at the latest; false: it is over.
    fn wait(&self, nameless: &mut Vec<Nameless>, next: Option<Instant>) -> bool {
        let mut todo = self.bell.todo.lock();
        while !todo.over && !todo.forgotten && todo.nameless.is_empty() {
            match next {
                None => self.bell.rung.wait(&mut todo),
                Some(next) if self.bell.rung.wait_until(&mut todo, next).timed_out() => break,
                Some(_) => {}
            }
        }
        todo.forgotten = false;
        let now = Instant::now();
        nameless.extend(todo.nameless.drain(..).map(|id| Nameless {
            id,
            next: now,
            pause: SOON,
        }));
        !todo.over
    }

    /// Lets go of those that have no name; tells when to look again.
    fn nameless(&self, nameless: &mut Vec<Nameless>) -> Option<Instant> {
        nameless.retain_mut(|node| {
            if node.next > Instant::now() {
                return true;
            }
            // One that was looked up again is forgotten again.
            let Some(waiting) = self.table.waiting(node.id) else {
                return false;
            };
            if self.lets_go(waiting) {
                return false;
            }
            node.next = Instant::now() + node.pause;
            node.pause = LATE.min(node.pause * 2);
            true
        });
        nameless.iter().map(|node| node.next).min()
    }

    /// Lets go of those that are too many; tells when to look again, if too many are in use. Of those no more
    /// are looked at than the excess is worth: it costs them what was published.
    fn many(&self) -> Option<Instant> {
        let (_, waiting) = self.table.longest();
        let mut left = 16 + 2 * waiting.saturating_sub(self.hold.nodes);
        loop {
            let (first, waiting) = self.table.longest();
            if waiting <= self.hold.nodes || self.is_over() {
                return None;
            }
            if left == 0 {
                return Some(Instant::now() + LATE);
            }
            left -= 1;
            self.lets_go(first?);
        }
    }

    /// Lets go of those that have waited for long; tells when the next one will have.
    fn old(&self) -> Option<Instant> {
        let age = self.age?;
        let (_, left) = self.table.longest();
        for _ in 0..left {
            let first = self.table.longest().0?;
            if first.since.elapsed() < age || self.is_over() {
                break;
            }
            self.lets_go(first);
        }
        let (first, _) = self.table.longest();
        first.map(|first| first.since + age)
    }

    fn is_over(&self) -> bool {
        self.bell.todo.lock().over
    }

    /// Whether a node has gone; otherwise it waits anew.
    fn lets_go(&self, waiting: Waiting) -> bool {
        let Waiting { id, turn, .. } = waiting;
        let (Some(cache), Some(device)) = (self.cache.upgrade(), self.hold.device.upgrade()) else {
            return false;
        };
        // First void, then asked: what is on its way to become an inode finds that it is void.
        cache.invalidate(&[Key::Node(id)]);
        match device.has_inode(id) {
            Ok(false) => {
                self.table.let_go(id, turn);
                // With its descriptor its space may have gone: how full the file system is, is asked anew.
                cache.invalidate(&[Key::Node(id)]);
                true
            }
            Ok(true) => {
                self.table.wait_again(id, turn);
                false
            }
            Err(error) => {
                tracing::debug!(%error, nodeid = id.0, "a node that nobody tells about stays");
                self.table.wait_again(id, turn);
                false
            }
        }
    }
}
