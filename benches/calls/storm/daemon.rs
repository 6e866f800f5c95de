// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon of the storm: a process that serves a tree of names for nothing but to be looked up, and that
//! changes what every name stands for when it is told to, telling the kernel of each.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use extfuse::abi::NodeId;
use extfuse::ebpf::{Key, Validity};
use extfuse::{Kernel, MountOptions};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, MountOption, Notifier,
    ReplyAttr, ReplyEntry, Request,
};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::system_calls::SystemCalls;
use crate::party;

const FOREVER: Duration = Duration::from_secs(1 << 20);

/// How the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Teller {
    /// Stock FUSE with infinite timeouts, and FUSE_NOTIFY_INVAL_ENTRY.
    StockNotify,
    /// The module with handlers, and stamps.
    Coherent,
}

impl Teller {
    /// The name in tables and in JSON, and of the daemon's argument.
    pub fn name(self) -> &'static str {
        match self {
            Self::StockNotify => "stock-notify",
            Self::Coherent => "coherent",
        }
    }
}

/// The tree: directories in the root, the same number of names in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub names: usize,
    pub directories: usize,
}

impl Layout {
    /// The directory of a name.
    pub fn directory_of(self, name: usize) -> usize {
        name % self.directories
    }

    /// A name's path.
    pub fn path(self, name: usize) -> String {
        format!("{}/{}", self.directory_of(name), leaf(name))
    }

    fn directory_node(self, directory: usize) -> u64 {
        2 + directory as u64
    }

    /// What a name stands for after so many changes: another file each time.
    pub fn node(self, name: usize, changes: u64) -> u64 {
        2 + self.directories as u64 + name as u64 + changes * self.names as u64
    }

    /// How often it was changed, if it stands for this node; None if it never does.
    pub fn changes(self, name: usize, node: u64) -> Option<u64> {
        let since = node.checked_sub(self.node(name, 0))?;
        let names = self.names as u64;
        since.is_multiple_of(names).then_some(since / names)
    }
}

/// As long as names of files usually are.
fn leaf(name: usize) -> String {
    format!("file_{name:06}.dat")
}

fn parsed_leaf(leaf: &OsStr) -> Option<usize> {
    let number = leaf.to_str()?.strip_prefix("file_")?.strip_suffix(".dat")?;
    number.parse().ok()
}

/// What the file system and who changes it share.
struct Truth {
    layout: Layout,
    /// How often each name was changed.
    changes: Vec<AtomicU64>,
    lookups: AtomicU64,
    getattrs: AtomicU64,
}

struct Names(Arc<Truth>);

fn attributes(node: u64, directory: bool) -> FileAttr {
    let kind = if directory {
        FileType::Directory
    } else {
        FileType::RegularFile
    };
    FileAttr {
        ino: INodeNo(node),
        ..extfuse::splice::attributes(kind, 0o755, 0)
    }
}

impl Names {
    fn find(&self, parent: u64, leaf: &OsStr) -> Option<FileAttr> {
        let layout = self.0.layout;
        if parent == INodeNo::ROOT.0 {
            let directory = leaf.to_str()?.parse().ok().filter(|n| *n < layout.directories)?;
            return Some(attributes(layout.directory_node(directory), true));
        }
        let name = parsed_leaf(leaf).filter(|name| *name < layout.names)?;
        let changes = self.0.changes[name].load(Ordering::Acquire);
        (layout.directory_node(layout.directory_of(name)) == parent)
            .then(|| attributes(layout.node(name, changes), false))
    }
}

impl Filesystem for Names {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookups.fetch_add(1, Ordering::Relaxed);
        match self.find(parent.0, name) {
            Some(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattrs.fetch_add(1, Ordering::Relaxed);
        let directory = node.0 < 2 + self.0.layout.directories as u64;
        reply.attr(&FOREVER, &attributes(node.0, directory));
    }
}

/// The kernel, to be told that a name stands for something else.
enum Told {
    Stock(Notifier),
    Coherent(Kernel),
}

impl Told {
    fn changed(&self, parent: u64, leaf: &str) -> Result<()> {
        match self {
            Self::Stock(notifier) => notifier
                .inval_entry(INodeNo(parent), OsStr::new(leaf))
                .with_context(|| format!("the kernel cannot be told of {leaf}")),
            Self::Coherent(kernel) => {
                kernel.invalidate(&[Key::Entry(NodeId(parent), leaf.as_bytes())]);
                Ok(())
            }
        }
    }
}

/// What this process is told to do: the lines that it reads.
pub const STORM: &str = "storm";
/// A storm whose system calls are counted.
pub const COUNTED_STORM: &str = "counted storm";
pub const COUNTS: &str = "counts";

/// So many names a time stamp.
pub const BLOCK: usize = 100;

/// What it answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    pub lookups: u64,
    pub getattrs: u64,
    pub storm: Option<Storm>,
    pub failure: Option<String>,
}

/// Times in ns of the monotonic clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Storm {
    pub began: u64,
    pub ended: u64,
    /// Processor time of who told, if that is one thread and does nothing else.
    pub telling: Option<u64>,
    /// When the kernel had been told of all names of a block.
    pub told: Vec<u64>,
    pub system_calls: Option<u64>,
}

/// The clock that readers have, too.
pub fn now() -> u64 {
    time(ClockId::CLOCK_MONOTONIC)
}

fn time(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// Changes what each name stands for, and tells the kernel: one call a name, as they come.
fn storm(truth: &Truth, told: &Told, leaves: &[String], counted: bool) -> Result<Storm> {
    let layout = truth.layout;
    let mut storm = Storm::default();
    let block = |first: usize| -> Result<()> {
        for (name, leaf) in leaves.iter().enumerate().skip(first).take(BLOCK) {
            truth.changes[name].fetch_add(1, Ordering::AcqRel);
            told.changed(layout.directory_node(layout.directory_of(name)), leaf)?;
        }
        Ok(())
    };
    let blocks = || (0..layout.names).step_by(BLOCK);
    if counted {
        let mut calls = SystemCalls::of_this_thread()?;
        storm.system_calls = Some(calls.of(|| blocks().try_for_each(block))?);
        return Ok(storm);
    }
    let telling = time(ClockId::CLOCK_THREAD_CPUTIME_ID);
    storm.began = now();
    for first in blocks() {
        block(first)?;
        storm.told.push(now());
    }
    storm.ended = now();
    storm.telling = Some(time(ClockId::CLOCK_THREAD_CPUTIME_ID) - telling);
    Ok(storm)
}

/// Mounts, serves and does as it is told, until standard input ends.
pub fn run(teller: Teller, layout: Layout, mountpoint: &Path) -> Result<()> {
    let truth = Arc::new(Truth {
        layout,
        changes: (0..layout.names).map(|_| AtomicU64::new(0)).collect(),
        lookups: AtomicU64::new(0),
        getattrs: AtomicU64::new(0),
    });
    let names = Names(Arc::clone(&truth));
    match teller {
        Teller::StockNotify => {
            let mut config = Config::default();
            // As with the module.
            config.mount_options = vec![
                MountOption::FSName("storm".into()),
                MountOption::DefaultPermissions,
            ];
            let session = fuser::spawn_mount(names, mountpoint, &config)?;
            obey(&truth, &Told::Stock(session.notifier()))?;
            session.umount_and_join()?;
        }
        Teller::Coherent => {
            let options = MountOptions {
                fsname: "storm".into(),
                require_module: true,
                valid: Some(Validity::UntilChanged),
                ..MountOptions::default()
            };
            let session = extfuse::mount_with(mountpoint, &options, |_| names)?;
            let (kernel, unmounter) = (session.kernel(), session.unmounter());
            let serving = thread::spawn(move || session.serve());
            obey(&truth, &Told::Coherent(kernel))?;
            unmounter.detach()?;
            match serving.join() {
                Ok(served) => served?,
                Err(_) => bail!("the daemon's thread panicked"),
            }
        }
    }
    Ok(())
}

fn obey(truth: &Truth, told: &Told) -> Result<()> {
    let leaves: Vec<String> = (0..truth.layout.names).map(leaf).collect();
    party::answer_until_end(&"storm", |line| {
        let done = match line {
            STORM => storm(truth, told, &leaves, false).map(Some),
            COUNTED_STORM => storm(truth, told, &leaves, true).map(Some),
            _ => Ok(None),
        };
        let (storm, failure) = match done {
            Ok(storm) => (storm, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Answer {
            lookups: truth.lookups.load(Ordering::Relaxed),
            getattrs: truth.getattrs.load(Ordering::Relaxed),
            storm,
            failure,
        }
    })
}
