// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the server sends without looking at it, and the module puts into the application's pages.

use std::cell::RefCell;
use std::fs::{self, OpenOptions};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::spoiled::{direct, in_each_way, read};
use super::spoiler::Spoil;
use super::{Scene, pattern};

/// Longer than a file may be without a version after a change.
const SETTLED: Duration = Duration::from_millis(3500);

const LENGTH: usize = (1 << 20) + 20_001;

fn drop_pages() {
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
}

/// A store through a mapping of what is dirty already does not show in the file's times.
#[test]
fn what_changes_without_a_sign_is_asked_for_again_and_no_reader_notices() {
    let scene = Scene::kept(0);
    let path = scene.scratch.source().join("file");
    let mut right = pattern(LENGTH, 9);
    right.resize(LENGTH, 7);
    fs::write(&path, &right).unwrap();
    let source = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: a mapping of its own, which is not used any more when it is taken away.
    let map = unsafe {
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = NonZero::new(LENGTH).unwrap();
        mmap(None, length, both, MapFlags::MAP_SHARED, source.as_fd(), 0).unwrap()
    };
    let store = |at: usize, byte: u8| {
        // SAFETY: within the mapping, and nobody else stores there.
        unsafe { map.cast::<u8>().add(at).write_volatile(byte) }
    };
    store(50_000, right[50_000]);
    thread::sleep(SETTLED);
    let right = RefCell::new(right);
    // Nothing is spoiled on the way: it is where answers are counted.
    in_each_way(&scene, |way, mounted| {
        let right = &mut *right.borrow_mut();
        let name = mounted.join("file");
        for _ in 0..3 {
            assert!(fs::read(&name).unwrap() == *right);
            drop_pages();
        }
        let file = direct(mounted);
        let asked = |right: &[u8]| {
            way.spoil(Spoil::Flip, 0);
            assert!(read(&file, 128 << 10).unwrap() == right[..128 << 10]);
            way.seen()
        };
        assert_eq!(asked(right), 1);
        for _ in 0..3 {
            right[50_000] ^= 1;
            store(50_000, right[50_000]);
            // The first answer was sent as what was there before.
            assert_eq!(asked(right), 2);
            assert_eq!(asked(right), 1);
        }
        assert!(fs::read(&name).unwrap() == *right);
    });
    // SAFETY: the whole mapping, which nobody uses any more.
    unsafe { munmap(map, LENGTH).unwrap() };
}
