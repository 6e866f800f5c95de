// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names of a synthetic file system, whose daemon changes what they stand for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::daemon::{Answer, COUNTED_STORM, COUNTS, Layout, STORM, Storm, Teller};
use super::{Changes, Figure, Names, succeeded};
use crate::mounts::file_system_at;
use crate::party::Party;

/// A daemon, and its mount.
pub struct Synthetic {
    daemon: Party,
    mountpoint: PathBuf,
}

impl Synthetic {
    pub fn start(teller: Teller, mountpoint: &Path, layout: Layout) -> Result<Self> {
        fs::create_dir_all(mountpoint)?;
        let numbers = [layout.names, layout.directories].map(|number| number.to_string());
        let arguments = [
            "storm-daemon",
            teller.name(),
            &numbers[0],
            &numbers[1],
            mountpoint.to_str().context("not UTF-8")?,
        ];
        let (daemon, _): (Party, String) = Party::start("daemon", &arguments)?;
        let wanted = match teller {
            Teller::StockNotify => "fuse",
            Teller::Coherent => "extfuse",
        };
        let found = file_system_at(mountpoint)?.unwrap_or_default();
        ensure!(
            found.split('.').next() == Some(wanted),
            "{found} is mounted instead of {wanted}"
        );
        Ok(Self {
            daemon,
            mountpoint: mountpoint.to_owned(),
        })
    }

    fn ask(&mut self, line: &str) -> Result<Answer> {
        succeeded(self.daemon.ask_for(line)?)
    }

    fn asked(&mut self) -> Result<u64> {
        let answer = self.ask(COUNTS)?;
        Ok(answer.lookups + answer.getattrs)
    }
}

impl Names for Synthetic {
    fn root(&self) -> PathBuf {
        self.mountpoint.clone()
    }

    fn changes(&self) -> Changes {
        |layout, name, stat| layout.changes(name, stat.st_ino)
    }

    fn upcalls(&mut self, look: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        let before = self.asked()?;
        look()?;
        Ok(self.asked()? - before)
    }

    fn storm(&mut self) -> Result<Storm> {
        self.ask(STORM)?.storm.context("there was no storm")
    }

    fn unseen(&mut self, _: &'static str) -> Result<Vec<Figure>> {
        let storm = self.ask(COUNTED_STORM)?.storm;
        let calls = storm.and_then(|storm| storm.system_calls);
        let calls = calls.context("nobody has counted")?;
        Ok(vec![(
            "system-calls",
            "system calls",
            "in all".into(),
            calls as f64,
        )])
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.daemon.end()
    }
}
