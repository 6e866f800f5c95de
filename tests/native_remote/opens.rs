// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that are read without being open on the server, and those that have to be.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, copy_file_range};
use nix::unistd::{Whence, lseek64};

use crate::common::{Mounted, Scratch, eventually};
use crate::{Served, mount};

/// One client may have one file open on the server, and no more.
struct Scene {
    mounted: Mounted,
    served: Served,
    scratch: Scratch,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new();
        for name in ["a", "b", "c"] {
            scratch.write(name, &name.repeat(5000));
        }
        let served = Served::tcp(&scratch.source(), &["--max-open", "1"]);
        let mounted = mount(&served.url(), &scratch, &[]);
        Self {
            mounted,
            served,
            scratch,
        }
    }

    fn open(&self, name: &str) -> File {
        File::open(self.mounted.join(name)).unwrap()
    }

    /// The server's descriptors of files of this name, but for those of nodes.
    fn opened_there(&self, name: &str) -> usize {
        let process = format!("/proc/{}", self.served.child.id());
        let path = self.scratch.source().join(name);
        let is_open = |fd: &Path| {
            let info = fd.file_name().unwrap().to_str().unwrap();
            let info = fs::read_to_string(format!("{process}/fdinfo/{info}")).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
            flags.is_some_and(|flags| flags & libc::O_PATH == 0)
        };
        let fds = fs::read_dir(format!("{process}/fd")).unwrap();
        fds.map(|fd| fd.unwrap().path())
            .filter(|fd| fs::read_link(fd).is_ok_and(|to| to == path) && is_open(fd))
            .count()
    }
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 5000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn flock(file: File) -> Result<Flock<File>, Errno> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

#[test]
fn the_server_does_not_hear_of_files_that_are_only_read() {
    let scene = Scene::new();
    let files = ["a", "b", "c"].map(|name| (name, scene.open(name)));
    let trips = || scene.mounted.report().remote.unwrap().round_trips;
    let look = || {
        let before = trips();
        assert!(!scene.mounted.join("none").exists());
        trips() - before
    };
    let looked = look();
    for (name, file) in &files {
        assert_eq!(content(file), name.repeat(5000).as_bytes());
        // A READ has it open until its answer is sent.
        eventually(|| scene.opened_there(name) == 0);
    }
    // Closing asks nothing either.
    let before = trips();
    drop(files);
    assert_eq!(look(), looked);
    assert_eq!(trips() - before, looked);
}

#[test]
fn what_is_open_is_read_whatever_becomes_of_its_name() {
    let scene = Scene::new();
    let elsewhere = Scratch::new();
    let other = mount(&scene.served.url(), &elsewhere, &[]);
    let [removed, replaced] = ["a", "b"].map(|name| scene.open(name));
    fs::remove_file(other.join("a")).unwrap();
    fs::write(other.join("new"), "n".repeat(5000)).unwrap();
    fs::rename(other.join("new"), other.join("b")).unwrap();
    assert_eq!(content(&removed), "a".repeat(5000).as_bytes());
    assert_eq!(content(&replaced), "b".repeat(5000).as_bytes());
    assert_eq!(content(&scene.open("b")), "n".repeat(5000).as_bytes());
    // One that was removed is still one to be locked.
    let locked = flock(removed).unwrap();
    assert_eq!(content(&locked), "a".repeat(5000).as_bytes());
}

#[test]
fn what_needs_an_open_file_there_opens_it() {
    let scene = Scene::new();
    let [first, second] = ["a", "b"].map(|name| scene.open(name));
    let first = flock(first).unwrap();
    assert!(scene.opened_there("a") > 0);
    // There is room for one.
    assert_eq!(flock(second).unwrap_err(), Errno::ENFILE);
    // Others are kept out, and it is read all the same.
    let elsewhere = Scratch::new();
    let other = mount(&scene.served.url(), &elsewhere, &[]);
    let theirs = || File::open(other.join("a")).unwrap();
    assert_eq!(flock(theirs()).unwrap_err(), Errno::EAGAIN);
    assert_eq!(content(&first), "a".repeat(5000).as_bytes());
    drop(first);
    eventually(|| scene.opened_there("a") == 0);
    drop(flock(theirs()).unwrap());
    let second = flock(scene.open("b")).unwrap();
    drop(second);
    eventually(|| scene.opened_there("b") == 0);
}

#[test]
fn a_file_that_is_only_read_can_be_searched_and_brought_to_the_disk() {
    let scene = Scene::new();
    let hole = OpenOptions::new().write(true).open(scene.mounted.join("a"));
    hole.unwrap().set_len(1 << 20).unwrap();
    let file = scene.open("a");
    let found = lseek64(&file, 0, Whence::SeekHole).unwrap();
    assert!((5000..1 << 20).contains(&found), "{found}");
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    drop(file);
    eventually(|| scene.opened_there("a") == 0);
}

#[test]
fn a_file_that_is_only_read_can_be_copied_from() {
    let scratch = Scratch::new();
    scratch.write("from", &"x".repeat(5000));
    let served = Served::tcp(&scratch.source(), &["--max-open", "2"]);
    let mounted = mount(&served.url(), &scratch, &[]);
    let from = File::open(mounted.join("from")).unwrap();
    let to = File::create(mounted.join("to")).unwrap();
    assert_eq!(copy_file_range(&from, None, &to, None, 5000).unwrap(), 5000);
    drop((from, to));
    assert_eq!(fs::read(mounted.join("to")).unwrap(), "x".repeat(5000).as_bytes());
}

/// A server that has so many descriptors.
pub fn served_with_few(files: usize, descriptors: u32) -> (Scratch, Served) {
    let scratch = Scratch::new();
    for number in 0..files {
        scratch.write(&number.to_string(), "x");
    }
    let served = Served::tcp(&scratch.source(), &[]);
    let process = format!("--pid={}", served.child.id());
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let limited = Command::new("prlimit").args([process, limit]).status();
    assert!(limited.unwrap().success());
    (scratch, served)
}

/// The same, and a client.
fn few_descriptors(files: usize, descriptors: u32) -> (Scratch, Served, Mounted) {
    let (scratch, served) = served_with_few(files, descriptors);
    let mounted = mount(&served.url(), &scratch, &[]);
    (scratch, served, mounted)
}

#[test]
fn a_tree_is_seen_whole_with_fewer_descriptors_than_it_has_files() {
    let (scratch, _served, mounted) = few_descriptors(1500, 400);
    let in_use = File::open(mounted.join("7")).unwrap();
    let was = in_use.metadata().unwrap().ino();
    for number in 0..1500 {
        let name = number.to_string();
        assert_eq!(fs::read(mounted.join(&name)).unwrap(), b"x", "{name}");
        fs::write(mounted.join(&format!("new-{name}")), "y").unwrap();
    }
    assert_eq!(fs::read_dir(scratch.source()).unwrap().count(), 3000);
    assert_eq!(in_use.metadata().unwrap().ino(), was);
    assert_eq!(fs::metadata(mounted.join("7")).unwrap().ino(), was);
}

#[test]
fn who_uses_more_than_there_is_room_for_hears_of_it_soon() {
    let (_scratch, _served, mounted) = few_descriptors(400, 400);
    let mut files = Vec::new();
    let refused = loop {
        let file = OpenOptions::new()
            .write(true)
            .open(mounted.join(&files.len().to_string()));
        match file {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENFILE));
    // Each has a node and a handle.
    assert!(files.len() > 50, "{}", files.len());
    files.clear();
    eventually(|| fs::read(mounted.join("399")).is_ok_and(|bytes| bytes == b"x"));
}
