// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stack towards fuser: counts, calls, answers.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::{Entry, Result, SetAttr, Stack, XattrReply};
use crate::abi::NodeId;
use crate::fs::kernel::{agree, left_to_the_kernel, locks_left_to_the_kernel};
use crate::fs::upcalls::Opcode;
use crate::sys::creds::Caller;

/// A nodeid is never used twice, so one generation is enough.
const GENERATION: Generation = Generation(0);

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

fn id(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// The attributes of an entry: fuser takes the nodeid from where the inode number belongs.
fn entry_attr(entry: &Entry) -> FileAttr {
    FileAttr {
        ino: INodeNo(entry.node.0),
        ..entry.attr
    }
}

/// What an entry without a node is filled with; its nodeid 0 means that the name does not exist.
const NO_ATTR: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

impl Stack {
    fn count(&self, opcode: Opcode) {
        self.upcalls.count(opcode);
    }

    /// The errno as fuser wants it, counted.
    fn refused(&self, opcode: Opcode, errno: Errno) -> FuseErrno {
        self.upcalls.count_error(opcode);
        FuseErrno::from_i32(errno as i32)
    }

    fn xattr(&self, opcode: Opcode, reply: ReplyXattr, result: Result<XattrReply>) {
        match result {
            Ok(XattrReply::Size(size)) => reply.size(size),
            Ok(XattrReply::Data(data)) => reply.data(&data),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn empty(&self, opcode: Opcode, reply: ReplyEmpty, result: Result<()>) {
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    /// Answers with an entry whose attributes the kernel asks for again: their inode number is not the right
    /// one (see the module's page).
    fn reply_entry(&self, opcode: Opcode, reply: ReplyEntry, result: Result<Entry>) {
        match result {
            Ok(entry) => reply.entry_with_ttls(
                &Duration::ZERO,
                &self.options.entry_timeout,
                &entry_attr(&entry),
                GENERATION,
            ),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn reply_attr(&self, opcode: Opcode, reply: ReplyAttr, result: Result<FileAttr>) {
        match result {
            Ok(attr) => reply.attr(&self.options.attr_timeout, &attr),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }
}

impl Filesystem for Stack {
    left_to_the_kernel!();
    locks_left_to_the_kernel!();

    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.count(Opcode::Init);
        // A node is an inode of the source, whose target never changes: another symlink is another node.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS;
        agree(config, wanted)?;
        self.passthrough = self.options.passthrough
            && !self.options.keep_cache
            && config.set_max_stack_depth(self.depth).is_ok()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        Ok(())
    }

    fn destroy(&mut self) {
        self.count(Opcode::Destroy);
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Lookup);
        match Stack::lookup(self, id(parent), name) {
            Err(Errno::ENOENT) if !self.options.entry_timeout.is_zero() => {
                reply.entry_with_ttls(&Duration::ZERO, &self.options.entry_timeout, &NO_ATTR, GENERATION);
            }
            result => self.reply_entry(Opcode::Lookup, reply, result),
        }
    }

    /// fuser calls it for each node of a BATCH_FORGET, too, whose own type it keeps to itself; so a batch
    /// counts as that many FORGETs.
    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.count(Opcode::Forget);
        Stack::forget(self, id(ino), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Opcode::Getattr);
        self.reply_attr(Opcode::Getattr, reply, Stack::getattr(self, id(ino)));
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
        self.count(Opcode::Setattr);
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            fh,
        };
        self.reply_attr(Opcode::Setattr, reply, Stack::setattr(self, id(ino), &set));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Opcode::Readlink);
        match Stack::readlink(self, id(ino)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(self.refused(Opcode::Readlink, errno)),
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
        self.count(Opcode::Mknod);
        self.reply_entry(
            Opcode::Mknod,
            reply,
            Stack::mknod(self, id(parent), name, mode, umask, rdev, caller(req)),
        );
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.count(Opcode::Mkdir);
        self.reply_entry(
            Opcode::Mkdir,
            reply,
            Stack::mkdir(self, id(parent), name, mode, umask, caller(req)),
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Unlink);
        self.empty(Opcode::Unlink, reply, Stack::unlink(self, id(parent), name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Rmdir);
        self.empty(Opcode::Rmdir, reply, Stack::rmdir(self, id(parent), name));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.count(Opcode::Symlink);
        self.reply_entry(
            Opcode::Symlink,
            reply,
            Stack::symlink(self, id(parent), name, target, caller(req)),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
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
        self.empty(
            opcode,
            reply,
            Stack::rename(self, id(parent), name, id(newparent), newname, flags, caller(req)),
        );
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Link);
        self.reply_entry(
            Opcode::Link,
            reply,
            Stack::link(self, id(ino), id(newparent), newname),
        );
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        match Stack::open(self, id(ino), flags.0, |fd| reply.open_backing(fd)) {
            Ok(opened) => match &opened.backing {
                Some(backing) => reply.opened_passthrough(opened.fh, opened.flags, backing),
                None => reply.opened(opened.fh, opened.flags),
            },
            Err(errno) => reply.error(self.refused(Opcode::Open, errno)),
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
        self.count(Opcode::Create);
        let register = |fd: std::os::fd::BorrowedFd<'_>| reply.open_backing(fd);
        let (entry, opened) =
            match Stack::create(self, id(parent), name, mode, umask, flags, caller(req), register) {
                Ok(created) => created,
                Err(errno) => return reply.error(self.refused(Opcode::Create, errno)),
            };
        // One timeout for name and attributes; the attributes' must be none.
        let (ttl, attr) = (Duration::ZERO, entry_attr(&entry));
        match &opened.backing {
            Some(backing) => {
                reply.created_passthrough(&ttl, &attr, GENERATION, opened.fh, opened.flags, backing);
            }
            None => reply.created(&ttl, &attr, GENERATION, opened.fh, opened.flags),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Opcode::Read);
        let mut reply = Some(reply);
        let result = Stack::read(self, fh, offset, size, |data| {
            self.read_came_up(NodeId(ino.0));
            if let Some(reply) = reply.take() {
                reply.data(data);
            }
        });
        if let (Err(errno), Some(reply)) = (result, reply) {
            reply.error(self.refused(Opcode::Read, errno));
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Opcode::Write);
        match Stack::write(self, fh, offset, data, write_flags, flags.0) {
            Ok(size) => reply.written(size),
            Err(errno) => reply.error(self.refused(Opcode::Write, errno)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.count(Opcode::Flush);
        self.empty(Opcode::Flush, reply, Stack::flush(self, fh));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Release);
        self.empty(Opcode::Release, reply, Stack::release(self, fh));
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsync);
        self.empty(Opcode::Fsync, reply, Stack::fsync(self, fh, datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Opendir);
        match Stack::opendir(self, id(ino)) {
            Ok(opened) => reply.opened(opened.fh, opened.flags),
            Err(errno) => reply.error(self.refused(Opcode::Opendir, errno)),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Opcode::Readdir);
        let result = Stack::readdir(self, fh, offset, |entry| {
            reply.add(INodeNo(entry.ino), entry.next, entry.kind, entry.name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(self.refused(Opcode::Readdir, errno)),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Releasedir);
        self.empty(Opcode::Releasedir, reply, Stack::releasedir(self, fh));
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsyncdir);
        self.empty(Opcode::Fsyncdir, reply, Stack::fsyncdir(self, fh, datasync));
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Opcode::Statfs);
        match Stack::statfs(self, id(ino)) {
            Ok(fs) => reply.statfs(
                fs.blocks(),
                fs.blocks_free(),
                fs.blocks_available(),
                fs.files(),
                fs.files_free(),
                fs.block_size() as u32,
                fs.name_max() as u32,
                fs.fragment_size() as u32,
            ),
            Err(errno) => reply.error(self.refused(Opcode::Statfs, errno)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Setxattr);
        self.empty(
            Opcode::Setxattr,
            reply,
            Stack::setxattr(self, id(ino), name, value, flags, caller(req)),
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Opcode::Getxattr);
        self.xattr(
            Opcode::Getxattr,
            reply,
            Stack::getxattr(self, id(ino), name, size),
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Opcode::Listxattr);
        self.xattr(
            Opcode::Listxattr,
            reply,
            Stack::listxattr(self, id(ino), size, caller(req)),
        );
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Removexattr);
        self.empty(
            Opcode::Removexattr,
            reply,
            Stack::removexattr(self, id(ino), name),
        );
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Opcode::Ioctl);
        match Stack::ioctl(self, id(ino), cmd, in_data) {
            Ok(data) => reply.ioctl(0, &data),
            Err(errno) => reply.error(self.refused(Opcode::Ioctl, errno)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Fallocate);
        self.empty(
            Opcode::Fallocate,
            reply,
            Stack::fallocate(self, fh, offset, length, mode),
        );
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Opcode::Lseek);
        match Stack::lseek(self, fh, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(self.refused(Opcode::Lseek, errno)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Opcode::CopyFileRange);
        match Stack::copy_file_range(self, (fh_in, offset_in), (fh_out, offset_out), len, flags.bits()) {
            Ok(size) => reply.written(size),
            Err(errno) => reply.error(self.refused(Opcode::CopyFileRange, errno)),
        }
    }
}
