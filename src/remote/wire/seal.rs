// SPDX-License-Identifier: MIT OR Apache-2.0
//! What keeps a frame whole: made by one end, checked by the other.
//!
//! The signature covers the frame's place in its direction, which is not sent, the header, the footer up to
//! the signature, and the payload if that is a message. Data is covered by its CRC32C only: the
//! kernel moves it without the daemon, and counts the CRC on the way. That finds every accident, and no
//! forger: see `docs/protocol.md`.

use blake3::{Hash, Hasher};
use crc32c::crc32c_append;

use super::message::{Shape, payload_limit};
use super::{Footer, Header, SessionKey, Side, Sizes, WireError};

/// What is known of a payload.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// All of it, in pieces.
    Bytes(&'a [&'a [u8]]),
    /// The CRC32C of as many bytes of data as the header says; somebody else moves them.
    Crc(u32),
}

impl Body<'_> {
    fn crc(&self) -> u32 {
        match self {
            Self::Bytes(pieces) => pieces.iter().fold(0, |crc, piece| crc32c_append(crc, piece)),
            Self::Crc(crc) => *crc,
        }
    }

    /// What of it is signed.
    fn signed(&self, header: &Header) -> Result<&[&[u8]], WireError> {
        let limit = payload_limit(header.kind, header.is_reply());
        let is_message = limit.is_some_and(|limit| limit.shape == Shape::Message);
        match self {
            Self::Bytes(pieces) => {
                let length = pieces.iter().map(|piece| piece.len() as u64).sum();
                if length != u64::from(header.length) {
                    return Err(WireError::Payload {
                        header: header.length,
                        payload: length,
                    });
                }
                Ok(if is_message { pieces } else { &[] })
            }
            Self::Crc(_) if is_message => Err(WireError::NotData(header.kind)),
            Self::Crc(_) => Ok(&[]),
        }
    }
}

/// One direction of a connection: who sends, in frames of which size, with which key, and how many there were.
#[derive(Clone)]
struct Direction {
    from: Side,
    sizes: Sizes,
    key: Option<[u8; 32]>,
    /// Frames since there is a key. 2^64 of them pass over no connection.
    frames: u64,
}

impl Direction {
    fn new(from: Side) -> Self {
        Self {
            from,
            sizes: Sizes::default(),
            key: None,
            frames: 0,
        }
    }

    fn sign_with(&mut self, key: &SessionKey) {
        (self.key, self.frames) = (Some(key.of(self.from)), 0);
    }

    fn check(&self, header: &Header) -> Result<(), WireError> {
        if header.sender() != self.from {
            return Err(WireError::Direction {
                kind: header.kind,
                side: self.from,
            });
        }
        Ok(())
    }

    /// Everything in it has one length only, or is preceded by it: no two frames give the same input.
    fn signature(&self, header: &[u8], footer: &Footer, payload: &[&[u8]]) -> Option<Hash> {
        let mut hasher = Hasher::new_keyed(self.key.as_ref()?);
        hasher.update(&self.frames.to_le_bytes());
        hasher.update(header);
        hasher.update(&footer.signed());
        for piece in payload {
            hasher.update(piece);
        }
        Some(hasher.finalize())
    }
}

/// A header and a footer, ready to be sent.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// In front of the payload.
    pub header: Vec<u8>,
    /// Behind it.
    pub footer: Vec<u8>,
}

/// Makes the headers and footers of the frames that one end sends. They have to be sent in the order they
/// were made in, each once.
#[derive(Clone)]
pub struct Sealer(Direction);

impl Sealer {
    /// Of the frames that `from` sends; in the smallest frames, and without a key.
    #[must_use]
    pub fn new(from: Side) -> Self {
        Self(Direction::new(from))
    }

    /// From the next frame on: headers and footers of these sizes.
    pub fn set_sizes(&mut self, sizes: Sizes) {
        self.0.sizes = sizes;
    }

    /// From the next frame on: signed.
    pub fn sign_with(&mut self, key: &SessionKey) {
        self.0.sign_with(key);
    }

    /// Header and footer of this payload; `file_version` is the footer's.
    ///
    /// # Errors
    ///
    /// Those of [`Header::encode`]; [`WireError::Direction`], [`WireError::Payload`],
    /// [`WireError::NotData`]. Then the frame does not count.
    pub fn seal(&mut self, header: &Header, file_version: u64, body: Body<'_>) -> Result<Sealed, WireError> {
        self.0.check(header)?;
        let payload = body.signed(header)?;
        let bytes = header.encode(self.0.sizes.header())?;
        let mut footer = Footer {
            payload_crc: body.crc(),
            request: header.request,
            file_version,
            signature: [0; 32],
        };
        if let Some(signature) = self.0.signature(&bytes, &footer, payload) {
            footer.signature = signature.into();
        }
        let footer = footer.encode(self.0.sizes.footer())?;
        self.0.frames = self.0.frames.wrapping_add(1);
        Ok(Sealed {
            header: bytes,
            footer,
        })
    }
}

/// Checks the frames that one end has sent, in the order they came in.
#[derive(Clone)]
pub struct Verifier(Direction);

impl Verifier {
    /// Of the frames that `from` sends; in the smallest frames, and without a key.
    #[must_use]
    pub fn new(from: Side) -> Self {
        Self(Direction::new(from))
    }

    /// From the next frame on: headers and footers of these sizes.
    pub fn set_sizes(&mut self, sizes: Sizes) {
        self.0.sizes = sizes;
    }

    /// The sizes of headers and footers.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    /// From the next frame on: refuses what is not signed.
    pub fn sign_with(&mut self, key: &SessionKey) {
        self.0.sign_with(key);
    }

    /// What a header says. It is only known to be undamaged: who sent it shows at the footer, and what the
    /// payload is moved to must not be used before that.
    ///
    /// # Errors
    ///
    /// Those of [`Header::decode`]; [`WireError::Direction`].
    pub fn header(&self, bytes: &[u8]) -> Result<Header, WireError> {
        if bytes.len() != self.0.sizes.header() {
            return Err(WireError::Size(bytes.len()));
        }
        let header = Header::decode(bytes)?;
        self.0.check(&header)?;
        Ok(header)
    }

    /// The footer of a frame, if all of the frame is what was sent, and sent at this place.
    ///
    /// # Errors
    ///
    /// Those of [`header`](Self::header) and [`Footer::decode`]; whatever does not fit together.
    pub fn verify(&mut self, header: &[u8], body: Body<'_>, footer: &[u8]) -> Result<Footer, WireError> {
        let fields = self.header(header)?;
        let payload = body.signed(&fields)?;
        if footer.len() != self.0.sizes.footer() {
            return Err(WireError::Size(footer.len()));
        }
        let footer = Footer::decode(footer)?;
        if footer.request != fields.request {
            return Err(WireError::Request {
                header: fields.request,
                footer: footer.request,
            });
        }
        if footer.payload_crc != body.crc() {
            return Err(WireError::PayloadCrc);
        }
        let unsigned = footer.signature == [0; 32];
        match self.0.signature(header, &footer, payload) {
            None if !unsigned => return Err(WireError::NoKey),
            Some(_) if unsigned => return Err(WireError::Unsigned),
            // Hashes compare in constant time.
            Some(signature) if signature != footer.signature => return Err(WireError::Signature),
            _ => {}
        }
        self.0.frames = self.0.frames.wrapping_add(1);
        Ok(footer)
    }
}

macro_rules! without_key {
    ($($name:ident)*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("from", &self.0.from)
                    .field("sizes", &self.0.sizes)
                    .field("signed", &self.0.key.is_some())
                    .field("frames", &self.0.frames)
                    .finish()
            }
        }
    )*};
}

without_key!(Sealer Verifier);
