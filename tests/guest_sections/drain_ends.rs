// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends and breaks in each step of a DRAIN, and places of the checksum.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use extfuse::abi::{Drain, NOWHERE, SECTION_CRC};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::common::eventually;
use crate::harness::{
    Frame, PATIENCE, Served, Write, assert_bytes, bytes, crc32c, errno, remove_and_load_the_module, within,
};
use crate::refusals::reply_message;
use crate::wires::{Kind, STREAMS, Wire};

const SIZE: u64 = 4 << 20;
/// What is withheld; larger than what a narrow socket takes.
const PAYLOAD: usize = 200_000;
/// Larger than that too, so that a DRAIN stops in any part.
const META: usize = 60_000;
const SOON: Duration = Duration::from_secs(5);

/// Where a daemon is with its DRAIN when something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Before,
    Waiting,
    BetweenCalls,
    After,
}

const STEPS: [Step; 4] = [Step::Before, Step::Waiting, Step::BetweenCalls, Step::After];

fn frame_of(payload: &[u8], meta: [usize; 2], crc_at: u32) -> Frame {
    let mut frame = Frame::of(5, [meta[0], 0, meta[1]]);
    frame.payload = payload.to_vec();
    if crc_at != NOWHERE {
        let at = crc_at as usize;
        frame.footer[at..at + 4].copy_from_slice(&crc32c(payload).to_le_bytes());
    }
    frame
}

fn drain_of(unique: u64, payload: usize, meta: [usize; 2], to: &OwnedFd) -> (Drain, Vec<u8>) {
    let drain = Drain {
        unique,
        fd: to.as_raw_fd(),
        header: meta[0] as u32,
        payload: payload as u32,
        footer: meta[1] as u32,
        flags: SECTION_CRC,
        timeout: PATIENCE.as_millis() as u32,
        crc_at: NOWHERE,
        ..Drain::default()
    };
    (drain, Frame::of(5, [meta[0], 0, meta[1]]).meta())
}

fn writer(served: &Served) -> JoinHandle<io::Result<usize>> {
    let file = served.open("direct-withheld");
    thread::spawn(move || file.write_at(&bytes(0, PAYLOAD), 0))
}

/// Takes everything that comes, until the end.
fn taker(wire: &Wire) -> JoinHandle<Vec<u8>> {
    let mut from = File::from(wire.fd.try_clone().unwrap());
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

type Draining = JoinHandle<(i32, Drain, Vec<u8>)>;

fn draining(write: &Write, (mut drain, mut mem): (Drain, Vec<u8>)) -> Draining {
    let device = Arc::clone(&write.device);
    thread::spawn(move || {
        let error = errno(&device.drain(&mut drain, &mut mem));
        (error, drain, mem)
    })
}

/// Gets there; a call that waits still, or how far it came.
fn until(step: Step, write: &Write, wire: &Wire) -> (Option<Draining>, Drain, Vec<u8>) {
    let (mut drain, mut mem) = drain_of(write.unique, PAYLOAD, [META; 2], wire.peer.as_ref().unwrap());
    match step {
        Step::Before => (None, drain, mem),
        Step::Waiting => {
            let running = draining(write, (drain, mem.clone()));
            thread::sleep(Duration::from_millis(50));
            assert!(!running.is_finished());
            (Some(running), drain, mem)
        }
        Step::BetweenCalls => {
            drain.timeout = 20;
            assert_eq!(errno(&write.device.drain(&mut drain, &mut mem)), libc::ETIMEDOUT);
            assert!(drain.done > 0);
            drain.timeout = PATIENCE.as_millis() as u32;
            (None, drain, mem)
        }
        Step::After => {
            let mut from = File::from(wire.fd.try_clone().unwrap());
            let length = PAYLOAD + 2 * META;
            let taking = thread::spawn(move || from.read_exact(&mut vec![0; length]));
            write.device.drain(&mut drain, &mut mem).unwrap();
            within(taking, PATIENCE).unwrap();
            (None, drain, mem)
        }
    }
}

fn assert_ended(error: i32) {
    assert!(
        [libc::EIO, libc::ENOTCONN, libc::ECONNABORTED].contains(&error),
        "{error}"
    );
}

fn in_each_step(kinds: &[Kind], end: fn(&Served)) {
    for &kind in kinds {
        for step in STEPS {
            let served = Served::new(SIZE);
            let writer = writer(&served);
            let write = served.write();
            let wire = Wire::narrow(kind);
            let (waiting, mut drain, mut mem) = until(step, &write, &wire);
            end(&served);
            if let Some(waiting) = waiting {
                let (error, ..) = within(waiting, Duration::from_secs(1));
                assert_eq!(error, libc::ENOENT, "{kind:?} {step:?}");
            }
            assert_ended(errno(&within(writer, SOON)));
            // After the end, nothing more comes of it.
            drain.done = 0;
            let error = errno(&write.device.drain(&mut drain, &mut mem));
            assert_eq!((error, drain.done), (libc::ENOENT, 0), "{kind:?} {step:?}");
            let answer = reply_message(write.unique, -libc::ENOSPC);
            assert_eq!(errno(&served.message(&answer)), libc::ENOENT, "{kind:?} {step:?}");
            write.written(PAYLOAD as u32);
        }
    }
}

#[test]
fn aborted_in_each_step_of_a_drain() {
    in_each_step(&STREAMS, Served::abort);
}

#[test]
fn unmounted_by_force_in_each_step_of_a_drain() {
    in_each_step(&[Kind::Unix, Kind::Tls], Served::force_unmount);
}

/// It waits for the answer, which the daemon is free to give; what it sends is whole.
#[test]
fn the_writer_killed_in_each_step_of_a_drain() {
    for step in STEPS {
        for rejected in [false, true] {
            let served = Served::new(SIZE);
            let mut writer = Command::new("dd")
                .args(["if=/dev/zero", "bs=200000", "count=1", "conv=notrunc"])
                .arg(format!("of={}", served.path("direct-withheld").display()))
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let write = served.write();
            let wire = Wire::narrow(Kind::Unix);
            let (waiting, mut drain, mut mem) = until(step, &write, &wire);
            kill(Pid::from_raw(writer.id().cast_signed()), Signal::SIGKILL).unwrap();
            thread::sleep(Duration::from_millis(20));
            if step != Step::After {
                let mut from = File::from(wire.fd.try_clone().unwrap());
                let taking = thread::spawn(move || {
                    let mut all = vec![0; PAYLOAD + 2 * META];
                    from.read_exact(&mut all).map(|()| all)
                });
                match waiting {
                    Some(waiting) => {
                        let error;
                        (error, drain, _) = within(waiting, PATIENCE);
                        assert_eq!(error, 0);
                    }
                    None => write.device.drain(&mut drain, &mut mem).unwrap(),
                }
                let right = frame_of(&[0; PAYLOAD], [META; 2], NOWHERE);
                assert_bytes(&within(taking, PATIENCE).unwrap(), &right.whole(), "sent on");
            }
            assert_eq!(drain.crc, crc32c(&[0; PAYLOAD]), "{step:?}");
            match rejected {
                true => write.reject(fuser::Errno::ENOSPC),
                false => write.written(PAYLOAD as u32),
            }
            let gone = thread::spawn(move || writer.wait().unwrap());
            assert!(!within(gone, SOON).success(), "{step:?}");
        }
    }
}

/// A daemon in a process of its own, which is killed in this step.
#[test]
fn the_daemon_killed_in_each_step_of_a_drain() {
    for step in STEPS {
        let wire = Wire::narrow(Kind::Unix);
        let (from, to) = nix::unistd::pipe().unwrap();
        // SAFETY: the other threads hold no lock that the child takes: they wait, for the child or for bytes.
        let pid = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(from);
                let served = Served::new(SIZE);
                let mut tell = File::from(to);
                writeln!(tell, "{}", served.at.display()).unwrap();
                let write = served.write();
                let running = until(step, &write, &wire);
                writeln!(tell, "there").unwrap();
                drop(running.0.map(JoinHandle::join));
                loop {
                    thread::park();
                }
            }
        };
        drop(to);
        let mut lines = io::BufRead::lines(io::BufReader::new(File::from(from)));
        let at = PathBuf::from(lines.next().unwrap().unwrap());
        let file = File::options()
            .write(true)
            .open(at.join("direct-withheld"))
            .unwrap();
        let writer = thread::spawn(move || file.write_at(&bytes(0, PAYLOAD), 0));
        assert_eq!(lines.next().unwrap().unwrap(), "there");
        assert!(!writer.is_finished(), "{step:?}");
        kill(pid, Signal::SIGKILL).unwrap();
        eventually(|| waitpid(pid, Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive));
        assert_ended(errno(&within(writer, SOON)));
        eventually(|| umount2(&at, MntFlags::MNT_DETACH).is_ok());
        std::fs::remove_dir(&at).unwrap();
    }
}

/// Takes what is in front of a place, and then stops: in the header, the payload, the footer.
fn stops() -> [(&'static str, usize); 4] {
    [
        ("nothing", 0),
        ("header", META / 2),
        ("payload", META + PAYLOAD / 2),
        ("footer", META + PAYLOAD + 100),
    ]
}

/// As many bytes, and no more; then, with `close`, the end, which is a reset where there is such a thing.
fn take(wire: Wire, length: usize, close: bool) -> JoinHandle<Option<Wire>> {
    thread::spawn(move || {
        File::from(wire.fd.try_clone().unwrap())
            .read_exact(&mut vec![0; length])
            .unwrap();
        thread::sleep(Duration::from_millis(50));
        let now = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        if close {
            setsockopt(&wire.fd, sockopt::Linger, &now).unwrap();
        }
        (!close).then_some(wire)
    })
}

#[test]
fn a_receiver_that_is_gone_in_any_part() {
    for kind in [Kind::Tcp, Kind::Unix, Kind::Tls] {
        for (part, length) in stops() {
            let served = Served::new(SIZE);
            let writer = writer(&served);
            let write = served.write();
            let wire = Wire::narrow(kind);
            let to = wire.peer.as_ref().unwrap().try_clone().unwrap();
            let taking = take(wire, length, true);
            let running = draining(&write, drain_of(write.unique, PAYLOAD, [META; 2], &to));
            let (error, drain, _) = within(running, PATIENCE);
            drop(within(taking, PATIENCE));
            let (done, all) = (drain.done as usize, PAYLOAD + 2 * META);
            // The rest of a footer may fit into the buffers before the end is there.
            let sent = error == 0 && done == all && part == "footer";
            assert!(
                sent || [libc::EPIPE, libc::ECONNRESET].contains(&error) && done < all,
                "{kind:?} {part}: {error}, {done}"
            );
            assert!(done >= length, "{kind:?} {part}: {done}");
            let had = done.saturating_sub(META).min(PAYLOAD);
            assert_eq!(drain.crc, crc32c(&bytes(0, had)), "{kind:?} {part}");
            // All of the payload is still there.
            let other = Wire::new(Kind::Memfd);
            let (mut again, mut mem) = drain_of(write.unique, PAYLOAD, [0, 0], other.peer.as_ref().unwrap());
            write.device.drain(&mut again, &mut mem).unwrap();
            assert_eq!(again.crc, crc32c(&bytes(0, PAYLOAD)));
            write.reject(fuser::Errno::ENOSPC);
            assert_eq!(errno(&within(writer, SOON)), libc::ENOSPC);
        }
    }
}

/// The deadline is kept, wherever it stops, and the frame goes on from there.
#[test]
fn a_receiver_that_stalls_in_any_part() {
    for kind in STREAMS {
        for (part, length) in stops() {
            let served = Served::new(SIZE);
            let writer = writer(&served);
            let write = served.write();
            let wire = Wire::narrow(kind);
            let to = wire.peer.as_ref().unwrap().try_clone().unwrap();
            // As long as can be: a pipe takes much of it.
            let meta = [META, 65_536];
            let taking = take(wire, length, false);
            let (mut drain, mem) = drain_of(write.unique, PAYLOAD, meta, &to);
            drain.timeout = 300;
            let began = Instant::now();
            let (error, mut drain, mut mem) = within(draining(&write, (drain, mem)), PATIENCE);
            let took = began.elapsed();
            let wire = within(taking, PATIENCE).unwrap();
            let whole = frame_of(&bytes(0, PAYLOAD), meta, NOWHERE).whole();
            if drain.done as usize == whole.len() {
                // What was left fits into what is on the way.
                assert!(part == "footer" && error == 0, "{kind:?} {part}");
            } else {
                assert_eq!(error, libc::ETIMEDOUT, "{kind:?} {part}");
                assert!(took >= Duration::from_millis(250) && took < SOON, "{took:?}");
            }
            let mut from = File::from(wire.fd.try_clone().unwrap());
            let left = whole.len() - length;
            let rest = thread::spawn(move || {
                let mut rest = vec![0; left];
                from.read_exact(&mut rest).map(|()| rest)
            });
            drain.timeout = PATIENCE.as_millis() as u32;
            write.device.drain(&mut drain, &mut mem).unwrap();
            assert_eq!(drain.crc, crc32c(&bytes(0, PAYLOAD)));
            assert_bytes(&within(rest, PATIENCE).unwrap(), &whole[length..], part);
            write.written(PAYLOAD as u32);
            assert_eq!(within(writer, SOON).unwrap(), PAYLOAD);
        }
    }
}

#[test]
fn a_signal_interrupts_a_drain_and_it_goes_on() {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    for kind in STREAMS {
        let served = Served::new(SIZE);
        let writer = writer(&served);
        let write = served.write();
        let wire = Wire::narrow(kind);
        let to = wire.peer.as_ref().unwrap().try_clone().unwrap();
        let running = draining(&write, drain_of(write.unique, PAYLOAD, [META; 2], &to));
        thread::sleep(Duration::from_millis(50));
        // SAFETY: the thread has not been joined.
        let sent = unsafe { libc::pthread_kill(running.as_pthread_t(), libc::SIGUSR2) };
        assert_eq!(sent, 0);
        let (error, mut drain, mut mem) = within(running, Duration::from_secs(1));
        assert_eq!(error, libc::EINTR, "{kind:?}");
        let mut from = File::from(wire.fd.try_clone().unwrap());
        let taking = thread::spawn(move || {
            let mut all = vec![0; PAYLOAD + 2 * META];
            from.read_exact(&mut all).map(|()| all)
        });
        write.device.drain(&mut drain, &mut mem).unwrap();
        let right = frame_of(&bytes(0, PAYLOAD), [META; 2], NOWHERE).whole();
        assert_bytes(&within(taking, PATIENCE).unwrap(), &right, &format!("{kind:?}"));
        write.written(PAYLOAD as u32);
        assert_eq!(within(writer, SOON).unwrap(), PAYLOAD);
    }
}

/// Sends it to a local socket, in two calls of which the second begins at `done`.
fn sent_from(write: &Write, payload: &[u8], meta: [usize; 2], crc_at: u32, done: usize) {
    let wire = Wire::new(Kind::Unix);
    let to = wire.peer.as_ref().unwrap();
    let taking = taker(&wire);
    let (mut drain, mut mem) = drain_of(write.unique, payload.len(), meta, to);
    let had = done.saturating_sub(meta[0]).min(payload.len());
    drain.crc_at = crc_at;
    (drain.done, drain.crc) = (done as u32, crc32c(&payload[..had]));
    write.device.drain(&mut drain, &mut mem).unwrap();
    nix::sys::socket::shutdown(to.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
    let right = frame_of(payload, meta, crc_at);
    let what = format!("crc at {crc_at}, from {done} on");
    assert_bytes(&within(taking, PATIENCE), &right.whole()[done..], &what);
    assert_eq!((drain.done as usize, drain.crc), (right.len(), crc32c(payload)));
    // A call that has nothing left to send has nothing to put anywhere.
    if done < right.len() {
        assert_bytes(&mem, &right.meta(), &what);
    }
}

#[test]
fn the_checksum_at_every_place_of_the_footer() {
    const FOOTER: u32 = 12;
    let served = Served::new(SIZE);
    // Of several chunks; the frame's last bytes lie around the end of one.
    for payload in [1, 20, 32_768 - 20, 65_536 - 16] {
        let file = served.open("direct-withheld");
        let ours = bytes(0, payload);
        let written = served.while_writing(
            move || file.write_at(&ours, 0),
            |write| {
                let payload = bytes(0, payload);
                for crc_at in 0..=FOOTER - 4 {
                    for header in 8..=16 {
                        sent_from(&write, &payload, [header, FOOTER as usize], crc_at, 0);
                    }
                }
                let wire = Wire::new(Kind::Unix);
                for crc_at in (FOOTER - 3..FOOTER + 2).chain([NOWHERE - 4, NOWHERE - 1]) {
                    let to = wire.peer.as_ref().unwrap();
                    let (mut drain, mut mem) =
                        drain_of(write.unique, payload.len(), [8, FOOTER as usize], to);
                    drain.crc_at = crc_at;
                    let error = errno(&write.device.drain(&mut drain, &mut mem));
                    assert_eq!((error, drain.done), (libc::EINVAL, 0), "{crc_at}");
                }
                wire.until_taken();
                write.written(payload.len() as u32);
            },
        );
        assert_eq!(written.unwrap(), payload);
    }
}

#[test]
fn a_drain_goes_on_from_every_byte() {
    let served = Served::new(SIZE);
    let file = served.open("direct-withheld");
    let written = served.while_writing(
        move || file.write_at(&bytes(0, 40), 0),
        |write| {
            for done in 0..=10 + 40 + 12 {
                for crc_at in [0, 5, 8, NOWHERE] {
                    sent_from(&write, &bytes(0, 40), [10, 12], crc_at, done);
                }
            }
            write.written(40);
        },
    );
    assert_eq!(written.unwrap(), 40);
}

#[test]
fn the_module_can_be_removed_after_drains_that_ended() {
    in_each_step(&[Kind::Unix], Served::force_unmount);
    remove_and_load_the_module();
    drop(Served::new(SIZE));
}
