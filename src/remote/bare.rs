// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes without extended attributes, as the reply that tells of such a node says it: in the number of its header.
//!
//! `ls -l` asks for two attributes of each file, and hardly a file has one. So it is said with the entry what GETXATTR
//! would answer: an errno a byte, of which 0 is not known; of the classes of names that a file system lists
//! (`enum extfuse_xattr_class`), and behind them of `security.selinux`.

use nix::errno::Errno;

use crate::abi::XattrClass;
use crate::ebpf::{Absent, Bare};

/// The byte of `security.selinux`.
const SELINUX: u32 = 4;

/// The number in a reply's header.
pub(super) fn number(bare: Bare) -> u64 {
    let classes = (0..SELINUX).map(|class| (class, bare.absent.errno(XattrClass(class))));
    classes
        .chain([(SELINUX, bare.selinux)])
        .fold(0, |number, (byte, errno)| {
            let errno = errno.and_then(|errno| u8::try_from(errno).ok());
            number | u64::from(errno.unwrap_or(0)) << (8 * byte)
        })
}

/// What the number in a reply's header says; None if that is nothing that makes sense.
pub(super) fn told(number: u64) -> Option<Bare> {
    let errno = |byte: u32| match Errno::from_raw((number >> (8 * byte) & 0xff) as i32) {
        errno @ (Errno::ENODATA | Errno::EOPNOTSUPP) => Some(errno as i32),
        _ => None,
    };
    let absent = (0..SELINUX).fold(Absent::UNKNOWN, |absent, class| match errno(class) {
        Some(errno) => absent.with(XattrClass(class), errno),
        None => absent,
    });
    let selinux = errno(SELINUX);
    let bare = Bare { absent, selinux };
    (bare != Bare::default()).then_some(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_understood() {
        let absent =
            Absent::all(Errno::ENODATA as i32).with(XattrClass::EXTFUSE_XATTR_ACL, Errno::EOPNOTSUPP as i32);
        let bare = Bare {
            absent,
            selinux: Some(Errno::EOPNOTSUPP as i32),
        };
        // As docs/protocol.md has it: user, trusted, capability, ACL, security.selinux.
        assert_eq!(number(bare), u64::from_le_bytes([61, 61, 61, 95, 95, 0, 0, 0]));
        assert_eq!(told(number(bare)), Some(bare));
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
