// SPDX-License-Identifier: MIT OR Apache-2.0
//! Specs and command lines that are refused, and what is said about it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::{Scratch, extfuse, mounts_at, one_line, refusal};
use crate::merged::Scene;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is said of a spec, in the foreground and in the background; nothing is mounted.
fn refused(spec: &Path, mountpoint: &Path) -> String {
    let source = format!("merge:{}", spec.display());
    let arguments = ["mount", "--stock", &source, text(mountpoint)];
    let foreground = refusal(1, &[&arguments[..], &["-f"]].concat());
    let background = refusal(1, &arguments);
    assert!(mounts_at(mountpoint).is_empty());
    assert_eq!(foreground, background);
    foreground
}

#[test]
fn a_source_that_is_not_as_it_has_to_be_is_named() {
    let mut scene = Scene::new();
    scene.source("source/a", 100);
    scene.source("west/far", 100);
    scene.source("mount/under", 100);
    symlink("far", scene.path("west/link")).unwrap();
    symlink("a", scene.path("source/link")).unwrap();
    mkfifo(&scene.path("source/fifo"), Mode::S_IRWXU).unwrap();
    let at = scene.scratch.mountpoint();
    let cases = [
        ("{ local = \"source/none\" }", "source/none: ENOENT"),
        (
            "{ local = \"source\" }",
            "/source is no regular file or block device",
        ),
        (
            "{ local = \"source/fifo\" }",
            "/source/fifo is no regular file or block device",
        ),
        (
            "{ local = \"source/a\", offset = 101 }",
            "/source/a has 100 bytes: those from 101 on are wanted",
        ),
        (
            "{ local = \"source/a\", offset = 1, length = 100 }",
            "/source/a has 100 bytes: 100 from 1 on are wanted",
        ),
        (
            "{ local = \"mount/under\" }",
            "/mount/under is below the mount point",
        ),
        ("{ server = \"west\", path = \"none\" }", "west:none: ENOENT"),
        ("{ server = \"west\", path = \"far/x\" }", "west:far/x: ENOTDIR"),
        (
            "{ server = \"west\", path = \"dir\" }",
            "west:dir is no regular file (links are not followed",
        ),
        (
            "{ server = \"west\", path = \"link\" }",
            "west:link is no regular file (links are not followed",
        ),
        (
            "{ server = \"west\", path = \"far\", length = 101 }",
            "west:far has 100 bytes: 101 from 0 on",
        ),
    ];
    for (part, named) in cases {
        let files = format!(
            "[[file]]\npath = \"good\"\nparts = [{{ local = \"source/link\" }}]\n[[file]]\npath = \"f\"\nparts = [\n{part}\n]\n"
        );
        let spec = scene.spec(&files);
        let line = refused(&spec, &at);
        assert!(line.contains(named), "{line}: {named}");
        // Six lines of servers are before.
        let place = format!("{}:13: file \"f\": ", spec.display());
        assert!(line.starts_with(&place), "{line}: {place}");
    }
    let most = i64::MAX;
    let files =
        format!("[[file]]\npath = \"f\"\nparts = [{{ local = \"source/a\" }}, {{ zeros = {most} }}]\n");
    let spec = scene.spec(&files);
    let line = refused(&spec, &at);
    assert!(
        line.ends_with(":7: file \"f\": together its parts are larger than the largest file"),
        "{line}"
    );
}

#[test]
fn a_spec_that_makes_no_sense_is_refused_with_line_and_field() {
    let scratch = Scratch::new();
    let spec = scratch.path().join("spec.toml");
    let file = "[[file]]\npath = \"f\"\nparts = [{ server = \"s\", path = \"x\" }]\n";
    let server = |said: &str| format!("[server.s]\n{said}\n{file}");
    let cases = [
        (
            file.to_owned(),
            ":3: file \"f\": part 1: server: there is no [server.s]",
        ),
        (
            "[[file]]\npath = \"f\"\nsize = 1\nparts = []\n".into(),
            ":3: unknown field `size`",
        ),
        (
            server("url = \"ftp://x\""),
            ": server.s: url: \"ftp://x\" is neither extfuse://",
        ),
        (
            server("url = \"extfuse://host\""),
            ": server.s: extfuse://host: \"host\" has no port",
        ),
        (
            server("url = \"extfuse+unix:/x\"\ntls = true"),
            ": server.s: the following required arguments were not provided: --tls-ca",
        ),
        (
            server("url = \"extfuse+unix:/x\"\ntls_ca = \"x\""),
            ": server.s: the following required arguments were not provided: --tls",
        ),
        (
            server("url = \"extfuse+unix:/x\"\ntimeout = -1"),
            ": server.s: invalid value '-1' for '--timeout",
        ),
        (
            server("url = \"extfuse+unix:/x\"\non_disconnect = \"never\""),
            "wait or eio expected",
        ),
        (
            server("url = \"extfuse://192.0.2.1:1\""),
            ": server.s: 192.0.2.1:1 is beyond this machine",
        ),
        (server("url = \"extfuse+unix:/nowhere.sock\""), ": server.s: "),
        (
            server("url = \"extfuse+unix:/x\"\ntoken_file = \"none\""),
            "the token in ",
        ),
    ];
    let shown = text(&spec);
    for (said, named) in cases {
        fs::write(&spec, &said).unwrap();
        let line = refused(&spec, &scratch.mountpoint());
        assert!(line.starts_with(shown), "{line}");
        assert!(line.contains(named), "{line}: {named}");
    }
    let missing = scratch.path().join("missing.toml");
    let line = refused(&missing, &scratch.mountpoint());
    assert!(line.contains("missing.toml: No such file"), "{line}");
}

#[test]
fn options_that_are_not_for_merged_files_are_refused() {
    let scratch = Scratch::new();
    let spec = scratch.path().join("spec.toml");
    fs::write(&spec, "[[file]]\npath = \"f\"\nparts = [{ zeros = 1 }]\n").unwrap();
    let (source, at) = (format!("merge:{}", spec.display()), scratch.mountpoint());
    let cases: [(&[&str], &str); 8] = [
        (&["--exclusive"], "are for merged files"),
        (&["--hold", "5"], "are for merged files"),
        (&["-o", "keep_cache"], "are for merged files"),
        (&["-o", "suid"], "are for merged files"),
        (&["--no-handlers"], "--no-handlers is not for merged files"),
        (&["--timeout", "5"], "in [server.NAME]"),
        (&["--insecure"], "in [server.NAME]"),
        (&["--token-file", "/x"], "in [server.NAME]"),
    ];
    for (options, named) in cases {
        let line = refusal(2, &[&["mount", &source, text(&at)], options].concat());
        assert!(line.contains(named), "{options:?}: {line}");
    }
    let line = refusal(2, &["mount", "merge:", text(&at)]);
    assert!(line.contains("merge:SPEC.toml"), "{line}");
    let fine = extfuse(&[
        "mount",
        "--stock",
        "--threads",
        "2",
        "-o",
        "ro,allow_other,fsname=x,max_read=65536,ttl=3",
        &source,
        text(&at),
    ]);
    assert!(fine.status.success(), "{fine:?}");
    assert_eq!(fs::read(at.join("f")).unwrap(), [0]);
    assert!(extfuse(&["umount", text(&at)]).status.success());
    // Where it cannot be mounted.
    let nowhere = scratch.path().join("nowhere");
    let output = extfuse(&["mount", "--stock", &source, text(&nowhere)]);
    let line = one_line(1, &output);
    assert!(line.contains("nowhere: No such file"), "{line}");
}
