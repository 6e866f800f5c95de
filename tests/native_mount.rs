// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounting through stock FUSE: what is shown, what works, what is told. Needs root.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{EXTFUSE, Mounted, Scratch, extfuse, mounts_at, one_line, refusal, runs};
use extfuse::control::Mode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_mount_table_shows_source_type_and_safe_flags() {
    let scratch = Scratch::new();
    let source = scratch.path().join("a b,c\\d\ne");
    fs::create_dir(&source).unwrap();
    let mounted = Mounted::start(&source, &scratch.mountpoint(), &["--stock"]);
    let entry = mounted.entry();
    assert_eq!(entry.source, source);
    assert_eq!(entry.fs_type, "fuse.extfuse");
    assert_eq!(entry.owner(), Some(0));
    assert!(entry.super_options.contains("default_permissions,allow_other"));
    let flags = nix::sys::statvfs::statvfs(mounted.path()).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID | nix::sys::statvfs::FsFlags::ST_NODEV));
}

#[test]
fn options_reach_the_kernel() {
    let scratch = Scratch::new();
    let options = "ro,noexec,suid,fsname=x,subtype=y,no_allow_other,max_read=8192";
    let mounted = Mounted::scratch(&scratch, &["--stock", "-o", options]);
    let entry = mounted.entry();
    assert_eq!(
        (entry.source.to_str(), entry.fs_type.as_str()),
        (Some("x"), "fuse.y")
    );
    assert!(entry.super_options.starts_with("ro,") && entry.super_options.contains("max_read=8192"));
    assert!(!entry.super_options.contains("allow_other"));
    let error = fs::write(mounted.join("new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn files_are_served_also_with_one_thread_and_relative_paths() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mut command = Command::new(EXTFUSE);
    command
        .args(["mount", "-f", "--stock", "--threads", "1", "source", "mount"])
        .current_dir(scratch.path());
    let mounted = Mounted::from_command(command, &scratch.mountpoint());
    assert_eq!(fs::read_to_string(mounted.join("file")).unwrap(), "content");
    assert_eq!(mounted.report().threads, 1);
}

#[test]
fn the_command_returns_when_the_mount_can_be_used() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let (source, mountpoint) = (scratch.source(), scratch.mountpoint());
    let output = extfuse(&["mount", "--stock", text(&source), text(&mountpoint)]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let content = fs::read_to_string(mountpoint.join("file"));
    let report = extfuse(&["stat", "--json", text(&mountpoint)]);
    let unmounted = extfuse(&["umount", text(&mountpoint)]);
    assert!(unmounted.status.success(), "{unmounted:?}");
    assert_eq!(content.unwrap(), "content");
    // The daemon ends with its mount.
    let report: extfuse::control::Report = serde_json::from_slice(&report.stdout).unwrap();
    let pid = Pid::from_raw(report.pid.cast_signed());
    common::eventually(|| !runs(pid));
    assert_eq!(mounts_at(&mountpoint), []);
}

#[test]
fn a_source_may_lie_below_the_mount_point_or_be_it() {
    let scratch = Scratch::new();
    let inner = scratch.mountpoint().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("file"), "content").unwrap();
    for mountpoint in [scratch.mountpoint(), inner.clone()] {
        let mounted = Mounted::start(&inner, &mountpoint, &["--stock"]);
        assert_eq!(fs::read_to_string(mounted.join("file")).unwrap(), "content");
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 1);
    }
}

#[test]
fn the_report_counts_what_the_daemon_is_asked() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mounted = Mounted::scratch(&scratch, &["--stock"]);
    let lookups = || {
        mounted
            .report()
            .opcodes
            .get("LOOKUP")
            .map_or(0, |row| row.upcalls)
    };
    let before = lookups();
    for _ in 0..10 {
        fs::metadata(mounted.join("file")).unwrap();
    }
    assert_eq!(lookups() - before, 10);
    let report = mounted.report();
    assert_eq!((report.mode, report.program), (Mode::Stock, None));
    assert_eq!(Path::new(&report.source), scratch.source());
    assert_eq!(report.pid.cast_signed(), mounted.pid().as_raw());
    assert_eq!(report.dev, mounted.entry().dev.to_string());
    let table = String::from_utf8(extfuse(&["stat", text(mounted.path())]).stdout).unwrap();
    assert!(
        table.contains("LOOKUP") && table.contains("stock FUSE"),
        "{table}"
    );
}

#[test]
fn without_handlers_the_kernel_keeps_names_for_the_ttl_if_one_is_given() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    for (arguments, asked) in [
        (&["--ttl", "0"][..], 5),
        (&["--ttl", "60"], 1),
        (&["--exclusive"], 1),
    ] {
        let mounted = Mounted::scratch(&scratch, &[&["--stock"], arguments].concat());
        for _ in 0..5 {
            fs::metadata(mounted.join("file")).unwrap();
        }
        assert_eq!(mounted.report().opcodes["LOOKUP"].upcalls, asked, "{arguments:?}");
    }
}

#[test]
fn a_stopped_daemon_cannot_hang_who_asks_about_it() {
    let scratch = Scratch::new();
    let mounted = Mounted::scratch(&scratch, &["--stock"]);
    mounted.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let line = refusal(1, &["stat", text(mounted.path())]);
    assert!(line.ends_with("its daemon does not answer"), "{line}");
    let line = refusal(
        1,
        &["mount", "--stock", text(&scratch.source()), text(mounted.path())],
    );
    assert!(line.contains("is occupied"), "{line}");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(
        extfuse(&["umount", "--lazy", text(mounted.path())])
            .status
            .success()
    );
    assert_eq!(mounts_at(mounted.path()), []);
}

#[test]
fn a_dead_mount_is_named_and_can_be_taken_off() {
    let scratch = Scratch::new();
    let mut mounted = Mounted::scratch(&scratch, &["--stock"]);
    kill(mounted.supervisor(), Signal::SIGKILL).unwrap();
    mounted.signal(Signal::SIGKILL);
    mounted.wait();
    let path = text(mounted.path());
    assert_eq!(
        fs::metadata(path).unwrap_err().raw_os_error(),
        Some(libc::ENOTCONN)
    );
    let line = refusal(1, &["stat", path]);
    assert!(line.ends_with("its daemon is not running"), "{line}");
    let line = refusal(1, &["mount", "--stock", text(&scratch.source()), path]);
    assert!(
        line.contains("is occupied") && line.contains("extfuse umount"),
        "{line}"
    );
    assert!(extfuse(&["umount", path]).status.success());
    assert_eq!(mounts_at(mounted.path()), []);
}

/// Runs a script in a mount namespace of its own, where every user may open /dev/fuse.
fn in_namespace(scratch: &Scratch, script: &str) -> std::process::Output {
    let prepare =
        "mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse && chown 65534 mount && chmod 755 . && ";
    let as_user = "user() { setpriv --reuid $1 --regid $1 --clear-groups \"$EXTFUSE\" \"$2\" \"$3\" $4; }; ";
    Command::new("timeout")
        .args([
            "-k",
            "1",
            "60",
            "unshare",
            "-m",
            "--propagation",
            "private",
            "bash",
            "-c",
        ])
        .arg(format!("{prepare}{as_user}{script}"))
        .env("EXTFUSE", EXTFUSE)
        .current_dir(scratch.path())
        .output()
        .unwrap()
}

#[test]
fn users_mount_through_fusermount_and_only_the_owner_and_root_may_unmount_or_ask() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let script = r#"
        user 65534 mount source mount &&
        grep -q "$PWD/mount .* - fuse.extfuse $PWD/source .*user_id=65534" /proc/self/mountinfo && echo listed
        setpriv --reuid 65534 --regid 65534 --clear-groups cat mount/file && echo
        user 65534 stat mount | grep -o "served by"
        user 1234 stat mount; user 1234 umount mount; user 1234 umount mount --lazy
        "$EXTFUSE" stat mount | grep -o "served by"
        user 65534 umount mount && ! grep "$PWD/mount" /proc/self/mountinfo && echo unmounted
    "#;
    let output = in_namespace(&scratch, script);
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    let said: Vec<_> = stdout.lines().collect();
    assert_eq!(
        said,
        [
            "extfuse: source is mounted at mount",
            "listed",
            "content",
            "served by",
            "served by",
            "unmounted"
        ],
        "{stderr}"
    );
    let complaints: Vec<_> = stderr.lines().collect();
    let refused = "extfuse: mount belongs to uid 65534, not to you (uid 1234)";
    assert_eq!(complaints.len(), 4, "{stderr}");
    assert!(
        complaints[0].contains("warning") && complaints[0].contains("falling back to stock FUSE"),
        "{stderr}"
    );
    assert!(
        complaints[1].ends_with("only its owner and root may ask its daemon"),
        "{stderr}"
    );
    assert_eq!(complaints[2..], [refused, refused]);
}

#[test]
fn a_users_mount_goes_when_its_daemon_is_killed_and_stays_when_in_use() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let script = r#"
        gone() { for i in $(seq 500); do grep -q "$PWD/mount" /proc/self/mountinfo || return 0; sleep 0.01; done; return 1; }
        pid() { "$EXTFUSE" stat mount --json | tr -dc '0-9\n:pid"' | sed -n 's/.*"pid"://p'; }
        user 65534 mount source mount >/dev/null 2>&1
        setpriv --reuid 65534 --regid 65534 --clear-groups bash -c 'exec 9<mount/file; exec sleep 60' & holder=$!
        sleep 0.3
        user 65534 umount mount
        kill -9 "$(pid)"
        gone && echo gone
        kill $holder
    "#;
    let output = in_namespace(&scratch, script);
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert_eq!(stdout.trim(), "gone", "{stderr}");
    assert!(stderr.contains("mount is in use"), "{stderr}");
}

#[test]
fn without_a_device_there_is_one_line_and_no_mount() {
    let scratch = Scratch::new();
    let script = r#"mkdir dev && mount -t tmpfs none dev && cp -a /dev/null dev && mount --bind dev /dev &&
        "$EXTFUSE" mount --stock source mount"#;
    let output = in_namespace(&scratch, script);
    assert_eq!(
        one_line(1, &output),
        "cannot open /dev/fuse: No such file or directory"
    );
}

#[test]
fn without_the_module_there_is_one_warning_or_an_error_if_it_is_required() {
    let scratch = Scratch::new();
    let (source, mountpoint) = (scratch.source(), scratch.mountpoint());
    let line = refusal(
        1,
        &["mount", "--require-module", text(&source), text(&mountpoint)],
    );
    assert_eq!(
        line,
        "the extfuse module is not loaded, and the module is required"
    );
    assert_eq!(mounts_at(&mountpoint), []);
    let output = extfuse(&["mount", text(&source), text(&mountpoint)]);
    let report = extfuse(&["stat", "--json", text(&mountpoint)]);
    let unmounted = extfuse(&["umount", text(&mountpoint)]);
    for output in [&output, &report, &unmounted] {
        assert!(output.status.success(), "{output:?}");
    }
    let warning = String::from_utf8(output.stderr).unwrap();
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(
        warning.starts_with("extfuse: warning: the extfuse module is not loaded"),
        "{warning}"
    );
    assert!(
        String::from_utf8(report.stdout)
            .unwrap()
            .contains("is not loaded")
    );
}

#[test]
fn answers_that_are_errors_are_counted() {
    let scratch = Scratch::new();
    let mounted = Mounted::scratch(&scratch, &["--stock"]);
    fs::create_dir(mounted.join("dir")).unwrap();
    fs::write(mounted.join("dir/file"), "").unwrap();
    fs::remove_dir(mounted.join("dir")).unwrap_err();
    let rmdir = mounted.report().opcodes["RMDIR"];
    assert_eq!((rmdir.upcalls, rmdir.errors), (1, Some(1)));
    assert_eq!(mounted.report().opcodes["MKDIR"].errors, Some(0));
}

#[test]
fn a_tree_is_seen_whole_with_fewer_descriptors_than_it_has_files() {
    let scratch = Scratch::new();
    for number in 0..3000 {
        scratch.write(&number.to_string(), "x");
    }
    // Who may raise limits would.
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=800:800", "setpriv", "--bounding-set", "-sys_resource"])
        .args([EXTFUSE, "mount", "-f", "--stock"])
        .args([scratch.source(), scratch.mountpoint()]);
    let mounted = Mounted::from_command(command, &scratch.mountpoint());
    let in_use = fs::File::open(mounted.join("7")).unwrap();
    let inode = |file: std::io::Result<fs::Metadata>| file.unwrap().ino();
    let was = inode(in_use.metadata());
    for number in 0..3000 {
        // Fast enough for what is forgotten in the background.
        if number % 100 == 99 {
            thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(
            fs::read(mounted.join(&number.to_string())).unwrap(),
            b"x",
            "{number}"
        );
    }
    assert_eq!(inode(in_use.metadata()), was);
    assert_eq!(inode(fs::metadata(mounted.join("7"))), was);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", mounted.pid())).unwrap();
    assert!(descriptors.count() < 800);
}
