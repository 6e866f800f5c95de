// SPDX-License-Identifier: MIT OR Apache-2.0
//! The context and the cache with the real module: what is answered in the kernel, and what is not.
//! Runs in the guest.

#[path = "common/xattr.rs"]
mod xattr;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use extfuse::abi::{Counter, Counters, Exit, NodeId, Setup};
use extfuse::ebpf::cache::Published;
use extfuse::ebpf::context::{Error, Misses};
use extfuse::ebpf::{Absent, Cache, Capacity, Context, Key, Learning, Stamps, Validity};
use extfuse::fs::{Stack, StackOptions};
use extfuse::sys::device::Device;
use fuser::{Config, Session, SessionACL};
use libbpf_rs::{MapCore, MapHandle, MapType};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const OPENDIR: u32 = 27;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;

const CAPACITY: Capacity = Capacity {
    entries: 1024,
    attrs: 512,
    xattrs: 256,
};

/// A directory on ext4, served by this process with a cache. The programs are there until
/// `context` is dropped or detached.
struct Mounted {
    at: PathBuf,
    source: PathBuf,
    device: Device<Arc<OwnedFd>>,
    setup: Setup,
    context: Context,
    cache: Arc<Cache>,
    _places: [TempDir; 2],
}

impl Mounted {
    fn new() -> Self {
        Stack::raise_nofile().unwrap();
        let source = TempDir::new_in("/mnt/ext4").expect("the guest has an ext4 at /mnt/ext4");
        let at = TempDir::new().unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/extfuse")
            .expect("the module is loaded: scripts/vm");
        let fd = OwnedFd::from(device);
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            fd.as_raw_fd()
        );
        let flags = MsFlags::empty();
        mount(
            Some("test"),
            at.path(),
            Some("extfuse"),
            flags,
            Some(data.as_str()),
        )
        .unwrap();
        let device = Device::new(Arc::new(fd.try_clone().unwrap()));
        let setup = device.setup().unwrap();
        let context = Context::attach(setup.conn, CAPACITY, Learning::default()).unwrap();
        let stamps = Stamps::new(device.map_stamps().unwrap());
        let cache = Arc::new(Cache::new(stamps, context.maps().unwrap(), setup.key));
        let options = StackOptions {
            cache: Some(cache.clone()),
            ..StackOptions::default()
        };
        let stack = Stack::new(source.path(), options).unwrap();
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::from_fd(stack, fd, SessionACL::All, config).unwrap();
        thread::spawn(move || session.run());
        // INIT is answered before the handshake returns, but not yet taken by the kernel.
        fs::metadata(at.path()).unwrap();
        Self {
            at: at.path().to_owned(),
            source: source.path().to_owned(),
            device,
            setup,
            context,
            cache,
            _places: [source, at],
        }
    }

    /// A file of both sides, looked up once.
    fn file(&self, name: &str) -> PathBuf {
        fs::write(self.source.join(name), name).unwrap();
        let path = self.at.join(name);
        fs::metadata(&path).unwrap();
        path
    }

    fn count(&self, opcode: u32, what: Counter) -> u64 {
        let counters: Counters = self.device.counters().unwrap();
        counters.count[opcode as usize][what.0 as usize]
    }

    /// Answers in the kernel, and upcalls, that `act` makes of that opcode.
    fn counted<T>(&self, opcode: u32, act: impl Fn() -> T) -> (u64, u64) {
        let read = || {
            (
                self.count(opcode, Counter::EXTFUSE_COUNT_RETURNED)
                    + self.count(opcode, Counter::EXTFUSE_COUNT_KEPT),
                self.count(opcode, Counter::EXTFUSE_COUNT_UPCALLS),
            )
        };
        let before = read();
        act();
        let after = read();
        (after.0 - before.0, after.1 - before.1)
    }

    /// Whether names and attributes came without the daemon, or whether it was asked for any.
    fn looked<T>(&self, act: impl Fn() -> T) -> (u64, u64) {
        let upcalls = || [LOOKUP, GETATTR].map(|opcode| self.count(opcode, Counter::EXTFUSE_COUNT_UPCALLS));
        let before: u64 = upcalls().iter().sum();
        act();
        let asked = upcalls().iter().sum::<u64>() - before;
        if asked == 0 { ANSWERED } else { ASKED }
    }

    /// The node that the kernel knows the file under.
    fn node(&self, name: &str) -> NodeId {
        NodeId(self.cache.entry(NodeId::ROOT, name.as_bytes()).unwrap().nodeid)
    }

    fn misses(&self, opcode: u32) -> Misses {
        self.context.misses().unwrap()[opcode as usize]
    }
}

/// The mount goes first, then the programs, the mapping and the device; the session ends by itself.
impl Drop for Mounted {
    fn drop(&mut self) {
        let _may_be_gone = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

const ANSWERED: (u64, u64) = (1, 0);
const ASKED: (u64, u64) = (0, 1);

/// The size of a file by stat(2), and by statx(2), which also wants the time of birth: two ways in the kernel.
const SIZES: [fn(&Path) -> u64; 2] = [
    |path| nix::sys::stat::stat(path).unwrap().st_size as u64,
    |path| fs::metadata(path).unwrap().len(),
];

#[test]
fn names_and_attributes_are_answered_in_the_kernel() {
    let mounted = Mounted::new();
    let longest = "n".repeat(255);
    for name in ["file", &longest] {
        let path = mounted.file(name);
        let stat = || fs::metadata(&path).unwrap().len();
        assert_eq!(mounted.counted(LOOKUP, stat), ANSWERED, "{name}");
        let open = File::open(&path).unwrap();
        assert_eq!(
            mounted.counted(GETATTR, || open.metadata().unwrap()),
            ANSWERED,
            "{name}"
        );
        let (context, name) = (&mounted.context, name.as_bytes());
        assert!(mounted.cache.entry(NodeId::ROOT, name).unwrap().count >= 1);
        let handled = [LOOKUP, GETATTR, OPEN, READ, OPENDIR, GETXATTR, LISTXATTR].map(|opcode| 1 << opcode);
        assert_eq!(context.opcodes().0, handled.iter().sum::<u64>());
    }
    let missing = mounted.at.join("missing");
    let look = || assert!(!fs::exists(&missing).unwrap());
    assert_eq!(mounted.counted(LOOKUP, look), ASKED);
    assert_eq!(mounted.counted(LOOKUP, look), ANSWERED);
    assert!(mounted.misses(LOOKUP).absent >= 1);
}

#[test]
fn changes_from_elsewhere_are_seen_once_they_are_announced() {
    type Announce = fn(&Cache, NodeId);
    let mounted = Mounted::new();
    let path = mounted.file("file");
    let node = mounted.node("file");
    let cases: [(&str, Announce); 5] = [
        ("entry", |cache, _| cache.invalidate_entry(NodeId::ROOT, b"file")),
        ("attr", |cache, node| cache.invalidate_attr(node)),
        ("dir", |cache, _| cache.invalidate_dir(NodeId::ROOT)),
        ("node", |cache, node| cache.invalidate_node(node)),
        ("all", |cache, _| cache.invalidate_all()),
    ];
    let ways = cases.iter().flat_map(|case| SIZES.map(|look| (case, look)));
    for (size, ((what, announce), look)) in (100..).zip(ways) {
        let stat = || look(&path);
        stat();
        assert_eq!(mounted.looked(stat), ANSWERED, "{what}");
        File::options()
            .write(true)
            .open(mounted.source.join("file"))
            .unwrap()
            .set_len(size)
            .unwrap();
        assert_ne!(stat(), size, "{what}: nobody has told");
        let stale = || mounted.misses(LOOKUP).stale + mounted.misses(GETATTR).stale;
        let before = stale();
        announce(&mounted.cache, node);
        assert_eq!(mounted.looked(|| assert_eq!(stat(), size)), ASKED, "{what}");
        assert!(stale() > before, "{what}");
    }
}

/// No name is looked up again, which would bring the attributes with it.
#[test]
fn an_open_file_shows_what_is_announced() {
    let mounted = Mounted::new();
    let open = File::open(mounted.file("file")).unwrap();
    let size = || nix::sys::stat::fstat(&open).unwrap().st_size;
    let node = mounted.node("file");
    for (new, all) in [(100, false), (200, true)] {
        size();
        assert_eq!(mounted.looked(size), ANSWERED);
        let source = File::options().write(true).open(mounted.source.join("file"));
        source.unwrap().set_len(new).unwrap();
        if all {
            mounted.cache.invalidate_all();
        } else {
            mounted.cache.invalidate_attr(node);
        }
        assert_eq!(size().cast_unsigned(), new);
    }
}

#[test]
fn a_change_in_flight_is_asked_about_until_it_ends() {
    for look in SIZES {
        let mounted = Mounted::new();
        let path = mounted.file("file");
        let stat = || look(&path);
        assert_eq!(mounted.looked(stat), ANSWERED);
        let change = mounted.cache.change(&[Key::Attr(mounted.node("file"))]);
        assert_eq!(mounted.looked(stat), ASKED);
        assert_eq!(mounted.looked(stat), ASKED);
        // A change that begins and ends meanwhile is not the end of this one.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(mounted.looked(stat), ASKED);
        assert_eq!(mounted.looked(stat), ASKED);
        drop(change);
        assert_eq!(mounted.looked(stat), ASKED);
        assert_eq!(mounted.looked(stat), ANSWERED);
    }
}

#[test]
fn the_deadline_ends_everything_until_it_is_lifted() {
    for look in SIZES {
        let mounted = Mounted::new();
        let path = mounted.file("file");
        let stat = || look(&path);
        mounted.cache.deadline(Some(Duration::from_secs(1000)));
        assert_eq!(mounted.looked(stat), ANSWERED);
        mounted.cache.deadline(Some(Duration::ZERO));
        assert_eq!(mounted.looked(stat), ASKED);
        mounted.cache.deadline(None);
        assert_eq!(mounted.looked(stat), ANSWERED);
    }
}

#[test]
fn rows_survive_a_replacement_and_the_programs_a_detachment() {
    let mut mounted = Mounted::new();
    let path = mounted.file("file");
    let stat = || fs::metadata(&path).unwrap().len();
    stat();
    for round in 0..10 {
        mounted.context.replace().unwrap();
        assert_eq!(mounted.looked(stat), ANSWERED, "round {round}");
    }
    assert_eq!(mounted.device.status().unwrap().attaches, 11);
    for round in 0..3 {
        mounted.context.detach();
        assert!(!mounted.context.is_attached());
        assert_eq!(mounted.device.status().unwrap().attached, 0);
        // What the kernel keeps is current for as long as nothing changes, whoever is attached.
        assert_eq!(mounted.looked(stat), ANSWERED, "round {round}");
        mounted.cache.invalidate_entry(NodeId::ROOT, b"file");
        assert_eq!(mounted.looked(stat), ASKED, "round {round}");
        assert_eq!(mounted.looked(stat), ASKED, "round {round}");
        mounted.context.replace().unwrap();
        assert_eq!(mounted.looked(stat), ANSWERED, "round {round}");
    }
}

#[test]
fn replacing_under_load_asks_nobody_and_shows_nothing_wrong() {
    let mut mounted = Mounted::new();
    let path = mounted.file("file");
    fs::metadata(&path).unwrap();
    let asked = mounted.count(LOOKUP, Counter::EXTFUSE_COUNT_UPCALLS);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(fs::metadata(&path).unwrap().len(), 4);
                rounds += 1;
            }
            rounds
        });
        for _ in 0..20 {
            mounted.context.replace().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    assert_eq!(mounted.count(LOOKUP, Counter::EXTFUSE_COUNT_UPCALLS), asked);
}

#[test]
fn the_context_gives_the_program_and_the_maps_of_the_notes() {
    let mounted = Mounted::new();
    let info = fs::read_to_string(format!(
        "/proc/self/fdinfo/{}",
        mounted.context.program_fd().as_raw_fd()
    ));
    assert!(info.unwrap().contains("prog_type:"));
    let types = [
        MapType::LruHash,
        MapType::LruHash,
        MapType::LruHash,
        MapType::ProgArray,
    ];
    for ((fd, name), map_type) in mounted
        .context
        .map_fds()
        .into_iter()
        .zip(Context::MAP_NAMES)
        .zip(types)
    {
        let info = libbpf_rs::MapInfo::new(fd).unwrap();
        assert_eq!((info.name().unwrap(), info.map_type()), (name, map_type));
        assert_eq!(MapHandle::from_map_id(info.info.id).unwrap().name(), name);
    }
}

#[test]
fn the_fill_of_the_maps_is_counted() {
    let mounted = Mounted::new();
    for number in 0..20 {
        mounted.file(&number.to_string());
    }
    let fill = mounted.context.fill();
    assert_eq!(fill.capacity, CAPACITY);
    assert_eq!(fill.entries, 20);
    // The root was asked for as well.
    assert!((20..=21).contains(&fill.attrs), "{fill:?}");
    let Published { refused, failed, .. } = mounted.cache.published();
    assert_eq!((refused, failed), (0, 0));
}

#[test]
fn attaching_twice_or_to_what_is_not_there_says_so() {
    let mounted = Mounted::new();
    let twice = Context::attach(mounted.setup.conn, CAPACITY, Learning::default()).unwrap_err();
    assert!(matches!(twice, Error::Busy(_)), "{twice:?}");
    let unknown = Context::attach(mounted.setup.conn ^ 1, CAPACITY, Learning::default()).unwrap_err();
    assert!(matches!(unknown, Error::Gone(_)), "{unknown:?}");
    assert_eq!(mounted.device.status().unwrap().attached, 1);
}

#[test]
fn nothing_can_be_attached_or_replaced_after_the_unmount() {
    let mut mounted = Mounted::new();
    umount2(&mounted.at, MntFlags::empty()).unwrap();
    let status = mounted.device.status().unwrap();
    assert_eq!(
        (status.attached, Exit(status.exit)),
        (0, Exit::EXTFUSE_EXIT_UNMOUNT)
    );
    let replaced = mounted.context.replace().unwrap_err();
    assert!(matches!(replaced, Error::Gone(_)), "{replaced:?}");
    mounted.context.detach();
    let again = mounted.context.replace().unwrap_err();
    assert!(matches!(again, Error::Gone(_)), "{again:?}");
    // Nobody reads it any more, and it does no harm.
    mounted.cache.invalidate_all();
}

#[test]
fn a_stock_device_is_none_of_ours() {
    let stock = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let error = Device::new(OwnedFd::from(stock)).setup().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    let unmounted = File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev/extfuse"))
        .unwrap();
    let error = Device::new(OwnedFd::from(unmounted)).setup().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_file_whose_row_was_evicted_comes_up_once_and_passes_through_again() {
    let mounted = Mounted::new();
    let path = mounted.file("file");
    let open = File::open(&path).unwrap();
    let node = mounted.node("file");
    // Which row goes is the map's own choice, and not one that was just looked at.
    for round in 0.. {
        for other in 0..3 * CAPACITY.attrs {
            mounted.file(&format!("other {round} {other}"));
        }
        if mounted.cache.attr(node).is_none() {
            break;
        }
        assert!(round < 10, "it is not evicted");
    }
    let passed = || mounted.count(READ, Counter::EXTFUSE_COUNT_PASSTHRU);
    let asked = || mounted.count(READ, Counter::EXTFUSE_COUNT_UPCALLS);
    let before = (passed(), asked());
    for _ in 0..20 {
        let mut content = [0; 4];
        open.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"file");
    }
    assert_eq!(asked() - before.1, 1, "{:?}", mounted.misses(READ));
    assert_eq!(passed() - before.0, 19);
}

#[test]
fn attributes_and_acls_from_elsewhere_are_seen_once_they_are_announced() {
    const ACL: &std::ffi::CStr = c"system.posix_acl_access";
    let mounted = Mounted::new();
    let (path, behind) = (mounted.file("file"), mounted.source.join("file"));
    let node = mounted.node("file");
    // user::rw-, user:nobody:PERM, group::---, mask::rwx, other::---
    let acl = |perm| -> Vec<u8> {
        let header = [2, 0, 0, 0].to_vec();
        let nobody = [0xfe, 0xff, 0, 0];
        let entry = |tag: u8, perm: u8, id: [u8; 4]| [&[tag, 0, perm, 0][..], &id].concat();
        let none = [0xff; 4];
        [
            header,
            entry(1, 6, none),
            entry(2, perm, nobody),
            entry(4, 0, none),
            entry(0x10, 7, none),
            entry(0x20, 0, none),
        ]
        .concat()
    };
    for perm in 0..4 {
        for (name, value) in [(c"user.a", vec![perm]), (ACL, acl(perm))] {
            let ask = || xattr::get(&path, name);
            let before = ask();
            ask().ok();
            assert_eq!(mounted.counted(GETXATTR, ask).1, 0, "{name:?}");
            xattr::set(&behind, name, &value).unwrap();
            assert_eq!(ask(), before, "{name:?}: nobody has told");
            mounted.cache.invalidate_xattr(node);
            assert_eq!(ask(), Ok(value), "{name:?}");
        }
    }
}

#[test]
fn what_is_said_of_every_node_holds_until_one_is_changed() {
    let mounted = Mounted::new();
    let paths = ["one", "two", "three"].map(|name| mounted.file(name));
    // Nothing is known of this one alone.
    let other = mounted.file("other");
    let ask = |path: &PathBuf| {
        assert_eq!(xattr::get(path, c"user.a"), Err(Errno::EOPNOTSUPP));
        assert_eq!(xattr::list_in(path, 10), Ok((0, vec![])));
    };
    let publish = || {
        let absent = Absent::all(libc::EOPNOTSUPP);
        let (cache, at) = (&mounted.cache, mounted.cache.snapshot());
        cache.publish_xattr_names(None, b"", absent, true, at, Validity::UntilChanged);
    };
    publish();
    for _ in 0..3 {
        for path in &paths {
            assert_eq!(mounted.counted(GETXATTR, || ask(path)).1, 0);
        }
    }
    assert_eq!(mounted.count(LISTXATTR, Counter::EXTFUSE_COUNT_UPCALLS), 0);
    // Of one: of none is it known any more, kept or not.
    xattr::set(&paths[0], c"user.b", b"b").unwrap();
    for path in &paths {
        assert_eq!(xattr::get(path, c"user.a"), Err(Errno::ENODATA));
    }
    publish();
    ask(&other);
    mounted.cache.invalidate_xattr(mounted.node("one"));
    assert_eq!(xattr::get(&other, c"user.a"), Err(Errno::ENODATA));
}

/// What is said is not what the daemon would say: so it shows who answers.
#[test]
fn what_is_said_of_a_directorys_nodes_holds_until_one_is_changed_or_added() {
    type End = fn(&Mounted, &Path, NodeId);
    const ENDS: [End; 4] = [
        |_, dir, _| xattr::set(&dir.join("marked"), c"user.b", b"b").unwrap(),
        |_, dir, _| fs::write(dir.join("added"), "").unwrap(),
        |mounted, _, node| mounted.cache.invalidate(&[Key::Data(node)]),
        |mounted, _, node| mounted.cache.invalidate_dir(node),
    ];
    let mounted = Mounted::new();
    let dir = mounted.at.join("dir");
    fs::create_dir(&dir).unwrap();
    let files = |round: usize| {
        [
            dir.join(format!("{round}.before")),
            dir.join(format!("{round}.after")),
        ]
    };
    for path in (0..ENDS.len()).flat_map(files).chain([dir.join("marked")]) {
        fs::write(&path, "").unwrap();
        // Its name is known then.
        fs::metadata(&path).unwrap();
    }
    let elsewhere = mounted.file("elsewhere");
    fs::metadata(&elsewhere).unwrap();
    let node = mounted.node("dir");
    let ask = |path: &Path| xattr::get(path, c"user.a").unwrap_err();
    for (round, end) in ENDS.iter().enumerate() {
        let (cache, at) = (&mounted.cache, mounted.cache.snapshot());
        cache.publish_no_xattrs_in(node, Absent::all(libc::EOPNOTSUPP), at, Validity::UntilChanged);
        let [before, after] = files(round);
        let list = || assert_eq!(xattr::list_in(&before, 10), Ok((0, vec![])));
        assert_eq!(mounted.counted(LISTXATTR, list), ANSWERED, "{round}");
        assert_eq!(ask(&before), Errno::EOPNOTSUPP, "{round}");
        if round == 0 {
            assert_eq!(ask(&elsewhere), Errno::ENODATA, "another directory's");
        }
        end(&mounted, &dir, node);
        assert_eq!(ask(&after), Errno::ENODATA, "{round}");
        assert_eq!(
            ask(&before),
            Errno::EOPNOTSUPP,
            "{round}: its own have not changed"
        );
    }
    // What was moved away behind the kernel's back is none of them any more, though its old name is in the cache.
    let moved = dir.join("moved");
    fs::create_dir(&moved).unwrap();
    fs::metadata(&moved).unwrap();
    let moved_node = NodeId(mounted.cache.entry(node, b"moved").unwrap().nodeid);
    let open = File::open(&moved).unwrap();
    let (from, to) = (mounted.source.join("dir/moved"), mounted.source.join("moved"));
    fs::rename(from, &to).unwrap();
    xattr::set(&to, c"user.a", b"a").unwrap();
    let entry = Key::Entry(node, b"moved");
    mounted
        .cache
        .invalidate(&[entry, Key::Data(node), Key::Xattr(moved_node)]);
    let (cache, at) = (&mounted.cache, mounted.cache.snapshot());
    cache.publish_no_xattrs_in(node, Absent::all(libc::EOPNOTSUPP), at, Validity::UntilChanged);
    let itself = PathBuf::from(format!("/proc/self/fd/{}/.", open.as_raw_fd()));
    assert_eq!(xattr::get(&itself, c"user.a").as_deref(), Ok(b"a".as_slice()));
}
