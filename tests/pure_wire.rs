// SPDX-License-Identifier: MIT OR Apache-2.0
//! The wire protocol: what goes in comes out, and nothing else gets through.

#[path = "pure_wire/dice.rs"]
mod dice;
#[path = "pure_wire/frames.rs"]
mod frames;
#[path = "pure_wire/garbage.rs"]
mod garbage;
#[path = "pure_wire/golden.rs"]
mod golden;
#[path = "pure_wire/messages.rs"]
mod messages;
#[path = "pure_wire/tampering.rs"]
mod tampering;

use extfuse::remote::wire::auth::{Greeting, Token};
use extfuse::remote::wire::{
    Frame, FrameReader, FrameWriter, Header, Kind, SessionKey, Side, Sizes, WireError,
};

/// The checksum of headers and footers, behind the bytes that it is of.
const CRC: usize = 98;

fn key() -> SessionKey {
    let token = Token::new([9; 32]).unwrap();
    SessionKey::new(&token, &Greeting::new([1; 32], [2; 32], b"hello", b"reply", None))
}

/// How the frames of a stream are made.
#[derive(Clone, Copy, Debug)]
struct Style {
    from: Side,
    sizes: (u16, u16),
    signed: bool,
}

const PLAIN: Style = Style {
    from: Side::Client,
    sizes: (102, 102),
    signed: false,
};
const SIGNED: Style = Style {
    signed: true,
    ..PLAIN
};

impl Style {
    fn sizes(self) -> Sizes {
        Sizes::new(self.sizes.0, self.sizes.1).unwrap()
    }

    fn writer(self) -> FrameWriter<Vec<u8>> {
        let mut writer = FrameWriter::new(Vec::new(), self.from);
        writer.set_sizes(self.sizes());
        if self.signed {
            writer.sign_with(&key());
        }
        writer
    }

    fn reader<R: std::io::Read>(self, stream: R) -> FrameReader<R> {
        let mut reader = FrameReader::new(stream, self.from);
        reader.set_sizes(self.sizes());
        if self.signed {
            reader.sign_with(&key());
        }
        reader
    }

    /// The frames, each by itself.
    fn write(self, frames: &[(Header, &[u8])]) -> Vec<Vec<u8>> {
        let mut writer = self.writer();
        let each = frames.iter().map(|(header, payload)| {
            writer.write_frame(header, 5, &[payload]).unwrap();
            std::mem::take(writer.get_mut())
        });
        each.collect()
    }

    /// Reads all frames of a stream; the error if one is refused.
    fn read(self, stream: &[u8]) -> Result<usize, WireError> {
        let (mut reader, mut buffer) = (self.reader(stream), Vec::new());
        let mut frames = 0;
        while reader.read_frame(&mut buffer)?.is_some() {
            frames += 1;
        }
        Ok(frames)
    }
}

/// A WRITE, whose payload is data.
fn write_header() -> Header {
    Header {
        node: 3,
        handle: 4,
        offset: 5000,
        file_version: 6,
        ..Header::request(Kind::Write, 77)
    }
}

/// Computes the checksum of a header or footer anew, as somebody would who changes it on purpose.
fn fix_crc(part: &mut [u8]) {
    let crc = crc32c::crc32c(&part[..CRC]);
    part[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

fn one<'b>(reader: &mut FrameReader<impl std::io::Read>, buffer: &'b mut Vec<u8>) -> Frame<'b> {
    reader.read_frame(buffer).unwrap().unwrap()
}
