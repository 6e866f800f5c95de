// SPDX-License-Identifier: MIT OR Apache-2.0
//! How mounts end: signals, unmounting, killing, aborting. Needs root.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Mounted, Scratch, children, eventually, mounts_at, runs};
use nix::sys::signal::{Signal, kill};

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

#[test]
fn a_signal_unmounts_and_ends_the_daemon_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let scratch = Scratch::new();
        let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
        let supervisor = mounted.supervisor();
        mounted.signal(signal);
        let (status, said) = mounted.wait();
        assert!(status.success() && said.is_empty(), "{signal}: {status} {said}");
        assert_eq!(mounts_at(mounted.path()), []);
        assert!(!runs(supervisor));
    }
}

#[test]
fn unmounting_from_outside_ends_the_daemon_well() {
    for arguments in [&[][..], &["-l"]] {
        let scratch = Scratch::new();
        let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
        run("umount", arguments, mounted.path());
        let (status, said) = mounted.wait();
        assert!(status.success() && said.is_empty(), "{status} {said}");
    }
}

#[test]
fn a_mount_in_use_is_detached_by_a_signal_and_served_to_its_last_user() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
    let mut file = File::open(mounted.join("file")).unwrap();
    mounted.signal(Signal::SIGTERM);
    eventually(|| mounts_at(mounted.path()).is_empty());
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    assert!(runs(mounted.pid()));
    drop(file);
    let (status, said) = mounted.wait();
    assert!(status.success(), "{status} {said}");
    assert!(said.contains("in use") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_second_signal_ends_what_is_in_use() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mut mounted = Mounted::scratch(&scratch, &["--stock", "-o", "no_passthrough"]);
    let mut file = File::open(mounted.join("file")).unwrap();
    mounted.signal(Signal::SIGTERM);
    eventually(|| mounts_at(mounted.path()).is_empty());
    mounted.signal(Signal::SIGTERM);
    assert_eq!(mounted.wait().0.code(), Some(1));
    assert!(file.read(&mut [0; 16]).is_err());
}

#[test]
fn a_killed_daemon_leaves_no_dead_mount_and_no_process() {
    for _ in 0..20 {
        let scratch = Scratch::new();
        scratch.write("file", "content");
        let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
        let supervisor = mounted.supervisor();
        let path = mounted.join("file");
        let load =
            std::thread::spawn(move || while fs::read(&path).is_ok_and(|content| content == b"content") {});
        mounted.signal(Signal::SIGKILL);
        mounted.wait();
        let start = Instant::now();
        eventually(|| mounts_at(mounted.path()).is_empty());
        load.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        eventually(|| !runs(supervisor));
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_daemon_killed_while_its_mount_is_in_use_leaves_no_dead_mount() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mut mounted = Mounted::scratch(&scratch, &["--stock", "-o", "no_passthrough"]);
    let mut file = File::open(mounted.join("file")).unwrap();
    mounted.signal(Signal::SIGKILL);
    mounted.wait();
    eventually(|| mounts_at(mounted.path()).is_empty());
    assert!(file.read(&mut [0; 16]).is_err());
}

#[test]
fn the_watch_does_not_touch_what_was_mounted_over_it() {
    let scratch = Scratch::new();
    let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
    let supervisor = mounted.supervisor();
    run("mount", &["-t", "tmpfs", "none"], mounted.path());
    mounted.signal(Signal::SIGKILL);
    mounted.wait();
    eventually(|| !runs(supervisor));
    let left: Vec<_> = mounts_at(mounted.path())
        .into_iter()
        .map(|entry| entry.fs_type)
        .collect();
    run("umount", &[], mounted.path());
    assert_eq!(left, ["fuse.extfuse", "tmpfs"]);
}

#[test]
fn the_watch_outlives_signals_to_the_whole_service() {
    let scratch = Scratch::new();
    let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
    let supervisor = mounted.supervisor();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(supervisor, signal).unwrap();
    }
    mounted.signal(Signal::SIGKILL);
    mounted.wait();
    eventually(|| mounts_at(mounted.path()).is_empty());
}

#[test]
fn the_watch_holds_nothing_of_the_daemon() {
    let scratch = Scratch::new();
    let mounted = Mounted::scratch(&scratch, &["--stock"]);
    let supervisor = mounted.supervisor();
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    eventually(|| name(supervisor).trim() == "extfuse-watch");
    let open = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
    let mut open: Vec<_> = open.map(|entry| fs::read_link(entry.path()).unwrap()).collect();
    open.retain(|path| path != Path::new("/dev/null"));
    assert_eq!(open.len(), 1, "{open:?}");
    assert!(open[0].starts_with("socket:") || open[0].to_str().unwrap().starts_with("socket:"));
    assert_eq!(children(supervisor), []);
}

#[test]
fn an_aborted_connection_is_an_error_and_leaves_no_dead_mount() {
    let scratch = Scratch::new();
    let control = scratch.path().join("control");
    fs::create_dir(&control).unwrap();
    let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
    run("mount", &["-t", "fusectl", "none"], &control);
    let abort = control.join(mounted.entry().dev.minor.to_string()).join("abort");
    let aborted = fs::write(abort, "1");
    run("umount", &[], &control);
    aborted.unwrap();
    let (status, said) = mounted.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(said, "extfuse: the connection was aborted\n");
    assert_eq!(mounts_at(mounted.path()), []);
}
