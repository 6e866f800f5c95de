// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of `entry_map`, `attr_map` and `xattr_map`, and what they prove about themselves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType};
use nix::time::{ClockId, clock_gettime};
use siphasher::sip::SipHasher24;

use crate::abi::{self, Attr, AttrRow, EntryKey, EntryRow, NodeId, Wire, XattrClass, XattrKey, XattrRow};

/// How long a published row may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Until a change is announced.
    UntilChanged,
    /// Until a change is announced, and this long at most.
    For(Duration),
}

/// What of a node's opens and data needs no daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeIo {
    /// Nothing.
    #[default]
    Daemon,
    /// Its opens get a backing file, which READs may go to.
    Passthrough,
    /// A directory: it may be opened for the listing that the kernel has, if it is current.
    Listing,
}

impl Validity {
    /// Whether what was found out so long ago still holds.
    #[must_use]
    pub fn lasts(self, age: Duration) -> bool {
        match self {
            Self::UntilChanged => true,
            Self::For(duration) => age < duration,
        }
    }

    /// The row's `expires`.
    #[must_use]
    pub fn expires(self) -> u64 {
        match self {
            Self::UntilChanged => abi::NEVER,
            Self::For(duration) => boot_time_after(duration),
        }
    }
}

/// ns since boot, suspended time included.
#[must_use]
pub fn boot_time() -> u64 {
    boot_time_after(Duration::ZERO)
}

/// [`boot_time`] when `duration` has passed; [`abi::NEVER`] if that is past its end.
#[must_use]
pub fn boot_time_after(duration: Duration) -> u64 {
    // The clock is there since Linux 2.6.39. Were it not, 0 would be in the past: a miss.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.saturating_add(duration).as_nanos()).unwrap_or(abi::NEVER)
}

/// SipHash-2-4 of a name under a connection's key, as the kernel's siphash() computes it.
#[must_use]
pub fn name_hash(key: [u64; 2], name: &[u8]) -> u64 {
    SipHasher24::new_with_keys(key[0], key[1]).hash(name)
}

fn mix(hash: u64, word: u64) -> u64 {
    hash.wrapping_mul(abi::HASH_MULTIPLIER).wrapping_add(word)
}

/// The check word of an entry row (`extfuse_entry_check`).
#[must_use]
pub fn entry_check(key: &EntryKey, row: &EntryRow) -> u64 {
    [
        key.parent,
        key.hash,
        row.nodeid,
        row.generation,
        row.stamp,
        row.expires,
        row.name_len,
    ]
    .into_iter()
    .fold(abi::MIX_SEED, mix)
}

/// The check word of an attribute row (`extfuse_attr_check`).
#[must_use]
pub fn attr_check(nodeid: NodeId, row: &AttrRow) -> u64 {
    let head = [nodeid.0, row.stamp, row.expires, row.flags, row.open].into_iter();
    let words = row
        .attr
        .bytes()
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
    head.chain(words).fold(abi::MIX_SEED, mix)
}

/// The row for a name: what it stands for is `nodeid`, or nothing.
///
/// `None` if the name is one that FUSE cannot have asked for.
#[must_use]
pub fn entry_row(
    key: &EntryKey,
    name: &[u8],
    node: Option<(NodeId, u64)>,
    stamp: u64,
    expires: u64,
) -> Option<EntryRow> {
    if name.is_empty() || name.len() > abi::NAME_MAX {
        return None;
    }
    let (nodeid, generation) = node.map_or((0, 0), |(nodeid, generation)| (nodeid.0, generation));
    let mut row = EntryRow {
        nodeid,
        generation,
        stamp,
        expires,
        name_len: name.len() as u64,
        ..EntryRow::default()
    };
    row.name[..name.len()].copy_from_slice(name);
    row.check = entry_check(key, &row);
    Some(row)
}

/// The row for the attributes of a node.
#[must_use]
pub fn attr_row(nodeid: NodeId, attr: &FileAttr, io: NodeIo, stamp: u64, expires: u64) -> AttrRow {
    let (flags, open) = match io {
        NodeIo::Daemon => (0, 0),
        NodeIo::Passthrough => (abi::ATTR_PASSTHRU, 0),
        NodeIo::Listing => (abi::ATTR_OPEN, 0),
    };
    let mut row = AttrRow {
        stamp,
        expires,
        flags,
        open,
        attr: wire_attr(attr),
        ..AttrRow::default()
    };
    row.check = attr_check(nodeid, &row);
    row
}

/// The name of a file's capabilities: a change of its data takes them away.
const CAPABILITY: &[u8] = b"security.capability";

/// The class of a name (`extfuse_xattr_class`): that of names which a file system has to list. None for
/// others: security modules answer for `security.*`, and some file systems for names of their own.
#[must_use]
pub fn xattr_class(name: &[u8]) -> Option<XattrClass> {
    match name {
        CAPABILITY => Some(XattrClass::EXTFUSE_XATTR_CAPABILITY),
        b"system.posix_acl_access" | b"system.posix_acl_default" => Some(XattrClass::EXTFUSE_XATTR_ACL),
        b"security.selinux" => Some(XattrClass::EXTFUSE_XATTR_SELINUX),
        name if name.starts_with(b"user.") => Some(XattrClass::EXTFUSE_XATTR_USER),
        name if name.starts_with(b"trusted.") => Some(XattrClass::EXTFUSE_XATTR_TRUSTED),
        _ => None,
    }
}

/// The errnos that GETXATTR gives for names that a node does not have, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Absent(u64);

impl Absent {
    /// For names of no class is it known.
    pub const UNKNOWN: Self = Self(0);

    /// The same for all classes: `ENODATA`, `EOPNOTSUPP`.
    #[must_use]
    pub fn all(errno: i32) -> Self {
        (0..XattrClass::EXTFUSE_XATTR_CLASSES.0).fold(Self::UNKNOWN, |absent, class| {
            absent.with(XattrClass(class), errno)
        })
    }

    /// Another one for a class; what does not fit into a byte is no such errno, and unknown.
    #[must_use]
    pub fn with(self, class: XattrClass, errno: i32) -> Self {
        let shift = 8 * class.0;
        let errno = u8::try_from(errno).unwrap_or(0);
        Self(self.0 & !(0xff << shift) | u64::from(errno) << shift)
    }

    /// The one for a class.
    #[must_use]
    pub fn errno(self, class: XattrClass) -> Option<i32> {
        let errno = self.0 >> (8 * class.0) & 0xff;
        (errno != 0).then_some(errno as i32)
    }
}

/// What a row of names says of those that are not among them.
pub(super) fn absent_errno(row: &XattrRow, class: XattrClass) -> Option<i32> {
    Absent(row.says).errno(class)
}

/// The check word of a row of extended attributes (`extfuse_xattr_check`).
#[must_use]
pub fn xattr_check(key: &XattrKey, row: &XattrRow) -> u64 {
    let head = [
        key.nodeid,
        key.hash,
        row.stamp,
        row.expires,
        row.says,
        row.size,
        row.name_len,
    ];
    let words = row.bytes.chunks_exact(8);
    let words = words.map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
    head.into_iter().chain(words).fold(abi::MIX_SEED, mix)
}

/// The row for the names of a node's extended attributes, each with its NUL; `listed` if they are what
/// LISTXATTR answers whoever asks.
///
/// `None` if they are too long for a row.
#[must_use]
pub fn names_row(
    key: &XattrKey,
    names: &[u8],
    absent: Absent,
    listed: bool,
    stamp: u64,
    expires: u64,
) -> Option<XattrRow> {
    if names.len() > abi::XATTR_NAMES_MAX {
        return None;
    }
    let mut says = absent.0;
    if listed {
        says |= abi::XATTR_LISTED;
    }
    if names.split(|byte| *byte == 0).any(|name| name == CAPABILITY) {
        says |= abi::XATTR_DATA;
    }
    let mut row = XattrRow {
        stamp,
        expires,
        says,
        size: names.len() as u64,
        ..XattrRow::default()
    };
    row.bytes[..names.len()].copy_from_slice(names);
    row.check = xattr_check(key, &row);
    Some(row)
}

/// The row for one extended attribute: its value, or the errno of GETXATTR.
///
/// `None` if one of them is too long for a row, or the errno is none.
#[must_use]
pub fn value_row(
    key: &XattrKey,
    name: &[u8],
    value: Result<&[u8], i32>,
    stamp: u64,
    expires: u64,
) -> Option<XattrRow> {
    let (value, says) = match value {
        Ok(value) if name == CAPABILITY => (value, abi::XATTR_DATA),
        Ok(value) => (value, 0),
        Err(errno) => (
            &[][..],
            u8::try_from(errno).ok().filter(|errno| *errno != 0)?.into(),
        ),
    };
    if name.is_empty() || name.len() > abi::XATTR_NAME_MAX || value.len() > abi::XATTR_VALUE_MAX {
        return None;
    }
    let mut row = XattrRow {
        stamp,
        expires,
        says,
        size: value.len() as u64,
        name_len: name.len() as u64,
        ..XattrRow::default()
    };
    row.bytes[..value.len()].copy_from_slice(value);
    row.bytes[abi::XATTR_VALUE_MAX..][..name.len()].copy_from_slice(name);
    row.check = xattr_check(key, &row);
    Some(row)
}

/// The attributes as the protocol sends them; the same bytes as fuser's replies.
#[must_use]
pub fn wire_attr(attr: &FileAttr) -> Attr {
    let (atime, atimensec) = wire_time(attr.atime);
    let (mtime, mtimensec) = wire_time(attr.mtime);
    let (ctime, ctimensec) = wire_time(attr.ctime);
    Attr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks,
        atime,
        mtime,
        ctime,
        atimensec,
        mtimensec,
        ctimensec,
        mode: type_bits(attr.kind) | u32::from(attr.perm),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        // FUSE_ATTR_*; what FileAttr calls flags is macOS's.
        flags: 0,
    }
}

fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Directory => libc::S_IFDIR,
        FileType::RegularFile => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// Seconds, in two's complement before 1970, and the nanoseconds that come on top of them.
fn wire_time(time: SystemTime) -> (u64, u32) {
    const SECOND: u32 = 1_000_000_000;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs(), since.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            match before.subsec_nanos() {
                0 => (before.as_secs().wrapping_neg(), 0),
                nanos => (!before.as_secs(), SECOND - nanos),
            }
        }
    }
}
