// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mount and the daemon behind it, from opening the device to the last unmount.
//!
//! ```no_run
//! use extfuse::session::Session;
//!
//! let session = Session::builder("/srv/data", "/mnt").mount()?;
//! let unmounter = session.unmounter(); // for another thread, or a signal handler
//! session.serve()?; // until it is unmounted
//! # Ok::<(), extfuse::session::SessionError>(())
//! ```
//!
//! The order of things is what makes failures harmless. The file system is made, INIT is answered
//! and the handlers are attached before the mount becomes visible, so nobody meets half a mount, and
//! an error on the way leaves none. At the end the mount goes first, then the handlers with their
//! maps and the last descriptor of the device: the kernel fails what is still waiting.

pub mod author;
mod builder;
pub(crate) mod connection;
mod handlers;
mod options;
pub(crate) mod place;
mod report;
mod signals;
mod start;
mod supervisor;
mod unmounter;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::Filesystem;
use nix::errno::Errno;
use thiserror::Error;

pub use builder::Builder;
pub use handlers::HandlersError;
pub use options::{DEFAULT_TTL, MountOptions, OptionError, parse_seconds};
pub use place::PlaceError;
pub use signals::unmount_on_signals;
pub use supervisor::Supervisor;
pub use unmounter::{Outcome, UnmountError, Unmounter};

use crate::control::Server;
use crate::ebpf::Cache;
use crate::fs::{Stack, StackError};
use crate::sys::mount::MountError;
use crate::sys::mountinfo::MountId;
use author::Kernel;
use handlers::Handlers;
use report::Facts;

/// Why there is no mount.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Source and mount point do not go together.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The options contradict each other.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The module was required, and cannot be used.
    #[error("{0}, and the module is required")]
    NoModule(String),
    /// Handlers are required, and could not be attached.
    #[error("no handlers: {0}")]
    NoHandlers(#[from] HandlersError),
    /// The device cannot be opened.
    #[error("cannot open {}: {}", path.display(), errno.desc())]
    Device {
        /// Which.
        path: &'static Path,
        /// Why.
        errno: Errno,
    },
    /// The kernel or `fusermount3` did not mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The source cannot be served.
    #[error(transparent)]
    Source(#[from] StackError),
    /// INIT went wrong.
    #[error("the kernel and the daemon do not agree: {0}")]
    Handshake(io::Error),
    /// The process that watches over this one is gone.
    #[error("cannot set up the watch over the daemon: {0}")]
    Supervisor(io::Error),
    /// The process handles signals already.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] ctrlc::Error),
    /// Somebody aborted the connection.
    #[error("the connection was aborted")]
    Aborted,
    /// The loop that answers requests failed.
    #[error("serving ended: {0}")]
    Loop(io::Error),
    /// What is left of the mount could not be taken off.
    #[error("cannot unmount: {0}")]
    Unmount(#[from] UnmountError),
    /// The mount cannot be found after mounting.
    #[error("cannot find the mount just made: {0}")]
    Lost(io::Error),
}

/// A mounted file system, waiting to be served. Dropping it unmounts.
#[derive(Debug)]
pub struct Session<FS: Filesystem = Stack> {
    engine: Option<fuser::Session<FS>>,
    control: Option<Server>,
    guard: Guard,
    facts: Arc<Facts>,
    /// Last: it hears of the end when the mount is gone.
    _supervisor: Option<Supervisor>,
}

impl Session {
    /// Which directory to mount, and where.
    pub fn builder(source: impl Into<PathBuf>, mountpoint: impl Into<PathBuf>) -> Builder {
        Builder::new(source.into(), mountpoint.into())
    }
}

impl<FS: Filesystem> Session<FS> {
    /// What the mount has to do without, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.facts.warnings
    }

    /// Ends the mount, from whatever thread.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.guard.unmounter
    }

    /// What is published to the kernel, and taken back. `None` without handlers. It keeps the connection: not
    /// for anybody who may outlive the session, see [`kernel`](Self::kernel).
    #[must_use]
    pub fn cache(&self) -> Option<Arc<Cache>> {
        self.facts.handlers.as_ref().map(Handlers::cache)
    }

    /// The kernel's side of the mount, for other threads.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        Kernel::of(self.facts.handlers.as_ref(), self.facts.shrinker.clone())
    }

    /// What tells the kernel of changes where there is no module, too. It keeps the connection: for the file system
    /// only, which ends with the session.
    #[must_use]
    pub fn notifier(&self) -> Option<fuser::Notifier> {
        self.engine.as_ref().map(fuser::Session::notifier)
    }

    /// SIGINT, SIGTERM and SIGHUP unmount from here on: see [`unmount_on_signals`].
    ///
    /// # Errors
    ///
    /// If the process handles signals in this way already.
    pub fn unmount_on_signals(&self) -> Result<(), SessionError> {
        unmount_on_signals(self.unmounter(), |end| match end {
            Ok(Outcome::Unmounted) => {}
            Ok(Outcome::Busy) => {
                tracing::warn!("the mount is in use: it ends with its last user or a second signal")
            }
            Err(error) => tracing::error!("cannot unmount: {error}"),
        })
    }

    /// Answers requests until the file system is unmounted; then everything is given back.
    ///
    /// # Errors
    ///
    /// If the connection was aborted, or the mount could not be taken off in the end.
    pub fn serve(mut self) -> Result<(), SessionError> {
        let Some(engine) = self.engine.take() else {
            return Ok(());
        };
        let served = engine.run();
        self.control = None;
        // An unmount takes the mount out of the table first and ends the connection then.
        let dead = self.guard.unmounter.is_mounted();
        self.guard.release()?;
        match served {
            Ok(()) if dead => Err(SessionError::Aborted),
            Err(error) if error.raw_os_error() != Some(libc::ECONNABORTED) => Err(SessionError::Loop(error)),
            Err(_) => Err(SessionError::Aborted),
            Ok(()) => Ok(()),
        }
    }
}

/// Takes the mount off when the session ends in whatever way.
#[derive(Debug)]
pub(crate) struct Guard {
    mount: MountId,
    unmounter: Unmounter,
    armed: bool,
}

impl Guard {
    fn new(mount: MountId, privileged: bool) -> Self {
        let unmounter = Unmounter::new(mount, privileged);
        Self {
            mount,
            unmounter,
            armed: true,
        }
    }

    /// Takes it off now.
    pub fn release(&mut self) -> Result<(), UnmountError> {
        self.armed = false;
        self.unmounter.detach()
    }

    /// Ends the mount, from whatever thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.release()
        {
            tracing::error!("cannot unmount: {error}");
        }
    }
}
