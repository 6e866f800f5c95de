// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged files towards fuser.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request, TimeOrNow,
};
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};

use super::source::{Place, Source, Stamp, in_parallel};
use super::spec::{self, Origin, Spec};
use super::tree::{Kind, Tree};
use super::whole::{From, Whole};
use super::{MergedError, SourceError};
use crate::fs::Upcalls;
use crate::fs::kernel::{agree, left_to_the_kernel, writes};
use crate::fs::upcalls::Opcode;
use crate::remote::client::{Connection, Outcome};
use crate::splice::Channel;
use crate::splice::layout::LayoutBuilder;

/// Names and directories stay as they are for as long as the mount.
const FOREVER: Duration = Duration::from_secs(365 * 86400);

/// The largest READ, since the kernel counts pages for both: what a server gives at once.
const MAX_WRITE: u32 = 1 << 20;

/// Connections, by the name that the spec has for them.
pub type Servers = BTreeMap<String, Arc<Connection>>;

/// What is not in the spec.
#[derive(Clone, Debug)]
pub struct Options<'m> {
    /// Where it is to be mounted: no source may be below.
    pub mountpoint: &'m Path,
    /// How long the kernel may take attributes for true.
    pub ttl: Duration,
}

#[derive(Debug)]
struct File {
    whole: Whole,
    /// As the spec says.
    mode: Option<u16>,
}

/// Files that are put together, as a file system.
#[derive(Debug)]
pub struct Merged {
    tree: Tree,
    files: Vec<File>,
    ttl: Duration,
    /// Whoever mounts it.
    owner: (u32, u32),
    made: SystemTime,
    /// Where payload goes past this process.
    channel: Option<Channel>,
    upcalls: Arc<Upcalls>,
}

/// The sources of all files, each once.
struct Sources<'s> {
    spec: &'s Spec,
    places: HashMap<&'s Origin, usize>,
    all: Vec<Arc<Source>>,
}

impl<'s> Sources<'s> {
    fn new(spec: &'s Spec, servers: &Servers) -> Result<Self, MergedError> {
        let (mut places, mut all) = (HashMap::new(), Vec::new());
        for part in spec.files.iter().flat_map(|file| &file.parts) {
            let place = match &part.origin {
                _ if places.contains_key(&part.origin) => continue,
                Origin::Zeros => continue,
                Origin::Local(path) => Place::Local(path.clone()),
                Origin::Remote { server, names } => {
                    let connection = servers.get(server);
                    Place::Remote {
                        connection: connection
                            .cloned()
                            .ok_or_else(|| MergedError::NoServer(server.clone()))?,
                        names: names.clone(),
                    }
                }
            };
            let shown = part.origin.to_string();
            places.insert(&part.origin, all.len());
            all.push(Arc::new(Source { place, shown }));
        }
        Ok(Self { spec, places, all })
    }

    /// The first part that wants this source, and what is wrong with it.
    fn wrong(&self, index: usize, source: SourceError) -> MergedError {
        let parts = self.spec.files.iter();
        let mut parts = parts.flat_map(|file| file.parts.iter().map(move |part| (file, part)));
        let wants = parts.find(|(_, part)| self.places.get(&part.origin) == Some(&index));
        let (file, line) = wants.map_or((String::new(), 1), |(file, part)| (file.path(), part.line));
        self.source_error(file, line, source)
    }

    fn source_error(&self, file: String, line: usize, source: SourceError) -> MergedError {
        MergedError::Source {
            spec: self.spec.file.display().to_string(),
            line,
            file,
            source,
        }
    }

    /// How they are: each was opened once, to see that it can be.
    fn open(&self, mountpoint: &Path) -> Result<Vec<Stamp>, MergedError> {
        let numbered: Vec<_> = self.all.iter().enumerate().collect();
        let stamps = in_parallel(&numbered, |(index, source)| match source.open() {
            Ok((stamp, _)) if !source.is_below(mountpoint) => Ok(stamp),
            Ok(_) => Err((
                *index,
                SourceError::Below {
                    shown: source.shown.clone(),
                },
            )),
            Err(error) => Err((*index, error)),
        });
        stamps.map_err(|(index, error)| self.wrong(index, error))
    }

    fn file(&self, file: &spec::File, stamps: &[Stamp]) -> Result<File, MergedError> {
        let mut sources: Vec<Arc<Source>> = Vec::new();
        let mut mine: HashMap<usize, usize> = HashMap::new();
        let mut ranges: Vec<(u64, From)> = Vec::new();
        for part in &file.parts {
            let Some(index) = self.places.get(&part.origin).copied() else {
                ranges.push((part.length.unwrap_or(0), None));
                continue;
            };
            let (source, size) = (&self.all[index], stamps[index].size);
            let wanted = match part.length {
                Some(length) => format!("{length} from {} on are wanted", part.offset),
                None => format!("those from {} on are wanted", part.offset),
            };
            let end = part.offset.saturating_add(part.length.unwrap_or(0));
            if end > size {
                let shown = source.shown.clone();
                let short = SourceError::Short { shown, size, wanted };
                return Err(self.source_error(file.path(), part.line, short));
            }
            let number = *mine.entry(index).or_insert_with(|| {
                sources.push(Arc::clone(source));
                sources.len() - 1
            });
            let length = part.length.unwrap_or(size - part.offset);
            ranges.push((length, Some((number, part.offset))));
        }
        let mut layout = LayoutBuilder::default();
        match file.stripe {
            Some(stripe) => layout.append_in_turn(stripe, ranges),
            None => ranges
                .into_iter()
                .for_each(|(len, from)| layout.append(len, from)),
        }
        let layout = layout.build().map_err(|_| MergedError::TooLarge {
            spec: self.spec.file.display().to_string(),
            line: file.line,
            file: file.path(),
        })?;
        Ok(File {
            whole: Whole::new(layout, sources),
            mode: file.mode,
        })
    }
}

impl Merged {
    /// Looks at all sources; the files are of the sizes that these have now.
    ///
    /// # Errors
    ///
    /// If one is not there, not a file, or not large enough.
    pub fn new(spec: &Spec, servers: &Servers, options: &Options<'_>) -> Result<Self, MergedError> {
        let sources = Sources::new(spec, servers)?;
        let stamps = sources.open(options.mountpoint)?;
        let files = spec.files.iter().map(|file| sources.file(file, &stamps));
        Ok(Self {
            tree: Tree::new(&spec.files),
            files: files.collect::<Result<_, _>>()?,
            ttl: options.ttl,
            owner: (geteuid().as_raw(), getegid().as_raw()),
            made: SystemTime::now(),
            channel: None,
            upcalls: Arc::default(),
        })
    }

    /// The same; the payload of large READs that one server has all of goes from the socket to the application through
    /// this channel of the mount's device, where the module is.
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

    fn count(&self, opcode: Opcode) {
        self.upcalls.count(opcode);
    }

    fn refused(&self, opcode: Opcode, errno: Errno) -> FuseErrno {
        self.upcalls.count_error(opcode);
        FuseErrno::from_i32(errno as i32)
    }

    fn file(&self, node: INodeNo) -> Result<&File, Errno> {
        match self.tree.get(node).map(|node| &node.kind) {
            Some(Kind::File(index)) => self.files.get(*index).ok_or(Errno::EIO),
            Some(Kind::Directory(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ESTALE),
        }
    }

    /// The attributes, and how long they hold.
    fn attr(&self, node: INodeNo) -> Result<(FileAttr, Duration), Errno> {
        let attr = FileAttr {
            ino: node,
            size: 0,
            blocks: 0,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind: FileType::Directory,
            perm: 0o555,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        if let Some(Kind::Directory(names)) = self.tree.get(node).map(|node| &node.kind) {
            let nlink = self.tree.directories_in(names).saturating_add(2);
            return Ok((FileAttr { nlink, ..attr }, FOREVER));
        }
        let file = self.file(node)?;
        let (stamps, changed) = file.whole.refresh()?;
        let mtime = changed.unwrap_or(self.made);
        let ctime = stamps.iter().map(|stamp| stamp.ctime).max();
        let public = stamps.iter().all(|stamp| stamp.public);
        let size = file.whole.size();
        let attr = FileAttr {
            size,
            blocks: size.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: ctime.unwrap_or(self.made),
            kind: FileType::RegularFile,
            // What not everybody may read does not become readable by being merged.
            perm: file.mode.unwrap_or(if public { 0o444 } else { 0o400 }),
            ..attr
        };
        Ok((attr, self.ttl))
    }
}

/// What changes something, and what it is refused with.
macro_rules! refused {
    ($($name:ident($opcode:ident, $reply:ident: $kind:ty $(, $rest:ident: $of:ty)*);)*) => {$(
        fn $name(&self, _req: &Request, $($rest: $of,)* $reply: $kind) {
            $(let _ = $rest;)*
            self.count(Opcode::$opcode);
            $reply.error(self.refused(Opcode::$opcode, Errno::EROFS));
        }
    )*};
}

impl Filesystem for Merged {
    left_to_the_kernel!();

    // The mount is read-only, so that the kernel refuses them, until somebody remounts it.
    refused! {
        mknod(Mknod, reply: ReplyEntry, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32);
        mkdir(Mkdir, reply: ReplyEntry, parent: INodeNo, name: &OsStr, mode: u32, umask: u32);
        unlink(Unlink, reply: ReplyEmpty, parent: INodeNo, name: &OsStr);
        rmdir(Rmdir, reply: ReplyEmpty, parent: INodeNo, name: &OsStr);
        symlink(Symlink, reply: ReplyEntry, parent: INodeNo, name: &OsStr, target: &Path);
        rename(
            Rename, reply: ReplyEmpty, parent: INodeNo, name: &OsStr, to: INodeNo, new: &OsStr, flags: RenameFlags
        );
        link(Link, reply: ReplyEntry, node: INodeNo, parent: INodeNo, name: &OsStr);
        create(
            Create, reply: ReplyCreate, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32
        );
        setxattr(
            Setxattr, reply: ReplyEmpty, node: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32
        );
        removexattr(Removexattr, reply: ReplyEmpty, node: INodeNo, name: &OsStr);
    }

    #[rustfmt::skip]
    fn setattr(
        &self, _: &Request, _: INodeNo, _: Option<u32>, _: Option<u32>, _: Option<u32>, _: Option<u64>,
        _: Option<TimeOrNow>, _: Option<TimeOrNow>, _: Option<SystemTime>, _: Option<FileHandle>,
        _: Option<SystemTime>, _: Option<SystemTime>, _: Option<SystemTime>, _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Opcode::Setattr);
        reply.error(self.refused(Opcode::Setattr, Errno::EROFS));
    }

    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.count(Opcode::Init);
        let wanted =
            InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_AUTO_INVAL_DATA;
        agree(config, wanted)?;
        if config.set_max_write(MAX_WRITE).is_err() {
            return Err(Errno::EINVAL.into());
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Lookup);
        let found = self.tree.child(parent, name).ok_or(Errno::ENOENT);
        match found.and_then(|node| self.attr(node)) {
            Ok((attr, ttl)) => reply.entry(&ttl, &attr, Generation(0)),
            Err(errno) => reply.error(self.refused(Opcode::Lookup, errno)),
        }
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Opcode::Getattr);
        match self.attr(node) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(self.refused(Opcode::Getattr, errno)),
        }
    }

    fn open(&self, _req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        let opened = match writes(flags.0) {
            true => Err(Errno::EROFS),
            false => self.file(node).and_then(|file| file.whole.open()),
        };
        match opened {
            Ok(opening) => {
                let mut flags = FopenFlags::FOPEN_NOFLUSH;
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opening.keep);
                reply.opened(FileHandle(opening.handle), flags);
            }
            Err(errno) => reply.error(self.refused(Opcode::Open, errno)),
        }
    }

    fn read(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Opcode::Read);
        let size = size.min(MAX_WRITE);
        let mut reply = reply;
        if let (Some(channel), Ok(file)) = (&self.channel, self.file(node)) {
            let unique = req.unique().into();
            match file.whole.answer(fh.0, (offset, size), unique, channel, reply) {
                Outcome::Answered(Ok(())) => return,
                Outcome::Answered(Err(_)) => return self.upcalls.count_error(Opcode::Read),
                Outcome::Not(unanswered) => reply = unanswered,
            }
        }
        let read = self
            .file(node)
            .and_then(|file| file.whole.read(fh.0, offset, size));
        match read {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(self.refused(Opcode::Read, errno)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Release);
        if let Ok(file) = self.file(node) {
            file.whole.close(fh.0);
        }
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Opendir);
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Opcode::Readdir);
        let Some((parent, Kind::Directory(names))) =
            self.tree.get(node).map(|node| (node.parent, &node.kind))
        else {
            return reply.error(self.refused(Opcode::Readdir, Errno::ENOTDIR));
        };
        let kind = |node: INodeNo| match self.tree.get(node).map(|node| &node.kind) {
            Some(Kind::File(_)) => FileType::RegularFile,
            _ => FileType::Directory,
        };
        let dots = [(node, "."), (parent, "..")];
        let names = names.iter().map(|(name, node)| (*node, name.as_str()));
        let rest = dots.into_iter().chain(names).zip(1..);
        for ((node, name), next) in rest.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(node, next, kind(node), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.count(Opcode::Statfs);
        let blocks = self.files.iter().map(|file| file.whole.size().div_ceil(512));
        let blocks = blocks.fold(0, u64::saturating_add);
        reply.statfs(blocks, 0, 0, self.tree.len() as u64, 0, 4096, 255, 512);
    }
}
