// SPDX-License-Identifier: MIT OR Apache-2.0
//! Open directories.
//!
//! Positions are the source file system's own (`d_off`), so a listing goes on where it stopped whatever was
//! made or removed meanwhile, seekdir(3) works, and nothing is kept but one buffer.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileHandle, FileType, FopenFlags};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Whence;
use parking_lot::Mutex;

use super::table::file_type;
use super::{Opened, Result, Stack};
use crate::abi::NodeId;
use crate::sys::at;

/// One entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Its inode number, as stat shows it.
    pub ino: u64,
    /// Where the listing goes on after it.
    pub next: u64,
    /// Its type.
    pub kind: FileType,
    /// Its name.
    pub name: &'a OsStr,
}

/// A directory that is open.
#[derive(Debug)]
pub(super) struct OpenDir {
    fd: OwnedFd,
    /// Device of the directory, which its entries are on.
    dev: (u32, u32),
    /// Where reading stands; a directory may be read by several threads at once, one after the other.
    stream: Mutex<Stream>,
}

const BUFFER: usize = 32 * 1024;

/// Entries that the file system has given and nobody has taken.
#[derive(Debug, Default)]
struct Stream {
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
    /// The position of the first one not taken.
    next: u64,
}

/// A `struct linux_dirent64`: d_ino, d_off, d_reclen, d_type, d_name.
#[derive(Clone, Copy)]
struct RawEntry<'a> {
    ino: u64,
    next: u64,
    kind: u8,
    name: &'a OsStr,
    length: usize,
}

fn parse(bytes: &[u8]) -> Option<RawEntry<'_>> {
    let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = bytes.get(19..length)?;
    let end = name.iter().position(|&byte| byte == 0)?;
    Some(RawEntry {
        ino: word(0)?,
        next: word(8)?,
        kind: bytes[18],
        name: OsStr::from_bytes(&name[..end]),
        length,
    })
}

impl Stack {
    /// Opens a directory.
    ///
    /// # Errors
    /// `ENOTDIR` if it is none; those of open(2).
    pub fn opendir(&self, id: NodeId) -> Result<Opened> {
        let node = self.nodes.get(id)?;
        if node.kind != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        let fd = at::reopen(&*node, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let dev = at::stat(&fd)?.dev;
        let fh = self.dirs.insert(OpenDir {
            fd,
            dev,
            stream: Mutex::default(),
        });
        let mut flags = FopenFlags::empty();
        flags.set(
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            self.options.keep_cache,
        );
        Ok(Opened {
            fh,
            flags,
            backing: None,
        })
    }

    /// Lists a directory from `position` on (0 is the beginning), until `full` says that it has no room for
    /// an entry: that one comes first the next time.
    ///
    /// # Errors
    /// `EBADF` if the handle is none; `EINVAL` for a position that is none.
    pub fn readdir(
        &self,
        fh: FileHandle,
        position: u64,
        mut full: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let dir = self.dirs.get(fh)?;
        let mut stream = dir.stream.lock();
        // From the beginning means anew: what is buffered may be gone.
        if position == 0 || position != stream.next {
            let offset = i64::try_from(position).map_err(|_| Errno::EINVAL)?;
            nix::unistd::lseek64(&dir.fd, offset, Whence::SeekSet)?;
            (stream.filled, stream.taken, stream.next) = (0, 0, position);
        }
        stream.buffer.resize(BUFFER, 0);
        let mut any = false;
        loop {
            if stream.taken == stream.filled {
                match at::getdents(&dir.fd, &mut stream.buffer) {
                    Ok(0) => return Ok(()),
                    Ok(n) => (stream.filled, stream.taken) = (n, 0),
                    // What has been listed is good; the error will be there again.
                    Err(_) if any => return Ok(()),
                    Err(errno) => return Err(errno),
                }
            }
            let raw = parse(&stream.buffer[stream.taken..stream.filled]).ok_or(Errno::EIO)?;
            let kind = match file_type(u32::from(raw.kind) << 12) {
                Some(kind) => Some(kind),
                // A file system without types, or a whiteout: ask.
                None => at::stat_name(&dir.fd, raw.name)
                    .ok()
                    .and_then(|stat| file_type(stat.mode)),
            };
            // One that could not be asked has gone.
            if let Some(kind) = kind {
                let ino = self.numbers.number(dir.dev, raw.ino);
                if full(DirEntry {
                    ino,
                    next: raw.next,
                    kind,
                    name: raw.name,
                }) {
                    return Ok(());
                }
                any = true;
            }
            let (length, next) = (raw.length, raw.next);
            stream.taken += length;
            stream.next = next;
        }
    }

    /// Ends a listing.
    ///
    /// # Errors
    /// `EBADF` if the handle is none.
    pub fn releasedir(&self, fh: FileHandle) -> Result<()> {
        self.dirs.remove(fh).map(drop)
    }

    /// Brings a directory to the disk.
    ///
    /// # Errors
    /// `EBADF` if the handle is none; those of fsync(2).
    pub fn fsyncdir(&self, fh: FileHandle, data_only: bool) -> Result<()> {
        let dir = self.dirs.get(fh)?;
        if data_only {
            nix::unistd::fdatasync(&dir.fd)
        } else {
            nix::unistd::fsync(&dir.fd)
        }
    }
}
