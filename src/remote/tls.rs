// SPDX-License-Identifier: MIT OR Apache-2.0
//! TLS 1.3 under the frames.
//!
//! rustls does the handshake, record by record, so that it never takes a byte of what comes behind. Then the keys go to the
//! kernel, if it takes them, and the socket is used as any other; else a thread carries bytes between the socket and
//! one end of a pair, and the other end is used like a socket. Neither end resumes sessions, sends tickets, or
//! changes keys: the kernel would not understand. So the one cipher that is spoken is ChaCha20-Poly1305, which may
//! protect as many records as there can be (RFC 8446, 5.5: AES-GCM 24 million).

mod config;
mod handshake;
mod kernel;
mod pump;

use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::pki_types::pem;
use rustls::{ClientConnection, Connection, ServerConnection};

pub use self::config::{ClientTls, ServerTls};
pub(super) use self::kernel::read;
use super::Stream;
use super::wire::auth::Binding;

/// How long what was said last may take to leave, once whoever has said it has gone.
const LINGER: Duration = Duration::from_secs(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read, or has nothing of what is looked for.
    #[error("{}: {error}", file.display())]
    Pem {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// A file without a certificate.
    #[error("{}: there is no certificate in it (PEM)", .0.display())]
    NoCertificate(PathBuf),
    /// A file without a private key.
    #[error("{}: there is no private key in it (PEM)", .0.display())]
    NoKey(PathBuf),
    /// A certificate and a key that do not belong together.
    #[error("{}: the certificate there is not for the key in {}", certificate.display(), key.display())]
    NotItsKey {
        /// Where the certificate is.
        certificate: PathBuf,
        /// Where the key is.
        key: PathBuf,
    },
    /// Certificates or a key that are of no use.
    #[error("{}: {error}", file.display())]
    Unfit {
        /// Where they are.
        file: PathBuf,
        /// What is wrong with them.
        error: rustls::Error,
    },
    /// Neither a host's name nor its number.
    #[error("{0:?} is no name that a certificate could be for")]
    Name(String),
    /// The other end speaks something else.
    #[error("what came is no TLS: the other end speaks without it")]
    NotTls,
    /// It hung up.
    #[error("the other end closed the connection during the TLS handshake: it may not speak TLS there")]
    Closed,
    /// It says more than anybody has to.
    #[error("the TLS handshake is too long")]
    TooLong,
    /// What the certificates or the bytes of the other end are not.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The kernel took the keys of others, and not these.
    #[error("the kernel does not take the keys: {0}")]
    Kernel(nix::errno::Errno),
    /// What the system says.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TlsError {
    /// Whether the other end may have been asked for more than there was time for.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

/// A stream under TLS.
#[derive(Debug)]
pub(super) struct Secured {
    /// What to use in the place of the socket.
    pub stream: Stream,
    /// What carries the bytes between the two, unless the kernel does the work.
    pub pump: Option<Pump>,
    /// What only the two ends of this TLS connection know.
    pub binding: Binding,
}

impl Secured {
    fn new(mut tls: Connection, line: &Stream, deadline: Instant) -> Result<Self, TlsError> {
        let binding = handshake::shake(&mut tls, line, deadline)?;
        let (stream, pump) = match line {
            Stream::Tcp(socket) if kernel::is_able() => {
                tracing::info!("TLS by the kernel");
                (kernel::hand_over(tls, socket)?, None)
            }
            _ => {
                tracing::info!("TLS in user space: the kernel has none (modprobe tls)");
                let (stream, pump) = pump::start(tls, line.try_clone()?, LINGER)?;
                (stream, Some(Pump(pump)))
            }
        };
        Ok(Self {
            stream,
            pump,
            binding,
        })
    }

    /// As a server, by `deadline`.
    pub fn accept(tls: &ServerTls, line: &Stream, deadline: Instant) -> Result<Self, TlsError> {
        Self::new(ServerConnection::new(tls.config())?.into(), line, deadline)
    }

    /// As a client, by `deadline`.
    pub fn connect(tls: &ClientTls, line: &Stream, deadline: Instant) -> Result<Self, TlsError> {
        Self::new(
            ClientConnection::new(tls.config(), tls.name())?.into(),
            line,
            deadline,
        )
    }
}

/// A thread that carries bytes, and ends soon after the stream that it is for has been shut down.
#[derive(Debug)]
pub(super) struct Pump(JoinHandle<()>);

impl Pump {
    /// Once it is shut down: until what was said last has left, or never will.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::warn!("a thread of a TLS connection panicked");
        }
    }
}
