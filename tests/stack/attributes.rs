// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes: times, sizes, modes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::mount::{Mounted, run_as};

fn set_times(path: &Path, atime: TimeSpec, mtime: TimeSpec) {
    utimensat(AT_FDCWD, path, &atime, &mtime, UtimensatFlags::NoFollowSymlink).unwrap();
}

fn times(path: &Path) -> [(i64, i64); 2] {
    let meta = fs::symlink_metadata(path).unwrap();
    [
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
    ]
}

#[test]
fn times_are_exact_to_the_nanosecond_before_and_after_1970() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    symlink("nowhere", m.at("link")).unwrap();
    fs::create_dir(m.at("dir")).unwrap();
    for name in ["file", "link", "dir"] {
        for (sec, nsec) in [
            (1, 1),
            (1_700_000_000, 999_999_999),
            (-1, 999_999_999),
            (-5, 300_000_000),
            (-7, 0),
        ] {
            set_times(
                &m.at(name),
                TimeSpec::new(sec, nsec),
                TimeSpec::new(sec - 1, nsec),
            );
            assert_eq!(times(&m.at(name)), [(sec, nsec), (sec - 1, nsec)], "{name}");
            assert_eq!(times(&m.behind(name)), [(sec, nsec), (sec - 1, nsec)], "{name}");
        }
    }
}

#[test]
fn one_time_can_be_left_alone_and_one_can_be_now() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    set_times(&m.at("file"), TimeSpec::new(11, 12), TimeSpec::new(13, 14));
    set_times(&m.at("file"), TimeSpec::UTIME_OMIT, TimeSpec::new(15, 16));
    assert_eq!(times(&m.at("file")), [(11, 12), (15, 16)]);
    set_times(&m.at("file"), TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
    assert!(times(&m.at("file"))[0].0 > 1_700_000_000);
    assert_eq!(times(&m.at("file"))[1], (15, 16));
}

#[test]
fn reading_moves_atime_as_it_does_natively() {
    let m = Mounted::new();
    fs::write(m.at("file"), "text").unwrap();
    set_times(&m.at("file"), TimeSpec::new(11, 12), TimeSpec::UTIME_OMIT);
    fs::read(m.at("file")).unwrap();
    assert_eq!(times(&m.at("file"))[0], times(&m.behind("file"))[0]);
    assert!(times(&m.at("file"))[0].0 > 11);
}

#[test]
fn chown_to_nobody_in_particular_moves_ctime() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    let before = m.at("file").metadata().unwrap();
    sleep(Duration::from_millis(20));
    chown(m.at("file"), None, None).unwrap();
    let after = m.at("file").metadata().unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (before.uid(), before.gid(), before.mode())
    );
}

#[test]
fn size_follows_truncation_by_path_by_descriptor_and_after_unlink() {
    for m in [Mounted::new(), Mounted::cached()] {
        fs::write(m.at("file"), "0123456789").unwrap();
        nix::unistd::truncate(&m.at("file"), 5).unwrap();
        assert_eq!(fs::read(m.at("file")).unwrap(), b"01234");
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(m.at("file"))
            .unwrap();
        file.set_len(7).unwrap();
        assert_eq!(fs::read(m.at("file")).unwrap(), b"01234\0\0");
        fs::remove_file(m.at("file")).unwrap();
        file.set_len(1 << 40).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink()), (1 << 40, 0));
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        set_times(
            Path::new(&format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&file)
            )),
            TimeSpec::UTIME_NOW,
            TimeSpec::UTIME_NOW,
        );
    }
}

#[test]
fn a_read_only_descriptor_cannot_truncate() {
    let m = Mounted::new();
    fs::write(m.at("file"), "text").unwrap();
    let file = fs::File::open(m.at("file")).unwrap();
    assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(nix::unistd::truncate(&m.mnt, 0), Err(nix::errno::Errno::EISDIR));
}

#[test]
fn a_new_owner_clears_the_set_id_bits() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    for by_root in [true, false] {
        chown(m.at("file"), Some(1000), Some(1000)).unwrap();
        fs::set_permissions(m.at("file"), fs::Permissions::from_mode(0o6777)).unwrap();
        if by_root {
            chown(m.at("file"), Some(1001), Some(1001)).unwrap();
        } else {
            let output = run_as(
                1000,
                &[1000, 1002],
                &format!("chgrp 1002 {}", m.at("file").display()),
            );
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(
            m.at("file").metadata().unwrap().mode() & 0o7777,
            0o777,
            "by root: {by_root}"
        );
    }
}

#[test]
fn writing_and_truncating_clear_the_set_id_bits_unless_root_does_it() {
    for m in [Mounted::new(), Mounted::cached()] {
        for script in ["echo >> file", "true > file", "truncate -s 1 file"] {
            for (uid, left) in [(1000, 0o777), (0, 0o6777)] {
                fs::write(m.at("file"), "text").unwrap();
                fs::set_permissions(m.at("file"), fs::Permissions::from_mode(0o6777)).unwrap();
                let output = run_as(uid, &[uid], &format!("cd {} && {script}", m.mnt.display()));
                assert!(output.status.success(), "{output:?}");
                let mode = m.behind("file").metadata().unwrap().mode() & 0o7777;
                assert_eq!(mode, left, "{script} by {uid}: {mode:o}");
                assert_eq!(m.at("file").metadata().unwrap().mode() & 0o7777, left);
            }
        }
    }
}

#[test]
fn a_file_system_shows_the_size_of_what_is_below() {
    let m = Mounted::new();
    let (shown, below) = (
        nix::sys::statvfs::statvfs(&m.mnt).unwrap(),
        nix::sys::statvfs::statvfs(&m.source).unwrap(),
    );
    assert_eq!(
        (
            shown.blocks(),
            shown.files(),
            shown.name_max(),
            shown.fragment_size()
        ),
        (
            below.blocks(),
            below.files(),
            below.name_max(),
            below.fragment_size()
        )
    );
}
