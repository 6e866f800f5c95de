// SPDX-License-Identifier: MIT OR Apache-2.0
//! What operations take, beside what the header says. `node`, `handle` and `offset` are the header's.

use serde::{Deserialize, Serialize};

use super::super::{MAX_PAYLOAD, Name, Target, XattrName, XattrValue};
use super::{SetTime, at_most};

/// Whom what is made belongs to, or who needs the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// LOOKUP in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The name.
    pub name: Name,
}

/// FORGET; the header's node is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// Nodes, in any order.
    pub nodes: Vec<Forgotten>,
}

/// Lookups of one node that are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The node.
    pub node: u64,
    /// How many.
    pub nlookup: u64,
}

/// SETATTR: what is there is set, the owner first and the times last. With nothing there it is
/// chown(-1, -1), which moves ctime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permissions; the type in it is ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
    /// The open file through which the size is set.
    pub handle: Option<u64>,
}

/// MKNOD in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mknod {
    /// The name.
    pub name: Name,
    /// Type and permissions.
    pub mode: u32,
    /// What the caller takes away from them, unless a default ACL does.
    pub umask: u32,
    /// Device, as the kernel's `new_encode_dev` packs it.
    pub rdev: u32,
    /// Who asks.
    pub caller: Caller,
}

/// MKDIR in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mkdir {
    /// The name.
    pub name: Name,
    /// Permissions.
    pub mode: u32,
    /// What the caller takes away from them, unless a default ACL does.
    pub umask: u32,
    /// Who asks.
    pub caller: Caller,
}

/// SYMLINK in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symlink {
    /// The name.
    pub name: Name,
    /// What it leads to.
    pub target: Target,
    /// Who asks.
    pub caller: Caller,
}

/// LINK to `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The directory of the new name.
    pub parent: u64,
    /// The new name.
    pub name: Name,
}

/// UNLINK in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlink {
    /// The name.
    pub name: Name,
}

/// RMDIR in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rmdir {
    /// The name.
    pub name: Name,
}

/// RENAME from the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// The name.
    pub name: Name,
    /// The directory of the new name.
    pub new_parent: u64,
    /// The new name.
    pub new_name: Name,
    /// Those of renameat2(2).
    pub flags: u32,
    /// Who asks.
    pub caller: Caller,
}

/// OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Those of open(2), with Linux's numbers on x86-64.
    pub flags: i32,
}

/// CREATE in the directory `node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The name.
    pub name: Name,
    /// Permissions.
    pub mode: u32,
    /// What the caller takes away from them, unless a default ACL does.
    pub umask: u32,
    /// Those of [`Open`].
    pub flags: i32,
    /// Who asks.
    pub caller: Caller,
}

/// READ at `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Bytes; at most [`MAX_PAYLOAD`].
    #[serde(deserialize_with = "at_most::<_, MAX_PAYLOAD>")]
    pub size: u32,
}

/// FLUSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flush {
    /// Whose locks on the file go with the descriptor.
    pub owner: u64,
}

/// RELEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Whose lock of flock(2) goes with the open file, if it has one.
    pub owner: Option<u64>,
}

/// FALLOCATE from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallocate {
    /// Bytes.
    pub length: u64,
    /// Those of fallocate(2).
    pub mode: i32,
}

/// LSEEK from `offset`, in two's complement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lseek {
    /// `SEEK_DATA` or `SEEK_HOLE`.
    pub whence: i32,
}

/// COPY_FILE_RANGE from `offset` of `node`, open as `handle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFileRange {
    /// The node to copy to.
    pub to_node: u64,
    /// Its handle.
    pub to_handle: u64,
    /// Where in it.
    pub to_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Those of copy_file_range(2).
    pub flags: u64,
}

/// READDIR from `offset` on, which is 0 or the `offset` of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readdir {
    /// Bytes of the reply, at most; at most [`MAX_PAYLOAD`].
    #[serde(deserialize_with = "at_most::<_, MAX_PAYLOAD>")]
    pub size: u32,
}

/// GETXATTR. Without room the reply has no data; its `offset` is the value's size either way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Getxattr {
    /// The name.
    pub name: XattrName,
    /// Bytes that the caller has room for.
    pub room: u32,
}

/// SETXATTR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setxattr {
    /// The name.
    pub name: XattrName,
    /// The value.
    pub value: XattrValue,
    /// Those of setxattr(2).
    pub flags: i32,
    /// Who asks.
    pub caller: Caller,
}

/// LISTXATTR. Without room the reply has no data; its `offset` is the size of the list either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listxattr {
    /// Bytes that the caller has room for.
    pub room: u32,
    /// Who asks.
    pub caller: Caller,
}

/// REMOVEXATTR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removexattr {
    /// The name.
    pub name: XattrName,
}

/// What kind of lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// None.
    Unlock,
}

/// A lock, or, as GETLK's reply, one that is in the way; none is `Unlock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// What kind.
    pub kind: LockKind,
    /// Its first byte.
    pub start: u64,
    /// Its last byte; the largest offset is the end of the file, wherever that is.
    pub end: u64,
    /// Process that has it, as its own client numbers them.
    pub pid: u32,
}

/// GETLK: who would be in the way of this lock of fcntl(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRange {
    /// Who wants it: a number that the client's kernel gives.
    pub owner: u64,
    /// What it wants.
    pub lock: Lock,
}

/// SETLK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLock {
    /// Who wants it: a number that the client's kernel gives.
    pub owner: u64,
    /// What it wants.
    pub lock: Lock,
    /// Whether it is a lock of flock(2), which is on the whole file.
    pub flock: bool,
    /// Whether to wait until nobody is in the way.
    pub wait: bool,
}
