// SPDX-License-Identifier: MIT OR Apache-2.0
//! The wire protocol of a remote directory: frames, and the messages in them.
//!
//! A connection is a stream of frames, `header | payload | footer`, in either direction. `docs/protocol.md`
//! has every offset and number; this is its only implementation, and knows of no sockets:
//!
//! * [`Header`] and [`Footer`] are bytes and back;
//! * [`Sealer`] and [`Verifier`] make and check what keeps a frame whole: the checksums, and with a key the
//!   signature;
//! * [`FrameWriter`] and [`FrameReader`] do it on a [`Write`](std::io::Write) and a [`Read`](std::io::Read);
//! * [`Request`] and [`Reply`] are what the payloads mean;
//! * [`auth`] proves that both ends have the same token, and gives them a key.
//!
//! Whatever bytes arrive, decoding ends with a value or a [`WireError`], and takes no more memory than a
//! small multiple of [`MAX_PAYLOAD`].
//!
//! ```
//! use extfuse::remote::wire::{FrameReader, FrameWriter, Header, Kind, Name, Request, Side, message};
//!
//! let lookup = Request::Lookup(message::Lookup { name: Name::new(*b"passwd")? });
//! let mut stream = Vec::new();
//! let header = Header { node: 1, ..Header::request(lookup.kind(), 7) };
//! FrameWriter::new(&mut stream, Side::Client).write_frame(&header, 0, &[&lookup.payload()?])?;
//!
//! let mut payload = Vec::new();
//! let mut reader = FrameReader::new(&stream[..], Side::Client);
//! let frame = reader.read_frame(&mut payload)?.ok_or("no frame")?;
//! assert_eq!((frame.header.kind, frame.header.request), (Kind::Lookup, 7));
//! assert_eq!(Request::decode(&frame.header, frame.payload)?, lookup);
//! assert!(reader.read_frame(&mut payload)?.is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod auth;
mod bytes;
mod error;
mod footer;
mod frame;
mod header;
mod kind;
pub mod message;
mod seal;
mod sizes;

pub use self::auth::SessionKey;
pub use self::bytes::{Export, ListedName, Name, Target, XattrName, XattrValue};
pub use self::error::WireError;
pub use self::footer::Footer;
pub use self::frame::{Arriving, Frame, FrameReader, FrameWriter};
pub use self::header::Header;
pub use self::kind::{Flags, Kind};
pub use self::message::{Reply, Request};
pub use self::seal::{Body, Sealed, Sealer, Verifier};
pub use self::sizes::Sizes;

/// The version of the protocol that this is, and the only one there is.
pub const VERSION: u16 = 1;

/// The most payload that any frame has: the largest READ or WRITE that Linux sends a FUSE file system
/// (256 pages of 4096 bytes, `FUSE_MAX_MAX_PAGES`), and room for what a listing adds.
pub const MAX_PAYLOAD: u32 = (1 << 20) + (64 << 10);

/// The most payload of a frame with a message, save a listing and SETXATTR.
pub const MAX_MESSAGE: u32 = 64 << 10;

/// The largest value of an extended attribute, and the largest list of their names (`XATTR_SIZE_MAX`,
/// `XATTR_LIST_MAX` of Linux).
pub const MAX_XATTR: u32 = 64 << 10;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that mounts the directory.
    Client,
    /// The one that has it.
    Server,
}

/// The `N` bytes at `at`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], WireError> {
    let rest = bytes.get(at..).and_then(<[u8]>::first_chunk);
    rest.copied().ok_or(WireError::Truncated)
}
