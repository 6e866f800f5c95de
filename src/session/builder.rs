// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a source and a mount point to a session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::connection::Fuse;
use super::handlers::{Handlers, Wanted};
use super::place::Place;
use super::start::{Made, Plan, Sources};
use super::{MountOptions, Session, SessionError, Supervisor};
use crate::ebpf::Learning;
use crate::fs::stack::{Crowded, Hold};
use crate::fs::{Stack, StackOptions};
use crate::sys::mount::Parameters;

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
    pub fn mount(self) -> Result<Session, SessionError> {
        self.options.check()?;
        let place = Place::check(&self.source, &self.mountpoint)?;
        let most = Stack::raise_nofile().unwrap_or_else(|errno| {
            tracing::warn!("cannot raise the limit of open files: {errno}");
            0
        });
        // The rest is for what the kernel remembers, and for open files.
        let hold =
            usize::try_from(most / 2).map_or(usize::MAX, |half| half.min(self.options.hold() as usize));
        let fuse = Fuse::choose(self.stock, self.require_module)?;
        let parameters = self.parameters(&place, &fuse);
        let learning = Learning {
            valid: Some(self.options.validity()),
            // fuser can give a name only with the nodeid as inode number.
            entry_attributes: false,
            opens: true,
        };
        let plan = Plan {
            source: place.source.clone(),
            target: place.target,
            fuse,
            parameters,
            handlers: self.handlers.then_some(Wanted {
                entries: self.options.entries,
                learning,
                holds_nodes: hold > 0,
            }),
            require_module: self.require_module,
            read_ahead: None,
            threads: self.threads,
            supervisor: self.supervisor,
        };
        let crowded = |shrinker| Crowded {
            // The rest is for open files, and for what comes until the kernel has forgotten.
            at: usize::try_from(most - most / 4).unwrap_or(usize::MAX),
            shrinker,
        };
        plan.start(|handlers, _, shrinker| {
            let crowded = shrinker.filter(|_| most > 0).map(crowded);
            stack(&place.source, &self.options, hold, handlers, crowded)
        })
    }

    fn parameters(&self, place: &Place, fuse: &Fuse) -> Parameters {
        let options = &self.options;
        let fsname = options.fsname.clone();
        let usual = fuse.parameters(
            fsname.unwrap_or_else(|| place.source.clone().into()),
            options.subtype.clone(),
            options.allow_other,
        );
        Parameters {
            max_read: options.max_read,
            read_only: options.read_only,
            suid: options.suid,
            dev: options.dev,
            exec: options.exec,
            noatime: options.noatime,
            ..usual
        }
    }
}

fn stack(
    source: &Path,
    options: &MountOptions,
    hold: usize,
    handlers: Option<&Handlers>,
    crowded: Option<Crowded>,
) -> Result<Made<Stack>, SessionError> {
    let (entry_timeout, attr_timeout) = options.timeouts(handlers.is_some());
    let options = StackOptions {
        entry_timeout,
        attr_timeout,
        keep_cache: options.keep_cache,
        passthrough: options.passthrough,
        read_only: options.read_only,
        cache: handlers.map(Handlers::cache),
        validity: options.validity(),
        hold: handlers.filter(|_| hold > 0).map(|handlers| Hold {
            nodes: hold,
            device: Arc::downgrade(handlers.device()),
        }),
        crowded,
    };
    let stack = Stack::new(source, options)?;
    let sources = Sources {
        upcalls: Some(stack.upcalls()),
        holding: stack.holding(),
        ..Sources::default()
    };
    Ok((stack, sources))
}
