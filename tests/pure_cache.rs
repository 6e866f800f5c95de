// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon's side of the maps and stamps, over memory of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use extfuse::abi::{self, AttrRow, EntryKey, EntryRow, NodeId, SlotKind, StampsLayout};
use extfuse::ebpf::cache::Published;
use extfuse::ebpf::row::{self, boot_time};
use extfuse::ebpf::stamps::Slot;
use extfuse::ebpf::tables::{InMemory, Tables};
use extfuse::ebpf::{Absent, Cache, Group, Key, NodeIo, Snapshot, Stamps, Validity};
use fuser::{FileAttr, FileType, INodeNo};
use proptest::prelude::*;

const DIR: NodeId = NodeId::ROOT;
const NODE: NodeId = NodeId(7);
const ALWAYS: Validity = Validity::UntilChanged;
const HEADER: usize = std::mem::offset_of!(StampsLayout, slot) / 8;
const CLOCK: usize = std::mem::offset_of!(StampsLayout, clock) / 8;
const DEADLINE: usize = std::mem::offset_of!(StampsLayout, deadline) / 8;

fn attr(kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(1 << 40),
        size: 12345,
        blocks: 24,
        atime: UNIX_EPOCH + Duration::new(1, 2),
        mtime: UNIX_EPOCH + Duration::new(3, 4),
        ctime: UNIX_EPOCH + Duration::new(5, 6),
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o4755,
        nlink: 2,
        uid: 1000,
        gid: 100,
        rdev: 0x0801,
        blksize: 4096,
        flags: 0xffff_ffff,
    }
}

fn publish_all(cache: &Cache) {
    let at = cache.snapshot();
    cache.publish_entry(DIR, b"name", NODE, 3, at, ALWAYS);
    cache.publish_negative(DIR, b"absent", at, ALWAYS);
    cache.publish_attr(
        NODE,
        &attr(FileType::RegularFile),
        NodeIo::Passthrough,
        at,
        ALWAYS,
    );
}

/// What is served of `name`, `absent` and the attributes.
fn served(cache: &Cache) -> [bool; 3] {
    [
        cache.entry(DIR, b"name").is_some(),
        cache.entry(DIR, b"absent").is_some(),
        cache.attr(NODE).is_some(),
    ]
}

/// Stamps whose words the test sees.
struct Shared(Arc<Vec<AtomicU64>>);

impl AsRef<[AtomicU64]> for Shared {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn shared(clock: u64) -> (Arc<Vec<AtomicU64>>, Stamps) {
    let words: Arc<Vec<_>> = Arc::new((0..HEADER + abi::SLOTS).map(|_| AtomicU64::new(0)).collect());
    words[CLOCK].store(clock, Ordering::SeqCst);
    words[DEADLINE].store(abi::NEVER, Ordering::SeqCst);
    (words.clone(), Stamps::new(Shared(words)))
}

fn word(words: &[AtomicU64], slot: Slot) -> u64 {
    words[HEADER + slot.index() as usize].load(Ordering::SeqCst)
}

#[test]
fn what_was_published_is_served() {
    let cache = Cache::in_memory();
    publish_all(&cache);
    let entry = cache.entry(DIR, b"name").unwrap();
    assert_eq!((entry.nodeid, entry.generation), (7, 3));
    assert_eq!(cache.entry(DIR, b"absent").unwrap().nodeid, 0);
    let row = cache.attr(NODE).unwrap();
    assert_eq!(row.flags, abi::ATTR_PASSTHRU);
    assert_eq!(row.attr.size, 12345);
    assert!(cache.entry(DIR, b"other").is_none());
    assert!(cache.entry(NODE, b"name").is_none());
    assert!(cache.attr(NodeId(8)).is_none());
    let rows = Published {
        rows: 3,
        ..Published::default()
    };
    assert_eq!(cache.published(), rows);
}

#[test]
fn each_invalidation_takes_what_it_names() {
    type Invalidate = fn(&Cache);
    let cases: [(&str, Invalidate, [bool; 3]); 10] = [
        (
            "entry",
            |cache| cache.invalidate_entry(DIR, b"name"),
            [false, true, true],
        ),
        (
            "negative",
            |cache| cache.invalidate_entry(DIR, b"absent"),
            [true, false, true],
        ),
        ("attr", |cache| cache.invalidate_attr(NODE), [true, true, false]),
        ("xattr", |cache| cache.invalidate_xattr(NODE), [true, true, true]),
        ("data", |cache| cache.invalidate_data(NODE), [true, true, true]),
        ("dir", |cache| cache.invalidate_dir(DIR), [false, false, true]),
        ("node", |cache| cache.invalidate_node(NODE), [false, true, false]),
        (
            "directory's node",
            |cache| cache.invalidate_node(DIR),
            [false, false, true],
        ),
        ("all", Cache::invalidate_all, [false, false, false]),
        ("nothing", |cache| cache.invalidate(&[]), [true, true, true]),
    ];
    for (name, invalidate, left) in cases {
        let cache = Cache::in_memory();
        publish_all(&cache);
        assert_eq!(served(&cache), [true; 3]);
        invalidate(&cache);
        assert_eq!(served(&cache), left, "{name}");
        publish_all(&cache);
        assert_eq!(served(&cache), [true; 3], "{name}, published again");
    }
}

#[test]
fn an_answer_asked_before_a_change_is_not_published_after_it() {
    let cache = Cache::in_memory();
    let at = cache.snapshot();
    cache.invalidate(&[Key::Entry(DIR, b"name"), Key::Attr(NODE)]);
    cache.publish_entry(DIR, b"name", NODE, 3, at, ALWAYS);
    cache.publish_attr(NODE, &attr(FileType::Directory), NodeIo::Daemon, at, ALWAYS);
    cache.publish_negative(DIR, b"absent", at, ALWAYS);
    assert_eq!(served(&cache), [false, true, false]);
    assert_eq!(
        cache.published(),
        Published {
            rows: 1,
            stale: 2,
            ..Published::default()
        }
    );
}

#[test]
fn passthrough_is_published_while_attributes_change_but_not_for_another_node() {
    let tables = Arc::new(InMemory::default());
    let cache = Cache::new(Stamps::in_memory(abi::SLOTS), Handle(tables.clone()), [1, 2]);
    let at = cache.snapshot();
    let change = cache.change(&[Key::Attr(NODE)]);
    cache.publish_attr(
        NODE,
        &attr(FileType::RegularFile),
        NodeIo::Passthrough,
        at,
        ALWAYS,
    );
    assert_eq!(tables.attr(NODE).unwrap().unwrap().flags, abi::ATTR_PASSTHRU);
    drop(change);
    assert!(cache.attr(NODE).is_none());

    let other = NodeId(8);
    let at = cache.snapshot();
    cache.invalidate_node(other);
    cache.publish_attr(
        other,
        &attr(FileType::RegularFile),
        NodeIo::Passthrough,
        at,
        ALWAYS,
    );
    assert!(tables.attr(other).unwrap().is_none());
}

#[test]
fn nothing_is_served_while_a_change_is_in_flight_nor_after_it() {
    let cache = Cache::in_memory();
    publish_all(&cache);
    let change = cache.change(&[Key::Attr(NODE), Key::Entry(DIR, b"name")]);
    assert_eq!(served(&cache), [false, true, false]);
    publish_all(&cache);
    assert_eq!(served(&cache), [false, true, false]);
    drop(change);
    assert_eq!(served(&cache), [false, true, false]);
    publish_all(&cache);
    assert_eq!(served(&cache), [true; 3]);
}

#[test]
fn many_changes_in_flight_are_one_bit_and_leave_the_kernels_alone() {
    let (words, stamps) = shared(10);
    let slot = Slot::node(NODE, SlotKind::EXTFUSE_SLOT_ATTR);
    let kernels = 0xffe * abi::FLIGHT_KERNEL;
    words[HEADER + slot.index() as usize].store(kernels | 5, Ordering::SeqCst);
    let changes: Vec<_> = (0..100)
        .map(|_| stamps.begin(&[slot, slot, Slot::CONNECTION]))
        .collect();
    assert_eq!(word(&words, slot), kernels | abi::FLIGHT_DAEMON | 5);
    let mut time = 10;
    for (left, change) in (0..100).rev().zip(changes) {
        drop(change);
        time += 1;
        let flight = if left > 0 { abi::FLIGHT_DAEMON } else { 0 };
        assert_eq!(word(&words, slot), kernels | flight | time);
        assert_eq!(word(&words, Slot::CONNECTION), flight | time);
    }
    stamps.changed(&[slot]);
    assert_eq!(word(&words, slot), kernels | (time + 1));
}

#[test]
fn changes_of_many_threads_end_in_nothing_in_flight() {
    let (words, stamps) = shared(1);
    let slots: Vec<_> = (1..5)
        .map(|node| Slot::node(NodeId(node), SlotKind::EXTFUSE_SLOT_ATTR))
        .collect();
    thread::scope(|scope| {
        for skip in 0..4 {
            let (stamps, slots, words) = (&stamps, &slots, &words);
            scope.spawn(move || {
                for round in 0..2000 {
                    let mine = &slots[skip..];
                    let change = stamps.begin(mine);
                    assert!(
                        mine.iter()
                            .all(|slot| word(words, *slot) & abi::FLIGHT_DAEMON_MASK != 0)
                    );
                    if round % 3 == 0 {
                        stamps.changed(slots);
                    }
                    drop(change);
                }
            });
        }
    });
    let now = words[CLOCK].load(Ordering::SeqCst);
    assert!(slots.iter().all(|slot| word(&words, *slot) <= now));
}

#[test]
fn a_change_never_takes_the_time_of_a_later_one_back() {
    let (words, stamps) = shared(10);
    let slot = Slot::node(NODE, SlotKind::EXTFUSE_SLOT_DATA);
    words[HEADER + slot.index() as usize].store(1000, Ordering::SeqCst);
    stamps.changed(&[slot]);
    assert_eq!(word(&words, slot), 1000);
    drop(stamps.begin(&[slot]));
    assert_eq!(word(&words, slot), 1000);
}

#[test]
fn a_clock_that_has_run_out_voids_everything() {
    let (words, stamps) = shared(abi::CLOCK_MAX - 1);
    let cache = Cache::new(stamps, InMemory::default(), [1, 2]);
    publish_all(&cache);
    assert_eq!(served(&cache), [true; 3]);
    cache.invalidate_attr(NODE);
    assert_eq!(served(&cache), [true, true, false]);
    assert_eq!(cache.snapshot(), Snapshot::VOID);
    publish_all(&cache);
    assert_eq!(
        cache.published(),
        Published {
            rows: 3,
            stale: 3,
            ..Published::default()
        }
    );
    cache.invalidate_all();
    assert_eq!(served(&cache), [false; 3]);
    assert_eq!(cache.snapshot(), Snapshot::VOID);
    assert_eq!(word(&words, Slot::CONNECTION), abi::CLOCK_MAX);
}

#[test]
fn what_the_kernel_has_ended_stays_ended() {
    let (words, stamps) = shared(10);
    let change = stamps.begin(&[Slot::CONNECTION]);
    words[HEADER].store(u64::MAX, Ordering::SeqCst);
    drop(change);
    stamps.changed(&[Slot::CONNECTION]);
    assert!(!stamps.current(&[Slot::CONNECTION], abi::CLOCK_MAX));
    assert_eq!(
        word(&words, Slot::CONNECTION) & abi::FLIGHT_KERNEL_MASK,
        abi::FLIGHT_KERNEL_MASK
    );
}

#[test]
fn rows_expire() {
    let cache = Cache::in_memory();
    let at = cache.snapshot();
    let before = boot_time();
    cache.publish_entry(
        DIR,
        b"name",
        NODE,
        3,
        at,
        Validity::For(Duration::from_millis(30)),
    );
    cache.publish_attr(
        NODE,
        &attr(FileType::RegularFile),
        NodeIo::Daemon,
        at,
        Validity::For(Duration::from_secs(1000)),
    );
    let expires = cache.attr(NODE).unwrap().expires;
    assert!(expires >= before + 1_000_000_000_000 && expires <= boot_time() + 1_000_000_000_000);
    thread::sleep(Duration::from_millis(40));
    assert_eq!(served(&cache), [false, false, true]);
    assert_eq!(Validity::For(Duration::MAX).expires(), abi::NEVER);
    assert_eq!(Validity::UntilChanged.expires(), abi::NEVER);
}

#[test]
fn an_answer_without_validity_is_not_published() {
    let cache = Cache::in_memory();
    cache.publish_negative(DIR, b"absent", cache.snapshot(), Validity::For(Duration::ZERO));
    assert_eq!(
        cache.published(),
        Published {
            stale: 1,
            ..Published::default()
        }
    );
}

#[test]
fn nothing_is_served_past_the_deadline() {
    let cache = Cache::in_memory();
    publish_all(&cache);
    cache.deadline(Some(Duration::from_secs(1000)));
    assert_eq!(served(&cache), [true; 3]);
    cache.deadline(Some(Duration::ZERO));
    assert_eq!(served(&cache), [false; 3]);
    cache.deadline(None);
    assert_eq!(served(&cache), [true; 3]);
}

#[test]
fn names_up_to_255_bytes_of_any_bytes_are_published() {
    let cache = Cache::in_memory();
    let longest: Vec<u8> = (1..=255).collect();
    cache.publish_entry(DIR, &longest, NODE, 0, cache.snapshot(), ALWAYS);
    let row = cache.entry(DIR, &longest).unwrap();
    assert_eq!(
        (row.name_len, &row.name[..255], row.name[255]),
        (255, &longest[..], 0)
    );
    assert!(cache.entry(DIR, &longest[..254]).is_none());
}

#[test]
fn what_fuse_cannot_ask_for_is_refused() {
    let cache = Cache::in_memory();
    let at = cache.snapshot();
    cache.publish_entry(DIR, b"", NODE, 0, at, ALWAYS);
    cache.publish_negative(DIR, &[b'x'; 256], at, ALWAYS);
    cache.publish_entry(DIR, b"name", NodeId(0), 0, at, ALWAYS);
    cache.publish_attr(NodeId(0), &attr(FileType::Directory), NodeIo::Daemon, at, ALWAYS);
    assert_eq!(
        cache.published(),
        Published {
            refused: 4,
            ..Published::default()
        }
    );
    assert!(cache.entry(DIR, b"name").is_none());
}

/// Tables shared with the test, or none at all.
#[derive(Debug)]
struct Handle(Arc<InMemory>);

impl Tables for Handle {
    fn put_entry(&self, key: &EntryKey, row: &EntryRow) -> io::Result<()> {
        self.0.put_entry(key, row)
    }
    fn put_attr(&self, nodeid: NodeId, row: &AttrRow) -> io::Result<()> {
        self.0.put_attr(nodeid, row)
    }
    fn entry(&self, key: &EntryKey) -> io::Result<Option<EntryRow>> {
        self.0.entry(key)
    }
    fn attr(&self, nodeid: NodeId) -> io::Result<Option<AttrRow>> {
        self.0.attr(nodeid)
    }
}

#[derive(Debug)]
struct Broken;

impl Tables for Broken {
    fn put_entry(&self, _: &EntryKey, _: &EntryRow) -> io::Result<()> {
        Err(io::ErrorKind::OutOfMemory.into())
    }
    fn put_attr(&self, _: NodeId, _: &AttrRow) -> io::Result<()> {
        Err(io::ErrorKind::OutOfMemory.into())
    }
    fn entry(&self, _: &EntryKey) -> io::Result<Option<EntryRow>> {
        Err(io::ErrorKind::OutOfMemory.into())
    }
    fn attr(&self, _: NodeId) -> io::Result<Option<AttrRow>> {
        Err(io::ErrorKind::OutOfMemory.into())
    }
}

#[test]
fn maps_that_refuse_cost_no_more_than_their_rows() {
    let cache = Cache::new(Stamps::in_memory(abi::SLOTS), Broken, [1, 2]);
    publish_all(&cache);
    assert_eq!(
        cache.published(),
        Published {
            failed: 3,
            ..Published::default()
        }
    );
    assert_eq!(served(&cache), [false; 3]);
}

#[test]
fn a_row_with_any_bit_changed_is_not_served() {
    let tables = Arc::new(InMemory::default());
    let cache = Cache::new(Stamps::in_memory(abi::SLOTS), Handle(tables.clone()), [1, 2]);
    publish_all(&cache);
    let key = EntryKey {
        parent: DIR.0,
        hash: row::name_hash([1, 2], b"name"),
    };
    let entry = tables.entry(&key).unwrap().unwrap();
    let attr_row = tables.attr(NODE).unwrap().unwrap();
    for bit in 0..64 {
        let edits: [fn(&mut EntryRow) -> &mut u64; 6] = [
            |row| &mut row.check,
            |row| &mut row.nodeid,
            |row| &mut row.generation,
            |row| &mut row.stamp,
            |row| &mut row.expires,
            |row| &mut row.name_len,
        ];
        for edit in edits {
            let mut row = entry;
            *edit(&mut row) ^= 1 << bit;
            tables.put_entry(&key, &row).unwrap();
            assert!(cache.entry(DIR, b"name").is_none(), "{row:?}");
        }
        let edits: [fn(&mut AttrRow) -> &mut u64; 5] = [
            |row| &mut row.check,
            |row| &mut row.stamp,
            |row| &mut row.expires,
            |row| &mut row.flags,
            |row| &mut row.attr.size,
        ];
        for edit in edits {
            let mut row = attr_row;
            *edit(&mut row) ^= 1 << bit;
            tables.put_attr(NODE, &row).unwrap();
            assert!(cache.attr(NODE).is_none(), "{row:?}");
        }
    }
    let counted = EntryRow { count: 99, ..entry };
    tables.put_entry(&key, &counted).unwrap();
    assert!(
        cache.entry(DIR, b"name").is_some(),
        "the count is not part of the proof"
    );
    let mut other = entry;
    other.name[3] ^= 1;
    tables.put_entry(&key, &other).unwrap();
    assert!(
        cache.entry(DIR, b"name").is_none(),
        "another name of the same hash"
    );
}

#[test]
fn modes_have_the_bits_of_their_type() {
    let types = [
        (FileType::NamedPipe, libc::S_IFIFO),
        (FileType::CharDevice, libc::S_IFCHR),
        (FileType::BlockDevice, libc::S_IFBLK),
        (FileType::Directory, libc::S_IFDIR),
        (FileType::RegularFile, libc::S_IFREG),
        (FileType::Symlink, libc::S_IFLNK),
        (FileType::Socket, libc::S_IFSOCK),
    ];
    for (kind, bits) in types {
        assert_eq!(row::wire_attr(&attr(kind)).mode, bits | 0o4755);
    }
    let wire = row::wire_attr(&attr(FileType::BlockDevice));
    assert_eq!(
        (wire.ino, wire.blocks, wire.nlink, wire.uid, wire.gid),
        (1 << 40, 24, 2, 1000, 100)
    );
    assert_eq!((wire.rdev, wire.blksize, wire.flags), (0x0801, 4096, 0));
    assert_eq!(
        (wire.atime, wire.atimensec, wire.ctime, wire.ctimensec),
        (1, 2, 5, 6)
    );
}

proptest! {
    /// Seconds and nanoseconds as the kernel's struct timespec64 counts them, before 1970 as well.
    #[test]
    fn times_keep_their_nanoseconds(seconds in -(1_i64 << 40)..1 << 40, nanos in 0..1_000_000_000_u32) {
        let whole = if seconds < 0 {
            UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs())
        } else {
            UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
        };
        let time: SystemTime = whole + Duration::from_nanos(nanos.into());
        let wire = row::wire_attr(&FileAttr { mtime: time, ..attr(FileType::RegularFile) });
        prop_assert_eq!((wire.mtime.cast_signed(), wire.mtimensec), (seconds, nanos));
    }

    #[test]
    fn any_name_is_served_as_published(
        name in proptest::collection::vec(any::<u8>(), 1..=255),
        other in proptest::collection::vec(any::<u8>(), 1..=255),
        parent: u64, nodeid in 1..u64::MAX, generation: u64,
    ) {
        let cache = Cache::in_memory();
        cache.publish_entry(NodeId(parent), &name, NodeId(nodeid), generation, cache.snapshot(), ALWAYS);
        let row = cache.entry(NodeId(parent), &name).unwrap();
        prop_assert_eq!((row.nodeid, row.generation), (nodeid, generation));
        prop_assert_eq!(cache.entry(NodeId(parent), &other).is_some(), name == other);
    }
}

/// A subtree in a group: `root` in the root, `root/file`, and the attributes of both; published.
fn publish_subtree(cache: &Cache, group: Group) {
    let [dir, file] = [0, 1].map(|serial| group.node(serial).unwrap());
    let at = cache.snapshot();
    cache.publish_entry(DIR, format!("{}", group.number()).as_bytes(), dir, 0, at, ALWAYS);
    cache.publish_entry(dir, b"file", file, 0, at, ALWAYS);
    cache.publish_negative(dir, b"absent", at, ALWAYS);
    for (node, kind) in [(dir, FileType::Directory), (file, FileType::RegularFile)] {
        cache.publish_attr(node, &attr(kind), NodeIo::Daemon, at, ALWAYS);
        cache.publish_xattr_names(Some(node), b"", Absent::all(libc::ENODATA), true, at, ALWAYS);
    }
}

/// How much of it is served.
fn subtree(cache: &Cache, group: Group) -> usize {
    let [dir, file] = [0, 1].map(|serial| group.node(serial).unwrap());
    [
        cache
            .entry(DIR, format!("{}", group.number()).as_bytes())
            .is_some(),
        cache.entry(dir, b"file").is_some(),
        cache.entry(dir, b"absent").is_some(),
        cache.attr(dir).is_some(),
        cache.attr(file).is_some(),
        cache.xattr_list(dir).is_some(),
        cache.xattr_list(file).is_some(),
    ]
    .into_iter()
    .filter(|served| *served)
    .count()
}

#[test]
fn a_group_is_voided_as_a_whole_and_alone() {
    let cache = Cache::in_memory();
    let [one, other] = [3, 4].map(|number| Group::new(number).unwrap());
    publish_all(&cache);
    publish_subtree(&cache, one);
    publish_subtree(&cache, other);
    assert_eq!((subtree(&cache, one), subtree(&cache, other)), (7, 7));
    let before = cache.snapshot().stamp().unwrap();
    cache.invalidate(&[Key::Group(one)]);
    assert_eq!(cache.snapshot().stamp().unwrap(), before + 1, "one tick");
    assert_eq!((subtree(&cache, one), subtree(&cache, other)), (0, 7));
    assert_eq!(served(&cache), [true; 3]);
    publish_subtree(&cache, one);
    assert_eq!(subtree(&cache, one), 7);
    // In flight, all of it.
    let change = cache.change(&[Key::Group(one)]);
    assert_eq!((subtree(&cache, one), subtree(&cache, other)), (0, 7));
    publish_subtree(&cache, one);
    assert_eq!(subtree(&cache, one), 0);
    drop(change);
    publish_subtree(&cache, one);
    assert_eq!(subtree(&cache, one), 7);
}

proptest! {
    #[test]
    fn members_of_a_group_share_their_slots(number in 0..Group::MAX, other in 0..Group::MAX, serial in 0..1_u64 << 48) {
        const KINDS: [SlotKind; 5] = [
            SlotKind::EXTFUSE_SLOT_ATTR,
            SlotKind::EXTFUSE_SLOT_XATTR,
            SlotKind::EXTFUSE_SLOT_DATA,
            SlotKind::EXTFUSE_SLOT_DIR,
            SlotKind::EXTFUSE_SLOT_NODE,
        ];
        let slots = |node: NodeId| KINDS.map(|kind| Slot::node(node, kind));
        let group = Group::new(number).unwrap();
        let node = group.node(serial).unwrap();
        prop_assert_eq!(Group::of(node), Some((group, serial)));
        prop_assert!(node.0 > 1);
        let own = slots(node);
        prop_assert_eq!(own, slots(group.node(0).unwrap()));
        // Each kind has its own, and none is the connection's.
        for (at, slot) in own.iter().enumerate() {
            prop_assert!(*slot != Slot::CONNECTION && !own[..at].contains(slot));
        }
        if other != number {
            let others = slots(Group::new(other).unwrap().node(serial).unwrap());
            prop_assert!(others.iter().all(|slot| !own.contains(slot)));
        }
        prop_assert_eq!(group.node(serial | 1 << 48), None);
        prop_assert_eq!(Group::new(number + Group::MAX), None);
    }
}
