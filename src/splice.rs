// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payload on its way between memory, files, pipes and sockets, with as few copies as both ends allow.
//!
//! A [`FuseBuf`] says where bytes are (`struct fuse_buf`), a [`FuseBufVec`] is a row of them with a
//! current position (`struct fuse_bufvec`), and [`copy()`] moves bytes from one row to another. A [`Merge`]
//! is one file whose ranges come from different sources.

pub mod answer;
pub mod buf;
pub mod channel;
pub mod copy;
pub mod drain;
mod incoming;
pub(crate) mod layout;
pub mod merge;
pub mod mount;
pub mod paths;
pub mod pipe;
mod sections;
mod spliced;
mod transfer;

pub(crate) use answer::Unanswered;
pub use answer::{FILL_FROM, Read, ReplyError, Way};
pub use buf::{BufFlags, CopyFlags, Fd, FuseBuf, FuseBufVec, Mem};
pub use channel::{Channel, ChannelError};
pub use copy::{SectionEnded, copy};
pub use drain::{Drain, DrainError, WITHHELD, drain};
pub use merge::{Merge, MergeBuilder, MergeError, Source};
pub use mount::{MountOptions, Mounted, mount};
pub use paths::{Caller, DirEntry, PathFilesystem, PathOptions, Paths, StatFs, attributes, serve};
pub use pipe::{Pipe, with_pipe};
