// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounts of authors' file systems, which threads of the test serve.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use extfuse::control::{self, Report};
use extfuse::session::{SessionError, Unmounter};
use extfuse::{Kernel, Session};
use fuser::Filesystem;
use tempfile::TempDir;

use crate::common::mounts_at;

/// A mount, gone when the test ends.
#[derive(Debug)]
pub struct Served {
    at: TempDir,
    pub kernel: Kernel,
    pub unmounter: Unmounter,
    serving: Option<JoinHandle<Result<(), SessionError>>>,
}

impl Served {
    pub fn new<FS: Filesystem + Send + 'static>(mount: impl FnOnce(&Path) -> Session<FS>) -> Self {
        let at = mountpoint();
        let session = mount(at.path());
        Self {
            kernel: session.kernel(),
            unmounter: session.unmounter(),
            serving: Some(thread::spawn(move || session.serve())),
            at,
        }
    }

    pub fn root(&self) -> &Path {
        self.at.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }

    /// What `extfuse stat` tells.
    pub fn report(&self) -> Report {
        control::ask(mounts_at(self.root()).pop().unwrap().dev, None).unwrap()
    }

    /// Requests that came up, by opcode, but for those that come when they come.
    pub fn asked(&self) -> Vec<(String, u64)> {
        let mut asked: Vec<_> = self.report().opcodes.into_iter().collect();
        asked.retain(|(opcode, _)| {
            !["RELEASE", "RELEASEDIR", "FORGET", "BATCH_FORGET"].contains(&opcode.as_str())
        });
        asked
            .into_iter()
            .map(|(opcode, row)| (opcode, row.upcalls))
            .collect()
    }

    /// What comes up while something is done.
    pub fn upcalls(&self, what: impl FnOnce()) -> Vec<(String, u64)> {
        let before = self.asked();
        what();
        let mut after = self.asked();
        for (opcode, count) in &mut after {
            let was = before.iter().find(|(other, _)| other == opcode);
            *count -= was.map_or(0, |(_, count)| *count);
        }
        after.retain(|(_, count)| *count > 0);
        after
    }

    /// How serving ended.
    pub fn end(&mut self) -> Result<(), SessionError> {
        self.serving.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.unmounter.detach();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

pub fn mountpoint() -> TempDir {
    let prefix = tempfile::Builder::new().prefix("extfuse-test-").tempdir();
    prefix.unwrap()
}

/// All paths below a directory, each looked at.
pub fn find(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                left.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}
