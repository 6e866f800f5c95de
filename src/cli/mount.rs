// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse mount`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use extfuse::session::{
    MountOptions, Outcome, Session, Supervisor, Unmounter, parse_seconds, unmount_on_signals,
};
use fuser::Filesystem;
use nix::unistd::chdir;
use sd_notify::NotifyState;

use super::daemon::{Herald, Launched, launch};
use super::remote::{self, How, Line, Source};
use super::{Failure, complain, merge, notify, say};

/// Mount a directory somewhere else, what a server has, or files merged of others, through extfuse.
///
/// Prints one line when it is mounted. A server's directory is extfuse://HOST:PORT/NAME/PATH, without NAME the one that
/// it serves without a name, without PATH all of it; or extfuse+unix:SOCKET. With the module its answers are kept until the
/// server takes them back; without it, or with --consistency strict, everything is asked of the server.
///
/// merge:SPEC.toml is a read-only file system of files that are put together from ranges of others, of this machine and of
/// servers, one behind the other or in turn; see below.
///
/// Without the extfuse module, or without privilege, it is mounted through stock FUSE, with a
/// warning. The mount ends with `extfuse umount`, umount(8), or a signal (SIGINT, SIGTERM, SIGHUP)
/// to the daemon: the first unmounts; if the mount is in use it is detached at once, and the
/// daemon goes on for those who still use it. A second signal ends the daemon, and they get errors.
#[derive(Debug, Args)]
#[command(after_help = OPTIONS)]
pub struct Mount {
    /// What to serve: a directory's path, extfuse://HOST:PORT/NAME/PATH, or merge:SPEC.toml
    source: PathBuf,
    /// Where to mount it
    mountpoint: PathBuf,
    /// Stay in the foreground, and tell $NOTIFY_SOCKET (sd_notify(3)) when it is mounted
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
    /// Nodes to remember when the kernel has forgotten them, each with a descriptor, so that their names are
    /// found without a request again; 0: none; default: with --exclusive as many as the maps have rows
    #[arg(long, value_name = "N")]
    hold: Option<u32>,
    #[command(flatten)]
    line: Line,
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
  ttl=SECONDS, exclusive, hold=N
                             as the options above
  entries=N                  rows in each of the handlers' maps

Merged files: SPEC.toml says what is put together; docs/merge.md has all of it, and what becomes of changes.

  [server.east]                         # as on the command line: token_file, tls, tls_ca, tls_name,
  url = \"extfuse+unix:/run/east.sock\"   # tls_cert, tls_key, insecure, timeout, on_disconnect

  [[file]]
  path = \"images/disk.img\"
  mode = 0o444                          # optional
  stripe = 65536                        # optional: so many bytes of each part in turn
  parts = [
    { local = \"head\", offset = 0, length = 65536 },
    { server = \"east\", path = \"dir/rest\" },
    { zeros = 65536 },
  ]

  Of the mount options only ro, allow_other, fsname, subtype, max_read and ttl are for merged files: ttl is how old
  attributes may be.";

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    parse_seconds(text).ok_or_else(|| "a number of seconds expected".into())
}

/// What is mounted.
#[derive(Debug)]
enum What {
    /// A directory of this machine.
    Directory,
    /// What a server has.
    Remote(Source),
    /// Merged files, by their spec.
    Merged(PathBuf),
}

impl Mount {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let options = self.options().map_err(Failure::Usage)?;
        let what = self.what(&options).map_err(Failure::Usage)?;
        if self.foreground {
            return self.serve(options, what, None);
        }
        let line = self.ready_line();
        match launch()? {
            Launched::Command(result) => {
                let code = result?;
                say(&line)?;
                Ok(code)
            }
            Launched::Daemon(herald) => self.serve(options, what, Some(herald)),
        }
    }

    fn ready_line(&self) -> String {
        format!(
            "extfuse: {} is mounted at {}\n",
            self.source.display(),
            self.mountpoint.display()
        )
    }

    /// What is to be mounted, if all that was said goes with it.
    fn what(&self, options: &MountOptions) -> anyhow::Result<What> {
        let source = self.source.as_os_str();
        if let Some(spec) = merge::parse(source)? {
            ensure!(!self.no_handlers, "--no-handlers is not for merged files");
            merge::check(&self.line, options)?;
            return Ok(What::Merged(spec));
        }
        if let Some(source) = Source::parse(source)? {
            ensure!(!self.no_handlers, "--no-handlers is not for what a server has");
            source.check(&self.line, options)?;
            return Ok(What::Remote(source));
        }
        ensure!(
            !self.line.is_given(),
            "{} is on no server: for extfuse://HOST:PORT only",
            self.source.display()
        );
        Ok(What::Directory)
    }

    fn options(&self) -> anyhow::Result<MountOptions> {
        let mut options = MountOptions::default();
        for list in &self.o {
            options.add(list)?;
        }
        options.ttl = self.ttl.or(options.ttl);
        options.exclusive |= self.exclusive;
        options.hold = self.hold.or(options.hold);
        options.check()?;
        Ok(options)
    }

    /// Mounts and serves. In the background errors go to the command while it listens.
    fn serve(self, options: MountOptions, what: What, herald: Option<Herald>) -> Result<ExitCode, Failure> {
        let line = self.ready_line();
        let alone = herald.as_ref().map_or(Ok(()), Herald::leave_terminal);
        let mounted = alone.and_then(|()| match what {
            What::Directory => self.mount(options),
            What::Remote(source) => self.mount_remote(source, options),
            What::Merged(spec) => self.mount_merged(&spec, options),
        });
        let serve = match mounted {
            Ok(serve) => serve,
            Err(error) => {
                let Some(herald) = herald else {
                    return Err(error.into());
                };
                herald.failed(&error);
                return Ok(ExitCode::FAILURE);
            }
        };
        match herald {
            Some(herald) => herald.ready()?,
            None => {
                say(&line)?;
                notify(NotifyState::Ready);
            }
        }
        serve()?;
        Ok(ExitCode::SUCCESS)
    }

    fn mount_remote(self, source: Source, options: MountOptions) -> anyhow::Result<Serve> {
        let supervisor = watch()?;
        let (line, how) = self.how(options);
        ready(remote::mount(source, &line, how, supervisor)?)
    }

    fn mount_merged(self, spec: &Path, options: MountOptions) -> anyhow::Result<Serve> {
        let supervisor = watch()?;
        let (_, how) = self.how(options);
        ready(merge::mount(spec, how, supervisor)?)
    }

    fn how(self, options: MountOptions) -> (Line, How) {
        let how = How {
            mountpoint: self.mountpoint,
            fsname: self.source.into(),
            options,
            stock: self.stock,
            require_module: self.require_module,
            threads: self.threads,
        };
        (self.line, how)
    }

    fn mount(self, options: MountOptions) -> anyhow::Result<Serve> {
        let supervisor = watch()?;
        let mut builder = Session::builder(self.source, self.mountpoint)
            .options(options)
            .stock(self.stock)
            .handlers(!self.no_handlers)
            .require_module(self.require_module)
            .supervisor(supervisor);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads.into());
        }
        ready(builder.mount()?)
    }
}

/// Serves what is mounted, until it is not any more.
type Serve = Box<dyn FnOnce() -> anyhow::Result<()>>;

/// Before there is anything that it must not inherit.
fn watch() -> anyhow::Result<Supervisor> {
    Supervisor::start().context("cannot start the watch over the daemon")
}

/// All that there is to do before a mount is served.
fn ready<FS: Filesystem + 'static>(session: Session<FS>) -> anyhow::Result<Serve> {
    for warning in session.warnings() {
        eprintln!("extfuse: warning: {warning}");
    }
    end_on_signals(session.unmounter())?;
    // Not to be what keeps another file system from being unmounted.
    chdir("/")?;
    Ok(Box::new(|| Ok(session.serve()?)))
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
