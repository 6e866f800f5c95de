// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames of every size, whole and in pieces, and several of them in one request.

use std::thread;
use std::time::Duration;

use extfuse::abi::{Fill, SECTION_CRC};
use fuser::Errno;

use crate::harness::{Frame, PATIENCE, POISON, Read, Served, assert_bytes, bytes, crc32c, errno};
use crate::wires::{Kind, Wire, set_nonblocking};

const META: [usize; 6] = [0, 1, 102, 4095, 4096, 65536];
const PAYLOADS: [usize; 7] = [0, 1, 4095, 4096, 4097, 128 << 10, 1 << 20];
/// Of the file: nothing ends by chance.
const HUGE: u64 = 1 << 30;

#[test]
fn every_size_of_header_payload_and_footer() {
    let served = Served::new(HUGE);
    let mut wire = Wire::new(Kind::Tcp);
    let mut largest = 0;
    for (turn, payload) in PAYLOADS.into_iter().enumerate() {
        for header in META {
            for footer in META {
                let at = (turn * 4097 + header) as u64;
                let frame = Frame::of(at, [header, payload, footer]);
                let (seen, ()) = served.one_read("direct", (at, payload.max(1)), |read| {
                    largest = largest.max(read.size);
                    assert!(
                        read.size as usize >= payload,
                        "max_pages: a READ has {}",
                        read.size
                    );
                    if (header + footer) % 2 == 0 {
                        wire.send(&frame.whole());
                        read.filled(&frame, &wire.fd, |_| ());
                    } else {
                        read.staged(&frame, 0);
                    }
                    read.commit();
                });
                assert_bytes(
                    &seen.unwrap(),
                    &frame.payload,
                    &format!("{header} {payload} {footer}"),
                );
            }
        }
    }
    println!("largest READ: {largest}");
}

#[test]
fn fragments_of_one_byte() {
    for kind in [Kind::Tcp, Kind::Unix, Kind::Pipe, Kind::Tls] {
        let served = Served::new(HUGE);
        let mut wire = Wire::new(kind);
        let frame = Frame::of(77, [5, 300, 5]);
        for at in frame.whole() {
            wire.send(&[at]);
        }
        let (seen, ()) = served.one_read("direct", (77, 4096), |read| {
            read.filled(&frame, &wire.fd, |_| ());
            read.commit();
        });
        assert_bytes(&seen.unwrap(), &frame.payload, &format!("{kind:?}"));
    }
}

#[test]
fn less_than_the_request() {
    let served = Served::new(HUGE);
    let mut wire = Wire::new(Kind::Tcp);
    let frame = Frame::usual(0, 5000);
    // A smaller payload: of a direct read that much is seen, of a page the rest is zeros.
    for name in ["direct", "cached"] {
        let (seen, ()) = served.one_read(name, (0, 8192), |read| {
            wire.send(&frame.whole());
            read.filled(&frame, &wire.fd, |_| ());
            read.commit();
        });
        let mut right = frame.payload.clone();
        if name == "cached" {
            // The kernel took the short answer for the file's end.
            right.truncate(5000);
        }
        assert_bytes(&seen.unwrap(), &right, name);
    }
    for first in [0, 1, 4096, 4999, 5000] {
        let (seen, ()) = served.one_read("direct", (0, 8192), |read| {
            wire.send(&frame.whole());
            read.filled(&frame, &wire.fd, |_| ());
            read.commit_first(first);
        });
        assert_bytes(&seen.unwrap(), &frame.payload[..first as usize], "first");
    }
    // More than there is.
    let (seen, ()) = served.one_read("direct", (0, 8192), |read| {
        wire.send(&frame.whole());
        read.filled(&frame, &wire.fd, |_| ());
        read.commit_first(5001);
    });
    assert_eq!(errno(&seen), libc::EIO);
}

#[test]
fn holes_are_zeros() {
    let served = Served::new(HUGE);
    for name in ["direct", "cached"] {
        let (seen, ()) = served.one_read(name, (0, 20_000), |read| {
            for (offset, length) in [(9000, 1000), (100, 3000), (16_000, 4000)] {
                read.staged(&Frame::usual(u64::from(offset), length), offset);
            }
            read.commit();
        });
        let mut right = vec![0; 20_000];
        for (offset, length) in [(100, 3000), (9000, 1000), (16_000, 4000)] {
            right[offset..offset + length].copy_from_slice(&bytes(offset as u64, length));
        }
        assert_bytes(&seen.unwrap(), &right, name);
    }
}

/// The pages are poisoned with a frame that is rejected; what is read next from the same pages are
/// other bytes, or zeros.
#[test]
fn what_was_rejected_is_never_seen() {
    poison_free_memory();
    let served = Served::new(HUGE);
    let mut wire = Wire::new(Kind::Tcp);
    let poison = |size: u32| Frame {
        payload: vec![POISON; size as usize],
        ..Frame::usual(0, 0)
    };
    for turn in 0..6 {
        let start = turn * (1 << 20);
        // Read-ahead that fails is asked again, page by page.
        let reader = served.reader("cached", start, 100);
        while !reader.is_finished() {
            if let Some(read) = served.try_read() {
                read.staged(&poison(read.size), 0);
                read.reject(Errno::EACCES);
            }
        }
        assert_eq!(errno(&reader.join().unwrap()), libc::EACCES);
        let reader = served.reader("cached", start, 4096);
        while !reader.is_finished() {
            let Some(read) = served.try_read() else { continue };
            assert_eq!(read.offset % 4096, 0);
            let whole = Frame::usual(read.offset, 1000);
            match turn {
                // Nothing at all, less than a page, a hole, a frame that is not whole.
                0 => read.commit(),
                1 => {
                    read.staged(&whole, 0);
                    read.commit_first(10);
                }
                2 => {
                    read.staged(&whole, 3000);
                    read.commit();
                }
                3 => {
                    wire.send(&poison(2000).whole()[..1000]);
                    let mut fill = read.fill(&poison(2000), &wire.fd);
                    fill.timeout = 100;
                    let failed = read.device.fill(&mut fill, &mut [0; 204]);
                    assert_eq!(errno(&failed), libc::ETIMEDOUT);
                    read.staged(&whole, 0);
                    read.commit_first(1000);
                    wire = Wire::new(Kind::Tcp);
                }
                4 => {
                    // Memory that is not there: nothing is staged, and zeros are what was.
                    read.staged(&whole, 1000);
                    let mut fill = read.fill(&poison(4000), &wire.fd);
                    wire.send(&poison(4000).whole());
                    fill.mem = 8;
                    assert_eq!(errno(&served.raw_fill(&mut fill)), libc::EFAULT);
                    read.commit();
                    wire = Wire::new(Kind::Tcp);
                }
                _ => {
                    // Bytes that it never got.
                    let mut fill = read.fill(&Frame::usual(0, 4000), &wire.fd);
                    fill.done = 102 + 3000;
                    wire.send(&[1; 1102]);
                    let lie = read.device.fill(&mut fill, &mut [0; 204]);
                    assert_eq!(errno(&lie), libc::EINVAL);
                    read.commit();
                }
            }
        }
        let seen = reader.join().unwrap().unwrap();
        assert!(!seen.contains(&POISON), "turn {turn}");
        match turn {
            2 => {
                assert_bytes(&seen[..3000], &[0; 3000], "hole");
                assert_bytes(&seen[3000..], &bytes(start, 1000), "behind it");
            }
            3 => assert_bytes(&seen[..1000], &bytes(start, 1000), "whole"),
            _ => (),
        }
    }
}

/// Fills much of the free memory with the pattern, and gives it back.
fn poison_free_memory() {
    std::hint::black_box(vec![POISON; 256 << 20]);
}

#[test]
fn several_sources_and_threads_in_one_request() {
    const PIECE: usize = 10_007;
    let served = Served::new(HUGE);
    for name in ["direct", "cached"] {
        let (seen, ()) = served.one_read(name, (0, 8 * PIECE), |read| {
            let kinds = [
                Kind::Unix,
                Kind::Tcp,
                Kind::Memfd,
                Kind::Pipe,
                Kind::File,
                Kind::Tls,
                Kind::Tcp,
            ];
            thread::scope(|scope| {
                for (at, kind) in kinds.into_iter().enumerate().rev() {
                    let read = &read;
                    scope.spawn(move || {
                        let mut wire = Wire::new(kind);
                        let frame = Frame::of((at * PIECE) as u64, [at, PIECE, 3 * at]);
                        for piece in frame.whole().chunks(3000) {
                            wire.send(piece);
                        }
                        read.filled(&frame, &wire.fd, |fill| fill.offset = (at * PIECE) as u32);
                    });
                }
                let last = Frame::of((7 * PIECE) as u64, [0, PIECE, 0]);
                read.staged(&last, 7 * PIECE as u32);
            });
            read.commit();
        });
        assert_bytes(&seen.unwrap(), &bytes(0, 8 * PIECE), name);
    }
}

#[test]
fn the_last_of_overlapping_sections_wins() {
    let served = Served::new(HUGE);
    let (seen, ()) = served.one_read("direct", (0, 8192), |read| {
        read.staged(&Frame::usual(50_000, 6000), 0);
        read.staged(&Frame::usual(1000, 3000), 1000);
        read.staged(&Frame::usual(3500, 100), 3500);
        read.commit();
    });
    let mut right = bytes(50_000, 6000);
    right[1000..4000].copy_from_slice(&bytes(1000, 3000));
    assert_bytes(&seen.unwrap(), &right, "overlapping");
}

#[test]
fn a_payload_beyond_the_request_consumes_nothing() {
    let served = Served::new(HUGE);
    let mut wire = Wire::new(Kind::Tcp);
    let (seen, ()) = served.one_read("direct", (0, 4096), |read| {
        let frame = Frame::usual(0, 4096);
        wire.send(&frame.whole());
        for (payload, offset) in [
            (4097, 0),
            (4096, 1),
            (1, 4096),
            (0, 4097),
            (i32::MAX as u32, 0),
            (1, u32::MAX),
        ] {
            let mut fill = read.fill(&frame, &wire.fd);
            (fill.payload, fill.offset) = (payload, offset);
            let refused = read.device.fill(&mut fill, &mut [0; 204]);
            assert_eq!(
                (errno(&refused), fill.done),
                (libc::ERANGE, 0),
                "{payload} at {offset}"
            );
        }
        let mut mem = [0; 208];
        let refused = read.device.stage(
            read.unique,
            &mut frame.section(1),
            &[std::io::IoSlice::new(&frame.whole())],
            &mut mem,
        );
        assert_eq!(errno(&refused), libc::ERANGE);
        read.filled(&frame, &wire.fd, |_| ());
        read.commit();
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 4096), "after all");
}

#[test]
fn empty_frames() {
    let served = Served::new(HUGE);
    let wire = Wire::new(Kind::Tcp);
    let nothing = Frame::default();
    // The end of the file, by either way and either reply.
    for (fill, short) in [(true, true), (true, false), (false, true), (false, false)] {
        let (seen, ()) = served.one_read("direct", (0, 4096), |read| {
            match fill {
                true => read.filled(&nothing, &wire.fd, |_| ()),
                false => read.staged(&nothing, 0),
            }
            match short {
                true => read.commit(),
                false => read.commit_first(0),
            }
        });
        assert_eq!(seen.unwrap(), [0; 0], "{fill} {short}");
    }
}

/// Fills with little at a time, as an event loop does.
fn resumed(read: &Read, wire: &mut Wire, frame: &Frame, piece: usize) {
    let mut fill = read.fill(frame, &wire.fd);
    let mut mem = vec![0; frame.meta().len()];
    let whole = frame.whole();
    let mut sent = 0;
    loop {
        let before = fill.done;
        match read.device.fill(&mut fill, &mut mem) {
            Ok(()) => break,
            Err(error) => {
                let errno = error.raw_os_error().unwrap();
                assert!([libc::EAGAIN, libc::ETIMEDOUT].contains(&errno), "{error}");
            }
        }
        assert!(fill.done >= before && fill.done as usize <= sent);
        let got = (fill.done as usize)
            .saturating_sub(frame.header.len())
            .min(frame.payload.len());
        assert_eq!(fill.crc, crc32c(&frame.payload[..got]));
        if fill.done as usize == sent {
            let next = &whole[sent..(sent + piece).min(whole.len())];
            wire.send(next);
            sent += next.len();
        }
        thread::sleep(Duration::from_millis(1));
    }
    frame.assert_filled(&fill, &mem);
}

#[test]
fn a_frame_is_resumed_where_it_ended() {
    for kind in [Kind::Tcp, Kind::Unix, Kind::Pipe, Kind::Tls] {
        for nonblocking in [true, false] {
            let served = Served::new(HUGE);
            let mut wire = Wire::new(kind);
            if nonblocking {
                set_nonblocking(&wire.fd);
            }
            let frame = Frame::of(11, [40, 9000, 40]);
            let (seen, ()) = served.one_read("direct", (11, 9000), |read| {
                let mut short = Frame::clone(&frame);
                short.payload.truncate(9000);
                resumed_with(&read, &mut wire, &short, nonblocking);
                read.commit();
            });
            assert_bytes(&seen.unwrap(), &frame.payload, &format!("{kind:?} {nonblocking}"));
        }
    }
}

fn resumed_with(read: &Read, wire: &mut Wire, frame: &Frame, nonblocking: bool) {
    if nonblocking {
        resumed(read, wire, frame, 997);
    } else {
        // Two waits are enough.
        let mut fill: Fill = read.fill(frame, &wire.fd);
        let mut mem = vec![0; frame.meta().len()];
        let whole = frame.whole();
        for end in [20, 4000, whole.len() - 1] {
            wire.send(&whole[fill.done as usize..end]);
            fill.timeout = 150;
            assert_eq!(errno(&read.device.fill(&mut fill, &mut mem)), libc::ETIMEDOUT);
            assert_eq!(fill.done as usize, end);
        }
        fill.timeout = PATIENCE.as_millis() as u32;
        wire.send(&whole[whole.len() - 1..]);
        read.device.fill(&mut fill, &mut mem).unwrap();
        assert_eq!(fill.flags, SECTION_CRC);
        frame.assert_filled(&fill, &mem);
    }
}
