// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raw system calls and ioctls: the only `unsafe` beside the skeleton.

pub mod at;
pub mod bdi;
pub mod bpf;
pub mod creds;
pub mod device;
pub mod inode_flags;
pub mod kernel;
pub mod lent;
pub mod lock;
pub mod mount;
pub mod mountinfo;
pub mod pipe;
pub mod process;
pub mod sendfile;
pub mod shrink;
pub mod stream;
pub mod tls;
pub mod xattr;
