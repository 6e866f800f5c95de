// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory with one file: a file system for fuser, of which only `main` knows of extfuse.

use std::ffi::OsStr;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEntry, Request,
};

const TTL: Duration = Duration::from_secs(1);
const TEXT: &[u8] = b"Hello World!\n";

/// It has no state.
#[derive(Debug)]
pub struct Hello;

fn attr(ino: u64) -> FileAttr {
    let (kind, perm, size) = match ino {
        1 => (FileType::Directory, 0o755, 0),
        _ => (FileType::RegularFile, 0o644, TEXT.len() as u64),
    };
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Hello {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match (parent.0, name.to_str()) {
            (1, Some("hello.txt")) => reply.entry(&TTL, &attr(2), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino.0));
    }

    #[rustfmt::skip]
    fn read(
        &self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyData,
    ) {
        let text = TEXT.get(offset as usize..).unwrap_or_default();
        reply.data(&text[..text.len().min(size as usize)]);
    }

    #[rustfmt::skip]
    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let all = [
            (1, FileType::Directory, "."), (1, FileType::Directory, ".."), (2, FileType::RegularFile, "hello.txt"),
        ];
        for (at, (ino, kind, name)) in (1..).zip(all).skip(offset as usize) {
            if reply.add(INodeNo(ino), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mountpoint = std::env::args_os().nth(1).ok_or("where to mount?")?;
    // With fuser alone: fuser::mount2(Hello, mountpoint, &fuser::Config::default())?;
    let session = extfuse::mount(Hello, mountpoint, &extfuse::MountOptions::default())?;
    session.unmount_on_signals()?;
    Ok(session.serve()?)
}
