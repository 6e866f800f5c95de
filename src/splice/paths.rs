// SPDX-License-Identifier: MIT OR Apache-2.0
//! File systems that think in paths: the high-level API.

mod adaptor;
mod tree;

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, OpenFlags, RenameFlags};
use nix::errno::Errno;

pub use adaptor::Paths;

use super::buf::FuseBufVec;
use super::channel::Way;
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

/// A file system by path. Paths begin with `/`, which is the root, and have names of any bytes. What is not
/// implemented is ENOSYS.
///
/// The path of a file that was removed while it was open is empty: `fh` says which it is. No rename comes
/// between a path and the operation on it, except those with an `fh`: `read_buf`, `write_buf`, `release`.
#[allow(unused_variables)]
pub trait PathFilesystem: Send + Sync + 'static {
    /// The attributes of a path, or of an open file. `ino` is ignored.
    fn getattr(&self, path: &Path, fh: Option<u64>) -> Result<FileAttr>;

    /// The names in a directory, without `.` and `..`.
    fn readdir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        Err(Errno::ENOSYS)
    }

    /// Opens a file; gives its `fh`.
    fn open(&self, path: &Path, flags: OpenFlags) -> Result<u64> {
        Ok(0)
    }

    /// The last descriptor of an open file was closed.
    fn release(&self, path: &Path, fh: u64) {}

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

    /// Writes what was kept back.
    fn fsync(&self, path: &Path, fh: u64, datasync: bool) -> Result<()> {
        Ok(())
    }

    /// Makes a file and opens it; gives its `fh`. The umask is applied.
    fn create(&self, path: &Path, mode: u32, flags: OpenFlags) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    /// Sets the length of a file.
    fn truncate(&self, path: &Path, fh: Option<u64>, size: u64) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Removes a file.
    fn unlink(&self, path: &Path) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Makes a directory. The umask is applied.
    fn mkdir(&self, path: &Path, mode: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Removes a directory.
    fn rmdir(&self, path: &Path) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Renames; EINVAL of flags that it doesn't know.
    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
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
