// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file systems.

pub(crate) mod kernel;
pub mod stack;
pub mod upcalls;

pub use stack::{Holding, Stack, StackError, StackOptions};
pub use upcalls::Upcalls;
