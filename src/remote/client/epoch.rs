// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers of nodes and handles, as this machine's kernel has them.
//!
//! The highest bit is [`OURS`], and none of the server's.
//! A server knows nodes and handles for as long as a session lasts. When it gives us a new one, the kernel may still have
//! numbers of the old one, and another node may bear the same number now. So the kernel's have the session in their
//! next 15 bits: those of an old one are refused here (`ESTALE`), which makes it look names up anew. The root is the
//! root in each.

use std::borrow::Cow;

use nix::errno::Errno;

use super::connection::About;
use super::questions::Result;
use crate::remote::wire::message::{CopyFileRange, Entry, Forgotten, Invalidation, Link, Rename, SetAttr};
use crate::remote::wire::{Reply, Request, WireError};

const SHIFT: u32 = 48;
const ROOT: u64 = 1;

/// In handles of files that the server has not opened.
pub(super) const OURS: u64 = 1 << 63;

/// Which of this mount's sessions, from 0 on.
pub(super) type Epoch = u16;

/// The last one that there can be.
const LAST: Epoch = (OURS >> SHIFT) as Epoch - 1;

/// The one after it, if there can be one.
pub(super) fn next(epoch: Epoch) -> Option<Epoch> {
    (epoch < LAST).then_some(epoch + 1)
}

/// Whether it is a node of this session's.
pub(super) fn is_known(node: u64, epoch: Epoch) -> bool {
    node_outward(node, epoch).is_ok()
}

fn outward(number: u64, epoch: Epoch) -> Result<u64> {
    match number >> SHIFT == u64::from(epoch) {
        true => Ok(number & ((1 << SHIFT) - 1)),
        false => Err(Errno::ESTALE),
    }
}

/// A node's number for the server.
fn node_outward(number: u64, epoch: Epoch) -> Result<u64> {
    match number {
        ROOT => Ok(ROOT),
        number => outward(number, epoch),
    }
}

/// What FORGET takes back; nothing of an old session.
pub(super) fn forgotten_outward(forgotten: &Forgotten, epoch: Epoch) -> Option<Forgotten> {
    let node = node_outward(forgotten.node, epoch).ok()?;
    Some(Forgotten { node, ..*forgotten })
}

/// What is asked, for the server.
pub(super) fn request_outward<'r, 'a>(
    about: &About,
    request: &'r Request<'a>,
    epoch: Epoch,
) -> Result<(About, Cow<'r, Request<'a>>)> {
    let node = |number| node_outward(number, epoch);
    let handle = |number| outward(number, epoch);
    // Where there is no node or handle, there is 0.
    let some = |number, outward: &dyn Fn(u64) -> Result<u64>| match number {
        0 => Ok(0),
        number => outward(number),
    };
    let about = About {
        node: some(about.node, &node)?,
        handle: some(about.handle, &handle)?,
        ..*about
    };
    let request = match request {
        Request::Link(m) => Cow::Owned(Request::Link(Link {
            parent: node(m.parent)?,
            ..m.clone()
        })),
        Request::Rename(m) => Cow::Owned(Request::Rename(Rename {
            new_parent: node(m.new_parent)?,
            ..m.clone()
        })),
        Request::CopyFileRange(m) => Cow::Owned(Request::CopyFileRange(CopyFileRange {
            to_node: node(m.to_node)?,
            to_handle: handle(m.to_handle)?,
            ..*m
        })),
        Request::Setattr(m) => Cow::Owned(Request::Setattr(SetAttr {
            handle: m.handle.map(handle).transpose()?,
            ..*m
        })),
        request => Cow::Borrowed(request),
    };
    Ok((about, request))
}

fn inward(number: u64, epoch: Epoch) -> std::result::Result<u64, WireError> {
    match number >> SHIFT {
        0 => Ok(number | u64::from(epoch) << SHIFT),
        _ => Err(WireError::Bytes("a node's or handle's number")),
    }
}

/// A node that the server has named, for the kernel.
fn node_inward(number: u64, epoch: Epoch) -> u64 {
    match number {
        ROOT => ROOT,
        // One that is too large the kernel has never heard of.
        number => number | u64::from(epoch) << SHIFT,
    }
}

/// What was answered, for the kernel.
pub(super) fn reply_inward(mut reply: Reply<'_>, epoch: Epoch) -> std::result::Result<Reply<'_>, WireError> {
    match &mut reply {
        Reply::Lookup(entry)
        | Reply::Mknod(entry)
        | Reply::Mkdir(entry)
        | Reply::Symlink(entry)
        | Reply::Link(entry) => entry_inward(entry, epoch)?,
        Reply::Create(created) => {
            entry_inward(&mut created.entry, epoch)?;
            created.handle = inward(created.handle, epoch)?;
        }
        Reply::Open(opened) | Reply::Opendir(opened) => opened.handle = inward(opened.handle, epoch)?,
        _ => {}
    }
    Ok(reply)
}

fn entry_inward(entry: &mut Entry, epoch: Epoch) -> std::result::Result<(), WireError> {
    // 0 is no node, in no session.
    if !matches!(entry.node, 0 | ROOT) {
        entry.node = inward(entry.node, epoch)?;
    }
    Ok(())
}

/// What is not to be used any more, for the kernel.
pub(super) fn invalidation_inward(what: &mut Invalidation, epoch: Epoch) {
    match what {
        Invalidation::Attributes { node }
        | Invalidation::Data { node, .. }
        | Invalidation::Listing { node }
        | Invalidation::Entry { parent: node, .. } => *node = node_inward(*node, epoch),
        Invalidation::Everything => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_one_session_mean_nothing_in_another() {
        for epoch in [0, 1, LAST] {
            let there = inward(5, epoch).unwrap();
            assert_eq!(outward(there, epoch), Ok(5));
            assert_eq!(outward(there, epoch ^ 1), Err(Errno::ESTALE));
            assert_eq!(node_outward(ROOT, epoch), Ok(ROOT));
            assert_eq!(node_inward(ROOT, epoch), ROOT);
        }
        assert!(inward(1 << SHIFT, 0).is_err());
        assert_eq!(inward(5, LAST).unwrap() & OURS, 0);
        assert_eq!((next(0), next(LAST)), (Some(1), None));
    }

    #[test]
    fn all_numbers_of_a_request_are_those_of_the_session() {
        let new = |number| inward(number, 3).unwrap();
        let about = About {
            node: new(7),
            handle: new(8),
            offset: 9,
            ..About::default()
        };
        let copy = |node, handle| {
            Request::CopyFileRange(CopyFileRange {
                to_node: node,
                to_handle: handle,
                to_offset: 1,
                length: 2,
                flags: 0,
            })
        };
        let request = copy(new(10), new(11));
        let (outward, sent) = request_outward(&about, &request, 3).unwrap();
        assert_eq!((outward.node, outward.handle, outward.offset), (7, 8, 9));
        assert_eq!(*sent, copy(10, 11));
        assert_eq!(request_outward(&about, &request, 4).unwrap_err(), Errno::ESTALE);
        for (node, handle) in [(10, new(11)), (new(10), 11)] {
            assert!(request_outward(&about, &copy(node, handle), 3).is_err());
        }
    }
}
