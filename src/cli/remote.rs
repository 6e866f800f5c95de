// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of `extfuse mount` that is for what a server has.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use extfuse::ebpf::Validity;
use extfuse::fs::Stack;
use extfuse::remote::Address;
use extfuse::remote::client::{Connection, Disconnected, Place, Remote, Spool, SpoolOptions, Target};
use extfuse::remote::wire::Export;
use extfuse::session::author::{Sources, mount_counted};
use extfuse::session::{self, Session, SessionError, Supervisor};
use extfuse::splice::Channel;
use extfuse::sys::mount::Flavor;

use super::serve::{check_line, token};
use super::tls::LineTls;

/// How a server is reached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Of a server (extfuse://)")]
pub struct Line {
    /// The token that the server wants, which proves, too, that it is the server
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: LineTls,
    /// Go beyond this machine though nothing is encrypted, without TLS
    #[arg(long)]
    insecure: bool,
    /// How long an answer may take; then everybody gets errors. Default: 30
    #[arg(long, value_name = "SECONDS", value_parser = super::mount::seconds)]
    timeout: Option<Duration>,
    /// What may be kept of the server's answers: lease (the default): until the server says that somebody has
    /// changed it; ttl=SECONDS: no longer than that either, though the server might allow it; strict: nothing
    #[arg(long, value_name = "HOW", value_parser = consistency)]
    consistency: Option<Consistency>,
    /// What becomes of requests while the server is not there: wait (the default), for --timeout at most; or eio: errors at
    /// once. When it is there again, the mount goes on
    #[arg(long, value_name = "HOW", value_parser = disconnected)]
    on_disconnect: Option<Disconnected>,
    /// Where copies of what is read are kept: off (the default): nowhere but in the kernel's page cache, as long as there
    /// is memory; memory: in the daemon's; a directory: there, also for the next mount, which has the server say whether a
    /// copy is still right. No other mount may use it meanwhile. Without the module, too, what is
    /// here is not asked for again
    #[arg(long, value_name = "WHERE", value_parser = OsStringValueParser::new().map(place))]
    spool: Option<Wanted>,
    /// How many bytes of copies there are at most, with K, M, G or T; those that were not used for the longest time make
    /// room. A file larger than a quarter of it is not kept. Default: 256M in memory, 10G in a directory
    #[arg(long, value_name = "BYTES", value_parser = spool_size, requires = "spool")]
    spool_size: Option<u64>,
    /// How far the kernel reads ahead of who reads a file from one end to the other, with K or M; 0: not at all. Up
    /// to 1M is one request. Default: 1M; only root's mounts have more than 128K
    #[arg(long, value_name = "BYTES", value_parser = read_ahead)]
    read_ahead: Option<u32>,
    /// Let write(2) return before the server has the data: what else is done here waits for it, others see it when the file
    /// is closed or brought to the disk, and close(2) or fsync(2) tell of errors
    #[arg(long)]
    writeback: bool,
    /// Whom locks of flock(2) and fcntl(2) exclude: shared (the default): all who use the directory, through whatever
    /// mount or on the server; local: those who use this mount, without asking the server
    #[arg(long, value_name = "WHOSE", value_parser = locks)]
    locks: Option<Whose>,
}

/// Where copies are to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Off,
    In(Place),
}

fn place(text: OsString) -> Wanted {
    match text.as_bytes() {
        b"off" => Wanted::Off,
        b"memory" => Wanted::In(Place::Memory),
        _ => Wanted::In(Place::Directory(text.into())),
    }
}

/// The least that a spool is good for: a few chunks.
const LEAST_SPOOL: u64 = 1 << 20;

fn spool_size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        bytes if bytes >= LEAST_SPOOL => Ok(bytes),
        _ => Err("at least 1M expected".into()),
    }
}

/// What one READ holds at most. A round trip then costs little beside its bytes.
const READ_AHEAD: u32 = 1 << 20;

/// More would only be pages that nobody may ask for.
const MOST_READ_AHEAD: u64 = 64 << 20;

fn read_ahead(text: &str) -> Result<u32, String> {
    match bytes(text)? {
        bytes if bytes <= MOST_READ_AHEAD => Ok(bytes as u32),
        _ => Err("at most 64M expected".into()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+'));
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "a number of bytes expected, such as 512M".into())
}

/// Whose locks exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Shared,
    Local,
}

fn locks(text: &str) -> Result<Whose, String> {
    match text {
        "shared" => Ok(Whose::Shared),
        "local" => Ok(Whose::Local),
        _ => Err("shared or local expected".into()),
    }
}

fn disconnected(text: &str) -> Result<Disconnected, String> {
    match text {
        "wait" => Ok(Disconnected::Wait),
        "eio" => Ok(Disconnected::Fail),
        _ => Err("wait or eio expected".into()),
    }
}

/// What may be kept of a server's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Strict,
    Lease,
    Ttl(Duration),
}

fn consistency(text: &str) -> Result<Consistency, String> {
    match text {
        "strict" => Ok(Consistency::Strict),
        "lease" => Ok(Consistency::Lease),
        _ => match text.strip_prefix("ttl=").and_then(session::parse_seconds) {
            Some(ttl) => Ok(Consistency::Ttl(ttl)),
            None => Err("strict, lease or ttl=SECONDS expected".into()),
        },
    }
}

impl Consistency {
    /// For how long an answer may be kept, if the server allows `keep`; None: not at all.
    fn valid(self, keep: Option<Duration>) -> Option<Validity> {
        let most = match self {
            Self::Strict => return None,
            Self::Lease => keep,
            Self::Ttl(ttl) => Some(keep.map_or(ttl, |keep| keep.min(ttl))),
        };
        match most {
            None => Some(Validity::UntilChanged),
            Some(Duration::ZERO) => None,
            Some(most) => Some(Validity::For(most)),
        }
    }
}

/// What a server has, as `extfuse mount` is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    address: Address,
    export: Export,
}

impl Source {
    /// The server's directory that `source` names; none if it is a path.
    pub fn parse(source: &OsStr) -> anyhow::Result<Option<Self>> {
        let bytes = source.as_bytes();
        let (address, export) = if let Some(rest) = bytes.strip_prefix(b"extfuse://") {
            let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let (address, path) = rest.split_at(end);
            let address = std::str::from_utf8(address)?.parse();
            (address, path.strip_prefix(b"/").unwrap_or_default())
        } else if let Some(rest) = bytes.strip_prefix(b"extfuse+unix:") {
            let path = OsStr::from_bytes(rest);
            ensure!(!path.is_empty(), "{} names no socket", source.display());
            (Ok(Address::Unix(path.into())), &b""[..])
        } else {
            return Ok(None);
        };
        let address = address.map_err(|error| anyhow!("{}: {error}", source.display()))?;
        let export = Export::new(export).with_context(|| source.display().to_string())?;
        Ok(Some(Self { address, export }))
    }
}

impl Line {
    /// Whether anything was said that only matters for a server.
    pub fn is_given(&self) -> bool {
        self.token_file.is_some()
            || self.tls.is_given()
            || self.insecure
            || self.timeout.is_some()
            || self.consistency.is_some()
            || self.on_disconnect.is_some()
            || self.spool.is_some()
            || self.read_ahead.is_some()
            || self.writeback
            || self.locks.is_some()
    }
}

/// What else `extfuse mount` was told.
#[derive(Debug)]
pub struct How {
    pub mountpoint: PathBuf,
    pub fsname: OsString,
    pub options: session::MountOptions,
    pub stock: bool,
    pub require_module: bool,
    pub threads: Option<u16>,
}

impl Source {
    /// That what was said goes with a server, and with this one.
    pub fn check(&self, line: &Line, options: &session::MountOptions) -> anyhow::Result<()> {
        let only_here = session::MountOptions {
            read_only: options.read_only,
            allow_other: options.allow_other,
            fsname: options.fsname.clone(),
            subtype: options.subtype.clone(),
            max_read: options.max_read,
            ..session::MountOptions::default()
        };
        ensure!(
            *options == only_here,
            "of the mount options only ro, allow_other, fsname, subtype and max_read are for what a server has"
        );
        line.tls.check(&self.address)?;
        check_line(&self.address, line.insecure || line.tls.is_given())
    }

    /// How to connect; `keeps` if the server has to tell of changes.
    pub fn target(self, line: &Line, keeps: bool) -> anyhow::Result<Target> {
        Ok(Target {
            keeps,
            disconnected: line.on_disconnect.unwrap_or_default(),
            tls: line.tls.load(&self.address)?,
            address: self.address,
            export: self.export,
            token: line.token_file.as_deref().map(token).transpose()?,
            timeout: line.timeout.unwrap_or(Duration::from_secs(30)),
        })
    }
}

fn open_spool(options: &SpoolOptions, name: String, mountpoint: &Path) -> anyhow::Result<Spool> {
    // Each copy that is read from has one.
    Stack::raise_nofile().context("cannot raise the limit of descriptors")?;
    let spool = Spool::open(options, name).context("no spool")?;
    if let (Some(dir), Ok(mountpoint)) = (spool.directory(), mountpoint.canonicalize()) {
        ensure!(
            !dir.starts_with(mountpoint),
            "{}: the spool would be in the mount itself",
            dir.display()
        );
    }
    Ok(spool)
}

/// Connects, and mounts what the server has.
pub fn mount(
    source: Source,
    line: &Line,
    how: How,
    supervisor: Supervisor,
) -> anyhow::Result<Session<Remote>> {
    let options = how.options;
    let consistency = line.consistency.unwrap_or(Consistency::Lease);
    // Without the module, or a spool, nothing would be kept, and the server need not tell of changes.
    let kernel_keeps = consistency != Consistency::Strict && !how.stock && Flavor::Extfuse.device().exists();
    let place = match &line.spool {
        Some(Wanted::In(place)) => Some(place.clone()),
        Some(Wanted::Off) | None => None,
    };
    let keeps = kernel_keeps || place.is_some() && consistency != Consistency::Strict;
    let name = format!("{}/{}", source.address, source.export.as_os_str().display());
    let target = source.target(line, keeps)?;
    let timeout = target.timeout;
    let shares = line.locks != Some(Whose::Local);
    let connection = Connection::open(&target)?;
    let believed = consistency.valid(connection.keep());
    let valid = believed.filter(|_| kernel_keeps);
    let spool = place.map(|place| SpoolOptions {
        limit: line.spool_size.unwrap_or(match place {
            Place::Memory => 256 << 20,
            Place::Directory(_) => 10 << 30,
        }),
        place,
        valid: believed,
    });
    let spool = spool
        .map(|options| open_spool(&options, name, &how.mountpoint))
        .transpose()?;
    let options = extfuse::MountOptions {
        fsname: options.fsname.unwrap_or(how.fsname),
        subtype: options.subtype,
        stock: how.stock,
        require_module: how.require_module,
        allow_other: options.allow_other,
        read_only: options.read_only || connection.is_read_only(),
        max_read: options.max_read,
        read_ahead: Some(line.read_ahead.unwrap_or(READ_AHEAD)),
        threads: how.threads.map_or(8, usize::from),
        valid,
        entry_attributes: false,
        opens: valid.is_some(),
        ..extfuse::MountOptions::default()
    };
    let mut pages = None;
    let session = mount_counted(how.mountpoint, &options, Some(supervisor), |kernel, device| {
        let side = kernel.clone();
        let spool = spool.map(|spool| Arc::new(spool.shown_to(kernel.clone())));
        let mut remote = match valid {
            Some(valid) => Remote::keeping(connection, kernel, valid),
            None => Remote::new(connection),
        };
        remote = remote.making_room(side.clone());
        if line.writeback {
            remote = remote.writing_back();
        }
        if let Some(spool) = spool {
            remote = remote.spooling(spool);
        }
        if let Some(device) = device {
            let channel = Channel::new(device, None, timeout).map_err(SessionError::Handshake)?;
            remote = remote.through(channel);
        }
        if shares {
            remote = remote.sharing_locks(&side);
            pages = remote.pages();
        }
        let sources = Sources {
            upcalls: Some(remote.upcalls()),
            remote: Some(remote.connection().figures()),
            ..Sources::default()
        };
        Ok((remote, sources))
    })?;
    if let (Some(pages), Some(notifier)) = (pages, session.notifier()) {
        pages.are_given_up_by(notifier);
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_path_unless_it_says_otherwise() {
        let parse = |source: &str| Source::parse(OsStr::new(source));
        let server = |address: &str, export: &str| {
            Some(Source {
                address: address.parse().unwrap(),
                export: Export::new(export).unwrap(),
            })
        };
        assert_eq!(parse("/srv/data").unwrap(), None);
        assert_eq!(parse("srv:1/extfuse://").unwrap(), None);
        assert_eq!(parse("extfuse://host:99").unwrap(), server("host:99", ""));
        assert_eq!(parse("extfuse://host:99/").unwrap(), server("host:99", ""));
        assert_eq!(
            parse("extfuse://[::1]:99/a/b").unwrap(),
            server("[::1]:99", "a/b")
        );
        assert_eq!(parse("extfuse+unix:/run/s").unwrap(), server("unix:/run/s", ""));
        for wrong in ["extfuse://", "extfuse://host", "extfuse:///x", "extfuse+unix:"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
