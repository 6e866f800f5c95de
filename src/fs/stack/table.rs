// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nodes that the kernel knows, and how often it was told of each.
//!
//! Invariants:
//!
//! 1. A node is in the table if and only if its lookup count is above zero, or it is held; the root always is.
//!    A count grows by one for every entry that is sent to the kernel, and shrinks by what FORGET gives back. A
//!    node that is held waits in a queue while its count is zero. The kernel may have an inode of it all the
//!    same: who takes it out of the table has asked, and nobody was told of it meanwhile ([`Turn`]).
//! 2. Node, count and both indices change together, under the table's lock.
//! 3. A node holds an `O_PATH` descriptor of its inode, which keeps the inode's number from being reused: as
//!    long as a node is found under a [`Key`], the key stands for that very inode. Whoever looks a key up must
//!    hold a descriptor of the inode as well, so that the number is not reused under *his* hands.
//! 4. A nodeid is never used twice, so a late message about a node that has gone can't hit another one.
//! 5. An operation holds its node by `Arc`: FORGET does not close a descriptor that is in use.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use fuser::{BackingId, FileType};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::io_mode::IoMode;
use crate::abi::NodeId;
use crate::sys::at::Stat;

/// An inode of the source, whatever nodes stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    dev: (u32, u32),
    ino: u64,
}

impl Inode {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.dev,
            ino: stat.ino,
        }
    }
}

/// What makes a node the same node. The mount is part of it: below a directory that is mounted twice
/// there may be different things, and one node has one parent only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: (u32, u32),
    ino: u64,
    mount: u64,
}

impl Key {
    fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.dev,
            ino: stat.ino,
            mount: stat.mount,
        }
    }
}

/// An inode of the source that the kernel has a nodeid for.
#[derive(Debug)]
pub struct Node {
    /// Its number towards the kernel.
    pub id: NodeId,
    /// What it is: an inode never changes its type.
    pub kind: FileType,
    /// How its open files do their I/O. Innermost lock: nothing else is locked while it is held.
    pub io: Mutex<IoMode<BackingId>>,
    fd: OwnedFd,
    key: Key,
}

impl Node {
    /// The inode.
    pub fn inode(&self) -> Inode {
        Inode {
            dev: self.key.dev,
            ino: self.key.ino,
        }
    }

    /// Number of the device that holds it.
    pub fn dev(&self) -> (u32, u32) {
        self.key.dev
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A place in the queue of those that wait. Nobody gets one twice: a node that has the turn it had has not
/// been looked up since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(u64);

/// A node that the kernel has forgotten.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The node.
    pub id: NodeId,
    /// Its place.
    pub turn: Turn,
    /// Since when it has waited there.
    pub since: Instant,
}

#[derive(Debug)]
struct Row {
    node: Arc<Node>,
    nlookup: u64,
    /// Its place in the queue; none while `nlookup` is above zero.
    turn: Option<Turn>,
}

#[derive(Debug)]
struct Rows {
    by_id: HashMap<NodeId, Row>,
    by_key: HashMap<Key, NodeId>,
    last: NodeId,
    /// Those whose count is zero, by [`Turn`]: the longest forgotten first.
    waiting: BTreeMap<Turn, (NodeId, Instant)>,
    last_turn: Turn,
}

impl Rows {
    /// Puts a node at the end of the queue, or leaves it out.
    fn queue(&mut self, id: NodeId) {
        let turn = Turn(self.last_turn.0 + 1);
        self.last_turn = turn;
        if let Some(row) = self.by_id.get_mut(&id) {
            row.turn = Some(turn);
            self.waiting.insert(turn, (id, Instant::now()));
        }
    }

    /// Takes the node out of everything.
    fn remove(&mut self, id: NodeId) -> Option<Row> {
        let row = self.by_id.remove(&id)?;
        self.by_key.remove(&row.node.key);
        if let Some(turn) = row.turn {
            self.waiting.remove(&turn);
        }
        Some(row)
    }

    fn has_turn(&self, id: NodeId, turn: Turn) -> bool {
        self.by_id.get(&id).is_some_and(|row| row.turn == Some(turn))
    }
}

/// The nodes by nodeid and by inode.
#[derive(Debug)]
pub struct NodeTable {
    rows: RwLock<Rows>,
    /// Nodes are held when the kernel has forgotten them.
    holds: bool,
}

impl NodeTable {
    /// A table that knows the root alone, for ever. If it `holds` nodes, they stay until [`let_go`](Self::let_go).
    pub fn new(root: OwnedFd, stat: &Stat, holds: bool) -> Result<Self, Errno> {
        let table = Self {
            rows: RwLock::new(Rows {
                by_id: HashMap::new(),
                by_key: HashMap::new(),
                last: NodeId(0),
                waiting: BTreeMap::new(),
                last_turn: Turn(0),
            }),
            holds,
        };
        let node = table.lookup(root, stat)?;
        debug_assert_eq!(node.id, NodeId::ROOT);
        Ok(table)
    }

    /// The node of a nodeid that the kernel sent; `ESTALE` if there is none.
    pub fn get(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        self.rows
            .read()
            .by_id
            .get(&id)
            .map(|row| Arc::clone(&row.node))
            .ok_or(Errno::ESTALE)
    }

    /// The node of the inode behind `fd`, which `stat` was read from; a new one if it has none. Counts one
    /// lookup: the caller sends the entry to the kernel.
    pub fn lookup(&self, fd: OwnedFd, stat: &Stat) -> Result<Arc<Node>, Errno> {
        let key = Key::of(stat);
        let kind = file_type(stat.mode).ok_or(Errno::EIO)?;
        let mut rows = self.rows.write();
        let Rows {
            by_id,
            by_key,
            last,
            waiting,
            ..
        } = &mut *rows;
        if let Some(row) = by_key.get(&key).and_then(|id| by_id.get_mut(id)) {
            row.nlookup += 1;
            if let Some(turn) = row.turn.take() {
                waiting.remove(&turn);
            }
            let node = Arc::clone(&row.node);
            // Closing takes its time, and nobody needs to wait for it.
            drop(rows);
            drop(fd);
            return Ok(node);
        }
        let id = NodeId(last.0 + 1);
        *last = id;
        let node = Arc::new(Node {
            id,
            kind,
            io: Mutex::new(IoMode::Undecided),
            fd,
            key,
        });
        by_key.insert(key, id);
        by_id.insert(
            id,
            Row {
                node: Arc::clone(&node),
                nlookup: 1,
                turn: None,
            },
        );
        Ok(node)
    }

    /// Takes back `nlookup` lookups. With the last one the node goes, or, if nodes are held, waits: then
    /// it is given.
    pub fn forget(&self, id: NodeId, nlookup: u64) -> Option<Arc<Node>> {
        if id == NodeId::ROOT {
            return None;
        }
        let mut rows = self.rows.write();
        let row = rows.by_id.get_mut(&id)?;
        // More than was handed out would be the kernel's mistake; it must not become ours.
        row.nlookup = row.nlookup.saturating_sub(nlookup);
        if row.nlookup > 0 || row.turn.is_some() {
            return None;
        }
        if self.holds {
            let node = Arc::clone(&row.node);
            rows.queue(id);
            return Some(node);
        }
        let row = rows.remove(id);
        // The descriptor is closed when the last operation lets go of it, not under the lock.
        drop(rows);
        drop(row);
        None
    }

    /// The node of the inode that `stat` was read from, if it waits.
    pub fn waits(&self, stat: &Stat) -> Option<Waiting> {
        let rows = self.rows.read();
        rows.by_key.get(&Key::of(stat)).and_then(|id| waiting(&rows, *id))
    }

    /// The node, if it waits.
    pub fn waiting(&self, id: NodeId) -> Option<Waiting> {
        waiting(&self.rows.read(), id)
    }

    /// Which waits longest, and how many wait.
    pub fn longest(&self) -> (Option<Waiting>, usize) {
        let rows = self.rows.read();
        let first = rows.waiting.first_key_value();
        let first = first.map(|(turn, (id, since))| Waiting {
            id: *id,
            turn: *turn,
            since: *since,
        });
        (first, rows.waiting.len())
    }

    /// Takes a node out of the table that has waited since `turn`, and was not looked up meanwhile. The
    /// kernel has no inode of it, and can't make one.
    pub fn let_go(&self, id: NodeId, turn: Turn) {
        let mut rows = self.rows.write();
        if rows.has_turn(id, turn) {
            let row = rows.remove(id);
            drop(rows);
            drop(row);
        }
    }

    /// Has a node wait anew: the kernel has an inode of it.
    pub fn wait_again(&self, id: NodeId, turn: Turn) {
        let mut rows = self.rows.write();
        if rows.has_turn(id, turn) {
            rows.waiting.remove(&turn);
            rows.queue(id);
        }
    }

    /// How many nodes there are, the root included.
    pub fn len(&self) -> usize {
        self.rows.read().by_id.len()
    }
}

fn waiting(rows: &Rows, id: NodeId) -> Option<Waiting> {
    let turn = rows.by_id.get(&id)?.turn?;
    let (_, since) = rows.waiting.get(&turn)?;
    Some(Waiting {
        id,
        turn,
        since: *since,
    })
}

/// The type in a mode, if it is one of the seven.
pub fn file_type(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::at;
    use std::ffi::OsStr;
    use std::fs;

    struct Fixture {
        dir: tempfile::TempDir,
        table: NodeTable,
    }

    impl Fixture {
        fn new() -> Self {
            Self::holding(false)
        }

        fn holding(holds: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = OwnedFd::from(fs::File::open(dir.path()).unwrap());
            let stat = at::stat(&root).unwrap();
            Self {
                dir,
                table: NodeTable::new(root, &stat, holds).unwrap(),
            }
        }

        fn lookup(&self, name: &str) -> Arc<Node> {
            let root = self.table.get(NodeId::ROOT).unwrap();
            let fd = at::open_node(&*root, OsStr::new(name)).unwrap();
            let stat = at::stat(&fd).unwrap();
            self.table.lookup(fd, &stat).unwrap()
        }

        fn write(&self, name: &str) {
            fs::write(self.dir.path().join(name), name).unwrap();
        }
    }

    #[test]
    fn a_node_lives_until_all_its_lookups_are_forgotten() {
        let f = Fixture::new();
        f.write("a");
        let id = f.lookup("a").id;
        assert_eq!(f.lookup("a").id, id);
        f.table.forget(id, 1);
        assert!(f.table.get(id).is_ok());
        f.table.forget(id, 1);
        assert_eq!(f.table.get(id).unwrap_err(), Errno::ESTALE);
        assert_eq!(f.table.len(), 1);
    }

    #[test]
    fn hard_links_are_one_node() {
        let f = Fixture::new();
        f.write("a");
        fs::hard_link(f.dir.path().join("a"), f.dir.path().join("b")).unwrap();
        assert_eq!(f.lookup("a").id, f.lookup("b").id);
    }

    #[test]
    fn a_forgotten_nodeid_is_not_used_again() {
        let f = Fixture::new();
        f.write("a");
        let first = f.lookup("a").id;
        f.table.forget(first, 1);
        assert!(f.lookup("a").id > first);
    }

    #[test]
    fn a_reused_inode_number_is_another_node() {
        let f = Fixture::new();
        f.write("a");
        let held = f.lookup("a");
        for round in 0..50 {
            fs::remove_file(f.dir.path().join("a")).unwrap();
            f.write("a");
            assert_ne!(f.lookup("a").id, held.id, "round {round}");
        }
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let f = Fixture::new();
        f.table.forget(NodeId::ROOT, u64::MAX);
        assert!(f.table.get(NodeId::ROOT).is_ok());
    }

    #[test]
    fn forgetting_too_much_or_what_is_not_there_does_no_harm() {
        let f = Fixture::new();
        f.write("a");
        let id = f.lookup("a").id;
        f.table.forget(id, u64::MAX);
        f.table.forget(id, 1);
        f.table.forget(NodeId(0), 1);
        assert_eq!(f.table.len(), 1);
    }

    #[test]
    fn a_node_that_is_held_waits_for_its_turn() {
        let f = Fixture::holding(true);
        for name in ["a", "b"] {
            f.write(name);
        }
        let [a, b] = ["a", "b"].map(|name| f.lookup(name).id);
        assert!(f.table.longest().0.is_none());
        assert!(f.table.forget(a, 1).is_some() && f.table.forget(b, 1).is_some());
        assert!(f.table.forget(a, 1).is_none(), "again");
        let (first, waiting) = f.table.longest();
        let first = first.unwrap();
        assert_eq!((first.id, waiting), (a, 2));
        // The kernel has it: the other one's turn.
        f.table.wait_again(a, first.turn);
        assert_eq!(f.table.longest().0.unwrap().id, b);
        f.table.let_go(a, first.turn);
        assert_eq!(f.lookup("a").id, a, "it had another turn");
        assert_eq!(f.table.longest().1, 1);
        let second = f.table.longest().0.unwrap();
        f.table.let_go(b, second.turn);
        assert_eq!(f.table.get(b).unwrap_err(), Errno::ESTALE);
        assert!(f.lookup("b").id > b);
    }

    #[test]
    fn a_node_that_was_looked_up_since_is_not_let_go() {
        let f = Fixture::holding(true);
        f.write("a");
        let id = f.lookup("a").id;
        f.table.forget(id, 1);
        let before = f.table.waiting(id).unwrap();
        f.lookup("a");
        f.table.let_go(id, before.turn);
        assert!(f.table.get(id).is_ok() && f.table.waiting(id).is_none());
        f.table.forget(id, 1);
        // It waits as before, but the kernel may have made an inode of what it was told meanwhile.
        f.table.let_go(id, before.turn);
        f.table.wait_again(id, before.turn);
        assert!(f.table.get(id).is_ok() && f.table.waiting(id).unwrap().turn > before.turn);
        assert_eq!(f.table.rows.read().waiting.len(), 1);
    }

    #[test]
    fn counts_are_exact_under_concurrent_lookups_and_forgets() {
        let f = Fixture::new();
        f.write("a");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let id = f.lookup("a").id;
                        assert!(f.table.get(id).is_ok());
                        f.table.forget(id, 1);
                    }
                });
            }
        });
        assert_eq!(f.table.len(), 1);
        assert_eq!(f.table.rows.read().by_key.len(), 1);
    }
}
