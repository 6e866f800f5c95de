// SPDX-License-Identifier: MIT OR Apache-2.0
//! File systems that think in paths: the high-level API.

mod adaptor;
mod served;
mod tree;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{AccessFlags, FileAttr, FileType, INodeNo, OpenFlags, RenameFlags, TimeOrNow};
use nix::errno::Errno;

pub use served::Paths;

use super::answer::Way;
use super::buf::FuseBufVec;
use super::mount::{MountOptions, Mounted, mount};
use crate::session::SessionError;

/// What an operation gives, or the error that the application gets.
pub type Result<T> = std::result::Result<T, Errno>;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name; any bytes but `/` and NUL.
    pub name: OsString,
    /// What it is a name of.
    pub kind: FileType,
}

/// Who asks. The kernel has checked permissions already; what is made belongs to the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process; 0 where it can't be seen from here.
    pub pid: u32,
}

/// What statvfs(3) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Size of the file system, in units of `frsize`.
    pub blocks: u64,
    /// How many of these are free.
    pub bfree: u64,
    /// How many for users without privilege.
    pub bavail: u64,
    /// How many files there can be.
    pub files: u64,
    /// How many more.
    pub ffree: u64,
    /// How many bytes to read and write at a time.
    pub bsize: u32,
    /// The longest name, in bytes.
    pub namelen: u32,
    /// Bytes of a block.
    pub frsize: u32,
}

impl Default for StatFs {
    /// Of a file system that does not know: no blocks, names of up to 255 bytes.
    fn default() -> Self {
        Self {
            blocks: 0,
            bfree: 0,
            bavail: 0,
            files: 0,
            ffree: 0,
            bsize: 512,
            namelen: 255,
            frsize: 512,
        }
    }
}

/// A file system by path: the `struct fuse_operations` of libfuse. Paths begin with `/`, which is the root,
/// and have names of any bytes.
///
/// What is not implemented is ENOSYS, unless it says otherwise here. Of `access`, `flush`, `fsync`,
/// `fsyncdir`, `lseek`, `fallocate`, `copy_file_range` and the xattrs the kernel remembers that, doesn't ask
/// again, and does without as well as it can: all is permitted, nothing is kept back, there are no holes;
/// EOPNOTSUPP to the application for the others. Locks are the kernel's own.
///
/// **Removed and still open.** The path of such a file is empty: `fh` says which it is. Where the kernel
/// doesn't say which of its open files is meant, it is any of those. Xattrs, which have no `fh`, are ESTALE.
///
/// **Renamed and still open.** Operations get the path that the file has now. No rename comes between a path
/// and the operation on it, except those on the data of an open file: `read_buf`, `write_buf`, `flush`,
/// `fsync`, `release`, `lseek`, `fallocate` and `copy_file_range`.
///
/// **Hard links.** A file has a path of those that are left. Links made here are one file to the kernel, with
/// one page cache; so are others whose attributes say the same `ino`, not 0, and more than one `nlink`.
#[allow(unused_variables)]
pub trait PathFilesystem: Send + Sync + 'static {
    /// The connection was made; nothing else has been asked yet.
    fn init(&mut self) {}

    /// The file system was unmounted.
    fn destroy(&mut self) {}

    /// The attributes of a path, or of an open file. Of `ino` see above; it is not shown.
    fn getattr(&self, path: &Path, fh: Option<u64>) -> Result<FileAttr>;

    /// What a symbolic link says.
    fn readlink(&self, path: &Path) -> Result<PathBuf> {
        Err(Errno::ENOSYS)
    }

    /// Makes a file, FIFO, socket or device; `mode` has its type, the umask is applied.
    fn mknod(&self, path: &Path, mode: u32, rdev: u32, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Makes a directory. The umask is applied.
    fn mkdir(&self, path: &Path, mode: u32, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Removes a file.
    fn unlink(&self, path: &Path) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Removes a directory.
    fn rmdir(&self, path: &Path) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Makes a symbolic link at `path` that says `target`.
    fn symlink(&self, target: &Path, path: &Path, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Renames; EINVAL of flags that it doesn't know.
    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Gives a file one more name.
    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Sets the permissions.
    fn chmod(&self, path: &Path, fh: Option<u64>, mode: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Sets owner and group, those that are given.
    fn chown(&self, path: &Path, fh: Option<u64>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Sets the length of a file.
    fn truncate(&self, path: &Path, fh: Option<u64>, size: u64) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Sets the times, those that are given.
    fn utimens(
        &self,
        path: &Path,
        fh: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Opens a file; gives its `fh`: 0, if it isn't implemented.
    fn open(&self, path: &Path, flags: OpenFlags) -> Result<u64> {
        Ok(0)
    }

    /// Makes a file and opens it; gives its `fh`. The umask is applied.
    fn create(&self, path: &Path, mode: u32, flags: OpenFlags, caller: Caller) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    /// Whether the payloads of WRITEs by this open file are to stay in the kernel, for
    /// [`drain`](super::drain()) to send them from there; asked after each `open` and `create`. Where the
    /// module isn't there they come in memory: `write_buf` gets the same bytes either way.
    /// [`MountOptions::withhold`] is for all files of a mount.
    fn withholds(&self, path: &Path, fh: u64) -> bool {
        false
    }

    /// Says where `size` bytes from `offset` on are. A vector of fewer is the end of the file, so is a file
    /// at its end. Streams are read as soon as this returns: who asks for a frame here keeps the stream to
    /// itself until the vector is dropped.
    fn read_buf(&self, path: &Path, fh: u64, size: usize, offset: u64) -> Result<FuseBufVec<'static>> {
        Err(Errno::ENOSYS)
    }

    /// Whether the application may see the payload. Header and footer of each section have arrived, and the
    /// CRC32C of each buffer's payload, if [`PathOptions::crc`] is set.
    ///
    /// A section's memory may be longer than header and footer: what is behind them is the file system's own,
    /// say what the header is to be.
    ///
    /// It is not asked where a source failed. A stream that did is shut down.
    fn check(&self, path: &Path, bufs: &FuseBufVec<'static>, crcs: &[Option<u32>]) -> Result<()> {
        Ok(())
    }

    /// Takes a payload, with [`drain`](super::drain()); gives how much of it.
    fn write_buf(&self, path: &Path, fh: u64, bufs: FuseBufVec<'_>, offset: u64) -> Result<usize> {
        Err(Errno::ENOSYS)
    }

    /// A descriptor was closed: once for each, where `release` comes once for each open. What it says is what
    /// close(2) gives.
    fn flush(&self, path: &Path, fh: u64) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The last descriptor of an open file was closed.
    fn release(&self, path: &Path, fh: u64) {}

    /// Writes what was kept back.
    fn fsync(&self, path: &Path, fh: u64, datasync: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Opens a directory, if it may be.
    fn opendir(&self, path: &Path) -> Result<()> {
        Ok(())
    }

    /// The names in a directory, without `.` and `..`.
    fn readdir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        Err(Errno::ENOSYS)
    }

    /// Writes what was kept back of a directory.
    fn fsyncdir(&self, path: &Path, datasync: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The size of the file system: [`StatFs::default`], if it isn't implemented.
    fn statfs(&self, path: &Path) -> Result<StatFs> {
        Ok(StatFs::default())
    }

    /// Sets an attribute. `flags` are those of setxattr(2): EEXIST and ENODATA are told here.
    fn setxattr(&self, path: &Path, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The value of an attribute; ENODATA without.
    fn getxattr(&self, path: &Path, name: &OsStr) -> Result<Vec<u8>> {
        Err(Errno::ENOSYS)
    }

    /// The names of all attributes.
    fn listxattr(&self, path: &Path) -> Result<Vec<OsString>> {
        Err(Errno::ENOSYS)
    }

    /// Removes an attribute; ENODATA without.
    fn removexattr(&self, path: &Path, name: &OsStr) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// access(2). Not asked on mounts made here: the kernel checks permissions by the attributes.
    fn access(&self, path: &Path, mask: AccessFlags, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// fallocate(2), `mode` is its.
    fn fallocate(&self, path: &Path, fh: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Where data (`SEEK_DATA`) or a hole (`SEEK_HOLE`) begins, from `offset` on.
    fn lseek(&self, path: &Path, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    /// Copies from a file (path, `fh` and offset) to another; gives how much.
    fn copy_file_range(&self, from: (&Path, u64, u64), to: (&Path, u64, u64), size: usize) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
}

/// Attributes of a file or directory of nobody's in particular: root's, from 1970.
#[must_use]
pub fn attributes(kind: FileType, perm: u16, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// How a [`PathFilesystem`] is served.
#[derive(Clone, Copy, Debug)]
pub struct PathOptions {
    /// How payload gets to the kernel.
    pub way: Way,
    /// Whether [`PathFilesystem::check`] wants checksums.
    pub crc: bool,
    /// How long the kernel may take names and attributes for true.
    pub ttl: Duration,
}

impl Default for PathOptions {
    /// By size, without checksums, for a second.
    fn default() -> Self {
        Self {
            way: Way::Auto,
            crc: false,
            ttl: Duration::from_secs(1),
        }
    }
}

/// Mounts a file system by path: by extfuse where that is loaded, else by stock FUSE. It waits for
/// [`Mounted::serve`].
///
/// # Errors
///
/// See [`SessionError`]; nothing is mounted then.
pub fn serve<F: PathFilesystem>(
    fs: F,
    mountpoint: impl AsRef<Path>,
    options: &MountOptions,
    paths: PathOptions,
) -> std::result::Result<Mounted<Paths<F>>, SessionError> {
    let mounted = mount(mountpoint, options, |channel| Paths::new(fs, channel, paths))?;
    // SAFETY: `Paths` answers each request before its method returns, keeps no reply and takes nothing else
    // of fuser's; `F` gets nothing of it.
    Ok(unsafe { mounted.keeps_no_reply() })
}
