// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who answers WRITEs: it sends their payload on, to whatever receives.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use extfuse::abi::{Drain, NOWHERE, SECTION_CRC};
use fuser::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::guest::Random;
use crate::harness::{self, Frame, POISON, Write, crc32c};
use crate::sources::length;
use crate::wires::{Kind, Wire, set_nonblocking};
use crate::world::World;

const KINDS: [Kind; 7] = [
    Kind::Unix,
    Kind::Tcp,
    Kind::Tls,
    Kind::Pipe,
    Kind::Pipe,
    Kind::Memfd,
    Kind::File,
];

/// What takes a frame, and knows afterwards what came.
enum Sink {
    /// It is told how much to expect: of the end it may hear late, since a process that is being started
    /// holds all that we have open, until it may close what of that is on the mount.
    Stream(Sender<usize>, JoinHandle<Vec<u8>>, Wire),
    /// From there on.
    File(Wire, u64),
}

impl Sink {
    /// Sets where it begins, for what `drain` has still to send.
    fn new(drain: &mut Drain, random: &mut Random) -> Self {
        let kind = KINDS[random.below(KINDS.len() as u64) as usize];
        let stream = !matches!(kind, Kind::Memfd | Kind::File);
        // TCP waits for its timers where there is not enough room for a segment: that would be all.
        let narrow = kind == Kind::Unix && random.below(2) == 0;
        let mut wire = if narrow {
            Wire::narrow(kind)
        } else {
            Wire::new(kind)
        };
        let peer = wire.peer.as_ref().unwrap();
        drain.fd = peer.as_raw_fd();
        if stream {
            let mut from = File::from(wire.fd.try_clone().unwrap());
            let pause = Duration::from_micros(if random.below(2) == 0 {
                random.below(5_000)
            } else {
                0
            });
            set_nonblocking(&from);
            let (told, length) = channel();
            let receiving = thread::spawn(move || {
                let (mut received, mut piece, mut all) = (Vec::new(), [0; 16_384], None);
                loop {
                    all = all.or_else(|| length.try_recv().ok());
                    match from.read(&mut piece) {
                        Ok(0) => break,
                        Ok(n) => received.extend(&piece[..n]),
                        Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                        Err(_) if all.is_some_and(|all| received.len() >= all) => break,
                        Err(_) => (),
                    }
                    thread::sleep(pause);
                }
                received
            });
            return Self::Stream(told, receiving, wire);
        }
        let begin = length(random, 10_000) as u64;
        if random.below(2) == 0 {
            drain.pos = begin;
            return Self::File(wire, begin + u64::from(drain.done));
        }
        // It goes to the end, wherever that is said to be.
        fcntl(peer, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        wire.send(&vec![POISON; begin as usize]);
        drain.pos = random.below(1 << 20);
        Self::File(wire, begin)
    }

    /// `length` bytes, and no more if it is a stream.
    fn received(self, length: usize) -> Vec<u8> {
        match self {
            Self::Stream(told, receiving, _open) => {
                told.send(length).unwrap();
                harness::within(receiving, harness::PATIENCE)
            }
            Self::File(wire, from) => {
                let file = File::from(wire.fd);
                assert!(length == 0 || file.metadata().unwrap().len() == from + length as u64);
                let mut received = vec![0; length];
                file.read_exact_at(&mut received, from).unwrap();
                received
            }
        }
    }
}

/// Sends it on in random pieces; what arrives are the file's bytes.
fn drain(world: &World, write: Write, random: &mut Random) {
    let Some(size) = write.withheld else {
        return write.reject(Errno::EIO);
    };
    for _ in 0..1 + random.below(3) {
        let (mut offset, mut payload) = (0, size as usize);
        if random.below(2) == 0 {
            offset = length(random, u64::from(size));
            payload = length(random, u64::from(size) - offset as u64);
        }
        let frame = Frame::of(write.offset + offset as u64, [length(random, 5000), payload, 12]);
        let mut drain = Drain {
            unique: write.unique,
            header: frame.header.len() as u32,
            payload: payload as u32,
            footer: 12,
            offset: offset as u32,
            flags: SECTION_CRC,
            timeout: random.below(40) as u32,
            crc_at: [8, 0, NOWHERE][random.below(3) as usize],
            ..Drain::default()
        };
        if random.below(4) == 0 {
            // As if somebody had sent the beginning.
            drain.done = random.below(frame.len() as u64 + 1) as u32;
            let known = (drain.done as usize)
                .saturating_sub(frame.header.len())
                .min(payload);
            drain.crc = crc32c(&frame.payload[..known]);
        }
        let began = drain.done as usize;
        let sink = Sink::new(&mut drain, random);
        let mut right = frame.clone();
        if drain.crc_at != NOWHERE {
            let at = drain.crc_at as usize;
            right.footer[at..at + 4].copy_from_slice(&crc32c(&frame.payload).to_le_bytes());
        }
        let mut mem = frame.meta();
        if random.below(8) == 0 {
            // Wild: it may end well or not; nobody looks at what comes.
            drain.done = random.below(1 << 20) as u32;
            drain.header = random.below(1 << 17) as u32;
            drain.payload = random.below(1 << 33) as u32;
            drain.mem = [mem.as_mut_ptr() as u64, 8][usize::from(drain.header as usize + 12 > mem.len())];
            world.note("wild drain", &harness::raw_drain(&world.device, &mut drain));
            if let Sink::Stream(..) = sink {
                sink.received(0);
            }
            continue;
        }
        // Until it is there, or is given up.
        for _ in 0..1 + random.below(10) {
            let done = write.device.drain(&mut drain, &mut mem);
            world.note("drain", &done);
            if done.is_ok() {
                assert_eq!(drain.done as usize, right.len());
                assert_eq!(drain.crc, crc32c(&frame.payload));
                // Where nothing was left to send, nothing was told either.
                assert!(began == right.len() || mem == right.meta(), "header and footer");
                break;
            }
        }
        let sent = &right.whole()[began..drain.done as usize];
        harness::assert_bytes(&sink.received(sent.len()), sent, "a frame that was sent");
    }
    match random.below(4) {
        0 => write.reject(Errno::EIO),
        _ => write.written(size),
    }
}

pub fn daemon(world: &World, writes: &Receiver<Write>, mut random: Random) {
    world.may_be_hit();
    while let Ok(write) = writes.recv() {
        drain(world, write, &mut random);
    }
}
