// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a handler sees of READs and of background requests, and what comes of what it says.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

use extfuse::abi::{Counter, ERROR_BUDGET, NodeId, PASSTHRU, RETURN, SlotKind, UPCALL};
use extfuse::ebpf::stamps::Slot;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

use crate::harness::{PAGE, READ, Served, assert_bytes, backing_bytes, daemon_bytes};
use crate::kinds::OWN;
use crate::reading::{by_faults, page};

#[allow(
    dead_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    unused_qualifications,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/hostile.skel.rs"));
}

use skeleton::types::bss as Seen;
use skeleton::{HostileSkel, HostileSkelBuilder};

const WRITE: u32 = 16;
const SIZE: u64 = 64 * PAGE;
/// Flags of a context.
const CAN_PASS: u32 = 1;
const BACKGROUND: u32 = 4;

/// A program that says one verdict on one opcode.
struct Program {
    skeleton: HostileSkel<'static>,
    _link: Link,
}

impl Program {
    fn says(served: &Served, opcode: u32, verdict: i32) -> Self {
        // One a test process: the object has to outlive its skeleton.
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = HostileSkelBuilder::default().open(storage).unwrap();
        // SAFETY: it lives in the shadow value of `open`.
        let ops: &mut skeleton::types::extfuse_ops =
            unsafe { &mut *(open.struct_ops.hostile_mut() as *mut _) };
        ops.conn = served.device.setup().unwrap().conn;
        ops.opcodes = 1 << opcode;
        ops.replies = 1 << opcode;
        let mut skeleton = open.load().unwrap();
        skeleton.maps.bss_data.as_deref_mut().unwrap().target = opcode;
        skeleton.maps.data_data.as_deref_mut().unwrap().verdict = verdict;
        let link = skeleton.maps.hostile.attach_struct_ops().unwrap();
        Self {
            skeleton,
            _link: link,
        }
    }

    fn seen(&self) -> &Seen {
        self.skeleton.maps.bss_data.as_deref().unwrap()
    }
}

#[test]
fn passthru_fills_what_is_read_ahead_and_what_is_not() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let file = served.spool(&backing_bytes(0, SIZE as usize));
    let asked = extfuse::ebpf::BackingOptions { always: false, ..OWN };
    let _backing = served.register("cached", &file, asked, 0..u64::MAX);
    let program = Program::says(&served, READ, PASSTHRU);
    assert_bytes(
        &fs::read(&path).unwrap(),
        &backing_bytes(0, SIZE as usize),
        "ahead",
    );
    assert_eq!(program.seen().last.flags, CAN_PASS | BACKGROUND);
    assert_eq!(program.seen().last.nodeid, served.state.nodeid("cached"));
    assert_bytes(&by_faults(&path), &backing_bytes(0, SIZE as usize), "faults");
    assert_eq!(program.seen().last.flags, CAN_PASS);
    assert_eq!(served.upcalls(), 0);
    assert_eq!(program.seen().replies, 0);
    let counted = served.count(READ, Counter::EXTFUSE_COUNT_REQUESTS);
    assert_eq!((counted, served.filled()), (program.seen().requests, counted));
    assert_eq!(served.device.status().unwrap().errors, 0);
}

#[test]
fn passthru_without_a_file_or_beyond_its_range_is_an_upcall() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let program = Program::says(&served, READ, PASSTHRU);
    assert_bytes(
        &fs::read(&path).unwrap(),
        &daemon_bytes(0, SIZE as usize),
        "no file",
    );
    assert_eq!(program.seen().last.flags, BACKGROUND);
    let file = served.spool(&backing_bytes(0, SIZE as usize));
    let _backing = served.register("cached", &file, OWN, 0..4 * PAGE);
    let open = File::open(&path).unwrap();
    assert_bytes(&page(&open, 3), &backing_bytes(3 * PAGE, 4096), "inside");
    assert_bytes(&page(&open, 4), &daemon_bytes(4 * PAGE, 4096), "outside");
    assert_eq!(program.seen().last.flags, BACKGROUND);
    assert_eq!(served.filled(), 1);
    assert_eq!(served.device.status().unwrap().errors, 0);
    drop(open);
    let seen = by_faults(&path);
    assert_bytes(&seen[..4 * 4096], &backing_bytes(0, 4 * 4096), "faults inside");
    assert_eq!(seen[4 * 4096], daemon_bytes(4 * PAGE, 1)[0], "faults outside");
    assert_eq!(program.seen().last.flags, 0);
    assert_eq!(served.filled(), 5);
}

/// The handler has the last word, not the registration.
#[test]
fn upcall_is_an_upcall() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let file = served.spool(&backing_bytes(0, SIZE as usize));
    let _backing = served.register("cached", &file, OWN, 0..u64::MAX);
    let program = Program::says(&served, READ, UPCALL);
    assert_bytes(
        &fs::read(&path).unwrap(),
        &daemon_bytes(0, SIZE as usize),
        "asked",
    );
    assert!(program.seen().requests > 0);
    assert_eq!(served.filled(), 0);
    drop(program);
    assert_bytes(
        &fs::read(&path).unwrap(),
        &backing_bytes(0, SIZE as usize),
        "not asked",
    );
}

#[test]
fn an_errno_reaches_who_waits() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let program = Program::says(&served, READ, -libc::EACCES);
    let error = fs::read(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    // Ahead, and then by the reader himself.
    assert!(program.seen().requests >= 2);
    assert_eq!(program.seen().last.flags, 0);
    assert_eq!(served.upcalls(), 0);
    assert_eq!(served.device.status().unwrap().errors, 0);
    drop(program);
    assert_bytes(
        &fs::read(&path).unwrap(),
        &daemon_bytes(0, SIZE as usize),
        "without",
    );
}

#[test]
fn an_answer_from_a_handler_is_its_error() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let file = served.spool(&backing_bytes(0, SIZE as usize));
    let _backing = served.register("cached", &file, OWN, 0..u64::MAX);
    let _program = Program::says(&served, READ, RETURN);
    let mut rounds = 0;
    while served.device.status().unwrap().attached == 1 {
        assert_bytes(
            &fs::read(&path).unwrap(),
            &daemon_bytes(0, SIZE as usize),
            "an upcall",
        );
        rounds += 1;
        assert!(rounds < 100, "never ejected");
    }
    assert!(served.device.status().unwrap().errors >= ERROR_BUDGET);
    // The mount goes on without it.
    assert_bytes(
        &fs::read(&path).unwrap(),
        &backing_bytes(0, SIZE as usize),
        "ejected",
    );
}

/// Seen, not judged: the data has been taken from its writer. The change that it is ends once.
#[test]
fn what_is_written_back_is_shown() {
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let program = Program::says(&served, WRITE, -libc::EROFS);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let length = NonZeroUsize::new(PAGE as usize).unwrap();
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let before = served.snapshot().stamp().unwrap();
    // SAFETY: a new mapping, of a file that nobody truncates, unmapped below.
    unsafe {
        let address = mmap(None, length, both, MapFlags::MAP_SHARED, &file, PAGE as i64).unwrap();
        address.cast::<u8>().write_volatile(0x33);
        msync(address, length.get(), MsFlags::MS_SYNC).unwrap();
        munmap(address, length.get()).unwrap();
    }
    let mut written = [0];
    let nodeid = served.state.nodeid("cached");
    let node = served.state.node(nodeid).unwrap();
    node.truth.read_exact_at(&mut written, PAGE).unwrap();
    assert_eq!(written, [0x33]);
    let seen = program.seen();
    assert_eq!((seen.requests, seen.replies), (1, 0));
    assert_eq!(seen.last.flags, BACKGROUND);
    assert_eq!((seen.last.uid, seen.last.gid, seen.last.pid), (0, 0, 0));
    assert_eq!(seen.last.nodeid, nodeid);
    assert_eq!(served.count(WRITE, Counter::EXTFUSE_COUNT_UPCALLS), 1);
    assert_eq!(served.count(WRITE, Counter::EXTFUSE_COUNT_ERRNO), 0);
    let slots = [SlotKind::EXTFUSE_SLOT_ATTR, SlotKind::EXTFUSE_SLOT_DATA];
    let slots = slots.map(|kind| Slot::node(NodeId(nodeid), kind));
    let stamps = served.stamps.as_ref().unwrap();
    assert!(!stamps.current(&slots[1..], before), "it was a change");
    assert!(
        stamps.current(&slots, served.snapshot().stamp().unwrap()),
        "which is over"
    );
    // One that a caller waits for is judged.
    let refused = file.write_at(&[1], 0).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
}
