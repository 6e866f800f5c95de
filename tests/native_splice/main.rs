// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers and payloads through stock FUSE: the same bytes by every way, and errors where something is
//! wrong, never a byte of it.

mod faults;
mod frames;
mod low_level;
mod mounts;
mod ways;
mod writes;
