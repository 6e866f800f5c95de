// SPDX-License-Identifier: MIT OR Apache-2.0
//! What no daemon would say.

use std::os::fd::AsRawFd;

use extfuse::abi::{Fill, STAGE, Section};

use crate::guest::Random;
use crate::harness;
use crate::sources::{any_wire, length};
use crate::world::{Known, World};

/// Anything for arguments; the bytes are zeros, which may be seen wherever they land.
pub fn wild_fill(world: &World, victim: Known, random: &mut Random) {
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
            world.device.raw.as_raw_fd(),
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
    let done = harness::raw_fill(&world.device, &mut fill);
    world.note("wild fill", &done);
}

/// A message of zeros, with anything in its heads.
pub fn wild_message(world: &World, victim: Known, random: &mut Random) {
    let mut memory = vec![0u8; 140_000];
    let length = [16, 17, 24, 39, 40, 41, 300, 10_000][random.below(8) as usize] + random.below(3) as usize;
    let mut message = vec![0; length];
    let said = length as u32 + u32::from(random.below(8) == 0);
    let error = match random.below(4) {
        0 => -(random.below(600) as i32),
        1 => random.below(1 << 32) as i32,
        _ => STAGE as i32,
    };
    let unique = victim.unique ^ [0, 0, 0, 1, 2][random.below(5) as usize];
    message[..4].copy_from_slice(&said.to_ne_bytes());
    message[4..8].copy_from_slice(&error.to_ne_bytes());
    message[8..16].copy_from_slice(&unique.max(2).to_ne_bytes());
    // Where it is no error it is ordinary data, which would be seen as it is.
    if length >= 40 && error != 0 {
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
pub fn resend(world: &World) {
    let message = [&16u32.to_ne_bytes()[..], &7u32.to_ne_bytes(), &[0; 8]].concat();
    let written = nix::unistd::write(&world.device.raw, &message).map_err(std::io::Error::from);
    world.note("resend", &written);
}
