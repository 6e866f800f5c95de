// SPDX-License-Identifier: MIT OR Apache-2.0
//! A remote directory towards fuser: each operation is one request to the server.
//!
//! The server's node numbers are the nodeids, and its handles the handles. Every answer is valid for no time at
//! all, as far as FUSE is concerned. On stock FUSE that is all: every question goes to the server, which has the one
//! truth for all who mount it, and only data stays in the page cache while a file is open, as long as size and time
//! of its last change stay the same (`FUSE_AUTO_INVAL_DATA`). The module keeps what the server allows to be
//! kept, until the server takes it back or is not heard of for its lease (`kept.rs`).
//!
//! Permissions are checked by this machine's kernel, by the modes and ACLs that the server answers: INIT
//! insists on POSIX ACLs, which imply `default_permissions`. Locks (`flock`, `fcntl`) are the server's, or, if that is
//! wanted, this machine's kernel's, which hold among those who use this mount.
//!
//! A request blocks the thread that has taken it from the kernel until its answer is there; so as many
//! requests are on the way at once as the mount has threads.
//!
//! fuser can answer LOOKUP only with the nodeid as inode number: so attributes of entries, too, are valid for
//! no time at all, and GETATTR gives the right one. For the same reason READDIRPLUS is not offered.

mod files;
mod fuse;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno as FuseErrno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr,
    ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr,
};
use nix::errno::Errno;

use super::locks::{Locks, Pages};
use super::opens::Opens;
use super::questions::{Result, data, number};
use super::room::with_room;
use super::spool::{Ahead, Changing};
use super::writeback::WriteBack;
use super::{About, Answer, Connection, Spool};
use crate::Kernel;
use crate::ebpf::Validity;
use crate::fs::Upcalls;
use crate::fs::kernel::writes;
use crate::fs::upcalls::Opcode;
use crate::remote::wire::Request;
use crate::remote::wire::message::{Attr, Empty, Entry, Read};
use crate::splice::Channel;

/// The server never uses a node's number for another one, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// A directory of a server as a FUSE file system; see the module's page.
#[derive(Debug)]
pub struct Remote {
    /// First, as it ends while the server can still be asked.
    spool: Option<(Arc<Spool>, Ahead)>,
    /// Before the connection, too.
    writeback: Option<WriteBack>,
    connection: Arc<Connection>,
    opens: Opens,
    /// Who may have to forget what the server has no room for.
    kernel: Kernel,
    /// For how long what is published holds, at most.
    valid: Validity,
    /// Where payload goes past this process.
    channel: Option<Channel>,
    upcalls: Arc<Upcalls>,
    /// Behind the connection: who waits for it ends with it.
    locks: Option<Shared>,
}

/// Locks that the server has.
#[derive(Debug)]
struct Shared {
    locks: Locks,
    /// The kernel says FLUSH wherever a lock may go with it, whatever it was told of the file.
    flushes: bool,
}

/// The attributes of an entry: fuser takes the nodeid from where the inode number belongs.
fn entry_attr(entry: &Entry) -> FileAttr {
    FileAttr {
        ino: INodeNo(entry.node),
        ..entry.attr.into()
    }
}

impl Remote {
    /// Serves what the server at the other end of this connection has.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            spool: None,
            writeback: None,
            connection: Arc::new(connection),
            opens: Opens::default(),
            kernel: Kernel::default(),
            valid: Validity::For(Duration::ZERO),
            channel: None,
            upcalls: Arc::default(),
            locks: None,
        }
    }

    /// The same; the kernel keeps what the server allows to be kept, for as long as `valid` says, at most. The
    /// [target](super::Target) has to have said so.
    #[must_use]
    pub fn keeping(connection: Connection, kernel: Kernel, valid: Validity) -> Self {
        connection.keep_in(kernel);
        Self {
            valid,
            ..Self::new(connection)
        }
    }

    /// The same; the payload of large READs goes from the socket to the application through this channel of the
    /// mount's device, where the module is. Each then has a connection to itself.
    #[must_use]
    pub fn through(self, channel: Channel) -> Self {
        Self {
            channel: Some(channel),
            ..self
        }
    }

    /// The same; what is read is kept in this spool. Where the kernel keeps nothing it is asked for
    /// each time whether that is still right, unless the [target](super::Target) says `keeps`.
    #[must_use]
    pub fn spooling(mut self, spool: Arc<Spool>) -> Self {
        self.connection.kept().spool.set(&spool);
        let ahead = Ahead::start(&spool, &self.connection);
        self.spool = Some((spool, ahead));
        self
    }

    /// The same; write(2) does not wait for the server: fsync(2) and close(2) do, and tell of errors.
    #[must_use]
    pub fn writing_back(mut self) -> Self {
        self.writeback = WriteBack::start(&self.connection);
        self
    }

    /// What was written to a node is on the server. Whether there was anything to wait for.
    fn settle(&self, ino: INodeNo) -> bool {
        let writeback = self.writeback.as_ref();
        writeback.is_some_and(|writeback| writeback.settle(ino.0))
    }

    /// What was written to any node is.
    fn settle_all(&self) {
        if let Some(writeback) = &self.writeback {
            writeback.settle_all();
        }
    }

    /// The same for one node, and what an open file has not been told of yet.
    fn finish(&self, ino: INodeNo, fh: FileHandle) -> Result<()> {
        let writeback = self.writeback.as_ref();
        writeback.map_or(Ok(()), |writeback| writeback.finish(ino.0, fh.0))
    }

    /// Nodes to which something was written that may not be on the server.
    fn late(&self) -> HashSet<u64> {
        let writeback = self.writeback.as_ref();
        writeback.map_or_else(HashSet::new, WriteBack::late)
    }

    /// An entry of which the server may have told what was before something was written, as it is after that.
    fn settled(&self, entry: Entry, is_late: bool) -> Result<Entry> {
        if !is_late {
            return Ok(entry);
        }
        let ino = INodeNo(entry.node);
        self.settle(ino);
        let attr = self.connection.ask_attr(ino, &Request::Getattr(Empty))?;
        Ok(Entry { attr, ..entry })
    }

    /// The same; when the server has no room for what this kernel remembers, the kernel forgets what nobody uses.
    #[must_use]
    pub fn making_room(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// The answer to what takes a descriptor of the server's.
    fn with_room<T>(&self, ask: impl Fn() -> Result<T>) -> Result<T> {
        with_room(&self.kernel, ask)
    }

    /// An entry of a directory, as it is now.
    fn entry(&self, parent: INodeNo, request: &Request<'_>) -> Result<Entry> {
        let asked = self.with_room(|| {
            let late = || self.late();
            self.connection.ask_entry(parent, request, self.valid, late)
        });
        asked.and_then(|(entry, is_late)| self.settled(entry, is_late))
    }

    /// The same; locks of `flock` and `fcntl` are the server's, so that they exclude all who use it. Without, they are
    /// the kernel's, of this mount alone. Whoever gets one sees what others have written only if the kernel can be
    /// made to [give up](Self::pages) what it keeps.
    #[must_use]
    pub fn sharing_locks(self, kernel: &Kernel) -> Self {
        let locks = Locks::new(self.connection.asks(), Arc::clone(&self.upcalls), kernel.clone());
        Self {
            locks: Some(Shared {
                locks,
                flushes: kernel.device().is_some(),
            }),
            ..self
        }
    }

    /// If locks are the server's: what gives up pages when somebody gets one.
    #[must_use]
    pub fn pages(&self) -> Option<Pages> {
        self.locks.as_ref().map(|shared| shared.locks.pages())
    }

    /// How a file that was opened with these flags is to be used.
    fn opened(&self, node: u64, handle: u64, flags: i32) -> FopenFlags {
        if let Some(writeback) = self.writeback.as_ref().filter(|_| writes(flags)) {
            writeback.opened(node, handle);
        }
        // FLUSH is for errors of writing, and for locks.
        if writes(flags) {
            if let Some(shared) = &self.locks {
                shared.locks.writes(handle);
            }
            return FopenFlags::empty();
        }
        match &self.locks {
            Some(Shared { flushes: false, .. }) => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_NOFLUSH,
        }
    }

    /// How often the kernel has asked.
    #[must_use]
    pub fn upcalls(&self) -> Arc<Upcalls> {
        Arc::clone(&self.upcalls)
    }

    /// The connection to the server.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Data of a node is being changed, for as long as this is held.
    fn changing(&self, ino: INodeNo) -> Option<Changing> {
        self.spool.as_ref().map(|(spool, _)| spool.changing(ino.0))
    }

    /// The answer to a READ, if the spool has it, or is to have it.
    fn read_spooled(&self, about: &About, size: u32, flags: OpenFlags) -> Option<Vec<u8>> {
        let (spool, ahead) = self.spool.as_ref()?;
        if flags.0 & libc::O_DIRECT != 0 {
            return None;
        }
        let read = spool.read(&self.connection, Some(ahead), about, size)?;
        if !read.keep {
            let request = Request::Read(Read { size });
            self.connection.kept().not_to_be_kept(about, &request);
        }
        Some(read.bytes)
    }

    fn count(&self, opcode: Opcode) {
        self.upcalls.count(opcode);
    }

    /// The errno as fuser wants it, counted.
    fn refused(&self, opcode: Opcode, errno: Errno) -> FuseErrno {
        self.upcalls.count_error(opcode);
        FuseErrno::from_i32(errno as i32)
    }

    fn reply_entry(&self, opcode: Opcode, reply: ReplyEntry, result: Result<Entry>) {
        match result {
            Ok(entry) => reply.entry(&Duration::ZERO, &entry_attr(&entry), GENERATION),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn reply_attr(&self, opcode: Opcode, reply: ReplyAttr, result: Result<Attr>) {
        match result {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr.into()),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    /// Answers a request whose reply has no payload.
    fn empty<T>(&self, opcode: Opcode, reply: ReplyEmpty, result: Result<T>) {
        match result {
            Ok(_) => reply.ok(),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn xattr(&self, opcode: Opcode, reply: ReplyXattr, room: u32, result: Result<Answer>) {
        let answer = match result {
            Ok(answer) => answer,
            Err(errno) => return reply.error(self.refused(opcode, errno)),
        };
        let answered = match room {
            0 => number(&answer, u32::MAX.into()).map(|size| (size, None)),
            _ => data(&answer, room).map(|data| (0, Some(data))),
        };
        match answered {
            Ok((_, Some(data))) => reply.data(data),
            Ok((size, None)) => reply.size(size),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }

    fn reply_written(&self, opcode: Opcode, reply: ReplyWrite, most: u64, result: Result<Answer>) {
        match result.and_then(|answer| number(&answer, most)) {
            Ok(size) => reply.written(size),
            Err(errno) => reply.error(self.refused(opcode, errno)),
        }
    }
}
