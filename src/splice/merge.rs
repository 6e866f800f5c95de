// SPDX-License-Identifier: MIT OR Apache-2.0
//! One virtual file whose ranges come from different sources.
//!
//! ```
//! use extfuse::splice::{CopyFlags, FuseBuf, Merge, copy, merge};
//!
//! let merged = Merge::builder()
//!     .append(5, merge::Memory::from(b"hello".to_vec()))
//!     .place(8, 3, merge::Memory::from(b"you".to_vec()))
//!     .build()?;
//! let mut room = [0xff; 100];
//! let mut dst = FuseBuf::memory_mut(&mut room).into();
//! assert_eq!(copy(&mut dst, &mut merged.plan(0, 100)?, CopyFlags::empty())?, 11);
//! assert_eq!(&room[..11], b"hello\0\0\0you");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::buf::{BufFlags, FuseBuf, FuseBufVec};
pub use super::layout::MergeError;
use super::layout::{Layout, LayoutBuilder};

/// Zeros that a hole is made of.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What a range of a [`Merge`] is filled from.
pub trait Source: Send + Sync {
    /// Pushes buffers with exactly `len` bytes of payload from `offset` of this source on. Where they must
    /// be asked for, this asks.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from giving them: the read fails with it.
    fn open_range(&self, offset: u64, len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()>;
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn open_range(&self, offset: u64, len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
        (**self).open_range(offset, len, plan)
    }
}

/// Bytes of a file.
#[derive(Clone, Debug)]
pub struct File {
    fd: Arc<OwnedFd>,
    pos: u64,
}

impl File {
    /// Those from `pos` on.
    pub fn new(fd: impl Into<Arc<OwnedFd>>, pos: u64) -> Self {
        Self { fd: fd.into(), pos }
    }
}

impl Source for File {
    fn open_range(&self, offset: u64, len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
        let pos = self.pos.checked_add(offset).ok_or(Errno::EOVERFLOW)?;
        plan.push(FuseBuf::file(self.fd.clone(), pos, len).with(BufFlags::FD_RETRY));
        Ok(())
    }
}

/// Bytes in memory.
#[derive(Clone)]
pub struct Memory(Arc<[u8]>);

impl<B: Into<Arc<[u8]>>> From<B> for Memory {
    fn from(bytes: B) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.0.len())
    }
}

impl Source for Memory {
    fn open_range(&self, offset: u64, len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.get(begin..begin.saturating_add(len));
        plan.push(FuseBuf::owned(bytes.ok_or(Errno::EINVAL)?.to_vec()));
        Ok(())
    }
}

/// Zeros.
#[derive(Clone, Copy, Debug)]
pub struct Hole;

impl Source for Hole {
    fn open_range(&self, _offset: u64, mut len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
        while len > 0 {
            let zeros = ZEROS.get(..len).unwrap_or(&ZEROS);
            plan.push(FuseBuf::memory(zeros));
            len -= zeros.len();
        }
        Ok(())
    }
}

/// A stream that is asked for bytes, and gives them in frames: `header | payload | footer`.
///
/// The frames come in the order they were asked for: who reads from two threads over one stream keeps a
/// plan and its copy together under a lock, or gives each thread a stream. A plan that is given up
/// leaves frames in the stream, which is then of no more use.
///
/// A plan asks for all its frames before the first is received. The other end must take as many
/// requests as a read needs, whether its answers are received or not.
#[derive(Clone)]
pub struct Stream<F> {
    fd: Arc<OwnedFd>,
    header: usize,
    footer: usize,
    largest: usize,
    ask: F,
}

impl<F> fmt::Debug for Stream<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("fd", &self.fd)
            .field("header", &self.header)
            .field("footer", &self.footer)
            .field("largest", &self.largest)
            .finish_non_exhaustive()
    }
}

impl<F: Fn(u64, usize) -> io::Result<()> + Send + Sync> Stream<F> {
    /// Frames with these many bytes in front of and behind the payload; `ask(offset, len)` asks the other
    /// end for one with `len` bytes of payload.
    pub fn new(fd: impl Into<Arc<OwnedFd>>, header: usize, footer: usize, ask: F) -> Self {
        Self {
            fd: fd.into(),
            header,
            footer,
            largest: usize::MAX,
            ask,
        }
    }

    /// No frame has more than `payload` bytes of payload: what is more is asked for in several. Zero
    /// stands for one.
    #[must_use]
    pub fn largest(mut self, payload: usize) -> Self {
        self.largest = payload.max(1);
        self
    }
}

impl<F: Fn(u64, usize) -> io::Result<()> + Send + Sync> Source for Stream<F> {
    fn open_range(&self, offset: u64, len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let payload = self.largest.min(len - done);
            let at = offset.checked_add(done as u64).ok_or(Errno::EOVERFLOW)?;
            (self.ask)(at, payload)?;
            plan.push(FuseBuf::section(
                self.fd.clone(),
                self.header,
                payload,
                self.footer,
            ));
            done += payload;
        }
        Ok(())
    }
}

/// One file whose ranges come from different sources. What no range covers is a hole.
#[derive(Debug)]
pub struct Merge {
    layout: Layout<Box<dyn Source>>,
}

/// The ranges of a [`Merge`] to be.
#[derive(Debug, Default)]
pub struct MergeBuilder(LayoutBuilder<Box<dyn Source>>);

impl MergeBuilder {
    /// The first `len` bytes of a source, behind all that was added before.
    #[must_use]
    pub fn append(mut self, len: u64, source: impl Source + 'static) -> Self {
        self.0.append(len, Box::new(source));
        self
    }

    /// The first `len` bytes of a source, from `start` of the file on.
    #[must_use]
    pub fn place(mut self, start: u64, len: u64, source: impl Source + 'static) -> Self {
        self.0.place(start, len, Box::new(source));
        self
    }

    /// Sources in turn, behind all that was added before: `unit` bytes of each, and again, until all are used up. Each
    /// comes with how many of its first bytes there are; the last of them may be fewer than a unit, and one that is used
    /// up is left out.
    #[must_use]
    pub fn interleave(mut self, unit: NonZeroU64, sources: Vec<(u64, Box<dyn Source>)>) -> Self {
        self.0.append_in_turn(unit, sources);
        self
    }

    /// Zeros behind all that was added before.
    #[must_use]
    pub fn hole(self, len: u64) -> Self {
        self.append(len, Hole)
    }

    /// At least this size: a hole at the end, if the ranges end before.
    #[must_use]
    pub fn size(mut self, size: u64) -> Self {
        self.0.size(size);
        self
    }

    /// The file.
    ///
    /// # Errors
    ///
    /// [`MergeError`].
    pub fn build(self) -> Result<Merge, MergeError> {
        Ok(Merge {
            layout: self.0.build()?,
        })
    }
}

impl Merge {
    /// No ranges yet.
    #[must_use]
    pub fn builder() -> MergeBuilder {
        MergeBuilder::default()
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// The buffers that a read of `size` bytes at `offset` needs, in order; fewer bytes at the end of the
    /// file. Sources that must be asked are asked.
    ///
    /// # Errors
    ///
    /// Those of the sources; EIO of one that gave another number of bytes than it was asked for.
    pub fn plan(&self, offset: u64, size: usize) -> io::Result<FuseBufVec<'static>> {
        let mut plan = FuseBufVec::new();
        self.layout
            .each(offset, size as u64, |piece| match piece.source {
                Some(source) => push(&**source, piece.offset, piece.len, &mut plan),
                None => push(&Hole, 0, piece.len, &mut plan),
            })?;
        Ok(plan)
    }
}

/// Lets a source give its part, and checks that it did.
fn push(source: &dyn Source, offset: u64, len: u64, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
    let before = plan.size();
    source.open_range(offset, len, plan)?;
    if plan.size() != before.saturating_add(len) {
        return Err(Errno::EIO.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Short;

    impl Source for Short {
        fn open_range(&self, _: u64, len: usize, plan: &mut FuseBufVec<'static>) -> io::Result<()> {
            plan.push(FuseBuf::owned(vec![1; len - 1]));
            Ok(())
        }
    }

    #[test]
    fn reads_end_with_the_file() {
        let merge = Merge::builder().size(100).build().unwrap();
        for (offset, size, given) in [
            (0, 200, 100),
            (99, 9, 1),
            (100, 1, 0),
            (u64::MAX, usize::MAX, 0),
            (7, 0, 0),
        ] {
            assert_eq!(merge.plan(offset, size).unwrap().size(), given, "{offset} {size}");
        }
    }

    #[test]
    fn a_source_that_gives_too_little_fails_the_read() {
        let merge = Merge::builder().append(10, Short).build().unwrap();
        let error = merge.plan(0, 10).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let merge = Merge::builder()
            .append(10, Memory::from(vec![0; 9]))
            .build()
            .unwrap();
        assert_eq!(merge.plan(0, 9).unwrap().size(), 9);
        assert!(merge.plan(5, 5).is_err());
    }

    #[test]
    fn only_the_sources_of_a_range_are_asked() {
        let memory = || Memory::from(vec![1; 10]);
        let merge = Merge::builder().append(10, memory()).append(10, memory());
        let merge = merge.build().unwrap();
        for (offset, size, buffers) in [(0, 10, 1), (10, 10, 1), (9, 2, 2), (5, 0, 0)] {
            assert_eq!(
                merge.plan(offset, size).unwrap().count(),
                buffers,
                "{offset} {size}"
            );
        }
    }

    #[test]
    fn a_merge_is_for_all_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Merge>();
    }
}
