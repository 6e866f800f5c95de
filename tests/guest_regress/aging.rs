// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes behind the mount, and how long they may stay unseen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::{PAST_TTL, Tree, WITHOUT_HANDLERS, attributes};

/// Changes `tree`'s source in every way that the maps could hide.
fn change_behind(tree: &Tree) {
    fs::write(tree.behind("file"), "longer than before").unwrap();
    fs::remove_file(tree.behind("goes")).unwrap();
    fs::write(tree.behind("comes"), "").unwrap();
    fs::write(tree.behind("other"), "another file").unwrap();
    fs::rename(tree.behind("other"), tree.behind("replaced")).unwrap();
}

const NAMES: [&str; 4] = ["file", "goes", "comes", "replaced"];

/// Which names show the source as it is now.
fn up_to_date(tree: &Tree) -> Vec<&'static str> {
    let shows = |name: &&'static str| {
        let seen = fs::metadata(tree.at(name)).ok().as_ref().map(attributes);
        seen == fs::metadata(tree.behind(name)).ok().as_ref().map(attributes)
    };
    NAMES.into_iter().filter(shows).collect()
}

fn prepared(arguments: &[&str]) -> Tree {
    let tree = Tree::mount(arguments);
    for name in ["file", "goes", "replaced"] {
        fs::write(tree.at(name), "content").unwrap();
    }
    tree
}

fn warm_all(tree: &Tree) {
    for name in NAMES {
        tree.warm(name);
    }
}

#[test]
fn rows_expire_after_the_default_time_to_live() {
    let tree = prepared(&["--require-module"]);
    warm_all(&tree);
    change_behind(&tree);
    thread::sleep(PAST_TTL);
    assert_eq!(up_to_date(&tree), NAMES);
}

#[test]
fn rows_expire_after_the_time_to_live_that_is_given_and_not_before() {
    let tree = prepared(&["--require-module", "--ttl", "8"]);
    warm_all(&tree);
    change_behind(&tree);
    let start = Instant::now();
    // Or the rows were not used at all.
    assert_eq!(up_to_date(&tree), [""; 0]);
    // Being asked does not make a row younger.
    while start.elapsed() < Duration::from_millis(8100) {
        up_to_date(&tree);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(up_to_date(&tree), NAMES);
}

#[test]
fn with_a_time_to_live_of_nothing_changes_behind_the_mount_are_seen_at_once() {
    for arguments in [&["--require-module", "--ttl", "0"], WITHOUT_HANDLERS] {
        let tree = prepared(arguments);
        for _ in 0..3 {
            assert_eq!(up_to_date(&tree), NAMES, "{arguments:?}");
        }
        change_behind(&tree);
        assert_eq!(up_to_date(&tree), NAMES, "{arguments:?}");
    }
}

/// What `--exclusive` promises away; and that the tests above look at what handlers answer.
#[test]
fn an_exclusive_mount_asks_nobody_about_changes_behind_it() {
    let tree = prepared(&["--require-module", "--exclusive"]);
    warm_all(&tree);
    let before = tree.report().opcodes;
    change_behind(&tree);
    thread::sleep(2 * PAST_TTL);
    let seen = NAMES.map(|name| fs::metadata(tree.at(name)).ok().map(|of| of.size()));
    assert_eq!(seen, [Some(7), Some(7), None, Some(7)]);
    let after = tree.report().opcodes;
    assert_eq!(after["LOOKUP"].upcalls, before["LOOKUP"].upcalls);
    // A change through the mount is news, of that file.
    fs::OpenOptions::new()
        .append(true)
        .open(tree.at("file"))
        .unwrap()
        .set_len(3)
        .unwrap();
    assert_eq!(fs::metadata(tree.at("file")).unwrap().len(), 3);
}
