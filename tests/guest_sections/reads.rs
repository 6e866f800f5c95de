// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every way in which a section arrives, for every way in which an application reads.

use std::fs::File;
use std::io::{IoSliceMut, Read as _};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use extfuse::abi::SECTION_COMMIT;
use nix::fcntl::SpliceFFlags;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::harness::{Frame, POISON, Read, Served, assert_bytes, bytes, put};
use crate::wires::{KINDS, Kind, Wire, pipe_of};

/// Not a multiple of anything.
const SIZE: u64 = 300_001;

#[derive(Clone, Copy, Debug)]
enum Way {
    Fill,
    FillCommit,
    Stage,
    StageThrough,
}

const WAYS: [Way; 4] = [Way::Fill, Way::FillCommit, Way::Stage, Way::StageThrough];

/// Answers with one frame of what the file has there.
fn answer(read: Read, way: Way, wire: &mut Wire) {
    let there = u64::from(read.size).min(SIZE.saturating_sub(read.offset));
    let frame = Frame::usual(read.offset, there as usize);
    match way {
        Way::Fill => {
            let pos = wire.send(&frame.whole());
            read.filled(&frame, &wire.fd, |fill| fill.pos = pos);
            read.commit();
        }
        Way::FillCommit => {
            let pos = wire.send(&frame.whole());
            read.filled(&frame, &wire.fd, |fill| {
                fill.pos = pos;
                fill.flags |= SECTION_COMMIT;
            });
        }
        Way::Stage => {
            read.staged(&frame, 0);
            read.commit();
        }
        Way::StageThrough => {
            let pipe = pipe_of(2 << 20);
            let mut mem = vec![POISON; frame.meta().len() + 4];
            let device = &read.device;
            device
                .stage_through(
                    read.unique,
                    &mut frame.section(0),
                    &mut mem,
                    (pipe.0.as_fd(), pipe.1.as_fd()),
                    frame.len(),
                    |to| {
                        let whole = frame.whole();
                        let (first, rest) = whole.split_at(frame.header.len().min(50));
                        for part in [first, rest] {
                            put(&to.try_clone_to_owned()?, part)?;
                        }
                        Ok(())
                    },
                )
                .unwrap();
            frame.assert_staged(&mem);
            read.commit();
        }
    }
}

/// `application` is given each file afresh, and returns what it saw of the file's start.
fn every_way(name: &str, application: fn(File) -> Vec<u8>) {
    for way in WAYS {
        let served = Served::new(SIZE);
        let mut wire = Wire::new(Kind::Tcp);
        let file = served.open(name);
        let mut reads = 0;
        let seen = served.while_running(
            move || application(file),
            |read| {
                reads += 1;
                answer(read, way, &mut wire);
            },
        );
        assert!(!seen.is_empty() && reads > 0);
        assert_bytes(&seen, &bytes(0, seen.len()), &format!("{name} {way:?}"));
    }
}

fn all_of_it(mut file: File) -> Vec<u8> {
    let mut seen = Vec::new();
    file.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len() as u64, SIZE);
    seen
}

#[test]
fn page_cache_with_readahead() {
    every_way("cached", all_of_it);
}

#[test]
fn page_cache_page_by_page() {
    every_way("cached", |file| {
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
        let mut seen = vec![POISON; SIZE as usize];
        for at in (0..seen.len()).step_by(4096).rev() {
            let page = at..(at + 4096).min(seen.len());
            file.read_exact_at(&mut seen[page], at as u64).unwrap();
        }
        seen
    });
}

#[test]
fn direct() {
    every_way("direct", all_of_it);
}

#[test]
fn o_direct_of_a_cached_file() {
    for way in WAYS {
        let served = Served::new(SIZE);
        let mut wire = Wire::new(Kind::Tcp);
        let file = served.open_with("cached", libc::O_DIRECT);
        let seen = served.while_running(move || all_of_it(file), |read| answer(read, way, &mut wire));
        assert_bytes(&seen, &bytes(0, SIZE as usize), &format!("{way:?}"));
    }
}

#[test]
fn direct_into_odd_pieces() {
    every_way("direct", |file| {
        let lengths = [1, 4095, 3, 70_000, 1, 1, 8191, 100_000];
        let mut pieces = lengths.map(|length| vec![POISON; length + 3]);
        let mut slices: Vec<_> = pieces
            .iter_mut()
            .map(|piece| IoSliceMut::new(&mut piece[3..]))
            .collect();
        let got = nix::sys::uio::preadv(&file, &mut slices, 0).unwrap();
        assert_eq!(got, lengths.iter().sum::<usize>());
        assert!(
            pieces.iter().all(|piece| piece[..3] == [POISON; 3]),
            "bytes before a piece"
        );
        pieces.iter().flat_map(|piece| piece[3..].to_vec()).collect()
    });
}

#[test]
fn sendfile_and_splice() {
    for name in ["cached", "direct"] {
        every_way(name, |file| {
            let to = tempfile::tempfile().unwrap();
            let mut at = 0;
            while nix::sys::sendfile::sendfile(&to, &file, Some(&mut at), SIZE as usize).unwrap() > 0 {}
            let mut seen = vec![POISON; at as usize];
            to.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(at as u64, SIZE);
            seen
        });
        every_way(name, |file| {
            let pipe = pipe_of(1 << 20);
            let mut seen = Vec::new();
            loop {
                let flags = SpliceFFlags::empty();
                let got = nix::fcntl::splice(&file, None, &pipe.1, None, 65_537, flags).unwrap();
                if got == 0 {
                    return seen;
                }
                let mut piece = vec![POISON; got];
                File::from(pipe.0.try_clone().unwrap())
                    .read_exact(&mut piece)
                    .unwrap();
                seen.extend(piece);
            }
        });
    }
}

#[test]
fn mapped() {
    every_way("cached", |file| {
        let length = NonZeroUsize::new(SIZE as usize).unwrap();
        let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, unmapped below, of a file that nobody truncates.
        unsafe {
            let address = mmap(None, length, read, shared, &file, 0).unwrap();
            let seen = std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), length.get()).to_vec();
            munmap(address, length.get()).unwrap();
            seen
        }
    });
}

#[test]
fn every_source() {
    for kind in KINDS {
        for name in ["cached", "direct"] {
            let served = Served::new(SIZE);
            let mut wire = Wire::new(kind);
            let file = served.open(name);
            let seen =
                served.while_running(move || all_of_it(file), |read| answer(read, Way::Fill, &mut wire));
            assert_bytes(&seen, &bytes(0, SIZE as usize), &format!("{name} {kind:?}"));
        }
    }
}
