// SPDX-License-Identifier: MIT OR Apache-2.0
//! READs: what a file holds, and its CRC.
//!
//! On a connection for data a payload whose CRC is [known](super::sums) goes from the file to the socket without being looked
//! at, if the client says that it may: it finds out if something else has gone, and asks again, without saying so.

use std::ops::Range;
use std::time::SystemTime;

use fuser::FileHandle;
use nix::errno::Errno;

use super::session::{Session, reply_to};
use super::sums::{Chunks, Mark};
use super::version::version;
use crate::abi::NodeId;
use crate::fs::stack::OpenFile;
use crate::remote::wire::{Flags, Header, WireError};

/// From how many bytes on: over TCP 8 KiB cost more instructions so, at both ends, than when they are looked at (92 000
/// for 83 000), 16 KiB cost fewer (98 000 for 104 000), 128 KiB half (228 000 for 449 000). Over a Unix socket it would pay
/// from less on.
const SENDS_FROM: u64 = 16 << 10;

impl Session<'_> {
    /// The version of the node after it was read, for a client that knows one: if it is that, it was that all the
    /// time since.
    fn version_if_known(&self, header: &Header) -> u64 {
        match header.file_version {
            0 => 0,
            _ => {
                let now = SystemTime::now();
                let attr = self.common.stack.getattr(NodeId(header.node));
                attr.map_or(0, |attr| version(&(&attr).into(), now))
            }
        }
    }

    /// Answers a READ; whether the answer may be kept is known.
    pub fn read(&self, header: &Header, size: u32, keep: bool) -> Result<(), WireError> {
        let refuse = |errno: Errno| self.refuse(header, errno as u32, false);
        let file = match header.handle {
            0 => self.common.stack.file_of(NodeId(header.node)),
            handle => self.common.stack.file(FileHandle(handle)),
        };
        let file = match file {
            Ok(file) => file,
            Err(errno) => return refuse(errno),
        };
        let mark = if self.line.sends_files {
            Mark::of(&file)
        } else {
            None
        };
        if let Some(mark) = &mark
            && header.flags.contains(Flags::KNOWN_CRC)
            && let Some(range) = mark.range(header.offset, size)
            && range.end - range.start >= SENDS_FROM
            && let Some(crc) = self.shared.sums.get(mark, &range)
        {
            return self.send_known(header, keep, (&*file, mark), range, crc);
        }
        // Its bytes go from the file's buffer to the stream.
        let sent = file.read(header.offset, size, |bytes| {
            let crc = match &mark {
                Some(mark) => {
                    let chunks = Chunks::of(bytes);
                    if Mark::of(&file).as_ref() == Some(mark) {
                        let length = bytes.len() as u64;
                        self.shared.sums.keep(mark, header.offset, length, &chunks);
                    }
                    chunks.crc
                }
                None => crc32c::crc32c(bytes),
            };
            let version = self.version_if_known(header);
            self.line.send_data(&reply_to(header, keep), version, crc, bytes)
        });
        sent.unwrap_or_else(refuse)
    }

    /// The same, where these bytes have that CRC unless somebody changes them in a way that does not show.
    fn send_known(
        &self,
        header: &Header,
        keep: bool,
        (file, mark): (&OpenFile, &Mark),
        range: Range<u64>,
        crc: u32,
    ) -> Result<(), WireError> {
        let reply = Header {
            // A range of a READ: its size is 32 bits.
            length: (range.end - range.start) as u32,
            ..reply_to(header, keep)
        };
        let version = self.version_if_known(header);
        let right = || Mark::of(file).as_ref() == Some(mark);
        self.line.send_file(&reply, version, crc, |stream, frame| {
            stream.send_file(frame, file, range, right)
        })
    }
}
