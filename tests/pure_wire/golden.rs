// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes as they are on the wire. A test that fails here has found another protocol: it needs another version.

use extfuse::remote::wire::auth::{Greeting, Token, proof};
use extfuse::remote::wire::message::{Hello, SessionId, Versions, Wanted};
use extfuse::remote::wire::{Export, Header, Kind, Request, Side, Sizes};

use super::{SIGNED, dice::Dice};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_signed_frame() {
    let header = Header {
        node: 0x0203,
        handle: 0x0405,
        offset: 0x0607,
        file_version: 0x0809,
        ..Header::request(Kind::Lookup, 0x0a0b)
    };
    // The second of its direction.
    let frames = SIGNED.write(&[(header, b"\x01a"), (header, b"\x06passwd")]);
    let (header, rest) = frames[1].split_at(102);
    let (payload, footer) = rest.split_at(7);
    assert_eq!(
        hex(header),
        "584652680100100000000000000000000b0a00000000000003020000000000000504000000000000\
            07060000000000000908000000000000070000000000000000000000000000000000000000000000\
            000000000000000000000000000000000000f717760f"
    );
    assert_eq!(hex(payload), "06706173737764");
    assert_eq!(
        hex(footer),
        "58465266c297ccb90b0a00000000000005000000000000004fdabc9cb1871dfc5fc4848b17c8bd2e\
            d3791c95fadf2dd4653dddcb7dd30ff6000000000000000000000000000000000000000000000000\
            000000000000000000000000000000000000345f3db0"
    );
}

#[test]
fn a_proof() {
    let greeting = Greeting::new([1; 32], [2; 32], b"hello", b"reply", None);
    let proof = proof(&Token::new([9; 32]).unwrap(), Side::Client, &greeting);
    assert_eq!(
        proof.to_hex().as_str(),
        "0c303995697783af1b0bec8995418409e760ed2858443c19e2c6cc3154af35fe"
    );
}

#[test]
fn a_proof_over_tls() {
    let greeting = Greeting::new([1; 32], [2; 32], b"hello", b"reply", Some(&[4; 32]));
    let proof = proof(&Token::new([9; 32]).unwrap(), Side::Client, &greeting);
    assert_eq!(
        proof.to_hex().as_str(),
        "dbbe0e9c1be92312bf45861872c630293f32c4bb1bc1c1fcaeda93b40b9a6cd3"
    );
}

#[test]
fn a_hello() {
    let hello = Request::Hello(Hello {
        versions: Versions { min: 1, max: 1 },
        sizes: Sizes::new(102, 4096).unwrap(),
        nonce: [0xaa; 32],
        export: Export::new("/srv").unwrap(),
        session: Wanted::Resumed(SessionId([0xbb; 16])),
        keeps: true,
    });
    let expected = [
        &[1, 1, 102, 0x80, 0x20][..],
        &[0xaa; 32],
        b"\x04/srv\x01",
        &[0xbb; 16],
        &[1],
    ]
    .concat();
    assert_eq!(hex(&hello.payload().unwrap()), hex(&expected));
}

/// One of every message: a field that moves, or a kind that gets another number, changes the sum.
#[test]
fn every_message() {
    let (mut dice, mut all) = (Dice(1), blake3::Hasher::new());
    for request in dice.requests(b"data") {
        all.update(&(request.kind() as u16).to_le_bytes());
        all.update(&request.payload().unwrap());
    }
    for reply in dice.replies(b"data") {
        all.update(&(reply.kind() as u16).to_le_bytes());
        all.update(&reply.payload().unwrap());
    }
    assert_eq!(
        all.finalize().to_hex().as_str(),
        "db15b5d95fef38da75d9060819afa86c76ef86b02638b73e99ccd90875aba9c1"
    );
}
