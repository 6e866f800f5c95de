// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers and payloads through stock FUSE: the same bytes by every way, and errors where something is
//! wrong, never a byte of it.

mod faults;
mod frames;
mod low_level;
mod mounts;
mod own_loop;
mod ways;
mod writes;

#[test]
fn a_loop_of_ones_own_splices_payloads_to_a_socket() {
    own_loop::payloads_go_from_the_device_to_a_socket("/dev/fuse", "fuse", own_loop::Sections::Stock);
}
