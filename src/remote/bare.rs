// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes without extended attributes, as the reply that tells of such a node says it: in the number of its header.
//!
//! `ls -l` asks for two attributes of each file, and hardly a file has one. So it is said with the entry what GETXATTR
//! would answer: an errno a byte, in the order of `enum extfuse_xattr_class`; 0 where it is not known.

use nix::errno::Errno;

use crate::abi::XattrClass;
use crate::ebpf::Absent;

const CLASSES: u32 = XattrClass::EXTFUSE_XATTR_CLASSES.0;

/// The number in a reply's header.
pub(super) fn number(absent: Absent) -> u64 {
    (0..CLASSES).fold(0, |number, class| {
        let errno = absent.errno(XattrClass(class)).unwrap_or(0);
        number | u64::from(errno.cast_unsigned()) << (8 * class)
    })
}

/// What the number in a reply's header says; None if that is nothing that makes sense.
pub(super) fn told(number: u64) -> Option<Absent> {
    let absent = (0..CLASSES).fold(Absent::UNKNOWN, |absent, class| {
        match Errno::from_raw((number >> (8 * class) & 0xff) as i32) {
            errno @ (Errno::ENODATA | Errno::EOPNOTSUPP) => absent.with(XattrClass(class), errno as i32),
            _ => absent,
        }
    });
    (absent != Absent::UNKNOWN).then_some(absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_understood() {
        let absent =
            Absent::all(Errno::ENODATA as i32).with(XattrClass::EXTFUSE_XATTR_ACL, Errno::EOPNOTSUPP as i32);
        // As docs/protocol.md has it: user, trusted, capability, ACL, security.selinux.
        assert_eq!(number(absent), u64::from_le_bytes([61, 61, 61, 95, 61, 0, 0, 0]));
        assert_eq!(told(number(absent)), Some(absent));
    }

    #[test]
    fn what_makes_no_sense_says_nothing() {
        let number = |bytes| u64::from_le_bytes(bytes);
        assert_eq!(told(0), None);
        // Errnos that would say more than that there is none, and bytes that nobody knows.
        assert_eq!(told(number([1, 13, 38, 255, 5, 0, 0, 0])), None);
        assert_eq!(told(number([0, 0, 0, 0, 0, 61, 61, 61])), None);
        let some = told(number([61, 1, 95, 0, 13, 61, 0, 0])).unwrap();
        assert_eq!(super::number(some), number([61, 0, 95, 0, 0, 0, 0, 0]));
    }
}
