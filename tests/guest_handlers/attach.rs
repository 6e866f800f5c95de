// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may attach to what, and what takes programs off.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::process::Command;
use std::thread;
use std::time::Duration;

use extfuse::abi::{Exit, SLOT_CONN};
use extfuse::sys::device::Device;
use libbpf_rs::ErrorKind;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::harness::{GETATTR, Hostile, Mounted};

fn refusal(result: libbpf_rs::Result<()>) -> ErrorKind {
    result.expect_err("refused").kind()
}

fn loaded() -> String {
    let modules = fs::read_to_string("/proc/modules").unwrap();
    modules
        .lines()
        .find(|line| line.starts_with("extfuse "))
        .unwrap()
        .to_owned()
}

fn remove_module() -> bool {
    Command::new("rmmod")
        .arg("extfuse")
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
fn a_connection_takes_one_program_set() {
    let mounted = Mounted::new();
    let mut first = Hostile::on(&mounted, GETATTR);
    let mut other = Hostile::load(mounted.setup().conn, 0).unwrap();
    let refused = format!("{:?}", other.attach().unwrap_err());
    assert!(refused.contains("busy"), "{refused}");
    assert_eq!(mounted.status().attached, 1);
    first.link = None;
    other.attach().unwrap();
    assert_eq!((mounted.status().attached, mounted.status().attaches), (1, 2));
}

#[test]
fn a_connection_that_is_not_ours_cannot_be_attached_to() {
    let mounted = Mounted::new();
    let near = mounted.setup().conn ^ 1;
    assert_eq!(
        refusal(Hostile::load(near, 0).unwrap().attach()),
        ErrorKind::NotFound
    );
    // 0 stands for none.
    assert_eq!(
        refusal(Hostile::load(0, 0).unwrap().attach()),
        ErrorKind::InvalidInput
    );
    assert_eq!(mounted.status().attached, 0);
}

#[test]
fn two_mounts_have_programs_of_their_own() {
    let (one, two) = (Mounted::new(), Mounted::new());
    assert_ne!(one.setup().conn, two.setup().conn);
    assert_ne!(one.setup().key, two.setup().key);
    let first = Hostile::on(&one, GETATTR);
    let second = Hostile::on(&two, GETATTR);
    fs::metadata(&one.at).unwrap();
    assert_eq!((first.seen().requests, second.seen().requests), (1, 0));
}

#[test]
fn a_dead_connection_cannot_be_attached_to() {
    let mut mounted = Mounted::new();
    let mut hostile = Hostile::load(mounted.setup().conn, 0).unwrap();
    mounted.unmount();
    assert!(hostile.attach().is_err());
    assert_eq!(mounted.status().attached, 0);
}

#[test]
fn closing_the_link_detaches() {
    let mounted = Mounted::new();
    let mut hostile = Hostile::on(&mounted, GETATTR);
    fs::metadata(&mounted.at).unwrap();
    hostile.link = None;
    let seen = hostile.seen().requests;
    fs::metadata(&mounted.at).unwrap();
    assert_eq!(hostile.seen().requests, seen);
    assert_eq!(
        (mounted.status().attached, mounted.status().exit),
        (0, Exit::EXTFUSE_EXIT_UNLINK.0)
    );
}

#[test]
fn unmounting_detaches_and_voids_the_stamps() {
    let mut mounted = Mounted::new();
    let _hostile = Hostile::on(&mounted, GETATTR);
    let stamps = mounted.device().map_stamps().unwrap();
    mounted.unmount();
    assert_eq!(
        (mounted.status().attached, mounted.status().exit),
        (0, Exit::EXTFUSE_EXIT_UNMOUNT.0)
    );
    let words: &[std::sync::atomic::AtomicU64] = stamps.as_ref();
    assert_eq!(
        words[512 + SLOT_CONN as usize].load(std::sync::atomic::Ordering::Relaxed),
        u64::MAX
    );
}

#[test]
fn aborting_detaches() {
    let mut mounted = Mounted::new();
    let _hostile = Hostile::on(&mounted, GETATTR);
    mounted.abort();
    assert_eq!(
        (mounted.status().attached, mounted.status().exit),
        (0, Exit::EXTFUSE_EXIT_ABORT.0)
    );
    assert!(fs::metadata(&mounted.at).is_err());
}

#[test]
fn a_program_set_is_replaced_live() {
    let mounted = Mounted::new();
    let mut hostile = Hostile::on(&mounted, GETATTR);
    assert!(mounted.status().name.starts_with(b"hostile\0"));
    hostile.replace_by_second().unwrap();
    assert!(mounted.status().name.starts_with(b"second\0"));
    assert_eq!(mounted.status().attaches, 2);
    fs::metadata(&mounted.at).unwrap();
    assert_eq!(hostile.seen().requests, 1);
}

#[test]
fn an_ejected_program_set_cannot_be_replaced() {
    let mounted = Mounted::new();
    let mut hostile = Hostile::on(&mounted, GETATTR);
    hostile.verdict(99);
    while mounted.status().attached == 1 {
        fs::metadata(&mounted.at).unwrap();
    }
    assert!(hostile.replace_by_second().is_err());
    assert_eq!(mounted.status().exit, Exit::EXTFUSE_EXIT_ERROR.0);
    // A new one may try.
    drop(hostile);
    Hostile::on(&mounted, GETATTR);
}

#[test]
fn opcodes_without_their_bit_reach_no_program() {
    let mounted = Mounted::new();
    let hostile = Hostile::on(&mounted, GETATTR);
    mounted.device().set_opcodes(0, 0).unwrap();
    fs::metadata(&mounted.at).unwrap();
    assert_eq!((hostile.seen().requests, hostile.seen().replies), (0, 0));
    mounted.device().set_opcodes(0, 1 << GETATTR).unwrap();
    fs::metadata(&mounted.at).unwrap();
    assert_eq!((hostile.seen().requests, hostile.seen().replies), (0, 1));
    drop(hostile);
    assert_eq!(
        mounted.device().set_opcodes(1, 1).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
}

#[test]
fn setup_comes_before_init_or_not_at_all() {
    let mounted = Mounted::with(false);
    assert_eq!(
        mounted.device().setup().unwrap_err().raw_os_error(),
        Some(libc::EBUSY)
    );
    assert_eq!(
        mounted.device().status().unwrap_err().raw_os_error(),
        Some(libc::EPERM)
    );
    assert!(mounted.device().map_stamps().is_err());
}

#[test]
fn a_device_that_is_not_mounted_has_nothing() {
    let device = Device::new(
        File::options()
            .read(true)
            .write(true)
            .open("/dev/extfuse")
            .unwrap(),
    );
    assert_eq!(device.setup().unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert!(device.map_stamps().is_err());
    let stock = Device::new(File::options().read(true).write(true).open("/dev/fuse").unwrap());
    assert_eq!(stock.setup().unwrap_err().raw_os_error(), Some(libc::ENOTTY));
}

#[test]
fn stamps_are_mapped_whole_and_shared_or_not_at_all() {
    let mounted = Mounted::new();
    let size = usize::try_from(mounted.setup().stamps_size).unwrap();
    let fd = mounted.raw_device();
    let rw = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let wrong = [
        (size, rw, MapFlags::MAP_PRIVATE, 0),
        (size - 4096, rw, MapFlags::MAP_SHARED, 0),
        (size + 4096, rw, MapFlags::MAP_SHARED, 0),
        (size - 4096, rw, MapFlags::MAP_SHARED, 4096),
        (size, rw | ProtFlags::PROT_EXEC, MapFlags::MAP_SHARED, 0),
    ];
    for (length, protection, flags, offset) in wrong {
        let length = NonZeroUsize::new(length).unwrap();
        // SAFETY: a new mapping, never used.
        let mapped = unsafe { mmap(None, length, protection, flags, fd, offset) };
        assert!(
            mapped.is_err(),
            "{length} bytes at {offset}, {protection:?}, {flags:?}"
        );
    }
}

/// Runs alone (`.config/nextest.toml`): it takes the module away from everybody.
#[test]
fn the_module_stays_while_anything_uses_it_and_then_goes() {
    let control = "/sys/fs/extfuse/connections";
    while umount2(control, MntFlags::empty()).is_ok() {}
    let mut mounted = Mounted::new();
    assert!(!remove_module(), "removed under a mount");
    let hostile = Hostile::on(&mounted, GETATTR);
    mounted.unmount();
    assert!(!remove_module(), "removed under a device");
    drop(mounted);
    assert!(!remove_module(), "removed under a program");
    drop(hostile);
    // Maps and programs are freed after grace periods.
    let gone = (0..50).any(|_| {
        thread::sleep(Duration::from_millis(100));
        remove_module()
    });
    assert!(gone, "still in use: {}", loaded());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let module = format!(
        "{}/target/module/{}/extfuse.ko",
        env!("CARGO_MANIFEST_DIR"),
        release.trim()
    );
    assert!(Command::new("insmod").arg(module).status().unwrap().success());
    // As it was.
    let none = None::<&str>;
    mount(Some("none"), control, Some("extfusectl"), MsFlags::empty(), none).unwrap();
    Mounted::new().file("file");
}
