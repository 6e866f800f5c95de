// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tree of an archive's members. An archive may say anything; what cannot be shown safely is left out.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// What a member says of itself, beside its name and its kind.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: SystemTime,
}

impl Meta {
    /// Of a directory that the archive does not mention.
    const IMPLIED: Self = Self {
        perm: 0o755,
        uid: 0,
        gid: 0,
        mtime: UNIX_EPOCH,
    };
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// As they are, from this byte of the archive.
    At(u64),
    /// Compressed: the member of this number.
    Compressed(usize),
}

#[derive(Debug)]
pub enum Kind {
    /// Names, and the indices of their nodes.
    Directory(BTreeMap<OsString, usize>),
    File {
        content: Content,
        size: u64,
    },
    Symlink(OsString),
    /// A device, which the mount lets nobody open, or a FIFO.
    Special(FileType, u32),
}

#[derive(Debug)]
pub struct Node {
    pub meta: Meta,
    pub kind: Kind,
    pub parent: usize,
    nlink: u32,
}

/// Nodes by their number, which is one less than the nodeid. The first one is the root.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// How many members are not shown.
    pub left_out: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            nodes: vec![Node {
                meta: Meta::IMPLIED,
                kind: Kind::Directory(BTreeMap::new()),
                parent: 0,
                nlink: 0,
            }],
            left_out: 0,
        }
    }
}

impl Tree {
    /// The node of a nodeid.
    pub fn get(&self, ino: INodeNo) -> Option<&Node> {
        self.nodes.get(usize::try_from(ino.0).ok()?.checked_sub(1)?)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What a name in a directory stands for.
    pub fn child(&self, parent: INodeNo, name: &OsStr) -> Option<INodeNo> {
        match &self.get(parent)?.kind {
            Kind::Directory(names) => names.get(name).map(|index| ino(*index)),
            _ => None,
        }
    }

    pub fn attr(&self, of: INodeNo) -> Option<FileAttr> {
        let node = self.get(of)?;
        let (kind, size, rdev, nlink) = match &node.kind {
            Kind::Directory(names) => {
                let subdirectory = |index: &&usize| matches!(self.nodes[**index].kind, Kind::Directory(_));
                let subdirectories = names.values().filter(subdirectory).count();
                (FileType::Directory, 0, 0, 2 + subdirectories as u32)
            }
            Kind::File { size, .. } => (FileType::RegularFile, *size, 0, node.nlink),
            Kind::Symlink(target) => (FileType::Symlink, target.len() as u64, 0, node.nlink),
            Kind::Special(kind, rdev) => (*kind, 0, *rdev, node.nlink),
        };
        let Meta {
            perm,
            uid,
            gid,
            mtime,
        } = node.meta;
        Some(FileAttr {
            ino: of,
            size,
            blocks: size.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Shows a member at `path`. Of two with one path the later one counts, as if the archive were unpacked.
    pub fn insert(&mut self, path: &[u8], meta: Meta, kind: Kind) {
        if self.try_insert(path, meta, kind).is_none() {
            self.left_out += 1;
        }
    }

    /// Shows the file at `target` at `path`, too.
    pub fn link(&mut self, path: &[u8], target: &[u8]) {
        if self.try_link(path, target).is_none() {
            self.left_out += 1;
        }
    }

    fn try_insert(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Option<()> {
        let names = components(path)?;
        let Some((name, above)) = names.split_last() else {
            // The root itself.
            let root = matches!(kind, Kind::Directory(_)).then(|| &mut self.nodes[0])?;
            root.meta = meta;
            return Some(());
        };
        let parent = self.directory(above)?;
        if let Some(old) = self.named(parent, name)
            && matches!(self.nodes[old].kind, Kind::Directory(_))
        {
            // What is in it stays.
            let same = matches!(kind, Kind::Directory(_)).then(|| &mut self.nodes[old])?;
            same.meta = meta;
            return Some(());
        }
        self.put(parent, name, meta, kind);
        Some(())
    }

    fn try_link(&mut self, path: &[u8], target: &[u8]) -> Option<()> {
        let target = components(target)?;
        let found = target.iter().try_fold(0, |at, name| self.named(at, name))?;
        let names = components(path)?;
        let (name, above) = names.split_last()?;
        if matches!(self.nodes[found].kind, Kind::Directory(_)) {
            return None;
        }
        let parent = self.directory(above)?;
        match self.named(parent, name) {
            Some(old) if old == found => return Some(()),
            Some(old) if matches!(self.nodes[old].kind, Kind::Directory(_)) => return None,
            _ => {}
        }
        self.bind(parent, name, found);
        Some(())
    }

    /// The directory of a path, made if it is not there. A symlink is not followed.
    fn directory(&mut self, names: &[&OsStr]) -> Option<usize> {
        let mut at = 0;
        for name in names {
            at = match self.named(at, name) {
                Some(index) => matches!(self.nodes[index].kind, Kind::Directory(_)).then_some(index)?,
                None => self.put(at, name, Meta::IMPLIED, Kind::Directory(BTreeMap::new())),
            };
        }
        Some(at)
    }

    fn named(&self, directory: usize, name: &OsStr) -> Option<usize> {
        match &self.nodes[directory].kind {
            Kind::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    fn put(&mut self, parent: usize, name: &OsStr, meta: Meta, kind: Kind) -> usize {
        let index = self.nodes.len();
        self.nodes.push(Node {
            meta,
            kind,
            parent,
            nlink: 0,
        });
        self.bind(parent, name, index);
        index
    }

    fn bind(&mut self, parent: usize, name: &OsStr, index: usize) {
        let Kind::Directory(names) = &mut self.nodes[parent].kind else {
            return;
        };
        let replaced = names.insert(name.to_owned(), index);
        self.nodes[index].nlink += 1;
        if let Some(old) = replaced {
            self.nodes[old].nlink -= 1;
        }
    }
}

pub fn ino(index: usize) -> INodeNo {
    INodeNo(index as u64 + 1)
}

/// The names of a path from the root on; None if it leads out of the tree, or cannot be a path.
fn components(path: &[u8]) -> Option<Vec<&OsStr>> {
    if path.len() > PATH_MAX || path.contains(&0) {
        return None;
    }
    let names = path.split(|byte| *byte == b'/');
    let names = names.filter(|name| !name.is_empty() && *name != b".");
    let safe = |name: &[u8]| name != b".." && name.len() <= NAME_MAX;
    names
        .map(|name| safe(name).then(|| OsStr::from_bytes(name)))
        .collect()
}
