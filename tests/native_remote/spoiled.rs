// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers to READs that break off, or are not what was sent: they are asked for again, and not for ever.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Mounted, PATIENCE, Scratch, eventually};
use crate::spoiler::{Spoil, Spoiler};
use crate::{Served, mount};

const LENGTH: usize = 64 << 10;

/// A file, and a mount that is led there by who spoils answers.
struct Scene {
    bytes: Vec<u8>,
    mounted: Mounted,
    spoiler: Spoiler,
    _served: Served,
    _scratch: Scratch,
}

impl Scene {
    fn new(more: &[&str]) -> Self {
        let scratch = Scratch::new();
        let bytes: Vec<u8> = (0..4 * LENGTH as u32).map(|i| (i / 5) as u8).collect();
        fs::write(scratch.source().join("file"), &bytes).unwrap();
        let served = Served::tcp(&scratch.source(), &["--exclusive"]);
        let spoiler = Spoiler::tcp(&served.address.parse().unwrap());
        let mounted = mount(&spoiler.url(), &scratch, more);
        Self {
            bytes,
            mounted,
            spoiler,
            _served: served,
            _scratch: scratch,
        }
    }

    /// With no question but this one.
    fn open(&self, flags: i32) -> File {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags);
        options.open(self.mounted.join("file")).unwrap()
    }

    fn read(&self, file: &File, length: usize) -> std::io::Result<()> {
        // In whole pages.
        let mut room = vec![0; length + 4096];
        let skip = room.as_ptr().align_offset(4096);
        let start = Instant::now();
        let read = file.read_exact_at(&mut room[skip..][..length], 4096);
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        read.inspect(|()| assert!(room[skip..][..length] == self.bytes[4096..][..length]))
    }
}

/// Over the mount's own connection, and over one for data.
const LENGTHS: [usize; 2] = [8 << 10, LENGTH];

#[test]
fn a_read_whose_answer_is_not_what_was_sent_is_asked_again() {
    let scene = Scene::new(&[]);
    let file = scene.open(libc::O_DIRECT);
    for how in [Spoil::Flip, Spoil::Cut] {
        for length in LENGTHS {
            for times in 0..3 {
                scene.spoiler.spoil(how, times);
                scene.read(&file, length).unwrap();
                assert_eq!(scene.spoiler.seen(), times + 1, "{how:?} of {length}");
            }
        }
    }
}

#[test]
fn a_read_whose_answer_is_damaged_each_time_is_an_error() {
    let scene = Scene::new(&[]);
    let file = scene.open(libc::O_DIRECT);
    for length in LENGTHS {
        scene.spoiler.spoil(Spoil::Flip, u32::MAX);
        let error = scene.read(&file, length).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(scene.spoiler.seen(), 3, "{length}");
        scene.spoiler.spoil(Spoil::Flip, 0);
        scene.read(&file, length).unwrap();
    }
}

/// A connection for data is no way to the server: there are others.
#[test]
fn with_on_disconnect_eio_what_costs_the_mounts_own_connection_is_an_error_at_once() {
    const SMALL: usize = 8 << 10;
    for how in [Spoil::Flip, Spoil::Cut] {
        let scene = Scene::new(&["--on-disconnect", "eio"]);
        let file = scene.open(libc::O_DIRECT);
        // No connection for data is made for so little.
        scene.spoiler.spoil(how, 1);
        let error = scene.read(&file, SMALL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{how:?}");
        assert_eq!(scene.spoiler.seen(), 1, "{how:?}");
        eventually(|| scene.read(&file, SMALL).is_ok());
        // When there is one, it has it.
        for length in [LENGTH, SMALL] {
            // It is given back a moment after its answer.
            thread::sleep(Duration::from_millis(300));
            scene.spoiler.spoil(how, 1);
            let read = scene.read(&file, length);
            assert!(read.is_ok(), "{how:?}, {length}: {read:?}");
            assert_eq!(scene.spoiler.seen(), 2, "{how:?}");
        }
    }
}

/// It always breaks over connections for data: the mount's own one is left.
#[test]
fn what_breaks_off_each_time_goes_another_way() {
    let scene = Scene::new(&[]);
    let file = scene.open(libc::O_DIRECT);
    scene.spoiler.spoil(Spoil::Cut, 3);
    scene.read(&file, LENGTH).unwrap();
    assert_eq!(scene.spoiler.seen(), 4);
    assert_eq!(scene.mounted.report().remote.unwrap().connections, 1);
}

/// What the spool fetches comes over connections for data.
#[test]
fn a_copy_is_asked_for_again_over_another_connection_for_data() {
    for how in [Spoil::Flip, Spoil::Cut] {
        let scene = Scene::new(&["--spool", "memory"]);
        let file = scene.open(0);
        scene.spoiler.spoil(how, 2);
        scene.read(&file, LENGTH).unwrap();
        assert!(scene.spoiler.seen() >= 3);
        let remote = scene.mounted.report().remote.unwrap();
        // The mount's own one has not been of use for it.
        assert_eq!((remote.connections, remote.copied), (1, 0), "{how:?}");
        assert!(remote.spooled >= LENGTH as u64, "{how:?}");
    }
}

#[test]
fn a_copy_that_is_damaged_each_time_is_given_up() {
    let scene = Scene::new(&["--spool", "memory"]);
    let file = scene.open(0);
    scene.spoiler.spoil(Spoil::Flip, u32::MAX);
    let error = scene.read(&file, LENGTH).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    scene.spoiler.spoil(Spoil::Flip, 0);
    scene.read(&file, LENGTH).unwrap();
    fs::read(Path::new(&scene.mounted.join("file"))).unwrap();
}
