// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounting through the module with the real program: handlers come with the mount and go with it.

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use common::{EXTFUSE, Mounted, Scratch, eventually, mounts_at, one_line};
use extfuse::control::Mode;
use nix::sys::signal::Signal;

/// Users of the module; the control file system is one.
fn users() -> u32 {
    let modules = fs::read_to_string("/proc/modules").unwrap();
    let line = modules
        .lines()
        .find(|line| line.starts_with("extfuse "))
        .expect("scripts/vm loads it");
    line.split(' ').nth(2).unwrap().parse().unwrap()
}

#[test]
fn lookups_stats_and_reads_are_answered_in_the_kernel() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mounted = Mounted::scratch(
        &scratch,
        &["--require-module", "--exclusive", "-o", "entries=4096"],
    );
    assert_eq!(mounted.entry().fs_type, "extfuse");
    let look = || {
        fs::metadata(mounted.join("file")).unwrap();
        fs::metadata(mounted.join("missing")).unwrap_err();
        assert_eq!(fs::read_to_string(mounted.join("file")).unwrap(), "content");
    };
    look();
    let before = mounted.report();
    (0..10).for_each(|_| look());
    let after = mounted.report();
    let grown = |opcode: &str, what: fn(&extfuse::control::Requests) -> u64| {
        what(&after.opcodes[opcode]) - before.opcodes.get(opcode).map_or(0, what)
    };
    assert_eq!(grown("LOOKUP", |row| row.upcalls), 0);
    assert!(grown("LOOKUP", |row| row.returned.unwrap() + row.kept.unwrap()) >= 30);
    assert_eq!(grown("READ", |row| row.upcalls), 0);
    assert!(grown("READ", |row| row.passthru.unwrap()) >= 10);
    // It is opened as it was before.
    assert_eq!(grown("OPEN", |row| row.upcalls), 0);
    assert_eq!(grown("OPEN", |row| row.kept.unwrap()), 10);
    let program = after.program.unwrap();
    assert!(
        program.attached && program.exit == "none" && program.errors == 0,
        "{program:?}"
    );
    let maps = after.maps.unwrap();
    assert_eq!(
        (maps.entries.capacity, maps.attrs.capacity, maps.publish_failures),
        (4096, 4096, 0)
    );
    assert!(maps.entries.used >= 2 && maps.attrs.used >= 1);
    assert_eq!((after.mode, after.warnings), (Mode::Extfuse, vec![]));
}

#[test]
fn without_handlers_everything_comes_up() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mounted = Mounted::scratch(&scratch, &["--require-module", "--no-handlers"]);
    let lookups = || mounted.report().opcodes["LOOKUP"].upcalls;
    fs::metadata(mounted.join("file")).unwrap();
    let before = lookups();
    for _ in 0..10 {
        fs::metadata(mounted.join("file")).unwrap();
    }
    assert_eq!(lookups() - before, 10);
    let report = mounted.report();
    assert_eq!(
        (report.mode, report.program, report.maps),
        (Mode::Extfuse, None, None)
    );
}

#[test]
fn the_module_is_free_again_however_a_mount_ends() {
    let before = users();
    for (arguments, signal) in [
        (&["--require-module"][..], Some(Signal::SIGTERM)),
        (&["--require-module"], Some(Signal::SIGKILL)),
        (&["--require-module", "--no-handlers"], Some(Signal::SIGKILL)),
        (&["--require-module"], None),
    ] {
        let scratch = Scratch::new();
        scratch.write("file", "content");
        let mut mounted = Mounted::scratch(&scratch, arguments);
        fs::read(mounted.join("file")).unwrap();
        match signal {
            Some(signal) => mounted.signal(signal),
            None => assert!(
                Command::new("umount")
                    .arg(mounted.path())
                    .status()
                    .unwrap()
                    .success()
            ),
        }
        let (status, said) = mounted.wait();
        assert_eq!(status.success(), signal != Some(Signal::SIGKILL), "{said}");
        eventually(|| mounts_at(mounted.path()).is_empty());
        eventually(|| users() == before);
    }
}

#[test]
fn a_mount_in_use_keeps_its_handlers_when_it_is_detached() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let mut mounted = Mounted::scratch(&scratch, &["--require-module"]);
    let mut file = fs::File::open(mounted.join("file")).unwrap();
    mounted.signal(Signal::SIGTERM);
    eventually(|| mounts_at(mounted.path()).is_empty());
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    drop(file);
    let (status, said) = mounted.wait();
    assert!(status.success() && said.contains("in use"), "{said}");
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    let scratch = Scratch::new();
    let mut mounted = Mounted::scratch(&scratch, &["--require-module"]);
    let connection = mounted.entry().dev.minor.to_string();
    fs::write(
        Path::new("/sys/fs/extfuse/connections")
            .join(connection)
            .join("abort"),
        "1",
    )
    .unwrap();
    let (status, said) = mounted.wait();
    assert_eq!(
        (status.code(), said.as_str()),
        (Some(1), "extfuse: the connection was aborted\n")
    );
    assert_eq!(mounts_at(mounted.path()), []);
}

#[test]
fn without_privilege_there_is_stock_fuse_and_a_warning_or_an_error() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let run = |script: &str| {
        let mut command = Command::new("bash");
        let allow = "chmod 666 /dev/fuse /dev/extfuse; chmod 755 .; chown 65534 mount; ";
        let user = "user() { setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"; }; ";
        command.args(["-c", &format!("{allow}{user}{script}")]);
        command
            .env("EXTFUSE", EXTFUSE)
            .current_dir(scratch.path())
            .output()
            .unwrap()
    };
    let output = run("user \"$EXTFUSE\" mount --require-module source mount");
    let line = "mounting extfuse needs CAP_SYS_ADMIN, and the module is required";
    assert_eq!(one_line(1, &output), line);
    assert_eq!(mounts_at(&scratch.mountpoint()), []);
    let output =
        run("user \"$EXTFUSE\" mount source mount && user cat mount/file && user \"$EXTFUSE\" umount mount");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "extfuse: source is mounted at mount\ncontent");
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(
        warning.contains("mounting extfuse needs CAP_SYS_ADMIN: falling back"),
        "{warning}"
    );
    assert_eq!(warning.lines().count(), 1);
    assert_eq!(mounts_at(&scratch.mountpoint()), []);
}
