// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes. ACLs are among them: the kernel asks for `system.posix_acl_*` like for any other.
//!
//! Nothing is published whose answer depends on the caller: GETXATTR is permitted by the kernel before it
//! is asked, and a list with names in `trusted.` is not published as one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use fuser::FileType;
use nix::errno::Errno;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs,
};
use parking_lot::Mutex;

use super::table::Node;
use super::{Result, Stack};
use crate::abi::{self, NodeId, XattrClass};
use crate::ebpf::row::xattr_class;
use crate::ebpf::{Absent, Cache, Snapshot, Validity};
use crate::sys::creds::{Acting, Caller};
use crate::sys::xattr;

/// The largest value and the largest list that the kernel handles (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX: usize = 64 * 1024;

/// What GETXATTR and LISTXATTR answer.
#[derive(Debug, PartialEq, Eq)]
pub enum XattrReply {
    /// How many bytes there are: the request had no room for any.
    Size(u32),
    /// The bytes.
    Data(Vec<u8>),
}

fn reply(value: Vec<u8>, room: u32) -> Result<XattrReply> {
    match room {
        0 => u32::try_from(value.len())
            .map(XattrReply::Size)
            .map_err(|_| Errno::E2BIG),
        room if value.len() > room as usize => Err(Errno::ERANGE),
        _ => Ok(XattrReply::Data(value)),
    }
}

fn is_acl(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"system.posix_acl_")
}

/// The names without those in `trusted.`, which only root gets to see.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let seen = names
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| !name.starts_with(b"trusted."));
    seen.flatten().copied().collect()
}

fn get(node: &Node, name: &OsStr, room: u32) -> Result<XattrReply> {
    if room == 0 {
        return u32::try_from(xattr::get(node, name, &mut [])?)
            .map(XattrReply::Size)
            .map_err(|_| Errno::E2BIG);
    }
    let mut value = vec![0; MAX.min(room as usize)];
    let size = xattr::get(node, name, &mut value)?;
    value.truncate(size);
    reply(value, room)
}

fn list(node: &Node) -> Result<Vec<u8>> {
    // Hardly a node has any: no room for nothing, which is cleared first.
    if xattr::list(node, &mut [])? == 0 {
        return Ok(Vec::new());
    }
    let mut names = vec![0; MAX];
    let size = xattr::list(node, &mut names)?;
    names.truncate(size);
    Ok(names)
}

fn publish_names(cache: &Cache, node: &Node, names: &[u8], absent: Absent, at: Snapshot, valid: Validity) {
    let listed = without_trusted(names).len() == names.len();
    cache.publish_xattr_names(Some(node.id), names, absent, listed, at, valid);
}

/// Names whose meaning is the kernel's: a file system does not make up values for them.
fn is_the_kernels(name: &[u8]) -> bool {
    matches!(
        xattr_class(name),
        Some(
            XattrClass::EXTFUSE_XATTR_CAPABILITY
                | XattrClass::EXTFUSE_XATTR_ACL
                | XattrClass::EXTFUSE_XATTR_SELINUX
        )
    )
}

/// Whether the file system lists all that it has of the classes of [`xattr_class`]. Others may
/// answer for names that they don't list, as Ceph and many file systems in user space do.
fn lists_all(fd: impl AsFd) -> bool {
    let listing = [
        EXT4_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        BTRFS_SUPER_MAGIC,
        F2FS_SUPER_MAGIC,
        TMPFS_MAGIC,
    ];
    fstatfs(fd).is_ok_and(|fs| listing.contains(&fs.filesystem_type()))
}

/// What the file systems of the source answer for names that a file does not have: `ENODATA`, or
/// `EOPNOTSUPP` for a whole class. That is a matter of the file system, how it is mounted, and the type of
/// file; so asking for one name of one file tells of all.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// Innermost lock.
    known: Mutex<HashMap<Place, Answers>>,
    /// Of how many nodes it will be told that they have none, as they are found or made.
    ahead: AtomicU32,
}

/// Who has asked one node for what it does not have is about to ask others: so many.
const AHEAD: u32 = 1024;

/// Device and type of file.
type Place = ((u32, u32), FileType);

/// By class: what was answered, and when.
type Answers = [Option<(Errno, Instant)>; CLASSES];

const CLASSES: usize = XattrClass::EXTFUSE_XATTR_CLASSES.0 as usize;

/// A name of each class, in their order.
const EXAMPLES: [&[u8]; CLASSES] = [
    b"user.extfuse",
    b"trusted.extfuse",
    b"security.capability",
    b"system.posix_acl_access",
    b"security.selinux",
];

impl Absences {
    /// Takes down an answer, and gives what is known with it. For no longer than `valid`: the file system
    /// may be mounted anew in another way.
    fn learn(&self, node: &Node, class: XattrClass, errno: Errno, valid: Validity) -> Absent {
        self.ahead.store(AHEAD, Ordering::Relaxed);
        let mut known = self.known.lock();
        let answers = known.entry((node.dev(), node.kind)).or_default();
        if let Some(answer) = answers.get_mut(class.0 as usize) {
            *answer = Some((errno, Instant::now()));
        }
        absent(answers, valid)
    }

    /// Whether the next node is to be looked at before anybody asks.
    fn looks_ahead(&self) -> bool {
        let less = |ahead: u32| ahead.checked_sub(1);
        self.ahead
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    fn of(&self, node: &Node, valid: Validity) -> Absent {
        let known = self.known.lock();
        known
            .get(&(node.dev(), node.kind))
            .map_or(Absent::UNKNOWN, |answers| absent(answers, valid))
    }

    /// What is answered for a node that has no attributes: it is asked for what is not known.
    fn bare(&self, node: &Node, valid: Validity) -> Absent {
        let place = (node.dev(), node.kind);
        let mut answers = self.known.lock().get(&place).copied().unwrap_or_default();
        let old = |answer: &Option<(Errno, Instant)>| answer.is_none_or(|(_, at)| !valid.lasts(at.elapsed()));
        if answers.iter().any(old) {
            for (answer, name) in answers.iter_mut().zip(EXAMPLES) {
                let at = Instant::now();
                *answer = match xattr::get(node, OsStr::from_bytes(name), &mut []) {
                    Err(errno @ (Errno::ENODATA | Errno::EOPNOTSUPP)) => Some((errno, at)),
                    _ => None,
                };
            }
            self.known.lock().insert(place, answers);
        }
        absent(&answers, valid)
    }
}

fn absent(answers: &Answers, valid: Validity) -> Absent {
    let answers = (0..).zip(answers);
    answers.fold(Absent::UNKNOWN, |absent, (class, answer)| match *answer {
        Some((errno, at)) if valid.lasts(at.elapsed()) => absent.with(XattrClass(class), errno as i32),
        _ => absent,
    })
}

impl Stack {
    /// The value of an attribute; its size if `room`, in bytes, is 0.
    ///
    /// # Errors
    /// `ERANGE` if it is larger than `room`; those of getxattr(2).
    pub fn getxattr(&self, id: NodeId, name: &OsStr, room: u32) -> Result<XattrReply> {
        let node = self.nodes.get(id)?;
        let Some((cache, at)) = self.snapshot() else {
            return get(&node, name, room);
        };
        let answer = get(&node, name, room);
        match &answer {
            Ok(XattrReply::Data(value)) => self.publish_value(cache, &node, name.as_bytes(), value, at),
            Ok(XattrReply::Size(_)) => {
                // The value is asked for next.
                let mut value = [0; abi::XATTR_VALUE_MAX];
                if let Ok(size) = xattr::get(&*node, name, &mut value) {
                    self.publish_value(cache, &node, name.as_bytes(), &value[..size], at);
                }
            }
            Err(errno @ (Errno::ENODATA | Errno::EOPNOTSUPP)) => {
                self.publish_absence(cache, &node, name.as_bytes(), *errno, at);
            }
            Err(_) => {}
        }
        answer
    }

    fn publish_value(&self, cache: &Cache, node: &Node, name: &[u8], value: &[u8], at: Snapshot) {
        if is_the_kernels(name) || xattr_class(name).is_some() && lists_all(node) {
            cache.publish_xattr(node.id, name, Ok(value), at, self.options.validity);
        }
    }

    /// A name is absent: with it all others that the file system does not list.
    fn publish_absence(&self, cache: &Cache, node: &Node, name: &[u8], errno: Errno, at: Snapshot) {
        let valid = self.options.validity;
        if let Some(class) = xattr_class(name)
            && lists_all(node)
            && let Ok(names) = list(node)
        {
            let absent = self.absences.learn(node, class, errno, valid);
            publish_names(cache, node, &names, absent, at, valid);
        } else if is_the_kernels(name) {
            cache.publish_xattr(node.id, name, Err(errno as i32), at, valid);
        }
    }

    /// A node was found or made: where nodes are asked for extended attributes, it is told that it has none, as hardly
    /// any has, before it is asked. A system call here is a tenth of a question.
    pub(super) fn publish_bare(&self, node: &Node) {
        let Some((cache, at)) = self.snapshot() else {
            return;
        };
        if self.absences.looks_ahead() && lists_all(node) && list(node).is_ok_and(|names| names.is_empty()) {
            let valid = self.options.validity;
            publish_names(cache, node, &[], self.absences.bare(node, valid), at, valid);
        }
    }

    /// The names of all attributes that `caller` may see, each with a NUL at its end; their size if `room`, in
    /// bytes, is 0.
    ///
    /// # Errors
    /// `ERANGE` if they are larger than `room`; those of listxattr(2).
    pub fn listxattr(&self, id: NodeId, room: u32, caller: Caller) -> Result<XattrReply> {
        let node = self.nodes.get(id)?;
        let snapshot = self.snapshot();
        let mut names = list(&node)?;
        if let Some((cache, at)) = snapshot
            && lists_all(&*node)
        {
            let valid = self.options.validity;
            publish_names(cache, &node, &names, self.absences.of(&node, valid), at, valid);
        }
        if caller.uid != 0 {
            names = without_trusted(&names);
        }
        reply(names, room)
    }

    /// What GETXATTR answers of a node that has no extended attributes; nothing is known of one that has some, or whose
    /// file system may have more than it lists.
    ///
    /// # Errors
    /// `ESTALE` for a node that nobody knows.
    pub fn bare(&self, id: NodeId) -> Result<Absent> {
        let node = self.nodes.get(id)?;
        match lists_all(&*node) && list(&node).is_ok_and(|names| names.is_empty()) {
            true => Ok(self.absences.bare(&node, self.options.validity)),
            false => Ok(Absent::UNKNOWN),
        }
    }

    /// Sets an attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn setxattr(&self, id: NodeId, name: &OsStr, value: &[u8], flags: i32, caller: Caller) -> Result<()> {
        self.writable()?;
        let node = self.nodes.get(id)?;
        let _acting = match is_acl(name) {
            true => Some(Acting::setting_acl(caller)?),
            false => None,
        };
        xattr::set(&*node, name, value, flags)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// Those of removexattr(2).
    pub fn removexattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        self.writable()?;
        let node = self.nodes.get(id)?;
        xattr::remove(&*node, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_names_are_left_out_whole() {
        assert_eq!(
            without_trusted(b"user.a\0trusted.b\0user.trusted.c\0"),
            b"user.a\0user.trusted.c\0"
        );
        assert_eq!(without_trusted(b"trusted.b\0"), b"");
    }

    #[test]
    fn a_value_that_is_too_large_for_the_request_is_erange() {
        assert_eq!(reply(vec![0; 3], 0), Ok(XattrReply::Size(3)));
        assert_eq!(reply(vec![0; 3], 3), Ok(XattrReply::Data(vec![0; 3])));
        assert_eq!(reply(vec![0; 3], 2), Err(Errno::ERANGE));
    }
}
