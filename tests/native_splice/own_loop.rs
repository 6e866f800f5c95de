// SPDX-License-Identifier: MIT OR Apache-2.0
//! A daemon with a loop of its own: requests come out of the device by splice into a pipe, and the payload of a
//! WRITE goes from there into a socket, never through the daemon's memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use extfuse::sys::device::Device;
use fuser::{Config, Filesystem, KernelConfig, Request, Session, SessionACL};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const MAX_WRITE: u32 = 128 << 10;
const FILE: u64 = 2;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FORGET: u32 = 2;
const FLUSH: u32 = 25;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;

const FOPEN_DIRECT_IO: u32 = 1;
/// `fuse_in_header`, and `fuse_write_in`.
const HEADER: usize = 40;

/// Says INIT, and nothing else.
struct Greeter;

impl Filesystem for Greeter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .set_max_write(MAX_WRITE)
            .map(drop)
            .map_err(|_| Errno::EINVAL.into())
    }
}

/// What of the module is set up.
// Each test program uses a part of it.
#[allow(dead_code)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sections {
    /// Stock FUSE: there is none.
    Stock,
    /// None.
    Off,
    /// Everything but withholding.
    On,
    /// WRITEs come without their payload.
    Withheld,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// `struct fuse_attr`.
fn attr(ino: u64) -> Vec<u8> {
    let mode = if ino == 1 {
        libc::S_IFDIR | 0o755
    } else {
        libc::S_IFREG | 0o644
    };
    let mut bytes = ino.to_ne_bytes().to_vec();
    bytes.resize(6 * 8 + 3 * 4, 0);
    for field in [mode, 1, 0, 0, 0, 4096, 0] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes
}

/// The answer to anything but a WRITE; an errno, or none at all.
fn answer(opcode: u32, nodeid: u64) -> Option<Result<Vec<u8>, Errno>> {
    Some(match opcode {
        FORGET | INTERRUPT => return None,
        LOOKUP => {
            let mut entry = FILE.to_ne_bytes().to_vec();
            entry.resize(40, 0);
            entry.extend(attr(FILE));
            Ok(entry)
        }
        GETATTR => Ok([vec![0; 16], attr(nodeid)].concat()),
        OPEN => Ok([&[0; 8][..], &FOPEN_DIRECT_IO.to_ne_bytes(), &[0; 4]].concat()),
        FLUSH | RELEASE | DESTROY => Ok(Vec::new()),
        _ => Err(Errno::ENOSYS),
    })
}

fn reply(mut device: &File, unique: u64, answer: Result<Vec<u8>, Errno>) {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(errno) => (-(errno as i32), Vec::new()),
    };
    let length = (16 + body.len()) as u32;
    let message = [
        &length.to_ne_bytes()[..],
        &error.to_ne_bytes(),
        &unique.to_ne_bytes(),
        &body,
    ]
    .concat();
    match device.write(&message) {
        Ok(written) => assert_eq!(written, message.len()),
        // Aborted, or interrupted, meanwhile.
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}"),
    }
}

/// Serves until the file system is unmounted.
fn serve(device: &File, to: &UnixStream, sections: Sections) {
    let (mut out, into) = io::pipe().unwrap();
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
    loop {
        let room = MAX_WRITE as usize + 4096;
        let length = match splice(device, None, &into, None, room, SpliceFFlags::empty()) {
            Ok(length) => length,
            Err(Errno::ENODEV | Errno::ECONNABORTED) => return,
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => continue,
            Err(errno) => panic!("{errno}"),
        };
        let mut header = [0; HEADER];
        out.read_exact(&mut header).unwrap();
        assert_eq!(
            half(&header, 0) as usize,
            length,
            "the length in the header is the message's"
        );
        let (opcode, unique, nodeid) = (half(&header, 4), word(&header, 8), word(&header, 16));
        if opcode != WRITE {
            let mut rest = vec![0; length - HEADER];
            out.read_exact(&mut rest).unwrap();
            if let Some(answer) = answer(opcode, nodeid) {
                reply(device, unique, answer);
            }
            continue;
        }
        let mut write = [0; HEADER];
        out.read_exact(&mut write).unwrap();
        let mut left = length - 2 * HEADER;
        let mut size = half(&write, 16);
        if sections == Sections::Withheld {
            assert_eq!((left, size), (0, 0), "nothing of the payload");
            size = half(&write, 20) >> 4 & 0x7ff_ffff;
        } else {
            assert_eq!(left, size as usize);
        }
        while left > 0 {
            left -= splice(&out, None, to, None, left, SpliceFFlags::empty()).unwrap();
        }
        reply(device, unique, Ok([size.to_ne_bytes(), [0; 4]].concat()));
    }
}

/// Writes of all sizes, each of which has to be at the other end of the socket when it returns.
pub fn payloads_go_from_the_device_to_a_socket(device: &str, kind: &str, sections: Sections) {
    let at = tempfile::TempDir::new().unwrap();
    let file = File::options().read(true).write(true).open(device).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", file.as_raw_fd());
    mount(
        Some("test"),
        at.path(),
        Some(kind),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    if matches!(sections, Sections::On | Sections::Withheld) {
        let device = Device::new(&file);
        device.setup().unwrap();
        device
            .sections((sections == Sections::Withheld).then_some(0))
            .unwrap();
    }
    let fd = OwnedFd::from(file.try_clone().unwrap());
    let greeted = Session::from_fd(Greeter, fd, SessionACL::All, Config::default()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&file, &ours, sections));
        write(&at.path().join("file"), theirs, sections);
        umount2(at.path(), MntFlags::empty()).unwrap();
        serving.join().unwrap();
    });
    drop(greeted);
}

fn write(path: &Path, mut from: UnixStream, sections: Sections) {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    for (round, size) in [1, 100, 4095, 4096, 4097, 65_536, 100_000, MAX_WRITE as usize]
        .into_iter()
        .enumerate()
    {
        let data: Vec<u8> = (0..size).map(|at| (at * 7 + round) as u8).collect();
        let receiver = thread::spawn({
            let mut from = from.try_clone().unwrap();
            let expected = if sections == Sections::Withheld { 0 } else { size };
            move || {
                let mut got = vec![0; expected];
                from.read_exact(&mut got).unwrap();
                got
            }
        });
        assert_eq!(file.write_at(&data, 0).unwrap(), size);
        let got = receiver.join().unwrap();
        assert!(sections == Sections::Withheld || got == data, "{size} bytes");
    }
    drop(file);
    // And nothing else.
    from.set_nonblocking(true).unwrap();
    assert_eq!(from.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}
