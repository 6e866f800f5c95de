// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client that asks one thing after the other, whatever it likes.

use std::io::{ErrorKind, Read as _};

use extfuse::remote::wire::message::{Hello, Lookup, Open, SessionId, Versions, Wanted};
use extfuse::remote::wire::{
    Export, Flags, FrameReader, FrameWriter, Header, Name, Reply, Request, Side, Sizes, WireError,
};
use extfuse::remote::{Address, Stream};
use nix::errno::Errno;

use crate::common::PATIENCE;

/// Node and handle, 0 where there is none.
pub type Of = (u64, u64);

pub struct Line {
    pub stream: Stream,
    next: u64,
}

impl Line {
    /// The connection, and what became of its greeting.
    pub fn greet(address: &Address, session: Wanted) -> (Self, Result<SessionId, Errno>) {
        Self::greet_and(address, session, false)
    }

    /// The same, of a client that keeps what it is told, or does not.
    pub fn greet_and(address: &Address, session: Wanted, keeps: bool) -> (Self, Result<SessionId, Errno>) {
        let mut line = Self {
            stream: address.connect(PATIENCE).unwrap(),
            next: 0,
        };
        let hello = Request::Hello(Hello {
            versions: Versions { min: 1, max: 1 },
            sizes: Sizes::default(),
            nonce: [1; 32],
            export: Export::new("").unwrap(),
            session,
            keeps,
        });
        let said = line.ask((0, 0), &hello).map(|(header, payload)| {
            match Reply::decode(&header, &payload).unwrap() {
                Reply::Hello(hello) => hello.session,
                other => panic!("{other:?}"),
            }
        });
        (line, said)
    }

    /// One of its own session.
    pub fn new(address: &Address) -> (Self, SessionId) {
        let (line, session) = Self::greet(address, Wanted::New);
        (line, session.unwrap())
    }

    pub fn send(&mut self, of: Of, request: &Request<'_>) {
        self.send_at(of, 0, Flags::empty(), request);
    }

    pub fn send_at(&mut self, (node, handle): Of, offset: u64, flags: Flags, request: &Request<'_>) {
        self.next += 1;
        let header = Header {
            flags,
            node,
            handle,
            offset,
            ..Header::request(request.kind(), self.next)
        };
        FrameWriter::new(&self.stream, Side::Client)
            .write_frame(&header, 0, &[&request.payload().unwrap()])
            .unwrap();
    }

    /// The next frame of the server.
    pub fn receive(&mut self) -> Result<(Header, Vec<u8>), WireError> {
        let mut payload = Vec::new();
        let mut reader = FrameReader::new(&self.stream, Side::Server);
        let frame = reader.read_frame(&mut payload)?;
        let header = frame.ok_or(WireError::Truncated)?.header;
        payload.truncate(header.length as usize);
        Ok((header, payload))
    }

    pub fn ask(&mut self, of: Of, request: &Request<'_>) -> Result<(Header, Vec<u8>), Errno> {
        self.send(of, request);
        let (header, payload) = self.receive().unwrap();
        assert_eq!(header.request, self.next);
        header.error().map_or(Ok((header, payload)), Err)
    }

    /// Node of a file of the root.
    pub fn lookup(&mut self, name: &str) -> Result<u64, Errno> {
        let name = Name::new(name.as_bytes()).unwrap();
        let (header, payload) = self.ask((1, 0), &Request::Lookup(Lookup { name }))?;
        let Reply::Lookup(entry) = Reply::decode(&header, &payload).unwrap() else {
            unreachable!()
        };
        Ok(entry.node)
    }

    /// Node and handle of a file of the root.
    pub fn open(&mut self, name: &str) -> Of {
        let node = self.lookup(name).unwrap();
        let open = Request::Open(Open { flags: 0 });
        let (header, payload) = self.ask((node, 0), &open).unwrap();
        let Reply::Open(opened) = Reply::decode(&header, &payload).unwrap() else {
            unreachable!()
        };
        (node, opened.handle)
    }

    /// Whether the server has closed it, or does so now.
    pub fn is_closed(&self) -> bool {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        match (&self.stream).read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}
