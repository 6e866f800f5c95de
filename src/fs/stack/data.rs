// SPDX-License-Identifier: MIT OR Apache-2.0
//! Open files: what is done with their data.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FileType, FopenFlags, WriteFlags};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::Whence;

use super::namespace::component;
use super::table::{Inode, Node};
use super::{Entry, Result, Stack};
use crate::abi::NodeId;
use crate::ebpf::NodeIo;
use crate::fs::kernel::writes;
use crate::sys::at;
use crate::sys::creds::{Acting, Caller, set_umask};
use crate::sys::inode_flags::InodeFlags;

/// A regular file that is open.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) file: File,
    pub(super) writable: bool,
    pub(super) inode: Inode,
}

impl OpenFile {
    /// Reads, and hands `reply` the bytes: as many as were asked for, fewer only at the end of the file.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn read<R>(&self, at: u64, size: u32, reply: impl FnOnce(&[u8]) -> R) -> Result<R> {
        thread_local!(static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        let size = size as usize;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let mut done = 0;
            while done < size {
                match self.file.read_at(&mut buffer[done..size], at + done as u64) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(errno(&error)),
                }
            }
            Ok(reply(&buffer[..done]))
        })
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What the kernel is told about an open file.
#[derive(Debug)]
pub struct Opened {
    /// Its handle.
    pub fh: FileHandle,
    /// How it is cached.
    pub flags: FopenFlags,
    /// The file that reads and writes pass through to.
    pub backing: Option<Arc<BackingId>>,
}

/// The flags of an application's open(2) that the daemon's own descriptor takes over. Not among them:
/// `O_APPEND`, because pages that are written back must land where they belong, whoever has the file open (see
/// [`Stack::write`]); and `O_DIRECT`, which asks for aligned memory that we don't have. The kernel opens
/// a backing file with the application's own flags.
fn own_flags(flags: i32) -> OFlag {
    let kept = libc::O_ACCMODE | libc::O_SYNC | libc::O_NOATIME | libc::O_NONBLOCK | libc::O_TRUNC;
    OFlag::from_bits_retain(flags & kept)
}

fn offset(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Errno::EINVAL)
}

pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Stack {
    /// Opens a regular file. `register` makes a backing file of a descriptor.
    ///
    /// # Errors
    /// Those of open(2); `EINVAL` for anything but a regular file, which the kernel opens itself.
    pub fn open(
        &self,
        id: NodeId,
        flags: i32,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Opened> {
        if writes(flags) {
            self.writable()?;
        }
        let node = self.regular(id)?;
        let fd = at::reopen(&*node, own_flags(flags))?;
        Ok(self.opened(node, fd, flags, register))
    }

    fn regular(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.nodes.get(id)?;
        match node.kind {
            FileType::RegularFile => Ok(node),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Opens a regular file for reading, without a handle: for as long as this is held.
    ///
    /// # Errors
    /// Those of open(2); `EINVAL` for anything but a regular file.
    pub fn file_of(&self, id: NodeId) -> Result<Arc<OpenFile>> {
        let node = self.regular(id)?;
        Ok(Arc::new(OpenFile {
            file: File::from(at::reopen(&*node, OFlag::O_RDONLY)?),
            writable: false,
            inode: node.inode(),
        }))
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    /// Those of open(2). `ESTALE` if somebody else has made it since the kernel looked: then the kernel
    /// looks again, and checks permissions, which for a new file it had no reason to.
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        &self,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        caller: Caller,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<(Entry, Opened)> {
        self.writable()?;
        let dir = self.nodes.get(parent)?;
        let name = component(name)?;
        let fd = {
            let _acting = Acting::creating(caller)?;
            set_umask(umask)?;
            let mode = Mode::from_bits_truncate(mode);
            match at::create(&*dir, name, own_flags(flags), mode) {
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => return Err(Errno::ESTALE),
                result => result?,
            }
        };
        let entry = self.entry(at::reopen_node(&fd)?)?;
        let node = self.nodes.get(entry.node)?;
        Ok((entry, self.opened(node, fd, flags, register)))
    }

    fn opened(
        &self,
        node: Arc<Node>,
        fd: OwnedFd,
        flags: i32,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Opened {
        let backing = node.io.lock().open(|| {
            if !self.passthrough {
                return Err(io::ErrorKind::Unsupported.into());
            }
            // One of its own: it stays for as long as the node, and one for writing would keep others
            // from executing the file.
            at::reopen(&*node, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
                .map_err(io::Error::from)
                .and_then(|fd| register(fd.as_fd()))
                .inspect_err(|error| {
                    tracing::debug!(%error, nodeid = node.id.0, "no backing file: reads and writes come up");
                })
        });
        let mut reply = FopenFlags::empty();
        reply.set(FopenFlags::FOPEN_KEEP_CACHE, self.options.keep_cache);
        // FLUSH is for errors of writing.
        reply.set(FopenFlags::FOPEN_NOFLUSH, !writes(flags));
        let writable = matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR);
        let fh = self.files.insert(OpenFile {
            file: File::from(fd),
            writable,
            inode: node.inode(),
        });
        Opened {
            fh,
            flags: reply,
            backing,
        }
    }

    /// Whether opens of this type get a backing file.
    pub(super) fn passes_through(&self, kind: FileType) -> bool {
        self.passthrough && kind == FileType::RegularFile
    }

    /// What of a node of this type the kernel may do without us.
    pub(super) fn node_io(&self, kind: FileType) -> NodeIo {
        match kind {
            FileType::Directory => NodeIo::Listing,
            kind if self.passes_through(kind) => NodeIo::Passthrough,
            _ => NodeIo::Daemon,
        }
    }

    /// Reads; see [`OpenFile::read`].
    ///
    /// # Errors
    /// `EBADF` if the handle is none; those of pread(2).
    pub fn read<R>(&self, fh: FileHandle, at: u64, size: u32, reply: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.files.get(fh)?.read(at, size, reply)
    }

    /// Writes; tells how many bytes. `file_flags` are those that the file has now: one with `O_APPEND` is
    /// written at its real end, even if the kernel's idea of that is old. Pages that are written back
    /// (`FUSE_WRITE_CACHE`) come through any open file, and have a place of their own.
    ///
    /// # Errors
    /// `EBADF` if the handle is none; those of pwrite(2).
    pub fn write(
        &self,
        fh: FileHandle,
        at: u64,
        data: &[u8],
        flags: WriteFlags,
        file_flags: i32,
    ) -> Result<u32> {
        self.writable()?;
        let file = self.files.get(fh)?;
        let append = file_flags & libc::O_APPEND != 0 && !flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let result = if append {
                at::append(&file.file, rest)
            } else {
                file.file.write_at(rest, at + done as u64)
            };
            match result {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(errno(&error)),
            }
        }
        u32::try_from(done).map_err(|_| Errno::EINVAL)
    }

    /// A descriptor of the file was closed: what closing it says here, as on a network file system that
    /// is full.
    ///
    /// # Errors
    /// `EBADF` if the handle is none; those of close(2).
    pub fn flush(&self, fh: FileHandle) -> Result<()> {
        let file = self.files.get(fh)?;
        if !file.writable {
            return Ok(());
        }
        let copy = file.file.try_clone().map_err(|error| errno(&error))?;
        nix::unistd::close(copy.into_raw_fd())
    }

    /// An open file, for as long as this is held.
    ///
    /// # Errors
    /// `EBADF` if the handle is none.
    pub fn file(&self, fh: FileHandle) -> Result<Arc<OpenFile>> {
        self.files.get(fh)
    }

    /// Another open file description of an open file: for reading, and with `writes` for writing, too, if the file is
    /// open for that; whether it is.
    ///
    /// # Errors
    /// `EBADF` if the handle is none; those of open(2).
    pub fn open_again(&self, fh: FileHandle, writes: bool) -> Result<(OwnedFd, bool)> {
        let file = self.files.get(fh)?;
        let open = |access| at::reopen(&file.file, access | OFlag::O_NONBLOCK);
        if !(writes && file.writable) {
            return Ok((open(OFlag::O_RDONLY)?, false));
        }
        let opened = match open(OFlag::O_RDWR) {
            // Whoever may only write can.
            Err(Errno::EACCES) => open(OFlag::O_WRONLY),
            opened => opened,
        };
        Ok((opened?, true))
    }

    /// The last descriptor of an open file is gone.
    ///
    /// # Errors
    /// `EBADF` if the handle is none.
    pub fn release(&self, fh: FileHandle) -> Result<()> {
        self.files.remove(fh).map(drop)
    }

    /// Brings the data to the disk, and with `!data_only` the attributes.
    ///
    /// # Errors
    /// `EBADF` if the handle is none; those of fsync(2).
    pub fn fsync(&self, fh: FileHandle, data_only: bool) -> Result<()> {
        let file = self.files.get(fh)?;
        let result = if data_only {
            file.file.sync_data()
        } else {
            file.file.sync_all()
        };
        result.map_err(|error| errno(&error))
    }

    /// Allocates, punches or zeroes a range.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a mode that is unknown; those of fallocate(2).
    pub fn fallocate(&self, fh: FileHandle, at: u64, length: u64, mode: i32) -> Result<()> {
        self.writable()?;
        let file = self.files.get(fh)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        nix::fcntl::fallocate(&file.file, mode, offset(at)?, offset(length)?)
    }

    /// Finds data or a hole. All other ways of seeking are the kernel's.
    ///
    /// # Errors
    /// `EINVAL` for another `whence`; `ENXIO` past the end.
    pub fn lseek(&self, fh: FileHandle, at: i64, whence: i32) -> Result<i64> {
        let file = self.files.get(fh)?;
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Errno::EINVAL),
        };
        nix::unistd::lseek64(&file.file, at, whence)
    }

    /// Copies a range from one open file to another; tells how many bytes.
    ///
    /// # Errors
    /// `EBADF` if a handle is none; those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
        flags: u64,
    ) -> Result<u32> {
        self.writable()?;
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let (source, target) = (self.files.get(from.0)?, self.files.get(to.0)?);
        let (mut source_at, mut target_at) = (offset(from.1)?, offset(to.1)?);
        // The answer has 32 bits.
        let length = length.min(1 << 30) as usize;
        let copied = nix::fcntl::copy_file_range(
            &source.file,
            Some(&mut source_at),
            &target.file,
            Some(&mut target_at),
            length,
        )?;
        u32::try_from(copied).map_err(|_| Errno::EINVAL)
    }

    /// Runs an ioctl: those of inode flags, on regular files and directories.
    ///
    /// # Errors
    /// `ENOTTY` for any other: the daemon is root, and the caller may not be.
    pub fn ioctl(&self, id: NodeId, command: u32, input: &[u8]) -> Result<Vec<u8>> {
        let node = self.nodes.get(id)?;
        if !matches!(node.kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::ENOTTY);
        }
        let flags = InodeFlags::from_command(command).ok_or(Errno::ENOTTY)?;
        if flags.changes() {
            self.writable()?;
        }
        flags.run(at::reopen(&*node, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?, input)
    }
}
