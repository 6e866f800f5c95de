// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example `frames`, as a user runs it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{EXTFUSE, Mounted, Scratch, mounts_at};
use nix::sys::signal::Signal;

/// Built with the tests.
fn frames() -> PathBuf {
    let path = Path::new(EXTFUSE).with_file_name("examples").join("frames");
    assert!(path.exists(), "cargo build --example frames");
    path
}

#[test]
fn files_are_read_over_the_socket_and_an_interrupt_unmounts() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(i) >> 8) as u8)
        .collect();
    fs::write(scratch.source().join("large"), &bytes).unwrap();
    scratch.write("empty", "");
    scratch.write("small", "hello\n");
    let mut command = Command::new(frames());
    command
        .arg("--stock")
        .arg(scratch.source())
        .arg(scratch.mountpoint());
    let mut mounted = Mounted::from_command(command, &scratch.mountpoint());
    let mut names: Vec<_> = fs::read_dir(mounted.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["empty", "large", "small"]);
    assert!(fs::read(mounted.join("large")).unwrap() == bytes);
    assert_eq!(fs::read_to_string(mounted.join("small")).unwrap(), "hello\n");
    assert_eq!(fs::read(mounted.join("empty")).unwrap(), b"");
    assert!(fs::write(mounted.join("new"), "x").is_err());
    mounted.signal(Signal::SIGINT);
    let (status, words) = mounted.wait();
    assert!(status.success(), "{words}");
    assert!(mounts_at(&scratch.mountpoint()).is_empty());
}

#[test]
fn mistakes_are_told_in_a_line() {
    let scratch = Scratch::new();
    let run = |source: &Path, mountpoint: &Path| {
        let output = Command::new(frames())
            .arg(source)
            .arg(mountpoint)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(words.lines().count(), 1, "{words}");
        words
    };
    let missing = scratch.path().join("missing");
    assert!(run(&missing, &scratch.mountpoint()).contains("missing: No such file"));
    assert!(run(&scratch.source(), &missing).contains("missing: No such file"));
    let help = Command::new(frames()).arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--stock"));
}
