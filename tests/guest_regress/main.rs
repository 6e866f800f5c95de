// SPDX-License-Identifier: MIT OR Apache-2.0
//! The faults of the published ExtFUSE, which must not come back: each is a test of the real program,
//! with handlers, on mounts with the default time to live and with `--exclusive`.
//!
//! Most make sure first that handlers answer for what is looked at (`Tree::warm`), then change it
//! through the mount, and compare what the mount shows with what the source has.

mod aging;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/guest.rs"]
mod guest;

mod attributes;
mod data;
mod ledger;
mod lifetime;
mod names;
mod racing;
