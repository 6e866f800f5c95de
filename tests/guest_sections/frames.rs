// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in the files, and the frames that it comes in.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use extfuse::abi::{self, Fill, Section};

use crate::harness::PATIENCE;

/// What every file repeats. Its length is prime: nothing that is shifted by pages looks right.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 1u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 + (state >> 24 & 0x7e) as u8
        };
        (0..65_521).map(next).collect()
    })
}

/// What must never be seen.
pub const POISON: u8 = 0xa5;

/// Of every file, from `at` on: never zero, and never [`POISON`].
pub fn bytes(at: u64, length: usize) -> Vec<u8> {
    let pattern = pattern();
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let start = (at + bytes.len() as u64) % pattern.len() as u64;
        let rest = &pattern[start as usize..];
        bytes.extend_from_slice(&rest[..rest.len().min(length - bytes.len())]);
    }
    bytes
}

/// Says where two differ, instead of showing a megabyte.
#[track_caller]
pub fn assert_bytes(seen: &[u8], right: &[u8], what: &str) {
    assert_eq!(seen.len(), right.len(), "{what}: length");
    if seen == right {
        return;
    }
    if let Some(at) = (0..seen.len()).find(|at| seen[*at] != right[*at]) {
        panic!(
            "{what}: byte {at} of {} is {:#x}, not {:#x}",
            seen.len(),
            seen[at],
            right[at]
        );
    }
}

/// CRC32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let (mut crc, mut bit) = (at as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    crc >> 1 ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[at] = crc;
            at += 1;
        }
        table
    };
    !bytes
        .iter()
        .fold(!0, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// `header | payload | footer`.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
    pub footer: Vec<u8>,
}

impl Frame {
    /// A frame whose payload are the bytes of a file from `pos` on.
    pub fn of(pos: u64, [header, payload, footer]: [usize; 3]) -> Self {
        Self {
            header: bytes(pos ^ 0x5a5a, header),
            payload: bytes(pos, payload),
            footer: bytes(pos ^ 0xc3c3, footer),
        }
    }

    /// With 102 bytes before and behind the payload.
    pub fn usual(pos: u64, payload: usize) -> Self {
        Self::of(pos, [102, payload, 102])
    }

    pub fn whole(&self) -> Vec<u8> {
        [&self.header[..], &self.payload, &self.footer].concat()
    }

    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len() + self.footer.len()
    }

    pub fn meta(&self) -> Vec<u8> {
        [&self.header[..], &self.footer].concat()
    }

    /// To receive this frame from `fd`, with the CRC, into the start of `unique`.
    pub fn fill(&self, unique: u64, fd: &OwnedFd) -> Fill {
        Fill {
            unique,
            fd: fd.as_raw_fd(),
            header: self.header.len() as u32,
            payload: self.payload.len() as u32,
            footer: self.footer.len() as u32,
            flags: abi::SECTION_CRC,
            timeout: PATIENCE.as_millis() as u32,
            ..Fill::default()
        }
    }

    pub fn section(&self, offset: u32) -> Section {
        Section {
            header: self.header.len() as u32,
            footer: self.footer.len() as u32,
            offset,
            flags: abi::SECTION_CRC,
            ..Section::default()
        }
    }

    /// What a daemon that filled it has in `mem`, `done` and `crc`.
    #[track_caller]
    pub fn assert_filled(&self, fill: &Fill, mem: &[u8]) {
        assert_eq!(fill.done as usize, self.len(), "done");
        assert_eq!(fill.crc, crc32c(&self.payload), "crc");
        assert_bytes(mem, &self.meta(), "header and footer");
    }
}

impl Frame {
    #[track_caller]
    pub fn assert_staged(&self, mem: &[u8]) {
        let (meta, crc) = mem.split_at(self.meta().len());
        assert_bytes(meta, &self.meta(), "header and footer");
        assert_eq!(crc, crc32c(&self.payload).to_ne_bytes(), "crc");
    }
}
