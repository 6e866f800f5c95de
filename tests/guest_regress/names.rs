// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names that stay when they should go, or do not come when they should.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;

use crate::guest::{Tree, on_each};

fn ino(tree: &Tree, name: &str) -> u64 {
    fs::symlink_metadata(tree.at(name)).unwrap().ino()
}

fn absent(tree: &Tree, name: impl AsRef<Path>) -> bool {
    fs::symlink_metadata(tree.at(name)).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

#[test]
fn a_rename_across_directories_leaves_no_old_name() {
    on_each(|tree| {
        fs::create_dir(tree.at("a")).unwrap();
        fs::create_dir(tree.at("b")).unwrap();
        fs::write(tree.at("a/file"), "content").unwrap();
        let file = ino(tree, "a/file");
        for (from, to) in [("a/file", "b/moved"), ("b/moved", "a/file")].repeat(3) {
            tree.warm(from);
            assert!(tree.warm(to).is_none(), "the destination is known not to exist");
            for parent in ["a", "b"] {
                tree.warm(parent);
            }
            fs::rename(tree.at(from), tree.at(to)).unwrap();
            assert!(absent(tree, from), "{from} is still there");
            assert_eq!(ino(tree, to), file, "{to} is not there");
            for name in ["a", "b", to] {
                tree.assert_same(name);
            }
        }
    });
}

#[test]
fn a_rename_replaces_what_its_destination_stood_for() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        for round in 0..5 {
            let content = format!("content {round}");
            fs::write(tree.at("new"), &content).unwrap();
            let new = ino(tree, "new");
            if round > 0 {
                tree.warm("dir/target");
                fs::read(tree.at("dir/target")).unwrap();
            }
            tree.warm("new");
            fs::rename(tree.at("new"), tree.at("dir/target")).unwrap();
            assert_eq!(ino(tree, "dir/target"), new);
            assert_eq!(fs::read_to_string(tree.at("dir/target")).unwrap(), content);
            assert!(absent(tree, "new"));
            tree.assert_same("dir/target");
        }
    });
}

#[test]
fn a_renamed_directory_takes_its_names_with_it() {
    on_each(|tree| {
        fs::create_dir_all(tree.at("one/dir/sub")).unwrap();
        fs::create_dir(tree.at("two")).unwrap();
        fs::write(tree.at("one/dir/sub/file"), "content").unwrap();
        tree.warm("one/dir/sub/file");
        assert!(tree.warm("two/dir").is_none());
        fs::rename(tree.at("one/dir"), tree.at("two/dir")).unwrap();
        assert!(absent(tree, "one/dir/sub/file") && absent(tree, "one/dir"));
        assert_eq!(
            fs::read_to_string(tree.at("two/dir/sub/file")).unwrap(),
            "content"
        );
        // Another of the old name is another directory.
        fs::create_dir_all(tree.at("one/dir/sub")).unwrap();
        assert!(absent(tree, "one/dir/sub/file"));
        for name in ["one", "two", "one/dir", "two/dir", "two/dir/sub/file"] {
            tree.assert_same(name);
        }
    });
}

fn rename2(tree: &Tree, from: &str, to: &str, flags: RenameFlags) -> nix::Result<()> {
    renameat2(AT_FDCWD, &tree.at(from), AT_FDCWD, &tree.at(to), flags)
}

#[test]
fn an_exchange_exchanges() {
    on_each(|tree| {
        fs::create_dir_all(tree.at("dir/sub")).unwrap();
        fs::write(tree.at("dir/sub/inner"), "").unwrap();
        fs::write(tree.at("file"), "content").unwrap();
        let (file, dir) = (ino(tree, "file"), ino(tree, "dir/sub"));
        for round in 0..4 {
            let now = |name| fs::symlink_metadata(tree.at(name)).unwrap();
            tree.warm("file");
            tree.warm("dir/sub");
            tree.warm("dir");
            rename2(tree, "file", "dir/sub", RenameFlags::RENAME_EXCHANGE).unwrap();
            let swapped = round % 2 == 0;
            assert_eq!(now("file").is_dir(), swapped, "round {round}");
            assert_eq!(now("file").ino(), if swapped { dir } else { file });
            assert_eq!(now("dir/sub").ino(), if swapped { file } else { dir });
            assert_eq!(tree.at("file/inner").exists(), swapped);
            for name in ["file", "dir/sub", "dir"] {
                tree.assert_same(name);
            }
        }
    });
}

#[test]
fn noreplace_does_not_replace() {
    on_each(|tree| {
        fs::write(tree.at("one"), "1").unwrap();
        fs::write(tree.at("two"), "2").unwrap();
        let (one, two) = (ino(tree, "one"), ino(tree, "two"));
        tree.warm("one");
        tree.warm("two");
        assert_eq!(
            rename2(tree, "one", "two", RenameFlags::RENAME_NOREPLACE),
            Err(nix::Error::EEXIST)
        );
        assert_eq!((ino(tree, "one"), ino(tree, "two")), (one, two));
        assert!(tree.warm("three").is_none());
        rename2(tree, "one", "three", RenameFlags::RENAME_NOREPLACE).unwrap();
        assert!(absent(tree, "one"));
        assert_eq!(ino(tree, "three"), one);
        // A name that only the map says is missing, and that is there.
        assert!(tree.warm("four").is_none());
        fs::write(tree.behind("four"), "").unwrap();
        assert_eq!(
            rename2(tree, "three", "four", RenameFlags::RENAME_NOREPLACE),
            Err(nix::Error::EEXIST)
        );
    });
}

#[test]
fn a_whiteout_stays_where_the_name_was() {
    on_each(|tree| {
        fs::write(tree.at("file"), "content").unwrap();
        let file = ino(tree, "file");
        tree.warm("file");
        assert!(tree.warm("moved").is_none());
        rename2(tree, "file", "moved", RenameFlags::RENAME_WHITEOUT).unwrap();
        let whiteout = fs::symlink_metadata(tree.at("file")).unwrap();
        assert_eq!(
            (whiteout.mode() & libc::S_IFMT, whiteout.rdev()),
            (libc::S_IFCHR, 0)
        );
        assert_eq!(ino(tree, "moved"), file);
        tree.assert_same("file");
        tree.assert_same("moved");
    });
}

/// Everything that brings a name to life, where it is known not to exist.
#[test]
fn a_name_that_did_not_exist_comes() {
    on_each(|tree| {
        fs::write(tree.at("source"), "").unwrap();
        type Step<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);
        let steps: [Step<'_>; 7] = [
            ("create", Box::new(|to| drop(File::create_new(to).unwrap()))),
            ("mkdir", Box::new(|to| fs::create_dir(to).unwrap())),
            ("symlink", Box::new(|to| symlink("nowhere", to).unwrap())),
            (
                "link",
                Box::new(|to| fs::hard_link(tree.at("source"), to).unwrap()),
            ),
            (
                "mknod",
                Box::new(|to| nix::unistd::mkfifo(to, Mode::S_IRWXU).unwrap()),
            ),
            (
                "copy",
                Box::new(|to| assert_eq!(fs::copy(tree.at("source"), to).unwrap(), 0)),
            ),
            (
                "rename",
                Box::new(|to| fs::rename(tree.at("source"), to).unwrap()),
            ),
        ];
        for (what, step) in steps {
            let to = format!("by {what}");
            assert!(tree.warm(&to).is_none());
            assert!(tree.warm(&to).is_none());
            step(&tree.at(&to));
            tree.assert_same(&to);
            assert!(!absent(tree, &to), "{to}");
        }
    });
}

#[test]
fn a_name_that_is_removed_goes() {
    on_each(|tree| {
        for round in 0..5 {
            fs::write(tree.at("file"), "").unwrap();
            fs::create_dir(tree.at("dir")).unwrap();
            tree.warm("file");
            tree.warm("dir");
            fs::remove_file(tree.at("file")).unwrap();
            fs::remove_dir(tree.at("dir")).unwrap();
            assert!(absent(tree, "file") && absent(tree, "dir"), "round {round}");
            assert!(tree.warm("file").is_none() && tree.warm("dir").is_none());
        }
    });
}

#[test]
fn a_directory_made_anew_is_another_one() {
    on_each(|tree| {
        for round in 0..5 {
            fs::create_dir(tree.at("dir")).unwrap();
            fs::write(tree.at(format!("dir/{round}")), "").unwrap();
            let old = File::open(tree.at("dir")).unwrap();
            tree.warm(format!("dir/{round}"));
            assert!(tree.warm("dir/new").is_none());
            fs::remove_file(tree.at(format!("dir/{round}"))).unwrap();
            fs::remove_dir(tree.at("dir")).unwrap();
            fs::create_dir(tree.at("dir")).unwrap();
            fs::write(tree.at("dir/new"), "content").unwrap();
            assert!(absent(tree, format!("dir/{round}")));
            assert_eq!(fs::read_to_string(tree.at("dir/new")).unwrap(), "content");
            tree.assert_same("dir");
            tree.assert_same("dir/new");
            // Who holds the old one sees the old one.
            assert_eq!(old.metadata().unwrap().nlink(), 0);
            drop(old);
            fs::remove_dir_all(tree.at("dir")).unwrap();
        }
    });
}

/// Removed and made again at once, ext4 gives the same inode number again.
#[test]
fn a_file_made_anew_is_another_one() {
    on_each(|tree| {
        for round in 0..20 {
            let content = "x".repeat(round);
            fs::write(tree.at("file"), &content).unwrap();
            tree.warm("file");
            assert_eq!(fs::read_to_string(tree.at("file")).unwrap(), content);
            tree.assert_same("file");
            fs::remove_file(tree.at("file")).unwrap();
        }
    });
}

#[test]
fn a_symlink_that_is_replaced_leads_elsewhere() {
    on_each(|tree| {
        fs::create_dir(tree.at("one")).unwrap();
        fs::create_dir(tree.at("two")).unwrap();
        fs::write(tree.at("one/file"), "one").unwrap();
        fs::write(tree.at("two/file"), "two").unwrap();
        for target in ["one", "two", "one", "two"] {
            symlink(target, tree.at("new")).unwrap();
            fs::rename(tree.at("new"), tree.at("link")).unwrap();
            assert_eq!(fs::read_link(tree.at("link")).unwrap(), Path::new(target));
            assert_eq!(fs::read_to_string(tree.at("link/file")).unwrap(), target);
            tree.assert_same("link");
            tree.warm("link");
            fs::metadata(tree.at("link/file")).unwrap();
            fs::remove_file(tree.at("link")).unwrap();
            assert!(absent(tree, "link"));
            symlink("nowhere", tree.at("link")).unwrap();
            assert_eq!(fs::read_link(tree.at("link")).unwrap(), Path::new("nowhere"));
            tree.warm("link");
        }
    });
}

/// 255 bytes, of which only the last differs; and of any bytes.
#[test]
fn long_and_strange_names_are_told_apart() {
    on_each(|tree| {
        let long = |last: u8| {
            let mut name = vec![b'n'; 254];
            name.push(last);
            name
        };
        let mut names: Vec<Vec<u8>> = (b'a'..=b'z').map(long).collect();
        names.push(vec![b'n'; 254]);
        names.extend(
            [
                &b"\xff"[..],
                b"\xff\xfe",
                b"\xc3\x28",
                b"\n",
                b" ",
                b"\\",
                b"\x01\x80",
            ]
            .map(<[u8]>::to_vec),
        );
        names.extend([vec![0xff; 255], vec![0xff; 254]]);
        let name = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        for (number, bytes) in names.iter().enumerate() {
            assert!(absent(tree, name(bytes)));
            fs::write(tree.at(name(bytes)), vec![0; number]).unwrap();
        }
        for round in 0..3 {
            for (number, bytes) in names.iter().enumerate() {
                let seen = match round {
                    0 => fs::symlink_metadata(tree.at(name(bytes))).unwrap(),
                    _ => tree.warm(name(bytes)).unwrap(),
                };
                assert_eq!(seen.len(), number as u64, "{:?}", name(bytes));
                tree.assert_same(name(bytes));
            }
        }
        for missing in [
            long(b'A'),
            long(0xff),
            vec![b'n'; 253],
            vec![0xfe; 255],
            b"\xfe".to_vec(),
        ] {
            assert!(tree.warm(name(&missing)).is_none());
        }
        let too_long = fs::symlink_metadata(tree.at(name(&[b'n'; 256]))).unwrap_err();
        assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
        let listed: BTreeSet<OsString> = fs::read_dir(tree.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(listed, names.iter().map(|bytes| name(bytes)).collect());
    });
}

#[test]
fn listings_follow_changes() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        let listing = |path: std::path::PathBuf| -> BTreeSet<(OsString, u64)> {
            fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap())
                .map(|entry| (entry.file_name(), std::os::unix::fs::DirEntryExt::ino(&entry)))
                .collect()
        };
        let same = || {
            let seen = listing(tree.at("dir"));
            assert_eq!(seen, listing(tree.behind("dir")));
            seen.len()
        };
        for number in 0..40 {
            fs::write(tree.at(format!("dir/{number}")), "").unwrap();
            if number % 8 == 0 {
                tree.warm("dir");
                assert_eq!(same(), number + 1);
            }
        }
        tree.warm("dir");
        fs::rename(tree.at("dir/7"), tree.at("dir/seven")).unwrap();
        assert_eq!(same(), 40);
        fs::rename(tree.at("dir/8"), tree.at("dir/9")).unwrap();
        assert_eq!(same(), 39);
        fs::rename(tree.at("dir/10"), tree.at("away")).unwrap();
        assert_eq!(same(), 38);
        fs::remove_file(tree.at("dir/11")).unwrap();
        assert_eq!(same(), 37);
        tree.assert_same("dir");
    });
}
