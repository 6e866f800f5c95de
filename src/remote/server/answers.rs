// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a request does to the export.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use fuser::{BackingId, FileHandle, RenameFlags, WriteFlags};
use nix::errno::Errno;

use super::locks::Locks;
use crate::abi::NodeId;
use crate::fs::Stack;
use crate::fs::stack::{Caller, Entry, SetAttr, XattrReply};
use crate::remote::wire::message::{self, Created, Data, DirEntry, Listing, Opened, Statfs};
use crate::remote::wire::{Flags, Header, ListedName, MAX_XATTR, Reply, Request};

/// The reply, and the number in its header.
#[derive(Debug)]
pub struct Answer {
    pub reply: Owned,
    pub number: u64,
}

/// A reply that owns its bytes.
#[derive(Debug)]
pub enum Owned {
    Whole(Reply<'static>),
    Target(Vec<u8>),
    Value(Vec<u8>),
    Names(Vec<u8>),
}

impl Owned {
    /// The entry that it tells of, if it does.
    pub fn entry_mut(&mut self) -> Option<&mut message::Entry> {
        match self {
            Self::Whole(
                Reply::Lookup(entry)
                | Reply::Mknod(entry)
                | Reply::Mkdir(entry)
                | Reply::Symlink(entry)
                | Reply::Link(entry)
                | Reply::Create(Created { entry, .. }),
            ) => Some(entry),
            _ => None,
        }
    }

    /// The attributes that it tells, if it does.
    pub fn attr_mut(&mut self) -> Option<&mut message::Attr> {
        match self {
            Self::Whole(Reply::Getattr(attr) | Reply::Setattr(attr)) => Some(attr),
            reply => reply.entry_mut().map(|entry| &mut entry.attr),
        }
    }

    pub fn as_reply(&self) -> Reply<'_> {
        match self {
            Self::Whole(reply) => reply.clone(),
            Self::Target(bytes) => Reply::Readlink(Data(bytes)),
            Self::Value(bytes) => Reply::Getxattr(Data(bytes)),
            Self::Names(bytes) => Reply::Listxattr(Data(bytes)),
        }
    }
}

impl From<Reply<'static>> for Answer {
    fn from(reply: Reply<'static>) -> Self {
        Owned::Whole(reply).into()
    }
}

impl From<Owned> for Answer {
    fn from(reply: Owned) -> Self {
        Self { reply, number: 0 }
    }
}

type Result<T> = std::result::Result<T, Errno>;

/// The most that an entry of a listing takes beside its name: two numbers, a type and a length, as postcard has
/// them.
const ENTRY: usize = 10 + 10 + 1 + 2;

/// No process of this machine asks.
fn caller(caller: message::Caller) -> Caller {
    Caller {
        uid: caller.uid,
        gid: caller.gid,
        pid: 0,
    }
}

fn entry(entry: Entry) -> message::Entry {
    message::Entry {
        node: entry.node.0,
        attr: (&entry.attr).into(),
    }
}

/// Nothing passes through a server.
fn no_backing(_: BorrowedFd<'_>) -> io::Result<BackingId> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Does what is asked. READ and FORGET are not for here.
pub fn answer(stack: &Stack, locks: &Locks, header: &Header, request: Request<'_>) -> Result<Answer> {
    let (node, handle) = (NodeId(header.node), FileHandle(header.handle));
    let done = |reply: fn(message::Empty) -> Reply<'static>| Answer::from(reply(message::Empty));
    let answer = match request {
        Request::Lookup(m) => Reply::Lookup(entry(stack.lookup(node, m.name.as_os_str())?)).into(),
        Request::Getattr(_) => Reply::Getattr((&stack.getattr(node)?).into()).into(),
        Request::Setattr(m) => Reply::Setattr((&stack.setattr(node, &changes(m))?).into()).into(),
        Request::Readlink(_) => Owned::Target(stack.readlink(node)?.into_vec()).into(),
        Request::Mknod(m) => {
            let (name, by) = (m.name.as_os_str(), caller(m.caller));
            Reply::Mknod(entry(stack.mknod(node, name, m.mode, m.umask, m.rdev, by)?)).into()
        }
        Request::Mkdir(m) => {
            let (name, by) = (m.name.as_os_str(), caller(m.caller));
            Reply::Mkdir(entry(stack.mkdir(node, name, m.mode, m.umask, by)?)).into()
        }
        Request::Symlink(m) => {
            let (name, target) = (m.name.as_os_str(), Path::new(m.target.as_os_str()));
            Reply::Symlink(entry(stack.symlink(node, name, target, caller(m.caller))?)).into()
        }
        Request::Link(m) => {
            Reply::Link(entry(stack.link(node, NodeId(m.parent), m.name.as_os_str())?)).into()
        }
        Request::Unlink(m) => {
            stack.unlink(node, m.name.as_os_str())?;
            done(Reply::Unlink)
        }
        Request::Rmdir(m) => {
            stack.rmdir(node, m.name.as_os_str())?;
            done(Reply::Rmdir)
        }
        Request::Rename(m) => {
            let (to, flags) = (NodeId(m.new_parent), RenameFlags::from_bits_retain(m.flags));
            let (name, new_name) = (m.name.as_os_str(), m.new_name.as_os_str());
            stack.rename(node, name, to, new_name, flags, caller(m.caller))?;
            done(Reply::Rename)
        }
        Request::Open(m) => {
            let opened = stack.open(node, m.flags, no_backing)?;
            Reply::Open(handle_of(opened.fh)).into()
        }
        Request::Create(m) => {
            let (name, by) = (m.name.as_os_str(), caller(m.caller));
            let (made, opened) = stack.create(node, name, m.mode, m.umask, m.flags, by, no_backing)?;
            Reply::Create(Created {
                entry: entry(made),
                handle: opened.fh.0,
            })
            .into()
        }
        Request::Write(data) => {
            let mut flags = WriteFlags::empty();
            flags.set(
                WriteFlags::FUSE_WRITE_CACHE,
                header.flags.contains(Flags::WRITE_BACK),
            );
            let append = header.flags.contains(Flags::APPEND);
            let file_flags = if append { libc::O_APPEND } else { 0 };
            let written = stack.write(handle, header.offset, data.0, flags, file_flags)?;
            Answer {
                number: written.into(),
                ..done(Reply::Write)
            }
        }
        Request::Flush(m) => {
            locks.flush(node.0, m.owner);
            stack.flush(handle)?;
            done(Reply::Flush)
        }
        Request::Release(_) => {
            locks.release(node.0, handle.0);
            stack.release(handle)?;
            done(Reply::Release)
        }
        Request::Fsync(_) => {
            stack.fsync(handle, header.flags.contains(Flags::DATA_ONLY))?;
            done(Reply::Fsync)
        }
        Request::Fallocate(m) => {
            stack.fallocate(handle, header.offset, m.length, m.mode)?;
            done(Reply::Fallocate)
        }
        Request::Lseek(m) => Answer {
            number: stack
                .lseek(handle, header.offset.cast_signed(), m.whence)?
                .cast_unsigned(),
            ..done(Reply::Lseek)
        },
        Request::CopyFileRange(m) => {
            let (from, to) = ((handle, header.offset), (FileHandle(m.to_handle), m.to_offset));
            Answer {
                number: stack.copy_file_range(from, to, m.length, m.flags)?.into(),
                ..done(Reply::CopyFileRange)
            }
        }
        Request::Opendir(_) => Reply::Opendir(handle_of(stack.opendir(node)?.fh)).into(),
        Request::Readdir(m) => Reply::Readdir(listing(stack, handle, header.offset, m.size as usize)?).into(),
        Request::Releasedir(_) => {
            stack.releasedir(handle)?;
            done(Reply::Releasedir)
        }
        Request::Fsyncdir(_) => {
            stack.fsyncdir(handle, header.flags.contains(Flags::DATA_ONLY))?;
            done(Reply::Fsyncdir)
        }
        Request::Statfs(_) => {
            let about = stack.statfs(node)?;
            Reply::Statfs(Statfs {
                blocks: about.blocks(),
                bfree: about.blocks_free(),
                bavail: about.blocks_available(),
                files: about.files(),
                ffree: about.files_free(),
                bsize: about.block_size() as u32,
                namelen: about.name_max() as u32,
                frsize: about.fragment_size() as u32,
            })
            .into()
        }
        Request::Getxattr(m) => {
            let value = stack.getxattr(node, m.name.as_os_str(), m.room.min(MAX_XATTR))?;
            sized(value, Owned::Value)
        }
        Request::Listxattr(m) => {
            let names = stack.listxattr(node, m.room.min(MAX_XATTR), caller(m.caller))?;
            sized(names, Owned::Names)
        }
        Request::Setxattr(m) => {
            let (name, value) = (m.name.as_os_str(), m.value.as_bytes());
            stack.setxattr(node, name, value, m.flags, caller(m.caller))?;
            done(Reply::Setxattr)
        }
        Request::Removexattr(m) => {
            stack.removexattr(node, m.name.as_os_str())?;
            done(Reply::Removexattr)
        }
        Request::GetLock(m) => Reply::GetLock(locks.get(stack, header, &m)?).into(),
        Request::SetLock(m) => {
            locks.set(stack, header, &m)?;
            done(Reply::SetLock)
        }
        // The rest is not for here.
        _ => return Err(Errno::ENOSYS),
    };
    Ok(answer)
}

fn handle_of(handle: FileHandle) -> Opened {
    Opened {
        handle: handle.0,
        attr: None,
    }
}

fn changes(set: message::SetAttr) -> SetAttr {
    SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime: set.atime.map(Into::into),
        mtime: set.mtime.map(Into::into),
        fh: set.handle.map(FileHandle),
    }
}

/// A value or a list, and its size.
fn sized(reply: XattrReply, owned: fn(Vec<u8>) -> Owned) -> Answer {
    let (bytes, size) = match reply {
        XattrReply::Size(size) => (Vec::new(), size.into()),
        XattrReply::Data(bytes) => {
            let size = bytes.len() as u64;
            (bytes, size)
        }
    };
    Answer {
        reply: owned(bytes),
        number: size,
    }
}

/// As many entries as `room` bytes hold.
fn listing(stack: &Stack, handle: FileHandle, from: u64, room: usize) -> Result<Listing> {
    let mut entries = Vec::new();
    // Their number comes first.
    let mut taken = 5;
    let mut too_long = false;
    stack.readdir(handle, from, |found| {
        // A name that no file system may have is left out.
        let Ok(name) = ListedName::new(found.name.as_encoded_bytes()) else {
            return false;
        };
        let size = ENTRY + name.as_bytes().len();
        if taken + size > room {
            too_long = entries.is_empty();
            return true;
        }
        taken += size;
        entries.push(DirEntry {
            ino: found.ino,
            offset: found.next,
            kind: found.kind.into(),
            name,
        });
        false
    })?;
    match too_long {
        // Nothing would be the end.
        true => Err(Errno::EINVAL),
        false => Ok(Listing { entries }),
    }
}
