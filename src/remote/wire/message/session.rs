// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages about the connection itself, and what the server tells of its own accord.

use serde::{Deserialize, Serialize};

use super::super::auth::Nonce;
use super::super::{Export, ListedName, Sizes};

/// Versions of the protocol that one end speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Versions {
    /// The newest that both speak.
    #[must_use]
    pub fn agree(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// Which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

/// The session that a connection is to be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// A new one.
    New,
    /// This one, whose connection broke, if the server still has it; else a new one.
    Resumed(SessionId),
    /// This one, beside the connection that it has: for READs.
    Joined(SessionId),
}

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the client speaks.
    pub versions: Versions,
    /// What headers and footers it would like.
    pub sizes: Sizes,
    /// Random, and never used again.
    pub nonce: Nonce,
    /// The directory that it wants.
    pub export: Export,
    /// What it is for.
    pub session: Wanted,
    /// Whether the client keeps what it is told, and wants to hear of changes.
    pub keeps: bool,
}

/// What the server makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// What is spoken from the next frame on.
    pub version: u16,
    /// The headers and footers from the next frame on; none is smaller than what the client would like.
    pub sizes: Sizes,
    /// Random, and never used again.
    pub nonce: Nonce,
    /// Whether AUTHENTICATE has to come next.
    pub token: bool,
    /// The session: the one asked for if it goes on, else a new one, and then nothing that the client
    /// knows of the other is worth anything.
    pub session: SessionId,
    /// Milliseconds from a frame of the client for which it may use what it was told.
    pub lease_ms: u32,
    /// Whether every change is refused.
    pub read_only: bool,
    /// Requests that may wait for their replies at the same time; the server may take no frame from who has more.
    pub requests: u16,
    /// Milliseconds for which an answer may be kept at most, because others change the directory without the server
    /// hearing of it. None: all changes come through the server.
    pub keep_ms: Option<u32>,
    /// Whether READ needs no handle, since the server may read any file.
    pub reads_nodes: bool,
}

/// AUTHENTICATE and its reply: that the sender has the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(pub [u8; 32]);

/// The reply to RENEW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Milliseconds from now on that the session stays at least.
    pub lease_ms: u32,
}

/// INVALIDATE: none of this may be used once the server has INVALIDATED, which bears the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidate {
    /// In this order.
    pub what: Vec<Invalidation>,
}

/// One thing that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Invalidation {
    /// A node's attributes, those that are extended among them.
    Attributes {
        /// The node.
        node: u64,
    },
    /// A range of a file, and the attributes; `u64::MAX` bytes reach to its end.
    Data {
        /// The node.
        node: u64,
        /// Where it begins.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// What a name stands for, or that there is no such name.
    Entry {
        /// The directory.
        parent: u64,
        /// The name.
        name: ListedName,
    },
    /// The listing of a directory.
    Listing {
        /// The directory.
        node: u64,
    },
    /// All that is known of everything.
    Everything,
}
