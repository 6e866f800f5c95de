// SPDX-License-Identifier: MIT OR Apache-2.0
//! Open files: those that the server has open, and those that it has not heard of (`opens.rs`).

use fuser::{FileHandle, INodeNo};

use super::super::questions::{Result, file, file_at};
use super::super::{About, Answer};
use super::Remote;
use crate::remote::wire::Request;
use crate::remote::wire::message::{Open, Release};

impl Remote {
    /// Opens a file. One that is only read the server need not hear of.
    pub(super) fn open_file(&self, ino: INodeNo, flags: i32) -> Result<FileHandle> {
        let plain = flags & (libc::O_ACCMODE | libc::O_TRUNC | libc::O_NOATIME) == libc::O_RDONLY;
        if plain && self.connection.reads_node(ino.0) {
            return Ok(self.opens.open());
        }
        self.open_there(ino, flags)
    }

    fn open_there(&self, ino: INodeNo, flags: i32) -> Result<FileHandle> {
        let open = Request::Open(Open { flags });
        let opened = self.with_room(|| self.connection.ask_open(ino, &open))?;
        Ok(FileHandle(opened.handle))
    }

    /// What a READ is about: the open file, or the node of one that the server has not heard of.
    pub(super) fn read_at(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> About {
        file_at(ino, self.opens.there(fh).unwrap_or(FileHandle(0)), offset)
    }

    /// The server's handle of an open file, for what is asked with one.
    pub(super) fn handle(&self, ino: INodeNo, fh: FileHandle) -> Result<FileHandle> {
        let open = || self.open_there(ino, libc::O_RDONLY);
        // The server closes it with the session, if not now.
        let spare = |fh| {
            let _ = self.close_there(ino, fh, None);
        };
        self.opens.open_there(fh, open, spare)
    }

    /// The answer to what is asked about an open file, which the server has to have open.
    pub(super) fn ask_file(&self, about: About, request: &Request<'_>) -> Result<Answer> {
        let there = self.handle(INodeNo(about.node), FileHandle(about.handle))?;
        let about = About {
            handle: there.0,
            ..about
        };
        self.connection.ask(&about, request)
    }

    /// Closes what [`handle`](Self::handle) has given.
    pub(super) fn close_there(&self, ino: INodeNo, fh: FileHandle, owner: Option<u64>) -> Result<()> {
        let release = Request::Release(Release { owner });
        self.connection.ask(&file(ino, fh), &release).map(drop)
    }
}
