// SPDX-License-Identifier: MIT OR Apache-2.0
//! What cannot be mounted: one line that names it, and nothing left mounted. Needs root.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Mounted, Scratch, extfuse, mounts_at, refusal};
use extfuse::sys::mountinfo;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mount_is_refused(source: &Path, mountpoint: &Path) -> String {
    let before = mountinfo::entries().unwrap().len();
    let background = refusal(1, &["mount", "--stock", text(source), text(mountpoint)]);
    let foreground = refusal(1, &["mount", "--stock", "-f", text(source), text(mountpoint)]);
    assert_eq!(background, foreground);
    // Other tests mount meanwhile, but not here.
    assert_eq!(
        mounts_at(mountpoint)
            .iter()
            .filter(|entry| entry.source == source)
            .count(),
        0
    );
    assert!(before > 0);
    background
}

#[test]
fn what_is_missing_or_no_directory() {
    let scratch = Scratch::new();
    scratch.write("file", "");
    let (source, mountpoint) = (scratch.source(), scratch.mountpoint());
    let (file, missing) = (source.join("file"), scratch.path().join("missing"));
    let cases = [
        (
            &missing,
            &mountpoint,
            format!("source {}: No such file or directory", missing.display()),
        ),
        (
            &file,
            &mountpoint,
            format!("source {} is not a directory", file.display()),
        ),
        (
            &source,
            &missing,
            format!("mount point {}: No such file or directory", missing.display()),
        ),
        (
            &mountpoint,
            &file,
            format!("mount point {} is not a directory", file.display()),
        ),
    ];
    for (source, mountpoint, line) in cases {
        assert_eq!(mount_is_refused(source, mountpoint), line);
    }
}

#[test]
fn a_mount_point_inside_the_source() {
    let scratch = Scratch::new();
    let inside = scratch.source().join("a");
    fs::create_dir(&inside).unwrap();
    let line = mount_is_refused(&scratch.source(), &inside);
    assert!(line.ends_with("the mount would contain itself"), "{line}");
    // Also by another name of either.
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&inside, &link).unwrap();
    let line = mount_is_refused(&scratch.source(), &link);
    assert!(line.ends_with("the mount would contain itself"), "{line}");
    let line = mount_is_refused(Path::new("/"), &scratch.mountpoint());
    assert!(line.ends_with("the mount would contain itself"), "{line}");
}

#[test]
fn a_mount_point_with_a_fuse_mount() {
    let scratch = Scratch::new();
    let other = Scratch::new();
    let mounted = Mounted::scratch(&scratch, &["--stock", "-o", "fsname=first"]);
    for source in [scratch.source(), other.source()] {
        let line = mount_is_refused(&source, mounted.path());
        assert!(line.contains("is occupied: fuse.extfuse of first"), "{line}");
    }
    // A folder below is no such mount.
    fs::create_dir(mounted.join("below")).unwrap();
    let below = Mounted::start(&other.source(), &mounted.join("below"), &["--stock"]);
    assert_eq!(mounts_at(below.path()).len(), 1);
}

#[test]
fn a_mount_point_with_files_in_it_is_covered_as_by_mount() {
    let scratch = Scratch::new();
    fs::write(scratch.mountpoint().join("hidden"), "").unwrap();
    let mounted = Mounted::scratch(&scratch, &["--stock"]);
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
    drop(mounted);
    assert!(scratch.mountpoint().join("hidden").exists());
}

#[test]
fn what_others_mounted_is_not_unmounted() {
    let scratch = Scratch::new();
    let mountpoint = scratch.mountpoint();
    let tmpfs = |program: &str, arguments: &[&str]| {
        assert!(
            Command::new(program)
                .args(arguments)
                .arg(&mountpoint)
                .status()
                .unwrap()
                .success()
        );
    };
    tmpfs("mount", &["-t", "tmpfs", "none"]);
    let line = refusal(1, &["umount", text(&mountpoint)]);
    let left = mounts_at(&mountpoint).len();
    tmpfs("umount", &[]);
    assert!(line.ends_with("is not an extfuse mount, but tmpfs"), "{line}");
    assert_eq!(left, 1);
}

#[test]
fn a_mount_in_use_is_unmounted_lazily_only() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
    let file = fs::File::open(mounted.join("file")).unwrap();
    let line = refusal(1, &["umount", text(mounted.path())]);
    assert!(line.contains("is in use"), "{line}");
    assert_eq!(mounts_at(mounted.path()).len(), 1);
    assert!(
        extfuse(&["umount", "--lazy", text(mounted.path())])
            .status
            .success()
    );
    assert_eq!(mounts_at(mounted.path()), []);
    assert_eq!(std::io::read_to_string(&file).unwrap(), "content");
    drop(file);
    let (status, said) = mounted.wait();
    assert!(status.success() && said.is_empty(), "{status} {said}");
}
