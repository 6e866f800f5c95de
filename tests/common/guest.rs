// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts through the module, of a directory on the guest's ext4.
//!
//! Included beside `common`, by the tests that run in the guest (`scripts/vm`).

// Every test program uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use extfuse::control::{self, Report, Requests};
use tempfile::TempDir;

use crate::common::pages::Pages;
use crate::common::{Mounted, PATIENCE};

/// Arguments of `extfuse mount` with which handlers answer.
pub const WITH_HANDLERS: [&[&str]; 2] = [&["--require-module"], &["--require-module", "--exclusive"]];
/// With which the module is there, but asked nothing.
pub const WITHOUT_HANDLERS: &[&str] = &["--require-module", "--no-handlers"];

/// A folder on the guest's ext4.
pub fn ext4_folder() -> TempDir {
    TempDir::new_in("/mnt/ext4").expect("the guest has an ext4 at /mnt/ext4: scripts/vm")
}

/// A mount, with its source on ext4.
#[derive(Debug)]
pub struct Tree {
    /// First: it has to go before its folders.
    pub mounted: Mounted,
    source: TempDir,
    _mountpoint: TempDir,
}

impl Tree {
    pub fn mount(arguments: &[&str]) -> Self {
        Self::mount_source(ext4_folder(), arguments)
    }

    /// Mounts a source that has something in it already.
    pub fn mount_source(source: TempDir, arguments: &[&str]) -> Self {
        let mountpoint = TempDir::new().unwrap();
        // Other users are to get in.
        for path in [source.path(), mountpoint.path()] {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self {
            mounted: Mounted::start(source.path(), mountpoint.path(), arguments),
            source,
            _mountpoint: mountpoint,
        }
    }

    /// A path on the mount.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mounted.path().join(name)
    }

    /// The same behind it.
    pub fn behind(&self, name: impl AsRef<Path>) -> PathBuf {
        self.source.path().join(name)
    }

    pub fn root(&self) -> &Path {
        self.mounted.path()
    }

    /// What `extfuse stat` tells, without starting a process for it.
    pub fn report(&self) -> Report {
        control::ask(self.mounted.entry().dev, None).unwrap()
    }

    pub fn count(&self, opcode: &str) -> Requests {
        self.report().opcodes.get(opcode).copied().unwrap_or_default()
    }

    /// How often handlers, or what the kernel keeps of their answers, answered.
    pub fn answered(&self) -> u64 {
        let report = self.report();
        report.opcodes.values().map(answered).sum()
    }

    /// Looks at a path until handlers answer for it: what is seen then is seen through the maps.
    pub fn warm(&self, name: impl AsRef<Path>) -> Option<Metadata> {
        let path = self.at(name);
        let start = Instant::now();
        loop {
            fs::symlink_metadata(&path).ok();
            let before = self.report().opcodes;
            let seen = fs::symlink_metadata(&path).ok();
            let after = self.report().opcodes;
            let upcalls = |report: &std::collections::BTreeMap<String, Requests>| {
                ["LOOKUP", "GETATTR"].map(|opcode| report.get(opcode).map_or(0, |row| row.upcalls))
            };
            let answers = |report: &std::collections::BTreeMap<String, Requests>| {
                report.values().map(answered).sum::<u64>()
            };
            if upcalls(&before) == upcalls(&after) && answers(&after) > answers(&before) {
                return seen;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "handlers do not answer for {path:?}: {after:?}"
            );
        }
    }

    /// Fails unless the mount shows of `name` what is behind it, but for the access time.
    #[track_caller]
    pub fn assert_same(&self, name: impl AsRef<Path>) {
        let name = name.as_ref();
        let seen = fs::symlink_metadata(self.at(name));
        let truth = fs::symlink_metadata(self.behind(name));
        match (seen, truth) {
            (Ok(seen), Ok(truth)) => assert_eq!(attributes(&seen), attributes(&truth), "{name:?}"),
            (seen, truth) => assert_eq!(
                seen.err().map(|error| error.raw_os_error()),
                truth.err().map(|error| error.raw_os_error()),
                "{name:?}"
            ),
        }
    }
}

/// Answers of one opcode that came from the maps, now or before.
pub fn answered(row: &Requests) -> u64 {
    row.returned.unwrap_or_default() + row.kept.unwrap_or_default()
}

/// All of a file's attributes that may not lag, but the device.
pub fn attributes(of: &Metadata) -> [(&'static str, i64); 11] {
    [
        ("ino", of.ino() as i64),
        ("mode", of.mode().into()),
        ("nlink", of.nlink() as i64),
        ("uid", of.uid().into()),
        ("gid", of.gid().into()),
        ("size", of.size() as i64),
        ("blocks", of.blocks() as i64),
        ("mtime", of.mtime()),
        ("mtime_nsec", of.mtime_nsec()),
        ("ctime", of.ctime()),
        ("ctime_nsec", of.ctime_nsec()),
    ]
}

/// Runs a test on a mount of each kind that has handlers, each fresh.
pub fn on_each(test: impl Fn(&Tree)) {
    for arguments in WITH_HANDLERS {
        println!("{arguments:?}");
        let tree = Tree::mount(arguments);
        test(&tree);
        let program = tree.report().program.expect("handlers");
        assert!(program.attached && program.errors == 0, "{program:?}");
    }
}

/// Long enough for a row of the default time to live to expire.
pub const PAST_TTL: Duration = Duration::from_millis(1100);

/// Seconds that a soak lasts: `variable` if it is set, or one of two.
pub fn seconds(variable: &str, usual: u64, long: u64) -> Duration {
    let given = std::env::var(variable).ok().map(|text| text.parse().unwrap());
    let long = std::env::var_os("EXTFUSE_LONG").map(|_| long);
    Duration::from_secs(given.or(long).unwrap_or(usual))
}

/// A seed of this moment, or the given one; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("EXTFUSE_SEED").map_or(now, |text| text.parse().unwrap());
    println!("EXTFUSE_SEED={seed}");
    seed
}

/// splitmix64: one word of state, any seed is good.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Runs in a thread whose file system ids are nobody's, without root's rights to files.
pub fn as_nobody<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    let run = || {
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(65534));
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        what()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// Pages of a file that are not on its disk yet.
pub fn dirty(file: &File) -> u64 {
    let pages = Pages::of(file).unwrap();
    pages.dirty + pages.writeback
}
