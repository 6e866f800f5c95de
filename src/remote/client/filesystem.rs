// SPDX-License-Identifier: MIT OR Apache-2.0
//! A remote directory towards fuser: each operation is one request to the server.
//!
//! The server's node numbers are the nodeids, and its handles the handles. Every answer is valid for no time at
//! all, as far as FUSE is concerned. On stock FUSE that is all: every question goes to the server, which has the one
//! truth for all who mount it, and only data stays in the page cache while a file is open, as long as size and time
//! of its last change stay the same (`FUSE_AUTO_INVAL_DATA`). The module keeps what the server allows to be
//! kept, until the server takes it back or is not heard of for its lease (`kept.rs`).
//!
//! Permissions are checked by this machine's kernel, by the modes and ACLs that the server answers: INIT
//! insists on POSIX ACLs, which imply `default_permissions`. Locks (`flock`, `fcntl`) are this machine's
//! kernel's, and hold among those who use this mount.
//!
//! A request blocks the thread that has taken it from the kernel until its answer is there; so as many
//! requests are on the way at once as the mount has threads.
//!
//! fuser can answer LOOKUP only with the nodeid as inode number: so attributes of entries, too, are valid for
//! no time at all, and GETATTR gives the right one. For the same reason READDIRPLUS is not offered.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileAttr, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request as FuseRequest, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::data::{Outcome, Question};
use super::questions::{Result, data, file, file_at, node, number, senseless};
use super::{About, Answer, Connection};
use crate::Kernel;
use crate::ebpf::Validity;
use crate::fs::Upcalls;
use crate::fs::kernel::{agree, left_to_the_kernel, writes};
use crate::fs::upcalls::Opcode;
use crate::remote::wire::message::{
    Attr, Caller, CopyFileRange, Create, Data, Empty, Entry, Fallocate, Flush, Link, Listxattr, Lookup,
    Lseek, Mkdir, Mknod, Open, Read, Release, Removexattr, Rename, Rmdir, SetAttr, Setxattr, Symlink, Unlink,
};
use crate::remote::wire::{
    Flags, Kind, MAX_PAYLOAD, Name, Request, Target, WireError, XattrName, XattrValue,
};
use crate::splice::Channel;

/// The server never uses a node's number for another one, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// The largest WRITE, and the largest READ, since the kernel counts pages for both: 256 pages of 4096 bytes
/// fit into a frame ([`MAX_PAYLOAD`]), whatever `fs.fuse.max_pages_limit` allows.
const MAX_WRITE: u32 = 1 << 20;

/// What one COPY_FILE_RANGE asks for, at most: nobody can interrupt it.
const MAX_COPY: u64 = 64 << 20;

/// A directory of a server as a FUSE file system; see the module's page.
#[derive(Debug)]
pub struct Remote {
    connection: Connection,
    /// For how long what is published holds, at most.
    valid: Validity,
    /// Where payload goes past this process.
    channel: Option<Channel>,
    upcalls: Arc<Upcalls>,
}

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

fn open_flags(flags: i32) -> FopenFlags {
    match writes(flags) {
        true => FopenFlags::empty(),
        // FLUSH is for errors of writing.
        false => FopenFlags::FOPEN_NOFLUSH,
    }
}

/// The attributes of an entry: fuser takes the nodeid from where the inode number belongs.
fn entry_attr(entry: &Entry) -> FileAttr {
    FileAttr {
        ino: INodeNo(entry.node),
        ..entry.attr.into()
    }
}

impl Remote {
    /// Serves what the server at the other end of this connection has.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            valid: Validity::For(Duration::ZERO),
            channel: None,
            upcalls: Arc::default(),
        }
    }

    /// The same; the kernel keeps what the server allows to be kept, for as long as `valid` says, at most. The
    /// [target](super::Target) has to have said so.
    #[must_use]
    pub fn keeping(connection: Connection, kernel: Kernel, valid: Validity) -> Self {
        connection.keep_in(kernel);
        Self {
            valid,
            ..Self::new(connection)
        }
    }

    /// The same; the payload of large READs goes from the socket to the application through this channel of the
    /// mount's device, where the module is. Each then has a connection to itself.
    #[must_use]
    pub fn through(self, channel: Channel) -> Self {
        Self {
            channel: Some(channel),
            ..self
        }
    }

    /// How often the kernel has asked.
    #[must_use]
    pub fn upcalls(&self) -> Arc<Upcalls> {
        Arc::clone(&self.upcalls)
    }

    /// The connection to the server.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn count(&self, opcode: Opcode) {
        self.upcalls.count(opcode);
    }

    /// The errno as fuser wants it, counted.
    fn refused(&self, opcode: Opcode, errno: Errno) -> FuseErrno {
        self.upcalls.count_error(opcode);
        FuseErrno::from_i32(errno as i32)
    }

    fn reply_entry(&self, opcode: Opcode, reply: ReplyEntry, result: Result<Entry>) {
        match result {
            Ok(entry) => reply.entry(&Duration::ZERO, &entry_attr(&entry), GENERATION),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn reply_attr(&self, opcode: Opcode, reply: ReplyAttr, result: Result<Attr>) {
        match result {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr.into()),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    /// Answers a request whose reply has no payload.
    fn empty(&self, opcode: Opcode, reply: ReplyEmpty, result: Result<Answer>) {
        match result {
            Ok(_) => reply.ok(),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn xattr(&self, opcode: Opcode, reply: ReplyXattr, room: u32, result: Result<Answer>) {
        let answer = match result {
            Ok(answer) => answer,
            Err(errno) => return reply.error(self.refused(opcode, errno)),
        };
        let answered = match room {
            0 => number(&answer, u32::MAX.into()).map(|size| (size, None)),
            _ => data(&answer, room).map(|data| (0, Some(data))),
        };
        match answered {
            Ok((_, Some(data))) => reply.data(data),
            Ok((size, None)) => reply.size(size),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn reply_written(&self, opcode: Opcode, reply: ReplyWrite, most: u64, result: Result<Answer>) {
        match result.and_then(|answer| number(&answer, most)) {
            Ok(size) => reply.written(size),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }
}

impl Filesystem for Remote {
    left_to_the_kernel!();

    fn init(&mut self, _req: &FuseRequest, config: &mut KernelConfig) -> io::Result<()> {
        self.count(Opcode::Init);
        // A node is an inode of the server's, whose target never changes.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS;
        agree(config, wanted)?;
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
        let result = name(leaf).and_then(|name| {
            self.connection
                .ask_entry(parent, &Request::Lookup(Lookup { name }), self.valid)
        });
        self.reply_entry(Opcode::Lookup, reply, result);
    }

    /// fuser calls it for each node of a BATCH_FORGET, too; the connection puts them together again.
    fn forget(&self, _req: &FuseRequest, ino: INodeNo, nlookup: u64) {
        self.count(Opcode::Forget);
        self.connection.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &FuseRequest, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Opcode::Getattr);
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
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(Into::into),
            mtime: mtime.map(Into::into),
            handle: fh.map(|fh| fh.0),
        };
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
            self.connection
                .ask_entry(parent, &Request::Mknod(mknod), self.valid)
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
            self.connection
                .ask_entry(parent, &Request::Mkdir(mkdir), self.valid)
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
            self.connection
                .ask_entry(parent, &Request::Symlink(symlink), self.valid)
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
        let result = name(newname).and_then(|name| {
            let link = Link {
                parent: newparent.0,
                name,
            };
            self.connection.ask_entry(ino, &Request::Link(link), self.valid)
        });
        self.reply_entry(Opcode::Link, reply, result);
    }

    fn open(&self, _req: &FuseRequest, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        match self
            .connection
            .ask_open(ino, &Request::Open(Open { flags: flags.0 }))
        {
            Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(flags.0)),
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
            self.connection.ask_create(parent, create, self.valid)
        });
        match result {
            Ok(created) => reply.created(
                &Duration::ZERO,
                &entry_attr(&created.entry),
                GENERATION,
                FileHandle(created.handle),
                open_flags(flags),
            ),
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
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Opcode::Read);
        // No READ is larger: see `MAX_WRITE`.
        let size = size.min(MAX_PAYLOAD);
        let about = file_at(ino, fh, offset);
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
        let result = self.connection.ask(&about, &Request::Write(Data(data)));
        self.reply_written(Opcode::Write, reply, data.len() as u64, result);
    }

    fn flush(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.count(Opcode::Flush);
        let flush = Request::Flush(Flush { owner: owner.0 });
        self.empty(Opcode::Flush, reply, self.connection.ask(&file(ino, fh), &flush));
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
        let owner = lock_owner.map(|owner| owner.0);
        let release = Request::Release(Release { owner });
        self.empty(
            Opcode::Release,
            reply,
            self.connection.ask(&file(ino, fh), &release),
        );
    }

    fn fsync(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsync);
        let about = About {
            flags: sync_flags(datasync),
            ..file(ino, fh)
        };
        self.empty(
            Opcode::Fsync,
            reply,
            self.connection.ask(&about, &Request::Fsync(Empty)),
        );
    }

    fn opendir(&self, _req: &FuseRequest, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Opendir);
        match self.connection.ask_open(ino, &Request::Opendir(Empty)) {
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
        let result = ruled(XattrName::new(attribute.as_bytes()))
            .and_then(|name| self.connection.ask_xattr(ino, name, size, self.valid));
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
        let fallocate = Request::Fallocate(Fallocate { length, mode });
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
        let about = file_at(ino, fh, offset.cast_unsigned());
        let found = self
            .connection
            .ask(&about, &Request::Lseek(Lseek { whence }))
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
        // Fewer bytes than asked for are as good as all, and come sooner.
        let length = len.min(MAX_COPY);
        let copy = CopyFileRange {
            to_node: ino_out.0,
            to_handle: fh_out.0,
            to_offset: offset_out,
            length,
            flags: flags.bits(),
        };
        let result = self
            .connection
            .ask(&file_at(ino_in, fh_in, offset_in), &Request::CopyFileRange(copy));
        self.reply_written(Opcode::CopyFileRange, reply, length, result);
    }
}
