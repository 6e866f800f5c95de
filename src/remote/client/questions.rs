// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is asked of the server, and what its answers mean. Whatever it answers, the worst that comes of it is `EIO`.

use std::collections::HashSet;

use fuser::{FileAttr, FileHandle, FileType, INodeNo};
use nix::errno::Errno;
use tracing::warn;

use super::{About, Answer, Connection};
use crate::abi::NodeId;
use crate::ebpf::row::xattr_class;
use crate::ebpf::{NodeIo, Snapshot, Validity};
use crate::remote::bare;
use crate::remote::wire::message::{
    Attr, Create, Created, Data, Empty, Entry, Getxattr, Listing, Lock, LockRange, Opened, Readdir, Statfs,
};
use crate::remote::wire::{Flags, Kind, Reply, Request, XattrName};
use crate::sys::lock::LAST;

/// What one READDIR asks for: as much as glibc's readdir(3) does. fuser does not say for how much there is
/// room; what there is none for is asked for again.
const LISTING: u32 = 32 << 10;

pub(super) type Result<T> = std::result::Result<T, Errno>;

pub(super) fn node(ino: INodeNo) -> About {
    About {
        node: ino.0,
        ..About::default()
    }
}

pub(super) fn file(ino: INodeNo, fh: FileHandle) -> About {
    About {
        node: ino.0,
        handle: fh.0,
        ..About::default()
    }
}

pub(super) fn file_at(ino: INodeNo, fh: FileHandle, offset: u64) -> About {
    About {
        offset,
        ..file(ino, fh)
    }
}

/// An answer that makes no sense, and what the caller gets for it.
pub(super) fn senseless(kind: Kind, reason: &str) -> Errno {
    warn!(?kind, reason, "the server's answer makes no sense");
    Errno::EIO
}

/// The number in an answer, which is at most `most`.
pub(super) fn number(answer: &Answer, most: u64) -> Result<u32> {
    let number = answer.header.offset;
    match u32::try_from(number) {
        Ok(small) if number <= most => Ok(small),
        _ => Err(senseless(answer.header.kind, "its number is too large")),
    }
}

/// What an answer means, if `pick` finds what it looks for.
fn meaning<'a, T>(answer: &'a Answer, pick: impl FnOnce(Reply<'a>) -> Option<T>) -> Result<T> {
    let kind = answer.header.kind;
    let reply = answer
        .reply()
        .map_err(|error| senseless(kind, &error.to_string()))?;
    pick(reply).ok_or_else(|| senseless(kind, "it is of another kind"))
}

/// The data of an answer, which is not more than was asked for.
pub(super) fn data(answer: &Answer, most: u32) -> Result<&[u8]> {
    let data = meaning(answer, |reply| match reply {
        Reply::Read(Data(data)) => Some(data),
        Reply::Readlink(Data(data)) => Some(data),
        Reply::Getxattr(Data(data)) | Reply::Listxattr(Data(data)) => Some(data),
        _ => None,
    })?;
    match data.len() <= most as usize {
        true => Ok(data),
        false => Err(senseless(
            answer.header.kind,
            "it is longer than what was asked for",
        )),
    }
}

/// What the kernel gets for an error. `ENOSYS` means to it that it must never ask again, and for some requests that
/// all is well.
pub(super) fn ask_again(errno: Errno) -> Errno {
    match errno {
        Errno::ENOSYS => Errno::EOPNOTSUPP,
        errno => errno,
    }
}

impl Connection {
    pub(super) fn ask(&self, about: &About, request: &Request<'_>) -> Result<Answer> {
        self.call(about, request).map_err(ask_again)
    }

    /// An entry; what it says of its node is published if it may be kept. `late`, asked when the clock was read, has
    /// the nodes of which the server may say what is old: whether this is one of them, and nothing of it published.
    pub(super) fn ask_entry(
        &self,
        parent: INodeNo,
        request: &Request<'_>,
        valid: Validity,
        late: impl FnOnce() -> HashSet<u64>,
    ) -> Result<(Entry, bool)> {
        let (snapshot, late) = (self.kept().snapshot(), late());
        let answer = self.ask(&node(parent), request)?;
        let entry = meaning(&answer, |reply| match reply {
            Reply::Lookup(entry) | Reply::Mknod(entry) | Reply::Mkdir(entry) => Some(entry),
            Reply::Symlink(entry) | Reply::Link(entry) => Some(entry),
            _ => None,
        })?;
        let is_late = late.contains(&entry.node);
        let entry = self.take_entry(&answer, entry, snapshot.filter(|_| !is_late), valid)?;
        Ok((entry, is_late))
    }

    /// An entry for the kernel.
    fn take_entry(
        &self,
        answer: &Answer,
        entry: Entry,
        snapshot: Option<Snapshot>,
        valid: Validity,
    ) -> Result<Entry> {
        // To the kernel, 0 would be a name that does not exist.
        if entry.node == 0 {
            return Err(senseless(answer.header.kind, "its node is 0"));
        }
        self.seen(entry.node, &entry.attr);
        self.publish_attr(answer, &entry, snapshot, valid);
        Ok(entry)
    }

    /// The kernel is about to hear of it.
    fn seen(&self, node: u64, attr: &Attr) {
        if let Some(spool) = self.kept().spool.spool() {
            spool.seen(node, attr);
        }
    }

    fn publish_attr(&self, answer: &Answer, entry: &Entry, snapshot: Option<Snapshot>, valid: Validity) {
        let Some(at) = snapshot.filter(|_| answer.header.flags.contains(Flags::KEEP)) else {
            return;
        };
        let attr = FileAttr::from(entry.attr);
        let io = match attr.kind {
            FileType::Directory => NodeIo::Listing,
            FileType::RegularFile if self.kept().spool.spool().is_some() => NodeIo::Passthrough,
            _ => NodeIo::Daemon,
        };
        self.kept().publish(|cache| {
            let node = NodeId(entry.node);
            cache.publish_attr(node, &attr, io, at, valid);
            if let Some(absent) = bare::told(answer.header.offset) {
                cache.publish_xattr_names(Some(node), b"", absent, true, at, valid);
            }
        });
    }

    /// GETXATTR, for `room` bytes. The value, or that there is none, is published if it may be kept.
    pub(super) fn ask_xattr(
        &self,
        ino: INodeNo,
        name: XattrName,
        room: u32,
        valid: Validity,
    ) -> Result<Answer> {
        let snapshot = self.kept().snapshot();
        let request = Request::Getxattr(Getxattr {
            name: name.clone(),
            room,
        });
        let (answer, keep) = self.call_kept(&node(ino), &request);
        let publishable = xattr_class(name.as_bytes()).is_some();
        if let Some(at) = snapshot.filter(|_| keep && publishable) {
            let publish = |value: std::result::Result<&[u8], i32>| {
                self.kept()
                    .publish(|cache| cache.publish_xattr(NodeId(ino.0), name.as_bytes(), value, at, valid));
            };
            match &answer {
                Ok(answer) if room != 0 => publish(Ok(&answer.payload)),
                Err(errno @ (Errno::ENODATA | Errno::EOPNOTSUPP)) => publish(Err(*errno as i32)),
                _ => {}
            }
        }
        answer.map_err(ask_again)
    }

    pub(super) fn ask_attr(&self, ino: INodeNo, request: &Request<'_>) -> Result<Attr> {
        let answer = self.ask(&node(ino), request)?;
        let attr = meaning(&answer, |reply| match reply {
            Reply::Getattr(attr) | Reply::Setattr(attr) => Some(attr),
            _ => None,
        })?;
        self.seen(ino.0, &attr);
        Ok(attr)
    }

    pub(super) fn ask_open(&self, ino: INodeNo, request: &Request<'_>) -> Result<Opened> {
        let answer = self.ask(&node(ino), request)?;
        meaning(&answer, |reply| match reply {
            Reply::Open(opened) | Reply::Opendir(opened) => Some(opened),
            _ => None,
        })
    }

    /// The same of a file that is made, or was there.
    pub(super) fn ask_create(
        &self,
        parent: INodeNo,
        create: Create,
        valid: Validity,
        late: impl FnOnce() -> HashSet<u64>,
    ) -> Result<(Created, bool)> {
        let (snapshot, late) = (self.kept().snapshot(), late());
        let answer = self.ask(&node(parent), &Request::Create(create))?;
        let created = meaning(&answer, |reply| match reply {
            Reply::Create(created) => Some(created),
            _ => None,
        })?;
        let is_late = late.contains(&created.entry.node);
        let snapshot = snapshot.filter(|_| !is_late);
        let entry = self.take_entry(&answer, created.entry, snapshot, valid)?;
        Ok((Created { entry, ..created }, is_late))
    }

    pub(super) fn ask_listing(&self, about: &About) -> Result<Listing> {
        let answer = self.ask(about, &Request::Readdir(Readdir { size: LISTING }))?;
        meaning(&answer, |reply| match reply {
            Reply::Readdir(listing) => Some(listing),
            _ => None,
        })
    }

    pub(super) fn ask_lock(&self, about: &About, wish: LockRange) -> Result<Lock> {
        let answer = self.ask(about, &Request::GetLock(wish))?;
        let found = meaning(&answer, |reply| match reply {
            Reply::GetLock(lock) => Some(lock),
            _ => None,
        })?;
        // The kernel takes it at its word.
        match found.start <= found.end && found.end <= LAST {
            true => Ok(found),
            false => Err(senseless(answer.header.kind, "it is no range")),
        }
    }

    pub(super) fn ask_statfs(&self, ino: INodeNo) -> Result<Statfs> {
        let answer = self.ask(&node(ino), &Request::Statfs(Empty))?;
        meaning(&answer, |reply| match reply {
            Reply::Statfs(statfs) => Some(statfs),
            _ => None,
        })
    }
}
