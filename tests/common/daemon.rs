// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mount whose daemon is the test. What the daemon answers differs in every byte from what a backing
//! file has there, so that a reader can tell where a byte came from.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSlice, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use extfuse::abi::{Counter, NodeId};
use extfuse::ebpf::{Backing, BackingError, BackingOptions, Snapshot, Stamps};
use extfuse::sys::device::Device;
use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL, TimeOrNow,
    WriteFlags,
};
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice, vmsplice};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pipe;
use tempfile::TempDir;

mod ioc {
    use extfuse::abi::{Backing, IOC_MAGIC};

    nix::ioctl_readwrite!(backing, IOC_MAGIC, 8, Backing);
}

pub const READ: u32 = 15;
pub const PAGE: u64 = 4096;

/// What anything may take, in this guest, before it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What memory has that is to be read into.
pub const POISON: u8 = 0xff;

/// What a backing file has at `at`: from 1 to 127.
pub fn backing_bytes(at: u64, length: usize) -> Vec<u8> {
    let byte = |at: u64| 1 + (at % 65_521 % 127) as u8;
    (at..at + length as u64).map(byte).collect()
}

/// What the daemon has there: from 129 to 255.
pub fn daemon_bytes(at: u64, length: usize) -> Vec<u8> {
    backing_bytes(at, length).iter().map(|byte| byte | 0x80).collect()
}

#[track_caller]
pub fn assert_bytes(seen: &[u8], right: &[u8], what: &str) {
    assert_eq!(seen.len(), right.len(), "{what}: length");
    if let Some(at) = (0..seen.len()).find(|at| seen[*at] != right[*at]) {
        panic!("{what}: byte {at} is {:#x}, not {:#x}", seen[at], right[at]);
    }
}

/// A file of the daemon.
pub struct Node {
    pub truth: File,
    /// For who wants to see pages of `truth` whole.
    pub whole: RwLock<()>,
    pub generation: u64,
    open_flags: u32,
}

/// Called for every READ that comes up, of which node and range, before it is answered; it may wait, or answer with an
/// error.
pub type OnRead = dyn Fn(u64, Range<u64>) -> Option<Errno> + Send + Sync;

/// Called for every node that is created or looked up, before that is answered.
pub type OnNode = dyn Fn(u64, &Node) + Send + Sync;

/// What daemon and test share.
#[derive(Default)]
pub struct State {
    names: Mutex<HashMap<OsString, u64>>,
    nodes: Mutex<HashMap<u64, Arc<Node>>>,
    next: AtomicU64,
    pub on_read: Mutex<Option<Arc<OnRead>>>,
    pub on_node: Mutex<Option<Arc<OnNode>>>,
    /// The device, if the daemon is to give the pages of its answers away.
    gives: OnceLock<OwnedFd>,
    pub forgotten: Mutex<Vec<u64>>,
}

impl State {
    pub fn node(&self, nodeid: u64) -> Option<Arc<Node>> {
        self.nodes.lock().unwrap().get(&nodeid).cloned()
    }

    pub fn nodeid(&self, name: &str) -> u64 {
        self.names.lock().unwrap()[OsStr::new(name)]
    }

    /// A name for a node; a nodeid that is in use stands for the new file from now on.
    pub fn put(&self, name: &OsStr, nodeid: u64, generation: u64, truth: File) -> Arc<Node> {
        let open_flags = if name.to_string_lossy().starts_with("direct") {
            1
        } else {
            0
        };
        let node = Arc::new(Node {
            truth,
            whole: RwLock::default(),
            generation,
            open_flags,
        });
        self.nodes.lock().unwrap().insert(nodeid, Arc::clone(&node));
        self.names.lock().unwrap().insert(name.into(), nodeid);
        node
    }

    pub fn remove(&self, name: &str) {
        self.names.lock().unwrap().remove(OsStr::new(name));
    }

    fn new_nodeid(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 2
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let node = self.node(ino);
        if node.is_none() && ino != 1 {
            return None;
        }
        let size = node.map_or(0, |node| node.truth.metadata().unwrap().len());
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if ino == 1 {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: 0o777,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

struct Daemon {
    state: Arc<State>,
    passthrough: bool,
}

const AT_ONCE: Duration = Duration::ZERO;

impl Filesystem for Daemon {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.passthrough {
            config.set_max_stack_depth(1).unwrap();
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).unwrap();
        }
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).unwrap();
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let nodeid = self.state.names.lock().unwrap().get(name).copied();
        match nodeid.and_then(|nodeid| Some((nodeid, self.state.node(nodeid)?))) {
            Some((nodeid, node)) => {
                let hook = self.state.on_node.lock().unwrap().clone();
                if let Some(hook) = hook {
                    hook(nodeid, &node);
                }
                let attr = self.state.attr(nodeid).unwrap();
                reply.entry(&AT_ONCE, &attr, Generation(node.generation));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.state.forgotten.lock().unwrap().push(ino.0);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.state.attr(ino.0) {
            Some(attr) => reply.attr(&AT_ONCE, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
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
        let node = self.state.node(ino.0).unwrap();
        if let Some(size) = size {
            node.truth.set_len(size).unwrap();
        }
        reply.attr(&AT_ONCE, &self.state.attr(ino.0).unwrap());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let node = self.state.node(ino.0).unwrap();
        reply.opened(FileHandle(ino.0), FopenFlags::from_bits_retain(node.open_flags));
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let nodeid = self.state.new_nodeid();
        let node = self
            .state
            .put(name, nodeid, 0, tempfile::tempfile_in("/mnt/ext4").unwrap());
        let hook = self.state.on_node.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(nodeid, &node);
        }
        let attr = self.state.attr(nodeid).unwrap();
        let flags = FopenFlags::from_bits_retain(node.open_flags);
        reply.created(&AT_ONCE, &attr, Generation(0), FileHandle(nodeid), flags);
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.state.names.lock().unwrap().remove(name);
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let hook = self.state.on_read.lock().unwrap().clone();
        let range = offset..offset + u64::from(size);
        if let Some(error) = hook.and_then(|hook| hook(ino.0, range)) {
            return reply.error(error);
        }
        let mut data = vec![0; size as usize];
        let mut got = 0;
        let node = self.state.node(ino.0).unwrap();
        let whole = node.whole.read().unwrap();
        while got < data.len() {
            match node.truth.read_at(&mut data[got..], offset + got as u64).unwrap() {
                0 => break,
                more => got += more,
            }
        }
        drop(whole);
        match self.state.gives.get() {
            Some(device) => {
                give(device, request.unique().0, &data[..got]);
                // It has been answered, but not by this.
                std::mem::forget(reply);
            }
            None => reply.data(&data[..got]),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let node = self.state.node(ino.0).unwrap();
        let whole = node.whole.write().unwrap();
        node.truth.write_all_at(data, offset).unwrap();
        drop(whole);
        reply.written(data.len() as u32);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let node = self.state.node(ino.0).unwrap();
        let mode = nix::fcntl::FallocateFlags::from_bits_retain(mode);
        match nix::fcntl::fallocate(&node.truth, mode, offset as i64, length as i64) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(Errno::from_i32(errno as i32)),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        from: INodeNo,
        _: FileHandle,
        offset_in: u64,
        to: INodeNo,
        _: FileHandle,
        offset_out: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = (self.state.node(from.0).unwrap(), self.state.node(to.0).unwrap());
        let mut data = vec![0; length as usize];
        let got = from.truth.read_at(&mut data, offset_in).unwrap();
        to.truth.write_all_at(&data[..got], offset_out).unwrap();
        reply.written(got as u32);
    }
}

/// Answers a request by splice(2), with pages that the kernel may take for its own: as they lie in the pipe one by one,
/// the header not among them.
fn give(device: &OwnedFd, unique: u64, data: &[u8]) {
    let (read, write) = pipe().unwrap();
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(2 << 20)).unwrap();
    let length = 16 + data.len();
    let header = [(length as u64).to_ne_bytes(), unique.to_ne_bytes()].concat();
    vmsplice(&write, &[IoSlice::new(&header)], SpliceFFlags::empty()).unwrap();
    File::from(write).write_all(data).unwrap();
    let gone = splice(&read, None, device, None, length, SpliceFFlags::SPLICE_F_MOVE);
    assert_eq!(gone, Ok(length));
}

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct Mounting {
    pub passthrough: bool,
    pub set_up: bool,
}

/// The mount, and a tmpfs for backing files. Both are unmounted on drop, which nothing that leaked may
/// prevent.
pub struct Served {
    pub at: PathBuf,
    pub spools: PathBuf,
    pub device: Arc<Device<OwnedFd>>,
    raw: OwnedFd,
    pub stamps: Option<Stamps>,
    pub notifier: Notifier,
    pub state: Arc<State>,
    served: Option<JoinHandle<io::Result<()>>>,
    _places: [TempDir; 2],
}

impl Served {
    pub fn new() -> Self {
        Self::with(Mounting {
            passthrough: true,
            set_up: true,
        })
    }

    pub fn with(mounting: Mounting) -> Self {
        let places = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let none = MsFlags::empty();
        let spools = places[1].path().to_path_buf();
        mount(Some("spools"), &spools, Some("tmpfs"), none, None::<&str>).unwrap();
        let mut options = File::options();
        let file = options.read(true).write(true).open("/dev/extfuse");
        let fd = OwnedFd::from(file.expect("the module is loaded: scripts/vm"));
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            fd.as_raw_fd()
        );
        let at = places[0].path().to_path_buf();
        mount(Some("ranges"), &at, Some("extfuse"), none, Some(data.as_str())).unwrap();
        let device = Arc::new(Device::new(fd.try_clone().unwrap()));
        let raw = fd.try_clone().unwrap();
        let stamps = mounting.set_up.then(|| {
            device.setup().unwrap();
            Stamps::new(device.map_stamps().unwrap())
        });
        let state = Arc::<State>::default();
        let daemon = Daemon {
            state: Arc::clone(&state),
            passthrough: mounting.passthrough,
        };
        let mut config = Config::default();
        config.n_threads = Some(3);
        let session = Session::from_fd(daemon, fd, SessionACL::All, config).unwrap();
        let notifier = session.notifier();
        let served = thread::spawn(move || session.run());
        // INIT is answered before the handshake returns, but not yet taken by the kernel.
        fs::metadata(&at).unwrap();
        Self {
            at,
            spools,
            device,
            raw,
            stamps,
            notifier,
            state,
            served: Some(served),
            _places: places,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// A name that no file has had: a name that comes to stand for another node costs that node a FORGET.
    pub fn fresh(&self, start: &str) -> String {
        format!("{start}-{}", self.state.new_nodeid())
    }

    /// A file of `size` bytes, of the daemon's pattern.
    pub fn file(&self, name: &str, size: u64) -> PathBuf {
        let truth = tempfile::tempfile_in("/mnt/ext4").unwrap();
        truth.write_all_at(&daemon_bytes(0, size as usize), 0).unwrap();
        self.state
            .put(OsStr::new(name), self.state.new_nodeid(), 0, truth);
        self.path(name)
    }

    /// A backing file with this content.
    pub fn spool(&self, content: &[u8]) -> File {
        let file = tempfile::tempfile_in(&self.spools).unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    pub fn snapshot(&self) -> Snapshot {
        self.stamps.as_ref().unwrap().snapshot()
    }

    pub fn try_register(
        &self,
        name: &str,
        file: &File,
        options: BackingOptions,
        valid: Range<u64>,
    ) -> Result<Backing, BackingError> {
        let nodeid = NodeId(self.state.nodeid(name));
        Backing::register(&self.device, nodeid, file, options, valid, self.snapshot())
    }

    #[track_caller]
    pub fn register(&self, name: &str, file: &File, options: BackingOptions, valid: Range<u64>) -> Backing {
        self.try_register(name, file, options, valid).unwrap()
    }

    pub fn count(&self, opcode: u32, what: Counter) -> u64 {
        self.device.counters().unwrap().count[opcode as usize][what.0 as usize]
    }

    /// READs that came up.
    pub fn upcalls(&self) -> u64 {
        self.count(READ, Counter::EXTFUSE_COUNT_UPCALLS)
    }

    /// READs that were filled.
    pub fn filled(&self) -> u64 {
        self.count(READ, Counter::EXTFUSE_COUNT_PASSTHRU)
    }

    /// From now on READs are answered with pages that are given away.
    pub fn give_pages_away(&self) {
        self.state.gives.set(self.raw.try_clone().unwrap()).unwrap();
    }

    pub fn on_read(&self, hook: impl Fn(u64, Range<u64>) -> Option<Errno> + Send + Sync + 'static) {
        *self.state.on_read.lock().unwrap() = Some(Arc::new(hook));
    }

    /// BACKING with an argument that may be anywhere: the errno, 0 for success.
    pub fn raw_backing(&self, address: usize) -> i32 {
        // SAFETY: the module reads and writes there what it may, as the test wants.
        let result = unsafe { ioc::backing(self.raw.as_raw_fd(), address as *mut _) };
        result.err().map_or(0, |errno| errno as i32)
    }

    /// Through the control file system.
    pub fn abort(&self) {
        let dev = self.device.setup().unwrap().dev;
        let minor = dev & 0xff | (dev >> 12 & !0xff);
        fs::write(format!("/sys/fs/extfuse/connections/{minor}/abort"), "1").unwrap();
    }

    /// Gives every node that nobody uses back to the daemon.
    pub fn forget_unused() {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }
}

/// Files are closed by tasks that have ended, but maybe not wholly yet.
fn unmount(at: &Path) -> bool {
    let start = Instant::now();
    while umount2(at, MntFlags::empty()) == Err(nix::Error::EBUSY) {
        if start.elapsed() > PATIENCE || thread::panicking() {
            let _may_be_gone = umount2(at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

impl Drop for Served {
    fn drop(&mut self) {
        *self.state.on_read.lock().unwrap() = None;
        *self.state.on_node.lock().unwrap() = None;
        let gone = unmount(&self.at);
        // An error is how fuser reports an aborted connection.
        drop(self.served.take().map(JoinHandle::join));
        // Nothing keeps a backing file open that the connection had.
        let closed = unmount(&self.spools);
        assert!(
            gone && closed || thread::panicking(),
            "something is still open: mount {gone}, spools {closed}"
        );
    }
}

/// The result of a thread that must end within a time.
#[track_caller]
pub fn within<T>(running: JoinHandle<T>) -> T {
    let start = Instant::now();
    while !running.is_finished() {
        assert!(start.elapsed() < PATIENCE, "hangs");
        thread::sleep(Duration::from_millis(1));
    }
    match running.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
