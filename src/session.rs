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

mod builder;
mod handlers;
mod options;
mod place;
mod report;
mod supervisor;
mod unmounter;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use thiserror::Error;

pub use builder::Builder;
pub use handlers::HandlersError;
pub use options::{DEFAULT_TTL, MountOptions, OptionError, parse_seconds};
pub use place::PlaceError;
pub use supervisor::Supervisor;
pub use unmounter::{Outcome, UnmountError, Unmounter};

use crate::control::Server;
use crate::fs::{Stack, StackError};
use crate::sys::mount::MountError;
use crate::sys::mountinfo::MountId;
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

/// A mounted directory, waiting to be served.
#[derive(Debug)]
pub struct Session {
    engine: Option<fuser::Session<Stack>>,
    control: Option<Server>,
    guard: Guard,
    facts: Arc<Facts>,
    /// Last: it hears of the end when the mount is gone.
    _supervisor: Option<Supervisor>,
}

impl Session {
    /// What to mount, and where.
    pub fn builder(source: impl Into<PathBuf>, mountpoint: impl Into<PathBuf>) -> Builder {
        Builder::new(source.into(), mountpoint.into())
    }

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
struct Guard {
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

    fn release(&mut self) -> Result<(), UnmountError> {
        self.armed = false;
        self.unmounter.detach()
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
