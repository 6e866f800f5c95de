// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers and payloads through the module: by every way the same bytes, and errors where something is wrong.

#[path = "native_splice/frames.rs"]
mod frames;
#[path = "native_splice/mounts.rs"]
mod mounts;
#[path = "native_splice/own_loop.rs"]
mod own_loop;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering;
use std::time::Duration;

use extfuse::splice::channel::WITHHOLD_FROM;
use extfuse::splice::{FuseBuf, FuseBufVec, Read, Way};

use frames::{Fault, Spot, byte};
use mounts::{Setup, assert_eio, every_source_and_size, readers_at_once, writes_arrive};

const CHECKED: [Way; 5] = [Way::Auto, Way::Copy, Way::Splice, Way::Stage, Way::Fill];
const STREAMS: [&str; 3] = ["tcp", "unix", "pipe"];

#[test]
fn the_way_is_the_one_that_was_asked_for() {
    let mount = Setup::extfuse(Way::Auto, false).mount();
    let channel = mount.channel();
    assert!(channel.has_sections());
    let null = std::fs::File::open("/dev/null").unwrap();
    let way = |way, size: usize| {
        let bufs = FuseBuf::fd(&null, size).into();
        channel.way(&Read::new(2, 1 << 20).way(way), &bufs)
    };
    for asked in [Way::Copy, Way::Splice, Way::Stage, Way::Fill, Way::FillCommit] {
        assert_eq!(way(asked, 5000), asked);
    }
    mount.end();
}

#[test]
fn a_loop_of_ones_own_splices_payloads_to_a_socket() {
    use own_loop::Sections::{Off, On, Stock, Withheld};
    for sections in [Off, On, Withheld] {
        own_loop::payloads_go_from_the_device_to_a_socket("/dev/extfuse", "extfuse", sections);
    }
    own_loop::payloads_go_from_the_device_to_a_socket("/dev/fuse", "fuse", Stock);
}

/// The table of `docs/benchmarks.md`.
#[test]
fn what_is_taken_by_itself_hangs_on_size_and_on_the_kind_of_source() {
    let mount = Setup::extfuse(Way::Auto, false).mount();
    let (local, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let way = |bufs: Vec<FuseBuf<'_>>, crc| {
        let bufs: FuseBufVec = bufs.into_iter().collect();
        let way = mount.channel().way(&Read::new(2, 1 << 20).crc(crc), &bufs);
        assert_eq!(way, mount.channel().way(&Read::new(2, 1 << 20).crc(!crc), &bufs));
        way
    };
    let kib = 1 << 10;
    for (size, other, unix) in [
        (1, Way::Copy, Way::Copy),
        (16 * kib - 1, Way::Copy, Way::Copy),
        (16 * kib, Way::Fill, Way::Stage),
        (128 * kib, Way::Fill, Way::Stage),
        (128 * kib + 1, Way::Fill, Way::Fill),
        (1024 * kib, Way::Fill, Way::Fill),
    ] {
        assert_eq!(
            way(vec![FuseBuf::section(&local, 102, size, 102)], false),
            unix,
            "{size}"
        );
        assert_eq!(way(vec![FuseBuf::fd(&local, size)], true), unix, "{size}");
        assert_eq!(
            way(vec![FuseBuf::section(&tcp, 102, size, 102)], true),
            other,
            "{size}"
        );
        assert_eq!(way(vec![FuseBuf::fd(&pipe, size)], false), other, "{size}");
        assert_eq!(way(vec![FuseBuf::file(&null, 0, size)], false), other, "{size}");
        assert_eq!(
            way(vec![FuseBuf::owned(vec![0; size])], false),
            Way::Copy,
            "{size}"
        );
        let half = |fd| FuseBuf::fd(fd, size / 2);
        let rest = size - size / 2;
        assert_eq!(
            way(vec![half(&local), FuseBuf::section(&local, 1, rest, 1)], false),
            unix
        );
        assert_eq!(
            way(vec![half(&local), FuseBuf::owned(vec![0; rest])], false),
            unix
        );
        assert_eq!(
            way(vec![half(&local), FuseBuf::section(&tcp, 1, rest, 1)], false),
            other
        );
    }
    // What is done does not count.
    let mut bufs: FuseBufVec = [FuseBuf::fd(&tcp, 5), FuseBuf::fd(&local, 50_000)]
        .into_iter()
        .collect();
    bufs.idx = 1;
    assert_eq!(mount.channel().way(&Read::new(2, 1 << 20), &bufs), Way::Stage);
    mount.end();
}

#[test]
fn every_source_and_size_goes_the_way_that_suits_it() {
    every_source_and_size(&Setup::extfuse(Way::Auto, true));
    every_source_and_size(&Setup::extfuse(Way::Auto, false));
}

#[test]
fn every_source_and_size_is_copied() {
    every_source_and_size(&Setup::extfuse(Way::Copy, true));
}

#[test]
fn every_source_and_size_is_spliced() {
    every_source_and_size(&Setup::extfuse(Way::Splice, false));
}

#[test]
fn every_source_and_size_is_staged() {
    every_source_and_size(&Setup::extfuse(Way::Stage, true));
    every_source_and_size(&Setup::extfuse(Way::Stage, false));
}

#[test]
fn every_source_and_size_is_filled() {
    every_source_and_size(&Setup::extfuse(Way::Fill, true));
    every_source_and_size(&Setup::extfuse(Way::Fill, false));
}

#[test]
fn every_source_and_size_is_filled_and_committed_at_once() {
    every_source_and_size(&Setup::extfuse(Way::FillCommit, false));
    let mount = Setup::extfuse(Way::FillCommit, false).mount();
    mount.assert_reads("tcp-100000", true);
    assert!(mount.end() > 0);
}

#[test]
fn a_file_that_ends_early_is_a_short_read() {
    use std::os::unix::fs::FileExt;

    for way in [Way::Copy, Way::Splice, Way::Stage, Way::Fill, Way::FillCommit] {
        let mount = Setup::extfuse(way, false).mount();
        let file = std::fs::File::open(mount.path("short-40000")).unwrap();
        let mut room = vec![0; 40_000];
        assert_eq!(file.read_at(&mut room, 0).unwrap(), 20_000, "{way:?}");
        assert!(room[..20_000].iter().zip(0..).all(|(read, at)| *read == byte(at)));
        drop(file);
        mount.end();
    }
}

#[test]
fn a_wrong_checksum_gives_an_error_and_no_byte() {
    for way in CHECKED {
        for source in ["tcp", "unix", "memfd"] {
            assert_eio(&Setup::extfuse(way, true), source, 60_000, Fault::Crc(5));
        }
    }
}

#[test]
fn every_wrong_bit_of_a_checksum_is_an_error() {
    let mount = Setup::extfuse(Way::Fill, true).mount();
    for bit in 0..32 {
        mount.fault(Fault::Crc(bit));
        assert_eq!(mount.refused("unix-64", 64, false), Some(libc::EIO));
        mount.heal();
        mount.assert_reads(&format!("unix-{}", 64 + bit), false);
    }
    mount.end();
}

#[test]
fn the_header_of_another_request_is_refused() {
    for way in CHECKED {
        assert_eio(&Setup::extfuse(way, false), "tcp", 60_000, Fault::Id);
    }
}

#[test]
fn a_source_that_dies_in_any_part_of_a_frame_gives_an_error() {
    for way in [Way::Splice, Way::Stage, Way::Fill, Way::FillCommit] {
        for source in STREAMS {
            for at in Spot::ALL {
                assert_eio(&Setup::extfuse(way, false), source, 40_000, Fault::Dies(at));
            }
        }
        assert_eio(
            &Setup::extfuse(way, false),
            "file",
            40_000,
            Fault::Dies(Spot::Payload),
        );
    }
}

#[test]
fn a_server_that_stalls_times_out_and_its_rest_is_never_read() {
    for way in [Way::Stage, Way::Fill, Way::FillCommit] {
        for at in [Spot::Header, Spot::Payload, Spot::Footer] {
            let mut setup = Setup::extfuse(way, false);
            setup.mount.timeout = Duration::from_millis(1500);
            assert_eio(&setup, "tcp", 40_000, Fault::Stalls(at));
        }
    }
}

#[test]
fn readers_at_once_get_each_their_own() {
    for way in [Way::Stage, Way::Fill, Way::FillCommit] {
        readers_at_once(&Setup::extfuse(way, false), 6, 8);
    }
}

#[test]
fn writes_arrive_with_and_without_their_payload() {
    for (withhold, from) in [(false, 0), (true, 0), (true, WITHHOLD_FROM)] {
        let mut setup = Setup::extfuse(Way::Auto, false);
        (setup.mount.withhold, setup.mount.withhold_from) = (withhold, from);
        let mount = setup.mount();
        writes_arrive(&mount);
        assert_eq!(mount.world.withheld.load(Ordering::Relaxed) > 0, withhold);
        mount.end();
    }
}

#[test]
fn only_long_payloads_are_withheld_by_default() {
    let mut setup = Setup::extfuse(Way::Auto, false);
    setup.mount.withhold = true;
    let mount = setup.mount();
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(libc::O_DIRECT);
    let file = options.open(mount.path("to-server")).unwrap();
    let from = WITHHOLD_FROM as usize;
    for (size, withheld) in [(4096, 0), (from - 1, 0), (from, 1), (from + 1, 1)] {
        let before = mount.world.withheld.load(Ordering::Relaxed);
        file.write_all_at(&vec![b'x'; size], 0).unwrap();
        let more = mount.world.withheld.load(Ordering::Relaxed) - before;
        assert_eq!(more, withheld, "{size}");
    }
    drop(file);
    mount.end();
}

#[test]
fn one_open_file_is_withheld_and_others_are_not() {
    let mount = Setup::extfuse(Way::Auto, false).mount();
    mount.world.withholds.store(true, Ordering::Relaxed);
    // Created, then opened.
    for _ in 0..2 {
        mount.world.withheld.store(0, Ordering::Relaxed);
        writes_arrive(&mount);
        assert!(mount.world.withheld.load(Ordering::Relaxed) >= 14);
    }
    mount.end();
}
