// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory served through FUSE.
//!
//! Every inode that the kernel knows is held open by an `O_PATH` descriptor (`table.rs`), and every operation
//! is done on that descriptor or on one name below it: a rename, in the mount or behind it, cannot lead an
//! operation astray. The operations themselves know nothing of FUSE's wire format and can be tested without
//! it; `fuse.rs` is the adapter.
//!
//! Who checks what: permissions are the kernel's business. Stack insists on POSIX ACLs at INIT, which imply
//! `default_permissions`; so no request arrives that the caller has no right to, and ACCESS never does.
//! The daemon acts as root, but creates in the caller's name ([`creds`](crate::sys::creds)). The
//! set-user-ID and set-group-ID bits are cleared by the kernel, too: it sends the mode they leave. Doing it
//! here (`HANDLE_KILLPRIV_V2`) would leave them set after a write that passes through. For the same reason
//! `O_TRUNC` arrives as a SETATTR after the OPEN, not within it.
//!
//! Locks (`flock`, `fcntl`) are the kernel's, and hold among those who use the mount. Descriptors:
//! one for each inode the kernel remembers, see [`Stack::raise_nofile`], and for each that is held when it has
//! forgotten it ([`Hold`]).
//!
//! Inode numbers are the source's (`inode_number.rs`). fuser can answer LOOKUP only with one number, which has
//! to be the nodeid; so answers that carry an entry have attributes that are valid for no time at all, and
//! the kernel asks GETATTR, whose answer has the right one. For the same reason READDIRPLUS is not offered:
//! its listings would show nodeids.

mod attributes;
mod data;
mod directory;
mod fuse;
mod handles;
mod held;
mod inode_number;
mod io_mode;
mod namespace;
mod table;
mod xattr;

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, FileHandle};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, SFlag};

use self::directory::OpenDir;
use self::handles::Handles;
use self::held::Held;
use self::inode_number::InodeNumbers;
use self::table::NodeTable;
use self::xattr::Absences;
use super::Upcalls;
use crate::abi::NodeId;
use crate::ebpf::{Cache, Snapshot, Validity};
use crate::fs::kernel::stack_depth;
use crate::sys::at;
use crate::sys::shrink::Shrinker;

pub use self::attributes::SetAttr;
pub use self::data::{OpenFile, Opened};
pub use self::directory::DirEntry;
pub use self::held::{Hold, Holding};
pub use self::table::Inode;
pub use self::xattr::XattrReply;
pub use crate::sys::creds::Caller;

/// How a directory is served.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// How long the kernel may use a name, or its absence, without asking. 0: not at all.
    pub entry_timeout: Duration,
    /// How long the kernel may use attributes without asking. 0: not at all.
    pub attr_timeout: Duration,
    /// Keep cached data and listings when a file or directory is opened again; nothing passes through then.
    pub keep_cache: bool,
    /// Open regular files with a backing file, if the kernel lets us.
    pub passthrough: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// Where to publish what was learnt.
    pub cache: Option<Arc<Cache>>,
    /// How long what is published is valid.
    pub validity: Validity,
    /// Which nodes stay when the kernel has forgotten them, so that what was published of them is of use;
    /// needs `cache`. The connection must have been told (`EXTFUSE_HOLDS_NODES`).
    pub hold: Option<Hold>,
    /// From when on the kernel is to forget what nobody uses.
    pub crowded: Option<Crowded>,
}

/// More nodes than there is room for.
#[derive(Clone, Debug)]
pub struct Crowded {
    /// So many, each of which takes a descriptor.
    pub at: usize,
    /// Who has the kernel forget.
    pub shrinker: Arc<Shrinker>,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self {
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            keep_cache: false,
            passthrough: true,
            read_only: false,
            cache: None,
            validity: Validity::UntilChanged,
            hold: None,
            crowded: None,
        }
    }
}

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The source is missing, not a directory, or not ours to open.
    #[error("cannot open {path} as a directory: {errno}")]
    Source {
        /// The source.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// There is no thread to let nodes go.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Descriptors can be opened again under /proc only.
    #[error("/proc is not mounted, or hides /proc/self/fd: {errno}")]
    Proc {
        /// What the system said.
        errno: Errno,
    },
}

impl StackError {
    /// The error as a number.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Source { errno, .. } | Self::Proc { errno } => *errno,
            Self::Thread(error) => data::errno(error),
        }
    }
}

/// An entry for the kernel: it counts as one lookup of `node`.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node that the name stands for.
    pub node: NodeId,
    /// Its attributes.
    pub attr: FileAttr,
}

/// The result of an operation; an error is what the caller of the system call gets.
pub type Result<T> = std::result::Result<T, Errno>;

/// A directory of this machine as a FUSE file system.
#[derive(Debug)]
pub struct Stack {
    options: StackOptions,
    nodes: Arc<NodeTable>,
    held: Option<Held>,
    numbers: InodeNumbers,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
    absences: Absences,
    upcalls: Arc<Upcalls>,
    /// File systems stacked below and including ours, of which the kernel allows two.
    depth: u32,
    /// Whether the connection has passthrough. Until INIT, it has not.
    passthrough: bool,
}

impl Stack {
    /// Serves `source`.
    ///
    /// # Errors
    /// If it cannot be opened as a directory, or if /proc is not there.
    pub fn new(source: &Path, options: StackOptions) -> std::result::Result<Self, StackError> {
        Self::below(source, Path::new(""), options)
    }

    /// Serves what `source` has at the relative path `below`: neither a symbolic link nor `..` leads to it.
    ///
    /// # Errors
    /// The same.
    pub fn below(
        source: &Path,
        below: &Path,
        options: StackOptions,
    ) -> std::result::Result<Self, StackError> {
        let source_error = |errno| StackError::Source {
            path: source.join(below),
            errno,
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut root = nix::fcntl::open(source, flags, Mode::empty()).map_err(source_error)?;
        for component in below.components() {
            root = match component {
                Component::CurDir => continue,
                Component::Normal(name) => at::open_node(&root, name).map_err(source_error)?,
                _ => return Err(source_error(Errno::ENOENT)),
            };
        }
        let stat = at::stat(&root).map_err(source_error)?;
        if SFlag::from_bits_truncate(stat.mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
            return Err(source_error(Errno::ENOTDIR));
        }
        at::reopen_node(&root).map_err(|errno| StackError::Proc { errno })?;
        let depth = stack_depth(&root).map_err(source_error)?;
        let hold = options.hold.clone().zip(options.cache.as_ref());
        let nodes = Arc::new(NodeTable::new(root, &stat, hold.is_some()).map_err(source_error)?);
        let held = hold.map(|(hold, cache)| Held::start(hold, cache, options.validity, &nodes));
        Ok(Self {
            held: held.transpose().map_err(StackError::Thread)?,
            options,
            nodes,
            numbers: InodeNumbers::new(stat.dev),
            files: Handles::default(),
            dirs: Handles::default(),
            absences: Absences::default(),
            upcalls: Arc::default(),
            depth,
            passthrough: false,
        })
    }

    /// Raises the limit of open descriptors as far as it goes, and tells how far that is. Every inode
    /// that the kernel remembers takes one, and its memory is large.
    ///
    /// # Errors
    /// If the limits cannot be read or set.
    pub fn raise_nofile() -> Result<u64> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()
            .and_then(|n| n.trim().parse().ok());
        let most = hard.max(ceiling.unwrap_or(hard));
        // Beyond the hard limit needs privilege; up to it does not.
        if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() {
            return Ok(most);
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    }

    /// How many nodes are known, the root included.
    pub(crate) fn known(&self) -> usize {
        self.nodes.len()
    }

    /// How many files and directories are open.
    pub(crate) fn open_ones(&self) -> usize {
        self.files.len() + self.dirs.len()
    }

    /// How many requests came up, by opcode. The counts go on when the file system itself is moved into a
    /// session.
    #[must_use]
    pub fn upcalls(&self) -> Arc<Upcalls> {
        Arc::clone(&self.upcalls)
    }

    /// How many inodes the kernel knows or are held, the root included.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Who tells how many nodes are held when the kernel has forgotten them; None if none are.
    #[must_use]
    pub fn holding(&self) -> Option<Holding> {
        let hold = self.held.as_ref().and(self.options.hold.as_ref())?;
        Some(Holding {
            table: Arc::downgrade(&self.nodes),
            most: hold.nodes,
        })
    }

    /// The inode of a node.
    ///
    /// # Errors
    /// `ESTALE` if there is no such node.
    pub fn inode(&self, id: NodeId) -> Result<Inode> {
        self.nodes.get(id).map(|node| node.inode())
    }

    /// The inode that a name stands for; none if there is no such name.
    ///
    /// # Errors
    /// `ESTALE` if there is no such directory; what looking at the name says.
    pub fn inode_at(&self, parent: NodeId, name: &OsStr) -> Result<Option<Inode>> {
        let dir = self.nodes.get(parent)?;
        match at::stat_name(&*dir, namespace::component(name)?) {
            Ok(stat) => Ok(Some(Inode::of(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The inode of an open file.
    ///
    /// # Errors
    /// `EBADF` if the handle is none.
    pub fn inode_of(&self, fh: FileHandle) -> Result<Inode> {
        self.files.get(fh).map(|file| file.inode)
    }

    fn writable(&self) -> Result<()> {
        if self.options.read_only {
            Err(Errno::EROFS)
        } else {
            Ok(())
        }
    }

    /// To be called before the truth is asked, if the answer may be published.
    fn snapshot(&self) -> Option<(&Cache, Snapshot)> {
        self.options
            .cache
            .as_deref()
            .map(|cache| (cache, cache.snapshot()))
    }
}
