// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames on streams that behave, and on streams that don't.

use std::io::{self, IoSlice, Read, Write};

use crc32c::crc32c;
use extfuse::remote::wire::message::payload_limit;
use extfuse::remote::wire::{
    Body, Flags, FrameReader, FrameWriter, Header, Kind, MAX_PAYLOAD, Side, Verifier, WireError,
};
use proptest::prelude::*;

use super::{PLAIN, SIGNED, Style, one, write_header};

/// A stream that is interrupted, and then moves at most three bytes.
struct Drip<S>(S, u32);

impl<S> Drip<S> {
    fn interrupted(&mut self) -> io::Result<()> {
        self.1 += 1;
        match self.1 % 2 {
            0 => Ok(()),
            _ => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

impl<S: Read> Read for Drip<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.interrupted()?;
        let most = bytes.len().min(3);
        self.0.read(&mut bytes[..most])
    }
}

impl Write for Drip<Vec<u8>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.interrupted()?;
        self.0.write(&bytes[..bytes.len().min(3)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.interrupted()?;
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.0.write(&all[..all.len().min(3)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Headers of every kind, request and reply, with anything in their fields.
fn headers() -> impl Strategy<Value = Header> {
    let kind = proptest::sample::select(Kind::ALL);
    let words = any::<[u64; 5]>();
    (kind, any::<bool>(), 0..16u32, 0..512u32, words).prop_map(|(kind, reply, flags, status, words)| {
        let reply = reply && payload_limit(kind, true).is_some();
        let mut flags = Flags::from_bits_truncate(flags);
        flags.set(Flags::REPLY, reply);
        flags &= !Flags::KEEP | if reply { Flags::KEEP } else { Flags::empty() };
        let [request, node, handle, offset, file_version] = words;
        let status = if reply && status > 255 { status } else { 0 };
        Header {
            kind,
            flags,
            status,
            request,
            node,
            handle,
            offset,
            file_version,
            length: 0,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_is_what_it_was(
        frames in proptest::collection::vec((headers(), 0..3000usize, any::<u64>()), 1..6),
        sizes in (102..=4096u16, 102..=4096u16),
        cut in 0..3000usize,
        signed: bool,
    ) {
        let from = frames[0].0.sender();
        let style = Style { from, sizes, signed };
        let data: Vec<u8> = (0..3000).map(|i| (i * 7) as u8).collect();
        let mut writer = style.writer();
        let mut sent = Vec::new();
        for (header, length, version) in frames {
            if header.sender() != from {
                prop_assert!(writer.write_frame(&header, version, &[]).is_err());
                continue;
            }
            let most = payload_limit(header.kind, header.is_reply()).unwrap().most;
            let most = if header.status == 0 { most as usize } else { 0 };
            let payload = &data[..length.min(most)];
            let (a, b) = payload.split_at(cut.min(payload.len()));
            writer.write_frame(&header, version, &[a, &[], b]).unwrap();
            let header = Header { length: payload.len() as u32, ..header };
            sent.push((header, payload, version));
        }
        let stream = writer.get_mut().clone();
        let (mut reader, mut buffer) = (style.reader(&stream[..]), Vec::new());
        for (header, payload, version) in sent {
            let frame = one(&mut reader, &mut buffer);
            prop_assert_eq!(frame.header, header);
            prop_assert_eq!(frame.payload, payload);
            prop_assert_eq!(frame.footer.file_version, version);
            prop_assert_eq!(frame.footer.payload_crc, crc32c(payload));
        }
        prop_assert!(reader.read_frame(&mut buffer).unwrap().is_none());
    }
}

#[test]
fn headers_and_footers_of_every_size() {
    for size in 102..=4096 {
        for sizes in [(size, 102), (102, size)] {
            let style = Style { sizes, ..SIGNED };
            let frame = style.write(&[(write_header(), b"data")]).concat();
            assert_eq!(frame.len(), usize::from(sizes.0) + 4 + usize::from(sizes.1));
            assert_eq!(style.read(&frame).unwrap(), 1, "{sizes:?}");
        }
    }
}

#[test]
fn sizes_and_keys_begin_with_the_next_frame() {
    let mut writer = FrameWriter::new(Vec::new(), Side::Client);
    writer.write_frame(&write_header(), 0, &[b"one"]).unwrap();
    writer.set_sizes(
        Style {
            sizes: (300, 200),
            ..PLAIN
        }
        .sizes(),
    );
    writer.write_frame(&write_header(), 0, &[b"two"]).unwrap();
    writer.sign_with(&super::key());
    writer.write_frame(&write_header(), 0, &[b"three"]).unwrap();
    let stream = writer.get_mut().clone();
    let (mut reader, mut buffer) = (FrameReader::new(&stream[..], Side::Client), Vec::new());
    assert_eq!(one(&mut reader, &mut buffer).payload, b"one");
    reader.set_sizes(
        Style {
            sizes: (300, 200),
            ..PLAIN
        }
        .sizes(),
    );
    assert_eq!(one(&mut reader, &mut buffer).payload, b"two");
    reader.sign_with(&super::key());
    assert_eq!(one(&mut reader, &mut buffer).payload, b"three");
}

#[test]
fn streams_that_move_little_move_everything() {
    let mut writer = FrameWriter::new(Drip(Vec::new(), 0), Side::Client);
    writer
        .write_frame(&write_header(), 5, &[b"", b"some", b"", b" data"])
        .unwrap();
    let stream = writer.get_mut().0.clone();
    assert_eq!(stream, PLAIN.write(&[(write_header(), b"some data")]).concat());
    let (mut reader, mut buffer) = (PLAIN.reader(Drip(&stream[..], 0)), Vec::new());
    assert_eq!(one(&mut reader, &mut buffer).payload, b"some data");
    assert!(reader.read_frame(&mut buffer).unwrap().is_none());
}

#[test]
fn a_payload_may_go_another_way() {
    for style in [PLAIN, SIGNED] {
        let mut writer = style.writer();
        let header = Header {
            length: 9,
            ..write_header()
        };
        let sealed = writer.seal(&header, 5, crc32c(b"some data")).unwrap();
        for part in [&sealed.header[..], b"some data", &sealed.footer] {
            writer.get_mut().write_all(part).unwrap();
        }
        writer.write_frame(&header, 5, &[b"more data"]).unwrap();
        let stream = writer.get_mut().clone();
        assert_eq!(
            stream,
            style
                .write(&[(header, b"some data"), (header, b"more data")])
                .concat()
        );

        let mut reader = style.reader(&stream[..]);
        for (data, take_footer) in [(b"some data", false), (b"more data", true)] {
            let mut arriving = reader.read_header().unwrap().unwrap();
            assert_eq!(*arriving.header(), header);
            let (mut payload, mut footer) = ([0; 9], [0; 102]);
            arriving.stream().read_exact(&mut payload).unwrap();
            assert_eq!(&payload, data);
            let body = Body::Crc(crc32c(&payload));
            let footer = if take_footer {
                arriving.stream().read_exact(&mut footer).unwrap();
                arriving.verify(body, &footer)
            } else {
                arriving.read_footer(body)
            };
            assert_eq!(footer.unwrap().file_version, 5);
        }
        assert!(reader.read_header().unwrap().is_none());

        let mut reader = style.reader(&stream[..]);
        let mut arriving = reader.read_header().unwrap().unwrap();
        arriving.stream().read_exact(&mut [0; 9]).unwrap();
        let error = arriving.read_footer(Body::Crc(crc32c(b"same data"))).unwrap_err();
        assert!(matches!(error, WireError::PayloadCrc), "{error}");
        assert!(matches!(reader.read_header(), Err(WireError::Broken)));
    }
}

#[test]
fn a_message_goes_no_other_way() {
    let mut writer = SIGNED.writer();
    let lookup = Header {
        length: 2,
        ..Header::request(Kind::Lookup, 1)
    };
    let error = writer.seal(&lookup, 0, crc32c(b"\x01a")).unwrap_err();
    assert!(matches!(error, WireError::NotData(Kind::Lookup)));
    // It did not count: the next one is the first.
    writer.write_frame(&lookup, 5, &[b"\x01a"]).unwrap();
    assert_eq!(*writer.get_mut(), SIGNED.write(&[(lookup, b"\x01a")]).concat());
    let frame = writer.get_mut().clone();
    let mut verifier = Verifier::new(Side::Client);
    let body = Body::Crc(crc32c(b"\x01a"));
    let error = verifier.verify(&frame[..102], body, &frame[104..]).unwrap_err();
    assert!(matches!(error, WireError::NotData(Kind::Lookup)));
}

#[test]
fn a_frame_given_up_leaves_a_reader_of_no_use() {
    let stream = PLAIN
        .write(&[(write_header(), b"data"), (write_header(), b"data")])
        .concat();
    let mut reader = PLAIN.reader(&stream[..]);
    assert!(reader.read_header().unwrap().is_some());
    assert!(matches!(
        reader.read_frame(&mut Vec::new()),
        Err(WireError::Broken)
    ));
}

struct Late<'a>(&'a [u8]);

impl Read for Late<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.read(bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

#[test]
fn a_time_limit_between_frames_ends_nothing_and_one_within_a_frame_does() {
    let stream = PLAIN.write(&[(write_header(), b"data")]).concat();
    let mut buffer = Vec::new();
    let mut reader = PLAIN.reader(Late(&stream));
    one(&mut reader, &mut buffer);
    for _ in 0..2 {
        let error = reader.read_frame(&mut buffer).unwrap_err();
        assert!(matches!(error, WireError::Idle) && !error.closes());
    }
    for end in [1, 101, 102, 105, 106, 207] {
        let mut reader = PLAIN.reader(Late(&stream[..end]));
        let error = reader.read_frame(&mut buffer).unwrap_err();
        assert!(
            matches!(error, WireError::Io(_)) && error.closes(),
            "{end}: {error}"
        );
        assert!(matches!(reader.read_frame(&mut buffer), Err(WireError::Broken)));
    }
}

#[test]
fn a_writer_that_broke_off_writes_no_more() {
    let mut room = [0; 150];
    let mut writer = FrameWriter::new(&mut room[..], Side::Client);
    let error = writer.write_frame(&write_header(), 0, &[b"data"]).unwrap_err();
    assert!(
        matches!(&error, WireError::Io(error) if error.kind() == io::ErrorKind::WriteZero),
        "{error}"
    );
    assert!(matches!(
        writer.write_frame(&write_header(), 0, &[]),
        Err(WireError::Broken)
    ));
    assert!(matches!(
        writer.seal(&write_header(), 0, 0),
        Err(WireError::Broken)
    ));
}

#[test]
fn what_no_reader_would_take_is_not_written() {
    let mut writer = PLAIN.writer();
    let data = vec![0; MAX_PAYLOAD as usize + 1];
    let mut refused =
        |header: Header, payload: &[u8]| writer.write_frame(&header, 0, &[payload]).unwrap_err();
    assert!(matches!(refused(write_header(), &data), WireError::Length { .. }));
    assert!(matches!(
        refused(Header::request(Kind::Ping, 1), b"x"),
        WireError::Length { most: 0, .. }
    ));
    assert!(matches!(
        refused(write_header().reply(), b""),
        WireError::Direction { .. }
    ));
    assert!(matches!(
        refused(Header::request(Kind::Invalidate, 1), b""),
        WireError::Direction { .. }
    ));
    assert!(matches!(
        refused(
            Header {
                status: 5,
                ..write_header()
            },
            b""
        ),
        WireError::Status(5)
    ));
    assert!(writer.get_mut().is_empty());
    writer.write_frame(&write_header(), 0, &[&data[1..]]).unwrap();
    assert_eq!(PLAIN.read(writer.get_mut()).unwrap(), 1);

    let mut server = FrameWriter::new(Vec::new(), Side::Server);
    let failed = Header {
        status: 5,
        ..Header::request(Kind::Read, 1).reply()
    };
    assert!(matches!(
        server.write_frame(&failed, 0, &[b"x"]),
        Err(WireError::Length { most: 0, .. })
    ));
    let failed = Header {
        status: 512,
        ..failed
    };
    assert!(matches!(
        server.write_frame(&failed, 0, &[]),
        Err(WireError::Status(512))
    ));
    let forgot = Header::request(Kind::Forget, 1).reply();
    assert!(matches!(
        server.write_frame(&forgot, 0, &[]),
        Err(WireError::NoReply(Kind::Forget))
    ));
}
