// SPDX-License-Identifier: MIT OR Apache-2.0
//! READs whose payload goes past the daemon, and is not what was sent, or breaks off.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use extfuse::remote::Address;

use super::common::Mounted;
use super::spoiler::{Spoil, Spoiler};
use super::{Scene, pattern};

/// Over TCP the module fills from the socket, over a local socket it is given what was spliced.
pub fn in_each_way(scene: &Scene, run: impl Fn(&Spoiler, &Mounted)) {
    let scratch = scene.scratch.path();
    let server = Address::Unix(scratch.join("socket"));
    let ways = [
        Spoiler::tcp(&server),
        Spoiler::unix(&scratch.join("spoiling"), &server),
    ];
    for (number, spoiler) in ways.iter().enumerate() {
        let mountpoint = scratch.join(format!("spoiled-{number}"));
        fs::create_dir(&mountpoint).unwrap();
        let url = spoiler.url();
        let mounted = Mounted::start(Path::new(&url), &mountpoint, &["--require-module"]);
        run(spoiler, &mounted);
    }
}

/// Whose READs are those that are asked for here.
pub fn direct(mounted: &Mounted) -> File {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECT);
    options.open(mounted.join("file")).unwrap()
}

/// What is read at the beginning: of `length` bytes, as many as there are.
pub fn read(file: &File, length: usize) -> std::io::Result<Vec<u8>> {
    let mut room = vec![0xee; length + 4096];
    let skip = room.as_ptr().align_offset(4096);
    let count = file.read_at(&mut room[skip..][..length], 0)?;
    Ok(room[skip..][..count].to_vec())
}

#[test]
fn a_payload_that_is_not_what_was_sent_is_filled_in_again() {
    let scene = Scene::kept(0);
    let bytes = pattern(1 << 20, 3);
    fs::write(scene.scratch.source().join("file"), &bytes).unwrap();
    in_each_way(&scene, |spoiler, mounted| {
        let file = direct(mounted);
        let filled = || mounted.report().remote.unwrap().filled;
        for how in [Spoil::Flip, Spoil::Cut] {
            for length in [16 << 10, 128 << 10, 1 << 20] {
                for times in 0..3 {
                    spoiler.spoil(how, times);
                    let before = filled();
                    assert!(
                        read(&file, length).unwrap() == bytes[..length],
                        "{how:?} of {length}"
                    );
                    assert_eq!(spoiler.seen(), times + 1, "{how:?} of {length}");
                    assert_eq!(filled() - before, length as u64);
                }
            }
        }
        // The mount's own connection is left.
        spoiler.spoil(Spoil::Cut, 3);
        assert!(read(&file, 128 << 10).unwrap() == bytes[..128 << 10]);
        assert_eq!(spoiler.seen(), 4);

        spoiler.spoil(Spoil::Flip, u32::MAX);
        let error = read(&file, 128 << 10).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(spoiler.seen(), 3);
        spoiler.spoil(Spoil::Flip, 0);
        assert!(fs::read(mounted.join("file")).unwrap() == bytes);
    });
}

/// What the kernel had of the first answer, which was longer, is no part of the second.
#[test]
fn an_answer_that_takes_the_place_of_a_longer_one_ends_where_it_ends() {
    let scene = Scene::kept(0);
    let bytes = pattern(128 << 10, 5);
    let path = scene.scratch.source().join("file");
    for left in [20_000, 100, 0] {
        for refuses in [false, true] {
            fs::write(&path, &bytes).unwrap();
            in_each_way(&scene, |spoiler, mounted| {
                fs::write(&path, &bytes).unwrap();
                let file = direct(mounted);
                let (path, refuse) = (path.clone(), spoiler.refusing());
                spoiler.before(move || {
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.set_len(left).unwrap();
                    // Then there is no other connection for data.
                    refuse(refuses);
                });
                spoiler.spoil(Spoil::Flip, 1);
                let got = read(&file, 128 << 10).unwrap();
                assert_eq!(got.len() as u64, left, "{refuses}");
                assert!(got == bytes[..left as usize], "{left}, {refuses}");
            });
            for number in 0..2 {
                fs::remove_dir(scene.scratch.path().join(format!("spoiled-{number}"))).unwrap();
            }
            fs::remove_file(scene.scratch.path().join("spoiling")).unwrap();
        }
    }
}
