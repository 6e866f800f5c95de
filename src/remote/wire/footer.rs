// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is behind a payload.

use crc32c::crc32c;

use super::sizes::{LARGEST, SMALLEST};
use super::{WireError, field};

const MAGIC: [u8; 4] = *b"XFRf";

/// What the signature covers: all in front of it.
pub(super) const SIGNED: usize = 24;

/// The checksum of the footer: behind the fields and the zeros that fill the smallest size up.
const CRC: usize = SMALLEST as usize - 4;

/// The fields of a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// The header's number.
    pub request: u64,
    /// The version of the file after the operation; 0 if there is none to tell.
    pub file_version: u64,
    /// Keyed BLAKE3; zeros without a key.
    pub signature: [u8; 32],
}

impl Footer {
    /// As `size` bytes.
    ///
    /// # Errors
    ///
    /// [`WireError::Size`].
    pub fn encode(&self, size: usize) -> Result<Vec<u8>, WireError> {
        if !(SMALLEST.into()..=LARGEST.into()).contains(&size) {
            return Err(WireError::Size(size));
        }
        let mut bytes = Vec::with_capacity(size);
        bytes.extend(self.signed());
        bytes.extend(self.signature);
        bytes.resize(CRC, 0);
        bytes.extend(crc32c(&bytes).to_le_bytes());
        bytes.resize(size, 0);
        Ok(bytes)
    }

    /// The fields in front of the signature.
    pub(super) fn signed(&self) -> [u8; SIGNED] {
        let mut bytes = [0; SIGNED];
        let crc = self.payload_crc.to_le_bytes();
        let (request, version) = (self.request.to_le_bytes(), self.file_version.to_le_bytes());
        let fields = MAGIC.into_iter().chain(crc).chain(request).chain(version);
        for (byte, field) in bytes.iter_mut().zip(fields) {
            *byte = field;
        }
        bytes
    }

    /// The fields of these bytes, all of which are the footer.
    ///
    /// # Errors
    ///
    /// What [`WireError`] says of footers.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (fields, crc) = (bytes.get(..CRC).ok_or(WireError::Truncated)?, field(bytes, CRC)?);
        if field(fields, 0)? != MAGIC {
            return Err(WireError::FooterMagic);
        }
        if crc32c(fields) != u32::from_le_bytes(crc) {
            return Err(WireError::FooterCrc);
        }
        let zeros = fields.iter().skip(SIGNED + 32).chain(bytes.iter().skip(CRC + 4));
        if zeros.copied().any(|byte| byte != 0) {
            return Err(WireError::Reserved);
        }
        Ok(Self {
            payload_crc: u32::from_le_bytes(field(fields, 4)?),
            request: u64::from_le_bytes(field(fields, 8)?),
            file_version: u64::from_le_bytes(field(fields, 16)?),
            signature: field(fields, SIGNED)?,
        })
    }
}
