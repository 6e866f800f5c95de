// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes. ACLs are among them: the kernel asks for `system.posix_acl_*` like for any other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::{Result, Stack};
use crate::abi::NodeId;
use crate::sys::creds::{Acting, Caller};
use crate::sys::xattr;

/// The largest value and the largest list that the kernel handles (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX: usize = 64 * 1024;

/// What GETXATTR and LISTXATTR answer.
#[derive(Debug, PartialEq, Eq)]
pub enum XattrReply {
    /// How many bytes there are: the request had no room for any.
    Size(u32),
    /// The bytes.
    Data(Vec<u8>),
}

fn reply(value: Vec<u8>, room: u32) -> Result<XattrReply> {
    match room {
        0 => u32::try_from(value.len())
            .map(XattrReply::Size)
            .map_err(|_| Errno::E2BIG),
        room if value.len() > room as usize => Err(Errno::ERANGE),
        _ => Ok(XattrReply::Data(value)),
    }
}

fn is_acl(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"system.posix_acl_")
}

/// The names without those in `trusted.`, which only root gets to see.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let seen = names
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| !name.starts_with(b"trusted."));
    seen.flatten().copied().collect()
}

impl Stack {
    /// The value of an attribute; its size if `room`, in bytes, is 0.
    ///
    /// # Errors
    /// `ERANGE` if it is larger than `room`; those of getxattr(2).
    pub fn getxattr(&self, id: NodeId, name: &OsStr, room: u32) -> Result<XattrReply> {
        let node = self.nodes.get(id)?;
        if room == 0 {
            return u32::try_from(xattr::get(&*node, name, &mut [])?)
                .map(XattrReply::Size)
                .map_err(|_| Errno::E2BIG);
        }
        let mut value = vec![0; MAX.min(room as usize)];
        let size = xattr::get(&*node, name, &mut value)?;
        value.truncate(size);
        reply(value, room)
    }

    /// The names of all attributes that `caller` may see, each with a NUL at its end; their size if `room`, in
    /// bytes, is 0.
    ///
    /// # Errors
    /// `ERANGE` if they are larger than `room`; those of listxattr(2).
    pub fn listxattr(&self, id: NodeId, room: u32, caller: Caller) -> Result<XattrReply> {
        let node = self.nodes.get(id)?;
        let mut names = vec![0; MAX];
        let size = xattr::list(&*node, &mut names)?;
        names.truncate(size);
        if caller.uid != 0 {
            names = without_trusted(&names);
        }
        reply(names, room)
    }

    /// Sets an attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn setxattr(&self, id: NodeId, name: &OsStr, value: &[u8], flags: i32, caller: Caller) -> Result<()> {
        self.writable()?;
        let node = self.nodes.get(id)?;
        let _acting = match is_acl(name) {
            true => Some(Acting::setting_acl(caller)?),
            false => None,
        };
        xattr::set(&*node, name, value, flags)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// Those of removexattr(2).
    pub fn removexattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        self.writable()?;
        let node = self.nodes.get(id)?;
        xattr::remove(&*node, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_names_are_left_out_whole() {
        assert_eq!(
            without_trusted(b"user.a\0trusted.b\0user.trusted.c\0"),
            b"user.a\0user.trusted.c\0"
        );
        assert_eq!(without_trusted(b"trusted.b\0"), b"");
    }

    #[test]
    fn a_value_that_is_too_large_for_the_request_is_erange() {
        assert_eq!(reply(vec![0; 3], 0), Ok(XattrReply::Size(3)));
        assert_eq!(reply(vec![0; 3], 3), Ok(XattrReply::Data(vec![0; 3])));
        assert_eq!(reply(vec![0; 3], 2), Err(Errno::ERANGE));
    }
}
