// SPDX-License-Identifier: MIT OR Apache-2.0
//! The synchronisation primitives of the cache protocol.
//!
//! `tests/pure_cache_model.rs` compiles the protocol's sources against shuttle's primitives in place of
//! these, and so checks the very code that runs.

pub use std::sync::atomic::{AtomicU64, Ordering};
pub use std::sync::{Mutex, PoisonError};
