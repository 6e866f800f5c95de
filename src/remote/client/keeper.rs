// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is done without anybody waiting for it: PING, INVALIDATED and FORGET are sent, and free space becomes old.
//!
//! It has a thread of its own. The one that reads must never wait until the server takes something: the
//! server might wait for the same.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::calls::{Break, Heard, Shared};
use super::epoch::forgotten_outward;
use super::line::Line;
use crate::remote::wire::message::{Empty, Forget, Forgotten};
use crate::remote::wire::{Kind, Request};

/// INVALIDATE frames that wait for their INVALIDATED; a server that sends more without taking any is no
/// server.
const MOST_ACKNOWLEDGED: usize = 4096;

/// Nodes of one FORGET: 20 bytes each at most, which fit into a message.
const MOST_FORGOTTEN: usize = 3000;

/// How long what was said of free space is kept: it changes with what others do, whom nobody tells of it.
const SPACE: Duration = Duration::from_secs(1);

/// However short a lease is: more than ten a second would be load, and no sign of life.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// The line that INVALIDATE came over, and its number.
type Invalidated = (u64, u64);

#[derive(Debug, Default)]
struct Queue {
    acknowledged: Vec<Invalidated>,
    /// As many as the kernel has had nodes, at most.
    forgotten: Vec<Forgotten>,
    /// When what was said of free space is too old.
    space: Option<Instant>,
    over: bool,
}

/// What there is to do.
struct Work {
    acknowledged: Vec<Invalidated>,
    forgotten: Vec<Forgotten>,
    space: bool,
}

/// What the keeper has to send.
#[derive(Debug, Default)]
pub(super) struct Duties {
    queue: Mutex<Queue>,
    some: Condvar,
}

impl Duties {
    /// INVALIDATED; whether it can still be taken on.
    #[must_use]
    pub fn acknowledge(&self, line: u64, request: u64) -> bool {
        let mut queue = self.queue.lock();
        if queue.acknowledged.len() >= MOST_ACKNOWLEDGED {
            return false;
        }
        queue.acknowledged.push((line, request));
        self.some.notify_one();
        true
    }

    /// FORGET. What comes while others are sent goes with the next.
    pub fn forget(&self, forgotten: Forgotten) {
        let mut queue = self.queue.lock();
        if queue.over {
            return;
        }
        queue.forgotten.push(forgotten);
        self.some.notify_one();
    }

    /// Free space was asked for.
    pub fn space_was_told(&self) {
        let mut queue = self.queue.lock();
        if queue.space.is_none() {
            queue.space = Some(Instant::now() + SPACE);
            self.some.notify_one();
        }
    }

    /// These could not be sent.
    fn forget_later(&self, forgotten: Vec<Forgotten>) {
        let mut queue = self.queue.lock();
        if !queue.over {
            queue.forgotten.extend(forgotten);
        }
    }

    /// Nothing is sent any more.
    pub fn end(&self) {
        let mut queue = self.queue.lock();
        queue.over = true;
        queue.forgotten.clear();
        self.some.notify_one();
    }

    /// What there is to do, after `pause` at most. None when it is over.
    fn wait(&self, pause: Duration) -> Option<Work> {
        let mut queue = self.queue.lock();
        let due = queue.space.map_or(pause, |at| {
            pause.min(at.saturating_duration_since(Instant::now()))
        });
        if !queue.over && queue.acknowledged.is_empty() && queue.forgotten.is_empty() && !due.is_zero() {
            self.some.wait_for(&mut queue, due);
        }
        (!queue.over).then(|| Work {
            acknowledged: std::mem::take(&mut queue.acknowledged),
            forgotten: std::mem::take(&mut queue.forgotten),
            space: queue.space.take_if(|at| *at <= Instant::now()).is_some(),
        })
    }
}

/// The oldest PING that has no answer yet.
struct Ping {
    line: u64,
    answer: Receiver<Heard>,
    deadline: Instant,
}

/// Sends what there is to send, until it is over.
pub(super) fn keep(shared: &Shared) {
    let mut ping: Option<Ping> = None;
    while !shared.is_over() {
        match shared.current() {
            Some(line) => {
                ping = ping.filter(|ping| ping.line == line.number);
                round(shared, &line, &mut ping);
            }
            // What is to be taken back waits.
            None => shared.wait_for_line(shared.timeout),
        }
    }
}

/// Once more, on a line that there was just now. Errors are for whoever reads.
fn round(shared: &Shared, line: &Line, ping: &mut Option<Ping>) {
    let pause = (shared.kept.lease().min(shared.timeout) / 3).max(LEAST_PAUSE);
    if let Some(pending) = ping {
        match pending.answer.try_recv() {
            Ok(_) | Err(TryRecvError::Disconnected) => *ping = None,
            Err(TryRecvError::Empty) if pending.deadline <= Instant::now() => {
                let (kind, timeout) = (Kind::Ping, shared.timeout);
                return shared.fail(line, &Break::Silent { kind, timeout });
            }
            Err(TryRecvError::Empty) => {}
        }
    }
    let idle = line.idle();
    if idle >= pause {
        // Also while one is on the way: it is what keeps the lease.
        if let Ok(answer) = shared.ping(line) {
            let deadline = Instant::now() + shared.timeout;
            ping.get_or_insert(Ping {
                line: line.number,
                answer,
                deadline,
            });
        }
        return;
    }
    let due = ping.as_ref().map_or(Duration::MAX, |ping| {
        ping.deadline.saturating_duration_since(Instant::now())
    });
    let Some(work) = shared.duties.wait((pause - idle).min(due)) else {
        return;
    };
    let (acknowledged, mut forgotten) = (work.acknowledged, work.forgotten);
    if work.space {
        shared.kept.space_is_old();
    }
    // Meanwhile there may be another line.
    let Some(line) = shared.current() else {
        return shared.duties.forget_later(forgotten);
    };
    // A server that has heard of the break asks for no more answers to what it said before.
    let of_this_line = acknowledged.into_iter().filter(|(of, _)| *of == line.number);
    for (_, request) in of_this_line {
        if shared
            .tell(&line, Some(request), &Request::Invalidated(Empty))
            .is_err()
        {
            return shared.duties.forget_later(forgotten);
        }
    }
    while !forgotten.is_empty() {
        let rest = forgotten.split_off(forgotten.len().min(MOST_FORGOTTEN));
        let nodes = forgotten
            .iter()
            .filter_map(|forgotten| forgotten_outward(forgotten, line.epoch))
            .collect();
        // What is lost on the way the server remembers for as long as the session lasts; what was not sent whole
        // it has not heard of.
        if shared
            .tell(&line, None, &Request::Forget(Forget { nodes }))
            .is_err()
        {
            forgotten.extend(rest);
            return shared.duties.forget_later(forgotten);
        }
        forgotten = rest;
    }
}
