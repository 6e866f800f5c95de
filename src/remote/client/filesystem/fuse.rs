// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations, as fuser calls them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request as FuseRequest, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::super::About;
use super::super::data::{Outcome, Question};
use super::super::locks::Wish;
use super::super::questions::{Result, data, file, file_at, node, senseless};
use super::{GENERATION, Remote, entry_attr};
use crate::fs::kernel::{agree, left_to_the_kernel};
use crate::fs::upcalls::Opcode;
use crate::remote::wire::message::{
    Caller, CopyFileRange, Create, Data, Empty, Fallocate, Flush, Link, Listxattr, Lock, LockKind, LockRange,
    Lookup, Lseek, Mkdir, Mknod, Read, Removexattr, Rename, Rmdir, SetAttr, Setxattr, Symlink, Unlink,
};
use crate::remote::wire::{
    Flags, Kind, MAX_PAYLOAD, Name, Request, Target, WireError, XattrName, XattrValue,
};

/// The largest WRITE, and the largest READ, since the kernel counts pages for both: 256 pages of 4096 bytes
/// fit into a frame ([`MAX_PAYLOAD`]), whatever `fs.fuse.max_pages_limit` allows.
const MAX_WRITE: u32 = 1 << 20;

/// What one COPY_FILE_RANGE asks for, at most: nobody can interrupt it.
const MAX_COPY: u64 = 64 << 20;

fn caller(req: &FuseRequest) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

/// A string of bytes that has a rule, or what the caller gets for it.
fn ruled<T>(string: std::result::Result<T, WireError>) -> Result<T> {
    string.map_err(|error| error.errno())
}

fn name(name: &OsStr) -> Result<Name> {
    ruled(Name::new(name.as_bytes()))
}

fn sync_flags(data_only: bool) -> Flags {
    match data_only {
        true => Flags::DATA_ONLY,
        false => Flags::empty(),
    }
}

fn lock(start: u64, end: u64, typ: i32, pid: u32) -> Option<Lock> {
    let kind = match typ {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return None,
    };
    Some(Lock {
        kind,
        start,
        end,
        pid,
    })
}

fn lock_type(kind: LockKind) -> i32 {
    match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    }
}

impl Filesystem for Remote {
    left_to_the_kernel!();

    fn init(&mut self, _req: &FuseRequest, config: &mut KernelConfig) -> io::Result<()> {
        self.count(Opcode::Init);
        // A node is an inode of the server's, whose target never changes.
        let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS;
        if self.locks.is_some() {
            wanted |= InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS;
        }
        agree(config, wanted)?;
        if let Some(depth) = self.spool.as_ref().and_then(|(spool, _)| spool.depth()) {
            // Without them what is here comes up, too.
            let depth = config.set_max_stack_depth(depth);
            let passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            if depth.is_err() || passthrough.is_err() {
                tracing::debug!("the kernel offers no backing files");
            }
        }
        if config.set_max_write(MAX_WRITE).is_err() {
            return Err(Errno::EINVAL.into());
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.count(Opcode::Destroy);
    }

    fn lookup(&self, _req: &FuseRequest, parent: INodeNo, leaf: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Lookup);
        let result = name(leaf).and_then(|name| self.entry(parent, &Request::Lookup(Lookup { name })));
        self.reply_entry(Opcode::Lookup, reply, result);
    }

    /// fuser calls it for each node of a BATCH_FORGET, too; the connection puts them together again.
    fn forget(&self, _req: &FuseRequest, ino: INodeNo, nlookup: u64) {
        self.count(Opcode::Forget);
        if let Some((spool, _)) = &self.spool {
            spool.forget(ino.0);
        }
        self.connection.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &FuseRequest, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Opcode::Getattr);
        self.settle(ino);
        self.reply_attr(
            Opcode::Getattr,
            reply,
            self.connection.ask_attr(ino, &Request::Getattr(Empty)),
        );
    }

    fn setattr(
        &self,
        _req: &FuseRequest,
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
        self.count(Opcode::Setattr);
        self.settle(ino);
        // Only one that is open for writing, which the server has heard of, matters.
        let fh = fh.and_then(|fh| self.opens.there(fh));
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(Into::into),
            mtime: mtime.map(Into::into),
            handle: fh.map(|fh| fh.0),
        };
        let _changing = size.and_then(|_| self.changing(ino));
        self.reply_attr(
            Opcode::Setattr,
            reply,
            self.connection.ask_attr(ino, &Request::Setattr(set)),
        );
    }

    fn readlink(&self, _req: &FuseRequest, ino: INodeNo, reply: ReplyData) {
        self.count(Opcode::Readlink);
        let result = self.connection.ask(&node(ino), &Request::Readlink(Empty));
        match result
            .as_ref()
            .map_err(|errno| *errno)
            .and_then(|answer| data(answer, u32::MAX))
        {
            Ok(target) => reply.data(target),
            Err(errno) => reply.error(self.refused(Opcode::Readlink, errno)),
        }
    }

    fn mknod(
        &self,
        req: &FuseRequest,
        parent: INodeNo,
        leaf: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Opcode::Mknod);
        let result = name(leaf).and_then(|name| {
            let mknod = Mknod {
                name,
                mode,
                umask,
                rdev,
                caller: caller(req),
            };
            self.entry(parent, &Request::Mknod(mknod))
        });
        self.reply_entry(Opcode::Mknod, reply, result);
    }

    fn mkdir(
        &self,
        req: &FuseRequest,
        parent: INodeNo,
        leaf: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Opcode::Mkdir);
        let result = name(leaf).and_then(|name| {
            let mkdir = Mkdir {
                name,
                mode,
                umask,
                caller: caller(req),
            };
            self.entry(parent, &Request::Mkdir(mkdir))
        });
        self.reply_entry(Opcode::Mkdir, reply, result);
    }

    fn unlink(&self, _req: &FuseRequest, parent: INodeNo, leaf: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Unlink);
        let result = name(leaf).and_then(|name| {
            self.connection
                .ask(&node(parent), &Request::Unlink(Unlink { name }))
        });
        self.empty(Opcode::Unlink, reply, result);
    }

    fn rmdir(&self, _req: &FuseRequest, parent: INodeNo, leaf: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Rmdir);
        let result = name(leaf).and_then(|name| {
            self.connection
                .ask(&node(parent), &Request::Rmdir(Rmdir { name }))
        });
        self.empty(Opcode::Rmdir, reply, result);
    }

    fn symlink(&self, req: &FuseRequest, parent: INodeNo, leaf: &OsStr, target: &Path, reply: ReplyEntry) {
        self.count(Opcode::Symlink);
        let result = name(leaf).and_then(|name| {
            let symlink = Symlink {
                name,
                target: ruled(Target::new(target.as_os_str().as_bytes()))?,
                caller: caller(req),
            };
            self.entry(parent, &Request::Symlink(symlink))
        });
        self.reply_entry(Opcode::Symlink, reply, result);
    }

    fn rename(
        &self,
        req: &FuseRequest,
        parent: INodeNo,
        leaf: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // The kernel uses the old opcode where there are no flags.
        let opcode = if flags.is_empty() {
            Opcode::Rename
        } else {
            Opcode::Rename2
        };
        self.count(opcode);
        // Nobody finds a file by its name that is not what was written before it got that.
        self.settle_all();
        let result = name(leaf).and_then(|old| {
            let rename = Rename {
                name: old,
                new_parent: newparent.0,
                new_name: name(newname)?,
                flags: flags.bits(),
                caller: caller(req),
            };
            self.connection.ask(&node(parent), &Request::Rename(rename))
        });
        self.empty(opcode, reply, result);
    }

    fn link(&self, _req: &FuseRequest, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Link);
        self.settle(ino);
        let result = name(newname).and_then(|name| {
            let link = Link {
                parent: newparent.0,
                name,
            };
            self.entry(ino, &Request::Link(link))
        });
        self.reply_entry(Opcode::Link, reply, result);
    }

    fn open(&self, _req: &FuseRequest, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        self.settle(ino);
        let _changing = (flags.0 & libc::O_TRUNC != 0).then(|| self.changing(ino));
        match self.open_file(ino, flags.0) {
            Ok(fh) => {
                let how = self.opened(ino.0, fh.0, flags.0);
                reply.opened(fh, how);
            }
            Err(errno) => reply.error(self.refused(Opcode::Open, errno)),
        }
    }

    fn create(
        &self,
        req: &FuseRequest,
        parent: INodeNo,
        leaf: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Opcode::Create);
        let result = name(leaf).and_then(|name| {
            let create = Create {
                name,
                mode,
                umask,
                flags,
                caller: caller(req),
            };
            self.with_room(|| {
                let late = || self.late();
                self.connection
                    .ask_create(parent, create.clone(), self.valid, late)
            })
        });
        match result {
            Ok((created, is_late)) => {
                // It may have been there, and be empty now.
                drop(self.changing(INodeNo(created.entry.node)));
                // If it cannot be asked, the file is open all the same.
                let entry = self.settled(created.entry, is_late).unwrap_or(created.entry);
                let how = self.opened(entry.node, created.handle, flags);
                reply.created(
                    &Duration::ZERO,
                    &entry_attr(&entry),
                    GENERATION,
                    FileHandle(created.handle),
                    how,
                );
            }
            Err(errno) => reply.error(self.refused(Opcode::Create, errno)),
        }
    }

    fn read(
        &self,
        req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Opcode::Read);
        self.settle(ino);
        // No READ is larger: see `MAX_WRITE`.
        let size = size.min(MAX_PAYLOAD);
        let about = self.read_at(ino, fh, offset);
        if let Some(bytes) = self.read_spooled(&about, size, flags) {
            self.connection.counts().spooled(bytes.len() as u64);
            return reply.data(&bytes);
        }
        let mut reply = reply;
        if let Some(channel) = &self.channel {
            let question = Question {
                about: &about,
                size,
                unique: req.unique().into(),
                exact: false,
            };
            match self.connection.read(&question, channel, reply) {
                Outcome::Answered(Ok(())) => return,
                Outcome::Answered(Err(_)) => return self.upcalls.count_error(Opcode::Read),
                Outcome::Not(unanswered) => reply = unanswered,
            }
        }
        let result = self.connection.ask(&about, &Request::Read(Read { size }));
        match result
            .as_ref()
            .map_err(|errno| *errno)
            .and_then(|answer| data(answer, size))
        {
            Ok(data) => {
                self.connection.counts().read(data.len() as u64, false);
                reply.data(data);
            }
            Err(errno) => reply.error(self.refused(Opcode::Read, errno)),
        }
    }

    fn write(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Opcode::Write);
        let mut about = file_at(ino, fh, offset);
        // The flags are those that the file has now, not those that it was opened with.
        about.flags.set(Flags::APPEND, flags.0 & libc::O_APPEND != 0);
        // Pages that are written back have a place of their own.
        if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            about.flags = Flags::WRITE_BACK;
        }
        let changing = self.changing(ino);
        // Pages are written back by who may wait.
        let waits =
            about.flags.contains(Flags::WRITE_BACK) || flags.0 & (libc::O_DSYNC | libc::O_DIRECT) != 0;
        if let Some(writeback) = &self.writeback {
            if !waits {
                writeback.write(&about, data, changing);
                return reply.written(data.len() as u32);
            }
            writeback.settle(ino.0);
        }
        let result = self.connection.ask(&about, &Request::Write(Data(data)));
        self.reply_written(Opcode::Write, reply, data.len() as u64, result);
    }

    fn flush(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.count(Opcode::Flush);
        let flush = Request::Flush(Flush { owner: owner.0 });
        let finished = self.finish(ino, fh);
        let ask = || self.ask_file(file(ino, fh), &flush).map(drop);
        let flushed = match &self.locks {
            Some(shared) => shared.locks.flush(ino, fh, owner.0, ask),
            // Nothing was written through one that the server has not heard of.
            None if self.opens.there(fh).is_none() => Ok(()),
            None => ask(),
        };
        self.empty(Opcode::Flush, reply, finished.and(flushed));
    }

    fn release(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Release);
        if let Some(writeback) = &self.writeback {
            writeback.settle(ino.0);
            writeback.closed(ino.0, fh.0);
        }
        let owner = lock_owner.map(|owner| owner.0);
        let released = match (self.opens.close(fh), &self.locks) {
            (None, _) => Ok(()),
            (Some(there), Some(shared)) => {
                let close = || self.close_there(ino, there, owner);
                shared.locks.release(ino, there, close)
            }
            (Some(there), None) => self.close_there(ino, there, owner),
        };
        self.empty(Opcode::Release, reply, released);
    }

    fn getlk(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        self.count(Opcode::Getlk);
        let result = match (&self.locks, lock(start, end, typ, pid)) {
            (Some(_), Some(lock)) => {
                let owner = owner.0;
                self.handle(ino, fh).and_then(|there| {
                    let about = file(ino, there);
                    self.connection.ask_lock(&about, LockRange { owner, lock })
                })
            }
            (Some(_), None) => Err(Errno::EINVAL),
            (None, _) => Err(Errno::ENOSYS),
        };
        match result {
            Ok(Lock {
                kind,
                start,
                end,
                pid,
            }) => reply.locked(start, end, lock_type(kind), pid),
            Err(errno) => reply.error(self.refused(Opcode::Getlk, errno)),
        }
    }

    fn setlk(
        &self,
        req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let refused = match (&self.locks, lock(start, end, typ, pid)) {
            (Some(shared), Some(lock)) => match self.handle(ino, fh) {
                Ok(fh) => {
                    // Who has the lock next finds what was written under it.
                    self.settle(ino);
                    let wish = Wish {
                        ino,
                        fh,
                        owner: owner.0,
                        lock,
                        thread: req.pid(),
                    };
                    return shared.locks.set(wish, sleep, reply);
                }
                Err(errno) => errno,
            },
            (Some(_), None) => Errno::EINVAL,
            // It is never asked: INIT has said so.
            (None, _) => Errno::ENOSYS,
        };
        let opcode = if sleep { Opcode::Setlkw } else { Opcode::Setlk };
        self.count(opcode);
        reply.error(self.refused(opcode, refused));
    }

    fn fsync(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsync);
        let finished = self.finish(ino, fh);
        let about = About {
            flags: sync_flags(datasync),
            ..file(ino, fh)
        };
        let result = self.ask_file(about, &Request::Fsync(Empty));
        self.empty(Opcode::Fsync, reply, finished.and(result));
    }

    fn opendir(&self, _req: &FuseRequest, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Opendir);
        match self.with_room(|| self.connection.ask_open(ino, &Request::Opendir(Empty))) {
            Ok(opened) => reply.opened(FileHandle(opened.handle), FopenFlags::empty()),
            Err(errno) => reply.error(self.refused(Opcode::Opendir, errno)),
        }
    }

    fn readdir(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Opcode::Readdir);
        let listing = match self.connection.ask_listing(&file_at(ino, fh, offset)) {
            Ok(listing) => listing,
            Err(errno) => return reply.error(self.refused(Opcode::Readdir, errno)),
        };
        for entry in &listing.entries {
            let name = entry.name.as_os_str();
            if reply.add(INodeNo(entry.ino), entry.offset, entry.kind.into(), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Releasedir);
        let result = self.connection.ask(&file(ino, fh), &Request::Releasedir(Empty));
        self.empty(Opcode::Releasedir, reply, result);
    }

    fn fsyncdir(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsyncdir);
        let about = About {
            flags: sync_flags(datasync),
            ..file(ino, fh)
        };
        self.empty(
            Opcode::Fsyncdir,
            reply,
            self.connection.ask(&about, &Request::Fsyncdir(Empty)),
        );
    }

    fn statfs(&self, _req: &FuseRequest, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Opcode::Statfs);
        match self.connection.ask_statfs(ino) {
            Ok(fs) => reply.statfs(
                fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree, fs.bsize, fs.namelen, fs.frsize,
            ),
            Err(errno) => reply.error(self.refused(Opcode::Statfs, errno)),
        }
    }

    fn setxattr(
        &self,
        req: &FuseRequest,
        ino: INodeNo,
        attribute: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Setxattr);
        self.settle(ino);
        let result = ruled(XattrName::new(attribute.as_bytes())).and_then(|name| {
            let setxattr = Setxattr {
                name,
                value: ruled(XattrValue::new(value))?,
                flags,
                caller: caller(req),
            };
            self.connection.ask(&node(ino), &Request::Setxattr(setxattr))
        });
        self.empty(Opcode::Setxattr, reply, result);
    }

    fn getxattr(&self, _req: &FuseRequest, ino: INodeNo, attribute: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Opcode::Getxattr);
        let ask = || {
            ruled(XattrName::new(attribute.as_bytes()))
                .and_then(|name| self.connection.ask_xattr(ino, name, size, self.valid))
        };
        let mut result = ask();
        // Capabilities, which end with a write. That there are none the kernel asks before each.
        if result.is_ok() && self.settle(ino) {
            result = ask();
        }
        self.xattr(Opcode::Getxattr, reply, size, result);
    }

    fn listxattr(&self, req: &FuseRequest, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Opcode::Listxattr);
        let listxattr = Listxattr {
            room: size,
            caller: caller(req),
        };
        let result = self.connection.ask(&node(ino), &Request::Listxattr(listxattr));
        self.xattr(Opcode::Listxattr, reply, size, result);
    }

    fn removexattr(&self, _req: &FuseRequest, ino: INodeNo, attribute: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Removexattr);
        let result = ruled(XattrName::new(attribute.as_bytes())).and_then(|name| {
            self.connection
                .ask(&node(ino), &Request::Removexattr(Removexattr { name }))
        });
        self.empty(Opcode::Removexattr, reply, result);
    }

    /// The protocol has none.
    fn ioctl(
        &self,
        _req: &FuseRequest,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Opcode::Ioctl);
        reply.error(self.refused(Opcode::Ioctl, Errno::ENOTTY));
    }

    fn fallocate(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Fallocate);
        self.settle(ino);
        let fallocate = Request::Fallocate(Fallocate { length, mode });
        let _changing = self.changing(ino);
        let result = self.connection.ask(&file_at(ino, fh, offset), &fallocate);
        self.empty(Opcode::Fallocate, reply, result);
    }

    fn lseek(
        &self,
        _req: &FuseRequest,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Opcode::Lseek);
        self.settle(ino);
        let about = file_at(ino, fh, offset.cast_unsigned());
        let found = self
            .ask_file(about, &Request::Lseek(Lseek { whence }))
            .and_then(|answer| {
                i64::try_from(answer.header.offset)
                    .map_err(|_| senseless(Kind::Lseek, "its offset is beyond any file"))
            });
        match found {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(self.refused(Opcode::Lseek, errno)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &FuseRequest,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Opcode::CopyFileRange);
        self.settle(ino_in);
        self.settle(ino_out);
        // Fewer bytes than asked for are as good as all, and come sooner.
        let length = len.min(MAX_COPY);
        let _changing = self.changing(ino_out);
        let copy = CopyFileRange {
            to_node: ino_out.0,
            to_handle: fh_out.0,
            to_offset: offset_out,
            length,
            flags: flags.bits(),
        };
        let about = file_at(ino_in, fh_in, offset_in);
        let result = self.ask_file(about, &Request::CopyFileRange(copy));
        self.reply_written(Opcode::CopyFileRange, reply, length, result);
    }
}
