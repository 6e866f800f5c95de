// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a session tells about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::Unmounter;
use super::handlers::Handlers;
use super::start::Sources;
use crate::abi;
use crate::control::{Daemon, Fill, Handler, Mode, Refusal, Report, Requests};
use crate::ebpf::Object;
use crate::fs::Upcalls;
use crate::sys::mount::Flavor;
use crate::sys::mountinfo::MountId;
use crate::sys::shrink::Shrinker;

/// What is known of a session while it is served.
#[derive(Debug)]
pub(super) struct Facts {
    pub source: PathBuf,
    pub mountpoint: PathBuf,
    pub flavor: Flavor,
    pub mount: MountId,
    pub owner: u32,
    pub threads: usize,
    pub started: Instant,
    pub sources: Sources,
    pub handlers: Option<Handlers>,
    /// If this process has mounted it itself.
    pub shrinker: Option<Arc<Shrinker>>,
    pub warnings: Vec<String>,
}

impl Facts {
    pub fn report(&self) -> Report {
        let counted = self.handlers.as_ref().map_or_else(Vec::new, Handlers::requests);
        let mut opcodes = BTreeMap::new();
        let asked = self.sources.upcalls.as_deref().map(Upcalls::snapshot);
        let errors = self.sources.upcalls.as_deref().map(Upcalls::errors);
        for opcode in 0..abi::OPCODES {
            let upcalls = asked.map_or(0, |asked| asked[opcode]);
            let mut row = match counted.get(opcode) {
                // What the module does not see as a request (INIT) the daemon has counted.
                Some(row) if row.requests == Some(0) => Requests { upcalls, ..*row },
                Some(row) => *row,
                None => Requests {
                    upcalls,
                    ..Requests::default()
                },
            };
            row.served = upcalls;
            row.errors = errors.map(|errors| errors[opcode]);
            let seen = [Some(row.upcalls), row.requests, row.kept];
            if seen.into_iter().flatten().any(|count| count > 0) {
                let name = u32::try_from(opcode).ok().and_then(abi::opcode_name);
                opcodes.insert(name.map_or_else(|| opcode.to_string(), str::to_owned), row);
            }
        }
        Report {
            source: self.source.to_string_lossy().into_owned(),
            mountpoint: self.mountpoint.to_string_lossy().into_owned(),
            mode: match self.flavor {
                Flavor::Stock => Mode::Stock,
                Flavor::Extfuse => Mode::Extfuse,
            },
            dev: self.mount.dev.to_string(),
            pid: std::process::id(),
            threads: self.threads,
            uptime: self.started.elapsed().as_secs_f64(),
            program: self.handlers.as_ref().and_then(Handlers::program),
            custom: self.handlers.as_ref().map_or_else(Vec::new, |handlers| {
                let own = |handler: &Handler| handler.object.is_some();
                handlers.list().into_iter().filter(own).collect()
            }),
            opcodes,
            maps: self.handlers.as_ref().map(Handlers::maps),
            held: self.sources.holding.as_ref().map(|holding| Fill {
                used: holding.nodes() as u64,
                capacity: holding.most as u64,
            }),
            remote: self.sources.remote.as_ref().map(|source| source.remote()),
            warnings: self.warnings.clone(),
        }
    }
}

/// A session, for who asks its daemon.
pub(super) struct Told {
    pub facts: Arc<Facts>,
    pub unmounter: Unmounter,
}

impl Told {
    fn handlers(&self) -> Result<&Handlers, Refusal> {
        let none = || Refusal::because("the mount has no handlers".into());
        self.facts.handlers.as_ref().ok_or_else(none)
    }
}

impl Daemon for Told {
    fn is_mounted(&self) -> bool {
        self.unmounter.is_mounted()
    }

    fn report(&self) -> Report {
        self.facts.report()
    }

    fn handlers(&self) -> Result<Vec<Handler>, Refusal> {
        Ok(Self::handlers(self)?.list())
    }

    fn load(&self, opcode: u32, object: &Object) -> Result<(), Refusal> {
        if abi::NEVER_ASKED.contains(&opcode) {
            let name = abi::opcode_name(opcode).unwrap_or("it");
            return Err(Refusal::because(format!("no handler is ever asked about {name}")));
        }
        Self::handlers(self)?.load(opcode, object)
    }

    fn unload(&self, opcode: u32) -> Result<(), Refusal> {
        Self::handlers(self)?.unload(opcode)
    }
}
