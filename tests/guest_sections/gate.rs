// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program at the gate, which sees header, footer and CRC of a section before the commit; and daemons
//! that look for themselves.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use extfuse::abi::{SECTION_COMMIT, SECTION_CRC, SECTION_GATED, SECTION_REFUSED};
use fuser::Errno;

use crate::harness::{Frame, PATIENCE, POISON, Read, Served, assert_bytes, bytes, crc32c, errno, within};
use crate::program::{Gate, seal};
use crate::refusals::stage_message;
use crate::wires::{Kind, Wire};

const SIZE: u64 = 1 << 30;
const ERROR_BUDGET: u64 = extfuse::abi::ERROR_BUDGET;
/// Of the files, by their place among the names.
const CACHED: u64 = 2;
const DIRECT: u64 = 3;

/// A frame as the program wants it.
fn sealed(nodeid: u64, pos: u64, payload: usize) -> Frame {
    let mut frame = Frame::usual(pos, payload);
    seal(&mut frame, nodeid);
    frame
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Fill,
    FillCommit,
    Stage,
}

const WAYS: [Way; 3] = [Way::Fill, Way::FillCommit, Way::Stage];

/// The errno with which the section comes back.
fn put(read: &Read, served: &Served, frame: &Frame, way: Way, offset: u32) -> i32 {
    let mut mem = vec![POISON; frame.meta().len() + 4];
    match way {
        Way::Stage => {
            let message = stage_message(read.unique, mem.as_mut_ptr() as u64, frame, frame.section(offset));
            errno(&served.message(&message))
        }
        _ => {
            let mut wire = Wire::new(Kind::Unix);
            wire.send(&frame.whole());
            let mut fill = read.fill(frame, &wire.fd);
            // The program gets the CRC, whether the daemon wants it or not.
            fill.flags = if matches!(way, Way::FillCommit) {
                SECTION_COMMIT
            } else {
                0
            };
            fill.offset = offset;
            errno(&read.device.fill(&mut fill, &mut mem))
        }
    }
}

#[test]
fn sections_are_accepted_and_rejected() {
    let served = Served::new(SIZE);
    let gate = Gate::at(&served);
    for (name, nodeid) in [("cached", CACHED), ("direct", DIRECT)] {
        for (turn, way) in WAYS.into_iter().enumerate() {
            let (at, size) = ((turn as u64) << 20, 5000);
            let asked = gate.seen().asked;
            // What the program accepts is read...
            let (seen, ()) = served.one_read(name, (at, size), |read| {
                let frame = sealed(nodeid, at, read.size as usize);
                assert_eq!(put(&read, &served, &frame, way, 0), 0, "{way:?}");
                let seen = gate.seen();
                assert_eq!((seen.last_pos, seen.last_fh), (at, nodeid));
                assert_eq!(seen.last_payload, read.size);
                assert_eq!(seen.last_flags, [0, SECTION_COMMIT, SECTION_CRC][turn]);
                read.commit();
            });
            assert_bytes(&seen.unwrap(), &bytes(at, size), &format!("{name} {way:?}"));
            assert_eq!(gate.seen().asked, asked + 1);
            // ... what it rejects is not, and nothing of it.
            for (spoil, error) in [
                ((|frame| frame.header[0] ^= 1) as fn(&mut Frame), libc::EACCES),
                (|frame| frame.payload[1234] ^= 1, libc::EBADMSG),
                (|frame| frame.footer[101] ^= 1, libc::EBADMSG),
                (|frame| frame.header.truncate(4), libc::EBADMSG),
                (|frame| frame.footer.clear(), libc::EBADMSG),
            ] {
                let at = at + (1 << 19);
                let (seen, ()) = served.one_read("direct", (at, 9000), |read| {
                    let mut frame = sealed(DIRECT, at, 5000);
                    spoil(&mut frame);
                    assert_eq!(put(&read, &served, &frame, way, 0), error, "{way:?}");
                    assert_eq!(
                        put(&read, &served, &sealed(DIRECT, at + 5000, 4000), Way::Stage, 5000),
                        0
                    );
                    assert_eq!(
                        gate.seen().last_pos,
                        at + 5000,
                        "where its payload is in the file"
                    );
                    read.commit();
                });
                let right = [vec![0; 5000], bytes(at + 5000, 4000)].concat();
                assert_bytes(&seen.unwrap(), &right, "rejected");
            }
        }
    }
    assert_eq!(served.device.status().unwrap().errors, 0);
}

#[test]
fn the_program_sees_who_reads() {
    let served = Served::new(SIZE);
    let gate = Gate::at(&served);
    let file = served.open("direct");
    let reader = served.while_running(
        move || {
            // Of this thread only.
            nix::unistd::setfsgid(1001.into());
            nix::unistd::setfsuid(1002.into());
            file.read_at(&mut [0; 100], 0).unwrap();
            nix::unistd::gettid().as_raw()
        },
        |read| {
            assert_eq!(put(&read, &served, &sealed(DIRECT, 0, 100), Way::Fill, 0), 0);
            read.commit();
        },
    );
    let seen = gate.seen();
    assert_eq!((seen.last_uid, seen.last_gid), (1002, 1001));
    assert_eq!(seen.last_pid, reader as u32);
}

/// It has not seen the beginning, of which nobody has kept a checksum.
#[test]
fn a_program_that_comes_while_a_frame_is_received_judges_all_of_it() {
    let served = Served::new(SIZE);
    let mut gate = Gate::loaded(served.conn);
    for (wrong, way) in [false, true].into_iter().zip([0, SECTION_COMMIT]) {
        let (seen, ()) = served.one_read("direct", (0, 9000), |read| {
            assert_eq!(read.nodeid, DIRECT);
            let mut frame = sealed(DIRECT, 0, 9000);
            frame.payload[10] ^= u8::from(wrong);
            let mut wire = Wire::new(Kind::Unix);
            wire.send(&frame.whole()[..4000]);
            let (mut fill, device) = (read.fill(&frame, &wire.fd), Arc::clone(&read.device));
            fill.flags = way;
            let filling = thread::spawn(move || errno(&device.fill(&mut fill, &mut [0; 204])));
            wire.until_taken();
            gate.attach();
            wire.send(&frame.whole()[4000..]);
            let error = within(filling, PATIENCE);
            assert_eq!(error, if wrong { libc::EBADMSG } else { 0 });
            read.commit();
        });
        let right = if wrong { vec![] } else { bytes(0, 9000) };
        assert_bytes(&seen.unwrap(), &right, "judged");
        gate.detach();
    }
}

/// What came before a resumption is known to the daemon only; the program is not told by it.
#[test]
fn the_crc_of_a_resumed_section_is_the_kernels() {
    let served = Served::new(SIZE);
    let _gate = Gate::at(&served);
    for lie in [false, true] {
        let (seen, ()) = served.one_read("direct", (0, 5000), |read| {
            let mut frame = sealed(DIRECT, 0, 5000);
            let right = crc32c(&frame.payload);
            frame.payload[100] ^= u8::from(lie);
            let mut wire = Wire::new(Kind::Unix);
            wire.send(&frame.whole()[..4000]);
            let (mut fill, mut mem) = (read.fill(&frame, &wire.fd), [0; 204]);
            fill.timeout = 50;
            assert_eq!(errno(&read.device.fill(&mut fill, &mut mem)), libc::ETIMEDOUT);
            // As if what came were right.
            fill.crc = crc32c(&bytes(0, 4000 - 102));
            wire.send(&frame.whole()[4000..]);
            let error = errno(&read.device.fill(&mut fill, &mut mem));
            assert_eq!(error, if lie { libc::EBADMSG } else { 0 });
            assert_eq!(mem[200..], right.to_le_bytes());
            read.commit();
        });
        let right = if lie { vec![] } else { bytes(0, 5000) };
        assert_bytes(&seen.unwrap(), &right, "resumed");
    }
}

#[test]
fn only_what_a_program_accepts_is_committed_if_that_is_wanted() {
    let served = Served::new(SIZE);
    let all = SECTION_COMMIT | SECTION_GATED;
    let fill = |read: &Read, frame: &Frame| {
        let mut wire = Wire::new(Kind::Unix);
        wire.send(&frame.whole());
        let (mut fill, mut mem) = (read.fill(frame, &wire.fd), [0; 204]);
        fill.flags = all;
        let error = errno(&read.device.fill(&mut fill, &mut mem));
        (error, fill.flags, fill.done as usize == frame.whole().len())
    };
    let frame = sealed(DIRECT, 0, 5000);
    // Without a program it is staged, and waits for the daemon's word.
    let (seen, ()) = served.one_read("direct", (0, 5000), |read| {
        assert_eq!(fill(&read, &frame), (0, SECTION_GATED, true));
        read.commit();
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 5000), "committed");
    let (seen, ()) = served.one_read("direct", (0, 5000), |read| {
        assert_eq!(fill(&read, &frame), (0, SECTION_GATED, true));
        read.reject(Errno::EIO);
    });
    assert_eq!(errno(&seen), libc::EIO);
    // With one, by its word.
    let _gate = Gate::at(&served);
    let (seen, ()) = served.one_read("direct", (0, 5000), |read| {
        assert_eq!(fill(&read, &frame), (0, all, true));
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 5000), "accepted");
    let (seen, ()) = served.one_read("direct", (0, 5000), |read| {
        let mut frame = sealed(DIRECT, 0, 5000);
        frame.payload[4999] ^= 1;
        assert_eq!(fill(&read, &frame), (libc::EBADMSG, all | SECTION_REFUSED, true));
        read.reject(Errno::EIO);
    });
    assert_eq!(errno(&seen), libc::EIO);
}

#[test]
fn a_verdict_that_is_none_is_charged() {
    let served = Served::new(SIZE);
    let mut gate = Gate::at(&served);
    let (mut charged, frame) = (0, sealed(DIRECT, 0, 100));
    for (garbage, way) in [1, i32::MAX, -512, i32::MIN]
        .into_iter()
        .zip(WAYS.into_iter().cycle())
    {
        gate.tell(|seen| seen.garbage = garbage);
        let (seen, ()) = served.one_read("direct", (0, 100), |read| {
            assert_eq!(put(&read, &served, &frame, way, 0), libc::EIO, "{garbage}");
            read.reject(Errno::EIO);
        });
        assert_eq!(errno(&seen), libc::EIO);
        charged += 1;
        assert_eq!(served.device.status().unwrap().errors, charged);
    }
    // An errno of its own is none of these.
    gate.tell(|seen| seen.garbage = -libc::EDQUOT);
    let (_, ()) = served.one_read("direct", (0, 100), |read| {
        assert_eq!(put(&read, &served, &frame, Way::Fill, 0), libc::EDQUOT);
    });
    assert_eq!(served.device.status().unwrap().errors, charged);
}

#[test]
fn a_program_that_reads_beyond_the_end_is_ejected() {
    let served = Served::new(SIZE);
    let mut gate = Gate::at(&served);
    gate.tell(|seen| seen.beyond = 1);
    let frame = sealed(DIRECT, 0, 100);
    let mut turns = 0;
    while served.device.status().unwrap().attached == 1 {
        turns += 1;
        let (seen, ()) = served.one_read("direct", (0, 100), |read| {
            assert_eq!(put(&read, &served, &frame, Way::Stage, 0), 0);
            read.commit();
        });
        assert_bytes(&seen.unwrap(), &bytes(0, 100), "right all the same");
        assert_eq!(gate.seen().refused_reads, 3 * turns);
        assert!(turns < 100);
    }
    let status = served.device.status().unwrap();
    assert!(status.errors > ERROR_BUDGET - 3, "{}", status.errors);
    assert_eq!(u64::from(turns), ERROR_BUDGET.div_ceil(3));
    assert!(
        String::from_utf8_lossy(&status.reason).contains("section"),
        "{:?}",
        status.reason
    );
    // Without it, every section is accepted.
    let (seen, ()) = served.one_read("direct", (0, 100), |read| {
        assert_eq!(put(&read, &served, &Frame::usual(0, 100), Way::Fill, 0), 0);
        read.commit();
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 100), "without a gate");
}

/// Each bit of a frame, one after the other, is wrong.
fn every_bit(frame: &Frame) -> impl Iterator<Item = Frame> + '_ {
    let whole = frame.whole();
    (0..whole.len() * 8).map(move |bit| {
        let mut wrong = whole.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let (header, rest) = wrong.split_at(frame.header.len());
        let (payload, footer) = rest.split_at(frame.payload.len());
        Frame {
            header: header.to_vec(),
            payload: payload.to_vec(),
            footer: footer.to_vec(),
        }
    })
}

/// A frame that is nothing but what is checked.
fn small(nodeid: u64) -> Frame {
    let payload = bytes(0, 16);
    Frame {
        header: nodeid.to_le_bytes().to_vec(),
        footer: crc32c(&payload).to_le_bytes().to_vec(),
        payload,
    }
}

#[test]
fn with_any_bit_wrong_the_daemon_rejects() {
    let served = Served::new(SIZE);
    let mut wire = Wire::new(Kind::Tcp);
    let file = served.open("cached");
    let mut bits = 0;
    for wrong in every_bit(&small(CACHED)) {
        let (file, mut reads) = (file.try_clone().unwrap(), 0);
        let (seen, buffer) = served.while_running(
            move || {
                let mut buffer = [POISON; 16];
                (file.read_at(&mut buffer, 0), buffer)
            },
            |read| {
                reads += 1;
                wire.send(&wrong.whole());
                let (mut fill, mut mem) = (read.fill(&wrong, &wire.fd), [0; 12]);
                read.device.fill(&mut fill, &mut mem).unwrap();
                let right = mem[..8] == CACHED.to_le_bytes() && mem[8..] == fill.crc.to_le_bytes();
                assert!(!right);
                read.reject(Errno::EIO);
            },
        );
        assert!(reads > 0);
        assert_eq!((errno(&seen), buffer), (libc::EIO, [POISON; 16]));
        bits += 1;
    }
    assert_eq!(bits, 28 * 8);
}

#[test]
fn with_any_bit_wrong_the_gate_rejects() {
    let served = Served::new(SIZE);
    let _gate = Gate::at(&served);
    let mut wire = Wire::new(Kind::Tcp);
    let file = served.open("cached");
    for wrong in every_bit(&small(CACHED)) {
        let file = file.try_clone().unwrap();
        let (seen, buffer) = served.while_running(
            move || {
                let mut buffer = [POISON; 16];
                (file.read_at(&mut buffer, 0), buffer)
            },
            |read| {
                wire.send(&wrong.whole());
                let (mut fill, mut mem) = (read.fill(&wrong, &wire.fd), [0; 12]);
                fill.flags = SECTION_COMMIT;
                let error = errno(&read.device.fill(&mut fill, &mut mem));
                assert!([libc::EBADMSG, libc::EACCES].contains(&error), "{error}");
                read.reject(Errno::EIO);
            },
        );
        assert_eq!((errno(&seen), buffer), (libc::EIO, [POISON; 16]));
    }
    // And the right one is accepted: nothing of the wrong ones is left.
    let file = file.try_clone().unwrap();
    let right = served.while_running(
        move || {
            let mut buffer = [POISON; 16];
            file.read_at(&mut buffer, 0).map(|got| buffer[..got].to_vec())
        },
        |read| {
            let frame = small(CACHED);
            wire.send(&frame.whole());
            let (mut fill, mut mem) = (read.fill(&frame, &wire.fd), [0; 12]);
            fill.flags = SECTION_COMMIT;
            read.device.fill(&mut fill, &mut mem).unwrap();
        },
    );
    assert_bytes(&right.unwrap(), &bytes(0, 16), "the right one");
}
