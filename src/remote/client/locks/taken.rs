// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the users of a mount may have locked, and how.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use fuser::{FileHandle, INodeNo};

use crate::remote::wire::message::{Lock, LockKind};
use crate::sys::lock::LAST;

/// The kernel's number of a file, and that of an owner of locks there.
pub type Owner = (u64, u64);

/// A lock that somebody wants, or wants no more.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub ino: INodeNo,
    pub fh: FileHandle,
    pub owner: u64,
    pub lock: Lock,
    /// The thread that asks.
    pub thread: u32,
}

impl Wish {
    pub fn owner(&self) -> Owner {
        (self.ino.0, self.owner)
    }

    pub fn unlocks(&self) -> bool {
        self.lock.kind == LockKind::Unlock
    }

    /// flock(2) is of the whole file, always.
    pub fn may_be_flock(&self) -> bool {
        (self.lock.start, self.lock.end) == (0, LAST)
    }
}

/// How the server is to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Fcntl,
    Flock,
    /// Nobody knows which of the two it is: so it excludes both.
    Both,
}

/// What an owner may have.
#[derive(Debug, Default)]
pub struct Taken {
    /// Through which open files.
    pub handles: BTreeSet<u64>,
    fcntl: bool,
    flock: bool,
    /// Something was taken both ways.
    both: bool,
}

impl Taken {
    pub fn note(&mut self, wish: &Wish, way: Way) {
        self.handles.insert(wish.fh.0);
        self.fcntl |= way == Way::Fcntl;
        self.flock |= way == Way::Flock;
        self.both |= way == Way::Both;
    }

    /// `flock`: whether it is, if that is known.
    pub fn way(&self, flock: Option<bool>, unlocks: bool) -> Way {
        match (flock, self.fcntl, self.flock) {
            _ if self.both => Way::Both,
            (Some(false), ..) => Way::Fcntl,
            (Some(true), ..) => Way::Flock,
            // Which it is, what there is to be let go tells.
            (None, true, false) if unlocks => Way::Fcntl,
            (None, false, true) if unlocks => Way::Flock,
            (None, ..) => Way::Both,
        }
    }
}

#[derive(Debug, Default)]
pub struct Table {
    pub taken: BTreeMap<Owner, Taken>,
    /// Whose locks are still to be let go.
    pub leaving: HashSet<Owner>,
    /// Files that are open for writing: of these alone the server wants to hear FLUSH for its own sake.
    pub written: HashSet<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_excludes_both_kinds() {
        let mut taken = Taken::default();
        assert_eq!(taken.way(None, false), Way::Both);
        assert_eq!(taken.way(None, true), Way::Both);
        assert_eq!(taken.way(Some(true), false), Way::Flock);
        assert_eq!(taken.way(Some(false), true), Way::Fcntl);
        taken.flock = true;
        assert_eq!(taken.way(None, true), Way::Flock);
        assert_eq!(taken.way(None, false), Way::Both);
        taken.both = true;
        assert_eq!(taken.way(Some(true), true), Way::Both);
    }
}
