// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes of a file to a socket, without a copy in this process: sendfile(2).

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, sendmsg};

use super::stream::Deadline;

/// Sends all of these bytes.
///
/// # Errors
///
/// ETIMEDOUT; those of send(2).
pub fn send_bytes(socket: &impl AsFd, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    while !bytes.is_empty() {
        let descriptor = socket.as_fd().as_raw_fd();
        match sendmsg::<()>(descriptor, &[IoSlice::new(bytes)], &[], flags, None) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => deadline.wait(socket.as_fd(), PollFlags::POLLOUT)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Sends a range of a file. What is sent is what the file holds when the network takes it, which may be after the return:
/// its pages are lent, not copied. The socket has to be `O_NONBLOCK`: the kernel would wait anew for each part of the range. A
/// process that has not ignored SIGPIPE is sent it if the other end is gone; Rust's ignore it.
///
/// # Errors
///
/// ETIMEDOUT; `UnexpectedEof` if the file ends before; those of sendfile(2).
pub fn send_file(
    socket: &impl AsFd,
    file: &impl AsFd,
    range: Range<u64>,
    deadline: Deadline,
) -> io::Result<()> {
    let position = |at: u64| i64::try_from(at).map_err(|_| Errno::EOVERFLOW);
    let (mut at, end) = (position(range.start)?, position(range.end)?);
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        match sendfile(socket, file, Some(&mut at), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => deadline.wait(socket.as_fd(), PollFlags::POLLOUT)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
