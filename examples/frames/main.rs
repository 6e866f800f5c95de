// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts the files of a directory, read over TCP in frames. The file system is in `filesystem.rs`.

mod filesystem;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use extfuse::ebpf::Object;
use extfuse::splice::{MountOptions, PathOptions, serve};

use filesystem::Frames;
use server::Files;

/// `gate.bpf.c`, as build.rs compiles it.
const GATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/frames_gate.bpf.o"));

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
    /// Have the server make a bit of every frame wrong, to see that nobody reads it
    #[arg(long)]
    spoil: bool,
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
    let files = Files::of(&arguments.source, arguments.spoil)
        .with_context(|| format!("cannot open the files of {source}"))?;
    let names = files
        .names_and_sizes()
        .with_context(|| format!("cannot look at the files of {source}"))?;
    let frames = Frames::new(names, files.serve().context("cannot listen")?);
    let options = MountOptions {
        fsname: "frames".into(),
        stock: arguments.stock,
        read_only: true,
        gate: Some(Object::new("gate.bpf.o", GATE)),
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
