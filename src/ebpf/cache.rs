// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the daemon tells the kernel's maps, and how it takes it back.

use std::io;
use std::sync::atomic;
use std::time::Duration;

use fuser::FileAttr;

use super::group::Group;
use super::row::{self, Absent, boot_time, boot_time_after};
use super::stamps::{Slot, Stamps};
use super::tables::{InMemory, Tables};
use crate::abi::{self, AttrRow, EntryKey, EntryRow, NodeId, SlotKind, XattrKey, XattrRow};

pub use super::row::{NodeIo, Validity};
pub use super::stamps::{Change, Snapshot};

/// What changes: for [`Cache::invalidate`] and [`Cache::change`].
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// What a name in a directory stands for.
    Entry(NodeId, &'a [u8]),
    /// The attributes of a node.
    Attr(NodeId),
    /// Its extended attributes and ACLs.
    Xattr(NodeId),
    /// Its data; the listing of a directory.
    Data(NodeId),
    /// Every name in a directory.
    Dir(NodeId),
    /// Everything about a node, as a name's target, as a directory and by itself: it is gone, or its
    /// id stands for another one now.
    Node(NodeId),
    /// Everything about every node of a group, by as many operations as [`Key::Node`] takes for one.
    Group(Group),
    /// Everything.
    All,
}

/// What became of what was to be published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Rows written.
    pub rows: u64,
    /// Not written: a change came in between, the answer has no validity, or the clock has run out.
    pub stale: u64,
    /// Not written: nothing that FUSE can ask for (an empty or overlong name, node 0), or more than a
    /// row holds.
    pub refused: u64,
    /// Not written: the map refused. It costs the kernel a question to the daemon, no more.
    pub failed: u64,
}

/// The daemon's side of the maps and stamps of one connection.
///
/// Publishing never fails as far as the caller is concerned: a row that is not there is asked for
/// again. Invalidating is a few atomic operations and always succeeds; rows are left where they are.
#[derive(Debug)]
pub struct Cache {
    stamps: Stamps,
    tables: Box<dyn Tables>,
    /// The connection's SipHash key.
    key: [u64; 2],
    rows: atomic::AtomicU64,
    stale: atomic::AtomicU64,
    refused: atomic::AtomicU64,
    failed: atomic::AtomicU64,
}

impl Cache {
    /// The cache over the stamps, the maps and the name key of a connection.
    #[must_use]
    pub fn new(stamps: Stamps, tables: impl Tables + 'static, key: [u64; 2]) -> Self {
        Self {
            stamps,
            tables: Box::new(tables),
            key,
            rows: atomic::AtomicU64::new(0),
            stale: atomic::AtomicU64::new(0),
            refused: atomic::AtomicU64::new(0),
            failed: atomic::AtomicU64::new(0),
        }
    }

    /// A cache that no kernel reads: [`entry`](Self::entry) and [`attr`](Self::attr) tell what one
    /// would find.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(
            Stamps::in_memory(abi::SLOTS),
            InMemory::default(),
            [0x6e61_6d65, 0x6b65_7973],
        )
    }

    /// Reads the clock. To be called before asking the truth that is then published.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.stamps.snapshot()
    }

    /// `name` in `parent` is `nodeid` of `generation`.
    pub fn publish_entry(
        &self,
        parent: NodeId,
        name: &[u8],
        nodeid: NodeId,
        generation: u64,
        at: Snapshot,
        valid: Validity,
    ) {
        if nodeid.0 == 0 {
            // In the row that would say that the name does not exist.
            count(&self.refused);
        } else {
            self.publish_name(parent, name, Some((nodeid, generation)), at, valid);
        }
    }

    /// `name` does not exist in `parent`.
    pub fn publish_negative(&self, parent: NodeId, name: &[u8], at: Snapshot, valid: Validity) {
        self.publish_name(parent, name, None, at, valid);
    }

    /// The attributes of `nodeid`, and what else of it needs no daemon.
    pub fn publish_attr(&self, nodeid: NodeId, attr: &FileAttr, io: NodeIo, at: Snapshot, valid: Validity) {
        if nodeid.0 == 0 {
            return count(&self.refused);
        }
        let slots = attr_slots(nodeid);
        // How a node opens, and whether it passes through, holds for as long as the node is the node: such
        // a row is worth having even if its attributes are stale, as those of a file that is being
        // written always are.
        let needed = if io == NodeIo::Daemon {
            &slots[..]
        } else {
            &slots[1..]
        };
        let Some(stamp) = self.publishable(needed, at, valid) else {
            return;
        };
        let row = row::attr_row(nodeid, attr, io, stamp, valid.expires());
        self.put(|| self.tables.put_attr(nodeid, &row));
    }

    /// The names of all extended attributes of `nodeid`, each with a NUL at its end; `listed` if they are
    /// what LISTXATTR answers, whoever asks. Of a name that is not among them, and whose class is in
    /// `absent`, the kernel knows then that it is absent: that class has to be complete.
    ///
    /// Without a nodeid it is said of every node. Any change of extended attributes, of any node,
    /// takes that back.
    pub fn publish_xattr_names(
        &self,
        nodeid: Option<NodeId>,
        names: &[u8],
        absent: Absent,
        listed: bool,
        at: Snapshot,
        valid: Validity,
    ) {
        if nodeid == Some(NodeId(0)) {
            return count(&self.refused);
        }
        let key = XattrKey {
            nodeid: nodeid.map_or(0, |nodeid| nodeid.0),
            hash: 0,
        };
        self.publish_xattr_row(&key, at, valid, |stamp, expires| {
            row::names_row(&key, names, absent, listed, stamp, expires)
        });
    }

    /// No node in `directory` has extended attributes: GETXATTR of a name whose class is in `absent` gives that errno, and
    /// LISTXATTR nothing. A change of extended attributes of any node takes that back, and a change of the directory: what
    /// adds a name is to be announced as [`Key::Data`] of it, too, as for its listing. The kernel asks about nodes that it
    /// knows a current name of.
    pub fn publish_no_xattrs_in(&self, directory: NodeId, absent: Absent, at: Snapshot, valid: Validity) {
        if directory.0 == 0 {
            return count(&self.refused);
        }
        let key = XattrKey {
            nodeid: directory.0,
            hash: abi::XATTR_CHILDREN,
        };
        let slots = [
            Slot::node(NodeId(0), SlotKind::EXTFUSE_SLOT_XATTR),
            Slot::node(directory, SlotKind::EXTFUSE_SLOT_DATA),
            Slot::node(directory, SlotKind::EXTFUSE_SLOT_DIR),
            Slot::CONNECTION,
        ];
        let Some(stamp) = self.publishable(&slots, at, valid) else {
            return;
        };
        match row::names_row(&key, b"", absent, true, stamp, valid.expires()) {
            Some(row) => self.put(|| self.tables.put_xattr(&key, &row)),
            None => count(&self.refused),
        }
    }

    /// What GETXATTR of a name answers, whoever asks: the value, or an errno.
    pub fn publish_xattr(
        &self,
        nodeid: NodeId,
        name: &[u8],
        value: Result<&[u8], i32>,
        at: Snapshot,
        valid: Validity,
    ) {
        if nodeid.0 == 0 {
            return count(&self.refused);
        }
        let key = XattrKey {
            nodeid: nodeid.0,
            hash: row::name_hash(self.key, name),
        };
        self.publish_xattr_row(&key, at, valid, |stamp, expires| {
            row::value_row(&key, name, value, stamp, expires)
        });
    }

    /// A name changed behind the kernel's back.
    pub fn invalidate_entry(&self, parent: NodeId, name: &[u8]) {
        self.invalidate(&[Key::Entry(parent, name)]);
    }

    /// A node's attributes changed behind the kernel's back.
    pub fn invalidate_attr(&self, nodeid: NodeId) {
        self.invalidate(&[Key::Attr(nodeid)]);
    }

    /// A node's extended attributes or ACLs changed behind the kernel's back.
    pub fn invalidate_xattr(&self, nodeid: NodeId) {
        self.invalidate(&[Key::Xattr(nodeid)]);
    }

    /// A node's data, or a directory's listing, changed behind the kernel's back.
    pub fn invalidate_data(&self, nodeid: NodeId) {
        self.invalidate(&[Key::Data(nodeid)]);
    }

    /// Any name in a directory may have changed behind the kernel's back.
    pub fn invalidate_dir(&self, nodeid: NodeId) {
        self.invalidate(&[Key::Dir(nodeid)]);
    }

    /// A node is gone, or its id stands for another one now.
    pub fn invalidate_node(&self, nodeid: NodeId) {
        self.invalidate(&[Key::Node(nodeid)]);
    }

    /// Nothing that was published holds any more.
    pub fn invalidate_all(&self) {
        self.invalidate(&[Key::All]);
    }

    /// Announces changes that have happened. No answer is older than them from here on; to keep
    /// readers from seeing the new state and then the old, [`change`](Self::change) is needed.
    pub fn invalidate(&self, keys: &[Key<'_>]) {
        match keys {
            [] => {}
            // The usual case: no allocation.
            [key] => {
                let (slots, used) = self.slots(key);
                self.stamps.changed(&slots[..used]);
            }
            keys => self.stamps.changed(&self.all_slots(keys)),
        }
    }

    /// Announces changes that are about to happen, and, by dropping the guard, that they have
    /// happened or failed. In between none of what they touch is answered from the maps.
    pub fn change(&self, keys: &[Key<'_>]) -> Change<'_> {
        self.stamps.begin(&self.all_slots(keys))
    }

    /// Nothing is current this long from now, whatever its validity; `None` lifts that. For a
    /// lease on everything: reckon from when its renewal was asked, not from when it came.
    pub fn deadline(&self, left: Option<Duration>) {
        self.stamps.set_deadline(left.map_or(abi::NEVER, boot_time_after));
    }

    /// The same, at that [`boot_time`]: for who does not know how long it takes to say so.
    pub fn deadline_at(&self, boot_time: u64) {
        self.stamps.set_deadline(boot_time);
    }

    /// What became of what was to be published.
    #[must_use]
    pub fn published(&self) -> Published {
        let read = |counter: &atomic::AtomicU64| counter.load(atomic::Ordering::Relaxed);
        Published {
            rows: read(&self.rows),
            stale: read(&self.stale),
            refused: read(&self.refused),
            failed: read(&self.failed),
        }
    }

    /// The row from which a LOOKUP of the name would be answered now: node 0 if it says that there
    /// is none, `None` if the daemon would be asked.
    #[must_use]
    pub fn entry(&self, parent: NodeId, name: &[u8]) -> Option<EntryRow> {
        let key = self.entry_key(parent, name);
        let row = self.tables.entry(&key).ok()??;
        // A row whose check holds has the length of a name; of the name itself the check knows nothing.
        let same = row.name.get(..usize::try_from(row.name_len).ok()?)? == name;
        let proven = same && row.check == row::entry_check(&key, &row);
        let slots = entry_slots(&key, NodeId(row.nodeid));
        (proven && self.serves(&slots, row.stamp, row.expires)).then_some(row)
    }

    /// The row from which a GETATTR of the node would be answered now; `None` if the daemon would
    /// be asked.
    #[must_use]
    pub fn attr(&self, nodeid: NodeId) -> Option<AttrRow> {
        let row = self.tables.attr(nodeid).ok()??;
        let proven = row.check == row::attr_check(nodeid, &row);
        (proven && self.serves(&attr_slots(nodeid), row.stamp, row.expires)).then_some(row)
    }

    /// What a GETXATTR of the name would be answered now; `None` if the daemon would be asked.
    #[must_use]
    pub fn xattr(&self, nodeid: NodeId, name: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        let class = row::xattr_class(name);
        let absent = [nodeid, NodeId(0)].into_iter().find_map(|of| {
            let row = self.xattr_names(of, nodeid)?;
            let listed = names(&row).split(|byte| *byte == 0).any(|listed| listed == name);
            row::absent_errno(&row, class?).filter(|_| !listed)
        });
        if let Some(errno) = absent {
            return Some(Err(errno));
        }
        let key = XattrKey {
            nodeid: nodeid.0,
            hash: row::name_hash(self.key, name),
        };
        let row = self.xattr_row(&key, nodeid)?;
        let size = usize::try_from(row.size).ok()?;
        let known = row.bytes[abi::XATTR_VALUE_MAX..].get(..usize::try_from(row.name_len).ok()?)?;
        if known != name {
            return None;
        }
        Some(match (row.says & abi::XATTR_ERRNO_MASK) as i32 {
            0 => Ok(row.bytes.get(..size)?.to_vec()),
            errno => Err(errno),
        })
    }

    /// What a LISTXATTR would be answered now; `None` if the daemon would be asked.
    #[must_use]
    pub fn xattr_list(&self, nodeid: NodeId) -> Option<Vec<u8>> {
        [nodeid, NodeId(0)].into_iter().find_map(|of| {
            let row = self.xattr_names(of, nodeid)?;
            (row.says & abi::XATTR_LISTED != 0).then(|| names(&row).to_vec())
        })
    }

    /// The names that are known of a node, or, of node 0, of every node, if that holds for `asked`.
    fn xattr_names(&self, of: NodeId, asked: NodeId) -> Option<XattrRow> {
        let key = XattrKey {
            nodeid: of.0,
            hash: 0,
        };
        self.xattr_row(&key, asked)
    }

    fn xattr_row(&self, key: &XattrKey, asked: NodeId) -> Option<XattrRow> {
        let row = self.tables.xattr(key).ok()??;
        let slots = xattr_slots(NodeId(key.nodeid), asked);
        let needed = match row.says & abi::XATTR_DATA {
            0 => &slots[..2],
            _ => &slots[..],
        };
        let proven = row.check == row::xattr_check(key, &row);
        (proven && self.serves(needed, row.stamp, row.expires)).then_some(row)
    }

    fn publish_xattr_row(
        &self,
        key: &XattrKey,
        at: Snapshot,
        valid: Validity,
        row: impl FnOnce(u64, u64) -> Option<XattrRow>,
    ) {
        let node = NodeId(key.nodeid);
        let Some(stamp) = self.publishable(&xattr_slots(node, node)[..2], at, valid) else {
            return;
        };
        match row(stamp, valid.expires()) {
            Some(row) => self.put(|| self.tables.put_xattr(key, &row)),
            None => count(&self.refused),
        }
    }

    fn publish_name(
        &self,
        parent: NodeId,
        name: &[u8],
        node: Option<(NodeId, u64)>,
        at: Snapshot,
        valid: Validity,
    ) {
        let key = self.entry_key(parent, name);
        let slots = entry_slots(&key, node.map_or(NodeId(0), |(nodeid, _)| nodeid));
        let Some(stamp) = self.publishable(&slots, at, valid) else {
            return;
        };
        match row::entry_row(&key, name, node, stamp, valid.expires()) {
            Some(row) => self.put(|| self.tables.put_entry(&key, &row)),
            None => count(&self.refused),
        }
    }

    /// The stamp, if publishing is worth it. It saves a row, not a check: whether an answer is
    /// current is decided when it is served.
    fn publishable(&self, slots: &[Slot], at: Snapshot, valid: Validity) -> Option<u64> {
        let stamp = at
            .stamp()
            .filter(|stamp| valid != Validity::For(Duration::ZERO) && self.stamps.current(slots, *stamp));
        if stamp.is_none() {
            count(&self.stale);
        }
        stamp
    }

    fn put(&self, put: impl FnOnce() -> io::Result<()>) {
        match put() {
            Ok(()) => count(&self.rows),
            Err(error) => {
                count(&self.failed);
                tracing::debug!(%error, "a row could not be published");
            }
        }
    }

    fn serves(&self, slots: &[Slot], stamp: u64, expires: u64) -> bool {
        let ends = expires.min(self.stamps.deadline());
        self.stamps.current(slots, stamp) && (ends == abi::NEVER || boot_time() < ends)
    }

    fn entry_key(&self, parent: NodeId, name: &[u8]) -> EntryKey {
        EntryKey {
            parent: parent.0,
            hash: row::name_hash(self.key, name),
        }
    }

    fn all_slots(&self, keys: &[Key<'_>]) -> Vec<Slot> {
        keys.iter()
            .flat_map(|key| {
                let (slots, used) = self.slots(key);
                slots.into_iter().take(used)
            })
            .collect()
    }

    /// The slots that a change of `key` touches, and how many of the array they are.
    fn slots(&self, key: &Key<'_>) -> ([Slot; 6], usize) {
        let one = |slot| ([slot; 6], 1);
        // What is said of the extended attributes of every node.
        let any_xattr = Slot::node(NodeId(0), SlotKind::EXTFUSE_SLOT_XATTR);
        match *key {
            Key::Entry(parent, name) => one(Slot::entry(parent, row::name_hash(self.key, name))),
            Key::Attr(nodeid) => one(Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_ATTR)),
            Key::Xattr(nodeid) => {
                let (mut slots, _) = one(any_xattr);
                slots[1] = Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_XATTR);
                (slots, 2)
            }
            Key::Data(nodeid) => one(Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_DATA)),
            Key::Dir(nodeid) => one(Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_DIR)),
            Key::Node(nodeid) => {
                let kinds = [
                    SlotKind::EXTFUSE_SLOT_NODE,
                    SlotKind::EXTFUSE_SLOT_ATTR,
                    SlotKind::EXTFUSE_SLOT_XATTR,
                    SlotKind::EXTFUSE_SLOT_DATA,
                    SlotKind::EXTFUSE_SLOT_DIR,
                ];
                let mut slots = [any_xattr; 6];
                for (slot, kind) in slots[1..].iter_mut().zip(kinds) {
                    *slot = Slot::node(nodeid, kind);
                }
                (slots, slots.len())
            }
            Key::Group(group) => self.slots(&Key::Node(group.first())),
            Key::All => one(Slot::CONNECTION),
        }
    }
}

/// What a binding depends on. For a negative one `nodeid` is 0, whose slot is like any other's.
fn entry_slots(key: &EntryKey, nodeid: NodeId) -> [Slot; 4] {
    let parent = NodeId(key.parent);
    [
        Slot::entry(parent, key.hash),
        Slot::node(parent, SlotKind::EXTFUSE_SLOT_DIR),
        Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_NODE),
        Slot::CONNECTION,
    ]
}

/// What attributes depend on; without the first, what passthrough depends on.
fn attr_slots(nodeid: NodeId) -> [Slot; 3] {
    [
        Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_ATTR),
        Slot::node(nodeid, SlotKind::EXTFUSE_SLOT_NODE),
        Slot::CONNECTION,
    ]
}

/// What a row of extended attributes of a node, or of every node, depends on, when it is asked for
/// `asked`; the last one only if the data may change it.
fn xattr_slots(of: NodeId, asked: NodeId) -> [Slot; 3] {
    [
        Slot::node(of, SlotKind::EXTFUSE_SLOT_XATTR),
        Slot::CONNECTION,
        Slot::node(asked, SlotKind::EXTFUSE_SLOT_DATA),
    ]
}

/// The names in a row whose check holds.
fn names(row: &XattrRow) -> &[u8] {
    row.bytes.get(..row.size as usize).unwrap_or_default()
}

fn count(counter: &atomic::AtomicU64) {
    counter.fetch_add(1, atomic::Ordering::Relaxed);
}
