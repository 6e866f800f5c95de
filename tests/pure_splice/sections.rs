// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sections: the payload to one place, header and footer to another.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;

use extfuse::splice::{BufFlags, CopyFlags, FuseBuf, FuseBufVec, SectionEnded, copy};
use nix::unistd::pipe;
use proptest::prelude::*;

use super::{Kind, NONE, WAYS, arrived, given, nonblocking, pattern, room, small, vec};

/// Header, payload, footer.
type Sizes = (usize, usize, usize);

fn frame(seed: usize, (header, payload, footer): Sizes) -> Vec<u8> {
    pattern(seed, header + payload + footer)
}

fn ended(result: io::Result<usize>) -> SectionEnded {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    *error.into_inner().unwrap().downcast().unwrap()
}

fn section_of(kind: Kind, bytes: &[u8], (header, payload, footer): Sizes) -> FuseBuf<'static> {
    let mut buf = given(kind, bytes, bytes.len()).buf;
    let flags = buf.flags.difference(BufFlags::FD_RETRY);
    let section = FuseBuf::section(buf.fd.take().unwrap(), header, payload, footer);
    let mut section = section.with(flags);
    section.pos = buf.pos;
    section
}

/// A frame from one kind of source to one kind of destination, as a section there if it is one.
fn through(from: Kind, to: Kind, sizes: Sizes, as_section: bool, flags: CopyFlags) {
    let (header, payload, footer) = sizes;
    let bytes = frame(4, sizes);
    let mut src = FuseBufVec::from(section_of(from, &bytes, sizes));
    let (head, foot) = (pattern(5, header / 2), pattern(6, footer * 2));
    let (mut buf, found) = room(to, payload);
    let as_section = as_section && to != Kind::Memory;
    if as_section {
        let (fd, pos, old) = (buf.fd.take().unwrap(), buf.pos, buf.flags);
        buf = FuseBuf::section_between(fd, &head, payload, &foot).with(old);
        buf.pos = pos;
    }
    let mut dst = FuseBufVec::from(buf);
    let what = format!("{from:?} -> {to:?} {sizes:?} {as_section} {flags:?}");
    assert_eq!(copy(&mut dst, &mut src, flags).unwrap(), payload, "{what}");
    assert!(src.is_done() && dst.is_done(), "{what}");
    let section = src.get(0).unwrap();
    assert_eq!(section.arrived(), (header, footer), "{what}");
    assert!(section.header_bytes() == &bytes[..header], "{what}");
    assert!(section.footer_bytes() == &bytes[header + payload..], "{what}");
    let mut expected = bytes[header..header + payload].to_vec();
    if as_section {
        expected = [head, expected, foot].concat();
    }
    assert!(arrived(dst, [found].into())[0] == expected, "{what}");
}

const SOURCES: [Kind; 6] = [
    Kind::File,
    Kind::Stream,
    Kind::Pipe,
    Kind::Tiny,
    Kind::Socket,
    Kind::Drip,
];
const ROOMS: [Kind; 8] = [
    Kind::Memory,
    Kind::File,
    Kind::Stream,
    Kind::Append,
    Kind::Pipe,
    Kind::Tiny,
    Kind::Socket,
    Kind::Memfd,
];

#[test]
fn every_kind_of_section() {
    for from in SOURCES {
        for to in ROOMS {
            for as_section in [false, true] {
                for sizes in [(0, 0, 0), (3, 0, 2), (0, 5, 0), (102, 5000, 102), (5000, 1, 4097)] {
                    through(from, to, sizes, as_section, NONE);
                }
                through(from, to, (7, 600, 3), as_section, CopyFlags::NO_SPLICE);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sections_up_to_the_largest(
        from in proptest::sample::select(&SOURCES[..5]),
        to in proptest::sample::select(&ROOMS[..]),
        header in prop_oneof![0..300usize, 0..=65536usize],
        payload in prop_oneof![0..10_000usize, 0..=1usize << 20],
        footer in prop_oneof![0..300usize, 0..=65536usize],
        as_section: bool,
        way in 0..3usize,
    ) {
        through(from, to, (header, payload, footer), as_section, WAYS[way]);
    }

    /// Sections and memory, from one socket to one row of rooms.
    #[test]
    fn rows_of_sections(
        sections in proptest::collection::vec((0..20usize, 0..50usize, 0..20usize), 1..6),
        cuts in proptest::collection::vec(0..40usize, 1..8),
    ) {
        let (near, mut far) = UnixStream::pair().unwrap();
        let fd = std::sync::Arc::new(OwnedFd::from(near));
        let (mut src, mut sent, mut payloads) = (FuseBufVec::new(), Vec::new(), Vec::new());
        for (i, &sizes) in sections.iter().enumerate() {
            let bytes = frame(i, sizes);
            payloads.extend_from_slice(&bytes[sizes.0..sizes.0 + sizes.1]);
            sent.extend(bytes);
            src.push(FuseBuf::section(fd.clone(), sizes.0, sizes.1, sizes.2));
            payloads.push(0x55);
            src.push(FuseBuf::owned(vec![0x55]));
        }
        far.write_all(&sent).unwrap();
        drop(far);
        let mut dst: FuseBufVec = cuts.iter().map(|&size| FuseBuf::owned(vec![0; size])).collect();
        let expected = payloads.len().min(cuts.iter().sum());
        prop_assert_eq!(copy(&mut dst, &mut src, NONE).unwrap(), expected);
        let got: Vec<u8> = dst.iter().flat_map(|buf| buf.mem.as_slice().unwrap().to_vec()).collect();
        prop_assert_eq!(&got[..expected], &payloads[..expected]);
        let mut at = 0;
        for (i, &(header, payload, footer)) in sections.iter().enumerate() {
            let buf = src.get(2 * i).unwrap();
            let bytes = &sent[at..at + header + payload + footer];
            if src.idx > 2 * i {
                prop_assert_eq!(buf.header_bytes(), &bytes[..header]);
                prop_assert_eq!(buf.footer_bytes(), &bytes[header + payload..]);
            } else {
                prop_assert_eq!(buf.arrived().1, 0);
            }
            at += bytes.len();
        }
    }
}

#[test]
fn a_source_that_ends_inside_a_section_says_where() {
    let sizes @ (header, payload, footer) = (3, 4, 2);
    let bytes = frame(1, sizes);
    for kind in SOURCES {
        for to in [Kind::Memory, Kind::File, Kind::Pipe, Kind::Socket] {
            for cut in 0..bytes.len() {
                let mut src = FuseBufVec::from(section_of(kind, &bytes[..cut], sizes));
                let mut dst = FuseBufVec::from(room(to, payload).0);
                let some = cut.saturating_sub(header).min(payload);
                if some > 0 {
                    assert_eq!(copy(&mut dst, &mut src, NONE).unwrap(), some);
                }
                assert!(!src.is_done());
                let how = SectionEnded {
                    header: cut.min(header),
                    payload: some,
                    footer: cut.saturating_sub(header + payload).min(footer),
                };
                assert_eq!(
                    ended(copy(&mut dst, &mut src, NONE)),
                    how,
                    "{kind:?} {to:?} {cut}"
                );
                assert_eq!(src.off, some);
            }
        }
    }
}

#[test]
fn a_section_waits_for_each_of_its_bytes() {
    let sizes @ (header, payload, footer) = (3, 5, 2);
    let bytes = frame(2, sizes);
    for flags in WAYS {
        for to in [Kind::Memory, Kind::File, Kind::Socket, Kind::Pipe] {
            let (near, mut far) = UnixStream::pair().unwrap();
            nonblocking(&near);
            let mut src = FuseBufVec::from(FuseBuf::section(OwnedFd::from(near), header, payload, footer));
            let (buf, found) = room(to, payload);
            let mut dst = FuseBufVec::from(buf);
            for (i, byte) in bytes.iter().enumerate() {
                let again = copy(&mut dst, &mut src, flags).unwrap_err();
                assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
                far.write_all(&[*byte]).unwrap();
                if i + 1 < bytes.len() {
                    let moved = copy(&mut dst, &mut src, flags);
                    if (header..header + payload).contains(&i) {
                        assert_eq!(moved.unwrap(), 1);
                    } else {
                        assert_eq!(moved.unwrap_err().kind(), io::ErrorKind::WouldBlock);
                    }
                }
            }
            assert_eq!(copy(&mut dst, &mut src, flags).unwrap(), 0);
            assert!(src.is_done());
            assert_eq!(src.get(0).unwrap().footer_bytes(), &bytes[header + payload..]);
            assert_eq!(arrived(dst, [found].into())[0], bytes[header..header + payload]);
        }
    }
}

/// A destination section that gets stuck anywhere goes on there.
#[test]
fn a_full_pipe_holds_up_a_section_without_repeating_it() {
    let (head, data, foot) = (pattern(1, 3000), pattern(2, 20_000), pattern(3, 5000));
    for flags in WAYS {
        let (read, write) = pipe().unwrap();
        small(&write);
        nonblocking(&write);
        nonblocking(&read);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&data, 0).unwrap();
        let mut src = vec([FuseBuf::file(&file, 0, data.len())]);
        let mut dst = vec([FuseBuf::section_between(write, &head, data.len(), &foot)]);
        let mut reader = File::from(read);
        let (mut got, mut copied, mut some) = (Vec::new(), 0, [0; 1000]);
        while !dst.is_done() {
            match copy(&mut dst, &mut src, flags) {
                Ok(n) => copied += n,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let n = io::Read::read(&mut reader, &mut some).unwrap();
            got.extend_from_slice(&some[..n]);
        }
        drop(dst);
        io::Read::read_to_end(&mut reader, &mut got).unwrap();
        assert_eq!(copied, data.len());
        assert!(got == [&head[..], &data, &foot].concat(), "{flags:?}");
    }
}

/// The header of the next section is not waited for while nobody has room for its payload.
#[test]
fn a_section_is_begun_only_when_its_payload_has_somewhere_to_go() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"HpayF").unwrap();
    let fd = std::sync::Arc::new(OwnedFd::from(near));
    let mut src = vec([
        FuseBuf::section(fd.clone(), 1, 3, 1),
        FuseBuf::section(fd, 1, 3, 1),
    ]);
    let mut dst = vec([FuseBuf::owned(vec![0; 3])]);
    let copied = thread::spawn(move || (copy(&mut dst, &mut src, NONE).unwrap(), src.idx));
    assert_eq!(copied.join().unwrap(), (3, 1));
}

#[test]
fn a_section_is_sent_only_when_there_is_payload_for_it() {
    use std::io::Read;

    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let mut dst = vec([FuseBuf::section_between(&near, b"head", 4, b"foot")]);
    let mut bytes = [0; 20];
    assert_eq!(copy(&mut dst, &mut FuseBufVec::new(), NONE).unwrap(), 0);
    assert_eq!(dst.get(0).unwrap().arrived(), (0, 0));
    assert_eq!(
        far.read(&mut bytes).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert_eq!(
        copy(&mut dst, &mut vec([FuseBuf::memory(b"DATA")]), NONE).unwrap(),
        4
    );
    assert!(dst.is_done());
    assert_eq!(far.read(&mut bytes).unwrap(), 12);
    assert_eq!(&bytes[..12], b"headDATAfoot");
}
