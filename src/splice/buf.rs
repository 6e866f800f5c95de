// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where bytes are: `struct fuse_buf` and `struct fuse_bufvec`.

use std::fmt;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;
use std::sync::Arc;

use bitflags::bitflags;

bitflags! {
    /// `enum fuse_buf_flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct BufFlags: u32 {
        /// The bytes are behind [`FuseBuf::fd`], not in [`FuseBuf::mem`].
        const IS_FD = 1 << 1;
        /// They begin at [`FuseBuf::pos`]; without it, at the descriptor's own position, which is what
        /// sockets, pipes and files in append mode have.
        const FD_SEEK = 1 << 2;
        /// A short transfer of this descriptor is followed by another until `size`, the end of the file or
        /// an error; without it, it ends the copy.
        const FD_RETRY = 1 << 3;
        /// The descriptor gives, or takes, `header | payload | footer`. Header and footer live in
        /// [`FuseBuf::mem`], one behind the other. Implies [`FD_RETRY`](Self::FD_RETRY).
        const FD_SECTION = 1 << 4;
    }
}

bitflags! {
    /// `enum fuse_buf_copy_flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CopyFlags: u32 {
        /// Read and write through memory.
        const NO_SPLICE = 1 << 1;
        /// Between two descriptors, an error where splice(2) gives one: no falling back.
        const FORCE_SPLICE = 1 << 2;
        /// Pages may be moved instead of copied (`SPLICE_F_MOVE`).
        const SPLICE_MOVE = 1 << 3;
        /// splice(2) does not wait for a pipe (`SPLICE_F_NONBLOCK`). Any other descriptor waits unless it is
        /// `O_NONBLOCK`.
        const SPLICE_NONBLOCK = 1 << 4;
    }
}

/// Bytes in memory.
#[derive(Default)]
pub enum Mem<'a> {
    /// There are none.
    #[default]
    None,
    /// Borrowed: can only be a source.
    Ref(&'a [u8]),
    /// Borrowed for writing.
    Mut(&'a mut [u8]),
    /// Owned.
    Owned(Vec<u8>),
}

impl Mem<'_> {
    /// The bytes, if there are any to speak of.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Ref(bytes) => Some(bytes),
            Self::Mut(bytes) => Some(bytes),
            Self::Owned(bytes) => Some(bytes),
        }
    }

    /// The same for writing: not for [`Mem::Ref`].
    #[must_use]
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::None | Self::Ref(_) => None,
            Self::Mut(bytes) => Some(bytes),
            Self::Owned(bytes) => Some(bytes),
        }
    }
}

/// Lengths only: what is transferred is nobody's business in a log.
impl fmt::Debug for Mem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Ref(bytes) => write!(f, "Ref({} bytes)", bytes.len()),
            Self::Mut(bytes) => write!(f, "Mut({} bytes)", bytes.len()),
            Self::Owned(bytes) => write!(f, "Owned({} bytes)", bytes.len()),
        }
    }
}

/// A descriptor that stays open as long as the buffer needs it.
#[derive(Clone, Debug)]
pub enum Fd<'a> {
    /// Somebody else closes it, later.
    Borrowed(BorrowedFd<'a>),
    /// The last owner closes it.
    Shared(Arc<OwnedFd>),
}

impl AsFd for Fd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => *fd,
            Self::Shared(fd) => fd.as_fd(),
        }
    }
}

impl<'a> From<BorrowedFd<'a>> for Fd<'a> {
    fn from(fd: BorrowedFd<'a>) -> Self {
        Self::Borrowed(fd)
    }
}

impl<'a, F: AsFd> From<&'a F> for Fd<'a> {
    fn from(fd: &'a F) -> Self {
        Self::Borrowed(fd.as_fd())
    }
}

impl From<OwnedFd> for Fd<'_> {
    fn from(fd: OwnedFd) -> Self {
        Self::Shared(Arc::new(fd))
    }
}

impl From<Arc<OwnedFd>> for Fd<'_> {
    fn from(fd: Arc<OwnedFd>) -> Self {
        Self::Shared(fd)
    }
}

/// `struct fuse_buf`: bytes in memory, or a stretch of what a descriptor gives or takes.
///
/// `'a` is what memory and descriptors are borrowed for; `'static` when all is owned.
#[derive(Debug, Default)]
pub struct FuseBuf<'a> {
    /// Bytes of payload.
    pub size: usize,
    /// Bytes in front of the payload; only with [`BufFlags::FD_SECTION`].
    pub header: usize,
    /// Bytes behind the payload; only with [`BufFlags::FD_SECTION`].
    pub footer: usize,
    /// What the other fields mean.
    pub flags: BufFlags,
    /// The bytes, without [`BufFlags::IS_FD`]; header and footer with [`BufFlags::FD_SECTION`].
    pub mem: Mem<'a>,
    /// The descriptor, with [`BufFlags::IS_FD`].
    pub fd: Option<Fd<'a>>,
    /// Where it begins (a section: its header), with [`BufFlags::FD_SEEK`].
    pub pos: u64,
    /// Bytes of header and footer that have gone through: a copy that ended inside one goes on there.
    pub(super) framed: usize,
    /// Payload taken out of the descriptor and not delivered yet: it goes first in the next copy.
    pub(super) taken: Vec<u8>,
}

impl<'a> FuseBuf<'a> {
    /// Memory to copy from.
    #[must_use]
    pub fn memory(bytes: &'a [u8]) -> Self {
        Self {
            size: bytes.len(),
            mem: Mem::Ref(bytes),
            ..Self::default()
        }
    }

    /// Memory to copy to.
    #[must_use]
    pub fn memory_mut(bytes: &'a mut [u8]) -> Self {
        Self {
            size: bytes.len(),
            mem: Mem::Mut(bytes),
            ..Self::default()
        }
    }

    /// Memory of its own, to copy from or to.
    #[must_use]
    pub fn owned(bytes: Vec<u8>) -> Self {
        Self {
            size: bytes.len(),
            mem: Mem::Owned(bytes),
            ..Self::default()
        }
    }

    /// `size` bytes at a descriptor's own position: a pipe, a socket, a file in append mode.
    #[must_use]
    pub fn fd(fd: impl Into<Fd<'a>>, size: usize) -> Self {
        Self {
            size,
            flags: BufFlags::IS_FD,
            fd: Some(fd.into()),
            ..Self::default()
        }
    }

    /// `size` bytes of a file from `pos`, whatever its own position.
    #[must_use]
    pub fn file(fd: impl Into<Fd<'a>>, pos: u64, size: usize) -> Self {
        Self {
            flags: BufFlags::IS_FD | BufFlags::FD_SEEK,
            pos,
            ..Self::fd(fd, size)
        }
    }

    /// A section of a stream, with room for its header and footer.
    #[must_use]
    pub fn section(fd: impl Into<Fd<'a>>, header: usize, payload: usize, footer: usize) -> Self {
        Self {
            header,
            footer,
            flags: BufFlags::IS_FD | BufFlags::FD_SECTION,
            mem: Mem::Owned(vec![0; header + footer]),
            ..Self::fd(fd, payload)
        }
    }

    /// A section to be sent: `payload` bytes between this header and this footer.
    #[must_use]
    pub fn section_between(fd: impl Into<Fd<'a>>, header: &[u8], payload: usize, footer: &[u8]) -> Self {
        Self {
            mem: Mem::Owned([header, footer].concat()),
            header: header.len(),
            footer: footer.len(),
            ..Self::section(fd, 0, payload, 0)
        }
    }

    /// The same with more flags.
    #[must_use]
    pub fn with(mut self, flags: BufFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// The header of a section, once it was received ([`arrived`](Self::arrived)).
    #[must_use]
    pub fn header_bytes(&self) -> &[u8] {
        self.frame().get(..self.header).unwrap_or_default()
    }

    /// The footer of a section, once it was received.
    #[must_use]
    pub fn footer_bytes(&self) -> &[u8] {
        self.frame().get(self.header..self.framing()).unwrap_or_default()
    }

    fn frame(&self) -> &[u8] {
        if !self.is_section() {
            return &[];
        }
        self.mem.as_slice().unwrap_or_default()
    }

    /// How many bytes of a section's header and footer have gone through.
    #[must_use]
    pub fn arrived(&self) -> (usize, usize) {
        let header = self.framed.min(self.header);
        (header, self.framed - header)
    }

    /// Payload that was taken out of the descriptor when the destination failed. Nothing is lost: the
    /// next copy from this buffer delivers it first.
    #[must_use]
    pub fn taken(&self) -> &[u8] {
        &self.taken
    }

    /// Whether the bytes are behind a descriptor.
    #[must_use]
    pub fn is_fd(&self) -> bool {
        self.flags.contains(BufFlags::IS_FD)
    }

    /// Whether they are a section of what the descriptor gives or takes.
    #[must_use]
    pub fn is_section(&self) -> bool {
        self.flags.contains(BufFlags::IS_FD | BufFlags::FD_SECTION)
    }

    pub(super) fn retries(&self) -> bool {
        self.flags.intersects(BufFlags::FD_RETRY | BufFlags::FD_SECTION)
    }

    /// All bytes of header and footer.
    pub(super) fn framing(&self) -> usize {
        if self.is_section() {
            self.header.saturating_add(self.footer)
        } else {
            0
        }
    }
}

/// `struct fuse_bufvec`: buffers one behind the other, and how far a copy has come.
#[derive(Debug, Default)]
pub struct FuseBufVec<'a> {
    bufs: Vec<FuseBuf<'a>>,
    /// Index of the current buffer; the count when all are done.
    pub idx: usize,
    /// Payload bytes of the current buffer that are done.
    pub off: usize,
}

impl<'a> FuseBufVec<'a> {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many buffers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bufs.len()
    }

    /// Adds one at the end.
    pub fn push(&mut self, buf: FuseBuf<'a>) {
        self.bufs.push(buf);
    }

    /// Bytes of payload from the current position on.
    #[must_use]
    pub fn size(&self) -> usize {
        self.left().fold(0, usize::saturating_add)
    }

    pub(super) fn has_payload(&self) -> bool {
        self.left().any(|left| left > 0)
    }

    /// What is left of the current buffer and of each after it.
    fn left(&self) -> impl Iterator<Item = usize> {
        let rest = self.bufs.get(self.idx..).unwrap_or_default();
        let done = iter::once(self.off).chain(iter::repeat(0));
        rest.iter()
            .zip(done)
            .map(|(buf, done)| buf.size.saturating_sub(done))
    }

    /// Whether a copy came to the end: of a section at the end, the footer went through, too.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.idx >= self.bufs.len()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, idx: usize) -> Option<&FuseBuf<'a>> {
        self.bufs.get(idx)
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, idx: usize) -> Option<&mut FuseBuf<'a>> {
        self.bufs.get_mut(idx)
    }

    /// The buffer at the current position.
    #[must_use]
    pub fn current(&self) -> Option<&FuseBuf<'a>> {
        self.bufs.get(self.idx)
    }

    pub(super) fn current_mut(&mut self) -> Option<&mut FuseBuf<'a>> {
        self.bufs.get_mut(self.idx)
    }

    /// All of them, done or not.
    pub fn iter(&self) -> slice::Iter<'_, FuseBuf<'a>> {
        self.bufs.iter()
    }
}

impl<'a> From<FuseBuf<'a>> for FuseBufVec<'a> {
    fn from(buf: FuseBuf<'a>) -> Self {
        iter::once(buf).collect()
    }
}

impl<'a> FromIterator<FuseBuf<'a>> for FuseBufVec<'a> {
    fn from_iter<I: IntoIterator<Item = FuseBuf<'a>>>(bufs: I) -> Self {
        Self {
            bufs: bufs.into_iter().collect(),
            idx: 0,
            off: 0,
        }
    }
}

impl<'a> Extend<FuseBuf<'a>> for FuseBufVec<'a> {
    fn extend<I: IntoIterator<Item = FuseBuf<'a>>>(&mut self, bufs: I) {
        self.bufs.extend(bufs);
    }
}

impl<'a> IntoIterator for FuseBufVec<'a> {
    type Item = FuseBuf<'a>;
    type IntoIter = std::vec::IntoIter<FuseBuf<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.bufs.into_iter()
    }
}

impl<'v, 'a> IntoIterator for &'v FuseBufVec<'a> {
    type Item = &'v FuseBuf<'a>;
    type IntoIter = slice::Iter<'v, FuseBuf<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn size_counts_the_payload_from_the_current_position() {
        let null = File::open("/dev/null").unwrap();
        let mut vec: FuseBufVec = [
            FuseBuf::memory(b"seven b"),
            FuseBuf::section(&null, 102, 11, 102),
            FuseBuf::owned(vec![0; 5]),
        ]
        .into_iter()
        .collect();
        assert_eq!((vec.count(), vec.size()), (3, 23));
        (vec.idx, vec.off) = (1, 4);
        assert_eq!(vec.size(), 12);
        vec.push(FuseBuf::file(&null, 1 << 40, 100));
        assert_eq!((vec.count(), vec.size()), (4, 112));
        (vec.idx, vec.off) = (4, 0);
        assert!(vec.is_done() && vec.current().is_none());
        assert_eq!(vec.size(), 0);
    }

    #[test]
    fn header_and_footer_lie_one_behind_the_other() {
        let null = File::open("/dev/null").unwrap();
        let buf = FuseBuf::section_between(&null, b"head", 10, b"foot!");
        assert_eq!(buf.header_bytes(), b"head");
        assert_eq!(buf.footer_bytes(), b"foot!");
        assert_eq!((buf.size, buf.framing()), (10, 9));
        let none = FuseBuf::owned(b"headfoot".to_vec());
        assert_eq!((none.header_bytes(), none.framing()), (&b""[..], 0));
    }

    #[test]
    fn owned_buffers_borrow_nothing() {
        fn is_static<T: Send + Sync + 'static>(_: &T) {}
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        is_static(&FuseBufVec::from(FuseBuf::section(file, 1, 2, 3)));
    }

    #[test]
    fn what_is_borrowed_for_reading_is_never_written() {
        assert!(Mem::Ref(b"x").as_mut_slice().is_none());
        assert_eq!(Mem::Owned(vec![1]).as_mut_slice(), Some(&mut [1][..]));
        assert_eq!(format!("{:?}", Mem::Ref(b"secret")), "Ref(6 bytes)");
    }
}
