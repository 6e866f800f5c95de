// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is wrong with a frame or a message.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

use super::sizes::{LARGEST, SMALLEST};
use super::{Kind, Side, VERSION};

/// Why something could not be sent, or what arrived was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WireError {
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The stream has a time limit, and no frame began within it.
    #[error("nothing arrived in time")]
    Idle,
    /// The stream, or the memory it was read into, ends within a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// A frame before this one was not whole, so nobody knows where the next begins.
    #[error("the connection is of no more use: a frame before this one broke off or was refused")]
    Broken,
    /// Not a header at all.
    #[error("no frame begins here: the other end does not speak this protocol, or not from this offset on")]
    HeaderMagic,
    /// A header that was changed on its way.
    #[error("a frame's header was damaged on its way")]
    HeaderCrc,
    /// Another version of the protocol.
    #[error("the frame is of version {0} of the protocol, and version {VERSION} was agreed on")]
    Version(u16),
    /// A kind of frame that does not exist.
    #[error("there are no frames of kind {0}: the other end does not keep to the protocol")]
    Kind(u16),
    /// Flags that do not exist.
    #[error("there are no flags {0:#x}: the other end does not keep to the protocol")]
    Flags(u32),
    /// A reply to what is never replied to.
    #[error("{0:?} has no reply: the other end does not keep to the protocol")]
    NoReply(Kind),
    /// An error that is none, or one where none can be.
    #[error("status {0} is not allowed here: the other end does not keep to the protocol")]
    Status(u32),
    /// Bytes that have to be zero are not.
    #[error("bytes that must be zero are not: damaged, or the other end expects frames of another size")]
    Reserved,
    /// More payload than such a frame can have.
    #[error("{length} bytes of payload are too much for {kind:?}, which has at most {most}")]
    Length {
        /// The frame.
        kind: Kind,
        /// Its payload, or as much of it as there was a need to look at.
        length: u64,
        /// What is allowed.
        most: u32,
    },
    /// A frame that only the other end sends.
    #[error(
        "a {kind:?} frame came from the {side:?}, which never sends one: sent back to where it came from?"
    )]
    Direction {
        /// The frame.
        kind: Kind,
        /// Whence it came.
        side: Side,
    },
    /// Not a footer at all.
    #[error("no footer follows the payload: its length is not what the header says")]
    FooterMagic,
    /// A footer that was changed on its way.
    #[error("a frame's footer was damaged on its way")]
    FooterCrc,
    /// The footer of another frame.
    #[error("the frame of request {header} ends with the footer of request {footer}")]
    Request {
        /// The request in the header.
        header: u64,
        /// The request in the footer.
        footer: u64,
    },
    /// A payload that was changed on its way.
    #[error("a frame's payload was damaged on its way")]
    PayloadCrc,
    /// Not signed, though there is a key.
    #[error("a frame is not signed, and this connection takes none without")]
    Unsigned,
    /// Signed, though there is no key.
    #[error("a frame is signed, and there is no key to check it with: authenticate first")]
    NoKey,
    /// Signed with another key, for another direction, or at another place in the stream.
    #[error("a frame's signature is wrong: it was forged, or sent again, or out of order")]
    Signature,
    /// A signature covers messages, which only memory can be checked for.
    #[error("the payload of {0:?} is a message: it has to be in memory when the frame is signed or checked")]
    NotData(Kind),
    /// A length that the header and the payload do not agree on.
    #[error("the header says {header} bytes of payload, and there are {payload}")]
    Payload {
        /// What the header says.
        header: u32,
        /// What there is.
        payload: u64,
    },
    /// The payload is not the message that the frame says it is.
    #[error("the payload of {kind:?} cannot be understood: {error}")]
    Message {
        /// The frame.
        kind: Kind,
        /// What is wrong.
        error: postcard::Error,
    },
    /// A request where a reply was expected, or the other way round.
    #[error("a {0:?} frame is a request where a reply belongs, or a reply where a request does")]
    NotThat(Kind),
    /// Frames of a size that none have.
    #[error("headers and footers have {SMALLEST} to {LARGEST} bytes, not {0}")]
    Size(usize),
    /// A string of bytes that is not what it should be.
    #[error("not {0}: empty, or with bytes that it cannot have")]
    Bytes(&'static str),
    /// A string of bytes that is too long.
    #[error("{length} bytes are too long for {what}, which has at most {most}")]
    TooLong {
        /// What it should be.
        what: &'static str,
        /// Its bytes.
        length: usize,
        /// What is allowed.
        most: usize,
    },
    /// A token that can be guessed.
    #[error("a token of {0} bytes can be guessed: 16 random ones are the least, 32 are good")]
    Token(usize),
}

impl WireError {
    /// What the caller of a system call gets for it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            Self::Idle => Errno::EAGAIN,
            Self::Truncated | Self::Broken => Errno::ECONNRESET,
            Self::HeaderCrc | Self::FooterCrc | Self::PayloadCrc => Errno::EBADMSG,
            Self::Unsigned | Self::NoKey | Self::Signature => Errno::EACCES,
            Self::Version(_) => Errno::EPROTONOSUPPORT,
            Self::Size(_) | Self::Bytes(_) | Self::Token(_) => Errno::EINVAL,
            Self::TooLong { .. } => Errno::ENAMETOOLONG,
            _ => Errno::EPROTO,
        }
    }

    /// Whether the connection has to be closed: where the next frame begins, or who sends it, is not known
    /// any more. After any other error the frames that follow are as good as before.
    #[must_use]
    pub fn closes(&self) -> bool {
        !matches!(
            self,
            Self::Idle
                | Self::Message { .. }
                | Self::NotData(_)
                | Self::NotThat(_)
                | Self::Payload { .. }
                | Self::Size(_)
                | Self::Bytes(_)
                | Self::TooLong { .. }
                | Self::Token(_)
        )
    }
}
