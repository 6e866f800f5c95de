// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real BPF maps, and programs where there is no module to load them into.

use std::fs;
use std::thread;

use extfuse::abi::{self, AttrRow, EntryKey, EntryRow, NodeId, XattrKey, XattrRow};
use extfuse::ebpf::context::Error;
use extfuse::ebpf::{Cache, Capacity, Context, Learning, Maps, NodeIo, Stamps, Validity};
use fuser::{FileAttr, FileType, INodeNo};
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapHandle, MapType};

const KEY: [u64; 2] = [3, 4];

fn lru(name: &str, key: usize, value: usize, entries: u32) -> MapHandle {
    let opts = bpf_map_create_opts {
        sz: size_of::<bpf_map_create_opts>() as _,
        ..Default::default()
    };
    MapHandle::create(
        MapType::LruHash,
        Some(name),
        key as u32,
        value as u32,
        entries,
        &opts,
    )
    .expect("native tests run as root")
}

/// With rows that are so many bytes too short.
fn xattrs(short: usize, entries: u32) -> MapHandle {
    let (key, row) = (size_of::<XattrKey>(), size_of::<XattrRow>());
    lru("xattr_map", key, row - short, entries)
}

fn maps(entries: u32) -> Maps {
    let entry_map = lru("entry_map", size_of::<EntryKey>(), size_of::<EntryRow>(), entries);
    let attr_map = lru("attr_map", size_of::<NodeId>(), size_of::<AttrRow>(), entries);
    Maps::new(entry_map, attr_map, xattrs(0, entries)).unwrap()
}

fn attr(ino: u64) -> FileAttr {
    let epoch = std::time::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: ino,
        blocks: 1,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[test]
fn rows_come_back_from_bpf_maps_as_published() {
    let cache = Cache::new(Stamps::in_memory(abi::SLOTS), maps(64), KEY);
    let (at, valid) = (cache.snapshot(), Validity::UntilChanged);
    cache.publish_entry(NodeId::ROOT, b"name", NodeId(7), 3, at, valid);
    cache.publish_negative(NodeId::ROOT, &[0xff; 255], at, valid);
    cache.publish_attr(NodeId(7), &attr(7), NodeIo::Passthrough, at, valid);
    let row = cache.entry(NodeId::ROOT, b"name").unwrap();
    assert_eq!((row.nodeid, row.generation), (7, 3));
    assert_eq!(cache.entry(NodeId::ROOT, &[0xff; 255]).unwrap().nodeid, 0);
    assert_eq!(cache.attr(NodeId(7)).unwrap().attr.size, 7);
    assert!(cache.attr(NodeId(8)).is_none());
    cache.publish_xattr(NodeId(7), b"user.a", Ok(b"value"), at, valid);
    assert_eq!(cache.xattr(NodeId(7), b"user.a"), Some(Ok(b"value".to_vec())));
    cache.invalidate_attr(NodeId(7));
    assert!(cache.attr(NodeId(7)).is_none());
    cache.publish_attr(NodeId(7), &attr(9), NodeIo::Passthrough, cache.snapshot(), valid);
    assert_eq!(cache.attr(NodeId(7)).unwrap().attr.size, 9);
}

#[test]
fn full_maps_take_new_rows() {
    let cache = Cache::new(Stamps::in_memory(abi::SLOTS), maps(64), KEY);
    for ino in 1..1000 {
        cache.publish_attr(
            NodeId(ino),
            &attr(ino),
            NodeIo::Daemon,
            cache.snapshot(),
            Validity::UntilChanged,
        );
    }
    assert_eq!(cache.published().rows, 999);
    assert_eq!(cache.attr(NodeId(999)).unwrap().attr.size, 999);
    let served = (1..1000).filter(|ino| cache.attr(NodeId(*ino)).is_some()).count();
    assert!((1..=64).contains(&served), "{served} rows");
}

#[test]
fn maps_with_other_rows_are_refused() {
    let entry_map = lru("entry_map", size_of::<EntryKey>(), size_of::<EntryRow>() - 8, 8);
    let attr_map = lru("attr_map", size_of::<NodeId>(), size_of::<AttrRow>(), 8);
    assert!(Maps::new(entry_map, attr_map, xattrs(0, 8)).is_err());
    let entry_map = lru("entry_map", size_of::<EntryKey>(), size_of::<EntryRow>(), 8);
    let attr_map = lru("attr_map", size_of::<NodeId>(), size_of::<AttrRow>(), 8);
    assert!(Maps::new(entry_map, attr_map, xattrs(8, 8)).is_err());
}

#[test]
fn without_the_module_its_types_are_missed() {
    assert!(
        !fs::exists("/sys/kernel/btf/extfuse").unwrap(),
        "native tests run without the module"
    );
    let error = Context::attach(1, Capacity::default(), Learning::default()).unwrap_err();
    assert!(matches!(error, Error::NoModule(_)), "{error:?}");
    assert!(error.to_string().contains("load extfuse.ko"));
}

#[test]
fn without_privilege_it_is_asked_for() {
    // The system call itself, not libc's function, changes this thread only.
    let unprivileged = thread::spawn(|| {
        // SAFETY: takes numbers.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0);
        Context::attach(1, Capacity::default(), Learning::default()).unwrap_err()
    });
    let error = unprivileged.join().unwrap();
    assert!(matches!(error, Error::Privilege(_)), "{error:?}");
}
