// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same bytes without a file system: an application that receives them from a socket by itself, from the
//! server of the suite `sections`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use crate::party::Party;
use crate::sections::frame::{self, Address, META, Message, Operation};
use crate::sections::server::Listening;

pub struct Transport {
    server: Party,
    socket: OwnedFd,
}

impl Transport {
    pub fn new(base: &Path) -> Result<Self> {
        let socket = base.join("transport.socket");
        let arguments = ["sections-server", socket.to_str().context("not UTF-8")?];
        let (server, Listening { port }) = Party::start("server", &arguments)?;
        let socket = Address::Tcp(port).connect()?;
        Ok(Self { server, socket })
    }

    /// Asks for `asked` bytes, and receives them in pieces as long as `buffer`.
    pub fn read(&self, asked: usize, buffer: &mut [u8]) -> Result<()> {
        let message = Message {
            operation: Operation::Read,
            length: asked,
        };
        let socket = self.socket.as_fd();
        frame::send(socket, &[IoSlice::new(&message.bytes())])?;
        let (mut header, mut footer) = ([0; META], [0; META]);
        if asked == buffer.len() {
            let mut parts = [&mut header[..], buffer, &mut footer[..]].map(IoSliceMut::new);
            ensure!(frame::receive(socket, &mut parts)?, "the server has ended");
            return Ok(message.expect(&header)?);
        }
        frame::receive_exact(socket, &mut header)?;
        message.expect(&header)?;
        for _ in 0..asked / buffer.len() {
            frame::receive_exact(socket, buffer)?;
        }
        Ok(frame::receive_exact(socket, &mut footer)?)
    }

    /// Sends `payload`, and waits until it is there.
    pub fn write(&self, payload: &[u8]) -> Result<()> {
        let message = |operation| Message {
            operation,
            length: payload.len(),
        };
        let (header, footer) = (message(Operation::Write).header(), frame::footer(0));
        let socket = self.socket.as_fd();
        frame::send(socket, &[&header, payload, &footer].map(IoSlice::new))?;
        let mut written = [0; frame::MESSAGE];
        frame::receive_exact(socket, &mut written)?;
        Ok(message(Operation::Written).expect(&written)?)
    }

    pub fn server(&self) -> Pid {
        self.server.pid()
    }

    pub fn end(self) -> Result<()> {
        drop(self.socket);
        self.server.end()
    }
}
