// SPDX-License-Identifier: MIT OR Apache-2.0
//! What payloads mean.
//!
//! A payload is nothing, data as it is, or one message in postcard's encoding; the frame's kind, and whether
//! it is a reply, say which. What the header has a field for (node, handle, offset) is not said again in the
//! message.

mod attr;
mod reply;
mod request;
mod session;

use std::borrow::Cow;

use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, Unexpected};

use super::{Header, Kind, MAX_MESSAGE, MAX_PAYLOAD, MAX_XATTR, WireError};

pub use self::attr::{Attr, FileKind, SetTime, Timestamp};
pub use self::reply::{Created, DirEntry, Entry, Listing, Opened, Statfs};
pub use self::request::{
    Caller, CopyFileRange, Create, Fallocate, Flush, Forget, Forgotten, Getxattr, Link, Listxattr, Lock,
    LockKind, LockRange, Lookup, Lseek, Mkdir, Mknod, Open, Read, Readdir, Release, Removexattr, Rename,
    Rmdir, SetAttr, SetLock, Setxattr, Symlink, Unlink,
};
pub use self::session::{
    Hello, HelloReply, Invalidate, Invalidation, Proof, Renewed, SessionId, Versions, Wanted,
};

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// There is none.
    Empty,
    /// Bytes of a file, a link's target, an attribute's value or a list of names.
    Data,
    /// A message.
    Message,
}

/// What a payload is, and how much of it there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What it is.
    pub shape: Shape,
    /// Bytes.
    pub most: u32,
}

/// The payload of a kind of frame.
trait Payload<'a>: Sized {
    const LIMIT: Limit;
    fn decode(kind: Kind, bytes: &'a [u8]) -> Result<Self, WireError>;
    fn encode(&self, kind: Kind) -> Result<Cow<'_, [u8]>, WireError>;
}

/// A payload that postcard encodes.
trait Message: Serialize + DeserializeOwned {
    const MOST: u32 = MAX_MESSAGE;
}

impl<M: Message> Payload<'_> for M {
    const LIMIT: Limit = Limit {
        shape: Shape::Message,
        most: M::MOST,
    };

    fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > M::MOST as usize {
            return Err(too_much(kind, bytes, M::MOST));
        }
        let message = |error| WireError::Message { kind, error };
        let (decoded, rest) = postcard::take_from_bytes(bytes).map_err(message)?;
        match rest {
            [] => Ok(decoded),
            _ => Err(message(postcard::Error::DeserializeBadEncoding)),
        }
    }

    fn encode(&self, kind: Kind) -> Result<Cow<'_, [u8]>, WireError> {
        let bytes = postcard::to_stdvec(self).map_err(|error| WireError::Message { kind, error })?;
        if bytes.len() > M::MOST as usize {
            return Err(WireError::TooLong {
                what: "a message",
                length: bytes.len(),
                most: M::MOST as usize,
            });
        }
        Ok(bytes.into())
    }
}

/// No payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Empty;

impl Payload<'_> for Empty {
    const LIMIT: Limit = Limit {
        shape: Shape::Empty,
        most: 0,
    };

    fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, WireError> {
        match bytes {
            [] => Ok(Self),
            _ => Err(too_much(kind, bytes, 0)),
        }
    }

    fn encode(&self, _kind: Kind) -> Result<Cow<'_, [u8]>, WireError> {
        Ok(Cow::Borrowed(&[]))
    }
}

/// At most `MOST` bytes as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a, const MOST: u32>(pub &'a [u8]);

impl<'a, const MOST: u32> Payload<'a> for Data<'a, MOST> {
    const LIMIT: Limit = Limit {
        shape: Shape::Data,
        most: MOST,
    };

    fn decode(kind: Kind, bytes: &'a [u8]) -> Result<Self, WireError> {
        match bytes.len() > MOST as usize {
            true => Err(too_much(kind, bytes, MOST)),
            false => Ok(Self(bytes)),
        }
    }

    fn encode(&self, kind: Kind) -> Result<Cow<'_, [u8]>, WireError> {
        Self::decode(kind, self.0).map(|data| data.0.into())
    }
}

fn too_much(kind: Kind, bytes: &[u8], most: u32) -> WireError {
    WireError::Length {
        kind,
        length: bytes.len() as u64,
        most,
    }
}

macro_rules! payloads {
    ($(#[$doc:meta])* $name:ident, $reply:literal { $($kind:ident($payload:ty),)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $name<'a> {
            $($kind($payload),)*
        }

        impl<'a> $name<'a> {
            fn limit(kind: Kind) -> Option<Limit> {
                match kind {
                    $(Kind::$kind => Some(<$payload as Payload<'a>>::LIMIT),)*
                    #[allow(unreachable_patterns)]
                    _ => None,
                }
            }

            /// The kind of frame.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// The payload of a frame with this header.
            ///
            /// # Errors
            ///
            /// [`WireError::Message`], [`WireError::Length`], [`WireError::NotThat`].
            pub fn decode(header: &Header, bytes: &'a [u8]) -> Result<Self, WireError> {
                if header.is_reply() != $reply {
                    return Err(WireError::NotThat(header.kind));
                }
                match header.kind {
                    $(Kind::$kind => Payload::decode(header.kind, bytes).map(Self::$kind),)*
                    #[allow(unreachable_patterns)]
                    kind => Err(WireError::NoReply(kind)),
                }
            }

            /// Its payload.
            ///
            /// # Errors
            ///
            /// [`WireError::TooLong`] or [`WireError::Length`] if it is too large.
            pub fn payload(&self) -> Result<Cow<'_, [u8]>, WireError> {
                match self {
                    $(Self::$kind(payload) => payload.encode(Kind::$kind),)*
                }
            }
        }
    };
}

payloads! {
    /// What one end asks of the other, by kind.
    Request, false {
        Hello(Hello),
        Authenticate(Proof),
        Ping(Empty),
        Goodbye(Empty),
        Renew(Empty),
        Invalidate(Invalidate),
        Invalidated(Empty),
        Lookup(Lookup),
        Forget(Forget),
        Getattr(Empty),
        Setattr(SetAttr),
        Readlink(Empty),
        Mknod(Mknod),
        Mkdir(Mkdir),
        Symlink(Symlink),
        Link(Link),
        Unlink(Unlink),
        Rmdir(Rmdir),
        Rename(Rename),
        Open(Open),
        Create(Create),
        Read(Read),
        Write(Data<'a, MAX_PAYLOAD>),
        Flush(Flush),
        Release(Release),
        Fsync(Empty),
        Fallocate(Fallocate),
        Lseek(Lseek),
        CopyFileRange(CopyFileRange),
        Opendir(Empty),
        Readdir(Readdir),
        Releasedir(Empty),
        Fsyncdir(Empty),
        Statfs(Empty),
        Getxattr(Getxattr),
        Setxattr(Setxattr),
        Listxattr(Listxattr),
        Removexattr(Removexattr),
        GetLock(LockRange),
        SetLock(SetLock),
    }
}

payloads! {
    /// What the other end answers if the header's status is 0, by kind. FORGET, INVALIDATE and INVALIDATED
    /// have no reply.
    Reply, true {
        Hello(HelloReply),
        Authenticate(Proof),
        Ping(Empty),
        Goodbye(Empty),
        Renew(Renewed),
        Lookup(Entry),
        Getattr(Attr),
        Setattr(Attr),
        Readlink(Data<'a, 4095>),
        Mknod(Entry),
        Mkdir(Entry),
        Symlink(Entry),
        Link(Entry),
        Unlink(Empty),
        Rmdir(Empty),
        Rename(Empty),
        Open(Opened),
        Create(Created),
        Read(Data<'a, MAX_PAYLOAD>),
        Write(Empty),
        Flush(Empty),
        Release(Empty),
        Fsync(Empty),
        Fallocate(Empty),
        Lseek(Empty),
        CopyFileRange(Empty),
        Opendir(Opened),
        Readdir(Listing),
        Releasedir(Empty),
        Fsyncdir(Empty),
        Statfs(Statfs),
        Getxattr(Data<'a, MAX_XATTR>),
        Setxattr(Empty),
        Listxattr(Data<'a, MAX_XATTR>),
        Removexattr(Empty),
        GetLock(Lock),
        SetLock(Empty),
    }
}

/// What the payload of such a frame is; none if there are no such frames.
#[must_use]
pub fn payload_limit(kind: Kind, reply: bool) -> Option<Limit> {
    if reply {
        Reply::limit(kind)
    } else {
        Request::limit(kind)
    }
}

/// A number that is at most `MOST`.
fn at_most<'de, D: Deserializer<'de>, const MOST: u32>(deserializer: D) -> Result<u32, D::Error> {
    let number = u32::deserialize(deserializer)?;
    if number > MOST {
        let found = Unexpected::Unsigned(number.into());
        return Err(D::Error::invalid_value(found, &"a smaller number"));
    }
    Ok(number)
}

macro_rules! messages {
    ($($name:ident)*) => { $(impl Message for $name {})* };
}

messages! {
    Hello HelloReply Proof Renewed Invalidate
    Lookup Forget SetAttr Mknod Mkdir Symlink Link Unlink Rmdir Rename
    Open Create Read Flush Release Fallocate Lseek CopyFileRange Readdir
    Getxattr Listxattr Removexattr LockRange SetLock
    Attr Entry Opened Created Statfs Lock
}

impl Message for Setxattr {
    /// The largest value, the longest name, and what is around them.
    const MOST: u32 = MAX_XATTR + 1024;
}

impl Message for Listing {
    const MOST: u32 = MAX_PAYLOAD;
}
