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
//! insists on POSIX ACLs, which imply `default_permissions`. Locks (`flock`, `fcntl`) are the server's, or, if that is
//! wanted, this machine's kernel's, which hold among those who use this mount.
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
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request as FuseRequest, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::data::{Outcome, Question};
use super::locks::{Locks, Pages, Wish};
use super::questions::{Result, data, file, file_at, node, number, senseless};
use super::spool::{Ahead, Changing};
use super::writeback::WriteBack;
use super::{About, Answer, Connection, Spool};
use crate::Kernel;
use crate::ebpf::Validity;
use crate::fs::Upcalls;
use crate::fs::kernel::{agree, left_to_the_kernel, writes};
use crate::fs::upcalls::Opcode;
use crate::remote::wire::message::{
    Attr, Caller, CopyFileRange, Create, Data, Empty, Entry, Fallocate, Flush, Link, Listxattr, Lock,
    LockKind, LockRange, Lookup, Lseek, Mkdir, Mknod, Open, Read, Release, Removexattr, Rename, Rmdir,
    SetAttr, Setxattr, Symlink, Unlink,
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
    /// First, as it ends while the server can still be asked.
    spool: Option<(Arc<Spool>, Ahead)>,
    /// Before the connection, too.
    writeback: Option<WriteBack>,
    connection: Arc<Connection>,
    /// For how long what is published holds, at most.
    valid: Validity,
    /// Where payload goes past this process.
    channel: Option<Channel>,
    upcalls: Arc<Upcalls>,
    /// Behind the connection: who waits for it ends with it.
    locks: Option<Shared>,
}

/// Locks that the server has.
#[derive(Debug)]
struct Shared {
    locks: Locks,
    /// The kernel says FLUSH wherever a lock may go with it, whatever it was told of the file.
    flushes: bool,
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
            spool: None,
            writeback: None,
            connection: Arc::new(connection),
            valid: Validity::For(Duration::ZERO),
            channel: None,
            upcalls: Arc::default(),
            locks: None,
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

    /// The same; what is read is kept in this spool. Where the kernel keeps nothing it is asked for
    /// each time whether that is still right, unless the [target](super::Target) says `keeps`.
    #[must_use]
    pub fn spooling(mut self, spool: Arc<Spool>) -> Self {
        self.connection.kept().spool.set(&spool);
        let ahead = Ahead::start(&spool, &self.connection);
        self.spool = Some((spool, ahead));
        self
    }

    /// The same; write(2) does not wait for the server: fsync(2) and close(2) do, and tell of errors.
    #[must_use]
    pub fn writing_back(mut self) -> Self {
        self.writeback = WriteBack::start(&self.connection);
        self
    }

    /// What was written to a node is on the server. Whether there was anything to wait for.
    fn settle(&self, ino: INodeNo) -> bool {
        let writeback = self.writeback.as_ref();
        writeback.is_some_and(|writeback| writeback.settle(ino.0))
    }

    /// What was written to any node is.
    fn settle_all(&self) {
        if let Some(writeback) = &self.writeback {
            writeback.settle_all();
        }
    }

    /// The same for one node, and what an open file has not been told of yet.
    fn finish(&self, ino: INodeNo, fh: FileHandle) -> Result<()> {
        let writeback = self.writeback.as_ref();
        writeback.map_or(Ok(()), |writeback| writeback.finish(ino.0, fh.0))
    }

    /// An entry as it is when what was written to its node is on the server.
    fn settled(&self, entry: Entry) -> Result<Entry> {
        let writeback = self.writeback.as_ref();
        if !writeback.is_some_and(|writeback| writeback.settle(entry.node)) {
            return Ok(entry);
        }
        let attr = self
            .connection
            .ask_attr(INodeNo(entry.node), &Request::Getattr(Empty))?;
        Ok(Entry { attr, ..entry })
    }

    /// The same; locks of `flock` and `fcntl` are the server's, so that they exclude all who use it. Without, they are
    /// the kernel's, of this mount alone. Whoever gets one sees what others have written only if the kernel can be
    /// made to [give up](Self::pages) what it keeps.
    #[must_use]
    pub fn sharing_locks(self, kernel: &Kernel) -> Self {
        let locks = Locks::new(self.connection.asks(), Arc::clone(&self.upcalls));
        Self {
            locks: Some(Shared {
                locks,
                flushes: kernel.device().is_some(),
            }),
            ..self
        }
    }

    /// If locks are the server's: what gives up pages when somebody gets one.
    #[must_use]
    pub fn pages(&self) -> Option<Pages> {
        self.locks.as_ref().map(|shared| shared.locks.pages())
    }

    /// How a file that was opened with these flags is to be used.
    fn opened(&self, node: u64, handle: u64, flags: i32) -> FopenFlags {
        if let Some(writeback) = self.writeback.as_ref().filter(|_| writes(flags)) {
            writeback.opened(node, handle);
        }
        // FLUSH is for errors of writing, and for locks.
        if writes(flags) {
            if let Some(shared) = &self.locks {
                shared.locks.writes(handle);
            }
            return FopenFlags::empty();
        }
        match &self.locks {
            Some(Shared { flushes: false, .. }) => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_NOFLUSH,
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

    /// Data of a node is being changed, for as long as this is held.
    fn changing(&self, ino: INodeNo) -> Option<Changing> {
        self.spool.as_ref().map(|(spool, _)| spool.changing(ino.0))
    }

    /// The answer to a READ, if the spool has it, or is to have it.
    fn read_spooled(&self, about: &About, size: u32, flags: OpenFlags) -> Option<Vec<u8>> {
        let (spool, ahead) = self.spool.as_ref()?;
        if flags.0 & libc::O_DIRECT != 0 {
            return None;
        }
        let read = spool.read(&self.connection, Some(ahead), about, size)?;
        if !read.keep {
            let request = Request::Read(Read { size });
            self.connection.kept().not_to_be_kept(about, &request);
        }
        Some(read.bytes)
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
    fn empty<T>(&self, opcode: Opcode, reply: ReplyEmpty, result: Result<T>) {
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
        let result = name(leaf).and_then(|name| {
            self.connection
                .ask_entry(parent, &Request::Lookup(Lookup { name }), self.valid)
        });
        let result = result.and_then(|entry| self.settled(entry));
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
            self.connection.ask_entry(ino, &Request::Link(link), self.valid)
        });
        self.reply_entry(Opcode::Link, reply, result);
    }

    fn open(&self, _req: &FuseRequest, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        self.settle(ino);
        let _changing = (flags.0 & libc::O_TRUNC != 0).then(|| self.changing(ino));
        match self
            .connection
            .ask_open(ino, &Request::Open(Open { flags: flags.0 }))
        {
            Ok(opened) => {
                let how = self.opened(ino.0, opened.handle, flags.0);
                reply.opened(FileHandle(opened.handle), how);
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
            self.connection.ask_create(parent, create, self.valid)
        });
        match result {
            Ok(created) => {
                // It may have been there, and be empty now.
                drop(self.changing(INodeNo(created.entry.node)));
                let how = self.opened(created.entry.node, created.handle, flags);
                reply.created(
                    &Duration::ZERO,
                    &entry_attr(&created.entry),
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
        let about = file_at(ino, fh, offset);
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
        let ask = || self.connection.ask(&file(ino, fh), &flush).map(drop);
        let flushed = match &self.locks {
            Some(shared) => shared.locks.flush(ino, fh, owner.0, ask),
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
        let release = Request::Release(Release { owner });
        let ask = || self.connection.ask(&file(ino, fh), &release).map(drop);
        let released = match &self.locks {
            Some(shared) => shared.locks.release(ino, fh, ask),
            None => ask(),
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
                self.connection
                    .ask_lock(&file(ino, fh), LockRange { owner, lock })
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
            (Some(shared), Some(lock)) => {
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
        let about = About {
            flags: sync_flags(datasync),
            ..file(ino, fh)
        };
        let finished = self.finish(ino, fh);
        let result = self.connection.ask(&about, &Request::Fsync(Empty));
        self.empty(Opcode::Fsync, reply, finished.and(result));
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
        let result = self
            .connection
            .ask(&file_at(ino_in, fh_in, offset_in), &Request::CopyFileRange(copy));
        self.reply_written(Opcode::CopyFileRange, reply, length, result);
    }
}
