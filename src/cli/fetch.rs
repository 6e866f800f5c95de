// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse fetch`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use extfuse::control::{Spool, ask};
use extfuse::sys::mountinfo::Location;
use indicatif::{ProgressBar, ProgressStyle};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use parking_lot::Mutex;

use super::stat::size;
use super::{Failure, complain, say};

/// Files that are read at the same time, so that nobody waits for each answer in turn.
const READERS: usize = 4;

/// What is read at a time, bytes.
const PIECE: usize = 1 << 20;

/// Bring files of a server into the spool of its mount, to have them here before they are needed.
///
/// Directories with all that is below them; links are not followed. Says how much came from the server, and how much was here
/// already. Files that the spool does not keep (larger than a quarter of it) are left out, with a warning.
#[derive(Debug, Args)]
pub struct Fetch {
    /// Files and directories below one mount with --spool
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What there is to read.
#[derive(Debug, Default)]
struct Found {
    /// With their sizes, the largest last.
    files: Vec<(u64, PathBuf)>,
    bytes: u64,
    wrong: bool,
}

impl Fetch {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let locations = self.paths.iter().map(|path| locate(path));
        let locations = locations.collect::<anyhow::Result<Vec<_>>>()?;
        let [first, others @ ..] = &locations[..] else {
            return Ok(ExitCode::SUCCESS);
        };
        for (path, other) in self.paths[1..].iter().zip(others) {
            if other.id.dev != first.id.dev {
                let error = anyhow!(
                    "{} is on another mount than {}",
                    path.display(),
                    self.paths[0].display()
                );
                return Err(error.into());
            }
        }
        let spool = || -> anyhow::Result<Spool> {
            let report = ask(first.id.dev, first.mount.owner());
            let report = report.with_context(|| self.paths[0].display().to_string())?;
            let spool = report.remote.and_then(|remote| remote.spool);
            spool.with_context(|| {
                format!(
                    "{} is on no mount that has a spool (--spool)",
                    self.paths[0].display()
                )
            })
        };
        let before = spool()?;
        let mut found = Found::default();
        for path in &self.paths {
            found.look(path, before.kept());
        }
        if found.bytes > before.limit {
            complain(&anyhow!(
                "{} are more than the spool keeps ({}): what is fetched first makes room for the rest",
                size(found.bytes),
                size(before.limit)
            ));
        }
        let (files, bytes) = (found.files.len(), found.bytes);
        let wrong = read_all(found.files, bytes, self.quiet) | found.wrong;
        let fetched = spool()?.fetched.saturating_sub(before.fetched);
        say(&format!(
            "extfuse: {files} {}, {}, of which {} came from the server\n",
            if files == 1 { "file" } else { "files" },
            size(bytes),
            size(fetched)
        ))?;
        Ok(if wrong {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn locate(path: &Path) -> anyhow::Result<Location> {
    let location = Location::of(path).with_context(|| path.display().to_string())?;
    if !location.mount.is_ours() {
        bail!("{} is on no extfuse mount", path.display());
    }
    Ok(location)
}

impl Found {
    fn complain(&mut self, path: &Path, error: &io::Error) {
        complain(&anyhow!("{}: {error}", path.display()));
        self.wrong = true;
    }

    /// Finds all files below a path that are on its file system, and not larger than `most`.
    fn look(&mut self, path: &Path, most: u64) {
        let top = match fs::metadata(path) {
            Ok(top) => top,
            Err(error) => return self.complain(path, &error),
        };
        let mut left = vec![(path.to_owned(), top.clone())];
        while let Some((path, about)) = left.pop() {
            if about.is_file() && about.len() > most {
                complain(&anyhow!(
                    "{} ({}) is larger than a quarter of the spool, and left out",
                    path.display(),
                    size(about.len())
                ));
                self.wrong = true;
            } else if about.is_file() {
                self.bytes += about.len();
                self.files.push((about.len(), path));
            } else if about.is_dir() && about.dev() == top.dev() {
                match list(&path) {
                    Ok(entries) => left.extend(entries),
                    Err(error) => self.complain(&path, &error),
                }
            }
        }
    }
}

fn list(dir: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path) {
            Ok(about) => entries.push((path, about)),
            // Somebody has removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// Reads files; whether any could not be read.
fn read_all(files: Vec<(u64, PathBuf)>, bytes: u64, quiet: bool) -> bool {
    // None where standard error is no terminal.
    let bar = if quiet {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(bytes)
    };
    let style = "{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let wrong = AtomicBool::new(false);
    let files = Mutex::new(files.into_iter());
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut buffer = vec![0; PIECE];
                loop {
                    // The lock is for taking one, not for reading it.
                    let next = files.lock().next();
                    let Some((_, path)) = next else { return };
                    if let Err(error) = read(&path, &mut buffer, &bar) {
                        bar.suspend(|| complain(&anyhow!("{}: {error}", path.display())));
                        wrong.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    wrong.into_inner()
}

fn read(path: &Path, buffer: &mut [u8], bar: &ProgressBar) -> io::Result<()> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    // What is in the page cache only would not be asked for.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL)?;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => bar.inc(n as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
