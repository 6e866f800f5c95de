// SPDX-License-Identifier: MIT OR Apache-2.0
//! File handles: numbers that the kernel gives back to us with every operation on an open file.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::FileHandle;
use nix::errno::Errno;
use parking_lot::RwLock;

/// Open things by handle. A handle is never used twice.
#[derive(Debug)]
pub struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    last: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self {
            open: RwLock::default(),
            last: AtomicU64::new(0),
        }
    }
}

impl<T> Handles<T> {
    /// A handle for `thing`.
    pub fn insert(&self, thing: T) -> FileHandle {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(handle, Arc::new(thing));
        FileHandle(handle)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.read().len()
    }

    /// What the handle stands for; `EBADF` if nothing.
    pub fn get(&self, handle: FileHandle) -> Result<Arc<T>, Errno> {
        self.open
            .read()
            .get(&handle.0)
            .map(Arc::clone)
            .ok_or(Errno::EBADF)
    }

    /// Ends a handle. Operations under way keep what they hold.
    pub fn remove(&self, handle: FileHandle) -> Result<Arc<T>, Errno> {
        self.open.write().remove(&handle.0).ok_or(Errno::EBADF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_handle_is_bad_and_not_used_again() {
        let handles = Handles::default();
        let first = handles.insert("a");
        assert_eq!(*handles.get(first).unwrap(), "a");
        assert_eq!(*handles.remove(first).unwrap(), "a");
        assert_eq!(handles.get(first), Err(Errno::EBADF));
        assert_eq!(handles.remove(first), Err(Errno::EBADF));
        assert_ne!(handles.insert("b"), first);
    }
}
