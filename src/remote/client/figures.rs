// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is counted, for `extfuse stat`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the mount began.
#[derive(Debug, Default)]
pub(super) struct Counts {
    round_trips: AtomicU64,
    filled: AtomicU64,
    copied: AtomicU64,
    spooled: AtomicU64,
}

impl Counts {
    /// The server has answered.
    pub fn answered(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    /// So many bytes of a file have reached the application, past this process or through its memory.
    pub fn read(&self, bytes: u64, past: bool) {
        let count = if past { &self.filled } else { &self.copied };
        count.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many came from the spool.
    pub fn spooled(&self, bytes: u64) {
        self.spooled.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Round trips, and bytes past this process, through it, and from its spool.
    pub fn all(&self) -> [u64; 4] {
        [&self.round_trips, &self.filled, &self.copied, &self.spooled]
            .map(|count| count.load(Ordering::Relaxed))
    }
}
