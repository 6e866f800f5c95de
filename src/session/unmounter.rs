// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ending a mount.

use std::io;

use nix::errno::Errno;

use crate::sys::mount::{MountError, detach, fusermount_unmount, unmount};
use crate::sys::mountinfo::{Location, MountId, Whereabouts};

/// What became of an attempt to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is not mounted any more.
    Unmounted,
    /// It is in use, and still mounted.
    Busy,
}

/// Unmounts one mount, and never another that came later at the same place.
#[derive(Clone, Copy, Debug)]
pub struct Unmounter {
    mount: MountId,
    privileged: bool,
}

impl Unmounter {
    /// For `mount`; without privilege by `fusermount3`.
    #[must_use]
    pub fn new(mount: MountId, privileged: bool) -> Self {
        Self { mount, privileged }
    }

    /// Whether it is still mounted in this mount namespace.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        !matches!(self.mount.find(), Ok(Whereabouts::Nowhere) | Err(_))
    }

    /// Unmounts, unless it is in use.
    pub fn unmount(&self) -> Result<Outcome, UnmountError> {
        let Some(location) = self.locate()? else {
            return Ok(Outcome::Unmounted);
        };
        let path = location.path.clone();
        // An open descriptor is a use.
        drop(location);
        let result = if self.privileged {
            unmount(&path).map_err(UnmountError::Kernel)
        } else {
            fusermount_unmount(&path, false).map_err(UnmountError::Fusermount)
        };
        match result {
            Ok(()) => Ok(Outcome::Unmounted),
            Err(UnmountError::Kernel(Errno::EBUSY)) => Ok(Outcome::Busy),
            Err(UnmountError::Fusermount(MountError::Fusermount(text)))
                if text.ends_with(Errno::EBUSY.desc()) =>
            {
                Ok(Outcome::Busy)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the mount off at once, if it is there; it ends with its last user.
    pub fn detach(&self) -> Result<(), UnmountError> {
        let Some(location) = self.locate()? else {
            return Ok(());
        };
        if self.privileged {
            detach(&location).map_err(UnmountError::Kernel)
        } else {
            fusermount_unmount(&location.path, true).map_err(UnmountError::Fusermount)
        }
    }

    /// Where it is, if it is mounted.
    fn locate(&self) -> Result<Option<Location>, UnmountError> {
        match self.mount.find()? {
            Whereabouts::At(location) => Ok(Some(location)),
            Whereabouts::Nowhere => Ok(None),
            Whereabouts::Covered => Err(UnmountError::Covered),
        }
    }
}

/// Why a mount could not be taken off.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// umount2(2) failed.
    #[error("{}", .0.desc())]
    Kernel(Errno),
    /// `fusermount3` failed.
    #[error(transparent)]
    Fusermount(MountError),
    /// It cannot be reached by its path.
    #[error("another file system is mounted over it")]
    Covered,
    /// The mount table or the path could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}
