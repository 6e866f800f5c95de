// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who has been told what, so that nobody uses what somebody else has changed.
//!
//! A client may keep an answer that is marked so (KEEP). What it was told is taken down here *before* the truth is
//! read; whoever changes it says so here before the change, and everybody who was told is sent INVALIDATE and has
//! answered, or has lost its lease, before the change is made. Until it is made, nothing that it touches is
//! marked KEEP. So an answer that is kept is never older than a change that has begun, and there is no moment at which
//! one client may see the new state and another the old one that it has kept.
//!
//! A lease is a client's for as long as it says something: from each of its frames on it holds for
//! [`Options::lease`](super::Options::lease), which the client reckons from before it has sent that frame. A
//! connection that ends without a GOODBYE leaves its lease behind until it has run out: the client may not have
//! noticed.
//!
//! Things go by the export's inodes, which clients have different numbers for. Lock order: `Leases::holders`,
//! `Leases::changing` and those of a holder are taken while none of the others is held, but for `Holder::told` before
//! `Holder::standing`.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::session::millis;
use crate::fs::stack::Inode;
use crate::remote::wire::message::{Invalidation, SessionId};
use crate::remote::wire::{Name, WireError};

/// What of an inode may be told and change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Its attributes, those that are extended among them.
    Attributes,
    /// Its data; the listing of a directory.
    Data,
}

/// Something that can be told and change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    /// Of an inode.
    Of(Inode, Part),
    /// What a name in a directory stands for, or that there is none.
    Name(Inode, Name),
}

impl Thing {
    fn inode(&self) -> Inode {
        match self {
            Self::Of(inode, _) | Self::Name(inode, _) => *inode,
        }
    }
}

/// How INVALIDATE reaches a client.
pub trait Line: Send + Sync {
    /// Sends it.
    fn tell(&self, number: u64, what: Vec<Invalidation>) -> Result<(), WireError>;
    /// Ends the connection.
    fn cut(&self);
}

/// A node that a client has.
#[derive(Debug)]
struct Node {
    inode: Inode,
    attributes: bool,
    data: bool,
    /// Hashes of names that it was told of: one that stands for another name, too, costs an INVALIDATE.
    names: HashSet<u64>,
}

/// What a client was told since it was last told otherwise.
#[derive(Debug, Default)]
struct Told {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Inode, Vec<u64>>,
    /// Names of all nodes.
    names: usize,
}

impl Told {
    fn node(&mut self, number: u64, inode: Inode) -> &mut Node {
        match self.nodes.entry(number) {
            Entry::Occupied(node) => node.into_mut(),
            Entry::Vacant(place) => {
                self.numbers.entry(inode).or_default().push(number);
                place.insert(Node {
                    inode,
                    attributes: false,
                    data: false,
                    names: HashSet::new(),
                })
            }
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(node) = self.nodes.remove(&number) else {
            return;
        };
        self.names -= node.names.len();
        if let Entry::Occupied(mut numbers) = self.numbers.entry(node.inode) {
            numbers.get_mut().retain(|other| *other != number);
            if numbers.get().is_empty() {
                numbers.remove();
            }
        }
    }

    /// Takes note that the client is told otherwise, and gives what it has to be told.
    fn take(&mut self, thing: &Thing, hash: impl Fn(&Name) -> u64, out: &mut Vec<Invalidation>) {
        let Some(numbers) = self.numbers.get(&thing.inode()) else {
            return;
        };
        for &number in numbers {
            let Some(node) = self.nodes.get_mut(&number) else {
                continue;
            };
            match thing {
                Thing::Of(_, Part::Attributes) if std::mem::take(&mut node.attributes) => {
                    out.push(Invalidation::Attributes { node: number });
                }
                Thing::Of(_, Part::Data) if std::mem::take(&mut node.data) => {
                    let (offset, length) = (0, u64::MAX);
                    out.push(Invalidation::Data {
                        node: number,
                        offset,
                        length,
                    });
                }
                Thing::Name(_, name) if node.names.remove(&hash(name)) => {
                    self.names -= 1;
                    out.push(Invalidation::Entry {
                        parent: number,
                        name: name.clone().into(),
                    });
                }
                _ => {}
            }
        }
    }
}

/// An INVALIDATE frame that a client has not answered.
#[derive(Debug)]
struct Owed {
    /// What it was about: whoever changes that, too, has to wait for the same answer.
    about: Vec<Thing>,
    /// There is the answer, or there will be none. Each frame has its own: with one for all, each answer would wake
    /// everybody who waits for another.
    settled: Arc<Condvar>,
}

/// How it stands with a client's lease.
#[derive(Debug)]
struct Standing {
    /// When its last frame came.
    heard: Instant,
    /// INVALIDATE frames by number.
    owed: HashMap<u64, Owed>,
    next: u64,
    /// Its connection has ended.
    ended: bool,
}

impl Standing {
    /// The number of an INVALIDATE frame about this, which is owed from now on.
    fn owes(&mut self, about: Vec<Thing>) -> u64 {
        let number = self.next;
        self.next += 1;
        let settled = Arc::default();
        self.owed.insert(number, Owed { about, settled });
        number
    }

    /// Whom to wait for, if this frame is not answered yet.
    fn settled(&self, number: u64) -> Option<Arc<Condvar>> {
        self.owed.get(&number).map(|owed| Arc::clone(&owed.settled))
    }
}

/// A client that may keep what it is told.
pub struct Holder {
    session: SessionId,
    leases: Arc<Leases>,
    told: Mutex<Told>,
    standing: Mutex<Standing>,
    /// None when its connection has ended.
    line: Mutex<Option<Arc<dyn Line>>>,
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let standing = &self.standing;
        formatter
            .debug_struct("Holder")
            .field("standing", standing)
            .finish_non_exhaustive()
    }
}

impl Holder {
    /// A frame has come.
    pub fn heard(&self) {
        self.standing.lock().heard = Instant::now();
    }

    /// INVALIDATED has come.
    pub fn acknowledged(&self, number: u64) {
        let owed = self.standing.lock().owed.remove(&number);
        if let Some(owed) = owed {
            owed.settled.notify_all();
        }
    }

    /// It is about to be told this of a node of its own: whether it may keep it. `changing` has what its request
    /// changes.
    pub fn note(&self, number: u64, thing: &Thing, changing: &[Thing]) -> bool {
        {
            let mut told = self.told.lock();
            if told.nodes.len() + told.names >= self.leases.most {
                return false;
            }
            let node = told.node(number, thing.inode());
            match thing {
                Thing::Of(_, Part::Attributes) => node.attributes = true,
                Thing::Of(_, Part::Data) => node.data = true,
                Thing::Name(_, name) => {
                    let new = node.names.insert(self.leases.hash(name));
                    told.names += usize::from(new);
                }
            }
        }
        if self.leases.closing.load(Ordering::SeqCst) {
            return false;
        }
        // Only now: whoever begins later finds it written down.
        let own = changing.iter().filter(|own| *own == thing).count();
        let all = self.leases.changing.lock();
        all.get(thing).is_none_or(|count| *count <= own)
    }

    /// A node that the client does not have any more.
    pub fn forget(&self, number: u64) {
        self.told.lock().forget(number);
    }

    /// Its connection has ended; with GOODBYE, it keeps nothing.
    pub fn ended(&self, goodbye: bool) {
        *self.line.lock() = None;
        if goodbye {
            *self.told.lock() = Told::default();
            let owed = std::mem::take(&mut self.standing.lock().owed);
            for owed in owed.into_values() {
                owed.settled.notify_all();
            }
        }
        self.standing.lock().ended = true;
        self.leases.tidy();
    }

    /// Nothing of it needs to be known any more.
    fn is_over(&self) -> bool {
        let (ended, heard) = {
            let standing = self.standing.lock();
            (standing.ended, standing.heard)
        };
        ended && (heard.elapsed() >= self.leases.lease || self.told.lock().nodes.is_empty())
    }

    /// Sends INVALIDATE for what it was told of these; the numbers to wait for.
    fn tell(&self, things: &[Thing]) -> Vec<u64> {
        let (new, numbers, what) = {
            let mut told = self.told.lock();
            let mut what = Vec::new();
            for thing in things {
                told.take(thing, |name| self.leases.hash(name), &mut what);
            }
            // In one step with taking it, or somebody would find neither.
            let mut standing = self.standing.lock();
            let concerns = |owed: &Owed| owed.about.iter().any(|thing| things.contains(thing));
            let owed = standing.owed.iter().filter(|(_, owed)| concerns(owed));
            let mut numbers: Vec<_> = owed.map(|(number, _)| *number).collect();
            let new = (!what.is_empty()).then(|| standing.owes(things.to_vec()));
            numbers.extend(new);
            (new, numbers, what)
        };
        let line = self.line.lock().clone();
        if let (Some(number), Some(line)) = (new, line)
            && let Err(error) = line.tell(number, what)
        {
            tracing::info!("a client cannot be told of a change: {error}");
            line.cut();
        }
        numbers
    }

    /// Sends INVALIDATE for everything; the numbers to wait for.
    fn recall(&self) -> Vec<u64> {
        let number = {
            let mut told = self.told.lock();
            let mut standing = self.standing.lock();
            if told.nodes.is_empty() && standing.owed.is_empty() {
                return Vec::new();
            }
            *told = Told::default();
            standing.owes(Vec::new())
        };
        let line = self.line.lock().clone();
        if let Some(line) = line
            && let Err(error) = line.tell(number, vec![Invalidation::Everything])
        {
            tracing::info!("a client cannot be told of the end: {error}");
        }
        self.standing.lock().owed.keys().copied().collect()
    }

    /// Whether it answers all of these before that time.
    fn answers(&self, numbers: &[u64], deadline: Instant) -> bool {
        let mut standing = self.standing.lock();
        for number in numbers {
            while let Some(settled) = standing.settled(*number) {
                if settled.wait_until(&mut standing, deadline).timed_out() {
                    return false;
                }
            }
        }
        true
    }

    /// Until it has answered, or its lease is over.
    fn wait(&self, number: u64, patience: Duration) {
        let since = Instant::now();
        let mut standing = self.standing.lock();
        while let Some(settled) = standing.settled(number) {
            let over = standing.heard + self.leases.lease;
            if over <= Instant::now() {
                // What it still owes is of no more interest: INVALIDATE comes to it before any answer that would
                // prolong its lease.
                standing.owed.remove(&number);
                tracing::warn!("a client did not hear of a change in time: its lease is over");
                return;
            }
            // One that says something, but never this, is given up: then its lease ends, too.
            if since.elapsed() >= patience {
                drop(standing);
                if let Some(line) = self.line.lock().clone() {
                    line.cut();
                }
                standing = self.standing.lock();
            }
            settled.wait_until(&mut standing, over.min(Instant::now() + patience));
        }
    }
}

/// All of a server's leases.
#[derive(Debug)]
pub struct Leases {
    lease: Duration,
    /// Nodes and names that are taken down of one client.
    most: usize,
    hasher: RandomState,
    holders: Mutex<Vec<Arc<Holder>>>,
    /// Changes under way. Of a name there is one at a time.
    changing: Mutex<HashMap<Thing, usize>>,
    changed: Condvar,
    /// No change is made before: clients of another server may keep what they know.
    not_before: Option<Instant>,
    /// Nothing may be kept any more.
    closing: AtomicBool,
}

/// A change that is being made. Dropped when it has been made, or failed.
#[derive(Debug)]
pub struct Change<'l> {
    leases: &'l Leases,
    things: Vec<Thing>,
}

impl Change<'_> {
    /// What changes.
    pub fn things(&self) -> &[Thing] {
        &self.things
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut changing = self.leases.changing.lock();
        for thing in self.things.drain(..) {
            if let Entry::Occupied(mut count) = changing.entry(thing) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        drop(changing);
        self.leases.changed.notify_all();
    }
}

impl Leases {
    /// None yet. Each is for so long; of each client so many nodes and names are taken down. `not_before` is when those
    /// are over that nobody knows of.
    pub fn new(lease: Duration, most: usize, not_before: Option<Instant>) -> Self {
        Self {
            // As it is told to clients.
            lease: Duration::from_millis(millis(lease).into()),
            most,
            hasher: RandomState::new(),
            holders: Mutex::default(),
            changing: Mutex::default(),
            changed: Condvar::new(),
            not_before,
            closing: AtomicBool::new(false),
        }
    }

    fn hash(&self, name: &Name) -> u64 {
        self.hasher.hash_one(name.as_bytes())
    }

    /// A client that begins to be told things.
    pub fn holder(self: &Arc<Self>, session: SessionId, line: Arc<dyn Line>) -> Arc<Holder> {
        let holder = Arc::new(Holder {
            session,
            leases: Arc::clone(self),
            told: Mutex::default(),
            standing: Mutex::new(Standing {
                heard: Instant::now(),
                owed: HashMap::new(),
                next: 1,
                ended: false,
            }),
            line: Mutex::new(Some(line)),
        });
        self.tidy();
        self.holders.lock().push(Arc::clone(&holder));
        holder
    }

    /// Nothing may be kept from here on. Whether everybody has said that he keeps nothing any more, within that time.
    pub fn close(&self, patience: Duration) -> bool {
        self.closing.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        let holders = self.holders.lock().clone();
        let told: Vec<_> = holders.iter().map(|holder| (holder, holder.recall())).collect();
        let mut all = true;
        for (holder, numbers) in told {
            all &= holder.answers(&numbers, deadline);
        }
        all
    }

    /// A client has connected anew, and uses nothing any more of what it was told in this session of its: nobody has to
    /// wait until it is over.
    pub fn left(&self, session: SessionId) {
        let holder = {
            let holders = self.holders.lock();
            holders.iter().find(|holder| holder.session == session).cloned()
        };
        let Some(holder) = holder else { return };
        let line = holder.line.lock().clone();
        holder.ended(true);
        if let Some(line) = line {
            line.cut();
        }
    }

    fn tidy(&self) {
        let holders = self.holders.lock().clone();
        let over: Vec<_> = holders.into_iter().filter(|holder| holder.is_over()).collect();
        let is_over = |holder: &Arc<Holder>| over.iter().any(|over| Arc::ptr_eq(over, holder));
        self.holders.lock().retain(|holder| !is_over(holder));
    }

    /// Announces a change by `by`: of names, and of what `inodes` gives when nobody else changes these names. Comes
    /// back when nobody else uses any of it any more; `patience` is for clients who do not say so.
    pub fn change<E>(
        &self,
        by: Option<&Arc<Holder>>,
        names: Vec<Thing>,
        patience: Duration,
        inodes: impl FnOnce() -> Result<Vec<Thing>, E>,
    ) -> Result<Change<'_>, E> {
        let wait = self
            .not_before
            .map(|until| until.saturating_duration_since(Instant::now()));
        thread::sleep(wait.unwrap_or_default());
        let mut change = Change {
            leases: self,
            things: Vec::new(),
        };
        {
            let mut changing = self.changing.lock();
            while names.iter().any(|name| changing.contains_key(name)) {
                self.changed.wait(&mut changing);
            }
            add(&mut changing, &names);
        }
        change.things = names;
        let inodes = inodes()?;
        add(&mut self.changing.lock(), &inodes);
        change.things.extend(inodes);

        let holders = self.holders.lock().clone();
        let others = holders
            .iter()
            .filter(|holder| by.is_none_or(|by| !Arc::ptr_eq(by, holder)));
        let told: Vec<_> = others
            .flat_map(|holder| {
                holder
                    .tell(&change.things)
                    .into_iter()
                    .map(move |number| (holder, number))
            })
            .collect();
        for (holder, number) in told {
            holder.wait(number, patience);
        }
        Ok(change)
    }
}

fn add(changing: &mut HashMap<Thing, usize>, things: &[Thing]) {
    for thing in things {
        *changing.entry(thing.clone()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::NodeId;
    use crate::fs::{Stack, StackOptions};
    use nix::sys::resource::{UsageWho, getrusage};
    use std::fs;
    use std::sync::mpsc::{Sender, channel};

    /// Says which INVALIDATE is sent.
    struct Told(Mutex<Sender<u64>>);

    impl Line for Told {
        fn tell(&self, number: u64, _: Vec<Invalidation>) -> Result<(), WireError> {
            let _ = self.0.lock().send(number);
            Ok(())
        }

        fn cut(&self) {}
    }

    /// How often this thread has waited.
    fn waits() -> i64 {
        getrusage(UsageWho::RUSAGE_THREAD)
            .unwrap()
            .voluntary_context_switches()
    }

    #[test]
    fn an_answer_wakes_those_who_wait_for_it_and_nobody_else() {
        const CHANGES: u64 = 100;
        let leases = Arc::new(Leases::new(Duration::from_secs(600), usize::MAX, None));
        let (told, numbers) = channel();
        let line = Arc::new(Told(Mutex::new(told)));
        let holder = leases.holder(SessionId([1; 16]), line);
        let folder = tempfile::tempdir().unwrap();
        let stack = Stack::new(folder.path(), StackOptions::default()).unwrap();
        let things: Vec<Thing> = (0..CHANGES)
            .map(|n| {
                let name = n.to_string();
                fs::write(folder.path().join(&name), "").unwrap();
                let inode = stack.inode_at(NodeId::ROOT, name.as_ref()).unwrap();
                Thing::Of(inode.unwrap(), Part::Attributes)
            })
            .collect();
        for (number, thing) in things.iter().enumerate() {
            assert!(holder.note(number as u64, thing, &[]));
        }
        let waited: i64 = thread::scope(|scope| {
            let change = |thing: &Thing| {
                let before = waits();
                let patience = Duration::from_secs(600);
                let inodes = || Ok::<_, ()>(vec![thing.clone()]);
                drop(leases.change(None, Vec::new(), patience, inodes).unwrap());
                waits() - before
            };
            let changing: Vec<_> = things
                .iter()
                .map(|thing| scope.spawn(move || change(thing)))
                .collect();
            let numbers: Vec<_> = (0..CHANGES).map(|_| numbers.recv().unwrap()).collect();
            for number in numbers {
                holder.acknowledged(number);
                // So that it is not answered together with the next.
                thread::sleep(Duration::from_millis(1));
            }
            changing.into_iter().map(|change| change.join().unwrap()).sum()
        });
        // Once for the answer, and for a lock now and then; everybody for every answer would be half of the square.
        assert!(
            waited < 10 * CHANGES as i64,
            "{CHANGES} changes waited {waited} times"
        );
    }
}
