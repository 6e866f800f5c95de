// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse mount`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use extfuse::session::{
    MountOptions, Outcome, Session, Supervisor, Unmounter, parse_seconds, unmount_on_signals,
};
use nix::unistd::chdir;

use super::daemon::{Herald, Launched, launch};
use super::{Failure, complain};

/// Mount a directory somewhere else, through extfuse.
///
/// Without the extfuse module, or without privilege, it is mounted through stock FUSE, with a
/// warning. The mount ends with `extfuse umount`, umount(8), or a signal (SIGINT, SIGTERM, SIGHUP)
/// to the daemon: the first unmounts; if the mount is in use it is detached at once, and the
/// daemon goes on for those who still use it. A second signal ends the daemon, and they get errors.
#[derive(Debug, Args)]
#[command(after_help = OPTIONS)]
pub struct Mount {
    /// The directory to serve
    source: PathBuf,
    /// Where to mount it
    mountpoint: PathBuf,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, comma-separated; see below
    #[arg(short, value_name = "OPTIONS")]
    o: Vec<OsString>,
    /// Use the module, but attach no handlers
    #[arg(long)]
    no_handlers: bool,
    /// Use stock FUSE even if the module is there
    #[arg(long, conflicts_with = "require_module")]
    stock: bool,
    /// Threads that answer requests; default: one a core, 2 to 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Fail rather than fall back to stock FUSE or go without handlers
    #[arg(long)]
    require_module: bool,
    /// The oldest answer to give when SOURCE is changed behind the mount; default: 1
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "exclusive")]
    ttl: Option<Duration>,
    /// All changes to SOURCE come through this mount: answers hold until then
    #[arg(long)]
    exclusive: bool,
}

const OPTIONS: &str = "\
Mount options:
  ro, rw                     without or with changes
  suid, dev                  heed set-user-id bits, device nodes (default: nosuid, nodev)
  noexec, noatime            as in mount(8)
  allow_other                users other than the owner may use it (default for root;
                             no_allow_other: they may not)
  default_permissions        always on: the kernel checks permissions
  fsname=NAME, subtype=NAME  shown as source and type
  max_read=BYTES             largest READ
  entry_timeout=SECONDS, attr_timeout=SECONDS
                             how long the kernel keeps names and attributes by itself
                             (default: 0; without handlers the ttl if given)
  keep_cache                 opening a file keeps its cached pages (implies no_passthrough)
  no_passthrough             reads and writes go through the daemon
  ttl=SECONDS, exclusive     as the options above
  entries=N                  rows in each of the handlers' maps";

fn seconds(text: &str) -> Result<Duration, String> {
    parse_seconds(text).ok_or_else(|| "a number of seconds expected".into())
}

impl Mount {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let options = self.options().map_err(Failure::Usage)?;
        if self.foreground {
            return self.serve(options, None);
        }
        match launch()? {
            Launched::Command(result) => result,
            Launched::Daemon(herald) => self.serve(options, Some(herald)),
        }
    }

    fn options(&self) -> anyhow::Result<MountOptions> {
        let mut options = MountOptions::default();
        for list in &self.o {
            options.add(list)?;
        }
        options.ttl = self.ttl.or(options.ttl);
        options.exclusive |= self.exclusive;
        options.check()?;
        Ok(options)
    }

    /// Mounts and serves. In the background errors go to the command while it listens.
    fn serve(self, options: MountOptions, herald: Option<Herald>) -> Result<ExitCode, Failure> {
        let alone = herald.as_ref().map_or(Ok(()), Herald::leave_terminal);
        let session = match alone.and_then(|()| self.mount(options)) {
            Ok(session) => session,
            Err(error) => {
                let Some(herald) = herald else {
                    return Err(error.into());
                };
                herald.failed(&error);
                return Ok(ExitCode::FAILURE);
            }
        };
        if let Some(herald) = herald {
            herald.ready()?;
        }
        session.serve()?;
        Ok(ExitCode::SUCCESS)
    }

    fn mount(self, options: MountOptions) -> anyhow::Result<Session> {
        // Before there is anything that it must not inherit.
        let supervisor = Supervisor::start().context("cannot start the watch over the daemon")?;
        let mut builder = Session::builder(self.source, self.mountpoint)
            .options(options)
            .stock(self.stock)
            .handlers(!self.no_handlers)
            .require_module(self.require_module)
            .supervisor(supervisor);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads.into());
        }
        let session = builder.mount()?;
        for warning in session.warnings() {
            eprintln!("extfuse: warning: {warning}");
        }
        end_on_signals(session.unmounter())?;
        // Not to be what keeps another file system from being unmounted.
        chdir("/")?;
        Ok(session)
    }
}

/// See the help of the command for what the signals do.
fn end_on_signals(unmounter: Unmounter) -> anyhow::Result<()> {
    unmount_on_signals(unmounter, |end| match end {
        Ok(Outcome::Unmounted) => {}
        Ok(Outcome::Busy) => {
            eprintln!(
                "extfuse: the mount is in use: detached, it ends with its last user or a second signal"
            );
        }
        Err(error) => complain(&anyhow!("cannot unmount: {error}")),
    })?;
    Ok(())
}
