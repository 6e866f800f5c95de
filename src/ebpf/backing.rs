// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backing files of nodes: READs that the module fills from a file, in whatever way the node is open.
//!
//! ```no_run
//! use extfuse::abi::NodeId;
//! use extfuse::ebpf::{Backing, BackingOptions, Snapshot};
//! # use std::{fs::File, os::fd::OwnedFd, sync::Arc};
//! # use extfuse::sys::device::Device;
//! # fn fetch(_: u64) {}
//! # fn example(device: &Arc<Device>, spool: &File, at: Snapshot) -> Result<(), Box<dyn std::error::Error>> {
//! // A spool: what has arrived is read in the kernel, the rest comes up.
//! let copy = BackingOptions { copy: true, ..BackingOptions::default() };
//! let backing = Backing::register(device, NodeId(7), spool, copy, 0..0, at)?;
//! for chunk in 0..16 {
//!     fetch(chunk);
//!     backing.extend(chunk << 20..(chunk + 1) << 20, at)?;
//! }
//! backing.withdraw(0..u64::MAX)?; // nobody reads from it any more; then invalidate the pages
//! # Ok(())
//! # }
//! ```

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use super::stamps::Snapshot;
use crate::abi::{self, BackingOp, NodeId};
use crate::sys::device::Device;

/// Why a backing file cannot be used. None is fatal: what is not filled comes up.
#[derive(Debug, Error)]
pub enum BackingError {
    /// Backing files need `CAP_SYS_ADMIN`, and a connection with `FUSE_PASSTHROUGH`.
    #[error("backing files need CAP_SYS_ADMIN, and passthrough negotiated at INIT")]
    Denied,
    /// Only regular files that are open for reading can be one; and ranges do not end before they start.
    #[error("not a range of a regular file that is open for reading: {0}")]
    Unsuitable(io::Error),
    /// The file is on this mount, or on a file system that is stacked as high.
    #[error("the file's own file system is stacked too high, or is this one")]
    Stacked,
    /// The node, or the copied data, has changed since the snapshot.
    #[error("it has changed since")]
    Stale,
    /// There are [`abi::BACKINGS_MAX`] registrations, or [`abi::BACKING_RANGES`] ranges, already.
    #[error("too many")]
    Full,
    /// The registration has ended: the node was forgotten, or has got another file.
    #[error("the node does not have this backing file any more")]
    Ended,
    /// The connection has ended.
    #[error("the connection has ended")]
    Disconnected,
    /// Anything else, as a file that could not be opened again.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for BackingError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::Denied,
            Some(libc::EBADF | libc::EISDIR | libc::EINVAL) => Self::Unsuitable(error),
            Some(libc::ELOOP) => Self::Stacked,
            Some(libc::ESTALE) => Self::Stale,
            Some(libc::ENOSPC) => Self::Full,
            Some(libc::ENOENT) => Self::Ended,
            Some(libc::ENOTCONN) => Self::Disconnected,
            _ => Self::Io(error),
        }
    }
}

/// What a backing file is to its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackingOptions {
    /// The node's generation, as LOOKUP was answered.
    pub generation: u64,
    /// It is a copy of the node's data. Its ranges end with every change of the data: by a WRITE, a
    /// truncation or an invalidation of this connection. Otherwise it is the node's own file, in which
    /// changes are made.
    pub copy: bool,
    /// It is used while no READ handler is attached, too.
    pub always: bool,
}

/// A registered backing file. Dropping it ends the registration.
#[derive(Debug)]
pub struct Backing {
    device: Arc<Device<OwnedFd>>,
    nodeid: NodeId,
    id: u64,
}

impl Backing {
    /// Makes `file` the backing file of a node, in place of the one it has, with `valid` as its first
    /// range; up to [`u64::MAX`] means up to the file's end. `at` was taken before it was known that the
    /// nodeid stands for this file, and before the data was asked for, if it is a copy.
    ///
    /// Descriptor and flags of `file` are its owner's to change afterwards: the kernel opens it anew.
    ///
    /// # Errors
    ///
    /// See [`BackingError`].
    pub fn register(
        device: &Arc<Device<OwnedFd>>,
        nodeid: NodeId,
        file: impl AsFd,
        options: BackingOptions,
        valid: Range<u64>,
        at: Snapshot,
    ) -> Result<Self, BackingError> {
        let mut flags = 0;
        if options.copy {
            flags |= abi::BACKING_COPY;
        }
        if options.always {
            flags |= abi::BACKING_ALWAYS;
        }
        let mut backing = abi::Backing {
            nodeid: nodeid.0,
            generation: options.generation,
            stamp: at.stamp().ok_or(BackingError::Stale)?,
            start: valid.start,
            end: valid.end,
            fd: file.as_fd().as_raw_fd(),
            op: BackingOp::EXTFUSE_BACKING_REGISTER.0,
            flags,
            ..abi::Backing::default()
        };
        device.backing(&mut backing)?;
        Ok(Self {
            device: Arc::clone(device),
            nodeid,
            id: backing.id,
        })
    }

    /// The node that it belongs to.
    #[must_use]
    pub fn nodeid(&self) -> NodeId {
        self.nodeid
    }

    /// These bytes are valid, too. `at` was taken before they were asked for. If a copy's data has
    /// changed since its other ranges were declared, those are dropped.
    ///
    /// # Errors
    ///
    /// [`BackingError::Stale`] if a copy's data has changed since `at`, [`BackingError::Full`],
    /// [`BackingError::Ended`].
    pub fn extend(&self, valid: Range<u64>, at: Snapshot) -> Result<(), BackingError> {
        let stamp = at.stamp().ok_or(BackingError::Stale)?;
        self.change(BackingOp::EXTFUSE_BACKING_EXTEND, valid, stamp)
    }

    /// These bytes are not valid any more. When it returns, no READ is answered from them, and they may
    /// be overwritten. Pages that were filled before are there, until they are invalidated.
    ///
    /// # Errors
    ///
    /// [`BackingError::Ended`]: nothing is answered from it in that case either.
    pub fn withdraw(&self, gone: Range<u64>) -> Result<(), BackingError> {
        self.change(BackingOp::EXTFUSE_BACKING_WITHDRAW, gone, 0)
    }

    fn change(&self, op: BackingOp, range: Range<u64>, stamp: u64) -> Result<(), BackingError> {
        let mut backing = abi::Backing {
            nodeid: self.nodeid.0,
            id: self.id,
            stamp,
            start: range.start,
            end: range.end,
            op: op.0,
            ..abi::Backing::default()
        };
        Ok(self.device.backing(&mut backing)?)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // It may have ended before: with its node, or its connection.
        let ended = self.change(BackingOp::EXTFUSE_BACKING_REMOVE, 0..0, 0);
        if let Err(error) = ended
            && !matches!(error, BackingError::Ended)
        {
            tracing::debug!(%error, nodeid = self.nodeid.0, "a backing file could not be taken back");
        }
    }
}
