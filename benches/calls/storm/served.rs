// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names of a server's directory, which is mounted here; another client changes what they stand for.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::FileStat;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::daemon::{Answer, Layout, STORM, Storm};
use super::system_calls::ByPurpose;
use super::{AT_A_TIME, Figure, Names, at_a_time, succeeded};
use crate::party::Party;
use crate::remote;
use crate::remote::far::{Far, Mount};

/// In storms that nobody sees: a figure for each name needs no more.
const UNSEEN: usize = 10_000;

/// In memory, gone when it is dropped: a disk for so many files would be larger than that of the other suites.
#[derive(Debug)]
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        mount(
            Some("storm"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("nr_inodes=1m"),
        )
        .context("cannot mount a tmpfs")?;
        Ok(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot clean up: {error}");
        }
    }
}

/// Empty files that were never changed.
fn make(tree: &Path, layout: Layout) -> Result<()> {
    for directory in 0..layout.directories {
        fs::create_dir(tree.join(directory.to_string()))?;
    }
    let never = FileTimes::new().set_modified(UNIX_EPOCH);
    for name in 0..layout.names {
        File::create(tree.join(layout.path(name)))?.set_times(never)?;
    }
    Ok(())
}

/// A served tree, in the order in which it goes.
pub struct Served {
    changer: Party,
    mount: Mount,
    daemon: Pid,
    far: Far,
    _tree: Tmpfs,
    layout: Layout,
    smoke: bool,
}

impl Served {
    pub fn start(base: &Path, layout: Layout, smoke: bool) -> Result<Self> {
        let tree = Tmpfs::new(base.join("tree"))?;
        make(&tree.0, layout).context("cannot make the tree")?;
        let far = Far::serve(remote::Variant::Extfuse, &tree.0, &base.join("far"), smoke)?;
        let mount = far.mount()?;
        let (address, token) = far.reached().context("nobody serves")?;
        let numbers = [layout.names, layout.directories].map(|number| number.to_string());
        let token = token.to_str().context("not UTF-8")?;
        let arguments = ["storm-changer", address, token, &numbers[0], &numbers[1]];
        let (changer, _): (Party, String) = Party::start("changer", &arguments)?;
        Ok(Self {
            changer,
            daemon: mount.daemon()?,
            mount,
            far,
            _tree: tree,
            layout,
            smoke,
        })
    }

    fn change(&mut self, names: usize) -> Result<Storm> {
        let answer: Answer = self.changer.ask_for(&format!("{STORM} {names}"))?;
        succeeded(answer)?.storm.context("there was no storm")
    }

    /// Processor time of the daemon, so far.
    fn used(&self) -> Result<u64> {
        let clock = ClockId::pid_cpu_clock_id(self.daemon).context("the daemon is gone")?;
        let used = clock_gettime(clock)?;
        Ok(used.tv_sec() as u64 * 1_000_000_000 + used.tv_nsec() as u64)
    }
}

impl Names for Served {
    fn root(&self) -> PathBuf {
        self.mount.path.clone()
    }

    fn changes(&self) -> super::Changes {
        |_, _, stat: &FileStat| u64::try_from(stat.st_mtime).ok()
    }

    fn upcalls(&mut self, look: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        let before = self.mount.counters()?;
        look()?;
        let counted = self.mount.counted_since(&before)?.context("nobody counts")?;
        Ok(counted.of("LOOKUP").upcalls + counted.of("GETATTR").upcalls)
    }

    fn storm(&mut self) -> Result<Storm> {
        self.change(self.layout.names)
    }

    fn unseen(&mut self, metric: &'static str) -> Result<Vec<Figure>> {
        // Without the module nothing is kept, and nobody has to be told.
        if self.smoke {
            return Ok(Vec::new());
        }
        let names = self.layout.names.min(UNSEEN);
        let each = |sum: u64| sum as f64 / names as f64;
        let before = self.used()?;
        let quiet = self.change(names)?;
        let told = self.used()? - before;
        let mut calls = ByPurpose::of_process(self.daemon)?;
        // All of it is kept no more since the storm before.
        let paths: Vec<PathBuf> = (0..names).map(|name| self.layout.path(name).into()).collect();
        at_a_time(AT_A_TIME, |first| -> Result<()> {
            for path in paths.iter().skip(first).step_by(AT_A_TIME) {
                fs::metadata(path)?;
            }
            Ok(())
        })?;
        let (_, made) = calls.during(|| self.change(names))?;
        let per_name = |case, calls: u64| (case, "system calls", "system calls/name".into(), each(calls));
        Ok(vec![
            ("telling", metric, format!("{metric}/name"), each(told)),
            (
                "change",
                metric,
                format!("{metric}/name"),
                each(quiet.ended - quiet.began),
            ),
            per_name("calls-receiving", made.receiving),
            per_name("calls-sending", made.sending),
            per_name("calls-handing-over", made.handing_over),
            per_name("calls-others", made.others),
        ])
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.changer.end()?;
        self.mount.close()?;
        self.far.stop()
    }
}
