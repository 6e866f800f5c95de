// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a session has in the kernel: programs, maps and stamps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::abi::{self, Counter, Counters, Exit, Status};
use crate::control::{Fill, Maps, Program, Requests};
use crate::ebpf::{Cache, Capacity, Context, Stamps, context};
use crate::sys::device::Device;

/// Why handlers could not be attached.
#[derive(Debug, Error)]
pub enum HandlersError {
    /// SETUP or mapping the stamps failed.
    #[error("{}", describe(.0))]
    Setup(#[from] io::Error),
    /// The programs were not loaded or attached.
    #[error(transparent)]
    Context(#[from] context::Error),
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPROTO) => "the module was built for another version of extfuse".into(),
        _ => format!("the module gave no stamps: {error}"),
    }
}

/// Programs attached to a connection, and what is published for them. Dropping it detaches.
#[derive(Debug)]
pub(super) struct Handlers {
    /// Locked by who asks for figures, with nothing else locked.
    context: Mutex<Context>,
    cache: Arc<Cache>,
    device: Device<OwnedFd>,
}

impl Handlers {
    /// Attaches to the connection of `device`, which must be mounted and INIT not yet answered.
    pub fn attach(device: impl AsFd, entries: Option<u32>) -> Result<Self, HandlersError> {
        let device = Device::new(device.as_fd().try_clone_to_owned()?);
        let setup = device.setup()?;
        let stamps = Stamps::new(device.map_stamps()?);
        let mut capacity = Capacity::default();
        if let Some(rows) = entries {
            capacity = Capacity {
                entries: rows,
                attrs: rows,
            };
        }
        let context = Context::attach(setup.conn, capacity)?;
        let cache = Arc::new(Cache::new(stamps, context.maps()?, setup.key));
        Ok(Self {
            context: Mutex::new(context),
            cache,
            device,
        })
    }

    /// What the file system publishes to.
    pub fn cache(&self) -> Arc<Cache> {
        Arc::clone(&self.cache)
    }

    /// What is attached. None if the connection is gone, and the figures with it.
    pub fn program(&self) -> Option<Program> {
        let status = self.device.status().ok()?;
        Some(Program {
            name: text(&status.name),
            attached: status.attached != 0,
            exit: exit(&status).into(),
            reason: text(&status.reason),
            errors: status.errors,
            attaches: status.attaches,
        })
    }

    /// Requests by opcode; all 0 if the connection is gone.
    pub fn requests(&self) -> Vec<Requests> {
        let counters = self.device.counters().unwrap_or_else(|_| Counters::default());
        let row = |counts: &[u64]| {
            let count = |which: Counter| counts.get(which.0 as usize).copied().unwrap_or_default();
            Requests {
                requests: Some(count(Counter::EXTFUSE_COUNT_REQUESTS)),
                returned: Some(count(Counter::EXTFUSE_COUNT_RETURNED)),
                kept: Some(count(Counter::EXTFUSE_COUNT_KEPT)),
                errno: Some(count(Counter::EXTFUSE_COUNT_ERRNO)),
                passthru: Some(count(Counter::EXTFUSE_COUNT_PASSTHRU)),
                refused: Some(count(Counter::EXTFUSE_COUNT_REFUSED)),
                upcalls: count(Counter::EXTFUSE_COUNT_UPCALLS),
                errors: None, // the daemon counts them
            }
        };
        counters
            .count
            .iter()
            .take(abi::OPCODES)
            .map(|counts| row(counts))
            .collect()
    }

    /// What is in the maps.
    pub fn maps(&self) -> Maps {
        let fill = self.context.lock().unwrap_or_else(PoisonError::into_inner).fill();
        Maps {
            entries: Fill {
                used: fill.entries,
                capacity: fill.capacity.entries.into(),
            },
            attrs: Fill {
                used: fill.attrs,
                capacity: fill.capacity.attrs.into(),
            },
            publish_failures: self.cache.published().failed,
        }
    }
}

fn exit(status: &Status) -> &'static str {
    match Exit(status.exit) {
        Exit::EXTFUSE_EXIT_UNLINK => "unlink",
        Exit::EXTFUSE_EXIT_UNMOUNT => "unmount",
        Exit::EXTFUSE_EXIT_ABORT => "abort",
        Exit::EXTFUSE_EXIT_ERROR => "error",
        _ => "none",
    }
}

/// A string of the module: up to the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_the_module_end_at_the_first_zero_or_the_end() {
        assert_eq!(text(b"abc\0def"), "abc");
        assert_eq!(text(b"abc"), "abc");
        assert_eq!(text(b"\0"), "");
    }
}
