// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every way in which a file is read that ends in a READ. Each opens it anew, which drops its pages.

use std::fs::File;
use std::io::{IoSliceMut, Read as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, SpliceFFlags, posix_fadvise, splice};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use crate::harness::{PAGE, POISON};

/// All of a file.
pub type Way = fn(&Path) -> Vec<u8>;

pub const WAYS: [(&str, Way); 8] = [
    ("pages one by one", one_by_one),
    ("faults one by one", by_faults),
    ("readahead", with_readahead),
    ("mapped", mapped),
    ("O_DIRECT", o_direct),
    ("pieces", in_pieces),
    ("sendfile", by_sendfile),
    ("splice", by_splice),
];

fn size(file: &File) -> u64 {
    file.metadata().unwrap().len()
}

/// Reads on until the end of the file.
fn read_on(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64).unwrap() {
            0 => break,
            more => got += more,
        }
    }
    got
}

/// One page, of which one READ is made at most: in the background, as if it were read ahead.
pub fn page(file: &File, number: u64) -> Vec<u8> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    let mut buffer = vec![POISON; PAGE as usize];
    let got = file.read_at(&mut buffer, number * PAGE).unwrap();
    buffer.truncate(got);
    buffer
}

pub fn one_by_one(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let pages = size(&file).div_ceil(PAGE);
    let mut seen: Vec<_> = (0..pages).rev().map(|number| page(&file, number)).collect();
    seen.reverse();
    seen.concat()
}

fn with_readahead(path: &Path) -> Vec<u8> {
    let mut seen = Vec::new();
    File::open(path).unwrap().read_to_end(&mut seen).unwrap();
    seen
}

fn mapped(path: &Path) -> Vec<u8> {
    through_mapping(path, MmapAdvise::MADV_NORMAL)
}

/// With nothing read ahead: the only pages that somebody waits for are those.
pub fn by_faults(path: &Path) -> Vec<u8> {
    through_mapping(path, MmapAdvise::MADV_RANDOM)
}

/// What lies behind the end in its last page is zeros.
fn through_mapping(path: &Path, advice: MmapAdvise) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let size = size(&file) as usize;
    let length = NonZeroUsize::new(size.next_multiple_of(PAGE as usize)).unwrap();
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    // SAFETY: a new mapping, unmapped below, of a file that nobody truncates.
    let mut seen = unsafe {
        let address = mmap(None, length, read, shared, &file, 0).unwrap();
        madvise(address, length.get(), advice).unwrap();
        let seen = std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), length.get()).to_vec();
        munmap(address, length.get()).unwrap();
        seen
    };
    assert!(seen[size..].iter().all(|byte| *byte == 0), "behind the end");
    seen.truncate(size);
    seen
}

fn o_direct(path: &Path) -> Vec<u8> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let chunk = 1 << 17;
    let mut memory = vec![POISON; chunk + PAGE as usize];
    let start = memory.as_ptr().align_offset(PAGE as usize);
    let buffer = &mut memory[start..start + chunk];
    let mut seen = Vec::new();
    loop {
        buffer.fill(POISON);
        let got = file.read_at(buffer, seen.len() as u64).unwrap();
        assert!(buffer[got..].iter().all(|byte| *byte == POISON), "behind the end");
        seen.extend(&buffer[..got]);
        if got < chunk {
            return seen;
        }
    }
}

/// Into memory that lies anywhere.
fn in_pieces(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let lengths = [1, 4095, 3, 70_000, 1, 1, 8191];
    let mut seen = Vec::new();
    loop {
        let mut pieces = lengths.map(|length| vec![POISON; length + 3]);
        let mut slices: Vec<_> = pieces
            .iter_mut()
            .map(|piece| IoSliceMut::new(&mut piece[3..]))
            .collect();
        let got = nix::sys::uio::preadv(&file, &mut slices, seen.len() as i64).unwrap();
        if got == 0 {
            return seen;
        }
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece[3..].to_vec()).collect();
        seen.extend(&all[..got]);
    }
}

fn by_sendfile(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let to = tempfile::tempfile().unwrap();
    let mut at = 0;
    while nix::sys::sendfile::sendfile(&to, &file, Some(&mut at), 1 << 20).unwrap() > 0 {}
    let mut seen = vec![POISON; at as usize];
    let got = read_on(&to, &mut seen, 0);
    assert_eq!(got, seen.len());
    seen
}

fn by_splice(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let (from, to) = nix::unistd::pipe().unwrap();
    let mut from = File::from(from);
    let mut seen = Vec::new();
    loop {
        let got = splice(&file, None, &to, None, 40_000, SpliceFFlags::empty()).unwrap();
        if got == 0 {
            return seen;
        }
        let mut piece = vec![POISON; got];
        from.read_exact(&mut piece).unwrap();
        seen.extend(piece);
    }
}
