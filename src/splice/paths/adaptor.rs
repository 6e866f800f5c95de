// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system by path towards fuser: requests and answers.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::super::answer::{Read, ReplyError};
use super::super::buf::FuseBufVec;
use super::served::{Changes, Paths};
use super::{Caller, PathFilesystem, Result};
use crate::sys::stream;

/// A nodeid is never used twice, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// The inode number of a name that the kernel does not know yet.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);

fn errno(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno as i32)
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

impl<F: PathFilesystem> Paths<F> {
    fn entry(&self, result: Result<FileAttr>, reply: ReplyEntry) {
        match result {
            Ok(attr) => reply.entry(&self.options.ttl, &attr, GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn attr_reply(&self, result: Result<FileAttr>, reply: ReplyAttr) {
        match result {
            Ok(attr) => reply.attr(&self.options.ttl, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }
}

/// A value, or how long it is if that is what is asked.
fn xattr(result: Result<Vec<u8>>, room: u32, reply: ReplyXattr) {
    match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if room == 0 => reply.size(length),
            Ok(length) if length <= room => reply.data(&value),
            _ => reply.error(errno(Errno::ERANGE)),
        },
        Err(error) => reply.error(errno(error)),
    }
}

fn written(result: Result<usize>, reply: ReplyWrite) {
    match result.and_then(|size| u32::try_from(size).map_err(|_| Errno::EIO)) {
        Ok(size) => reply.written(size),
        Err(error) => reply.error(errno(error)),
    }
}

fn empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// Streams whose frames were asked for and not received: what is still to come on them must not be taken
/// for an answer.
fn shut(bufs: &FuseBufVec<'_>, path: &Path, error: &ReplyError) {
    tracing::warn!("{}: {error}", path.display());
    let from = match error {
        ReplyError::Broken { buf, .. } | ReplyError::Gone { buf, .. } => *buf,
        ReplyError::Refused(_) | ReplyError::Device(_) => return,
    };
    for fd in bufs.iter().skip(from).filter_map(|buf| buf.fd.as_ref()) {
        stream::end(fd);
    }
}

impl<F: PathFilesystem> Filesystem for Paths<F> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.channel.negotiate(config);
        self.fs.init();
        Ok(())
    }

    fn destroy(&mut self) {
        self.fs.destroy();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _names = self.names.read();
        self.entry(self.look_up(parent, name), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.tree.lock().forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _names = self.names.read();
        self.attr_reply(self.attr(ino, fh), reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _names = self.names.read();
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        self.attr_reply(self.set(ino, fh, changes), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _names = self.names.read();
        let made = self
            .path_of(parent, name)
            .and_then(|path| self.fs.mkdir(&path, mode & !umask, caller(req)))
            .and_then(|()| self.look_up(parent, name));
        self.entry(made, reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _names = self.names.read();
        match self.path(ino).and_then(|path| self.fs.readlink(&path)) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _names = self.names.read();
        let made = self
            .path_of(parent, name)
            .and_then(|path| self.fs.mknod(&path, mode & !umask, rdev, caller(req)))
            .and_then(|()| self.look_up(parent, name));
        self.entry(made, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _names = self.names.read();
        let made = self
            .path_of(parent, name)
            .and_then(|path| self.fs.symlink(target, &path, caller(req)))
            .and_then(|()| self.look_up(parent, name));
        self.entry(made, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _names = self.names.write();
        self.entry(self.link_to(ino, parent, name), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _names = self.names.write();
        let removed = self.path_of(parent, name).and_then(|path| self.fs.unlink(&path));
        if removed.is_ok() {
            self.tree.lock().remove(parent.0, name);
        }
        empty(removed, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _names = self.names.write();
        let removed = self.path_of(parent, name).and_then(|path| self.fs.rmdir(&path));
        if removed.is_ok() {
            self.tree.lock().remove(parent.0, name);
        }
        empty(removed, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _names = self.names.write();
        let paths = (self.path_of(parent, name), self.path_of(newparent, newname));
        let renamed = match paths {
            (Ok(from), Ok(to)) => self.fs.rename(&from, &to, flags),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        if renamed.is_ok() {
            let (from, to) = ((parent.0, name), (newparent.0, newname));
            let mut tree = self.tree.lock();
            if flags.contains(RenameFlags::RENAME_EXCHANGE) {
                tree.exchange(from, to);
            } else {
                tree.rename(from, to);
            }
        }
        empty(renamed, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _names = self.names.read();
        let open = || {
            let path = self.path(ino)?;
            let fh = self.fs.open(&path, flags)?;
            Ok((fh, self.open_flags(&path, fh)))
        };
        match open() {
            Ok((fh, flags)) => {
                self.opened(ino, fh);
                reply.opened(FileHandle(fh), flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _names = self.names.read();
        let create = || {
            let path = self.path_of(parent, name)?;
            let fh = self
                .fs
                .create(&path, mode & !umask, OpenFlags(flags), caller(req))?;
            match self.look_up(parent, name) {
                Ok(attr) => Ok((fh, attr, self.open_flags(&path, fh))),
                Err(error) => {
                    self.fs.release(&path, fh);
                    Err(error)
                }
            }
        };
        match create() {
            Ok((fh, attr, flags)) => {
                self.opened(attr.ino, fh);
                reply.created(&self.options.ttl, &attr, GENERATION, FileHandle(fh), flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = self.open_path(ino);
        let mut bufs = match self.fs.read_buf(&path, fh.0, size as usize, offset) {
            Ok(bufs) => bufs,
            Err(error) => return reply.error(errno(error)),
        };
        let read = Read::new(req.unique().into(), size)
            .way(self.options.way)
            .crc(self.options.crc);
        let check = |bufs: &FuseBufVec<'static>, crcs: &[Option<u32>]| self.fs.check(&path, bufs, crcs);
        if let Err(error) = self.channel.reply_data(read, reply, &mut bufs, check) {
            shut(&bufs, &path, &error);
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bufs = self.channel.write_buf(req.unique().into(), data, write_flags);
        let written = self.fs.write_buf(&self.open_path(ino), fh.0, bufs, offset);
        self::written(written, reply);
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        empty(self.fs.flush(&self.open_path(ino), fh.0), reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.released(ino, fh.0);
        self.fs.release(&self.open_path(ino), fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.fs.fsync(&self.open_path(ino), fh.0, datasync), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _names = self.names.read();
        match self.path(ino).and_then(|path| self.fs.opendir(&path)) {
            Ok(()) => reply.opened(FileHandle(self.next_listing()), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = match self.listing(ino, fh.0, offset) {
            Ok(listing) => listing,
            Err(error) => return reply.error(errno(error)),
        };
        let dots = [".", ".."].map(|name| (ino, FileType::Directory, OsStr::new(name)));
        let names = listing.iter().map(|entry| {
            let known = self.tree.lock().child(ino.0, &entry.name);
            (known.map_or(UNKNOWN, INodeNo), entry.kind, entry.name.as_os_str())
        });
        let rest = dots.into_iter().chain(names).zip(1..);
        for ((ino, kind, name), next) in rest.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _names = self.names.read();
        let synced = self.path(ino).and_then(|path| self.fs.fsyncdir(&path, datasync));
        empty(synced, reply);
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _names = self.names.read();
        match self.fs.statfs(&self.open_path(ino)) {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _names = self.names.read();
        let set = self
            .path(ino)
            .and_then(|path| self.fs.setxattr(&path, name, value, flags));
        empty(set, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _names = self.names.read();
        xattr(
            self.path(ino).and_then(|path| self.fs.getxattr(&path, name)),
            size,
            reply,
        );
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _names = self.names.read();
        let names = self.path(ino).and_then(|path| self.fs.listxattr(&path));
        let ended = |name: std::ffi::OsString| [name.as_bytes(), b"\0"].concat();
        xattr(
            names.map(|names| names.into_iter().flat_map(ended).collect()),
            size,
            reply,
        );
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _names = self.names.read();
        let removed = self.path(ino).and_then(|path| self.fs.removexattr(&path, name));
        empty(removed, reply);
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let _names = self.names.read();
        let permitted = self
            .path(ino)
            .and_then(|path| self.fs.access(&path, mask, caller(req)));
        empty(permitted, reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(
            self.fs
                .fallocate(&self.open_path(ino), fh.0, offset, length, mode),
            reply,
        );
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = u64::try_from(offset)
            .map_err(|_| Errno::ENXIO)
            .and_then(|offset| self.fs.lseek(&self.open_path(ino), fh.0, offset, whence))
            .and_then(|offset| i64::try_from(offset).map_err(|_| Errno::EOVERFLOW));
        match found {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = (self.open_path(ino_in), self.open_path(ino_out));
        // The answer has 32 bits.
        let size = usize::try_from(len.min(u64::from(u32::MAX))).unwrap_or(usize::MAX);
        let copied = self
            .fs
            .copy_file_range((&from, fh_in.0, offset_in), (&to, fh_out.0, offset_out), size);
        written(copied, reply);
    }
}
