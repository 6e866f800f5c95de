// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of one file, and what of it is here.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::store::{CHUNK, Chunk, Content, Key, Store};
use crate::abi::NodeId;
use crate::ebpf::{Backing, BackingError, BackingOptions, Snapshot};
use crate::remote::wire::message::{Attr, Timestamp};
use crate::sys::device::Device;

/// Chunks of one file that are remembered to have been asked for once.
const MOST_TOUCHED: usize = 1 << 16;

/// What tells whether a file may be another one, as far as this session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    ctime: Timestamp,
    mtime: Timestamp,
    pub size: u64,
}

impl From<&Attr> for Mark {
    fn from(attr: &Attr) -> Self {
        Self {
            ctime: attr.ctime,
            mtime: attr.mtime,
            size: attr.size,
        }
    }
}

/// What the server has said of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub mark: Mark,
    /// 0: none.
    pub version: u64,
    /// Until when it may be believed, ns since boot, if nobody takes it back and the lease holds; 0: it was only true when it was said.
    pub until: u64,
    /// Which knowledge it is: what was found out under another one is of no use.
    pub generation: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Goes up when nothing is known any more, or less is here.
    generation: u64,
    /// Changes that are being made here.
    changing: u32,
    known: Option<Known>,
    /// What is here, and of what file.
    content: Option<(Key, Content)>,
    /// Chunks that somebody fetches.
    fetching: BTreeSet<u32>,
    /// Chunks that were asked for once, and not fetched.
    touched: BTreeSet<u32>,
    /// Where the last READ ends that was one of many.
    next: u64,
    used: u64,
    backing: Option<Backing>,
    /// More is here than its index says.
    unsaved: bool,
}

impl State {
    /// Nothing is known any more, and the kernel reads nothing by itself.
    fn forget(&mut self) {
        self.generation += 1;
        self.known = None;
        self.backing = None;
    }

    fn content(&self, generation: u64) -> Option<&Content> {
        (self.generation == generation && self.changing == 0)
            .then_some(self.content.as_ref())
            .flatten()
            .map(|(_, content)| content)
    }
}

/// The first chunks of those that were wanted that are not here as they should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    /// These have to be fetched, by whoever is told so.
    Fetch(RangeInclusive<u32>),
    /// Was here before this process, and has to be compared with its CRC.
    Check(u32),
    /// Nothing of it is known any more.
    Lost,
}

/// One file. Its lock is held for a moment only: neither while the server is asked nor while a disk is.
#[derive(Debug, Default)]
pub(super) struct Copy {
    state: Mutex<State>,
    /// Something was fetched, or will not be.
    fetched: Condvar,
}

/// Something of the file is being changed through this mount. Until then nothing of it is kept, or read from what is.
#[derive(Debug)]
pub(in super::super) struct Changing(pub(super) Arc<Copy>);

impl Drop for Changing {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.changing -= 1;
        state.forget();
    }
}

impl Copy {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// What is known, or which generation it would have to be of; None while it is being changed.
    pub fn known(&self, now: u64) -> Option<Result<Known, u64>> {
        let state = self.lock();
        let known = state.known.filter(|known| known.until > now);
        (state.changing == 0).then_some(known.ok_or(state.generation))
    }

    /// The server has said this when the generation was `asked`. What is here stays if it is of that version.
    pub fn learn(
        self: &Arc<Self>,
        store: &Store,
        key: Key,
        said: Known,
        asked: u64,
    ) -> io::Result<Option<Known>> {
        let stays = |state: &State| {
            state.content.as_ref().is_some_and(|(_, content)| {
                said.version != 0 && content.version == said.version && content.size == said.mark.size
            })
        };
        let mut state = self.lock();
        if state.generation != asked || state.changing > 0 {
            return Ok(None);
        }
        if !stays(&state) {
            state.forget();
            state.touched.clear();
            state.content = None;
            let generation = state.generation;
            drop(state);
            let content = store.take(key, self, said.version, said.mark.size)?;
            state = self.lock();
            if state.generation != generation || state.changing > 0 {
                return Ok(None);
            }
            state.content = Some((key, content));
        }
        let known = Known {
            generation: state.generation,
            ..said
        };
        state.known = Some(known);
        Ok(Some(known))
    }

    /// Nothing is known of it any more. What is here may still be right.
    pub fn lose(&self) {
        self.lock().forget();
    }

    /// The same, unless the server has just said what was known anyhow.
    pub fn lose_unless(&self, mark: &Mark) {
        let mut state = self.lock();
        if state.known.is_some_and(|known| known.mark != *mark) {
            state.forget();
        }
    }

    /// It is about to be changed here.
    pub fn change(self: &Arc<Self>) -> Changing {
        let mut state = self.lock();
        state.changing += 1;
        state.forget();
        Changing(Arc::clone(self))
    }

    /// What is here is for others.
    pub fn let_go(&self, store: &Store) {
        let content = {
            let mut state = self.lock();
            state.forget();
            state.content.take()
        };
        if let Some((key, content)) = content {
            store.park(key, content);
        }
    }

    /// There is no room for what is here.
    pub fn drop_content(&self, store: &Store) {
        let content = {
            let mut state = self.lock();
            state.forget();
            state.content.take()
        };
        if let Some((key, _)) = content {
            store.remove(key);
        }
    }

    /// Whether a READ of these bytes looks like one of many: its file is to be kept. Otherwise it is
    /// remembered, and the second one for the same chunk is.
    pub fn is_worth_it(&self, range: &Range<u64>, chunks: &RangeInclusive<u32>, size: u64) -> bool {
        const SMALL: u64 = 1 << 20;
        const LARGE_READ: u64 = 64 << 10;
        // What is read ahead comes in several READs at the same time, and not always in their order.
        const LARGEST_READ: u64 = 1 << 20;
        let mut state = self.lock();
        let close = range.start.abs_diff(state.next) < LARGEST_READ;
        let here = state
            .content
            .as_ref()
            .is_some_and(|(_, content)| content.chunks.contains_key(chunks.start()));
        if size <= SMALL || range.end - range.start >= LARGE_READ || close || here {
            state.next = range.end;
            return true;
        }
        // Who reads that much at random is not remembered for ever.
        if state.touched.len() >= MOST_TOUCHED {
            state.touched.clear();
        }
        !state.touched.insert(*chunks.start())
    }

    /// What of these chunks is missing. Who is told to fetch has to, and to say so: nobody else does. With `wait`, others
    /// are waited for.
    pub fn lacks(&self, chunks: &RangeInclusive<u32>, generation: u64, wait: Option<Duration>) -> Lack {
        let mut state = self.lock();
        let deadline = wait.map(|wait| Instant::now() + wait);
        loop {
            let Some(content) = state.content(generation) else {
                return Lack::Lost;
            };
            let lacking = chunks.clone().find(|chunk| {
                let here = content.chunks.get(chunk);
                here.is_none_or(|here| !here.checked) && (wait.is_some() || !state.fetching.contains(chunk))
            });
            let Some(first) = lacking else {
                return Lack::Nothing;
            };
            if !state.fetching.contains(&first) {
                if content.chunks.contains_key(&first) {
                    return Lack::Check(first);
                }
                let free =
                    |chunk: &u32| !content.chunks.contains_key(chunk) && !state.fetching.contains(chunk);
                let last = (first..=*chunks.end()).take_while(free).last().unwrap_or(first);
                state.fetching.extend(first..=last);
                return Lack::Fetch(first..=last);
            }
            let waited =
                deadline.is_some_and(|until| !self.fetched.wait_until(&mut state, until).timed_out());
            if !waited {
                return Lack::Lost;
            }
        }
    }

    /// Whether what is in front of a chunk is here.
    pub fn follows(&self, chunk: u32, generation: u64) -> bool {
        let state = self.lock();
        let before = chunk.checked_sub(1);
        before.is_none_or(|before| {
            let content = state.content(generation);
            content.is_some_and(|content| content.chunks.contains_key(&before))
        })
    }

    /// When it was last read, by a clock of READs.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Where bytes of this generation are.
    pub fn file(&self, generation: u64) -> Option<Arc<File>> {
        self.lock()
            .content(generation)
            .map(|content| Arc::clone(&content.file))
    }

    /// These chunks were fetched, and are in the file; `bytes` are none if they were not. Whether they are of use.
    pub fn arrived(
        &self,
        store: &Store,
        chunks: &RangeInclusive<u32>,
        generation: u64,
        bytes: Option<&[u8]>,
    ) -> bool {
        let mut state = self.lock();
        for chunk in chunks.clone() {
            state.fetching.remove(&chunk);
        }
        self.fetched.notify_all();
        let (Some(bytes), true) = (bytes, state.content(generation).is_some()) else {
            return false;
        };
        let Some((key, content)) = &mut state.content else {
            return false;
        };
        let key = *key;
        for (chunk, bytes) in chunks.clone().zip(bytes.chunks(CHUNK as usize)) {
            let crc = crc32c::crc32c(bytes);
            content.chunks.insert(chunk, Chunk { crc, checked: true });
        }
        state.unsaved = true;
        drop(state);
        store.grows(key, bytes.len() as u64);
        true
    }

    /// Compares a chunk that was here before with its CRC. Whether it is still here.
    pub fn check(&self, store: &Store, chunk: u32, generation: u64) -> bool {
        let (file, range, crc) = {
            let state = self.lock();
            let Some(content) = state.content(generation) else {
                return false;
            };
            let Some(known) = content.chunks.get(&chunk) else {
                return false;
            };
            (Arc::clone(&content.file), content.range(chunk), known.crc)
        };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = file.read_exact_at(&mut bytes, range.start);
        let right = read.is_ok() && crc32c::crc32c(&bytes) == crc;
        let mut state = self.lock();
        if state.content(generation).is_none() {
            return false;
        }
        let Some((key, content)) = &mut state.content else {
            return false;
        };
        if right {
            content.chunks.insert(chunk, Chunk { crc, checked: true });
            return true;
        }
        tracing::warn!("what the spool has of a file is damaged, and is fetched again");
        content.chunks.remove(&chunk);
        let key = *key;
        drop(state);
        store.shrinks(key, bytes.len() as u64);
        false
    }

    /// Reads what is here, all of it.
    pub fn read(
        &self,
        store: &Store,
        range: &Range<u64>,
        generation: u64,
        now: u64,
        bytes: &mut [u8],
    ) -> bool {
        let Some(file) = self.file(generation) else {
            return false;
        };
        if file.read_exact_at(bytes, range.start).is_err() {
            return false;
        }
        let key = {
            let mut state = self.lock();
            // Nothing else was put there meanwhile.
            if state.content(generation).is_none() {
                return false;
            }
            state.used = now;
            state.content.as_ref().map(|(key, _)| *key)
        };
        if let Some(key) = key {
            store.used(key);
        }
        true
    }

    /// Tells the kernel what is here around these chunks, as of `at`: it reads that by itself from then on.
    pub fn show(
        &self,
        device: &Arc<Device<OwnedFd>>,
        node: NodeId,
        chunks: &RangeInclusive<u32>,
        generation: u64,
        at: Snapshot,
    ) -> Result<(), BackingError> {
        let mut state = self.lock();
        let Some(content) = state.content(generation) else {
            return Ok(());
        };
        let is_here = |chunk: &u32| content.chunks.get(chunk).is_some_and(|chunk| chunk.checked);
        let before = (0..*chunks.start()).rev().take_while(is_here).last();
        let behind = (*chunks.end()..).take_while(is_here).last();
        let (Some(first), Some(last)) = (Some(before.unwrap_or(*chunks.start())), behind) else {
            return Ok(());
        };
        let valid = content.range(first).start..content.range(last).end;
        let file = Arc::clone(&content.file);
        if let Some(backing) = &state.backing {
            match backing.extend(valid.clone(), at) {
                Err(BackingError::Ended) => {}
                // What is here in more pieces than the kernel takes comes up.
                Err(BackingError::Full) => return Ok(()),
                result => return result,
            }
        }
        let options = BackingOptions {
            copy: true,
            ..BackingOptions::default()
        };
        // The old one is not its own any more: what it would end with is another's.
        state.backing = None;
        state.backing = Some(Backing::register(device, node, &*file, options, valid, at)?);
        Ok(())
    }

    /// What has no version yet, and might have one by now.
    pub fn without_version(&self) -> Option<Known> {
        let state = self.lock();
        let (_, content) = state.content.as_ref()?;
        let fresh = content.version == 0 && !content.chunks.is_empty();
        state
            .known
            .filter(|known| fresh && known.generation == state.generation)
    }

    /// Nobody has changed it since it was known, and this is its version now.
    pub fn settle(&self, known: &Known, version: u64, mark: &Mark) {
        let mut state = self.lock();
        if state.generation == known.generation
            && known.mark == *mark
            && let Some((_, content)) = &mut state.content
        {
            content.version = version;
            state.unsaved = true;
            if let Some(known) = &mut state.known {
                known.version = version;
            }
        }
    }

    /// Writes down what is here.
    pub fn save(&self, store: &Store) {
        let content = {
            let mut state = self.lock();
            let unsaved = std::mem::take(&mut state.unsaved);
            state.content.clone().filter(|_| unsaved)
        };
        if let Some((key, content)) = content {
            store.save(key, &content);
        }
    }
}
