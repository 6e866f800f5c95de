// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls relative to a held descriptor.
//!
//! A name is always one component, looked up in a directory that is held open; anything else is done
//! on the descriptor itself. So no path is ever walked twice, and nobody can swap a component.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

/// A point in time as the kernel keeps it: seconds since 1970, which may be negative, and nanoseconds
/// after that second, 0 to 999 999 999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

/// What `statx(2)` tells about an inode.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device that holds the inode, (major, minor).
    pub dev: (u32, u32),
    /// Mount through which it was reached: one inode can be mounted in several places.
    pub mount: u64,
    /// Inode number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that a device node stands for, (major, minor).
    pub rdev: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Allocated, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// The attributes of the inode behind `fd`, which may be an `O_PATH` descriptor.
pub fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    statx(fd.as_fd(), c"", libc::AT_EMPTY_PATH)
}

/// The attributes of `name` in `dir`, of a symbolic link itself.
pub fn stat_name(dir: impl AsFd, name: &OsStr) -> Result<Stat, Errno> {
    use nix::NixPath;
    name.with_nix_path(|name| {
        statx(
            dir.as_fd(),
            name,
            libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT,
        )
    })?
}

fn statx(dir: BorrowedFd<'_>, name: &std::ffi::CStr, flags: i32) -> Result<Stat, Errno> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    let mut buf = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` ends with a NUL, and `buf` is as large as the kernel writes.
    let rc = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, buf.as_mut_ptr()) };
    Errno::result(rc)?;
    // SAFETY: zeroed, then filled by the kernel; all fields are integers.
    let st = unsafe { buf.assume_init() };
    let time = |t: libc::statx_timestamp| Timestamp {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
    };
    Ok(Stat {
        dev: (st.stx_dev_major, st.stx_dev_minor),
        mount: st.stx_mnt_id,
        ino: st.stx_ino,
        mode: u32::from(st.stx_mode),
        nlink: st.stx_nlink,
        uid: st.stx_uid,
        gid: st.stx_gid,
        rdev: (st.stx_rdev_major, st.stx_rdev_minor),
        size: st.stx_size,
        blocks: st.stx_blocks,
        blksize: st.stx_blksize,
        atime: time(st.stx_atime),
        mtime: time(st.stx_mtime),
        ctime: time(st.stx_ctime),
    })
}

/// An `O_PATH` descriptor of `name` in `dir`, of a symbolic link itself.
pub fn open_node(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH);
    nix::fcntl::openat2(dir, name, how)
}

/// Makes a regular file that was not there and opens it. `EEXIST` if anything has that name.
pub fn create(dir: impl AsFd, name: &OsStr, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH);
    nix::fcntl::openat2(dir, name, how)
}

/// Where /proc shows `fd`: a path for the calls that take no descriptor. It leads to the very inode,
/// even of a symbolic link or of an unlinked file.
pub fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Opens the inode behind an `O_PATH` descriptor once more, with other flags.
pub fn reopen(fd: impl AsFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = flags.difference(OFlag::O_NOFOLLOW) | OFlag::O_CLOEXEC;
    nix::fcntl::open(&proc_path(fd), how, Mode::empty())
}

/// Another `O_PATH` descriptor of the inode behind `fd`.
pub fn reopen_node(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    reopen(fd, OFlag::O_PATH)
}

/// Reads directory entries (`struct linux_dirent64`) into `buf`; 0 at the end.
pub fn getdents(dir: impl AsFd, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            dir.as_fd().as_raw_fd(),
            buf.as_mut_ptr(),
            buf.len(),
        )
    };
    Errno::result(rc).map(|n| n as usize)
}

/// Writes at the end of the file, wherever that is now, as a descriptor with `O_APPEND` does.
pub fn append(file: impl AsFd, data: &[u8]) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: one iovec over `data`, which the call only reads.
    let rc = unsafe { libc::pwritev2(file.as_fd().as_raw_fd(), &iov, 1, 0, libc::RWF_APPEND) };
    Ok(Errno::result(rc)? as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, symlink};

    #[test]
    fn a_node_of_a_symbolic_link_is_the_link_itself() {
        let dir = tempfile::tempdir().unwrap();
        symlink("nowhere", dir.path().join("link")).unwrap();
        let held = fs::File::open(dir.path()).unwrap();
        let node = open_node(&held, OsStr::new("link")).unwrap();
        assert_eq!(stat(&node).unwrap().mode & libc::S_IFMT, libc::S_IFLNK);
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = fs::File::open(dir.path()).unwrap();
        assert_eq!(open_node(&held, OsStr::new("..")).unwrap_err(), Errno::EXDEV);
        assert_eq!(open_node(&held, OsStr::new("/etc")).unwrap_err(), Errno::EXDEV);
    }

    #[test]
    fn an_unlinked_file_is_reopened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "text").unwrap();
        let held = fs::File::open(dir.path()).unwrap();
        let node = open_node(&held, OsStr::new("f")).unwrap();
        fs::remove_file(dir.path().join("f")).unwrap();
        let file = fs::File::from(reopen(&node, OFlag::O_RDWR).unwrap());
        assert_eq!(append(&file, b"more").unwrap(), 4);
        let mut buf = [0; 8];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"textmore");
    }
}
