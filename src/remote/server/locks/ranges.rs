// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bytes that one owner has locked, as fcntl(2) reckons them.

use crate::sys::lock::{Kind, Range};

/// Ranges in order, none of which touches another one of its kind, or overlaps any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Range> {
        self.0.iter()
    }

    /// Whether a lock of this kind has any of these bytes.
    pub fn has(&self, kind: Kind, start: u64, end: u64) -> bool {
        let overlaps = |range: &&Range| range.kind == kind && range.start <= end && start <= range.end;
        self.0.iter().find(overlaps).is_some()
    }

    /// What they are once `new` is set (or, if it is an unlock, taken away).
    #[must_use]
    pub fn with(&self, new: Range) -> Self {
        let mut ranges = Vec::with_capacity(self.0.len() + 2);
        for old in &self.0 {
            if old.start < new.start {
                ranges.push(Range {
                    end: old.end.min(new.start - 1),
                    ..*old
                });
            }
            if old.end > new.end {
                ranges.push(Range {
                    start: old.start.max(new.end + 1),
                    ..*old
                });
            }
        }
        if new.kind != libc::F_UNLCK {
            ranges.push(new);
        }
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.kind == range.kind && last.end + 1 == range.start => last.end = range.end,
                _ => joined.push(range),
            }
        }
        Self(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lock::LAST;

    fn range(kind: Kind, start: u64, end: u64) -> Range {
        Range { kind, start, end }
    }

    #[test]
    fn what_is_set_splits_joins_and_replaces() {
        use libc::{F_RDLCK as READ, F_UNLCK as NONE, F_WRLCK as WRITE};
        let all = Ranges::default().with(range(WRITE, 0, LAST));
        let split = all.with(range(NONE, 10, 19));
        assert_eq!(split.0, [range(WRITE, 0, 9), range(WRITE, 20, LAST)]);
        let changed = split.with(range(READ, 5, 24));
        assert_eq!(
            changed.0,
            [range(WRITE, 0, 4), range(READ, 5, 24), range(WRITE, 25, LAST)]
        );
        assert_eq!(changed.with(range(WRITE, 5, 24)), all);
        assert!(changed.has(READ, 24, 24) && !changed.has(READ, 25, 30) && changed.has(WRITE, 0, 30));
        assert!(changed.with(range(NONE, 0, LAST)).is_empty());
        assert_eq!(split.with(range(NONE, 0, 5)).0[0], range(WRITE, 6, 9));
        assert_eq!(split.with(range(WRITE, 10, 10)).len(), 2);
    }

    /// Against one kind for each byte.
    #[test]
    fn ranges_are_what_their_bytes_are() {
        let kinds = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK];
        let (mut ranges, mut bytes) = (Ranges::default(), [libc::F_UNLCK; 64]);
        let mut dice = 1_u64;
        let mut roll = |sides: usize| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % sides
        };
        for _ in 0..5000 {
            let (a, b, kind) = (roll(64), roll(64), kinds[roll(3)]);
            let (start, end) = (a.min(b), a.max(b));
            ranges = ranges.with(range(kind, start as u64, end as u64));
            bytes[start..=end].fill(kind);
            let told = ranges
                .iter()
                .map(|range| (range.kind, range.start as usize, range.end as usize));
            let mut again = [libc::F_UNLCK; 64];
            let mut last = None;
            for (kind, start, end) in told {
                assert!(last.is_none_or(|(k, e)| start > e && (k != kind || start > e + 1)));
                again[start..=end].fill(kind);
                last = Some((kind, end));
            }
            assert_eq!(again, bytes);
        }
    }
}
