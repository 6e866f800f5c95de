// SPDX-License-Identifier: MIT OR Apache-2.0
//! A backing file is that of one node, not of whatever has its nodeid later.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use extfuse::abi::{NodeId, SlotKind};
use extfuse::ebpf::stamps::Slot;
use extfuse::ebpf::{BackingError, BackingOptions};

use crate::common::eventually;
use crate::harness::{PAGE, Served, assert_bytes, backing_bytes, daemon_bytes};
use crate::kinds::{COPY, OWN};
use crate::reading::one_by_one;

const SIZE: usize = 3 * PAGE as usize;

fn truth(byte: u8) -> File {
    let file = tempfile::tempfile_in("/mnt/ext4").unwrap();
    file.write_all_at(&[byte; SIZE], 0).unwrap();
    file
}

/// Until the daemon has heard that it is forgotten.
fn forget(served: &Served, nodeid: u64) {
    eventually(|| {
        Served::forget_unused();
        served.state.forgotten.lock().unwrap().contains(&nodeid)
    });
}

#[test]
fn a_forgotten_node_has_no_backing_file() {
    let served = Served::new();
    let path = served.file("cached", SIZE as u64);
    let nodeid = served.state.nodeid("cached");
    let spool = served.spool(&backing_bytes(0, SIZE));
    let before = served.snapshot();
    let backing = served.register("cached", &spool, OWN, 0..u64::MAX);
    assert_bytes(&one_by_one(&path), &backing_bytes(0, SIZE), "before");
    forget(&served, nodeid);
    assert!(matches!(
        backing.extend(0..1, served.snapshot()),
        Err(BackingError::Ended)
    ));
    assert!(matches!(backing.withdraw(0..u64::MAX), Err(BackingError::Ended)));
    assert_bytes(&one_by_one(&path), &daemon_bytes(0, SIZE), "after");
    // Known from before it was forgotten: perhaps of another file.
    let nodeid = NodeId(nodeid);
    let late = extfuse::ebpf::Backing::register(&served.device, nodeid, &spool, OWN, 0..u64::MAX, before);
    assert!(matches!(late, Err(BackingError::Stale)), "{late:?}");
    let _again = served.register("cached", &spool, OWN, 0..u64::MAX);
    assert_bytes(&one_by_one(&path), &backing_bytes(0, SIZE), "again");
}

#[test]
fn a_nodeid_that_is_used_again_does_not_get_the_old_file() {
    let served = Served::new();
    let path = served.file("cached", SIZE as u64);
    let nodeid = served.state.nodeid("cached");
    let spool = served.spool(&backing_bytes(0, SIZE));
    let old = served.register("cached", &spool, OWN, 0..u64::MAX);
    assert_bytes(&one_by_one(&path), &backing_bytes(0, SIZE), "the first");
    served.state.remove("cached");
    forget(&served, nodeid);
    served.state.put(OsStr::new("other"), nodeid, 0, truth(0xbb));
    assert_bytes(&one_by_one(&served.path("other")), &[0xbb; SIZE], "the second");
    // Nor does what is done to the old registration reach the new one.
    let _new = served.register("other", &served.spool(&[0x11; SIZE]), OWN, 0..u64::MAX);
    assert!(matches!(old.withdraw(0..u64::MAX), Err(BackingError::Ended)));
    drop(old);
    assert_bytes(&one_by_one(&served.path("other")), &[0x11; SIZE], "its own");
}

/// With another generation while the kernel still holds the first one, which stays what it was.
#[test]
fn nor_one_of_another_generation() {
    let served = Served::new();
    let path = served.file("cached", SIZE as u64);
    let nodeid = served.state.nodeid("cached");
    let _open = File::open(&path).unwrap();
    let _first = served.register("cached", &served.spool(&backing_bytes(0, SIZE)), OWN, 0..u64::MAX);
    served.state.put(OsStr::new("cached"), nodeid, 7, truth(0xbb));
    let seen = fs::read(&path).unwrap();
    assert_bytes(&seen, &[0xbb; SIZE], "another generation");
    let seventh = BackingOptions { generation: 7, ..OWN };
    let spool = served.spool(&[0x22; SIZE]);
    let _second = served.register("cached", &spool, seventh, 0..u64::MAX);
    assert_bytes(&one_by_one(&path), &[0x22; SIZE], "its own");
}

/// By the daemon's reply to LOOKUP, before the kernel has the inode: the first READ is filled.
#[test]
fn registered_when_its_name_is_looked_up() {
    let served = Served::new();
    let path = served.file("cached", SIZE as u64);
    let spool = served.spool(&backing_bytes(0, SIZE));
    let (device, kept) = (
        Arc::clone(&served.device),
        Arc::new(std::sync::Mutex::new(Vec::new())),
    );
    let stamps = extfuse::ebpf::Stamps::new(device.map_stamps().unwrap());
    let held = Arc::clone(&kept);
    *served.state.on_node.lock().unwrap() = Some(Arc::new(move |nodeid, _| {
        let at = stamps.snapshot();
        let end = 0..u64::MAX;
        let backing = extfuse::ebpf::Backing::register(&device, NodeId(nodeid), &spool, OWN, end, at);
        held.lock().unwrap().push(backing.unwrap());
    }));
    assert_bytes(&one_by_one(&path), &backing_bytes(0, SIZE), "the first look");
    assert_eq!(served.upcalls(), 0);
    *served.state.on_node.lock().unwrap() = None;
    // Several: each replaced the one before, and only the last one is the node's.
    let mut kept = std::mem::take(&mut *kept.lock().unwrap());
    let last = kept.pop().unwrap();
    for ended in kept {
        assert!(matches!(ended.withdraw(0..1), Err(BackingError::Ended)));
    }
    last.withdraw(0..u64::MAX).unwrap();
    assert_bytes(&one_by_one(&path), &daemon_bytes(0, SIZE), "withdrawn");
}

/// One atomic operation on the stamps, and no system call.
#[test]
fn a_copy_is_void_with_its_stamp() {
    type Void = fn(&Served, u64);
    let voids: [(&str, Void); 3] = [
        ("its data", |served, nodeid| {
            let slot = Slot::node(NodeId(nodeid), SlotKind::EXTFUSE_SLOT_DATA);
            served.stamps.as_ref().unwrap().changed(&[slot]);
        }),
        ("everything", |served, _| {
            served.stamps.as_ref().unwrap().changed(&[Slot::CONNECTION]);
        }),
        ("a lease", |served, _| {
            served.stamps.as_ref().unwrap().set_deadline(1);
        }),
    ];
    for (what, void) in voids {
        let served = Served::new();
        let path = served.file("cached", SIZE as u64);
        let spool = served.spool(&backing_bytes(0, SIZE));
        let _copy = served.register("cached", &spool, COPY, 0..SIZE as u64);
        assert_bytes(&one_by_one(&path), &backing_bytes(0, SIZE), what);
        void(&served, served.state.nodeid("cached"));
        assert_bytes(&one_by_one(&path), &daemon_bytes(0, SIZE), what);
    }
}

/// While a change is in flight, too.
#[test]
fn a_copy_is_void_while_its_data_changes() {
    let served = Served::new();
    let path = served.file("cached", SIZE as u64);
    let spool = served.spool(&backing_bytes(0, SIZE));
    let copy = served.register("cached", &spool, COPY, 0..SIZE as u64);
    let slot = Slot::node(NodeId(served.state.nodeid("cached")), SlotKind::EXTFUSE_SLOT_DATA);
    let change = served.stamps.as_ref().unwrap().begin(&[slot]);
    assert_bytes(&one_by_one(&path), &daemon_bytes(0, SIZE), "in flight");
    let refused = copy.extend(0..SIZE as u64, served.snapshot());
    assert!(matches!(refused, Err(BackingError::Stale)), "{refused:?}");
    drop(change);
    assert_bytes(&one_by_one(&path), &daemon_bytes(0, SIZE), "over");
    copy.extend(0..SIZE as u64, served.snapshot()).unwrap();
    assert_bytes(&one_by_one(&path), &backing_bytes(0, SIZE), "declared anew");
}
