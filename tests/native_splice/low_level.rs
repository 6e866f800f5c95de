// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system of fuser's own kind.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use extfuse::splice::{Channel, Mounted, Read, Way, mount};
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

use super::frames::{Fault, Frames, attr};
use super::mounts::{Mount, Setup, devices, writes_arrive};

const TTL: Duration = Duration::from_secs(1);
const SIZE: u64 = 300_000;
const NAME: &str = "tcp-300000";

/// One file.
struct Low {
    frames: Frames,
    channel: Channel,
    way: Way,
    crc: bool,
}

fn file() -> FileAttr {
    FileAttr {
        ino: INodeNo(2),
        ..attr(FileType::RegularFile, SIZE)
    }
}

impl Filesystem for Low {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.channel.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.entry(&TTL, &file(), Generation(0));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            let root = attr(FileType::Directory, 0);
            reply.attr(&TTL, &FileAttr { ino, ..root });
        } else {
            reply.attr(&TTL, &file());
        }
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = format!("/{NAME}");
        let mut bufs = self.frames.bufs(Path::new(&path), size as usize, offset).unwrap();
        let read = Read::new(req.unique().into(), size).way(self.way).crc(self.crc);
        let result = self.channel.reply_data(read, reply, &mut bufs, Frames::judge);
        assert!(result.is_ok() || !result.unwrap_err().is_in_step() || self.crc);
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bufs = self.channel.write_buf(req.unique().into(), data, write_flags);
        reply.written(self.frames.store(bufs, offset).unwrap() as u32);
    }
}

fn low(way: Way, crc: bool, keeps_replies: bool) -> Mount {
    let options = Setup::stock(way, crc).mount;
    Mount::new(|dir, world| {
        let frames = Frames::new(Arc::clone(&world));
        let mut mounted: Mounted<Low> = mount(dir, &options, |channel| Low {
            frames,
            channel,
            way,
            crc,
        })
        .unwrap();
        if !keeps_replies {
            // SAFETY: each method answers before it returns.
            mounted = unsafe { mounted.keeps_no_reply() };
        }
        (mounted.unmounter(), mounted.channel().clone(), move || {
            mounted.serve()
        })
    })
}

#[test]
fn reads_and_writes_go_through_the_channel() {
    for (way, crc) in [(Way::Copy, true), (Way::Splice, false), (Way::Auto, true)] {
        let mount = low(way, crc, false);
        mount.assert_reads(NAME, false);
        mount.assert_reads(NAME, true);
        writes_arrive(&mount);
        if crc {
            mount.fault(Fault::Crc(7));
            assert_eq!(mount.refused(NAME, 4096, true), Some(libc::EIO));
            mount.heal();
            mount.assert_reads(NAME, true);
        }
        mount.end();
    }
}

#[test]
fn a_file_system_that_may_keep_replies_costs_an_inert_descriptor() {
    let mut before = Vec::new();
    for (way, left) in [(Way::Copy, 0), (Way::Splice, 1)] {
        {
            let mount = low(way, false, true);
            before.push(devices().len());
            mount.assert_reads(NAME, true);
            if left == 0 {
                mount.end();
                continue;
            }
        }
        let inert = devices()
            .into_iter()
            .filter(|fd| std::fs::read_link(fd).unwrap() == Path::new("/"));
        assert_eq!(inert.count(), left);
    }
}
