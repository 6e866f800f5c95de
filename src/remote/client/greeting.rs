// SPDX-License-Identifier: MIT OR Apache-2.0
//! HELLO and AUTHENTICATE: what is said before anything is asked for.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::remote::greeting::{Until, VERSIONS, random};
use crate::remote::tls::{ClientTls, Secured, TlsError};
use crate::remote::wire::auth::{Binding, Greeting, Token, proof};
use crate::remote::wire::message::{Hello, HelloReply, Proof, Wanted};
use crate::remote::wire::{
    Export, Frame, FrameReader, FrameWriter, Header, Kind, Reply, Request, SessionKey, Side, Sizes, VERSION,
    WireError,
};
use crate::remote::{Address, Stream};

/// What becomes of requests while there is no way to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Disconnected {
    /// They wait, for the timeout at most.
    #[default]
    Wait,
    /// They fail, those too that were on their way.
    Fail,
}

/// What to connect to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where the server is.
    pub address: Address,
    /// The directory that is wanted.
    pub export: Export,
    /// What both ends know. With one, no server is accepted that does not have it; without one, none that
    /// asks for it.
    pub token: Option<Token>,
    /// Whether answers are to be kept, with a [kernel](super::Connection::keep_in) that does.
    pub keeps: bool,
    /// What becomes of requests while there is no way to the server.
    pub disconnected: Disconnected,
    /// Whom to believe, if the server speaks TLS; what it says then is bound to that connection.
    pub tls: Option<ClientTls>,
    /// How long it may take to connect, and then the whole greeting; and afterwards any reply.
    pub timeout: Duration,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there, or nobody is there.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        error: io::Error,
    },
    /// Something of this machine's own.
    #[error("the system does not let us: {0}")]
    System(io::Error),
    /// No TLS connection to the server that was meant.
    #[error("{0}")]
    Tls(TlsError),
    /// It hung up when it had seen who we are.
    #[error(
        "the server closed the connection after the TLS handshake: it may want a client's certificate, or another one; its log may say why"
    )]
    ClosedTls,
    /// The greeting took too long.
    #[error(
        "the server did not finish its greeting within {0:?}: overloaded, or it speaks something else there"
    )]
    Timeout(Duration),
    /// It hung up.
    #[error(
        "the server closed the connection during the greeting: it may want TLS (--tls), or its log says why"
    )]
    Closed,
    /// What came was no frame, or not understood.
    #[error("the greeting failed: {0}")]
    Wire(WireError),
    /// A reply, but not to what was asked.
    #[error(
        "the server answered {asked:?} with a {answered:?} of another request: it does not keep to the protocol"
    )]
    Stray {
        /// What was asked.
        asked: Kind,
        /// What came.
        answered: Kind,
    },
    /// There is no such directory.
    #[error(
        "the server has no directory {0:?}: the name is that of an export, if it has several, and a path in it may follow"
    )]
    Export(Export),
    /// No version in common, or one that was not offered.
    #[error("the server does not speak version {VERSION} of the protocol: one end has to be updated")]
    Version,
    /// Smaller frames than we wished for.
    #[error("the server wants smaller frames than were asked for: it does not keep to the protocol")]
    Sizes,
    /// A server that lets nobody in without a token.
    #[error("the server wants a token, and there is none: give the one that the server was started with")]
    TokenWanted,
    /// A server that lets everybody in, although we have a token: perhaps not the server at all.
    #[error(
        "the server does not ask for the token, so it cannot be told from an impostor: start it with the token, or connect without"
    )]
    TokenNotWanted,
    /// The server has another token.
    #[error(
        "the server refuses the token: it was started with another one, or over TLS, somebody is between"
    )]
    TokenRefused,
    /// The server does not have the token, though it took ours.
    #[error("the server has not proved that it has the token: it may be an impostor")]
    Impostor,
    /// Any other error.
    #[error("the server refuses: {0}")]
    Refused(Errno),
}

impl ConnectError {
    /// The error as a number.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Connect { error, .. } | Self::System(error) => match error.kind() {
                io::ErrorKind::TimedOut => Errno::ETIMEDOUT,
                _ => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            },
            Self::Timeout(_) => Errno::ETIMEDOUT,
            Self::Closed | Self::ClosedTls => Errno::ECONNRESET,
            Self::Tls(TlsError::Io(error)) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            Self::Tls(_) => Errno::EPROTO,
            Self::Wire(error) => error.errno(),
            Self::Stray { .. } | Self::Sizes => Errno::EPROTO,
            Self::Export(_) => Errno::ENOENT,
            Self::Version => Errno::EPROTONOSUPPORT,
            Self::TokenWanted | Self::TokenNotWanted | Self::TokenRefused | Self::Impostor => Errno::EACCES,
            Self::Refused(errno) => *errno,
        }
    }
}

/// What was agreed on.
#[derive(Debug)]
pub(super) struct Greeted {
    pub hello: HelloReply,
    pub key: Option<SessionKey>,
}

/// Both directions, with the time that is left for them.
struct Talk<'s> {
    reader: FrameReader<Until<'s>>,
    writer: FrameWriter<Until<'s>>,
    timeout: Duration,
}

impl<'s> Talk<'s> {
    fn new(stream: &'s Stream, deadline: Instant, timeout: Duration) -> Self {
        let until = Until::by(stream, deadline);
        Self {
            reader: FrameReader::new(until, Side::Server),
            writer: FrameWriter::new(until, Side::Client),
            timeout,
        }
    }

    /// The reply to a request; nothing else is even read to its end.
    fn ask<'b>(
        &mut self,
        number: u64,
        kind: Kind,
        payload: &[u8],
        buffer: &'b mut Vec<u8>,
    ) -> Result<Frame<'b>, ConnectError> {
        let timeout = self.timeout;
        let wire = |error| from_wire(error, timeout);
        let header = Header::request(kind, number);
        self.writer.write_frame(&header, 0, &[payload]).map_err(wire)?;
        let arriving = self.reader.read_header().map_err(wire)?;
        let arriving = arriving.ok_or(ConnectError::Closed)?;
        let answered = arriving.header();
        if answered.kind != kind || answered.request != number || !answered.is_reply() {
            return Err(ConnectError::Stray {
                asked: kind,
                answered: answered.kind,
            });
        }
        arriving.read(buffer).map_err(wire)
    }
}

fn from_wire(error: WireError, timeout: Duration) -> ConnectError {
    match error {
        WireError::Idle => ConnectError::Timeout(timeout),
        WireError::Io(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectError::Timeout(timeout),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                ConnectError::Closed
            }
            _ => ConnectError::Wire(error.into()),
        },
        error => ConnectError::Wire(error),
    }
}

/// TLS, if the server is to speak it.
pub(super) fn secure(
    stream: &Stream,
    target: &Target,
    deadline: Instant,
) -> Result<Option<Secured>, ConnectError> {
    let tls = target.tls.as_ref();
    let secured = tls.map(|tls| Secured::connect(tls, stream, deadline)).transpose();
    secured.map_err(|error| match error.is_timeout() {
        true => ConnectError::Timeout(target.timeout),
        false => ConnectError::Tls(error),
    })
}

/// Greets the server, by `deadline`: HELLO, and AUTHENTICATE if there is a token; over TLS, bound to it. The requests
/// have the numbers 1 and 2.
pub(super) fn greet(
    stream: &Stream,
    target: &Target,
    session: Wanted,
    tls: Option<&Binding>,
    deadline: Instant,
) -> Result<Greeted, ConnectError> {
    let greeted = greet_in_frames(stream, target, session, tls, deadline);
    greeted.map_err(|error| match &error {
        // A client's certificate is judged when the handshake is over for the client.
        ConnectError::Closed if tls.is_some() => ConnectError::ClosedTls,
        _ => error,
    })
}

fn greet_in_frames(
    stream: &Stream,
    target: &Target,
    session: Wanted,
    tls: Option<&Binding>,
    deadline: Instant,
) -> Result<Greeted, ConnectError> {
    let hello = Hello {
        versions: VERSIONS,
        sizes: Sizes::default(),
        nonce: random().map_err(ConnectError::System)?,
        export: target.export.clone(),
        session,
        keeps: target.keeps,
    };
    let (nonce, wished) = (hello.nonce, hello.sizes);
    let request = Request::Hello(hello);
    let said = request.payload().map_err(ConnectError::Wire)?;

    let mut talk = Talk::new(stream, deadline, target.timeout);
    let mut buffer = Vec::new();
    let frame = talk.ask(1, Kind::Hello, &said, &mut buffer)?;
    match frame.header.status {
        0 => {}
        status => {
            return Err(match Errno::from_raw(status as i32) {
                Errno::ENOENT => ConnectError::Export(target.export.clone()),
                Errno::EPROTONOSUPPORT => ConnectError::Version,
                errno => ConnectError::Refused(errno),
            });
        }
    }
    let Reply::Hello(reply) = Reply::decode(&frame.header, frame.payload).map_err(ConnectError::Wire)? else {
        return Err(ConnectError::Wire(WireError::NotThat(Kind::Hello)));
    };
    if reply.version != VERSION {
        return Err(ConnectError::Version);
    }
    if reply.sizes.or_larger(wished) != reply.sizes {
        return Err(ConnectError::Sizes);
    }
    let token = match (&target.token, reply.token) {
        (None, false) => {
            return Ok(Greeted {
                hello: reply,
                key: None,
            });
        }
        (None, true) => return Err(ConnectError::TokenWanted),
        (Some(_), false) => return Err(ConnectError::TokenNotWanted),
        (Some(token), true) => token,
    };
    let greeting = Greeting::new(nonce, reply.nonce, &said, frame.payload, tls);
    let key = authenticate(&mut talk, token, &greeting, reply.sizes, &target.export)?;
    Ok(Greeted {
        hello: reply,
        key: Some(key),
    })
}

fn authenticate(
    talk: &mut Talk<'_>,
    token: &Token,
    greeting: &Greeting,
    sizes: Sizes,
    export: &Export,
) -> Result<SessionKey, ConnectError> {
    talk.reader.set_sizes(sizes);
    talk.writer.set_sizes(sizes);
    let request = Request::Authenticate(Proof(proof(token, Side::Client, greeting).into()));
    let payload = request.payload().map_err(ConnectError::Wire)?;
    let mut buffer = Vec::new();
    let frame = talk.ask(2, Kind::Authenticate, &payload, &mut buffer)?;
    match frame.header.status {
        0 => {}
        status => {
            return Err(match Errno::from_raw(status as i32) {
                Errno::EACCES => ConnectError::TokenRefused,
                Errno::ENOENT => ConnectError::Export(export.clone()),
                errno => ConnectError::Refused(errno),
            });
        }
    }
    let reply = Reply::decode(&frame.header, frame.payload).map_err(ConnectError::Wire)?;
    // Hashes compare in constant time.
    match reply {
        Reply::Authenticate(Proof(theirs)) if proof(token, Side::Server, greeting) == theirs => {
            Ok(SessionKey::new(token, greeting))
        }
        _ => Err(ConnectError::Impostor),
    }
}
