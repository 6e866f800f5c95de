// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies between buffers of every kind, against what copying in memory gives.

#[path = "pure_splice/failures.rs"]
mod failures;
#[path = "pure_splice/merged.rs"]
mod merged;
#[path = "pure_splice/sections.rs"]
mod sections;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use extfuse::splice::{BufFlags, CopyFlags, FuseBuf, FuseBufVec, copy};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe;
use proptest::prelude::*;

/// In front of what a file with a position holds: copies must not touch it.
const LEAD: usize = 5;
const NONE: CopyFlags = CopyFlags::empty();
const WAYS: [CopyFlags; 4] = [
    CopyFlags::empty(),
    CopyFlags::NO_SPLICE,
    CopyFlags::SPLICE_MOVE,
    CopyFlags::FORCE_SPLICE,
];

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(7) ^ (i >> 8) ^ seed.wrapping_mul(31)) as u8)
        .collect()
}

fn nonblocking(fd: impl AsFd) {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
}

fn small(fd: impl AsFd) {
    fcntl(fd, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
}

fn vec<'a>(bufs: impl IntoIterator<Item = FuseBuf<'a>>) -> FuseBufVec<'a> {
    bufs.into_iter().collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    File,
    /// At the file's own position.
    Stream,
    Append,
    Memfd,
    Pipe,
    /// A pipe of one page.
    Tiny,
    Socket,
    /// A socket into which the bytes come one by one; as a destination, one that is read slowly.
    Drip,
}

const KINDS: [Kind; 9] = [
    Kind::Memory,
    Kind::File,
    Kind::Stream,
    Kind::Append,
    Kind::Memfd,
    Kind::Pipe,
    Kind::Tiny,
    Kind::Socket,
    Kind::Drip,
];

/// A source that holds these bytes and then ends.
struct Given {
    buf: FuseBuf<'static>,
    feeder: Option<JoinHandle<()>>,
}

fn feed(mut to: impl Write + Send + 'static, bytes: Vec<u8>, at_a_time: usize) -> Option<JoinHandle<()>> {
    Some(thread::spawn(move || {
        for chunk in bytes.chunks(at_a_time) {
            // The reader may have had enough.
            if to.write_all(chunk).is_err() {
                return;
            }
            if at_a_time == 1 {
                thread::yield_now();
            }
        }
    }))
}

fn given(kind: Kind, bytes: &[u8], size: usize) -> Given {
    let with_lead = || [&[0xee; LEAD][..], bytes].concat();
    let mut feeder = None;
    let buf = match kind {
        // Memory has no end but its size.
        Kind::Memory => FuseBuf::owned(bytes.to_vec()),
        Kind::File => {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&with_lead(), 0).unwrap();
            FuseBuf::file(OwnedFd::from(file), LEAD as u64, size)
        }
        Kind::Memfd => FuseBuf::file(memfd(&with_lead()), LEAD as u64, size),
        // Reading does not care about append mode.
        Kind::Stream | Kind::Append => {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            FuseBuf::fd(OwnedFd::from(file), size)
        }
        Kind::Pipe | Kind::Tiny => {
            let (read, write) = pipe().unwrap();
            if kind == Kind::Tiny {
                small(&write);
            }
            feeder = feed(File::from(write), bytes.to_vec(), usize::MAX);
            FuseBuf::fd(read, size)
        }
        Kind::Socket | Kind::Drip => {
            let (near, far) = UnixStream::pair().unwrap();
            let at_a_time = if kind == Kind::Drip { 1 } else { usize::MAX };
            feeder = feed(far, bytes.to_vec(), at_a_time);
            FuseBuf::fd(OwnedFd::from(near), size)
        }
    };
    Given {
        buf: buf.with(BufFlags::FD_RETRY),
        feeder,
    }
}

fn memfd(bytes: &[u8]) -> OwnedFd {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    File::from(fd.try_clone().unwrap())
        .write_all_at(bytes, 0)
        .unwrap();
    fd
}

/// Where what was copied is found again.
enum Found {
    InBuf,
    InFile(File, usize),
    ByReader(JoinHandle<Vec<u8>>),
}

fn room(kind: Kind, size: usize) -> (FuseBuf<'static>, Found) {
    let read_all = |mut from: Box<dyn Read + Send>, at_a_time: usize| {
        Found::ByReader(thread::spawn(move || {
            let (mut all, mut some) = (Vec::new(), vec![0; at_a_time]);
            loop {
                match from.read(&mut some).unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&some[..n]),
                }
            }
        }))
    };
    let (buf, found) = match kind {
        Kind::Memory => (FuseBuf::owned(vec![0; size]), Found::InBuf),
        Kind::File => {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[0xee; LEAD], 0).unwrap();
            let fd = OwnedFd::from(file.try_clone().unwrap());
            (FuseBuf::file(fd, LEAD as u64, size), Found::InFile(file, LEAD))
        }
        Kind::Memfd => {
            let fd = memfd(&[0xee; LEAD]);
            let file = File::from(fd.try_clone().unwrap());
            (FuseBuf::file(fd, LEAD as u64, size), Found::InFile(file, LEAD))
        }
        Kind::Stream => {
            let file = tempfile::tempfile().unwrap();
            let fd = OwnedFd::from(file.try_clone().unwrap());
            (FuseBuf::fd(fd, size), Found::InFile(file, 0))
        }
        Kind::Append => {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            std::fs::write(&path, [0xee; LEAD]).unwrap();
            let fd = OpenOptions::new().append(true).open(&path).unwrap();
            let file = File::open(&path).unwrap();
            (FuseBuf::fd(OwnedFd::from(fd), size), Found::InFile(file, LEAD))
        }
        Kind::Pipe | Kind::Tiny => {
            let (read, write) = pipe().unwrap();
            if kind == Kind::Tiny {
                small(&write);
            }
            (
                FuseBuf::fd(write, size),
                read_all(Box::new(File::from(read)), 8192),
            )
        }
        Kind::Socket | Kind::Drip => {
            let (near, far) = UnixStream::pair().unwrap();
            let at_a_time = if kind == Kind::Drip { 1 } else { 8192 };
            (
                FuseBuf::fd(OwnedFd::from(near), size),
                read_all(Box::new(far), at_a_time),
            )
        }
    };
    (buf.with(BufFlags::FD_RETRY), found)
}

/// What arrived in each buffer. The vector is dropped first, so that readers meet the end.
fn arrived(dst: FuseBufVec<'static>, found: Vec<Found>) -> Vec<Vec<u8>> {
    let memory: Vec<Vec<u8>> = dst
        .iter()
        .map(|buf| buf.mem.as_slice().unwrap_or_default().to_vec())
        .collect();
    drop(dst);
    let each = found.into_iter().zip(memory);
    each.map(|(found, memory)| match found {
        Found::InBuf => memory,
        Found::ByReader(reader) => reader.join().unwrap(),
        Found::InFile(file, lead) => {
            let mut all = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            assert!(all[..lead].iter().all(|&byte| byte == 0xee));
            all.split_off(lead)
        }
    })
    .collect()
}

/// Copies these pieces into rooms of these sizes, and compares with the model: one string of bytes, cut
/// anew. Source `ending` ends with some bytes missing, and with it the copy.
fn check(
    sources: &[(Kind, usize)],
    rooms: &[(Kind, usize)],
    (ending, missing): (usize, usize),
    flags: CopyFlags,
) {
    let mut bytes = Vec::new();
    let mut ended = false;
    let mut feeders = Vec::new();
    let mut src = FuseBufVec::new();
    for (i, &(kind, size)) in sources.iter().enumerate() {
        let ends = i == ending && kind != Kind::Memory;
        let short = if ends { missing.min(size) } else { 0 };
        let piece = pattern(i, size - short);
        let source = given(kind, &piece, size);
        if !ended {
            bytes.extend(piece);
        }
        ended |= short > 0;
        feeders.extend(source.feeder);
        src.push(source.buf);
    }
    let (mut dst, mut found) = (FuseBufVec::new(), Vec::new());
    for &(kind, size) in rooms {
        let (buf, place) = room(kind, size);
        dst.push(buf);
        found.push(place);
    }
    let expected = bytes.len().min(rooms.iter().map(|room| room.1).sum());
    let what = format!("{sources:?} -> {rooms:?}, {missing} missing of {ending}, {flags:?}");
    let copied = copy(&mut dst, &mut src, flags).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(copied, expected, "{what}");
    drop(src);
    let mut rest = &bytes[..expected];
    for (got, &(kind, size)) in arrived(dst, found).into_iter().zip(rooms) {
        let (here, there) = rest.split_at(size.min(rest.len()));
        match kind {
            Kind::Memory => assert!(got[..here.len()] == *here && got[here.len()..].iter().all(|b| *b == 0)),
            _ => assert!(
                got == here,
                "{what}: {kind:?} got {} of {}",
                got.len(),
                here.len()
            ),
        }
        rest = there;
    }
    for feeder in feeders {
        feeder.join().unwrap();
    }
}

#[test]
fn every_kind_to_every_kind() {
    for from in KINDS {
        for to in KINDS {
            for flags in WAYS {
                if flags == CopyFlags::FORCE_SPLICE && to == Kind::Append {
                    continue;
                }
                check(&[(from, 20)], &[(to, 20)], (0, 0), flags);
                check(&[(from, 20_000)], &[(to, 20_000)], (0, 7), flags);
            }
        }
    }
}

#[test]
fn every_split_point_of_small_vectors() {
    for from in KINDS {
        for to in KINDS {
            for split in 0..=4 {
                for cut in 0..=4 {
                    let sources = [(from, split), (Kind::Memory, 1), (from, 4 - split)];
                    let rooms = [(to, cut), (to, 5 - cut)];
                    check(&sources, &rooms, (0, 0), NONE);
                    check(&sources, &rooms, (0, 1), CopyFlags::SPLICE_MOVE);
                    check(&sources, &rooms, (2, 2), CopyFlags::NO_SPLICE);
                }
            }
        }
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    proptest::sample::select(&KINDS[..])
}

fn pieces(largest: usize) -> impl Strategy<Value = Vec<(Kind, usize)>> {
    let size = prop_oneof![0..40usize, 4000..4200usize, 0..largest];
    proptest::collection::vec((kinds(), size), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vectors_of_any_kinds(
        sources in pieces(10_000),
        rooms in pieces(10_000),
        ending in 0..5usize,
        missing in 0..100usize,
        way in 0..3usize,
    ) {
        check(&sources, &rooms, (ending, missing), WAYS[way]);
    }

    /// A position set by the caller is where the copy begins, and sizes that differ end it.
    #[test]
    fn copies_begin_at_the_position(size in 1..50usize, off in 0..50usize, room in 0..60usize) {
        let data = pattern(1, size);
        let skip = pattern(2, 3);
        let mut src = vec([FuseBuf::memory(&skip), FuseBuf::memory(&data)]);
        (src.idx, src.off) = (1, off);
        let mut to = vec![0; room];
        let mut dst = FuseBufVec::from(FuseBuf::memory_mut(&mut to));
        let expected = size.saturating_sub(off).min(room);
        prop_assert_eq!(copy(&mut dst, &mut src, NONE).unwrap(), expected);
        drop(dst);
        prop_assert_eq!(&to[..expected], &data[off.min(size)..][..expected]);
    }

    /// Non-blocking ends: some is fed, some is drained, some is copied, in any order. Everything arrives
    /// once and in order, and a call that moves nothing says WouldBlock.
    #[test]
    fn ends_that_do_not_wait(
        steps in proptest::collection::vec((0..3u8, 1..9000usize), 1..60),
        from_pipe: bool,
        to_pipe: bool,
        way in 0..3usize,
    ) {
        let total = 40_000;
        let data = pattern(3, total);
        let ends = |as_pipe: bool| -> (OwnedFd, OwnedFd) {
            if as_pipe {
                let (read, write) = pipe().unwrap();
                small(&write);
                return (read, write);
            }
            let (near, far) = UnixStream::pair().unwrap();
            nix::sys::socket::setsockopt(&far, nix::sys::socket::sockopt::SndBuf, &4096).unwrap();
            (near.into(), far.into())
        };
        let ((src_near, src_far), (dst_far, dst_near)) = (ends(from_pipe), ends(to_pipe));
        for fd in [&src_near, &src_far, &dst_near, &dst_far] {
            nonblocking(fd);
        }
        let (mut feed, mut drain) = (File::from(src_far), File::from(dst_far));
        let mut src = FuseBufVec::from(FuseBuf::fd(src_near, total).with(BufFlags::FD_RETRY));
        let mut dst = FuseBufVec::from(FuseBuf::fd(dst_near, total));
        let (mut fed, mut copied, mut out) = (0, 0, Vec::new());
        let mut buffer = vec![0; 9000];
        let finish = (0..10_000).map(|i| (i % 3, 9000));
        for (what, size) in steps.into_iter().map(|(what, size)| (i32::from(what), size)).chain(finish) {
            match what {
                0 => if let Ok(n) = feed.write(&data[fed..total.min(fed + size)]) { fed += n },
                1 => match copy(&mut dst, &mut src, WAYS[way]) {
                    Ok(n) => {
                        prop_assert!(n > 0 || copied == total);
                        copied += n;
                    }
                    Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                },
                _ => if let Ok(n) = drain.read(&mut buffer[..size]) { out.extend_from_slice(&buffer[..n]) },
            }
            prop_assert!(out.len() <= copied && copied <= fed);
            if out.len() == total {
                break;
            }
        }
        prop_assert!(out == data, "{} of {} came, {} copied, {} fed", out.len(), total, copied, fed);
        prop_assert!(src.is_done() && dst.is_done());
    }
}
