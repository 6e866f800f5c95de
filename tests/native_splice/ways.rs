// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every source by every way.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use extfuse::splice::Way;

use super::frames::byte;
use super::mounts::{Setup, every_source_and_size, readers_at_once};

#[test]
fn copying_gives_every_source_and_size() {
    every_source_and_size(&Setup::stock(Way::Copy, true));
    every_source_and_size(&Setup::stock(Way::Copy, false));
}

#[test]
fn splicing_gives_every_source_and_size() {
    every_source_and_size(&Setup::stock(Way::Splice, false));
    // Checksums need the bytes: they are copied.
    every_source_and_size(&Setup::stock(Way::Splice, true));
}

#[test]
fn what_needs_the_module_is_copied_or_spliced_without() {
    for way in [Way::Auto, Way::Stage, Way::Fill, Way::FillCommit] {
        every_source_and_size(&Setup::stock(way, way == Way::Fill));
    }
}

#[test]
fn splicing_answers_in_one_call_and_copying_does_not() {
    let answered = |way, crc, name: &str| {
        let mount = Setup::stock(way, crc).mount();
        mount.assert_reads(name, true);
        mount.end()
    };
    assert!(answered(Way::Splice, false, "tcp-131072") > 0);
    assert!(answered(Way::Auto, false, "unix-131072") > 0);
    assert_eq!(answered(Way::Splice, true, "tcp-131072"), 0);
    assert_eq!(answered(Way::Auto, false, "tcp-1000"), 0);
    assert_eq!(answered(Way::Copy, false, "tcp-131072"), 0);
}

#[test]
fn a_file_that_ends_early_is_a_short_read() {
    for way in [Way::Copy, Way::Splice] {
        let mount = Setup::stock(way, false).mount();
        for size in [2, 8194, 131_072] {
            let file = File::open(mount.path(&format!("short-{size}"))).unwrap();
            let mut room = vec![0; size];
            // It has half of what it said.
            assert_eq!(file.read_at(&mut room, 0).unwrap(), size / 2, "{way:?}");
            assert!(
                room[..size / 2]
                    .iter()
                    .zip(0..)
                    .all(|(read, at)| *read == byte(at))
            );
        }
        mount.end();
    }
}

#[test]
fn readers_at_once_get_each_their_own() {
    for way in [Way::Copy, Way::Splice] {
        readers_at_once(&Setup::stock(way, false), 8, 20);
    }
}

#[test]
fn names_and_errors_are_those_of_the_file_system() {
    let mount = Setup::stock(Way::Auto, true).mount();
    let missing = fs::metadata(mount.path("nothing-5")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(fs::metadata(mount.path("tcp-77")).unwrap().len(), 77);
    let refused = fs::create_dir(mount.path("new")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSYS));
    mount.end();
}
