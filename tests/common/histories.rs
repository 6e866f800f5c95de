// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random histories of several clients of one directory, and whether they could have happened one after the other.

#![allow(dead_code)]

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::errno::Errno;

use crate::linear::{Event, Model, is_linearizable};

/// One who sees the directory in which a history takes place.
pub trait Player: Send + Sync {
    /// Goes there.
    fn enter(&mut self, folder: &str) -> Result<(), Errno>;
    /// The inode number of a name.
    fn look(&self, name: &str) -> Result<u64, Errno>;
    /// Makes a file, which is not there yet; its inode number.
    fn make(&self, name: &str) -> Result<u64, Errno>;
    fn remove(&self, name: &str) -> Result<(), Errno>;
    fn rename(&self, from: &str, to: &str) -> Result<(), Errno>;
    /// The size of `file`, which is always there.
    fn size(&self) -> Result<u64, Errno>;
    fn set_size(&self, size: u64) -> Result<(), Errno>;
    /// What `file` contains.
    fn read(&self) -> Result<u64, Errno>;
    fn write(&self, number: u64) -> Result<(), Errno>;
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What the names of a directory stand for: inode numbers.
#[derive(Clone, Debug)]
struct Directory;

#[derive(Clone, Debug)]
enum Named {
    Look(usize),
    Make(usize),
    Remove(usize),
    Move(usize, usize),
}

impl Model for Directory {
    type State = [Option<u64>; 3];
    type Operation = Named;
    /// The inode number that was found or made; none: there was no such name (to be made: there was one).
    type Outcome = Option<u64>;

    fn step(state: &Self::State, operation: &Named, outcome: Option<&Option<u64>>) -> Option<Self::State> {
        let mut next = *state;
        let possible = match *operation {
            Named::Look(n) => outcome.is_none_or(|seen| *seen == state[n]),
            Named::Make(n) => match outcome {
                Some(Some(made)) => next[n].replace(*made).is_none(),
                // Whose number nobody knows is not looked for: see `run`.
                _ => state[n].is_some(),
            },
            Named::Remove(n) => {
                let done = next[n].take().is_some();
                outcome.is_none_or(|seen| seen.is_some() == done)
            }
            Named::Move(from, to) => {
                let done = state[from].is_some();
                if done {
                    next[to] = next[from].take();
                }
                outcome.is_none_or(|seen| seen.is_some() == done)
            }
        };
        possible.then_some(next)
    }
}

/// A number: a file's size, or what is in it.
#[derive(Clone, Debug)]
struct Register;

#[derive(Clone, Debug)]
enum Set {
    Look,
    To(u64),
}

impl Model for Register {
    type State = u64;
    type Operation = Set;
    type Outcome = u64;

    fn step(state: &u64, operation: &Set, outcome: Option<&u64>) -> Option<u64> {
        match operation {
            Set::Look => outcome.is_none_or(|seen| seen == state).then_some(*state),
            Set::To(number) => Some(*number),
        }
    }
}

/// One player's part of a history.
#[derive(Default)]
struct Seen {
    names: Vec<Event<Directory>>,
    sizes: Vec<Event<Register>>,
    data: Vec<Event<Register>>,
    broke: bool,
}

static TICKS: AtomicU64 = AtomicU64::new(1);

fn tick() -> u64 {
    TICKS.fetch_add(1, Ordering::SeqCst)
}

/// Does it, and takes down when. Only errors that say that nothing was done are an outcome.
fn note<M: Model>(
    who: usize,
    operation: M::Operation,
    events: &mut Vec<Event<M>>,
    run: impl FnOnce(&M::Operation) -> Option<M::Outcome>,
) -> bool {
    let called = tick();
    let outcome = run(&operation);
    let returned = if outcome.is_some() { tick() } else { u64::MAX };
    let known = outcome.is_some();
    events.push(Event {
        client: who,
        operation,
        outcome,
        called,
        returned,
    });
    known
}

/// A player does something at random, `count` times.
fn act(player: &mut impl Player, who: usize, folder: &str, count: usize, random: &mut Random) -> Seen {
    let mut seen = Seen {
        broke: player.enter(folder).is_err(),
        ..Seen::default()
    };
    let player = &*player;
    for _ in 0..count {
        if seen.broke {
            break;
        }
        let (n, m, value) = (
            random.below(3) as usize,
            random.below(2) as usize,
            random.below(1000),
        );
        let known = match random.below(16) {
            0 => note(who, Set::To(value), &mut seen.sizes, |_| {
                player.set_size(value).map(|()| value).ok()
            }),
            1..4 => note(who, Set::Look, &mut seen.sizes, |_| player.size().ok()),
            4 => note(who, Set::To(value), &mut seen.data, |_| {
                player.write(value).map(|()| value).ok()
            }),
            5..8 => note(who, Set::Look, &mut seen.data, |_| player.read().ok()),
            what => {
                let operation = match what {
                    8 => Named::Make(n),
                    9 => Named::Remove(n),
                    10 => Named::Move(n, (n + 1 + m) % 3),
                    _ => Named::Look(n),
                };
                note(who, operation, &mut seen.names, |operation| {
                    let outcome = match *operation {
                        Named::Look(n) => player.look(NAMES[n]),
                        Named::Make(n) => player.make(NAMES[n]),
                        Named::Remove(n) => player.remove(NAMES[n]).map(|()| 0),
                        Named::Move(from, to) => player.rename(NAMES[from], NAMES[to]).map(|()| 0),
                    };
                    match outcome {
                        Ok(number) => Some(Some(number)),
                        Err(Errno::ENOENT | Errno::EEXIST) => Some(None),
                        Err(_) => None,
                    }
                })
            }
        };
        seen.broke |= !known;
    }
    seen
}

/// How many, and where they begin.
pub fn plan(least: u64) -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = number("EXTFUSE_SEED").unwrap_or(now);
    println!("EXTFUSE_SEED={seed}");
    (number("EXTFUSE_HISTORIES").unwrap_or(least), seed)
}

/// What a history is that broke off or went on.
#[derive(Debug, Default)]
pub struct Told {
    pub histories: u64,
    pub operations: usize,
    pub broken: usize,
}

/// Runs histories of `count` operations a player, one after the other, each in a folder of its own, which is made in
/// `root` without the players. `fault` is called in the middle of each. A player that was broken is made anew by `again`.
pub fn run<P: Player>(
    (histories, seed): (u64, u64),
    count: usize,
    root: &Path,
    players: &mut [P],
    mut fault: impl FnMut(u64, &mut Random),
    mut again: impl FnMut(usize) -> P,
) -> Told {
    let mut told = Told::default();
    for number in 0..histories {
        let mut random = Random(seed ^ number << 20);
        let folder = format!("history-{number}");
        std::fs::create_dir(root.join(&folder)).unwrap();
        std::fs::write(root.join(&folder).join("file"), "").unwrap();
        std::fs::write(root.join(&folder).join("data"), 0_u64.to_ne_bytes()).unwrap();
        let barrier = Barrier::new(players.len() + 1);
        let seen: Vec<Seen> = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (who, player) in players.iter_mut().enumerate() {
                let mut random = Random(random.below(u64::MAX));
                let (barrier, folder) = (&barrier, &folder);
                threads.push(scope.spawn(move || {
                    barrier.wait();
                    act(player, who, folder, count, &mut random)
                }));
            }
            barrier.wait();
            fault(number, &mut random);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (who, seen) in seen.iter().enumerate() {
            if seen.broke {
                told.broken += 1;
                players[who] = again(who);
            }
        }
        let report = || format!("history {number}, EXTFUSE_SEED={seed}");
        let names: Vec<_> = seen.iter().flat_map(|seen| seen.names.iter().cloned()).collect();
        told.operations += names.len();
        // A file that was made without anybody hearing its number could be any.
        let unknown =
            |event: &Event<Directory>| matches!(event.operation, Named::Make(_)) && event.outcome.is_none();
        if !names.iter().any(unknown) {
            assert!(
                is_linearizable([None; 3], &names),
                "{}: {}",
                report(),
                shown(names)
            );
        }
        for part in [|seen: &Seen| seen.sizes.clone(), |seen: &Seen| seen.data.clone()] {
            let numbers: Vec<_> = seen.iter().flat_map(part).collect();
            told.operations += numbers.len();
            assert!(is_linearizable(0, &numbers), "{}: {}", report(), shown(numbers));
        }
        told.histories += 1;
    }
    println!("{told:?}");
    told
}

/// A line each, in the order of their calls.
fn shown<M: Model>(mut events: Vec<Event<M>>) -> String {
    events.sort_by_key(|event| event.called);
    let lines = events.iter().map(|event| {
        let Event {
            client,
            operation,
            outcome,
            called,
            returned,
        } = event;
        format!("\n{called}-{returned} client {client}: {operation:?}: {outcome:?}")
    });
    lines.collect()
}
