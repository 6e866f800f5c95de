// SPDX-License-Identifier: MIT OR Apache-2.0
//! Going to the background: the command ends when the mount is there, or with why it is not.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use extfuse::sys::process::{Side, close_stdin, fork, silence};
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, setsid};

use super::Failure;

const READY: &[u8] = b"ready";

/// Which process goes on.
pub enum Launched {
    /// The command: it has heard from the daemon, and ends with that.
    Command(Result<ExitCode, Failure>),
    /// The daemon.
    Daemon(Herald),
}

/// The daemon's line to the command that started it.
#[derive(Debug)]
pub struct Herald(File);

/// Forks. Gives twice: in the daemon at once, in the command when the daemon has said how it went.
pub fn launch() -> Result<Launched, Failure> {
    let (receiver, sender) = pipe2(OFlag::O_CLOEXEC)?;
    match fork().context("cannot start the daemon")? {
        Side::Parent(_) => {
            drop(sender);
            Ok(Launched::Command(await_daemon(receiver.into())))
        }
        Side::Child => {
            drop(receiver);
            Ok(Launched::Daemon(Herald(sender.into())))
        }
    }
}

fn await_daemon(mut receiver: File) -> Result<ExitCode, Failure> {
    let mut told = Vec::new();
    receiver
        .read_to_end(&mut told)
        .context("cannot hear the daemon")?;
    match told.as_slice() {
        READY => Ok(ExitCode::SUCCESS),
        [] => Err(anyhow!("the daemon died before the mount was ready").into()),
        error => Err(anyhow!("{}", String::from_utf8_lossy(error)).into()),
    }
}

impl Herald {
    /// Leaves the terminal, but for standard error: there may be warnings to come.
    pub fn leave_terminal(&self) -> anyhow::Result<()> {
        setsid()?;
        close_stdin().context("cannot open /dev/null")
    }

    /// The mount is there. An error if nobody wants it any more: the command was interrupted.
    pub fn ready(mut self) -> Result<(), Failure> {
        self.0
            .write_all(READY)
            .context("the command that started the daemon is gone")?;
        Ok(silence()?)
    }

    /// There is no mount, because of `error`.
    pub fn failed(mut self, error: &anyhow::Error) {
        // If nobody listens, nobody is left to tell.
        let _ = write!(self.0, "{error:#}");
    }
}
