// SPDX-License-Identifier: MIT OR Apache-2.0
//! An archive as a file system. Nothing ever changes in it, so that all that the kernel was told once holds
//! until the unmount; and it is told the attributes and the names at once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use extfuse::abi::NodeId;
use extfuse::ebpf::{Backing, BackingOptions, Cache, NodeIo, Validity};
use extfuse::{Kernel, MountOptions, Session};
use fuser::{
    Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};

use super::members::{Zip, read};
use super::tree::{Content, Kind, Tree, ino};

/// For stock FUSE.
const FOREVER: Duration = Duration::from_secs(365 * 86400);

#[derive(Debug)]
pub struct Archive {
    tree: Arc<Tree>,
    file: File,
    zip: Option<Mutex<Zip>>,
    spool: Mutex<Spool>,
    kernel: Kernel,
}

/// What has been unpacked.
#[derive(Debug)]
struct Spool {
    left: u64,
    files: HashMap<INodeNo, (Arc<File>, Option<Backing>)>,
}

/// Mounts the archive at `path`. Of its members up to `spool` bytes are unpacked.
pub fn mount(
    path: &Path,
    mountpoint: &Path,
    spool: u64,
    options: &MountOptions,
) -> anyhow::Result<Session<Archive>> {
    let (tree, zip) = read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if tree.left_out > 0 {
        eprintln!("archive: {} members cannot be shown", tree.left_out);
    }
    let tree = Arc::new(tree);
    let file = File::open(path)?;
    let options = MountOptions {
        fsname: path.into(),
        read_only: true,
        valid: Some(Validity::UntilChanged),
        opens: true,
        // They are numbers of its members.
        holds_nodes: true,
        ..options.clone()
    };
    let session = extfuse::mount_with(mountpoint, &options, |kernel| Archive {
        tree: Arc::clone(&tree),
        file,
        zip: zip.map(Mutex::new),
        spool: Mutex::new(Spool {
            left: spool,
            files: HashMap::new(),
        }),
        kernel,
    })?;
    if let Some(cache) = session.cache() {
        publish(&tree, &cache);
    }
    Ok(session)
}

/// Tells the kernel the whole tree.
fn publish(tree: &Tree, cache: &Cache) {
    let (at, valid) = (cache.snapshot(), Validity::UntilChanged);
    for of in (0..tree.len()).map(ino) {
        let (Some(attr), Some(node)) = (tree.attr(of), tree.get(of)) else {
            continue;
        };
        let io = match &node.kind {
            Kind::Directory(names) => {
                for (name, index) in names {
                    let node = NodeId(ino(*index).0);
                    cache.publish_entry(NodeId(of.0), name.as_bytes(), node, 0, at, valid);
                }
                NodeIo::Listing
            }
            // It is unpacked when it is opened; then it has a backing file.
            Kind::File {
                content: Content::Compressed(_),
                ..
            } => continue,
            _ => NodeIo::Daemon,
        };
        cache.publish_attr(NodeId(of.0), &attr, io, at, valid);
    }
}

impl Archive {
    /// The unpacked member of a node.
    fn unpacked(&self, of: INodeNo, member: usize, size: u64) -> Result<Arc<File>, Errno> {
        // Held while unpacking: it is done once, and there is one reader of the archive anyway.
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, _)) = spool.files.get(&of) {
            return Ok(Arc::clone(file));
        }
        if size > spool.left {
            return Err(Errno::EFBIG);
        }
        let file = self.unpack(member, size).map_err(|error| {
            eprintln!("archive: a member cannot be unpacked: {error}");
            Errno::EIO
        })?;
        let file = Arc::new(file);
        let backing = self.back(of, &file);
        spool.left -= size;
        spool.files.insert(of, (Arc::clone(&file), backing));
        Ok(file)
    }

    /// Unpacks no more than the archive said there would be.
    fn unpack(&self, member: usize, size: u64) -> io::Result<File> {
        let zip = self.zip.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut zip = zip.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packed = zip.by_index(member)?;
        let mut file = tempfile::tempfile()?;
        let copied = io::copy(&mut packed.by_ref().take(size), &mut file)?;
        // Its end, at which the checksum is compared.
        if copied != size || packed.read(&mut [0])? != 0 {
            return Err(io::Error::other("not of the size that the archive says"));
        }
        Ok(file)
    }

    /// Has the kernel read the node from its unpacked file. Without, it asks here.
    fn back(&self, of: INodeNo, file: &File) -> Option<Backing> {
        let (device, cache, attr) = (self.kernel.device()?, self.kernel.cache()?, self.tree.attr(of)?);
        let (node, at) = (NodeId(of.0), cache.snapshot());
        let options = BackingOptions::default();
        let backing = Backing::register(&device, node, file, options, 0..u64::MAX, at).ok()?;
        cache.publish_attr(node, &attr, NodeIo::Passthrough, at, Validity::UntilChanged);
        Some(backing)
    }

    fn read_at(&self, of: INodeNo, offset: u64, count: u32) -> Result<Vec<u8>, Errno> {
        let Some(Kind::File { content, size }) = self.tree.get(of).map(|node| &node.kind) else {
            return Err(Errno::EINVAL);
        };
        let mut data = vec![0; size.saturating_sub(offset).min(count.into()) as usize];
        match *content {
            Content::At(start) => self.file.read_exact_at(&mut data, start.saturating_add(offset)),
            Content::Compressed(member) => self.unpacked(of, member, *size)?.read_exact_at(&mut data, offset),
        }
        .map_err(|_| Errno::EIO)?;
        Ok(data)
    }
}

impl Filesystem for Archive {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // For backing files, and for targets of symlinks to be kept. Not everywhere offered, and not needed.
        let _kept = config.add_capabilities(InitFlags::FUSE_CACHE_SYMLINKS);
        if config.set_max_stack_depth(1).is_ok() {
            let _backed = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self
            .tree
            .child(parent, name)
            .and_then(|node| self.tree.attr(node));
        match found {
            Some(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.attr(node) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        match self.tree.get(node).map(|node| &node.kind) {
            Some(Kind::Symlink(target)) => reply.data(target.as_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = match self.tree.get(node).map(|node| &node.kind) {
            Some(Kind::File {
                content: Content::Compressed(member),
                size,
            }) => self.unpacked(node, *member, *size).map(drop),
            Some(Kind::File { .. }) => Ok(()),
            _ => Err(Errno::EINVAL),
        };
        match opened {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    #[rustfmt::skip]
    fn read(
        &self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyData,
    ) {
        match self.read_at(node, offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        );
    }

    #[rustfmt::skip]
    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some((directory, Kind::Directory(names))) = self.tree.get(node).map(|node| (node, &node.kind)) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(node, OsStr::new(".")), (ino(directory.parent), OsStr::new(".."))];
        let names = names.iter().map(|(name, index)| (ino(*index), name.as_os_str()));
        for (next, (node, name)) in (1..).zip(dots.into_iter().chain(names)).skip(offset as usize) {
            let kind = self.tree.attr(node).map_or(FileType::RegularFile, |attr| attr.kind);
            if reply.add(node, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
