// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory that is served and mounted through the module.

mod common;
#[path = "fsx/exerciser.rs"]
mod exerciser;
#[path = "common/guest.rs"]
mod guest;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use common::{Mounted, Scratch};
use exerciser::{Mode, Run};
use extfuse::remote::Address;
use extfuse::remote::server::{Export, Options, Server, Stopper};
use extfuse::remote::wire;
use guest::seed;

/// A directory, served by this process, and its mount.
struct Scene {
    mounted: Option<Mounted>,
    scratch: Scratch,
    stopper: Stopper,
    server: Option<thread::JoinHandle<()>>,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path().join("socket");
        let exports = vec![Export {
            name: wire::Export::new("").unwrap(),
            directory: scratch.source(),
            read_only: false,
        }];
        let server = Server::bind(&Address::Unix(socket.clone()), exports, Options::default()).unwrap();
        let stopper = server.stopper();
        let server = thread::spawn(move || server.serve().unwrap());
        let url = format!("extfuse+unix:{}", socket.display());
        let mounted = Mounted::start(Path::new(&url), &scratch.mountpoint(), &["--require-module"]);
        Self {
            mounted: Some(mounted),
            scratch,
            stopper,
            server: Some(server),
        }
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.mounted.take());
        self.stopper.stop();
        let ended = self.server.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

#[test]
fn a_remote_mount_through_the_module_is_never_stale() {
    let scene = Scene::new();
    assert!(scene.mounted().entry().fs_type.starts_with("extfuse"));
    let (there, here) = (scene.scratch.source().join("file"), scene.mounted().join("file"));
    for round in 0..100 {
        fs::write(&there, "x".repeat(round)).unwrap();
        assert_eq!(fs::metadata(&here).unwrap().len(), round as u64);
        assert_eq!(fs::read(&here).unwrap().len(), round);
        assert_eq!(
            fs::metadata(&here).unwrap().ino(),
            fs::metadata(&there).unwrap().ino()
        );
        fs::rename(&there, scene.scratch.source().join("other")).unwrap();
        assert_eq!(fs::metadata(&here).unwrap_err().kind(), ErrorKind::NotFound);
        fs::rename(scene.mounted().join("other"), &here).unwrap();
        assert_eq!(fs::read(&there).unwrap().len(), round);
    }
}

#[test]
fn fsx_finds_nothing_in_a_remote_mount_through_the_module() {
    let scene = Scene::new();
    for mode in Mode::ALL {
        let run = Run {
            dir: scene.mounted().path().to_owned(),
            ops: 500,
            seed: seed(),
            mode,
        };
        println!("{run}");
        run.run().unwrap_or_else(|error| panic!("{error}"));
    }
}
