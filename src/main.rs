// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `extfuse` command.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
