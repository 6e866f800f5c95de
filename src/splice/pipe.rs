// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipe that splice(2) needs between two descriptors of which none is one.
//!
//! Each thread keeps one for its next transfer, unless something went wrong with it: whatever a transfer
//! left in a pipe would be the beginning of somebody else's data.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{self, FcntlArg, OFlag, SpliceFFlags};
use nix::unistd;

use super::buf::CopyFlags;
use crate::sys::pipe::{page_size, readable};

thread_local! {
    static KEPT: Cell<Option<Pipe>> = const { Cell::new(None) };
}

/// Calls `run` with an empty pipe of this thread, made to hold `bytes` if the system lets it: look at
/// [`Pipe::capacity`]. Within `run` another call gives another pipe.
///
/// The pipe is kept for the next call only if `run` succeeds, leaves it empty and does not
/// [poison](Pipe::poison) it.
///
/// # Errors
///
/// Those of `run`, and of pipe2(2).
pub fn with_pipe<T>(bytes: usize, run: impl FnOnce(&mut Pipe) -> io::Result<T>) -> io::Result<T> {
    let kept = KEPT.try_with(Cell::take).ok().flatten();
    let mut pipe = match kept.filter(Pipe::is_empty) {
        Some(pipe) => pipe,
        None => Pipe::new(bytes)?,
    };
    pipe.grow(bytes);
    let done = run(&mut pipe)?;
    if !pipe.poisoned && pipe.is_empty() {
        // Fails only while the thread ends: then there is no next call.
        let _ = KEPT.try_with(|kept| kept.set(Some(pipe)));
    }
    Ok(done)
}

/// A pipe that this process alone fills and drains.
///
/// It holds [`capacity`](Self::capacity) bytes only if each of its [`slots`](Self::slots) holds a whole
/// page. A range of a file that does not begin with a page takes a slot more, each fragment of a socket's
/// data takes one, and memory takes one for each page that it touches. Nobody drains it while it is
/// filled: whoever fills a full one waits for ever, unless [`CopyFlags::SPLICE_NONBLOCK`] is given.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// The system gives no more than this.
    grown: bool,
    poisoned: bool,
}

impl Pipe {
    /// An empty pipe for `bytes`, or for as much as the system gives.
    ///
    /// # Errors
    ///
    /// Those of pipe2(2).
    pub fn new(bytes: usize) -> io::Result<Self> {
        let (read, write) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut pipe = Self {
            read,
            write,
            capacity: 0,
            grown: false,
            poisoned: false,
        };
        pipe.capacity = pipe.ask_capacity()?;
        pipe.grow(bytes);
        Ok(pipe)
    }

    /// Bytes it holds if all slots are full.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pieces it holds, of a page or less each.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.capacity / page_size()
    }

    /// Bytes that are in it.
    ///
    /// # Errors
    ///
    /// None that is known of.
    pub fn held(&self) -> io::Result<usize> {
        readable(&self.read)
    }

    /// Puts memory in without copying it: it must not change until it came out at the other end, else
    /// what comes out changes, too. Gives the bytes put in.
    ///
    /// # Errors
    ///
    /// Those of vmsplice(2).
    pub fn vmsplice(&mut self, memory: &[IoSlice<'_>], flags: CopyFlags) -> io::Result<usize> {
        again(|| fcntl::vmsplice(&self.write, memory, splice_flags(flags)))
    }

    /// Takes up to `len` bytes out of `from`, at `pos` or at its own position; 0 at its end.
    ///
    /// # Errors
    ///
    /// Those of splice(2); EINVAL where `from` cannot be spliced. Nothing was taken then.
    pub fn fill(
        &mut self,
        from: impl AsFd,
        pos: Option<u64>,
        len: usize,
        flags: CopyFlags,
    ) -> io::Result<usize> {
        splice(from.as_fd(), pos, self.write.as_fd(), None, len, flags)
    }

    /// Gives up to `len` of its bytes to `to`, at `pos` or at its own position.
    ///
    /// # Errors
    ///
    /// Those of splice(2); EINVAL where `to` cannot be spliced. All bytes are still here then.
    pub fn drain(
        &mut self,
        to: impl AsFd,
        pos: Option<u64>,
        len: usize,
        flags: CopyFlags,
    ) -> io::Result<usize> {
        splice(self.read.as_fd(), None, to.as_fd(), pos, len, flags)
    }

    /// Takes everything that is in it.
    ///
    /// # Errors
    ///
    /// None that is known of.
    pub fn take(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held()?];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match again(|| unistd::read(&self.read, rest))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(bytes)
    }

    /// Lets nobody use it again: after a transfer that was short or failed.
    pub fn poison(&mut self) {
        self.poisoned = true;
    }

    /// The end to read from.
    #[must_use]
    pub fn reader(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The end to write to.
    #[must_use]
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    fn is_empty(&self) -> bool {
        self.held().is_ok_and(|bytes| bytes == 0)
    }

    /// A user without privilege gets /proc/sys/fs/pipe-max-size at most, and less beyond
    /// pipe-user-pages-soft: half of what was wanted is better than the default.
    fn grow(&mut self, bytes: usize) {
        if self.grown || bytes <= self.capacity {
            return;
        }
        let mut wanted = bytes.min(1 << 30);
        while !self.grown && wanted > self.capacity {
            let size = i32::try_from(wanted).unwrap_or(i32::MAX);
            if fcntl::fcntl(&self.write, FcntlArg::F_SETPIPE_SZ(size)).is_ok() {
                self.grown = wanted < bytes;
                break;
            }
            wanted /= 2;
            self.grown = wanted <= self.capacity;
        }
        self.capacity = self.ask_capacity().unwrap_or(self.capacity);
    }

    fn ask_capacity(&self) -> io::Result<usize> {
        let size = fcntl::fcntl(&self.write, FcntlArg::F_GETPIPE_SZ)?;
        Ok(usize::try_from(size).unwrap_or(0))
    }
}

/// splice(2), again after a signal.
pub(super) fn splice(
    from: BorrowedFd<'_>,
    from_pos: Option<u64>,
    to: BorrowedFd<'_>,
    to_pos: Option<u64>,
    len: usize,
    flags: CopyFlags,
) -> io::Result<usize> {
    let mut from_pos = from_pos.map(position).transpose()?;
    let mut to_pos = to_pos.map(position).transpose()?;
    again(|| {
        fcntl::splice(
            from,
            from_pos.as_mut(),
            to,
            to_pos.as_mut(),
            len,
            splice_flags(flags),
        )
    })
}

/// A position as the system calls take it.
pub(super) fn position(pos: u64) -> io::Result<i64> {
    i64::try_from(pos).map_err(|_| Errno::EOVERFLOW.into())
}

/// A system call, once more whenever a signal came before it did anything.
pub(super) fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

fn splice_flags(flags: CopyFlags) -> SpliceFFlags {
    let mut given = SpliceFFlags::empty();
    given.set(
        SpliceFFlags::SPLICE_F_MOVE,
        flags.contains(CopyFlags::SPLICE_MOVE),
    );
    given.set(
        SpliceFFlags::SPLICE_F_NONBLOCK,
        flags.contains(CopyFlags::SPLICE_NONBLOCK),
    );
    given
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::thread;

    use super::*;

    const NONE: CopyFlags = CopyFlags::empty();

    /// Which pipe it is, and what is in it.
    fn identity(bytes: usize) -> (i32, usize) {
        with_pipe(bytes, |pipe| Ok((pipe.reader().as_raw_fd(), pipe.held()?))).unwrap()
    }

    /// Runs `test` where no other test has left a pipe.
    fn on_a_thread(test: impl FnOnce() + Send) {
        thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    #[test]
    fn an_empty_pipe_is_used_again_and_grows() {
        on_a_thread(|| {
            let first = with_pipe(1, |pipe| {
                assert_eq!((pipe.capacity(), pipe.slots()), (16 * page_size(), 16));
                assert_eq!(pipe.vmsplice(&[IoSlice::new(b"1234")], NONE)?, 4);
                assert_eq!(pipe.held()?, 4);
                assert_eq!(pipe.take()?, b"1234");
                Ok(pipe.reader().as_raw_fd())
            });
            with_pipe(200_000, |pipe| {
                assert_eq!(pipe.reader().as_raw_fd(), first.unwrap());
                assert_eq!(pipe.capacity(), 256 << 10);
                let other = with_pipe(1, |inner| Ok(inner.reader().as_raw_fd()))?;
                assert_ne!(other, pipe.reader().as_raw_fd(), "one user at a time");
                Ok(())
            })
            .unwrap();
        });
    }

    #[test]
    fn nothing_left_over_reaches_the_next_user() {
        on_a_thread(|| {
            let put = |pipe: &mut Pipe| pipe.vmsplice(&[IoSlice::new(b"left over")], NONE);
            with_pipe(1, put).unwrap();
            assert_eq!(identity(1).1, 0);
            let failed = with_pipe(1, |pipe| put(pipe).and(Err::<(), _>(Errno::EIO.into())));
            assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
            assert_eq!(identity(1).1, 0);
            // Somebody kept a descriptor, and wrote after the pipe was given back.
            let late = with_pipe(1, |pipe| pipe.writer().try_clone_to_owned()).unwrap();
            std::fs::File::from(late).write_all(b"late").unwrap();
            assert_eq!(identity(1).1, 0);
        });
    }

    #[test]
    fn a_poisoned_pipe_is_closed() {
        on_a_thread(|| {
            let reader = with_pipe(1, |pipe| {
                pipe.poison();
                pipe.writer().try_clone_to_owned().map(std::fs::File::from)
            });
            assert_eq!(identity(1).1, 0);
            let mut writer = reader.unwrap();
            assert_eq!(writer.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
        });
    }

    #[test]
    fn more_than_the_system_gives_is_as_much_as_it_gives() {
        let mut pipe = Pipe::new(100_000).unwrap();
        assert_eq!(pipe.capacity(), 128 << 10);
        // Not even root gets this: the kernel rounds up to a power of two and overflows, or has no memory.
        pipe.grow(usize::MAX);
        let capacity = pipe.capacity();
        assert!(capacity >= 16 * page_size(), "{capacity}");
        assert_eq!(pipe.ask_capacity().unwrap(), capacity);
    }
}
