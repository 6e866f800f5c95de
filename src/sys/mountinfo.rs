// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is mounted where, from `/proc/self/mountinfo`.
//!
//! Nothing here asks the mounted file system, so that a daemon that hangs or is dead cannot hang
//! who looks: paths are opened with `O_PATH`, which crosses into a mount without a request to it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;

/// statmount(2), the same number on every architecture; libc does not have it.
const SYS_STATMOUNT: libc::c_long = 457;

/// The device number of a mounted file system (`st_dev`), unique while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dev {
    /// 0 for file systems without a block device, such as FUSE.
    pub major: u32,
    /// The number of the connection below `/sys/fs/fuse/connections`.
    pub minor: u32,
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Dev {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let parsed = text.split_once(':').and_then(|(major, minor)| {
            Some(Dev {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| malformed(text))
    }
}

/// One mount, told from every other that is, was or will be.
///
/// The table's ids and the device numbers of FUSE are given out again at once, lowest first: the
/// next mount may well have both. So the kernel's third number counts (6.8 and later), which is
/// never used twice; where it is not to be had, the first two have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    /// The id in `/proc/self/mountinfo`.
    pub id: u64,
    /// The device behind it.
    pub dev: Dev,
    /// The id that is never used again, if the kernel tells.
    pub unique: Option<u64>,
}

impl MountId {
    /// The mount that an open descriptor is in, without a request to its file system.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        // FUSE tells strangers only what needs no question at all: an empty mask.
        let plain = statx(fd, 0)?;
        if plain.stx_mask & libc::STATX_MNT_ID == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let unique = statx(fd, libc::STATX_MNT_ID_UNIQUE).ok();
        let unique = unique.filter(|stat| stat.stx_mask & libc::STATX_MNT_ID_UNIQUE != 0);
        Ok(Self {
            id: plain.stx_mnt_id,
            dev: Dev {
                major: plain.stx_dev_major,
                minor: plain.stx_dev_minor,
            },
            unique: unique.map(|stat| stat.stx_mnt_id),
        })
    }

    /// Where the mount is now.
    pub fn find(self) -> io::Result<Whereabouts> {
        if self.unique.is_some_and(is_gone) {
            return Ok(Whereabouts::Nowhere);
        }
        let entries = entries()?;
        let position = |id, dev| {
            entries
                .iter()
                .position(|entry| (entry.id, entry.dev) == (id, dev))
        };
        let Some(row) = position(self.id, self.dev) else {
            return Ok(Whereabouts::Nowhere);
        };
        let location = Location::of(&entries[row].mount_point)?;
        if location.id == self {
            return Ok(Whereabouts::At(location));
        }
        // What lies on top came later. Anything else is there because the mount of that row has gone
        // meanwhile, or is another one with the same numbers.
        Ok(match position(location.id.id, location.id.dev) {
            Some(other) if other > row => Whereabouts::Covered,
            _ => Whereabouts::Nowhere,
        })
    }
}

/// Where a mount is.
#[derive(Debug)]
pub enum Whereabouts {
    /// Not, or not any more, in this mount namespace.
    Nowhere,
    /// Here.
    At(Location),
    /// Below another mount, which hides it.
    Covered,
}

/// A row of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number, given out again when it is gone.
    pub id: u64,
    /// The device behind it.
    pub dev: Dev,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The type with its subtype, such as `fuse.sshfs`.
    pub fs_type: String,
    /// What the mount calls its source.
    pub source: OsString,
    /// Options of the file system, as it shows them itself.
    pub super_options: String,
}

impl MountEntry {
    /// Whether a FUSE daemon serves it, ours or another.
    #[must_use]
    pub fn is_fuse(&self) -> bool {
        self.is_ours()
            || matches!(self.fs_type.as_str(), "fuse" | "fuseblk")
            || self.fs_type.starts_with("fuse.")
    }

    /// Whether `extfuse` mounted it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        let module = self.fs_type == "extfuse" || self.fs_type.starts_with("extfuse.");
        module || self.fs_type == "fuse.extfuse"
    }

    /// The user who mounted it, for a FUSE file system.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        let mut options = self.super_options.split(',');
        options.find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        let mut fields = line.split(|byte| *byte == b' ');
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let id = text(fields.next()?).parse().ok()?;
        let dev = text(fields.nth(1)?).parse().ok()?;
        let mount_point = PathBuf::from(unescape(fields.nth(1)?));
        fields.by_ref().find(|field| *field == b"-")?;
        Some(Self {
            id,
            dev,
            mount_point,
            fs_type: text(unescape(fields.next()?).as_bytes()),
            source: unescape(fields.next()?),
            super_options: fields.next().map(text).unwrap_or_default(),
        })
    }
}

/// All mounts of this mount namespace, in the kernel's order: later ones lie on top.
pub fn entries() -> io::Result<Vec<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| MountEntry::parse(line).ok_or_else(|| malformed(&String::from_utf8_lossy(line))))
        .collect()
}

/// A path that was looked up once, without asking the file system mounted on it anything.
#[derive(Debug)]
pub struct Location {
    file: File,
    /// The path, absolute and without symbolic links.
    pub path: PathBuf,
    /// The mount that the path is in.
    pub id: MountId,
    /// Its row.
    pub mount: MountEntry,
}

impl Location {
    /// Looks `path` up; symbolic links are followed.
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)?;
        let id = MountId::of(file.as_fd())?;
        let path = std::fs::read_link(fd_path(&file))?;
        let mount = entries()?.into_iter().find(|entry| entry.id == id.id);
        let mount =
            mount.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its mount is not visible"))?;
        Ok(Self {
            file,
            path,
            id,
            mount,
        })
    }

    /// Whether the path is where its mount begins.
    #[must_use]
    pub fn is_mount_point(&self) -> bool {
        self.path == self.mount.mount_point
    }

    /// The path in `/proc` that leads exactly here, whatever is mounted on top meanwhile.
    #[must_use]
    pub fn proc_path(&self) -> PathBuf {
        fd_path(&self.file)
    }
}

impl AsFd for Location {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn fd_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn statx(fd: BorrowedFd<'_>, mask: libc::c_uint) -> io::Result<libc::statx> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string and the buffer has the size of the structure.
    let result = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, stat.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: every bit pattern is a valid statx, and it was zeroed first.
    Ok(unsafe { stat.assume_init() })
}

/// Whether the kernel says that there is no such mount in this namespace. It cannot say (before 6.8),
/// or will not: then the table has to do.
fn is_gone(unique: u64) -> bool {
    /// `struct mnt_id_req` of <linux/mount.h>, first version, and what fits into `struct statmount`.
    #[repr(C)]
    struct Request {
        size: u32,
        spare: u32,
        mnt_id: u64,
        param: u64,
    }
    let request = Request {
        size: 24,
        spare: 0,
        mnt_id: unique,
        param: 0,
    };
    let mut answer = [0_u64; 64];
    // SAFETY: the request has the size that it says, and the kernel writes at most as many bytes as
    // it is told that the answer has.
    let result = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            answer.as_mut_ptr(),
            size_of_val(&answer),
            0,
        )
    };
    Errno::result(result) == Err(Errno::ENOENT)
}

/// Undoes the kernel's `\ooo` for blanks, backslashes and `#`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("cannot make sense of {:?}", OsStr::new(text)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_escapes_and_optional_fields_is_read() {
        let line = b"73 27 0:45 / /mnt/a\\040b rw,nosuid shared:9 master:1 - fuse.extfuse /src\\134x rw,user_id=12,group_id=0";
        let entry = MountEntry::parse(line).unwrap();
        assert_eq!((entry.id, entry.dev), (73, Dev { major: 0, minor: 45 }));
        assert_eq!(entry.mount_point, Path::new("/mnt/a b"));
        assert_eq!(entry.source, OsStr::new("/src\\x"));
        assert_eq!(entry.owner(), Some(12));
        assert!(entry.is_ours() && entry.is_fuse());
    }

    #[test]
    fn other_fuse_mounts_are_not_ours() {
        let line = b"73 27 0:45 / /mnt rw - fuse.sshfs host: rw,user_id=0";
        let entry = MountEntry::parse(line).unwrap();
        assert!(entry.is_fuse() && !entry.is_ours());
        let plain = MountEntry::parse(b"73 27 0:45 / /mnt rw - fusectl none rw").unwrap();
        assert!(!plain.is_fuse());
    }

    #[test]
    fn a_short_row_is_refused() {
        assert_eq!(MountEntry::parse(b"73 27 0:45 / /mnt rw - fuse"), None);
        assert_eq!(MountEntry::parse(b""), None);
    }

    #[test]
    fn a_path_leads_to_its_mount_and_back() {
        let root = Location::of(Path::new("/")).unwrap();
        assert!(root.is_mount_point());
        let inside = Location::of(Path::new("/proc/self")).unwrap();
        assert!(!inside.is_mount_point());
        match inside.id.find().unwrap() {
            Whereabouts::At(proc) => assert_eq!(proc.path, Path::new("/proc")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_mount_with_the_same_numbers_is_not_taken_for_this_one() {
        let now = Location::of(Path::new("/proc")).unwrap().id;
        if now.unique.is_some() {
            let before = MountId {
                unique: Some(1),
                ..now
            };
            assert!(matches!(before.find().unwrap(), Whereabouts::Nowhere));
        }
        let gone = MountId { id: u64::MAX, ..now };
        assert!(matches!(gone.find().unwrap(), Whereabouts::Nowhere));
    }
}
