// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the module must refuse, and how: nothing is staged, the request still waits for its answer, and
//! none of the payload is seen.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::thread;
use std::time::Duration;

use extfuse::abi::{self, Drain, Fill, Section, Wire as _};
use extfuse::sys::device::{Device, STAGE_HEADER};
use fuser::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use tempfile::TempDir;

use crate::harness::{Frame, POISON, Read, Served, assert_bytes, bytes, errno, within};
use crate::wires::{Kind, Wire};

const SIZE: u64 = 1 << 30;

/// Nothing of what was tried may be there: a section behind it makes a hole of it.
fn assert_untouched(served: &Served, refused: impl FnOnce(&Read)) {
    let (seen, ()) = served.one_read("direct", (0, 8192), |read| {
        refused(&read);
        read.staged(&Frame::usual(4096, 4096), 4096);
        read.commit();
    });
    let mut right = vec![0; 4096];
    right.extend(bytes(4096, 4096));
    assert_bytes(&seen.unwrap(), &right, "refused");
}

/// A STAGE message, with whatever address.
pub fn stage_message(unique: u64, mem: u64, frame: &Frame, mut section: Section) -> Vec<u8> {
    section.mem = mem;
    let total = (STAGE_HEADER + frame.len()) as u32;
    let head = [total.to_ne_bytes(), abi::STAGE.to_ne_bytes()].concat();
    [&head[..], &unique.to_ne_bytes(), section.bytes(), &frame.whole()].concat()
}

/// `fuse_out_header` alone: a reply without data.
pub fn reply_message(unique: u64, error: i32) -> Vec<u8> {
    [
        &16u32.to_ne_bytes()[..],
        &error.to_ne_bytes(),
        &unique.to_ne_bytes(),
    ]
    .concat()
}

#[test]
fn uniques_that_are_not_of_a_read() {
    let served = Served::new(SIZE);
    let mut wire = Wire::new(Kind::Tcp);
    let frame = Frame::usual(0, 100);
    wire.send(&frame.whole());
    // Closing a file waits for writes to it.
    let file = served.open("cached");
    let writer = thread::spawn(move || std::os::unix::fs::FileExt::write_at(&file, b"some", 0));
    let write = served.write();
    assert_eq!((write.offset, &write.data[..]), (0, &b"some"[..]));
    assert_untouched(&served, |read| {
        let uniques = [
            (0, libc::EINVAL),
            (read.unique | 1, libc::EINVAL),
            (read.unique + 1000, libc::ENOENT),
            (u64::MAX - 1, libc::ENOENT),
            (write.unique, libc::EOPNOTSUPP),
        ];
        for (unique, error) in uniques {
            let mut fill = frame.fill(unique, &wire.fd);
            let mut mem = vec![0; 208];
            assert_eq!(errno(&read.device.fill(&mut fill, &mut mem)), error, "{unique}");
            assert_eq!(fill.done, 0);
            if unique == 0 {
                continue; // a notification
            }
            let message = stage_message(unique, mem.as_mut_ptr() as u64, &frame, frame.section(0));
            assert_eq!(errno(&served.message(&message)), error, "{unique}");
        }
        let mut drain = Drain {
            unique: read.unique,
            fd: wire.fd.as_raw_fd(),
            crc_at: abi::NOWHERE,
            ..Drain::default()
        };
        assert_eq!(errno(&served.raw_drain(&mut drain)), libc::EOPNOTSUPP);
    });
    write.written(4);
    assert_eq!(within(writer, crate::harness::PATIENCE).unwrap(), 4);
}

#[test]
fn descriptors_that_are_no_source() {
    let served = Served::new(SIZE);
    let directory = OwnedFd::from(File::open("/").unwrap());
    let datagrams = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let (_reads, writes) = nix::unistd::pipe().unwrap();
    let flags = SockFlag::SOCK_CLOEXEC;
    let unconnected = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let character = OwnedFd::from(File::open("/dev/zero").unwrap());
    let write_only = tempfile::NamedTempFile::new().unwrap();
    let write_only = OwnedFd::from(File::options().write(true).open(&write_only).unwrap());
    assert_untouched(&served, |read| {
        let sources = [
            (-1, libc::EBADF),
            (9999, libc::EBADF),
            (directory.as_raw_fd(), libc::EOPNOTSUPP),
            (datagrams.as_raw_fd(), libc::EOPNOTSUPP),
            (served.device.raw.as_raw_fd(), libc::EOPNOTSUPP),
            (character.as_raw_fd(), libc::EOPNOTSUPP),
            (writes.as_raw_fd(), libc::EBADF),
            (write_only.as_raw_fd(), libc::EBADF),
            (unconnected.as_raw_fd(), libc::ENOTCONN),
        ];
        for (at, (fd, error)) in sources.into_iter().enumerate() {
            let frame = Frame::usual(0, 100);
            let mut fill = read.fill(&frame, &writes);
            fill.fd = fd;
            let refused = read.device.fill(&mut fill, &mut [0; 204]);
            assert_eq!((errno(&refused), fill.done), (error, 0), "source {at}");
        }
    });
}

fn anonymous(protection: ProtFlags) -> NonNull<c_void> {
    let length = NonZeroUsize::new(MAPPED).unwrap();
    // SAFETY: new memory, at an address of the kernel's choice, never used from here.
    unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }.unwrap()
}

const MAPPED: usize = 65_536;

/// Zeros that nobody may write to.
pub fn read_only() -> u64 {
    anonymous(ProtFlags::PROT_READ).as_ptr() as u64
}

/// Memory that ends after `length` bytes.
pub fn ends_after(length: usize) -> u64 {
    let start = anonymous(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    let start = start.as_ptr() as usize;
    let end = start + MAPPED / 2;
    // SAFETY: its second half, never used.
    unsafe { munmap(NonNull::new(end as *mut c_void).unwrap(), MAPPED / 2) }.unwrap();
    (end - length) as u64
}

/// Addresses that nobody may write to, or that are not there; or not all that a header of 102 bytes and a
/// footer take.
fn bad_addresses() -> [u64; 7] {
    [
        8,
        read_only(),
        0xffff_8880_0000_1000,
        u64::MAX - 4096,
        ends_after(0),
        ends_after(50),
        ends_after(150),
    ]
}

#[test]
fn memory_that_is_not_the_daemons() {
    let served = Served::new(SIZE);
    for mem in bad_addresses() {
        for length in [100, 3000] {
            assert_untouched(&served, |read| {
                let frame = Frame::usual(0, length);
                let mut wire = Wire::new(Kind::Tcp);
                wire.send(&frame.whole());
                let mut fill = read.fill(&frame, &wire.fd);
                fill.mem = mem;
                assert_eq!(errno(&served.raw_fill(&mut fill)), libc::EFAULT, "{mem:#x}");
                let message = stage_message(read.unique, mem, &frame, frame.section(0));
                assert_eq!(errno(&served.message(&message)), libc::EFAULT, "{mem:#x}");
            });
        }
    }
    // Where nothing is written, nothing is wrong.
    let (seen, ()) = served.one_read("direct", (0, 100), |read| {
        let mut wire = Wire::new(Kind::Tcp);
        wire.send(&bytes(0, 100));
        let mut fill = read.fill(&Frame::of(0, [0, 100, 0]), &wire.fd);
        fill.mem = 8;
        served.raw_fill(&mut fill).unwrap();
        read.commit();
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 100), "no header, no footer");
}

#[test]
fn arguments_that_mean_nothing() {
    let served = Served::new(SIZE);
    let mut wire = Wire::new(Kind::Tcp);
    let frame = Frame::usual(0, 100);
    wire.send(&frame.whole());
    let bad: [fn(&mut Fill); 8] = [
        |fill| fill.flags = 8,
        |fill| fill.flags = u32::MAX,
        |fill| fill.reserved = 1,
        |fill| fill.header = 65_537,
        |fill| fill.footer = 65_537,
        |fill| fill.payload = 1 << 31,
        |fill| fill.done = 305,
        |fill| fill.pos = u64::MAX - 5,
    ];
    assert_untouched(&served, |read| {
        for (at, spoil) in bad.into_iter().enumerate() {
            let mut fill = read.fill(&frame, &wire.fd);
            let mut mem = vec![0; 65_537 * 2];
            fill.mem = mem.as_mut_ptr() as u64;
            spoil(&mut fill);
            assert_eq!(errno(&served.raw_fill(&mut fill)), libc::EINVAL, "{at}");
        }
        let mut mem = [0; 208];
        let sections = [
            Section {
                flags: 2,
                ..frame.section(0)
            },
            Section {
                header: 65_537,
                ..frame.section(0)
            },
            Section {
                header: 300,
                ..frame.section(0)
            },
            Section {
                header: u32::MAX,
                footer: 1,
                ..frame.section(0)
            },
        ];
        for section in sections {
            let message = stage_message(read.unique, mem.as_mut_ptr() as u64, &frame, section);
            assert_eq!(errno(&served.message(&message)), libc::EINVAL, "{section:?}");
        }
        // A message that ends before the section does, and one whose length lies.
        let message = stage_message(read.unique, mem.as_mut_ptr() as u64, &frame, frame.section(0));
        let mut short = message[..STAGE_HEADER - 1].to_vec();
        short[0] = STAGE_HEADER as u8 - 1;
        short[1] = 0;
        assert_eq!(errno(&served.message(&short)), libc::EINVAL);
        assert_eq!(
            errno(&served.message(&message[..message.len() - 1])),
            libc::EINVAL
        );
    });
}

#[test]
fn after_the_answer() {
    let served = Served::new(SIZE);
    let mut wire = Wire::new(Kind::Tcp);
    let frame = Frame::usual(0, 100);
    for name in ["direct", "cached"] {
        let (seen, ()) = served.one_read(name, (0, 100), |read| {
            let (unique, device) = (read.unique, std::sync::Arc::clone(&read.device));
            wire.send(&frame.whole());
            read.filled(&frame, &wire.fd, |_| ());
            read.commit();
            assert_eq!(errno(&served.message(&reply_message(unique, 0))), libc::ENOENT);
            let (mut fill, mut mem) = (frame.fill(unique, &wire.fd), [0; 208]);
            assert_eq!(errno(&device.fill(&mut fill, &mut mem)), libc::ENOENT);
            let message = stage_message(unique, mem.as_mut_ptr() as u64, &frame, frame.section(0));
            assert_eq!(errno(&served.message(&message)), libc::ENOENT);
        });
        assert_bytes(&seen.unwrap(), &bytes(0, 100), name);
    }
}

#[test]
fn a_reply_with_data_behind_a_section() {
    let served = Served::new(SIZE);
    for length in [1, 4, 7, 9, 100] {
        let (seen, ()) = served.one_read("direct", (0, 100), |read| {
            read.staged(&Frame::usual(0, 50), 0);
            read.data(&vec![POISON; length]);
        });
        assert_eq!(errno(&seen), libc::EIO, "{length}");
    }
    // Where no section is, it is what it always was; a section that failed is none.
    let (seen, ()) = served.one_read("direct", (0, 100), |read| {
        let frame = Frame::usual(0, 50);
        let message = stage_message(read.unique, 8, &frame, frame.section(0));
        assert_eq!(errno(&served.message(&message)), libc::EFAULT);
        read.data(&bytes(7, 60));
    });
    assert_bytes(&seen.unwrap(), &bytes(7, 60), "plain");
}

/// The memory that a section's header and footer would go to is as it was.
#[test]
fn a_stage_that_breaks_off_gives_nothing_out() {
    let served = Served::new(SIZE);
    let (seen, ()) = served.one_read("direct", (0, 8192), |read| {
        let frame = Frame::usual(0, 8192);
        let mut mem = vec![POISON; frame.meta().len() + 4];
        let message = stage_message(read.unique, mem.as_mut_ptr() as u64, &frame, frame.section(0));
        // In the footer, and in the payload.
        for missing in [50, 4000] {
            let there = message.len() - missing;
            let parts =
                [(message.as_ptr() as usize, there), (8, missing)].map(|(base, length)| libc::iovec {
                    iov_base: base as *mut c_void,
                    iov_len: length,
                });
            // SAFETY: writev only reads; the second part is nobody's memory, as the kernel finds out.
            let done = unsafe { libc::writev(served.device.raw.as_raw_fd(), parts.as_ptr(), 2) };
            assert_eq!(
                (done, io::Error::last_os_error().raw_os_error()),
                (-1, Some(libc::EFAULT))
            );
            assert!(
                mem.iter().all(|byte| *byte == POISON),
                "{missing} bytes are missing"
            );
        }
        read.data(&bytes(0, 8192));
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 8192), "plain");
}

#[test]
fn a_reply_while_a_section_is_filled() {
    let served = Served::new(SIZE);
    for (error, seen_error) in [(0, libc::EIO), (libc::EACCES, libc::EACCES)] {
        let mut wire = Wire::new(Kind::Tcp);
        let frame = Frame::usual(0, 100);
        wire.send(&frame.whole()[..150]);
        let (seen, ()) = served.one_read("direct", (0, 100), |read| {
            let (mut fill, device) = (read.fill(&frame, &wire.fd), std::sync::Arc::clone(&read.device));
            let filling = thread::spawn(move || device.fill(&mut fill, &mut [0; 204]));
            wire.until_taken();
            match error {
                0 => read.commit(),
                _ => read.reject(Errno::EACCES),
            }
            // FILL waits for the rest, and then nobody wants it.
            wire.send(&frame.whole()[150..]);
            assert_eq!(errno(&within(filling, crate::harness::PATIENCE)), libc::ENOENT);
        });
        assert_eq!(errno(&seen), seen_error);
    }
}

#[test]
fn a_commit_that_says_more_than_its_length() {
    let served = Served::new(SIZE);
    let (seen, ()) = served.one_read("direct", (0, 100), |read| {
        read.staged(&Frame::usual(0, 50), 0);
        let commit = abi::Commit {
            size: 50,
            reserved: 1,
        };
        let mut message = [&reply_message(read.unique, 0)[..], commit.bytes()].concat();
        message[0] = message.len() as u8;
        assert_eq!(errno(&served.message(&message)), libc::EINVAL);
    });
    assert_eq!(errno(&seen), libc::EIO);
}

/// Neither more nor less than what is staged, and not while more is on its way.
#[test]
fn a_fill_that_commits_beside_other_sections() {
    let served = Served::new(SIZE);
    let frame = Frame::usual(0, 100);
    let (seen, ()) = served.one_read("direct", (0, 8192), |read| {
        read.staged(&Frame::usual(4096, 4096), 4096);
        let (mut slow, mut fast) = (Wire::new(Kind::Unix), Wire::new(Kind::Unix));
        slow.send(&frame.whole()[..150]);
        let (mut fill, device) = (read.fill(&frame, &slow.fd), std::sync::Arc::clone(&read.device));
        let filling = thread::spawn(move || errno(&device.fill(&mut fill, &mut [0; 204])));
        slow.until_taken();
        let commit = |fast: &mut Wire| {
            fast.send(&frame.whole());
            let mut fill = read.fill(&frame, &fast.fd);
            fill.flags |= abi::SECTION_COMMIT;
            errno(&read.device.fill(&mut fill, &mut [0; 204]))
        };
        assert_eq!(commit(&mut fast), libc::EBUSY);
        slow.send(&frame.whole()[150..]);
        assert_eq!(within(filling, crate::harness::PATIENCE), 0);
        assert_eq!(commit(&mut fast), 0);
    });
    let right = [bytes(0, 100), vec![0; 3996], bytes(4096, 4096)].concat();
    assert_bytes(&seen.unwrap(), &right, "all that is staged");
}

/// A reply that comes just when pages are being written is not lost: the reader would hang.
#[test]
fn replies_race_with_sections() {
    let served = Served::new(SIZE);
    let frame = Frame::usual(0, 1 << 20);
    let mut rejected = 0;
    for turn in 0..60 {
        let mut wire = Wire::new(Kind::Memfd);
        wire.send(&frame.whole());
        let (seen, ()) = served.one_read("direct", (0, 1 << 20), |read| {
            let device = std::sync::Arc::clone(&read.device);
            let (mut fill, frame) = (read.fill(&frame, &wire.fd), frame.clone());
            let busy = thread::spawn(move || match turn % 2 {
                0 => device.fill(&mut fill, &mut [0; 204]),
                _ => device.stage(
                    fill.unique,
                    &mut frame.section(0),
                    &[IoSlice::new(&frame.whole())],
                    &mut [0; 208],
                ),
            });
            thread::sleep(Duration::from_micros(turn * 37 % 2500));
            read.reject(Errno::EACCES);
            drop(within(busy, crate::harness::PATIENCE));
        });
        assert_eq!(errno(&seen), libc::EACCES, "turn {turn}");
        rejected += 1;
    }
    assert_eq!(rejected, 60);
}

/// What a child that is another address space got, as an errno.
fn in_child(what: impl FnOnce() -> io::Result<()>) -> i32 {
    // SAFETY: the child makes system calls only, and ends at once.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            status => panic!("{status:?}"),
        },
        ForkResult::Child => {
            let code = errno(&what());
            // SAFETY: always.
            unsafe { libc::_exit(code) }
        }
    }
}

#[test]
fn stage_is_for_one_address_space_only() {
    let served = Served::with(SIZE, |_| ());
    let frame = Frame::usual(0, 100);
    let (seen, ()) = served.one_read("direct", (0, 100), |read| {
        let mut mem = [0u8; 208];
        let message = stage_message(read.unique, mem.as_mut_ptr() as u64, &frame, frame.section(0));
        let stage = || served.message(&message).map(drop);
        assert_eq!(errno(&stage()), libc::EPERM, "without SECTIONS");
        served.device.sections(None).unwrap();
        served.device.sections(None).unwrap();
        assert_eq!(in_child(stage), libc::EPERM);
        assert_eq!(in_child(|| served.device.sections(None)), libc::EBUSY);
        stage().unwrap();
        frame.assert_staged(&mem);
        read.commit();
    });
    assert_bytes(&seen.unwrap(), &bytes(0, 100), "in the end");
}

#[test]
fn a_resent_request_has_no_sections() {
    let served = Served::new(SIZE);
    let reader = served.reader("direct", 0, 8192);
    let read = served.read();
    read.staged(&Frame::usual(0, 8192), 0);
    let resend = [&16u32.to_ne_bytes()[..], &7u32.to_ne_bytes(), &0u64.to_ne_bytes()].concat();
    served.message(&resend).unwrap();
    let again = served.read();
    assert_ne!(again.unique, read.unique);
    again.staged(&Frame::usual(4096, 10), 4096);
    // To what is not there any more.
    read.commit();
    again.commit();
    let seen = within(reader, crate::harness::PATIENCE).unwrap();
    assert_eq!(seen.len(), 4106);
    assert_bytes(&seen[4096..], &bytes(4096, 10), "staged again");
}

/// The second time, it keeps its unique: what has begun before must not find it.
#[test]
fn a_section_that_has_begun_ends_with_a_resend() {
    let served = Served::new(SIZE);
    let resend = [&16u32.to_ne_bytes()[..], &7u32.to_ne_bytes(), &0u64.to_ne_bytes()].concat();
    let spoilt = Frame {
        payload: vec![POISON; 8192],
        ..Frame::usual(0, 8192)
    };
    for meanwhile in ["nothing", "whole", "begun"] {
        let reader = served.reader("direct", 0, 8192);
        let first = served.read();
        served.message(&resend).unwrap();
        let second = served.read();
        let (mut old, mut new) = (Wire::new(Kind::Unix), Wire::new(Kind::Unix));
        let filling = |read: &Read, frame: &Frame, wire: &mut Wire| {
            wire.send(&frame.whole()[..4000]);
            let (mut fill, device) = (read.fill(frame, &wire.fd), std::sync::Arc::clone(&read.device));
            let filling = thread::spawn(move || errno(&device.fill(&mut fill, &mut [0; 204])));
            wire.until_taken();
            filling
        };
        let begun = filling(&second, &spoilt, &mut old);
        served.message(&resend).unwrap();
        let third = served.read();
        assert_eq!(third.unique, second.unique);
        let right = Frame::usual(0, 8192);
        let others = match meanwhile {
            "whole" => {
                third.staged(&right, 0);
                None
            }
            "begun" => Some(filling(&third, &right, &mut new)),
            _ => None,
        };
        old.send(&spoilt.whole()[4000..]);
        assert_eq!(
            within(begun, crate::harness::PATIENCE),
            libc::ENOENT,
            "{meanwhile}"
        );
        if let Some(others) = others {
            new.send(&right.whole()[4000..]);
            assert_eq!(within(others, crate::harness::PATIENCE), 0);
        }
        if meanwhile == "nothing" {
            third.staged(&Frame::usual(8191, 1), 8191);
        }
        third.commit();
        let seen = within(reader, crate::harness::PATIENCE).unwrap();
        let expected = match meanwhile {
            "nothing" => [vec![0; 8191], bytes(8191, 1)].concat(),
            _ => right.payload,
        };
        assert_bytes(&seen, &expected, meanwhile);
        drop((first, second));
    }
}

#[test]
fn devices_without_sections() {
    let open = |path| {
        let mut options = File::options();
        OwnedFd::from(options.read(true).write(true).open(path).unwrap())
    };
    let message = stage_message(2, 8, &Frame::usual(0, 10), Frame::usual(0, 10).section(0));
    for (path, kind, ioctl, write) in [
        ("/dev/fuse", "fuse", libc::ENOTTY, libc::EINVAL),
        ("/dev/extfuse", "extfuse", libc::EPERM, libc::EINVAL),
    ] {
        let fd = open(path);
        let device = Device::new(fd.try_clone().unwrap());
        let attempts = |write: i32| {
            let (mut fill, mut drain) = (Fill::default(), Drain::default());
            assert_eq!(errno(&device.sections(None)), ioctl, "{path}");
            assert_eq!(errno(&device.fill(&mut fill, &mut [])), ioctl, "{path}");
            assert_eq!(errno(&device.drain(&mut drain, &mut [])), ioctl, "{path}");
            let written = nix::unistd::write(&fd, &message).map_err(io::Error::from);
            assert_eq!(errno(&written), write, "{path}");
        };
        attempts(libc::EPERM);
        let place = TempDir::new().unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", fd.as_raw_fd());
        let none = MsFlags::empty();
        mount(Some("none"), place.path(), Some(kind), none, Some(data.as_str())).unwrap();
        attempts(write);
        umount2(place.path(), MntFlags::MNT_DETACH).unwrap();
    }
}
