// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system whose files come in frames from whatever a descriptor can be, over a server that can be told to
//! fail.
//!
//! A file `/SOURCE-SIZE` has `SIZE` bytes. Files `/w` are written.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use extfuse::splice::{
    BufFlags, Caller, DirEntry, Drain, FuseBuf, FuseBufVec, Mem, PathFilesystem, WITHHELD, attributes, drain,
};
use fuser::{FileAttr, FileType, OpenFlags, RenameFlags};
use nix::errno::Errno;

/// Bytes of a header, and of a footer.
pub const META: usize = 102;
const REQUEST: usize = 20;

/// What a server does wrong. The kernel asks again for a page that it did not get, so it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This bit of the checksum is the other way round.
    Crc(u32),
    /// The header is that of another request.
    Id,
    /// The source ends there.
    Dies(Spot),
    /// Nothing more comes from there on.
    Stalls(Spot),
}

/// Somewhere in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    Start,
    Header,
    HeaderEnd,
    Payload,
    PayloadEnd,
    Footer,
    LastByte,
}

impl Spot {
    pub const ALL: [Self; 7] = [
        Self::Start,
        Self::Header,
        Self::HeaderEnd,
        Self::Payload,
        Self::PayloadEnd,
        Self::Footer,
        Self::LastByte,
    ];

    fn of(self, frame: &[u8]) -> &[u8] {
        let payload = frame.len() - 2 * META;
        let end = match self {
            Self::Start => 0,
            Self::Header => META / 2,
            Self::HeaderEnd => META,
            Self::Payload => META + payload * 2 / 3,
            Self::PayloadEnd => META + payload,
            Self::Footer => META + payload + 3,
            Self::LastByte => frame.len() - 1,
        };
        &frame[..end]
    }
}

/// Byte `at` of every file.
pub fn byte(at: u64) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ (at >> 16)) as u8
}

/// Bytes of every file.
pub fn content(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(byte).collect()
}

/// Shared by file system and server.
#[derive(Debug, Default)]
pub struct World {
    pub fault: Mutex<Option<Fault>>,
    /// What was written, by offset.
    pub written: Mutex<Vec<u8>>,
    pub connections: AtomicUsize,
    /// How many WRITEs came without their payload.
    pub withheld: AtomicUsize,
    /// Whether the payload of what goes to the server is to be withheld, and of no other file.
    pub withholds: AtomicBool,
}

/// The frame that answers a request.
fn frame(world: &World, request: &[u8; REQUEST]) -> (Vec<u8>, Option<Fault>) {
    let (offset, len) = parse(request);
    let mut frame = vec![0; META];
    frame[..REQUEST].copy_from_slice(request);
    frame.extend(content(offset, len));
    let crc = crc32c::crc32c(&frame[META..]);
    frame.extend([0x55; META]);
    frame[META + len..][..4].copy_from_slice(&crc.to_le_bytes());
    let fault = *world.fault.lock().unwrap();
    match fault {
        Some(Fault::Crc(bit)) => frame[META + len + bit as usize / 8] ^= 1 << (bit % 8),
        Some(Fault::Id) => frame[0] ^= 1,
        _ => {}
    }
    (frame, fault)
}

fn parse(request: &[u8]) -> (u64, usize) {
    let offset = u64::from_le_bytes(request[8..16].try_into().unwrap());
    let len = u32::from_le_bytes(request[16..20].try_into().unwrap());
    (offset, len as usize)
}

/// Answers the requests of one connection. The highest bit of the id says that a frame with payload follows
/// the request: that is kept if its checksum is right, and answered with a byte.
fn answer(mut client: impl io::Read + Write, world: &World) -> io::Result<()> {
    world.connections.fetch_add(1, Ordering::Relaxed);
    let mut request = [0; REQUEST];
    loop {
        client.read_exact(&mut request)?;
        if request[7] & 0x80 != 0 {
            let (offset, len) = parse(&request);
            let mut rest = vec![0; META - REQUEST + len + META];
            client.read_exact(&mut rest)?;
            let payload = &rest[META - REQUEST..][..len];
            let crc = crc32c::crc32c(payload).to_le_bytes();
            let right = rest[META - REQUEST + len + 10..][..4] == crc;
            if right {
                let mut written = world.written.lock().unwrap();
                let end = offset as usize + len;
                if written.len() < end {
                    written.resize(end, 0);
                }
                written[offset as usize..end].copy_from_slice(payload);
            }
            client.write_all(&[u8::from(right)])?;
            continue;
        }
        let (bytes, fault) = frame(world, &request);
        match fault {
            Some(Fault::Dies(at)) => {
                client.write_all(at.of(&bytes))?;
                return Ok(());
            }
            Some(Fault::Stalls(at)) => {
                client.write_all(at.of(&bytes))?;
                // Until the other side gives up.
                let _ = client.read(&mut [0]);
                return Ok(());
            }
            _ => client.write_all(&bytes)?,
        }
    }
}

/// The file system.
#[derive(Debug)]
pub struct Frames {
    pub world: Arc<World>,
    server: std::net::SocketAddr,
    idle: Mutex<HashMap<&'static str, Vec<Arc<OwnedFd>>>>,
    last: AtomicU64,
    names: Mutex<Vec<PathBuf>>,
}

impl Frames {
    pub fn new(world: Arc<World>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let served = Arc::clone(&world);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let world = Arc::clone(&served);
                thread::spawn(move || answer(client, &world));
            }
        });
        Self {
            world,
            server,
            idle: Mutex::default(),
            last: AtomicU64::new(1),
            names: Mutex::default(),
        }
    }

    fn connect(&self, kind: &str) -> io::Result<OwnedFd> {
        if kind == "unix" {
            let (ours, theirs) = UnixStream::pair()?;
            let world = Arc::clone(&self.world);
            thread::spawn(move || answer(theirs, &world));
            return Ok(ours.into());
        }
        let stream = TcpStream::connect(self.server)?;
        stream.set_nodelay(true)?;
        Ok(stream.into())
    }

    /// A connection that nobody holds, on which the request went.
    fn ask(&self, kind: &'static str, request: &[u8]) -> io::Result<Arc<OwnedFd>> {
        let mut all = self.idle.lock().unwrap();
        let all = all.entry(kind).or_default();
        while let Some(at) = all.iter().position(|fd| Arc::strong_count(fd) == 1) {
            if nix::unistd::write(&all[at], request).is_ok_and(|n| n == request.len()) {
                return Ok(Arc::clone(&all[at]));
            }
            all.swap_remove(at);
        }
        let fd = Arc::new(self.connect(kind)?);
        nix::unistd::write(&fd, request)?;
        all.push(Arc::clone(&fd));
        Ok(fd)
    }

    fn request(&self, offset: u64, len: usize, flag: u64) -> [u8; REQUEST] {
        let mut request = [0; REQUEST];
        let id = self.last.fetch_add(1, Ordering::Relaxed) | flag;
        request[..8].copy_from_slice(&id.to_le_bytes());
        request[8..16].copy_from_slice(&offset.to_le_bytes());
        request[16..].copy_from_slice(&(len as u32).to_le_bytes());
        request
    }

    pub fn bufs(&self, path: &Path, size: usize, offset: u64) -> Result<FuseBufVec<'static>, Errno> {
        let (kind, end) = describe(path).ok_or(Errno::ENOENT)?;
        let len = end.saturating_sub(offset).min(size as u64) as usize;
        if kind == "merged" {
            // Several sections from several sources, and what is none.
            let (a, b, c) = (len / 3, len / 4, len / 5);
            let cuts = [("tcp", a), ("memory", b), ("unix", c), ("memfd", len - a - b - c)];
            let mut at = offset;
            let mut all = Vec::new();
            for (kind, len) in cuts {
                all.push(self.buf(kind, at, len).map_err(|_| Errno::EIO)?);
                at += len as u64;
            }
            return Ok(all.into_iter().collect());
        }
        self.buf(kind, offset, len)
            .map(Into::into)
            .map_err(|_| Errno::EIO)
    }

    fn buf(&self, kind: &'static str, offset: u64, len: usize) -> io::Result<FuseBuf<'static>> {
        let request = self.request(offset, len, 0);
        let section = |fd: Arc<OwnedFd>| {
            let mut buf = FuseBuf::section(fd, META, len, META);
            buf.mem = Mem::Owned([&[0; 2 * META][..], &request].concat());
            buf
        };
        Ok(match kind {
            "tcp" | "unix" => section(self.ask(kind, &request)?),
            "memory" => FuseBuf::owned(content(offset, len)),
            "plain" => {
                let file = tempfile::tempfile()?;
                file.write_all_at(&content(offset, len), 4099)?;
                FuseBuf::file(OwnedFd::from(file), 4099, len)
            }
            // Says more than it has: the end of the file.
            "short" => {
                let file = tempfile::tempfile()?;
                file.write_all_at(&content(offset, len / 2), 0)?;
                FuseBuf::fd(OwnedFd::from(file), len)
            }
            "pipe" => {
                let (read, write) = nix::unistd::pipe()?;
                let (bytes, fault) = frame(&self.world, &request);
                let end = match fault {
                    Some(Fault::Dies(at)) => at.of(&bytes).len(),
                    _ => bytes.len(),
                };
                thread::spawn(move || File::from(write).write_all(&bytes[..end]));
                section(Arc::new(read))
            }
            _ => {
                let (bytes, fault) = frame(&self.world, &request);
                let end = match fault {
                    Some(Fault::Dies(at)) => at.of(&bytes).len(),
                    _ => bytes.len(),
                };
                let file = match kind {
                    "memfd" => File::from(nix::sys::memfd::memfd_create(
                        c"frame",
                        nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
                    )?),
                    _ => tempfile::tempfile()?,
                };
                file.write_all_at(&bytes[..end], 7)?;
                let mut buf = section(Arc::new(file.into())).with(BufFlags::FD_SEEK);
                buf.pos = 7;
                buf
            }
        })
    }

    /// What arrived is what was asked for.
    pub fn judge(bufs: &FuseBufVec<'_>, crcs: &[Option<u32>]) -> Result<(), Errno> {
        for (buf, crc) in bufs.iter().zip(crcs).filter(|(buf, _)| buf.is_section()) {
            if buf.header_bytes()[..REQUEST] != buf.mem.as_slice().unwrap()[2 * META..] {
                return Err(Errno::EIO);
            }
            let footer = u32::from_le_bytes(buf.footer_bytes()[..4].try_into().unwrap());
            if crc.is_some_and(|crc| crc != footer) {
                return Err(Errno::EIO);
            }
            assert_eq!(buf.footer_bytes()[4..], [0x55; META - 4]);
        }
        Ok(())
    }

    /// Takes a payload into memory or into a file, in two pieces.
    fn keep(&self, file: bool, mut bufs: FuseBufVec<'_>, offset: u64) -> Result<usize, Errno> {
        let size = bufs.size();
        let mut kept = vec![0; size];
        let (one, other) = kept.split_at_mut(size / 3);
        let crcs = [
            content(offset, one.len()),
            content(offset + one.len() as u64, other.len()),
        ];
        for (piece, expected) in [one, other].into_iter().zip(crcs) {
            let how = Drain {
                crc: true,
                ..Drain::default()
            };
            let crc = if file {
                let file = tempfile::tempfile().unwrap();
                let crc = drain(&mut bufs, &mut FuseBuf::file(&file, 5, piece.len()), &how);
                file.read_exact_at(piece, 5).unwrap();
                crc
            } else {
                drain(&mut bufs, &mut FuseBuf::memory_mut(piece), &how)
            };
            assert_eq!(crc.unwrap(), Some(crc32c::crc32c(&expected)));
        }
        let mut written = self.world.written.lock().unwrap();
        let end = offset as usize + size;
        let length = written.len().max(end);
        written.resize(length, 0);
        written[offset as usize..end].copy_from_slice(&kept);
        Ok(size)
    }

    /// Sends a payload to the server in a frame; it says whether the checksum was right.
    pub fn store(&self, mut bufs: FuseBufVec<'_>, offset: u64) -> Result<usize, Errno> {
        let size = bufs.size();
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let stream = self.connect("tcp").map_err(errno)?;
        let mut header = [0x11; META];
        header[..REQUEST].copy_from_slice(&self.request(offset, size, 1 << 63));
        let mut section = FuseBuf::section_between(&stream, &header, size, &[0x22; META]);
        let crc = drain(&mut bufs, &mut section, &Drain::default().crc_at(10))
            .map_err(|error| errno(error.error))?;
        assert_eq!(section.footer_bytes()[10..14], crc.unwrap().to_le_bytes());
        assert!(bufs.is_done());
        let mut right = [0];
        TcpStream::from(stream).read_exact(&mut right).map_err(errno)?;
        if right == [1] { Ok(size) } else { Err(Errno::EIO) }
    }
}

/// What a file's name says: what it comes from, and its size.
pub fn describe(path: &Path) -> Option<(&'static str, u64)> {
    let (kind, size) = path.to_str()?.strip_prefix('/')?.split_once('-')?;
    let kinds = [
        "tcp", "unix", "file", "memfd", "pipe", "plain", "short", "memory", "merged",
    ];
    Some((
        kinds.into_iter().find(|known| *known == kind)?,
        size.parse().ok()?,
    ))
}

pub fn attr(kind: FileType, size: u64) -> FileAttr {
    attributes(kind, 0o755, size)
}

impl PathFilesystem for Frames {
    fn getattr(&self, path: &Path, _fh: Option<u64>) -> Result<FileAttr, Errno> {
        if path == Path::new("/") || path == Path::new("/dir") {
            return Ok(attr(FileType::Directory, 0));
        }
        if let Some((_, size)) = describe(path) {
            return Ok(attr(FileType::RegularFile, size));
        }
        let known = path.as_os_str().is_empty() || self.names.lock().unwrap().iter().any(|name| name == path);
        let size = self.world.written.lock().unwrap().len();
        let attr = attr(FileType::RegularFile, size as u64);
        known.then_some(attr).ok_or(Errno::ENOENT)
    }

    fn readdir(&self, path: &Path) -> Result<Vec<DirEntry>, Errno> {
        let names = self.names.lock().unwrap();
        let entry = |name: &PathBuf| {
            Some(DirEntry {
                name: name.strip_prefix(path).ok()?.as_os_str().to_owned(),
                kind: FileType::RegularFile,
            })
        };
        Ok(names
            .iter()
            .filter(|name| name.parent() == Some(path))
            .filter_map(entry)
            .collect())
    }

    fn read_buf(
        &self,
        path: &Path,
        _fh: u64,
        size: usize,
        offset: u64,
    ) -> Result<FuseBufVec<'static>, Errno> {
        self.bufs(path, size, offset)
    }

    fn check(&self, _path: &Path, bufs: &FuseBufVec<'static>, crcs: &[Option<u32>]) -> Result<(), Errno> {
        Self::judge(bufs, crcs)
    }

    fn withholds(&self, path: &Path, _fh: u64) -> bool {
        self.world.withholds.load(Ordering::Relaxed) && path == Path::new("/to-server")
    }

    fn write_buf(&self, path: &Path, _fh: u64, bufs: FuseBufVec<'_>, offset: u64) -> Result<usize, Errno> {
        if bufs.current().is_some_and(|buf| buf.flags.contains(WITHHELD)) {
            self.world.withheld.fetch_add(1, Ordering::Relaxed);
            let only = self.world.withholds.load(Ordering::Relaxed);
            assert!(
                !only || path == Path::new("/to-server"),
                "{path:?} was not asked for"
            );
        }
        match path.to_str() {
            Some("/to-memory" | "/to-file") => self.keep(path == Path::new("/to-file"), bufs, offset),
            _ => self.store(bufs, offset),
        }
    }

    fn create(&self, path: &Path, _mode: u32, _flags: OpenFlags, _caller: Caller) -> Result<u64, Errno> {
        self.names.lock().unwrap().push(path.into());
        Ok(7)
    }

    fn truncate(&self, _path: &Path, _fh: Option<u64>, size: u64) -> Result<(), Errno> {
        self.world.written.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        self.names.lock().unwrap().retain(|name| name != path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
        if !flags.is_empty() {
            return Err(Errno::EINVAL);
        }
        let mut names = self.names.lock().unwrap();
        names.retain(|name| name != to);
        names
            .iter_mut()
            .filter(|name| *name == from)
            .for_each(|name| *name = to.into());
        Ok(())
    }
}
