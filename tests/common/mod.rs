// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts for tests: made with the real program, gone when the test ends.

// Every test program uses a part of it.
#![allow(dead_code)]

pub mod pages;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use extfuse::control::Report;
use extfuse::sys::mountinfo::{self, Location, MountEntry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long enough for an emulated guest, short enough to notice what hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const EXTFUSE: &str = env!("CARGO_BIN_EXE_extfuse");

/// A folder with an empty source and an empty mount point, removed at the end.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("extfuse-test-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        fs::create_dir(dir.path().join("mount")).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn source(&self) -> PathBuf {
        self.path().join("source")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.path().join("mount")
    }

    /// Puts a file into the source.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.source().join(name), text).unwrap();
    }
}

/// A mount with its daemon, which runs in the foreground as a child of the test.
#[derive(Debug)]
pub struct Mounted {
    child: Child,
    mountpoint: PathBuf,
}

impl Mounted {
    /// Mounts `source` at `mountpoint` with further arguments for `extfuse mount`.
    pub fn start(source: &Path, mountpoint: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(EXTFUSE);
        command
            .arg("mount")
            .arg("-f")
            .args(arguments)
            .arg(source)
            .arg(mountpoint);
        Self::from_command(command, mountpoint)
    }

    /// Mounts the source of `scratch` at its mount point.
    pub fn scratch(scratch: &Scratch, arguments: &[&str]) -> Self {
        Self::start(&scratch.source(), &scratch.mountpoint(), arguments)
    }

    /// Runs a command that serves `mountpoint` until it ends.
    pub fn from_command(mut command: Command, mountpoint: &Path) -> Self {
        let before = mounts_at(mountpoint).len();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut mounted = Self {
            child,
            mountpoint: mountpoint.to_owned(),
        };
        let start = Instant::now();
        while mounts_at(mountpoint).len() == before {
            if let Some(status) = mounted.child.try_wait().unwrap() {
                panic!("{command:?}: {status}: {}", mounted.stderr());
            }
            assert!(start.elapsed() < PATIENCE, "{command:?} does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        mounted
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// A path below the mount point.
    pub fn join(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The daemon's process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The process that watches over the daemon.
    pub fn supervisor(&self) -> Pid {
        let children = children(self.pid());
        assert_eq!(children.len(), 1, "{children:?}");
        children[0]
    }

    /// Its row in the mount table.
    pub fn entry(&self) -> MountEntry {
        mounts_at(&self.mountpoint).pop().expect("mounted")
    }

    /// What `extfuse stat --json` says.
    pub fn report(&self) -> Report {
        let output = extfuse(&["stat", "--json", self.mountpoint.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the daemon's end; gives its status and what it said on standard error.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.stderr());
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_string(&mut text).unwrap();
        }
        text
    }
}

impl Drop for Mounted {
    /// Leaves no mount and no process, whatever the test did. No failure here: it would hide the
    /// one that the test has found.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(self.pid(), Signal::SIGCONT);
            let _ = kill(self.pid(), Signal::SIGTERM);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(10)
                && self.child.try_wait().is_ok_and(|status| status.is_none())
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Ok(location) = Location::of(&self.mountpoint)
            && location.is_mount_point()
            && location.mount.is_ours()
        {
            let _ = extfuse::sys::mount::detach(&location);
        }
    }
}

/// Runs `extfuse` to its end, or kills it when it hangs (exit code 124).
pub fn extfuse(arguments: &[&str]) -> Output {
    let limit = PATIENCE.as_secs().to_string();
    let mut command = Command::new("timeout");
    command
        .args(["-k", "1", &limit, EXTFUSE])
        .args(arguments)
        .stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs `extfuse`, which must fail with `code` and exactly one line on standard error: that line.
pub fn refusal(code: i32, arguments: &[&str]) -> String {
    let output = extfuse(arguments);
    one_line(code, &output)
}

/// The one line on standard error of a command that failed with `code`.
pub fn one_line(code: i32, output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.strip_prefix("extfuse: ").expect(&text).trim_end().to_owned()
}

/// What is mounted at a path, the topmost last.
pub fn mounts_at(path: &Path) -> Vec<MountEntry> {
    let mut entries = mountinfo::entries().unwrap();
    entries.retain(|entry| entry.mount_point == path);
    entries
}

/// Waits until `what` is true.
pub fn eventually(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "still not so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The children of a process.
pub fn children(parent: Pid) -> Vec<Pid> {
    let line = format!("PPid:\t{parent}");
    let status = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| status(pid).lines().any(|text| text == line))
        .map(Pid::from_raw)
        .collect()
}

/// Whether a process runs: a zombie does not.
pub fn runs(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}
