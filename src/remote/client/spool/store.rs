// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where copies of files are kept: in memory or in a directory; and which of them go when there are too many.
//!
//! In a directory each has two files: `KEY.data`, sparse, with its bytes in their places, and `KEY.index`, which says of
//! which version they are, which of them are there, and what their CRCs are. The index is written whole and renamed.
//! Nothing is brought to the disk: after a crash a CRC tells what had not arrived there.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{debug, warn};

use super::copy::Copy;
use crate::fs::kernel::stack_depth;

/// What is fetched and kept at a time, bytes. The last of a file is shorter.
pub(super) const CHUNK: u64 = 128 << 10;

/// What an index begins with.
const MAGIC: &[u8] = b"extfuse spool 1\n";

/// The largest index that is believed, bytes.
const MOST_INDEX: u64 = 64 << 20;

/// Where copies are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process's memory, for as long as it lives.
    Memory,
    /// In this directory, which is made if it is not there, also for the next mount.
    Directory(PathBuf),
}

/// Why there is no spool.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// Another process keeps its copies there.
    #[error("{0}: another mount keeps its copies there")]
    InUse(PathBuf),
    /// The directory cannot be used.
    #[error("{path}: {error}")]
    Directory {
        /// What of it.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Which file of which server: a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 16]);

impl Key {
    /// Of the file with this inode number.
    pub fn of(source: &str, ino: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&ino.to_le_bytes());
        hasher.update(source.as_bytes());
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }

    fn parse(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.as_bytes();
        let mut key = [0; 16];
        let digits = name.as_chunks::<2>().0;
        if name.len() != 32 || !name.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, digits) in key.iter_mut().zip(digits) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(key))
    }

    fn path(self, dir: &Path, kind: &str) -> PathBuf {
        dir.join(format!("{:032x}.{kind}", u128::from_be_bytes(self.0)))
    }
}

/// A chunk that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// CRC32C of its bytes.
    pub crc: u32,
    /// It was compared with them, or was made of them.
    pub checked: bool,
}

/// What there is of one file.
#[derive(Clone, Debug)]
pub(super) struct Content {
    /// Its bytes, in their places.
    pub file: Arc<File>,
    /// The version that they are of; 0: of none that could be known again.
    pub version: u64,
    /// Bytes of the whole file.
    pub size: u64,
    pub chunks: BTreeMap<u32, Chunk>,
}

impl Content {
    fn empty(file: File, version: u64, size: u64) -> Self {
        Self {
            file: Arc::new(file),
            version,
            size,
            chunks: BTreeMap::new(),
        }
    }

    /// Where a chunk is in the file.
    pub fn range(&self, chunk: u32) -> std::ops::Range<u64> {
        let start = u64::from(chunk) * CHUNK;
        start..self.size.min(start + CHUNK)
    }

    /// Bytes that are there.
    fn bytes(&self) -> u64 {
        self.chunks
            .keys()
            .map(|chunk| {
                let range = self.range(*chunk);
                range.end.saturating_sub(range.start)
            })
            .sum()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u64,
    size: u64,
    /// Number and CRC of each chunk that is there, in their order.
    chunks: Vec<(u32, u32)>,
}

impl Index {
    fn of(content: &Content) -> Self {
        Self {
            version: content.version,
            size: content.size,
            chunks: content
                .chunks
                .iter()
                .map(|(number, chunk)| (*number, chunk.crc))
                .collect(),
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let message = postcard::to_allocvec(self).map_err(io::Error::other)?;
        let new = path.with_extension("new");
        let mut file = private().write(true).create(true).truncate(true).open(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(&crc32c::crc32c(&message).to_le_bytes())?;
        file.write_all(&message)?;
        fs::rename(new, path)
    }

    /// None if it is not whole.
    fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = File::open(path).ok()?;
        file.take(MOST_INDEX).read_to_end(&mut bytes).ok()?;
        let (crc, message) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(message) {
            return None;
        }
        let index: Self = postcard::from_bytes(message).ok()?;
        let inside = |(number, _): &(u32, u32)| u64::from(*number) * CHUNK < index.size;
        index.chunks.iter().all(inside).then_some(index)
    }

    fn content(&self, file: File) -> Content {
        let mut content = Content::empty(file, self.version, self.size);
        content.chunks = self
            .chunks
            .iter()
            .map(|(number, crc)| {
                let chunk = Chunk {
                    crc: *crc,
                    checked: false,
                };
                (*number, chunk)
            })
            .collect();
        content
    }
}

/// For nobody else to read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}

#[derive(Debug, Default)]
struct Entry {
    bytes: u64,
    /// When it was last of use.
    used: u64,
    /// Who reads it and adds to it.
    live: Weak<Copy>,
    /// What is kept in memory while nobody does.
    parked: Option<Content>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

impl Entries {
    fn touch(&mut self, key: Key) -> &mut Entry {
        self.clock += 1;
        let entry = self.by_key.entry(key).or_default();
        entry.used = self.clock;
        entry
    }

    fn resize(&mut self, key: Key, resize: impl FnOnce(u64) -> u64) {
        if let Some(entry) = self.by_key.get_mut(&key) {
            let bytes = resize(entry.bytes);
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.by_key.remove(&key) {
            self.bytes -= entry.bytes;
        }
    }
}

/// Copies of files, as many bytes as there is room for.
///
/// Its lock is taken while no copy's is held.
#[derive(Debug)]
pub(super) struct Store {
    dir: Option<PathBuf>,
    /// Bytes.
    pub limit: u64,
    entries: Mutex<Entries>,
    /// Held for as long as the directory is ours.
    lock: Option<Flock<File>>,
}

impl Store {
    /// With what is there already.
    pub fn open(place: &Place, limit: u64) -> Result<Self, SpoolError> {
        let (dir, lock, entries) = match place {
            Place::Memory => (None, None, Entries::default()),
            Place::Directory(dir) => {
                let wrong = |path: &Path| {
                    let path = path.to_owned();
                    |error| SpoolError::Directory { path, error }
                };
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.map_err(wrong(dir))?;
                let dir = dir.canonicalize().map_err(wrong(dir))?;
                let path = dir.join("lock");
                let file = private().write(true).create(true).truncate(false).open(&path);
                let file = file.map_err(wrong(&path))?;
                let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                    .map_err(|_| SpoolError::InUse(dir.clone()))?;
                let entries = found(&dir).map_err(wrong(&dir))?;
                (Some(dir), Some(lock), entries)
            }
        };
        Ok(Self {
            dir,
            limit,
            entries: Mutex::new(entries),
            lock,
        })
    }

    /// Where it is, if it is in a directory.
    pub fn directory(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// How high a file system is stacked whose files these copies back.
    pub fn depth(&self) -> u32 {
        // If nobody knows, the kernel refuses.
        self.lock
            .as_deref()
            .map_or(1, |lock| stack_depth(lock).unwrap_or(1))
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.entries.lock().bytes
    }

    /// What there is of a file that has this version and size now, for this copy to use. If anything of another version
    /// was there, it is not any more.
    pub fn take(&self, key: Key, copy: &Arc<Copy>, version: u64, size: u64) -> io::Result<Content> {
        // As after a session was lost: the same file has another node now.
        let other = self
            .entries
            .lock()
            .by_key
            .get(&key)
            .map(|entry| entry.live.clone());
        if let Some(other) = other.and_then(|live| live.upgrade())
            && !Arc::ptr_eq(&other, copy)
        {
            other.let_go(self);
        }
        let parked = {
            let mut entries = self.entries.lock();
            let entry = entries.touch(key);
            entry.live = Arc::downgrade(copy);
            entry.parked.take()
        };
        let was = match &self.dir {
            None => parked,
            Some(dir) => kept(dir, key),
        };
        let was = was.filter(|was| version != 0 && was.version == version && was.size == size);
        let content = match (was, &self.dir) {
            (Some(content), _) => content,
            (None, None) => {
                let file = memfd_create(c"extfuse-spool", MFdFlags::MFD_CLOEXEC)?;
                Content::empty(file.into(), version, size)
            }
            (None, Some(dir)) => {
                forget(&key.path(dir, "index"));
                // A file of its own: whoever still fetches what was there before writes to the old one.
                let path = key.path(dir, "data");
                forget(&path);
                let file = private().read(true).write(true).create_new(true).open(path)?;
                Content::empty(file, version, size)
            }
        };
        self.entries.lock().resize(key, |_| content.bytes());
        Ok(content)
    }

    /// Somebody reads it.
    pub fn used(&self, key: Key) {
        self.entries.lock().touch(key);
    }

    /// What there is of it is to be found after a crash, too.
    pub fn save(&self, key: Key, content: &Content) {
        if let Some(dir) = &self.dir
            && content.version != 0
            && let Err(error) = Index::of(content).write(&key.path(dir, "index"))
        {
            debug!(%error, "an index of the spool cannot be written");
        }
    }

    /// Nobody uses it for now.
    pub fn park(&self, key: Key, content: Content) {
        if content.version == 0 || content.chunks.is_empty() {
            return self.remove(key);
        }
        self.save(key, &content);
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.by_key.get_mut(&key) {
            entry.live = Weak::new();
            entry.parked = self.dir.is_none().then_some(content);
        }
    }

    /// Nothing of it is there any more.
    pub fn remove(&self, key: Key) {
        self.entries.lock().remove(key);
        if let Some(dir) = &self.dir {
            forget(&key.path(dir, "index"));
            forget(&key.path(dir, "data"));
        }
    }

    /// Some bytes less are there.
    pub fn shrinks(&self, key: Key, bytes: u64) {
        self.entries.lock().resize(key, |was| was.saturating_sub(bytes));
    }

    /// So many bytes more are there. If that is too much, those go that were not of use for the longest time.
    pub fn grows(&self, key: Key, bytes: u64) {
        let gone = {
            let mut entries = self.entries.lock();
            entries.resize(key, |was| was + bytes);
            if entries.bytes <= self.limit {
                return;
            }
            // A tenth more than needed, so as not to look through all of them each time.
            let mut surplus = entries.bytes - (self.limit - self.limit / 10);
            let mut oldest: Vec<_> = entries
                .by_key
                .iter()
                .filter(|(other, _)| **other != key)
                .map(|(key, entry)| (entry.used, entry.bytes, *key, entry.live.upgrade()))
                .collect();
            oldest.sort_unstable_by_key(|(used, ..)| *used);
            oldest.retain(|(_, bytes, ..)| {
                let goes = surplus > 0;
                surplus = surplus.saturating_sub(*bytes);
                goes
            });
            oldest
        };
        for (_, _, key, live) in gone {
            match live {
                Some(copy) => copy.drop_content(self),
                None => self.remove(key),
            }
        }
    }
}

/// Something that is of no more use, if it is there.
fn forget(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "what is of no more use cannot be removed");
    }
}

/// What the directory has of a file.
fn kept(dir: &Path, key: Key) -> Option<Content> {
    let index = Index::read(&key.path(dir, "index"))?;
    let file = private()
        .read(true)
        .write(true)
        .open(key.path(dir, "data"))
        .ok()?;
    Some(index.content(file))
}

/// What is there: those that were used last, last. What has no index, or a broken one, goes.
fn found(dir: &Path) -> io::Result<Entries> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let (Some(key), Some(kind)) = (path.file_stem().and_then(Key::parse), path.extension()) else {
            continue;
        };
        let index = key.path(dir, "index");
        match kind.to_str() {
            Some("index") => match Index::read(&path) {
                Some(index) => {
                    let used = fs::metadata(&path).and_then(|meta| meta.modified());
                    found.push((used.unwrap_or(SystemTime::UNIX_EPOCH), key, index));
                }
                None => {
                    warn!(path = %path.display(), "a broken index of the spool");
                    forget(&path);
                    forget(&key.path(dir, "data"));
                }
            },
            Some("data") if !index.exists() => forget(&path),
            Some("new") => forget(&path),
            _ => {}
        }
    }
    found.sort_unstable_by_key(|(used, ..)| *used);
    let mut entries = Entries::default();
    for (_, key, index) in found {
        entries.touch(key);
        let bytes = index
            .chunks
            .iter()
            .map(|(chunk, _)| CHUNK.min(index.size - u64::from(*chunk) * CHUNK))
            .sum();
        entries.resize(key, |_| bytes);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn who_comes_late_with_another_version_writes_into_none_that_is_of_use() {
        let dir = tempfile::tempdir().unwrap();
        for place in [Place::Memory, Place::Directory(dir.path().join("spool"))] {
            let store = Store::open(&place, 1 << 20).unwrap();
            let (key, copy) = (Key::of("server", 7), Arc::default());
            let late = store.take(key, &copy, 1, 3).unwrap();
            let content = store.take(key, &copy, 2, 3).unwrap();
            content.file.write_all_at(b"new", 0).unwrap();
            late.file.write_all_at(b"old", 0).unwrap();
            let mut bytes = [0; 3];
            content.file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"new", "{place:?}");
        }
    }
}
