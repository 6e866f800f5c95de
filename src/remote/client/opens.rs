// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that are open for reading here, and not on the server: it reads what it is asked for by the node, if it may
//! read any file. Opening and closing then wait for nobody. What needs an open file there (a lock, say) opens it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::FileHandle;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::epoch::OURS;

/// Those handles are ours, and no server's.
#[derive(Debug, Default)]
pub(super) struct Opens {
    last: AtomicU64,
    /// What those are on the server that it has heard of after all.
    there: Mutex<HashMap<u64, FileHandle>>,
}

impl Opens {
    /// A file that the server does not hear of.
    pub fn open(&self) -> FileHandle {
        // 2^63 of them no mount lives to see.
        FileHandle(OURS | self.last.fetch_add(1, Ordering::Relaxed))
    }

    /// The handle on the server; none if it has not heard of this file.
    pub fn there(&self, fh: FileHandle) -> Option<FileHandle> {
        match fh.0 & OURS {
            0 => Some(fh),
            _ => self.there.lock().get(&fh.0).copied(),
        }
    }

    /// The handle on the server, which is asked to `open` the file if it has to be. Of two who do that at the same
    /// time one is `spare`.
    pub fn open_there(
        &self,
        fh: FileHandle,
        open: impl FnOnce() -> Result<FileHandle, Errno>,
        spare: impl FnOnce(FileHandle),
    ) -> Result<FileHandle, Errno> {
        if let Some(there) = self.there(fh) {
            return Ok(there);
        }
        let opened = open()?;
        let there = *self.there.lock().entry(fh.0).or_insert(opened);
        if there != opened {
            spare(opened);
        }
        Ok(there)
    }

    /// Nobody has it open here any more. The handle on the server, if there is one to close.
    pub fn close(&self, fh: FileHandle) -> Option<FileHandle> {
        match fh.0 & OURS {
            0 => Some(fh),
            _ => self.there.lock().remove(&fh.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_opened_there_once_and_closed_once() {
        let opens = Opens::default();
        let (one, other) = (opens.open(), opens.open());
        assert_ne!(one, other);
        assert_eq!(opens.there(one), None);
        let mut spare = Vec::new();
        let first = opens.open_there(one, || Ok(FileHandle(7)), |fh| spare.push(fh));
        let again = opens.open_there(one, || unreachable!(), |_| unreachable!());
        assert_eq!((first, again), (Ok(FileHandle(7)), Ok(FileHandle(7))));
        assert_eq!(opens.there(one), Some(FileHandle(7)));
        assert_eq!(opens.there(other), None);
        assert_eq!(opens.close(one), Some(FileHandle(7)));
        assert_eq!((opens.close(one), opens.close(other)), (None, None));
        assert_eq!(spare, []);
    }

    #[test]
    fn of_two_who_open_it_there_at_the_same_time_one_is_closed() {
        let opens = Opens::default();
        let file = opens.open();
        let mut spare = Vec::new();
        let meanwhile = || {
            opens.open_there(file, || Ok(FileHandle(1)), |_| unreachable!())?;
            Ok(FileHandle(2))
        };
        let late = opens.open_there(file, meanwhile, |fh| spare.push(fh));
        assert_eq!((late, spare), (Ok(FileHandle(1)), vec![FileHandle(2)]));
    }

    #[test]
    fn what_cannot_be_opened_there_is_not() {
        let opens = Opens::default();
        let file = opens.open();
        let failed = opens.open_there(file, || Err(Errno::EACCES), |_| unreachable!());
        assert_eq!((failed, opens.there(file)), (Err(Errno::EACCES), None));
    }

    #[test]
    fn a_handle_of_the_servers_is_its_own() {
        let opens = Opens::default();
        let handle = FileHandle(5);
        assert_eq!(opens.there(handle), Some(handle));
        assert_eq!(opens.close(handle), Some(handle));
    }
}
