// SPDX-License-Identifier: MIT OR Apache-2.0
//! One file of many sources against the same file in memory.

use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use extfuse::splice::{FuseBuf, FuseBufVec, Merge, copy, merge};
use proptest::prelude::*;

use super::{WAYS, pattern};

const HEADER: usize = 24;
const FOOTER: usize = 8;

/// A server of frames: the header repeats the request (offset, length), the footer sums the payload up.
fn serve(bytes: Vec<u8>) -> OwnedFd {
    let (near, mut far) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut request = [0; 16];
        while far.read_exact(&mut request).is_ok() {
            let number = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap()) as usize;
            let payload = &bytes[number(0)..][..number(8)];
            let mut frame = vec![b'H'; HEADER];
            frame[..16].copy_from_slice(&request);
            frame.extend_from_slice(payload);
            frame.extend_from_slice(&sum(payload).to_ne_bytes());
            if far.write_all(&frame).is_err() {
                return;
            }
        }
    });
    near.into()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&byte| u64::from(byte)).sum()
}

#[derive(Clone, Copy, Debug)]
enum What {
    File,
    Memory,
    Hole,
    Stream,
}

fn place(
    builder: merge::MergeBuilder,
    model: &mut Vec<u8>,
    gap: usize,
    (what, len): (What, usize),
) -> merge::MergeBuilder {
    let data = pattern(model.len(), len);
    model.resize(model.len() + gap, 0);
    let start = model.len() as u64;
    match what {
        What::Hole => {
            model.resize(model.len() + len, 0);
            return builder.place(start, len as u64, merge::Hole);
        }
        _ => model.extend_from_slice(&data),
    }
    match what {
        What::File => {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&data, 11).unwrap();
            builder.place(start, len as u64, merge::File::new(OwnedFd::from(file), 11))
        }
        What::Memory => builder.place(start, len as u64, merge::Memory::from(data)),
        _ => {
            let fd = Arc::new(serve(data));
            let ask = fd.clone();
            let stream = merge::Stream::new(fd, HEADER, FOOTER, move |offset: u64, len: usize| {
                let request = [offset.to_ne_bytes(), (len as u64).to_ne_bytes()].concat();
                nix::unistd::write(&ask, &request)?;
                Ok(())
            });
            builder.place(start, len as u64, stream.largest(500))
        }
    }
}

/// `unit` bytes of each source in turn.
fn interleave(
    builder: merge::MergeBuilder,
    model: &mut Vec<u8>,
    unit: u64,
    lens: &[usize],
) -> merge::MergeBuilder {
    let sources: Vec<Vec<u8>> = (0..).zip(lens).map(|(at, len)| pattern(at * 77, *len)).collect();
    let mut left: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
    while left.iter().any(|left| !left.is_empty()) {
        for left in &mut left {
            let (now, later) = left.split_at((unit as usize).min(left.len()));
            model.extend_from_slice(now);
            *left = later;
        }
    }
    let boxed = |bytes: Vec<u8>| -> (u64, Box<dyn merge::Source>) {
        (bytes.len() as u64, Box::new(merge::Memory::from(bytes)))
    };
    let unit = NonZeroU64::new(unit).unwrap();
    builder.interleave(unit, sources.into_iter().map(boxed).collect())
}

fn ranges() -> impl Strategy<Value = Vec<(usize, (What, usize))>> {
    let what = prop_oneof![
        Just(What::File),
        Just(What::Memory),
        Just(What::Hole),
        Just(What::Stream)
    ];
    let len = prop_oneof![0..20usize, 0..3000usize, Just(70_000)];
    let gap = prop_oneof![Just(0usize), 0..50usize];
    proptest::collection::vec((gap, (what, len)), 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_give_what_the_sources_have(
        ranges in ranges(),
        unit in 1..3000u64,
        in_turn in proptest::collection::vec(0..9000usize, 0..4),
        tail in 0..20usize,
        reads in proptest::collection::vec((0..1000usize, 0..20_000usize), 1..8),
        way in 0..3usize,
    ) {
        let (mut builder, mut model) = (Merge::builder(), Vec::new());
        for (gap, range) in ranges {
            builder = place(builder, &mut model, gap, range);
        }
        builder = interleave(builder, &mut model, unit, &in_turn);
        model.resize(model.len() + tail, 0);
        let merged = builder.size(model.len() as u64).build().unwrap();
        prop_assert_eq!(merged.size(), model.len() as u64);
        for (permille, size) in reads {
            let offset = (model.len() + 10) * permille / 1000;
            let expected = &model[offset.min(model.len())..(offset + size).min(model.len())];
            let mut plan = merged.plan(offset as u64, size).unwrap();
            prop_assert_eq!(plan.size(), expected.len());
            let file = tempfile::tempfile().unwrap();
            let mut dst = FuseBufVec::from(FuseBuf::file(&file, 0, size));
            prop_assert_eq!(copy(&mut dst, &mut plan, WAYS[way]).unwrap(), expected.len());
            let mut got = vec![0; expected.len()];
            file.read_exact_at(&mut got, 0).unwrap();
            prop_assert!(got == expected);
            prop_assert!(plan.is_done());
            let mut at = 0;
            for buf in &plan {
                prop_assert!(buf.size > 0, "a source is asked for what is needed");
                if buf.is_section() {
                    prop_assert_eq!(&buf.header_bytes()[16..], &[b'H'; HEADER - 16]);
                    let sent = u64::from_ne_bytes(buf.footer_bytes().try_into().unwrap());
                    prop_assert_eq!(sent, sum(&expected[at..at + buf.size]));
                    prop_assert!(buf.size <= 500);
                }
                at += buf.size;
            }
        }
    }
}
