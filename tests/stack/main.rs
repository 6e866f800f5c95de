// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stack as users see it, mounted by the stock FUSE of the running kernel.
//!
//! Level: native (root, /dev/fuse).

mod attributes;
mod data;
mod messages;
mod mount;
mod namespace;
mod passthrough;
mod permissions;
mod xattr;
