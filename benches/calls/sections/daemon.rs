// SPDX-License-Identifier: MIT OR Apache-2.0
//! The daemon: a process that mounts a file system of two files, one with checked CRCs, and brings
//! every request's payload from the server, or to it, in the one way it is told.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use extfuse::abi;
use extfuse::sys::device::Device;
use extfuse::sys::mount::{self, Detached, Flavor, Parameters};
use extfuse::sys::mountinfo::Location;
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice, vmsplice};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::Way;
use super::frame::{self, Address, LONGEST, META, Message, Operation};
use crate::party;

/// The file whose payloads are not checked, and the one whose are: their names, and from 2 on their nodeids.
pub const FILES: [&str; 2] = ["plain", "crc"];
/// What either file pretends to hold.
pub const FILE_BYTES: u64 = 1 << 30;

const FOREVER: Duration = Duration::from_secs(1 << 20);
/// For a frame to come or to go, in milliseconds: for ever, since the clock of instructions leaps.
const PATIENCE: u32 = i32::MAX as u32;
/// Room for the longest frame with each page apart, and for what comes before it. It takes
/// CAP_SYS_RESOURCE, so a daemon that is only tried has half of it.
const PIPE_BYTES: usize = 2 * LONGEST;
/// `fuse_out_header`.
const OUT_HEADER: usize = 16;

/// What the daemon was asked since it was asked for this last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub reads: u64,
    pub writes: u64,
    /// Bytes of the shortest and the longest payload.
    pub shortest: u64,
    pub longest: u64,
    /// Frames that went through the module.
    pub sections: u64,
    pub failed: u64,
}

struct State {
    asked: Asked,
    /// A frame; behind it a CRC.
    memory: Vec<u8>,
    /// Read end, write end.
    pipe: (OwnedFd, OwnedFd),
}

struct Daemon {
    way: Way,
    device: Arc<OwnedFd>,
    sections: Device<Arc<OwnedFd>>,
    server: OwnedFd,
    state: Arc<Mutex<State>>,
}

/// How a READ ends when its frame is there.
enum Answer {
    /// With so many bytes of memory, behind the header.
    Bytes(usize),
    /// With what is staged.
    Staged,
    /// It has ended already.
    Given,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn short(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

impl Daemon {
    /// Splices `length` bytes from the server into the pipe, which has room for them.
    fn splice_in(&self, pipe: impl AsFd, length: usize) -> io::Result<()> {
        let mut rest = length;
        while rest > 0 {
            match splice(&self.server, None, &pipe, None, rest, SpliceFFlags::empty())? {
                0 => return Err(short("the server ended")),
                bytes => rest -= bytes,
            }
        }
        Ok(())
    }

    /// The answer of `length` bytes, through a pipe.
    fn splice_reply(&self, unique: u64, length: usize, state: &mut State) -> io::Result<()> {
        let (from, to) = (&state.pipe.0, &state.pipe.1);
        let mut out = [0; OUT_HEADER];
        let total = OUT_HEADER + length;
        out[..4].copy_from_slice(&(total as u32).to_ne_bytes());
        out[8..].copy_from_slice(&unique.to_ne_bytes());
        let (header, rest) = state.memory.split_at_mut(META);
        frame::receive_exact(self.server.as_fd(), header)?;
        expected(length).expect(header)?;
        if vmsplice(to, &[IoSlice::new(&out)], SpliceFFlags::empty())? != OUT_HEADER {
            return Err(short("the pipe did not take the header"));
        }
        self.splice_in(to, length)?;
        frame::receive_exact(self.server.as_fd(), &mut rest[..META])?;
        if splice(from, None, &self.device, None, total, SpliceFFlags::empty())? != total {
            return Err(short("the device did not take the answer"));
        }
        Ok(())
    }

    /// Gets the frame for a READ of `length` bytes.
    fn fetch(&self, unique: u64, length: usize, crc: bool, state: &mut State) -> io::Result<Answer> {
        let all = 2 * META + length;
        let flags = if crc { abi::SECTION_CRC } else { 0 };
        frame::send(self.server.as_fd(), &[IoSlice::new(&expected(length).bytes())])?;
        match self.way {
            Way::Transport | Way::Drain => Err(io::ErrorKind::Unsupported.into()),
            Way::Copy => {
                let frame = &mut state.memory[..all];
                frame::receive_exact(self.server.as_fd(), frame)?;
                expected(length).expect(frame)?;
                if crc {
                    let (payload, footer) = frame[META..].split_at(length);
                    frame::expect_crc(footer, crc32c::crc32c(payload))?;
                }
                Ok(Answer::Bytes(length))
            }
            Way::Splice => {
                self.splice_reply(unique, length, state)?;
                Ok(Answer::Given)
            }
            Way::Stage => {
                let mut section = abi::Section {
                    header: META as u32,
                    footer: META as u32,
                    flags,
                    ..abi::Section::default()
                };
                let (memory, pipe) = (&mut state.memory[..2 * META + 4], &state.pipe);
                self.sections.stage_through(
                    unique,
                    &mut section,
                    memory,
                    (pipe.0.as_fd(), pipe.1.as_fd()),
                    all,
                    |pipe| self.splice_in(pipe, all),
                )?;
                state.asked.sections += 1;
                expected(length).expect(memory)?;
                if crc {
                    let (footer, computed) = memory[META..].split_at(META);
                    frame::expect_crc(footer, frame::told_crc(computed)?)?;
                }
                Ok(Answer::Staged)
            }
            Way::Fill | Way::FillCommit => {
                let commit = self.way == Way::FillCommit;
                let mut fill = abi::Fill {
                    unique,
                    fd: self.server.as_raw_fd(),
                    header: META as u32,
                    payload: length as u32,
                    footer: META as u32,
                    flags: if commit {
                        flags | abi::SECTION_COMMIT
                    } else {
                        flags
                    },
                    timeout: PATIENCE,
                    ..abi::Fill::default()
                };
                let memory = &mut state.memory[..2 * META];
                self.sections.fill(&mut fill, memory)?;
                state.asked.sections += 1;
                expected(length).expect(memory)?;
                if crc {
                    frame::expect_crc(&memory[META..], fill.crc)?;
                }
                Ok(if commit { Answer::Given } else { Answer::Staged })
            }
        }
    }

    /// Sends the payload of a WRITE: `data`, or what was withheld.
    fn pass_on(
        &self,
        unique: u64,
        data: &[u8],
        withheld: Option<usize>,
        crc: bool,
        state: &mut State,
    ) -> io::Result<usize> {
        let length = withheld.unwrap_or(data.len());
        let message = Message {
            operation: Operation::Write,
            length,
        };
        if withheld.is_some() {
            let memory = &mut state.memory[..2 * META];
            memory[..META].copy_from_slice(&message.header());
            memory[META..].copy_from_slice(&frame::footer(0));
            let mut drain = abi::Drain {
                unique,
                fd: self.server.as_raw_fd(),
                header: META as u32,
                payload: length as u32,
                footer: META as u32,
                flags: if crc { abi::SECTION_CRC } else { 0 },
                timeout: PATIENCE,
                crc_at: if crc { 0 } else { abi::NOWHERE },
                ..abi::Drain::default()
            };
            self.sections.drain(&mut drain, memory)?;
            state.asked.sections += 1;
        } else {
            let footer = frame::footer(if crc { crc32c::crc32c(data) } else { 0 });
            let header = message.header();
            let parts = [&header, data, &footer].map(IoSlice::new);
            frame::send(self.server.as_fd(), &parts)?;
        }
        let mut written = [0; frame::MESSAGE];
        frame::receive_exact(self.server.as_fd(), &mut written)?;
        Message {
            operation: Operation::Written,
            length,
        }
        .expect(&written)?;
        Ok(length)
    }
}

/// What a READ of `length` bytes asks the server, and what the frame's header begins with.
fn expected(length: usize) -> Message {
    Message {
        operation: Operation::Read,
        length,
    }
}

impl Asked {
    fn about(&mut self, length: usize) {
        let length = length as u64;
        self.longest = self.longest.max(length);
        self.shortest = if self.reads + self.writes == 0 {
            length
        } else {
            self.shortest.min(length)
        };
    }

    fn failure(&mut self, error: &io::Error) -> fuser::Errno {
        eprintln!("daemon: {error}");
        self.failed += 1;
        fuser::Errno::EIO
    }
}

fn attributes(node: u64) -> FileAttr {
    let (kind, size) = match node {
        1 => (FileType::Directory, 0),
        _ => (FileType::RegularFile, FILE_BYTES),
    };
    FileAttr {
        ino: INodeNo(node),
        ..extfuse::splice::attributes(kind, 0o755, size)
    }
}

/// Are the CRCs of this file checked?
fn checked(node: INodeNo) -> bool {
    node.0 == 3
}

impl Filesystem for Daemon {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match (2..).zip(FILES).find(|&(_, known)| name == known) {
            Some((node, _)) => reply.entry(&FOREVER, &attributes(node), Generation(0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(node.0));
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = &mut *locked(&self.state);
        state.asked.about(size as usize);
        state.asked.reads += 1;
        match self.fetch(request.unique().0, size as usize, checked(node), state) {
            Ok(Answer::Bytes(bytes)) => reply.data(&state.memory[META..META + bytes]),
            Ok(Answer::Staged) => reply.data(&[]),
            // Dropped, it would answer once more.
            Ok(Answer::Given) => std::mem::forget(reply),
            Err(error) => reply.error(state.asked.failure(&error)),
        }
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let state = &mut *locked(&self.state);
        let flags = write_flags.bits();
        let withheld = (flags & abi::WRITE_WITHHELD != 0)
            .then_some((flags >> abi::WRITE_SIZE_SHIFT & abi::WRITE_SIZE_MASK) as usize);
        state.asked.about(withheld.unwrap_or(data.len()));
        state.asked.writes += 1;
        match self.pass_on(request.unique().0, data, withheld, checked(node), state) {
            Ok(length) => reply.written(length as u32),
            Err(error) => reply.error(state.asked.failure(&error)),
        }
    }
}

/// Mounts and serves, until standard input ends.
pub fn run(way: Way, server: &Address, mountpoint: &Path, stock: bool) -> Result<()> {
    let flavor = if stock { Flavor::Stock } else { Flavor::Extfuse };
    let device: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open(flavor.device())
        .with_context(|| format!("cannot open {}", flavor.device().display()))?
        .into();
    let parameters = Parameters {
        fsname: "sections".into(),
        subtype: None,
        uid: 0,
        gid: 0,
        default_permissions: false,
        allow_other: false,
        max_read: None,
        read_only: false,
        suid: false,
        dev: false,
        exec: false,
        noatime: false,
    };
    let detached = Detached::create(flavor, device.as_fd(), &parameters)?;
    let ours = Arc::new(device.try_clone()?);
    let sections = Device::new(Arc::clone(&ours));
    // The others are daemons that know nothing of the module.
    if way.needs_module() {
        sections.setup().context("the module cannot be set up")?;
        sections
            .sections((way == Way::Drain).then_some(0))
            .context("sections are not allowed")?;
    }
    let pipe = pipe2(OFlag::O_CLOEXEC)?;
    let room = if stock { LONGEST } else { PIPE_BYTES };
    fcntl(&pipe.1, FcntlArg::F_SETPIPE_SZ(room as i32))
        .with_context(|| format!("no pipe with room for {room} bytes"))?;
    let state = Arc::new(Mutex::new(State {
        asked: Asked::default(),
        memory: vec![0; 2 * META + LONGEST + 4],
        pipe,
    }));
    let daemon = Daemon {
        way,
        device: ours,
        sections,
        server: server
            .connect()
            .with_context(|| format!("cannot connect to {server}"))?,
        state: Arc::clone(&state),
    };
    let session = fuser::Session::from_fd(daemon, device, fuser::SessionACL::All, fuser::Config::default())?;
    detached.attach(&Location::of(mountpoint)?)?;
    let serving = thread::spawn(move || session.run());
    let said = party::report_until_end(&way.name(), || std::mem::take(&mut locked(&state).asked));
    // The application has closed its files, unless it is gone.
    if mount::unmount(mountpoint).is_err() {
        mount::detach(&Location::of(mountpoint)?)?;
    }
    match serving.join() {
        Ok(served) => served?,
        Err(_) => anyhow::bail!("the daemon's thread panicked"),
    }
    said
}
