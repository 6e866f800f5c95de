// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends in each step of a frame: the connection aborted, unmounted by force, the daemon killed, the
//! reader killed. Nobody hangs, and nothing is left.

use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use extfuse::abi::{self, Wire as _};
use nix::mount::{MntFlags, umount2};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::common::eventually;
use crate::harness::{
    PATIENCE, POISON, Served, assert_bytes, bytes, errno, remove_and_load_the_module, within,
};
use crate::refusals::{reply_message, stage_message};
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
            for answer in [reply_message(unique, 0), commit_message(unique, PAYLOAD as u32)] {
                assert_eq!(errno(&served.message(&answer)), libc::ENOENT, "{step}");
            }
            read.commit();
        }
    }
}

/// The answer that commits the first `size` bytes.
fn commit_message(unique: u64, size: u32) -> Vec<u8> {
    let commit = abi::Commit { size, reserved: 0 };
    let mut message = [&reply_message(unique, 0)[..], commit.bytes()].concat();
    message[0] = message.len() as u8;
    message
}

#[test]
fn aborted() {
    in_each_step(Served::abort);
}

#[test]
fn unmounted_by_force() {
    in_each_step(Served::force_unmount);
}

/// A reader in a process of its own.
fn dd(served: &Served, name: &str) -> Child {
    Command::new("dd")
        .arg(format!("if={}", served.path(name).display()))
        .args(["of=/dev/null", "bs=6000", "count=1"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
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
            let mut reader = dd(&served, name);
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

#[test]
fn the_reader_killed_before_and_after_a_stage() {
    for name in ["direct", "cached"] {
        for before in [true, false] {
            let served = Served::new(SIZE);
            let mut reader = dd(&served, name);
            let read = served.read();
            if !before {
                read.staged(&frame(), 0);
            }
            kill(Pid::from_raw(reader.id().cast_signed()), Signal::SIGKILL).unwrap();
            thread::sleep(Duration::from_millis(20));
            if before {
                read.staged(&frame(), 0);
            }
            read.commit();
            let gone = thread::spawn(move || reader.wait().unwrap());
            assert!(!within(gone, SOON).success());
            let reader = served.reader("direct", 0, PAYLOAD);
            let read = served.read_at(0);
            read.staged(&frame(), 0);
            read.commit();
            assert_bytes(&within(reader, SOON).unwrap(), &bytes(0, PAYLOAD), name);
        }
    }
}

/// A daemon in a process of its own.
struct Daemon {
    pid: Pid,
    at: PathBuf,
}

impl Daemon {
    /// One that mounts, does `work`, keeps what that gives, and waits.
    fn start<T>(work: impl FnOnce(&Served) -> T) -> Self {
        let (from, to) = nix::unistd::pipe().unwrap();
        // SAFETY: other threads of the test wait, and hold no lock that the child takes.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop(to);
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
                let _kept = work(&served);
                loop {
                    thread::park();
                }
            }
        }
    }

    /// May have been killed already.
    fn kill(&self) {
        let _has_ended = kill(self.pid, Signal::SIGKILL);
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
            let daemon = Daemon::start(|served| {
                let read = served.read();
                if stage {
                    read.staged(&frame(), 0);
                } else {
                    drop(
                        read.device
                            .fill(&mut read.fill(&frame(), &wire.fd), &mut [0; 204]),
                    );
                }
                read
            });
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

/// Where a daemon's call waits for a page of its memory.
#[derive(Clone, Copy, Debug)]
enum Stuck {
    /// STAGE, for the payload of its message.
    Payload,
    /// STAGE, to give the header and the footer.
    Staged,
    /// FILL, to give them.
    Filled,
    /// DRAIN, to take them.
    Drained,
}

mod uffd {
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, [u64; 3]);
    nix::ioctl_readwrite!(register, 0xaa, 0, [u64; 4]);
}

/// Memory whose pages never come (userfaultfd(2)): `told` hears of the first that is waited for.
fn missing(size: usize, mut told: UnixStream) -> &'static mut [u8] {
    let length = NonZeroUsize::new(size).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new descriptor, or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: private memory that is never unmapped; a descriptor that nobody else has.
    let (memory, fd) = unsafe {
        let start = mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE).unwrap();
        let memory = std::slice::from_raw_parts_mut(start.as_ptr().cast(), size);
        (memory, OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()))
    };
    let (version, missing) = (0xaa, 1);
    // SAFETY: the kernel writes into these arrays, as large as it takes them to be.
    unsafe {
        uffd::api(fd.as_raw_fd(), &mut [version, 0, 0]).unwrap();
        let mut range = [memory.as_ptr() as u64, size as u64, missing, 0];
        uffd::register(fd.as_raw_fd(), &mut range).unwrap();
    }
    thread::spawn(move || {
        let _event = nix::unistd::read(&fd, &mut [0; 32]).unwrap();
        told.write_all(b"!").unwrap();
        loop {
            thread::park();
        }
    });
    memory
}

/// The daemon's call, which doesn't come back.
fn get_stuck(served: &Served, at: Stuck, memory: &'static mut [u8]) {
    let ours = frame();
    match at {
        Stuck::Drained => {
            let write = served.write();
            let wire = Wire::new(Kind::Memfd);
            let mut drain = abi::Drain {
                unique: write.unique,
                fd: wire.fd.as_raw_fd(),
                header: 102,
                payload: 100,
                footer: 102,
                crc_at: abi::NOWHERE,
                ..abi::Drain::default()
            };
            drop(write.device.drain(&mut drain, &mut memory[..204]));
        }
        Stuck::Filled => {
            let mut wire = Wire::new(Kind::Memfd);
            wire.send(&ours.whole());
            let read = served.read();
            drop(
                read.device
                    .fill(&mut read.fill(&ours, &wire.fd), &mut memory[..204]),
            );
        }
        Stuck::Payload | Stuck::Staged => {
            let read = served.read();
            let mut here = [0; 208];
            let (payload, mem) = match at {
                Stuck::Payload => (&memory[..PAYLOAD], &mut here[..]),
                _ => (&ours.payload[..], &mut memory[..208]),
            };
            let parts = [&ours.header[..], payload, &ours.footer].map(IoSlice::new);
            drop(read.device.stage(read.unique, &mut ours.section(0), &parts, mem));
        }
    }
}

/// Whoever waits for the answer gets an error at once, though the call is still stuck if it was not killed.
#[test]
fn the_daemon_killed_or_aborted_inside_a_call_that_waits_for_its_memory() {
    for at in [Stuck::Payload, Stuck::Staged, Stuck::Filled, Stuck::Drained] {
        for killed in [true, false] {
            let (mut tells, told) = UnixStream::pair().unwrap();
            tells.set_read_timeout(Some(PATIENCE)).unwrap();
            let daemon = Daemon::start(|served| get_stuck(served, at, missing(1 << 16, told)));
            let (path, writes) = (daemon.at.clone(), matches!(at, Stuck::Drained));
            let user = thread::spawn(move || match writes {
                true => {
                    let mut options = File::options();
                    let to = options.write(true).open(path.join("direct-withheld"));
                    errno(&to.and_then(|to| to.write_at(&[1; PAYLOAD], 0)))
                }
                false => read_some(&path.join("direct")),
            });
            tells.read_exact(&mut [0]).unwrap();
            assert!(!user.is_finished(), "{at:?}");
            if killed {
                daemon.kill();
            } else {
                let minor = nix::sys::stat::minor(std::fs::metadata(&daemon.at).unwrap().dev());
                std::fs::write(format!("/sys/fs/extfuse/connections/{minor}/abort"), "1").unwrap();
            }
            assert_ended(within(user, SOON));
            daemon.kill();
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
