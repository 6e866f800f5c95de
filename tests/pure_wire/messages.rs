// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every message of every kind, there and back; what none may hold.

use extfuse::remote::wire::message::{Data, Forget, Forgotten, Versions, payload_limit};
use extfuse::remote::wire::{
    Export, Header, Kind, ListedName, MAX_MESSAGE, MAX_PAYLOAD, Name, Reply, Request, Sizes, Target,
    WireError, XattrName, XattrValue,
};
use proptest::prelude::*;

use super::dice::Dice;

fn asked(kind: Kind) -> Header {
    Header::request(kind, 1)
}

fn answered(kind: Kind) -> Header {
    asked(kind).reply()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_is_what_it_was(seed: u64) {
        let data = vec![seed as u8; (seed % 9000) as usize];
        let mut dice = Dice(seed);
        let requests = dice.requests(&data);
        prop_assert!(requests.iter().map(Request::kind).eq(Kind::ALL.iter().copied()));
        for request in requests {
            let payload = request.payload().unwrap();
            let limit = payload_limit(request.kind(), false).unwrap();
            prop_assert!(payload.len() <= limit.most as usize);
            prop_assert_eq!(&Request::decode(&asked(request.kind()), &payload).unwrap(), &request);
            cut_or_longer(&payload, |bytes| Request::decode(&asked(request.kind()), bytes).is_ok_and(|got| got == request));
        }
        for reply in dice.replies(&data) {
            let payload = reply.payload().unwrap();
            prop_assert_eq!(&Reply::decode(&answered(reply.kind()), &payload).unwrap(), &reply);
            cut_or_longer(&payload, |bytes| Reply::decode(&answered(reply.kind()), bytes).is_ok_and(|got| got == reply));
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for &kind in Kind::ALL {
            // Decoding them is all: a panic would fail the test.
            let _ = Request::decode(&asked(kind), &bytes);
            let _ = Reply::decode(&answered(kind), &bytes);
        }
    }
}

/// No other bytes are the same message: not the first ones, and not some more.
fn cut_or_longer(payload: &[u8], same: impl Fn(&[u8]) -> bool) {
    for end in (0..payload.len()).take(64) {
        assert!(!same(&payload[..end]), "{end} of {} bytes", payload.len());
    }
    assert!(!same(&[payload, &[0]].concat()), "one byte more");
}

#[test]
fn every_kind_has_a_reply_but_three() {
    let mut without = Vec::new();
    for &kind in Kind::ALL {
        assert_eq!(Kind::try_from(kind as u16).unwrap(), kind);
        assert!(payload_limit(kind, false).is_some());
        if payload_limit(kind, true).is_none() {
            without.push(kind);
        }
    }
    assert_eq!(without, [Kind::Invalidate, Kind::Invalidated, Kind::Forget]);
    assert!(
        Dice(1)
            .replies(&[])
            .iter()
            .map(Reply::kind)
            .eq(Kind::ALL.iter().copied().filter(|kind| !without.contains(kind)))
    );
    let known = (0..=u16::MAX).filter(|&number| Kind::try_from(number).is_ok());
    assert_eq!(known.count(), Kind::ALL.len());
}

#[test]
fn names_are_components() {
    for name in ["", ".", "..", "a/b", "/", "a\0", &"x".repeat(256)] {
        assert!(Name::new(name).is_err(), "{name:?}");
        // As a message: a length and the bytes.
        let mut message = vec![name.len() as u8];
        if name.len() > 127 {
            message = vec![name.len() as u8 | 0x80, (name.len() >> 7) as u8];
        }
        message.extend(name.as_bytes());
        let error = Request::decode(&asked(Kind::Lookup), &message).unwrap_err();
        assert!(
            matches!(error, WireError::Message { .. }) && !error.closes(),
            "{error}"
        );
    }
    for name in ["a", "...", ".a", &"x".repeat(255)] {
        assert!(Name::new(name).is_ok(), "{name:?}");
    }
    assert!(ListedName::new("..").is_ok() && ListedName::new("a/b").is_err() && ListedName::new("").is_err());
    assert_eq!(
        Name::new("x".repeat(256)).unwrap_err().errno() as i32,
        libc::ENAMETOOLONG
    );
}

#[test]
fn other_bytes_have_limits_too() {
    assert!(Target::new("/a/../b").is_ok() && Target::new("x".repeat(4095)).is_ok());
    assert!(
        Target::new("").is_err() && Target::new("a\0").is_err() && Target::new("x".repeat(4096)).is_err()
    );
    assert!(Export::new("").is_ok() && Export::new("x".repeat(4096)).is_err() && Export::new("\0").is_err());
    assert!(XattrName::new("user.a/b").is_ok() && XattrName::new("x".repeat(256)).is_err());
    assert!(XattrName::new("").is_err() && XattrName::new("a\0b").is_err());
    assert!(XattrValue::new([0; 64 << 10]).is_ok() && XattrValue::new([0; (64 << 10) + 1]).is_err());
    assert!(Sizes::new(102, 4096).is_ok() && Sizes::new(101, 102).is_err() && Sizes::new(102, 4097).is_err());
}

#[test]
fn numbers_out_of_range_are_refused() {
    let reads = |size: u32| {
        let bytes = postcard::to_stdvec(&size).unwrap();
        Request::decode(&asked(Kind::Read), &bytes).is_ok()
    };
    assert!(reads(MAX_PAYLOAD) && !reads(MAX_PAYLOAD + 1) && !reads(u32::MAX));
    let attr = |nanos: u32, kind: u32, perm: u32| {
        let times = ((0i64, nanos), (0i64, 0u32), (0i64, 0u32));
        let fields = (
            (0u64, 0u64, 0u64),
            times,
            kind,
            perm,
            (0u32, 0u32, 0u32, 0u32, 0u32),
        );
        let bytes = postcard::to_stdvec(&fields).unwrap();
        Reply::decode(&answered(Kind::Getattr), &bytes).is_ok()
    };
    assert!(attr(999_999_999, 6, 0o7777));
    assert!(!attr(1_000_000_000, 6, 0) && !attr(0, 7, 0) && !attr(0, 0, 0o10000));
    let hello = |header: u16| {
        let fields = ((1u16, 1u16), (header, 102u16), [0u8; 32], "", false, false);
        let bytes = postcard::to_stdvec(&fields).unwrap();
        Request::decode(&asked(Kind::Hello), &bytes).is_ok()
    };
    assert!(hello(4096) && !hello(101) && !hello(4097));
}

#[test]
fn what_is_too_large_is_not_encoded() {
    let forget = |nodes: usize| {
        let (node, nlookup) = (0, 0);
        let nodes = vec![Forgotten { node, nlookup }; nodes];
        Request::Forget(Forget { nodes })
            .payload()
            .map(|bytes| bytes.len())
    };
    assert!(forget(30_000).unwrap() <= MAX_MESSAGE as usize);
    assert!(matches!(forget(40_000), Err(WireError::TooLong { .. })));
    let data = vec![0; MAX_PAYLOAD as usize + 1];
    assert!(Request::Write(Data(&data)).payload().is_err());
    assert!(Request::Write(Data(&data[1..])).payload().is_ok());
    assert!(Reply::Readlink(Data(&data[..4096])).payload().is_err());
}

#[test]
fn a_request_is_no_reply() {
    let error = Request::decode(&answered(Kind::Ping), &[]).unwrap_err();
    assert!(matches!(error, WireError::NotThat(Kind::Ping)));
    assert!(Reply::decode(&asked(Kind::Ping), &[]).is_err());
    assert!(matches!(
        Reply::decode(&answered(Kind::Forget), &[]),
        Err(WireError::NoReply(_))
    ));
    assert!(Request::decode(&asked(Kind::Ping), b"x").is_err());
}

#[test]
fn the_newest_version_of_both_is_spoken() {
    let versions = |min, max| Versions { min, max };
    assert_eq!(versions(1, 3).agree(versions(2, 5)), Some(3));
    assert_eq!(versions(1, 1).agree(versions(1, 1)), Some(1));
    assert_eq!(versions(1, 2).agree(versions(3, 5)), None);
    assert_eq!(versions(3, 1).agree(versions(1, 5)), None);
}
