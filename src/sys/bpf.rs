// SPDX-License-Identifier: MIT OR Apache-2.0
//! What libbpf has and libbpf-rs does not offer, or only by raw descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libbpf_rs::{AsRawLibbpf, Link, Map, MapCore, MapFlags, libbpf_sys};

/// Puts the struct_ops `map` in the place of the one that `link` has attached, without a moment in
/// which none is (`bpf_link__update_map`).
///
/// # Errors
///
/// The errno of the kernel, or EINVAL if either is not of struct_ops.
pub fn update_struct_ops(link: &mut Link, map: &Map<'_>) -> io::Result<()> {
    // SAFETY: both objects are alive for the call; libbpf only stores the number of the map's
    // descriptor, which it does not use again.
    let code = unsafe {
        libbpf_sys::bpf_link__update_map(link.as_libbpf_object().as_ptr(), map.as_libbpf_object().as_ptr())
    };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

/// Puts `program` into slot `index` of a PROG_ARRAY.
///
/// # Errors
///
/// EINVAL if the array holds programs of another kind.
pub fn set_program(array: &impl MapCore, index: u32, program: BorrowedFd<'_>) -> libbpf_rs::Result<()> {
    array.update(
        &index.to_ne_bytes(),
        &program.as_raw_fd().to_ne_bytes(),
        MapFlags::ANY,
    )
}
