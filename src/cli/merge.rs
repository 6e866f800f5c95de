// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of `extfuse mount` that is for merged files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Parser;
use extfuse::merged::{Merged, Options, Server, Servers, Spec};
use extfuse::remote::client::Connection;
use extfuse::session::author::{Sources, mount_counted};
use extfuse::session::{MountOptions, Session, SessionError, Supervisor};
use extfuse::splice::Channel;

use super::remote::{How, Line, Source};

/// How long attributes hold, if nothing is said.
const TTL: Duration = Duration::from_secs(1);

/// Only what is said of a server.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Said {
    #[command(flatten)]
    line: Line,
}

/// The spec that `source` names; none if it is something else.
pub fn parse(source: &OsStr) -> anyhow::Result<Option<PathBuf>> {
    let Some(spec) = source.as_bytes().strip_prefix(b"merge:") else {
        return Ok(None);
    };
    ensure!(!spec.is_empty(), "merge: names no file: write merge:SPEC.toml");
    Ok(Some(OsStr::from_bytes(spec).into()))
}

/// That what was said goes with merged files.
pub fn check(line: &Line, options: &MountOptions) -> anyhow::Result<()> {
    ensure!(
        !line.is_given(),
        "how a server is reached is said in the spec of merged files, in [server.NAME]"
    );
    let only_here = MountOptions {
        read_only: options.read_only,
        allow_other: options.allow_other,
        fsname: options.fsname.clone(),
        subtype: options.subtype.clone(),
        max_read: options.max_read,
        ttl: options.ttl,
        ..MountOptions::default()
    };
    ensure!(
        *options == only_here,
        "of the mount options only ro, allow_other, fsname, subtype, max_read and ttl are for merged files"
    );
    Ok(())
}

/// Connects as the command line would say it, by the same rules. How long an answer may take, too.
fn connect(server: &Server) -> anyhow::Result<(Connection, Duration)> {
    let source = Source::parse(OsStr::new(&server.url))?;
    let source = source.with_context(|| {
        let url = &server.url;
        format!("url: {url:?} is neither extfuse://HOST:PORT/NAME nor extfuse+unix:SOCKET")
    })?;
    let mut arguments: Vec<OsString> = Vec::new();
    let mut say = |option: &str, value: Option<&OsStr>| {
        if let Some(value) = value {
            let mut argument = OsString::from(format!("--{option}="));
            argument.push(value);
            arguments.push(argument);
        }
    };
    let timeout = server.timeout.map(|seconds| seconds.to_string());
    let path = |path: &'_ Option<PathBuf>| path.clone().map(PathBuf::into_os_string);
    say("token-file", path(&server.token_file).as_deref());
    say("tls-ca", path(&server.tls_ca).as_deref());
    say("tls-name", server.tls_name.as_deref().map(OsStr::new));
    say("tls-cert", path(&server.tls_cert).as_deref());
    say("tls-key", path(&server.tls_key).as_deref());
    say("timeout", timeout.as_deref().map(OsStr::new));
    say("on-disconnect", server.on_disconnect.as_deref().map(OsStr::new));
    for (option, given) in [("--tls", server.tls), ("--insecure", server.insecure)] {
        if given {
            arguments.push(option.into());
        }
    }
    let said = Said::try_parse_from(arguments).map_err(|error| {
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        anyhow!("{}", first.strip_prefix("error: ").unwrap_or(first))
    })?;
    source.check(&said.line, &MountOptions::default())?;
    // Sources are looked at anew whenever it matters: nothing is to be told.
    let target = source.target(&said.line, false)?;
    Ok((Connection::open(&target)?, target.timeout))
}

/// Reads the spec, looks at all that it names, and mounts.
pub fn mount(spec: &Path, how: How, supervisor: Supervisor) -> anyhow::Result<Session<Merged>> {
    let spec = Spec::read(spec)?;
    let (mut servers, mut timeout) = (Servers::new(), Duration::ZERO);
    for (name, server) in &spec.servers {
        let connected = connect(server);
        let connected = connected.with_context(|| format!("{}: server.{name}", spec.file.display()));
        let (connection, patience) = connected?;
        servers.insert(name.clone(), Arc::new(connection));
        timeout = timeout.max(patience);
    }
    // `extfuse stat` tells how it stands with the server, if there is just one.
    let only = servers.values().next().filter(|_| servers.len() == 1);
    let remote = only.map(|connection| connection.figures());
    let mountpoint = &how.mountpoint;
    let mountpoint = mountpoint
        .canonicalize()
        .with_context(|| mountpoint.display().to_string())?;
    let merged = Merged::new(
        &spec,
        &servers,
        &Options {
            mountpoint: &mountpoint,
            ttl: how.options.ttl.unwrap_or(TTL),
        },
    )?;
    let options = extfuse::MountOptions {
        fsname: how.options.fsname.unwrap_or(how.fsname),
        subtype: how.options.subtype,
        stock: how.stock,
        require_module: how.require_module,
        allow_other: how.options.allow_other,
        read_only: true,
        max_read: how.options.max_read,
        threads: how.threads.map_or(8, usize::from),
        // Numbers of files and directories in the spec.
        holds_nodes: true,
        ..extfuse::MountOptions::default()
    };
    let upcalls = Some(merged.upcalls());
    Ok(mount_counted(
        how.mountpoint,
        &options,
        Some(supervisor),
        |_, device| {
            let merged = match device.filter(|_| !servers.is_empty()) {
                Some(device) => {
                    let channel = Channel::new(device, None, timeout).map_err(SessionError::Handshake)?;
                    merged.through(channel)
                }
                None => merged,
            };
            let sources = Sources {
                upcalls,
                remote,
                ..Sources::default()
            };
            Ok((merged, sources))
        },
    )?)
}
