// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system by path towards fuser: nodeids, counts, answers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::super::buf::FuseBufVec;
use super::super::channel::{Channel, Read, ReplyError};
use super::tree::Tree;
use super::{DirEntry, PathFilesystem, PathOptions, Result};
use crate::sys::stream;

/// A nodeid is never used twice, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// The inode number of a name that the kernel does not know yet.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);

/// Serves a [`PathFilesystem`] to fuser.
///
/// The locks are taken in the order of the fields; none but `names` is held while the file system works.
#[derive(Debug)]
pub struct Paths<F> {
    fs: F,
    channel: Channel,
    options: PathOptions,
    /// Exclusive while names change: nobody's path changes on the way to the file system.
    names: RwLock<()>,
    tree: Mutex<Tree>,
    /// By nodeid, what is open: fstat(2) does not say which, and a removed file has no path.
    open: Mutex<HashMap<u64, Vec<u64>>>,
    listings: Mutex<HashMap<u64, Arc<[DirEntry]>>>,
    last_listing: AtomicU64,
}

fn errno(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno as i32)
}

impl<F: PathFilesystem> Paths<F> {
    /// To be given to fuser by [`mount`](super::super::mount()).
    pub fn new(fs: F, channel: Channel, options: PathOptions) -> Self {
        Self {
            fs,
            channel,
            options,
            names: RwLock::new(()),
            tree: Mutex::new(Tree::new()),
            open: Mutex::new(HashMap::new()),
            listings: Mutex::new(HashMap::new()),
            last_listing: AtomicU64::new(0),
        }
    }

    fn path(&self, ino: INodeNo) -> Result<PathBuf> {
        self.tree.lock().path(ino.0).ok_or(Errno::ESTALE)
    }

    /// Of an open file: it may have been removed.
    fn open_path(&self, ino: INodeNo) -> PathBuf {
        self.tree.lock().path(ino.0).unwrap_or_default()
    }

    fn path_of(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf> {
        self.tree.lock().path_of(parent.0, name).ok_or(Errno::ESTALE)
    }

    /// What a name stands for, which the kernel is told with the answer.
    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        let attr = self.fs.getattr(&self.path_of(parent, name)?, None)?;
        let nodeid = self.tree.lock().look_up(parent.0, name).ok_or(Errno::ESTALE)?;
        Ok(FileAttr {
            ino: INodeNo(nodeid),
            ..attr
        })
    }

    /// A path, or an open file.
    fn place(&self, ino: INodeNo, fh: Option<FileHandle>) -> Result<(PathBuf, Option<u64>)> {
        let fh = fh.map(u64::from);
        match self.path(ino) {
            Ok(path) => Ok((path, fh)),
            Err(error) => {
                let any = || self.open.lock().get(&ino.0)?.last().copied();
                let fh = fh.or_else(any).ok_or(error)?;
                Ok((PathBuf::new(), Some(fh)))
            }
        }
    }

    fn opened(&self, ino: INodeNo, fh: u64) {
        self.open.lock().entry(ino.0).or_default().push(fh);
    }

    fn released(&self, ino: INodeNo, fh: u64) {
        let mut open = self.open.lock();
        if let Some(all) = open.get_mut(&ino.0) {
            if let Some(at) = all.iter().position(|one| *one == fh) {
                all.swap_remove(at);
            }
            if all.is_empty() {
                open.remove(&ino.0);
            }
        }
    }

    fn attr(&self, ino: INodeNo, fh: Option<FileHandle>) -> Result<FileAttr> {
        let (path, fh) = self.place(ino, fh)?;
        let attr = self.fs.getattr(&path, fh)?;
        Ok(FileAttr { ino, ..attr })
    }

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

    fn listing(&self, ino: INodeNo, fh: u64, offset: u64) -> Result<Arc<[DirEntry]>> {
        // From the beginning: what is there now.
        if offset > 0
            && let Some(listing) = self.listings.lock().get(&fh)
        {
            return Ok(Arc::clone(listing));
        }
        let _names = self.names.read();
        let listing: Arc<[DirEntry]> = self.fs.readdir(&self.path(ino)?)?.into();
        self.listings.lock().insert(fh, Arc::clone(&listing));
        Ok(listing)
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
        Ok(())
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
        let set = || {
            if mode.is_some() || uid.is_some() || gid.is_some() || atime.is_some() || mtime.is_some() {
                return Err(Errno::ENOSYS);
            }
            if let Some(size) = size {
                let (path, fh) = self.place(ino, fh)?;
                self.fs.truncate(&path, fh, size)?;
            }
            self.attr(ino, fh)
        };
        self.attr_reply(set(), reply);
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _names = self.names.read();
        let made = self
            .path_of(parent, name)
            .and_then(|path| self.fs.mkdir(&path, mode & !umask))
            .and_then(|()| self.look_up(parent, name));
        self.entry(made, reply);
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
        match self.path(ino).and_then(|path| self.fs.open(&path, flags)) {
            Ok(fh) => {
                self.opened(ino, fh);
                reply.opened(FileHandle(fh), FopenFlags::empty());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        _req: &Request,
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
            let fh = self.fs.create(&path, mode & !umask, OpenFlags(flags))?;
            match self.look_up(parent, name) {
                Ok(attr) => Ok((fh, attr)),
                Err(error) => {
                    self.fs.release(&path, fh);
                    Err(error)
                }
            }
        };
        match create() {
            Ok((fh, attr)) => {
                self.opened(attr.ino, fh);
                let fh = FileHandle(fh);
                reply.created(&self.options.ttl, &attr, GENERATION, fh, FopenFlags::empty());
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
        match written.and_then(|size| u32::try_from(size).map_err(|_| Errno::EIO)) {
            Ok(size) => reply.written(size),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
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

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let fh = self.last_listing.fetch_add(1, Ordering::Relaxed);
        reply.opened(FileHandle(fh), FopenFlags::empty());
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
}
