// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that return before the server has them, through the module.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::server::{Export, Options, Server};
use extfuse::remote::wire;

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

#[test]
fn fsx_finds_nothing_where_writes_are_late() {
    let options = Options {
        keep: None,
        ..Options::default()
    };
    let scene = Scene::new(options, &[&["--writeback", "--spool", "memory"]]);
    in_every_mode(scene.mounted().path(), 300, seed());
}
