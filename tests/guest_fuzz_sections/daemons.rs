// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who answers READs.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use extfuse::abi::{Fill, SECTION_COMMIT, SECTION_CRC, SECTION_GATED, SECTION_REFUSED};
use fuser::Errno;

use crate::guest::Random;
use crate::harness::{self, POISON, Read, bytes, crc32c, errno};
use crate::sources::{any_wire, length, right_frame, spoil};
use crate::wild::{resend, wild_fill, wild_message};
use crate::wires::pipe_of;
use crate::world::{Known, World};

/// `FUSE_UNIQUE_RESEND`: a request that was sent again, maybe more than once.
const RESENT: u64 = 1 << 63;

/// The request that a daemon has, and what it has put there itself.
struct Mine {
    known: Known,
    /// A section is whole.
    whole: bool,
    /// Bytes are there that nobody may see, and that no program has seen: it must not be committed.
    spoilt: bool,
}

impl Mine {
    /// What may end as a section of poison.
    fn spoil(&mut self, world: &World, error: i32, surely: bool) {
        world.count("spoilt", error);
        assert!(!surely || error != 0, "it has passed the gate");
        // What a program refuses is gone; what waits for a rest is not.
        self.spoilt |= ![libc::EBADMSG, libc::EACCES].contains(&error);
    }
}

/// Tells what `attempt` came to, and whether a program was attached all the time.
fn attempted<T>(world: &World, attempt: impl FnOnce() -> io::Result<T>) -> (io::Result<T>, bool) {
    let before = world.attached.load(Ordering::SeqCst);
    let done = attempt();
    let surely = before % 2 == 1 && world.attached.load(Ordering::SeqCst) == before;
    (done, surely)
}

/// Shall it be one to be refused? Nobody but this daemon knows of it, so nobody else may have the request, as
/// when it has been sent twice.
fn is_to_be_spoilt(world: &World, mine: &Mine, victim: Known, payload: usize, random: &mut Random) -> bool {
    let only_mine = victim.unique == mine.known.unique && victim.unique & RESENT == 0;
    world.gated && only_mine && payload > 0 && random.below(3) == 0
}

/// What ends the request must not find there what is spoilt, by whomsoever.
fn flags_of_fill(world: &World, mine: &Mine, victim: Known, spoilt: bool, random: &mut Random) -> u32 {
    let gated = SECTION_CRC | SECTION_COMMIT | SECTION_GATED;
    if !world.gated {
        [0, SECTION_CRC, SECTION_CRC, SECTION_COMMIT | SECTION_CRC][random.below(4) as usize]
    } else if victim.unique != mine.known.unique || mine.spoilt {
        [0, SECTION_CRC][random.below(2) as usize]
    } else if spoilt {
        [0, SECTION_CRC, gated, gated][random.below(4) as usize]
    } else {
        [0, SECTION_CRC, gated, SECTION_COMMIT | SECTION_CRC][random.below(4) as usize]
    }
}

/// Bytes at the right place, maybe not all of them, maybe in several calls, maybe given up.
fn fill(world: &World, mine: &mut Mine, victim: Known, random: &mut Random) {
    let (mut frame, offset) = right_frame(world, victim, random);
    let spoilt = is_to_be_spoilt(world, mine, victim, frame.payload.len(), random);
    if spoilt {
        spoil(&mut frame, victim.nodeid, random);
    }
    let whole = frame.whole();
    let mut wire = any_wire(random);
    let mut fill = Fill {
        offset,
        flags: flags_of_fill(world, mine, victim, spoilt, random),
        timeout: random.below(30) as u32,
        ..frame.fill(victim.unique, &wire.fd)
    };
    if random.below(8) == 0 {
        // Bytes that it never got: what is there is zeros, or was put there.
        fill.done = random.below(whole.len() as u64 + 1) as u32;
    }
    let (lied, asked) = (fill.done, fill.flags);
    let mut mem = vec![0; frame.meta().len()];
    let mut sent = fill.done as usize;
    let mut last = libc::EAGAIN;
    let mut surely = false;
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
        let (done, throughout) = attempted(world, || world.device.fill(&mut fill, &mut mem));
        world.note("fill", &done);
        (last, surely) = (errno(&done), throughout);
        if done.is_ok() {
            if lied == 0 {
                assert_eq!(fill.done as usize, whole.len());
                assert!(mem == frame.meta(), "header and footer");
                assert!(
                    fill.flags & SECTION_CRC == 0 || fill.crc == crc32c(&frame.payload),
                    "crc"
                );
            }
            if asked & SECTION_GATED != 0 && fill.flags & SECTION_COMMIT != 0 {
                assert!(!spoilt, "accepted");
                world.count("accepted", 0);
            }
            break;
        }
        assert!(fill.done >= lied && fill.done as usize <= whole.len());
        if fill.flags & SECTION_REFUSED != 0 {
            break;
        }
    }
    if spoilt {
        mine.spoil(world, last, surely);
    }
    mine.whole |= last == 0 && victim.unique == mine.known.unique;
}

fn stage(world: &World, mine: &mut Mine, victim: Known, random: &mut Random) {
    let (mut frame, offset) = right_frame(world, victim, random);
    let spoilt = is_to_be_spoilt(world, mine, victim, frame.payload.len(), random);
    if spoilt {
        spoil(&mut frame, victim.nodeid, random);
    }
    let mut section = frame.section(offset);
    let mut mem = vec![POISON; frame.meta().len() + 4];
    let (staged, surely) = if random.below(3) == 0 {
        let (from, to) = pipe_of(2 << 20);
        let pipe = (from.as_fd(), to.as_fd());
        let whole = frame.whole();
        attempted(world, || {
            let device = &world.device;
            device.stage_through(victim.unique, &mut section, &mut mem, pipe, whole.len(), |to| {
                harness::put(&to.try_clone_to_owned()?, &whole)
            })
        })
    } else {
        let parts = [&frame.header, &frame.payload, &frame.footer].map(|part| IoSlice::new(part));
        attempted(world, || {
            world.device.stage(victim.unique, &mut section, &parts, &mut mem)
        })
    };
    world.note("stage", &staged);
    if staged.is_ok() {
        frame.assert_staged(&mem);
    }
    if spoilt {
        mine.spoil(world, errno(&staged), surely);
    }
    mine.whole |= staged.is_ok() && victim.unique == mine.known.unique;
}

/// Without a section, the message of a short commit is data. One that was sent again may lose its sections at any
/// moment and keep its number, if it is sent once more.
fn end(read: Read, mine: &Mine, random: &mut Random) {
    let (offset, size) = (read.offset, read.size);
    let has_a_section = mine.whole && mine.known.unique & RESENT == 0;
    match random.below(10) {
        0 => read.reject(Errno::EACCES),
        1 => drop(read),
        _ if mine.spoilt => read.reject(Errno::EIO),
        2 => read.data(&bytes(offset, length(random, u64::from(size)))),
        3 | 4 if has_a_section => read.commit_first(length(random, u64::from(size)) as u32),
        _ => read.commit(),
    }
}

pub fn daemon(world: &World, reads: &Receiver<Read>, mut random: Random) {
    world.may_be_hit();
    while let Ok(read) = reads.recv() {
        let mut mine = Mine {
            known: Known::of(&read),
            whole: false,
            spoilt: false,
        };
        for _ in 0..random.below(5) {
            let victim = world.victim(mine.known, &mut random);
            match random.below(12) {
                0..=4 => fill(world, &mut mine, victim, &mut random),
                5..=8 => stage(world, &mut mine, victim, &mut random),
                // The wild may end a request, whatever is in it.
                9 | 10 if world.gated => (),
                9 => wild_fill(world, victim, &mut random),
                10 => wild_message(world, victim, &mut random),
                _ if random.below(10) == 0 => resend(world),
                _ => (),
            }
        }
        end(read, &mine, &mut random);
    }
}
