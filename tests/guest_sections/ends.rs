// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends in each step of a frame: the connection aborted, unmounted by force, the daemon killed, the
//! reader killed. Nobody hangs, and nothing is left.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::common::eventually;
use crate::harness::{
    PATIENCE, POISON, Served, assert_bytes, bytes, errno, remove_and_load_the_module, within,
};
use crate::refusals::stage_message;
use crate::waiting::{STEPS, frame};
use crate::wires::{Kind, Wire};

const SIZE: u64 = 1 << 30;
const PAYLOAD: usize = 6000;
/// How long a reader may wait for its error.
const SOON: Duration = Duration::from_secs(5);

fn assert_ended(error: i32) {
    assert!(
        [libc::EIO, libc::ENOTCONN, libc::ECONNABORTED].contains(&error),
        "{error}"
    );
}

/// With a FILL that waits in each step, and a section that is staged.
fn in_each_step(end: fn(&Served)) {
    for name in ["direct", "cached"] {
        for (step, sent) in STEPS {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(Kind::Tcp);
            wire.send(&frame().whole()[..sent]);
            let reader = served.reader(name, 0, PAYLOAD);
            let read = served.read();
            read.staged(&frame(), 0);
            let (mut fill, device) = (read.fill(&frame(), &wire.fd), Arc::clone(&read.device));
            let unique = read.unique;
            let filling = thread::spawn(move || device.fill(&mut fill, &mut [0; 204]));
            wire.until_taken();
            end(&served);
            assert_eq!(
                errno(&within(filling, Duration::from_secs(1))),
                libc::ENOENT,
                "{step}"
            );
            assert_ended(errno(&within(reader, SOON)));
            // After the end, nothing more comes of it.
            let (mut fill, mut mem) = (frame().fill(unique, &wire.fd), [POISON; 208]);
            assert_eq!(
                errno(&served.device.fill(&mut fill, &mut mem)),
                libc::ENOENT,
                "{step}"
            );
            let message = stage_message(unique, mem.as_mut_ptr() as u64, &frame(), frame().section(0));
            assert_eq!(errno(&served.message(&message)), libc::ENOENT, "{step}");
            read.commit();
        }
    }
}

#[test]
fn aborted() {
    in_each_step(Served::abort);
}

#[test]
fn unmounted_by_force() {
    in_each_step(Served::force_unmount);
}

/// It waits for the answer of what is sent already, as without sections; the answer takes as long as the
/// daemon lets the server take.
#[test]
fn the_reader_killed() {
    for name in ["direct", "cached"] {
        for (step, sent) in STEPS {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(Kind::Tcp);
            wire.send(&frame().whole()[..sent]);
            let mut reader = Command::new("dd")
                .arg(format!("if={}", served.path(name).display()))
                .args(["of=/dev/null", "bs=6000", "count=1"])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let read = served.read();
            let (fill, device) = (read.fill(&frame(), &wire.fd), Arc::clone(&read.device));
            let filling = thread::spawn(move || {
                let (mut fill, mut mem) = (fill, [0; 204]);
                let error = errno(&device.fill(&mut fill, &mut mem));
                (error, fill, mem)
            });
            wire.until_taken();
            kill(Pid::from_raw(reader.id().cast_signed()), Signal::SIGKILL).unwrap();
            thread::sleep(Duration::from_millis(20));
            wire.send(&frame().whole()[sent..]);
            let (error, fill, mem) = within(filling, PATIENCE);
            assert_eq!(error, 0, "{step}");
            frame().assert_filled(&fill, &mem);
            read.commit();
            let gone = thread::spawn(move || reader.wait().unwrap());
            assert!(!within(gone, SOON).success());
            // Others are served.
            let reader = served.reader("direct", 0, PAYLOAD);
            let read = served.read_at(0);
            read.staged(&frame(), 0);
            read.commit();
            assert_bytes(&within(reader, SOON).unwrap(), &bytes(0, PAYLOAD), step);
        }
    }
}

/// A daemon in a process of its own, which fills the first READ from `source`, or stages it and waits.
struct Daemon {
    pid: Pid,
    at: PathBuf,
}

impl Daemon {
    fn start(source: OwnedFd, stage: bool) -> Self {
        let (from, to) = nix::unistd::pipe().unwrap();
        // SAFETY: the only other thread is the test harness's, which waits and holds no lock.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop((to, source));
                let mut at = String::new();
                File::from(from).read_to_string(&mut at).unwrap();
                Self {
                    pid: child,
                    at: at.into(),
                }
            }
            ForkResult::Child => {
                let served = Served::new(SIZE);
                File::from(to)
                    .write_all(served.at.as_os_str().as_encoded_bytes())
                    .unwrap();
                let read = served.read();
                if stage {
                    read.staged(&frame(), 0);
                } else {
                    drop(read.device.fill(&mut read.fill(&frame(), &source), &mut [0; 204]));
                }
                loop {
                    thread::park();
                }
            }
        }
    }

    fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
        let start = std::time::Instant::now();
        while waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
            assert!(start.elapsed() < SOON, "the daemon does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _has_ended = kill(self.pid, Signal::SIGKILL);
        eventually(|| umount2(&self.at, MntFlags::MNT_DETACH).is_ok() || !self.at.exists());
        let _is_empty = std::fs::remove_dir(&self.at);
    }
}

fn read_some(path: &Path) -> i32 {
    let mut buffer = [POISON; PAYLOAD];
    let got = File::open(path).and_then(|mut file| file.read(&mut buffer));
    // A direct read's memory is written before, and is no answer without the commit.
    let seen = !path.ends_with("direct") && buffer.iter().any(|byte| *byte != POISON);
    assert!(!seen, "bytes that were not committed");
    errno(&got)
}

#[test]
fn the_daemon_killed() {
    for name in ["direct", "cached"] {
        for (step, sent) in STEPS.into_iter().chain([("staged", usize::MAX)]) {
            let mut wire = Wire::new(Kind::Unix);
            let stage = sent == usize::MAX;
            if !stage {
                wire.send(&frame().whole()[..sent]);
            }
            let daemon = Daemon::start(wire.fd.try_clone().unwrap(), stage);
            let path = daemon.at.join(name);
            let reader = thread::spawn(move || read_some(&path));
            thread::sleep(Duration::from_millis(30));
            wire.until_taken();
            // It is in the middle of it.
            assert!(!reader.is_finished(), "{step}");
            daemon.kill();
            assert_ended(within(reader, SOON));
        }
    }
}

/// After all sorts of ends.
#[test]
fn the_module_can_be_removed() {
    in_each_step(Served::force_unmount);
    remove_and_load_the_module();
    drop(Served::new(SIZE));
}
