// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends that nobody has prepared: the daemon killed, the connection aborted, programs attached and
//! replaced, each again and again at random moments, under load. Every caller gets an answer, the
//! mount goes, the next one works, the module can be removed. `scripts/vm` looks at the kernel's log.
//!
//! `EXTFUSE_SEED` repeats the moments.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "guest_handlers/harness.rs"]
#[allow(dead_code)]
mod harness;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use common::{Mounted, eventually, mounts_at};
use guest::{Random, ext4_folder, seed};

/// How long a caller may wait for the error after the end.
const TO_RETURN: Duration = Duration::from_secs(5);
/// Small maps: each mount makes and frees them.
const ARGUMENTS: [&[&str]; 2] = [
    &["--require-module", "-o", "entries=1000"],
    &["--require-module", "-o", "entries=1000", "--exclusive"],
];

/// What the threads do that keep a mount busy: one round of one of them, and what of it failed.
type Round = fn(&Path, u64) -> std::io::Result<()>;

const WORK: [Round; 5] = [look, write, make_names, list, hold];

fn look(root: &Path, _: u64) -> std::io::Result<()> {
    fs::metadata(root.join("dir/file"))?;
    match fs::metadata(root.join("dir/nowhere")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map(drop),
    }
}

fn write(root: &Path, round: u64) -> std::io::Result<()> {
    let path = root.join("written");
    File::create(&path)?.write_all(&round.to_ne_bytes().repeat(2000))?;
    fs::read(&path).map(drop)
}

fn make_names(root: &Path, round: u64) -> std::io::Result<()> {
    let name = |what: &str| root.join(format!("{what} {}", round % 7));
    fs::create_dir(name("dir"))?;
    symlink("target", name("dir").join("link"))?;
    fs::rename(name("dir").join("link"), name("link"))?;
    fs::remove_file(name("link"))?;
    fs::set_permissions(name("dir"), fs::Permissions::from_mode(0o700))?;
    fs::remove_dir(name("dir"))
}

fn list(root: &Path, _: u64) -> std::io::Result<()> {
    fs::read_dir(root)?.try_for_each(|entry| entry.map(drop))
}

/// Holds a file open meanwhile.
fn hold(root: &Path, round: u64) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(root.join("held"))?;
    for at in 0..20 {
        file.write_all_at(b"x", round + at)?;
        file.read_at(&mut [0; 10], at)?;
        file.metadata()?;
    }
    file.sync_all()
}

/// Threads that keep a mount busy until they are told, or get an error.
struct Load {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Option<std::io::Error>>>,
}

impl Load {
    fn on(root: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let threads = WORK
            .iter()
            .map(|work| {
                let (root, over, rounds) = (root.to_owned(), Arc::clone(&over), Arc::clone(&rounds));
                thread::spawn(move || {
                    for round in 0.. {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        if let Err(error) = work(&root, round) {
                            return Some(error);
                        }
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    None
                })
            })
            .collect();
        Self {
            over,
            rounds,
            threads,
        }
    }

    /// Ends it, and gives the errors that its threads got.
    fn end(self) -> Vec<std::io::Error> {
        self.over.store(true, Ordering::SeqCst);
        self.finish()
    }

    /// Waits until each thread has ended, by an error if nobody told it to.
    fn finish(self) -> Vec<std::io::Error> {
        let start = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) {
            assert!(
                start.elapsed() < TO_RETURN,
                "a call does not return: {}",
                stacks()
            );
            thread::sleep(Duration::from_millis(2));
        }
        self.threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect()
    }
}

/// Where the threads of this process are in the kernel.
fn stacks() -> String {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .map(|task| fs::read_to_string(task.path().join("stack")).unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A source with something in it, and a mount point.
fn folders() -> (TempDir, TempDir) {
    let (source, mountpoint) = (ext4_folder(), TempDir::new().unwrap());
    fs::create_dir(source.path().join("dir")).unwrap();
    fs::write(source.path().join("dir/file"), "content").unwrap();
    (source, mountpoint)
}

/// Removes what the load was at when it ended.
fn tidy_up(folder: &TempDir) {
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            fs::remove_file(path).unwrap();
        } else if path.file_name().unwrap() != "dir" {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

/// Mounts and ends it at a random moment under load, `count` times.
fn again_and_again(count: u64, end: impl Fn(&Mounted)) {
    let mut random = Random(seed());
    let (source, mountpoint) = folders();
    let (mut rounds, mut errors) = (0, 0);
    for number in 0..count {
        let arguments = ARGUMENTS[(number % 2) as usize];
        let mut mounted = Mounted::start(source.path(), mountpoint.path(), arguments);
        // The next one works: what was there is there.
        let content = fs::read_to_string(mounted.join("dir/file")).unwrap();
        assert_eq!(content, "content");
        let load = Load::on(mounted.path());
        thread::sleep(Duration::from_micros(random.below(150_000)));
        end(&mounted);
        rounds += load.rounds.load(Ordering::Relaxed);
        errors += load.end().len();
        mounted.wait();
        // Nobody has to unmount: the supervisor does.
        eventually(|| mounts_at(mountpoint.path()).is_empty());
        // Whoever came after the mount had gone has worked beside it.
        tidy_up(&source);
        tidy_up(&mountpoint);
    }
    println!("{count} ends in {rounds} rounds, {errors} callers got errors");
    assert!(errors > 0 && rounds > count);
}

fn kill(mounted: &Mounted) {
    mounted.signal(Signal::SIGKILL);
}

#[test]
fn kill_the_daemon_1_to_50() {
    again_and_again(50, kill);
}

#[test]
fn kill_the_daemon_51_to_100() {
    again_and_again(50, kill);
}

#[test]
fn kill_the_daemon_101_to_150() {
    again_and_again(50, kill);
}

/// And then the module can be removed, and loaded again.
#[test]
fn kill_the_daemon_151_to_200_and_remove_the_module_alone() {
    again_and_again(50, kill);
    remove_and_load_the_module();
}

#[test]
fn abort_the_connection_50_times() {
    again_and_again(50, |mounted| {
        let connection = mounted.entry().dev.minor;
        let path = format!("/sys/fs/extfuse/connections/{connection}/abort");
        fs::write(path, "1").unwrap();
    });
}

/// Nobody who watches over the daemon is left: the mount stays, dead, and can be unmounted.
#[test]
fn kill_the_daemon_and_its_supervisor() {
    let (source, mountpoint) = folders();
    for _ in 0..3 {
        let mut mounted = Mounted::start(source.path(), mountpoint.path(), ARGUMENTS[0]);
        let load = Load::on(mounted.path());
        thread::sleep(Duration::from_millis(50));
        nix::sys::signal::kill(mounted.supervisor(), Signal::SIGKILL).unwrap();
        mounted.signal(Signal::SIGKILL);
        let errors = load.finish();
        assert_eq!(errors.len(), WORK.len(), "{errors:?}");
        for error in errors {
            let errno = error.raw_os_error().unwrap();
            assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&errno), "{error}");
        }
        mounted.wait();
        let error = fs::metadata(mountpoint.path()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        umount2(mountpoint.path(), MntFlags::empty()).unwrap();
        tidy_up(&source);
    }
}

fn removed() -> bool {
    Command::new("rmmod")
        .arg("extfuse")
        .output()
        .unwrap()
        .status
        .success()
}

fn remove_and_load_the_module() {
    let control = "/sys/fs/extfuse/connections";
    while umount2(control, MntFlags::empty()).is_ok() {}
    // Maps and programs are freed after grace periods.
    eventually(removed);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let module: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "target/module",
        release.trim(),
        "extfuse.ko",
    ]
    .iter()
    .collect();
    assert!(Command::new("insmod").arg(module).status().unwrap().success());
    let mounted = Command::new("mount")
        .args(["-t", "extfusectl", "extfusectl", control])
        .status();
    assert!(mounted.unwrap().success());
    let (source, mountpoint) = folders();
    let mounted = Mounted::start(source.path(), mountpoint.path(), ARGUMENTS[0]);
    assert_eq!(fs::read_to_string(mounted.join("dir/file")).unwrap(), "content");
}

/// 500 times attached, replaced and detached, while everything is asked of the mount.
#[test]
fn attach_or_replace_programs_1000_times() {
    let mounted = harness::Mounted::new();
    fs::create_dir(mounted.at.join("dir")).unwrap();
    fs::write(mounted.at.join("dir/file"), "content").unwrap();
    let load = Load::on(&mounted.at);
    let every = u64::MAX;
    let load_programs = || {
        let mut programs = harness::Hostile::load(mounted.setup().conn, every).unwrap();
        programs.tell(|seen| seen.target = harness::GETATTR);
        programs
    };
    let mut programs = load_programs();
    let mut random = Random(seed());
    for round in 0..500 {
        if random.below(2) == 0 {
            thread::sleep(Duration::from_micros(random.below(3000)));
        }
        programs.attach().unwrap();
        fs::metadata(&mounted.at).unwrap();
        programs.replace_by_second().unwrap();
        fs::metadata(&mounted.at).unwrap();
        programs.link = None;
        assert_eq!(mounted.status().attached, 0);
        if round % 100 == 99 {
            programs = load_programs();
        }
    }
    let rounds = load.rounds.load(Ordering::Relaxed);
    let errors = load.end();
    assert!(errors.is_empty(), "{errors:?}");
    let status = mounted.status();
    println!("{rounds} rounds, {} attached or replaced", status.attaches);
    assert_eq!((status.attaches, status.errors), (1000, 0));
    assert!(rounds > 500);
}
