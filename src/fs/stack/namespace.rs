// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names: LOOKUP, FORGET, and everything that makes, moves or removes one.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fuser::{FileType, RenameFlags};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::UnlinkatFlags;

use super::attributes::decode_rdev;
use super::table::Node;
use super::{Entry, Result, Stack};
use crate::abi::NodeId;
use crate::sys::at::{self, Stat};
use crate::sys::creds::{Acting, Caller, set_umask};

/// A name that is one component of a path. The kernel sends nothing else; a name that is none could lead
/// out of the source.
pub(super) fn component(name: &OsStr) -> Result<&OsStr> {
    match name.as_bytes() {
        b"" => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EINVAL),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(Errno::EINVAL),
        _ => Ok(name),
    }
}

impl Stack {
    /// Finds a name, and counts one lookup of its node.
    ///
    /// # Errors
    /// `ENOENT` if there is no such name; what opening it says.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let dir = self.nodes.get(parent)?;
        let name = component(name)?;
        let snapshot = self.snapshot();
        let entry = at::open_node(&*dir, name).and_then(|fd| self.entry(fd));
        if let Some((cache, at)) = snapshot {
            let valid = self.options.validity;
            match &entry {
                Ok(Entry { node, attr }) => {
                    cache.publish_entry(parent, name.as_bytes(), *node, 0, at, valid);
                    cache.publish_attr(*node, attr, self.node_io(attr.kind), at, valid);
                }
                Err(Errno::ENOENT) => cache.publish_negative(parent, name.as_bytes(), at, valid),
                Err(_) => {}
            }
        }
        entry
    }

    /// Takes back lookups of a node. A node that is not there is no error: the kernel expects no answer.
    pub fn forget(&self, id: NodeId, nlookup: u64) {
        let waits = self.nodes.forget(id, nlookup);
        if let (Some(held), Some(node)) = (&self.held, waits) {
            held.forgotten(&node);
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub fn readlink(&self, id: NodeId) -> Result<OsString> {
        let node = self.nodes.get(id)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::EINVAL);
        }
        nix::fcntl::readlinkat(&*node, "")
    }

    /// Makes a file, device, pipe or socket.
    ///
    /// # Errors
    /// Those of mknod(2).
    pub fn mknod(
        &self,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Entry> {
        self.make(parent, name, caller, |dir, name| {
            set_umask(umask)?;
            let (kind, perm) = (SFlag::from_bits_truncate(mode), Mode::from_bits_truncate(mode));
            nix::sys::stat::mknodat(dir, name, kind & SFlag::S_IFMT, perm, decode_rdev(rdev))
        })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn mkdir(
        &self,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Entry> {
        self.make(parent, name, caller, |dir, name| {
            set_umask(umask)?;
            nix::sys::stat::mkdirat(dir, name, Mode::from_bits_truncate(mode))
        })
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// Those of symlink(2).
    pub fn symlink(&self, parent: NodeId, name: &OsStr, target: &Path, caller: Caller) -> Result<Entry> {
        self.make(parent, name, caller, |dir, name| {
            nix::unistd::symlinkat(target, dir, name)
        })
    }

    fn make(
        &self,
        parent: NodeId,
        name: &OsStr,
        caller: Caller,
        make: impl FnOnce(&Node, &OsStr) -> Result<()>,
    ) -> Result<Entry> {
        self.writable()?;
        let dir = self.nodes.get(parent)?;
        let name = component(name)?;
        {
            let _acting = Acting::creating(caller)?;
            make(&dir, name)?;
        }
        self.entry(at::open_node(&*dir, name)?)
    }

    /// Gives a node another name.
    ///
    /// # Errors
    /// Those of link(2).
    pub fn link(&self, id: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        self.writable()?;
        let node = self.nodes.get(id)?;
        let dir = self.nodes.get(parent)?;
        let name = component(name)?;
        let path = at::proc_path(&*node);
        nix::unistd::linkat(AT_FDCWD, &path, &*dir, name, AtFlags::AT_SYMLINK_FOLLOW)?;
        self.entry(at::reopen_node(&*node)?)
    }

    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, UnlinkatFlags::NoRemoveDir)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, UnlinkatFlags::RemoveDir)
    }

    fn remove(&self, parent: NodeId, name: &OsStr, flags: UnlinkatFlags) -> Result<()> {
        self.writable()?;
        let dir = self.nodes.get(parent)?;
        let name = component(name)?;
        let victim = self.stands_for(&dir, name);
        nix::unistd::unlinkat(&*dir, name, flags)?;
        self.lost_a_name(victim);
        Ok(())
    }

    /// What a name that is about to go stands for, if that matters.
    fn stands_for(&self, dir: &Node, name: &OsStr) -> Option<Stat> {
        self.held.as_ref()?;
        at::stat_name(dir, name).ok()
    }

    /// No FORGET tells when the kernel drops an inode that it has from a map: if a file has lost its last name,
    /// its node must not be what keeps its space.
    fn lost_a_name(&self, victim: Option<Stat>) {
        if let (Some(held), Some(stat)) = (&self.held, victim)
            && let Some(waiting) = self.nodes.waits(&stat)
            && let Ok(node) = self.nodes.get(waiting.id)
        {
            held.lost_a_name(&node);
        }
    }

    /// Moves, replaces or exchanges names. A whiteout belongs to the caller.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
        caller: Caller,
    ) -> Result<()> {
        self.writable()?;
        let from = self.nodes.get(parent)?;
        let to = self.nodes.get(new_parent)?;
        let (name, new_name) = (component(name)?, component(new_name)?);
        let _acting = match flags.contains(RenameFlags::RENAME_WHITEOUT) {
            true => Some(Acting::creating(caller)?),
            false => None,
        };
        let flags = nix::fcntl::RenameFlags::from_bits(flags.bits()).ok_or(Errno::EINVAL)?;
        let victim = self.stands_for(&to, new_name);
        nix::fcntl::renameat2(&*from, name, &*to, new_name, flags)?;
        self.lost_a_name(victim);
        Ok(())
    }

    /// The entry of an inode that was opened as a node; counts one lookup.
    pub(super) fn entry(&self, fd: OwnedFd) -> Result<Entry> {
        let stat = at::stat(&fd)?;
        let attr = self.attr(&stat)?;
        let node = self.nodes.lookup(fd, &stat)?;
        if let Some(crowded) = &self.options.crowded
            && self.nodes.len() > crowded.at
        {
            crowded.shrinker.start();
        }
        self.publish_bare(&node);
        Ok(Entry { node: node.id, attr })
    }
}
