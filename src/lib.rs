// SPDX-License-Identifier: MIT OR Apache-2.0
//! FUSE file systems whose lookups, stats and reads are answered in the kernel.
//!
//! The parts, and which may use which: `fs` (the file systems) → [`ebpf`] (programs, maps and the
//! cache protocol), [`splice`] (payload between memory, files, pipes and sockets) and [`remote`] (what a
//! client and a server say to each other) → [`sys`] (system calls and ioctls) → [`abi`] (the numbers that all
//! parties share). [`merged`] (files put together from others) uses `splice` and `remote`.
//!
//! A [`fuser::Filesystem`] of your own gets it by its mount call:
//!
//! ```no_run
//! # struct Mine;
//! # impl fuser::Filesystem for Mine {}
//! let session = extfuse::mount(Mine, "/mnt", &extfuse::MountOptions::default())?;
//! session.unmount_on_signals()?;
//! session.serve()?; // until it is unmounted
//! # Ok::<(), extfuse::session::SessionError>(())
//! ```

pub mod abi;
pub mod control;
pub mod ebpf;
pub mod fs;
pub mod merged;
pub mod remote;
pub mod session;
pub mod splice;
mod sync;
pub mod sys;

pub use session::Session;
pub use session::author::{Kernel, MountOptions, mount, mount_with};
