// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged files, mounted through the module.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/merged.rs"]
mod merged;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use merged::{Scene, all_kinds, read_at, reads_are_of};

#[test]
fn merged_files_are_the_same_through_the_module() {
    let mut scene = Scene::new();
    let (files, mut models) = all_kinds(&mut scene);
    let mounted = scene.mount(&files, &["--require-module", "--ttl", "0.2"]);
    for (name, model) in &models {
        assert!(fs::read(mounted.join(name)).unwrap() == *model, "{name}");
        reads_are_of(&mounted.join(name), model, &mut scene.dice, 8);
    }
    assert!(mounted.report().program.is_some());

    // A source changes: by name, in place, and in length.
    let (name, model) = &mut models[0];
    let path = mounted.join(*name);
    let open = File::open(&path).unwrap();
    let new = scene.source("new", 5000);
    fs::rename(scene.path("new"), scene.path("source/near")).unwrap();
    model[..5000].copy_from_slice(&new);
    assert!(fs::read(&path).unwrap() == *model, "opened anew");
    let source = OpenOptions::new().write(true).open(scene.path("east/dir/b"));
    source.as_ref().unwrap().write_all_at(b"changed", 8000).unwrap();
    model[13_000..13_007].copy_from_slice(b"changed");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(read_at(&open, 0, model.len()) == *model, "after the ttl");
    source.unwrap().set_len(100_000).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let lost = open.read_at(&mut [0; 10], 5000 + 200_000).unwrap_err();
    assert_eq!(lost.raw_os_error(), Some(libc::EIO));
    assert!(read_at(&open, 0, 90_000) == model[..90_000]);
    assert_eq!(
        File::create(mounted.join("new")).unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
}
