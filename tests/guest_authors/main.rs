// SPDX-License-Identifier: MIT OR Apache-2.0
//! File systems of other authors through the module: what still comes up to them. Runs in the guest.

#[path = "../common/archives.rs"]
mod archives;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/archive/filesystem.rs"]
mod filesystem;
#[allow(dead_code)]
#[path = "../../examples/hello.rs"]
mod hello;
#[path = "../../examples/archive/members.rs"]
mod members;
#[path = "../common/served.rs"]
mod served;
#[path = "../../examples/archive/tree.rs"]
mod tree;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use extfuse::abi::NodeId;
use extfuse::ebpf::{Group, Key, NodeIo, Validity};
use extfuse::session::SessionError;
use extfuse::{Kernel, MountOptions};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEntry, Request,
};
use tempfile::TempDir;

use archives::{DIRECTORIES, FILES};
use hello::Hello;
use served::{Served, find, mountpoint};

fn module() -> MountOptions {
    MountOptions {
        require_module: true,
        threads: 2,
        ..MountOptions::default()
    }
}

fn hello(options: &MountOptions) -> Served {
    Served::new(|at| extfuse::mount(Hello, at, options).unwrap())
}

/// Looks at all there is, and reads it.
fn walk(served: &Served) {
    for path in find(served.root()) {
        if path.symlink_metadata().unwrap().is_file() {
            fs::read(path).unwrap();
        }
    }
}

/// Twice: after a READ attributes are asked again, once, for the access time.
fn warm(served: &Served) {
    walk(served);
    walk(served);
}

fn of(asked: &[(String, u64)], opcode: &str) -> u64 {
    let row = asked.iter().find(|(other, _)| other == opcode);
    row.map_or(0, |(_, count)| *count)
}

fn drop_caches() {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

#[test]
fn the_mount_call_alone_gives_the_file_systems_own_timeouts() {
    let served = hello(&module());
    warm(&served);
    let asked = served.upcalls(|| walk(&served));
    println!("hello, warm, mount call alone: {asked:?}");
    // Names and attributes are kept. Opens are its own, and what is opened anew is read anew.
    assert_eq!(of(&asked, "LOOKUP"), 0);
    assert_eq!((of(&asked, "OPEN"), of(&asked, "READ")), (1, 1));
    assert_eq!(
        served
            .upcalls(|| assert!(File::open(served.path("new")).is_err()))
            .len(),
        1
    );
    thread::sleep(Duration::from_millis(1100));
    let asked = served.upcalls(|| walk(&served));
    assert_eq!(of(&asked, "LOOKUP"), 1, "{asked:?}");
}

#[test]
fn with_two_options_nothing_comes_up() {
    let served = hello(&MountOptions {
        valid: Some(Validity::UntilChanged),
        opens: true,
        ..module()
    });
    warm(&served);
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(served.upcalls(|| walk(&served)), []);
    assert!(served.report().program.unwrap().attached);
}

#[test]
fn a_warm_archive_asks_nothing() {
    let dir = TempDir::new().unwrap();
    let path = archives::tree(dir.path());
    let served = Served::new(|at| filesystem::mount(&path, at, 0, &module()).unwrap());
    let cold = served.upcalls(|| assert_eq!(find(served.root()).len(), DIRECTORIES * (FILES + 1)));
    println!("find, cold: {cold:?}");
    // All was published, and the nodes are held.
    assert_eq!((of(&cold, "GETATTR"), of(&cold, "LOOKUP")), (0, 0), "{cold:?}");
    let cold = served.upcalls(|| walk(&served));
    println!("find and cat, cold: {cold:?}");
    assert_eq!(of(&cold, "READ"), (DIRECTORIES * FILES) as u64);
    let warm = served.upcalls(|| walk(&served));
    println!("find and cat, warm: {warm:?}");
    assert_eq!(warm, []);
    drop_caches();
    let forgotten = served.upcalls(|| drop(find(served.root())));
    println!("find, forgotten: {forgotten:?}");
    assert_eq!((of(&forgotten, "GETATTR"), of(&forgotten, "LOOKUP")), (0, 0));
}

#[test]
fn unpacked_members_are_read_in_the_kernel() {
    let dir = TempDir::new().unwrap();
    let text = b"again and again ".repeat(20_000);
    let path = archives::zip(dir.path(), &text);
    let served = Served::new(|at| filesystem::mount(&path, at, 1 << 30, &module()).unwrap());
    // Held, so that reclaim leaves the nodes.
    let files = ["d/stored", "d/deflated"].map(|name| File::open(served.path(name)).unwrap());
    let read = |at: usize| {
        let mut data = vec![0; text.len()];
        files[at].read_exact_at(&mut data, 0).unwrap();
        assert!(data == text);
    };
    read(0);
    read(1);
    drop_caches();
    let stored = of(&served.upcalls(|| read(0)), "READ");
    let unpacked = of(&served.upcalls(|| read(1)), "READ");
    println!(
        "READs of {} bytes: {stored} stored, {unpacked} with a backing file",
        text.len()
    );
    assert!(stored > 0);
    assert_eq!(unpacked, 0);
}

#[test]
fn what_is_kept_keeps_nobody_waiting_when_the_session_is_gone() {
    let at = mountpoint();
    let session = extfuse::mount(Hello, at.path(), &module()).unwrap();
    let kernel = session.kernel();
    assert!(kernel.cache().is_some() && kernel.device().is_some());
    // Nobody serves: it waits.
    let path = at.path().join("hello.txt");
    let waiting = thread::spawn(move || fs::metadata(path));
    thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    drop(session);
    assert!(waiting.join().unwrap().is_err());
    assert!(kernel.cache().is_none() && kernel.device().is_none());
    kernel.invalidate(&[Key::All]);
}

#[test]
fn an_abort_ends_serving_and_is_told() {
    let mut served = hello(&module());
    let minor = served.report().dev.split_once(':').unwrap().1.to_owned();
    fs::write(format!("/sys/fs/extfuse/connections/{minor}/abort"), "1").unwrap();
    assert!(matches!(served.end(), Err(SessionError::Aborted)));
    assert!(common::mounts_at(served.root()).is_empty());
}

/// Files `0` to `9` of 16 bytes, all of the same letter, which changes behind everybody's back.
struct Changing(Arc<AtomicU64>);

const DAY: Duration = Duration::from_secs(86400);

fn attr(ino: u64, letter: u64) -> FileAttr {
    let time = UNIX_EPOCH + Duration::from_secs(letter);
    FileAttr {
        ino: INodeNo(ino),
        size: 16,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if ino == 1 {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Changing {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str().and_then(|name| name.parse::<u64>().ok()) {
            Some(number) if number < 10 => {
                reply.entry(
                    &DAY,
                    &attr(number + 10, self.0.load(Ordering::SeqCst)),
                    Generation(0),
                );
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&DAY, &attr(ino.0, self.0.load(Ordering::SeqCst)));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&[self.0.load(Ordering::SeqCst) as u8; 16][offset.min(16) as usize..]);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for number in offset..10 {
            let name = number.to_string();
            if reply.add(INodeNo(number + 10), number + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}

#[test]
fn what_is_invalidated_and_nothing_else_is_asked_again() {
    let letter = Arc::new(AtomicU64::new(97));
    let mut told = Kernel::default();
    let options = MountOptions {
        valid: Some(Validity::UntilChanged),
        opens: true,
        ..module()
    };
    let served = Served::new(|at| {
        let make = |kernel: Kernel| {
            told = kernel;
            Changing(Arc::clone(&letter))
        };
        extfuse::mount_with(at, &options, make).unwrap()
    });
    let read = |number: u64| fs::read(served.path(&number.to_string())).unwrap();
    let walk = || (0..10).map(read).collect::<Vec<_>>();
    walk();
    find(served.root());
    assert_eq!(served.upcalls(|| drop(walk())), []);

    letter.store(98, Ordering::SeqCst);
    assert_eq!(
        served.upcalls(|| assert_eq!(read(3), [97; 16])),
        [],
        "nobody said so"
    );
    told.invalidate(&[Key::Attr(NodeId(13)), Key::Data(NodeId(13))]);
    let one = served.upcalls(|| assert_eq!(read(3), [98; 16]));
    println!("one node invalidated: {one:?}");
    assert_eq!(of(&one, "LOOKUP"), 0);
    assert_eq!(of(&one, "READ"), 1);
    assert_eq!(served.upcalls(|| assert_eq!(read(3), [98; 16])), []);
    assert_eq!(served.upcalls(|| assert_eq!(read(4), [97; 16])), []);

    told.invalidate(&[Key::Entry(NodeId::ROOT, b"5")]);
    let name = served.upcalls(|| drop(walk()));
    println!("one name invalidated: {name:?}");
    assert_eq!(of(&name, "LOOKUP"), 1);
    told.invalidate(&[Key::Dir(NodeId::ROOT)]);
    let names = served.upcalls(|| drop(walk()));
    println!("a directory invalidated: {names:?}");
    assert_eq!(of(&names, "LOOKUP"), 10);
    told.invalidate(&[Key::All]);
    let all = served.upcalls(|| assert!(walk().iter().all(|data| data == &[98; 16])));
    println!("everything invalidated: {all:?}");
    assert_eq!(of(&all, "READ"), 10);

    let cache = told.cache().unwrap();
    cache.deadline(Some(Duration::ZERO));
    let asked = served.upcalls(|| drop(read(1)));
    assert!(!asked.is_empty());
    cache.deadline(None);
    walk();
    assert_eq!(served.upcalls(|| drop(walk())), []);
}

/// The node of one file, `file`, and how often the kernel was told of it.
#[derive(Debug)]
struct Node {
    ino: u64,
    nlookup: u64,
}

struct Held(Arc<Mutex<Node>>);

impl Held {
    fn node() -> Arc<Mutex<Node>> {
        Arc::new(Mutex::new(Node { ino: 10, nlookup: 0 }))
    }
}

impl Filesystem for Held {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name != "file" {
            return reply.error(Errno::ENOENT);
        }
        let mut node = self.0.lock().unwrap();
        node.nlookup += 1;
        reply.entry(&DAY, &attr(node.ino, 97), Generation(0));
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        let mut node = self.0.lock().unwrap();
        if node.ino == ino.0 {
            node.nlookup -= nlookup;
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino.0 == 1 || ino.0 == self.0.lock().unwrap().ino {
            reply.attr(&DAY, &attr(ino.0, 97));
        } else {
            reply.error(Errno::ESTALE);
        }
    }
}

#[test]
fn nodes_that_are_held_are_found_before_and_after_the_kernel_knows_them() {
    let node = Held::node();
    let served = |holds_nodes| {
        let options = MountOptions {
            valid: Some(Validity::UntilChanged),
            holds_nodes,
            ..module()
        };
        Served::new(|at| extfuse::mount(Held(Arc::clone(&node)), at, &options).unwrap())
    };
    let publish = |served: &Served, ino: u64| {
        let cache = served.kernel.cache().unwrap();
        let (at, valid) = (cache.snapshot(), Validity::UntilChanged);
        cache.publish_attr(NodeId(ino), &attr(ino, 97), NodeIo::Daemon, at, valid);
        cache.publish_entry(NodeId::ROOT, b"file", NodeId(ino), 0, at, valid);
    };
    let ino = |served: &Served| fs::metadata(served.path("file")).unwrap().ino();

    // Who does not hold its nodes is asked for each that the kernel does not have.
    let other = served(false);
    publish(&other, 10);
    assert_eq!(of(&other.upcalls(|| assert_eq!(ino(&other), 10)), "LOOKUP"), 1);
    drop(other);

    let served = served(true);
    ino(&served);
    served.kernel.invalidate(&[Key::All]);
    publish(&served, 10);
    drop_caches();
    for _ in 0..3 {
        let asked = served.upcalls(|| assert_eq!(ino(&served), 10));
        assert_eq!(of(&asked, "LOOKUP"), 0, "{asked:?}");
        drop_caches();
    }

    // In use: an open file. It may not go, and what is asked about it then is answered by whoever holds it.
    let file = File::open(served.path("file")).unwrap();
    assert!(!served.kernel.let_go(NodeId(10)).unwrap());
    assert_eq!(file.metadata().unwrap().ino(), 10);
    publish(&served, 10);
    drop(file);
    // The kernel needs it until it has the answer to RELEASE, which nobody waits for.
    common::eventually(|| {
        drop_caches();
        served.kernel.let_go(NodeId(10)).unwrap()
    });
    *node.lock().unwrap() = Node { ino: 11, nlookup: 0 };
    // What was published of it is not used any more; of its successor it is.
    assert_eq!(of(&served.upcalls(|| assert_eq!(ino(&served), 11)), "LOOKUP"), 1);
    publish(&served, 11);
    drop_caches();
    assert_eq!(of(&served.upcalls(|| assert_eq!(ino(&served), 11)), "LOOKUP"), 0);
}

/// Whoever looks while nodes go and come sees one that is there.
#[test]
fn nodes_go_under_the_eyes_of_readers() {
    let node = Held::node();
    let options = MountOptions {
        valid: Some(Validity::UntilChanged),
        holds_nodes: true,
        ..module()
    };
    let served = Served::new(|at| extfuse::mount(Held(Arc::clone(&node)), at, &options).unwrap());
    let over = AtomicBool::new(false);
    let (mut went, mut stayed) = (0, 0);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut looks = 0_u64;
                    while !over.load(Ordering::Relaxed) {
                        let file = File::open(served.path("file")).unwrap();
                        file.metadata().unwrap();
                        drop(file);
                        looks += 1;
                        // Time in which nobody has it open; now and then enough for a machine with other things to do.
                        thread::sleep(Duration::from_millis(if looks.is_multiple_of(32) {
                            50
                        } else {
                            looks % 4
                        }));
                    }
                    looks
                })
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) || went == 0 && start.elapsed() < common::PATIENCE {
            // Nobody is told of it meanwhile.
            let mut node = node.lock().unwrap();
            let cache = served.kernel.cache().unwrap();
            let (at, valid) = (cache.snapshot(), Validity::UntilChanged);
            cache.publish_attr(NodeId(node.ino), &attr(node.ino, 97), NodeIo::Daemon, at, valid);
            cache.publish_entry(NodeId::ROOT, b"file", NodeId(node.ino), 0, at, valid);
            if node.nlookup == 0 && served.kernel.let_go(NodeId(node.ino)).unwrap() {
                went += 1;
                *node = Node {
                    ino: node.ino + 1,
                    nlookup: 0,
                };
            } else {
                stayed += 1;
            }
            drop(node);
            // One that was used lately is only marked the first time.
            for _ in 0..2 {
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
    });
    println!("{went} went, {stayed} stayed");
    assert!(went > 0);
}

/// Two volumes, `0` and `1`, each with [`VOLUME`] directories of one file each; every number of a volume is
/// of its group. The mode of all in a volume shows which generation it is of.
struct Volumes([Arc<AtomicU64>; 2]);

const VOLUME: u64 = 8;

impl Volumes {
    fn group(volume: u64) -> Group {
        Group::new(volume as u32).unwrap()
    }

    /// Serial numbers: 0 the volume, 1 to [`VOLUME`] its directories, from there on their files.
    fn node(&self, volume: u64, serial: u64) -> FileAttr {
        let node = Self::group(volume).node(serial).unwrap();
        FileAttr {
            kind: match serial <= VOLUME {
                true => FileType::Directory,
                false => FileType::RegularFile,
            },
            perm: 0o400 + self.0[volume as usize].load(Ordering::SeqCst) as u16,
            ..attr(node.0, 97)
        }
    }
}

impl Filesystem for Volumes {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name: u64 = name.to_str().unwrap().parse().unwrap();
        let (volume, serial) = match Group::of(NodeId(parent.0)) {
            None => (name, 0),
            Some((group, 0)) => (group.number().into(), 1 + name),
            Some((group, directory)) => (group.number().into(), directory + VOLUME),
        };
        reply.entry(&Duration::ZERO, &self.node(volume, serial), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = match Group::of(NodeId(ino.0)) {
            None => attr(1, 97),
            Some((group, serial)) => self.node(group.number().into(), serial),
        };
        reply.attr(&Duration::ZERO, &attr);
    }
}

#[test]
fn a_group_is_asked_again_as_a_whole_and_alone() {
    let generations = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
    let options = MountOptions {
        valid: Some(Validity::UntilChanged),
        holds_nodes: true,
        ..module()
    };
    let served = Served::new(|at| extfuse::mount(Volumes(generations.clone()), at, &options).unwrap());
    // The modes of all directories and files in a volume.
    let modes = |volume: u64| {
        let paths = (0..VOLUME)
            .flat_map(|directory| [format!("{volume}/{directory}"), format!("{volume}/{directory}/0")]);
        let modes: Vec<_> = paths
            .map(|path| fs::metadata(served.path(&path)).unwrap().mode() & 0o777)
            .collect();
        assert!(modes.iter().all(|mode| *mode == modes[0]), "{modes:?}");
        modes[0]
    };
    let walk = || [modes(0), modes(1)];
    walk();
    assert_eq!(served.upcalls(|| assert_eq!(walk(), [0o400, 0o400])), []);
    generations[0].store(1, Ordering::SeqCst);
    assert_eq!(served.upcalls(|| assert_eq!(walk(), [0o400, 0o400])), []);
    served.kernel.invalidate(&[Key::Group(Volumes::group(0))]);
    let asked = served.upcalls(|| assert_eq!(walk(), [0o401, 0o400]));
    println!("a group of {} nodes invalidated: {asked:?}", 1 + 2 * VOLUME);
    assert_eq!(of(&asked, "LOOKUP"), 2 * VOLUME);
    assert_eq!(served.upcalls(|| assert_eq!(walk(), [0o401, 0o400])), []);
}
