// SPDX-License-Identifier: MIT OR Apache-2.0
//! Verdicts, answers, and what becomes of wrong ones.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use extfuse::abi::{Counter, ERROR_BUDGET, Exit, PASSTHRU, RETURN};
use nix::errno::Errno;

use crate::harness::{GETATTR, Hostile, LISTXATTR, LOOKUP, MKDIR, Mounted, attr_out, entry_out, offset};

/// A file held open: one GETATTR a look, of it and nothing else.
fn open(mounted: &Mounted) -> File {
    File::open(mounted.file("file")).unwrap()
}

fn raw_error<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("the handler's errno").raw_os_error().unwrap()
}

#[test]
fn an_upcall_is_seen_once_before_and_once_after() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let hostile = Hostile::on(&mounted, GETATTR);
    let size = file.metadata().unwrap().size();
    let seen = hostile.seen();
    assert_eq!(size, 4);
    assert_eq!(
        (seen.requests, seen.replies, seen.cookies_wrong, seen.errors_seen),
        (1, 1, 0, 0)
    );
    assert_eq!(seen.reply_size, 104);
    assert_eq!(seen.last.opcode, GETATTR);
    assert!(seen.last.nodeid > 1);
    assert_eq!(
        (
            seen.last.node2,
            seen.last.node3,
            seen.last.flags,
            seen.last.reserved
        ),
        (0, 0, 0, 0)
    );
    assert_eq!((seen.last.uid, seen.last.gid), (0, 0));
    assert_eq!(seen.last.pid, nix::unistd::gettid().as_raw() as u32);
    assert_eq!((seen.last.in_numargs, seen.last.out_numargs), (1, 1));
    assert_eq!((seen.last.in_size, seen.last.out_size), ([16, 0, 0], [104, 0]));
    assert!(seen.last.snapshot >= 1);
}

#[test]
fn the_reply_of_a_failed_request_has_the_error_and_no_answer() {
    let mounted = Mounted::new();
    let hostile = Hostile::on(&mounted, LOOKUP);
    assert!(!mounted.at.join("nothing").exists());
    let seen = hostile.seen();
    assert_eq!((seen.replies, seen.errors_seen), (1, 1));
    assert_eq!(seen.reply_size as i64, -i64::from(libc::ENODATA));
    assert_eq!(mounted.status().errors, 0);
}

#[test]
fn an_errno_reaches_the_caller() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let mut hostile = Hostile::on(&mounted, GETATTR);
    for errno in [libc::EACCES, libc::EPERM, 511] {
        hostile.verdict(-errno);
        assert_eq!(raw_error(file.metadata()), errno);
    }
    assert_eq!(mounted.count(GETATTR, Counter::EXTFUSE_COUNT_ERRNO), 3);
    assert_eq!((hostile.seen().requests, hostile.seen().replies), (3, 0));
    assert_eq!(mounted.status().errors, 0);
}

#[test]
fn enosys_is_an_upcall_unless_it_is_meant() {
    let mounted = Mounted::new();
    let mut hostile = Hostile::on(&mounted, MKDIR);
    hostile.verdict(-libc::ENOSYS);
    fs::create_dir(mounted.at.join("made")).unwrap();
    hostile.tell(|seen| seen.say_enosys = 1);
    assert_eq!(
        raw_error(fs::create_dir(mounted.at.join("not made"))),
        libc::ENOSYS
    );
    assert!(!mounted.source.join("not made").exists());
}

#[test]
fn garbage_verdicts_cost_the_program_its_place_and_the_user_nothing() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let garbage = [2, 17, i32::MAX, i32::MIN, -512, -4096];
    let mut hostile = Hostile::on(&mounted, GETATTR);
    for (round, verdict) in (0..ERROR_BUDGET).zip(garbage.into_iter().cycle()) {
        assert_eq!(mounted.status().attached, 1, "ejected after {round} errors");
        hostile.verdict(verdict);
        assert_eq!(file.metadata().unwrap().len(), 4, "verdict {verdict}");
    }
    let status = mounted.status();
    assert_eq!(
        (status.attached, status.exit, status.errors),
        (0, Exit::EXTFUSE_EXIT_ERROR.0, ERROR_BUDGET)
    );
    assert!(
        mounted.reason().starts_with("opcode 3: verdict out of range"),
        "{}",
        mounted.reason()
    );
    let requests = hostile.seen().requests;
    file.metadata().unwrap();
    assert_eq!(hostile.seen().requests, requests);
}

#[test]
fn return_without_an_answer_is_an_upcall() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let mut hostile = Hostile::on(&mounted, GETATTR);
    hostile.verdict(RETURN);
    assert_eq!(file.metadata().unwrap().len(), 4);
    assert_eq!(mounted.status().errors, 1);
    // The wrong size is not an answer either, and two errors: the write, the return.
    hostile.answer(&[0xff; 96]);
    assert_eq!(file.metadata().unwrap().len(), 4);
    assert_eq!(mounted.status().errors, 3);
    assert_eq!(mounted.count(GETATTR, Counter::EXTFUSE_COUNT_RETURNED), 0);
}

#[test]
fn return_where_only_the_daemon_can_answer_is_an_upcall() {
    let mounted = Mounted::new();
    let mut hostile = Hostile::on(&mounted, MKDIR);
    hostile.verdict(RETURN);
    hostile.answer(&entry_out(77, 0, &mounted.source));
    fs::create_dir(mounted.at.join("made")).unwrap();
    assert!(mounted.source.join("made").is_dir());
    assert_eq!(mounted.status().errors, 1);
}

#[test]
fn passthru_of_what_has_no_backing_file_is_an_upcall() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let mut hostile = Hostile::on(&mounted, GETATTR);
    hostile.verdict(PASSTHRU);
    assert_eq!(file.metadata().unwrap().len(), 4);
    assert_eq!(mounted.status().errors, 1);
}

#[test]
fn a_good_answer_is_taken_and_the_daemon_not_asked() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let mut hostile = Hostile::on(&mounted, GETATTR);
    let mut answer = attr_out(&mounted.source.join("file"));
    answer[16 + offset::SIZE..][..8].copy_from_slice(&123_u64.to_ne_bytes());
    hostile.answer(&answer);
    hostile.verdict(RETURN);
    let upcalls = mounted.count(GETATTR, Counter::EXTFUSE_COUNT_UPCALLS);
    assert_eq!(file.metadata().unwrap().len(), 123);
    assert_eq!(mounted.count(GETATTR, Counter::EXTFUSE_COUNT_UPCALLS), upcalls);
    assert_eq!(mounted.count(GETATTR, Counter::EXTFUSE_COUNT_RETURNED), 1);
    assert_eq!(mounted.status().errors, 0);
}

#[test]
fn attributes_that_a_daemon_would_not_get_away_with_are_a_miss_and_spoil_no_inode() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let good = attr_out(&mounted.source.join("file"));
    let mut hostile = Hostile::on(&mounted, GETATTR);
    hostile.verdict(RETURN);
    let spoil = |at: usize, bytes: &[u8]| {
        let mut answer = good.clone();
        answer[16 + at..][..bytes.len()].copy_from_slice(bytes);
        answer
    };
    let bad = [
        spoil(offset::MODE, &(libc::S_IFDIR | 0o755).to_ne_bytes()),
        spoil(offset::MODE, &0o644_u32.to_ne_bytes()),
        spoil(offset::SIZE, &(1_u64 << 63).to_ne_bytes()),
        spoil(offset::UID, &u32::MAX.to_ne_bytes()),
    ];
    for (nr, answer) in (1..).zip(&bad) {
        hostile.answer(answer);
        assert_eq!(file.metadata().unwrap().len(), 4);
        assert_eq!(mounted.count(GETATTR, Counter::EXTFUSE_COUNT_REFUSED), nr);
    }
    hostile.verdict(-libc::ENOSYS);
    assert_eq!(fs::read(mounted.at.join("file")).unwrap(), b"file");
    assert_eq!(mounted.status().errors, 0);
}

#[test]
fn a_name_is_bound_only_to_a_node_that_the_kernel_holds() {
    let mounted = Mounted::new();
    let file = mounted.file("file");
    let nodeid = mounted.nodeid(&file);

    let source = mounted.source.join("file");
    let mut hostile = Hostile::on(&mounted, LOOKUP);
    hostile.only_name("file");
    hostile.verdict(RETURN);
    let mut directory = entry_out(nodeid, 0, &source);
    directory[40 + offset::MODE..][..4].copy_from_slice(&(libc::S_IFDIR | 0o755).to_ne_bytes());
    let refused = [
        entry_out(999_999, 0, &source),   // no such inode
        entry_out(nodeid, 1, &source),    // another generation
        entry_out(1, 0, &mounted.source), // the root under another name
        directory,
    ];
    for (nr, answer) in (1..).zip(&refused) {
        hostile.answer(answer);
        assert_eq!(fs::metadata(&file).unwrap().len(), 4);
        assert_eq!(mounted.count(LOOKUP, Counter::EXTFUSE_COUNT_REFUSED), nr);
        assert_eq!(mounted.count(LOOKUP, Counter::EXTFUSE_COUNT_RETURNED), 0);
    }
    hostile.answer(&entry_out(nodeid, 0, &source));
    for _ in 0..10 {
        assert_eq!(fs::metadata(&file).unwrap().len(), 4);
    }
    assert_eq!(mounted.count(LOOKUP, Counter::EXTFUSE_COUNT_RETURNED), 10);
    assert_eq!(mounted.status().errors, 0);
}

#[test]
fn answered_lookups_do_not_count() {
    let mounted = Mounted::new();
    let file = mounted.file("file");
    let nodeid = mounted.nodeid(&file);

    let mut hostile = Hostile::on(&mounted, LOOKUP);
    hostile.only_name("file");
    hostile.answer(&entry_out(nodeid, 0, &mounted.source.join("file")));
    hostile.verdict(RETURN);
    for _ in 0..50 {
        fs::metadata(&file).unwrap();
    }
    hostile.verdict(-libc::ENOSYS);
    // Stack's counts are exact: a FORGET of more than it gave out would be refused, and reported.
    mounted.forget_unused();
    assert_eq!(fs::read(&file).unwrap(), b"file");
    assert_eq!(fs::read_dir(&mounted.at).unwrap().count(), 1);
    assert!(hostile.seen().forgets >= 1);
}

#[test]
fn an_answered_negative_lookup_is_enoent() {
    let mounted = Mounted::new();
    mounted.file("file");
    let mut hostile = Hostile::on(&mounted, LOOKUP);
    hostile.only_name("file");
    hostile.answer(&[0; 128]);
    hostile.verdict(RETURN);
    assert_eq!(
        fs::metadata(mounted.at.join("file")).unwrap_err().raw_os_error(),
        Some(Errno::ENOENT as i32)
    );
    hostile.verdict(-libc::ENOSYS);
    assert!(mounted.at.join("file").exists());
}

#[test]
fn a_list_of_xattrs_that_is_none_is_a_miss() {
    let mounted = Mounted::new();
    let file = mounted.file("file");
    let mut hostile = Hostile::on(&mounted, LISTXATTR);
    hostile.answer(b"user.no terminator");
    hostile.verdict(RETURN);
    let path = std::ffi::CString::new(file.to_str().unwrap()).unwrap();
    let mut list = [0_u8; 64];
    // SAFETY: the buffer is as long as said.
    let length = unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    assert_eq!(length, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(mounted.count(LISTXATTR, Counter::EXTFUSE_COUNT_REFUSED), 1);
    hostile.answer(b"user.a\0user.b\0");
    // SAFETY: as above.
    let length = unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    assert_eq!(length, 14);
}

#[test]
fn arguments_that_are_not_there_are_refused_and_charged() {
    let mounted = Mounted::new();
    let file = open(&mounted);
    let mut hostile = Hostile::on(&mounted, GETATTR);
    hostile.tell(|seen| seen.wrong_reads = 1);
    assert_eq!(file.metadata().unwrap().len(), 4);
    // Two reads (the second is ENODATA, no error), a write, a key.
    assert_eq!(mounted.status().errors, 3);
    for _ in 0..ERROR_BUDGET {
        file.metadata().unwrap();
    }
    assert_eq!(mounted.status().exit, Exit::EXTFUSE_EXIT_ERROR.0);
}
