// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mount whose daemon is the test: every READ and WRITE comes out of a channel, to be answered from
//! wherever the test likes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IoSlice, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use extfuse::abi::{self, Commit, Drain, Fill, Wire as _};
use extfuse::sys::device::Device;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    SessionACL, WriteFlags,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

pub use crate::frames::{Frame, POISON, assert_bytes, bytes, crc32c};

mod ioc {
    use extfuse::abi::{Drain, Fill, IOC_MAGIC};

    nix::ioctl_readwrite!(fill, IOC_MAGIC, 6, Fill);
    nix::ioctl_readwrite!(drain, IOC_MAGIC, 7, Drain);
}

/// What a section may take, in this guest, before it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a file is opened by the daemon: its name says it. Inode numbers count from 2.
pub const NAMES: [(&str, u32); 4] = [
    ("cached", 0),
    ("direct", 1),
    ("cached-withheld", abi::OPEN_WITHHOLD),
    ("direct-withheld", 1 | abi::OPEN_WITHHOLD),
];

/// A READ that waits for its answer; EIO if it is dropped.
pub struct Read {
    pub unique: u64,
    pub nodeid: u64,
    pub offset: u64,
    pub size: u32,
    reply: ReplyData,
    pub device: Arc<Shared>,
}

impl Read {
    pub fn commit(self) {
        self.reply.data(&[]);
    }

    pub fn commit_first(self, size: u32) {
        self.reply.data(Commit { size, reserved: 0 }.bytes());
    }

    pub fn data(self, data: &[u8]) {
        self.reply.data(data);
    }

    pub fn reject(self, errno: Errno) {
        self.reply.error(errno);
    }

    pub fn fill(&self, frame: &Frame, fd: &OwnedFd) -> Fill {
        frame.fill(self.unique, fd)
    }

    /// As a whole frame from `fd`, checked; may be in several pieces.
    #[track_caller]
    pub fn filled(&self, frame: &Frame, fd: &OwnedFd, change: impl FnOnce(&mut Fill)) {
        let mut fill = self.fill(frame, fd);
        change(&mut fill);
        let mut mem = vec![POISON; frame.meta().len()];
        self.device.fill(&mut fill, &mut mem).unwrap();
        frame.assert_filled(&fill, &mem);
    }

    /// Staged in one message, checked.
    #[track_caller]
    pub fn staged(&self, frame: &Frame, offset: u32) {
        let mut mem = vec![POISON; frame.meta().len() + 4];
        let parts = [
            IoSlice::new(&frame.header),
            IoSlice::new(&frame.payload),
            IoSlice::new(&frame.footer),
        ];
        self.device
            .stage(self.unique, &mut frame.section(offset), &parts, &mut mem)
            .unwrap();
        frame.assert_staged(&mem);
    }
}

/// A WRITE that waits for its answer.
pub struct Write {
    pub unique: u64,
    pub offset: u64,
    /// Bytes that came along.
    pub data: Vec<u8>,
    /// Bytes that did not.
    pub withheld: Option<u32>,
    reply: ReplyWrite,
    pub device: Arc<Shared>,
}

impl Write {
    pub fn written(self, size: u32) {
        self.reply.written(size);
    }

    pub fn reject(self, errno: Errno) {
        self.reply.error(errno);
    }
}

/// The device, as an ABI and as a descriptor.
pub struct Shared {
    pub raw: OwnedFd,
    device: Device,
}

impl std::ops::Deref for Shared {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

struct Pages {
    size: u64,
    reads: Sender<Read>,
    writes: Sender<Write>,
    device: Arc<Shared>,
}

impl Pages {
    fn attr(&self, ino: u64) -> FileAttr {
        let kind = match ino {
            1 => FileType::Directory,
            _ => FileType::RegularFile,
        };
        FileAttr {
            ino: INodeNo(ino),
            size: self.size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o777,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// A short answer makes the kernel believe that the file ends there, until it asks again.
const AT_ONCE: Duration = Duration::ZERO;

impl Filesystem for Pages {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _largest = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match NAMES.iter().position(|(known, _)| *known == name) {
            Some(at) => reply.entry(&AT_ONCE, &self.attr(at as u64 + 2), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&AT_ONCE, &self.attr(ino.0));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = NAMES[ino.0 as usize - 2].1;
        reply.opened(FileHandle(ino.0), FopenFlags::from_bits_retain(flags));
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
        let (unique, device) = (request.unique().0, Arc::clone(&self.device));
        let read = Read {
            unique,
            nodeid: ino.0,
            offset,
            size,
            reply,
            device,
        };
        // Nobody waits for it any more: dropped, and EIO.
        drop(self.reads.send(read));
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bits = flags.bits();
        let withheld =
            (bits & abi::WRITE_WITHHELD != 0).then_some(bits >> abi::WRITE_SIZE_SHIFT & abi::WRITE_SIZE_MASK);
        let (unique, device, data) = (request.unique().0, Arc::clone(&self.device), data.to_vec());
        let write = Write {
            unique,
            offset,
            data,
            withheld,
            reply,
            device,
        };
        drop(self.writes.send(write));
    }
}

/// The mount. Unmounted on drop, which nothing that leaked may prevent.
pub struct Served {
    pub at: PathBuf,
    pub device: Arc<Shared>,
    pub conn: u64,
    reads: Receiver<Read>,
    writes: Receiver<Write>,
    served: Option<JoinHandle<io::Result<()>>>,
    _place: TempDir,
}

impl Served {
    /// Its files have `size` bytes.
    pub fn new(size: u64) -> Self {
        Self::with(size, |device| device.sections(None).unwrap())
    }

    /// `before` is called between SETUP and INIT.
    pub fn with(size: u64, before: impl FnOnce(&Device)) -> Self {
        let place = TempDir::new().unwrap();
        let mut options = File::options();
        let file = options.read(true).write(true).open("/dev/extfuse");
        let fd = OwnedFd::from(file.expect("the module is loaded: scripts/vm"));
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            fd.as_raw_fd()
        );
        let (kind, none) = (Some("extfuse"), MsFlags::empty());
        mount(Some("sections"), place.path(), kind, none, Some(data.as_str())).unwrap();
        let device = Arc::new(Shared {
            raw: fd.try_clone().unwrap(),
            device: Device::new(fd.try_clone().unwrap()),
        });
        let conn = device.setup().unwrap().conn;
        before(&device);
        let (to_reads, reads) = channel();
        let (to_writes, writes) = channel();
        let pages = Pages {
            size,
            reads: to_reads,
            writes: to_writes,
            device: Arc::clone(&device),
        };
        let session = Session::from_fd(pages, fd, SessionACL::All, Config::default()).unwrap();
        let served = thread::spawn(move || session.run());
        Self {
            at: place.path().to_path_buf(),
            device,
            conn,
            reads,
            writes,
            served: Some(served),
            _place: place,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    pub fn open(&self, name: &str) -> File {
        self.open_with(name, 0)
    }

    /// To read and write, with further flags of open(2).
    pub fn open_with(&self, name: &str, flags: i32) -> File {
        let mut options = File::options();
        let options = options.read(true).write(true).custom_flags(flags);
        options.open(self.path(name)).unwrap()
    }

    /// The next READ, within a time that nothing should take.
    #[track_caller]
    pub fn read(&self) -> Read {
        self.reads.recv_timeout(PATIENCE).expect("a READ")
    }

    /// The next READ at `offset`; others get an error.
    #[track_caller]
    pub fn read_at(&self, offset: u64) -> Read {
        loop {
            let read = self.read();
            if read.offset == offset {
                return read;
            }
        }
    }

    #[track_caller]
    pub fn write(&self) -> Write {
        self.writes.recv_timeout(PATIENCE).expect("a WRITE")
    }

    /// Answers every READ until `application`, in a thread of its own, has ended.
    #[track_caller]
    pub fn while_running<T: Send + 'static>(
        &self,
        application: impl FnOnce() -> T + Send + 'static,
        mut answer: impl FnMut(Read),
    ) -> T {
        let running = thread::spawn(application);
        let start = Instant::now();
        while !running.is_finished() {
            if let Ok(read) = self.reads.recv_timeout(Duration::from_millis(2)) {
                answer(read);
            }
            assert!(start.elapsed() < 3 * PATIENCE, "the application hangs");
        }
        running.join().unwrap()
    }

    /// The same for WRITEs.
    #[track_caller]
    pub fn while_writing<T: Send + 'static>(
        &self,
        application: impl FnOnce() -> T + Send + 'static,
        mut answer: impl FnMut(Write),
    ) -> T {
        let running = thread::spawn(application);
        let start = Instant::now();
        while !running.is_finished() {
            if let Ok(write) = self.writes.recv_timeout(Duration::from_millis(2)) {
                answer(write);
            }
            assert!(start.elapsed() < 3 * PATIENCE, "the application hangs");
        }
        running.join().unwrap()
    }

    /// Reads `size` bytes at `offset` of a file, of which one READ is made, answered by `answer`.
    #[track_caller]
    pub fn one_read<T>(
        &self,
        name: &str,
        (offset, size): (u64, usize),
        answer: impl FnOnce(Read) -> T,
    ) -> (io::Result<Vec<u8>>, T) {
        let reader = self.reader(name, offset, size);
        let answered = answer(self.read());
        (within(reader, PATIENCE), answered)
    }

    /// A thread that reads `size` bytes at `offset` of a file, into memory that is poisoned before; at
    /// an odd address, unless `size` is in pages.
    pub fn reader(&self, name: &str, offset: u64, size: usize) -> JoinHandle<io::Result<Vec<u8>>> {
        let file = self.open(name);
        thread::spawn(move || {
            let mut memory = vec![POISON; size + 8192];
            let start = memory.as_ptr().align_offset(4096) + usize::from(!size.is_multiple_of(4096));
            let buffer = &mut memory[start..start + size];
            let got = std::os::unix::fs::FileExt::read_at(&file, buffer, offset)?;
            Ok(buffer[..got].to_vec())
        })
    }

    /// A READ, if one comes soon.
    pub fn try_read(&self) -> Option<Read> {
        self.reads.recv_timeout(Duration::from_millis(2)).ok()
    }

    pub fn try_write(&self) -> Option<Write> {
        self.writes.recv_timeout(Duration::from_millis(2)).ok()
    }

    /// FILL with `fill.mem` as it is, for pointers that no slice has.
    pub fn raw_fill(&self, fill: &mut Fill) -> io::Result<()> {
        raw_fill(&self.device, fill)
    }

    /// The same for DRAIN.
    pub fn raw_drain(&self, drain: &mut Drain) -> io::Result<()> {
        raw_drain(&self.device, drain)
    }

    /// A message to the device that no library would send.
    pub fn message(&self, message: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.device.raw, message)?)
    }

    /// Through the control file system.
    pub fn abort(&self) {
        let dev = self.device.setup().unwrap().dev;
        let minor = dev & 0xff | (dev >> 12 & !0xff);
        fs::write(format!("/sys/fs/extfuse/connections/{minor}/abort"), "1").unwrap();
    }

    pub fn force_unmount(&self) {
        umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        while self.reads.try_recv().is_ok() || self.writes.try_recv().is_ok() {}
        let start = Instant::now();
        // Files are closed by tasks that have ended, but maybe not wholly yet.
        while !thread::panicking()
            && umount2(&self.at, MntFlags::empty()) == Err(nix::Error::EBUSY)
            && start.elapsed() < PATIENCE
        {
            thread::sleep(Duration::from_millis(10));
        }
        if start.elapsed() >= PATIENCE || thread::panicking() {
            eprintln!("unmounting by force");
            let _may_be_gone = umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        }
        // An error is how fuser reports an aborted connection.
        drop(self.served.take().map(JoinHandle::join));
    }
}

/// The result of a thread that must end within a time.
#[track_caller]
pub fn within<T>(running: JoinHandle<T>, time: Duration) -> T {
    let start = Instant::now();
    while !running.is_finished() {
        assert!(start.elapsed() < time, "hangs");
        thread::sleep(Duration::from_millis(1));
    }
    match running.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub fn raw_fill(device: &Shared, fill: &mut Fill) -> io::Result<()> {
    // SAFETY: the module reads and writes `fill`, and at `fill.mem` what it may, as the test wants.
    unsafe { ioc::fill(device.raw.as_raw_fd(), &raw mut *fill) }?;
    Ok(())
}

pub fn raw_drain(device: &Shared, drain: &mut Drain) -> io::Result<()> {
    // SAFETY: as above.
    unsafe { ioc::drain(device.raw.as_raw_fd(), &raw mut *drain) }?;
    Ok(())
}

/// A result's errno; 0 for success.
pub fn errno<T>(result: &io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// Writes all of it into a pipe or a socket.
pub fn put(to: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    File::from(to.try_clone()?).write_all(bytes)
}

/// Nothing holds it any more.
pub fn remove_and_load_the_module() {
    let control = "/sys/fs/extfuse/connections";
    while umount2(control, MntFlags::empty()).is_ok() {}
    crate::common::eventually(|| run("rmmod", &["extfuse"]));
    // As scripts/vm has set it up.
    assert!(run("modprobe", &["extfuse"]));
    assert!(run("mount", &["-t", "extfusectl", "extfusectl", control]));
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap()
        .status
        .success()
}
