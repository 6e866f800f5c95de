// SPDX-License-Identifier: MIT OR Apache-2.0
//! The BPF maps as [`Tables`].

use std::io;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use plain::Plain;

use super::tables::Tables;
use crate::abi::{AttrRow, EntryKey, EntryRow, NodeId, Wire, XattrKey, XattrRow};

/// `entry_map`, `attr_map` and `xattr_map` of a [`Context`](super::Context). They hold descriptors of their
/// own: writing to maps that no program reads any more does no harm.
#[derive(Debug)]
pub struct Maps {
    entries: MapHandle,
    attrs: MapHandle,
    xattrs: MapHandle,
}

impl Maps {
    /// The maps, if keys and values have the sizes of the contract.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if they have not.
    pub fn new(entries: MapHandle, attrs: MapHandle, xattrs: MapHandle) -> io::Result<Self> {
        let fits = |map: &MapHandle, key: usize, value: usize| {
            (map.key_size() as usize, map.value_size() as usize) == (key, value)
        };
        if fits(&entries, size_of::<EntryKey>(), size_of::<EntryRow>())
            && fits(&attrs, size_of::<NodeId>(), size_of::<AttrRow>())
            && fits(&xattrs, size_of::<XattrKey>(), size_of::<XattrRow>())
        {
            Ok(Self {
                entries,
                attrs,
                xattrs,
            })
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the maps' rows are not those of this program",
            ))
        }
    }
}

impl Tables for Maps {
    fn put_entry(&self, key: &EntryKey, row: &EntryRow) -> io::Result<()> {
        put(&self.entries, key.bytes(), row)
    }

    fn put_attr(&self, nodeid: NodeId, row: &AttrRow) -> io::Result<()> {
        put(&self.attrs, &nodeid.0.to_ne_bytes(), row)
    }

    fn entry(&self, key: &EntryKey) -> io::Result<Option<EntryRow>> {
        get(&self.entries, key.bytes())
    }

    fn attr(&self, nodeid: NodeId) -> io::Result<Option<AttrRow>> {
        get(&self.attrs, &nodeid.0.to_ne_bytes())
    }

    fn put_xattr(&self, key: &XattrKey, row: &XattrRow) -> io::Result<()> {
        put(&self.xattrs, key.bytes(), row)
    }

    fn xattr(&self, key: &XattrKey) -> io::Result<Option<XattrRow>> {
        get(&self.xattrs, key.bytes())
    }
}

fn put(map: &MapHandle, key: &[u8], row: &impl Wire) -> io::Result<()> {
    map.update(key, row.bytes(), MapFlags::ANY).map_err(io_error)
}

fn get<T: Wire + Default>(map: &MapHandle, key: &[u8]) -> io::Result<Option<T>> {
    let Some(bytes) = map.lookup(key, MapFlags::ANY).map_err(io_error)? else {
        return Ok(None);
    };
    let mut row = T::default();
    Plain::copy_from_bytes(&mut row, &bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the row is too short"))?;
    Ok(Some(row))
}

/// libbpf-rs does not give the errno away, only its kind.
fn io_error(error: libbpf_rs::Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::NotFound => io::ErrorKind::NotFound,
        ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
        ErrorKind::OutOfMemory => io::ErrorKind::OutOfMemory,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
