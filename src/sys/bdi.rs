// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel knows of the device below a file system: `/sys/class/bdi`.

use std::fs;
use std::io;

use super::mountinfo::Dev;

/// How far the kernel reads ahead of an application that reads one byte after the other, in bytes; whole KiB. For
/// the file system as a whole, until it is gone.
///
/// # Errors
///
/// Of the file `read_ahead_kb`: who is not root may not write to it, and a container's may be read-only.
pub fn set_read_ahead(dev: Dev, bytes: u32) -> io::Result<()> {
    let file = format!("/sys/class/bdi/{dev}/read_ahead_kb");
    fs::write(file, (bytes >> 10).to_string())
}
