// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounting a [`fuser::Filesystem`] of anybody's.
//!
//! The mount call is all that changes: through the module the kernel keeps what the file system answers, for
//! as long as it says, and, unlike with stock FUSE, only until the next change through the mount. What
//! changes elsewhere the file system takes back through its [`Kernel`], with a few atomic operations and no
//! system call. `docs/authors.md` has what that gains, and when not to do it.
//!
//! ```no_run
//! use extfuse::ebpf::Validity;
//! use extfuse::{Kernel, MountOptions};
//! # struct Mine(Kernel);
//! # impl Mine { fn over(kernel: Kernel) -> Self { Self(kernel) } }
//! # impl fuser::Filesystem for Mine {}
//!
//! let options = MountOptions {
//!     valid: Some(Validity::UntilChanged), // it is told of every change
//!     opens: true,                         // nobody counts opens
//!     ..MountOptions::default()
//! };
//! let session = extfuse::mount_with("/mnt", &options, Mine::over)?;
//! session.serve()?;
//! # Ok::<(), extfuse::session::SessionError>(())
//! ```

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use fuser::Filesystem;

use super::connection::Fuse;
use super::handlers::{Handlers, Wanted};
use super::place::target_at;
use super::start::Plan;
pub use super::start::{Made, Sources};
use super::{Session, SessionError, Supervisor};
use crate::abi::NodeId;
use crate::ebpf::{Cache, Key, Learning, Validity};
use crate::sys::device::Device;
use crate::sys::mount::Parameters;
use crate::sys::shrink::Shrinker;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the mount table shows as the source.
    pub fsname: OsString,
    /// What it shows behind the type; by default `extfuse` on stock FUSE.
    pub subtype: Option<String>,
    /// Use stock FUSE even where the module is loaded.
    pub stock: bool,
    /// Do not do without the module and its handlers. Otherwise there is a warning
    /// ([`Session::warnings`]).
    pub require_module: bool,
    /// Users other than the owner may use it. None: if the owner has the privilege to mount.
    pub allow_other: Option<bool>,
    /// No changes.
    pub read_only: bool,
    /// The largest READ, in bytes.
    pub max_read: Option<u32>,
    /// How far the kernel reads ahead of who reads one byte after the other, in bytes: as long as the round trip is
    /// long. None: 128 KiB, as everywhere. What a READ may hold, and `max_read`, still stand. Needs root: who is not has
    /// 128 KiB.
    pub read_ahead: Option<u32>,
    /// How many threads answer requests; at least one.
    pub threads: usize,
    /// How long what the file system answers may be kept, if its own timeouts are shorter; ended by changes
    /// through the mount and by what is [invalidated](Kernel). [`Validity::UntilChanged`] is for file
    /// systems that nobody else changes, or that hear of every change. None: its own timeouts.
    pub valid: Option<Validity>,
    /// The attributes that come with a name are the node's, and may be kept as those of GETATTR are. Not so where
    /// the inode number that users see is another one than the nodeid: fuser has one for both.
    pub entry_attributes: bool,
    /// Files and directories may be opened for reading as they were opened before, without the file system
    /// hearing of it. It does when it is asked something about the open file; one that counts opens, or
    /// decides by who opens, must not allow it. For as long as `valid` says: an open has no timeout of
    /// its own.
    pub opens: bool,
    /// The file system knows every node that it ever [published](Kernel::cache), whether the kernel does or
    /// not: FORGET means nothing to it, and no number is used for another node. Then names that were
    /// published are found without it, also those that the kernel has never seen, or has forgotten. To let a
    /// node go all the same: [`Kernel::let_go`].
    pub holds_nodes: bool,
    /// How many names, nodes and extended attributes the handlers' maps hold.
    pub entries: Option<u32>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            fsname: "extfuse".into(),
            subtype: None,
            stock: false,
            require_module: false,
            allow_other: None,
            read_only: false,
            max_read: None,
            read_ahead: None,
            // As many as fuser has: not every file system expects to be called by several.
            threads: 1,
            valid: None,
            entry_attributes: true,
            opens: false,
            holds_nodes: false,
            entries: None,
        }
    }
}

/// The kernel's side of a mount, for the file system and for whoever hears of changes. It has nothing
/// on stock FUSE, and when the session is over: it keeps no mount alive.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    cache: Weak<Cache>,
    device: Weak<Device<OwnedFd>>,
    shrinker: Option<Arc<Shrinker>>,
}

impl Kernel {
    pub(super) fn of(handlers: Option<&Handlers>, shrinker: Option<Arc<Shrinker>>) -> Self {
        let kernel = handlers.map_or_else(Self::default, |handlers| Self {
            cache: Arc::downgrade(&handlers.cache()),
            device: Arc::downgrade(handlers.device()),
            shrinker: None,
        });
        Self { shrinker, ..kernel }
    }

    /// A side that no kernel is on: to see what one would be told, as with [`Cache::in_memory`].
    #[must_use]
    pub fn over(cache: &Arc<Cache>) -> Self {
        Self {
            cache: Arc::downgrade(cache),
            device: Weak::new(),
            shrinker: None,
        }
    }

    /// What is published to the kernel, and taken back: for the moment, not to be kept.
    #[must_use]
    pub fn cache(&self) -> Option<Arc<Cache>> {
        self.cache.upgrade()
    }

    /// The connection's device, for [`Backing::register`](crate::ebpf::Backing::register): for the moment,
    /// not to be kept. Backing files need `FUSE_PASSTHROUGH`, which the file system asks for in its
    /// `init`; what is registered is to be dropped with the file system.
    #[must_use]
    pub fn device(&self) -> Option<Arc<Device<OwnedFd>>> {
        self.device.upgrade()
    }

    /// Announces changes that have happened: see [`Cache::invalidate`]. A subtree is [`Key::Dir`] of each
    /// of its directories, or [`Key::All`], or, if its nodes were numbered for it, [`Key::Group`]. Where nothing
    /// is kept, nothing is done.
    pub fn invalidate(&self, keys: &[Key<'_>]) {
        if let Some(cache) = self.cache() {
            cache.invalidate(keys);
        }
    }

    /// Has the kernel give up the names and nodes that nobody uses, with and without the module: for a file system that
    /// runs out of what a node takes. In the background, at most once a second; FORGETs follow, and WRITEs of pages
    /// that are dirty. False where it cannot be asked to: of a mount that was made by `fusermount3`.
    pub fn forget_unused(&self) -> bool {
        if let Some(shrinker) = &self.shrinker {
            shrinker.start();
        }
        self.shrinker.is_some()
    }

    /// For a file system that [holds its nodes](MountOptions::holds_nodes): may it let this one go? All that
    /// was published of the node is void from here on, whatever comes of it; publish it anew if it stays.
    /// To be asked of a node that FORGET has given back as often as LOOKUP and its like have given it out,
    /// and while no reply gives it out again. Not to be called by the only thread that answers requests: see [`Device::has_inode`].
    ///
    /// # Errors
    ///
    /// Those of [`Device::has_inode`]: then it must not go.
    pub fn let_go(&self, node: NodeId) -> std::io::Result<bool> {
        // First void, then asked: an answer that was on its way meanwhile finds that it is.
        self.invalidate(&[Key::Node(node)]);
        self.device()
            .map_or(Ok(true), |device| Ok(!device.has_inode(node)?))
    }
}

/// Mounts a file system as it is. INIT has been answered then, requests wait for [`Session::serve`].
///
/// Permissions are checked by the kernel, by mode and owner (`default_permissions`), so that what one user
/// was answered may be kept for others.
///
/// # Errors
///
/// See [`SessionError`]; nothing is mounted then.
pub fn mount<FS: Filesystem>(
    filesystem: FS,
    mountpoint: impl AsRef<Path>,
    options: &MountOptions,
) -> Result<Session<FS>, SessionError> {
    mount_with(mountpoint, options, |_| filesystem)
}

/// Mounts the file system that `make` gives, which is told of the kernel's side.
///
/// # Errors
///
/// See [`SessionError`]; nothing is mounted then.
pub fn mount_with<FS: Filesystem>(
    mountpoint: impl AsRef<Path>,
    options: &MountOptions,
    make: impl FnOnce(Kernel) -> FS,
) -> Result<Session<FS>, SessionError> {
    mount_supervised(mountpoint, options, None, make)
}

/// The same, and somebody unmounts if this process is killed.
///
/// # Errors
///
/// See [`SessionError`]; nothing is mounted then.
pub fn mount_supervised<FS: Filesystem>(
    mountpoint: impl AsRef<Path>,
    options: &MountOptions,
    supervisor: Option<Supervisor>,
    make: impl FnOnce(Kernel) -> FS,
) -> Result<Session<FS>, SessionError> {
    mount_counted(mountpoint, options, supervisor, |kernel, _| {
        Ok((make(kernel), Sources::default()))
    })
}

/// The same, of a file system that counts what comes up: the counts are shown where there is no module to count. It
/// may answer through the device that it is given, if it is known before the file system is made
/// ([`Channel::new`](crate::splice::Channel::new)).
///
/// # Errors
///
/// See [`SessionError`]; nothing is mounted then.
pub fn mount_counted<FS: Filesystem>(
    mountpoint: impl AsRef<Path>,
    options: &MountOptions,
    supervisor: Option<Supervisor>,
    make: impl FnOnce(Kernel, Option<BorrowedFd<'_>>) -> Result<Made<FS>, SessionError>,
) -> Result<Session<FS>, SessionError> {
    let target = target_at(mountpoint.as_ref())?;
    let fuse = Fuse::choose(options.stock, options.require_module)?;
    let parameters = Parameters {
        max_read: options.max_read,
        read_only: options.read_only,
        ..fuse.parameters(
            options.fsname.clone(),
            options.subtype.clone(),
            options.allow_other,
        )
    };
    let learning = Learning {
        valid: options.valid,
        entry_attributes: options.entry_attributes,
        opens: options.opens,
    };
    let plan = Plan {
        source: PathBuf::from(&options.fsname),
        target,
        fuse,
        parameters,
        handlers: Some(Wanted {
            entries: options.entries,
            learning,
            holds_nodes: options.holds_nodes,
        }),
        require_module: options.require_module,
        read_ahead: options.read_ahead,
        threads: options.threads.max(1),
        supervisor,
    };
    plan.start(|handlers, device, shrinker| make(Kernel::of(handlers, shrinker), device))
}
