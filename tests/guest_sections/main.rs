// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payload splitting, at the level of the module's contract (`include/extfuse.h`): the test is the
//! daemon and the server, and looks at what the application sees.

#[path = "../common/mod.rs"]
mod common;
mod drain_ends;
mod drains;
mod dropped;
mod ends;
mod frames;
mod gate;
mod harness;
mod program;
mod wires;

mod reads;
mod refusals;
mod sizes;
mod waiting;
