// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse serve`.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use extfuse::fs::Stack;
use extfuse::remote::Address;
use extfuse::remote::server::{Export, Options, Server};
use extfuse::remote::wire;
use extfuse::remote::wire::auth::Token;
use sd_notify::NotifyState;

use super::tls::ServeTls;
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
    #[command(flatten)]
    tls: ServeTls,
    /// Serve whoever connects, without a token or a client's certificate too, and without TLS beyond this machine
    #[arg(long)]
    insecure: bool,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// How long clients may keep an answer that nobody has changed through this server: for changes that are made
    /// in the directory without it; default: 1
    #[arg(long, value_name = "SECONDS", value_parser = super::mount::seconds, conflicts_with = "exclusive")]
    ttl: Option<Duration>,
    /// All changes come through this server: clients keep answers until then
    #[arg(long)]
    exclusive: bool,
    /// How long clients may use what they keep without hearing of the server. So long a change waits for a client that
    /// is not there any more, and so long its files stay open for it to come back; default: 10
    #[arg(long, value_name = "SECONDS", value_parser = super::mount::seconds)]
    lease: Option<Duration>,
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
        "{address} is beyond this machine, and nothing that goes there is encrypted: use TLS, a tunnel, or --insecure"
    );
    Ok(())
}

/// A folder of our own that is gone when the machine is: systemd's, the system's for root, the user's.
fn runtime_folder() -> anyhow::Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let given = |name| {
        std::env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let folder = given("RUNTIME_DIRECTORY").unwrap_or_else(|| match given("XDG_RUNTIME_DIR") {
        _ if uid.is_root() => "/run/extfuse".into(),
        Some(of_user) => of_user.join("extfuse"),
        None => std::env::temp_dir().join(format!("extfuse-{uid}")),
    });
    let shown = || format!("a folder for the server's leases: {}", folder.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(shown)?;
    // In a folder for everybody somebody else may have been there first.
    let seen = std::fs::symlink_metadata(&folder).with_context(shown)?;
    let is_ours = seen.is_dir() && seen.uid() == uid.as_raw() && seen.mode() & 0o022 == 0;
    ensure!(
        is_ours,
        "{} is not ours alone to write to: set RUNTIME_DIRECTORY",
        folder.display()
    );
    Ok(folder)
}

impl Serve {
    pub fn run(self) -> Result<ExitCode, Failure> {
        check_line(&self.listen, self.insecure || self.tls.is_given())
            .and_then(|()| self.check_clients())
            .map_err(Failure::Usage)?;
        let exports = self.directories.iter().map(|given| self.export(given));
        let exports = exports
            .collect::<anyhow::Result<Vec<_>>>()
            .map_err(Failure::Usage)?;
        let default = Options::default();
        let options = Options {
            lease: self.lease.unwrap_or(default.lease),
            leases: Some(self.leases_file()?),
            keep: match self.exclusive {
                true => None,
                false => self.ttl.or(default.keep),
            },
            token: self.token_file.as_deref().map(token).transpose()?,
            tls: self.tls.load()?,
            ..default
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

    /// Where it is noted that clients may keep what this server has told them: the next one of the same directories and
    /// address finds it there.
    fn leases_file(&self) -> anyhow::Result<PathBuf> {
        let folder = runtime_folder()?;
        let mut name = blake3::Hasher::new();
        for part in
            std::iter::once(OsString::from(self.listen.to_string())).chain(self.directories.iter().cloned())
        {
            let part = part.as_bytes();
            name.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Ok(folder.join(format!("leases-{}", &name.finalize().to_hex()[..16])))
    }

    /// Every user of this machine can connect to a port of it, and would get this process's rights.
    fn check_clients(&self) -> anyhow::Result<()> {
        ensure!(
            self.insecure
                || self.token_file.is_some()
                || self.tls.wants_certificates()
                || matches!(self.listen, Address::Unix(_)),
            "whoever connects to {} would be served: give --token-file or --tls-client-ca, listen on unix:PATH, or say --insecure",
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
