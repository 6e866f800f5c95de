// SPDX-License-Identifier: MIT OR Apache-2.0
//! The process that takes a dead mount off.
//!
//! A daemon that is killed cannot unmount; whoever looks at the mount then gets ENOTCONN. So a
//! small process waits for the daemon's end and unmounts for it. It is forked before the daemon
//! opens or starts anything, holds nothing but one end of a socket, and learns from it which
//! mount to watch; end of file without a farewell means that the daemon died.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir, setsid};

use super::Unmounter;
use crate::sys::mountinfo::MountId;
use crate::sys::process::{Side, exit_now, fork, ignore_termination, keep_only, silence};

const FAREWELL: &str = "farewell";

/// Watches over this process and unmounts for it if it dies. Dropping it ends the watch.
#[derive(Debug)]
pub struct Supervisor {
    line: Option<UnixStream>,
    process: Pid,
}

impl Supervisor {
    /// Starts the process that watches. To be called before this process has threads, descriptors
    /// or anything else that the other must not have; EBUSY if there are threads already.
    pub fn start() -> io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        match fork()? {
            Side::Parent(process) => {
                drop(theirs);
                // Until it is ready, a signal to all of a service would end it.
                let ready = ours.read_exact(&mut [0]);
                let supervisor = Self {
                    line: Some(ours),
                    process,
                };
                ready.map(|()| supervisor)
            }
            Side::Child => {
                let code = i32::from(supervise(theirs).is_none());
                exit_now(code)
            }
        }
    }

    /// From here on `mount` is taken off when this process dies.
    pub(super) fn watch(&mut self, mount: MountId, privileged: bool) -> io::Result<()> {
        // In one write: the reader sees a whole line or none.
        let line = describe(mount, privileged);
        self.line
            .as_mut()
            .map_or(Ok(()), |socket| socket.write_all(line.as_bytes()))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(mut line) = self.line.take() {
            // If it is gone there is nobody to say farewell to.
            let _ = line.write_all(FAREWELL.as_bytes());
        }
        let _ = waitpid(self.process, None);
    }
}

/// The other process: from the fork to the end of the daemon. None where something went wrong.
fn supervise(line: UnixStream) -> Option<()> {
    let line = OwnedFd::from(line);
    keep_only(&line).ok()?;
    silence().ok()?;
    ignore_termination().ok()?;
    setsid().ok()?;
    chdir("/").ok()?;
    // For who looks at the list of processes; nothing depends on it.
    let _ = nix::sys::prctl::set_name(c"extfuse-watch");

    let mut line = UnixStream::from(line);
    line.write_all(b"!").ok()?;
    let mut told = String::new();
    line.read_to_string(&mut told).ok()?;
    if told.ends_with(FAREWELL) {
        return Some(());
    }
    let (mount, privileged) = parse(told.lines().last()?)?;
    Unmounter::new(mount, privileged).detach().ok()
}

fn describe(mount: MountId, privileged: bool) -> String {
    let how = if privileged { "kernel" } else { "fusermount" };
    let unique = mount.unique.map_or_else(|| "-".into(), |id| id.to_string());
    format!("{} {} {unique} {how}\n", mount.id, mount.dev)
}

fn parse(line: &str) -> Option<(MountId, bool)> {
    let mut words = line.split(' ');
    let id = words.next()?.parse().ok()?;
    let dev = words.next()?.parse().ok()?;
    let unique = match words.next()? {
        "-" => None,
        number => Some(number.parse().ok()?),
    };
    Some((MountId { id, dev, unique }, words.next()? == "kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mountinfo::Dev;

    #[test]
    fn what_the_daemon_says_is_understood() {
        let dev = Dev { major: 0, minor: 45 };
        for (unique, privileged) in [(Some(4_294_967_400), true), (None, false)] {
            let mount = MountId { id: 73, dev, unique };
            assert_eq!(
                parse(describe(mount, privileged).trim_end()),
                Some((mount, privileged))
            );
        }
        assert_eq!(parse("73 0:45"), None);
    }
}
