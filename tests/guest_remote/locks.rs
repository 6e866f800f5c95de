// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of several mounts through the module, which opens and closes files without the daemon.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::common::eventually;
use crate::{Scene, while_running};

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const NONE: i32 = libc::F_UNLCK;

fn range(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// A lock of this process; on another mount it is another one's.
fn lock(file: &File, kind: i32) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_SETLK(&range(kind))).map(drop)
}

/// A lock of the open file.
fn lock_own(file: &File, kind: i32) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind))).map(drop)
}

#[test]
fn a_close_that_nobody_was_asked_for_lets_locks_go() {
    let scene = Scene::kept(2);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    let path = here.join("file");
    fs::write(&path, "some bytes").unwrap();
    let two = OpenOptions::new()
        .read(true)
        .write(true)
        .open(there.join("file"))
        .unwrap();
    let open = || File::open(&path).unwrap();
    for _ in 0..3 {
        fs::read(&path).unwrap();
    }
    let mut warm = None;
    let asked = while_running(here, || {
        drop(open());
        warm = Some(open());
    });
    assert!(asked.is_empty(), "{asked:?}");
    // A lock through such a file goes with it.
    let one = warm.unwrap();
    lock(&one, READ).unwrap();
    assert_eq!(lock(&two, WRITE), Err(Errno::EAGAIN));
    drop(one);
    assert_eq!(lock(&two, WRITE), Ok(()));
    lock(&two, NONE).unwrap();
    // One that was taken through another file goes with it, too.
    let written = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    lock(&written, WRITE).unwrap();
    let one = open();
    assert_eq!(lock(&two, READ), Err(Errno::EAGAIN));
    drop(one);
    assert_eq!(lock(&two, WRITE), Ok(()));
    lock(&two, NONE).unwrap();
    // And what belongs to the open file goes with that.
    let one = open();
    one.try_lock().unwrap();
    lock_own(&one, READ).unwrap();
    assert!(two.try_lock_shared().is_err());
    assert_eq!(lock(&two, WRITE), Err(Errno::EAGAIN));
    drop(one);
    eventually(|| two.try_lock_shared().is_ok());
    eventually(|| lock(&two, WRITE).is_ok());
    // Who waits gets it, and reads what was written.
    let waits = thread::spawn(move || {
        fcntl(&written, FcntlArg::F_SETLKW(&range(WRITE))).unwrap();
        let mut bytes = [0; 10];
        written.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    thread::sleep(Duration::from_millis(500));
    assert!(!waits.is_finished());
    two.write_all_at(b"new_", 0).unwrap();
    lock(&two, NONE).unwrap();
    assert_eq!(&waits.join().unwrap(), b"new_ bytes");
}
