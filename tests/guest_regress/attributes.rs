// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes that stay what they were.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::guest::{Tree, as_nobody, on_each};

fn chmod(tree: &Tree, name: &str, mode: u32) {
    fs::set_permissions(tree.at(name), Permissions::from_mode(mode)).unwrap();
}

/// Changes `name`, which handlers answer for, and compares.
fn changed(tree: &Tree, name: &str, change: impl FnOnce()) {
    let before = tree.warm(name);
    change();
    tree.assert_same(name);
    let after = fs::symlink_metadata(tree.at(name)).ok();
    let ctime = |of: Option<fs::Metadata>| of.map(|of| (of.ctime(), of.ctime_nsec()));
    assert_ne!(
        ctime(before),
        ctime(after),
        "{name}: nothing changed that could have been missed"
    );
}

/// Longer than the tick of time stamps, so that the next change shows in them.
fn a_tick() {
    std::thread::sleep(Duration::from_millis(12));
}

#[test]
fn setattr_is_seen_at_once() {
    on_each(|tree| {
        let path = tree.at("file");
        fs::write(&path, "content").unwrap();
        type Change<'a> = Box<dyn Fn() + 'a>;
        let changes: [Change<'_>; 6] = [
            Box::new(|| chmod(tree, "file", 0o4751)),
            Box::new(|| chown(&path, Some(12), Some(34)).unwrap()),
            Box::new(|| {
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(3)
                    .unwrap()
            }),
            Box::new(|| nix::unistd::truncate(&path, 70_000).unwrap()),
            Box::new(|| {
                let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
                File::open(&path).unwrap().set_modified(long_ago).unwrap();
            }),
            Box::new(|| chmod(tree, "file", 0o600)),
        ];
        for change in changes {
            a_tick();
            changed(tree, "file", change);
        }
        let seen = fs::metadata(&path).unwrap();
        assert_eq!(
            (seen.mode() & 0o7777, seen.uid(), seen.len()),
            (0o600, 12, 70_000)
        );
    });
}

#[test]
fn setattr_is_seen_through_every_open_file_and_name() {
    on_each(|tree| {
        fs::write(tree.at("one"), "").unwrap();
        fs::hard_link(tree.at("one"), tree.at("other")).unwrap();
        let open = File::open(tree.at("other")).unwrap();
        for mode in [0o100_640, 0o100_604, 0o100_777] {
            tree.warm("one");
            tree.warm("other");
            chmod(tree, "one", mode);
            assert_eq!(open.metadata().unwrap().mode(), mode);
            assert_eq!(fs::metadata(tree.at("other")).unwrap().mode(), mode);
            tree.assert_same("one");
        }
    });
}

#[test]
fn a_write_after_a_read_is_seen_at_once() {
    on_each(|tree| {
        fs::write(tree.at("file"), "0").unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(tree.at("file"))
            .unwrap();
        for round in 1..30_u64 {
            let mut byte = [0];
            file.read_exact_at(&mut byte, 0).unwrap();
            tree.warm("file");
            file.write_all_at(b"more", round * 1000).unwrap();
            assert_eq!(fs::metadata(tree.at("file")).unwrap().len(), round * 1000 + 4);
            assert_eq!(file.metadata().unwrap().len(), round * 1000 + 4);
            tree.assert_same("file");
        }
    });
}

#[test]
fn a_write_of_another_process_is_seen_at_once() {
    on_each(|tree| {
        fs::write(tree.at("file"), "").unwrap();
        for round in 1..5 {
            tree.warm("file");
            let status = Command::new("sh")
                .args(["-c", "echo line >>file"])
                .current_dir(tree.root())
                .status()
                .unwrap();
            assert!(status.success());
            assert_eq!(fs::metadata(tree.at("file")).unwrap().len(), 5 * round);
        }
    });
}

/// LOOKUP carries attributes, too: a path is walked with those.
#[test]
fn lookup_shows_no_older_attributes() {
    on_each(|tree| {
        fs::create_dir_all(tree.at("dir/inner")).unwrap();
        fs::write(tree.at("dir/inner/file"), "content").unwrap();
        let open = || as_nobody(|| File::open(tree.at("dir/inner/file")).map(drop));
        for _ in 0..5 {
            tree.warm("dir/inner/file");
            assert!(open().is_ok());
            chmod(tree, "dir", 0o700);
            assert_eq!(open().unwrap_err().kind(), ErrorKind::PermissionDenied);
            tree.warm("dir/inner/file");
            chmod(tree, "dir", 0o755);
            open().unwrap();
            tree.warm("dir/inner/file");
            chown(tree.at("dir/inner"), Some(0), Some(7)).unwrap();
            chmod(tree, "dir/inner", 0o770);
            assert_eq!(open().unwrap_err().kind(), ErrorKind::PermissionDenied);
            chmod(tree, "dir/inner", 0o775);
            open().unwrap();
        }
    });
}

#[test]
fn permissions_of_a_file_hold_for_others_at_once() {
    on_each(|tree| {
        fs::write(tree.at("file"), "content").unwrap();
        let read = || as_nobody(|| fs::read(tree.at("file")));
        for _ in 0..5 {
            chmod(tree, "file", 0o644);
            assert_eq!(read().unwrap(), b"content");
            tree.warm("file");
            chmod(tree, "file", 0o600);
            assert_eq!(read().unwrap_err().kind(), ErrorKind::PermissionDenied);
            tree.warm("file");
            chown(tree.at("file"), Some(65534), None).unwrap();
            assert_eq!(read().unwrap(), b"content");
            tree.warm("file");
            chown(tree.at("file"), Some(0), None).unwrap();
            assert_eq!(read().unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
        // The same of a real process of another user.
        tree.warm("file");
        let file = tree.at("file");
        let read = || {
            Command::new("setpriv")
                .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"])
                .arg(&file)
                .output()
                .unwrap()
        };
        assert!(!read().status.success());
        chmod(tree, "file", 0o604);
        assert_eq!(read().stdout, b"content");
    });
}

/// Time stamps, link count and size of a directory, after everything that makes or removes a name.
#[test]
fn a_parent_follows_what_is_done_in_it() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        fs::create_dir(tree.at("dir2")).unwrap();
        fs::write(tree.at("target"), "").unwrap();
        type Step<'a> = (&'a str, Box<dyn Fn() + 'a>);
        let steps: [Step<'_>; 10] = [
            (
                "create",
                Box::new(|| drop(File::create(tree.at("dir/file")).unwrap())),
            ),
            ("mkdir", Box::new(|| fs::create_dir(tree.at("dir/sub")).unwrap())),
            (
                "symlink",
                Box::new(|| symlink("file", tree.at("dir/symlink")).unwrap()),
            ),
            (
                "link",
                Box::new(|| fs::hard_link(tree.at("target"), tree.at("dir/link")).unwrap()),
            ),
            (
                "mknod",
                Box::new(|| {
                    nix::unistd::mkfifo(&tree.at("dir/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
                }),
            ),
            (
                "rename within",
                Box::new(|| fs::rename(tree.at("dir/file"), tree.at("dir/renamed")).unwrap()),
            ),
            (
                "rename of a directory away",
                Box::new(|| fs::rename(tree.at("dir/sub"), tree.at("dir2/sub")).unwrap()),
            ),
            (
                "unlink",
                Box::new(|| fs::remove_file(tree.at("dir/renamed")).unwrap()),
            ),
            (
                "rename of a directory back",
                Box::new(|| fs::rename(tree.at("dir2/sub"), tree.at("dir/sub")).unwrap()),
            ),
            ("rmdir", Box::new(|| fs::remove_dir(tree.at("dir/sub")).unwrap())),
        ];
        for (what, step) in steps {
            tree.warm("dir2");
            a_tick();
            println!("{what}");
            changed(tree, "dir", step);
            tree.assert_same("dir2");
        }
        // A directory grows with the names in it.
        tree.warm("dir");
        let before = fs::metadata(tree.at("dir")).unwrap().len();
        for number in 0..60 {
            fs::write(tree.at(format!("dir/{number:0200}")), "").unwrap();
        }
        tree.assert_same("dir");
        assert!(fs::metadata(tree.at("dir")).unwrap().len() > before);
    });
}

#[test]
fn hard_links_share_their_attributes() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        fs::write(tree.at("one"), "content").unwrap();
        let nlink = || fs::metadata(tree.at("one")).unwrap().nlink();
        for _ in 0..3 {
            tree.warm("one");
            fs::hard_link(tree.at("one"), tree.at("dir/other")).unwrap();
            assert_eq!(nlink(), 2);
            tree.assert_same("one");
            tree.assert_same("dir/other");
            tree.warm("dir/other");
            fs::write(tree.at("one"), "more than that").unwrap();
            tree.assert_same("dir/other");
            tree.warm("one");
            chown(tree.at("dir/other"), Some(5), None).unwrap();
            tree.assert_same("one");
            tree.warm("one");
            fs::remove_file(tree.at("dir/other")).unwrap();
            assert_eq!(nlink(), 1);
            tree.assert_same("one");
            tree.assert_same("dir/other");
        }
        // The last name of one that replaces another.
        fs::write(tree.at("victim"), "").unwrap();
        fs::hard_link(tree.at("victim"), tree.at("survivor")).unwrap();
        tree.warm("survivor");
        fs::rename(tree.at("one"), tree.at("victim")).unwrap();
        tree.assert_same("survivor");
        assert_eq!(fs::metadata(tree.at("survivor")).unwrap().nlink(), 1);
    });
}

#[test]
fn an_unlinked_file_that_is_open_shows_that_it_is() {
    on_each(|tree| {
        fs::write(tree.at("file"), "content").unwrap();
        let file = File::open(tree.at("file")).unwrap();
        tree.warm("file");
        file.metadata().unwrap();
        fs::remove_file(tree.at("file")).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut content = [0; 7];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"content");
    });
}
