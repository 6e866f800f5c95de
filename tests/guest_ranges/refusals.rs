// SPDX-License-Identifier: MIT OR Apache-2.0
//! What may not be registered, and by whom.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use extfuse::abi::{self, BackingOp, CLOCK_MAX, Wire as _};
use extfuse::ebpf::BackingError;
use extfuse::sys::device::Device;
use nix::sys::mman::{ProtFlags, mprotect};

use crate::harness::{Mounting, PAGE, Served, assert_bytes, daemon_bytes};
use crate::kinds::OWN;
use crate::reading::one_by_one;

const REGISTER: u32 = BackingOp::EXTFUSE_BACKING_REGISTER.0;
const EXTEND: u32 = BackingOp::EXTFUSE_BACKING_EXTEND.0;
const WITHDRAW: u32 = BackingOp::EXTFUSE_BACKING_WITHDRAW.0;
const REMOVE: u32 = BackingOp::EXTFUSE_BACKING_REMOVE.0;

/// The errno; 0 for success.
fn ask(served: &Served, mut args: abi::Backing) -> i32 {
    errno(served.device.backing(&mut args))
}

fn errno(result: io::Result<()>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// What would be accepted.
fn good(served: &Served, file: &File) -> abi::Backing {
    abi::Backing {
        nodeid: served.state.nodeid("cached"),
        stamp: served.snapshot().stamp().unwrap(),
        end: abi::BACKING_EOF,
        fd: file.as_raw_fd(),
        flags: abi::BACKING_ALWAYS,
        ..abi::Backing::default()
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let served = Served::new();
    let path = served.file("cached", PAGE);
    let file = served.spool(&[1; PAGE as usize]);
    let good = good(&served, &file);
    let mut registered = good;
    served.device.backing(&mut registered).unwrap();
    type Spoil = fn(&mut abi::Backing);
    let spoils: [Spoil; 10] = [
        |args| args.nodeid = 0,
        |args| args.reserved = 1,
        |args| args.stamp = CLOCK_MAX + 1,
        |args| (args.start, args.end) = (2, 1),
        |args| args.start = u64::MAX - 1,
        |args| args.end = u64::MAX - 1,
        |args| args.end = 1 << 63,
        |args| args.op = 4,
        |args| args.op = u32::MAX,
        |args| args.flags |= 1 << 31,
    ];
    for spoil in spoils {
        for op in [REGISTER, EXTEND, WITHDRAW, REMOVE] {
            let mut args = registered;
            args.op = op;
            args.flags = if op == REGISTER { good.flags } else { 0 };
            spoil(&mut args);
            assert_eq!(ask(&served, args), libc::EINVAL, "{args:?}");
        }
    }
    for op in [EXTEND, WITHDRAW, REMOVE] {
        let args = abi::Backing {
            op,
            flags: abi::BACKING_COPY,
            ..registered
        };
        assert_eq!(ask(&served, args), libc::EINVAL);
    }
    // All in vain: the registration is what it was.
    let withdraw = abi::Backing {
        op: WITHDRAW,
        flags: 0,
        ..registered
    };
    assert_eq!(one_by_one(&path)[0], 1);
    assert_eq!(ask(&served, withdraw), 0);
    assert_eq!(ask(&served, withdraw), 0, "twice");
    assert_bytes(&one_by_one(&path), &daemon_bytes(0, PAGE as usize), "withdrawn");
}

#[test]
fn registrations_that_are_not_there() {
    let served = Served::new();
    served.file("cached", PAGE);
    let file = served.spool(&[1; PAGE as usize]);
    let good = good(&served, &file);
    for op in [EXTEND, WITHDRAW, REMOVE] {
        let args = abi::Backing { op, flags: 0, ..good };
        assert_eq!(ask(&served, args), libc::ENOENT, "none at all");
    }
    let mut registered = good;
    served.device.backing(&mut registered).unwrap();
    for op in [EXTEND, WITHDRAW, REMOVE] {
        for (nodeid, id) in [
            (registered.nodeid, 0),
            (registered.nodeid, registered.id + 1),
            (1, registered.id),
            (u64::MAX, registered.id),
        ] {
            let args = abi::Backing {
                op,
                flags: 0,
                nodeid,
                id,
                ..registered
            };
            assert_eq!(ask(&served, args), libc::ENOENT, "{args:?}");
        }
    }
    let remove = abi::Backing {
        op: REMOVE,
        flags: 0,
        ..registered
    };
    assert_eq!(ask(&served, remove), 0);
    assert_eq!(ask(&served, remove), libc::ENOENT, "twice");
}

#[test]
fn nodes_that_nobody_has_heard_of_and_directories_cost_nothing() {
    let served = Served::new();
    served.file("cached", PAGE);
    let file = served.spool(&[1; PAGE as usize]);
    for nodeid in [1, 77, u64::MAX] {
        let args = abi::Backing {
            nodeid,
            ..good(&served, &file)
        };
        assert_eq!(ask(&served, args), 0);
    }
    assert_bytes(
        &one_by_one(&served.path("cached")),
        &daemon_bytes(0, PAGE as usize),
        "another node",
    );
}

#[test]
fn files_that_cannot_be_one() {
    let served = Served::new();
    let own = served.file("cached", PAGE);
    let path = served.spools.join("file");
    std::fs::write(&path, [1; 10]).unwrap();
    let fifo = served.spools.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let open = |path: &std::path::Path, flags| {
        let mut options = File::options();
        options.read(true).custom_flags(flags).open(path).unwrap()
    };
    let cases = [
        ("a directory", open(&served.spools, 0), libc::EISDIR),
        ("O_PATH", open(&path, libc::O_PATH), libc::EBADF),
        (
            "write-only",
            File::options().write(true).open(&path).unwrap(),
            libc::EBADF,
        ),
        ("a fifo", open(&fifo, libc::O_NONBLOCK), libc::EINVAL),
        ("a device", open("/dev/zero".as_ref(), 0), libc::EINVAL),
        ("a file of this mount", open(&own, 0), libc::ELOOP),
    ];
    for (what, file, error) in &cases {
        assert_eq!(ask(&served, good(&served, file)), *error, "{what}");
    }
    for fd in [-1, i32::MAX, 999] {
        let args = abi::Backing {
            fd,
            ..good(&served, &cases[2].1)
        };
        assert_eq!(ask(&served, args), libc::EBADF, "{fd}");
    }
    // memfds and files that have no name are as good as any.
    let memfd = nix::sys::memfd::memfd_create("spool", nix::sys::memfd::MFdFlags::empty()).unwrap();
    assert_eq!(ask(&served, good(&served, &File::from(memfd))), 0);
}

/// A mount that may be stacked upon this one, and this one upon it.
#[test]
fn mounts_in_a_circle() {
    let (one, other) = (Served::new(), Served::new());
    for (upper, lower) in [(&one, &other), (&other, &one)] {
        upper.file("cached", PAGE);
        let file = File::open(lower.file("lower", PAGE)).unwrap();
        let refused = upper.try_register("cached", &file, OWN, 0..u64::MAX);
        assert!(matches!(refused, Err(BackingError::Stacked)), "{refused:?}");
    }
    // One that nothing can be stacked upon in the kernel may be below.
    let low = Served::with(Mounting {
        passthrough: false,
        set_up: false,
    });
    let file = File::open(low.file("lower", PAGE)).unwrap();
    let backing = one.register("cached", &file, OWN, 0..u64::MAX);
    drop(file);
    one_by_one(&one.path("cached"));
    assert_eq!(one.upcalls(), 0);
    drop(backing);
}

#[test]
fn connections_without_passthrough_or_setup() {
    let unready = Served::with(Mounting {
        passthrough: false,
        set_up: true,
    });
    unready.file("cached", PAGE);
    let file = unready.spool(&[1]);
    let refused = unready.try_register("cached", &file, OWN, 0..u64::MAX);
    assert!(matches!(refused, Err(BackingError::Denied)), "{refused:?}");
    let raw = Served::with(Mounting {
        passthrough: true,
        set_up: false,
    });
    assert_eq!(ask(&raw, abi::Backing::default()), libc::EPERM);
    let device = Device::new(File::open("/dev/extfuse").unwrap());
    assert_eq!(
        errno(device.backing(&mut abi::Backing::default())),
        libc::EPERM,
        "not mounted"
    );
}

#[test]
fn only_by_root() {
    let served = Served::new();
    served.file("cached", PAGE);
    let file = served.spool(&[1]);
    let args = good(&served, &file);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: integers; and for this thread only, as it is the raw call.
            let set = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(set, 0);
            for op in [REGISTER, EXTEND, WITHDRAW, REMOVE] {
                assert_eq!(ask(&served, abi::Backing { op, ..args }), libc::EPERM);
            }
        });
    });
    assert_eq!(ask(&served, args), 0);
}

#[test]
fn memory_that_is_not_there() {
    let served = Served::new();
    served.file("cached", PAGE);
    for address in [0, 1, usize::MAX - 10, 0xffff_8880_0000_0000] {
        assert_eq!(served.raw_backing(address), libc::EFAULT);
    }
    // Readable only: done, and undone, as nobody would know its id.
    let file = served.spool(&[1; PAGE as usize]);
    let args = good(&served, &file);
    let mut page = vec![0_u64; 1024];
    let at = page.as_ptr().cast::<u8>().align_offset(4096) / 8;
    for (word, bytes) in page[at..].iter_mut().zip(args.bytes().chunks(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap());
    }
    let address = std::ptr::NonNull::new(page[at..].as_mut_ptr().cast()).unwrap();
    let protect = |flags| {
        // SAFETY: a page of our own, which nobody writes to in between.
        unsafe { mprotect(address, 4096, flags) }.unwrap();
    };
    protect(ProtFlags::PROT_READ);
    assert_eq!(served.raw_backing(address.as_ptr() as usize), libc::EFAULT);
    protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    assert_bytes(
        &one_by_one(&served.path("cached")),
        &daemon_bytes(0, PAGE as usize),
        "undone",
    );
}

#[test]
fn as_many_nodes_as_there_may_be() {
    let served = Served::new();
    served.file("cached", PAGE);
    let file = served.spool(&[1; PAGE as usize]);
    let args = good(&served, &file);
    let nodes = 1000..1000 + abi::BACKINGS_MAX as u64;
    let ask = |nodeid| ask(&served, abi::Backing { nodeid, ..args });
    for nodeid in nodes.clone() {
        assert_eq!(ask(nodeid), 0, "{nodeid}");
    }
    assert_eq!(ask(nodes.end), libc::ENOSPC);
    // One that replaces another is not one more.
    assert_eq!(ask(nodes.start + 5), 0);
    assert_eq!(ask(nodes.end), libc::ENOSPC);
}
