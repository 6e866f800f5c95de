// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where rows are kept.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;

use crate::abi::{AttrRow, EntryKey, EntryRow, NodeId, XattrKey, XattrRow};
use crate::sync::{Mutex, PoisonError};

/// `entry_map`, `attr_map` and `xattr_map`, or what stands in for them. They may forget rows at will.
pub trait Tables: Debug + Send + Sync {
    /// Puts a row, in the place of the one that is there.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    fn put_entry(&self, key: &EntryKey, row: &EntryRow) -> io::Result<()>;

    /// Puts a row, in the place of the one that is there.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    fn put_attr(&self, nodeid: NodeId, row: &AttrRow) -> io::Result<()>;

    /// The row, which may be stale or, read while it was replaced, fail its check.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    fn entry(&self, key: &EntryKey) -> io::Result<Option<EntryRow>>;

    /// The row, which may be stale or, read while it was replaced, fail its check.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    fn attr(&self, nodeid: NodeId) -> io::Result<Option<AttrRow>>;

    /// Puts a row, in the place of the one that is there. Tables without extended attributes forget it.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    fn put_xattr(&self, _key: &XattrKey, _row: &XattrRow) -> io::Result<()> {
        Ok(())
    }

    /// The row, which may be stale or, read while it was replaced, fail its check.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    fn xattr(&self, _key: &XattrKey) -> io::Result<Option<XattrRow>> {
        Ok(None)
    }
}

/// Tables in this process, for a cache that no kernel reads.
#[derive(Debug, Default)]
pub struct InMemory {
    entries: Mutex<HashMap<(u64, u64), EntryRow>>,
    attrs: Mutex<HashMap<NodeId, AttrRow>>,
    xattrs: Mutex<HashMap<(u64, u64), XattrRow>>,
}

impl Tables for InMemory {
    fn put_entry(&self, key: &EntryKey, row: &EntryRow) -> io::Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert((key.parent, key.hash), *row);
        Ok(())
    }

    fn put_attr(&self, nodeid: NodeId, row: &AttrRow) -> io::Result<()> {
        self.attrs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(nodeid, *row);
        Ok(())
    }

    fn entry(&self, key: &EntryKey) -> io::Result<Option<EntryRow>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(entries.get(&(key.parent, key.hash)).copied())
    }

    fn attr(&self, nodeid: NodeId) -> io::Result<Option<AttrRow>> {
        Ok(self
            .attrs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&nodeid)
            .copied())
    }

    fn put_xattr(&self, key: &XattrKey, row: &XattrRow) -> io::Result<()> {
        let mut xattrs = self.xattrs.lock().unwrap_or_else(PoisonError::into_inner);
        xattrs.insert((key.nodeid, key.hash), *row);
        Ok(())
    }

    fn xattr(&self, key: &XattrKey) -> io::Result<Option<XattrRow>> {
        let xattrs = self.xattrs.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(xattrs.get(&(key.nodeid, key.hash)).copied())
    }
}
