// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every kind of READ is filled, and no byte of it comes from the daemon.

use extfuse::ebpf::BackingOptions;

use crate::harness::{PAGE, Served, assert_bytes, backing_bytes, daemon_bytes};
use crate::reading::WAYS;

/// Neither a multiple of pages nor of what is read ahead.
const SIZE: u64 = 300_001;

pub const OWN: BackingOptions = BackingOptions {
    generation: 0,
    copy: false,
    always: true,
};
pub const COPY: BackingOptions = BackingOptions { copy: true, ..OWN };

/// The whole file, in each way.
fn all_ways(name: &str, options: BackingOptions, end: u64) {
    let served = Served::new();
    for (way, read) in WAYS {
        let name = &served.fresh(name);
        let path = served.file(name, SIZE);
        let before = (served.filled(), served.upcalls());
        let spool = served.spool(&backing_bytes(0, SIZE as usize));
        let backing = served.register(name, &spool, options, 0..end);
        drop(spool); // the kernel has opened it for itself
        let what = format!("{name}, {way}, {options:?}");
        assert_bytes(&read(&path), &backing_bytes(0, SIZE as usize), &what);
        assert_eq!(served.upcalls(), before.1, "{what}");
        assert!(served.filled() > before.0, "{what}");
        // Without it, the daemon is asked, in the same way.
        drop(backing);
        assert_bytes(&read(&path), &daemon_bytes(0, SIZE as usize), &what);
        assert!(served.upcalls() > before.1, "{what}");
    }
}

#[test]
fn from_the_nodes_own_file() {
    all_ways("cached", OWN, u64::MAX);
}

#[test]
fn from_a_copy_that_ends_where_the_file_does() {
    all_ways("cached", COPY, SIZE);
}

#[test]
fn from_a_copy_that_is_declared_beyond_the_end() {
    all_ways("cached", COPY, u64::MAX);
}

/// Such a file has no size that the kernel relies upon.
#[test]
fn of_files_that_are_opened_for_direct_io() {
    // No shared mapping of such a file.
    let mapped = ["mapped", "faults one by one"];
    let served = Served::new();
    for (way, read) in WAYS.into_iter().filter(|(way, _)| !mapped.contains(way)) {
        let name = &served.fresh("direct");
        let path = served.file(name, SIZE);
        let spool = served.spool(&backing_bytes(0, SIZE as usize));
        let _backing = served.register(name, &spool, OWN, 0..u64::MAX);
        assert_bytes(&read(&path), &backing_bytes(0, SIZE as usize), way);
        assert_eq!(served.upcalls(), 0, "{way}");
    }
}

/// So a copy says nothing of what is behind its end, which the daemon is asked for.
#[test]
fn of_files_for_direct_io_a_copy_has_no_end() {
    let served = Served::new();
    let path = served.file("direct", SIZE);
    let spool = served.spool(&backing_bytes(0, SIZE as usize));
    let _backing = served.register("direct", &spool, COPY, 0..SIZE);
    let seen = crate::reading::one_by_one(&path);
    let whole = (SIZE / PAGE * PAGE) as usize;
    assert_bytes(&seen[..whole], &backing_bytes(0, whole), "whole pages");
    let rest = daemon_bytes(whole as u64, SIZE as usize - whole);
    assert_bytes(&seen[whole..], &rest, "the last one");
    assert_eq!(served.upcalls(), 1);
}

/// A file that is registered before anybody has looked its name up, and is read by who has it open.
#[test]
fn with_no_regard_to_when_it_was_opened() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let spool = served.spool(&backing_bytes(0, SIZE as usize));
    let early = served.register("cached", &spool, OWN, 0..u64::MAX);
    let file = std::fs::File::open(&path).unwrap();
    assert_bytes(
        &crate::reading::page(&file, 3),
        &backing_bytes(3 * PAGE, PAGE as usize),
        "early",
    );
    drop(early);
    assert_bytes(
        &crate::reading::page(&file, 4),
        &daemon_bytes(4 * PAGE, PAGE as usize),
        "none",
    );
    let _late = served.register("cached", &spool, COPY, 0..SIZE);
    assert_bytes(
        &crate::reading::page(&file, 5),
        &backing_bytes(5 * PAGE, PAGE as usize),
        "late",
    );
    assert_eq!(served.upcalls(), 1);
}

/// While a handler might be attached, but is not, only what is registered as such is filled.
#[test]
fn not_without_a_handler_unless_it_is_registered_so() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let spool = served.spool(&backing_bytes(0, SIZE as usize));
    let asked = BackingOptions { always: false, ..OWN };
    let _backing = served.register("cached", &spool, asked, 0..u64::MAX);
    assert_bytes(
        &crate::reading::one_by_one(&path),
        &daemon_bytes(0, SIZE as usize),
        "asked",
    );
    assert_eq!(served.filled(), 0);
}
