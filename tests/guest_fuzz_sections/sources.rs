// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames, and what they come out of.

use crate::guest::Random;
use crate::harness::{Frame, POISON};
use crate::program::seal;
use crate::wires::{Kind, Wire, set_nonblocking};
use crate::world::{Known, World};

/// One of these, or something near, or something far off.
pub fn length(random: &mut Random, most: u64) -> usize {
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

/// A frame for a place in a request: of the file's bytes there, so that it may be committed by anybody. A
/// program at the gate accepts it.
pub fn right_frame(world: &World, victim: Known, random: &mut Random) -> (Frame, u32) {
    let offset = length(random, u64::from(victim.size)) as u32;
    let payload = length(random, u64::from(victim.size - offset));
    let meta = [length(random, 70_000).min(65_536), length(random, 5000)];
    let (header, footer) = (meta[0] / 8, meta[1]);
    let pos = victim.offset + u64::from(offset);
    if !world.gated {
        return (Frame::of(pos, [header, payload, footer]), offset);
    }
    let mut frame = Frame::of(pos, [header.max(8), payload, footer.max(4)]);
    seal(&mut frame, victim.nodeid);
    (frame, offset)
}

/// One that must never be seen, and that a program at the gate refuses; whose payload is not empty.
pub fn spoil(frame: &mut Frame, nodeid: u64, random: &mut Random) {
    frame.payload.fill(POISON);
    if random.below(2) == 0 {
        seal(frame, nodeid ^ 1);
    } else {
        seal(frame, nodeid);
        *frame.footer.last_mut().unwrap() ^= 1;
    }
}

pub fn any_wire(random: &mut Random) -> Wire {
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
