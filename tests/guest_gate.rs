// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program at the gate through the library: what it refuses nobody sees, what it accepts is there in one
//! call, and where it is not there the check says the same.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use extfuse::ebpf::Object;
use extfuse::session::{SessionError, Unmounter};
use extfuse::splice::{
    Channel, DirEntry, FuseBuf, FuseBufVec, Mem, MountOptions, PathFilesystem, PathOptions, Way, attributes,
    serve,
};
use fuser::{FileAttr, FileType, OpenFlags};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tempfile::TempDir;

const HEADER: usize = 8;
const FOOTER: usize = 4;
const PAYLOAD: usize = 16;
/// Bits of a frame.
const BITS: usize = (HEADER + PAYLOAD + FOOTER) * 8;
/// The file whose sections make the program err; see the program.
const MISTAKEN: u64 = 999;
/// Files from here on it refuses.
const REFUSED: u64 = 1000;
/// A file of three sections from three sources.
const THREE: u64 = 3;
const WAYS: [Way; 5] = [Way::Auto, Way::Copy, Way::Stage, Way::Fill, Way::FillCommit];

fn gate() -> Object {
    Object::new(
        "frame_gate",
        &include_bytes!(concat!(env!("OUT_DIR"), "/frame_gate.bpf.o"))[..],
    )
}

fn byte(file: u64, at: u64) -> u8 {
    (at.wrapping_mul(31) ^ file) as u8
}

/// What servers and file system share.
#[derive(Debug)]
struct World {
    /// Which bit of the next frames is wrong; none from `BITS` on.
    wrong: AtomicUsize,
    /// The frames are of the file whose number is so much more.
    off: AtomicUsize,
    /// Which of several sections it is about.
    section: AtomicUsize,
    checks: AtomicUsize,
    /// Connections that the file system has given up.
    lost: AtomicUsize,
}

/// Answers requests of {file, offset, length, section}.
fn answer(mut client: UnixStream, world: &World) -> io::Result<()> {
    let mut request = [0; 32];
    loop {
        client.read_exact(&mut request)?;
        let word = |at: usize| u64::from_le_bytes(request[at * 8..][..8].try_into().unwrap());
        let (file, offset, len, section) = (word(0), word(1), word(2), word(3));
        let payload: Vec<u8> = (offset..offset + len).map(|at| byte(file, at)).collect();
        let concerned = section == world.section.load(Ordering::SeqCst) as u64;
        let off = if concerned {
            world.off.load(Ordering::SeqCst) as u64
        } else {
            0
        };
        let mut frame = (file + off).to_le_bytes().to_vec();
        frame.extend(&payload);
        frame.extend(crc32c::crc32c(&payload).to_le_bytes());
        let bit = world.wrong.load(Ordering::SeqCst);
        if bit < BITS && concerned {
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        client.write_all(&frame)?;
    }
}

#[derive(Debug)]
struct Numbers {
    world: Arc<World>,
    idle: Mutex<Vec<Arc<OwnedFd>>>,
}

impl Numbers {
    fn new() -> Self {
        let world = World {
            wrong: AtomicUsize::new(BITS),
            off: AtomicUsize::new(0),
            section: AtomicUsize::new(0),
            checks: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        };
        Self {
            world: Arc::new(world),
            idle: Mutex::default(),
        }
    }

    fn section(&self, file: u64, offset: u64, len: usize, number: u64) -> FuseBuf<'static> {
        let request: Vec<u8> = [file, offset, len as u64, number]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let mut buf = FuseBuf::section(self.ask(&request), HEADER, len, FOOTER);
        let room = [vec![0; HEADER + FOOTER], file.to_le_bytes().to_vec()].concat();
        buf.mem = Mem::Owned(room);
        buf
    }
}

impl Numbers {
    /// A connection that nobody holds, on which the request went.
    fn ask(&self, request: &[u8]) -> Arc<OwnedFd> {
        let mut idle = self.idle.lock().unwrap();
        while let Some(at) = idle.iter().position(|fd| Arc::strong_count(fd) == 1) {
            if nix::unistd::write(&idle[at], request).is_ok() {
                return Arc::clone(&idle[at]);
            }
            idle.swap_remove(at);
            self.world.lost.fetch_add(1, Ordering::SeqCst);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let world = Arc::clone(&self.world);
        thread::spawn(move || answer(theirs, &world));
        nix::unistd::write(&ours, request).unwrap();
        idle.push(Arc::new(ours.into()));
        Arc::clone(&idle[idle.len() - 1])
    }
}

fn number(path: &Path) -> Option<u64> {
    path.to_str()?.strip_prefix('/')?.parse().ok()
}

fn size(file: u64) -> u64 {
    if file == THREE {
        3 * PAYLOAD as u64
    } else {
        PAYLOAD as u64
    }
}

impl PathFilesystem for Numbers {
    fn getattr(&self, path: &Path, _fh: Option<u64>) -> Result<FileAttr, Errno> {
        if path == Path::new("/") {
            return Ok(attributes(FileType::Directory, 0o755, 0));
        }
        let file = number(path).ok_or(Errno::ENOENT)?;
        Ok(attributes(FileType::RegularFile, 0o644, size(file)))
    }

    fn readdir(&self, _path: &Path) -> Result<Vec<DirEntry>, Errno> {
        Ok(vec![])
    }

    fn open(&self, path: &Path, _flags: OpenFlags) -> Result<u64, Errno> {
        number(path).ok_or(Errno::ENOENT)
    }

    fn read_buf(&self, _: &Path, fh: u64, _size: usize, offset: u64) -> Result<FuseBufVec<'static>, Errno> {
        let sections = size(fh) / PAYLOAD as u64;
        if offset >= size(fh) {
            return Ok([].into_iter().collect());
        }
        assert_eq!(offset, 0);
        Ok((0..sections)
            .map(|at| self.section(fh, at * PAYLOAD as u64, PAYLOAD, at))
            .collect())
    }

    fn check(&self, _: &Path, bufs: &FuseBufVec<'static>, crcs: &[Option<u32>]) -> Result<(), Errno> {
        self.world.checks.fetch_add(1, Ordering::SeqCst);
        for (buf, crc) in bufs.iter().zip(crcs) {
            let file = &buf.mem.as_slice().unwrap()[HEADER + FOOTER..];
            let footer = buf
                .footer_bytes()
                .first_chunk()
                .map(|crc| u32::from_le_bytes(*crc));
            if buf.header_bytes() != file || *crc != footer {
                return Err(Errno::EIO);
            }
            let number = u64::from_le_bytes(file.try_into().unwrap());
            if number > REFUSED {
                return Err(Errno::from_raw((number - REFUSED) as i32));
            }
        }
        Ok(())
    }
}

struct Mount {
    dir: TempDir,
    world: Arc<World>,
    channel: Channel,
    unmounter: Unmounter,
    serving: Option<JoinHandle<Result<(), SessionError>>>,
}

impl Mount {
    fn new(stock: bool, way: Way, gate: Option<Object>) -> Self {
        let dir = TempDir::new().unwrap();
        let fs = Numbers::new();
        let world = Arc::clone(&fs.world);
        let options = MountOptions {
            stock,
            require_module: !stock,
            gate,
            timeout: Duration::from_secs(20),
            ..MountOptions::default()
        };
        let paths = PathOptions {
            way,
            crc: true,
            ttl: Duration::from_secs(60),
        };
        let mounted = serve(fs, dir.path(), &options, paths).unwrap();
        Self {
            dir,
            world,
            channel: mounted.channel().clone(),
            unmounter: mounted.unmounter(),
            serving: Some(thread::spawn(move || mounted.serve())),
        }
    }

    fn gated(way: Way) -> Self {
        let mount = Self::new(false, way, Some(gate()));
        assert!(mount.channel.has_gate());
        mount
    }

    fn open(&self, file: u64, direct: bool) -> File {
        let mut options = OpenOptions::new();
        options.read(true);
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(self.dir.path().join(file.to_string())).unwrap()
    }

    /// The file as it is; nothing of it stays in the page cache.
    #[track_caller]
    fn assert_reads(&self, file: u64) {
        let mut room = [0; 100];
        let opened = self.open(file, true);
        let n = opened.read_at(&mut room, 0).unwrap();
        assert_eq!(n as u64, size(file));
        assert!(
            room[..n]
                .iter()
                .zip(0..)
                .all(|(read, at)| *read == byte(file, at))
        );
    }

    /// The error that a reader gets, who gets nothing else.
    #[track_caller]
    fn refused(&self, opened: &File) -> i32 {
        let mut room = [0xaa; 100];
        let error = opened
            .read_at(&mut room, 0)
            .expect_err("a frame that is wrong was read");
        // Past the page cache the frame is received into the reader's own memory, and then zeroed.
        let flags = nix::fcntl::fcntl(opened, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        let zeros = flags & libc::O_DIRECT != 0;
        let clean = |byte: &u8| *byte == 0xaa || zeros && *byte == 0;
        assert!(room.iter().all(clean), "a byte of it got through: {room:?}");
        error.raw_os_error().unwrap()
    }

    fn checks(&self) -> usize {
        self.world.checks.load(Ordering::SeqCst)
    }

    /// Connections that are of no more use.
    fn lost(&self) -> usize {
        self.world.lost.load(Ordering::SeqCst)
    }

    fn wrong(&self, bit: usize) {
        self.world.wrong.store(bit, Ordering::SeqCst);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.unmounter.detach();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

#[test]
fn right_frames_are_read_in_one_call_and_the_check_has_nothing_to_say() {
    for way in [Way::Auto, Way::FillCommit] {
        let mount = Mount::gated(way);
        let null = File::open("/dev/null").unwrap();
        let read = extfuse::splice::Read::new(2, 1 << 20);
        let section = FuseBuf::section(&null, 1, 10, 1).into();
        assert_eq!(mount.channel.way(&read, &section), Way::FillCommit);
        let plain = FuseBuf::fd(&null, 10).into();
        assert_eq!(mount.channel.way(&read, &plain), Way::Copy);
        for file in [1, 7, THREE] {
            mount.assert_reads(file);
        }
        assert_eq!(mount.checks(), 0, "{way:?}");
        // They are counted when the reader has been answered.
        common::eventually(|| mount.channel.answered_in_one_call() >= 3);
    }
}

#[test]
fn the_other_ways_ask_the_check_too() {
    for way in [Way::Copy, Way::Stage, Way::Fill] {
        let mount = Mount::gated(way);
        mount.assert_reads(1);
        assert!(mount.checks() > 0, "{way:?}");
        assert_eq!(mount.channel.answered_in_one_call(), 0);
    }
}

#[test]
fn with_any_bit_wrong_nobody_reads_a_byte() {
    let everywhere = WAYS
        .map(|way| (false, way))
        .into_iter()
        .chain([(true, Way::Auto)]);
    for (stock, way) in everywhere {
        let mount = Mount::new(stock, way, Some(gate()));
        assert_eq!(mount.channel.has_gate(), !stock);
        let checks = mount.checks();
        // The module does not look at how a section came: of the other ways every seventh bit.
        let step = if way == Way::Auto { 1 } else { 7 };
        for bit in (0..BITS).step_by(step) {
            mount.wrong(bit);
            for direct in [false, true] {
                let opened = mount.open(1, direct);
                assert_eq!(mount.refused(&opened), libc::EIO, "{way:?} bit {bit}");
            }
        }
        mount.wrong(BITS);
        mount.assert_reads(1);
        // What was refused had been received: the connection goes on.
        if way != Way::Stage {
            assert_eq!(mount.lost(), 0, "{way:?}");
        }
        let asked = mount.checks() > checks;
        assert_eq!(
            asked,
            stock || way == Way::Copy || way == Way::Fill || way == Way::Stage
        );
    }
}

#[test]
fn a_frame_of_another_file_is_refused() {
    for way in WAYS {
        let mount = Mount::gated(way);
        mount.world.off.store(1, Ordering::SeqCst);
        for direct in [false, true] {
            assert_eq!(mount.refused(&mount.open(1, direct)), libc::EIO, "{way:?}");
        }
        mount.world.off.store(0, Ordering::SeqCst);
        mount.assert_reads(1);
    }
}

#[test]
fn one_wrong_section_of_several_refuses_the_answer_and_loses_no_connection() {
    for way in [Way::Auto, Way::Fill] {
        let mount = Mount::gated(way);
        mount.assert_reads(THREE);
        for section in 0..3 {
            mount.world.section.store(section, Ordering::SeqCst);
            mount.wrong(HEADER * 8 + 5);
            assert_eq!(mount.refused(&mount.open(THREE, false)), libc::EIO);
            mount.wrong(BITS);
            mount.assert_reads(THREE);
        }
        assert_eq!(mount.lost(), 0);
    }
}

/// Some of them mean something else where a source fails.
#[test]
fn the_reader_gets_the_programs_errno() {
    let mount = Mount::gated(Way::Auto);
    let stock = Mount::new(true, Way::Auto, Some(gate()));
    let errnos = [
        libc::EPERM,
        libc::ENOENT,
        libc::EAGAIN,
        libc::EACCES,
        libc::ENODATA,
        libc::ETIMEDOUT,
        libc::EOPNOTSUPP,
        libc::EDQUOT,
    ];
    let began = Instant::now();
    for errno in errnos {
        let file = REFUSED + errno as u64;
        assert_eq!(mount.refused(&mount.open(file, true)), errno);
        assert_eq!(stock.refused(&stock.open(file, true)), errno);
    }
    assert_eq!(mount.lost(), 0);
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[test]
fn an_ejected_program_leaves_the_check_and_no_error() {
    let mount = Mount::gated(Way::Auto);
    mount.assert_reads(1);
    assert_eq!(mount.checks(), 0);
    let mut turns = 0;
    while mount.checks() == 0 {
        mount.assert_reads(MISTAKEN);
        turns += 1;
        assert!(turns <= extfuse::abi::ERROR_BUDGET + 1, "it was not ejected");
    }
    // The last mistake was that of the read before.
    assert_eq!(turns, extfuse::abi::ERROR_BUDGET + 1);
    // Without the program no request is ended without the check.
    let ended = || mount.channel.answered_in_one_call();
    common::eventually(|| ended() >= turns);
    let answered = ended();
    mount.assert_reads(1);
    mount.wrong(HEADER * 8);
    assert_eq!(mount.refused(&mount.open(1, false)), libc::EIO);
    mount.wrong(BITS);
    mount.assert_reads(1);
    assert_eq!(ended(), answered);
}

/// The example `frames`, whose server makes a bit of every frame wrong, the next one each time.
#[test]
fn of_the_examples_spoilt_frames_nobody_reads_a_byte() {
    // What the frame of a file of 16 bytes says: request, payload, checksum.
    const BITS: usize = (16 + 16 + 4) * 8;
    let frames = Path::new(common::EXTFUSE)
        .with_file_name("examples")
        .join("frames");
    let scratch = common::Scratch::new();
    scratch.write("small", "sixteen bytes...");
    let mount = |spoil: bool| {
        let mut command = Command::new(&frames);
        command.args(spoil.then_some("--spoil"));
        command.arg(scratch.source()).arg(scratch.mountpoint());
        common::Mounted::from_command(command, &scratch.mountpoint())
    };
    let mut mounted = mount(true);
    assert_eq!(mounted.entry().fs_type, "extfuse");
    for bit in 0..BITS {
        for direct in [false, true] {
            let mut options = OpenOptions::new();
            options.read(true);
            options.custom_flags(if direct { libc::O_DIRECT } else { 0 });
            let file = options.open(mounted.join("small")).unwrap();
            let mut room = [0xaa; 16];
            let error = file.read_at(&mut room, 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{bit}");
            assert!(room == [0xaa; 16] || direct && room == [0; 16], "{room:?}");
        }
    }
    mounted.signal(Signal::SIGINT);
    let (status, words) = mounted.wait();
    assert!(status.success());
    // The check would have said so.
    assert_eq!(words, "", "it was the program that refused");
    let mounted = mount(false);
    assert_eq!(std::fs::read(mounted.join("small")).unwrap(), b"sixteen bytes...");
}

#[test]
fn an_object_without_a_right_program_mounts_nothing() {
    let dir = TempDir::new().unwrap();
    let error = |object: Object| {
        let options = MountOptions {
            gate: Some(object),
            ..MountOptions::default()
        };
        let error = serve(Numbers::new(), dir.path(), &options, PathOptions::default()).unwrap_err();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()));
        error.to_string()
    };
    let refused = error(Object::new(
        "unsafe",
        &include_bytes!(concat!(env!("OUT_DIR"), "/unsafe.bpf.o"))[..],
    ));
    assert!(
        refused.contains("unsafe is refused: R1 invalid mem access"),
        "{refused}"
    );
    let words = error(Object::new("words", &b"no object"[..]));
    assert!(words.contains("words is no eBPF object"), "{words}");
}
