// SPDX-License-Identifier: MIT OR Apache-2.0
//! Versions of files: numbers that are another one when a file's data may be another.
//!
//! A file is another one than before if its time of change is, or its size. That misses a change within one tick of
//! the clock after one that was seen: so a file has no version while that may still come.

use std::hash::Hasher;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use siphasher::sip::SipHasher24;

use crate::remote::wire::message::Attr;
use crate::sys::at::Stat;

/// How long ago a file was changed that has a version: longer than two ticks of any file system's time stamps.
const SETTLED: Duration = Duration::from_secs(3);

const NANOS: i128 = 1_000_000_000;

/// The version of a file that has these attributes `now`; 0: none.
pub fn version(attr: &Attr, now: SystemTime) -> u64 {
    let times = [attr.ctime, attr.mtime].map(|time| (time.seconds(), time.nanos()));
    made_of(attr.ino, attr.size, times, now)
}

/// The same of one that was looked at here. It is another number where the inode's is told as another one.
pub fn version_of(seen: &Stat, now: SystemTime) -> u64 {
    let times = [seen.ctime, seen.mtime].map(|time| (time.sec, time.nsec));
    made_of(seen.ino, seen.size, times, now)
}

/// Times in seconds since 1970, and nanoseconds on top of them.
fn made_of(ino: u64, size: u64, times: [(i64, u32); 2], now: SystemTime) -> u64 {
    let changed = times.into_iter().max().unwrap_or_default();
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = i128::from(now.as_secs()) * NANOS + i128::from(now.subsec_nanos())
        - (i128::from(changed.0) * NANOS + i128::from(changed.1));
    if age < SETTLED.as_nanos().cast_signed() {
        return 0;
    }
    let mut hasher = SipHasher24::new();
    hasher.write_u64(ino);
    hasher.write_u64(size);
    for (seconds, nanos) in times {
        hasher.write_i64(seconds);
        hasher.write_u32(nanos);
    }
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::wire::message::{FileKind, Timestamp};

    fn attr(ctime: i64) -> Attr {
        let time = Timestamp::new(ctime, 7).unwrap();
        Attr {
            ino: 5,
            size: 6,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
            kind: FileKind::RegularFile,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_just_changed_has_none() {
        assert_eq!(version(&attr(100), at(99)), 0);
        assert_eq!(version(&attr(100), at(103)), 0);
        assert_ne!(version(&attr(100), at(104)), 0);
        let touched = Attr {
            mtime: Timestamp::new(103, 0).unwrap(),
            ..attr(100)
        };
        assert_eq!(version(&touched, at(104)), 0);
    }

    #[test]
    fn it_is_another_one_for_another_file_size_or_time() {
        let base = attr(100);
        let same = Attr {
            atime: Timestamp::new(90, 0).unwrap(),
            perm: 0o600,
            ..base
        };
        assert_eq!(version(&base, at(200)), version(&same, at(300)));
        for other in [
            Attr { ino: 4, ..base },
            Attr { size: 7, ..base },
            Attr {
                ctime: Timestamp::new(100, 8).unwrap(),
                ..base
            },
            Attr {
                mtime: Timestamp::new(99, 7).unwrap(),
                ..base
            },
        ] {
            assert_ne!(version(&base, at(200)), version(&other, at(200)), "{other:?}");
        }
    }
}
