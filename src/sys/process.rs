// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes: forking, leaving the terminal, limits and privileges.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The new process.
    Child,
    /// The old one.
    Parent(Pid),
}

/// Forks. Refused with EBUSY in a process that has other threads: their locks would be copied in
/// whatever state they are.
pub fn fork() -> Result<Side, Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is one thread, so the child finds every lock free.
    Ok(match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Side::Child,
        ForkResult::Parent { child } => Side::Parent(child),
    })
}

/// Points standard input, output and error to nowhere.
pub fn silence() -> io::Result<()> {
    let null = null()?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// Points standard input to nowhere.
pub fn close_stdin() -> io::Result<()> {
    Ok(dup2_stdin(null()?)?)
}

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// Closes every descriptor but `keep` and the standard ones, opened by whomever.
///
/// Only for a process that was just forked to do one thing: whatever owned those descriptors must
/// not be used or dropped in it.
pub fn keep_only(keep: &OwnedFd) -> Result<(), Errno> {
    let keep = libc::c_uint::try_from(keep.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    if keep > 3 {
        close_range(3, keep - 1)?;
    }
    close_range(keep + 1, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: scalars only; the caller gives up the owners of these descriptors.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Makes this process outlive what ends a service or a terminal's programs: it has its own end.
pub fn ignore_termination() -> Result<(), Errno> {
    for kind in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGPIPE,
    ] {
        // SAFETY: ignoring runs no code.
        unsafe { signal(kind, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Ends this process at once, without what the library or the parent had planned for the end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it does not return, and touches no memory.
    unsafe { libc::_exit(code) }
}

/// How many descriptors this process may have at the moment.
#[must_use]
pub fn most_descriptors() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Whether so many more descriptors could be opened, about: the lowest number that is free is taken first. `any` is
/// copied for a moment.
#[must_use]
pub fn has_descriptors(any: impl AsFd, more: u64) -> bool {
    let next = any.as_fd().try_clone_to_owned();
    next.is_ok_and(|next| (next.as_raw_fd().unsigned_abs() as u64) + more < most_descriptors())
}

/// A capability that this program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Reading any file, and searching any directory.
    DacReadSearch = 2,
    /// Mounting, backing files.
    SysAdmin = 21,
    /// Raising limits.
    SysResource = 24,
    /// Loading eBPF programs.
    Bpf = 39,
}

/// Whether this process has `capability` in force.
#[must_use]
pub fn has_capability(capability: Capability) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    set >> capability as u32 & 1 == 1
}
