// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payloads whose CRC the server knows: it does not look at them.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::server::{Export as Exported, Options, Server, Stopper};
use extfuse::remote::wire::message::{Read, SessionId, Wanted};
use extfuse::remote::wire::{Export, Flags, Kind, Request, WireError};
use extfuse::remote::{Address, Stream};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::common::{PATIENCE, Scratch};
use crate::line::{Line, Of};

/// Longer than a file may be without a version after a change.
const SETTLED: Duration = Duration::from_millis(3500);

const LENGTH: usize = 300_001;

/// A server in this process that listens on a port and on a socket.
struct Scene {
    scratch: Scratch,
    addresses: [Address; 2],
    servers: Vec<(Stopper, thread::JoinHandle<()>)>,
    bytes: Vec<u8>,
}

impl Scene {
    fn new(options: &Options) -> Self {
        let scratch = Scratch::new();
        let bytes: Vec<u8> = (0..LENGTH as u32).map(|i| (i / 3) as u8).collect();
        fs::write(scratch.source().join("file"), &bytes).unwrap();
        let wanted = [
            "127.0.0.1:0".parse().unwrap(),
            Address::Unix(scratch.path().join("socket")),
        ];
        let mut servers = Vec::new();
        let addresses = wanted.map(|address| {
            let exports = vec![Exported {
                name: Export::new("").unwrap(),
                directory: scratch.source(),
                read_only: false,
            }];
            let server = Server::bind(&address, exports, options.clone()).unwrap();
            let address = server.address().unwrap();
            servers.push((server.stopper(), thread::spawn(move || server.serve().unwrap())));
            address
        });
        thread::sleep(SETTLED);
        Self {
            scratch,
            addresses,
            servers,
            bytes,
        }
    }

    fn file(&self) -> File {
        let path = self.scratch.source().join("file");
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for (stopper, server) in self.servers.drain(..) {
            stopper.stop();
            let ended = server.join();
            assert!(thread::panicking() || ended.is_ok());
        }
    }
}

/// A session of its own, with its connection, and node and handle of the file there.
fn own(address: &Address) -> (Line, SessionId, Of) {
    let (mut own, session) = Line::new(address);
    let file = own.open("file");
    (own, session, file)
}

/// A connection of that session for READs.
fn join(address: &Address, session: SessionId) -> Line {
    let (line, joined) = Line::greet(address, Wanted::Joined(session));
    assert_eq!(joined, Ok(session));
    line
}

fn ask(line: &mut Line, file: Of, offset: u64, size: u32, flags: Flags) {
    line.send_at(file, offset, flags, &Request::Read(Read { size }));
}

fn read(line: &mut Line, file: Of, offset: u64, size: u32, flags: Flags) -> Result<Vec<u8>, WireError> {
    ask(line, file, offset, size, flags);
    let (header, payload) = line.receive()?;
    assert_eq!((header.kind, header.status), (Kind::Read, 0));
    Ok(payload)
}

#[test]
fn what_is_read_again_is_the_same_wherever_it_begins_and_ends() {
    let scene = Scene::new(&Options::default());
    for address in &scene.addresses {
        let (_own, session, file) = own(address);
        let mut line = join(address, session);
        for round in 0..3 {
            for (offset, size) in [
                (0, 1 << 20),
                (0, 65_536),
                (4096, 131_072),
                (16_384, 20_480),
                (4096, 300_000),
                (5, 100_000),
                (262_144, 1 << 20),
                (299_008, 4096),
                (300_001, 4096),
            ] {
                let end = scene.bytes.len().min(offset + size);
                let read = read(&mut line, file, offset as u64, size as u32, Flags::KNOWN_CRC).unwrap();
                assert!(read == scene.bytes[offset..end], "{round}: {offset}, {size}");
            }
        }
    }
}

/// A store through a mapping of what is dirty already does not show in the file's times.
#[test]
fn what_changes_without_a_sign_is_found_out_and_read_anew() {
    let scene = Scene::new(&Options::default());
    let source = scene.file();
    let length = NonZero::new(LENGTH).unwrap();
    // SAFETY: a mapping of its own, which is not used any more when it is taken away.
    let map = unsafe {
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        mmap(None, length, both, MapFlags::MAP_SHARED, source.as_fd(), 0).unwrap()
    };
    let store = |at: usize, byte: u8| {
        // SAFETY: within the mapping, and nobody else stores there.
        unsafe { map.cast::<u8>().add(at).write_volatile(byte) }
    };
    let mut right = scene.bytes.clone();
    right[100_000] = 0xaa;
    store(100_000, 0xaa);
    thread::sleep(SETTLED);
    for address in &scene.addresses {
        let (_own, session, file) = own(address);
        let join = || join(address, session);
        let mut line = join();
        // The server looks at it, and then it need not.
        assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == right);
        assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == right);
        right[100_000] ^= 1;
        store(100_000, right[100_000]);
        let damaged = read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC);
        assert!(matches!(damaged, Err(WireError::PayloadCrc)), "{damaged:?}");
        // Whoever does not say that it need not look is none the worse; and after that, nobody is.
        let mut line = join();
        assert!(read(&mut line, file, 0, 1 << 20, Flags::empty()).unwrap() == right);
        assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == right);
    }
    // SAFETY: the whole mapping, which nobody uses any more.
    unsafe { munmap(map, LENGTH).unwrap() };
}

#[test]
fn what_was_changed_is_read_anew() {
    let scene = Scene::new(&Options::default());
    let source = scene.file();
    let mut right = scene.bytes.clone();
    for address in &scene.addresses {
        let (_own, session, file) = own(address);
        let mut line = join(address, session);
        for round in 0..50_u8 {
            assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == right);
            right[200_000] = round;
            source.write_all_at(&[round], 200_000).unwrap();
        }
        thread::sleep(SETTLED);
        for _ in 0..3 {
            assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == right);
        }
    }
}

/// As many as the sockets hold, and then the server waits.
fn ask_for_much(line: &mut Line, file: Of) {
    for _ in 0..60 {
        ask(line, file, 0, 1 << 20, Flags::KNOWN_CRC);
    }
}

#[test]
fn a_file_that_is_cut_short_while_it_is_sent_costs_a_connection() {
    let scene = Scene::new(&Options::default());
    for address in &scene.addresses {
        fs::write(scene.scratch.source().join("file"), &scene.bytes).unwrap();
        thread::sleep(SETTLED);
        let (_own, session, file) = own(address);
        let mut line = join(address, session);
        assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == scene.bytes);
        ask_for_much(&mut line, file);
        thread::sleep(Duration::from_millis(500));
        scene.file().set_len(5000).unwrap();
        let start = Instant::now();
        let error = loop {
            match line.receive() {
                Ok((header, payload)) => {
                    let length = payload.len();
                    assert!(payload == scene.bytes[..length], "{header:?}");
                }
                Err(error) => break error,
            }
        };
        // Within a frame, or with pages that are gone.
        assert!(
            matches!(
                error,
                WireError::Truncated | WireError::PayloadCrc | WireError::Io(_)
            ),
            "{error}"
        );
        // That was the last frame, though more were asked for.
        assert!(line.is_closed());
        assert!(start.elapsed() < PATIENCE);
        let mut line = join(address, session);
        let read = read(&mut line, file, 0, 1 << 20, Flags::empty()).unwrap();
        assert!(read == scene.bytes[..5000]);
    }
}

/// More than a Unix socket holds.
fn grow(scene: &mut Scene) {
    scene.bytes = scene.bytes.repeat(4);
    scene.bytes.truncate(1 << 20);
    fs::write(scene.scratch.source().join("file"), &scene.bytes).unwrap();
    thread::sleep(SETTLED);
}

/// It may have changed in any way.
#[test]
fn a_file_that_has_another_version_before_it_is_sent_costs_a_connection() {
    let mut scene = Scene::new(&Options::default());
    grow(&mut scene);
    let address = &scene.addresses[1];
    let (_own, session, file) = own(address);
    let mut line = join(address, session);
    assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == scene.bytes);
    ask(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC);
    thread::sleep(Duration::from_millis(500));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    scene.file().set_permissions(mode).unwrap();
    let broken = line.receive();
    assert!(matches!(broken, Err(WireError::Truncated)), "{:?}", broken.err());
}

#[test]
fn who_takes_nothing_or_a_little_is_not_waited_for() {
    let options = Options {
        sending: Duration::from_secs(2),
        ..Options::default()
    };
    let mut scene = Scene::new(&options);
    grow(&mut scene);
    for trickles in [false, true] {
        let address = &scene.addresses[1];
        let (_own, session, file) = own(address);
        let mut line = join(address, session);
        assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == scene.bytes);
        ask_for_much(&mut line, file);
        let start = Instant::now();
        let Stream::Unix(mut stream) = line.stream.try_clone().unwrap() else {
            unreachable!()
        };
        if trickles {
            // So that there is always somebody who takes something, and never a frame in time.
            while start.elapsed() < options.sending * 3 {
                let mut little = [0; 4096];
                stream.read_exact(&mut little).unwrap();
                thread::sleep(Duration::from_millis(100));
            }
        } else {
            thread::sleep(options.sending * 3);
        }
        // Nobody is there any more.
        assert!(is_over(&mut stream), "{trickles}");
    }
}

fn is_over(stream: &mut UnixStream) -> bool {
    match stream.write_all(&[0]) {
        Ok(()) => false,
        Err(error) => matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
    }
}

/// Whoever keeps no CRCs reads the same.
#[test]
fn a_server_without_memory_for_them_serves_all_the_same() {
    let options = Options {
        sums: 0,
        ..Options::default()
    };
    let scene = Scene::new(&options);
    let (_own, session, file) = own(&scene.addresses[0]);
    let mut line = join(&scene.addresses[0], session);
    for _ in 0..3 {
        assert!(read(&mut line, file, 0, 1 << 20, Flags::KNOWN_CRC).unwrap() == scene.bytes);
    }
}
