// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs with their libraries, in memory: the guest has its own root from the machine, and waiting for
//! that is no work, but the clock would count it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::workloads::{self, Workload};

/// The loader of x86-64, which finds everything else.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// A folder of programs.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
    files: Vec<String>,
}

fn in_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name));
    found
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed: scripts/setup"))
}

impl Programs {
    /// Copies what `workloads` need to `folder`.
    pub fn copy(folder: &Path, workloads: &[Workload]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let put = |from: &Path| -> Result<()> {
            let name = from.file_name().with_context(|| format!("{from:?}"))?;
            fs::copy(from, folder.join(name)).with_context(|| format!("cannot copy {from:?}"))?;
            Ok(())
        };
        put(Path::new(LOADER))?;
        for workload in workloads {
            let program = in_path(workload.arguments[0])?;
            put(&program)?;
            let list = Command::new(LOADER).arg("--list").arg(&program).output()?;
            ensure!(
                list.status.success(),
                "{LOADER} --list {program:?}: {}",
                list.status
            );
            for line in String::from_utf8(list.stdout)?.lines() {
                if let Some(library) = line.split(" => ").nth(1).and_then(|rest| rest.split(' ').next()) {
                    put(Path::new(library))?;
                }
            }
        }
        nix::unistd::sync();
        Ok(Self {
            folder: folder.to_path_buf(),
            files: workloads::files(),
        })
    }

    fn command(&self, workload: &Workload) -> Command {
        let mut command = Command::new(self.folder.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&self.folder);
        command.arg(self.folder.join(workload.arguments[0]));
        command.args(&workload.arguments[1..]);
        if workload.each_file {
            command.args(&self.files);
        }
        workloads::quiet(&mut command);
        command
    }

    /// What it prints in the current directory.
    pub fn output(&self, workload: &Workload) -> Result<Vec<u8>> {
        let output = self.command(workload).output()?;
        ensure!(
            output.status.code() == Some(workload.status) && output.stderr.is_empty(),
            "{}: {}: {}",
            workload.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output.stdout)
    }

    /// What it costs in the current directory, from starting the process to its end.
    pub fn cost(&self, workload: &Workload) -> Result<f64> {
        let mut command = self.command(workload);
        command.stdout(Stdio::null());
        let start = Instant::now();
        let status = command.status()?;
        let cost = start.elapsed().as_nanos() as f64;
        ensure!(
            status.code() == Some(workload.status),
            "{}: {status}",
            workload.name
        );
        Ok(cost)
    }
}
