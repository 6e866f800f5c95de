// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model check of the cache protocol, kernel's side included.
//!
//! The sources of the protocol are compiled here against shuttle's atomics and locks, which run one
//! interleaving of the threads after another. Three parties share the stamps and the rows: changers
//! (the kernel's and the daemon's), publishers (a daemon that answers upcalls) and readers (handlers).
//! Each reader remembers what was certain before it began: the last completed change, and the newest
//! state that any reader had seen. An answer older than that fails the check.
//!
//! What is modelled of BPF maps: rows are written and read word by word, and the memory of a replaced
//! row is used for another at once, while somebody may still read it. What is not: memory orders (each
//! interleaving is sequentially consistent; `stamps.rs` says why the orders are right), time.
//!
//! Each rule of the protocol is broken in turn by a control, which the check must find.

mod abi {
    pub use extfuse::abi::*;

    /// Stamps without the words that nothing uses: shuttle's atomics are dear to make.
    #[allow(dead_code)]
    #[repr(C)]
    pub struct StampsLayout {
        pub clock: u64,
        pub deadline: u64,
        pub slot: [u64; super::SLOTS],
    }
}

mod sync {
    pub use shuttle::sync::Mutex;
    pub use shuttle::sync::atomic::{AtomicU64, Ordering};
    pub use std::sync::PoisonError;
}

#[allow(dead_code)]
#[path = "../src/ebpf"]
mod ebpf {
    pub mod cache;
    pub mod group;
    pub mod row;
    pub mod stamps;
    pub mod tables;
}

#[path = "pure_cache_model/elements.rs"]
mod elements;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Ghost, Ordering::Relaxed};
use std::time::UNIX_EPOCH;

use abi::{NodeId, SlotKind, StampsLayout};
use ebpf::cache::{Cache, Key, NodeIo, Validity};
use ebpf::row;
use ebpf::stamps::{Slot, Snapshot, Stamps};
use elements::{Elements, Grain};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use sync::{AtomicU64, Ordering};

const SLOTS: usize = 32;
/// Words ahead of the slots.
const HEADER: usize = std::mem::offset_of!(StampsLayout, slot) / 8;
const KEY: [u64; 2] = [1, 2];
const DIR: NodeId = NodeId(1);
const NAME: &[u8] = b"name";
const NODE: NodeId = NodeId(7);
/// Its rows take the memory that those of [`NODE`] leave, and the other way round.
const OTHER: NodeId = NodeId(8);

/// The rules, each of which a control breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// The stamp is compared when served, not when published only.
    ServedByStamp,
    /// A row proves itself before it is believed.
    RowsChecked,
    /// The clock is read before the truth is asked.
    SnapshotFirst,
    /// A change is in flight from before it happens.
    BeginFirst,
    /// The clock ticks after the truth has changed.
    TickLast,
    /// The end stores the time and counts down in one operation.
    EndAtOnce,
}

/// Complaints of the check.
const OLDER: &str = "is older than";
const SEVERAL_ROWS: &str = "an answer of several rows";

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Subject {
    /// The attributes of [`NODE`]: the version is in several of them.
    Attr,
    /// [`NAME`]: the version is its node id; at first, with version 0, there is no such name.
    Entry,
}

/// The memory of the stamps, for both sides.
struct Shared(Arc<Vec<AtomicU64>>);

impl AsRef<[AtomicU64]> for Shared {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

struct Model {
    broken: Option<Rule>,
    subject: Subject,
    words: Arc<Vec<AtomicU64>>,
    rows: Arc<Elements>,
    cache: Cache,
    /// What the truth is: the number of changes so far.
    truth: AtomicU64,
    /// The newest version that a completed change has made.
    completed: Ghost,
    /// The newest version that a reader has got.
    seen: Ghost,
    /// Answers from rows, over all interleavings: a check without any would check nothing.
    hits: Arc<Ghost>,
}

impl Model {
    fn new(broken: Option<Rule>, grain: Grain, subject: Subject, hits: Arc<Ghost>) -> Self {
        let words: Arc<Vec<_>> = Arc::new((0..HEADER + SLOTS).map(|_| AtomicU64::new(0)).collect());
        words[0].store(1, Ordering::SeqCst);
        words[1].store(abi::NEVER, Ordering::SeqCst);
        let rows = Arc::new(Elements::new(2, grain));
        let cache = Cache::new(Stamps::new(Shared(words.clone())), rows.clone(), KEY);
        Self {
            broken,
            subject,
            words,
            rows,
            cache,
            truth: AtomicU64::new(0),
            completed: Ghost::new(0),
            seen: Ghost::new(0),
            hits,
        }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    fn slot(&self, slot: Slot) -> &AtomicU64 {
        &self.words[HEADER + slot.index() as usize / (abi::SLOTS / SLOTS)]
    }

    /// The slot that a change of the subject touches.
    fn own_slot(&self) -> Slot {
        match self.subject {
            Subject::Attr => Slot::node(NODE, SlotKind::EXTFUSE_SLOT_ATTR),
            Subject::Entry => Slot::entry(DIR, row::name_hash(KEY, NAME)),
        }
    }

    fn change_truth(&self) -> u64 {
        self.truth.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A change as the module makes it.
    fn kernel_changes(&self) {
        let word = self.slot(self.own_slot());
        let tick = || self.words[0].fetch_add(1, Ordering::SeqCst) + 1;
        let early = (!self.keeps(Rule::TickLast)).then(tick);
        if self.keeps(Rule::BeginFirst) {
            word.fetch_add(abi::FLIGHT_KERNEL, Ordering::SeqCst);
        }
        let version = self.change_truth();
        let mut leaving = if self.keeps(Rule::BeginFirst) {
            abi::FLIGHT_KERNEL
        } else {
            0
        };
        if !self.keeps(Rule::EndAtOnce) {
            word.fetch_sub(leaving, Ordering::SeqCst);
            leaving = 0;
        }
        let time = early.unwrap_or_else(tick);
        let mut old = word.load(Ordering::SeqCst);
        loop {
            let new = ((old & abi::FLIGHT_MASK) - leaving) | time.max(old & abi::CLOCK_MAX);
            match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        self.completed.fetch_max(version, Relaxed);
    }

    /// A change that goes through the daemon, under `key`.
    fn daemon_changes(&self, key: Key<'_>) {
        let change = self.keeps(Rule::BeginFirst).then(|| self.cache.change(&[key]));
        let version = self.change_truth();
        match change {
            Some(change) => drop(change),
            None => self.cache.invalidate(&[key]),
        }
        self.completed.fetch_max(version, Relaxed);
    }

    /// A change that the daemon hears of afterwards.
    fn changes_elsewhere(&self, key: Key<'_>) {
        let version = self.change_truth();
        self.cache.invalidate(&[key]);
        self.completed.fetch_max(version, Relaxed);
    }

    /// An upcall that the daemon answers and publishes.
    fn publishes(&self) {
        let snapshot = |at: Option<Snapshot>| at.unwrap_or_else(|| self.cache.snapshot());
        let before = self.keeps(Rule::SnapshotFirst).then(|| self.cache.snapshot());
        let version = self.truth.load(Ordering::SeqCst);
        let at = snapshot(before);
        match (self.subject, version) {
            (Subject::Attr, _) => self.publish_attr(NODE, version, at),
            (Subject::Entry, 0) => self.cache.publish_negative(DIR, NAME, at, Validity::UntilChanged),
            (Subject::Entry, _) => {
                let valid = Validity::UntilChanged;
                self.cache
                    .publish_entry(DIR, NAME, NodeId(version), version, at, valid);
            }
        }
    }

    fn publish_attr(&self, nodeid: NodeId, version: u64, at: Snapshot) {
        let attr = fuser::FileAttr {
            ino: fuser::INodeNo(nodeid.0),
            size: version,
            blocks: version,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: fuser::FileType::RegularFile,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: version as u32,
            flags: 0,
        };
        self.cache
            .publish_attr(nodeid, &attr, NodeIo::Daemon, at, Validity::UntilChanged);
    }

    /// Another key's row takes memory that a row of the subject had.
    fn recycles(&self) {
        match self.subject {
            Subject::Attr => self.publish_attr(OTHER, 1_000_000, self.cache.snapshot()),
            Subject::Entry => {
                let (at, valid) = (self.cache.snapshot(), Validity::UntilChanged);
                self.cache
                    .publish_entry(DIR, b"other", NodeId(1_000_000), 1_000_000, at, valid);
            }
        }
    }

    /// What a handler answers, by the rules in force.
    fn handler(&self) -> Option<u64> {
        let current = |slots: &[Slot], stamp| {
            !self.keeps(Rule::ServedByStamp)
                || slots
                    .iter()
                    .all(|slot| self.slot(*slot).load(Ordering::SeqCst) <= stamp)
        };
        match self.subject {
            Subject::Attr => {
                let row = self.rows.read_attr(NODE)?;
                let proven = !self.keeps(Rule::RowsChecked) || row.check == row::attr_check(NODE, &row);
                let slots = [
                    self.own_slot(),
                    Slot::node(NODE, SlotKind::EXTFUSE_SLOT_NODE),
                    Slot::CONNECTION,
                ];
                let answer = (proven && current(&slots, row.stamp)).then_some(row.attr)?;
                let whole = answer.ino == NODE.0
                    && answer.size == answer.blocks
                    && answer.blksize == answer.size as u32;
                assert!(whole, "{SEVERAL_ROWS}: {answer:?}");
                Some(answer.size)
            }
            Subject::Entry => {
                let key = abi::EntryKey {
                    parent: DIR.0,
                    hash: row::name_hash(KEY, NAME),
                };
                let row = self.rows.read_entry(&key)?;
                let named = row.name_len == NAME.len() as u64 && row.name.starts_with(NAME);
                let proven = !self.keeps(Rule::RowsChecked) || row.check == row::entry_check(&key, &row);
                let slots = [
                    self.own_slot(),
                    Slot::node(DIR, SlotKind::EXTFUSE_SLOT_DIR),
                    Slot::node(NodeId(row.nodeid), SlotKind::EXTFUSE_SLOT_NODE),
                    Slot::CONNECTION,
                ];
                let hit = named && proven && current(&slots, row.stamp);
                assert!(!hit || row.nodeid == row.generation, "{SEVERAL_ROWS}");
                hit.then_some(row.nodeid)
            }
        }
    }

    /// The same by the daemon's own reader.
    fn own_reader(&self) -> Option<u64> {
        match self.subject {
            Subject::Attr => self.cache.attr(NODE).map(|row| row.attr.size),
            Subject::Entry => self.cache.entry(DIR, NAME).map(|row| row.nodeid),
        }
    }

    /// The map has evicted the row.
    fn no_row(&self) -> Option<u64> {
        None
    }

    /// Asks the row, then the truth; nothing it gets may be older than what is certain before.
    fn reads(&self, ask: impl Fn(&Self) -> Option<u64>, tells: bool) {
        let floor = self.completed.load(Relaxed).max(self.seen.load(Relaxed));
        let answer = ask(self);
        if answer.is_some() {
            self.hits.fetch_add(1, Relaxed);
        }
        let version = answer.unwrap_or_else(|| self.truth.load(Ordering::SeqCst));
        assert!(
            version >= floor,
            "{version} {OLDER} {floor}, which was certain before"
        );
        if tells {
            self.seen.fetch_max(version, Relaxed);
        }
    }
}

fn run(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(shuttle::thread::spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Changes that are announced before they happen, by kernel and daemon; readers tell each other.
fn announced(broken: Option<Rule>, grain: Grain, subject: Subject, hits: &Arc<Ghost>) {
    let model = Arc::new(Model::new(broken, grain, subject, hits.clone()));
    model.publishes();
    let party = |act: fn(&Model)| -> Box<dyn FnOnce() + Send> {
        let model = model.clone();
        Box::new(move || act(&model))
    };
    run(vec![
        party(|model| {
            model.kernel_changes();
            model.kernel_changes();
        }),
        party(|model| {
            model.daemon_changes(match model.subject {
                Subject::Attr => Key::Attr(NODE),
                Subject::Entry => Key::Entry(DIR, NAME),
            });
        }),
        party(|model| {
            model.daemon_changes(match model.subject {
                Subject::Attr => Key::Node(NODE),
                Subject::Entry => Key::Dir(DIR),
            });
        }),
        party(|model| {
            model.publishes();
            model.publishes();
        }),
        party(|model| {
            model.recycles();
            model.publishes();
            model.recycles();
        }),
        party(|model| {
            model.reads(Model::handler, true);
            model.reads(Model::handler, true);
            model.reads(Model::handler, true);
        }),
        party(|model| {
            model.reads(Model::no_row, true);
            let reader = if model.keeps(Rule::ServedByStamp) {
                Model::own_reader
            } else {
                Model::handler
            };
            model.reads(reader, true);
        }),
    ]);
}

/// The fewest parties that can go wrong, for the controls: one change, three publications, and a
/// reader of each kind of memory.
fn controlled(broken: Option<Rule>, grain: Grain, subject: Subject, hits: &Arc<Ghost>) {
    let model = Arc::new(Model::new(broken, grain, subject, hits.clone()));
    model.publishes();
    let party = |act: fn(&Model)| -> Box<dyn FnOnce() + Send> {
        let model = model.clone();
        Box::new(move || act(&model))
    };
    run(vec![
        party(Model::kernel_changes),
        party(Model::publishes),
        party(|model| {
            model.publishes();
            if !model.keeps(Rule::RowsChecked) {
                model.recycles();
            }
        }),
        party(|model| {
            model.reads(Model::handler, true);
            model.reads(Model::no_row, true);
            model.reads(Model::handler, true);
        }),
    ]);
}

/// Two changes of the daemon that overlap, and what is published between their ends.
fn overlapping(broken: Option<Rule>, grain: Grain, subject: Subject, hits: &Arc<Ghost>) {
    let model = Arc::new(Model::new(broken, grain, subject, hits.clone()));
    let party = |act: fn(&Model)| -> Box<dyn FnOnce() + Send> {
        let model = model.clone();
        Box::new(move || act(&model))
    };
    let changes: fn(&Model) = |model| {
        model.daemon_changes(match model.subject {
            Subject::Attr => Key::Attr(NODE),
            Subject::Entry => Key::Entry(DIR, NAME),
        });
    };
    run(vec![
        party(changes),
        party(changes),
        party(Model::publishes),
        party(|model| {
            model.reads(Model::no_row, true);
            model.reads(Model::handler, true);
        }),
    ]);
}

/// Changes that the daemon hears of afterwards: readers rely on the announcement only.
fn heard_of(broken: Option<Rule>, grain: Grain, subject: Subject, hits: &Arc<Ghost>) {
    let model = Arc::new(Model::new(broken, grain, subject, hits.clone()));
    model.publishes();
    let party = |act: fn(&Model)| -> Box<dyn FnOnce() + Send> {
        let model = model.clone();
        Box::new(move || act(&model))
    };
    run(vec![
        party(|model| {
            model.changes_elsewhere(match model.subject {
                Subject::Attr => Key::Attr(NODE),
                Subject::Entry => Key::Entry(DIR, NAME),
            });
            model.changes_elsewhere(Key::All);
        }),
        party(|model| {
            model.publishes();
            model.publishes();
        }),
        party(|model| {
            model.publishes();
            model.recycles();
        }),
        party(|model| {
            model.reads(Model::handler, false);
            model.reads(Model::own_reader, false);
            model.reads(Model::handler, false);
        }),
    ]);
}

type Scenario = fn(Option<Rule>, Grain, Subject, &Arc<Ghost>);

/// Runs the scenario by one schedule after another; how many answers came from rows.
fn explore(
    scheduler: impl Scheduler + 'static,
    scenario: Scenario,
    broken: Option<Rule>,
    grain: Grain,
    subject: Subject,
) -> u64 {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 17;
    // That it knows no memory order but SeqCst is said above.
    config.silence_warnings = true;
    let hits = Arc::new(Ghost::new(0));
    let counted = hits.clone();
    shuttle::Runner::new(scheduler, config).run(move || scenario(broken, grain, subject, &counted));
    hits.load(Relaxed)
}

fn holds(scenario: Scenario, subject: Subject) {
    let hits = explore(RandomScheduler::new(1000), scenario, None, Grain::Words, subject)
        + explore(PctScheduler::new(4, 1000), scenario, None, Grain::Words, subject)
        + explore(RandomScheduler::new(3000), scenario, None, Grain::Rows, subject)
        + explore(PctScheduler::new(4, 3000), scenario, None, Grain::Rows, subject);
    assert!(hits > 1000, "{hits} answers from rows");
}

/// The protocol without that rule must be found out.
fn is_found(broken: Rule, subject: Subject) {
    let (grain, complaints): (_, &[&str]) = match broken {
        Rule::RowsChecked => (Grain::Words, &[SEVERAL_ROWS, OLDER]),
        _ => (Grain::Rows, &[OLDER]),
    };
    let search = AssertUnwindSafe(|| {
        let scheduler = RandomScheduler::new_from_seed(7, 100_000);
        explore(scheduler, controlled, Some(broken), grain, subject);
    });
    let found = catch_unwind(search).expect_err("the check has missed a broken protocol");
    let said = (found.downcast_ref::<String>().map(String::as_str))
        .or(found.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    assert!(
        complaints.iter().any(|complaint| said.contains(complaint)),
        "found something else: {said}"
    );
}

#[test]
fn attributes_are_never_older_than_what_was_certain() {
    holds(announced, Subject::Attr);
}

#[test]
fn names_are_never_older_than_what_was_certain() {
    holds(announced, Subject::Entry);
}

#[test]
fn a_change_ends_its_own_flight_only() {
    for subject in [Subject::Attr, Subject::Entry] {
        // Random schedules interleave too finely for the changes to end before the reader does.
        let mut hits = explore(
            PctScheduler::new(2, 3000),
            overlapping,
            None,
            Grain::Rows,
            subject,
        );
        hits += explore(
            PctScheduler::new(5, 3000),
            overlapping,
            None,
            Grain::Rows,
            subject,
        );
        hits += explore(
            RandomScheduler::new(3000),
            overlapping,
            None,
            Grain::Rows,
            subject,
        );
        assert!(hits > 300, "{hits} answers from rows");
    }
}

#[test]
fn attributes_are_never_older_than_the_last_announcement() {
    holds(heard_of, Subject::Attr);
}

#[test]
fn names_are_never_older_than_the_last_announcement() {
    holds(heard_of, Subject::Entry);
}

#[test]
fn control_stamps_checked_only_when_published() {
    is_found(Rule::ServedByStamp, Subject::Attr);
    is_found(Rule::ServedByStamp, Subject::Entry);
}

#[test]
fn control_rows_not_checked() {
    is_found(Rule::RowsChecked, Subject::Attr);
    is_found(Rule::RowsChecked, Subject::Entry);
}

#[test]
fn control_snapshot_after_the_truth() {
    is_found(Rule::SnapshotFirst, Subject::Attr);
    is_found(Rule::SnapshotFirst, Subject::Entry);
}

#[test]
fn control_nothing_in_flight() {
    is_found(Rule::BeginFirst, Subject::Attr);
    is_found(Rule::BeginFirst, Subject::Entry);
}

#[test]
fn control_tick_before_the_change() {
    is_found(Rule::TickLast, Subject::Attr);
    is_found(Rule::TickLast, Subject::Entry);
}

#[test]
fn control_end_in_two_operations() {
    is_found(Rule::EndAtOnce, Subject::Attr);
    is_found(Rule::EndAtOnce, Subject::Entry);
}
