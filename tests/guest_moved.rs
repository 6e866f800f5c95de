// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names that were moved: known where they are, and asked for where they were. Runs in the guest.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use guest::{Tree, ext4_folder};

/// Two directories, with files `0` to `9` in the first one, whose content is their name.
fn tree(arguments: &[&str]) -> Tree {
    let source = ext4_folder();
    for directory in ["one", "other"] {
        fs::create_dir(source.path().join(directory)).unwrap();
    }
    for file in 0..10 {
        fs::write(source.path().join(format!("one/{file}")), file.to_string()).unwrap();
    }
    fs::create_dir(source.path().join("one/dir")).unwrap();
    fs::write(source.path().join("one/dir/below"), "below").unwrap();
    Tree::mount_source(source, &[&["--require-module"], arguments].concat())
}

fn exclusive() -> Tree {
    tree(&["--exclusive"])
}

/// LOOKUPs that come up meanwhile.
fn lookups(tree: &Tree, work: impl FnOnce()) -> u64 {
    let before = tree.count("LOOKUP").upcalls;
    work();
    tree.count("LOOKUP").upcalls - before
}

/// All of it is known.
fn walk(at: &Path) {
    for entry in fs::read_dir(at).unwrap() {
        let entry = entry.unwrap();
        if entry.metadata().unwrap().is_dir() {
            walk(&entry.path());
        }
    }
}

fn is_gone(path: &Path) {
    assert_eq!(fs::metadata(path).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn what_was_moved_is_known_by_its_new_name() {
    let tree = exclusive();
    let at = |name: &str| tree.at(name);
    for _ in 0..2 {
        walk(tree.root());
    }
    let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
    let was = ["one/0", "one/1", "one/2", "one/dir", "one/dir/below"].map(inode);
    let asked = lookups(&tree, || {
        // In its directory, to another one, in the place of another file; and a directory with what is in it.
        fs::rename(at("one/0"), at("one/new")).unwrap();
        fs::rename(at("one/1"), at("other/1")).unwrap();
        fs::rename(at("one/2"), at("one/3")).unwrap();
        fs::rename(at("one/dir"), at("other/dir")).unwrap();
    });
    let now = ["one/new", "other/1", "one/3", "other/dir", "other/dir/below"];
    let before = tree.count("LOOKUP").kept.unwrap();
    assert_eq!(lookups(&tree, || assert_eq!(now.map(inode), was)), 0);
    assert!(tree.count("LOOKUP").kept.unwrap() >= before + 10);
    // rename(2) itself looks for what is in its way.
    assert!(asked <= 4, "{asked}");
    for name in ["one/0", "one/1", "one/2", "one/dir", "one/dir/below"] {
        is_gone(&at(name));
    }
    assert_eq!(fs::read(at("one/3")).unwrap(), b"2");
    // Whoever moves it on without a look at it loses nothing but that it is known.
    fs::rename(at("one/4"), at("one/a")).unwrap();
    fs::rename(at("one/a"), at("one/b")).unwrap();
    assert_eq!(fs::read(at("one/b")).unwrap(), b"4");
    is_gone(&at("one/4"));
    is_gone(&at("one/a"));
    // And back.
    fs::rename(at("one/b"), at("one/4")).unwrap();
    assert_eq!(fs::read(at("one/4")).unwrap(), b"4");
    is_gone(&at("one/b"));
}

#[test]
fn what_takes_each_others_place_is_asked_for() {
    let tree = exclusive();
    let at = |name: &str| tree.at(name);
    walk(tree.root());
    let flags = RenameFlags::RENAME_EXCHANGE;
    renameat2(AT_FDCWD, &at("one/0"), AT_FDCWD, &at("one/1"), flags).unwrap();
    let asked = lookups(&tree, || {
        assert_eq!(fs::read(at("one/0")).unwrap(), b"1");
        assert_eq!(fs::read(at("one/1")).unwrap(), b"0");
    });
    assert_eq!(asked, 2);
    let flags = RenameFlags::RENAME_NOREPLACE;
    renameat2(AT_FDCWD, &at("one/0"), AT_FDCWD, &at("one/free"), flags).unwrap();
    assert_eq!(
        lookups(&tree, || assert_eq!(fs::read(at("one/free")).unwrap(), b"1")),
        0
    );
}

#[test]
fn what_is_known_for_a_time_only_is_asked_for() {
    let tree = tree(&["--ttl", "100"]);
    let at = |name: &str| tree.at(name);
    walk(tree.root());
    fs::rename(at("one/0"), at("one/new")).unwrap();
    assert_eq!(
        lookups(&tree, || assert_eq!(fs::read(at("one/new")).unwrap(), b"0")),
        1
    );
    is_gone(&at("one/0"));
}
