// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations on a file, compared with a model: natively and on Stack mounted by stock FUSE.
//!
//! Level: native (root, /dev/fuse). By the environment: `EXTFUSE_FSX_DIR` (run there alone),
//! `EXTFUSE_FSX_OPS`, `EXTFUSE_FSX_SEED`, `EXTFUSE_FSX_MODE`. `cargo run --example fsx` does the same anywhere.

mod exerciser;
#[path = "../stack/mount.rs"]
mod mount;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use exerciser::{Mode, Run};
use extfuse::fs::StackOptions;
use extfuse::fs::upcalls::Opcode;
use mount::Mounted;

const OPS: u64 = 100_000;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|value| value.parse().unwrap())
}

fn exercise(dir: &Path, mode: Mode) {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = number("EXTFUSE_FSX_SEED").unwrap_or_else(clock);
    let run = Run {
        dir: dir.to_owned(),
        ops: number("EXTFUSE_FSX_OPS").unwrap_or(OPS),
        seed,
        mode,
    };
    println!("{run}");
    match run.run() {
        Ok(counts) => println!("{:?}", counts.0),
        Err(error) => panic!("{error}"),
    }
}

fn modes() -> Vec<Mode> {
    env::var("EXTFUSE_FSX_MODE").map_or(Mode::ALL.to_vec(), |mode| vec![mode.parse().unwrap()])
}

/// The other tests run this one as a process of its own: a process that serves a mount must not map its files.
#[test]
fn in_a_directory() {
    match env::var_os("EXTFUSE_FSX_DIR").map(PathBuf::from) {
        Some(dir) => modes().into_iter().for_each(|mode| exercise(&dir, mode)),
        None => {
            let dir = tempfile::tempdir().unwrap();
            modes().into_iter().for_each(|mode| exercise(dir.path(), mode));
        }
    }
}

fn on(m: &Mounted) {
    if env::var_os("EXTFUSE_FSX_DIR").is_some() {
        return;
    }
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "in_a_directory", "--nocapture"])
        .env("EXTFUSE_FSX_DIR", &m.mnt)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(m.source.read_dir().unwrap().count(), 0);
}

#[test]
fn on_stock_fuse_with_a_backing_file() {
    let m = Mounted::new();
    on(&m);
    assert_eq!(m.upcalls.get(Opcode::Read) + m.upcalls.get(Opcode::Write), 0);
}

#[test]
fn on_stock_fuse_without() {
    on(&Mounted::cached());
}

#[test]
fn on_stock_fuse_at_its_best() {
    let forever = std::time::Duration::from_secs(3600);
    on(&Mounted::with(StackOptions {
        entry_timeout: forever,
        attr_timeout: forever,
        keep_cache: true,
        ..StackOptions::default()
    }));
}

/// The exerciser itself: a file that somebody else changes is a difference that it finds.
#[test]
fn a_byte_that_changes_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run {
        dir: dir.path().to_owned(),
        ops: 1_000_000,
        seed: 1,
        mode: Mode::Cached,
    };
    let path = dir.path().join("fsx.cached.1");
    let spoiler = std::thread::spawn(move || {
        for _ in 0..1_000 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&path)
                && file.metadata().unwrap().len() > 10
            {
                // No byte that is written is even.
                std::os::unix::fs::FileExt::write_all_at(&file, &[2], 5).unwrap();
                return;
            }
        }
    });
    let error = run.run().unwrap_err();
    spoiler.join().unwrap();
    assert!(
        error.contains("--seed 1") && error.contains("last operations"),
        "{error}"
    );
}
