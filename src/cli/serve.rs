// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse serve`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use extfuse::fs::Stack;
use extfuse::remote::Address;
use extfuse::remote::server::{Export, Options, Server};
use extfuse::remote::wire;
use extfuse::remote::wire::auth::Token;
use sd_notify::NotifyState;

use super::{Failure, notify, say};

/// Serve directories to `extfuse mount` elsewhere.
///
/// Prints one line when clients can connect, tells $NOTIFY_SOCKET (sd_notify(3)), and stays in the foreground. SIGINT, SIGTERM and SIGHUP end it: what
/// clients have asked for by then is done. Clients are trusted with the users that they name: whoever has the
/// token may do in a directory whatever this process may.
#[derive(Debug, Args)]
pub struct Serve {
    /// The directories: DIR, or NAME=DIR for one of several
    #[arg(required = true, value_name = "[NAME=]DIR")]
    directories: Vec<OsString>,
    /// Where clients connect: HOST:PORT (port 0: any), or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    /// Serve only those who have the same token: the file's bytes, 16 or more; 32 random ones are good.
    /// Not needed on a socket unix:PATH, where those are served who may write to it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Serve whoever connects, without a token too, and in the clear beyond this machine
    #[arg(long)]
    insecure: bool,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
}

/// The bytes of a token's file, less a newline at its end.
pub fn token(file: &Path) -> anyhow::Result<Token> {
    let shown = || format!("the token in {}", file.display());
    let mut bytes = std::fs::read(file).with_context(shown)?;
    while bytes.last().is_some_and(|byte| b"\r\n".contains(byte)) {
        bytes.pop();
    }
    Token::new(bytes).with_context(shown)
}

/// Whether what goes over the line may be seen, and an impostor may answer.
pub fn check_line(address: &Address, insecure: bool) -> anyhow::Result<()> {
    ensure!(
        insecure || address.is_local(),
        "{address} is beyond this machine, and nothing that goes there is encrypted: use a tunnel, or --insecure"
    );
    Ok(())
}

impl Serve {
    pub fn run(self) -> Result<ExitCode, Failure> {
        check_line(&self.listen, self.insecure)
            .and_then(|()| self.check_clients())
            .map_err(Failure::Usage)?;
        let exports = self.directories.iter().map(|given| self.export(given));
        let exports = exports
            .collect::<anyhow::Result<Vec<_>>>()
            .map_err(Failure::Usage)?;
        let options = Options {
            token: self.token_file.as_deref().map(token).transpose()?,
            ..Options::default()
        };
        if let Err(errno) = Stack::raise_nofile() {
            tracing::warn!("cannot raise the limit of open files: {errno}");
        }
        let server = Server::bind(&self.listen, exports, options)?;
        let stopper = server.stopper();
        ctrlc::set_handler(move || {
            notify(NotifyState::Stopping);
            stopper.stop();
        })?;
        say(&format!("extfuse: serving on {}\n", server.address()?))?;
        notify(NotifyState::Ready);
        server.serve()?;
        Ok(ExitCode::SUCCESS)
    }

    /// Every user of this machine can connect to a port of it, and would get this process's rights.
    fn check_clients(&self) -> anyhow::Result<()> {
        ensure!(
            self.insecure || self.token_file.is_some() || matches!(self.listen, Address::Unix(_)),
            "whoever connects to {} would be served: give --token-file, listen on unix:PATH, or say --insecure",
            self.listen
        );
        Ok(())
    }

    /// An `=` behind a `/` belongs to a path.
    fn export(&self, given: &OsString) -> anyhow::Result<Export> {
        let bytes = given.as_bytes();
        let equals = bytes.iter().position(|byte| b"=/".contains(byte));
        let (name, directory) = match equals {
            Some(at) if bytes[at] == b'=' => (&bytes[..at], &bytes[at + 1..]),
            _ => (&b""[..], bytes),
        };
        ensure!(!directory.is_empty(), "{} names no directory", given.display());
        Ok(Export {
            name: wire::Export::new(name).map_err(|error| anyhow!("{}: {error}", given.display()))?,
            directory: OsString::from_vec(directory.to_vec()).into(),
            read_only: self.read_only,
        })
    }
}
