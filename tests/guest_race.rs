// SPDX-License-Identifier: MIT OR Apache-2.0
//! Coherence under race: while some threads change files, others look, and nobody may see anything
//! older than a change that was completed before he looked, nor something old after something new.
//!
//! Each [`Object`] is changed by one thread, version after version. What an observer may see follows
//! from the versions that were completed before he looked and begun after he did: see [`Eye`].
//! `EXTFUSE_RACE_SECONDS` is how long each test looks, `EXTFUSE_SEED` repeats the draws.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/xattr.rs"]
mod xattr;

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use common::extfuse;
use guest::{Random, Tree, WITH_HANDLERS, WITHOUT_HANDLERS, seconds, seed};

const PRIVATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/private.bpf.o"));

/// What is changed, and how it shows which version it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The first eight bytes, written in place.
    Content,
    /// Bytes that are appended: the size.
    Size,
    /// The owner.
    Owner,
    /// The permissions.
    Mode,
    /// A symlink that another is renamed over: its target.
    Target,
    /// A file that another is renamed over: its content and its size.
    Replaced,
    /// A file that is renamed, among [`PLACES`] names in two directories.
    Place,
    /// A name that is created and removed.
    Presence,
    /// A directory that is made and removed.
    Directory,
    /// The same: the link count of its parent.
    Parent,
    /// Hard links that come and go: the link count.
    Links,
    /// An extended attribute, absent at every third version: its value, and whether it is listed.
    Xattr,
    /// An access ACL, or none: what it allows nobody.
    Acl,
    /// A directory with one file in it, which is renamed: its listing.
    Listing,
    /// Files that are made: how many more the file system has room for. Nothing else may make any there.
    /// Not its blocks: ext4 counts those that it is about to allocate twice for a moment. And none are
    /// removed: their inodes are free some time after.
    Space,
}

const KINDS: [Kind; 14] = [
    Kind::Content,
    Kind::Size,
    Kind::Owner,
    Kind::Mode,
    Kind::Target,
    Kind::Replaced,
    Kind::Place,
    Kind::Presence,
    Kind::Directory,
    Kind::Parent,
    Kind::Links,
    Kind::Xattr,
    Kind::Acl,
    Kind::Listing,
];

const XATTR: &CStr = c"user.version";
const ACL: &CStr = c"system.posix_acl_access";

const PLACES: u64 = 6;
/// Links come until there are as many more, then go again.
const LINKS: u64 = 8;
/// A file that grows is cut to this many versions.
const SIZES: u64 = 4096;

/// One file, its name, and how far its changes have come.
#[derive(Debug)]
struct Object {
    kind: Kind,
    name: String,
    /// Version that a change is, or was last, on its way to.
    begun: AtomicU64,
    /// Version that is there.
    completed: AtomicU64,
    /// Of [`Kind::Space`]: inodes that were free at version 0.
    free: AtomicU64,
}

/// How many links there are beside the first, at a version.
fn links(version: u64) -> u64 {
    let phase = version % (2 * LINKS);
    phase.min(2 * LINKS - phase)
}

/// An ACL that allows uid 65534 as much as `perm` says, as setxattr(2) takes it.
fn acl(perm: u64) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    let entries = [
        (1, 6, u32::MAX),
        (2, perm as u16, 65534),
        (4, 0, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    for (tag, perm, id) in entries {
        let (tag, perm, id): (u16, u16, u32) = (tag, perm, id);
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// An attribute that is missing is `None`.
fn attribute(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    match xattr::get(path, name) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// A missing name is `None`; anything else that goes wrong is a failure.
fn unless_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Object {
    fn new(kind: Kind, number: usize) -> Self {
        Self {
            kind,
            name: format!("{kind:?}.{number}"),
            begun: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            free: AtomicU64::new(0),
        }
    }

    fn path(&self, root: &Path) -> PathBuf {
        root.join(&self.name)
    }

    fn beside(&self, root: &Path, suffix: impl std::fmt::Display) -> PathBuf {
        root.join(format!("{}.{suffix}", self.name))
    }

    /// The name of [`Kind::Place`] at a version.
    fn place(&self, root: &Path, version: u64) -> PathBuf {
        let place = version % PLACES;
        root.join(["left", "right"][(place % 2) as usize])
            .join(format!("{}.{place}", self.name))
    }

    /// Makes version 0.
    fn prepare(&self, root: &Path) -> io::Result<()> {
        let path = self.path(root);
        match self.kind {
            Kind::Content | Kind::Replaced => fs::write(path, 0_u64.to_ne_bytes()),
            Kind::Target => symlink("0", path),
            Kind::Place => fs::write(self.place(root, 0), ""),
            Kind::Presence => Ok(()),
            Kind::Directory | Kind::Parent => fs::create_dir(path),
            Kind::Listing => fs::create_dir(&path).and_then(|()| fs::write(path.join("0"), "")),
            _ => fs::write(path, "").and_then(|()| chown(self.path(root), Some(0), None)),
        }?;
        match self.kind {
            Kind::Mode => fs::set_permissions(self.path(root), fs::Permissions::from_mode(0o0)),
            Kind::Space => {
                self.free.store(statvfs(root)?.files_free(), Ordering::SeqCst);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Changes it from the version before to `version`.
    fn change(&self, root: &Path, version: u64) -> io::Result<()> {
        let path = self.path(root);
        let new = self.beside(root, "new");
        match self.kind {
            Kind::Content => OpenOptions::new()
                .write(true)
                .open(path)?
                .write_all_at(&version.to_ne_bytes(), 0),
            Kind::Size if version.is_multiple_of(SIZES) => {
                OpenOptions::new().write(true).open(path)?.set_len(0)
            }
            Kind::Size => io::Write::write_all(&mut OpenOptions::new().append(true).open(path)?, b"x"),
            Kind::Owner => chown(path, Some(version as u32), None),
            Kind::Mode => fs::set_permissions(path, fs::Permissions::from_mode((version % 512) as u32)),
            Kind::Target => symlink(version.to_string(), &new).and_then(|()| fs::rename(&new, path)),
            Kind::Replaced => {
                let mut content = version.to_ne_bytes().to_vec();
                content.resize(8 + (version % 1000) as usize, 0);
                fs::write(&new, content).and_then(|()| fs::rename(&new, path))
            }
            Kind::Place => fs::rename(self.place(root, version - 1), self.place(root, version)),
            Kind::Presence if version % 2 == 1 => File::create_new(path).map(drop),
            Kind::Presence => fs::remove_file(path),
            Kind::Directory | Kind::Parent if version % 2 == 1 => fs::create_dir(path.join("inner")),
            Kind::Directory | Kind::Parent => fs::remove_dir(path.join("inner")),
            Kind::Links => {
                let (before, after) = (links(version - 1), links(version));
                if after > before {
                    fs::hard_link(path, self.beside(root, after))
                } else {
                    fs::remove_file(self.beside(root, before))
                }
            }
            Kind::Xattr if version.is_multiple_of(3) => Ok(xattr::remove(&path, XATTR)?),
            Kind::Xattr => Ok(xattr::set(&path, XATTR, &version.to_ne_bytes())?),
            Kind::Acl if version.is_multiple_of(8) => Ok(xattr::remove(&path, ACL)?),
            Kind::Acl => Ok(xattr::set(&path, ACL, &acl(version % 8))?),
            Kind::Listing => {
                let name = |version: u64| path.join(version.to_string());
                fs::rename(name(version - 1), name(version))
            }
            Kind::Space => File::create_new(self.beside(root, version)).map(drop),
        }
    }

    /// Looks at it, and tells what it saw, and what that shows at each version.
    fn look(&self, root: &Path, random: &mut Random) -> io::Result<Sight> {
        let path = self.path(root);
        let stat = |path: PathBuf| fs::symlink_metadata(path);
        Ok(match self.kind {
            Kind::Content if random.below(2) == 0 => {
                Sight::new(mapped(&File::open(path)?)?, |version| version)
            }
            Kind::Content => {
                let mut content = [0; 8];
                File::open(path)?.read_exact_at(&mut content, 0)?;
                Sight::new(u64::from_ne_bytes(content), |version| version)
            }
            Kind::Size => Sight::new(stat(path)?.size(), |version| version % SIZES),
            Kind::Owner => Sight::new(stat(path)?.uid().into(), |version| version),
            Kind::Mode => Sight::new((stat(path)?.mode() & 0o777).into(), |version| version % 512),
            Kind::Target => {
                let target = fs::read_link(path)?;
                let version = target.to_str().and_then(|text| text.parse().ok());
                Sight::new(version.unwrap_or(u64::MAX), |version| version)
            }
            Kind::Replaced if random.below(2) == 0 => {
                Sight::new(stat(path)?.size(), |version| match version {
                    0 => 8,
                    version => 8 + version % 1000,
                })
            }
            Kind::Replaced => {
                let mut content = [0; 8];
                File::open(path)?.read_exact_at(&mut content, 0)?;
                Sight::new(u64::from_ne_bytes(content), |version| version)
            }
            Kind::Place => {
                let place = random.below(PLACES);
                let there = unless_absent(stat(self.place(root, place)))?.is_some();
                Sight::new(there.into(), move |version| (version % PLACES == place).into())
            }
            Kind::Presence => {
                let there = unless_absent(stat(path))?.is_some();
                Sight::new(there.into(), |version| version % 2)
            }
            Kind::Directory => {
                let there = unless_absent(stat(path.join("inner")))?.is_some();
                Sight::new(there.into(), |version| version % 2)
            }
            // Apart from the name: ext4 counts down before its own cache forgets the name.
            Kind::Parent => Sight::new(stat(path)?.nlink() - 2, |version| version % 2),
            Kind::Links if random.below(2) == 0 => Sight::new(stat(path)?.nlink() - 1, links),
            Kind::Links => {
                let which = 1 + random.below(LINKS);
                // Not how many: the call finds the name first, and counts then.
                let there = unless_absent(stat(self.beside(root, which)))?.is_some();
                Sight::new(there.into(), move |version| (links(version) >= which).into())
            }
            Kind::Xattr if random.below(2) == 0 => {
                let (size, _) = xattr::list_in(&path, 4096)?;
                Sight::new(u64::from(size > 0), |version| {
                    u64::from(!version.is_multiple_of(3))
                })
            }
            Kind::Xattr => {
                let value = attribute(&path, XATTR)?;
                let value = value.map_or(Some(0), |value| Some(u64::from_ne_bytes(value.try_into().ok()?)));
                Sight::new(value.unwrap_or(u64::MAX), |version| match version % 3 {
                    0 => 0,
                    _ => version,
                })
            }
            Kind::Acl => {
                let value = attribute(&path, ACL)?;
                // Of the second entry, behind a header of 4 bytes.
                let perm = value.map_or(Some(0), |value| value.get(14).copied());
                Sight::new(perm.map_or(u64::MAX, u64::from), |version| version % 8)
            }
            Kind::Listing => {
                let before = self.completed.load(Ordering::SeqCst);
                let entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
                let name = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse().ok();
                match &entries[..] {
                    [entry] => Sight::new(name(entry).unwrap_or(u64::MAX), |version| version),
                    // Both names or neither: the file was renamed while it was listed.
                    _ => Sight::new(1, move |version| u64::from(version > before)),
                }
            }
            Kind::Space => {
                // The kernel keeps it for the node that was asked last.
                let asked = if random.below(8) == 0 {
                    path
                } else {
                    root.to_owned()
                };
                let free = statvfs(&asked)?.files_free();
                let used = self.free.load(Ordering::SeqCst).wrapping_sub(free);
                Sight::new(used, |version| version)
            }
        })
    }
}

/// The first eight bytes of a file, through a mapping.
fn mapped(file: &File) -> io::Result<u64> {
    let length = std::num::NonZeroUsize::new(8).unwrap();
    // SAFETY: a new mapping of a file that is never shorter than what is read of it, then removed.
    unsafe {
        let at = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0)?;
        let content = at.cast::<u64>().read_volatile();
        munmap(at, length.get())?;
        Ok(content)
    }
}

/// What was seen, and what would be seen at a version.
struct Sight {
    seen: u64,
    at: Box<dyn Fn(u64) -> u64>,
}

impl Sight {
    fn new(seen: u64, at: impl Fn(u64) -> u64 + 'static) -> Self {
        Self {
            seen,
            at: Box::new(at),
        }
    }
}

/// One observer of one object: the oldest version that he may still see.
#[derive(Clone, Copy, Debug, Default)]
struct Eye {
    oldest: u64,
}

impl Eye {
    /// Looks once. What it sees has to be what some version shows, of those that were there at some
    /// moment of the look and are not older than what this eye has seen before.
    fn look(&mut self, object: &Object, root: &Path, random: &mut Random) -> Result<(), String> {
        let completed = object.completed.load(Ordering::SeqCst);
        self.oldest = self.oldest.max(completed);
        let sight = object.look(root, random);
        let begun = object.begun.load(Ordering::SeqCst);
        let sight = sight.map_err(|error| format!("{}: {error}", object.name))?;
        let possible = (self.oldest..=begun).find(|version| (sight.at)(*version) == sight.seen);
        self.oldest = possible.ok_or_else(|| {
            format!(
                "{}: saw {}, but version {completed} was complete, {} was seen, and {begun} was begun",
                object.name, sight.seen, self.oldest
            )
        })?;
        Ok(())
    }
}

/// What came of a race.
#[derive(Debug, Default)]
struct Outcome {
    changes: u64,
    looks: u64,
    faults: u64,
    first: Option<String>,
}

/// Changes objects below `changed` and looks at them below `seen`, until the time is over or enough
/// was found. An error of a call is a fault, like staleness.
fn race(kinds: &[Kind], changed: &Path, seen: &Path, observers: u64, time: Duration, enough: u64) -> Outcome {
    for directory in ["left", "right"] {
        fs::create_dir(changed.join(directory)).unwrap();
    }
    let objects: Vec<Object> = kinds
        .iter()
        .enumerate()
        .map(|(n, kind)| Object::new(*kind, n))
        .collect();
    for object in &objects {
        object
            .prepare(changed)
            .unwrap_or_else(|error| panic!("{object:?}: {error}"));
    }
    let seed = seed();
    let (looks, faults) = (AtomicU64::new(0), AtomicU64::new(0));
    let first = Mutex::new(None);
    let over = AtomicBool::new(false);
    let fault = |what: String| {
        first.lock().unwrap().get_or_insert(what);
        if faults.fetch_add(1, Ordering::Relaxed) + 1 >= enough {
            over.store(true, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for object in &objects {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let version = object.begun.load(Ordering::SeqCst) + 1;
                    object.begun.store(version, Ordering::SeqCst);
                    if let Err(error) = object.change(changed, version) {
                        return fault(format!("{} to version {version}: {error}", object.name));
                    }
                    object.completed.store(version, Ordering::SeqCst);
                    // Looks at what stands still are the ones that are answered from maps.
                    thread::sleep(Duration::from_millis(version % 6));
                }
            });
        }
        for observer in 0..observers {
            let (objects, fault, looks, over) = (&objects, &fault, &looks, &over);
            scope.spawn(move || {
                let mut random = Random(seed ^ observer);
                let mut eyes = vec![Eye::default(); objects.len()];
                while !over.load(Ordering::Relaxed) {
                    let which = random.below(objects.len() as u64) as usize;
                    // More than once: a row that was published now is served next.
                    for _ in 0..1 + random.below(4) {
                        if let Err(what) = eyes[which].look(&objects[which], seen, &mut random) {
                            fault(what);
                        }
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let start = Instant::now();
        for round in 0.. {
            if start.elapsed() >= time || over.load(Ordering::Relaxed) {
                break;
            }
            // Every now and then the kernel forgets all that it may: names, inodes, pages.
            if round % 100 == 0 {
                fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            }
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
    });
    for object in &objects {
        println!(
            "{:12} {:6} versions",
            object.name,
            object.completed.load(Ordering::SeqCst)
        );
    }
    let changes = objects
        .iter()
        .map(|object| object.completed.load(Ordering::SeqCst))
        .sum();
    let outcome = Outcome {
        changes,
        looks: looks.into_inner(),
        faults: faults.into_inner(),
        first: first.into_inner().unwrap(),
    };
    println!("{outcome:?}");
    outcome
}

/// Changes and looks are through the mount: nothing stale is seen.
fn coherent(arguments: &[&str], usual: u64) -> Tree {
    let tree = Tree::mount(arguments);
    let time = seconds("EXTFUSE_RACE_SECONDS", usual, 60);
    let outcome = race(&KINDS, tree.root(), tree.root(), 4, time, 1);
    assert_eq!(outcome.faults, 0, "{}", outcome.first.unwrap());
    assert!(outcome.changes > 100 && outcome.looks > 200, "{outcome:?}");
    tree
}

fn coherent_with_handlers(arguments: &[&str], usual: u64) {
    let tree = coherent(arguments, usual);
    let (lookup, getattr) = (tree.count("LOOKUP"), tree.count("GETATTR"));
    let getxattr = tree.count("GETXATTR");
    println!("LOOKUP {lookup:?}\nGETATTR {getattr:?}\nGETXATTR {getxattr:?}");
    let xattrs = guest::answered(&getxattr) + getxattr.errno.unwrap();
    assert!(xattrs > 20, "{getxattr:?}");
    assert!(guest::answered(&lookup) > 100 && guest::answered(&getattr) > 100);
    assert!(lookup.kept.unwrap() > 100 && getattr.kept.unwrap() > 100);
    let program = tree.report().program.unwrap();
    assert!(program.attached && program.errors == 0, "{program:?}");
}

#[test]
fn handlers_give_no_stale_answer() {
    coherent_with_handlers(WITH_HANDLERS[0], 60);
}

#[test]
fn handlers_of_an_exclusive_mount_give_no_stale_answer() {
    coherent_with_handlers(WITH_HANDLERS[1], 20);
}

/// Has nothing kept of what names and attributes are: every look asks, in the RCU walk, too.
fn keep_nothing(tree: &Tree) {
    let objects = TempDir::new().unwrap();
    let file = objects.path().join("private.bpf.o");
    fs::write(&file, PRIVATE).unwrap();
    let [root, file] = [tree.root(), &file].map(|path| path.to_str().unwrap());
    for opcode in ["LOOKUP", "GETATTR"] {
        let output = extfuse(&["handler", "load", root, opcode, file]);
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn handlers_that_are_asked_in_each_walk_give_no_stale_answer() {
    let tree = Tree::mount(WITH_HANDLERS[1]);
    keep_nothing(&tree);
    let outcome = race(
        &KINDS,
        tree.root(),
        tree.root(),
        4,
        seconds("EXTFUSE_RACE_SECONDS", 20, 60),
        1,
    );
    assert_eq!(outcome.faults, 0, "{}", outcome.first.unwrap());
    let (lookup, getattr) = (tree.count("LOOKUP"), tree.count("GETATTR"));
    println!("LOOKUP {lookup:?}\nGETATTR {getattr:?}");
    assert!(lookup.returned.unwrap() > 100 && getattr.returned.unwrap() > 100);
    assert!(lookup.kept.unwrap() < 10, "{lookup:?}");
}

#[test]
fn without_handlers_there_is_no_stale_answer() {
    coherent(WITHOUT_HANDLERS, 20);
}

/// Changes are made behind the mount, where nothing tells it: stale answers must be found.
fn stale(kinds: &[Kind], arguments: &[&str]) {
    stale_of(&Tree::mount(arguments), kinds, |_| ());
}

fn stale_of(tree: &Tree, kinds: &[Kind], prepare: impl FnOnce(&Tree)) {
    prepare(tree);
    let time = seconds("EXTFUSE_RACE_SECONDS", 20, 60);
    let outcome = race(kinds, &tree.behind(""), tree.root(), 4, time, 20);
    assert!(outcome.faults >= 20, "nothing stale was found: {outcome:?}");
}

/// The control of all of this: stock FUSE that keeps what it knows for a day.
#[test]
fn stale_answers_of_stock_fuse_are_found() {
    stale(
        &KINDS,
        &["--stock", "-o", "entry_timeout=86400,attr_timeout=86400"],
    );
}

/// And that the answers of handlers are among those that are looked at.
#[test]
fn stale_answers_of_handlers_are_found_when_changes_are_hidden_from_them() {
    stale(&KINDS, WITH_HANDLERS[1]);
}

/// ... and those that were given in the walk.
#[test]
fn stale_answers_in_each_walk_are_found_when_changes_are_hidden_from_them() {
    stale_of(&Tree::mount(WITH_HANDLERS[1]), &KINDS, keep_nothing);
}

/// How full the file system is, alone: much else would change it, too.
#[test]
fn free_space_is_not_stale() {
    for arguments in WITH_HANDLERS {
        let tree = Tree::mount(arguments);
        let time = seconds("EXTFUSE_RACE_SECONDS", 4, 60);
        let outcome = race(&[Kind::Space], tree.root(), tree.root(), 3, time, 1);
        assert_eq!(outcome.faults, 0, "{}", outcome.first.unwrap());
        assert!(outcome.changes > 20 && outcome.looks > 100, "{outcome:?}");
        let statfs = tree.count("STATFS");
        println!("STATFS {statfs:?}");
        // All that was in flight has ended.
        for _ in 0..2 {
            statvfs(tree.root()).unwrap();
        }
        assert!(tree.count("STATFS").kept > statfs.kept);
        assert!(statfs.kept.unwrap() > 50 && statfs.upcalls > 20, "{statfs:?}");
    }
}

/// And what is kept of it is among what is looked at.
#[test]
fn stale_free_space_is_found_when_changes_are_hidden() {
    stale(&[Kind::Space], WITH_HANDLERS[1]);
}
