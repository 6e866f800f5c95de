// SPDX-License-Identifier: MIT OR Apache-2.0
//! One merged file: its sources, and what of them is open.
//!
//! Its size is what its sources were when it was mounted. All who have it open read the same: the sources as they were
//! found when it was last opened, or its attributes were last asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::ReplyData;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::source::{Opened, Source, SourceError, Stamp, in_parallel};
use crate::remote::client::Outcome;
use crate::splice::Channel;
use crate::splice::layout::Layout;

/// From where on in which of its sources; zeros, if there is none.
pub(super) type From = Option<(usize, u64)>;

/// All its sources, opened.
#[derive(Debug)]
pub(super) struct Generation {
    /// Those that were begun later have a larger one.
    turn: u64,
    stamps: Arc<[Stamp]>,
    opened: Vec<Opened>,
}

#[derive(Debug, Default)]
struct State {
    /// How often it is open.
    opens: u64,
    /// While it is.
    current: Option<Arc<Generation>>,
    /// Which sources the pages that the kernel keeps are of, if they are of one generation.
    pages: Option<Arc<[Stamp]>>,
    handles: u64,
    /// Those who were told to drop the pages, and for which sources. Not before the kernel says something else of that handle
    /// has it done so: until then somebody else may still find what was before.
    dropping: HashMap<u64, Arc<[Stamp]>>,
    /// Which sources were last told of, and when they were last changed.
    told: Option<(Arc<[Stamp]>, SystemTime)>,
}

impl State {
    /// The kernel knows of this handle.
    fn heard_of(&mut self, handle: u64) {
        let Some(stamps) = self.dropping.remove(&handle) else {
            return;
        };
        // What was read since then is of these, too.
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.stamps == stamps)
        {
            self.pages = Some(stamps);
        }
    }

    /// When the sources were last changed: the newest of their times. If that is what was told of others, another time, a
    /// nanosecond later: it is how the kernel sees that its pages are of no more use.
    fn changed(&mut self, stamps: &Arc<[Stamp]>) -> Option<SystemTime> {
        let newest = stamps.iter().map(|stamp| stamp.mtime).max()?;
        let time = match &self.told {
            Some((told, time)) if told == stamps => *time,
            Some((_, time)) if *time == newest => {
                newest.checked_add(Duration::from_nanos(1)).unwrap_or(newest)
            }
            _ => newest,
        };
        self.told = Some((Arc::clone(stamps), time));
        Some(time)
    }

    /// Those who read from now on read this.
    fn go_on_with(&mut self, generation: &Arc<Generation>) {
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.stamps != generation.stamps)
        {
            // There may be some of either.
            self.pages = None;
        }
        self.current = Some(Arc::clone(generation));
    }
}

/// What an open is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub handle: u64,
    /// Whether the pages that the kernel has are still right.
    pub keep: bool,
}

#[derive(Debug)]
pub(super) struct Whole {
    layout: Layout<From>,
    sources: Vec<Arc<Source>>,
    turns: AtomicU64,
    /// Held while nobody is asked.
    state: Mutex<State>,
}

/// Bytes to be asked of a server: one behind the other there, and in pieces here.
struct Wanted {
    source: usize,
    offset: u64,
    len: usize,
    /// Begin and length.
    places: Vec<(usize, usize)>,
}

impl Whole {
    pub fn new(layout: Layout<From>, sources: Vec<Arc<Source>>) -> Self {
        Self {
            layout,
            sources,
            turns: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    fn each<T: Send>(
        &self,
        what: impl Fn(&Arc<Source>) -> Result<T, SourceError> + Sync,
    ) -> Result<Vec<T>, Errno> {
        let remote = self.sources.iter().filter(|source| source.is_remote()).count();
        let all = match remote {
            0 | 1 => self.sources.iter().map(what).collect(),
            _ => in_parallel(&self.sources, what),
        };
        all.map_err(|error| {
            tracing::warn!("{error}");
            error.errno()
        })
    }

    /// How the sources are now.
    fn look(&self) -> Result<Arc<[Stamp]>, Errno> {
        Ok(self.each(|source| source.stamp())?.into())
    }

    /// Opens the sources.
    fn begin(&self) -> Result<Arc<Generation>, Errno> {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let (stamps, opened): (Vec<_>, _) = self.each(|source| source.open())?.into_iter().unzip();
        let stamps = stamps.into();
        Ok(Arc::new(Generation { turn, stamps, opened }))
    }

    /// One more has it open.
    pub fn open(&self) -> Result<Opening, Errno> {
        let stamps = self.look()?;
        let fits = |current: &Arc<Generation>| current.stamps == stamps;
        let mut began = None;
        loop {
            // Closed behind the lock: it may have a server to tell.
            let _older;
            let mut state = self.state.lock();
            let current = match (state.current.clone(), began.take()) {
                (Some(current), None) if fits(&current) => current,
                (_, None) => {
                    drop(state);
                    began = Some(self.begin()?);
                    continue;
                }
                (None, Some(began)) => began,
                (Some(current), Some(began)) => {
                    let (later, older) = in_turn(current, began);
                    _older = older;
                    later
                }
            };
            state.go_on_with(&current);
            let keep = state.pages.as_ref() == Some(&current.stamps);
            state.handles += 1;
            let handle = state.handles;
            if !keep {
                state.dropping.insert(handle, Arc::clone(&current.stamps));
            }
            state.opens += 1;
            return Ok(Opening { handle, keep });
        }
    }

    /// One less has it open.
    pub fn close(&self, handle: u64) {
        let mut state = self.state.lock();
        state.heard_of(handle);
        state.opens = state.opens.saturating_sub(1);
        let last = match state.opens {
            0 => state.current.take(),
            _ => None,
        };
        drop(state);
        // It may have a server to tell.
        drop(last);
    }

    /// How the sources are, and when they were last changed; who has it open reads them so from now on.
    pub fn refresh(&self) -> Result<(Arc<[Stamp]>, Option<SystemTime>), Errno> {
        let mut stamps = self.look()?;
        let fits = |current: &Arc<Generation>| current.stamps == stamps;
        if !self.state.lock().current.as_ref().is_none_or(fits) {
            stamps = Arc::clone(&self.renew()?.stamps);
        }
        let changed = self.state.lock().changed(&stamps);
        Ok((stamps, changed))
    }

    /// The sources, opened anew.
    fn renew(&self) -> Result<Arc<Generation>, Errno> {
        let began = self.begin()?;
        // Closed behind the lock: it may have a server to tell.
        let _older;
        let mut state = self.state.lock();
        let Some(current) = state.current.clone() else {
            return Ok(began);
        };
        let (current, older) = in_turn(current, began);
        _older = older;
        state.go_on_with(&current);
        Ok(current)
    }

    /// The sources for who reads.
    fn current(&self, handle: u64) -> Option<Arc<Generation>> {
        let mut state = self.state.lock();
        state.heard_of(handle);
        state.current.clone()
    }

    /// Bytes of it; fewer at its end. EIO if a source has become shorter.
    pub fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let current = self.current(handle).ok_or(Errno::EBADF)?;
        match self.gather(&current, offset, size) {
            // The server was started anew, and knows nothing of what was open.
            Err(Errno::ESTALE) => self.gather(&*self.renew()?, offset, size),
            read => read,
        }
    }

    /// Answers a READ past the daemon, if all that it wants is in one source on a server.
    pub fn answer(
        &self,
        handle: u64,
        (offset, size): (u64, u32),
        unique: u64,
        channel: &Channel,
        reply: ReplyData,
    ) -> Outcome {
        let len = self.size().saturating_sub(offset).min(size.into());
        // Not larger than `size`.
        let len = u32::try_from(len).unwrap_or(size);
        let mut found = None;
        let one = self.layout.each(offset, len.into(), |piece| {
            match (found.is_none(), *piece.source.unwrap_or(&None)) {
                (true, Some((source, start))) => {
                    found = start.checked_add(piece.offset).map(|offset| (source, offset));
                    Ok(())
                }
                _ => Err(()),
            }
        });
        let current = self.current(handle);
        let (Ok(()), Some((source, offset)), Some(current)) = (one, found, current) else {
            return Outcome::Not(reply);
        };
        match current.opened.get(source) {
            Some(Opened::Remote(handle)) => handle.answer((offset, len), unique, channel, reply),
            _ => Outcome::Not(reply),
        }
    }

    fn gather(&self, current: &Generation, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let len = self.size().saturating_sub(offset).min(size.into());
        let mut room = vec![0; usize::try_from(len).map_err(|_| Errno::EIO)?];
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut begin = 0;
        self.layout.each(offset, len, |piece| {
            let place = (begin, usize::try_from(piece.len).map_err(|_| Errno::EIO)?);
            begin += place.1;
            let Some((source, start)) = *piece.source.unwrap_or(&None) else {
                return Ok(());
            };
            let offset = start.checked_add(piece.offset).ok_or(Errno::EIO)?;
            let opened = current.opened.get(source).ok_or(Errno::EIO)?;
            if let Opened::Local(_) = opened {
                return opened.read(slice(&mut room, place)?, offset);
            }
            // Who gives in turn gives bytes here and there that are one behind the other in the source.
            let goes_on =
                |wanted: &&mut Wanted| wanted.source == source && wanted.offset + wanted.len as u64 == offset;
            match wanted.iter_mut().rev().find(goes_on) {
                Some(wanted) => {
                    wanted.len += place.1;
                    wanted.places.push(place);
                }
                None => wanted.push(Wanted {
                    source,
                    offset,
                    len: place.1,
                    places: vec![place],
                }),
            }
            Ok(())
        })?;
        let ask = |wanted: &Wanted| {
            let mut bytes = vec![0; wanted.len];
            let opened = current.opened.get(wanted.source).ok_or(Errno::EIO)?;
            opened.read(&mut bytes, wanted.offset).map(|()| bytes)
        };
        for (wanted, bytes) in wanted.iter().zip(in_parallel(&wanted, ask)?) {
            let mut bytes = bytes.as_slice();
            for place in &wanted.places {
                let (these, rest) = bytes.split_at_checked(place.1).ok_or(Errno::EIO)?;
                slice(&mut room, *place)?.copy_from_slice(these);
                bytes = rest;
            }
        }
        Ok(room)
    }
}

fn slice(room: &mut [u8], (begin, len): (usize, usize)) -> Result<&mut [u8], Errno> {
    room.get_mut(begin..begin.saturating_add(len)).ok_or(Errno::EIO)
}

/// The one that was begun later, and the other one.
fn in_turn(one: Arc<Generation>, other: Arc<Generation>) -> (Arc<Generation>, Arc<Generation>) {
    match one.turn > other.turn {
        true => (one, other),
        false => (other, one),
    }
}
