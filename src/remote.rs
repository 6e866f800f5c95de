// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory of another machine: what its server and those who mount it say to each other.

pub mod wire;
