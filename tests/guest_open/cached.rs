// SPDX-License-Identifier: MIT OR Apache-2.0
//! Through a daemon without backing files, which writes down what it is asked.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use extfuse::abi::NodeId;
use extfuse::ebpf::{Cache, Capacity, Context, Learning, Stamps, Validity};
use extfuse::sys::device::Device;
use fuser::{
    BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
    Session, SessionACL, TimeOrNow,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::common::eventually;

const FILE: u64 = 2;
/// Directories that are made have nodes from here on.
const MADE: u64 = 10;
const SIZE: u64 = 3 * 4096;
const NO_TIME: Duration = Duration::ZERO;

fn attr(ino: u64) -> FileAttr {
    let kind = if ino == FILE {
        FileType::RegularFile
    } else {
        FileType::Directory
    };
    FileAttr {
        ino: INodeNo(ino),
        size: if ino == FILE { SIZE } else { 0 },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if ino == FILE { 0o755 } else { 0o1755 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What is in the file, what goes wrong, and what was asked.
#[derive(Debug, Default)]
struct State {
    /// Each byte of the file.
    content: AtomicU64,
    handles: AtomicU64,
    /// The first directory that is not made.
    made: AtomicU64,
    /// What an open fails with, 0 if it does not.
    refuse: AtomicI32,
    stall: AtomicBool,
    asked: Mutex<Vec<String>>,
}

impl State {
    fn note(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }

    /// Answers no sooner than the test wants.
    fn answer(&self) {
        while self.stall.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn was_asked(&self, what: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked == what)
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The same, without the RELEASEs of files that were closed before, which come when they come.
    fn questions(&self) -> Vec<String> {
        let mut asked = self.asked();
        asked.retain(|what| !what.starts_with("release"));
        asked
    }
}

/// A directory with one file, `file`, and those directories that were made, `made-10`...
struct Notes(Arc<State>);

fn made(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix("made-")?.parse().ok()
}

impl Filesystem for Notes {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.note("lookup");
        if name == "file" {
            reply.entry(&NO_TIME, &attr(FILE), Generation(0));
        } else if let Some(made) = made(name).filter(|made| *made < self.0.made.load(Ordering::SeqCst)) {
            reply.entry(&NO_TIME, &attr(made), Generation(0));
        } else {
            reply.error(fuser::Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.0.note("getattr");
        reply.attr(&NO_TIME, &attr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.0.note("change");
        self.0.answer();
        reply.attr(&NO_TIME, &attr(ino.0));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.0.note("change");
        self.0.answer();
        let made = made(name).unwrap();
        self.0.made.store(made + 1, Ordering::SeqCst);
        reply.entry(&NO_TIME, &attr(made), Generation(0));
    }

    fn open(&self, request: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let refused = self.0.refuse.load(Ordering::SeqCst);
        if refused != 0 {
            self.0.note("open refused");
            return reply.error(fuser::Errno::from_i32(refused));
        }
        let fh = self.0.handles.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.note(format!(
            "open {fh} uid {} mode {}",
            request.uid(),
            flags.0 & libc::O_ACCMODE
        ));
        self.0.answer();
        reply.opened(FileHandle(fh), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.note(format!("read {}", fh.0));
        let left = SIZE.saturating_sub(offset).min(size.into()) as usize;
        reply.data(&vec![self.0.content.load(Ordering::SeqCst) as u8; left]);
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.0.note(format!("flush {}", fh.0));
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.note(format!("release {}", fh.0));
        reply.ok();
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.0.note("unlink");
        reply.ok();
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.0.note("readdir");
        self.0.answer();
        if offset == 0 {
            let _full = reply.add(INodeNo(FILE), 1, FileType::RegularFile, "file");
        }
        reply.ok();
    }
}

struct Mounted {
    at: TempDir,
    state: Arc<State>,
    cache: Cache,
    context: Option<Context>,
    served: Option<JoinHandle<io::Result<()>>>,
}

impl Mounted {
    fn new(opens: bool) -> Self {
        Self::with(Validity::UntilChanged, opens, ",allow_other,default_permissions")
    }

    /// `options`: of mount(8), each after a comma.
    fn with(valid: Validity, opens: bool, options: &str) -> Self {
        let at = TempDir::new().unwrap();
        let fd: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open("/dev/extfuse")
            .unwrap()
            .into();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0{options}",
            fd.as_raw_fd()
        );
        let kind = Some("extfuse");
        mount(
            Some("test"),
            at.path(),
            kind,
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        let device = Device::new(fd.try_clone().unwrap());
        let setup = device.setup().unwrap();
        let learning = Learning {
            valid: Some(valid),
            entry_attributes: true,
            opens,
        };
        let context = Context::attach(setup.conn, Capacity::default(), learning).unwrap();
        let cache = Cache::new(
            Stamps::new(device.map_stamps().unwrap()),
            context.maps().unwrap(),
            setup.key,
        );
        drop(device);
        let state = Arc::new(State::default());
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::from_fd(Notes(Arc::clone(&state)), fd, SessionACL::All, config).unwrap();
        let served = thread::spawn(move || session.run());
        fs::metadata(at.path()).unwrap();
        Self {
            at,
            state,
            cache,
            context: Some(context),
            served: Some(served),
        }
    }

    fn file(&self) -> PathBuf {
        self.at.path().join("file")
    }

    fn open(&self) -> File {
        File::open(self.file()).unwrap()
    }

    /// Reads the file whole: which byte it is made of.
    fn read(&self) -> u8 {
        let content = fs::read(self.file()).unwrap();
        assert_eq!(content.len() as u64, SIZE);
        assert!(content.iter().all(|byte| *byte == content[0]));
        content[0]
    }

    /// Opened, read and closed, with nothing left to come.
    fn known(&self) {
        self.read();
        self.read();
        eventually(|| {
            self.state
                .asked
                .lock()
                .unwrap()
                .iter()
                .any(|what| what.starts_with("release"))
        });
        self.state.asked();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.state.stall.store(false, Ordering::SeqCst);
        self.context = None;
        let _gone = umount2(self.at.path(), MntFlags::MNT_DETACH);
        if let Some(served) = self.served.take() {
            let _ended = served.join();
        }
    }
}

#[test]
fn a_cached_file_is_opened_and_read_without_the_daemon() {
    let mounted = Mounted::new(true);
    mounted.known();
    mounted.read();
    assert_eq!(mounted.state.questions(), [""; 0]);
}

#[test]
fn opens_are_the_daemons_unless_it_allows_otherwise() {
    let mounted = Mounted::new(false);
    mounted.known();
    mounted.read();
    assert!(mounted.state.asked().iter().any(|what| what.starts_with("open")));
}

#[test]
fn a_listing_needs_no_daemon_either() {
    let mounted = Mounted::new(true);
    let list = || fs::read_dir(mounted.at.path()).unwrap().count();
    assert_eq!(list(), 1);
    mounted.state.asked();
    assert_eq!(list(), 1);
    assert_eq!(mounted.state.questions(), [""; 0]);
    mounted.cache.invalidate_dir(NodeId::ROOT);
    assert_eq!(list(), 1);
    assert!(mounted.state.asked().contains(&"readdir".to_owned()));
    mounted.cache.invalidate_data(NodeId::ROOT);
    assert_eq!(list(), 1);
    assert!(mounted.state.asked().contains(&"readdir".to_owned()));
}

#[test]
fn data_that_changed_elsewhere_is_not_read_from_the_cache_by_the_next_open() {
    let mounted = Mounted::new(true);
    mounted.known();
    for byte in 1..20_u8 {
        mounted.state.content.store(byte.into(), Ordering::SeqCst);
        mounted.cache.invalidate_data(NodeId(FILE));
        assert_eq!(mounted.read(), byte);
        // Once: then its pages are current again.
        mounted.state.asked();
        assert_eq!(mounted.read(), byte);
        assert_eq!(mounted.state.questions(), [""; 0]);
    }
}

#[test]
fn the_first_request_about_an_open_file_is_its_open_in_the_name_of_who_opened_it() {
    let mounted = Mounted::new(true);
    mounted.known();
    let file = crate::guest::as_nobody(|| mounted.open());
    assert_eq!(mounted.state.questions(), [""; 0]);
    mounted.cache.invalidate_data(NodeId(FILE));
    drop(mounted.open()); // drops the pages
    let handle = mounted.state.handles.load(Ordering::SeqCst) + 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    file.read_exact_at(&mut byte, SIZE - 1).unwrap();
    drop(file);
    let read = format!("read {handle}");
    eventually(|| {
        mounted
            .state
            .asked
            .lock()
            .unwrap()
            .contains(&format!("release {handle}"))
    });
    let asked = mounted.state.questions();
    assert_eq!(asked[0], format!("open {handle} uid 65534 mode 0"));
    assert!(asked[1..].contains(&read), "{asked:?}");
    let opens = asked.iter().filter(|what| what.starts_with("open")).count();
    assert_eq!(opens, 1, "{asked:?}");
}

#[test]
fn an_open_that_the_daemon_then_refuses_is_an_error_of_the_read() {
    let mounted = Mounted::new(true);
    mounted.known();
    let file = mounted.open();
    mounted.cache.invalidate_data(NodeId(FILE));
    drop(mounted.open());
    mounted.state.refuse.store(libc::EPERM, Ordering::SeqCst);
    let mut byte = [0];
    for _ in 0..2 {
        let error = file.read_at(&mut byte, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
    mounted.state.refuse.store(0, Ordering::SeqCst);
    file.read_exact_at(&mut byte, 0).unwrap();
}

#[test]
fn a_daemon_that_does_without_opens_from_some_day_on_still_reads() {
    let mounted = Mounted::new(true);
    mounted.known();
    let files = [mounted.open(), mounted.open()];
    mounted.cache.invalidate_data(NodeId(FILE));
    drop(mounted.open());
    mounted.state.asked();
    mounted.state.refuse.store(libc::ENOSYS, Ordering::SeqCst);
    for file in files {
        file.read_exact_at(&mut [0], 0).unwrap();
    }
    mounted.read();
    let asked = mounted.state.questions();
    assert!(asked.contains(&"read 0".to_owned()), "{asked:?}");
}

#[test]
fn several_users_of_one_open_file_open_it_once() {
    let mounted = Mounted::new(true);
    mounted.known();
    let file = mounted.open();
    mounted.cache.invalidate_data(NodeId(FILE));
    drop(mounted.open());
    mounted.state.asked();
    mounted.state.stall.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        // Two readers would wait for each other's page.
        scope.spawn(|| file.read_exact_at(&mut [0], 0).unwrap());
        scope.spawn(|| file.sync_all().unwrap());
        eventually(|| !mounted.state.asked.lock().unwrap().is_empty());
        thread::sleep(Duration::from_millis(100));
        mounted.state.stall.store(false, Ordering::SeqCst);
    });
    let asked = mounted.state.asked();
    assert_eq!(
        asked.iter().filter(|what| what.starts_with("open")).count(),
        1,
        "{asked:?}"
    );
}

#[test]
fn a_node_that_changes_its_meaning_is_opened_anew() {
    let mounted = Mounted::new(true);
    mounted.known();
    mounted.cache.invalidate_node(NodeId(FILE));
    mounted.read();
    assert!(mounted.state.asked().iter().any(|what| what.starts_with("open")));
}

#[test]
fn unlink_hears_of_the_open_file_first() {
    let mounted = Mounted::new(true);
    mounted.known();
    let files: Vec<_> = (0..3).map(|_| mounted.open()).collect();
    fs::remove_file(mounted.file()).unwrap();
    let asked = mounted.state.asked();
    let unlink = asked.iter().position(|what| what == "unlink").unwrap();
    let opens = asked[..unlink]
        .iter()
        .filter(|what| what.starts_with("open"))
        .count();
    assert_eq!(opens, files.len(), "{asked:?}");
}

#[test]
fn an_unmount_and_a_dead_daemon_end_files_that_it_never_heard_of() {
    for abort in [false, true] {
        let mounted = Mounted::new(true);
        mounted.known();
        let file = mounted.open();
        mounted.cache.invalidate_data(NodeId(FILE));
        if abort {
            let dev = nix::sys::stat::stat(mounted.at.path()).unwrap().st_dev;
            let connection = format!("/sys/fs/extfuse/connections/{}/abort", libc::minor(dev));
            fs::write(connection, "1").unwrap();
            assert!(File::open(mounted.file()).is_err());
        } else {
            umount2(mounted.at.path(), MntFlags::MNT_DETACH).unwrap();
        }
        drop(file);
        drop(mounted);
    }
}

#[test]
fn a_file_that_is_closed_while_it_is_opened_for_unlink_is_released() {
    let mounted = Mounted::new(true);
    mounted.known();
    let file = mounted.open();
    let handle = mounted.state.handles.load(Ordering::SeqCst) + 1;
    mounted.state.stall.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| fs::remove_file(mounted.file()).unwrap());
        eventually(|| mounted.state.was_asked(&format!("open {handle} uid 0 mode 0")));
        drop(file);
        mounted.state.stall.store(false, Ordering::SeqCst);
    });
    eventually(|| mounted.state.was_asked(&format!("release {handle}")));
}

#[test]
fn an_open_for_writing_says_nothing_about_one_for_reading() {
    let mounted = Mounted::new(true);
    for _ in 0..2 {
        drop(File::options().write(true).open(mounted.file()).unwrap());
    }
    mounted.state.asked();
    drop(mounted.open());
    let asked = mounted.state.questions();
    assert!(asked.iter().any(|what| what.starts_with("open")), "{asked:?}");
}

#[test]
fn an_open_is_kept_no_longer_than_it_may_be() {
    let time = Duration::from_secs(1);
    let mounted = Mounted::with(Validity::For(time), true, ",allow_other,default_permissions");
    mounted.known();
    thread::sleep(time);
    drop(mounted.open());
    let asked = mounted.state.questions();
    assert!(asked.iter().any(|what| what.starts_with("open")), "{asked:?}");
}

#[test]
fn a_daemon_that_decides_by_itself_does_so_again_when_the_attributes_change() {
    let mounted = Mounted::with(Validity::UntilChanged, true, "");
    mounted.known();
    mounted.read();
    assert_eq!(mounted.state.questions(), [""; 0]);
    mounted.cache.invalidate_attr(NodeId(FILE));
    drop(mounted.open());
    let asked = mounted.state.questions();
    assert!(asked.iter().any(|what| what.starts_with("open")), "{asked:?}");
}

#[test]
fn what_is_kept_is_kept_from_those_who_may_not_use_the_mount() {
    let mounted = Mounted::with(Validity::UntilChanged, true, ",default_permissions");
    mounted.known();
    let root = mounted.at.path();
    for _ in 0..2 {
        fs::metadata(root).unwrap();
    }
    mounted.state.asked();
    let file = mounted.file();
    // The one is stat(2), the other goes on, and does no more than to open.
    for (script, path) in [("test -d \"$0\"", root), (": <\"$0\"", &file)] {
        let may = |id| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]).arg(path).uid(id).gid(id);
            shell.output().unwrap().status.success()
        };
        assert!(may(0), "{script}");
        assert!(!may(65534), "{script}");
    }
    assert_eq!(mounted.state.questions(), [""; 0]);
}

#[test]
fn a_sticky_directory_is_shown_as_one() {
    for options in ["", ",default_permissions"] {
        let mounted = Mounted::with(Validity::UntilChanged, true, options);
        // Not fs::metadata(): that wants to know the time of birth, too, which has a slower way.
        let mode = || nix::sys::stat::stat(mounted.at.path()).unwrap().st_mode & 0o7777;
        for _ in 0..3 {
            assert_eq!(mode(), 0o1755);
        }
        mounted.state.asked();
        assert_eq!(mode(), 0o1755);
        assert_eq!(mounted.state.questions(), [""; 0]);
    }
}

/// The reply was on its way when something changed, so it may be of before.
#[test]
fn a_reply_that_a_change_has_overtaken_is_not_kept() {
    type Other = fn(&Cache, &str);
    let mounted = Mounted::new(true);
    let nothing: Other = |_, _| ();
    let all: Other = |cache, _| cache.invalidate_all();
    // Whether a directory is made, what else happens, and whether the daemon is asked then.
    let cases: [(bool, Other, bool); 7] = [
        (false, nothing, false),
        (false, |cache, _| cache.invalidate_attr(NodeId(FILE)), true),
        (false, all, true),
        (true, nothing, false),
        (
            true,
            |cache, name| cache.invalidate_entry(NodeId::ROOT, name.as_bytes()),
            true,
        ),
        (true, |cache, _| cache.invalidate_dir(NodeId::ROOT), true),
        (true, all, true),
    ];
    for (case, (make, other, again)) in cases.into_iter().enumerate() {
        let (name, question) = if make {
            (format!("made-{}", MADE + case as u64), "lookup")
        } else {
            ("file".to_owned(), "getattr")
        };
        let path = mounted.at.path().join(&name);
        for _ in 0..2 {
            let _may_be_missing = fs::metadata(&path);
        }
        mounted.state.asked();
        mounted.state.stall.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                if make {
                    fs::create_dir(&path).unwrap();
                } else {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                }
            });
            eventually(|| mounted.state.was_asked("change"));
            other(&mounted.cache, &name);
            mounted.state.stall.store(false, Ordering::SeqCst);
        });
        mounted.state.asked();
        fs::metadata(&path).unwrap();
        let asked = mounted.state.questions();
        let looked = asked.iter().any(|what| what == question || what == "lookup");
        assert_eq!(looked, again, "case {case}: {asked:?}");
    }
}

#[test]
fn a_listing_that_a_change_has_overtaken_is_not_kept() {
    let mounted = Mounted::new(true);
    let list = || assert_eq!(fs::read_dir(mounted.at.path()).unwrap().count(), 1);
    mounted.state.stall.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(list);
        eventually(|| mounted.state.was_asked("readdir"));
        mounted.cache.invalidate_data(NodeId::ROOT);
        mounted.state.stall.store(false, Ordering::SeqCst);
    });
    mounted.state.asked();
    list();
    assert!(mounted.state.was_asked("readdir"));
    mounted.state.asked();
    list();
    assert_eq!(mounted.state.questions(), [""; 0]);
}

#[test]
fn who_wants_attributes_from_the_daemon_gets_them_from_there() {
    let mounted = Mounted::new(true);
    mounted.known();
    let file = mounted.open();
    let look = |flags| {
        // SAFETY: an open file, an empty path, and room for the answer, which is all numbers.
        unsafe {
            let mut out: libc::statx = std::mem::zeroed();
            let flags = flags | libc::AT_EMPTY_PATH;
            let done = libc::statx(
                file.as_raw_fd(),
                c"".as_ptr(),
                flags,
                libc::STATX_BASIC_STATS,
                &raw mut out,
            );
            assert_eq!((done, out.stx_size), (0, SIZE));
        }
    };
    look(0);
    mounted.state.asked();
    look(0);
    assert_eq!(mounted.state.questions(), [""; 0]);
    look(libc::AT_STATX_FORCE_SYNC);
    assert!(mounted.state.was_asked("getattr"));
}
