// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse serve`.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use extfuse::fs::Stack;
use extfuse::remote::Address;
use extfuse::remote::server::{Credentials, Export, Ids, Listener, Mapping, Options, Reloader, Server};
use extfuse::remote::wire::auth::Token;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Group, Uid, User, seteuid, setgroups, setresgid, setresuid};
use sd_notify::NotifyState;

use super::exports::{self, Exports};
use super::tls::ServeTls;
use super::{Failure, complain, notify, say};

/// Serve directories to `extfuse mount` elsewhere.
///
/// Prints one line when clients can connect, tells $NOTIFY_SOCKET (sd_notify(3)), and stays in the foreground. SIGINT and SIGTERM end it: what
/// clients have asked for by then is done. SIGHUP has it read the token and the certificates anew, for those who connect from then
/// on, and the file of exports. Clients are trusted with the users that they name: whoever has the
/// token may do in a directory whatever this process may; with --squash that is what that user may.
#[derive(Debug, Args)]
#[command(after_help = exports::HELP)]
pub struct Serve {
    #[command(flatten)]
    exports: Exports,
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
    /// Do all that clients ask for as this user, whoever asks: give up root's rights once the socket is there. What is
    /// made belongs to this user; with a group by name or number, or the user's own. The token and certificates are read before, and
    /// on SIGHUP as this user
    #[arg(long, value_name = "USER[:GROUP]", value_parser = squash)]
    squash: Option<(Uid, Gid)>,
    /// A user's number on clients and here: files of the one are shown as the other's, and what that user makes there is
    /// this one's here. May be given several times. ACLs keep their numbers
    #[arg(long, value_name = "CLIENT:HERE", value_parser = pair)]
    map_user: Vec<(u32, u32)>,
    /// The same for a group
    #[arg(long, value_name = "CLIENT:HERE", value_parser = pair)]
    map_group: Vec<(u32, u32)>,
    /// Files and directories that a client may have open here at the same time; default: 65536
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_open: Option<u32>,
    /// Files and directories that a client's kernel may remember at the same time, each with a descriptor here, of which
    /// clients have equal shares at most; default: 1048576
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    max_nodes: Option<u32>,
}

/// A number on clients and here.
fn pair(text: &str) -> Result<(u32, u32), String> {
    let pair = text
        .split_once(':')
        .and_then(|(client, own)| Some((client.parse().ok()?, own.parse().ok()?)));
    match pair {
        // What chown(2) takes for "as it is".
        Some((u32::MAX, _) | (_, u32::MAX)) | None => Err("two numbers expected, CLIENT:HERE".into()),
        Some(pair) => Ok(pair),
    }
}

/// A user by name or number, and a group.
fn squash(text: &str) -> Result<(Uid, Gid), String> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let known = match user.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(user),
    };
    let known = known.map_err(|errno| format!("{user}: {}", errno.desc()))?;
    let uid = match (&known, user.parse()) {
        (Some(user), _) => user.uid,
        (None, Ok(number)) => Uid::from_raw(number),
        (None, Err(_)) => return Err(format!("there is no user {user}")),
    };
    let gid = match group {
        None => known
            .map(|user| user.gid)
            .ok_or_else(|| format!("of which group is {user}? USER:GROUP"))?,
        Some(group) => match group.parse() {
            Ok(number) => Gid::from_raw(number),
            Err(_) => match Group::from_name(group) {
                Ok(Some(group)) => group.gid,
                Ok(None) => return Err(format!("there is no group {group}")),
                Err(errno) => return Err(format!("{group}: {}", errno.desc())),
            },
        },
    };
    match uid.is_root() || uid.as_raw() == u32::MAX || gid.as_raw() == u32::MAX {
        true => Err("a user other than root expected".into()),
        false => Ok((uid, gid)),
    }
}

/// From here on this process is somebody else for good.
fn become_user((uid, gid): (Uid, Gid)) -> anyhow::Result<()> {
    let become_it = || {
        setgroups(&[gid])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    };
    become_it().with_context(|| format!("cannot become user {uid}, group {gid}"))?;
    // Root's capabilities went with root's number; if not, nothing may be served.
    ensure!(
        seteuid(Uid::from_raw(0)).is_err(),
        "root's rights could not be given up"
    );
    Ok(())
}

/// Reads credentials and exports anew on each SIGHUP: all of them, or nothing is another.
fn reload_on_hangup(
    reloader: Reloader,
    load: impl Fn() -> anyhow::Result<(Credentials, Vec<Export>)> + Send + 'static,
) -> anyhow::Result<()> {
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    let wait = move || {
        while hangup.wait().is_ok() {
            notify_reloading();
            let reloaded = load().and_then(|(credentials, exports)| {
                reloader.export(exports)?;
                reloader.reload(credentials);
                Ok(())
            });
            if let Err(error) = reloaded {
                complain(&error.context("nothing was reloaded"));
            }
            notify(NotifyState::Ready);
        }
    };
    thread::Builder::new().name("reload".into()).spawn(wait)?;
    Ok(())
}

/// `Type=notify-reload` of systemd wants to know when it began.
fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => {
            if let Err(error) = sd_notify::notify(&[NotifyState::Reloading, now]) {
                tracing::warn!("cannot tell $NOTIFY_SOCKET: {error}");
            }
        }
        Err(error) => tracing::warn!("what time is it? {error}"),
    }
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
///
/// Who has become a user was started by another one, whose folder it is that the environment names.
fn runtime_folder(become_it: bool) -> anyhow::Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let given = |name| {
        std::env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let folder = given("RUNTIME_DIRECTORY").unwrap_or_else(|| match given("XDG_RUNTIME_DIR") {
        _ if uid.is_root() => "/run/extfuse".into(),
        Some(of_user) if !become_it => of_user.join("extfuse"),
        _ => std::env::temp_dir().join(format!("extfuse-{uid}")),
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
        let exports = self.exports.read().map_err(Failure::Usage)?;
        let default = Options::default();
        let credentials = self.credentials()?;
        // Before there are threads, all of which would have to be told; ctrlc's would take it otherwise.
        let mut hangup = SigSet::empty();
        hangup.add(Signal::SIGHUP);
        hangup.thread_block()?;
        if let Err(errno) = Stack::raise_nofile() {
            tracing::warn!("cannot raise the limit of open files: {errno}");
        }
        let listener = Listener::bind(&self.listen)?;
        if let Some(user) = self.squash {
            become_user(user)?;
        }
        let ids = |pairs: &Vec<(u32, u32)>| {
            let ids = Ids::new(pairs.clone());
            ids.map_err(|twice| Failure::Usage(anyhow!("{twice} is mapped twice")))
        };
        let options = Options {
            lease: self.lease.unwrap_or(default.lease),
            leases: Some(self.leases_file()?),
            ids: Mapping {
                users: ids(&self.map_user)?,
                groups: ids(&self.map_group)?,
            },
            open: self.max_open.map_or(default.open, |most| most as usize),
            nodes: self.max_nodes.map_or(default.nodes, |most| most as usize),
            keep: match self.exclusive {
                true => None,
                false => self.ttl.or(default.keep),
            },
            token: credentials.token,
            tls: credentials.tls,
            ..default
        };
        let server = Server::over(listener, exports, options)?;
        let stopper = server.stopper();
        ctrlc::set_handler(move || {
            notify(NotifyState::Stopping);
            stopper.stop();
        })?;
        let (address, reloader) = (server.address()?, server.reloader());
        reload_on_hangup(reloader, move || Ok((self.credentials()?, self.exports.read()?)))?;
        say(&format!("extfuse: serving on {}\n", address))?;
        notify(NotifyState::Ready);
        server.serve()?;
        Ok(ExitCode::SUCCESS)
    }

    fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials {
            token: self.token_file.as_deref().map(token).transpose()?,
            tls: self.tls.load()?,
        })
    }

    /// Where it is noted that clients may keep what this server has told them: the next one of the same directories and
    /// address finds it there.
    fn leases_file(&self) -> anyhow::Result<PathBuf> {
        let folder = runtime_folder(self.squash.is_some())?;
        let mut name = blake3::Hasher::new();
        let listen = OsString::from(self.listen.to_string());
        for part in std::iter::once(listen.as_os_str()).chain(self.exports.parts()) {
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
}
