// SPDX-License-Identifier: MIT OR Apache-2.0
//! File systems by path through the module: all operations.

#[path = "native_paths/checks.rs"]
mod checks;
#[path = "native_paths/memory.rs"]
mod memory;

use extfuse::splice::MountOptions;

#[test]
fn a_file_system_in_memory_does_everything() {
    for withhold in [false, true] {
        checks::everything(&MountOptions {
            require_module: true,
            withhold,
            withhold_from: 0,
            ..MountOptions::default()
        });
    }
}
