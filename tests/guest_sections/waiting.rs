// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that stall, end and interrupt themselves, at each step of a frame.

use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::thread;
use std::time::{Duration, Instant};

use extfuse::abi::Fill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

use crate::harness::{Frame, PATIENCE, POISON, Read, Served, assert_bytes, bytes, errno, within};
use crate::wires::{Kind, STREAMS, Wire, set_nonblocking};

const SIZE: u64 = 1 << 30;
const PAYLOAD: usize = 6000;

/// Bytes of a usual frame that end in the header, in the payload, in the footer; and none.
pub const STEPS: [(&str, usize); 4] = [
    ("start", 0),
    ("header", 50),
    ("payload", 3000),
    ("footer", 102 + PAYLOAD + 50),
];

pub fn frame() -> Frame {
    Frame::usual(0, PAYLOAD)
}

fn fill_for(read: &Read, wire: &Wire, fill: &mut Fill, mem: &mut [u8], time: Duration) -> i32 {
    fill.timeout = time.as_millis() as u32;
    fill.fd = wire.fd.as_raw_fd();
    errno(&read.device.fill(fill, mem))
}

/// The rest of the frame comes, and all is well.
fn resume(read: Read, wire: &mut Wire, fill: &mut Fill, mem: &mut [u8], sent: usize) {
    wire.send(&frame().whole()[sent..]);
    while fill_for(&read, wire, fill, mem, PATIENCE) == libc::EAGAIN {
        thread::sleep(Duration::from_millis(1));
    }
    frame().assert_filled(fill, mem);
    read.commit();
}

#[test]
fn a_server_that_stalls_costs_the_timeout() {
    for kind in STREAMS {
        for (step, sent) in STEPS {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(kind);
            wire.send(&frame().whole()[..sent]);
            let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
                let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
                for time in [0, 200].map(Duration::from_millis) {
                    let start = Instant::now();
                    let error = fill_for(&read, &wire, &mut fill, &mut mem, time);
                    assert_eq!(error, libc::ETIMEDOUT, "{kind:?} {step}");
                    // The kernel counts in ticks, which a guest that was kept waiting gets all at once.
                    let took = start.elapsed();
                    assert!(
                        took >= time / 2 && took < time + Duration::from_secs(2),
                        "{kind:?} {step}: {took:?}"
                    );
                }
                assert_eq!(fill.done as usize, sent);
                resume(read, &mut wire, &mut fill, &mut mem, sent);
            });
            assert_bytes(&seen.unwrap(), &bytes(0, PAYLOAD), step);
        }
    }
}

#[test]
fn a_signal_interrupts_and_the_frame_is_resumed() {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: a handler that does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    for kind in STREAMS {
        for (step, sent) in STEPS {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(kind);
            wire.send(&frame().whole()[..sent]);
            let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
                let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
                let device = std::sync::Arc::clone(&read.device);
                let (mut there, mut memory) = (fill, mem.clone());
                let filling = thread::spawn(move || {
                    let error = errno(&device.fill(&mut there, &mut memory));
                    (error, there, memory)
                });
                let start = Instant::now();
                while !filling.is_finished() {
                    // Too early, it hits nothing.
                    thread::sleep(Duration::from_millis(20));
                    // SAFETY: the thread has not been joined.
                    unsafe { libc::pthread_kill(filling.as_pthread_t(), libc::SIGUSR1) };
                    assert!(start.elapsed() < PATIENCE);
                }
                let error;
                (error, fill, mem) = filling.join().unwrap();
                assert_eq!(error, libc::EINTR, "{kind:?} {step}");
                let had = fill.done as usize;
                assert!(had <= sent);
                resume(read, &mut wire, &mut fill, &mut mem, sent);
            });
            assert_bytes(&seen.unwrap(), &bytes(0, PAYLOAD), step);
        }
    }
}

#[test]
fn the_end_of_a_source_inside_the_frame() {
    for kind in [
        Kind::Tcp,
        Kind::Unix,
        Kind::Pipe,
        Kind::Tls,
        Kind::File,
        Kind::Memfd,
    ] {
        for (step, sent) in STEPS {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(kind);
            let pos = wire.send(&frame().whole()[..sent]);
            wire.end();
            let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
                let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
                fill.pos = pos;
                let start = Instant::now();
                let error = errno(&read.device.fill(&mut fill, &mut mem));
                assert_eq!(
                    (error, fill.done as usize),
                    (libc::ENODATA, sent),
                    "{kind:?} {step}"
                );
                assert!(start.elapsed() < Duration::from_secs(2));
                let header = sent.min(102);
                assert_bytes(&mem[..header], &frame().header[..header], "of the header");
                // Of what is not whole, nothing is there.
                read.commit();
            });
            assert_eq!(seen.unwrap(), [0; 0], "{kind:?} {step}");
        }
    }
}

/// The next call reads on behind what the calls before have read.
#[test]
fn a_file_that_grows_is_read_on() {
    let served = Served::new(SIZE);
    for kind in [Kind::File, Kind::Memfd] {
        for (step, sent) in STEPS {
            let mut wire = Wire::new(kind);
            wire.send(&[POISON; 777]);
            let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
                let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
                fill.pos = wire.send(&frame().whole()[..sent]);
                let error = fill_for(&read, &wire, &mut fill, &mut mem, PATIENCE);
                assert_eq!(
                    (error, fill.done as usize),
                    (libc::ENODATA, sent),
                    "{kind:?} {step}"
                );
                resume(read, &mut wire, &mut fill, &mut mem, sent);
            });
            assert_bytes(&seen.unwrap(), &bytes(0, PAYLOAD), step);
        }
    }
}

#[test]
fn a_reset_inside_the_frame() {
    for (step, sent) in STEPS {
        let served = Served::new(SIZE);
        let mut wire = Wire::new(Kind::Tcp);
        wire.send(&frame().whole()[..sent]);
        let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
            let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
            let error = fill_for(&read, &wire, &mut fill, &mut mem, Duration::from_millis(100));
            assert_eq!(error, libc::ETIMEDOUT);
            let now = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(wire.peer.as_ref().unwrap(), sockopt::Linger, &now).unwrap();
            wire.end();
            let error = fill_for(&read, &wire, &mut fill, &mut mem, PATIENCE);
            assert_eq!(error, libc::ECONNRESET, "{step}");
            // And once more, when the error has been told.
            let error = fill_for(&read, &wire, &mut fill, &mut mem, PATIENCE);
            assert_eq!(error, libc::ENODATA, "{step}");
            read.reject(fuser::Errno::EIO);
        });
        assert_eq!(errno(&seen), libc::EIO);
    }
}

/// A byte out of band is not of the stream: the frame goes on behind it.
#[test]
fn urgent_data_in_the_stream() {
    for nonblocking in [false, true] {
        for (step, sent) in STEPS {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(Kind::Tcp);
            if nonblocking {
                set_nonblocking(&wire.fd);
            }
            let whole = frame().whole();
            let peer = wire.peer.as_ref().unwrap().as_raw_fd();
            assert_eq!(send(peer, &whole[..sent], MsgFlags::empty()), Ok(sent));
            assert_eq!(send(peer, b"!", MsgFlags::MSG_OOB), Ok(1));
            let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
                let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
                let start = Instant::now();
                wire.send(&whole[sent..]);
                while fill_for(&read, &wire, &mut fill, &mut mem, Duration::from_secs(3)) != 0 {
                    assert!(nonblocking, "{step}: {}", fill.done);
                    assert!(start.elapsed() < PATIENCE, "{step}: stuck at {}", fill.done);
                    thread::sleep(Duration::from_millis(1));
                }
                frame().assert_filled(&fill, &mem);
                read.commit();
            });
            assert_bytes(&seen.unwrap(), &bytes(0, PAYLOAD), step);
        }
    }
}

/// A socket that is always ready and never has anything: the notices of zero-copy sends wait in its
/// error queue. It costs the timeout, and no more.
#[test]
fn a_socket_that_looks_ready() {
    let served = Served::new(SIZE);
    let mut wire = Wire::new(Kind::Tcp);
    let (one, fd) = (1i32, wire.fd.as_raw_fd());
    // SAFETY: an int, as the option takes.
    let set = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const one).cast(),
            4,
        )
    };
    assert_eq!(set, 0);
    let sent = send(
        wire.fd.as_raw_fd(),
        &[1; 5000],
        MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY),
    );
    assert_eq!(sent, Ok(5000));
    let mut taken = [0; 5000];
    std::io::Read::read_exact(
        &mut std::fs::File::from(wire.peer.as_ref().unwrap().try_clone().unwrap()),
        &mut taken,
    )
    .unwrap();
    let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
        let (fill, mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
        let device = std::sync::Arc::clone(&read.device);
        let filling = thread::spawn(move || {
            let (mut fill, mut mem) = (fill, mem);
            fill.timeout = 300;
            let start = Instant::now();
            let error = errno(&device.fill(&mut fill, &mut mem));
            (error, start.elapsed())
        });
        let (error, took) = within(filling, PATIENCE);
        assert_eq!(error, libc::ETIMEDOUT);
        assert!(
            took >= Duration::from_millis(290) && took < Duration::from_secs(3),
            "{took:?}"
        );
        let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
        resume(read, &mut wire, &mut fill, &mut mem, 0);
    });
    assert_bytes(&seen.unwrap(), &bytes(0, PAYLOAD), "at last");
}

/// FILL asks TCP to be woken late; whoever waits for the socket later is woken as ever.
#[test]
fn a_socket_keeps_its_low_water_mark() {
    fn low_water(wire: &Wire) -> i32 {
        let (mut mark, mut size) = (0i32, 4);
        // SAFETY: an int, as the option gives, and its size.
        let got = unsafe {
            libc::getsockopt(
                wire.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw mut mark).cast(),
                &raw mut size,
            )
        };
        assert_eq!(got, 0);
        mark
    }
    for (step, sent) in STEPS {
        let served = Served::new(SIZE);
        let mut wire = Wire::new(Kind::Tcp);
        let before = low_water(&wire);
        wire.send(&frame().whole()[..sent]);
        let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
            let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
            let error = fill_for(&read, &wire, &mut fill, &mut mem, Duration::from_millis(100));
            assert_eq!(error, libc::ETIMEDOUT);
            assert_eq!(low_water(&wire), before, "{step}");
            resume(read, &mut wire, &mut fill, &mut mem, sent);
            assert_eq!(low_water(&wire), before, "{step}");
        });
        assert_bytes(&seen.unwrap(), &bytes(0, PAYLOAD), step);
    }
}

/// The module has it open while it is called only: then the other end sees that it is closed.
#[test]
fn a_source_is_let_go() {
    let served = Served::new(SIZE);
    for (step, sent) in STEPS.into_iter().chain([("all of it", frame().len())]) {
        let mut wire = Wire::new(Kind::Unix);
        wire.send(&frame().whole()[..sent]);
        let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
            let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
            let error = fill_for(&read, &wire, &mut fill, &mut mem, Duration::from_millis(100));
            assert_eq!(error == 0, sent == frame().len(), "{step}: {error}");
            read.reject(fuser::Errno::EIO);
        });
        assert_eq!(errno(&seen), libc::EIO);
        let Wire { fd, peer, .. } = wire;
        drop(fd);
        let end = send(peer.unwrap().as_raw_fd(), b"?", MsgFlags::MSG_NOSIGNAL);
        assert_eq!(end, Err(nix::Error::EPIPE), "{step}");
    }
}

#[test]
fn tls_control_records_are_not_data() {
    for (step, sent) in STEPS {
        let served = Served::new(SIZE);
        let wire = Wire::new(Kind::Tls);
        let peer = wire.peer.as_ref().unwrap();
        if sent > 0 {
            std::fs::File::from(peer.try_clone().unwrap())
                .write_all(&frame().whole()[..sent])
                .unwrap();
        }
        send_alert(peer.as_raw_fd());
        let (seen, ()) = served.one_read("direct", (0, PAYLOAD), |read| {
            let (mut fill, mut mem) = (read.fill(&frame(), &wire.fd), vec![0; 204]);
            let error = fill_for(&read, &wire, &mut fill, &mut mem, Duration::from_secs(2));
            assert!([libc::EINVAL, libc::EIO].contains(&error), "{step}: {error}");
            assert_eq!(fill.done as usize, sent, "{step}");
            read.commit();
        });
        assert_eq!(seen.unwrap(), [0; 0], "{step}");
    }
}

/// A record of another type than data, with bytes that look like any.
fn send_alert(fd: i32) {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        kind: [u8; 8],
    }
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + 1,
            cmsg_level: libc::SOL_TLS,
            cmsg_type: libc::TLS_SET_RECORD_TYPE,
        },
        kind: [21, 0, 0, 0, 0, 0, 0, 0],
    };
    let mut payload = [2u8; 6000];
    let mut part = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: zeros are a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: everything that `message` points to lives until the end of this function.
    let sent = unsafe { libc::sendmsg(fd, &raw const message, 0) };
    assert_eq!(sent, 6000, "{}", std::io::Error::last_os_error());
}
