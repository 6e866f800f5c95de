// SPDX-License-Identifier: MIT OR Apache-2.0
//! The spool: copies of what was read of the server's files, on this machine.
//!
//! A file is fetched in chunks, ahead of who reads it from its beginning to its end, and a chunk that is here is
//! not asked for again while the file is the same. Where there is the module it reads what is here by itself: each copy
//! is the [backing file](crate::ebpf::Backing) of its node.
//!
//! Whether a file is the same, the server says: until it takes it back what it has said of the file's attributes, for as long as
//! it allows that to be kept; and after that by the file's version (`docs/protocol.md`), which is written down beside the
//! copy. A copy of what has no version yet, because it was changed just now, is of use for as long as that holds.
//!
//! Not everything is kept: neither files that are larger than a quarter of the spool, nor what is read with `O_DIRECT`, nor few bytes here
//! and there of a large file, unless they are read twice.

mod copy;
mod store;

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;
use tracing::{debug, warn};

pub(super) use self::copy::Changing;
use self::copy::{Copy, Known, Lack, Mark};
use self::store::{CHUNK, Key, Store};
pub use self::store::{Place, SpoolError};
use super::{About, Connection};
use crate::Kernel;
use crate::abi::NodeId;
use crate::control::Spool as Figures;
use crate::ebpf::{BackingError, Snapshot, Validity, boot_time};
use crate::remote::wire::message::{Attr, Empty, FileKind};
use crate::remote::wire::{Reply, Request};

/// The share of the spool that one file may have.
pub(crate) const SHARE: u64 = 4;

/// What is fetched ahead of a reader, and at a time: chunks.
const AHEAD: u32 = 8;

/// Threads that fetch ahead, and what waits for them at most.
const FETCHERS: usize = 2;
const WAITING: usize = 16;

/// The most copies that are open, where there are descriptors enough.
const MOST_OPEN: usize = 16384;

/// How often it is looked at what there is to write down.
const SAVING: Duration = Duration::from_secs(5);

/// For how long nothing more is kept once there was no room on the disk.
const FULL: Duration = Duration::from_secs(10);

/// How copies are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    /// Where.
    pub place: Place,
    /// How many bytes. Those that were not of use for the longest time make room.
    pub limit: u64,
    /// How long what the server says is believed, at most. None: it is asked each time.
    pub valid: Option<Validity>,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    passed: AtomicU64,
    fetched: AtomicU64,
}

/// The answer to a READ.
#[derive(Debug)]
pub(super) struct Answer {
    pub bytes: Vec<u8>,
    /// Whether the kernel may keep it.
    pub keep: bool,
}

/// What there is to fetch.
#[derive(Clone, Debug)]
struct Job {
    copy: Arc<Copy>,
    about: About,
    known: Known,
    chunks: RangeInclusive<u32>,
}

/// Copies of a server's files; see the module's page.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    /// Which server's, and which of its directories.
    source: String,
    valid: Option<Validity>,
    /// By node.
    copies: Mutex<HashMap<u64, Arc<Copy>>>,
    counts: Counts,
    /// How many copies may be open.
    most: usize,
    /// Counts READs.
    clock: AtomicU64,
    /// When the disk was full.
    full: Mutex<Option<Instant>>,
    /// The kernel takes no backing files.
    unbacked: AtomicBool,
    kernel: Kernel,
}

impl Spool {
    /// Copies of files of `source`, which names a directory of a server for good; those in a directory that
    /// are there already are of use again.
    ///
    /// # Errors
    ///
    /// See [`SpoolError`].
    pub fn open(options: &SpoolOptions, source: String) -> Result<Self, SpoolError> {
        Ok(Self {
            store: Store::open(&options.place, options.limit)?,
            source,
            valid: options.valid,
            copies: Mutex::default(),
            counts: Counts::default(),
            most: most_open(),
            clock: AtomicU64::new(0),
            full: Mutex::default(),
            unbacked: AtomicBool::new(false),
            kernel: Kernel::default(),
        })
    }

    /// The same; this kernel reads copies by itself, if it can.
    #[must_use]
    pub fn shown_to(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// Where it is, if it is in a directory.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.store.directory()
    }

    /// How it stands.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Figures {
            bytes: self.store.bytes(),
            limit: self.store.limit,
            hits: count(&self.counts.hits),
            misses: count(&self.counts.misses),
            passed: count(&self.counts.passed),
            fetched: count(&self.counts.fetched),
        }
    }

    /// If the kernel can read copies by itself, how high the mount is stacked then.
    pub(super) fn depth(&self) -> Option<u32> {
        self.kernel.device().map(|_| self.store.depth())
    }

    fn find(&self, node: u64) -> Option<Arc<Copy>> {
        self.copies.lock().get(&node).map(Arc::clone)
    }

    fn copy(&self, node: u64) -> Arc<Copy> {
        Arc::clone(self.copies.lock().entry(node).or_default())
    }

    /// The server takes back what it has said of a node. Whether anything was kept of it.
    pub(super) fn lose(&self, node: u64) -> bool {
        let copy = self.find(node);
        if let Some(copy) = &copy {
            copy.lose();
        }
        copy.is_some()
    }

    /// Nothing of what the server has said holds any more.
    pub(super) fn lose_all(&self) {
        let copies: Vec<_> = self.copies.lock().values().map(Arc::clone).collect();
        for copy in copies {
            copy.lose();
        }
    }

    /// The server has just told these attributes of a node, and the kernel is about to hear of them.
    pub(super) fn seen(&self, node: u64, attr: &Attr) {
        if let Some(copy) = self.find(node) {
            copy.lose_unless(&attr.into());
        }
    }

    /// The data of a node is about to be changed through this mount, until this is dropped.
    pub(super) fn changing(&self, node: u64) -> Changing {
        self.copy(node).change()
    }

    /// The kernel knows the node no more. What is here of it may be of use under another number.
    pub(super) fn forget(&self, node: u64) {
        let copy = self.copies.lock().remove(&node);
        if let Some(copy) = copy {
            copy.let_go(&self.store);
        }
    }

    /// What is known of a file, asked if it is not; None if nothing that could be used.
    fn know(&self, connection: &Connection, copy: &Arc<Copy>, node: u64) -> Option<Known> {
        let asked = boot_time();
        let holds = !connection.lease_left().is_zero();
        let generation = match copy.known(asked)? {
            Ok(known) if holds => return Some(known),
            Ok(known) => known.generation,
            Err(generation) => generation,
        };
        let (attr, version, keep) = getattr(connection, node)?;
        let until = match self.valid.filter(|_| keep) {
            None => 0,
            Some(Validity::UntilChanged) => u64::MAX,
            Some(Validity::For(time)) => asked.saturating_add(time.as_nanos().try_into().unwrap_or(u64::MAX)),
        };
        // Nothing could ever tell whether it is the same.
        if attr.kind != FileKind::RegularFile || (version == 0 && until == 0) {
            return None;
        }
        let said = Known {
            mark: (&attr).into(),
            version,
            until,
            generation,
        };
        let key = Key::of(&self.source, attr.ino);
        match copy.learn(&self.store, key, said, generation) {
            Ok(known) => {
                self.make_room();
                known
            }
            Err(error) => {
                self.no_room(&error);
                None
            }
        }
    }

    /// Each that is open has a descriptor: those that were not read for the longest time are closed.
    fn make_room(&self) {
        let closed: Vec<_> = {
            let mut copies = self.copies.lock();
            if copies.len() <= self.most {
                return;
            }
            // What somebody else has as well is in use.
            let idle = copies.iter().filter(|(_, copy)| Arc::strong_count(copy) == 1);
            let mut idle: Vec<_> = idle.map(|(node, copy)| (copy.used(), *node)).collect();
            idle.sort_unstable();
            idle.truncate(self.most / 8 + 1);
            idle.iter().filter_map(|(_, node)| copies.remove(node)).collect()
        };
        for copy in closed {
            copy.let_go(&self.store);
        }
    }

    fn no_room(&self, error: &std::io::Error) {
        let mut full = self.full.lock();
        if full.is_none_or(|since| since.elapsed() >= FULL) {
            warn!(%error, "the spool cannot be written to: for the moment nothing more is kept");
        }
        *full = Some(Instant::now());
    }

    fn is_full(&self) -> bool {
        self.full.lock().is_some_and(|since| since.elapsed() < FULL)
    }

    /// Answers a READ of these bytes: from what is here, or what is fetched for that. None: it is to be answered without the spool.
    pub(super) fn read(
        &self,
        connection: &Connection,
        ahead: Option<&Ahead>,
        about: &About,
        size: u32,
    ) -> Option<Answer> {
        let read = self.read_kept(connection, ahead, about, size);
        if read.is_none() {
            self.counts.passed.fetch_add(1, Ordering::Relaxed);
        }
        read
    }

    fn read_kept(
        &self,
        connection: &Connection,
        ahead: Option<&Ahead>,
        about: &About,
        size: u32,
    ) -> Option<Answer> {
        let copy = self.copy(about.node);
        // Before it is known whether the file is the same: what the kernel is shown is as of then.
        let at = connection.kept().snapshot();
        let known = self.know(connection, &copy, about.node)?;
        let total = known.mark.size;
        let range = about.offset.min(total)..total.min(about.offset.saturating_add(size.into()));
        let keep = known.until != 0;
        if range.is_empty() {
            let bytes = Vec::new();
            return Some(Answer { bytes, keep });
        }
        if total > self.store.limit / SHARE {
            return None;
        }
        let chunks = chunk_of(range.start)?..=chunk_of(range.end - 1)?;
        if !copy.is_worth_it(&range, &chunks, total) {
            return None;
        }
        let mut fetched = false;
        loop {
            match copy.lacks(&chunks, known.generation, Some(connection.timeout())) {
                Lack::Nothing => break,
                Lack::Lost => return None,
                Lack::Check(chunk) => {
                    copy.check(&self.store, chunk, known.generation);
                }
                Lack::Fetch(missing) => {
                    fetched = true;
                    let job = Job {
                        copy: Arc::clone(&copy),
                        about: *about,
                        known,
                        chunks: missing,
                    };
                    if !self.fetch(connection, &job) {
                        return None;
                    }
                }
            }
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        if !copy.read(&self.store, &range, known.generation, now, &mut bytes) {
            return None;
        }
        let count = if fetched {
            &self.counts.misses
        } else {
            &self.counts.hits
        };
        count.fetch_add(1, Ordering::Relaxed);
        if keep {
            self.show(&copy, about.node, &chunks, &known, at);
        }
        if let Some(ahead) = ahead {
            self.look_ahead(ahead, &copy, about, &known, &range, &chunks);
        }
        Some(Answer { bytes, keep })
    }

    /// The kernel may read what is here by itself.
    fn show(
        &self,
        copy: &Copy,
        node: u64,
        chunks: &RangeInclusive<u32>,
        known: &Known,
        at: Option<Snapshot>,
    ) {
        let (Some(at), Some(device)) = (at, self.kernel.device()) else {
            return;
        };
        if self.unbacked.load(Ordering::Relaxed) {
            return;
        }
        match copy.show(&device, NodeId(node), chunks, known.generation, at) {
            Ok(()) => {}
            Err(error @ (BackingError::Denied | BackingError::Stacked | BackingError::Unsuitable(_))) => {
                if !self.unbacked.swap(true, Ordering::Relaxed) {
                    warn!(%error, "the kernel does not read the spool by itself");
                }
            }
            Err(error) => debug!(%error, node, "the kernel does not take a copy"),
        }
    }

    /// Whoever reads on will find it here.
    fn look_ahead(
        &self,
        ahead: &Ahead,
        copy: &Arc<Copy>,
        about: &About,
        known: &Known,
        range: &Range<u64>,
        chunks: &RangeInclusive<u32>,
    ) {
        let Some(last) = chunk_of(known.mark.size - 1) else {
            return;
        };
        let first = chunks.end() + 1;
        // Somebody who has read what is in front of it, or begins.
        if first > last || (range.start != 0 && !copy.follows(*chunks.start(), known.generation)) {
            return;
        }
        let job = Job {
            copy: Arc::clone(copy),
            about: *about,
            known: *known,
            chunks: first..=last.min(first + AHEAD - 1),
        };
        // Those who have much to do do without.
        if let Some(jobs) = &ahead.jobs {
            let _ = jobs.try_send(job);
        }
    }

    /// Fetches chunks, as whoever asked what is lacking was told. Whether they are here now.
    fn fetch(&self, connection: &Connection, job: &Job) -> bool {
        let bytes = self.fetch_bytes(connection, job);
        let generation = job.known.generation;
        job.copy
            .arrived(&self.store, &job.chunks, generation, bytes.as_deref())
    }

    fn fetch_bytes(&self, connection: &Connection, job: &Job) -> Option<Vec<u8>> {
        let Job {
            copy,
            about,
            known,
            chunks,
        } = job;
        if self.is_full() {
            return None;
        }
        let offset = u64::from(*chunks.start()) * CHUNK;
        let end = known.mark.size.min((u64::from(*chunks.end()) + 1) * CHUNK);
        let about = About {
            offset,
            file_version: known.version,
            ..*about
        };
        let size = u32::try_from(end.checked_sub(offset)?).ok()?;
        let (bytes, version) = connection.fetch(&about, size)?;
        self.counts
            .fetched
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // Without a version it is the lease that tells: it is looked at once more before anything is kept.
        if version != known.version || bytes.len() as u64 != u64::from(size) {
            copy.lose();
            return None;
        }
        let file = copy.file(known.generation)?;
        match file.write_all_at(&bytes, offset) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.no_room(&error);
                None
            }
        }
    }

    /// Writes down what is here, and asks for the versions that were not to be had before.
    fn save(&self, connection: &Connection) {
        let copies: Vec<_> = {
            let copies = self.copies.lock();
            copies
                .iter()
                .map(|(node, copy)| (*node, Arc::clone(copy)))
                .collect()
        };
        for (node, copy) in copies {
            if let Some(known) = copy.without_version()
                && known.until > boot_time()
                && let Some((attr, version, true)) = getattr(connection, node)
                && version != 0
                && known.until > boot_time()
            {
                copy.settle(&known, version, &Mark::from(&attr));
            }
            copy.save(&self.store);
        }
    }

    /// Nobody reads any more.
    fn end(&self, connection: &Connection) {
        self.save(connection);
        let copies = std::mem::take(&mut *self.copies.lock());
        for copy in copies.into_values() {
            copy.let_go(&self.store);
        }
    }
}

/// Half of the descriptors that there may be.
fn most_open() -> usize {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(most / 2).unwrap_or(MOST_OPEN).min(MOST_OPEN)
}

fn chunk_of(offset: u64) -> Option<u32> {
    u32::try_from(offset / CHUNK).ok()
}

/// Attributes of a node, its version, and whether the server allows them to be kept.
fn getattr(connection: &Connection, node: u64) -> Option<(Attr, u64, bool)> {
    let about = About {
        node,
        ..About::default()
    };
    let (answer, keep) = connection.call_kept(&about, &Request::Getattr(Empty));
    let answer = answer.ok()?;
    match answer.reply().ok()? {
        Reply::Getattr(attr) => Some((attr, answer.file_version, keep)),
        _ => None,
    }
}

/// Threads that fetch ahead of readers, and one that writes down what is here.
#[derive(Debug)]
pub(super) struct Ahead {
    jobs: Option<SyncSender<Job>>,
    /// Dropped, it ends the one that writes.
    over: Option<SyncSender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ahead {
    pub fn start(spool: &Arc<Spool>, connection: &Arc<Connection>) -> Self {
        let (jobs, waiting) = sync_channel::<Job>(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        let (over, is_over) = sync_channel(0);
        let mut threads = Vec::new();
        let mut spawn =
            |run: Box<dyn FnOnce() + Send>| match thread::Builder::new().name("spool".into()).spawn(run) {
                Ok(thread) => threads.push(thread),
                Err(error) => warn!(%error, "the spool has a thread less"),
            };
        for _ in 0..FETCHERS {
            let (spool, connection) = (Arc::clone(spool), Arc::clone(connection));
            let waiting = Arc::clone(&waiting);
            spawn(Box::new(move || fetch_ahead(&spool, &connection, &waiting)));
        }
        let (spool, connection) = (Arc::clone(spool), Arc::clone(connection));
        spawn(Box::new(move || save_often(&spool, &connection, &is_over)));
        Self {
            jobs: Some(jobs),
            over: Some(over),
            threads,
        }
    }
}

/// Waits until what is here is written down.
impl Drop for Ahead {
    fn drop(&mut self) {
        self.jobs = None;
        self.over = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a thread of the spool panicked");
            }
        }
    }
}

fn fetch_ahead(spool: &Spool, connection: &Connection, waiting: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held by who waits: the others wait for it.
        let job = waiting.lock().recv();
        let Ok(job) = job else { return };
        loop {
            match job.copy.lacks(&job.chunks, job.known.generation, None) {
                Lack::Nothing | Lack::Lost => break,
                Lack::Check(chunk) => {
                    job.copy.check(&spool.store, chunk, job.known.generation);
                }
                Lack::Fetch(missing) => {
                    let part = Job {
                        chunks: missing,
                        ..job.clone()
                    };
                    if !spool.fetch(connection, &part) {
                        break;
                    }
                }
            }
        }
    }
}

fn save_often(spool: &Spool, connection: &Connection, over: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = over.recv_timeout(SAVING) {
        spool.save(connection);
    }
    spool.end(connection);
}

/// Who is told what the server takes back: nobody, or a spool that is still there.
#[derive(Debug, Default)]
pub(super) struct Losing(Mutex<Weak<Spool>>);

impl Losing {
    pub fn set(&self, spool: &Arc<Spool>) {
        *self.0.lock() = Arc::downgrade(spool);
    }

    pub fn spool(&self) -> Option<Arc<Spool>> {
        self.0.lock().upgrade()
    }
}
