// SPDX-License-Identifier: MIT OR Apache-2.0
//! WRITEs on their way to a server, in frames.

use std::fs;
use std::io::Write;
use std::sync::atomic::Ordering;

use extfuse::splice::Way;

use super::mounts::{Setup, writes_arrive};

#[test]
fn writes_arrive_with_their_checksum() {
    let mount = Setup::stock(Way::Auto, true).mount();
    writes_arrive(&mount);
    mount.end();
}

/// Stock FUSE has no such thing: the same bytes, in memory.
#[test]
fn an_open_file_that_wants_to_be_withheld_gets_its_payload() {
    let mount = Setup::stock(Way::Auto, true).mount();
    assert_eq!(mount.channel().withholding(), fuser::FopenFlags::empty());
    mount.world.withholds.store(true, Ordering::Relaxed);
    writes_arrive(&mount);
    assert_eq!(mount.world.withheld.load(Ordering::Relaxed), 0);
    mount.end();
}

#[test]
fn files_are_created_renamed_and_removed_by_path() {
    let mount = Setup::stock(Way::Auto, false).mount();
    let mut file = fs::File::create(mount.path("one")).unwrap();
    file.write_all(b"some").unwrap();
    fs::rename(mount.path("one"), mount.path("two")).unwrap();
    assert!(fs::metadata(mount.path("one")).is_err());
    let names: Vec<_> = fs::read_dir(mount.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["two"]);
    file.write_all(b"thing").unwrap();
    fs::remove_file(mount.path("two")).unwrap();
    // It has no path any more, and is open.
    file.write_all(b" more").unwrap();
    assert_eq!(*mount.world.written.lock().unwrap(), b"something more");
    assert_eq!(file.metadata().unwrap().len(), 14);
    file.set_len(3).unwrap();
    assert_eq!(*mount.world.written.lock().unwrap(), b"som");
    drop(file);
    assert_eq!(fs::read_dir(mount.path("")).unwrap().count(), 0);
    mount.end();
}
