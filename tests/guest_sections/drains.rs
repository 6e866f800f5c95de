// SPDX-License-Identifier: MIT OR Apache-2.0
//! The write side: payloads that stay in the kernel (WITHHOLD), and go on in frames (DRAIN).

use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use extfuse::abi::{Drain, NOWHERE, SECTION_CRC};
use nix::sys::mman::{MapFlags, MmapAdvise, MsFlags, ProtFlags, madvise, mmap, msync, munmap};
use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::{Frame, PATIENCE, POISON, Served, Write, assert_bytes, bytes, crc32c, errno, within};
use crate::refusals::{ends_after, read_only};
use crate::wires::{KINDS, Kind, STREAMS, Wire, set_nonblocking};

const SIZE: u64 = 4 << 20;
/// Where in a footer the CRC goes, in these tests.
const CRC_AT: usize = 3;

/// The frame of a WRITE: its own bytes, and a footer with the CRC.
fn framed(payload: &[u8], [header, footer]: [usize; 2]) -> Frame {
    let mut frame = Frame::of(5, [header, 0, footer]);
    frame.payload = payload.to_vec();
    if footer >= CRC_AT + 4 {
        frame.footer[CRC_AT..CRC_AT + 4].copy_from_slice(&crc32c(payload).to_le_bytes());
    }
    frame
}

fn drain_for(write: &Write, meta: [usize; 2], fd: &OwnedFd) -> (Drain, Vec<u8>) {
    let drain = Drain {
        unique: write.unique,
        fd: fd.as_raw_fd(),
        header: meta[0] as u32,
        payload: write.withheld.unwrap_or(write.data.len() as u32),
        footer: meta[1] as u32,
        flags: SECTION_CRC,
        timeout: PATIENCE.as_millis() as u32,
        crc_at: if meta[1] >= CRC_AT + 4 {
            CRC_AT as u32
        } else {
            NOWHERE
        },
        ..Drain::default()
    };
    (drain, Frame::of(5, [meta[0], 0, meta[1]]).meta())
}

/// The receiving end: what comes until it ends, or until `length` bytes are there.
fn receiver(wire: &Wire, length: usize) -> JoinHandle<Vec<u8>> {
    let mut from = File::from(wire.fd.try_clone().unwrap());
    thread::spawn(move || {
        let mut received = vec![0; length];
        from.read_exact(&mut received).unwrap();
        received
    })
}

/// Drains it as a whole into the sending end of `wire`, and looks at what arrives there.
#[track_caller]
fn drained(write: &Write, payload: &[u8], meta: [usize; 2], kind: Kind) {
    let mut wire = Wire::new(kind);
    let frame = framed(payload, meta);
    let (mut drain, mut mem) = drain_for(write, meta, wire.peer.as_ref().unwrap());
    let receiving = match kind {
        Kind::File | Kind::Memfd => {
            drain.pos = wire.send(&[7; 13]) + 13;
            None
        }
        _ => Some(receiver(&wire, frame.len())),
    };
    write.device.drain(&mut drain, &mut mem).unwrap();
    assert_eq!((drain.done as usize, drain.crc), (frame.len(), crc32c(payload)));
    let received = match receiving {
        Some(receiving) => within(receiving, PATIENCE),
        None => {
            let mut received = vec![0; frame.len() + 13];
            File::from(wire.fd.try_clone().unwrap())
                .read_exact_at(&mut received, 0)
                .unwrap();
            assert_eq!(received[..13], [7; 13]);
            received.split_off(13)
        }
    };
    assert_bytes(&received, &frame.whole(), &format!("{kind:?} {meta:?}"));
}

const RECEIVERS: [Kind; 6] = KINDS;

#[test]
fn writes_of_every_size_to_every_receiver() {
    let served = Served::new(SIZE);
    for kind in RECEIVERS {
        for (turn, length) in [1, 4095, 4096, 4097, 131_073, 1 << 20].into_iter().enumerate() {
            let metas = [[0, 0], [1, 7], [102, 102], [4096, 4095], [65_536, 65_536]];
            let meta = metas[turn % metas.len()];
            let at = (turn * 4099) as u64;
            let payload = bytes(at, length);
            let (file, ours) = (served.open("direct-withheld"), payload.clone());
            let mut seen = 0;
            let written = served.while_writing(
                move || file.write_at(&ours, at),
                |write| {
                    let size = write.withheld.expect("withheld") as usize;
                    assert!(write.data.is_empty());
                    let start = (write.offset - at) as usize;
                    assert_eq!(start, seen);
                    drained(&write, &payload[start..start + size], meta, kind);
                    seen += size;
                    write.written(size as u32);
                },
            );
            assert_eq!((written.unwrap(), seen), (length, length));
        }
    }
}

#[test]
fn a_payload_below_the_bound_comes_with_its_write() {
    let served = Served::with(SIZE, |device| device.sections(Some(5000)).unwrap());
    for (name, bound) in [("direct", 5000), ("direct-withheld", 5000), ("direct", u32::MAX)] {
        served.device.sections(Some(bound)).unwrap();
        for length in [1, 4999, 5000, 5001, 100_000] {
            let (file, ours) = (served.open(name), bytes(3, length));
            let written = served.while_writing(
                move || file.write_at(&ours, 3),
                |write| {
                    let payload = bytes(write.offset, write.withheld.unwrap_or(0) as usize);
                    if length < bound as usize {
                        assert_eq!((write.withheld, write.data.len()), (None, length), "{name}");
                        assert_eq!(write.data, bytes(3, length));
                    } else {
                        assert_eq!((payload.len(), write.data.len()), (length, 0), "{name}");
                        drained(&write, &payload, [1, 7], Kind::Tcp);
                    }
                    write.written(length as u32);
                },
            );
            assert_eq!(written.unwrap(), length);
        }
    }
    // Without the flag the bound is that of files which were opened for it.
    served.device.sections(None).unwrap();
    let (plain, withheld) = (served.open("direct"), served.open("direct-withheld"));
    for (file, expected) in [(plain, None), (withheld, Some(10))] {
        let write = move || file.write_at(&bytes(0, 10), 0);
        let written = served.while_writing(write, |write| {
            assert_eq!(write.withheld, expected);
            write.written(10);
        });
        assert_eq!(written.unwrap(), 10);
    }
}

#[test]
fn buffered_o_direct_and_mapped_writes() {
    let served = Served::with(SIZE, |device| device.sections(Some(0)).unwrap());
    let writers: [fn(&Served) -> JoinHandle<()>; 3] = [
        |served| {
            let file = served.open("cached");
            thread::spawn(move || assert_eq!(file.write_at(&bytes(777, 50_000), 777).unwrap(), 50_000))
        },
        |served| {
            let file = served.open_with("cached", libc::O_DIRECT);
            thread::spawn(move || assert_eq!(file.write_at(&bytes(777, 50_000), 777).unwrap(), 50_000))
        },
        |served| {
            let file = served.open("cached-withheld");
            thread::spawn(move || {
                let length = NonZeroUsize::new(8192).unwrap();
                let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
                // SAFETY: a new mapping, unmapped here, of a file that nobody truncates.
                unsafe {
                    let address = mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0).unwrap();
                    let memory = std::slice::from_raw_parts_mut(address.as_ptr().cast::<u8>(), 8192);
                    memory.copy_from_slice(&bytes(0, 8192));
                    msync(address, 8192, MsFlags::MS_SYNC).unwrap();
                    madvise(address, 8192, MmapAdvise::MADV_DONTNEED).unwrap();
                    munmap(address, 8192).unwrap();
                }
            })
        },
    ];
    for (turn, writer) in writers.into_iter().enumerate() {
        let writing = writer(&served);
        let mut written = 0;
        let start = Instant::now();
        while !writing.is_finished() {
            if let Some(read) = served.try_read() {
                let frame = Frame::usual(read.offset, read.size as usize);
                read.staged(&frame, 0);
                read.commit();
            }
            if let Some(write) = served.try_write() {
                let size = write.withheld.expect("withheld");
                drained(&write, &bytes(write.offset, size as usize), [102, 102], Kind::Tcp);
                written += size;
                write.written(size);
            }
            assert!(start.elapsed() < PATIENCE);
        }
        writing.join().unwrap();
        // A mapped page may have been written back before, by the kernel itself.
        match turn {
            2 => assert!(written >= 8192 && written % 4096 == 0, "{written}"),
            _ => assert_eq!(written, 50_000),
        }
    }
}

/// An ordinary WRITE has its payload, and can be drained too.
#[test]
fn withheld_only_where_asked() {
    let served = Served::new(SIZE);
    let (file, payload) = (served.open("direct"), bytes(0, 10_000));
    let ours = payload.clone();
    let written = served.while_writing(
        move || file.write_at(&ours, 0),
        |write| {
            assert_eq!(write.withheld, None);
            assert_bytes(&write.data, &payload, "in the message");
            drained(&write, &payload, [10, 10], Kind::Unix);
            write.written(10_000);
        },
    );
    assert_eq!(written.unwrap(), 10_000);
}

#[test]
fn a_payload_in_several_frames() {
    let served = Served::new(SIZE);
    let (file, payload) = (served.open("direct-withheld"), bytes(0, 20_000));
    let ours = payload.clone();
    let written = served.while_writing(
        move || file.write_at(&ours, 0),
        |write| {
            let wire = Wire::new(Kind::Unix);
            let to = wire.peer.as_ref().unwrap();
            let receiving = receiver(&wire, 20_000 + 4 * 20);
            let mut right = Vec::new();
            for (offset, length) in [(15_000, 5000), (0, 1), (1, 9999), (10_000, 5000)] {
                let (mut drain, mut mem) = drain_for(&write, [10, 10], to);
                (drain.offset, drain.payload) = (offset, length);
                write.device.drain(&mut drain, &mut mem).unwrap();
                let piece = &payload[offset as usize..][..length as usize];
                right.extend(framed(piece, [10, 10]).whole());
            }
            assert_bytes(&within(receiving, PATIENCE), &right, "four frames");
            for (offset, length) in [(0, 20_001), (20_000, 1), (20_001, 0), (u32::MAX, 2)] {
                let (mut drain, mut mem) = drain_for(&write, [10, 10], to);
                (drain.offset, drain.payload) = (offset, length);
                assert_eq!(errno(&write.device.drain(&mut drain, &mut mem)), libc::ERANGE);
                assert_eq!(drain.done, 0);
            }
            write.written(20_000);
        },
    );
    assert_eq!(written.unwrap(), 20_000);
}

/// With little room on the way.
fn narrow(wire: &Wire, kind: Kind) {
    if kind != Kind::Pipe {
        setsockopt(wire.peer.as_ref().unwrap(), sockopt::SndBuf, &10_000).unwrap();
        setsockopt(&wire.fd, sockopt::RcvBuf, &10_000).unwrap();
    }
}

#[test]
fn a_receiver_that_is_slow() {
    for kind in STREAMS {
        for nonblocking in [false, true] {
            let served = Served::new(SIZE);
            let (file, payload) = (served.open("direct-withheld"), bytes(0, 1 << 18));
            let ours = payload.clone();
            let written = served.while_writing(
                move || file.write_at(&ours, 0),
                |write| {
                    let length = write.withheld.unwrap() as usize;
                    let wire = Wire::new(kind);
                    let to = wire.peer.as_ref().unwrap();
                    narrow(&wire, kind);
                    if nonblocking {
                        set_nonblocking(to);
                    }
                    let start = write.offset as usize;
                    let frame = framed(&payload[start..start + length], [102, 102]);
                    let (mut drain, mut mem) = drain_for(&write, [102, 102], to);
                    drain.timeout = 100;
                    let errors = [libc::ETIMEDOUT, libc::EAGAIN];
                    let error = errno(&write.device.drain(&mut drain, &mut mem));
                    assert_eq!(error, errors[usize::from(nonblocking)], "{kind:?}");
                    assert!(drain.done > 0 && (drain.done as usize) < frame.len());
                    let had = (drain.done as usize).saturating_sub(102).min(length);
                    assert_eq!(drain.crc, crc32c(&frame.payload[..had]));
                    let receiving = receiver(&wire, frame.len());
                    let began = Instant::now();
                    while let Err(error) = write.device.drain(&mut drain, &mut mem) {
                        assert!(errors.contains(&error.raw_os_error().unwrap()), "{error}");
                        assert!(began.elapsed() < PATIENCE, "{kind:?}: stuck at {}", drain.done);
                        thread::sleep(Duration::from_millis(1));
                    }
                    assert_eq!(
                        (drain.done as usize, drain.crc),
                        (frame.len(), crc32c(&frame.payload))
                    );
                    assert_bytes(&within(receiving, PATIENCE), &frame.whole(), &format!("{kind:?}"));
                    write.written(length as u32);
                },
            );
            assert_eq!(written.unwrap(), 1 << 18);
        }
    }
}

/// EPIPE or a reset, and of a socket no signal, which would end this process; of a pipe, as write(2).
#[test]
fn a_receiver_that_is_gone() {
    for kind in [Kind::Tcp, Kind::Unix, Kind::Pipe] {
        let default = if kind == Kind::Pipe {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        };
        // SAFETY: no handler; the default is what a daemon in C has, Rust's is to ignore it.
        unsafe { libc::signal(libc::SIGPIPE, default) };
        let served = Served::new(SIZE);
        let file = served.open("direct-withheld");
        let written = served.while_writing(
            move || file.write_at(&bytes(0, 600_000), 0),
            |write| {
                let wire = Wire::new(kind);
                narrow(&wire, kind);
                let to = wire.peer.as_ref().unwrap().try_clone().unwrap();
                let (mut drain, mut mem) = drain_for(&write, [102, 102], &to);
                let device = Arc::clone(&write.device);
                let draining = thread::spawn(move || device.drain(&mut drain, &mut mem));
                thread::sleep(Duration::from_millis(50));
                drop(wire);
                let error = errno(&within(draining, PATIENCE));
                assert!(
                    [libc::EPIPE, libc::ECONNRESET].contains(&error),
                    "{kind:?}: {error}"
                );
                write.reject(fuser::Errno::EIO);
            },
        );
        assert_eq!(errno(&written), libc::EIO);
    }
}

/// What is sent is what the checksum says, whatever the application does meanwhile.
#[test]
fn memory_that_changes_while_it_is_sent() {
    let served = Served::new(SIZE);
    for turn in 0..20 {
        let file = served.open("direct-withheld");
        let memory: &'static [std::sync::atomic::AtomicU8] = Box::leak(
            (0..200_000)
                .map(|_| std::sync::atomic::AtomicU8::new(POISON))
                .collect(),
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let changing = thread::spawn(move || {
            let mut value = 0u8;
            while !stopped.load(Ordering::Relaxed) {
                value = value.wrapping_add(1);
                for byte in memory.iter().step_by(61) {
                    byte.store(value, Ordering::Relaxed);
                }
            }
        });
        let written = served.while_writing(
            move || {
                let (address, length) = (memory.as_ptr().cast(), memory.len());
                // SAFETY: leaked memory, atomics all of it.
                let got = unsafe { libc::pwrite(file.as_raw_fd(), address, length, 0) };
                if got < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(got)
                }
            },
            |write| {
                let length = write.withheld.unwrap() as usize;
                let kind = [Kind::Tcp, Kind::Unix, Kind::File][turn % 3];
                let wire = Wire::new(kind);
                let (mut drain, mut mem) = drain_for(&write, [10, 10], wire.peer.as_ref().unwrap());
                let receiving = (kind != Kind::File).then(|| receiver(&wire, length + 20));
                write.device.drain(&mut drain, &mut mem).unwrap();
                let received = receiving.map_or_else(
                    || {
                        let mut received = vec![0; length + 20];
                        File::from(wire.fd.try_clone().unwrap())
                            .read_exact_at(&mut received, 0)
                            .unwrap();
                        received
                    },
                    |receiving| within(receiving, PATIENCE),
                );
                let crc = crc32c(&received[10..10 + length]);
                assert_eq!(
                    received[10 + length + CRC_AT..][..4],
                    crc.to_le_bytes(),
                    "turn {turn}"
                );
                assert_eq!(
                    (drain.crc, &mem[10 + CRC_AT..][..4]),
                    (crc, &crc.to_le_bytes()[..])
                );
                write.written(length as u32);
            },
        );
        assert_eq!(written.unwrap(), 200_000);
        stop.store(true, Ordering::Relaxed);
        changing.join().unwrap();
    }
}

type Spoil = fn(&mut Drain);

#[test]
fn drains_that_are_refused() {
    let served = Served::new(SIZE);
    let file = served.open("direct-withheld");
    let written = served.while_writing(
        move || file.write_at(&bytes(0, 1000), 0),
        |write| {
            let wire = Wire::new(Kind::Unix);
            let fd = wire.peer.as_ref().unwrap();
            let directory = OwnedFd::from(File::open("/").unwrap());
            let bad: [(Spoil, i32); 20] = [
                (|drain| drain.unique = 0, libc::EINVAL),
                (|drain| drain.unique |= 1, libc::EINVAL),
                (|drain| drain.unique += 1000, libc::ENOENT),
                (|drain| drain.fd = -1, libc::EBADF),
                (|drain| drain.flags = 2, libc::EINVAL),
                (|drain| drain.flags = 0, libc::EINVAL),
                (|drain| drain.header = 65_537, libc::EINVAL),
                (|drain| drain.footer = 65_537, libc::EINVAL),
                (|drain| drain.payload = 1 << 31, libc::EINVAL),
                (|drain| drain.crc_at = 7, libc::EINVAL),
                (|drain| drain.crc_at = NOWHERE - 1, libc::EINVAL),
                (
                    |drain| (drain.footer, drain.crc_at) = (3, NOWHERE - 1),
                    libc::EINVAL,
                ),
                (|drain| (drain.footer, drain.crc_at) = (0, 0), libc::EINVAL),
                (|drain| drain.offset = 1001, libc::ERANGE),
                (|drain| drain.offset = 1, libc::ERANGE),
                (|drain| drain.payload = 1001, libc::ERANGE),
                (|drain| drain.done = 1021, libc::EINVAL),
                (|drain| drain.pos = u64::MAX, libc::EINVAL),
                (|drain| drain.mem = 8, libc::EFAULT),
                (|drain| drain.mem = 0xffff_8880_0000_0000, libc::EFAULT),
            ];
            for (at, (spoil, error)) in bad.into_iter().enumerate() {
                let (mut drain, mut mem) = drain_for(&write, [10, 10], fd);
                drain.mem = mem.as_mut_ptr() as u64;
                spoil(&mut drain);
                let done = drain.done;
                assert_eq!(errno(&served.raw_drain(&mut drain)), error, "{at}");
                assert_eq!(drain.done, done);
            }
            for other in [&directory, &served.device.raw] {
                let (mut drain, mut mem) = drain_for(&write, [10, 10], other);
                assert_eq!(errno(&write.device.drain(&mut drain, &mut mem)), libc::EOPNOTSUPP);
            }
            let mut fill = Frame::usual(0, 10).fill(write.unique, fd);
            assert_eq!(
                errno(&write.device.fill(&mut fill, &mut [0; 204])),
                libc::EOPNOTSUPP
            );
            drained(&write, &bytes(0, 1000), [10, 10], Kind::Tcp);
            let (unique, device) = (write.unique, Arc::clone(&write.device));
            let (mut drain, mut mem) = drain_for(&write, [10, 10], fd);
            write.written(1000);
            drain.unique = unique;
            assert_eq!(errno(&device.drain(&mut drain, &mut mem)), libc::ENOENT);
            wire.until_taken();
        },
    );
    assert_eq!(written.unwrap(), 1000);
}

/// Nothing is sent of a frame whose header or footer can't be read, or whose footer can't take the CRC.
#[test]
fn memory_of_a_drain_that_is_not_the_daemons() {
    let served = Served::new(SIZE);
    let file = served.open("direct-withheld");
    let written = served.while_writing(
        move || file.write_at(&bytes(0, 1000), 0),
        |write| {
            let wire = Wire::new(Kind::Unix);
            let fd = wire.peer.as_ref().unwrap();
            let addresses = [
                read_only(),
                ends_after(0),
                ends_after(5),
                ends_after(15),
                u64::MAX - 9,
            ];
            for mem in addresses {
                let (mut drain, _) = drain_for(&write, [10, 10], fd);
                drain.mem = mem;
                assert_eq!(errno(&served.raw_drain(&mut drain)), libc::EFAULT, "{mem:#x}");
                assert_eq!((drain.done, drain.crc), (0, 0), "{mem:#x}");
            }
            wire.until_taken();
            // What is only read may be of any such memory; where nothing is, nothing is wrong.
            for (meta, mem) in [(10, read_only()), (0, 8)] {
                let (mut drain, _) = drain_for(&write, [meta, meta], fd);
                (drain.mem, drain.crc_at) = (mem, NOWHERE);
                served.raw_drain(&mut drain).unwrap();
                let received = within(receiver(&wire, 1000 + 2 * meta), PATIENCE);
                let right = [vec![0; meta], bytes(0, 1000), vec![0; meta]].concat();
                assert_bytes(&received, &right, "zeros around it");
            }
            write.written(1000);
        },
    );
    assert_eq!(written.unwrap(), 1000);
}

/// The pages that are lent out, and the receiver: of 24 MiB, half may be somebody else's.
#[test]
fn drains_leave_nothing_behind() {
    fn available() -> u64 {
        let all = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = all.lines().find(|line| line.starts_with("MemAvailable:"));
        let words = line.unwrap().split_whitespace().nth(1);
        words.unwrap().parse::<u64>().unwrap() >> 10
    }
    let served = Served::new(SIZE);
    let file = served.open("direct-withheld");
    let (mut before, mut sent) = (None, 0);
    while sent < 26 << 20 {
        // The first ones are for what is kept on purpose.
        if sent > 2 << 20 {
            before = before.or_else(|| Some(available()));
        }
        let file = file.try_clone().unwrap();
        let written = served.while_writing(
            move || file.write_at(&bytes(0, 1 << 20), 0),
            |write| {
                let to = OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
                let (mut drain, mut mem) = drain_for(&write, [0, 0], &to);
                assert_eq!(errno(&write.device.drain(&mut drain, &mut mem)), libc::EOPNOTSUPP);
                let (mut from, to) = UnixStream::pair().unwrap();
                from.set_read_timeout(Some(PATIENCE / 4)).unwrap();
                let to = OwnedFd::from(to);
                let (mut drain, mut mem) = drain_for(&write, [0, 0], &to);
                drain.crc_at = NOWHERE;
                let size = drain.payload as usize;
                let taking = thread::spawn(move || {
                    from.read_exact(&mut vec![0; size]).unwrap();
                    from
                });
                write.device.drain(&mut drain, &mut mem).unwrap();
                let mut from = within(taking, PATIENCE);
                drop(to);
                assert_eq!(from.read(&mut [0]).unwrap(), 0, "nobody has the other end open");
                sent += size;
                write.written(size as u32);
            },
        );
        assert_eq!(written.unwrap(), 1 << 20);
    }
    let lost = before.unwrap().saturating_sub(available());
    assert!(lost < 12, "{lost} MiB are gone");
}

/// A receiver that takes nothing, and the end comes.
#[test]
fn an_end_while_draining() {
    for end in [Served::abort, Served::force_unmount] {
        let served = Served::new(SIZE);
        let file = served.open("direct-withheld");
        let writer = thread::spawn(move || file.write_at(&bytes(0, 1 << 20), 0));
        let write = served.write();
        let wire = Wire::new(Kind::Unix);
        let (mut drain, mut mem) = drain_for(&write, [102, 102], wire.peer.as_ref().unwrap());
        let device = Arc::clone(&write.device);
        let draining = thread::spawn(move || device.drain(&mut drain, &mut mem));
        thread::sleep(Duration::from_millis(100));
        end(&served);
        assert_eq!(errno(&within(draining, Duration::from_secs(1))), libc::ENOENT);
        let error = errno(&within(writer, Duration::from_secs(5)));
        assert!(
            [libc::EIO, libc::ENOTCONN, libc::ECONNABORTED].contains(&error),
            "{error}"
        );
    }
}
