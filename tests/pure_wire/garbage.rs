// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes that nobody meant to be frames, and headers that say what none may say.

use extfuse::remote::wire::{Footer, Header, WireError};
use proptest::prelude::*;

use super::{PLAIN, SIGNED, fix_crc, write_header};

/// A sound header of a WRITE but for these bytes.
fn header_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = write_header().encode(102).unwrap();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    fix_crc(&mut header);
    header
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 1..600)) {
        prop_assert!(PLAIN.read(&bytes).is_err());
        prop_assert!(SIGNED.read(&bytes).is_err());
        prop_assert!(Header::decode(&bytes).is_err());
        prop_assert!(Footer::decode(&bytes).is_err());
    }

    /// Whatever a sound header says, it is refused or says the same when it is encoded again.
    #[test]
    fn any_fields_are_refused_or_kept(at in 4..94usize, bytes: [u8; 4]) {
        let header = header_with(at, &bytes);
        if let Ok(fields) = Header::decode(&header) {
            prop_assert_eq!(fields.encode(102).unwrap(), header);
        }
    }

    #[test]
    fn frames_with_anything_changed_are_refused_or_the_same(
        changes in proptest::collection::vec((0..208usize, any::<u8>()), 1..5),
    ) {
        let frame = SIGNED.write(&[(write_header(), b"data")]).concat();
        let mut changed = frame.clone();
        for (at, byte) in changes {
            changed[at] = byte;
        }
        fix_crc(&mut changed[..102]);
        fix_crc(&mut changed[106..]);
        prop_assert_eq!(SIGNED.read(&changed).is_ok(), changed == frame);
    }
}

#[test]
fn a_length_that_no_frame_has_takes_no_memory() {
    for length in [u32::MAX, 1 << 31, (1 << 20) + (64 << 10) + 1] {
        let header = header_with(56, &length.to_le_bytes());
        let (mut reader, mut buffer) = (PLAIN.reader(&header[..]), Vec::new());
        let error = reader.read_frame(&mut buffer).unwrap_err();
        assert!(
            matches!(error, WireError::Length { .. }) && error.closes(),
            "{error}"
        );
        assert_eq!(buffer.capacity(), 0);
    }
}

#[test]
fn a_header_says_nothing_that_it_should_not() {
    let refused = |at, bytes: &[u8]| Header::decode(&header_with(at, bytes)).unwrap_err();
    assert!(matches!(refused(0, b"XFRf"), WireError::HeaderMagic));
    assert!(matches!(refused(4, &[2]), WireError::Version(2)));
    assert!(matches!(refused(4, &[0]), WireError::Version(0)));
    assert!(matches!(refused(6, &[0]), WireError::Kind(0)));
    assert!(matches!(refused(6, &[8]), WireError::Kind(8)));
    assert!(matches!(refused(8, &[0x20]), WireError::Flags(0x20)));
    // KEEP, of what is no reply.
    assert!(matches!(refused(8, &[0x10]), WireError::Flags(0x10)));
    assert!(matches!(refused(12, &[1]), WireError::Status(1)));
    assert!(matches!(refused(60, &[1]), WireError::Reserved));
    assert!(matches!(refused(97, &[1]), WireError::Reserved));
    assert!(matches!(Header::decode(&[0; 101]), Err(WireError::Truncated)));
    assert!(matches!(write_header().encode(101), Err(WireError::Size(101))));
    assert!(matches!(write_header().encode(4097), Err(WireError::Size(4097))));
    let footer = Footer {
        payload_crc: 1,
        request: 2,
        file_version: 3,
        signature: [4; 32],
    };
    assert_eq!(Footer::decode(&footer.encode(4096).unwrap()).unwrap(), footer);
    let mut bytes = footer.encode(102).unwrap();
    bytes[56] = 1;
    fix_crc(&mut bytes);
    assert!(matches!(Footer::decode(&bytes), Err(WireError::Reserved)));
    assert!(matches!(
        Footer::decode(&header_with(60, &[0])),
        Err(WireError::FooterMagic)
    ));
    assert!(matches!(footer.encode(4097), Err(WireError::Size(4097))));
}
