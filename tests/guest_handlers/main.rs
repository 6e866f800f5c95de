// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the module does with programs, right and wrong ones. Runs in the guest.

mod attach;
mod events;
mod harness;
mod stamps;
mod verdicts;
mod walk;
