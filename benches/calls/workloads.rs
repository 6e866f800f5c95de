// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that people run on a tree of sources, and such a tree. Stands alone, as the tests use it too.

// The tests and each suite use a part of it.
#![allow(dead_code)]

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, UNIX_EPOCH};

/// Directories of the tree, without the root and git's own.
pub const DIRECTORIES: usize = 52;
/// Files in each.
pub const FILES: usize = 18;

/// A program and its arguments, run in the root of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub arguments: &'static [&'static str],
    /// Every file of the tree follows as an argument.
    pub each_file: bool,
    /// Exit status.
    pub status: i32,
}

impl Workload {
    const fn new(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self {
            name,
            arguments,
            each_file: false,
            status: 0,
        }
    }
}

/// Those that change nothing, and that a warm tree is asked by.
pub const READERS: &[Workload] = &[
    Workload::new("find", &["find", "."]),
    Workload::new("ls-lR", &["ls", "-lR", "."]),
    // Without its lock: git would make a file and remove it, to write the index if that were of use.
    Workload::new(
        "git-status",
        &["git", "--no-optional-locks", "status", "--porcelain"],
    ),
    Workload {
        status: 1, // nothing found, everything read
        ..Workload::new("grep-r", &["grep", "-r", "no such words", "."])
    },
    Workload {
        each_file: true,
        ..Workload::new("stat", &["stat", "--format=%n %s %i %h %Y %A"])
    },
    Workload {
        each_file: true,
        ..Workload::new("cat", &["cat"])
    },
];

/// The paths of all files, relative to the root.
pub fn files() -> Vec<String> {
    let in_directory = |i: usize| (0..FILES).map(move |j| format!("{}/file_{j:02}.c", directory(i)));
    (0..DIRECTORIES).flat_map(in_directory).collect()
}

/// Directories lie up to four deep.
fn directory(i: usize) -> String {
    match i {
        0..4 => format!("dir_{i:02}"),
        _ => format!("{}/dir_{i:02}", directory(i / 4 - 1)),
    }
}

/// Lines of text, 300 bytes to 9 KiB of them.
fn content(i: usize) -> String {
    let lines = 6 + i * i % 173;
    let line = |n| {
        format!(
            "static int value_{i:04}_{n:04} = {:>10}; /* of {lines} */\n",
            n * 31 + i
        )
    };
    (0..lines).map(line).collect()
}

/// Makes the tree, under git's control.
pub fn make(at: &Path) -> io::Result<()> {
    // Long ago: git looks into files that are as young as its index.
    let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_600_000_000));
    for i in 0..DIRECTORIES {
        fs::create_dir_all(at.join(directory(i)))?;
    }
    for (i, file) in files().iter().enumerate() {
        let path = at.join(file);
        fs::write(&path, content(i))?;
        File::options().write(true).open(&path)?.set_times(times)?;
    }
    for arguments in [
        &["init", "--quiet", "--template="][..],
        &["add", "."],
        &["commit", "--quiet", "--message=all"],
        &["repack", "-adq"],
    ] {
        let mut git = Command::new("git");
        git.arg("-c").arg("user.name=nobody");
        git.arg("-c").arg("user.email=nobody@localhost");
        git.args(arguments).current_dir(at);
        succeed(quiet(&mut git))?;
    }
    Ok(())
}

/// Nothing of the user's own settings.
pub fn quiet(command: &mut Command) -> &mut Command {
    command
        .env("LC_ALL", "C")
        // Not that of a file, which would be waited for: there is none below this.
        .env("TZ", "UTC0")
        .env("TZDIR", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::null())
}

fn succeed(command: &mut Command) -> io::Result<Output> {
    let shown = format!("{command:?}");
    let output = command.output()?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{shown}: {}: {said}", output.status)))
}
