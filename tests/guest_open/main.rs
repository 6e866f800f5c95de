// SPDX-License-Identifier: MIT OR Apache-2.0
//! Opens, listings and names that the kernel keeps: answered without the daemon, never stale, and
//! real whenever the daemon has to know. Runs in the guest.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/guest.rs"]
mod guest;

mod cached;
mod passthrough;
mod shared;
