// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much memory bytes from elsewhere take. All of this process is counted, so it is one test.

use std::alloc::System;

use extfuse::remote::wire::{Header, Kind, MAX_PAYLOAD, Reply, Request};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn messages_take_a_multiple_of_their_bytes() {
    // Lengths of everything, followed by nothing, little, and as much as there can be.
    let mut payloads: Vec<Vec<u8>> = vec![vec![0; MAX_PAYLOAD as usize], vec![1; MAX_PAYLOAD as usize]];
    for length in [
        &[0xff, 0xff, 0xff, 0xff, 0x0f][..],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x80, 0x80, 0x40],
        &[0xf0, 0xf0, 0x03],
    ] {
        for rest in [0, 9, 100, 60_000, MAX_PAYLOAD as usize - length.len()] {
            for byte in [0, 1, 4, 0xff] {
                payloads.push([length, &vec![byte; rest]].concat());
            }
        }
    }
    let entry = [0, 0, 4, 1, b'a'].repeat(MAX_PAYLOAD as usize / 5 - 1);
    payloads.push([&postcard::to_stdvec(&(entry.len() / 5)).unwrap(), &entry[..]].concat());
    let mut largest = 0;
    for payload in &payloads {
        for &kind in Kind::ALL {
            let header = Header::request(kind, 1);
            let region = Region::new(ALLOCATOR);
            let request = Request::decode(&header, payload);
            let reply = Reply::decode(&header.reply(), payload);
            // A byte says EVERYTHING, which takes 32; and a vector that grows has room for twice as much.
            let taken = region.change().bytes_allocated;
            assert!(
                taken <= 4096 + 64 * payload.len(),
                "{kind:?}: {taken} for {}",
                payload.len()
            );
            largest = largest.max(taken);
            drop((request, reply));
        }
    }
    // A listing of short names really is larger in memory: else nothing was counted.
    assert!(largest > 8 << 20, "{largest}");
}
