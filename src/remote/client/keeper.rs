// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is sent without anybody waiting for it: PING, INVALIDATED, FORGET.
//!
//! It has a thread of its own. The one that reads must never wait until the server takes something: the
//! server might wait for the same.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::connection::{About, Answer, Break, Shared};
use crate::remote::wire::message::{Empty, Forget, Forgotten};
use crate::remote::wire::{Kind, Request};

/// INVALIDATE frames that wait for their INVALIDATED; a server that sends more without taking any is no
/// server.
const MOST_ACKNOWLEDGED: usize = 4096;

/// Nodes of one FORGET: 20 bytes each at most, which fit into a message.
const MOST_FORGOTTEN: usize = 3000;

/// However short a lease is: more than ten a second would be load, and no sign of life.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Queue {
    acknowledged: Vec<u64>,
    /// As many as the kernel has had nodes, at most.
    forgotten: Vec<Forgotten>,
    over: bool,
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
    pub fn acknowledge(&self, request: u64) -> bool {
        let mut queue = self.queue.lock();
        if queue.acknowledged.len() >= MOST_ACKNOWLEDGED {
            return false;
        }
        queue.acknowledged.push(request);
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

    /// Nothing is sent any more.
    pub fn end(&self) {
        let mut queue = self.queue.lock();
        queue.over = true;
        queue.forgotten.clear();
        self.some.notify_one();
    }

    /// What there is to send, after `pause` at most. None when it is over.
    fn wait(&self, pause: Duration) -> Option<(Vec<u64>, Vec<Forgotten>)> {
        let mut queue = self.queue.lock();
        if !queue.over && queue.acknowledged.is_empty() && queue.forgotten.is_empty() {
            self.some.wait_for(&mut queue, pause);
        }
        (!queue.over).then(|| {
            (
                std::mem::take(&mut queue.acknowledged),
                std::mem::take(&mut queue.forgotten),
            )
        })
    }
}

/// The oldest PING that has no answer yet.
struct Ping {
    answer: Receiver<Answer>,
    deadline: Instant,
}

/// Sends what there is to send, until the connection breaks.
pub(super) fn keep(shared: &Shared, lease: Duration) {
    let pause = (lease.min(shared.timeout) / 3).max(LEAST_PAUSE);
    let mut ping: Option<Ping> = None;
    loop {
        if let Some(pending) = &ping {
            match pending.answer.try_recv() {
                Ok(_) => ping = None,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) if pending.deadline <= Instant::now() => {
                    let (kind, timeout) = (Kind::Ping, shared.timeout);
                    return shared.fail(&Break::Silent { kind, timeout });
                }
                Err(TryRecvError::Empty) => {}
            }
        }
        let idle = shared.idle();
        if idle >= pause {
            // Also while one is on the way: it is what keeps the lease.
            let Ok(answer) = shared.send(&About::default(), &Request::Ping(Empty)) else {
                return;
            };
            let deadline = Instant::now() + shared.timeout;
            ping = ping.or(Some(Ping { answer, deadline }));
            continue;
        }
        let due = ping.as_ref().map_or(Duration::MAX, |ping| {
            ping.deadline.saturating_duration_since(Instant::now())
        });
        let Some((acknowledged, forgotten)) = shared.duties.wait((pause - idle).min(due)) else {
            return;
        };
        for request in acknowledged {
            if shared.tell(Some(request), &Request::Invalidated(Empty)).is_err() {
                return;
            }
        }
        for nodes in forgotten.chunks(MOST_FORGOTTEN) {
            let nodes = nodes.to_vec();
            // With the connection the server's nodes go, too.
            if shared.tell(None, &Request::Forget(Forget { nodes })).is_err() {
                return;
            }
        }
    }
}
