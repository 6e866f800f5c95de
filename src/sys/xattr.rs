// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes of an inode that is held by an `O_PATH` descriptor.
//!
//! The `f*xattr` calls refuse such a descriptor; the path under /proc leads to the inode itself, so these
//! are the `l*xattr` calls' semantics, symbolic links included.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::at::proc_path;

fn c_path(fd: impl AsFd) -> Result<CString, Errno> {
    CString::new(proc_path(fd).into_os_string().as_encoded_bytes()).map_err(|_| Errno::EINVAL)
}

fn c_name(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Reads an attribute into `value`, or tells its size if `value` is empty. Bytes.
pub fn get(fd: impl AsFd, name: &OsStr, value: &mut [u8]) -> Result<usize, Errno> {
    let (path, name) = (c_path(fd)?, c_name(name)?);
    // SAFETY: both strings end with a NUL; the kernel writes at most `value.len()` bytes.
    let rc = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    Errno::result(rc).map(|n| n as usize)
}

/// Reads the names, each with a NUL at its end, or tells their size if `names` is empty. Bytes.
pub fn list(fd: impl AsFd, names: &mut [u8]) -> Result<usize, Errno> {
    let path = c_path(fd)?;
    // SAFETY: the path ends with a NUL; the kernel writes at most `names.len()` bytes.
    let rc = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    Errno::result(rc).map(|n| n as usize)
}

/// Sets an attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
pub fn set(fd: impl AsFd, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Errno> {
    let (path, name) = (c_path(fd)?, c_name(name)?);
    // SAFETY: both strings end with a NUL; the kernel reads `value.len()` bytes.
    let rc = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    };
    Errno::result(rc).map(drop)
}

/// Removes an attribute.
pub fn remove(fd: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let (path, name) = (c_path(fd)?, c_name(name)?);
    // SAFETY: both strings end with a NUL.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}
