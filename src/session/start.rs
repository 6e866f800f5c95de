// SPDX-License-Identifier: MIT OR Apache-2.0
//! What all sessions have in common: how one comes to be.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fuser::{Filesystem, SessionACL};
use nix::unistd::geteuid;

use super::connection::{Connection, Fuse, show};
use super::handlers::{Handlers, Wanted};
use super::report::{Facts, Told};
use super::{Session, SessionError, Supervisor, Unmounter};
use crate::control::{Server, TellsRemote};
use crate::fs::{Holding, Upcalls};
use crate::sys::bdi;
use crate::sys::mount::{Flavor, Parameters};
use crate::sys::mountinfo::Location;
use crate::sys::shrink::Shrinker;

/// All that a session needs but its file system.
pub(super) struct Plan {
    /// What `extfuse stat` calls the source.
    pub source: PathBuf,
    pub target: Location,
    pub fuse: Fuse,
    pub parameters: Parameters,
    /// None: no handlers.
    pub handlers: Option<Wanted>,
    /// Handlers, too.
    pub require_module: bool,
    /// In bytes; None: as the kernel has it.
    pub read_ahead: Option<u32>,
    pub threads: usize,
    pub supervisor: Option<Supervisor>,
}

/// A file system, and what tells of it.
pub type Made<FS> = (FS, Sources);

/// Where more is known of a file system than the kernel counts.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// What counts its requests, if anything does.
    pub upcalls: Option<Arc<Upcalls>>,
    /// What knows of its server, if it has one.
    pub remote: Option<Arc<dyn TellsRemote>>,
    /// What knows of the nodes that are held when the kernel has forgotten them, if any are.
    pub holding: Option<Holding>,
}

impl Plan {
    /// Mounts the file system that `make` gives for the handlers that there are, and the device and what has the kernel
    /// forget, if they are known by then.
    pub fn start<FS: Filesystem>(
        mut self,
        make: impl FnOnce(
            Option<&Handlers>,
            Option<BorrowedFd<'_>>,
            Option<Arc<Shrinker>>,
        ) -> Result<Made<FS>, SessionError>,
    ) -> Result<Session<FS>, SessionError> {
        let flavor = self.fuse.flavor();
        let privileged = self.fuse.is_privileged();
        let mut warnings = Vec::new();
        if let Some(reason) = self.fuse.lacking() {
            warnings.push(format!(
                "{reason}: falling back to stock FUSE, nothing is answered in the kernel"
            ));
        }
        let (connection, handlers, shrinker, (filesystem, sources)) = if self.fuse.shows_at_once() {
            // What it opens is opened before the mount may hide it.
            let made = make(None, None, None)?;
            (
                self.fuse.connect(&self.target, &self.parameters)?,
                None,
                None,
                made,
            )
        } else {
            let connection = self.fuse.connect(&self.target, &self.parameters)?;
            let handlers = match self.handlers {
                Some(wanted) if flavor == Flavor::Extfuse => {
                    attach(&connection, wanted, self.require_module, &mut warnings)?
                }
                _ => None,
            };
            let shrinker = Some(Shrinker::new(connection.guard.mount));
            let device = connection.device.as_fd();
            let made = make(handlers.as_ref(), Some(device), shrinker.clone())?;
            (connection, handlers, shrinker, made)
        };
        // From here on an error unmounts.
        let Connection {
            device,
            detached,
            guard,
        } = connection;
        let mut config = fuser::Config::default();
        config.n_threads = Some(self.threads);
        // The kernel has decided already who may ask: see fuse_allow_current_process.
        let engine = fuser::Session::from_fd(filesystem, device, SessionACL::All, config)
            .map_err(SessionError::Handshake)?;

        if let Some(bytes) = self.read_ahead
            && let Err(error) = bdi::set_read_ahead(guard.mount.dev, bytes)
        {
            tracing::debug!("the kernel reads ahead as it does by itself: {error}");
        }

        let facts = Arc::new(Facts {
            source: self.source,
            mountpoint: self.target.path.clone(),
            flavor,
            mount: guard.mount,
            owner: geteuid().as_raw(),
            threads: self.threads,
            started: Instant::now(),
            sources,
            handlers,
            shrinker,
            warnings,
        });
        if let Some(supervisor) = &mut self.supervisor {
            supervisor
                .watch(guard.mount, privileged)
                .map_err(SessionError::Supervisor)?;
        }
        // Whoever sees the mount can ask about it.
        let control = listen(&facts, guard.unmounter);
        show(detached, &self.target)?;
        if let Some(control) = &control {
            control.is_shown();
        }
        Ok(Session {
            engine: Some(engine),
            control,
            guard,
            facts,
            _supervisor: self.supervisor,
        })
    }
}

/// Handlers, or none and a warning.
fn attach(
    connection: &Connection,
    wanted: Wanted,
    required: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<Handlers>, SessionError> {
    match Handlers::attach(&connection.device, wanted) {
        Ok(handlers) => Ok(Some(handlers)),
        Err(error) if required => Err(error.into()),
        Err(error) => {
            warnings.push(format!("no handlers: {error}: nothing is answered in the kernel"));
            Ok(None)
        }
    }
}

/// Starts to answer `extfuse stat` and `extfuse handler`. The mount works without, so failing is no error.
fn listen(facts: &Arc<Facts>, unmounter: Unmounter) -> Option<Server> {
    let told = Told {
        facts: Arc::clone(facts),
        unmounter,
    };
    match Server::start(facts.mount.dev, facts.owner, Arc::new(told)) {
        Ok(server) => Some(server),
        Err(error) => {
            tracing::warn!("extfuse stat and handler will not work: {error}");
            None
        }
    }
}
