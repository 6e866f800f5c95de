// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CRCs of what files hold: whoever knows that of a payload can send it without having looked at it.
//!
//! They are kept by the chunk, so that they are of use for every range that begins and ends where chunks do, or with the
//! file, and are those of one version of a file. That is not all that tells whether they are right: who writes to a file by a
//! mapping changes its times with the first store after it was brought to the disk only. So the
//! receiver finds out, and asks for what was read for its sake: that takes the place of what was here.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::SystemTime;

use crc32c::{crc32c, crc32c_combine};
use parking_lot::Mutex;

use super::version::version_of;
use crate::sys::at;

/// Bytes of a chunk: READs of Linux begin and end with a page.
const CHUNK: u64 = 4096;

/// Chunks that are kept together.
const TOGETHER: usize = 256;
const BLOCK: u64 = CHUNK * TOGETHER as u64;

/// Memory that so many take, in bytes, at most: themselves, and a place in a map that is less than half full.
const COST: usize = size_of::<Block>() + 136;

/// A file that has a version, and what it was when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    dev: (u32, u32),
    ino: u64,
    size: u64,
    version: u64,
}

impl Mark {
    /// None if it has no version.
    pub fn of(file: &impl AsFd) -> Option<Self> {
        let seen = at::stat(file).ok()?;
        let version = version_of(&seen, SystemTime::now());
        (version != 0).then_some(Self {
            dev: seen.dev,
            ino: seen.ino,
            size: seen.size,
            version,
        })
    }

    /// Where the bytes are that a READ gets, unless there are none.
    pub fn range(&self, offset: u64, size: u32) -> Option<Range<u64>> {
        let end = offset.checked_add(size.into())?.min(self.size);
        (offset < end).then_some(offset..end)
    }

    /// Whether it consists of chunks.
    fn is_whole(&self, range: &Range<u64>) -> bool {
        range.start.is_multiple_of(CHUNK) && (range.end.is_multiple_of(CHUNK) || range.end == self.size)
    }
}

/// Some bytes, as chunks.
#[derive(Debug)]
pub struct Chunks {
    crcs: Vec<u32>,
    /// Of all of them.
    pub crc: u32,
}

impl Chunks {
    pub fn of(bytes: &[u8]) -> Self {
        let crcs: Vec<u32> = bytes.chunks(CHUNK as usize).map(crc32c).collect();
        let ends = bytes.len() as u64;
        let mut crc = 0;
        for (i, chunk) in (0..).zip(&crcs) {
            crc = append(crc, *chunk, (ends - i * CHUNK).min(CHUNK));
        }
        Self { crcs, crc }
    }
}

/// The CRC of some bytes and so many more, of which each is known.
fn append(crc: u32, more: u32, length: u64) -> u32 {
    /// What each byte of a CRC becomes when a chunk of zeros follows; the CRC's own is the sum of these.
    static BEHIND: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
        let bits: [u32; 32] = std::array::from_fn(|bit| crc32c_combine(1 << bit, 0, CHUNK as usize));
        std::array::from_fn(|place| {
            std::array::from_fn(|byte| {
                let bits = bits.iter().skip(8 * place).take(8).enumerate();
                bits.filter(|(bit, _)| byte >> bit & 1 == 1)
                    .fold(0, |sum, (_, behind)| sum ^ behind)
            })
        })
    });
    if length != CHUNK {
        return crc32c_combine(crc, more, length as usize);
    }
    let places = BEHIND.iter().zip(crc.to_le_bytes());
    places.fold(more, |sum, (behind, byte)| sum ^ behind[usize::from(byte)])
}

#[derive(Debug)]
struct Block {
    version: u64,
    /// A bit for each that is known.
    known: [u64; TOGETHER / 64],
    crcs: [u32; TOGETHER],
}

impl Block {
    fn new(version: u64) -> Self {
        Self {
            version,
            known: [0; _],
            crcs: [0; _],
        }
    }

    /// Of these, if all are known.
    fn get(&self, chunks: Range<usize>) -> Option<&[u32]> {
        let known = |chunk: usize| {
            self.known
                .get(chunk / 64)
                .is_some_and(|word| word >> (chunk % 64) & 1 == 1)
        };
        chunks.clone().all(known).then(|| self.crcs.get(chunks))?
    }

    fn set(&mut self, chunk: usize, crc: u32) {
        if let (Some(known), Some(place)) = (self.known.get_mut(chunk / 64), self.crcs.get_mut(chunk)) {
            *known |= 1 << (chunk % 64);
            *place = crc;
        }
    }
}

/// Device, inode and place in it.
type Key = ((u32, u32), u64, u64);

/// Two halves: what is used moves to the young one, and when that is full, what has not been used since the last time goes.
#[derive(Debug, Default)]
struct Halves {
    young: HashMap<Key, Box<Block>>,
    old: HashMap<Key, Box<Block>>,
}

impl Halves {
    fn put(&mut self, most: usize, key: Key, block: Box<Block>) {
        if self.young.len() >= most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, block);
    }

    /// What is here of this version. Of another one it goes.
    fn get(&mut self, most: usize, key: Key, version: u64) -> Option<&mut Block> {
        if let Some(block) = self.old.remove(&key) {
            self.put(most, key, block);
        }
        if self.young.get(&key)?.version != version {
            self.young.remove(&key);
        }
        self.young.get_mut(&key).map(|block| &mut **block)
    }
}

/// The CRCs that a server keeps.
#[derive(Debug)]
pub struct Sums {
    /// Blocks of a half.
    most: usize,
    /// Locked for moments, and no other is taken meanwhile.
    halves: Mutex<Halves>,
}

impl Sums {
    /// So many bytes of memory, at most.
    pub fn new(memory: usize) -> Self {
        Self {
            most: memory / COST / 2,
            halves: Mutex::default(),
        }
    }

    /// That of a range, if it is known.
    pub fn get(&self, mark: &Mark, range: &Range<u64>) -> Option<u32> {
        if !mark.is_whole(range) {
            return None;
        }
        let mut halves = self.halves.lock();
        let (mut crc, mut at) = (0, range.start);
        while at < range.end {
            let block = halves.get(self.most, mark.key(at), mark.version)?;
            let end = range.end.min((at / BLOCK + 1) * BLOCK);
            for more in block.get(chunk(at)..chunk(end - 1) + 1)? {
                let length = CHUNK.min(end - at);
                crc = append(crc, *more, length);
                at += length;
            }
        }
        Some(crc)
    }

    /// The file had this mark before and after these were read, from `offset` on.
    pub fn keep(&self, mark: &Mark, offset: u64, length: u64, chunks: &Chunks) {
        if self.most == 0 || !offset.is_multiple_of(CHUNK) {
            return;
        }
        let end = offset.saturating_add(length);
        let mut halves = self.halves.lock();
        for (at, crc) in (offset..).step_by(CHUNK as usize).zip(&chunks.crcs) {
            // The last one is part of a chunk, unless the file ends with it.
            if !mark.is_whole(&(at..end.min(at + CHUNK))) {
                break;
            }
            let key = mark.key(at);
            if halves.get(self.most, key, mark.version).is_none() {
                halves.put(self.most, key, Box::new(Block::new(mark.version)));
            }
            if let Some(block) = halves.get(self.most, key, mark.version) {
                block.set(chunk(at), *crc);
            }
        }
    }
}

impl Mark {
    fn key(&self, at: u64) -> Key {
        (self.dev, self.ino, at / BLOCK)
    }
}

/// Which one of a block's.
fn chunk(at: u64) -> usize {
    (at % BLOCK / CHUNK) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(size: u64, version: u64) -> Mark {
        Mark {
            dev: (8, 1),
            ino: 7,
            size,
            version,
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length as u32)
            .map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8)
            .collect()
    }

    const MEMORY: usize = 1 << 20;

    #[test]
    fn the_crc_of_every_range_of_chunks_is_put_together() {
        let all = bytes((2 << 20) + 3 * 4096 + 100);
        let mark = mark(all.len() as u64, 1);
        let sums = Sums::new(MEMORY);
        let chunks = Chunks::of(&all);
        assert_eq!(chunks.crc, crc32c(&all));
        sums.keep(&mark, 0, all.len() as u64, &chunks);
        let ends = all.len() as u64;
        for (from, to) in [
            (0, 4096),
            (4096, 12288),
            (0, 2 << 20),
            (1 << 20, ends),
            ((1 << 20) - 4096, (1 << 20) + 4096),
            (ends - 100, ends),
            (0, ends),
        ] {
            let known = sums.get(&mark, &(from..to));
            let is_whole = from % 4096 == 0;
            let right = crc32c(&all[from as usize..to as usize]);
            assert_eq!(known, is_whole.then_some(right), "{from} to {to}");
        }
        assert_eq!(sums.get(&mark, &(0..4095)), None);
    }

    #[test]
    fn what_was_not_read_is_not_known_nor_half_of_a_chunk() {
        let all = bytes(64 << 10);
        let mark = mark(all.len() as u64, 1);
        let sums = Sums::new(MEMORY);
        sums.keep(&mark, 4096, 10_000, &Chunks::of(&all[4096..14_096]));
        assert!(sums.get(&mark, &(4096..12_288)).is_some());
        assert_eq!(sums.get(&mark, &(4096..16_384)), None);
        assert_eq!(sums.get(&mark, &(0..8192)), None);
        sums.keep(&mark, 100, 8192, &Chunks::of(&all[100..8292]));
        assert_eq!(sums.get(&mark, &(0..4096)), None);
    }

    #[test]
    fn another_version_is_another_file_and_takes_the_place() {
        let all = bytes(8192);
        let (old, new) = (mark(8192, 1), mark(8192, 2));
        let sums = Sums::new(MEMORY);
        sums.keep(&old, 0, 8192, &Chunks::of(&all));
        assert_eq!(sums.get(&new, &(0..8192)), None);
        sums.keep(&new, 0, 4096, &Chunks::of(&all[4096..]));
        assert_eq!(sums.get(&new, &(0..4096)), Some(crc32c(&all[4096..])));
        assert_eq!(sums.get(&new, &(4096..8192)), None);
        assert_eq!(sums.get(&old, &(0..4096)), None);
    }

    #[test]
    fn what_was_not_used_for_long_goes_and_there_is_never_too_much() {
        let sums = Sums::new(MEMORY);
        let most = MEMORY / COST;
        let file = |ino| Mark { ino, ..mark(4096, 1) };
        let chunks = Chunks::of(&bytes(4096));
        for ino in 0..4 * most as u64 {
            sums.keep(&file(ino), 0, 4096, &chunks);
            assert!(sums.get(&file(0), &(0..4096)).is_some(), "{ino}");
            let halves = sums.halves.lock();
            assert!(halves.young.len() + halves.old.len() <= most);
        }
        assert_eq!(sums.get(&file(1), &(0..4096)), None);
        let nothing = Sums::new(100);
        nothing.keep(&file(0), 0, 4096, &chunks);
        assert_eq!(nothing.get(&file(0), &(0..4096)), None);
    }
}
