// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that were damaged, cut, forged, sent again, or sent back.

use extfuse::remote::wire::{Header, Kind, Side, WireError};

use super::{PLAIN, SIGNED, Style, fix_crc, write_header};

fn lookup(request: u64) -> Header {
    Header {
        node: 1,
        ..Header::request(Kind::Lookup, request)
    }
}

const LARGE: Style = Style {
    sizes: (131, 150),
    ..PLAIN
};

#[test]
fn every_flipped_bit_is_seen() {
    for style in [
        PLAIN,
        SIGNED,
        LARGE,
        Style {
            signed: true,
            ..LARGE
        },
    ] {
        for (header, payload) in [(lookup(7), &b"\x06passwd"[..]), (write_header(), b"data")] {
            let frame = style.write(&[(header, payload)]).concat();
            assert_eq!(style.read(&frame).unwrap(), 1);
            for bit in 0..frame.len() * 8 {
                let mut flipped = frame.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let error = style.read(&flipped).expect_err("flipped");
                assert!(error.closes(), "{style:?}: bit {bit}: {error}");
            }
        }
    }
}

#[test]
fn a_flipped_length_is_seen_before_any_payload() {
    let frame = PLAIN.write(&[(write_header(), b"data")]).concat();
    for bit in 56 * 8..60 * 8 {
        let mut header = frame[..102].to_vec();
        header[bit / 8] ^= 1 << (bit % 8);
        // Nothing follows: who believed the length would find the stream cut.
        assert!(
            matches!(PLAIN.read(&header), Err(WireError::HeaderCrc)),
            "bit {bit}"
        );
    }
}

#[test]
fn a_stream_may_end_between_frames_only() {
    for style in [PLAIN, SIGNED, LARGE] {
        let frames = style.write(&[(lookup(1), b"\x01a"), (write_header(), b"data")]);
        let stream = frames.concat();
        for end in 0..=stream.len() {
            let read = style.read(&stream[..end]);
            let whole = [0, frames[0].len(), stream.len()]
                .iter()
                .position(|&at| at == end);
            match (whole, read) {
                (Some(frames), Ok(read)) => assert_eq!(read, frames),
                (None, Err(error)) => assert!(matches!(error, WireError::Truncated) && error.closes()),
                (_, read) => panic!("{style:?}: {end} of {}: {read:?}", stream.len()),
            }
        }
    }
}

/// Whoever changes something and makes all checksums anew gets through without a key, and not with one.
#[test]
fn every_forged_bit_is_seen_with_a_key() {
    for (header, payload) in [(lookup(7), &b"\x06passwd"[..]), (write_header(), b"data")] {
        let frame = SIGNED.write(&[(header, payload)]).concat();
        let end = 102 + payload.len();
        let bytes = (4..60).chain(102..end).chain(end + 4..end + 24);
        for (byte, bit) in bytes.flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let mut forged = frame.clone();
            forged[byte] ^= 1 << bit;
            if (102..end).contains(&byte) {
                let crc = crc32c::crc32c(&forged[102..end]);
                forged[end + 4..end + 8].copy_from_slice(&crc.to_le_bytes());
            }
            fix_crc(&mut forged[..102]);
            fix_crc(&mut forged[end..]);
            assert!(SIGNED.read(&forged).is_err(), "byte {byte}, bit {bit}");
        }
    }
}

#[test]
fn a_message_is_signed_as_a_whole_and_not_by_its_checksum() {
    // The same checksum, other bytes: both are 8 bytes that differ by a multiple of the polynomial.
    let (one, other) = colliding();
    let frame = SIGNED.write(&[(lookup(1), &one)]).concat();
    let mut forged = frame.clone();
    forged[102..102 + one.len()].copy_from_slice(&other);
    assert_eq!(
        PLAIN.read(&unsigned(&forged, one.len())).unwrap(),
        1,
        "the checksums agree"
    );
    assert!(matches!(SIGNED.read(&forged), Err(WireError::Signature)));
    assert_eq!(SIGNED.read(&frame).unwrap(), 1);
}

/// Two payloads of a LOOKUP with the same CRC32C, which is linear: a difference that leaves the checksum at
/// zero is found by elimination over 40 bits.
fn colliding() -> (Vec<u8>, Vec<u8>) {
    let one = b"\x05abcde".to_vec();
    let flip = |bits: u64| -> Vec<u8> {
        let mut bytes = one.clone();
        for bit in (0..40).filter(|bit| bits >> bit & 1 == 1) {
            bytes[1 + bit / 8] ^= 1 << (bit % 8);
        }
        bytes
    };
    let base = crc32c::crc32c(&one);
    let mut rows: Vec<(u32, u64)> = Vec::new();
    for bit in 0..40 {
        let mut row = (crc32c::crc32c(&flip(1 << bit)) ^ base, 1u64 << bit);
        for &(crc, bits) in &rows {
            if row.0 ^ crc < row.0 {
                row = (row.0 ^ crc, row.1 ^ bits);
            }
        }
        if row.0 == 0 {
            return (one.clone(), flip(row.1));
        }
        rows.push(row);
        rows.sort_by_key(|row| std::cmp::Reverse(row.0));
    }
    unreachable!("40 differences, 32 bits")
}

/// The same frame without its signature.
fn unsigned(frame: &[u8], payload: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let footer = &mut frame[102 + payload..];
    footer[24..56].fill(0);
    fix_crc(footer);
    frame
}

#[test]
fn signatures_are_there_exactly_if_there_is_a_key() {
    let signed = SIGNED.write(&[(write_header(), b"data")]).concat();
    assert!(matches!(PLAIN.read(&signed), Err(WireError::NoKey)));
    let plain = PLAIN.write(&[(write_header(), b"data")]).concat();
    assert!(matches!(SIGNED.read(&plain), Err(WireError::Unsigned)));
    assert_eq!(unsigned(&signed, 4), plain);
}

#[test]
fn signed_frames_come_once_and_in_order() {
    let sent = [
        (lookup(1), &b"\x01a"[..]),
        (lookup(2), b"\x01b"),
        (lookup(1), b"\x01a"),
    ];
    let frames = SIGNED.write(&sent);
    let read = |order: &[usize]| {
        let stream: Vec<u8> = order.iter().flat_map(|&i| frames[i].clone()).collect();
        SIGNED.read(&stream)
    };
    assert_eq!(read(&[0, 1, 2]).unwrap(), 3);
    for wrong in [
        &[1][..],
        &[2],
        &[0, 0],
        &[0, 2],
        &[1, 0],
        &[0, 1, 1],
        &[0, 1, 0],
        &[0, 1, 2, 0],
    ] {
        assert!(matches!(read(wrong), Err(WireError::Signature)), "{wrong:?}");
    }
}

#[test]
fn a_frame_is_not_taken_by_the_end_that_sent_it() {
    for style in [PLAIN, SIGNED] {
        let asked = style.write(&[(write_header(), b"data")]).concat();
        let back = Style {
            from: Side::Server,
            ..style
        };
        assert!(matches!(
            back.read(&asked),
            Err(WireError::Direction {
                side: Side::Server,
                ..
            })
        ));
        let answered = back.write(&[(write_header().reply(), b"")]).concat();
        assert_eq!(back.read(&answered).unwrap(), 1);
        assert!(matches!(
            style.read(&answered),
            Err(WireError::Direction {
                side: Side::Client,
                ..
            })
        ));
        let invalidate = back
            .write(&[(Header::request(Kind::Invalidate, 1), b"\0")])
            .concat();
        assert!(back.read(&invalidate).is_ok() && style.read(&invalidate).is_err());
    }
}

#[test]
fn a_footer_belongs_to_its_header() {
    let [one, other] = [1, 2].map(|request| PLAIN.write(&[(lookup(request), b"\x01a")]).concat());
    let mixed = [&one[..104], &other[104..]].concat();
    assert!(matches!(
        PLAIN.read(&mixed),
        Err(WireError::Request { header: 1, footer: 2 })
    ));
}
