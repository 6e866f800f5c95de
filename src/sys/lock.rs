// SPDX-License-Identifier: MIT OR Apache-2.0
//! Advisory locks of open file descriptions. None of it waits.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// The last byte that a lock can have: that of the file, wherever it ends.
pub const LAST: u64 = i64::MAX as u64;

/// What kind of lock: `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
pub type Kind = i32;

/// A lock of a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// What kind.
    pub kind: Kind,
    /// Its first byte.
    pub start: u64,
    /// Its last byte, at most [`LAST`].
    pub end: u64,
}

impl Range {
    fn to_kernel(self) -> Result<libc::flock, Errno> {
        if self.start > self.end || self.end > LAST {
            return Err(Errno::EINVAL);
        }
        let length = match self.end {
            LAST => 0,
            end => end - self.start + 1,
        };
        Ok(libc::flock {
            l_type: self.kind as _,
            l_whence: libc::SEEK_SET as _,
            l_start: self.start.cast_signed(),
            l_len: length.cast_signed(),
            // As it has to be for locks of open file descriptions.
            l_pid: 0,
        })
    }
}

/// `F_OFD_SETLK`.
///
/// # Errors
/// `EAGAIN` if somebody is in the way; those of fcntl(2).
pub fn set_range(fd: impl AsFd, range: Range) -> Result<(), Errno> {
    let lock = range.to_kernel()?;
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(()),
        // POSIX allows it for the same.
        Err(Errno::EACCES) => Err(Errno::EAGAIN),
        Err(errno) => Err(errno),
    }
}

/// `F_OFD_GETLK`: a lock that is in the way of this one, and whether it is one of an open file description, too.
///
/// # Errors
/// Those of fcntl(2).
pub fn in_the_way(fd: impl AsFd, range: Range) -> Result<Option<(Range, bool)>, Errno> {
    let mut lock = range.to_kernel()?;
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = lock.l_start.cast_unsigned();
    let end = match lock.l_len {
        0 => LAST,
        length => start + length.cast_unsigned() - 1,
    };
    let range = Range {
        kind: lock.l_type.into(),
        start,
        end,
    };
    Ok(Some((range, lock.l_pid == -1)))
}

/// flock(2), of the whole file.
///
/// # Errors
/// `EAGAIN` if somebody is in the way; those of flock(2).
pub fn set_whole(fd: impl AsFd, kind: Kind) -> Result<(), Errno> {
    let operation = match kind {
        libc::F_RDLCK => libc::LOCK_SH,
        libc::F_WRLCK => libc::LOCK_EX,
        _ => libc::LOCK_UN,
    };
    // SAFETY: it takes two numbers, and touches no memory of ours.
    let done = unsafe { libc::flock(fd.as_fd().as_raw_fd(), operation | libc::LOCK_NB) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_locked_by_one_description_is_in_the_way_of_another() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (file.reopen().unwrap(), file.reopen().unwrap());
        let range = |kind, start, end| Range { kind, start, end };
        set_range(&one, range(libc::F_WRLCK, 10, 19)).unwrap();
        set_range(&one, range(libc::F_RDLCK, 30, LAST)).unwrap();
        assert_eq!(set_range(&two, range(libc::F_RDLCK, 19, 20)), Err(Errno::EAGAIN));
        assert_eq!(set_range(&two, range(libc::F_RDLCK, 20, 40)), Ok(()));
        let asked = range(libc::F_WRLCK, 0, LAST);
        let expected = range(libc::F_WRLCK, 10, 19);
        assert_eq!(in_the_way(&two, asked), Ok(Some((expected, true))));
        assert_eq!(
            in_the_way(&two, range(libc::F_WRLCK, 41, 50)),
            Ok(Some((range(libc::F_RDLCK, 30, LAST), true)))
        );
        assert_eq!(in_the_way(&two, range(libc::F_WRLCK, 20, 29)), Ok(None));
        assert_eq!(set_range(&two, range(libc::F_RDLCK, 5, 4)), Err(Errno::EINVAL));
        assert_eq!(
            set_range(&two, range(libc::F_RDLCK, 5, LAST + 1)),
            Err(Errno::EINVAL)
        );
        // The other kind knows nothing of these.
        set_whole(&two, libc::F_WRLCK).unwrap();
        assert_eq!(set_whole(&one, libc::F_RDLCK), Err(Errno::EAGAIN));
        set_whole(&two, libc::F_UNLCK).unwrap();
        set_whole(&one, libc::F_RDLCK).unwrap();
    }
}
