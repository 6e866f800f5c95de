// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts the files of a directory, read over TCP in frames. The file system is in `filesystem.rs`.

mod filesystem;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use extfuse::splice::{MountOptions, PathOptions, serve};

use filesystem::Frames;
use server::Files;

/// Mounts the regular files of a directory, read over TCP in frames
#[derive(Debug, Parser)]
struct Arguments {
    /// Whose files are served
    source: PathBuf,
    /// Where they are mounted
    mountpoint: PathBuf,
    /// Use stock FUSE even where the extfuse module is loaded
    #[arg(long)]
    stock: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("frames: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let source = arguments.source.display();
    let files = Files::of(&arguments.source).with_context(|| format!("cannot open the files of {source}"))?;
    let names = files
        .names_and_sizes()
        .with_context(|| format!("cannot look at the files of {source}"))?;
    let frames = Frames::new(names, files.serve().context("cannot listen")?);
    let options = MountOptions {
        fsname: "frames".into(),
        stock: arguments.stock,
        read_only: true,
        ..MountOptions::default()
    };
    let paths = PathOptions {
        crc: true,
        ..PathOptions::default()
    };
    let mounted = serve(frames, &arguments.mountpoint, &options, paths)?;
    let unmounter = mounted.unmounter();
    ctrlc::set_handler(move || {
        if let Err(error) = unmounter.detach() {
            eprintln!("cannot unmount: {error}");
        }
    })?;
    Ok(mounted.serve()?)
}
