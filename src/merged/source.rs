// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that others are put together from: on this machine, or on a server.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::ReplyData;
use nix::errno::Errno;

use crate::abi::NodeId;
use crate::remote::client::{About, Connection, Outcome, Question};
use crate::remote::wire::message::{Attr, Data, Entry, FileKind, Lookup, Open as OpenRequest, Read, Release};
use crate::remote::wire::{MAX_PAYLOAD, Name, Reply, Request};
use crate::splice::Channel;

/// How many sources are asked at the same time, by one who asks.
const AT_ONCE: usize = 8;

/// What is wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It can't be asked, or opened.
    #[error("{shown}: {errno}")]
    System {
        /// The source.
        shown: String,
        /// Why.
        errno: Errno,
    },
    /// Bytes can't be read anywhere in it.
    #[error("{shown} is no regular file{devices}")]
    NoFile {
        /// The source.
        shown: String,
        /// What else would do.
        devices: &'static str,
    },
    /// It ends too early.
    #[error("{shown} has {size} bytes: {wanted}")]
    Short {
        /// The source.
        shown: String,
        /// Its size.
        size: u64,
        /// What is asked of it.
        wanted: String,
    },
    /// Reading it would be reading the mount.
    #[error("{shown} is below the mount point")]
    Below {
        /// The source.
        shown: String,
    },
}

impl SourceError {
    /// What who looks at a merged file gets.
    pub(super) fn errno(&self) -> Errno {
        match self {
            // The server is slow, or gone.
            Self::System { errno, .. } if *errno == Errno::ETIMEDOUT => *errno,
            // The file is there, so that an ENOENT or the like would mislead.
            _ => Errno::EIO,
        }
    }
}

/// What tells one content of a source from another, as far as that can be told without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub size: u64,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    /// Whether everybody may read it.
    pub public: bool,
    /// Device, 0 on a server, and inode number.
    id: (u64, u64),
}

/// Where a source is.
#[derive(Debug)]
pub(super) enum Place {
    Local(PathBuf),
    Remote {
        connection: Arc<Connection>,
        names: Vec<Name>,
    },
}

/// A source, and what it is called in messages.
#[derive(Debug)]
pub(super) struct Source {
    pub place: Place,
    pub shown: String,
}

/// What is open of a source.
#[derive(Debug)]
pub(super) enum Opened {
    Local(fs::File),
    Remote(Handle),
}

/// A node that the server keeps for us, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    connection: Arc<Connection>,
    node: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.forget(self.node, 1);
    }
}

/// An open file of a server's, until it is dropped.
#[derive(Debug)]
pub(super) struct Handle {
    held: Held,
    handle: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let about = self.about(0);
        let release = Request::Release(Release { owner: None });
        // Nothing was written: whatever it answers, the file is not open any more.
        let _ = self.held.connection.call(&about, &release);
    }
}

/// Of an answer that makes no sense.
fn senseless(what: &str) -> Errno {
    tracing::warn!("the server's answer to {what} makes no sense");
    Errno::EIO
}

impl Held {
    fn child(connection: &Arc<Connection>, node: u64, name: &Name) -> Result<(Self, Attr), Errno> {
        let about = About {
            node,
            ..About::default()
        };
        let answer = connection.call(&about, &Request::Lookup(Lookup { name: name.clone() }))?;
        let Ok(Reply::Lookup(Entry { node, attr })) = answer.reply() else {
            return Err(senseless("LOOKUP"));
        };
        if node == 0 {
            return Err(Errno::ENOENT);
        }
        let connection = Arc::clone(connection);
        Ok((Self { connection, node }, attr))
    }

    /// What the names lead to, from what the server serves.
    fn walk(connection: &Arc<Connection>, names: &[Name]) -> Result<(Self, Attr), Errno> {
        let (first, rest) = names.split_first().ok_or(Errno::EISDIR)?;
        let mut found = Self::child(connection, NodeId::ROOT.0, first)?;
        for name in rest {
            found = Self::child(connection, found.0.node, name)?;
        }
        Ok(found)
    }

    fn open(self) -> Result<Handle, Errno> {
        let about = About {
            node: self.node,
            ..About::default()
        };
        let flags = libc::O_RDONLY;
        let answer = self
            .connection
            .call(&about, &Request::Open(OpenRequest { flags }))?;
        match answer.reply() {
            Ok(Reply::Open(opened)) => Ok(Handle {
                held: self,
                handle: opened.handle,
            }),
            _ => Err(senseless("OPEN")),
        }
    }
}

impl Handle {
    fn about(&self, offset: u64) -> About {
        About {
            node: self.held.node,
            handle: self.handle,
            offset,
            ..About::default()
        }
    }

    /// Answers a READ of the kernel's past the daemon, or gives it back: if the file ends before, too.
    pub fn answer(
        &self,
        (offset, size): (u64, u32),
        unique: u64,
        channel: &Channel,
        reply: ReplyData,
    ) -> Outcome {
        let question = Question {
            about: &self.about(offset),
            size,
            unique,
            exact: true,
        };
        self.held.connection.read(&question, channel, reply)
    }

    /// EIO if the file ends before.
    fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let about = self.about(offset);
        let answer = self.held.connection.call(&about, &Request::Read(Read { size }))?;
        match answer.reply() {
            Ok(Reply::Read(Data(data))) if data.len() == size as usize => Ok(answer.payload),
            Ok(Reply::Read(Data(data))) if data.len() < size as usize => Err(Errno::EIO),
            _ => Err(senseless("READ")),
        }
    }
}

/// A time as stat(2) tells it.
fn time(seconds: i64, nanos: i64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = match seconds < 0 {
        true => UNIX_EPOCH.checked_sub(whole),
        false => UNIX_EPOCH.checked_add(whole),
    };
    let nanos = Duration::from_nanos(nanos.unsigned_abs());
    let time = second.and_then(|second| second.checked_add(nanos));
    time.unwrap_or(UNIX_EPOCH)
}

fn open_local(path: &Path) -> io::Result<fs::File> {
    // A FIFO would have it wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

impl Stamp {
    fn of(metadata: &fs::Metadata, size: u64) -> Self {
        Self {
            size,
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: time(metadata.ctime(), metadata.ctime_nsec()),
            public: metadata.mode() & 0o004 != 0,
            id: (metadata.dev(), metadata.ino()),
        }
    }
}

impl Source {
    fn system(&self, errno: Errno) -> SourceError {
        SourceError::System {
            shown: self.shown.clone(),
            errno,
        }
    }

    fn io(&self, error: &io::Error) -> SourceError {
        self.system(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// Whether it takes a request to somebody else to know more of it.
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Remote { .. })
    }

    /// Whether it is below this directory, whose path has no links in it.
    pub fn is_below(&self, directory: &Path) -> bool {
        match &self.place {
            Place::Local(path) => fs::canonicalize(path).is_ok_and(|path| path.starts_with(directory)),
            Place::Remote { .. } => false,
        }
    }

    /// How it is, without opening it, if that can be.
    pub fn stamp(&self) -> Result<Stamp, SourceError> {
        match &self.place {
            Place::Local(path) => {
                let metadata = fs::metadata(path).map_err(|error| self.io(&error))?;
                match metadata.is_file() {
                    true => Ok(Stamp::of(&metadata, metadata.len())),
                    // The size of a device is known once it is open.
                    false => self.open_local(path).map(|(stamp, _)| stamp),
                }
            }
            Place::Remote { connection, names } => {
                let (_held, attr) = Held::walk(connection, names).map_err(|errno| self.system(errno))?;
                self.remote_stamp(&attr)
            }
        }
    }

    /// Opens it, and says how it is.
    pub fn open(&self) -> Result<(Stamp, Opened), SourceError> {
        match &self.place {
            Place::Local(path) => {
                let (stamp, file) = self.open_local(path)?;
                Ok((stamp, Opened::Local(file)))
            }
            Place::Remote { connection, names } => {
                let (held, attr) = Held::walk(connection, names).map_err(|errno| self.system(errno))?;
                let stamp = self.remote_stamp(&attr)?;
                let handle = held.open().map_err(|errno| self.system(errno))?;
                Ok((stamp, Opened::Remote(handle)))
            }
        }
    }

    fn open_local(&self, path: &Path) -> Result<(Stamp, fs::File), SourceError> {
        let opened = open_local(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, mut file) = opened.map_err(|error| self.io(&error))?;
        let size = match metadata.file_type() {
            kind if kind.is_file() => metadata.len(),
            kind if kind.is_block_device() => file.seek(SeekFrom::End(0)).map_err(|error| self.io(&error))?,
            _ => {
                return Err(SourceError::NoFile {
                    shown: self.shown.clone(),
                    devices: " or block device",
                });
            }
        };
        Ok((Stamp::of(&metadata, size), file))
    }

    fn remote_stamp(&self, attr: &Attr) -> Result<Stamp, SourceError> {
        if attr.kind != FileKind::RegularFile {
            return Err(SourceError::NoFile {
                shown: self.shown.clone(),
                devices: " (links are not followed on a server)",
            });
        }
        Ok(Stamp {
            size: attr.size,
            mtime: attr.mtime.into(),
            ctime: attr.ctime.into(),
            public: attr.perm & 0o004 != 0,
            id: (0, attr.ino),
        })
    }
}

impl Opened {
    /// As many bytes as there is room for, from `offset` on. EIO if there are fewer.
    pub fn read(&self, room: &mut [u8], offset: u64) -> Result<(), Errno> {
        match self {
            Self::Local(file) => file.read_exact_at(room, offset).map_err(|error| {
                if error.kind() == ErrorKind::UnexpectedEof {
                    return Errno::EIO;
                }
                error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
            }),
            Self::Remote(handle) => {
                let mut at = offset;
                for room in room.chunks_mut(MAX_PAYLOAD as usize) {
                    // A chunk is no longer than a payload.
                    let size = u32::try_from(room.len()).unwrap_or(MAX_PAYLOAD);
                    room.copy_from_slice(&handle.read(at, size)?);
                    at += u64::from(size);
                }
                Ok(())
            }
        }
    }
}

/// What `what` gives for each of these, by several threads if there are several. The first error in their order, if
/// there is one.
pub(super) fn in_parallel<I: Send + Sync, T: Send, E: Send>(
    items: &[I],
    what: impl Fn(&I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return done;
            };
            let result = what(item);
            let failed = result.is_err();
            done.push((at, result));
            if failed {
                // Nobody needs the rest.
                next.store(items.len(), Ordering::Relaxed);
                return done;
            }
        }
    };
    let mut results = thread::scope(|scope| {
        let more = items.len().min(AT_ONCE).saturating_sub(1);
        let others: Vec<_> = (0..more)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut results = work();
        for other in others {
            match other.join() {
                Ok(done) => results.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
