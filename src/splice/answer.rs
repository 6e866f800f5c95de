// SPDX-License-Identifier: MIT OR Apache-2.0
//! A READ, the ways in which it can be answered, and what becomes of it when it is not.

use std::io;

use fuser::ReplyData;
use nix::errno::Errno;
use thiserror::Error;

/// From how many bytes on [`Way::Auto`] fills, where sections are there: at 4 KiB it is no faster than
/// copying, at 32 KiB it is (`docs/benchmarks.md`).
pub const FILL_FROM: usize = 16 << 10;
/// Up to how many bytes it stages instead, where all that comes from descriptors comes from local sockets:
/// from those the module receives through a buffer of its own, which at 1 MiB matters no more.
pub const STAGE_TO: usize = 128 << 10;
/// From how many bytes on it splices, where they are not.
pub const SPLICE_FROM: usize = 16 << 10;

/// How the payload of an answer gets from its sources to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// By what is there, by size, and by whether the sources are local (AF_UNIX) sockets: see
    /// [`FILL_FROM`], [`STAGE_TO`] and [`SPLICE_FROM`].
    #[default]
    Auto,
    /// Through memory of the daemon.
    Copy,
    /// Through a pipe: its data and the header of the answer put into it, then all of it into the device,
    /// in one call. [`Copy`](Self::Copy) if that was not [negotiated](super::Channel::negotiate), or a checksum is
    /// wanted; and of what does not fit into the pipe or cannot be spliced. A file that is spliced must not
    /// change until the answer is there.
    Splice,
    /// Through a pipe into the request, which waits for the check. Needs sections; else as
    /// [`Auto`](Self::Auto), and so do the other two.
    Stage,
    /// By the module, straight into the request, which waits for the check.
    Fill,
    /// The same, and the last section ends the request in the same call. Safe with a
    /// [gate](super::Channel::with_gate): the program has accepted every section then, and where it is not there
    /// (any more) the check is asked. Without one **nobody is asked**, unless the module isn't there.
    FillCommit,
}

/// A READ, and how to answer it.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Its id ([`fuser::Request::unique`]).
    pub unique: u64,
    /// How many bytes it wants.
    pub size: u32,
    /// The way.
    pub way: Way,
    /// Whether the check wants to know the CRC32C of each buffer's payload.
    pub crc: bool,
}

impl Read {
    /// Without checksums.
    #[must_use]
    pub fn new(unique: u64, size: u32) -> Self {
        Self {
            unique,
            size,
            way: Way::Auto,
            crc: false,
        }
    }

    /// By this way.
    #[must_use]
    pub fn way(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// With the CRC32C of each buffer's payload, or without.
    #[must_use]
    pub fn crc(self, crc: bool) -> Self {
        Self { crc, ..self }
    }
}

/// Why a READ was not answered with its payload. The application got an error.
#[derive(Debug, Error)]
pub enum ReplyError {
    /// The check said so, or the program at the gate, and all was received.
    #[error("the answer was refused: {}", .0.desc())]
    Refused(Errno),
    /// A source failed. Where it is a stream, it is somewhere inside a frame, and of no more use; as are
    /// those of the buffers behind it, if their frames have been asked for.
    #[error("buffer {buf} failed after {done} bytes: {error}")]
    Broken {
        /// Index of the buffer.
        buf: usize,
        /// Bytes of its frame (header, payload and footer) that are gone from the source.
        done: usize,
        /// Why. ETIMEDOUT, `UnexpectedEof` and ENODATA (the source ended) are some.
        error: io::Error,
    },
    /// Nobody waits for the answer any more: the connection was aborted. Streams as above.
    #[error("buffer {buf}, after {done} bytes: nobody waits for the answer any more")]
    Gone {
        /// Index of the buffer.
        buf: usize,
        /// Bytes of its frame that are gone from the source.
        done: usize,
    },
    /// The kernel did not take it, and all was received.
    #[error("the answer was not taken: {0}")]
    Device(io::Error),
}

impl ReplyError {
    /// Whether all frames were received: then streams can be used for the next one.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Device(_))
    }

    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Refused(errno) => *errno,
            _ => Errno::EIO,
        }
    }
}

/// A READ that waits for its answer, for as many tries as it takes: of one that was refused or broke off nobody sees
/// anything.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(super) reply: ReplyData,
    pub(super) read: Read,
    /// The kernel has sections of an answer that was refused. They are what an empty reply would commit, and data beside
    /// them an error: so another answer takes their place, and says how long it is.
    pub(super) staged: bool,
}

impl Unanswered {
    /// One that nobody has tried to answer yet.
    pub fn new(read: Read, reply: ReplyData) -> Self {
        let staged = false;
        Self { reply, read, staged }
    }

    /// The reply object, for any answer.
    ///
    /// # Errors
    ///
    /// Itself, if data needs the [channel](super::Channel::answer).
    pub fn into_reply(self) -> Result<ReplyData, Self> {
        match self.staged {
            false => Ok(self.reply),
            true => Err(self),
        }
    }

    /// The application gets this.
    pub fn error(self, errno: Errno) {
        self.reply.error(fuser::Errno::from_i32(errno as i32));
    }
}
