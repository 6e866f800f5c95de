// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system in memory that implements every operation by path.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use extfuse::splice::{
    Caller, DirEntry, Drain, FuseBuf, FuseBufVec, PathFilesystem, StatFs, WITHHELD, attributes, drain,
};
use fuser::{FileAttr, FileType, INodeNo, OpenFlags, RenameFlags, TimeOrNow};
use nix::errno::Errno;

type Result<T> = std::result::Result<T, Errno>;

const ROOT: u64 = 1;

#[derive(Debug)]
struct Node {
    attr: FileAttr,
    data: Vec<u8>,
    names: BTreeMap<OsString, u64>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    opens: usize,
}

#[derive(Debug, Default)]
struct Nodes {
    all: HashMap<u64, Node>,
    last: u64,
}

/// What a test looks at from outside.
#[derive(Debug, Default)]
pub struct Counts {
    pub flushed: AtomicUsize,
    pub synced: AtomicUsize,
    pub withheld: AtomicUsize,
    pub ended: AtomicUsize,
}

#[derive(Debug)]
pub struct Memory {
    nodes: Arc<Mutex<Nodes>>,
    counts: Arc<Counts>,
}

/// How many files there are, removed ones that are open too.
#[derive(Clone, Debug)]
pub struct Census(Arc<Mutex<Nodes>>);

impl Census {
    pub fn files(&self) -> usize {
        self.0.lock().unwrap().all.len()
    }
}

impl Nodes {
    fn make(&mut self, path: &Path, kind: FileType, mode: u32, caller: Caller) -> Result<u64> {
        let (parent, name) = self.parent(path)?;
        if self.all[&parent].names.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        self.last += 1;
        let ino = self.last;
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(ino),
            uid: caller.uid,
            gid: caller.gid,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            atime: now,
            mtime: now,
            ctime: now,
            ..attributes(kind, (mode & 0o7777) as u16, 0)
        };
        let (data, names, xattrs) = Default::default();
        let node = Node {
            attr,
            data,
            names,
            xattrs,
            opens: 0,
        };
        self.all.insert(ino, node);
        let above = self.node(parent)?;
        above.names.insert(name, ino);
        above.attr.mtime = now;
        if kind == FileType::Directory {
            above.attr.nlink += 1;
        }
        Ok(ino)
    }

    fn find(&self, path: &Path) -> Result<u64> {
        let mut at = ROOT;
        for name in path.strip_prefix("/").map_err(|_| Errno::ENOENT)? {
            at = *self.all[&at].names.get(name).ok_or(Errno::ENOENT)?;
        }
        Ok(at)
    }

    fn parent(&self, path: &Path) -> Result<(u64, OsString)> {
        let parent = self.find(path.parent().ok_or(Errno::EBUSY)?)?;
        Ok((parent, path.file_name().ok_or(Errno::EINVAL)?.into()))
    }

    fn node(&mut self, ino: u64) -> Result<&mut Node> {
        self.all.get_mut(&ino).ok_or(Errno::EBADF)
    }

    /// An open file is asked by what it is, and its path is to be right.
    fn at(&mut self, path: &Path, fh: Option<u64>) -> Result<&mut Node> {
        let ino = match fh {
            Some(fh) => fh,
            None => self.find(path)?,
        };
        if !path.as_os_str().is_empty() && self.find(path) != Ok(ino) {
            return Err(Errno::EILSEQ);
        }
        self.node(ino)
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let ino = self.node(parent)?.names.remove(&name).ok_or(Errno::ENOENT)?;
        let node = self.node(ino)?;
        let directory = node.attr.kind == FileType::Directory;
        node.attr.nlink -= if directory { 2 } else { 1 };
        if directory {
            self.node(parent)?.attr.nlink -= 1;
        }
        self.tidy(ino);
        Ok(())
    }

    fn tidy(&mut self, ino: u64) {
        if self
            .all
            .get(&ino)
            .is_some_and(|node| node.attr.nlink == 0 && node.opens == 0)
        {
            self.all.remove(&ino);
        }
    }

    fn check_empty(&mut self, ino: u64) -> Result<()> {
        match self.node(ino)?.names.is_empty() {
            true => Ok(()),
            false => Err(Errno::ENOTEMPTY),
        }
    }
}

impl Memory {
    pub fn new() -> (Self, Census, Arc<Counts>) {
        let attr = FileAttr {
            nlink: 2,
            ..attributes(FileType::Directory, 0o777, 0)
        };
        let (data, names, xattrs) = Default::default();
        let root = Node {
            attr,
            data,
            names,
            xattrs,
            opens: 0,
        };
        let nodes = Arc::new(Mutex::new(Nodes {
            all: HashMap::from([(ROOT, root)]),
            last: ROOT,
        }));
        let counts = Arc::new(Counts::default());
        let memory = Self {
            nodes: Arc::clone(&nodes),
            counts: Arc::clone(&counts),
        };
        (memory, Census(nodes), counts)
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap()
    }
}

impl Node {
    fn resize(&mut self, size: usize) {
        self.data.resize(size, 0);
        self.attr.size = size as u64;
        self.attr.mtime = SystemTime::now();
    }
}

impl PathFilesystem for Memory {
    fn destroy(&mut self) {
        self.counts.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn getattr(&self, path: &Path, fh: Option<u64>) -> Result<FileAttr> {
        Ok(self.nodes().at(path, fh)?.attr)
    }

    fn readlink(&self, path: &Path) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        Ok(OsString::from_vec(self.nodes().at(path, None)?.data.clone()).into())
    }

    fn mknod(&self, path: &Path, mode: u32, rdev: u32, caller: Caller) -> Result<()> {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => FileType::NamedPipe,
            libc::S_IFCHR => FileType::CharDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            libc::S_IFSOCK => FileType::Socket,
            _ => FileType::RegularFile,
        };
        let mut nodes = self.nodes();
        let ino = nodes.make(path, kind, mode, caller)?;
        nodes.node(ino)?.attr.rdev = rdev;
        Ok(())
    }

    fn mkdir(&self, path: &Path, mode: u32, caller: Caller) -> Result<()> {
        self.nodes()
            .make(path, FileType::Directory, mode, caller)
            .map(drop)
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        self.nodes().remove(path)
    }

    fn rmdir(&self, path: &Path) -> Result<()> {
        let mut nodes = self.nodes();
        let ino = nodes.find(path)?;
        nodes.check_empty(ino)?;
        nodes.remove(path)
    }

    fn symlink(&self, target: &Path, path: &Path, caller: Caller) -> Result<()> {
        let mut nodes = self.nodes();
        let ino = nodes.make(path, FileType::Symlink, 0o777, caller)?;
        let node = nodes.node(ino)?;
        node.data = target.as_os_str().as_encoded_bytes().to_vec();
        node.attr.size = node.data.len() as u64;
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
        let mut nodes = self.nodes();
        let (moved, there) = (nodes.find(from)?, nodes.find(to));
        let ((above, name), (to_above, to_name)) = (nodes.parent(from)?, nodes.parent(to)?);
        if flags == RenameFlags::RENAME_EXCHANGE {
            let there = there?;
            nodes.node(above)?.names.insert(name, there);
        } else if flags == RenameFlags::RENAME_NOREPLACE && there.is_ok() {
            return Err(Errno::EEXIST);
        } else if there == Ok(moved) {
            return Ok(());
        } else if flags.is_empty() || flags == RenameFlags::RENAME_NOREPLACE {
            if let Ok(there) = there {
                nodes.check_empty(there)?;
                nodes.remove(to)?;
            }
            nodes.node(above)?.names.remove(&name);
        } else {
            return Err(Errno::EINVAL);
        }
        nodes.node(to_above)?.names.insert(to_name, moved);
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        let mut nodes = self.nodes();
        let ino = nodes.find(from)?;
        let (parent, name) = nodes.parent(to)?;
        nodes.node(parent)?.names.insert(name, ino);
        nodes.node(ino)?.attr.nlink += 1;
        Ok(())
    }

    fn chmod(&self, path: &Path, fh: Option<u64>, mode: u32) -> Result<()> {
        self.nodes().at(path, fh)?.attr.perm = (mode & 0o7777) as u16;
        Ok(())
    }

    fn chown(&self, path: &Path, fh: Option<u64>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let mut nodes = self.nodes();
        let attr = &mut nodes.at(path, fh)?.attr;
        (attr.uid, attr.gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
        Ok(())
    }

    fn truncate(&self, path: &Path, fh: Option<u64>, size: u64) -> Result<()> {
        self.nodes().at(path, fh)?.resize(size as usize);
        Ok(())
    }

    fn utimens(
        &self,
        path: &Path,
        fh: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
    ) -> Result<()> {
        let time = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        };
        let mut nodes = self.nodes();
        let attr = &mut nodes.at(path, fh)?.attr;
        attr.atime = atime.map_or(attr.atime, time);
        attr.mtime = mtime.map_or(attr.mtime, time);
        Ok(())
    }

    fn open(&self, path: &Path, _flags: OpenFlags) -> Result<u64> {
        let mut nodes = self.nodes();
        let ino = nodes.find(path)?;
        nodes.node(ino)?.opens += 1;
        Ok(ino)
    }

    fn create(&self, path: &Path, mode: u32, _flags: OpenFlags, caller: Caller) -> Result<u64> {
        let mut nodes = self.nodes();
        let ino = nodes.make(path, FileType::RegularFile, mode, caller)?;
        nodes.node(ino)?.opens += 1;
        Ok(ino)
    }

    fn read_buf(&self, path: &Path, fh: u64, size: usize, offset: u64) -> Result<FuseBufVec<'static>> {
        let mut nodes = self.nodes();
        let data = &nodes.at(path, Some(fh))?.data;
        let begin = data.len().min(offset as usize);
        let end = data.len().min(begin + size);
        Ok(FuseBuf::owned(data[begin..end].to_vec()).into())
    }

    fn write_buf(&self, path: &Path, fh: u64, mut bufs: FuseBufVec<'_>, offset: u64) -> Result<usize> {
        let size = bufs.size();
        let mut bytes = vec![0; size];
        if bufs.current().is_some_and(|buf| buf.flags.contains(WITHHELD)) {
            self.counts.withheld.fetch_add(1, Ordering::Relaxed);
        }
        let mut to = FuseBuf::memory_mut(&mut bytes);
        drain(&mut bufs, &mut to, &Drain::default()).map_err(|_| Errno::EIO)?;
        drop(to);
        let mut nodes = self.nodes();
        let node = nodes.at(path, Some(fh))?;
        let end = offset as usize + size;
        node.resize(end.max(node.data.len()));
        node.data[end - size..end].copy_from_slice(&bytes);
        Ok(size)
    }

    fn flush(&self, path: &Path, fh: u64) -> Result<()> {
        self.counts.flushed.fetch_add(1, Ordering::Relaxed);
        self.nodes().at(path, Some(fh)).map(drop)
    }

    fn release(&self, _path: &Path, fh: u64) {
        let mut nodes = self.nodes();
        if let Ok(node) = nodes.node(fh) {
            node.opens -= 1;
        }
        nodes.tidy(fh);
    }

    fn fsync(&self, path: &Path, fh: u64, datasync: bool) -> Result<()> {
        self.counts
            .synced
            .fetch_add(if datasync { 1 } else { 10 }, Ordering::Relaxed);
        self.nodes().at(path, Some(fh)).map(drop)
    }

    fn opendir(&self, path: &Path) -> Result<()> {
        match path.file_name() == Some(OsStr::new("closed")) {
            true => Err(Errno::EMFILE),
            false => Ok(()),
        }
    }

    fn readdir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let nodes = self.nodes();
        let dir = nodes.find(path)?;
        let entry = |(name, ino): (&OsString, &u64)| DirEntry {
            name: name.clone(),
            kind: nodes.all[ino].attr.kind,
        };
        Ok(nodes.all[&dir].names.iter().map(entry).collect())
    }

    fn fsyncdir(&self, path: &Path, _datasync: bool) -> Result<()> {
        self.counts.synced.fetch_add(100, Ordering::Relaxed);
        self.nodes().find(path).map(drop)
    }

    fn statfs(&self, _path: &Path) -> Result<StatFs> {
        Ok(StatFs {
            blocks: 1000,
            bfree: 500,
            bavail: 400,
            files: 77,
            ffree: 66,
            bsize: 8192,
            namelen: 200,
            frsize: 4096,
        })
    }

    fn setxattr(&self, path: &Path, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let mut nodes = self.nodes();
        let xattrs = &mut nodes.at(path, None)?.xattrs;
        match (xattrs.contains_key(name), flags) {
            (true, libc::XATTR_CREATE) => return Err(Errno::EEXIST),
            (false, libc::XATTR_REPLACE) => return Err(Errno::ENODATA),
            _ => xattrs.insert(name.into(), value.into()),
        };
        Ok(())
    }

    fn getxattr(&self, path: &Path, name: &OsStr) -> Result<Vec<u8>> {
        let mut nodes = self.nodes();
        nodes
            .at(path, None)?
            .xattrs
            .get(name)
            .cloned()
            .ok_or(Errno::ENODATA)
    }

    fn listxattr(&self, path: &Path) -> Result<Vec<OsString>> {
        Ok(self.nodes().at(path, None)?.xattrs.keys().cloned().collect())
    }

    fn removexattr(&self, path: &Path, name: &OsStr) -> Result<()> {
        let mut nodes = self.nodes();
        nodes
            .at(path, None)?
            .xattrs
            .remove(name)
            .map(drop)
            .ok_or(Errno::ENODATA)
    }

    fn fallocate(&self, path: &Path, fh: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let mut nodes = self.nodes();
        let node = nodes.at(path, Some(fh))?;
        let (begin, end) = (offset as usize, (offset + length) as usize);
        if mode == 0 {
            node.resize(node.data.len().max(end));
        } else if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE {
            let len = node.data.len();
            node.data[begin.min(len)..end.min(len)].fill(0);
        } else {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(())
    }

    fn lseek(&self, path: &Path, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        let mut nodes = self.nodes();
        let data = &nodes.at(path, Some(fh))?.data;
        let rest = data
            .get(offset as usize..)
            .filter(|rest| !rest.is_empty())
            .ok_or(Errno::ENXIO)?;
        let found = rest
            .iter()
            .position(|byte| (*byte == 0) == (whence == libc::SEEK_HOLE));
        match whence {
            libc::SEEK_HOLE => Ok(offset + found.unwrap_or(rest.len()) as u64),
            _ => Ok(offset + found.ok_or(Errno::ENXIO)? as u64),
        }
    }

    fn copy_file_range(&self, from: (&Path, u64, u64), to: (&Path, u64, u64), size: usize) -> Result<usize> {
        let mut nodes = self.nodes();
        let data = &nodes.at(from.0, Some(from.1))?.data;
        let begin = data.len().min(from.2 as usize);
        let bytes = data[begin..data.len().min(begin + size)].to_vec();
        let node = nodes.at(to.0, Some(to.1))?;
        let end = to.2 as usize + bytes.len();
        node.resize(end.max(node.data.len()));
        node.data[to.2 as usize..end].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}
