// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a request changes of the export, and what its reply tells.

use nix::errno::Errno;

use super::leases::{Part, Thing};
use crate::abi::NodeId;
use crate::fs::Stack;
use crate::fs::stack::Inode;
use crate::remote::wire::{Header, Name, Request};
use fuser::FileHandle;

type Result<T> = std::result::Result<T, Errno>;

fn all(inode: Inode) -> [Thing; 2] {
    [Thing::Of(inode, Part::Attributes), Thing::Of(inode, Part::Data)]
}

/// Whether it changes anything that others may have been told.
pub fn changes(request: &Request<'_>) -> bool {
    match request {
        Request::Open(open) => open.flags & libc::O_TRUNC != 0,
        Request::Mknod(_) | Request::Mkdir(_) | Request::Symlink(_) | Request::Create(_) => true,
        Request::Link(_) | Request::Unlink(_) | Request::Rmdir(_) | Request::Rename(_) => true,
        Request::Setattr(_) | Request::Setxattr(_) | Request::Removexattr(_) => true,
        Request::Write(_) | Request::Fallocate(_) | Request::CopyFileRange(_) => true,
        _ => false,
    }
}

/// The names that it may change.
pub fn names(stack: &Stack, header: &Header, request: &Request<'_>) -> Result<Vec<Thing>> {
    let name = |parent: u64, name: &Name| Ok(Thing::Name(stack.inode(NodeId(parent))?, name.clone()));
    let one = |leaf: &Name| Ok(vec![name(header.node, leaf)?]);
    match request {
        Request::Mknod(m) => one(&m.name),
        Request::Mkdir(m) => one(&m.name),
        Request::Symlink(m) => one(&m.name),
        Request::Create(m) => one(&m.name),
        Request::Unlink(m) => one(&m.name),
        Request::Rmdir(m) => one(&m.name),
        Request::Link(m) => Ok(vec![name(m.parent, &m.name)?]),
        Request::Rename(m) => Ok(vec![
            name(header.node, &m.name)?,
            name(m.new_parent, &m.new_name)?,
        ]),
        _ => Ok(Vec::new()),
    }
}

/// What it may change of inodes; to be asked when nobody else changes its names.
pub fn inodes(stack: &Stack, header: &Header, request: &Request<'_>) -> Result<Vec<Thing>> {
    let of = |node: u64| stack.inode(NodeId(node));
    let attributes = |inode| Thing::Of(inode, Part::Attributes);
    let at = |parent: u64, name: &Name| stack.inode_at(NodeId(parent), name.as_os_str());
    let mut things = Vec::new();
    match request {
        Request::Mknod(_) | Request::Mkdir(_) | Request::Symlink(_) | Request::Create(_) => {
            things.extend(all(of(header.node)?));
        }
        Request::Link(m) => {
            things.extend(all(of(m.parent)?));
            things.push(attributes(of(header.node)?));
        }
        Request::Unlink(m) => {
            things.extend(all(of(header.node)?));
            things.extend(at(header.node, &m.name)?.map(attributes));
        }
        Request::Rmdir(m) => {
            things.extend(all(of(header.node)?));
            things.extend(at(header.node, &m.name)?.map(attributes));
        }
        Request::Rename(m) => {
            things.extend(all(of(header.node)?));
            things.extend(all(of(m.new_parent)?));
            // Of a directory that moves, the listing has another `..`; so has one that is exchanged for it.
            things.extend(at(header.node, &m.name)?.into_iter().flat_map(all));
            things.extend(at(m.new_parent, &m.new_name)?.into_iter().flat_map(all));
        }
        Request::Setattr(m) => {
            let inode = of(header.node)?;
            things.push(attributes(inode));
            if m.size.is_some() {
                things.push(Thing::Of(inode, Part::Data));
                // It is the open file that is truncated, whatever node is named.
                let open = m
                    .handle
                    .and_then(|handle| stack.inode_of(FileHandle(handle)).ok());
                things.extend(open.into_iter().filter(|open| *open != inode).flat_map(all));
            }
        }
        Request::Open(m) if m.flags & libc::O_TRUNC != 0 => things.extend(all(of(header.node)?)),
        Request::Write(_) | Request::Fallocate(_) => {
            things.extend(all(stack.inode_of(FileHandle(header.handle))?));
        }
        Request::CopyFileRange(m) => things.extend(all(stack.inode_of(FileHandle(m.to_handle))?)),
        Request::Setxattr(_) | Request::Removexattr(_) => things.push(attributes(of(header.node)?)),
        _ => {}
    }
    Ok(things)
}

/// What its reply tells, by the node that the client has; beside it, what an entry tells of its node.
pub fn told(stack: &Stack, header: &Header, request: &Request<'_>) -> Result<Option<(u64, Thing)>> {
    let name = |parent: u64, name: &Name| {
        let inode = stack.inode(NodeId(parent))?;
        Ok(Some((parent, Thing::Name(inode, name.clone()))))
    };
    let of = |part| {
        Ok(Some((
            header.node,
            Thing::Of(stack.inode(NodeId(header.node))?, part),
        )))
    };
    match request {
        Request::Lookup(m) => name(header.node, &m.name),
        Request::Mknod(m) => name(header.node, &m.name),
        Request::Mkdir(m) => name(header.node, &m.name),
        Request::Symlink(m) => name(header.node, &m.name),
        Request::Create(m) => name(header.node, &m.name),
        Request::Link(m) => name(m.parent, &m.name),
        Request::Rename(m) => name(m.new_parent, &m.new_name),
        Request::Getattr(_) | Request::Setattr(_) => of(Part::Attributes),
        Request::Getxattr(_) | Request::Listxattr(_) => of(Part::Attributes),
        Request::Read(_) | Request::Readdir(_) => of(Part::Data),
        _ => Ok(None),
    }
}
