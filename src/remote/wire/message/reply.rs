// SPDX-License-Identifier: MIT OR Apache-2.0
//! What operations give.

use serde::{Deserialize, Serialize};

use super::super::ListedName;
use super::{Attr, FileKind};

/// What a name stands for: it counts as one lookup of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The node.
    pub node: u64,
    /// Its attributes.
    pub attr: Attr,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// The node's attributes, if the server had to ask for them anyway.
    pub attr: Option<Attr>,
}

/// A file that was made and opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// What its name stands for.
    pub entry: Entry,
    /// Its handle.
    pub handle: u64,
}

/// A part of a directory; without an entry, its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// In the order of the directory.
    pub entries: Vec<DirEntry>,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the listing goes on after it.
    pub offset: u64,
    /// Type.
    pub kind: FileKind,
    /// Name.
    pub name: ListedName,
}

/// A file system, as statvfs(3) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statfs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Those that are free.
    pub bfree: u64,
    /// Those that are free for everybody.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Those that are free.
    pub ffree: u64,
    /// Bytes that are good to read at once.
    pub bsize: u32,
    /// Bytes of the longest name.
    pub namelen: u32,
    /// Bytes of a block.
    pub frsize: u32,
}
