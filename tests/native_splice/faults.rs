// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that do something wrong.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use extfuse::splice::Way;

use super::frames::{Fault, Spot};
use super::mounts::{Setup, assert_eio};

const SOURCES: [&str; 5] = ["tcp", "unix", "file", "memfd", "pipe"];

#[test]
fn a_wrong_checksum_gives_an_error_and_no_byte() {
    for source in SOURCES {
        assert_eio(&Setup::stock(Way::Auto, true), source, 100_000, Fault::Crc(3));
        assert_eio(&Setup::stock(Way::Auto, true), source, 100, Fault::Crc(31));
    }
}

#[test]
fn every_wrong_bit_of_a_checksum_is_an_error() {
    let mount = Setup::stock(Way::Copy, true).mount();
    for bit in 0..32 {
        mount.fault(Fault::Crc(bit));
        assert_eq!(mount.refused("unix-64", 64, false), Some(libc::EIO));
        mount.heal();
        mount.assert_reads(&format!("unix-{}", 64 + bit), false);
    }
    // The frames were whole: no connection was given up, there is one for each thread at most.
    assert!(mount.world.connections.load(Ordering::Relaxed) <= 4);
    mount.end();
}

#[test]
fn the_header_of_another_request_is_refused_before_splicing() {
    for way in [Way::Copy, Way::Splice] {
        for source in SOURCES {
            assert_eio(&Setup::stock(way, false), source, 100_000, Fault::Id);
        }
    }
}

#[test]
fn a_server_that_dies_in_any_part_of_a_frame_gives_an_error() {
    let size = 50_000;
    for way in [Way::Copy, Way::Splice] {
        for source in SOURCES {
            for at in Spot::ALL {
                assert_eio(&Setup::stock(way, false), source, size, Fault::Dies(at));
            }
        }
    }
}

#[test]
fn a_server_that_stalls_times_out_and_its_rest_is_never_read() {
    for way in [Way::Copy, Way::Splice] {
        for at in [Spot::Header, Spot::Payload, Spot::Footer] {
            let mut setup = Setup::stock(way, false);
            setup.mount.timeout = Duration::from_millis(200);
            let start = Instant::now();
            assert_eio(&setup, "tcp", 50_000, Fault::Stalls(at));
            assert_eio(&setup, "unix", 50_000, Fault::Stalls(at));
            assert!(start.elapsed() >= Duration::from_millis(800));
        }
    }
}

#[test]
fn what_a_failed_answer_left_in_a_pipe_reaches_nobody() {
    let mut setup = Setup::stock(Way::Splice, false);
    setup.mount.threads = 1;
    let mount = setup.mount();
    for at in Spot::ALL.into_iter().cycle().take(20) {
        mount.fault(Fault::Dies(at));
        mount.refused("unix-50000", 50_000, true);
        mount.heal();
        mount.assert_reads("unix-50001", true);
        mount.assert_reads("memfd-50002", true);
    }
    mount.end();
}
