// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many system calls a thread makes, of whatever kind.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::FromRawFd;

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys::{PERF_FLAG_FD_CLOEXEC, PERF_TYPE_TRACEPOINT, perf_event_attr};

/// The tracepoint's number.
const ENTERED: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";

/// A counter of the thread that made it. While there is one, every system call of everybody costs more: what
/// is counted is not to be timed.
#[derive(Debug)]
pub struct SystemCalls {
    counter: File,
    /// What asking adds.
    asking: u64,
}

impl SystemCalls {
    pub fn of_this_thread() -> Result<Self> {
        let number = fs::read_to_string(ENTERED).with_context(|| format!("cannot read {ENTERED}"))?;
        let attributes = perf_event_attr {
            type_: PERF_TYPE_TRACEPOINT,
            size: size_of::<perf_event_attr>() as u32,
            config: number.trim().parse().context(ENTERED)?,
            ..Default::default()
        };
        let (this_thread, any_cpu, no_group) = (0, -1, -1);
        // SAFETY: the attributes are valid for as long as the call takes, and say their own size.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                this_thread,
                any_cpu,
                no_group,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd
            .ok_or_else(io::Error::last_os_error)
            .context("perf_event_open")?;
        let mut counter = Self {
            // SAFETY: the kernel has just given it to us, and nobody else has it.
            counter: unsafe { File::from_raw_fd(fd) },
            asking: 0,
        };
        let first = counter.count()?;
        counter.asking = counter.count()? - first;
        Ok(counter)
    }

    fn count(&mut self) -> Result<u64> {
        let mut count = [0; 8];
        self.counter.read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }

    /// How many are made by `what`.
    pub fn of(&mut self, what: impl FnOnce() -> Result<()>) -> Result<u64> {
        let before = self.count()?;
        what()?;
        Ok(self.count()? - before - self.asking)
    }
}
