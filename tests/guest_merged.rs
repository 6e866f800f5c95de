// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged files, mounted through the module.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/merged.rs"]
mod merged;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use merged::{Scene, Served, all_kinds, read_at, reads_are_of};

#[test]
fn merged_files_are_the_same_through_the_module() {
    let mut scene = Scene::new();
    let (files, mut models) = all_kinds(&mut scene);
    let mounted = scene.mount(&files, &["--require-module", "--ttl", "0.2"]);
    for (name, model) in &models {
        assert!(fs::read(mounted.join(name)).unwrap() == *model, "{name}");
        reads_are_of(&mounted.join(name), model, &mut scene.dice, 4);
    }
    assert!(mounted.report().program.is_some());

    // A source changes: by name, in place, and in length.
    let (name, model) = &mut models[0];
    let path = mounted.join(name);
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

#[test]
fn what_one_server_has_goes_past_the_daemon_and_is_all_or_nothing() {
    let mut scene = Scene::new();
    let near = scene.source("source/near", 6000);
    let east = scene.source("east/b", 1 << 20);
    let files = "[[file]]\npath = \"f\"\nparts = [{ local = \"source/near\" }, { server = \"east\", path = \"b\" }]\n";
    let mounted = scene.mount(files, &["--require-module", "--ttl", "0"]);
    let path = mounted.join("f");
    let model = [&near[..], &east].concat();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let filled = || mounted.report().remote.expect("one server").filled;
    let step = 1 << 16;
    for at in (0..model.len()).step_by(step) {
        assert!(
            read_at(&file, at, step) == model[at..model.len().min(at + step)],
            "{at}"
        );
    }
    // All but the first step, which has something of two sources, and the end, which is too small.
    assert!(filled() >= (1 << 20) - 2 * step as u64, "{}", filled());
    assert!(fs::read(&path).unwrap() == model);

    let source = OpenOptions::new().write(true).open(scene.path("east/b")).unwrap();
    source.set_len(500_000).unwrap();
    for (at, there) in [
        (6000, true),
        (6000 + 400_000, true),
        (6000 + 450_000, false),
        (6000 + 500_000, false),
    ] {
        let mut bytes = vec![0; step];
        let read = file.read_at(&mut bytes, at as u64);
        match there {
            true => assert!(read.unwrap() == step && bytes == model[at..at + step], "{at}"),
            false => assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "{at}"),
        }
    }
    fs::write(scene.path("east/b"), &east).unwrap();
    scene.east.kill();
    let socket = scene.east.socket.clone();
    scene.east = Served::start(&scene.path("east"), &socket);
    common::eventually(|| fs::metadata(&path).is_ok());
    let before = filled();
    assert!(read_at(&file, 6000, 1 << 20) == east, "what was open goes on");
    assert!(filled() > before);
}
