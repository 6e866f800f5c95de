// SPDX-License-Identifier: MIT OR Apache-2.0
//! Handlers that are asked in the RCU walk: what they confirm is no request, and what they can't is asked again.
//!
//! Timeouts are 0 and nothing is kept, unless a test says so: each look asks, and a walk that is left asks once more,
//! without `EXTFUSE_CTX_WALK`.

use std::fs::{self, File};
use std::path::Path;

use extfuse::abi::{Counter, ERROR_BUDGET, RETURN};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::harness::{GETATTR, GETXATTR, Hostile, LOOKUP, Mounted, attr_out, entry_out, offset};

const LOOKS: u64 = 20;

/// Looks, and tells how often the handler was asked meanwhile: in the walk, and elsewhere.
fn asked(hostile: &Hostile, mut look: impl FnMut()) -> (u64, u64) {
    let seen = |hostile: &Hostile| (hostile.seen().walks, hostile.seen().requests);
    let before = seen(hostile);
    (0..LOOKS).for_each(|_| look());
    let after = seen(hostile);
    (after.0 - before.0, after.1 - before.1)
}

/// A directory to begin walks at: what is above the mount may leave the walk by itself.
struct Start(File);

impl Start {
    fn at(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }

    fn look(&self, name: &str) -> nix::Result<i64> {
        fstatat(&self.0, name, AtFlags::empty()).map(|of| of.st_size)
    }
}

/// A file, and a handler of LOOKUP that answers for it.
struct Scene {
    /// First: the mount ends with its last user.
    start: Start,
    good: Vec<u8>,
    hostile: Hostile,
    mounted: Mounted,
}

impl Scene {
    fn new() -> Self {
        let mounted = Mounted::new();
        let nodeid = mounted.nodeid(&mounted.file("file"));
        let good = entry_out(nodeid, 0, &mounted.source.join("file"));
        let mut hostile = Hostile::on_names(&mounted);
        hostile.only_name("file");
        hostile.answer(&good);
        hostile.verdict(RETURN);
        Self {
            start: Start::at(&mounted.at),
            mounted,
            good,
            hostile,
        }
    }

    /// Looks at the file, finds `what`, and tells how often the handler was asked.
    #[track_caller]
    fn asked_for(&self, what: nix::Result<i64>) -> (u64, u64) {
        asked(&self.hostile, || assert_eq!(self.start.look("file"), what))
    }

    fn count(&self, what: Counter) -> u64 {
        self.mounted.count(LOOKUP, what)
    }

    fn errors(&self) -> u64 {
        self.mounted.status().errors
    }
}

#[test]
fn a_name_is_confirmed_in_the_walk() {
    let mut scene = Scene::new();
    assert_eq!(scene.asked_for(Ok(4)), (LOOKS, 0));
    assert_eq!(scene.count(Counter::EXTFUSE_COUNT_RETURNED), LOOKS);
    assert_eq!(scene.count(Counter::EXTFUSE_COUNT_REFUSED), 0);
    // One who says nothing there is asked where it may sleep.
    scene.hostile.tell(|seen| seen.not_in_walk = 1);
    assert_eq!(scene.asked_for(Ok(4)), (LOOKS, LOOKS));
    assert_eq!(scene.count(Counter::EXTFUSE_COUNT_RETURNED), 2 * LOOKS);
    assert_eq!(scene.errors(), 0);
}

/// What is confirmed may be kept: then nobody is asked any more, until it changes.
#[test]
fn what_is_confirmed_is_kept() {
    let mut scene = Scene::new();
    scene
        .hostile
        .tell(|seen| (seen.keep_entry, seen.keep_attr) = (1, 1));
    let upcalls = |scene: &Scene| scene.mounted.count(GETATTR, Counter::EXTFUSE_COUNT_UPCALLS);
    let before = upcalls(&scene);
    assert_eq!(scene.asked_for(Ok(4)), (1, 0));
    assert_eq!(upcalls(&scene), before, "its attributes are kept, too");
    fs::rename(scene.mounted.at.join("file"), scene.mounted.at.join("other")).unwrap();
    scene.hostile.verdict(-libc::ENOSYS);
    assert_eq!(scene.start.look("file"), Err(Errno::ENOENT));
    assert_eq!(scene.start.look("other"), Ok(4));
}

#[test]
fn what_is_not_as_the_kernel_has_it_leaves_the_walk() {
    let mut scene = Scene::new();
    let source = scene.mounted.source.join("file");
    let nodeid = u64::from_ne_bytes(scene.good[..8].try_into().unwrap());
    let mut larger = scene.good.clone();
    larger[40 + offset::SIZE..][..8].copy_from_slice(&5_u64.to_ne_bytes());
    let mut directory = scene.good.clone();
    directory[40 + offset::MODE..][..4].copy_from_slice(&(libc::S_IFDIR | 0o755).to_ne_bytes());
    // The size that stat(2) has is the daemon's own: GETATTR has no handler here.
    for wrong in [
        larger,
        entry_out(nodeid + 1, 0, &source),
        entry_out(nodeid, 1, &source),
        directory,
    ] {
        scene.hostile.answer(&wrong);
        let (walks, requests) = scene.asked_for(Ok(4));
        assert!(walks > 0 && requests >= LOOKS, "{walks} {requests}");
    }
    scene.hostile.answer(&scene.good.clone());
    scene.start.look("file").unwrap();
    assert_eq!(scene.asked_for(Ok(4)), (LOOKS, 0));
    scene.hostile.answer(&entry_out(0, 0, &source));
    let (walks, requests) = scene.asked_for(Err(Errno::ENOENT));
    assert!(walks > 0 && requests > 0, "{walks} {requests}");
}

/// An errno for everybody is the end of the name, and not to be had in the walk; one for the caller is, and it is not.
#[test]
fn an_errno_is_the_callers_if_it_is_private() {
    let mut scene = Scene::new();
    scene.hostile.verdict(-libc::ENOENT);
    scene.hostile.tell(|seen| seen.private = 1);
    assert_eq!(scene.asked_for(Err(Errno::ENOENT)), (LOOKS, 0));
    assert_eq!(scene.count(Counter::EXTFUSE_COUNT_ERRNO), LOOKS);
    scene.hostile.verdict(RETURN);
    assert_eq!(scene.asked_for(Ok(4)), (LOOKS, 0));
    // Private answers are not kept.
    scene
        .hostile
        .tell(|seen| (seen.keep_entry, seen.keep_attr) = (1, 1));
    assert_eq!(scene.asked_for(Ok(4)), (LOOKS, 0));
    scene
        .hostile
        .tell(|seen| (seen.private, seen.keep_entry, seen.keep_attr) = (0, 0, 0));
    scene.hostile.verdict(-libc::ENOENT);
    let (walks, requests) = scene.asked_for(Err(Errno::ENOENT));
    assert!(walks <= LOOKS && requests >= LOOKS, "{walks} {requests}");
    assert_eq!(scene.errors(), 0);
}

#[test]
fn a_name_that_does_not_exist_is_confirmed() {
    let mut scene = Scene::new();
    scene.hostile.only_name("nothing");
    scene.hostile.answer(&[0; 128]);
    let missing = || assert_eq!(scene.start.look("nothing"), Err(Errno::ENOENT));
    missing();
    assert_eq!(asked(&scene.hostile, missing), (LOOKS, 0));
    // Nor is it taken for missing when it is said to be there.
    scene.hostile.answer(&scene.good.clone());
    assert_eq!(scene.start.look("nothing"), Ok(4));
    scene.hostile.verdict(-libc::ENOSYS);
    fs::write(scene.mounted.at.join("nothing"), "there").unwrap();
    assert_eq!(scene.start.look("nothing"), Ok(5));
}

/// May a directory be walked through? Its attributes say so, and a handler says whether they are current.
#[test]
fn a_directorys_attributes_are_confirmed_in_the_walk() {
    let mounted = Mounted::new();
    let directory = mounted.at.join("directory");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("inside"), "1234").unwrap();
    let source = mounted.source.join("directory");
    let nodeid = mounted.nodeid(&directory);
    let mut hostile = Hostile::on(&mounted, GETATTR);
    hostile.tell(|seen| seen.only_node = nodeid);
    hostile.answer(&attr_out(&source));
    hostile.verdict(RETURN);
    let start = Start::at(&directory);
    let look = || assert_eq!(start.look("inside"), Ok(4));
    look();
    assert_eq!(asked(&hostile, look), (LOOKS, 0));
    // Who may not, may not, without leaving the walk.
    hostile.verdict(-libc::EACCES);
    let denied = || assert_eq!(start.look("inside"), Err(Errno::EACCES));
    assert_eq!(asked(&hostile, denied), (LOOKS, 0));
    // Other attributes than the kernel has are taken where it may change them.
    hostile.verdict(RETURN);
    let mut other = attr_out(&source);
    other[16 + offset::SIZE..][..8].copy_from_slice(&7_u64.to_ne_bytes());
    hostile.answer(&other);
    assert_eq!(asked(&hostile, look), (LOOKS, 1));
    hostile.tell(|seen| seen.keep_attr = 1);
    assert_eq!(asked(&hostile, look), (1, 0));
    assert_eq!(mounted.status().errors, 0);
}

/// Where an ACL would decide, a handler says in the walk that there is none.
#[test]
fn an_acl_that_is_absent_is_confirmed_in_the_walk() {
    let mounted = Mounted::new();
    let directory = mounted.at.join("directory");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("inside"), "1234").unwrap();
    let nodeid = mounted.nodeid(&directory);
    // Not of who looks: then its group, or an ACL, decides.
    let mut way = attr_out(&mounted.source.join("directory"));
    way[16 + offset::UID..][..4].copy_from_slice(&7_u32.to_ne_bytes());
    let mut hostile = Hostile::load(mounted.setup().conn, 1 << GETXATTR | 1 << GETATTR).unwrap();
    hostile.tell(|seen| {
        seen.target = GETXATTR;
        seen.only_node = nodeid;
        seen.way_node = nodeid;
        seen.way.copy_from_slice(&way);
    });
    hostile.verdict(-libc::ENODATA);
    hostile.attach().unwrap();
    let start = Start::at(&directory);
    let look = || assert_eq!(start.look("inside"), Ok(4));
    look();
    assert_eq!(asked(&hostile, look), (LOOKS, 0));
    // Anything else is for where it may be read.
    hostile.verdict(-libc::ENOSYS);
    assert_eq!(asked(&hostile, look), (LOOKS, LOOKS));
    hostile.verdict(-libc::EIO);
    let refused = || assert_eq!(start.look("inside"), Err(Errno::EIO));
    assert_eq!(asked(&hostile, refused), (LOOKS, LOOKS));
    assert_eq!(mounted.status().errors, 0);
}

/// What it does wrong in the walk costs it as much as elsewhere.
#[test]
fn mistakes_in_the_walk_are_charged() {
    let mut scene = Scene::new();
    // It has an answer only elsewhere: so the mistakes there are not all.
    scene.hostile.tell(|seen| seen.wrong_reads = 1);
    assert_eq!(scene.start.look("file"), Ok(4));
    assert_eq!(
        scene.errors(),
        6,
        "three where it was asked first, three where it was asked again"
    );
    for _ in 0..ERROR_BUDGET {
        assert_eq!(scene.start.look("file"), Ok(4));
    }
    assert_eq!(scene.mounted.status().attached, 0);
}
