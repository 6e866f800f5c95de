// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether what several clients have seen could have happened one after the other.
//!
//! Each operation takes effect at one moment between its call and its return, or, if nobody knows how it ended, at
//! one moment after its call or never. The search is that of Wing and Gong, with the states that it has been in
//! remembered, as Lowe does. An operation that looks at several objects is one operation on each: linearizability
//! is a matter of each object alone (Herlihy and Wing).

#![allow(dead_code)]

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What an object is, and what operations make of it.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Operation: Clone + Debug;
    type Outcome: Clone + Debug;

    /// The state after the operation, if it can have this outcome; any, where none is known.
    fn step(
        state: &Self::State,
        operation: &Self::Operation,
        outcome: Option<&Self::Outcome>,
    ) -> Option<Self::State>;
}

/// An operation as its client saw it.
#[derive(Clone, Debug)]
pub struct Event<M: Model> {
    pub client: usize,
    pub operation: M::Operation,
    /// None: it failed in a way that does not tell whether it was done.
    pub outcome: Option<M::Outcome>,
    /// Ticks of one clock for all.
    pub called: u64,
    /// `u64::MAX` if there is no outcome.
    pub returned: u64,
}

/// Whether there is an order in which all this is what a single copy would have done.
pub fn is_linearizable<M: Model>(initial: M::State, history: &[Event<M>]) -> bool {
    assert!(history.len() <= 128, "a history of {} is too long", history.len());
    let must: u128 = history
        .iter()
        .enumerate()
        .filter(|(_, event)| event.outcome.is_some())
        .fold(0, |bits, (i, _)| bits | 1 << i);
    let mut seen = HashSet::new();
    let mut stack = vec![(0_u128, initial)];
    while let Some((done, state)) = stack.pop() {
        if done & must == must {
            return true;
        }
        if !seen.insert((done, state.clone())) {
            continue;
        }
        let rest = || history.iter().enumerate().filter(|(i, _)| done & 1 << i == 0);
        // Nothing that was called after another had returned may come before it.
        let first_return = rest().map(|(_, event)| event.returned).min().unwrap_or(u64::MAX);
        for (i, event) in rest().filter(|(_, event)| event.called <= first_return) {
            if let Some(next) = M::step(&state, &event.operation, event.outcome.as_ref()) {
                stack.push((done | 1 << i, next));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug)]
    struct Register;

    #[derive(Clone, Debug)]
    enum Do {
        Write(u8),
        Read,
    }

    impl Model for Register {
        type State = u8;
        type Operation = Do;
        type Outcome = u8;

        fn step(state: &u8, operation: &Do, outcome: Option<&u8>) -> Option<u8> {
            match operation {
                Do::Write(value) => Some(*value),
                Do::Read => outcome.is_none_or(|seen| seen == state).then_some(*state),
            }
        }
    }

    fn event(called: u64, returned: u64, operation: Do, outcome: Option<u8>) -> Event<Register> {
        Event {
            client: 0,
            operation,
            outcome,
            called,
            returned,
        }
    }

    #[test]
    fn a_stale_read_is_found() {
        let write = event(0, 1, Do::Write(1), Some(0));
        let fresh = [write.clone(), event(2, 3, Do::Read, Some(1))];
        let stale = [write, event(2, 3, Do::Read, Some(0))];
        assert!(is_linearizable(0, &fresh));
        assert!(!is_linearizable(0, &stale));
    }

    #[test]
    fn new_and_then_old_is_found() {
        let write = event(0, 9, Do::Write(1), Some(0));
        let read = |at, value| event(at, at + 1, Do::Read, Some(value));
        assert!(is_linearizable(0, &[write.clone(), read(1, 0), read(3, 1)]));
        assert!(!is_linearizable(0, &[write, read(1, 1), read(3, 0)]));
    }

    #[test]
    fn what_nobody_knows_the_end_of_may_have_happened_at_any_time_or_never() {
        let write = event(0, u64::MAX, Do::Write(1), None);
        let read = |at, value| event(at, at + 1, Do::Read, Some(value));
        assert!(is_linearizable(0, &[write.clone(), read(1, 0), read(3, 1)]));
        assert!(is_linearizable(0, &[write.clone(), read(1, 0), read(3, 0)]));
        assert!(!is_linearizable(0, &[write, read(1, 1), read(3, 0)]));
    }
}
