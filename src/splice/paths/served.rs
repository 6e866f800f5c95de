// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of a file system by path while it is served: names, open files, listings.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::{FileAttr, FileHandle, FileType, FopenFlags, INodeNo, TimeOrNow};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::super::channel::Channel;
use super::tree::Tree;
use super::{DirEntry, PathFilesystem, PathOptions, Result};

/// Serves a [`PathFilesystem`] to fuser.
///
/// The locks are taken in the order of the fields; none but `names` is held while the file system works.
#[derive(Debug)]
pub struct Paths<F> {
    pub(super) fs: F,
    pub(super) channel: Channel,
    pub(super) options: PathOptions,
    /// Exclusive while names change: nobody's path changes on the way to the file system.
    pub(super) names: RwLock<()>,
    pub(super) tree: Mutex<Tree>,
    /// By nodeid, what is open: fstat(2) does not say which, and a removed file has no path.
    open: Mutex<HashMap<u64, Vec<u64>>>,
    pub(super) listings: Mutex<HashMap<u64, Arc<[DirEntry]>>>,
    last_listing: AtomicU64,
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

    pub(super) fn path(&self, ino: INodeNo) -> Result<PathBuf> {
        self.tree.lock().path(ino.0).ok_or(Errno::ESTALE)
    }

    /// Of an open file: it may have been removed.
    pub(super) fn open_path(&self, ino: INodeNo) -> PathBuf {
        self.tree.lock().path(ino.0).unwrap_or_default()
    }

    pub(super) fn path_of(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf> {
        self.tree.lock().path_of(parent.0, name).ok_or(Errno::ESTALE)
    }

    /// What a name stands for, which the kernel is told with the answer.
    pub(super) fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        let attr = self.fs.getattr(&self.path_of(parent, name)?, None)?;
        let linked = attr.nlink > 1 && attr.ino.0 != 0 && attr.kind != FileType::Directory;
        let inode = linked.then_some(attr.ino.0);
        let nodeid = self
            .tree
            .lock()
            .look_up(parent.0, name, inode)
            .ok_or(Errno::ESTALE)?;
        Ok(FileAttr {
            ino: INodeNo(nodeid),
            ..attr
        })
    }

    /// A path, or an open file.
    pub(super) fn place(&self, ino: INodeNo, fh: Option<FileHandle>) -> Result<(PathBuf, Option<u64>)> {
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

    pub(super) fn opened(&self, ino: INodeNo, fh: u64) {
        self.open.lock().entry(ino.0).or_default().push(fh);
    }

    /// For the answer to the OPEN or CREATE of a file.
    pub(super) fn open_flags(&self, path: &Path, fh: u64) -> FopenFlags {
        match self.fs.withholds(path, fh) {
            true => self.channel.withholding(),
            false => FopenFlags::empty(),
        }
    }

    pub(super) fn released(&self, ino: INodeNo, fh: u64) {
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

    pub(super) fn attr(&self, ino: INodeNo, fh: Option<FileHandle>) -> Result<FileAttr> {
        let (path, fh) = self.place(ino, fh)?;
        let attr = self.fs.getattr(&path, fh)?;
        Ok(FileAttr { ino, ..attr })
    }

    /// What a SETATTR changes, in the order of libfuse.
    pub(super) fn set(&self, ino: INodeNo, fh: Option<FileHandle>, changes: Changes) -> Result<FileAttr> {
        let (path, any_fh) = self.place(ino, fh)?;
        if let Some(mode) = changes.mode {
            self.fs.chmod(&path, any_fh, mode)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.fs.chown(&path, any_fh, changes.uid, changes.gid)?;
        }
        if let Some(size) = changes.size {
            self.fs.truncate(&path, any_fh, size)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            self.fs.utimens(&path, any_fh, changes.atime, changes.mtime)?;
        }
        self.attr(ino, fh)
    }

    /// A file that has a name gets another one.
    pub(super) fn link_to(&self, ino: INodeNo, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        self.fs.link(&self.path(ino)?, &self.path_of(parent, name)?)?;
        let attr = self.attr(ino, None)?;
        match self.tree.lock().link(ino.0, (parent.0, name)) {
            true => Ok(attr),
            false => Err(Errno::ESTALE),
        }
    }

    /// A number for an open directory.
    pub(super) fn next_listing(&self) -> u64 {
        self.last_listing.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn listing(&self, ino: INodeNo, fh: u64, offset: u64) -> Result<Arc<[DirEntry]>> {
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

/// What SETATTR sets.
#[derive(Debug)]
pub(super) struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
}
