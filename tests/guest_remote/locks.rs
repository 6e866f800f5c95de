// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of several mounts through the module, which opens and closes files without the daemon.

use std::fs;

use crate::locker::Locker;
use crate::{Scene, while_running};

const ALL: &str = "lock('f', 'write', 0, 0)";
const NONE: &str = "lock('f', 'none', 0, 0)";

#[test]
fn a_close_that_nobody_was_asked_for_lets_locks_go() {
    let scene = Scene::kept(2);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    let path = here.join("file");
    fs::write(&path, "some bytes").unwrap();
    let mut two = Locker::of(&there.join("file"));
    let mut one = Locker::new();
    for _ in 0..3 {
        fs::read(&path).unwrap();
    }
    // Opened and closed without a request.
    let asked = while_running(here, || {
        one.open("r", &path, "os.O_RDONLY");
        assert_eq!(one.says("leave('r')"), "ok");
        one.open("r", &path, "os.O_RDONLY");
    });
    assert!(asked.is_empty(), "{asked:?}");
    // A lock through such a file goes with it.
    assert_eq!(one.says("lock('r', 'read', 0, 0)"), "ok");
    assert_eq!(two.says(ALL), "EAGAIN");
    assert_eq!(one.says("leave('r')"), "ok");
    assert_eq!(two.says(ALL), "ok");
    assert_eq!(two.says(NONE), "ok");
    // One that was taken through another file goes with it, too.
    one.open("f", &path, "os.O_RDWR");
    assert_eq!(one.says(ALL), "ok");
    assert_eq!(two.says(ALL), "EAGAIN");
    one.open("r", &path, "os.O_RDONLY");
    assert_eq!(two.says(ALL), "EAGAIN");
    assert_eq!(one.says("leave('r')"), "ok");
    assert_eq!(two.says(ALL), "ok");
    assert_eq!(two.says(NONE), "ok");
    // And what belongs to the open file goes with that.
    one.open("r", &path, "os.O_RDONLY");
    assert_eq!(one.says("whole('r', LOCK_EX | LOCK_NB)"), "ok");
    assert_eq!(one.says("lock('r', 'read', 5, 5, F_OFD_SETLK)"), "ok");
    assert_eq!(two.says("whole('f', LOCK_SH | LOCK_NB)"), "EAGAIN");
    assert_eq!(two.says(ALL), "EAGAIN");
    assert_eq!(one.says("leave('r')"), "ok");
    two.says_soon("whole('f', LOCK_SH | LOCK_NB)", "ok");
    two.says_soon(ALL, "ok");
    // Who waits gets it, and reads what was written.
    one.begin("lock('f', 'write', 0, 0, F_SETLKW)");
    assert_eq!(two.says("put('f', 0, 'new_')"), "ok");
    assert_eq!(two.says(NONE), "ok");
    assert_eq!(one.end(), "ok");
    assert_eq!(one.says("os.pread(files['f'], 20, 0)"), "b'new_ bytes'");
}
