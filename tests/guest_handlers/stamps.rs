// SPDX-License-Identifier: MIT OR Apache-2.0
//! The module's table: which operation changes which slots.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use extfuse::abi::{CLOCK_MAX, NodeId, SLOTS, SlotKind};
use extfuse::ebpf::row::name_hash;
use extfuse::ebpf::stamps::Slot;
use extfuse::sys::device::StampsMapping;
use fuser::INodeNo;
use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::harness::{GETATTR, Hostile, Mounted};

const ATTR: SlotKind = SlotKind::EXTFUSE_SLOT_ATTR;
const XATTR: SlotKind = SlotKind::EXTFUSE_SLOT_XATTR;
const DATA: SlotKind = SlotKind::EXTFUSE_SLOT_DATA;
const NODE: SlotKind = SlotKind::EXTFUSE_SLOT_NODE;
const DIR: SlotKind = SlotKind::EXTFUSE_SLOT_DIR;
const ROOT: u64 = 1;
/// What is said of the extended attributes of every node.
const ANY: u64 = 0;
/// What FORGET changes.
const FORGOTTEN: [SlotKind; 5] = [ATTR, XATTR, DATA, NODE, DIR];

/// A mount, its stamps, and a way to learn nodeids.
struct Bench {
    mounted: Mounted,
    stamps: StampsMapping,
    hostile: Hostile,
}

fn node(nodeid: u64, kinds: &[SlotKind]) -> Vec<u32> {
    kinds
        .iter()
        .map(|kind| Slot::node(NodeId(nodeid), *kind).index())
        .collect()
}

impl Bench {
    fn new() -> Self {
        let mounted = Mounted::new();
        let stamps = mounted.device().map_stamps().unwrap();
        let hostile = Hostile::on(&mounted, GETATTR);
        Self {
            mounted,
            stamps,
            hostile,
        }
    }

    fn nodeid(&self, path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap();
        self.hostile.seen().last.nodeid
    }

    fn file(&self, name: &str) -> u64 {
        self.nodeid(&self.mounted.file(name))
    }

    fn dir(&self, name: &str) -> u64 {
        let path = self.mounted.at.join(name);
        fs::create_dir(&path).unwrap();
        self.nodeid(&path)
    }

    fn entry(&self, parent: u64, name: &str) -> Vec<u32> {
        let hash = name_hash(self.mounted.setup().key, name.as_bytes());
        let mut slots = vec![Slot::entry(NodeId(parent), hash).index()];
        slots.extend(node(parent, &[ATTR, DATA]));
        slots
    }

    fn words(&self) -> &[AtomicU64] {
        self.stamps.as_ref()
    }

    fn slots(&self) -> Vec<u64> {
        self.words()[512..]
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect()
    }

    /// `what` changes exactly these slots, leaves none in flight and moves the clock.
    fn changes<T>(&self, expected: &[Vec<u32>], what: impl FnOnce() -> T) -> T {
        let (before, clock) = (self.slots(), self.words()[0].load(Ordering::Relaxed));
        let result = what();
        let after = self.slots();
        assert_eq!(after.len(), SLOTS);
        let changed: BTreeSet<u32> = (0..)
            .zip(before.iter().zip(&after))
            .filter(|(_, (old, new))| old != new)
            .map(|(slot, _)| slot)
            .collect();
        let expected: BTreeSet<u32> = expected.iter().flatten().copied().collect();
        assert_eq!(changed, expected);
        for slot in &changed {
            let last = after[*slot as usize];
            assert!(last <= CLOCK_MAX, "slot {slot} is still in flight: {last:#x}");
            assert!(last > clock, "slot {slot} is older than the change");
        }
        result
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.mounted.at.join(name)
    }
}

#[test]
fn looking_changes_nothing() {
    let bench = Bench::new();
    bench.file("file");
    bench.dir("dir");
    bench.changes(&[], || {
        fs::metadata(bench.path("file")).unwrap();
        assert!(!bench.path("missing").exists());
        fs::read(bench.path("file")).unwrap();
        fs::read_dir(bench.path("dir")).unwrap().count();
        nix::sys::statvfs::statvfs(&bench.path("file")).unwrap();
    });
}

#[test]
fn attributes() {
    let bench = Bench::new();
    let file = bench.file("file");
    bench.changes(&[node(file, &[ATTR, XATTR])], || {
        fs::set_permissions(bench.path("file"), fs::Permissions::from_mode(0o600)).unwrap();
    });
    bench.changes(&[node(file, &[ATTR, XATTR, DATA])], || {
        nix::unistd::truncate(&bench.path("file"), 1).unwrap()
    });
    // A change that fails is one all the same: nobody knows how far it got.
    bench.changes(&[node(file, &[ATTR, XATTR, DATA])], || {
        nix::unistd::truncate(&bench.path("file"), i64::MAX).unwrap_err();
    });
}

#[test]
fn data() {
    let bench = Bench::new();
    let file = bench.file("file");
    let open = bench.changes(&[], || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(bench.path("file"))
            .unwrap()
    });
    bench.changes(&[node(file, &[ATTR, DATA])], || {
        open.write_all_at(b"x", 0).unwrap()
    });
    bench.changes(&[], || open.read_exact_at(&mut [0], 0).unwrap());
    bench.changes(&[node(file, &[ATTR, DATA])], || {
        nix::fcntl::fallocate(&open, nix::fcntl::FallocateFlags::empty(), 0, 4096).unwrap();
    });
    // FLUSH and RELEASE of what may have written. RELEASE is not waited for: a look at the file is
    // behind it in the daemon's queue, not at its end in the kernel.
    bench.changes(&[node(file, &[ATTR])], || {
        drop(open);
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
    bench.changes(&[node(file, &[ATTR, XATTR, DATA])], || {
        drop(
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_TRUNC)
                .open(bench.path("file"))
                .unwrap(),
        );
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
    bench.changes(&[], || {
        File::open(bench.path("file"))
            .unwrap()
            .read_to_end(&mut Vec::new())
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
}

#[test]
fn spliced_and_copied_data() {
    let bench = Bench::new();
    let (from, to) = (bench.file("from"), bench.file("to"));
    let source = File::open(bench.path("from")).unwrap();
    let mut target = OpenOptions::new().write(true).open(bench.path("to")).unwrap();
    bench.changes(&[node(to, &[ATTR, DATA])], || {
        nix::fcntl::copy_file_range(&source, None, &target, None, 4).unwrap();
    });
    let (out, mut into) = std::io::pipe().unwrap();
    into.write_all(b"spliced").unwrap();
    bench.changes(&[node(to, &[ATTR, DATA])], || {
        nix::fcntl::splice(&out, None, &target, None, 7, nix::fcntl::SpliceFFlags::empty()).unwrap();
    });
    bench.changes(&[node(to, &[ATTR, DATA])], || target.write_all(b"!").unwrap());
    assert_eq!(
        fs::read(bench.mounted.source.join("to")).unwrap(),
        b"fromspliced!"
    );
    assert_ne!(from, to);
}

#[test]
fn a_writable_shared_mapping_is_in_flight_until_the_inode_goes() {
    let bench = Bench::new();
    let file = bench.file("file");
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(bench.path("file"))
        .unwrap();
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    // SAFETY: a new mapping of a file that is not truncated while it is mapped.
    let mapped = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
            &open,
            0,
        )
        .unwrap()
    };
    let slots = node(file, &[ATTR, DATA]);
    let in_flight = || slots.iter().all(|slot| bench.slots()[*slot as usize] > CLOCK_MAX);
    assert!(in_flight());
    // SAFETY: nothing refers to it.
    unsafe { munmap(mapped, 4096).unwrap() };
    drop(open);
    fs::metadata(bench.path("file")).unwrap();
    fs::remove_file(bench.path("file")).unwrap();
    bench.mounted.forget_unused();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!in_flight());
}

#[test]
fn names() {
    let bench = Bench::new();
    let dir = bench.dir("dir");
    let made = bench.entry(dir, "made");
    bench.changes(std::slice::from_ref(&made), || {
        fs::create_dir(bench.path("dir/made")).unwrap()
    });
    let victim = bench.nodeid(&bench.path("dir/made"));
    // With its last link and nobody looking, the node is forgotten too.
    bench.changes(&[made, node(victim, &FORGOTTEN)], || {
        fs::remove_dir(bench.path("dir/made")).unwrap()
    });
    bench.changes(&[bench.entry(dir, "link")], || {
        symlink("target", bench.path("dir/link")).unwrap()
    });
    bench.changes(&[bench.entry(dir, "fifo")], || {
        nix::unistd::mkfifo(&bench.path("dir/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    let file = bench.file("file");
    bench.changes(&[bench.entry(dir, "hard"), node(file, &[ATTR])], || {
        fs::hard_link(bench.path("file"), bench.path("dir/hard")).unwrap();
    });
    bench.changes(&[bench.entry(dir, "hard"), node(file, &[ATTR, NODE])], || {
        fs::remove_file(bench.path("dir/hard")).unwrap();
    });
    // 255 bytes that are not text.
    let name: Vec<u8> = (0..255).map(|i| if i % 2 == 0 { 0xff } else { b'a' }).collect();
    let name = std::os::unix::ffi::OsStrExt::from_bytes(name.as_slice());
    let hash = name_hash(
        bench.mounted.setup().key,
        std::os::unix::ffi::OsStrExt::as_bytes(name),
    );
    let mut slots = vec![Slot::entry(NodeId(dir), hash).index()];
    slots.extend(node(dir, &[ATTR, DATA]));
    bench.changes(&[slots], || {
        fs::create_dir(bench.path("dir").join::<&OsStr>(name)).unwrap()
    });
}

#[test]
fn renames() {
    let bench = Bench::new();
    let (one, two) = (bench.dir("one"), bench.dir("two"));
    let (a, b) = (bench.file("one/a"), bench.file("two/b"));
    let rename = |from: &str, to: &str, flags| {
        renameat2(
            nix::fcntl::AT_FDCWD,
            &bench.path(from),
            nix::fcntl::AT_FDCWD,
            &bench.path(to),
            flags,
        )
    };
    let mut both = [
        bench.entry(one, "a"),
        bench.entry(two, "b"),
        node(a, &[ATTR]),
        node(b, &[ATTR, NODE]), // it loses a name
    ];
    bench.changes(&both, || {
        rename("one/a", "two/b", RenameFlags::RENAME_EXCHANGE).unwrap()
    });
    // Over b, which is at one/a now and goes.
    both[3] = node(b, &FORGOTTEN);
    bench.changes(&both, || rename("two/b", "one/a", RenameFlags::empty()).unwrap());
    bench.changes(
        &[bench.entry(one, "a"), bench.entry(two, "c"), node(a, &[ATTR])],
        || {
            rename("one/a", "two/c", RenameFlags::RENAME_NOREPLACE).unwrap();
        },
    );
}

#[test]
fn extended_attributes() {
    let bench = Bench::new();
    let file = bench.file("file");
    let attr = |arguments: &[&str]| {
        assert!(
            Command::new("setfattr")
                .args(arguments)
                .arg(bench.path("file"))
                .status()
                .unwrap()
                .success()
        );
    };
    let slots = [node(file, &[ATTR, XATTR]), node(ANY, &[XATTR])];
    bench.changes(&slots, || attr(&["-n", "user.a", "-v", "b"]));
    bench.changes(&slots, || attr(&["-x", "user.a"]));
}

#[test]
fn forgetting() {
    let bench = Bench::new();
    let file = bench.file("file");
    bench.changes(&[node(file, &FORGOTTEN)], || bench.mounted.forget_unused());
}

#[test]
fn notifications() {
    let bench = Bench::new();
    let file = bench.file("file");
    let notifier = &bench.mounted.notifier;
    bench.changes(&[node(file, &[ATTR, XATTR, DATA]), node(ANY, &[XATTR])], || {
        notifier.inval_inode(INodeNo(file), 0, 0).unwrap()
    });
    bench.changes(&[node(777, &[ATTR, XATTR, DATA]), node(ANY, &[XATTR])], || {
        notifier.inval_inode(INodeNo(777), 0, 0).unwrap()
    });
    // The name goes, and with it the node.
    bench.changes(&[bench.entry(ROOT, "file"), node(file, &FORGOTTEN)], || {
        notifier.inval_entry(INodeNo(ROOT), OsStr::new("file")).unwrap();
    });
    bench.changes(&[bench.entry(ROOT, "other"), node(778, &[ATTR])], || {
        notifier
            .delete(INodeNo(ROOT), INodeNo(778), OsStr::new("other"))
            .unwrap();
    });
}
