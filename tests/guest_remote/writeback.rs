// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that return before the server has them, through the module.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::server::{Export, Options, Server};
use extfuse::remote::wire;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::common::{Mounted, Scratch};
use crate::exerciser::in_every_mode;
use crate::guest::seed;
use crate::link::Link;
use crate::{Scene, pattern};

#[test]
fn write_does_not_wait_for_the_server_and_close_does() {
    let scratch = Scratch::new();
    let exports = vec![Export {
        name: wire::Export::new("").unwrap(),
        directory: scratch.source(),
        read_only: false,
    }];
    let options = Options {
        keep: None,
        ..Options::default()
    };
    let server = Server::bind(&"127.0.0.1:0".parse().unwrap(), exports, options).unwrap();
    let (stopper, address) = (server.stopper(), server.address().unwrap());
    let server = thread::spawn(move || server.serve().unwrap());
    {
        let link = Link::to(&address);
        let url = format!("extfuse://{}", link.address());
        let arguments = ["--require-module", "--writeback"];
        let mounted = Mounted::start(Path::new(&url), &scratch.mountpoint(), &arguments);
        let bytes = pattern(256 << 10, 1);
        fs::write(mounted.join("file"), &bytes).unwrap();
        let file = OpenOptions::new().write(true).open(mounted.join("file")).unwrap();
        // Its capabilities have been asked for.
        file.write_all_at(b"x", 0).unwrap();
        file.sync_all().unwrap();
        fs::metadata(mounted.join("file")).unwrap();
        file.write_all_at(b"y", 0).unwrap();
        link.mute();
        let start = Instant::now();
        for piece in 0..8u64 {
            file.write_all_at(&bytes[..32 << 10], piece << 15).unwrap();
        }
        let written = start.elapsed();
        let closed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(file);
                closed.store(true, Ordering::SeqCst);
            });
            thread::sleep(Duration::from_secs(1));
            assert!(!closed.load(Ordering::SeqCst), "close has not waited");
            link.go_on();
        });
        assert!(written < Duration::from_secs(2), "{written:?}");
        let there = fs::read(scratch.source().join("file")).unwrap();
        assert!(there.chunks(32 << 10).all(|piece| *piece == bytes[..32 << 10]));
    }
    stopper.stop();
    server.join().unwrap();
}

/// What the server says of a file while writes are on their way is not what is kept of it.
#[test]
fn a_name_that_nobody_knew_shows_what_was_written() {
    const ROUNDS: usize = 8;
    let scratch = Scratch::new();
    let first = scratch.source().join("file");
    let bytes = pattern(32 << 20, 1);
    fs::write(&first, &bytes).unwrap();
    for round in 0..ROUNDS {
        fs::hard_link(&first, scratch.source().join(format!("{round}"))).unwrap();
    }
    let options = Options {
        keep: None,
        ..Options::default()
    };
    let scene = Scene::over(scratch, options, &[&["--writeback"]]);
    let mounted = scene.mounted();
    let file = OpenOptions::new().write(true).open(mounted.join("file")).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // The server can look at the file meanwhile, and not write to it: this has its lock.
        scope.spawn(|| {
            let there = OpenOptions::new().write(true).open(&first).unwrap();
            while !over.load(Ordering::SeqCst) {
                there.write_all_at(&bytes, 0).unwrap();
            }
        });
        let _over = Over(&over);
        for round in 0..ROUNDS {
            let size = (bytes.len() + round) as u64 + 1;
            file.write_all_at(b"x", size - 1).unwrap();
            let name = mounted.join(&format!("{round}"));
            assert_eq!(fs::metadata(&name).unwrap().len(), size, "{round}");
            // Which makes the kernel ask once more, at least for when that was.
            let mut byte = [0];
            let read = File::open(&name).unwrap();
            posix_fadvise(&read, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            read.read_exact_at(&mut byte, size - 1).unwrap();
            assert_eq!(byte, *b"x");
            assert_eq!(fs::metadata(&name).unwrap().len(), size, "{round}, once more");
        }
    });
}

/// Says so when it goes, whatever the reason.
struct Over<'o>(&'o AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn fsx_finds_nothing_where_writes_are_late() {
    let options = Options {
        keep: None,
        ..Options::default()
    };
    let scene = Scene::new(options, &[&["--writeback", "--spool", "memory"]]);
    in_every_mode(scene.mounted().path(), 300, seed());
}
