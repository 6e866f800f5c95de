// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes, and the times in them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use serde::{Deserialize, Serialize};

use super::at_most;

const SECOND: u32 = 1_000_000_000;

/// A time as the system has it: seconds since 1970, and nanoseconds that come on top of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(i64, u32)", into = "(i64, u32)")]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Timestamp {
    /// This time, if it has fewer nanoseconds than a second.
    #[must_use]
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        (nanos < SECOND).then_some(Self { seconds, nanos })
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds on top of them.
    #[must_use]
    pub fn nanos(self) -> u32 {
        self.nanos
    }
}

impl TryFrom<(i64, u32)> for Timestamp {
    type Error = &'static str;

    fn try_from((seconds, nanos): (i64, u32)) -> Result<Self, &'static str> {
        Self::new(seconds, nanos).ok_or("a time with a second of nanoseconds or more")
    }
}

impl From<Timestamp> for (i64, u32) {
    fn from(time: Timestamp) -> Self {
        (time.seconds, time.nanos)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => (i64::try_from(since.as_secs()), since.subsec_nanos()),
            Err(error) => {
                let before = error.duration();
                let seconds = 0i64.checked_sub_unsigned(before.as_secs());
                match before.subsec_nanos() {
                    0 => (Ok(seconds.unwrap_or(i64::MIN)), 0),
                    nanos => (
                        Ok(seconds.and_then(|s| s.checked_sub(1)).unwrap_or(i64::MIN)),
                        SECOND - nanos,
                    ),
                }
            }
        };
        let seconds = seconds.unwrap_or(i64::MAX);
        Self { seconds, nanos }
    }
}

/// On Linux every one is a time of the system, too.
impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let second = match time.seconds < 0 {
            true => UNIX_EPOCH.checked_sub(whole),
            false => UNIX_EPOCH.checked_add(whole),
        };
        let time = second.and_then(|second| second.checked_add(Duration::from_nanos(time.nanos.into())));
        time.unwrap_or(UNIX_EPOCH)
    }
}

/// The time that SETATTR sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The server's, when it sets it.
    Now,
    /// This one.
    At(Timestamp),
}

/// Before 1970 fuser 0.18 subtracts the nanoseconds that it should add: this is the time that the kernel
/// sent, not the one that fuser makes of it.
impl From<TimeOrNow> for SetTime {
    fn from(time: TimeOrNow) -> Self {
        let time = match time {
            TimeOrNow::Now => return Self::Now,
            TimeOrNow::SpecificTime(time) => time,
        };
        let Err(before) = time.duration_since(UNIX_EPOCH) else {
            return Self::At(time.into());
        };
        let before = before.duration();
        let seconds = 0i64.checked_sub_unsigned(before.as_secs());
        Self::At(Timestamp {
            seconds: seconds.unwrap_or(i64::MIN),
            nanos: before.subsec_nanos(),
        })
    }
}

/// The time as fuser would give it to a file system; see above.
impl From<SetTime> for TimeOrNow {
    fn from(time: SetTime) -> Self {
        let time = match time {
            SetTime::Now => return Self::Now,
            SetTime::At(time) => time,
        };
        if time.seconds >= 0 {
            return Self::SpecificTime(time.into());
        }
        let before = Duration::new(time.seconds.unsigned_abs(), time.nanos);
        // Only in the earliest second of all can there be nothing before it.
        let earliest = SystemTime::from(Timestamp { nanos: 0, ..time });
        Self::SpecificTime(UNIX_EPOCH.checked_sub(before).unwrap_or(earliest))
    }
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum FileKind {
    NamedPipe,
    CharDevice,
    Directory,
    BlockDevice,
    RegularFile,
    Symlink,
    Socket,
}

macro_rules! same_kinds {
    ($($kind:ident)*) => {
        impl From<FileType> for FileKind {
            fn from(kind: FileType) -> Self {
                match kind {
                    $(FileType::$kind => Self::$kind,)*
                }
            }
        }

        impl From<FileKind> for FileType {
            fn from(kind: FileKind) -> Self {
                match kind {
                    $(FileKind::$kind => Self::$kind,)*
                }
            }
        }
    };
}

same_kinds!(NamedPipe CharDevice Directory BlockDevice RegularFile Symlink Socket);

/// The attributes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Type.
    pub kind: FileKind,
    /// Permissions, and the three bits above them.
    #[serde(deserialize_with = "at_most::<_, 0o7777>")]
    pub perm: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device, as the kernel's `new_encode_dev` packs it.
    pub rdev: u32,
    /// Bytes that are good to read at once.
    pub blksize: u32,
}

impl From<&FileAttr> for Attr {
    fn from(attr: &FileAttr) -> Self {
        Self {
            ino: attr.ino.0,
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime.into(),
            mtime: attr.mtime.into(),
            ctime: attr.ctime.into(),
            kind: attr.kind.into(),
            perm: u32::from(attr.perm) & 0o7777,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: attr.blksize,
        }
    }
}

impl From<Attr> for FileAttr {
    fn from(attr: Attr) -> Self {
        Self {
            ino: INodeNo(attr.ino),
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime.into(),
            mtime: attr.mtime.into(),
            ctime: attr.ctime.into(),
            crtime: UNIX_EPOCH,
            kind: attr.kind.into(),
            perm: (attr.perm & 0o7777) as u16,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: attr.blksize,
            flags: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_system_are_the_same_there_and_back() {
        for seconds in [i64::MIN, i64::MIN + 1, -5, -1, 0, 1, i64::MAX] {
            for nanos in [0, 1, 300_000_000, SECOND - 1] {
                let time = Timestamp { seconds, nanos };
                assert_eq!(Timestamp::from(SystemTime::from(time)), time);
            }
        }
        assert_eq!(Timestamp::new(0, SECOND), None);
    }

    #[test]
    fn a_time_to_set_is_what_the_kernel_sent_and_comes_back_as_fuser_gives_it() {
        let as_fuser_says = TimeOrNow::SpecificTime(UNIX_EPOCH - Duration::new(5, 300_000_000));
        let sent = SetTime::from(as_fuser_says);
        assert_eq!(sent, SetTime::At(Timestamp::new(-5, 300_000_000).unwrap()));
        for seconds in [i64::MIN + 1, -5, 0, i64::MAX] {
            for nanos in [0, 300_000_000] {
                let time = SetTime::At(Timestamp { seconds, nanos });
                assert_eq!(SetTime::from(TimeOrNow::from(time)), time);
            }
        }
        let earliest = SetTime::At(Timestamp::new(i64::MIN, 7).unwrap());
        let without_nanos = SetTime::At(Timestamp::new(i64::MIN, 0).unwrap());
        assert_eq!(SetTime::from(TimeOrNow::from(earliest)), without_nanos);
        assert_eq!(SetTime::from(TimeOrNow::from(SetTime::Now)), SetTime::Now);
    }
}
