// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks that clients' users hold.
//!
//! They are locks of this machine's kernel, so that they exclude each other, whichever session they are of, and programs
//! that lock the same files here. Each owner has an open file description of its own: for `fcntl` locks one with
//! locks of open file descriptions, for `flock` another one. It is closed, and its locks are gone, when its client says
//! so (FLUSH, RELEASE), and when the session ends; a connection that breaks changes nothing.
//!
//! A read lock needs a description that is open for reading, a write lock one that is open for writing. One that is
//! open for writing keeps others from executing the file: it is had only where the client has the file open
//! for writing, too.
//!
//! Waiting is the client's: it asks again. To ask less often it may say so, and has its answer up to [`PATIENCE`]
//! later: as soon as it has the lock. Few may do so at a time, because each takes a thread.

mod ranges;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::FileHandle;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use self::ranges::Ranges;
use crate::fs::Stack;
use crate::remote::wire::Header;
use crate::remote::wire::message::{Lock, LockKind, LockRange, SetLock};
use crate::sys::lock::{self, Range};

/// Locks that one session may hold; a `flock` counts as one, and so does each range of bytes of an owner.
const MOST: usize = 4096;

/// How long a lock is waited for until the client is told to ask again. Shorter than any timeout that makes sense.
const PATIENCE: Duration = Duration::from_millis(250);

/// How soon a lock that a program on this machine has let go is noticed.
const TICK: Duration = Duration::from_millis(20);

type Result<T> = std::result::Result<T, Errno>;

/// Told of every lock that is let go, by whatever session.
#[derive(Debug, Default)]
pub struct Releases {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Releases {
    fn count(&self) -> u64 {
        *self.count.lock()
    }

    fn one_more(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    /// Until there was one more than `seen`, or until then.
    fn wait_past(&self, seen: u64, until: Instant) {
        let mut count = self.count.lock();
        while *count == seen {
            if self.changed.wait_until(&mut count, until).timed_out() {
                return;
            }
        }
    }
}

/// A node, and a number that the client's kernel gives an owner there.
type Owner = (u64, u64);

/// All owners of a node.
fn of(node: u64) -> RangeInclusive<Owner> {
    (node, 0)..=(node, u64::MAX)
}

/// Locks of fcntl(2) that an owner has.
#[derive(Debug)]
struct Ranged {
    file: OwnedFd,
    writable: bool,
    held: Ranges,
    /// What they were taken through.
    handles: Vec<u64>,
    /// The process, as its client numbers them.
    pid: u32,
}

/// A lock of flock(2).
#[derive(Debug)]
struct Whole {
    file: OwnedFd,
    handles: Vec<u64>,
}

#[derive(Debug, Default)]
struct Table {
    ranged: BTreeMap<Owner, Ranged>,
    whole: BTreeMap<Owner, Whole>,
    /// Ranges and whole files.
    held: usize,
    over: bool,
}

/// Those of a session.
#[derive(Debug)]
pub struct Locks {
    /// Locked while this machine's kernel is asked, which keeps nobody waiting.
    table: Mutex<Table>,
    releases: Arc<Releases>,
    /// Who waits at the moment, and how many may.
    waiting: AtomicUsize,
    most_waiting: usize,
    /// The client has gone, or nobody goes on with it: nobody waits.
    hurried: AtomicBool,
}

fn kind(kind: LockKind) -> lock::Kind {
    match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    }
}

fn note(handles: &mut Vec<u64>, handle: u64) {
    if !handles.contains(&handle) {
        handles.push(handle);
    }
}

impl Table {
    fn set(&mut self, stack: &Stack, header: &Header, wish: &SetLock) -> Result<()> {
        if self.over {
            return Err(Errno::EIO);
        }
        let range = Range {
            kind: kind(wish.lock.kind),
            start: wish.lock.start,
            end: wish.lock.end,
        };
        if range.start > range.end || range.end > lock::LAST {
            return Err(Errno::EINVAL);
        }
        let owner = (header.node, wish.owner);
        match (wish.flock, wish.lock.kind) {
            (true, LockKind::Unlock) => {
                self.held -= usize::from(self.whole.remove(&owner).is_some());
                Ok(())
            }
            (true, _) => self.set_whole(stack, header, owner, range.kind),
            (false, _) => self.set_range(stack, header, owner, range, wish.lock.pid),
        }
    }

    fn set_whole(&mut self, stack: &Stack, header: &Header, owner: Owner, kind: lock::Kind) -> Result<()> {
        let handle = header.handle;
        stack.inode_of(FileHandle(handle))?;
        if let Some(whole) = self.whole.get_mut(&owner) {
            note(&mut whole.handles, handle);
            // Whoever wants another kind loses the one that he has first, as with flock(2) itself.
            return lock::set_whole(&whole.file, kind).inspect_err(|_| {
                self.whole.remove(&owner);
                self.held -= 1;
            });
        }
        if self.held >= MOST {
            return Err(Errno::ENOLCK);
        }
        let (file, _) = stack.open_again(FileHandle(handle), false)?;
        lock::set_whole(&file, kind)?;
        let handles = vec![handle];
        self.whole.insert(owner, Whole { file, handles });
        self.held += 1;
        Ok(())
    }

    fn set_range(
        &mut self,
        stack: &Stack,
        header: &Header,
        owner: Owner,
        range: Range,
        pid: u32,
    ) -> Result<()> {
        let unlocks = range.kind == libc::F_UNLCK;
        let held = self.ranged.get(&owner).map(|ranged| ranged.held.len());
        // What nobody has needs no description to be given back.
        if unlocks && held.is_none() {
            return Ok(());
        }
        let before = held.unwrap_or(0);
        let after = self
            .ranged
            .get(&owner)
            .map_or_else(|| Ranges::default().with(range), |ranged| ranged.held.with(range));
        let all = self.held - before + after.len();
        if after.len() > before && all > MOST {
            return Err(Errno::ENOLCK);
        }
        if !unlocks {
            self.description(stack, header, owner, range.kind)?;
        }
        let Some(ranged) = self.ranged.get_mut(&owner) else {
            return Ok(());
        };
        let set = lock::set_range(&ranged.file, range);
        if set.is_ok() {
            if !unlocks {
                note(&mut ranged.handles, header.handle);
                ranged.pid = pid;
            }
            ranged.held = after;
            self.held = all;
        }
        if ranged.held.is_empty() {
            self.ranged.remove(&owner);
        }
        set
    }

    /// Sees to it that the owner has a description that locks of this kind can be set on.
    fn description(&mut self, stack: &Stack, header: &Header, owner: Owner, kind: lock::Kind) -> Result<()> {
        let writes = kind == libc::F_WRLCK;
        let handle = FileHandle(header.handle);
        // It has to be open, whatever is there already.
        stack.inode_of(handle)?;
        if let Some(ranged) = self.ranged.get(&owner)
            && (ranged.writable || !writes)
        {
            return Ok(());
        }
        let (file, writable) = stack.open_again(handle, true)?;
        if writes && !writable {
            return Err(Errno::EBADF);
        }
        match self.ranged.get_mut(&owner) {
            // What it holds are read locks: the other description gets the same, which are in nobody's way that these
            // are not in the way of, before the first one loses them.
            Some(ranged) => {
                for held in ranged.held.iter() {
                    lock::set_range(&file, *held)?;
                }
                (ranged.file, ranged.writable) = (file, writable);
            }
            None => {
                let ranged = Ranged {
                    file,
                    writable,
                    held: Ranges::default(),
                    handles: Vec::new(),
                    pid: 0,
                };
                self.ranged.insert(owner, ranged);
            }
        }
        Ok(())
    }

    /// Which process of this client has such a lock.
    fn holder(&self, asks: Owner, found: &Range) -> u32 {
        let has = |(owner, ranged): &(&Owner, &Ranged)| {
            **owner != asks && ranged.held.has(found.kind, found.start, found.end)
        };
        let holder = self.ranged.range(of(asks.0)).find(has);
        holder.map_or(0, |(_, ranged)| ranged.pid)
    }

    /// Takes away what this is said of; whether there was any.
    fn drop_if(&mut self, node: u64, goes: impl Fn(&Owner, &[u64]) -> bool) -> bool {
        let before = self.held;
        let ranged = self.ranged.range(of(node));
        let ranged: Vec<_> = ranged
            .filter_map(|(owner, ranged)| goes(owner, &ranged.handles).then_some(*owner))
            .collect();
        let whole = self.whole.range(of(node));
        let whole: Vec<_> = whole
            .filter_map(|(owner, whole)| goes(owner, &whole.handles).then_some(*owner))
            .collect();
        for owner in ranged {
            let gone = self.ranged.remove(&owner);
            self.held -= gone.map_or(0, |ranged| ranged.held.len());
        }
        for owner in whole {
            self.held -= usize::from(self.whole.remove(&owner).is_some());
        }
        self.held < before
    }
}

impl Locks {
    /// None yet. No more than `most_waiting` may wait for one.
    pub fn new(releases: Arc<Releases>, most_waiting: usize) -> Self {
        Self {
            table: Mutex::default(),
            releases,
            waiting: AtomicUsize::new(0),
            most_waiting,
            hurried: AtomicBool::new(false),
        }
    }

    /// SETLK.
    ///
    /// # Errors
    /// `EAGAIN` if somebody is in the way, also after having waited; `ENOLCK` if the session has too many; `EBADF` if
    /// the file is not open, or not for writing; `EINVAL` for what is no range.
    pub fn set(&self, stack: &Stack, header: &Header, wish: &SetLock) -> Result<()> {
        let mut seen = self.releases.count();
        let first = self.set_now(stack, header, wish);
        if first != Err(Errno::EAGAIN) || !wish.wait {
            return first;
        }
        let Some(_place) = Place::take(self) else {
            return first;
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Instant::now();
            if now >= deadline || self.hurried.load(Ordering::Acquire) {
                return Err(Errno::EAGAIN);
            }
            self.releases.wait_past(seen, deadline.min(now + TICK));
            seen = self.releases.count();
            match self.set_now(stack, header, wish) {
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
    }

    fn set_now(&self, stack: &Stack, header: &Header, wish: &SetLock) -> Result<()> {
        let mut table = self.table.lock();
        let before = table.held;
        let done = table.set(stack, header, wish);
        // A lock of flock(2) that could not be changed is lost.
        let fewer = table.held < before;
        drop(table);
        if fewer || (done.is_ok() && wish.lock.kind != LockKind::Write) {
            self.releases.one_more();
        }
        done
    }

    /// How many owners have descriptions.
    pub fn owners(&self) -> usize {
        let table = self.table.lock();
        table.ranged.len() + table.whole.len()
    }

    /// Whether SETLK needs a description that its owner does not have.
    pub fn is_new(&self, header: &Header, wish: &SetLock) -> bool {
        let (table, owner) = (self.table.lock(), (header.node, wish.owner));
        wish.lock.kind != LockKind::Unlock
            && match wish.flock {
                true => !table.whole.contains_key(&owner),
                false => !table.ranged.contains_key(&owner),
            }
    }

    /// GETLK.
    ///
    /// # Errors
    /// `EBADF` if the file is not open; `EINVAL` for what is no range.
    pub fn get(&self, stack: &Stack, header: &Header, wish: &LockRange) -> Result<Lock> {
        let owner = (header.node, wish.owner);
        let range = Range {
            kind: kind(wish.lock.kind),
            start: wish.lock.start,
            end: wish.lock.end,
        };
        if wish.lock.kind == LockKind::Unlock {
            return Err(Errno::EINVAL);
        }
        let handle = FileHandle(header.handle);
        stack.inode_of(handle)?;
        let table = self.table.lock();
        let found = match table.ranged.get(&owner) {
            Some(ranged) => lock::in_the_way(&ranged.file, range)?,
            None => lock::in_the_way(stack.open_again(handle, false)?.0, range)?,
        };
        let Some((found, ours)) = found else {
            return Ok(Lock {
                kind: LockKind::Unlock,
                start: 0,
                end: 0,
                pid: 0,
            });
        };
        Ok(Lock {
            kind: match found.kind {
                libc::F_RDLCK => LockKind::Read,
                _ => LockKind::Write,
            },
            start: found.start,
            end: found.end,
            // Others' processes mean nothing to this client, and this machine's own neither.
            pid: if ours { table.holder(owner, &found) } else { 0 },
        })
    }

    /// FLUSH: this owner has closed the file.
    pub fn flush(&self, node: u64, owner: u64) {
        self.drop_if(node, |(_, held_by), _| *held_by == owner);
    }

    /// RELEASE: nobody can have a lock any more that was taken through this handle. Of an owner that is a
    /// process, FLUSH has said so; one that is an open file goes here.
    pub fn release(&self, node: u64, handle: u64) {
        self.drop_if(node, |_, handles| handles.contains(&handle));
    }

    fn drop_if(&self, node: u64, goes: impl Fn(&Owner, &[u64]) -> bool) {
        if self.table.lock().drop_if(node, goes) {
            self.releases.one_more();
        }
    }

    /// Whether anybody may wait: only while there is a connection.
    pub fn may_wait(&self, may: bool) {
        self.hurried.store(!may, Ordering::Release);
        if !may {
            self.releases.one_more();
        }
    }

    /// The session is over: all of them go, and there are no more.
    pub fn end(&self) {
        let mut table = self.table.lock();
        let gone = std::mem::take(&mut *table);
        table.over = true;
        drop(table);
        drop(gone);
        self.may_wait(false);
    }
}

/// One of those who may wait.
struct Place<'l>(&'l Locks);

impl<'l> Place<'l> {
    fn take(locks: &'l Locks) -> Option<Self> {
        let taken = locks.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Self(locks);
        (taken < locks.most_waiting).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
