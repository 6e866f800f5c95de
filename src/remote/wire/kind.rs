// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a frame is.

use bitflags::bitflags;

use super::{Side, WireError};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a frame asks for or answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }

        impl TryFrom<u16> for Kind {
            type Error = WireError;

            fn try_from(number: u16) -> Result<Self, WireError> {
                match number {
                    $($number => Ok(Self::$name),)*
                    _ => Err(WireError::Kind(number)),
                }
            }
        }
    };
}

kinds! {
    /// The first frame of a connection.
    Hello = 1;
    /// Proves that both ends have the token.
    Authenticate = 2;
    /// Whether the other end is there.
    Ping = 3;
    /// The last request of a connection: its session ends, too.
    Goodbye = 4;
    /// Keeps the lease.
    Renew = 5;
    /// From the server: what the client must not use any more.
    Invalidate = 6;
    /// From the client: it uses it no more.
    Invalidated = 7;
    /// Finds a name.
    Lookup = 16;
    /// Takes back lookups; has no reply.
    Forget = 17;
    /// Attributes.
    Getattr = 18;
    /// Changes attributes.
    Setattr = 19;
    /// The target of a symbolic link.
    Readlink = 20;
    /// Makes a file, device, pipe or socket.
    Mknod = 21;
    /// Makes a directory.
    Mkdir = 22;
    /// Makes a symbolic link.
    Symlink = 23;
    /// Gives a node another name.
    Link = 24;
    /// Removes a name.
    Unlink = 25;
    /// Removes a directory.
    Rmdir = 26;
    /// Moves or exchanges names.
    Rename = 27;
    /// Opens a file.
    Open = 32;
    /// Makes a file and opens it.
    Create = 33;
    /// Reads.
    Read = 34;
    /// Writes.
    Write = 35;
    /// A descriptor was closed.
    Flush = 36;
    /// The last descriptor was closed.
    Release = 37;
    /// Brings a file to the disk.
    Fsync = 38;
    /// Allocates, punches or zeroes a range.
    Fallocate = 39;
    /// Finds data or a hole.
    Lseek = 40;
    /// Copies a range between two open files.
    CopyFileRange = 41;
    /// Opens a directory.
    Opendir = 48;
    /// Lists a directory.
    Readdir = 49;
    /// Ends a listing.
    Releasedir = 50;
    /// Brings a directory to the disk.
    Fsyncdir = 51;
    /// The file system that holds a node.
    Statfs = 52;
    /// The value of an extended attribute.
    Getxattr = 56;
    /// Sets an extended attribute.
    Setxattr = 57;
    /// The names of all extended attributes.
    Listxattr = 58;
    /// Removes an extended attribute.
    Removexattr = 59;
    /// Who would be in the way of a lock.
    GetLock = 64;
    /// Sets or removes a lock.
    SetLock = 65;
}

impl Kind {
    /// Who sends the request of this kind. Its reply comes from the other end.
    #[must_use]
    pub fn sender(self) -> Side {
        match self {
            Self::Invalidate => Side::Server,
            _ => Side::Client,
        }
    }
}

bitflags! {
    /// What else a header says.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// The answer to the request of the same number.
        const REPLY = 1 << 0;
        /// FSYNC, FSYNCDIR: the data is enough, attributes may come later.
        const DATA_ONLY = 1 << 1;
        /// READ: the CRC of the reply's payload may be one that is known from before. Without it, all of the payload is
        /// read for it. It is the bit of DATA_ONLY: an end that does not know it takes it, and has no use for it.
        const KNOWN_CRC = 1 << 1;
        /// WRITE: pages that are written back, which have a place of their own even in a file that is open
        /// to be appended to.
        const WRITE_BACK = 1 << 2;
        /// WRITE: at the end of the file, wherever that is now.
        const APPEND = 1 << 3;
        /// A reply that the client may keep, for as long as its lease holds, until an INVALIDATE names what it says.
        const KEEP = 1 << 4;
    }
}
