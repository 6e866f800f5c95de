// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations on a file in any directory, compared with a model in memory.

#[path = "../tests/fsx/exerciser.rs"]
mod exerciser;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use exerciser::{Mode, Run};

/// Random operations on a file, compared with a model.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the file is made
    dir: PathBuf,
    /// How many operations
    #[arg(long, default_value_t = 100_000)]
    ops: u64,
    /// What they are drawn from; the clock, if not given
    #[arg(long)]
    seed: Option<u64>,
    /// cached, direct or mmap
    #[arg(long, default_value = "cached")]
    mode: Mode,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let clock = || {
        std::time::UNIX_EPOCH
            .elapsed()
            .map_or(1, |now| now.as_nanos() as u64)
    };
    let seed = arguments.seed.unwrap_or_else(clock);
    let run = Run {
        dir: arguments.dir,
        ops: arguments.ops,
        seed,
        mode: arguments.mode,
    };
    println!("{run}");
    match run.run() {
        Ok(counts) => {
            counts
                .0
                .iter()
                .for_each(|(name, count)| println!("{count:8} {name}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
