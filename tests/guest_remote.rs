// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory that is served and mounted through the module.

#[path = "guest_remote/bare.rs"]
mod bare;
#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "fsx/exerciser.rs"]
mod exerciser;
#[path = "common/flipper.rs"]
mod flipper;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/linear.rs"]
mod linear;
#[path = "common/link.rs"]
#[allow(dead_code, reason = "only muting is of interest here")]
mod link;
#[path = "guest_remote/locks.rs"]
mod locks;
#[path = "common/histories.rs"]
mod players;
#[path = "guest_remote/spoiled.rs"]
mod spoiled;
#[path = "common/spoiler.rs"]
mod spoiler;
#[path = "guest_remote/spool.rs"]
mod spool;
#[path = "guest_remote/sums.rs"]
mod sums;
#[path = "guest_remote/tls.rs"]
mod tls;
#[path = "common/tls_ends.rs"]
mod tls_ends;
#[path = "guest_remote/writeback.rs"]
mod writeback;
#[path = "common/xattr.rs"]
mod xattr;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::{Mounted, Scratch};
use exerciser::in_every_mode;
use extfuse::remote::Address;
use extfuse::remote::server::{Export, Options, Server, Stopper};
use extfuse::remote::wire;
use flipper::Flipper;
use guest::seed;
use nix::errno::Errno;
use players::{Player, plan, run};

/// A directory, served by this process, and its mounts.
struct Scene {
    mounts: Vec<Mounted>,
    scratch: Scratch,
    stopper: Stopper,
    server: Option<thread::JoinHandle<()>>,
}

impl Scene {
    /// Each mount with more arguments of its own.
    fn new(options: Options, mounts: &[&[&str]]) -> Self {
        let scratch = Scratch::new();
        Self::over(scratch, options, mounts)
    }

    fn over(scratch: Scratch, options: Options, mounts: &[&[&str]]) -> Self {
        let socket = scratch.path().join("socket");
        let exports = vec![Export {
            name: wire::Export::new("").unwrap(),
            directory: scratch.source(),
            read_only: false,
        }];
        let server = Server::bind(&Address::Unix(socket.clone()), exports, options).unwrap();
        let stopper = server.stopper();
        let server = thread::spawn(move || server.serve().unwrap());
        let url = format!("extfuse+unix:{}", socket.display());
        let mount = |(number, more): (usize, &&[&str])| {
            let mountpoint = scratch.path().join(format!("mount-{number}"));
            fs::create_dir(&mountpoint).unwrap();
            let arguments = [&["--require-module"], *more].concat();
            Mounted::start(Path::new(&url), &mountpoint, &arguments)
        };
        Self {
            mounts: mounts.iter().enumerate().map(mount).collect(),
            scratch,
            stopper,
            server: Some(server),
        }
    }

    /// One whose kernels keep what the server allows, and nobody changes the directory without the server.
    fn kept(mounts: usize) -> Self {
        let options = Options {
            keep: None,
            ..Options::default()
        };
        Self::new(options, &vec![&[] as &[&str]; mounts])
    }

    fn mounted(&self) -> &Mounted {
        &self.mounts[0]
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.mounts.clear();
        self.stopper.stop();
        let ended = self.server.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

/// What came up, by opcode.
fn upcalls(mounted: &Mounted) -> BTreeMap<String, u64> {
    let report = mounted.report();
    report
        .opcodes
        .into_iter()
        .map(|(opcode, row)| (opcode, row.upcalls))
        .collect()
}

/// What came up while `run` ran.
fn while_running(mounted: &Mounted, run: impl FnOnce()) -> BTreeMap<String, u64> {
    let before = upcalls(mounted);
    run();
    let mut after = upcalls(mounted);
    after.retain(|opcode, count| {
        *count -= before.get(opcode).copied().unwrap_or(0);
        *count > 0
    });
    after
}

/// Looks at everything, as `find`, `ls -l` and `cat` would.
fn look_at_everything(dir: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let seen = fs::symlink_metadata(&path).unwrap();
        assert!(xattr::get(&path, c"system.posix_acl_access").is_err());
        if seen.is_dir() {
            files += look_at_everything(&path);
        } else if seen.is_symlink() {
            fs::read_link(&path).unwrap();
        } else {
            assert_eq!(fs::read(&path).unwrap().len() as u64, seen.len());
            files += 1;
        }
    }
    assert!(!dir.join("missing").exists());
    files
}

fn make_tree(dir: &Path, directories: usize, files: usize) {
    for d in 0..directories {
        let sub = dir.join(format!("d{d}"));
        fs::create_dir(&sub).unwrap();
        for f in 0..files {
            fs::write(sub.join(format!("f{f}")), format!("{d}/{f}").repeat(f + 1)).unwrap();
        }
        std::os::unix::fs::symlink("f0", sub.join("link")).unwrap();
    }
}

#[test]
fn what_is_warm_asks_nobody() {
    let scratch = Scratch::new();
    make_tree(&scratch.source(), 10, 30);
    let options = Options {
        keep: None,
        ..Options::default()
    };
    let scene = Scene::over(scratch, options, &[&[]]);
    let root = scene.mounted().path();
    for _ in 0..2 {
        assert_eq!(look_at_everything(root), 300);
    }
    let warm = while_running(scene.mounted(), || {
        assert_eq!(look_at_everything(root), 300);
    });
    assert!(warm.is_empty(), "{warm:?}");
}

/// Bytes in which none is where another one belongs.
fn pattern(length: usize, round: u64) -> Vec<u8> {
    let words = (0..length as u64 / 8).map(|at| (at ^ round << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

#[test]
fn what_is_read_goes_past_the_daemon() {
    let scene = Scene::kept(2);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    for round in 0..3 {
        // The end is within a page, and within what one READ asks for.
        let mut bytes = pattern(4 << 20, round);
        bytes.extend_from_slice(&pattern(20 << 10, round + 100)[..20_001]);
        fs::write(there.join("file"), &bytes).unwrap();
        let before = here.report().remote.unwrap();
        assert!(fs::read(here.join("file")).unwrap() == bytes, "round {round}");
        let after = here.report().remote.unwrap();
        let (filled, copied) = (after.filled - before.filled, after.copied - before.copied);
        println!("{filled} filled, {copied} copied");
        assert!(filled >= 4 << 20, "{filled} past the daemon");
        assert!(copied < 256 << 10, "{copied} through it");
        assert!(after.connected && after.connections == 1 && after.lease_left > 0.0);
        // It is here now, and nobody is asked.
        let warm = while_running(here, || {
            assert!(fs::read(here.join("file")).unwrap() == bytes);
        });
        assert!(round == 0 || warm.is_empty(), "{warm:?}");
    }
}

#[test]
fn free_space_is_a_second_old_at_most() {
    let scene = Scene::kept(2);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    let free = || {
        let seen = nix::sys::statvfs::statvfs(here.path()).unwrap();
        seen.blocks_free() * seen.fragment_size()
    };
    for round in 0..2 {
        thread::sleep(Duration::from_millis(1600));
        let before = free();
        let asked = while_running(here, || assert_eq!(free(), before));
        assert!(!asked.contains_key("STATFS"), "{round}: {asked:?}");
        fs::write(there.join(&format!("file-{round}")), pattern(8 << 20, round)).unwrap();
        thread::sleep(Duration::from_millis(1600));
        let now = free();
        assert!(now + (7 << 20) < before, "{round}: {now} of {before}");
    }
}

#[test]
fn data_that_was_changed_on_the_way_is_never_seen() {
    let scene = Scene::kept(1);
    let socket = scene.scratch.path().join("flipping");
    let flipper = Flipper::new(&socket, &scene.scratch.path().join("socket"), 3_000_001);
    let mountpoint = scene.scratch.path().join("through-it");
    fs::create_dir(&mountpoint).unwrap();
    let url = format!("extfuse+unix:{}", socket.display());
    let mounted = Mounted::start(
        Path::new(&url),
        &mountpoint,
        &["--require-module", "--timeout=10"],
    );
    let bytes = pattern(8 << 20, 7);
    fs::write(scene.mounted().join("file"), &bytes).unwrap();
    let (mut right, mut wrong) = (0, 0);
    let start = Instant::now();
    while flipper.flipped() < 12 {
        assert!(start.elapsed() < Duration::from_secs(120));
        // An opened anew one: the session may have been lost with its connection.
        let Ok(file) = fs::File::open(mounted.join("file")) else {
            wrong += 1;
            continue;
        };
        let mut part = vec![0; 128 << 10];
        for at in (0..bytes.len()).step_by(part.len()) {
            match file.read_exact_at(&mut part, at as u64) {
                Ok(()) => {
                    assert!(part == bytes[at..at + part.len()], "wrong bytes at {at}");
                    right += 1;
                }
                Err(error) => {
                    println!("at {at}: {error}");
                    wrong += 1;
                }
            }
        }
        // So that all is asked for again.
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    }
    println!("{right} reads, {wrong} errors, {} bits", flipper.flipped());
    // What failed while it was read ahead, the kernel has asked for again.
    assert!(right > 100);
    let filled = mounted.report().remote.unwrap().filled;
    assert!(filled > 8 << 20, "{filled}");
}

#[test]
fn a_remote_mount_through_the_module_is_never_stale() {
    let scene = Scene::new(Options::default(), &[&["--consistency", "strict"]]);
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
    let scene = Scene::kept(1);
    in_every_mode(scene.mounted().path(), 500, seed());
}

/// One who looks through a mount.
struct Visitor {
    root: PathBuf,
    folder: PathBuf,
}

impl Visitor {
    fn new(mounted: &Mounted) -> Self {
        Self {
            root: mounted.path().to_owned(),
            folder: PathBuf::new(),
        }
    }

    fn open(&self, options: &mut fs::OpenOptions, name: &str) -> Result<fs::File, Errno> {
        options.open(self.folder.join(name)).map_err(errno)
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap())
}

impl Player for Visitor {
    fn enter(&mut self, folder: &str) -> Result<(), Errno> {
        self.folder = self.root.join(folder);
        Ok(())
    }

    fn look(&self, name: &str) -> Result<u64, Errno> {
        let seen = fs::symlink_metadata(self.folder.join(name)).map_err(errno)?;
        Ok(seen.ino())
    }

    fn make(&self, name: &str) -> Result<u64, Errno> {
        let file = self.open(fs::OpenOptions::new().write(true).create_new(true), name)?;
        Ok(file.metadata().map_err(errno)?.ino())
    }

    fn remove(&self, name: &str) -> Result<(), Errno> {
        fs::remove_file(self.folder.join(name)).map_err(errno)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        fs::rename(self.folder.join(from), self.folder.join(to)).map_err(errno)
    }

    fn size(&self) -> Result<u64, Errno> {
        let seen = fs::metadata(self.folder.join("file")).map_err(errno)?;
        Ok(seen.len())
    }

    fn set_size(&self, size: u64) -> Result<(), Errno> {
        let file = self.open(fs::OpenOptions::new().write(true), "file")?;
        file.set_len(size).map_err(errno)
    }

    fn read(&self) -> Result<u64, Errno> {
        let mut bytes = [0; 8];
        let file = self.open(fs::OpenOptions::new().read(true), "data")?;
        file.read_exact_at(&mut bytes, 0).map_err(errno)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn write(&self, number: u64) -> Result<(), Errno> {
        let file = self.open(fs::OpenOptions::new().write(true), "data")?;
        file.write_all_at(&number.to_ne_bytes(), 0).map_err(errno)
    }
}

#[test]
fn what_several_mounts_show_is_what_one_copy_would_show() {
    // The server, which is in this process, has one for each inode that a mount knows.
    extfuse::fs::Stack::raise_nofile().unwrap();
    let scene = Scene::kept(3);
    let again = |who: usize| Visitor::new(&scene.mounts[who]);
    let mut visitors: Vec<_> = (0..3).map(again).collect();
    let told = run(
        plan(30),
        12,
        &scene.scratch.source(),
        &mut visitors,
        |_, _| {},
        again,
    );
    assert_eq!(told.broken, 0);
}

#[test]
fn what_one_mount_changes_others_see_at_once_though_they_had_kept_it() {
    let scene = Scene::kept(2);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    let names = |mounted: &Mounted| {
        let mut names: Vec<_> = fs::read_dir(mounted.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    fs::write(there.join("file"), "0").unwrap();
    for round in 0..8 {
        let text = "x".repeat(round + 1);
        // Until nothing is asked any more.
        for _ in 0..3 {
            fs::metadata(here.join("file")).unwrap();
            fs::read(here.join("file")).unwrap();
            fs::metadata(here.join("other")).unwrap_err();
            let _ = xattr::get(&here.join("file"), c"user.round");
            assert_eq!(names(here), ["file"]);
        }
        let asked = while_running(here, || {
            fs::metadata(here.join("file")).unwrap();
            fs::read(here.join("file")).unwrap();
            fs::metadata(here.join("other")).unwrap_err();
            let _ = xattr::get(&here.join("file"), c"user.round");
            assert_eq!(names(here), ["file"]);
        });
        assert!(asked.is_empty(), "round {round}: {asked:?}");

        fs::write(there.join("file"), &text).unwrap();
        assert_eq!(fs::metadata(here.join("file")).unwrap().len(), text.len() as u64);
        assert_eq!(fs::read_to_string(here.join("file")).unwrap(), text);
        xattr::set(&there.join("file"), c"user.round", text.as_bytes()).unwrap();
        assert_eq!(
            xattr::get(&here.join("file"), c"user.round"),
            Ok(text.into_bytes())
        );
        fs::set_permissions(
            there.join("file"),
            std::os::unix::fs::PermissionsExt::from_mode(0o640),
        )
        .unwrap();
        assert_eq!(fs::metadata(here.join("file")).unwrap().mode() & 0o777, 0o640);
        fs::set_permissions(
            there.join("file"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        fs::hard_link(there.join("file"), there.join("other")).unwrap();
        assert_eq!(fs::metadata(here.join("other")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(here.join("file")).unwrap().nlink(), 2);
        assert_eq!(names(here), ["file", "other"]);
        fs::rename(there.join("other"), there.join("new")).unwrap();
        assert_eq!(names(here), ["file", "new"]);
        assert!(!here.join("other").exists() && here.join("new").exists());
        fs::remove_file(there.join("new")).unwrap();
        assert!(!here.join("new").exists());
        assert_eq!(fs::metadata(here.join("file")).unwrap().nlink(), 1);
    }
}

/// The kernel itself ends it, whatever the daemon does: here it does nothing at all.
#[test]
fn what_is_kept_is_void_when_the_lease_is_over() {
    let lease = Duration::from_secs(4);
    let options = Options {
        keep: None,
        lease,
        ..Options::default()
    };
    let scene = Scene::new(options, &[&["--timeout", "3"], &[]]);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    fs::write(there.join("file"), "old").unwrap();
    assert_eq!(fs::metadata(here.join("file")).unwrap().len(), 3);
    assert_eq!(fs::metadata(here.join("file")).unwrap().len(), 3);
    here.signal(nix::sys::signal::Signal::SIGSTOP);
    // Nobody has changed anything, and the lease holds.
    assert_eq!(fs::metadata(here.join("file")).unwrap().len(), 3);
    let start = Instant::now();
    fs::write(there.join("file"), "newer").unwrap();
    let took = start.elapsed();
    assert!(took > lease / 2 && took < lease * 3, "{took:?}");
    thread::scope(|scope| {
        let seen = scope.spawn(|| fs::metadata(here.join("file")).unwrap().len());
        thread::sleep(lease / 4);
        assert!(!seen.is_finished(), "an answer from what is void");
        here.signal(nix::sys::signal::Signal::SIGCONT);
        assert_eq!(seen.join().unwrap(), 5);
    });
}
