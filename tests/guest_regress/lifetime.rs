// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lookup counts, what is left of a mount, and that a warm tree asks nobody.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use extfuse::control::Report;
use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};

use crate::common::{eventually, extfuse, mounts_at};
use crate::guest::{Tree, WITH_HANDLERS, answered, on_each};

/// Directories three deep, and files in them.
fn grow(tree: &Tree) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for outer in 0..4 {
        for inner in 0..4 {
            let dir = PathBuf::from(format!("outer {outer}/inner {inner}"));
            fs::create_dir_all(tree.at(&dir)).unwrap();
            for file in 0..10 {
                let name = dir.join(file.to_string());
                fs::write(tree.at(&name), name.as_os_str().as_encoded_bytes()).unwrap();
                names.push(name);
            }
        }
    }
    names
}

fn stat_all(tree: &Tree, names: &[PathBuf]) {
    for name in names {
        fs::metadata(tree.at(name)).unwrap();
    }
}

/// The daemon holds one descriptor for each node that the kernel knows.
fn descriptors(tree: &Tree) -> usize {
    let path = format!("/proc/{}/fd", tree.mounted.pid());
    fs::read_dir(path).unwrap().count()
}

fn forget_unused() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

#[test]
fn answers_of_handlers_do_not_spoil_lookup_counts() {
    // A node goes with its last lookup only where none is held.
    for how in [&["--ttl=1"][..], &["--exclusive", "--hold=0"]] {
        println!("{how:?}");
        let tree = &Tree::mount(&[&["--require-module"], how].concat());
        // Once it tells, it has opened what it needs for itself.
        tree.report();
        let before = descriptors(tree);
        let names = grow(tree);
        for round in 0..2 {
            // The daemon hands a node out more than once, too.
            forget_unused();
            for _ in 0..3 {
                stat_all(tree, &names);
            }
            let held = fs::File::open(tree.at(&names[7])).unwrap();
            assert!(descriptors(tree) > before + names.len() / 2, "round {round}");
            forget_unused();
            for name in names.iter().step_by(17) {
                tree.assert_same(name);
            }
            held.metadata().unwrap();
        }
        let row = tree.count("LOOKUP");
        assert!(answered(&row) > names.len() as u64, "{row:?}");
        for name in names.iter().step_by(3) {
            fs::remove_file(tree.at(name)).unwrap();
        }
        // More than it handed out, and the kernel would keep nodes for ever; less, and the daemon
        // would drop those in use.
        eventually(|| {
            forget_unused();
            descriptors(tree) <= before
        });
        stat_all(tree, &names[1..3]);
        tree.assert_same(&names[1]);
        let program = tree.report().program.expect("handlers");
        assert!(program.attached && program.errors == 0, "{program:?}");
    }
}

#[test]
fn a_warm_tree_asks_the_daemon_nothing() {
    let tree = Tree::mount(WITH_HANDLERS[1]);
    let names = grow(&tree);
    stat_all(&tree, &names);
    stat_all(&tree, &names);
    let before = tree.report().opcodes;
    let rounds = 3;
    for _ in 0..rounds {
        stat_all(&tree, &names);
    }
    let after = tree.report().opcodes;
    for (opcode, after) in &after {
        let before = before.get(opcode).copied().unwrap_or_default();
        assert_eq!(after.upcalls, before.upcalls, "{opcode}");
    }
    let lookups = answered(&after["LOOKUP"]) - answered(&before["LOOKUP"]);
    assert_eq!(
        lookups,
        rounds * 3 * names.len() as u64,
        "three components a path"
    );
    // Names that do not exist, too.
    for _ in 0..2 {
        tree.warm("nowhere");
    }
    let before = tree.count("LOOKUP").upcalls;
    for _ in 0..50 {
        fs::metadata(tree.at("nowhere")).unwrap_err();
    }
    assert_eq!(tree.count("LOOKUP").upcalls, before);
}

#[test]
fn the_command_tells_what_handlers_answered() {
    on_each(|tree| {
        fs::write(tree.at("file"), "").unwrap();
        tree.warm("file");
        let report: Report = tree.mounted.report();
        assert!(report.opcodes["LOOKUP"].kept.unwrap() > 0, "{report:?}");
        assert!(report.opcodes["GETATTR"].kept.unwrap() > 0, "{report:?}");
        assert!(report.maps.unwrap().entries.used > 0, "{report:?}");
        assert_eq!(report.program.unwrap().exit, "none");
    });
}

/// Programs, maps and links of the whole kernel, by id.
fn bpf_objects() -> [BTreeSet<u32>; 3] {
    [
        ProgInfoIter::default().map(|info| info.id).collect(),
        MapInfoIter::default().map(|info| info.id).collect(),
        LinkInfoIter::default().map(|info| info.id).collect(),
    ]
}

fn module_users() -> u32 {
    let modules = fs::read_to_string("/proc/modules").unwrap();
    let line = modules.lines().find(|line| line.starts_with("extfuse ")).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn nothing_is_left_behind_after_unmounting() {
    let (objects, users) = (bpf_objects(), module_users());
    let nothing_new = || {
        let now = bpf_objects();
        now.iter()
            .zip(&objects)
            .all(|(now, before)| now.is_subset(before))
            && module_users() <= users
    };
    for arguments in WITH_HANDLERS {
        for signalled in [false, true] {
            let mut tree = Tree::mount(arguments);
            fs::write(tree.at("file"), "").unwrap();
            tree.warm("file");
            let now = bpf_objects();
            assert!(
                now.iter()
                    .zip(&objects)
                    .all(|(now, before)| !now.is_subset(before))
            );
            assert!(module_users() > users);
            let mountpoint = tree.root().to_str().unwrap().to_owned();
            if signalled {
                tree.mounted.signal(nix::sys::signal::Signal::SIGTERM);
            } else {
                assert!(extfuse(&["umount", &mountpoint]).status.success());
            }
            let (status, said) = tree.mounted.wait();
            assert!(status.success() && said.is_empty(), "{status}: {said}");
            assert_eq!(mounts_at(tree.root()), []);
            assert!(!extfuse(&["stat", &mountpoint]).status.success());
            // Some are freed after a grace period.
            eventually(nothing_new);
        }
    }
    // In the background as well, and again at the same place.
    let tree = Tree::mount(WITH_HANDLERS[0]);
    fs::write(tree.at("file"), "content").unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let mountpoint = folder.path().to_str().unwrap();
    for _ in 0..2 {
        let source = tree.behind("");
        let output = extfuse(&["mount", "--require-module", source.to_str().unwrap(), mountpoint]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "content");
        assert!(extfuse(&["umount", mountpoint]).status.success());
    }
    drop(tree);
    eventually(nothing_new);
}
