// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in front of a payload.

use crc32c::crc32c;
use nix::errno::Errno;

use super::message::payload_limit;
use super::sizes::{LARGEST, SMALLEST};
use super::{Flags, Kind, Side, VERSION, WireError, field};

const MAGIC: [u8; 4] = *b"XFRh";

/// The checksum of the header: behind the fields and the zeros that fill the smallest size up.
const CRC: usize = SMALLEST as usize - 4;

/// The largest errno that a FUSE file system may answer (`fuse_dev_do_write`).
const LARGEST_ERRNO: u32 = 511;

/// The fields of a header. What a kind of frame has no use for is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// What else it is.
    pub flags: Flags,
    /// In a reply: 0, or the errno that the request failed with. Such a reply has no payload.
    pub status: u32,
    /// Number of the request; a reply has its request's.
    pub request: u64,
    /// The node it is about.
    pub node: u64,
    /// The open file or directory it is about.
    pub handle: u64,
    /// Where in the file or listing. In a reply, the number that the operation gives: bytes written or copied,
    /// the offset found, the size of an attribute's value or of the list of names.
    pub offset: u64,
    /// The version of the file that the sender knew before the operation.
    pub file_version: u64,
    /// Bytes of payload.
    pub length: u32,
}

impl Header {
    /// A request without more.
    #[must_use]
    pub fn request(kind: Kind, request: u64) -> Self {
        Self {
            kind,
            flags: Flags::empty(),
            status: 0,
            request,
            node: 0,
            handle: 0,
            offset: 0,
            file_version: 0,
            length: 0,
        }
    }

    /// The reply to this request: same kind, same node and handle; done, if nobody says otherwise.
    #[must_use]
    pub fn reply(&self) -> Self {
        Self {
            flags: Flags::REPLY,
            node: self.node,
            handle: self.handle,
            ..Self::request(self.kind, self.request)
        }
    }

    /// Whether it answers.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags.contains(Flags::REPLY)
    }

    /// Whether it answers that request: same kind, number, node and handle.
    #[must_use]
    pub fn is_reply_to(&self, asked: &Self) -> bool {
        let of = |header: &Self| (header.kind, header.request, header.node, header.handle);
        self.is_reply() && of(self) == of(asked)
    }

    /// Its status as an error; `EIO` where it is none that Linux knows. None if all went well.
    #[must_use]
    pub fn error(&self) -> Option<Errno> {
        let errno = i32::try_from(self.status).map_or(Errno::EIO, Errno::from_raw);
        (self.status != 0).then_some(match errno {
            Errno::UnknownErrno => Errno::EIO,
            errno => errno,
        })
    }

    /// Who sends such a frame.
    #[must_use]
    pub fn sender(&self) -> Side {
        match (self.kind.sender(), self.is_reply()) {
            (Side::Client, false) | (Side::Server, true) => Side::Client,
            _ => Side::Server,
        }
    }

    /// As `size` bytes.
    ///
    /// # Errors
    ///
    /// [`WireError::Size`]; those of [`decode`](Self::decode) for fields that it would refuse.
    pub fn encode(&self, size: usize) -> Result<Vec<u8>, WireError> {
        if !(SMALLEST.into()..=LARGEST.into()).contains(&size) {
            return Err(WireError::Size(size));
        }
        self.check()?;
        let mut bytes = Vec::with_capacity(size);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.kind as u16).to_le_bytes());
        bytes.extend(self.flags.bits().to_le_bytes());
        bytes.extend(self.status.to_le_bytes());
        for word in [
            self.request,
            self.node,
            self.handle,
            self.offset,
            self.file_version,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.length.to_le_bytes());
        bytes.resize(CRC, 0);
        bytes.extend(crc32c(&bytes).to_le_bytes());
        bytes.resize(size, 0);
        Ok(bytes)
    }

    /// The fields of these bytes, all of which are the header. Nothing in them is believed before the
    /// checksum has been compared.
    ///
    /// # Errors
    ///
    /// What [`WireError`] says of headers, and of lengths.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (fields, crc) = (bytes.get(..CRC).ok_or(WireError::Truncated)?, field(bytes, CRC)?);
        if field(fields, 0)? != MAGIC {
            return Err(WireError::HeaderMagic);
        }
        if crc32c(fields) != u32::from_le_bytes(crc) {
            return Err(WireError::HeaderCrc);
        }
        let version = u16::from_le_bytes(field(fields, 4)?);
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let zeros = fields.iter().skip(60).chain(bytes.iter().skip(CRC + 4));
        if zeros.copied().any(|byte| byte != 0) {
            return Err(WireError::Reserved);
        }
        let flags = u32::from_le_bytes(field(fields, 8)?);
        let word = |at| field(fields, at).map(u64::from_le_bytes);
        let header = Self {
            kind: Kind::try_from(u16::from_le_bytes(field(fields, 6)?))?,
            flags: Flags::from_bits(flags).ok_or(WireError::Flags(flags))?,
            status: u32::from_le_bytes(field(fields, 12)?),
            request: word(16)?,
            node: word(24)?,
            handle: word(32)?,
            offset: word(40)?,
            file_version: word(48)?,
            length: u32::from_le_bytes(field(fields, 56)?),
        };
        header.check()?;
        Ok(header)
    }

    /// What holds for every header, whoever made it.
    fn check(&self) -> Result<(), WireError> {
        let request_keeps = self.flags.contains(Flags::KEEP) && !self.is_reply();
        if Flags::from_bits(self.flags.bits()).is_none() || request_keeps {
            return Err(WireError::Flags(self.flags.bits()));
        }
        if self.status > LARGEST_ERRNO || self.status != 0 && !self.is_reply() {
            return Err(WireError::Status(self.status));
        }
        let limit = payload_limit(self.kind, self.is_reply()).ok_or(WireError::NoReply(self.kind))?;
        let most = if self.status == 0 { limit.most } else { 0 };
        if self.length > most {
            return Err(WireError::Length {
                kind: self.kind,
                length: self.length.into(),
                most,
            });
        }
        Ok(())
    }
}
