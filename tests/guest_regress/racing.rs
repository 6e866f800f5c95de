// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lookup that is on its way while the name changes brings back what was true before.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::guest::{Tree, on_each};

/// Changes made while two threads look at the same names, as fast as they can.
fn hammered(tree: &Tree, names: &[&str], rounds: u32, mut change: impl FnMut(u32)) {
    let done = AtomicBool::new(false);
    let stop = || done.store(true, Ordering::Relaxed);
    struct OnDrop<F: Fn()>(F);
    impl<F: Fn()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    thread::scope(|scope| {
        // A failing change must end the others, too.
        let _stop = OnDrop(stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for name in names {
                        let _either = fs::symlink_metadata(tree.at(name));
                    }
                }
            });
        }
        (0..rounds).for_each(&mut change);
    });
    assert!(tree.answered() > 0, "handlers answered nothing");
}

fn exists(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            false
        }
    }
}

#[test]
fn unlinked_and_created_names_are_never_stale() {
    on_each(|tree| {
        hammered(tree, &["file"], 100, |round| {
            drop(File::create_new(tree.at("file")).unwrap());
            assert!(exists(&tree.at("file")), "round {round}: not there");
            assert!(exists(&tree.at("file")), "round {round}: there, then not there");
            fs::remove_file(tree.at("file")).unwrap();
            assert!(!exists(&tree.at("file")), "round {round}: still there");
            assert!(!exists(&tree.at("file")), "round {round}: gone, then there");
        });
    });
}

#[test]
fn renamed_names_are_never_stale() {
    on_each(|tree| {
        for dir in ["a", "b"] {
            fs::create_dir(tree.at(dir)).unwrap();
        }
        drop(File::create_new(tree.at("a/file")).unwrap());
        let ino = fs::metadata(tree.at("a/file")).unwrap().ino();
        hammered(tree, &["a/file", "b/other"], 100, |round| {
            let (from, to) = match round % 2 {
                0 => ("a/file", "b/other"),
                _ => ("b/other", "a/file"),
            };
            fs::rename(tree.at(from), tree.at(to)).unwrap();
            for _ in 0..2 {
                assert!(!exists(&tree.at(from)), "round {round}: {from} is still there");
                assert_eq!(fs::metadata(tree.at(to)).unwrap().ino(), ino, "round {round}");
            }
        });
    });
}

#[test]
fn replaced_names_are_never_stale() {
    on_each(|tree| {
        fs::write(tree.at("file"), "").unwrap();
        hammered(tree, &["file", "new"], 80, |round| {
            fs::write(tree.at("new"), "x".repeat(round as usize + 1)).unwrap();
            let new = fs::metadata(tree.at("new")).unwrap();
            fs::rename(tree.at("new"), tree.at("file")).unwrap();
            for _ in 0..2 {
                let seen = fs::metadata(tree.at("file")).unwrap();
                assert_eq!((seen.ino(), seen.len()), (new.ino(), u64::from(round) + 1));
            }
        });
    });
}

#[test]
fn changed_attributes_are_never_stale() {
    on_each(|tree| {
        let path = tree.at("file");
        fs::write(&path, "").unwrap();
        hammered(tree, &["file"], 150, |round| {
            std::os::unix::fs::chown(&path, Some(round), None).unwrap();
            for _ in 0..2 {
                assert_eq!(fs::metadata(&path).unwrap().uid(), round);
            }
        });
    });
}

#[test]
fn directories_made_anew_are_never_stale() {
    on_each(|tree| {
        hammered(tree, &["dir", "dir/file"], 50, |round| {
            fs::create_dir(tree.at("dir")).unwrap();
            assert!(!exists(&tree.at("dir/file")), "round {round}");
            fs::write(tree.at("dir/file"), "").unwrap();
            assert!(exists(&tree.at("dir/file")), "round {round}");
            fs::remove_file(tree.at("dir/file")).unwrap();
            assert!(!exists(&tree.at("dir/file")), "round {round}");
            fs::remove_dir(tree.at("dir")).unwrap();
            assert!(!exists(&tree.at("dir")), "round {round}");
        });
    });
}
