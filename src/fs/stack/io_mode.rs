// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the open files of one inode do their I/O: all through the page cache, or all on one backing file.
//!
//! The kernel refuses any mixture. While a file is open for cached I/O, a passthrough open of the same inode
//! ends in EIO, and all passthrough opens must name the same backing id (EBUSY). So the first open decides,
//! until the last one is released. The kernel ends its own use of a file before it sends RELEASE, so what is
//! counted here never lags behind.

use std::io;
use std::sync::Arc;

/// The mode that the opens of an inode share; `B` is the registered backing file.
#[derive(Debug)]
pub enum IoMode<B> {
    /// Not open.
    Closed,
    /// Reads and writes go through the page cache and up to the daemon.
    Cached {
        /// Opens not released yet.
        opens: usize,
    },
    /// Reads and writes go to the backing file.
    Passthrough {
        /// Opens not released yet.
        opens: usize,
        /// Withdrawn from the kernel when dropped.
        backing: Arc<B>,
    },
}

impl<B> IoMode<B> {
    /// Counts an open, and gives its backing file. `register` is asked once, by the first open; if it fails,
    /// I/O is cached.
    pub fn open(&mut self, register: impl FnOnce() -> io::Result<B>) -> Option<Arc<B>> {
        match self {
            Self::Closed => match register() {
                Ok(backing) => {
                    let backing = Arc::new(backing);
                    *self = Self::Passthrough {
                        opens: 1,
                        backing: Arc::clone(&backing),
                    };
                    Some(backing)
                }
                Err(_) => {
                    *self = Self::Cached { opens: 1 };
                    None
                }
            },
            Self::Cached { opens } => {
                *opens += 1;
                None
            }
            Self::Passthrough { opens, backing } => {
                *opens += 1;
                Some(Arc::clone(backing))
            }
        }
    }

    /// Counts a release; the last one lets go of the backing file.
    pub fn release(&mut self) {
        match self {
            Self::Cached { opens } | Self::Passthrough { opens, .. } if *opens > 1 => *opens -= 1,
            _ => *self = Self::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Result<u32> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn all_opens_share_the_first_ones_backing_file() {
        let mut io = IoMode::Closed;
        let first = io.open(|| Ok(7)).unwrap();
        let second = io.open(|| panic!("registered twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        io.release();
        assert!(Arc::ptr_eq(
            &first,
            &io.open(|| panic!("registered twice")).unwrap()
        ));
    }

    #[test]
    fn the_backing_file_goes_with_the_last_release() {
        let mut io = IoMode::Closed;
        let backing = io.open(|| Ok(7)).unwrap();
        io.open(refused);
        io.release();
        assert_eq!(Arc::strong_count(&backing), 2);
        io.release();
        assert_eq!(Arc::strong_count(&backing), 1);
        assert_eq!(*io.open(|| Ok(8)).unwrap(), 8);
    }

    #[test]
    fn nothing_passes_through_while_a_cached_open_lives() {
        let mut io = IoMode::Closed;
        assert!(io.open(refused).is_none());
        assert!(io.open(|| Ok(7)).is_none());
        io.release();
        assert!(io.open(|| Ok(7)).is_none());
        io.release();
        io.release();
        assert!(io.open(|| Ok(7)).is_some());
    }
}
