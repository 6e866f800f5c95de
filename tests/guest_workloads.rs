// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on a warm tree that all changes come through ask the daemon nothing.
//!
//! Both count: the module what it sent up, the daemon what it was sent.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "../benches/calls/workloads.rs"]
mod workloads;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use guest::{Tree, WITH_HANDLERS, ext4_folder};
use workloads::{READERS, Workload};

/// What a program prints in a folder.
fn output(workload: &Workload, folder: &Path) -> Vec<u8> {
    let mut command = Command::new(workload.arguments[0]);
    command.args(&workload.arguments[1..]).current_dir(folder);
    if workload.each_file {
        command.args(workloads::files());
    }
    let output = workloads::quiet(&mut command).output().unwrap();
    assert_eq!(output.status.code(), Some(workload.status), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    output.stdout
}

/// Requests that went up, by opcode, as the module counts them and as the daemon does.
fn asked(tree: &Tree) -> BTreeMap<String, [u64; 2]> {
    let rows = tree.report().opcodes;
    rows.into_iter()
        .map(|(opcode, row)| (opcode, [row.upcalls, row.served]))
        .collect()
}

/// What went up while `what` ran.
fn asked_by(tree: &Tree, what: impl FnOnce()) -> BTreeMap<String, [u64; 2]> {
    let before = asked(tree);
    what();
    let mut during = asked(tree);
    for (opcode, counts) in &mut during {
        let earlier = before.get(opcode).copied().unwrap_or_default();
        *counts = [counts[0] - earlier[0], counts[1] - earlier[1]];
    }
    during.retain(|_, counts| *counts != [0, 0]);
    during
}

fn tree(arguments: &[&str]) -> Tree {
    let source = ext4_folder();
    workloads::make(source.path()).unwrap();
    Tree::mount_source(source, arguments)
}

/// A warm tree is asked, and the daemon of it nothing.
fn is_silent(name: &str) {
    let workload = READERS.iter().find(|workload| workload.name == name).unwrap();
    let tree = tree(WITH_HANDLERS[1]);
    let native = output(workload, &tree.behind(""));
    // Once to learn, once to use what was learnt for the first time.
    for _ in 0..2 {
        assert!(
            output(workload, tree.root()) == native,
            "other output than natively"
        );
    }
    let answered = tree.answered();
    let asked = asked_by(&tree, || drop(output(workload, tree.root())));
    let answered = tree.answered() - answered;
    println!("{name}: answered in the kernel {answered}, asked {asked:?}");
    // Looked at it was: a program that sees nothing is silent, too.
    assert!(answered > workloads::DIRECTORIES as u64, "{answered} answers");
    assert!(asked.is_empty(), "{name}: {asked:?} on a warm tree");
    let program = tree.report().program.unwrap();
    assert!(program.attached && program.errors == 0, "{program:?}");
}

#[test]
fn find_on_a_warm_tree_is_silent() {
    is_silent("find");
}

#[test]
fn ls_l_r_on_a_warm_tree_is_silent() {
    is_silent("ls-lR");
}

#[test]
fn git_status_on_a_warm_tree_is_silent() {
    is_silent("git-status");
}

#[test]
fn grep_r_on_a_warm_tree_is_silent() {
    is_silent("grep-r");
}

#[test]
fn stat_on_a_warm_tree_is_silent() {
    is_silent("stat");
}

#[test]
fn cat_on_a_warm_tree_is_silent() {
    is_silent("cat");
}

/// The control: what changes something always goes up, and both count the same.
#[test]
fn changes_go_up_and_both_count_them() {
    let tree = tree(WITH_HANDLERS[1]);
    let asked = asked_by(&tree, || {
        for i in 0..20 {
            let directory = tree.at(format!("made_{i}"));
            std::fs::create_dir(&directory).unwrap();
            std::fs::remove_dir(&directory).unwrap();
        }
    });
    assert_eq!(asked["MKDIR"], [20, 20], "{asked:?}");
    assert_eq!(asked["RMDIR"], [20, 20], "{asked:?}");
}
