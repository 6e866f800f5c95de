// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes: GETATTR, SETATTR, STATFS.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, TimeOrNow};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::statvfs::Statvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use super::table::{Node, file_type};
use super::{Result, Stack};
use crate::abi::NodeId;
use crate::sys::at::{self, Stat, Timestamp};

/// What SETATTR changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions; the type in it is ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeOrNow>,
    /// Last change of the data.
    pub mtime: Option<TimeOrNow>,
    /// The open file through which the size is set.
    pub fh: Option<FileHandle>,
}

impl Stack {
    /// The attributes of a node.
    ///
    /// # Errors
    /// `ESTALE` if there is no such node; what `statx` says.
    pub fn getattr(&self, id: NodeId) -> Result<FileAttr> {
        let node = self.nodes.get(id)?;
        let snapshot = self.snapshot();
        let attr = self.attr(&at::stat(&*node)?)?;
        if let Some((cache, at)) = snapshot {
            cache.publish_attr(id, &attr, self.node_io(attr.kind), at, self.options.validity);
        }
        Ok(attr)
    }

    /// A READ of a file with a backing file comes up only where the handler has no row of it, one that
    /// was evicted, say. Puts it back before the answer goes out: the next READ passes through.
    pub(super) fn read_came_up(&self, id: NodeId) {
        if self.options.cache.is_some() && self.passes_through(FileType::RegularFile) {
            // Publishing is a courtesy: whoever reads gets its answer all the same.
            let _attr = self.getattr(id);
        }
    }

    /// Changes attributes, and gives all of them. With nothing to change it is chown(-1, -1), which moves ctime.
    ///
    /// # Errors
    /// Those of chown, chmod, truncate and utimensat; what was changed before the error stays changed.
    pub fn setattr(&self, id: NodeId, set: &SetAttr) -> Result<FileAttr> {
        self.writable()?;
        let node = self.nodes.get(id)?;
        let path = at::proc_path(&*node);
        let nothing_else =
            set.mode.is_none() && set.size.is_none() && set.atime.is_none() && set.mtime.is_none();
        // Before the mode: chown clears the set-ID bits that the mode may have.
        if set.uid.is_some() || set.gid.is_some() || nothing_else {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            nix::unistd::fchownat(&*node, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if let Some(mode) = set.mode {
            let mode = Mode::from_bits_truncate(mode);
            nix::sys::stat::fchmodat(AT_FDCWD, &path, mode, FchmodatFlags::FollowSymlink)?;
        }
        if let Some(size) = set.size {
            self.truncate(&node, set.fh, size)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let (atime, mtime) = (to_timespec(set.atime), to_timespec(set.mtime));
            nix::sys::stat::utimensat(AT_FDCWD, &path, &atime, &mtime, UtimensatFlags::FollowSymlink)?;
        }
        self.attr(&at::stat(&*node)?)
    }

    fn truncate(&self, node: &Node, fh: Option<FileHandle>, size: u64) -> Result<()> {
        match node.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
        if let Some(fh) = fh {
            let file = self.files.get(fh)?;
            if file.writable {
                return nix::unistd::ftruncate(&file.file, size);
            }
        }
        let file = at::reopen(node, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
        nix::unistd::ftruncate(&file, size)
    }

    /// The file system that holds a node.
    ///
    /// # Errors
    /// `ESTALE` if there is no such node; what `fstatvfs` says.
    pub fn statfs(&self, id: NodeId) -> Result<Statvfs> {
        let node = self.nodes.get(id)?;
        nix::sys::statvfs::fstatvfs(node.as_fd())
    }

    /// Attributes as FUSE has them.
    pub(super) fn attr(&self, stat: &Stat) -> Result<FileAttr> {
        Ok(FileAttr {
            ino: INodeNo(self.numbers.number(stat.dev, stat.ino)),
            size: stat.size,
            blocks: stat.blocks,
            atime: to_system_time(stat.atime),
            mtime: to_system_time(stat.mtime),
            ctime: to_system_time(stat.ctime),
            crtime: UNIX_EPOCH,
            kind: file_type(stat.mode).ok_or(Errno::EIO)?,
            perm: (stat.mode & 0o7777) as u16,
            nlink: stat.nlink,
            uid: stat.uid,
            gid: stat.gid,
            rdev: encode_rdev(stat.rdev),
            blksize: stat.blksize,
            flags: 0,
        })
    }
}

fn to_system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let time = second.and_then(|second| second.checked_add(Duration::from_nanos(time.nsec.into())));
    // Only a time that no clock shows is out of range.
    time.unwrap_or(UNIX_EPOCH)
}

/// The time that the kernel sent. Before 1970 fuser 0.18 subtracts the nanoseconds that it should add; they
/// are taken from where it puts them. (It panics on the very earliest second, -2^63, before we are asked.)
fn to_timespec(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => TimeSpec::new(after.as_secs() as i64, i64::from(after.subsec_nanos())),
            Err(before) => {
                let before = before.duration();
                TimeSpec::new(-(before.as_secs() as i64), i64::from(before.subsec_nanos()))
            }
        },
    }
}

/// A device number as the kernel's `new_encode_dev` packs it: 12 bits major, 20 bits minor.
fn encode_rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The device number that `encode_rdev` packs, as mknod takes it.
pub(super) fn decode_rdev(rdev: u32) -> libc::dev_t {
    libc::makedev((rdev >> 8) & 0xfff, (rdev & 0xff) | (rdev >> 12) & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_packing() {
        for (major, minor) in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (1, 0x1_2345)] {
            let packed = encode_rdev((major, minor));
            assert_eq!(
                decode_rdev(packed),
                libc::makedev(major, minor),
                "{major}:{minor}"
            );
        }
    }

    #[test]
    fn times_before_1970_count_nanoseconds_forward() {
        let time = to_system_time(Timestamp {
            sec: -5,
            nsec: 300_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(time).unwrap(),
            Duration::from_millis(4_700)
        );
    }

    #[test]
    fn a_time_before_1970_is_what_the_kernel_sent_not_what_fuser_makes_of_it() {
        let as_fuser_says = UNIX_EPOCH - Duration::new(5, 300_000_000);
        let time = to_timespec(Some(TimeOrNow::SpecificTime(as_fuser_says)));
        assert_eq!((time.tv_sec(), time.tv_nsec()), (-5, 300_000_000));
    }

    #[test]
    fn times_out_of_range_do_not_panic() {
        to_system_time(Timestamp {
            sec: i64::MIN,
            nsec: 0,
        });
        to_system_time(Timestamp {
            sec: i64::MAX,
            nsec: 999_999_999,
        });
    }
}
