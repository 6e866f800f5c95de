// SPDX-License-Identifier: MIT OR Apache-2.0
//! FORGET and the daemon's notifications, also of nodes that the kernel does not hold.

use std::ffi::OsStr;
use std::fs;

use fuser::INodeNo;

use crate::harness::{FORGET, GETATTR, Hostile, Mounted};

const UNKNOWN: INodeNo = INodeNo(123_456_789);

#[test]
fn a_forgotten_node_is_an_event() {
    let mounted = Mounted::new();
    let file = mounted.file("file");
    let hostile = Hostile::on(&mounted, GETATTR);
    fs::metadata(&file).unwrap();
    let nodeid = hostile.seen().last.nodeid;
    fs::remove_file(&file).unwrap();
    mounted.forget_unused();
    assert_eq!(hostile.seen().forgets, 1);
    let event = hostile.seen().last_event;
    assert_eq!((event.opcode, event.nodeid), (FORGET, nodeid));
}

#[test]
fn notifications_are_events_even_of_nodes_that_the_kernel_does_not_hold() {
    let mounted = Mounted::new();
    let hostile = Hostile::on(&mounted, GETATTR);
    let notifier = &mounted.notifier;
    // The kernel does not know the node and says so, which fuser keeps from us.
    notifier.inval_inode(UNKNOWN, 0, 0).unwrap();
    assert_eq!(
        (hostile.seen().inval_inodes, hostile.seen().last_event.nodeid),
        (1, UNKNOWN.0)
    );
    notifier.inval_entry(UNKNOWN, OsStr::new("name")).unwrap();
    assert_eq!(
        (hostile.seen().inval_entries, hostile.seen().last_event.in_size[0]),
        (1, 5)
    );
    notifier
        .delete(UNKNOWN, INodeNo(UNKNOWN.0 + 1), OsStr::new("name"))
        .unwrap();
    assert_eq!(
        (hostile.seen().deletes, hostile.seen().last_event.node2),
        (1, UNKNOWN.0 + 1)
    );
    notifier.store(UNKNOWN, 0, b"data").unwrap();
    assert_eq!(
        (hostile.seen().stores, hostile.seen().last_event.nodeid),
        (1, UNKNOWN.0)
    );
    assert_eq!(mounted.status().errors, 0);
}
