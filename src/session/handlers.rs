// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a session has in the kernel: programs, maps and stamps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use crate::abi::{self, Counter, Counters, Exit, Status};
use crate::control::{Fill, Handler, Maps, Program, Refusal, Requests};
use crate::ebpf::{Cache, Capacity, Context, Learning, Object, ObjectError, Stamps, context};
use crate::sys::device::Device;

/// How soon an ejection is noticed while handlers of other authors are loaded: so long all goes up.
const WATCH: Duration = Duration::from_secs(1);

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
    attached: Arc<Attached>,
    cache: Arc<Cache>,
    /// From the first handler of another author on.
    watch: Mutex<Option<Watch>>,
}

#[derive(Debug)]
struct Attached {
    programs: Mutex<Programs>,
    device: Arc<Device<OwnedFd>>,
}

/// Locked with nothing else locked but `watch`.
#[derive(Debug)]
struct Programs {
    context: Context,
    /// Handlers of other authors that were ejected: opcode, object, why.
    ejected: Vec<(u32, String, String)>,
}

/// Looks whether the programs were ejected. Dropping it ends that.
#[derive(Debug)]
struct Watch {
    line: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(attached: &Arc<Attached>) -> io::Result<Self> {
        let (line, end) = channel();
        let attached = Arc::clone(attached);
        let thread = thread::Builder::new()
            .name("extfuse-handlers".into())
            .spawn(move || {
                while end.recv_timeout(WATCH) == Err(RecvTimeoutError::Timeout) {
                    attached.recover();
                }
            })?;
        Ok(Self {
            line: Some(line),
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.line = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Attached {
    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where handlers of other authors got all programs ejected: goes on without the one whose error was
    /// the last, or without all of them if that was none of theirs.
    fn recover(&self) {
        let mut programs = self.programs();
        if programs.context.custom_handlers().next().is_none() {
            return;
        }
        let Ok(status) = self.device.status() else { return };
        if status.attached != 0 || exit(&status) != "error" {
            return;
        }
        let all: Vec<_> = programs
            .context
            .custom_handlers()
            .map(|(opcode, name)| (opcode, name.to_owned()))
            .collect();
        let guilty: Vec<_> = all
            .iter()
            .filter(|(opcode, _)| *opcode == status.error_opcode)
            .cloned()
            .collect();
        let reason = text(&status.reason);
        for (opcode, name) in if guilty.is_empty() { all } else { guilty } {
            tracing::warn!("the handler {name} was ejected: {reason}");
            // Whose slot cannot be emptied is not put into the new array.
            programs.context.forget_handler(opcode);
            programs.ejected.push((opcode, name, reason.clone()));
        }
        programs.context.detach();
        if let Err(error) = programs.context.replace() {
            tracing::warn!("no handlers any more: {error}");
        } else if let Err(error) = self.tell(&programs.context) {
            tracing::warn!("the module does not ask all handlers: {error}");
        }
    }

    /// Which opcodes have a handler.
    fn tell(&self, context: &Context) -> io::Result<()> {
        let (opcodes, replies) = context.opcodes();
        self.device.set_opcodes(opcodes, replies)
    }
}

/// What the handlers of a mount are to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How many rows their maps hold.
    pub entries: Option<u32>,
    pub learning: Learning,
    /// Names are bound to nodes that the kernel does not hold.
    pub holds_nodes: bool,
}

impl Handlers {
    /// Attaches to the connection of `device`, which must be mounted and INIT not yet answered.
    pub fn attach(device: impl AsFd, wanted: Wanted) -> Result<Self, HandlersError> {
        let device = Arc::new(Device::new(device.as_fd().try_clone_to_owned()?));
        let setup = device.setup_with(if wanted.holds_nodes { abi::HOLDS_NODES } else { 0 })?;
        let stamps = Stamps::new(device.map_stamps()?);
        let mut capacity = Capacity::default();
        if let Some(rows) = wanted.entries {
            capacity = Capacity {
                entries: rows,
                attrs: rows,
                xattrs: rows,
            };
        }
        let context = Context::attach(setup.conn, capacity, wanted.learning)?;
        let cache = Arc::new(Cache::new(stamps, context.maps()?, setup.key));
        Ok(Self {
            attached: Arc::new(Attached {
                programs: Mutex::new(Programs {
                    context,
                    ejected: Vec::new(),
                }),
                device,
            }),
            cache,
            watch: Mutex::new(None),
        })
    }

    /// Which opcodes have a handler, and whose; and which had one.
    pub fn list(&self) -> Vec<Handler> {
        self.attached.recover();
        let programs = self.attached.programs();
        let (opcodes, _) = programs.context.opcodes();
        let live = self
            .attached
            .device
            .status()
            .is_ok_and(|status| status.attached != 0);
        let with = (0..abi::OPCODES as u32).filter(|opcode| opcodes >> opcode & 1 != 0);
        let object = |opcode| {
            let mut custom = programs.context.custom_handlers();
            custom
                .find(|(other, _)| *other == opcode)
                .map(|(_, name)| name.to_owned())
        };
        let name = |opcode: u32| abi::opcode_name(opcode).map_or_else(|| opcode.to_string(), str::to_owned);
        let attached = with.map(|opcode| Handler {
            opcode: name(opcode),
            object: object(opcode),
            attached: live,
            reason: String::new(),
        });
        let ejected = programs.ejected.iter().map(|(opcode, object, reason)| Handler {
            opcode: name(*opcode),
            object: Some(object.clone()),
            attached: false,
            reason: reason.clone(),
        });
        attached.chain(ejected).collect()
    }

    /// Puts the program of `object` into the place of the handler of `opcode`.
    pub fn load(&self, opcode: u32, object: &Object) -> Result<(), Refusal> {
        self.attached.recover();
        let mut programs = self.attached.programs();
        programs.context.load_handler(opcode, object).map_err(|error| {
            let log = match &error {
                ObjectError::Refused { log, .. } => log.clone(),
                _ => String::new(),
            };
            Refusal {
                error: error.to_string(),
                log,
            }
        })?;
        programs.ejected.retain(|(other, ..)| *other != opcode);
        if let Err(error) = self.attached.tell(&programs.context) {
            // As it was: the module would not ask it.
            let _ = programs.context.unload_handler(opcode);
            return Err(Refusal::because(match error.raw_os_error() {
                Some(libc::ENOENT) => "no programs are attached to this mount any more".into(),
                _ => format!("the module does not take it: {error}"),
            }));
        }
        drop(programs);
        // What the kernel keeps is the last handler's word.
        self.cache.invalidate_all();
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.is_none() {
            match Watch::start(&self.attached) {
                Ok(started) => *watch = Some(started),
                // Who lists the handlers, or asks for figures, looks too.
                Err(error) => tracing::warn!("an ejection will not be noticed by itself: {error}"),
            }
        }
        Ok(())
    }

    /// Puts the default handler of `opcode` back, if there is one; forgets one that was ejected.
    pub fn unload(&self, opcode: u32) -> Result<(), Refusal> {
        self.attached.recover();
        let mut programs = self.attached.programs();
        let ejected = programs.ejected.len();
        programs.ejected.retain(|(other, ..)| *other != opcode);
        let was_ejected = programs.ejected.len() < ejected;
        match programs.context.unload_handler(opcode) {
            Ok(true) => {}
            Ok(false) if was_ejected => return Ok(()),
            Ok(false) => return Err(Refusal::because("there is no handler of somebody's own".into())),
            Err(error) => return Err(Refusal::because(error.to_string())),
        }
        // If nothing is attached any more, there is nothing to tell.
        let _ = self.attached.tell(&programs.context);
        self.cache.invalidate_all();
        Ok(())
    }

    /// What the file system publishes to.
    pub fn cache(&self) -> Arc<Cache> {
        Arc::clone(&self.cache)
    }

    /// The device of the connection.
    pub fn device(&self) -> &Arc<Device<OwnedFd>> {
        &self.attached.device
    }

    /// What is attached. None if the connection is gone, and the figures with it.
    pub fn program(&self) -> Option<Program> {
        self.attached.recover();
        let status = self.attached.device.status().ok()?;
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
        let counters = self
            .attached
            .device
            .counters()
            .unwrap_or_else(|_| Counters::default());
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
                served: 0,    // the daemon counts these
                errors: None, // and these
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
        let fill = self.attached.programs().context.fill();
        Maps {
            entries: Fill {
                used: fill.entries,
                capacity: fill.capacity.entries.into(),
            },
            attrs: Fill {
                used: fill.attrs,
                capacity: fill.capacity.attrs.into(),
            },
            xattrs: Fill {
                used: fill.xattrs,
                capacity: fill.capacity.xattrs.into(),
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
