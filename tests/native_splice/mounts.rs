// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts that threads of the test serve.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use extfuse::session::{SessionError, Unmounter};
use extfuse::splice::{Channel, MountOptions, PathOptions, Way, serve};
use tempfile::TempDir;

use super::frames::{Fault, Frames, World, byte, content, describe};

/// What a file can come from.
pub const SOURCES: [&str; 8] = [
    "tcp", "unix", "file", "memfd", "pipe", "plain", "memory", "merged",
];
/// And how large it can be.
pub const SIZES: [usize; 7] = [0, 1, 4095, 4096, 4097, 128 << 10, 1 << 20];

/// One mount at a time: their descriptors are counted.
static ONE: Mutex<()> = Mutex::new(());

/// A mount that a thread of the test serves.
#[derive(Debug)]
pub struct Mount {
    dir: Option<TempDir>,
    pub world: Arc<World>,
    channel: Option<Channel>,
    serving: Option<JoinHandle<Result<(), SessionError>>>,
    unmounter: Unmounter,
    before: Vec<PathBuf>,
    _one: MutexGuard<'static, ()>,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mount: MountOptions,
    pub paths: PathOptions,
}

impl Setup {
    /// By the module.
    pub fn extfuse(way: Way, crc: bool) -> Self {
        let mut setup = Self::stock(way, crc);
        setup.mount.stock = false;
        setup.mount.require_module = true;
        setup
    }

    pub fn stock(way: Way, crc: bool) -> Self {
        let ttl = Duration::from_secs(1);
        Self {
            mount: MountOptions {
                stock: true,
                timeout: Duration::from_secs(20),
                ..MountOptions::default()
            },
            paths: PathOptions { way, crc, ttl },
        }
    }

    pub fn mount(&self) -> Mount {
        Mount::new(|dir, world| {
            let frames = Frames::new(world);
            let mounted = serve(frames, dir, &self.mount, self.paths).unwrap();
            (mounted.unmounter(), mounted.channel().clone(), move || {
                mounted.serve()
            })
        })
    }
}

impl Mount {
    pub fn new<S>(make: impl FnOnce(&Path, Arc<World>) -> (Unmounter, Channel, S)) -> Self
    where
        S: FnOnce() -> Result<(), SessionError> + Send + 'static,
    {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = devices();
        let dir = tempfile::Builder::new()
            .prefix("extfuse-test-")
            .tempdir()
            .unwrap();
        let world = Arc::new(World::default());
        let (unmounter, channel, serve) = make(dir.path(), Arc::clone(&world));
        Self {
            dir: Some(dir),
            world,
            channel: Some(channel),
            serving: Some(thread::spawn(serve)),
            unmounter,
            before,
            _one: one,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().unwrap().path().join(name)
    }

    pub fn channel(&self) -> &Channel {
        self.channel.as_ref().unwrap()
    }

    pub fn fault(&self, fault: Fault) {
        *self.world.fault.lock().unwrap() = Some(fault);
    }

    pub fn heal(&self) {
        *self.world.fault.lock().unwrap() = None;
    }

    /// Reads what must not be readable: the error.
    #[track_caller]
    pub fn refused(&self, name: &str, size: usize, direct: bool) -> Option<i32> {
        match self.read(name, 0, size, direct) {
            Ok(bytes) => panic!("{name}: {} bytes of what is wrong", bytes.len()),
            Err(error) => error.raw_os_error(),
        }
    }

    /// Reads a range through the page cache, or past it.
    pub fn read(&self, name: &str, offset: u64, len: usize, direct: bool) -> io::Result<Vec<u8>> {
        let mut options = OpenOptions::new();
        options.read(true);
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(self.path(name))?;
        let mut room = vec![0xaa; len + 1];
        let mut done = 0;
        loop {
            match file.read_at(&mut room[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) => {
                    let touched = room[done..].iter().any(|byte| *byte != 0xaa);
                    assert!(direct || !touched, "bytes of a frame that was not accepted");
                    return Err(error);
                }
            }
        }
        room.truncate(done);
        Ok(room)
    }

    /// Reads a whole file, and compares.
    #[track_caller]
    pub fn assert_reads(&self, name: &str, direct: bool) {
        let (_, size) = describe(Path::new(&format!("/{name}"))).unwrap();
        let read = self.read(name, 0, size as usize, direct).unwrap();
        assert_eq!(read.len() as u64, size, "{name}");
        let wrong = read.iter().zip(0..).position(|(read, at)| *read != byte(at));
        assert_eq!(wrong, None, "{name}: the first wrong byte");
    }

    /// Unmounts, and sees that nothing is left. Gives how many READs were answered in one call.
    pub fn end(mut self) -> u64 {
        self.unmounter.detach().unwrap();
        self.serving.take().unwrap().join().unwrap().unwrap();
        let answered = self.channel.take().unwrap().answered_in_one_call();
        assert_eq!(devices(), self.before, "descriptors of the device");
        answered
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.unmounter.detach();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// Descriptors of this process that belong to a mount, or to one that was.
pub fn devices() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.starts_with("/dev") && target != Path::new("/dev/null") || target == Path::new("/") {
            all.push(entry.path());
        }
    }
    all.sort();
    all
}

/// Reads every source and size, buffered and not.
pub fn every_source_and_size(setup: &Setup) {
    for direct in [false, true] {
        let mount = setup.mount();
        for source in SOURCES {
            for size in SIZES {
                mount.assert_reads(&format!("{source}-{size}"), direct);
            }
        }
        mount.end();
    }
}

/// Many readers at the same time, each of pieces of several files.
pub fn readers_at_once(setup: &Setup, readers: u64, rounds: u64) {
    let mount = setup.mount();
    thread::scope(|scope| {
        for reader in 0..readers {
            let mount = &mount;
            scope.spawn(move || {
                for round in 0..rounds {
                    let source = ["tcp", "unix", "memfd", "pipe"][(reader + round) as usize % 4];
                    let offset = (reader * 37 + round * 11) * 4096;
                    let read = mount
                        .read(&format!("{source}-9999999"), offset, 70_000, true)
                        .unwrap();
                    assert!(read.iter().zip(offset..).all(|(read, at)| *read == byte(at)));
                }
            });
        }
    });
    mount.end();
}

/// Something is wrong with a file: it cannot be read, and all that follows is right.
#[track_caller]
pub fn assert_eio(setup: &Setup, source: &str, size: usize, fault: Fault) {
    for direct in [false, true] {
        let mount = setup.mount();
        let name = format!("{source}-{size}");
        mount.fault(fault);
        assert_eq!(
            mount.refused(&name, size, direct),
            Some(libc::EIO),
            "{name} {fault:?}"
        );
        mount.heal();
        mount.assert_reads(&name, direct);
        mount.assert_reads(&format!("{source}-70001"), direct);
        mount.end();
    }
}

/// Writes of many sizes arrive, each with its checksum right.
pub fn writes_arrive(mount: &Mount) {
    for name in ["to-server", "to-memory", "to-file"] {
        for direct in [false, true] {
            let mut options = OpenOptions::new();
            options.write(true).create(true);
            if direct {
                options.custom_flags(libc::O_DIRECT);
            }
            let file = options.open(mount.path(name)).unwrap();
            for size in [1, 100, 4095, 4096, 4097, 128 << 10, 1 << 20] {
                let bytes = content(13, size);
                mount.world.written.lock().unwrap().clear();
                file.write_all_at(&bytes, 13).unwrap();
                let written = mount.world.written.lock().unwrap();
                assert!(written[13..] == bytes, "{name} {size}");
            }
        }
    }
}
