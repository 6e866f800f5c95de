// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes, ACLs and file capabilities through the module: answered in the kernel, as the
//! source answers, and never older than a change. Runs in the guest.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/xattr.rs"]
mod xattr;

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;

use crate::guest::{PAST_TTL, Tree, as_nobody};
use crate::xattr::{get, get_in, list_in, remove, set};

/// Rows of the default time to live would expire between two calls of a slow guest.
const WITH_HANDLERS: [&[&str]; 2] = [
    &["--require-module", "--ttl", "600"],
    &["--require-module", "--exclusive"],
];

const ACCESS: &CStr = c"system.posix_acl_access";
const DEFAULT: &CStr = c"system.posix_acl_default";
const CAPABILITY: &CStr = c"security.capability";
/// `cap_net_raw+p`, as setcap(8) writes it.
const CAPABILITIES: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn run(command: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(command).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{command} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn on_each(test: impl Fn(&Tree)) {
    for arguments in WITH_HANDLERS {
        println!("{arguments:?}");
        let tree = Tree::mount(arguments);
        test(&tree);
        let program = tree.report().program.expect("handlers");
        assert!(program.attached && program.errors == 0, "{program:?}");
    }
}

/// Upcalls of these two that `act` makes.
fn asked<T>(tree: &Tree, act: impl FnOnce() -> T) -> (u64, T) {
    let upcalls = || tree.count("GETXATTR").upcalls + tree.count("LISTXATTR").upcalls;
    let before = upcalls();
    let result = act();
    (upcalls() - before, result)
}

/// What is answered now is answered without the daemon, and is what the source says.
#[track_caller]
fn assert_answered(tree: &Tree, name: &str, attribute: &CStr) {
    let (mount, source) = (tree.at(name), tree.behind(name));
    let _asks = get(&mount, attribute);
    let (upcalls, seen) = asked(tree, || get(&mount, attribute));
    assert_eq!(seen, get(&source, attribute), "{attribute:?} of {name}");
    assert_eq!(upcalls, 0, "{attribute:?} of {name}");
}

fn make(tree: &Tree) {
    fs::write(tree.at("file"), "text").unwrap();
    fs::create_dir(tree.at("dir")).unwrap();
    symlink("file", tree.at("link")).unwrap();
}

#[test]
fn an_attribute_that_is_absent_is_absent_without_the_daemon() {
    on_each(|tree| {
        make(tree);
        for name in ["file", "dir"] {
            for attribute in [c"user.a", c"trusted.a", CAPABILITY, ACCESS, DEFAULT] {
                assert_answered(tree, name, attribute);
            }
        }
        assert_answered(tree, "link", c"trusted.a");
        assert_answered(tree, "link", CAPABILITY);
        // Somebody asks: what is made or found is looked at before he does, and what is kept answers without a request.
        fs::write(tree.at("other"), "").unwrap();
        let path = tree.at("other");
        let (upcalls, _) = asked(tree, || {
            for _ in 0..10 {
                for name in ["user.a", "user.b", "user.c", "trusted.d"] {
                    let name = CString::new(name).unwrap();
                    assert_eq!(get(&path, &name), Err(Errno::ENODATA));
                }
                assert_eq!(list_in(&path, 0), Ok((0, vec![])));
                assert_eq!(list_in(&path, 10), Ok((0, vec![])));
            }
        });
        assert_eq!(upcalls, 0, "{:?}", tree.count("GETXATTR"));
        let (get, list) = (tree.count("GETXATTR"), tree.count("LISTXATTR"));
        assert!(get.kept > Some(30) && list.kept > Some(15), "{get:?} {list:?}");
    });
}

/// As `ls -l` does in a directory that it has not seen: two names of each file, one question in all.
#[test]
fn who_asks_one_file_for_what_it_lacks_need_not_ask_the_others() {
    const FILES: u64 = 50;
    on_each(|tree| {
        let names = || (0..FILES).map(|i| format!("{i}"));
        for name in names() {
            fs::write(tree.behind(&name), "").unwrap();
        }
        // One of them has what the others lack.
        set(&tree.behind("7"), c"user.a", b"value").unwrap();
        let (upcalls, ()) = asked(tree, || {
            for name in names() {
                let path = tree.at(&name);
                assert_eq!(get(&path, ACCESS), Err(Errno::ENODATA));
                let value = get(&path, c"user.a");
                match name.as_str() {
                    "7" => assert_eq!(value.as_deref(), Ok(b"value".as_slice())),
                    _ => assert_eq!(value, Err(Errno::ENODATA)),
                }
                assert_eq!(list_in(&path, 4096), list_in(&tree.behind(&name), 4096));
            }
        });
        assert!(upcalls <= 8, "{upcalls}: {:?}", tree.count("GETXATTR"));
    });
}

#[test]
fn values_and_names_are_answered_in_every_form() {
    on_each(|tree| {
        make(tree);
        let (mount, source) = (tree.at("file"), tree.behind("file"));
        let longest = vec![7; 128];
        let longest_name = CString::new(format!("user.{}", "n".repeat(67))).unwrap();
        let values: [(&CStr, &[u8]); 5] = [
            (c"user.text", b"value"),
            (c"user.empty", b""),
            (c"user.longest", &longest),
            (&longest_name, b"n"),
            (CAPABILITY, &CAPABILITIES),
        ];
        for (name, value) in values {
            set(&mount, name, value).unwrap();
        }
        for (name, value) in values {
            assert_answered(tree, "file", name);
            let sizes = [0, 1, value.len().saturating_sub(1), value.len(), value.len() + 1];
            for room in sizes {
                let (upcalls, seen) = asked(tree, || get_in(&mount, name, room));
                assert_eq!(seen, get_in(&source, name, room), "{name:?} in {room}");
                assert_eq!(upcalls, 0, "{name:?} in {room}");
            }
        }
        let _asks = list_in(&mount, 4096);
        let all = list_in(&source, 4096).unwrap();
        for room in [0, 1, all.0 - 1, all.0, 4096] {
            let (upcalls, seen) = asked(tree, || list_in(&mount, room));
            assert_eq!(seen, list_in(&source, room), "in {room}");
            assert_eq!(upcalls, 0, "in {room}");
        }
        // Other names are still known to be absent.
        assert_answered(tree, "file", c"user.tex");
        assert_answered(tree, "file", c"user.text2");
    });
}

#[test]
fn what_no_row_can_hold_is_asked_and_right() {
    on_each(|tree| {
        make(tree);
        let (mount, source) = (tree.at("file"), tree.behind("file"));
        let names = [
            c"user.long".to_owned(),
            CString::new(format!("user.{}", "n".repeat(200))).unwrap(),
        ];
        set(&mount, &names[0], &[1; 129]).unwrap();
        set(&mount, &names[1], b"1").unwrap();
        for name in &names {
            for _ in 0..3 {
                assert_eq!(get(&mount, name), get(&source, name));
                assert_eq!(get_in(&mount, name, 0), get_in(&source, name, 0));
            }
        }
        for _ in 0..3 {
            assert_eq!(list_in(&mount, 4096), list_in(&source, 4096));
            assert_eq!(get(&mount, c"user.absent"), Err(Errno::ENODATA));
        }
        // Names of which a file system need not list all are asked one by one.
        for name in [c"security.other", c"system.other", c"nonsense"] {
            for _ in 0..3 {
                assert_eq!(get(&mount, name), get(&source, name), "{name:?}");
            }
        }
    });
}

#[test]
fn setting_and_removing_are_seen_at_once() {
    on_each(|tree| {
        make(tree);
        for name in ["file", "dir"] {
            let path = tree.at(name);
            for round in 0..3_u8 {
                for attribute in [c"user.a", c"trusted.a"] {
                    assert_answered(tree, name, attribute);
                    set(&path, attribute, &[round]).unwrap();
                    assert_eq!(get(&path, attribute), Ok(vec![round]));
                    assert_eq!(list_in(&path, 4096), list_in(&tree.behind(name), 4096));
                    assert_answered(tree, name, attribute);
                    assert_eq!(get(&path, c"user.b"), Err(Errno::ENODATA));
                    remove(&path, attribute).unwrap();
                    assert_eq!(get(&path, attribute), Err(Errno::ENODATA));
                    assert_eq!(list_in(&path, 4096), Ok((0, vec![])));
                }
            }
        }
    });
}

#[test]
fn trusted_names_are_for_root_alone() {
    on_each(|tree| {
        make(tree);
        let path = tree.at("file");
        set(&path, c"user.a", b"a").unwrap();
        set(&path, c"trusted.a", b"a").unwrap();
        for _ in 0..3 {
            assert_answered(tree, "file", c"trusted.a");
            assert_eq!(list_in(&path, 4096), list_in(&tree.behind("file"), 4096));
            assert_eq!(list_in(&path, 4096).unwrap().0, 17);
            as_nobody(|| {
                assert_eq!(list_in(&path, 4096), Ok((7, b"user.a\0".to_vec())));
                assert_eq!(get(&path, c"user.a"), Ok(b"a".to_vec()));
            });
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        as_nobody(|| assert_eq!(get(&path, c"user.a"), Err(Errno::EACCES)));
        assert_answered(tree, "file", c"user.a");
        as_nobody(|| assert_eq!(get(&path, c"user.a"), Err(Errno::EACCES)));
    });
}

#[test]
fn a_file_loses_its_capabilities_to_every_way_of_writing() {
    type Write = fn(&Path);
    let ways: [(&str, Write); 6] = [
        ("write", |path| {
            let mut file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all(b"more").unwrap();
        }),
        ("truncate", |path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(1).unwrap();
        }),
        ("open to truncate", |path| drop(File::create(path).unwrap())),
        ("fallocate", |path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            // SAFETY: an open descriptor.
            let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 8192) };
            assert_eq!(result, 0);
        }),
        ("chown", |path| chown(path, Some(1), Some(1)).unwrap()),
        ("copy", |path| {
            let from = path.with_file_name("from");
            fs::write(&from, "copied").unwrap();
            let (from, to) = (
                File::open(from).unwrap(),
                OpenOptions::new().write(true).open(path).unwrap(),
            );
            nix::fcntl::copy_file_range(&from, None, &to, None, 6).unwrap();
        }),
    ];
    on_each(|tree| {
        for (way, write) in ways {
            make_file(tree);
            let (path, native) = (tree.at("file"), tree.behind("native"));
            fs::write(&native, "text").unwrap();
            for path in [&path, &native] {
                set(path, CAPABILITY, &CAPABILITIES).unwrap();
            }
            assert_answered(tree, "file", CAPABILITY);
            assert_eq!(get(&path, CAPABILITY), Ok(CAPABILITIES.to_vec()), "{way}");
            let _asks = list_in(&path, 4096);
            write(&path);
            write(&native);
            assert_eq!(get(&path, CAPABILITY), get(&native, CAPABILITY), "{way}");
            assert_eq!(list_in(&path, 4096), list_in(&native, 4096), "{way}");
            assert_answered(tree, "file", CAPABILITY);
        }
    });
}

fn make_file(tree: &Tree) {
    let _there = fs::remove_file(tree.at("file"));
    fs::write(tree.at("file"), "text").unwrap();
}

#[test]
fn a_write_asks_for_capabilities_once_and_never_again() {
    on_each(|tree| {
        make_file(tree);
        let mut file = OpenOptions::new().write(true).open(tree.at("file")).unwrap();
        file.write_all(b"a").unwrap();
        let (upcalls, ()) = asked(tree, || {
            for _ in 0..50 {
                file.write_all(b"a").unwrap();
            }
        });
        assert_eq!(upcalls, 0, "{:?}", tree.count("GETXATTR"));
        set(&tree.at("file"), CAPABILITY, &CAPABILITIES).unwrap();
        file.write_all(b"a").unwrap();
        assert_eq!(get(&tree.behind("file"), CAPABILITY), Err(Errno::ENODATA));
        assert_answered(tree, "file", CAPABILITY);
    });
}

#[test]
fn acls_decide_and_change_at_once() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        fs::write(tree.at("dir/file"), "text").unwrap();
        let (dir, file) = (tree.at("dir"), tree.at("dir/file"));
        let allowed = || as_nobody(|| fs::read(&file).is_ok());
        fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        for _ in 0..2 {
            assert!(!allowed());
            run("setfacl", &["-m", "u:65534:r"], &file);
            assert!(allowed());
            assert!(allowed());
            assert_answered(tree, "dir/file", ACCESS);
            // chmod's group bits are the ACL's mask.
            fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
            assert!(!allowed());
            assert_answered(tree, "dir/file", ACCESS);
            fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
            assert!(allowed());
            run("setfacl", &["-b"], &file);
            assert!(!allowed());
            assert_answered(tree, "dir/file", ACCESS);
            // On the way to it.
            run("setfacl", &["-m", "o::r"], &file);
            fs::set_permissions(&dir, PermissionsExt::from_mode(0o710)).unwrap();
            assert!(!allowed());
            run("setfacl", &["-m", "u:65534:x"], &dir);
            assert!(allowed());
            assert_answered(tree, "dir", ACCESS);
            run("setfacl", &["-x", "u:65534"], &dir);
            assert!(!allowed());
            fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
            run("setfacl", &["-m", "o::-"], &file);
        }
        // What a directory hands down.
        run("setfacl", &["-d", "-m", "u:65534:rw"], &dir);
        assert_answered(tree, "dir", DEFAULT);
        fs::write(tree.at("dir/heir"), "").unwrap();
        assert_answered(tree, "dir/heir", ACCESS);
        let facl = |path: &Path| run("getfacl", &["-cp"], path);
        assert_eq!(facl(&tree.at("dir/heir")), facl(&tree.behind("dir/heir")));
        assert!(
            facl(&tree.at("dir/heir")).contains("user:nobody:rw")
                || facl(&tree.at("dir/heir")).contains("65534")
        );
    });
}

#[test]
fn changes_behind_the_mount_are_seen_after_the_time_to_live() {
    let tree = Tree::mount(&["--require-module"]);
    make(&tree);
    assert_answered(&tree, "file", c"user.a");
    set(&tree.behind("file"), c"user.a", b"a").unwrap();
    std::thread::sleep(PAST_TTL);
    assert_eq!(get(&tree.at("file"), c"user.a"), Ok(b"a".to_vec()));
    set(&tree.behind("file"), c"user.a", b"b").unwrap();
    std::thread::sleep(PAST_TTL);
    assert_eq!(get(&tree.at("file"), c"user.a"), Ok(b"b".to_vec()));
    run("setfacl", &["-m", "u:65534:r"], &tree.behind("file"));
    std::thread::sleep(PAST_TTL);
    assert_answered(&tree, "file", ACCESS);
    assert!(get(&tree.at("file"), ACCESS).is_ok());
}
