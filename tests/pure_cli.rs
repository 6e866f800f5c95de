// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line, as far as it needs no mount.

mod common;

use common::{Scratch, extfuse, refusal};

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    let cases: [(&[&str], &str); 14] = [
        (&[], "no command"),
        (&["frobnicate"], "frobnicate"),
        (&["mount"], "<SOURCE> <MOUNTPOINT>"),
        (&["mount", "/"], "<MOUNTPOINT>"),
        (&["mount", "/", "/mnt", "extra"], "extra"),
        (&["mount", "/", "/mnt", "--bogus"], "--bogus"),
        (&["mount", "/", "/mnt", "--threads", "0"], "--threads"),
        (&["mount", "/", "/mnt", "--ttl", "soon"], "--ttl"),
        (
            &["mount", "/", "/mnt", "--ttl", "1", "--exclusive"],
            "--exclusive",
        ),
        (
            &["mount", "/", "/mnt", "--stock", "--require-module"],
            "--require-module",
        ),
        (
            &["mount", "/", "/mnt", "-o", "ro,bogus"],
            "unknown mount option \"bogus\"",
        ),
        (
            &["mount", "/", "/mnt", "-o", "ttl=1", "--exclusive"],
            "exclude each other",
        ),
        (&["umount"], "<MOUNTPOINT>"),
        (&["--log", "a=b=c", "doctor"], "log level"),
    ];
    for (arguments, named) in cases {
        let line = refusal(2, arguments);
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
}

#[test]
fn what_is_no_mount_is_refused_by_name() {
    let scratch = Scratch::new();
    let (dir, missing) = (scratch.mountpoint(), scratch.path().join("missing"));
    let (dir, missing) = (dir.to_str().unwrap(), missing.to_str().unwrap());
    for command in ["stat", "umount"] {
        assert_eq!(refusal(1, &[command, dir]), format!("{dir} is not a mount point"));
        assert_eq!(
            refusal(1, &[command, missing]),
            format!("{missing}: No such file or directory")
        );
        assert_eq!(
            refusal(1, &[command, "/proc"]),
            "/proc is not an extfuse mount, but proc"
        );
    }
}

#[test]
fn help_explains_options_and_signals() {
    let output = extfuse(&["mount", "--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in [
        "SIGTERM",
        "no_passthrough",
        "--require-module",
        "ttl=SECONDS",
        "merge:SPEC.toml",
        "[[file]]",
    ] {
        assert!(text.contains(word), "{word} is missing");
    }
}

#[test]
fn doctor_gives_the_same_checks_to_people_and_programs() {
    let text = extfuse(&["doctor"]);
    let json = extfuse(&["doctor", "--json"]);
    let lines = String::from_utf8(text.stdout).unwrap();
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(text.status.code(), json.status.code());
    assert_eq!(lines.lines().count(), checks.len());
    for (line, check) in lines.lines().zip(&checks) {
        let (name, ok) = (check["name"].as_str().unwrap(), check["ok"].as_bool().unwrap());
        assert!(line.contains(name) && line.starts_with("OK") == ok, "{line}");
        assert!(ok || check["advice"].as_str().is_some(), "{line}");
    }
    let works = checks
        .iter()
        .all(|check| check["ok"] == true || check["needed_for"] != "mounting");
    assert_eq!(text.status.success(), works);
    for name in [
        "kernel",
        "/dev/fuse",
        "extfuse module",
        "BPF struct_ops",
        "qemu",
        "open files",
    ] {
        assert!(
            checks.iter().any(|check| check["name"] == name),
            "{name} is missing"
        );
    }
}
