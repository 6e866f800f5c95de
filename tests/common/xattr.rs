// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes of what a path names, which may be a symbolic link.
//!
//! Included by the tests that look at them.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The value; of `room` bytes at most, its size if that is 0.
pub fn get_in(path: &Path, name: &CStr, room: usize) -> Result<(usize, Vec<u8>), Errno> {
    let mut value = vec![0; room];
    // SAFETY: strings with a NUL, and room for `room` bytes.
    let size = unsafe { libc::lgetxattr(c(path).as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
    let size = Errno::result(size)? as usize;
    value.truncate(size);
    Ok((size, value))
}

pub fn get(path: &Path, name: &CStr) -> Result<Vec<u8>, Errno> {
    get_in(path, name, 4096).map(|(_, value)| value)
}

/// The names, each with its NUL; their size if `room` is 0.
pub fn list_in(path: &Path, room: usize) -> Result<(usize, Vec<u8>), Errno> {
    let mut names = vec![0_u8; room];
    // SAFETY: a string with a NUL, and room for `room` bytes.
    let size = unsafe { libc::llistxattr(c(path).as_ptr(), names.as_mut_ptr().cast(), room) };
    let size = Errno::result(size)? as usize;
    names.truncate(size);
    Ok((size, names))
}

pub fn set(path: &Path, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: strings with a NUL, and `value.len()` bytes.
    let result = unsafe {
        libc::lsetxattr(
            c(path).as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

pub fn remove(path: &Path, name: &CStr) -> Result<(), Errno> {
    // SAFETY: strings with a NUL.
    Errno::result(unsafe { libc::lremovexattr(c(path).as_ptr(), name.as_ptr()) }).map(drop)
}
