// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many system calls a thread makes, and what for a process makes them.

use std::ffi::{CString, c_char};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys::{PERF_FLAG_FD_CLOEXEC, PERF_TYPE_TRACEPOINT, perf_event_attr};
use nix::unistd::Pid;

/// The tracepoint's number.
const ENTERED: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";

nix::ioctl_write_ptr_bad!(
    perf_event_set_filter,
    nix::request_code_write!(b'$', 6, size_of::<*const c_char>()),
    c_char
);

/// Counts calls of one thread. While there is one, every system call of everybody costs more: what is counted is not to
/// be timed.
#[derive(Debug)]
struct Counter(File);

impl Counter {
    /// Of this thread (0) or that one; of all calls, or of those with one of these numbers.
    fn open(thread: i32, only: &[i64]) -> Result<Self> {
        let number = fs::read_to_string(ENTERED).with_context(|| format!("cannot read {ENTERED}"))?;
        let attributes = perf_event_attr {
            type_: PERF_TYPE_TRACEPOINT,
            size: size_of::<perf_event_attr>() as u32,
            config: number.trim().parse().context(ENTERED)?,
            ..Default::default()
        };
        let (any_cpu, no_group) = (-1, -1);
        // SAFETY: the attributes are valid for as long as the call takes, and say their own size.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                any_cpu,
                no_group,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd
            .ok_or_else(io::Error::last_os_error)
            .context("perf_event_open")?;
        // SAFETY: the kernel has just given it to us, and nobody else has it.
        let counter = unsafe { File::from_raw_fd(fd) };
        if !only.is_empty() {
            let terms: Vec<String> = only.iter().map(|number| format!("id == {number}")).collect();
            let filter = CString::new(terms.join(" || "))?;
            // SAFETY: a text that ends with NUL, and outlives the call.
            unsafe { perf_event_set_filter(counter.as_raw_fd(), filter.as_ptr()) }
                .context("the kernel does not count by the number of a call")?;
        }
        Ok(Self(counter))
    }

    fn count(&mut self) -> Result<u64> {
        let mut count = [0; 8];
        self.0.read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}

/// All calls of the thread that made it.
#[derive(Debug)]
pub struct SystemCalls {
    counter: Counter,
    /// What asking adds.
    asking: u64,
}

impl SystemCalls {
    pub fn of_this_thread() -> Result<Self> {
        let mut counter = Counter::open(0, &[])?;
        let first = counter.count()?;
        let asking = counter.count()? - first;
        Ok(Self { counter, asking })
    }

    /// How many are made by `what`.
    pub fn of(&mut self, what: impl FnOnce() -> Result<()>) -> Result<u64> {
        let before = self.counter.count()?;
        what()?;
        Ok(self.counter.count()? - before - self.asking)
    }
}

/// What calls are for, in the order of [`Purposes`]; all the others are for something else.
const NUMBERS: [&[i64]; 3] = [
    &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
    ],
    &[
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
    ],
    // A lock that somebody else has is waited for by giving way first.
    &[libc::SYS_futex, libc::SYS_sched_yield],
];

/// Calls by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purposes {
    /// To receive.
    pub receiving: u64,
    /// To send.
    pub sending: u64,
    /// One thread waits for another one, or wakes it.
    pub handing_over: u64,
    pub others: u64,
}

/// All calls of another process, by the threads that it has now.
#[derive(Debug)]
pub struct ByPurpose {
    all: Vec<Counter>,
    by_number: [Vec<Counter>; 3],
}

impl ByPurpose {
    pub fn of_process(pid: Pid) -> Result<Self> {
        let folder = format!("/proc/{pid}/task");
        let mut threads = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
            threads.push(entry?.file_name().to_string_lossy().parse().context("a thread")?);
        }
        let counters = |only: &[i64]| -> Result<Vec<Counter>> {
            threads
                .iter()
                .map(|thread| Counter::open(*thread, only))
                .collect()
        };
        let [receiving, sending, handing_over] = NUMBERS;
        Ok(Self {
            all: counters(&[])?,
            by_number: [counters(receiving)?, counters(sending)?, counters(handing_over)?],
        })
    }

    fn counts(&mut self) -> Result<[u64; 4]> {
        let sum = |counters: &mut Vec<Counter>| counters.iter_mut().map(Counter::count).sum::<Result<u64>>();
        let [receiving, sending, handing_over] = &mut self.by_number;
        Ok([
            sum(receiving)?,
            sum(sending)?,
            sum(handing_over)?,
            // Last: it has at least what the others have.
            sum(&mut self.all)?,
        ])
    }

    /// How many are made while `what` happens.
    pub fn during<T>(&mut self, what: impl FnOnce() -> Result<T>) -> Result<(T, Purposes)> {
        let before = self.counts()?;
        let given = what()?;
        let after = self.counts()?;
        let [receiving, sending, handing_over, all] = std::array::from_fn(|i| after[i] - before[i]);
        let known = receiving + sending + handing_over;
        let purposes = Purposes {
            receiving,
            sending,
            handing_over,
            // A thread may have begun a call between two of the counts.
            others: all.saturating_sub(known),
        };
        Ok((given, purposes))
    }
}
