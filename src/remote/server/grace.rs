// SPDX-License-Identifier: MIT OR Apache-2.0
//! The leases that a server leaves behind.
//!
//! A server that is killed takes with it the knowledge of who keeps what. So there is a file for as long as somebody may
//! keep something; the next server that finds it makes no change before the longest lease is over. It need not be
//! on a disk: when the machine itself has gone, the time since it has come back counts.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ebpf::boot_time;

/// No server gives longer leases; what says so is no such file.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

/// The file.
#[derive(Debug)]
pub struct Grace(PathBuf);

impl Grace {
    /// Says that leases of this length are given from here on; gives the time before which no change may be made.
    ///
    /// # Errors
    /// If nobody would find it.
    pub fn begin(path: &Path, lease: Duration) -> io::Result<(Self, Option<Instant>)> {
        let left = match fs::read_to_string(path) {
            Ok(text) => {
                let before = text
                    .trim()
                    .parse()
                    .map_or(LONGEST.min(lease), Duration::from_millis);
                Some(before.min(LONGEST))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Only the longest is over when all are.
        let longest = left.map_or(lease, |left| left.max(lease));
        let mut file = fs::File::create(path)?;
        writeln!(file, "{}", longest.as_millis())?;
        let up = Duration::from_nanos(boot_time());
        let wait = left.unwrap_or_else(|| lease.saturating_sub(up));
        let until = (!wait.is_zero()).then(|| Instant::now() + wait);
        Ok((Self(path.to_owned()), until))
    }

    /// Nobody keeps anything any more.
    pub fn end(&self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(
                "cannot remove {}: {error}: the next server will wait",
                self.0.display()
            );
        }
    }
}
