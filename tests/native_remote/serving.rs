// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a server is told to serve: as whom, under which numbers, how much, and with which credentials.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::certificates::Authority;
use crate::common::{Mounted, Scratch, eventually, extfuse, one_line, refusal};
use crate::{Served, mount, text};

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

const NOBODY: u32 = 65534;

#[test]
fn a_squashed_server_is_one_user_whoever_asks() {
    let scratch = Scratch::new();
    // For another user to get there.
    for dir in [scratch.path(), &scratch.source()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    scratch.write("of-root", "secret");
    let of_root = scratch.source().join("of-root");
    fs::set_permissions(&of_root, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(scratch.source().join("closed")).unwrap();
    let served = Served::tcp(&scratch.source(), &["--squash", "nobody"]);
    let status = fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let row = |name: &str| {
        let row = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("Uid:"), ["65534"; 4]);
    assert_eq!(row("Gid:"), ["65534"; 4]);
    assert_eq!(row("Groups:"), ["65534"]);
    for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(row(set), ["0000000000000000"]);
    }
    let mounted = mount(&served.url(), &scratch, &[]);
    fs::write(mounted.join("made"), "by root").unwrap();
    let made = fs::metadata(scratch.source().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    assert_eq!(fs::read(mounted.join("made")).unwrap(), b"by root");
    // Root may, as far as this machine's kernel knows; the server's does not let its user.
    assert_eq!(errno(File::open(mounted.join("of-root"))), Some(libc::EACCES));
    assert_eq!(
        errno(File::create(mounted.join("closed/new"))),
        Some(libc::EACCES)
    );
    assert_eq!(
        errno(chown(mounted.join("made"), Some(0), None)),
        Some(libc::EPERM)
    );
    assert_eq!(fs::read(&of_root).unwrap(), b"secret");
    let source = scratch.source();
    for wrong in ["root", "0", "nobody-of-that-name", "1234567", "nobody:no-group"] {
        let said = refusal(
            2,
            &[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--insecure",
                "--squash",
                wrong,
                text(&source),
            ],
        );
        assert!(said.contains("--squash"), "{said}");
    }
}

#[test]
fn users_have_other_numbers_there() {
    let scratch = Scratch::new();
    for (name, uid, gid) in [("web", 33, 33), ("thousand", 1000, 5), ("other", 7, 8)] {
        scratch.write(name, "");
        chown(scratch.source().join(name), Some(uid), Some(gid)).unwrap();
    }
    let served = Served::tcp(
        &scratch.source(),
        &[
            "--map-user",
            "1000:33",
            "--map-group",
            "100:33",
            "--map-user",
            "1001:34",
        ],
    );
    let mounted = mount(&served.url(), &scratch, &[]);
    let here = |name: &str| {
        let about = fs::metadata(mounted.join(name)).unwrap();
        (about.uid(), about.gid())
    };
    let there = |name: &str| {
        let about = fs::metadata(scratch.source().join(name)).unwrap();
        (about.uid(), about.gid())
    };
    assert_eq!(here("web"), (1000, 100));
    assert_eq!(here("other"), (7, 8));
    // Theirs is not our 1000.
    assert_eq!(here("thousand"), (NOBODY, 5));
    fs::write(mounted.join("new"), "").unwrap();
    assert_eq!((here("new"), there("new")), ((0, 0), (0, 0)));
    chown(mounted.join("new"), Some(1001), Some(100)).unwrap();
    assert_eq!((here("new"), there("new")), ((1001, 100), (34, 33)));
    assert_eq!(
        errno(chown(mounted.join("new"), Some(33), None)),
        Some(libc::EINVAL)
    );
    assert_eq!(there("new"), (34, 33));
    fs::set_permissions(scratch.source(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let made = std::process::Command::new("setpriv")
        .args(["--reuid=1000", "--regid=100", "--clear-groups", "mkdir"])
        .arg(mounted.join("of-1000"))
        .status();
    assert!(made.unwrap().success());
    assert_eq!((here("of-1000"), there("of-1000")), ((1000, 100), (33, 33)));
    let source = scratch.source();
    let refused = |more: &[&str]| {
        let arguments = [
            &["serve", "--listen", "127.0.0.1:0", "--insecure"],
            more,
            &[text(&source)],
        ];
        refusal(2, &arguments.concat())
    };
    for wrong in ["1", "a:b", "1:2:3", "-1:2", "4294967295:1"] {
        refused(&["--map-user", wrong]);
    }
    let said = refused(&["--map-user", "1:2", "--map-user", "3:2"]);
    assert!(said.contains("2 is mapped twice"), "{said}");
}

#[test]
fn a_client_has_no_more_files_than_it_may() {
    let scratch = Scratch::new();
    for number in 0..40 {
        scratch.write(&number.to_string(), "x");
    }
    let served = Served::tcp(&scratch.source(), &["--max-open", "5", "--max-nodes", "20"]);
    let mounted = mount(&served.url(), &scratch, &[]);
    // What is only read is not open there.
    let open = |number: usize| {
        OpenOptions::new()
            .write(true)
            .open(mounted.join(&number.to_string()))
    };
    let mut files: Vec<_> = (0..5).map(|number| open(number).unwrap()).collect();
    assert_eq!(errno(open(5)), Some(libc::ENFILE));
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(mounted.join("new"));
    assert_eq!(errno(new), Some(libc::ENFILE));
    assert_eq!(errno(fs::read_dir(mounted.path())), Some(libc::ENFILE));
    files.pop();
    eventually(|| open(5).is_ok());
    // Other clients have their own.
    let elsewhere = Scratch::new();
    let other = mount(&served.url(), &elsewhere, &[]);
    let theirs: Vec<_> = (0..5)
        .map(|number| {
            let file = OpenOptions::new()
                .write(true)
                .open(other.join(&number.to_string()));
            file.unwrap()
        })
        .collect();
    // What is in use stays known, and what is not makes room.
    let use_it = |number: usize| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH);
        options.open(mounted.join(&number.to_string()))
    };
    let used: Vec<_> = (0..21).map(use_it).collect();
    let seen = used.iter().filter(|file| file.is_ok()).count();
    assert_eq!(seen, 19);
    let refused = used.iter().filter_map(|file| file.as_ref().err());
    assert!(
        refused
            .into_iter()
            .all(|error| error.raw_os_error() == Some(libc::ENFILE))
    );
    drop((files, theirs, used));
    for number in 0..40 {
        fs::metadata(mounted.join(&number.to_string())).unwrap();
    }
}

#[test]
fn credentials_are_read_anew_and_nobody_who_is_served_notices() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let authority = Authority::new(scratch.path(), "authority");
    let another = Authority::new(scratch.path(), "another");
    let (first, second) = (
        authority.of("first", "127.0.0.1"),
        another.of("second", "127.0.0.1"),
    );
    let in_use = |kind: &str| scratch.path().join(format!("in-use.{kind}"));
    let (certificate, key, token) = (in_use("pem"), in_use("key"), in_use("token"));
    let install = |identity: &crate::certificates::Identity, secret: &str| {
        fs::copy(&identity.certificate, &certificate).unwrap();
        fs::copy(&identity.key, &key).unwrap();
        fs::write(&token, secret).unwrap();
    };
    install(&first, "the first token, long enough");
    let served = Served::tcp(
        &scratch.source(),
        &[
            "--token-file",
            text(&token),
            "--tls-cert",
            text(&certificate),
            "--tls-key",
            text(&key),
        ],
    );
    let copy_of = |name: &str, secret: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, secret).unwrap();
        path
    };
    let old = copy_of("old", "the first token, long enough");
    let new = copy_of("new", "the second token, long enough");
    let says = |authority: &Authority, token: &Path| {
        let ca = text(&authority.own.certificate).to_owned();
        ["--tls", "--tls-ca", &ca, "--token-file", text(token)].map(str::to_owned)
    };
    let try_it = |says: &[String; 5]| {
        let elsewhere = Scratch::new();
        let (url, at) = (served.url(), elsewhere.mountpoint());
        let says: Vec<_> = says.iter().map(String::as_str).collect();
        let output = extfuse(&[&["mount", "--stock"][..], &says, &[&url, text(&at)]].concat());
        if output.status.success() {
            assert_eq!(fs::read(at.join("file")).unwrap(), b"content");
            assert!(extfuse(&["umount", text(&at)]).status.success());
            None
        } else {
            Some(one_line(1, &output))
        }
    };
    let (before, after) = (says(&authority, &old), says(&another, &new));
    let says: Vec<_> = before.iter().map(String::as_str).collect();
    let mounted = mount(&served.url(), &scratch, &says);
    assert!(try_it(&after).is_some());
    install(&second, "the second token, long enough");
    // Only when it is told to.
    assert_eq!(try_it(&before), None);
    served.signal(Signal::SIGHUP);
    eventually(|| try_it(&after).is_none());
    assert!(try_it(&before).is_some());
    // With files that are none nothing changes.
    fs::write(&token, "short").unwrap();
    served.signal(Signal::SIGHUP);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(try_it(&after), None);
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
    fs::write(mounted.join("file"), "other").unwrap();
    assert_eq!(mounted.report().remote.unwrap().connections, 1);
}

#[test]
fn a_directory_of_an_export_is_mounted_by_its_path() {
    let scratch = Scratch::new();
    let source = scratch.source();
    fs::create_dir_all(source.join("a/b c")).unwrap();
    fs::write(source.join("a/b c/file"), "content").unwrap();
    fs::write(source.join("outside"), "").unwrap();
    fs::create_dir_all(source.join("ab/here")).unwrap();
    symlink("b c", source.join("a/link")).unwrap();
    symlink("../outside", source.join("a/b c/up")).unwrap();
    let token = scratch.path().join("token");
    fs::write(&token, "sixteen bytes or more").unwrap();
    let other = scratch.path().join("other");
    fs::create_dir_all(other.join("b c")).unwrap();
    let named = format!("a={}", other.display());
    let listen = [
        "--listen",
        "127.0.0.1:0",
        "--exclusive",
        "--token-file",
        text(&token),
    ];
    let served = Served::start(&[&listen[..], &[text(&source), &named]].concat());
    let with_token = ["--token-file", text(&token), "--spool", "memory"];
    let at = |path: &str| format!("{}/{path}", served.url());

    // Whoever looks at the same file by another way sees what changes.
    let whole = scratch.path().join("whole");
    fs::create_dir(&whole).unwrap();
    let whole = Mounted::start(
        Path::new(&at("")),
        &whole,
        &[&["--stock"], &with_token[..]].concat(),
    );
    for path in ["/a/b c", "//a//./b c/"] {
        let below = mount(&at(path), &scratch, &with_token);
        for text in ["one", "another"] {
            fs::write(whole.join("a/b c/file"), text).unwrap();
            assert_eq!(fs::read_to_string(below.join("file")).unwrap(), text);
            fs::write(below.join("file"), text.repeat(2)).unwrap();
            assert_eq!(
                fs::read_to_string(whole.join("a/b c/file")).unwrap(),
                text.repeat(2)
            );
        }
        // What leads out of it leads out of the mount, on this machine.
        assert_eq!(errno(fs::read(below.join("up"))), Some(libc::ENOENT));
        assert_eq!(fs::metadata(below.path()).unwrap().nlink(), 2);
    }
    // A name goes before a path.
    let below = mount(&at("a/b c"), &scratch, &with_token);
    assert!(!below.join("file").exists());
    drop(below);
    // But not before what only begins like it.
    assert!(mount(&at("ab"), &scratch, &with_token).join("here").exists());

    let mountpoint = scratch.mountpoint();
    let refused = |path: &str, more: &[&str]| {
        let url = at(path);
        let arguments = [&["mount", "--stock"], more, &[&url, text(&mountpoint)]].concat();
        one_line(1, &extfuse(&arguments))
    };
    for path in ["none", "/a/none", "/a/../a", "..", "/a/b c/../.."] {
        let why = refused(path, &with_token);
        assert!(why.contains("no directory"), "{path}: {why}");
    }
    for path in ["/a/link", "outside", "/a/b c/file", "outside/"] {
        let why = refused(path, &with_token);
        assert!(
            why.contains("directory") || why.contains("ENOTDIR"),
            "{path}: {why}"
        );
    }
    // Who has no token does not hear what there is.
    let wrong = scratch.path().join("wrong");
    fs::write(&wrong, "sixteen bytes, but wrong").unwrap();
    let answers: Vec<_> = ["a/b c", "/a/b c", "/a/none"]
        .iter()
        .map(|path| refused(path, &["--token-file", text(&wrong)]))
        .collect();
    assert!(
        answers.iter().all(|answer| answer.contains("refuses the token")),
        "{answers:?}"
    );
}

/// A file of exports, each `(name, directory, read only)`.
fn write_exports(file: &Path, exports: &[(&str, &Path, bool)]) {
    let one = |(name, directory, read_only): &(&str, &Path, bool)| {
        let directory = directory.display();
        format!("[[export]]\nname = '{name}'\ndirectory = '{directory}'\nread_only = {read_only}\n")
    };
    fs::write(file, exports.iter().map(one).collect::<String>()).unwrap();
}

#[test]
fn exports_are_read_anew_and_those_that_stay_go_on() {
    let scratch = Scratch::new();
    let folder = scratch.path().to_path_buf();
    let dirs = ["stays", "goes", "changes", "comes"].map(|name| {
        let dir = folder.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), name).unwrap();
        dir
    });
    let [stays, goes, changes, comes] = &dirs;
    let file = folder.join("exports.toml");
    write_exports(
        &file,
        &[
            ("stays", stays, false),
            ("goes", goes, false),
            // Below the file's folder.
            ("changes", Path::new("changes"), true),
        ],
    );
    let served = Served::start(&["--listen", "127.0.0.1:0", "--insecure", "--exports", text(&file)]);
    let of = |name: &str| {
        let at = Scratch::new();
        let url = format!("{}/{name}", served.url());
        let mounted = mount(&url, &at, &["--timeout", "2", "--on-disconnect", "eio"]);
        (mounted, at)
    };
    let mounts = ["stays", "goes", "changes"].map(of);
    let [(at_stays, _), (at_goes, _), (at_changes, _)] = &mounts;
    fs::write(at_stays.join("new"), "").unwrap();
    assert_eq!(errno(fs::write(at_changes.join("new"), "")), Some(libc::EROFS));

    // What is open and locked stays so where the export does.
    let [kept, lost] = [at_stays, at_goes].map(|mounted| {
        let options = OpenOptions::new().read(true).write(true).clone();
        let file = options.open(mounted.join("file")).unwrap();
        file.try_lock().unwrap();
        file
    });
    write_exports(
        &file,
        &[
            ("stays", stays, false),
            ("changes", changes, false),
            ("comes", comes, false),
        ],
    );
    served.signal(Signal::SIGHUP);
    eventually(|| at_goes.report().remote.is_some_and(|remote| !remote.connected));
    let (at_comes, _at) = of("comes");
    assert_eq!(fs::read(at_comes.join("file")).unwrap(), b"comes");
    kept.write_at(b"S", 0).unwrap();
    assert_eq!(fs::read(stays.join("file")).unwrap(), b"Stays");
    let is_locked = |file: &Path| File::open(file).unwrap().try_lock().is_err();
    assert!(is_locked(&stays.join("file")));
    assert_eq!(at_stays.report().remote.unwrap().connections, 1);
    // It is the same directory, but may be written to now: known to who connects again.
    eventually(|| {
        at_changes
            .report()
            .remote
            .is_some_and(|remote| remote.connections > 1)
    });
    assert_eq!(fs::read(at_changes.join("file")).unwrap(), b"changes");
    // Of what is not there any more there is nothing, and nobody waits for it.
    assert!(lost.write_at(b"G", 0).is_err());
    assert!(fs::read(at_goes.join("file")).is_err());
    assert_eq!(fs::read(goes.join("file")).unwrap(), b"goes");
    assert!(!is_locked(&goes.join("file")));

    // A file that is none changes nothing; one that is there again brings it back.
    fs::write(&file, "[[export]]\nname = 'stays'\n").unwrap();
    served.signal(Signal::SIGHUP);
    thread::sleep(Duration::from_millis(300));
    write_exports(&file, &[("stays", &folder.join("nowhere"), false)]);
    served.signal(Signal::SIGHUP);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(fs::read(at_comes.join("file")).unwrap(), b"comes");
    assert_eq!(at_stays.report().remote.unwrap().connections, 1);
    write_exports(&file, &[("stays", stays, false), ("goes", goes, false)]);
    served.signal(Signal::SIGHUP);
    eventually(|| fs::read(at_goes.join("file")).is_ok_and(|bytes| bytes == b"goes"));
    assert_eq!(kept.write_at(b"s", 0).unwrap(), 1);
}

#[test]
fn exports_that_cannot_be_are_refused() {
    let scratch = Scratch::new();
    let source = scratch.source();
    let file = scratch.path().join("exports.toml");
    let refused = |code, more: &[&str]| {
        let listen = ["serve", "--listen", "127.0.0.1:0", "--insecure"];
        refusal(code, &[&listen, more].concat())
    };
    let in_file = ["--exports", text(&file)];
    assert!(refused(2, &in_file).contains("No such file"));
    fs::write(&file, "").unwrap();
    assert!(refused(2, &in_file).contains("no [[export]]"));
    write_exports(&file, &[("a", &source, false), ("a", &source, true)]);
    assert!(refused(1, &in_file).contains("two exports"));
    refused(2, &[in_file[0], in_file[1], text(&source)]);
    refused(2, &[]);
}
