// SPDX-License-Identifier: MIT OR Apache-2.0
//! The suites that others wrote for file systems, and our own fsx, on the three that have to be alike:
//! ext4, and the same through the module, without and with handlers, and from a server, with leases. Stock FUSE needs no
//! guest for them: `tests/pjdfstest`, `tests/fsx`.

mod common;
#[path = "fsx/exerciser.rs"]
mod exerciser;
#[path = "common/guest.rs"]
mod guest;
#[path = "pjdfstest/verdicts.rs"]
mod verdicts;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use extfuse::remote::Address;
use extfuse::remote::server::{Export, Options, Server, Stopper};
use extfuse::remote::wire;
use tempfile::TempDir;

use common::Mounted;
use exerciser::{Mode, Run};
use guest::{Tree, WITH_HANDLERS, WITHOUT_HANDLERS, ext4_folder, seed};
use verdicts::{Verdict, compare, verdicts};

/// Operations of fsx on each, in all modes together.
const OPERATIONS: u64 = 100_000;

/// All modes at the same time: each has its own file, and the guest two CPUs.
fn exercise(dir: &Path, operations: u64) {
    let seed = seed();
    thread::scope(|scope| {
        for mode in Mode::ALL {
            let run = Run {
                dir: dir.to_owned(),
                ops: operations.div_ceil(Mode::ALL.len() as u64),
                seed,
                mode,
            };
            println!("{run}");
            scope.spawn(move || match run.run() {
                Ok(counts) => println!("{mode:?}: {:?}", counts.0),
                Err(error) => panic!("{error}"),
            });
        }
    });
}

#[test]
fn fsx_on_ext4() {
    // What is tried is fsx itself.
    exercise(ext4_folder().path(), OPERATIONS / 5);
}

#[test]
fn fsx_without_handlers() {
    exercise(Tree::mount(WITHOUT_HANDLERS).root(), OPERATIONS);
}

#[test]
fn fsx_with_handlers() {
    let tree = Tree::mount(WITH_HANDLERS[0]);
    exercise(tree.root(), OPERATIONS);
    assert!(tree.answered() > 100, "handlers answered nothing");
    assert!(
        tree.count("READ").passthru.unwrap() > 1000,
        "nothing was passed through"
    );
    let program = tree.report().program.unwrap();
    assert!(program.attached && program.errors == 0, "{program:?}");
}

/// Something mounted in a folder of its own, until it is dropped.
struct Elsewhere(TempDir);

impl Elsewhere {
    fn mount(arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount").args(arguments).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        Self(dir)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = nix::mount::umount(self.0.path());
    }
}

/// A directory on ext4, served by this process, and mounted with leases.
struct Served {
    mounted: Option<Mounted>,
    mountpoint: TempDir,
    stopper: Stopper,
    server: Option<thread::JoinHandle<()>>,
    _source: TempDir,
}

impl Served {
    fn mount() -> Self {
        let (source, mountpoint) = (ext4_folder(), TempDir::new().unwrap());
        let socket = source.path().with_extension("socket");
        let export = Export {
            name: wire::Export::new("").unwrap(),
            directory: source.path().to_owned(),
            read_only: false,
        };
        let options = Options {
            // Nobody changes the directory without the server.
            keep: None,
            ..Options::default()
        };
        let server = Server::bind(&Address::Unix(socket.clone()), vec![export], options).unwrap();
        let stopper = server.stopper();
        let server = thread::spawn(move || server.serve().unwrap());
        let url = format!("extfuse+unix:{}", socket.display());
        let mounted = Mounted::start(Path::new(&url), mountpoint.path(), &["--require-module"]);
        Self {
            mounted: Some(mounted),
            mountpoint,
            stopper,
            server: Some(server),
            _source: source,
        }
    }

    fn root(&self) -> &Path {
        self.mountpoint.path()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.mounted.take());
        self.stopper.stop();
        let ended = self.server.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

#[test]
fn pjdfstest_gives_the_verdicts_of_ext4() {
    let tmpfs = Elsewhere::mount(&["-t", "tmpfs", "none"]);
    let elsewhere = tmpfs.0.path();
    // Its tests of long paths go wrong on some lengths of the path to begin with: all have one like
    // the mounts'.
    let ext4 = Elsewhere::mount(&["--bind", "/mnt/ext4"]);
    let native = verdicts(ext4.0.path(), elsewhere).0;
    let failed: Vec<_> = native
        .iter()
        .filter(|(_, verdict)| **verdict == Verdict::Failed)
        .collect();
    assert!(failed.is_empty(), "ext4 itself fails: {failed:?}");
    let all = WITH_HANDLERS.into_iter();
    // Without handlers it is stock FUSE, but for the module: that is for those who have time.
    let long = std::env::var_os("EXTFUSE_LONG").is_some();
    for arguments in all.chain(long.then_some(WITHOUT_HANDLERS)) {
        let start = Instant::now();
        let tree = Tree::mount(arguments);
        fs::set_permissions(tree.root(), Permissions::from_mode(0o777)).unwrap();
        compare(&native, tree.root(), elsewhere);
        println!("{arguments:?}: as ext4, {:?}", start.elapsed());
        if let Some(program) = tree.report().program {
            assert!(program.attached && program.errors == 0, "{program:?}");
            assert!(tree.answered() > 100, "handlers answered nothing");
        }
    }
    let start = Instant::now();
    let served = Served::mount();
    fs::set_permissions(served.root(), Permissions::from_mode(0o777)).unwrap();
    compare(&native, served.root(), elsewhere);
    let report = served.mounted.as_ref().unwrap().report();
    let answered: u64 = report.opcodes.values().map(guest::answered).sum();
    println!(
        "served: as ext4, {:?}, {answered} answered in the kernel",
        start.elapsed()
    );
    let program = report.program.unwrap();
    assert!(program.attached && program.errors == 0, "{program:?}");
    assert!(answered > 100 && report.remote.unwrap().round_trips > 100);
}
