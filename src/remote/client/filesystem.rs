// SPDX-License-Identifier: MIT OR Apache-2.0
//! A remote directory towards fuser: each operation is one request to the server.
//!
//! The server's node numbers are the nodeids, and its handles the handles. Nothing is kept: every answer is
//! valid for no time at all, so every question goes to the server, which has the one truth for all who
//! mount it. Only data stays in the page cache while a file is open, as long as size and time of its last
//! change stay the same (`FUSE_AUTO_INVAL_DATA`), and goes at the next open.
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
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileAttr, FileHandle, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request as FuseRequest, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use tracing::{debug, warn};

use super::{About, Answer, Connection};
use crate::fs::Upcalls;
use crate::fs::upcalls::Opcode;
use crate::remote::wire::message::{
    Attr, Caller, CopyFileRange, Create, Created, Data, Empty, Entry, Fallocate, Flush, Getxattr, Link,
    Listing, Listxattr, Lookup, Lseek, Mkdir, Mknod, Open, Opened, Read, Readdir, Release, Removexattr,
    Rename, Rmdir, SetAttr, Setxattr, Statfs, Symlink, Unlink,
};
use crate::remote::wire::{
    Flags, Kind, MAX_PAYLOAD, Name, Reply, Request, Target, WireError, XattrName, XattrValue,
};

/// The server never uses a node's number for another one, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// The largest WRITE, and the largest READ, since the kernel counts pages for both: 256 pages of 4096 bytes
/// fit into a frame ([`MAX_PAYLOAD`]), whatever `fs.fuse.max_pages_limit` allows.
const MAX_WRITE: u32 = 1 << 20;

/// What one COPY_FILE_RANGE asks for, at most: nobody can interrupt it.
const MAX_COPY: u64 = 64 << 20;

/// What one READDIR asks for: as much as glibc's readdir(3) does. fuser does not say for how much there is
/// room; what there is none for is asked for again.
const LISTING: u32 = 32 << 10;

type Result<T> = std::result::Result<T, Errno>;

/// A directory of a server as a FUSE file system; see the module's page.
#[derive(Debug)]
pub struct Remote {
    connection: Connection,
    upcalls: Arc<Upcalls>,
}

fn caller(req: &FuseRequest) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

fn node(ino: INodeNo) -> About {
    About {
        node: ino.0,
        ..About::default()
    }
}

fn file(ino: INodeNo, fh: FileHandle) -> About {
    About {
        node: ino.0,
        handle: fh.0,
        ..About::default()
    }
}

fn file_at(ino: INodeNo, fh: FileHandle, offset: u64) -> About {
    About {
        offset,
        ..file(ino, fh)
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

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
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

/// An answer that makes no sense, and what the caller gets for it.
fn senseless(kind: Kind, reason: &str) -> Errno {
    warn!(?kind, reason, "the server's answer makes no sense");
    Errno::EIO
}

/// The number in an answer, which is at most `most`.
fn number(answer: &Answer, most: u64) -> Result<u32> {
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
fn data(answer: &Answer, most: u32) -> Result<&[u8]> {
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

impl Remote {
    /// Serves what the server at the other end of this connection has.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            upcalls: Arc::default(),
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

    fn ask(&self, about: &About, request: &Request<'_>) -> Result<Answer> {
        self.connection.call(about, request).map_err(|errno| match errno {
            // To the kernel it means that it must never ask again, and for some requests that all is well.
            Errno::ENOSYS => Errno::EOPNOTSUPP,
            errno => errno,
        })
    }

    fn ask_entry(&self, parent: INodeNo, request: &Request<'_>) -> Result<Entry> {
        let answer = self.ask(&node(parent), request)?;
        let entry = meaning(&answer, |reply| match reply {
            Reply::Lookup(entry) | Reply::Mknod(entry) | Reply::Mkdir(entry) => Some(entry),
            Reply::Symlink(entry) | Reply::Link(entry) => Some(entry),
            _ => None,
        })?;
        // To the kernel, 0 would be a name that does not exist.
        match entry.node {
            0 => Err(senseless(answer.header.kind, "its node is 0")),
            _ => Ok(entry),
        }
    }

    fn ask_attr(&self, ino: INodeNo, request: &Request<'_>) -> Result<Attr> {
        let answer = self.ask(&node(ino), request)?;
        meaning(&answer, |reply| match reply {
            Reply::Getattr(attr) | Reply::Setattr(attr) => Some(attr),
            _ => None,
        })
    }

    fn ask_open(&self, ino: INodeNo, request: &Request<'_>) -> Result<Opened> {
        let answer = self.ask(&node(ino), request)?;
        meaning(&answer, |reply| match reply {
            Reply::Open(opened) | Reply::Opendir(opened) => Some(opened),
            _ => None,
        })
    }

    fn ask_create(&self, parent: INodeNo, create: Create) -> Result<Created> {
        let answer = self.ask(&node(parent), &Request::Create(create))?;
        let created = meaning(&answer, |reply| match reply {
            Reply::Create(created) => Some(created),
            _ => None,
        })?;
        match created.entry.node {
            0 => Err(senseless(Kind::Create, "its node is 0")),
            _ => Ok(created),
        }
    }

    fn ask_listing(&self, about: &About) -> Result<Listing> {
        let answer = self.ask(about, &Request::Readdir(Readdir { size: LISTING }))?;
        meaning(&answer, |reply| match reply {
            Reply::Readdir(listing) => Some(listing),
            _ => None,
        })
    }

    fn ask_statfs(&self, ino: INodeNo) -> Result<Statfs> {
        let answer = self.ask(&node(ino), &Request::Statfs(Empty))?;
        meaning(&answer, |reply| match reply {
            Reply::Statfs(statfs) => Some(statfs),
            _ => None,
        })
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
    fn init(&mut self, _req: &FuseRequest, config: &mut KernelConfig) -> io::Result<()> {
        self.count(Opcode::Init);
        // Without these two nobody would check permissions, and ACLs would not be inherited.
        let needed = InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
        if let Err(missing) = config.add_capabilities(needed) {
            warn!(?missing, "the kernel's FUSE lacks what a safe mount needs");
            return Err(Errno::EOPNOTSUPP.into());
        }
        let wanted =
            InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_AUTO_INVAL_DATA;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                debug!(?flag, "not offered by the kernel");
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
        let result = name(leaf).and_then(|name| self.ask_entry(parent, &Request::Lookup(Lookup { name })));
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
            self.ask_attr(ino, &Request::Getattr(Empty)),
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
        self.reply_attr(Opcode::Setattr, reply, self.ask_attr(ino, &Request::Setattr(set)));
    }

    fn readlink(&self, _req: &FuseRequest, ino: INodeNo, reply: ReplyData) {
        self.count(Opcode::Readlink);
        let result = self.ask(&node(ino), &Request::Readlink(Empty));
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
            self.ask_entry(parent, &Request::Mknod(mknod))
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
            self.ask_entry(parent, &Request::Mkdir(mkdir))
        });
        self.reply_entry(Opcode::Mkdir, reply, result);
    }

    fn unlink(&self, _req: &FuseRequest, parent: INodeNo, leaf: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Unlink);
        let result = name(leaf).and_then(|name| self.ask(&node(parent), &Request::Unlink(Unlink { name })));
        self.empty(Opcode::Unlink, reply, result);
    }

    fn rmdir(&self, _req: &FuseRequest, parent: INodeNo, leaf: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Rmdir);
        let result = name(leaf).and_then(|name| self.ask(&node(parent), &Request::Rmdir(Rmdir { name })));
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
            self.ask_entry(parent, &Request::Symlink(symlink))
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
            self.ask(&node(parent), &Request::Rename(rename))
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
            self.ask_entry(ino, &Request::Link(link))
        });
        self.reply_entry(Opcode::Link, reply, result);
    }

    fn open(&self, _req: &FuseRequest, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        match self.ask_open(ino, &Request::Open(Open { flags: flags.0 })) {
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
            self.ask_create(parent, create)
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
        _req: &FuseRequest,
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
        let result = self.ask(&file_at(ino, fh, offset), &Request::Read(Read { size }));
        match result
            .as_ref()
            .map_err(|errno| *errno)
            .and_then(|answer| data(answer, size))
        {
            Ok(data) => reply.data(data),
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
        let result = self.ask(&about, &Request::Write(Data(data)));
        self.reply_written(Opcode::Write, reply, data.len() as u64, result);
    }

    fn flush(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.count(Opcode::Flush);
        let flush = Request::Flush(Flush { owner: owner.0 });
        self.empty(Opcode::Flush, reply, self.ask(&file(ino, fh), &flush));
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
        self.empty(Opcode::Release, reply, self.ask(&file(ino, fh), &release));
    }

    fn fsync(&self, _req: &FuseRequest, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsync);
        let about = About {
            flags: sync_flags(datasync),
            ..file(ino, fh)
        };
        self.empty(Opcode::Fsync, reply, self.ask(&about, &Request::Fsync(Empty)));
    }

    fn opendir(&self, _req: &FuseRequest, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Opendir);
        match self.ask_open(ino, &Request::Opendir(Empty)) {
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
        let listing = match self.ask_listing(&file_at(ino, fh, offset)) {
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
        let result = self.ask(&file(ino, fh), &Request::Releasedir(Empty));
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
            self.ask(&about, &Request::Fsyncdir(Empty)),
        );
    }

    fn statfs(&self, _req: &FuseRequest, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Opcode::Statfs);
        match self.ask_statfs(ino) {
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
            self.ask(&node(ino), &Request::Setxattr(setxattr))
        });
        self.empty(Opcode::Setxattr, reply, result);
    }

    fn getxattr(&self, _req: &FuseRequest, ino: INodeNo, attribute: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Opcode::Getxattr);
        let result = ruled(XattrName::new(attribute.as_bytes())).and_then(|name| {
            let getxattr = Getxattr { name, room: size };
            self.ask(&node(ino), &Request::Getxattr(getxattr))
        });
        self.xattr(Opcode::Getxattr, reply, size, result);
    }

    fn listxattr(&self, req: &FuseRequest, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Opcode::Listxattr);
        let listxattr = Listxattr {
            room: size,
            caller: caller(req),
        };
        let result = self.ask(&node(ino), &Request::Listxattr(listxattr));
        self.xattr(Opcode::Listxattr, reply, size, result);
    }

    fn removexattr(&self, _req: &FuseRequest, ino: INodeNo, attribute: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Removexattr);
        let result = ruled(XattrName::new(attribute.as_bytes()))
            .and_then(|name| self.ask(&node(ino), &Request::Removexattr(Removexattr { name })));
        self.empty(Opcode::Removexattr, reply, result);
    }

    /// The kernel has checked: ENOSYS tells it never to ask.
    fn access(&self, _req: &FuseRequest, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.count(Opcode::Access);
        reply.error(FuseErrno::ENOSYS);
    }

    /// Locks are the kernel's: ENOSYS leaves them there.
    fn getlk(
        &self,
        _req: &FuseRequest,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        self.count(Opcode::Getlk);
        reply.error(FuseErrno::ENOSYS);
    }

    /// Locks are the kernel's: ENOSYS leaves them there.
    fn setlk(
        &self,
        _req: &FuseRequest,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.count(if sleep { Opcode::Setlkw } else { Opcode::Setlk });
        reply.error(FuseErrno::ENOSYS);
    }

    /// Blocks can be mapped on a block device only, and a directory is none.
    fn bmap(&self, _req: &FuseRequest, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        self.count(Opcode::Bmap);
        reply.error(FuseErrno::ENOSYS);
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

    /// Regular files are always ready, and pipes and devices are the kernel's own: ENOSYS says so for good.
    fn poll(
        &self,
        _req: &FuseRequest,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Opcode::Poll);
        reply.error(FuseErrno::ENOSYS);
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
        let result = self.ask(&file_at(ino, fh, offset), &fallocate);
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
        let result = self.ask(&file_at(ino_in, fh_in, offset_in), &Request::CopyFileRange(copy));
        self.reply_written(Opcode::CopyFileRange, reply, length, result);
    }
}
