// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a source and a mount point to a session.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};

use super::handlers::Handlers;
use super::place::Place;
use super::report::{Facts, Told};
use super::{Guard, MountOptions, Session, SessionError, Supervisor, Unmounter};
use crate::control::Server;
use crate::ebpf::Learning;
use crate::fs::{Stack, StackOptions, Upcalls};
use crate::sys::mount::{Detached, Flavor, Parameters, fusermount};
use crate::sys::mountinfo::Location;
use crate::sys::process::{Capability, has_capability};

/// What to mount, where and how.
#[derive(Debug)]
pub struct Builder {
    source: PathBuf,
    mountpoint: PathBuf,
    options: MountOptions,
    stock: bool,
    handlers: bool,
    require_module: bool,
    threads: usize,
    supervisor: Option<Supervisor>,
}

impl Builder {
    pub(super) fn new(source: PathBuf, mountpoint: PathBuf) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            source,
            mountpoint,
            options: MountOptions::default(),
            stock: false,
            handlers: true,
            require_module: false,
            // More threads than cores: they wait for the disk.
            threads: cores.clamp(2, 8),
            supervisor: None,
        }
    }

    /// Options of the mount.
    #[must_use]
    pub fn options(mut self, options: MountOptions) -> Self {
        self.options = options;
        self
    }

    /// Whether to use stock FUSE even where the module is loaded. Off by default.
    #[must_use]
    pub fn stock(mut self, stock: bool) -> Self {
        self.stock = stock;
        self
    }

    /// Whether to attach handlers. On by default.
    #[must_use]
    pub fn handlers(mut self, handlers: bool) -> Self {
        self.handlers = handlers;
        self
    }

    /// Whether doing without the module (and its handlers, unless they are off) is an error. Off by
    /// default: there is a warning then.
    #[must_use]
    pub fn require_module(mut self, required: bool) -> Self {
        self.require_module = required;
        self
    }

    /// How many threads answer requests; at least one.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Who unmounts if this process is killed. Without, nobody does.
    #[must_use]
    pub fn supervisor(mut self, supervisor: Supervisor) -> Self {
        self.supervisor = Some(supervisor);
        self
    }

    /// Mounts. INIT has been answered, requests wait for [`Session::serve`].
    pub fn mount(mut self) -> Result<Session, SessionError> {
        self.options.check()?;
        let place = Place::check(&self.source, &self.mountpoint)?;
        if let Err(errno) = Stack::raise_nofile() {
            tracing::warn!("cannot raise the limit of open files: {errno}");
        }
        let privileged = has_capability(Capability::SysAdmin);
        let mut warnings = Vec::new();
        let (flavor, device) = self.choose(privileged, &mut warnings)?;
        let parameters = self.parameters(&place, flavor, privileged);
        let Connected {
            engine,
            upcalls,
            handlers,
            guard,
            detached,
        } = match device {
            Some(device) => self.create(&place, flavor, device, &parameters, &mut warnings)?,
            None => self.create_by_fusermount(&place, &parameters)?,
        };

        let facts = Arc::new(Facts {
            source: place.source,
            mountpoint: place.target.path.clone(),
            flavor,
            mount: guard.mount,
            owner: geteuid().as_raw(),
            threads: self.threads,
            started: Instant::now(),
            upcalls,
            handlers,
            warnings,
        });
        let mut supervisor = self.supervisor.take();
        if let Some(supervisor) = &mut supervisor {
            supervisor
                .watch(guard.mount, privileged)
                .map_err(SessionError::Supervisor)?;
        }
        // Whoever sees the mount can ask about it.
        let control = listen(&facts, guard.unmounter);
        if let Some(detached) = detached {
            detached.attach(&place.target)?;
        }
        Ok(Session {
            engine: Some(engine),
            control,
            guard,
            facts,
            _supervisor: supervisor,
        })
    }

    /// Makes the file system, connects it, and leaves it to the caller to make it visible.
    fn create(
        &self,
        place: &Place,
        flavor: Flavor,
        device: File,
        parameters: &Parameters,
        warnings: &mut Vec<String>,
    ) -> Result<Connected, SessionError> {
        let detached = Detached::create(flavor, device.as_fd(), parameters)?;
        let handlers = if flavor == Flavor::Extfuse && self.handlers {
            self.attach(&device, warnings)?
        } else {
            None
        };
        let stack = self.stack(place, handlers.as_ref())?;
        Ok(Connected {
            upcalls: stack.upcalls(),
            engine: self.handshake(stack, device.into())?,
            handlers,
            guard: Guard::new(detached.id(), true),
            detached: Some(detached),
        })
    }

    /// Has `fusermount3` make the file system, which it makes visible at once.
    fn create_by_fusermount(
        &self,
        place: &Place,
        parameters: &Parameters,
    ) -> Result<Connected, SessionError> {
        // Opened before the mount may hide it.
        let stack = self.stack(place, None)?;
        let device = fusermount(&place.target.path, parameters)?;
        let mount = Location::of(&place.target.path).map_err(SessionError::Lost)?.id;
        // From here on an error unmounts.
        let guard = Guard::new(mount, false);
        Ok(Connected {
            upcalls: stack.upcalls(),
            engine: self.handshake(stack, device)?,
            handlers: None,
            guard,
            detached: None,
        })
    }

    /// Which FUSE, and its device; no device where `fusermount3` opens it.
    fn choose(
        &self,
        privileged: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(Flavor, Option<File>), SessionError> {
        if !self.stock {
            match extfuse_device(privileged) {
                Ok(device) => return Ok((Flavor::Extfuse, Some(device))),
                Err(reason) if self.require_module => return Err(SessionError::NoModule(reason)),
                Err(reason) => warnings.push(format!(
                    "{reason}: falling back to stock FUSE, nothing is answered in the kernel"
                )),
            }
        }
        let device = if privileged {
            Some(open(Flavor::Stock)?)
        } else {
            None
        };
        Ok((Flavor::Stock, device))
    }

    fn parameters(&self, place: &Place, flavor: Flavor, privileged: bool) -> Parameters {
        let options = &self.options;
        let subtype = (flavor == Flavor::Stock).then(|| "extfuse".to_owned());
        Parameters {
            fsname: options
                .fsname
                .clone()
                .unwrap_or_else(|| place.source.clone().into()),
            subtype: options.subtype.clone().or(subtype),
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            default_permissions: true,
            allow_other: options.allow_other.unwrap_or(privileged),
            max_read: options.max_read,
            read_only: options.read_only,
            suid: options.suid,
            dev: options.dev,
            exec: options.exec,
            noatime: options.noatime,
        }
    }

    /// Handlers, or none and a warning.
    fn attach(&self, device: &File, warnings: &mut Vec<String>) -> Result<Option<Handlers>, SessionError> {
        let learning = Learning {
            valid: Some(self.options.validity()),
            // fuser can give a name only with the nodeid as inode number.
            entry_attributes: false,
            opens: true,
        };
        match Handlers::attach(device, self.options.entries, learning) {
            Ok(handlers) => Ok(Some(handlers)),
            Err(error) if self.require_module => Err(error.into()),
            Err(error) => {
                warnings.push(format!("no handlers: {error}: nothing is answered in the kernel"));
                Ok(None)
            }
        }
    }

    fn stack(&self, place: &Place, handlers: Option<&Handlers>) -> Result<Stack, SessionError> {
        let options = &self.options;
        let (entry_timeout, attr_timeout) = options.timeouts(handlers.is_some());
        let stack = StackOptions {
            entry_timeout,
            attr_timeout,
            keep_cache: options.keep_cache,
            passthrough: options.passthrough,
            read_only: options.read_only,
            cache: handlers.map(Handlers::cache),
            validity: options.validity(),
        };
        Ok(Stack::new(&place.source, stack)?)
    }

    fn handshake(&self, stack: Stack, device: OwnedFd) -> Result<fuser::Session<Stack>, SessionError> {
        let mut config = fuser::Config::default();
        config.n_threads = Some(self.threads);
        // The kernel has decided already who may ask: see fuse_allow_current_process.
        fuser::Session::from_fd(stack, device, fuser::SessionACL::All, config)
            .map_err(SessionError::Handshake)
    }
}

/// A file system whose INIT has been answered.
struct Connected {
    engine: fuser::Session<Stack>,
    upcalls: Arc<Upcalls>,
    handlers: Option<Handlers>,
    guard: Guard,
    /// If it is not visible yet.
    detached: Option<Detached>,
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

/// Opens the module's device, or says in a few words why it cannot be used.
fn extfuse_device(privileged: bool) -> Result<File, String> {
    match open(Flavor::Extfuse) {
        Ok(_) if !privileged => Err("mounting extfuse needs CAP_SYS_ADMIN".into()),
        Ok(device) => Ok(device),
        Err(SessionError::Device {
            errno: Errno::ENOENT | Errno::ENODEV | Errno::ENXIO,
            ..
        }) => Err("the extfuse module is not loaded".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn open(flavor: Flavor) -> Result<File, SessionError> {
    let path = flavor.device();
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| SessionError::Device {
            path,
            errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        })
}
