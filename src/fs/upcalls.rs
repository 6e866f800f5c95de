// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many requests came up to the daemon, and how many it answered with an error.

use std::sync::atomic::{AtomicU64, Ordering};

/// A FUSE opcode, as numbered in <linux/fuse.h>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs, reason = "named as in <linux/fuse.h>")]
pub enum Opcode {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Getlk = 31,
    Setlk = 32,
    Setlkw = 33,
    Access = 34,
    Create = 35,
    Bmap = 37,
    Destroy = 38,
    Ioctl = 39,
    Poll = 40,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
}

/// As many opcodes as the kernel module counts (`EXTFUSE_OPCODES`).
const OPCODES: usize = 64;

/// Requests that the daemon was sent, counted by opcode, without locks. A BATCH_FORGET counts as one FORGET
/// for each of its nodes.
#[derive(Debug)]
pub struct Upcalls {
    counts: [AtomicU64; OPCODES],
    errors: [AtomicU64; OPCODES],
}

impl Default for Upcalls {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; OPCODES],
            errors: [const { AtomicU64::new(0) }; OPCODES],
        }
    }
}

impl Upcalls {
    /// Counts one request.
    pub fn count(&self, opcode: Opcode) {
        self.counts[opcode as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that was answered with an error, absent names and attributes among them.
    pub fn count_error(&self, opcode: Opcode) {
        self.errors[opcode as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests answered with an error so far, indexed by opcode number.
    #[must_use]
    pub fn errors(&self) -> [u64; OPCODES] {
        std::array::from_fn(|opcode| self.errors[opcode].load(Ordering::Relaxed))
    }

    /// Requests of `opcode` so far.
    #[must_use]
    pub fn get(&self, opcode: Opcode) -> u64 {
        self.counts[opcode as usize].load(Ordering::Relaxed)
    }

    /// Requests so far, indexed by opcode number.
    #[must_use]
    pub fn snapshot(&self) -> [u64; OPCODES] {
        std::array::from_fn(|opcode| self.counts[opcode].load(Ordering::Relaxed))
    }

    /// Requests so far, of all opcodes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.snapshot().iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_opcode_has_its_own_count() {
        let upcalls = Upcalls::default();
        upcalls.count(Opcode::Lookup);
        upcalls.count(Opcode::CopyFileRange);
        upcalls.count(Opcode::CopyFileRange);
        assert_eq!(upcalls.get(Opcode::Lookup), 1);
        assert_eq!(upcalls.snapshot()[47], 2);
        assert_eq!(upcalls.total(), 3);
    }
}
