// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which byte of a virtual file is which byte of what source: one behind the other, or in turn. Arithmetic only.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;

use thiserror::Error;

/// Why ranges don't make a file.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MergeError {
    /// Two ranges want the same bytes.
    #[error("the range of {len} bytes at {start} overlaps the one that begins at {other}")]
    Overlap {
        /// Where the later of the two begins.
        start: u64,
        /// Its length.
        len: u64,
        /// Where the earlier one begins.
        other: u64,
    },
    /// A range ends where no file can: behind 2^63 - 1.
    #[error("the range of {len} bytes at {start} ends behind the largest file")]
    TooLarge {
        /// Where it begins.
        start: u64,
        /// Its length; `u64::MAX` if it is larger than that.
        len: u64,
    },
}

/// Bytes that come from one source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'l, S> {
    /// None: zeros.
    pub source: Option<&'l S>,
    /// Where in the source.
    pub offset: u64,
    /// How many; at least one.
    pub len: u64,
}

enum Filling<S> {
    One(S),
    InTurn(InTurn<S>),
}

/// Sources that give `unit` bytes each in turn; the last ones of a source may be fewer, and one that is used up
/// is left out.
struct InTurn<S> {
    unit: u64,
    /// With how many bytes each has.
    members: Vec<(u64, S)>,
    /// Rows in which the same members give as many bytes, by number; the last one is empty.
    zones: Vec<Zone>,
}

/// Rows: in row `r`, each member gives its bytes from `r * unit` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    /// Its first byte in the range.
    start: u64,
    /// Its first row.
    row: u64,
    /// Bytes of each of its rows.
    width: u64,
}

impl<S> InTurn<S> {
    fn new(unit: NonZeroU64, members: Vec<(u64, S)>) -> Self {
        let unit = unit.get();
        Self {
            unit,
            members,
            zones: Vec::new(),
        }
    }

    /// For members that have no more bytes together than a file can have.
    fn find_zones(&mut self) {
        let unit = self.unit;
        // By how many bytes a row is wider than the one before.
        let mut steps: BTreeMap<u64, i128> = BTreeMap::new();
        let mut step =
            |row, bytes: u64, sign: i128| *steps.entry(row).or_default() += sign * i128::from(bytes);
        for (len, _) in &self.members {
            let (whole, rest) = (len / unit, len % unit);
            step(0, unit, 1);
            step(whole, unit - rest, -1);
            step(whole + 1, rest, -1);
        }
        let (mut start, mut row, mut width) = (0, 0, 0);
        for (next, step) in steps {
            start += (next - row) * width;
            row = next;
            // At most what all members have together.
            width = u64::try_from(i128::from(width) + step).unwrap_or(0);
            self.zones.push(Zone { start, row, width });
        }
    }

    fn each<E>(
        &self,
        mut offset: u64,
        mut len: u64,
        give: &mut impl FnMut(Piece<'_, S>) -> Result<(), E>,
    ) -> Result<(), E> {
        let behind = self.zones.partition_point(|zone| zone.start <= offset);
        let Some(mut at) = behind.checked_sub(1) else {
            return Ok(());
        };
        while len > 0 {
            let Some(zone) = self.zones.get(at).filter(|zone| zone.width > 0) else {
                return Ok(());
            };
            let mut row = zone.row + (offset - zone.start) / zone.width;
            let mut skip = (offset - zone.start) % zone.width;
            let next = self.zones.get(at + 1);
            while len > 0 && next.is_none_or(|next| row < next.row) {
                let begin = row.saturating_mul(self.unit);
                for (has, source) in &self.members {
                    let width = has.saturating_sub(begin).min(self.unit);
                    if skip >= width {
                        skip -= width;
                        continue;
                    }
                    let len_here = len.min(width - skip);
                    if len_here == 0 {
                        break;
                    }
                    give(Piece {
                        source: Some(source),
                        offset: begin + skip,
                        len: len_here,
                    })?;
                    skip = 0;
                    offset += len_here;
                    len -= len_here;
                }
                row += 1;
            }
            at += 1;
        }
        Ok(())
    }
}

struct Range<S> {
    start: u64,
    len: u64,
    filling: Filling<S>,
}

impl<S> Range<S> {
    /// The builder refuses what would overflow.
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

impl<S> fmt::Debug for Range<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end())
    }
}

/// What a virtual file consists of. What no range covers is zeros.
pub(crate) struct Layout<S> {
    /// Sorted by start; none empty, none overlapping.
    ranges: Vec<Range<S>>,
    size: u64,
}

/// The ranges of a [`Layout`] to be.
pub(crate) struct LayoutBuilder<S> {
    ranges: Vec<Range<S>>,
    /// Where the next concatenated range begins.
    end: u64,
    size: u64,
}

impl<S> fmt::Debug for Layout<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

impl<S> fmt::Debug for LayoutBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

impl<S> Default for LayoutBuilder<S> {
    fn default() -> Self {
        Self {
            ranges: Vec::new(),
            end: 0,
            size: 0,
        }
    }
}

impl<S> LayoutBuilder<S> {
    /// The first `len` bytes of a source, behind all that was added before.
    pub fn append(&mut self, len: u64, source: S) {
        self.place(self.end, len, source);
    }

    /// The first `len` bytes of a source, from `start` of the file on.
    pub fn place(&mut self, start: u64, len: u64, source: S) {
        self.push(start, len, Filling::One(source));
    }

    /// `unit` bytes of each member in turn, behind all that was added before, until all are used up.
    pub fn append_in_turn(&mut self, unit: NonZeroU64, members: Vec<(u64, S)>) {
        let len = members
            .iter()
            .fold(0u64, |sum, (len, _)| sum.saturating_add(*len));
        self.push(self.end, len, Filling::InTurn(InTurn::new(unit, members)));
    }

    fn push(&mut self, start: u64, len: u64, filling: Filling<S>) {
        self.end = self.end.max(start.saturating_add(len));
        self.ranges.push(Range { start, len, filling });
    }

    /// At least this size.
    pub fn size(&mut self, size: u64) {
        self.size = size;
    }

    pub fn build(self) -> Result<Layout<S>, MergeError> {
        let mut ranges = self.ranges;
        ranges.retain(|range| range.len > 0);
        ranges.sort_by_key(|range| range.start);
        let mut previous: Option<&Range<S>> = None;
        for range in &ranges {
            let &Range { start, len, .. } = range;
            if start.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
                return Err(MergeError::TooLarge { start, len });
            }
            if let Some(previous) = previous.filter(|previous| previous.end() > start) {
                let other = previous.start;
                return Err(MergeError::Overlap { start, len, other });
            }
            previous = Some(range);
        }
        if self.size > i64::MAX as u64 {
            let (start, len) = (0, self.size);
            return Err(MergeError::TooLarge { start, len });
        }
        let size = ranges.last().map_or(0, Range::end).max(self.size);
        for range in &mut ranges {
            if let Filling::InTurn(in_turn) = &mut range.filling {
                in_turn.find_zones();
            }
        }
        Ok(Layout { ranges, size })
    }
}

impl<S> Layout<S> {
    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What `size` bytes from `offset` on consist of, in order; fewer at the end of the file. It ends with the first
    /// error of `give`.
    pub fn each<E>(
        &self,
        offset: u64,
        size: u64,
        mut give: impl FnMut(Piece<'_, S>) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = offset.saturating_add(size).min(self.size);
        let mut at = offset;
        let zeros = |len| Piece {
            source: None,
            offset: 0,
            len,
        };
        let first = self.ranges.partition_point(|range| range.end() <= offset);
        for range in self.ranges.iter().skip(first) {
            if range.start >= end || at >= end {
                break;
            }
            if at < range.start {
                give(zeros(range.start - at))?;
                at = range.start;
            }
            let until = range.end().min(end);
            let (offset, len) = (at - range.start, until - at);
            match &range.filling {
                Filling::One(source) => give(Piece {
                    source: Some(source),
                    offset,
                    len,
                })?,
                Filling::InTurn(in_turn) => in_turn.each(offset, len, &mut give)?,
            }
            at = until;
        }
        if at < end {
            give(zeros(end - at))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Source and offset of each byte.
    type Model = Vec<Option<(usize, u64)>>;

    #[derive(Clone, Debug)]
    enum Added {
        Behind(u64),
        After(u64, u64),
        InTurn(u64, Vec<u64>),
    }

    fn added() -> impl Strategy<Value = Added> {
        let len = || prop_oneof![Just(0u64), 1..8u64, 0..200u64];
        prop_oneof![
            len().prop_map(Added::Behind),
            (0..9u64, len()).prop_map(|(gap, len)| Added::After(gap, len)),
            (1..9u64, proptest::collection::vec(len(), 0..6))
                .prop_map(|(unit, members)| Added::InTurn(unit, members)),
        ]
    }

    /// Byte by byte, as the words say it.
    fn model(all: &[Added]) -> (LayoutBuilder<usize>, Model) {
        let (mut builder, mut model, mut number) = (LayoutBuilder::default(), Model::new(), 0);
        for added in all {
            match added {
                Added::Behind(len) => {
                    builder.append(*len, number);
                    model.extend((0..*len).map(|at| Some((number, at))));
                    number += 1;
                }
                Added::After(gap, len) => {
                    builder.place(model.len() as u64 + gap, *len, number);
                    model.extend((0..*gap).map(|_| None));
                    model.extend((0..*len).map(|at| Some((number, at))));
                    number += 1;
                }
                Added::InTurn(unit, lens) => {
                    let members = lens.iter().zip(number..).map(|(len, source)| (*len, source));
                    builder.append_in_turn(NonZeroU64::new(*unit).unwrap(), members.clone().collect());
                    let mut taken = vec![0; lens.len()];
                    while members.clone().zip(&taken).any(|((len, _), taken)| *taken < len) {
                        for ((len, source), taken) in members.clone().zip(&mut taken) {
                            for _ in 0..*unit {
                                if *taken < len {
                                    model.push(Some((source, *taken)));
                                    *taken += 1;
                                }
                            }
                        }
                    }
                    number += lens.len();
                }
            }
        }
        (builder, model)
    }

    fn bytes(layout: &Layout<usize>, offset: u64, size: u64) -> Model {
        let mut bytes = Model::new();
        let Ok(()) = layout.each(offset, size, |piece| {
            assert!(piece.len > 0);
            let from = |at| piece.source.map(|source| (*source, piece.offset + at));
            bytes.extend((0..piece.len).map(from));
            Ok::<_, Infallible>(())
        });
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_byte_comes_from_where_the_model_says(
            all in proptest::collection::vec(added(), 0..6),
            cuts in proptest::collection::vec(0..=1000usize, 0..8),
        ) {
            let (mut builder, model) = model(&all);
            builder.size(model.len() as u64);
            let layout = builder.build().unwrap();
            prop_assert_eq!(layout.size(), model.len() as u64);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut * model.len() / 1000).collect();
            cuts.extend([0, model.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                let (from, to) = (pair[0], pair[1]);
                let got = bytes(&layout, from as u64, (to - from) as u64);
                prop_assert_eq!(&got[..], &model[from..to], "{}..{}", from, to);
            }
            prop_assert_eq!(bytes(&layout, 0, u64::MAX), model);
        }
    }

    #[test]
    fn large_members_are_found_without_counting_rows() {
        let mut builder = LayoutBuilder::default();
        let large = 1 << 61;
        let unit = NonZeroU64::new(512).unwrap();
        builder.append_in_turn(unit, vec![(large, 0), (large + 700, 1), (3, 2)]);
        let layout = builder.build().unwrap();
        assert_eq!(layout.size(), 2 * large + 703);
        let got = bytes(&layout, 2 * large + 2, 1000);
        // Member 0 is used up, 1 has a whole unit and 188 bytes left.
        assert_eq!(got.len(), 701);
        assert_eq!(got[0], Some((1, large - 1)));
        assert_eq!(got[1], Some((1, large)));
        assert_eq!(got[700], Some((1, large + 699)));
        let got = bytes(&layout, 512, 8);
        let (one, two) = (|at| Some((1, at)), |at| Some((2, at)));
        assert_eq!(got, [0, 1, 2, 3, 4, 5, 6, 7].map(one));
        assert_eq!(
            bytes(&layout, 1023, 5),
            [one(511), two(0), two(1), two(2), Some((0, 512))]
        );
    }

    #[test]
    fn ranges_that_overlap_or_end_nowhere_are_refused() {
        let build = |ranges: &[(u64, u64)]| {
            let mut builder = LayoutBuilder::default();
            for (start, len) in ranges {
                builder.place(*start, *len, ());
            }
            builder.build().map(|layout| layout.size())
        };
        assert_eq!(build(&[]), Ok(0));
        assert_eq!(build(&[(10, 5), (0, 10)]), Ok(15));
        let (start, len, other) = (9, 6, 0);
        assert_eq!(
            build(&[(9, 6), (0, 10)]),
            Err(MergeError::Overlap { start, len, other })
        );
        assert_eq!(
            build(&[(5, 0), (0, 10), (20, 0)]),
            Ok(10),
            "nothing covers nothing"
        );
        let (start, len) = (u64::MAX - 1, 5);
        assert_eq!(build(&[(start, len)]), Err(MergeError::TooLarge { start, len }));
        assert_eq!(build(&[(i64::MAX as u64 - 5, 5)]), Ok(i64::MAX as u64));
        let mut builder = LayoutBuilder::default();
        let half = 1 << 63;
        builder.append_in_turn(NonZeroU64::MIN, vec![(half, ()), (half, ()), (1, ())]);
        let (start, len) = (0, u64::MAX);
        assert_eq!(builder.build().unwrap_err(), MergeError::TooLarge { start, len });
    }

    #[test]
    fn concatenation_goes_on_behind_what_was_placed() {
        let mut builder = LayoutBuilder::default();
        builder.append(3, ());
        builder.place(10, 2, ());
        builder.append(4, ());
        let starts: Vec<u64> = builder.ranges.iter().map(|range| range.start).collect();
        assert_eq!(starts, [0, 10, 12]);
        builder.size(100);
        assert_eq!(builder.build().unwrap().size(), 100);
    }
}
