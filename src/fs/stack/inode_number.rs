// SPDX-License-Identifier: MIT OR Apache-2.0
//! The inode numbers that users see.
//!
//! A mount has one `st_dev`, its source may reach over several devices, and two files must not look like
//! one. Numbers of the source's own device are shown as they are, all 64 bits. On any further device the
//! number has its top 16 bits exchanged (xor) with that device's place in the order of first use, 1 to
//! 65535: distinct wherever file systems number their inodes below 2^48, and stable as long as the daemon
//! runs.

use std::collections::HashMap;

use parking_lot::RwLock;

type Device = (u32, u32);

/// The devices met so far.
#[derive(Debug)]
pub struct InodeNumbers {
    source: Device,
    others: RwLock<HashMap<Device, u64>>,
}

impl InodeNumbers {
    /// `source` is the device of the root.
    pub fn new(source: Device) -> Self {
        Self {
            source,
            others: RwLock::default(),
        }
    }

    /// The number to show for inode `ino` of `device`.
    pub fn number(&self, device: Device, ino: u64) -> u64 {
        if device == self.source {
            return ino;
        }
        if let Some(place) = self.others.read().get(&device) {
            return ino ^ place << 48;
        }
        let mut others = self.others.write();
        let next = others.len() as u64 + 1;
        ino ^ *others.entry(device).or_insert(next) << 48
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_own_numbers_are_shown_as_they_are() {
        let numbers = InodeNumbers::new((8, 1));
        assert_eq!(numbers.number((8, 1), u64::MAX), u64::MAX);
    }

    #[test]
    fn the_same_number_on_another_device_differs_and_stays() {
        let numbers = InodeNumbers::new((8, 1));
        let (a, b) = (numbers.number((8, 2), 5), numbers.number((8, 3), 5));
        assert_eq!((a, b), (5 | 1 << 48, 5 | 2 << 48));
        assert_eq!(numbers.number((8, 2), 5), a);
    }
}
