// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors, and how many of them each client may have.
//!
//! All that a client has here takes descriptors: nodes, open files, owners of locks, connections. [`SPARE`] of those that
//! the process may have are for what is nobody's, the others are shared. Nobody can be made to give any back, and who
//! remembers a tree asks for nothing any more; so some have to be left for whoever comes next:
//!
//! 1. A session is served if there are [`LEAST`] for it. They are its own, used or not, until it ends.
//! 2. Beyond, one more is given to who has fewer than would be left if an eighth of all were not there: that is for rule 1.
//!
//! So one client alone gets 7/16 of all; of n that take what they can each has 7/8 divided by n + 1, if all give back
//! what they do not use when they are refused. One who never does has kept half of what there was from the others,
//! and gets nothing of what they give back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sys::process::most_descriptors;

/// Descriptors for new connections, for what a request needs for a moment, and for the process's own files.
pub const SPARE: u64 = 64;

/// Nodes, open files and owners of locks that a session may have in any case: with what it needs to walk a path, to
/// have a file open at the end of it and to make one beside it.
const LEAST: usize = 16;

/// Descriptors that are shared.
fn all() -> usize {
    let all = most_descriptors().saturating_sub(SPARE);
    usize::try_from(all).unwrap_or(usize::MAX)
}

/// Whether one more is for a session that holds so many, when so many of all are taken.
fn is_due(held: usize, taken: usize, all: usize) -> bool {
    held < LEAST || held < (all - all / 8).saturating_sub(taken)
}

/// What is taken by all sessions.
#[derive(Debug, Default)]
pub struct Shares(Arc<AtomicUsize>);

impl Shares {
    /// Of a session that is not served yet: nothing is taken for it.
    pub fn none_yet(&self) -> Share {
        Share {
            taken: Arc::clone(&self.0),
            own: AtomicUsize::new(0),
        }
    }
}

/// What is taken by one session, which goes with this.
#[derive(Debug)]
pub struct Share {
    /// By all.
    taken: Arc<AtomicUsize>,
    /// What of that is this one's. Whoever changes it changes the sum by as much afterwards.
    own: AtomicUsize,
}

impl Share {
    /// The session is served from here on, once. False: there is no room for it.
    pub fn begins(&self) -> bool {
        let all = all();
        let with_this = |taken: usize| Some(taken + LEAST).filter(|taken| *taken <= all);
        let taken = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, with_this);
        if taken.is_ok() {
            self.own.store(LEAST, Ordering::Release);
        }
        taken.is_ok()
    }

    /// It holds so many, and has so many connections.
    pub fn counts(&self, held: usize, connections: usize) {
        let now = held.max(LEAST) + connections;
        let if_served = |own: usize| (own > 0).then_some(now);
        let before = self
            .own
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, if_served);
        if let Ok(before) = before {
            // Modulo 2^n, as it comes.
            self.taken.fetch_add(now.wrapping_sub(before), Ordering::AcqRel);
        }
    }

    /// Whether one more is due to it while it holds so many.
    pub fn has_room(&self, held: usize) -> bool {
        is_due(held, self.taken.load(Ordering::Acquire), all())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.fetch_sub(*self.own.get_mut(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 8000;

    /// Sessions that take what they can, round after round, until nobody gets any more.
    fn take(sessions: &mut [usize]) {
        loop {
            let mut got = false;
            for i in 0..sessions.len() {
                let taken = sessions.iter().map(|held| (*held).max(LEAST)).sum();
                assert!(taken <= ALL, "{sessions:?}");
                let due = is_due(sessions[i], taken, ALL);
                sessions[i] += usize::from(due);
                got |= due;
            }
            if !got {
                return;
            }
        }
    }

    fn about(expected: usize, is: usize) -> bool {
        is.abs_diff(expected) <= 1
    }

    #[test]
    fn who_takes_all_leaves_as_much_and_an_eighth() {
        let mut one = [0];
        take(&mut one);
        assert!(about(3500, one[0]), "{one:?}");
    }

    #[test]
    fn those_who_take_at_the_same_time_have_the_same() {
        for count in [2, 3, 6, 13] {
            let mut all = vec![0; count];
            take(&mut all);
            let each = 7000 / (count + 1);
            assert!(all.iter().all(|held| about(each, *held)), "{all:?}");
        }
    }

    #[test]
    fn who_comes_later_has_half_of_what_is_left_and_nobody_takes_what_is_given_back() {
        let mut both = [3500, 0];
        take(&mut both);
        assert_eq!(both[0], 3500);
        assert!(about(1750, both[1]), "{both:?}");
        both[1] = 0;
        assert!(!is_due(both[0], 3500 + LEAST, ALL));
        // One who gives back gets there, too.
        both[0] = 100;
        take(&mut both);
        assert!(both.iter().all(|held| held.abs_diff(2333) < 50), "{both:?}");
    }

    #[test]
    fn the_last_eighth_is_for_those_who_have_next_to_nothing() {
        let mut many = Vec::new();
        for _ in 0..40 {
            many.push(0);
            take(&mut many);
        }
        let held: usize = many.iter().sum();
        assert!(many.iter().all(|held| *held >= LEAST), "{many:?}");
        assert!(held <= 7000 + 40 * LEAST, "{held}");
    }

    #[test]
    fn what_a_session_has_is_its_own_until_it_is_gone() {
        let shares = Shares::default();
        let taken = || shares.0.load(Ordering::Acquire);
        let (one, other) = (shares.none_yet(), shares.none_yet());
        one.counts(5, 1);
        assert_eq!(taken(), 0, "it is not served");
        assert!(one.begins() && other.begins());
        assert_eq!(taken(), 2 * LEAST);
        one.counts(LEAST + 100, 2);
        other.counts(3, 1);
        assert_eq!(taken(), LEAST + 102 + LEAST + 1);
        one.counts(3, 1);
        assert_eq!(taken(), 2 * (LEAST + 1));
        drop(other);
        assert_eq!(taken(), LEAST + 1);
        drop(one);
        assert_eq!(taken(), 0);
    }
}
