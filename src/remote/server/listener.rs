// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where clients connect.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{Backlog, listen};

use super::ServerError;
use crate::remote::{Address, Stream};

/// Who connects waits here until the [server](super::Server) takes it.
#[derive(Debug)]
pub struct Listener(Socket);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// A socket's file is removed in the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// If nobody can connect there.
    pub fn bind(address: &Address) -> Result<Self, ServerError> {
        let listener = Self::listen(address);
        listener.map_err(|error| ServerError::Listen {
            address: address.clone(),
            error,
        })
    }

    fn listen(address: &Address) -> io::Result<Self> {
        let listener = Self(match address {
            Address::Tcp(address) => Socket::Tcp(TcpListener::bind(address.as_str())?),
            Address::Unix(path) => {
                remove_if_dead(path)?;
                Socket::Unix(UnixListener::bind(path)?, path.clone())
            }
        });
        // The standard library has room for 128 who wait: beyond that TCP drops them, and they try again a second
        // later. The system's own limit is what holds then.
        listen(&listener, Backlog::MAXCONN)?;
        // A client that is gone again before it is accepted must not keep the others waiting.
        match &listener.0 {
            Socket::Tcp(tcp) => tcp.set_nonblocking(true)?,
            Socket::Unix(unix, _) => unix.set_nonblocking(true)?,
        }
        Ok(listener)
    }

    pub(super) fn address(&self) -> io::Result<Address> {
        Ok(match &self.0 {
            Socket::Tcp(tcp) => Address::Tcp(tcp.local_addr()?.to_string()),
            Socket::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    /// Whoever waits, if anybody does.
    pub(super) fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match &self.0 {
            Socket::Tcp(tcp) => tcp.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }),
            Socket::Unix(unix, _) => unix.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                Ok(Stream::Unix(stream))
            }),
        };
        match stream {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::InvalidInput => Ok(None),
                _ => Err(error),
            },
        }
    }
}

/// The file of a socket that nobody listens on any more is in the way. Nothing else is touched.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        fs::remove_file(path)?;
    }
    Ok(())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Socket::Tcp(tcp) => tcp.as_fd(),
            Socket::Unix(unix, _) => unix.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.0 {
            // It may have been removed already.
            let _ = fs::remove_file(path);
        }
    }
}
