// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the open files of one inode do their I/O: all through the page cache, or all on one backing file.
//!
//! The kernel refuses any mixture. While a file is open for cached I/O, a passthrough open of the same inode
//! ends in EIO, and all passthrough opens must name the same backing id (EBUSY). And it may open a file as it
//! was opened before without telling us. So the first open decides for as long as the kernel knows the node.

use std::io;
use std::sync::Arc;

/// The mode that the opens of an inode share; `B` is the registered backing file.
#[derive(Debug)]
pub enum IoMode<B> {
    /// Never opened.
    Undecided,
    /// Reads and writes go through the page cache and up to the daemon.
    Cached,
    /// Reads and writes go to the backing file, which is withdrawn from the kernel when dropped.
    Passthrough(Arc<B>),
}

impl<B> IoMode<B> {
    /// The backing file of an open. `register` is asked once, by the first open; if it fails, I/O is cached.
    pub fn open(&mut self, register: impl FnOnce() -> io::Result<B>) -> Option<Arc<B>> {
        if let Self::Undecided = self {
            *self = register().map_or(Self::Cached, |backing| Self::Passthrough(Arc::new(backing)));
        }
        match self {
            Self::Passthrough(backing) => Some(Arc::clone(backing)),
            Self::Undecided | Self::Cached => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_opens_share_the_first_ones_backing_file() {
        let mut io = IoMode::Undecided;
        let first = io.open(|| Ok(7)).unwrap();
        let second = io.open(|| panic!("registered twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn the_backing_file_outlives_its_opens_and_goes_with_the_node() {
        let mut io = IoMode::Undecided;
        let backing = Arc::downgrade(&io.open(|| Ok(7)).unwrap());
        assert!(backing.upgrade().is_some());
        drop(io);
        assert!(backing.upgrade().is_none());
    }

    #[test]
    fn nothing_passes_through_once_an_open_was_cached() {
        let mut io = IoMode::Undecided;
        assert!(
            io.open(|| Err::<u32, _>(io::ErrorKind::PermissionDenied.into()))
                .is_none()
        );
        assert!(io.open(|| Ok(7)).is_none());
    }
}
