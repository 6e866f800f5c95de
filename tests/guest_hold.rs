// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes that are held when the kernel has forgotten them. Runs in the guest.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use common::eventually;
use guest::{Random, Tree, ext4_folder, seed};

const DIRECTORIES: u64 = 30;
const FILES: u64 = 30;

/// Directories with files in them.
fn source() -> TempDir {
    let source = ext4_folder();
    for directory in 0..DIRECTORIES {
        let directory = source.path().join(directory.to_string());
        fs::create_dir(&directory).unwrap();
        for file in 0..FILES {
            fs::write(directory.join(file.to_string()), "").unwrap();
        }
    }
    source
}

/// Lists and stats everything; tells how much that is.
fn walk(root: &Path) -> u64 {
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            1 + if is_dir { walk(&path) } else { 0 }
        })
        .sum()
}

/// Has the kernel give up the names and inodes that nobody uses.
fn reclaim() {
    // One that was used lately is only marked the first time.
    for _ in 0..3 {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }
}

fn upcalls(tree: &Tree, opcode: &str) -> u64 {
    tree.count(opcode).upcalls
}

/// Descriptors of the daemon.
fn descriptors(tree: &Tree) -> usize {
    let folder = format!("/proc/{}/fd", tree.mounted.pid());
    fs::read_dir(folder).unwrap().count()
}

/// Walks a tree, has it forgotten, and walks again: FORGETs, and LOOKUPs and GETATTRs that came up in the end.
fn walked_again(arguments: &[&str]) -> [u64; 3] {
    let tree = Tree::mount_source(source(), arguments);
    let all = DIRECTORIES * (1 + FILES);
    for _ in 0..2 {
        assert_eq!(walk(tree.root()), all);
    }
    reclaim();
    eventually(|| upcalls(&tree, "FORGET") >= all);
    let before = ["FORGET", "LOOKUP", "GETATTR"].map(|opcode| upcalls(&tree, opcode));
    assert_eq!(walk(tree.root()), all);
    let [_, lookup, getattr] = ["FORGET", "LOOKUP", "GETATTR"].map(|opcode| upcalls(&tree, opcode));
    let seen = [before[0], lookup - before[1], getattr - before[2]];
    println!("{arguments:?}: {seen:?} FORGET, LOOKUP and GETATTR of {all} names");
    let program = tree.report().program.unwrap();
    assert!(program.attached && program.errors == 0, "{program:?}");
    seen
}

#[test]
fn what_was_reclaimed_is_found_without_a_question() {
    let [_, lookup, getattr] = walked_again(&["--require-module", "--exclusive"]);
    assert_eq!((lookup, getattr), (0, 0));
    // Without, each name is asked for.
    let [_, lookup, _] = walked_again(&["--require-module", "--exclusive", "--hold", "0"]);
    assert_eq!(lookup, DIRECTORIES * (1 + FILES));
}

#[test]
fn how_many_are_held_is_told() {
    const HELD: u64 = 500;
    let tree = Tree::mount_source(
        source(),
        &["--require-module", "--exclusive", "--hold", &HELD.to_string()],
    );
    let held = || tree.report().held.unwrap();
    assert_eq!((held().used, held().capacity), (0, HELD));
    walk(&tree.at("0"));
    reclaim();
    eventually(|| held().used == 1 + FILES);
    // All the others, too, but they are more than may be.
    walk(tree.root());
    reclaim();
    eventually(|| upcalls(&tree, "FORGET") >= DIRECTORIES * (1 + FILES));
    eventually(|| held().used == HELD);
    let without = Tree::mount(&["--require-module", "--exclusive", "--hold", "0"]);
    assert_eq!(without.report().held, None);
}

/// Nodes come and go under the eyes of those who look at them, and while they are changed.
#[test]
fn no_more_are_held_than_was_said_and_nobody_notices() {
    const HELD: usize = 40;
    let tree = Tree::mount_source(
        source(),
        &["--require-module", "--exclusive", "--hold", &HELD.to_string()],
    );
    let before = descriptors(&tree);
    let seed = seed();
    let path = |file: u64| tree.at((file % 4).to_string()).join((file / 4).to_string());
    // Owners, of which each is one more than the one before; on their way, and there.
    let owners: Vec<[AtomicU64; 2]> = (0..4 * FILES).map(|_| Default::default()).collect();
    let (over, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..3 {
            let (path, owners, over, looks) = (&path, &owners, &over, &looks);
            scope.spawn(move || {
                let mut random = Random(seed ^ reader);
                let mut seen = vec![0; owners.len()];
                while !over.load(Ordering::Relaxed) {
                    let file = random.below(owners.len() as u64);
                    let [begun, completed] = &owners[file as usize];
                    let oldest = completed.load(Ordering::SeqCst).max(seen[file as usize]);
                    let seen_now = if random.below(2) == 0 {
                        fs::symlink_metadata(path(file)).unwrap()
                    } else {
                        // Whose node has gone is stale for who has it open.
                        let file = File::open(path(file)).unwrap();
                        thread::sleep(Duration::from_millis(random.below(30)));
                        file.metadata().unwrap()
                    };
                    let owner = u64::from(seen_now.uid());
                    let newest = begun.load(Ordering::SeqCst);
                    assert!((oldest..=newest).contains(&owner), "{oldest} {owner} {newest}");
                    seen[file as usize] = owner;
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let mut random = Random(seed ^ 99);
            while !over.load(Ordering::Relaxed) {
                let file = random.below(owners.len() as u64);
                let [begun, completed] = &owners[file as usize];
                let owner = begun.load(Ordering::SeqCst) + 1;
                begun.store(owner, Ordering::SeqCst);
                chown(path(file), Some(owner as u32), None).unwrap();
                completed.store(owner, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(random.below(4)));
            }
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
    });
    let forgotten = upcalls(&tree, "FORGET");
    println!(
        "{looks:?} looks, {forgotten} FORGET, LOOKUP {:?}",
        tree.count("LOOKUP")
    );
    assert!(looks.into_inner() > 200 && forgotten > 200);
    // Now nobody has any.
    walk(tree.root());
    reclaim();
    eventually(|| descriptors(&tree) <= before + HELD + 2);
    let program = tree.report().program.unwrap();
    assert!(program.attached && program.errors == 0, "{program:?}");
}

#[test]
fn what_the_kernel_has_made_from_the_maps_is_not_let_go() {
    const HELD: usize = 40;
    let tree = Tree::mount_source(
        source(),
        &["--require-module", "--exclusive", "--hold", &HELD.to_string()],
    );
    let before = descriptors(&tree);
    walk(&tree.at("0"));
    reclaim();
    eventually(|| upcalls(&tree, "FORGET") >= FILES);
    let lookups = upcalls(&tree, "LOOKUP");
    let files: Vec<File> = (0..FILES)
        .map(|file| File::open(tree.at("0").join(file.to_string())).unwrap())
        .collect();
    assert_eq!(upcalls(&tree, "LOOKUP"), lookups, "no lookup is counted");
    // Too many that wait, and these for longer than any other.
    let begun = upcalls(&tree, "FORGET");
    walk(tree.root());
    reclaim();
    eventually(|| upcalls(&tree, "FORGET") >= begun + (DIRECTORIES - 1) * FILES);
    eventually(|| descriptors(&tree) <= before + HELD + FILES as usize + 2);
    for file in &files {
        file.metadata().unwrap();
        chown(tree.at("0").join("7"), Some(1000), None).unwrap();
    }
    assert_eq!(files[7].metadata().unwrap().uid(), 1000);
    drop(files);
    reclaim();
    eventually(|| descriptors(&tree) <= before + HELD + 2);
}

const BIG: u64 = 8 << 20;

/// Bytes that are free on the source's file system.
fn free(tree: &Tree) -> u64 {
    nix::unistd::sync();
    let fs = statvfs(&tree.behind("")).unwrap();
    fs.blocks_free() * fs.fragment_size()
}

/// A large file, whose node the daemon holds; `seen` again, the kernel has it from the maps.
fn big(tree: &Tree, name: &str, seen: bool) {
    let mut file = File::create(tree.at(name)).unwrap();
    file.write_all(&vec![1; BIG as usize]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // Who has made a name was not told what it stands for by a LOOKUP, which publishes it.
    for _ in 0..2 {
        tree.warm(name);
        let before = upcalls(tree, "FORGET");
        reclaim();
        eventually(|| upcalls(tree, "FORGET") > before);
    }
    if seen {
        let before = upcalls(tree, "LOOKUP");
        assert_eq!(tree.at(name).metadata().unwrap().size(), BIG);
        assert_eq!(upcalls(tree, "LOOKUP"), before, "it is held");
    }
}

#[test]
fn a_file_that_has_lost_its_name_gives_its_space_back() {
    let tree = Tree::mount(&["--require-module", "--exclusive"]);
    let gives_back = |what: &str, seen: bool, remove: &dyn Fn()| {
        big(&tree, "big", seen);
        let before = free(&tree);
        let start = Instant::now();
        remove();
        eventually(|| free(&tree) > before + BIG / 2);
        println!("{what}: given back after {:?}", start.elapsed());
    };
    gives_back("removed", true, &|| fs::remove_file(tree.at("big")).unwrap());
    gives_back("removed, and not seen before", false, &|| {
        fs::remove_file(tree.at("big")).unwrap();
    });
    gives_back("replaced", true, &|| {
        fs::write(tree.at("small"), "").unwrap();
        fs::rename(tree.at("small"), tree.at("big")).unwrap();
    });
    fs::remove_file(tree.at("big")).unwrap();
    gives_back("removed while it was open", true, &|| {
        let file = File::open(tree.at("big")).unwrap();
        let before = free(&tree);
        fs::remove_file(tree.at("big")).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(free(&tree) < before + BIG / 2, "it is in use");
        assert_eq!(file.metadata().unwrap().size(), BIG);
    });
}

#[test]
fn a_file_that_is_removed_behind_the_mount_gives_its_space_back_in_time() {
    let tree = Tree::mount(&["--require-module", "--ttl", "5", "--hold", "100"]);
    big(&tree, "big", true);
    // What the kernel has of it, it may keep.
    reclaim();
    let before = free(&tree);
    let start = Instant::now();
    fs::remove_file(tree.behind("big")).unwrap();
    assert!(free(&tree) < before + BIG / 2, "its node is held");
    eventually(|| free(&tree) > before + BIG / 2);
    println!("given back after {:?}", start.elapsed());
    assert!(tree.at("big").symlink_metadata().is_err());
}
