// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names: made, found, moved, removed, listed.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt, symlink};
use std::process::Command;

use extfuse::fs::StackOptions;
use extfuse::fs::upcalls::Opcode;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::mount::{Mounted, wait_until};

fn rename(m: &Mounted, from: &str, to: &str, flags: RenameFlags) -> nix::Result<()> {
    renameat2(AT_FDCWD, &m.at(from), AT_FDCWD, &m.at(to), flags)
}

#[test]
fn names_of_255_bytes_of_any_value() {
    let m = Mounted::new();
    let name: Vec<u8> = (0..255u8)
        .map(|i| if i == 0 || i == b'/' { 0xff } else { i })
        .collect();
    let name = OsStr::from_bytes(&name);
    fs::write(m.mnt.join(name), "text").unwrap();
    assert_eq!(fs::read(m.source.join(name)).unwrap(), b"text");
    let listed: Vec<OsString> = fs::read_dir(&m.mnt)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(listed, [name]);
    let too_long = m.at(&"x".repeat(256));
    assert_eq!(
        fs::write(too_long, "").unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn a_listing_shows_every_name_once_with_the_inode_and_type_that_stat_shows() {
    let m = Mounted::new();
    for i in 0..3_000 {
        fs::write(m.behind(&format!("file{i}")), "").unwrap();
    }
    fs::create_dir(m.behind("dir")).unwrap();
    symlink("file0", m.behind("link")).unwrap();
    mknod(&m.behind("pipe"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
    let mut seen = HashSet::new();
    for entry in fs::read_dir(&m.mnt).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        assert_eq!(entry.ino(), meta.ino(), "{entry:?}");
        assert_eq!(
            entry.ino(),
            fs::symlink_metadata(m.source.join(entry.file_name()))
                .unwrap()
                .ino()
        );
        assert_eq!(entry.file_type().unwrap(), meta.file_type(), "{entry:?}");
        assert!(seen.insert(entry.file_name()));
    }
    assert_eq!(seen.len(), 3_003);
    assert_eq!(m.upcalls.get(Opcode::Readdirplus), 0);
}

#[test]
fn a_directory_is_emptied_while_it_is_listed() {
    let m = Mounted::new();
    for i in 0..2_000 {
        fs::write(m.at(&format!("{i}")), "").unwrap();
    }
    for entry in fs::read_dir(&m.mnt).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(&m.mnt).unwrap().count(), 0);
}

#[test]
fn rewinding_a_directory_shows_what_has_come_since() {
    let m = Mounted::new();
    fs::write(m.at("one"), "").unwrap();
    let mut dir = nix::dir::Dir::open(&m.mnt, nix::fcntl::OFlag::O_RDONLY, Mode::empty()).unwrap();
    assert_eq!(dir.iter().count(), 3);
    fs::write(m.at("two"), "").unwrap();
    // nix rewinds when the iterator is dropped.
    assert_eq!(dir.iter().count(), 4);
}

#[test]
fn hard_links_are_one_inode() {
    let m = Mounted::new();
    fs::write(m.at("a"), "text").unwrap();
    fs::create_dir(m.at("dir")).unwrap();
    fs::hard_link(m.at("a"), m.at("dir/b")).unwrap();
    let (a, b) = (m.at("a").metadata().unwrap(), m.at("dir/b").metadata().unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    symlink("target", m.at("link")).unwrap();
    fs::hard_link(m.at("link"), m.at("link2")).unwrap();
    assert_eq!(fs::read_link(m.at("link2")).unwrap().as_os_str(), "target");
    fs::remove_file(m.at("a")).unwrap();
    assert_eq!(m.at("dir/b").metadata().unwrap().nlink(), 1);
}

#[test]
fn rename_with_every_flag() {
    let m = Mounted::new();
    fs::write(m.at("a"), "a").unwrap();
    fs::write(m.at("b"), "b").unwrap();
    fs::create_dir(m.at("dir")).unwrap();
    assert_eq!(
        rename(&m, "a", "b", RenameFlags::RENAME_NOREPLACE),
        Err(Errno::EEXIST)
    );
    rename(&m, "a", "dir", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(m.at("dir")).unwrap(), b"a");
    assert!(m.at("a").is_dir());
    rename(&m, "dir", "a/c", RenameFlags::RENAME_WHITEOUT).unwrap();
    let whiteout = m.at("dir").metadata().unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
    rename(&m, "b", "a/c", RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(m.at("a/c")).unwrap(), b"b");
    assert_eq!(
        m.at("b").metadata().unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
    // The kernel itself saw that NOREPLACE had no chance.
    assert_eq!(
        (m.upcalls.get(Opcode::Rename), m.upcalls.get(Opcode::Rename2)),
        (1, 2)
    );
}

#[test]
fn special_files_with_their_device_numbers() {
    let m = Mounted::new();
    let dev = libc::makedev(0xabc, 0x1_2345);
    mknod(&m.at("chr"), SFlag::S_IFCHR, Mode::S_IRWXU, dev).unwrap();
    mknod(
        &m.at("blk"),
        SFlag::S_IFBLK,
        Mode::S_IRWXU,
        libc::makedev(7, 0xf_ffff),
    )
    .unwrap();
    mknod(&m.at("sock"), SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap();
    mknod(&m.at("file"), SFlag::S_IFREG, Mode::S_IRWXU, 0).unwrap();
    assert_eq!(m.at("chr").metadata().unwrap().rdev(), dev);
    assert_eq!(m.behind("chr").metadata().unwrap().rdev(), dev);
    assert_eq!(m.at("blk").metadata().unwrap().rdev(), libc::makedev(7, 0xf_ffff));
    assert!(m.at("sock").metadata().unwrap().file_type().is_socket());
    assert!(m.at("file").metadata().unwrap().is_file());
    mknod(&m.at("null"), SFlag::S_IFCHR, Mode::S_IRWXU, libc::makedev(1, 3)).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(m.at("null"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
}

#[test]
fn a_pipe_joins_two_processes() {
    let m = Mounted::new();
    mknod(&m.at("pipe"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg("echo text > pipe")
        .current_dir(&m.mnt)
        .spawn()
        .unwrap();
    assert_eq!(fs::read(m.at("pipe")).unwrap(), b"text\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn symbolic_links_of_any_length() {
    let m = Mounted::new();
    let target = "t".repeat(4_095);
    symlink(&target, m.at("link")).unwrap();
    assert_eq!(fs::read_link(m.at("link")).unwrap().as_os_str(), target.as_str());
    assert_eq!(fs::symlink_metadata(m.at("link")).unwrap().len(), 4_095);
}

#[test]
fn nodes_are_given_up_when_their_files_are_gone() {
    let m = Mounted::new();
    let before = m.held();
    for i in 0..200 {
        fs::write(m.at(&format!("{i}")), "text").unwrap();
        m.at(&format!("{i}")).metadata().unwrap();
    }
    assert!(m.held() >= before + 200);
    for i in 0..200 {
        fs::remove_file(m.at(&format!("{i}"))).unwrap();
    }
    assert!(
        wait_until(|| m.held() == before),
        "{} held, {before} before",
        m.held()
    );
}

#[test]
fn changes_behind_the_mount_are_seen_at_once() {
    let m = Mounted::new();
    assert!(!m.at("a").exists());
    fs::write(m.behind("a"), "one").unwrap();
    assert_eq!(fs::read(m.at("a")).unwrap(), b"one");
    fs::write(m.behind("b"), "another").unwrap();
    fs::rename(m.behind("b"), m.behind("a")).unwrap();
    assert_eq!(fs::read(m.at("a")).unwrap(), b"another");
    fs::remove_file(m.behind("a")).unwrap();
    assert!(!m.at("a").exists());
    fs::create_dir(m.behind("a")).unwrap();
    assert!(m.at("a").is_dir());
}

#[test]
fn a_moved_directory_is_followed_by_those_who_are_in_it() {
    let m = Mounted::new();
    fs::create_dir_all(m.at("a/b")).unwrap();
    let held = nix::fcntl::open(&m.at("a/b"), nix::fcntl::OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    fs::rename(m.behind("a"), m.behind("elsewhere")).unwrap();
    nix::sys::stat::mkdirat(&held, "c", Mode::S_IRWXU).unwrap();
    assert!(m.behind("elsewhere/b/c").is_dir());
}

#[test]
fn missing_names_are_remembered_only_if_that_is_asked_for() {
    let forever = std::time::Duration::from_secs(3600);
    let m = Mounted::with(StackOptions {
        entry_timeout: forever,
        attr_timeout: forever,
        ..Default::default()
    });
    for _ in 0..5 {
        assert!(!m.at("missing").exists());
    }
    assert_eq!(m.upcalls.get(Opcode::Lookup), 1);
    fs::write(m.at("missing"), "").unwrap();
    let ino = m.behind("missing").metadata().unwrap().ino();
    m.at("missing").metadata().unwrap();
    let (lookups, getattrs) = (m.upcalls.get(Opcode::Lookup), m.upcalls.get(Opcode::Getattr));
    for _ in 0..5 {
        assert_eq!(m.at("missing").metadata().unwrap().ino(), ino);
    }
    assert_eq!(
        (m.upcalls.get(Opcode::Lookup), m.upcalls.get(Opcode::Getattr)),
        (lookups, getattrs)
    );
    let m = Mounted::new();
    for _ in 0..5 {
        assert!(!m.at("missing").exists());
    }
    assert_eq!(m.upcalls.get(Opcode::Lookup), 5);
}

#[test]
fn files_below_another_mount_have_numbers_of_their_own() {
    let m = Mounted::new();
    fs::create_dir(m.behind("sub")).unwrap();
    let run = |script: &str| {
        assert!(
            Command::new("sh")
                .arg("-c")
                .arg(script)
                .current_dir(&m.source)
                .status()
                .unwrap()
                .success()
        );
    };
    run("mount -t tmpfs none sub");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fs::create_dir(m.at("sub/dir")).unwrap();
        fs::write(m.at("sub/file"), "text").unwrap();
        assert_eq!(fs::read(m.at("sub/file")).unwrap(), b"text");
        let below = m.behind("sub/file").metadata().unwrap();
        let shown = m.at("sub/file").metadata().unwrap();
        assert_eq!(shown.ino(), below.ino() ^ 1 << 48);
        assert_eq!(shown.dev(), m.mnt.metadata().unwrap().dev());
        for entry in fs::read_dir(m.at("sub")).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
        }
        let exdev = fs::rename(m.at("sub/file"), m.at("file")).unwrap_err();
        assert_eq!(exdev.raw_os_error(), Some(libc::EXDEV));
    }));
    run("umount -l sub");
    result.unwrap();
}

#[test]
fn a_read_only_stack_refuses_every_change() {
    let m = Mounted::with(StackOptions {
        read_only: true,
        ..Default::default()
    });
    fs::write(m.behind("a"), "text").unwrap();
    assert_eq!(fs::read(m.at("a")).unwrap(), b"text");
    let erofs =
        |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    erofs(fs::write(m.at("a"), ""));
    erofs(fs::write(m.at("b"), ""));
    erofs(fs::remove_file(m.at("a")));
    erofs(fs::create_dir(m.at("d")));
    erofs(fs::rename(m.at("a"), m.at("b")));
    erofs(fs::hard_link(m.at("a"), m.at("b")));
    erofs(symlink("a", m.at("l")));
    erofs(std::os::unix::fs::chown(m.at("a"), Some(1), None));
    assert_eq!(fs::read(m.behind("a")).unwrap(), b"text");
}
