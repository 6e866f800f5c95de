// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: every error is one line on standard error, exit code 2 for wrong usage, 1 for
//! everything else.

mod daemon;
mod doctor;
mod exports;
mod fetch;
mod handler;
mod merge;
mod mount;
mod remote;
mod serve;
mod stat;
mod tls;
mod umount;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use tracing_subscriber::EnvFilter;

/// fuser reports as an error that a reply came too late: for a request that an unmount or a signal
/// has ended, that is nothing to worry about.
const DEFAULT_LOG: &str = "error,fuser::reply=off";

/// FUSE file systems whose lookups, stats and reads are answered in the kernel.
#[derive(Debug, Parser)]
#[command(name = "extfuse", version, about, disable_help_subcommand = true)]
struct Cli {
    /// What to log on standard error: error, warn, info, debug, trace or off, also by module
    /// (extfuse=debug,fuser=off). Default: $EXTFUSE_LOG, or error
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::Mount>),
    Serve(Box<serve::Serve>),
    Umount(umount::Umount),
    Fetch(fetch::Fetch),
    Stat(stat::Stat),
    Handler(handler::Handler),
    Doctor(doctor::Doctor),
}

/// Why a command failed, and whose fault it is.
#[derive(Debug)]
enum Failure {
    /// The command line is wrong.
    Usage(anyhow::Error),
    /// The command was understood, and did not work.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Runs what the command line says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = start_log(cli.log).and_then(|()| match cli.command {
        Command::Mount(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Umount(command) => command.run(),
        Command::Fetch(command) => command.run(),
        Command::Stat(command) => command.run(),
        Command::Handler(command) => command.run(),
        Command::Doctor(command) => command.run(),
    });
    match result {
        Ok(code) => code,
        Err(Failure::Usage(error)) => {
            complain(&error);
            ExitCode::from(2)
        }
        Err(Failure::Other(error)) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// One line, whatever the error consists of.
fn complain(error: &anyhow::Error) {
    let text = format!("{error:#}");
    eprintln!(
        "extfuse: {}",
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    );
}

/// Writes to standard output. Whoever has read enough and closed it is no error.
fn say(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Tells whoever supervises this process how it goes (`Type=notify` of systemd), if anybody does.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell $NOTIFY_SOCKET: {error}");
    }
}

/// Help and version as they are; of an error the part before the advice, in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nothing to do about a standard output that is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain(&anyhow!("no command given (see extfuse --help)"));
        return ExitCode::from(2);
    }
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    complain(&anyhow!("{first} (see extfuse --help)"));
    ExitCode::from(2)
}

fn start_log(level: Option<String>) -> Result<(), Failure> {
    let level = level
        .or_else(|| std::env::var("EXTFUSE_LOG").ok())
        .unwrap_or_else(|| DEFAULT_LOG.into());
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| Failure::Usage(anyhow!("log level {level:?}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
