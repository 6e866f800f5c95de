// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stamps: how kernel and daemon know whether an answer is still current.
//!
//! A connection has one clock that only grows, and slots that each stand for every key that hashes
//! to it: names, nodes, whole directories. A slot holds the clock's time at the end of the last change
//! to any of its keys, and how many changes are in flight. The memory is shared with the kernel,
//! which changes it at any moment: everything here is one atomic operation on one word.
//!
//! 1. *Snapshot*: the clock is read before the truth is asked.
//! 2. *Publish*: the answer carries the snapshot as its stamp.
//! 3. *Change*: in flight is counted up before the truth changes; afterwards the clock ticks, and the
//!    slot takes the new time and counts down in the same operation.
//! 4. *Hit*: an answer is current while no slot that it depends on has a change in flight or a time
//!    after its stamp. As the count sits above the time in the word, that is `slot <= stamp`.
//!
//! # Why this holds
//!
//! *Never older than the last completed change.* Let a change end with time `t`. A snapshot `s < t`
//! makes its answer stale once the slot has `t`, which is before the change counts as completed. With
//! `s >= t` the snapshot's load (acquire) read the tick (release) or one after it, and the truth
//! had changed before the tick: the truth, asked after the snapshot, is the new one.
//!
//! *Never from new back to old.* Whoever sees the new truth while the change is in flight sees it
//! after the count went up, and so does everybody that he tells: for them the slot reads as in
//! flight, or as changed at `t`, and the old answer is a miss either way. This needs no order between
//! the slot and the truth beyond what whoever serves the truth provides. A change that is announced
//! only when it has happened ([`Stamps::changed`]) gives the first promise from then on, not the
//! second: nobody was told before.
//!
//! *Late publishers lose.* A hit is decided when it is served, not when it is published: that a
//! publisher is slow, or replaces a newer answer by its own, makes a miss at worst.

use std::fmt;

use crate::abi::{self, NodeId, SlotKind, StampsLayout};
use crate::sync::{AtomicU64, Mutex, Ordering, PoisonError};

/// Words ahead of the slots.
const HEADER: usize = std::mem::offset_of!(StampsLayout, slot) / 8;
const CLOCK: usize = std::mem::offset_of!(StampsLayout, clock) / 8;
const DEADLINE: usize = std::mem::offset_of!(StampsLayout, deadline) / 8;

/// Locks among which the counts of changes in flight are spread.
const SHARDS: usize = 16;

/// The clock of the stamps, read before the truth is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot(u64);

impl Snapshot {
    /// What there is to snapshot once the clock has run out. Nothing can be published with it.
    pub const VOID: Self = Self(0);

    /// The stamp that it gives, unless it is void.
    #[must_use]
    pub fn stamp(self) -> Option<u64> {
        (self.0 != Self::VOID.0).then_some(self.0)
    }
}

/// A slot: what an answer depends on, and what a change touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// The whole connection: every answer depends on it.
    pub const CONNECTION: Self = Self(abi::SLOT_CONN);

    /// The slot of a node (`extfuse_node_slot`).
    #[must_use]
    pub fn node(nodeid: NodeId, kind: SlotKind) -> Self {
        Self::spread(
            nodeid
                .0
                .wrapping_add(u64::from(kind.0) << 60)
                .wrapping_mul(abi::HASH_MULTIPLIER),
        )
    }

    /// The slot of a name in a directory (`extfuse_entry_slot`), by the name's SipHash.
    #[must_use]
    pub fn entry(parent: NodeId, hash: u64) -> Self {
        Self::spread(parent.0.wrapping_mul(abi::HASH_MULTIPLIER) ^ hash)
    }

    /// Its number.
    #[must_use]
    pub fn index(self) -> u32 {
        self.0
    }

    fn spread(hash: u64) -> Self {
        let slot = (hash >> (u64::BITS - abi::SLOT_BITS)) as u32;
        Self(slot.max(1))
    }
}

/// Where a slot is: the index of its word behind the header. Slots that share a word are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(usize);

/// The clock and the slots of one connection.
pub struct Stamps {
    memory: Box<dyn AsRef<[AtomicU64]> + Send + Sync>,
    /// How far a slot's number is shifted to get its place: 0, but for stamps with fewer slots.
    shift: u32,
    /// Our changes in flight, by place. Only whether there are any is shared: the word has four
    /// bits for the daemon, and a carry would go into the kernel's count. The lock of a slot's shard
    /// is held while its bits change, so that they follow the count. No two shards are locked at once.
    in_flight: [Mutex<Vec<(Place, u32)>>; SHARDS],
}

impl Stamps {
    /// The stamps in `memory`, laid out as `struct extfuse_stamps`; fewer slots are possible as long
    /// as their number is a power of two.
    ///
    /// # Panics
    ///
    /// If the number of slots is not a power of two up to [`abi::SLOTS`].
    #[must_use]
    pub fn new(memory: impl AsRef<[AtomicU64]> + Send + Sync + 'static) -> Self {
        let slots = memory.as_ref().len().saturating_sub(HEADER);
        assert!(
            slots.is_power_of_two() && slots <= abi::SLOTS,
            "{slots} slots are no power of two"
        );
        let shift = abi::SLOT_BITS - slots.ilog2();
        Self {
            memory: Box::new(memory),
            shift,
            in_flight: Default::default(),
        }
    }

    /// Stamps that no kernel sees, as a new connection has them.
    #[must_use]
    pub fn in_memory(slots: usize) -> Self {
        let words: Vec<_> = (0..HEADER + slots).map(|_| AtomicU64::new(0)).collect();
        words[CLOCK].store(1, Ordering::Relaxed);
        words[DEADLINE].store(abi::NEVER, Ordering::Relaxed);
        Self::new(words)
    }

    /// Reads the clock; [`Snapshot::VOID`] once it has run out.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // Acquire: what is asked afterwards is at least as new as this time. A change at CLOCK_MAX
        // could not make that stamp stale, hence >=.
        let now = self.word(CLOCK).load(Ordering::Acquire);
        if now >= abi::CLOCK_MAX {
            Snapshot::VOID
        } else {
            Snapshot(now)
        }
    }

    /// Whether an answer with this stamp that depends on `slots` is current.
    #[must_use]
    pub fn current(&self, slots: &[Slot], stamp: u64) -> bool {
        // Acquire: what is done upon the answer is not done before it.
        stamp <= abi::CLOCK_MAX
            && slots
                .iter()
                .all(|slot| self.slot(self.place(*slot)).load(Ordering::Acquire) <= stamp)
    }

    /// Makes every answer that depends on one of `slots` stale: its truth has changed elsewhere.
    pub fn changed(&self, slots: &[Slot]) {
        let time = self.tick();
        for slot in slots {
            self.settle(self.place(*slot), time, 0);
        }
    }

    /// Begins a change of `slots`, which ends when the guard is dropped. Until then no answer that
    /// depends on one of them is current.
    pub fn begin(&self, slots: &[Slot]) -> Change<'_> {
        let mut places: Vec<_> = slots.iter().map(|slot| self.place(*slot)).collect();
        places.sort_unstable();
        places.dedup();
        for place in &places {
            let mut shard = self.shard(*place).lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, count)) = shard.iter_mut().find(|(known, _)| known == place) {
                *count += 1;
            } else {
                shard.push((*place, 1));
                // One process serves a connection, so the bits are ours alone: setting one never
                // carries into the kernel's.
                self.slot(*place).fetch_or(abi::FLIGHT_DAEMON, Ordering::AcqRel);
            }
        }
        Change { stamps: self, places }
    }

    /// When everything stops being current, in ns of the boot-time clock.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.word(DEADLINE).load(Ordering::Acquire)
    }

    /// Sets [`deadline`](Self::deadline).
    pub fn set_deadline(&self, boot_time: u64) {
        self.word(DEADLINE).store(boot_time, Ordering::Release);
    }

    /// The time of a change that is over.
    fn tick(&self) -> u64 {
        // Release: whoever snapshots this time asks the changed truth. Acquire: the slots are not
        // written before. When the clock has run out no stamp is CLOCK_MAX (see `snapshot`), so
        // that time makes all of them stale.
        (self.word(CLOCK).fetch_add(1, Ordering::AcqRel) + 1).min(abi::CLOCK_MAX)
    }

    /// Stores the time of a change, unless that of a later one is there, and clears `ended`, in one.
    fn settle(&self, place: Place, time: u64, ended: u64) {
        let word = self.slot(place);
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let new = (old & abi::FLIGHT_MASK & !ended) | time.max(old & abi::CLOCK_MAX);
            match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    fn end(&self, places: &[Place]) {
        let time = self.tick();
        for place in places {
            let mut shard = self.shard(*place).lock().unwrap_or_else(PoisonError::into_inner);
            let Some(at) = shard.iter().position(|(known, _)| known == place) else {
                continue;
            };
            shard[at].1 -= 1;
            let last = shard[at].1 == 0;
            if last {
                shard.swap_remove(at);
            }
            self.settle(*place, time, if last { abi::FLIGHT_DAEMON_MASK } else { 0 });
        }
    }

    fn place(&self, slot: Slot) -> Place {
        Place(slot.0 as usize >> self.shift)
    }

    fn shard(&self, place: Place) -> &Mutex<Vec<(Place, u32)>> {
        &self.in_flight[place.0 % SHARDS]
    }

    fn slot(&self, place: Place) -> &AtomicU64 {
        self.word(HEADER + place.0)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &(*self.memory).as_ref()[index]
    }
}

impl fmt::Debug for Stamps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Stamps")
            .field("slots", &(abi::SLOTS >> self.shift))
            .finish_non_exhaustive()
    }
}

/// A change in flight: see [`Stamps::begin`].
#[derive(Debug)]
#[must_use = "the change ends when this is dropped"]
pub struct Change<'a> {
    stamps: &'a Stamps,
    places: Vec<Place>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.stamps.end(&self.places);
    }
}
