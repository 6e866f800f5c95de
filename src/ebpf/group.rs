// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes that are invalidated together.
//!
//! What a node's answers depend on is a few slots, chosen by a hash of its number. The hash is a
//! multiplication, which can be undone: there are 2^48 numbers for each slot. Nodes whose numbers are
//! taken from those of one slot share it, for every kind of answer, so that whoever voids one of them
//! voids all, whether he knows them or not. To the module they are nodes like any others: a hit costs
//! what it costs anyway.

use crate::abi::{self, NodeId};

/// Numbers below this many bits are of one slot.
const SERIAL_BITS: u32 = u64::BITS - abi::SLOT_BITS;

/// The numbers of one group: a volume, a snapshot, a subtree that is replaced as a whole. To void
/// everything about all of its nodes is as cheap as for a single one ([`Key::Group`](super::Key::Group)).
///
/// A node belongs to a group by its number, wherever it is moved. A change of *one* node of the group
/// voids the same kind of answer of all: every SETATTR or WRITE all attributes, every FORGET everything,
/// unless the file system [holds its nodes](crate::MountOptions::holds_nodes). So groups are for what changes seldom
/// in itself, and for nodes that are held. Numbers of a group take all 64 bits; a 32-bit program's stat(2)
/// without large-file support does not take such inode numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group(u32);

impl Group {
    /// How many there are. Two of them share no slot, not even of different kinds.
    pub const MAX: u32 = (1 << (abi::SLOT_BITS - 4)) - 1;

    /// The group of a number below [`MAX`](Self::MAX).
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The node of a serial number below 2^48. It is neither 0 nor the root, and no other serial
    /// number's of any group.
    #[must_use]
    pub const fn node(self, serial: u64) -> Option<NodeId> {
        if serial >> SERIAL_BITS == 0 {
            // Slot 0 is the connection's, and number 0 is nobody's.
            let slot = (self.0 + 1) as u64;
            Some(NodeId((slot << SERIAL_BITS | serial).wrapping_mul(INVERSE)))
        } else {
            None
        }
    }

    /// The group and the serial number of a node, if [`node`](Self::node) could have made it. Numbers
    /// that count up from 1 may belong to a group, too: a file system that has both has to tell them apart.
    #[must_use]
    pub const fn of(node: NodeId) -> Option<(Self, u64)> {
        let hash = node.0.wrapping_mul(abi::HASH_MULTIPLIER);
        let slot = (hash >> SERIAL_BITS) as u32;
        if slot >= 1 && slot <= Self::MAX {
            Some((Self(slot - 1), hash & ((1 << SERIAL_BITS) - 1)))
        } else {
            None
        }
    }

    pub(super) const fn first(self) -> NodeId {
        match self.node(0) {
            Some(node) => node,
            None => unreachable!(),
        }
    }
}

/// `INVERSE * HASH_MULTIPLIER == 1`.
const INVERSE: u64 = {
    // Newton's: each round doubles the low bits that are right; an odd number is its own inverse mod 8.
    let odd = abi::HASH_MULTIPLIER;
    let mut inverse = odd;
    let mut bits = 3;
    while bits < u64::BITS {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
};
const _: () = assert!(INVERSE.wrapping_mul(abi::HASH_MULTIPLIER) == 1);
