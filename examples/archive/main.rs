// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts a tar or zip archive, read-only. The file system is in `filesystem.rs`.

mod filesystem;
mod members;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use extfuse::MountOptions;

/// Mounts a tar or zip archive, read-only
#[derive(Debug, Parser)]
struct Arguments {
    /// A tar (not compressed as a whole) or a zip
    archive: PathBuf,
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Use stock FUSE even where the extfuse module is loaded
    #[arg(long)]
    stock: bool,
    /// How many bytes of unpacked members there may be, in temporary files
    #[arg(long, default_value_t = 1 << 30)]
    spool: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("archive: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let options = MountOptions {
        stock: arguments.stock,
        threads: 2,
        ..MountOptions::default()
    };
    let (archive, mountpoint) = (&arguments.archive, &arguments.mountpoint);
    let session = filesystem::mount(archive, mountpoint, arguments.spool, &options)?;
    for warning in session.warnings() {
        eprintln!("archive: warning: {warning}");
    }
    session.unmount_on_signals()?;
    session.serve()?;
    Ok(())
}
