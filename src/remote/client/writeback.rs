// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that the server hears of after write(2) has returned.
//!
//! They wait here, as many bytes as there is room for, and are sent by threads of their own: those of a file in the order in
//! which they were made where they overlap, and put together where one goes on where the last has ended. Whatever else is
//! asked about a file waits until they are done, so on this mount nothing shows but the time. Errors belong to the
//! file: each open one is told once, by fsync(2) or close(2), as with a disk.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::warn;

use super::questions::number;
use super::spool::Changing;
use super::{About, Connection};
use crate::remote::wire::message::Data;
use crate::remote::wire::{Flags, Request};

/// Bytes that wait at the same time, of all files: who writes more waits.
const MOST: usize = 64 << 20;

/// What writes are put together to, bytes.
const TOGETHER: usize = 1 << 20;

/// Threads that send.
const SENDERS: usize = 4;

#[derive(Debug)]
struct Write {
    number: u64,
    about: About,
    /// Bytes; also when somebody has taken the data.
    len: usize,
    data: Vec<u8>,
    /// Somebody takes care of it.
    sent: bool,
    /// For as long as it may show.
    _changing: Option<Changing>,
}

impl Write {
    fn appends(&self) -> bool {
        self.about.flags.contains(Flags::APPEND)
    }

    fn range(&self) -> Range<u64> {
        self.about.offset..self.about.offset.saturating_add(self.len as u64)
    }

    /// Whether it matters which of both is done first.
    fn touches(&self, other: &Self) -> bool {
        let (a, b) = (self.range(), other.range());
        self.appends() || other.appends() || (a.start < b.end && b.start < a.end)
    }

    /// Whether this one can be made longer by what `about` says.
    fn goes_on(&self, about: &About, len: usize) -> bool {
        let at = self.appends() || self.range().end == about.offset;
        !self.sent
            && self.about.handle == about.handle
            && self.about.flags == about.flags
            && at
            && self.len + len <= TOGETHER
    }
}

/// Of one node.
#[derive(Debug, Default)]
struct Node {
    writes: VecDeque<Write>,
    /// How many writes have failed, and how the last one did.
    failed: u64,
    error: Option<Errno>,
    /// The failures that each open file has been told of, or that were before it.
    told: HashMap<u64, u64>,
}

impl Node {
    /// The first write that needs not wait for another one.
    fn next(&mut self) -> Option<&mut Write> {
        let index = (0..self.writes.len()).find(|index| {
            let write = &self.writes[*index];
            !write.sent && !self.writes.range(..index).any(|before| before.touches(write))
        })?;
        self.writes.get_mut(index)
    }

    fn is_idle(&self) -> bool {
        self.writes.is_empty() && self.told.is_empty()
    }
}

#[derive(Debug, Default)]
struct Queue {
    nodes: HashMap<u64, Node>,
    /// Those that have something to wait for.
    late: HashSet<u64>,
    /// Nodes that may have something to send.
    ready: VecDeque<u64>,
    bytes: usize,
    next: u64,
    over: bool,
}

#[derive(Debug)]
struct Shared {
    connection: Arc<Connection>,
    queue: Mutex<Queue>,
    /// There is something to send, or it is over.
    some: Condvar,
    /// Something was done.
    done: Condvar,
}

/// Writes that are still to be made on the server.
#[derive(Debug)]
pub(super) struct WriteBack {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl WriteBack {
    /// None if there are no threads to be had: then writes are not put off.
    pub fn start(connection: &Arc<Connection>) -> Option<Self> {
        let shared = Arc::new(Shared {
            connection: Arc::clone(connection),
            queue: Mutex::default(),
            some: Condvar::new(),
            done: Condvar::new(),
        });
        let mut threads = Vec::new();
        for _ in 0..SENDERS {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("writeback".into());
            match thread.spawn(move || shared.send_all()) {
                Ok(thread) => threads.push(thread),
                Err(error) => warn!(%error, "a thread less writes back"),
            }
        }
        (!threads.is_empty()).then_some(Self { shared, threads })
    }

    /// A file is open: it hears of what fails from now on.
    pub fn opened(&self, node: u64, handle: u64) {
        let mut queue = self.shared.queue.lock();
        let node = queue.nodes.entry(node).or_default();
        node.told.insert(handle, node.failed);
    }

    /// It is open no more.
    pub fn closed(&self, node: u64, handle: u64) {
        let mut queue = self.shared.queue.lock();
        if let Some(of) = queue.nodes.get_mut(&node) {
            of.told.remove(&handle);
            if of.is_idle() {
                queue.nodes.remove(&node);
            }
        }
    }

    /// Takes a write on. It waits while there is no room.
    pub fn write(&self, about: &About, data: &[u8], changing: Option<Changing>) {
        let shared = &self.shared;
        let mut queue = shared.queue.lock();
        while queue.bytes > 0 && queue.bytes + data.len() > MOST {
            shared.done.wait(&mut queue);
        }
        queue.bytes += data.len();
        queue.next += 1;
        let number = queue.next;
        queue.late.insert(about.node);
        let node = queue.nodes.entry(about.node).or_default();
        match node.writes.back_mut() {
            Some(last) if last.goes_on(about, data.len()) => {
                last.len += data.len();
                last.data.extend_from_slice(data);
            }
            _ => node.writes.push_back(Write {
                number,
                about: *about,
                len: data.len(),
                data: data.to_vec(),
                sent: false,
                _changing: changing,
            }),
        }
        queue.ready.push_back(about.node);
        shared.some.notify_one();
    }

    /// The nodes that have something to wait for.
    pub fn late(&self) -> HashSet<u64> {
        self.shared.queue.lock().late.clone()
    }

    /// Waits until all that was written to a node before is done. Whether there was anything.
    pub fn settle(&self, node: u64) -> bool {
        let mut queue = self.shared.queue.lock();
        let upto = queue.next;
        let waits = |queue: &Queue| {
            let node = queue.nodes.get(&node);
            node.is_some_and(|node| node.writes.iter().any(|write| write.number <= upto))
        };
        let waited = waits(&queue);
        while waits(&queue) {
            self.shared.done.wait(&mut queue);
        }
        waited
    }

    /// The same, of all nodes.
    pub fn settle_all(&self) {
        let mut queue = self.shared.queue.lock();
        let upto = queue.next;
        let waits = |queue: &Queue| {
            let mut all = queue.nodes.values();
            all.any(|node| node.writes.iter().any(|write| write.number <= upto))
        };
        while waits(&queue) {
            self.shared.done.wait(&mut queue);
        }
    }

    /// Waits likewise; what has failed since this open file was told the last time.
    ///
    /// # Errors
    ///
    /// That of the last write that failed, once for each open file.
    pub fn finish(&self, node: u64, handle: u64) -> Result<(), Errno> {
        self.settle(node);
        let mut queue = self.shared.queue.lock();
        let Some(of) = queue.nodes.get_mut(&node) else {
            return Ok(());
        };
        let failed = of.failed;
        let Some(told) = of.told.get_mut(&handle) else {
            return Ok(());
        };
        let is_told = std::mem::replace(told, failed);
        match of.error {
            Some(errno) if is_told < failed => Err(errno),
            _ => Ok(()),
        }
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.settle_all();
        self.shared.queue.lock().over = true;
        self.shared.some.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a thread that writes back panicked");
            }
        }
    }
}

impl Shared {
    fn send_all(&self) {
        let mut queue = self.queue.lock();
        loop {
            let Some(node) = queue.ready.pop_front() else {
                if queue.over {
                    return;
                }
                self.some.wait(&mut queue);
                continue;
            };
            let Some(write) = queue.nodes.get_mut(&node).and_then(Node::next) else {
                continue;
            };
            write.sent = true;
            let (number, about, data) = (write.number, write.about, std::mem::take(&mut write.data));
            let result = MutexGuard::unlocked(&mut queue, || self.send(&about, &data));
            self.finished(&mut queue, node, number, data.len(), result);
        }
    }

    /// Sends all of it.
    fn send(&self, about: &About, data: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < data.len() {
            let about = About {
                offset: about.offset.saturating_add(done as u64),
                ..*about
            };
            let rest = &data[done..];
            let answer = self.connection.ask(&about, &Request::Write(Data(rest)))?;
            match number(&answer, rest.len() as u64)? {
                0 => return Err(Errno::EIO),
                written => done += written as usize,
            }
        }
        Ok(())
    }

    fn finished(&self, queue: &mut Queue, node: u64, number: u64, bytes: usize, result: Result<(), Errno>) {
        queue.bytes -= bytes;
        if let Some(of) = queue.nodes.get_mut(&node) {
            of.writes.retain(|write| write.number != number);
            if let Err(errno) = result {
                warn!(%errno, bytes, "what was written did not arrive");
                of.failed += 1;
                of.error = Some(errno);
            }
            let more = of.writes.len();
            if of.is_idle() {
                queue.nodes.remove(&node);
            }
            if more == 0 {
                queue.late.remove(&node);
            }
            // Those that waited for this one.
            queue.ready.extend(std::iter::repeat_n(node, more.min(SENDERS)));
            if more > 0 {
                self.some.notify_all();
            }
        }
        if result.is_err() {
            self.connection.kept().data_is_void(node);
        }
        self.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(number: u64, offset: u64, len: usize, flags: Flags) -> Write {
        Write {
            number,
            about: About {
                offset,
                flags,
                handle: 1,
                ..About::default()
            },
            len,
            data: vec![0; len],
            sent: false,
            _changing: None,
        }
    }

    /// The numbers of those that can be sent at once, in the order in which they are.
    fn sent(node: &mut Node) -> Vec<u64> {
        std::iter::from_fn(|| {
            let write = node.next()?;
            write.sent = true;
            // As whoever sends them does.
            write.data = Vec::new();
            Some(write.number)
        })
        .collect()
    }

    fn done(node: &mut Node, number: u64) {
        node.writes.retain(|write| write.number != number);
    }

    #[test]
    fn what_overlaps_is_sent_in_its_order() {
        let mut node = Node::default();
        for (number, offset) in [(1, 0), (2, 5), (3, 20), (4, 14), (5, 30)] {
            node.writes.push_back(write(number, offset, 10, Flags::empty()));
        }
        assert_eq!(sent(&mut node), [1, 3, 5]);
        done(&mut node, 1);
        assert_eq!(sent(&mut node), [2]);
        done(&mut node, 3);
        assert!(sent(&mut node).is_empty());
        done(&mut node, 2);
        assert_eq!(sent(&mut node), [4]);
    }

    #[test]
    fn what_is_appended_is_sent_alone() {
        let mut node = Node::default();
        node.writes.push_back(write(1, 0, 10, Flags::empty()));
        node.writes.push_back(write(2, 100, 10, Flags::APPEND));
        node.writes.push_back(write(3, 200, 10, Flags::empty()));
        for number in 1..4 {
            assert_eq!(sent(&mut node), [number]);
            done(&mut node, number);
        }
    }

    #[test]
    fn what_goes_on_is_put_together() {
        let before = write(1, 100, 10, Flags::empty());
        let about = |offset| About {
            offset,
            handle: 1,
            ..About::default()
        };
        assert!(before.goes_on(&about(110), 5));
        assert!(!before.goes_on(&about(109), 5));
        assert!(!before.goes_on(&about(111), 5));
        assert!(!before.goes_on(&about(110), TOGETHER));
        // Through another open file, whose errors are others'.
        let other = About {
            handle: 2,
            ..about(110)
        };
        assert!(!before.goes_on(&other, 5));
        let appended = About {
            flags: Flags::APPEND,
            ..about(0)
        };
        assert!(!before.goes_on(&appended, 5));
        assert!(write(1, 100, 10, Flags::APPEND).goes_on(&appended, 5));
        let sent = Write { sent: true, ..before };
        assert!(!sent.goes_on(&about(110), 5));
    }
}
