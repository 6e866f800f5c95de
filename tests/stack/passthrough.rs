// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backing files: when reads and writes stay in the kernel, and when they come up.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};

use extfuse::fs::upcalls::Opcode;
use extfuse::fs::{Stack, StackOptions};

use super::mount::{Mounted, wait_until, works_as};

fn io(m: &Mounted) -> (u64, u64) {
    (m.upcalls.get(Opcode::Read), m.upcalls.get(Opcode::Write))
}

#[test]
fn reads_and_writes_stay_in_the_kernel() {
    let m = Mounted::new();
    fs::write(m.at("file"), "text").unwrap();
    assert_eq!(fs::read(m.at("file")).unwrap(), b"text");
    assert_eq!(io(&m), (0, 0));
    let m = Mounted::cached();
    fs::write(m.at("file"), "text").unwrap();
    assert_eq!(fs::read(m.at("file")).unwrap(), b"text");
    assert_eq!(io(&m), (1, 1));
}

#[test]
fn all_opens_of_an_inode_share_one_backing_file_whatever_their_mode() {
    let m = Mounted::new();
    fs::write(m.behind("file"), "text").unwrap();
    fs::hard_link(m.behind("file"), m.behind("link")).unwrap();
    let read = File::open(m.at("file")).unwrap();
    let write = OpenOptions::new().write(true).open(m.at("link")).unwrap();
    let both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at("file"))
        .unwrap();
    write.write_all_at(b"T", 0).unwrap();
    both.write_all_at(b"X", 2).unwrap();
    let mut buf = [0; 4];
    read.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"TeXt");
    drop((read, write));
    both.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(io(&m), (0, 0));
}

#[test]
fn opening_and_closing_at_once_by_many_never_fails() {
    for m in [Mounted::new(), Mounted::cached()] {
        fs::write(m.behind("file"), [7; 100]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let file = OpenOptions::new()
                            .read(true)
                            .write(true)
                            .open(m.at("file"))
                            .unwrap();
                        file.write_all_at(&[7; 10], 0).unwrap();
                        let mut buf = [0; 100];
                        file.read_exact_at(&mut buf, 0).unwrap();
                        assert_eq!(buf, [7; 100]);
                    }
                });
            }
        });
        assert!(wait_until(|| m.upcalls.get(Opcode::Release) == 6 * 300));
    }
}

/// Without privilege there is no backing file, and that is no error. Without negotiation neither.
#[test]
fn where_no_backing_file_can_be_had_the_daemon_reads_and_writes() {
    let m = Mounted::with(StackOptions {
        keep_cache: true,
        ..Default::default()
    });
    fs::write(m.at("file"), "text").unwrap();
    assert_eq!(fs::read(m.at("file")).unwrap(), b"text");
    assert_eq!(m.upcalls.get(Opcode::Write), 1);
    // Kept across opens, although nothing else is.
    let before = m.upcalls.get(Opcode::Read);
    assert_eq!(fs::read(m.at("file")).unwrap(), b"text");
    assert_eq!(m.upcalls.get(Opcode::Read), before);
}

/// FUSE over our own mount, without its privilege to stack on FUSE twice: ELOOP, served all the same.
#[test]
fn a_mount_of_a_mount_of_a_mount_works() {
    let below = Mounted::new();
    fs::set_permissions(&below.source, fs::Permissions::from_mode(0o755)).unwrap();
    for dir in ["two", "three"] {
        fs::create_dir(below.source.parent().unwrap().join(dir)).unwrap();
    }
    let at = |dir: &str| below.source.parent().unwrap().join(dir);
    let (second, two) = super::mount::serve(&below.mnt, &at("two"), StackOptions::default());
    let (third, three) = super::mount::serve(&at("two"), &at("three"), StackOptions::default());
    fs::write(at("three/file"), "text").unwrap();
    assert_eq!(fs::read(at("three/file")).unwrap(), b"text");
    assert_eq!(fs::read(below.behind("file")).unwrap(), b"text");
    assert!(works_as(
        0,
        &[0],
        &format!("dd if=/dev/zero of={} bs=1M count=3", at("three/zero").display())
    ));
    assert_eq!(below.behind("zero").metadata().unwrap().len(), 3 << 20);
    drop((two, three));
    super::mount::unmount(&at("three"), third);
    super::mount::unmount(&at("two"), second);
}

#[test]
fn a_source_that_is_no_directory_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Stack::new(file.path(), StackOptions::default()).unwrap_err();
    assert_eq!(error.errno(), nix::errno::Errno::ENOTDIR);
    assert!(error.to_string().contains("cannot open"), "{error}");
}
