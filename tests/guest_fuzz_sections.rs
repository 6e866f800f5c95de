// SPDX-License-Identifier: MIT OR Apache-2.0
//! Daemons that use the sections at random, rightly, half rightly and wrongly, while applications read
//! and write. Whatever they do, what an application sees are the file's own bytes, or zeros, or an error;
//! nobody hangs; and nothing is left.
//!
//! `EXTFUSE_SEED` repeats the choices (not how threads meet); `EXTFUSE_FUZZ_SECONDS` says for how long.

mod common;
#[path = "guest_sections/frames.rs"]
#[allow(dead_code)]
mod frames;
#[path = "common/guest.rs"]
mod guest;
#[path = "guest_sections/harness.rs"]
#[allow(dead_code)]
mod harness;
#[path = "guest_sections/wires.rs"]
#[allow(dead_code)]
mod wires;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::abi::{Drain, Fill, NOWHERE, SECTION_COMMIT, SECTION_CRC, STAGE, Section};
use fuser::Errno;

use guest::{Random, seed};
use harness::{Frame, POISON, Read, Served, Shared, Write, bytes, crc32c, remove_and_load_the_module};
use wires::{Kind, Wire, pipe_of, set_nonblocking};

const SIZE: u64 = 8 << 20;
const DAEMONS: u64 = 3;
/// A READ that takes longer hangs: no daemon holds one as long.
const HANGS: u64 = 10_000;

/// A request that somebody has, or had.
#[derive(Clone, Copy)]
struct Known {
    unique: u64,
    offset: u64,
    size: u32,
}

/// What all threads share.
struct World {
    device: Arc<Shared>,
    known: Mutex<Vec<Known>>,
    /// How often each attempt ended how.
    outcomes: Mutex<BTreeMap<(&'static str, i32), u64>>,
    began: Instant,
    /// Milliseconds since `began` at which each application began to wait; 0: it does not.
    waiting: Vec<AtomicU64>,
    stop: AtomicBool,
}

impl World {
    fn note<T>(&self, what: &'static str, result: &std::io::Result<T>) {
        let mut outcomes = self.outcomes.lock().unwrap();
        *outcomes.entry((what, harness::errno(result))).or_default() += 1;
    }

    /// Some request, most often `mine`.
    fn victim(&self, mine: Known, random: &mut Random) -> Known {
        let mut known = self.known.lock().unwrap();
        known.push(mine);
        if known.len() > 40 {
            known.remove(0);
        }
        match random.below(6) {
            0 => known[random.below(known.len() as u64) as usize],
            _ => mine,
        }
    }
}

/// One of these, or something near, or something far off.
fn length(random: &mut Random, most: u64) -> usize {
    let lengths = [0, 1, 102, 4095, 4096, 4097, 65_536, most];
    let near = lengths[random.below(8) as usize];
    let length = match random.below(4) {
        0 => near,
        1 => random.below(near + 2),
        2 => random.below(most + 1),
        _ => random.below(300),
    };
    length.min(most) as usize
}

/// A frame for a place in a request: of the file's bytes there, so that it may be committed by anybody.
fn right_frame(victim: Known, random: &mut Random) -> (Frame, u32) {
    let offset = length(random, u64::from(victim.size)) as u32;
    let payload = length(random, u64::from(victim.size - offset));
    let meta = [length(random, 70_000).min(65_536), length(random, 5000)];
    let frame = Frame::of(victim.offset + u64::from(offset), [meta[0] / 8, payload, meta[1]]);
    (frame, offset)
}

fn any_wire(random: &mut Random) -> Wire {
    let kinds = [
        Kind::Tcp,
        Kind::Unix,
        Kind::Unix,
        Kind::Pipe,
        Kind::Memfd,
        Kind::Tls,
    ];
    let wire = Wire::new(kinds[random.below(6) as usize]);
    if random.below(4) == 0 {
        set_nonblocking(&wire.fd);
    }
    wire
}

/// Right bytes at the right place, maybe not all of them, maybe in several calls, maybe given up. Tells
/// whether the section is whole.
fn fill(world: &World, victim: Known, random: &mut Random) -> bool {
    let (frame, offset) = right_frame(victim, random);
    let whole = frame.whole();
    let mut wire = any_wire(random);
    let mut fill = Fill {
        offset,
        flags: [0, SECTION_CRC, SECTION_CRC, SECTION_COMMIT | SECTION_CRC][random.below(4) as usize],
        timeout: random.below(30) as u32,
        ..frame.fill(victim.unique, &wire.fd)
    };
    if random.below(8) == 0 {
        // Bytes that it never got: what is there is zeros, or was put there.
        fill.done = random.below(whole.len() as u64 + 1) as u32;
    }
    let lied = fill.done;
    let mut mem = vec![0; frame.meta().len()];
    let mut sent = fill.done as usize;
    for _ in 0..1 + random.below(4) {
        let end = match random.below(3) {
            0 => sent + random.below((whole.len() - sent) as u64 + 1) as usize,
            _ => whole.len(),
        };
        let pos = wire.send(&whole[sent..end]);
        if sent == lied as usize {
            fill.pos = pos.wrapping_sub(u64::from(lied));
        }
        sent = end;
        if random.below(10) == 0 {
            wire.end();
            sent = whole.len();
        }
        let done = world.device.fill(&mut fill, &mut mem);
        world.note("fill", &done);
        if done.is_ok() {
            if lied == 0 {
                assert_eq!(fill.done as usize, whole.len());
                assert!(mem == frame.meta(), "header and footer");
                assert!(
                    fill.flags & SECTION_CRC == 0 || fill.crc == crc32c(&frame.payload),
                    "crc"
                );
            }
            return true;
        }
        assert!(fill.done >= lied && fill.done as usize <= whole.len());
    }
    false
}

/// Anything for arguments; the bytes are zeros, which may be seen wherever they land.
fn wild_fill(served: &World, victim: Known, random: &mut Random) {
    let mut wire = any_wire(random);
    wire.send(&vec![0; length(random, 200_000)]);
    let wild = |random: &mut Random, usual: u64| match random.below(6) {
        0 => random.below(u64::MAX) as u32,
        1 => u32::MAX - random.below(5) as u32,
        _ => length(random, usual) as u32,
    };
    let mut memory = vec![0u8; 140_000];
    let mut fill = Fill {
        unique: victim.unique ^ [0, 0, 0, 1, 2, 1 << 63][random.below(6) as usize],
        pos: [0, 0, random.below(u64::MAX)][random.below(3) as usize],
        fd: [
            wire.fd.as_raw_fd(),
            wire.fd.as_raw_fd(),
            -1,
            served.device.raw.as_raw_fd(),
        ][random.below(4) as usize],
        header: wild(random, 65_536),
        payload: wild(random, 1 << 20),
        footer: wild(random, 65_536),
        offset: wild(random, 1 << 20),
        flags: [0, 1, 2, 3, 4, u32::MAX][random.below(6) as usize],
        timeout: random.below(10) as u32,
        crc: random.below(1 << 32) as u32,
        done: [0, 0, wild(random, 70_000)][random.below(3) as usize],
        reserved: u32::from(random.below(10) == 0),
        mem: [
            memory.as_mut_ptr() as u64,
            memory.as_mut_ptr() as u64,
            8,
            0xffff_8880_0000_0000,
        ][random.below(4) as usize],
    };
    let done = harness::raw_fill(&served.device, &mut fill);
    served.note("wild fill", &done);
}

fn stage(world: &World, victim: Known, random: &mut Random) -> bool {
    let (frame, offset) = right_frame(victim, random);
    let mut section = frame.section(offset);
    let mut mem = vec![POISON; frame.meta().len() + 4];
    let staged = if random.below(3) == 0 {
        let (from, to) = pipe_of(2 << 20);
        let pipe = (from.as_fd(), to.as_fd());
        let whole = frame.whole();
        world
            .device
            .stage_through(victim.unique, &mut section, &mut mem, pipe, whole.len(), |to| {
                harness::put(&to.try_clone_to_owned()?, &whole)
            })
    } else {
        let parts = [&frame.header, &frame.payload, &frame.footer].map(|part| IoSlice::new(part));
        world.device.stage(victim.unique, &mut section, &parts, &mut mem)
    };
    world.note("stage", &staged);
    if staged.is_ok() {
        frame.assert_staged(&mem);
    }
    staged.is_ok()
}

/// A message of zeros, with anything in its heads.
fn wild_message(world: &World, victim: Known, random: &mut Random) {
    let mut memory = vec![0u8; 140_000];
    let length = [16, 17, 24, 39, 40, 41, 300, 10_000][random.below(8) as usize] + random.below(3) as usize;
    let mut message = vec![0; length];
    let said = length as u32 + u32::from(random.below(8) == 0);
    let error = match random.below(4) {
        0 => -(random.below(600) as i32),
        1 => random.below(1 << 32) as i32,
        _ => STAGE as i32,
    };
    // Ordinary data would be seen as it is: zeros.
    let unique = victim.unique ^ [0, 0, 0, 1, 2][random.below(5) as usize];
    message[..4].copy_from_slice(&said.to_ne_bytes());
    message[4..8].copy_from_slice(&error.to_ne_bytes());
    message[8..16].copy_from_slice(&unique.max(2).to_ne_bytes());
    if length >= 40 {
        let section = Section {
            mem: [memory.as_mut_ptr() as u64, 8, 0xffff_8880_0000_0000][random.below(3) as usize],
            header: [0, 10, random.below(300) as u32, u32::MAX][random.below(4) as usize],
            footer: [0, 10, random.below(300) as u32, u32::MAX][random.below(4) as usize],
            offset: [0, random.below(10_000) as u32, u32::MAX][random.below(3) as usize],
            flags: [0, 1, 2, u32::MAX][random.below(4) as usize],
        };
        message[16..40].copy_from_slice(extfuse::abi::Wire::bytes(&section));
    }
    let written = nix::unistd::write(&world.device.raw, &message).map_err(std::io::Error::from);
    world.note("wild message", &written);
}

/// The kernel sends again whatever waits for an answer.
fn resend(world: &World) {
    let message = [&16u32.to_ne_bytes()[..], &7u32.to_ne_bytes(), &[0; 8]].concat();
    let written = nix::unistd::write(&world.device.raw, &message).map_err(std::io::Error::from);
    world.note("resend", &written);
}

/// `whole`: without a section, the message of a short commit is data.
fn end(read: Read, whole: bool, random: &mut Random) {
    let (offset, size) = (read.offset, read.size);
    match random.below(10) {
        0 => read.reject(Errno::EACCES),
        1 => read.data(&bytes(offset, length(random, u64::from(size)))),
        2 | 3 if whole => read.commit_first(length(random, u64::from(size)) as u32),
        4 => drop(read),
        _ => read.commit(),
    }
}

fn daemon(world: &World, reads: &Receiver<Read>, mut random: Random) {
    while let Ok(read) = reads.recv() {
        let mine = Known {
            unique: read.unique,
            offset: read.offset,
            size: read.size,
        };
        let mut whole = false;
        for _ in 0..random.below(5) {
            let victim = world.victim(mine, &mut random);
            match random.below(12) {
                0..=4 => whole |= fill(world, victim, &mut random) && victim.unique == mine.unique,
                5..=8 => whole |= stage(world, victim, &mut random) && victim.unique == mine.unique,
                9 => wild_fill(world, victim, &mut random),
                10 => wild_message(world, victim, &mut random),
                _ if random.below(20) == 0 => resend(world),
                _ => (),
            }
        }
        end(read, whole, &mut random);
    }
}

/// Sends it on in random pieces; what arrives are the file's bytes.
fn drain(world: &World, write: Write, random: &mut Random) {
    let Some(size) = write.withheld else {
        return write.reject(Errno::EIO);
    };
    for _ in 0..1 + random.below(3) {
        let kind = [Kind::Unix, Kind::Tcp, Kind::Memfd][random.below(3) as usize];
        let wire = Wire::new(kind);
        let offset = length(random, u64::from(size));
        let payload = length(random, u64::from(size) - offset as u64);
        let frame = Frame::of(write.offset + offset as u64, [length(random, 5000), payload, 12]);
        let mut drain = Drain {
            unique: write.unique,
            fd: wire.peer.as_ref().unwrap().as_raw_fd(),
            header: frame.header.len() as u32,
            payload: payload as u32,
            footer: 12,
            offset: offset as u32,
            flags: SECTION_CRC,
            timeout: random.below(20) as u32,
            crc_at: [8, 0, NOWHERE][random.below(3) as usize],
            ..Drain::default()
        };
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
            continue;
        }
        let receiving = (kind != Kind::Memfd).then(|| {
            let mut from = File::from(wire.fd.try_clone().unwrap());
            thread::spawn(move || {
                let mut received = Vec::new();
                from.read_to_end(&mut received)
                    .map(|_| received)
                    .unwrap_or_default()
            })
        });
        let mut done = write.device.drain(&mut drain, &mut mem);
        for _ in 0..5 {
            if done.is_err() {
                done = write.device.drain(&mut drain, &mut mem);
            }
        }
        world.note("drain", &done);
        let sent = drain.done as usize;
        let file: OwnedFd = wire.fd.try_clone().unwrap();
        // The end, for the receiver.
        if kind != Kind::Memfd {
            nix::sys::socket::shutdown(drain.fd, nix::sys::socket::Shutdown::Write).unwrap();
        }
        let received = match receiving {
            Some(receiving) => harness::within(receiving, harness::PATIENCE),
            None => {
                let mut received = vec![0; sent];
                File::from(file).read_exact_at(&mut received, 0).unwrap();
                received
            }
        };
        harness::assert_bytes(&received, &right.whole()[..sent], "a frame that was sent");
    }
    match random.below(4) {
        0 => write.reject(Errno::EIO),
        _ => write.written(size),
    }
}

/// Reads at random; every byte it gets is the right one, or zero.
fn application(world: &World, nr: usize, at: PathBuf, mut random: Random) {
    while !world.stop.load(Ordering::Relaxed) {
        let name = ["cached", "direct"][random.below(2) as usize];
        let flags = [0, 0, libc::O_DIRECT][random.below(3) as usize];
        let now = world.began.elapsed().as_millis() as u64 + 1;
        world.waiting[nr].store(now, Ordering::Relaxed);
        let mut options = File::options();
        let Ok(file) = options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(at.join(name))
        else {
            continue;
        };
        if nr == 0 {
            let (offset, size) = (random.below(SIZE - (1 << 20)), length(&mut random, 1 << 19));
            let mut options = File::options();
            let to = options.write(true).open(at.join("direct-withheld")).unwrap();
            let written = to.write_at(&bytes(offset, size), offset);
            world.note("write", &written);
        } else {
            for _ in 0..1 + random.below(3) {
                let (offset, size) = (random.below(SIZE - (1 << 20)), length(&mut random, 1 << 19));
                let now = world.began.elapsed().as_millis() as u64 + 1;
                world.waiting[nr].store(now, Ordering::Relaxed);
                let mut buffer = vec![POISON; size + 1];
                let got = file.read_at(&mut buffer[1..], offset);
                world.note("read", &got);
                let seen = &buffer[1..1 + got.unwrap_or(0)];
                let right = |(at, seen): &(u64, &u8)| **seen == 0 || **seen == bytes(offset + at, 1)[0];
                let wrong = match seen == bytes(offset, seen.len()) {
                    true => None,
                    false => (0..).zip(seen).find(|byte| !right(byte)),
                };
                assert_eq!(wrong, None, "{name} {flags} from {offset} on, {size}");
            }
        }
        drop(file);
        world.waiting[nr].store(0, Ordering::Relaxed);
    }
    world.waiting[nr].store(0, Ordering::Relaxed);
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn sections_at_random() {
    let seed = seed();
    let time = guest::seconds("EXTFUSE_FUZZ_SECONDS", 120, 3600);
    let before = descriptors();
    let served = Served::new(SIZE);
    let world = Arc::new(World {
        device: Arc::clone(&served.device),
        known: Mutex::default(),
        outcomes: Mutex::default(),
        began: Instant::now(),
        waiting: (0..4).map(|_| AtomicU64::new(0)).collect(),
        stop: AtomicBool::new(false),
    });
    let random = |nr: u64| Random(seed.wrapping_add(nr << 32));
    let (daemons, to): (Vec<_>, Vec<Sender<Read>>) = (0..DAEMONS)
        .map(|nr| {
            let (sender, reads) = channel();
            let (world, random) = (Arc::clone(&world), random(nr));
            (thread::spawn(move || daemon(&world, &reads, random)), sender)
        })
        .unzip();
    let (to_drain, writes) = channel();
    let draining = {
        let (world, mut random) = (Arc::clone(&world), random(20));
        thread::spawn(move || {
            while let Ok(write) = writes.recv() {
                drain(&world, write, &mut random);
            }
        })
    };
    let applications: Vec<_> = (0..4)
        .map(|nr| {
            let (world, random, at) = (Arc::clone(&world), random(10 + nr as u64), served.at.clone());
            thread::spawn(move || application(&world, nr, at, random))
        })
        .collect();

    let mut random = random(30);
    while !applications.iter().all(thread::JoinHandle::is_finished) {
        if world.began.elapsed() > time {
            world.stop.store(true, Ordering::Relaxed);
        }
        if let Some(read) = served.try_read() {
            drop(to[random.below(DAEMONS) as usize].send(read));
        }
        if let Some(write) = served.try_write() {
            drop(to_drain.send(write));
        }
        let now = world.began.elapsed().as_millis() as u64;
        for waiting in &world.waiting {
            let since = waiting.load(Ordering::Relaxed);
            assert!(
                since == 0 || now.saturating_sub(since) < HANGS,
                "an application hangs"
            );
        }
        let dead = |thread: &thread::JoinHandle<()>| thread.is_finished();
        assert!(
            !daemons.iter().any(dead) && !dead(&draining),
            "a daemon has found something"
        );
    }
    drop((to, to_drain));
    for thread in applications.into_iter().chain(daemons).chain([draining]) {
        harness::within(thread, Duration::from_secs(30));
    }
    let outcomes = std::mem::take(&mut *world.outcomes.lock().unwrap());
    println!("{outcomes:?}");
    for what in ["fill", "stage", "drain", "read", "write", "resend"] {
        let well: u64 = outcomes
            .iter()
            .filter(|((did, error), _)| *did == what && *error == 0)
            .map(|(_, count)| count)
            .sum();
        assert!(well > 0, "no {what} ended well");
    }
    drop((world, served));
    // Threads that fed sockets may need a moment.
    common::eventually(|| descriptors() <= before);
    remove_and_load_the_module();
}
