// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backing files of nodes, at the level of the module's contract (`include/extfuse.h`): READs that are
//! filled in the kernel, wherever the daemon says that the file's bytes are valid.

// Lists of ranges, some of one.
#![allow(clippy::single_range_in_vec_init)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../fsx/exerciser.rs"]
#[allow(dead_code)]
mod exerciser;
#[path = "../common/daemon.rs"]
#[allow(dead_code)]
mod harness;
mod reading;

mod changing;
mod edges;
mod ends;
mod exercised;
mod handlers;
mod kinds;
mod nodes;
mod refusals;
