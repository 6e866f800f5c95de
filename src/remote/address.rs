// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a server is, and the stream to it.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

use super::tls;
use crate::sys::stream::cork;

/// What a Unix socket's address begins with.
const UNIX: &str = "unix:";

/// Where a server listens: `host:port`, `[v6]:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host (a name, or a number; one of IPv6 in brackets) and port.
    Tcp(String),
    /// Path of a socket.
    Unix(PathBuf),
}

/// Why a string is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing behind the host.
    #[error("{0:?} has no port: write host:port, [v6]:port or unix:/path")]
    NoPort(String),
    /// The port is no number of 16 bits.
    #[error("{0:?} is no port: a number from 0 to 65535 is")]
    Port(String),
    /// The host is missing, or has bytes that none has.
    #[error("{0:?} is no host: write host:port, [v6]:port or unix:/path")]
    Host(String),
    /// A number of IPv6 of which nobody knows where it ends.
    #[error("{0:?} has to be in brackets, as [v6]:port")]
    Brackets(String),
    /// Not a path that everybody understands in the same way.
    #[error("{0:?} does not begin with /: the path of a socket has to")]
    Path(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        if let Some(path) = address.strip_prefix(UNIX) {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(AddressError::Path(path.to_owned()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let no_port = || AddressError::NoPort(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(no_port)?;
        let bad_host = || AddressError::Host(host.to_owned());
        if let Some(inner) = host.strip_prefix('[') {
            let number = inner.strip_suffix(']').ok_or_else(no_port)?;
            // A number may name its link: fe80::1%eth0.
            let number = number.split_once('%').map_or(number, |(number, _)| number);
            number.parse::<std::net::Ipv6Addr>().map_err(|_| bad_host())?;
        } else if host.contains(':') {
            return Err(AddressError::Brackets(host.to_owned()));
        } else if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/\0[]".contains(c)) {
            return Err(bad_host());
        }
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || port.parse::<u16>().is_err() {
            return Err(AddressError::Port(port.to_owned()));
        }
        Ok(Self::Tcp(address.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl Address {
    /// Whether nobody but this machine is on the way: a Unix socket, or a host all of whose numbers are of
    /// the loopback. It asks the resolver; a host that is not found is not local.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let address = match self {
            Self::Unix(_) => return true,
            Self::Tcp(address) => address,
        };
        let Ok(mut addresses) = address.to_socket_addrs().map(Iterator::peekable) else {
            return false;
        };
        addresses.peek().is_some() && addresses.all(|address| address.ip().to_canonical().is_loopback())
    }

    /// The host's name or number, without brackets; none of a socket.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let Self::Tcp(address) = self else { return None };
        let (host, _) = address.rsplit_once(':')?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // A number may name its link: fe80::1%eth0.
        let number = inner.map(|number| number.split_once('%').map_or(number, |(number, _)| number));
        Some(number.unwrap_or(host))
    }

    /// A stream to whoever listens there, within `timeout` for all of a host's numbers together. Looking up
    /// a name takes as long as the resolver does, and is not counted.
    ///
    /// # Errors
    ///
    /// Those of the resolver, of socket(2) and connect(2); `TimedOut`.
    pub fn connect(&self, timeout: Duration) -> io::Result<Stream> {
        match self {
            Self::Tcp(address) => connect_tcp(address, timeout).map(Stream::Tcp),
            Self::Unix(path) => connect_unix(path, timeout).map(Stream::Unix),
        }
    }
}

fn connect_tcp(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let addresses = address.to_socket_addrs()?;
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                // A frame is one write: waiting for more to send with it would only cost time.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// As [`UnixStream::connect`], which waits for ever if the listener's queue is full.
fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
    let limit = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    // connect(2) keeps to the limit of sending.
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
        Err(errno) => return Err(errno.into()),
    }
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Bytes to the other end and back.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP, by TLS of the kernel.
    Tls(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

macro_rules! either {
    ($stream:expr, $inner:ident => $what:expr) => {
        match $stream {
            Stream::Tcp($inner) | Stream::Tls($inner) => $what,
            Stream::Unix($inner) => $what,
        }
    };
}

impl Stream {
    /// The same stream once more: what is set or shut down on one holds for the other.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Tls(stream) => Self::Tls(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends both directions, whoever is just using them.
    ///
    /// # Errors
    ///
    /// Those of shutdown(2).
    pub fn shutdown(&self) -> io::Result<()> {
        either!(self, stream => stream.shutdown(Shutdown::Both))
    }

    /// How long one read may take; `None` is for ever.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for no time at all; those of setsockopt(2).
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        either!(self, stream => stream.set_read_timeout(timeout))
    }

    /// How long one write may take; `None` is for ever.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for no time at all; those of setsockopt(2).
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        either!(self, stream => stream.set_write_timeout(timeout))
    }

    /// Whether reading and writing never wait, here and in every clone; see fcntl(2), `O_NONBLOCK`.
    ///
    /// # Errors
    ///
    /// Those of ioctl(2).
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        either!(self, stream => stream.set_nonblocking(nonblocking))
    }

    /// Whether what is written is sent at once; a Unix socket does so anyway.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) | Self::Tls(stream) => stream.set_nodelay(nodelay),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Whether what is written waits until there is a segment of it; on a Unix socket nothing does.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn set_corked(&self, corked: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) | Self::Tls(stream) => Ok(cork(stream, corked)?),
            Self::Unix(_) => Ok(()),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tls(stream) => tls::read(stream, &mut [IoSliceMut::new(buffer)]),
            other => either!(*other, stream => (&*stream).read(buffer)),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tls(stream) => tls::read(stream, buffers),
            other => either!(*other, stream => (&*stream).read_vectored(buffers)),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(*self, stream => (&*stream).write(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        either!(*self, stream => (&*stream).write_vectored(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(address: &str) -> Result<Address, AddressError> {
        address.parse()
    }

    #[test]
    fn addresses_are_shown_as_they_were_written() {
        for written in [
            "host:1",
            "10.0.0.1:65535",
            "[::1]:0",
            "[fe80::1%eth0]:7",
            "unix:/run/a b:c",
        ] {
            assert_eq!(parse(written).unwrap().to_string(), written);
        }
        assert_eq!(parse("unix:/a").unwrap(), Address::Unix("/a".into()));
        assert_eq!(parse("unixhost:2").unwrap(), Address::Tcp("unixhost:2".into()));
    }

    #[test]
    fn a_host_is_what_a_certificate_would_be_for() {
        for (address, host) in [
            ("host.example:1", Some("host.example")),
            ("10.0.0.1:65535", Some("10.0.0.1")),
            ("[::1]:0", Some("::1")),
            ("[fe80::1%eth0]:7", Some("fe80::1")),
            ("unix:/run/a:1", None),
        ] {
            assert_eq!(parse(address).unwrap().host(), host, "{address}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for no_port in ["", "host", "[::1]"] {
            let error = parse(no_port).unwrap_err();
            assert!(
                matches!(error, AddressError::NoPort(_) | AddressError::Brackets(_)),
                "{no_port}"
            );
        }
        for port in ["host:", "host:x", "host:65536", "host:-1", "host:+1", "[::1]:"] {
            assert!(matches!(parse(port), Err(AddressError::Port(_))), "{port}");
        }
        for host in [":1", "a b:1", "/a:1", "[host]:1", "[]:1", "host]:1"] {
            assert!(matches!(parse(host), Err(AddressError::Host(_))), "{host}");
        }
        assert!(matches!(parse("::1:80"), Err(AddressError::Brackets(_))));
        for path in ["unix:", "unix:relative", "unix:/a\0b"] {
            assert!(matches!(parse(path), Err(AddressError::Path(_))), "{path}");
        }
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        for local in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "unix:/a",
        ] {
            assert!(parse(local).unwrap().is_local(), "{local}");
        }
        for remote in ["192.0.2.1:1", "0.0.0.0:1", "[2001:db8::1]:1"] {
            assert!(!parse(remote).unwrap().is_local(), "{remote}");
        }
    }
}
