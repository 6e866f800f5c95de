// SPDX-License-Identifier: MIT OR Apache-2.0
//! HELLO and AUTHENTICATE: what is said before anything is served.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use blake3::Hash;
use nix::errno::Errno;

use super::exports::find;
use super::session::{WAITING, millis};
use super::sessions::{Begun, Common, Has, Member, Of};
use super::{Export, Options, Shared};
use crate::fs::StackError;
use crate::remote::Stream;
use crate::remote::greeting::{Until, VERSIONS, random};
use crate::remote::wire::auth::{Binding, Greeting, Token, proof};
use crate::remote::wire::message::{Hello, HelloReply, Proof, SessionId, Wanted};
use crate::remote::wire::{
    FrameReader, FrameWriter, Header, Kind, Reply, Request, SessionKey, Side, Sizes, VERSION, WireError,
};

/// Why a client is not served.
#[derive(Debug, thiserror::Error)]
pub enum Unwelcome {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0:?} is no way to begin")]
    Kind(Kind),
    #[error("it speaks no version of the protocol that we do")]
    Version,
    #[error("there is no export of that name")]
    Export,
    /// Not to be told to who has shown no token.
    #[error(transparent)]
    Directory(#[from] StackError),
    #[error("the session cannot be joined: {0}")]
    Session(Errno),
    #[error("it does not have the token")]
    Token,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a connection is of its session.
#[derive(Debug)]
pub enum Part<'s> {
    /// The one that it begins and ends with.
    Own {
        begun: Begun<'s>,
        /// The session that the client had before.
        before: Option<SessionId>,
    },
    /// The one that goes on with it.
    Resumed(Arc<Common>),
    /// One more.
    Joined(Member),
}

impl Part<'_> {
    /// The client is believed, and is told so next. From then on it may keep what it is told, also on connections that have
    /// joined its session, and counts on hearing of changes: so nothing may be told there any more as to the
    /// client of before, who will not.
    fn is_believed(&self, shared: &Shared) {
        if let Self::Resumed(common) = self {
            common.held_by(None);
            shared.leases.left(common.id);
        }
    }
}

/// What was agreed on.
#[derive(Debug)]
pub struct Greeted<'s> {
    pub part: Part<'s>,
    pub sizes: Sizes,
    pub key: Option<SessionKey>,
    /// The client keeps what it is told.
    pub keeps: bool,
}

/// A request, between its header and its payload.
type Said<'b> = (Header, Request<'b>, &'b [u8]);

/// The next frame, which has to be of that kind. Nothing else is even read to its end.
fn expect<'b>(
    reader: &mut FrameReader<Until<'_>>,
    kind: Kind,
    buffer: &'b mut Vec<u8>,
) -> Result<Option<Said<'b>>, Unwelcome> {
    let Some(arriving) = reader.read_header()? else {
        return Ok(None);
    };
    if arriving.header().kind != kind {
        return Err(Unwelcome::Kind(arriving.header().kind));
    }
    let frame = arriving.read(buffer)?;
    Ok(Some((
        frame.header,
        Request::decode(&frame.header, frame.payload)?,
        frame.payload,
    )))
}

/// Greets a client, by `deadline`; over TLS, bound to it. None if it has gone again.
pub fn greet<'s>(
    shared: &'s Shared,
    stream: &Arc<Stream>,
    tls: Option<&Binding>,
    deadline: Instant,
) -> Result<Option<Greeted<'s>>, Unwelcome> {
    let options = &shared.options;
    // One for the whole greeting, though there may be another meanwhile.
    let token = shared.credentials.read().token.clone();
    let until = Until::by(stream, deadline);
    let mut reader = FrameReader::new(until, Side::Client);
    let mut writer = FrameWriter::new(until, Side::Server);
    let exports = shared.exports.now();
    let (mut hello_bytes, mut proof_bytes) = (Vec::new(), Vec::new());
    let Some((header, Request::Hello(hello), hello_payload)) =
        expect(&mut reader, Kind::Hello, &mut hello_bytes)?
    else {
        return Ok(None);
    };
    let (export, below) = match check(&exports, &hello) {
        Ok(found) => found,
        Err((errno, unwelcome)) => {
            refuse(&mut writer, &header, errno)?;
            return Err(unwelcome);
        }
    };
    let (session, part) = match part(shared, (export, &below), &hello, stream)? {
        Ok((session, part)) => (session, Ok(part)),
        Err(refusal @ (_, Unwelcome::Directory(_))) if token.is_some() => (new_session()?, Err(refusal)),
        Err((errno, unwelcome)) => {
            refuse(&mut writer, &header, errno)?;
            return Err(unwelcome);
        }
    };
    let nonce = random()?;
    let sizes = hello.sizes.or_larger(options.sizes);
    let keeps = hello.keeps;
    let reply = Reply::Hello(HelloReply {
        version: VERSION,
        sizes,
        nonce,
        token: token.is_some(),
        session,
        lease_ms: millis(options.lease),
        read_only: export.read_only,
        requests: u16::try_from(requests(options)).unwrap_or(u16::MAX),
        keep_ms: options.keep.map(millis),
        reads_nodes: shared.reads_nodes,
    });
    let reply_payload = reply.payload()?;
    let said = Greeting::new(hello.nonce, nonce, hello_payload, &reply_payload, tls);
    if let (None, Ok(part)) = (&token, &part) {
        part.is_believed(shared);
    }
    writer.write_frame(&header.reply(), 0, &[&reply_payload])?;
    reader.set_sizes(sizes);
    writer.set_sizes(sizes);
    let Some(token) = &token else {
        let (part, key) = (part.map_err(|(_, unwelcome)| unwelcome)?, None);
        return Ok(Some(Greeted {
            part,
            sizes,
            key,
            keeps,
        }));
    };
    let Some((header, Request::Authenticate(theirs), _)) =
        expect(&mut reader, Kind::Authenticate, &mut proof_bytes)?
    else {
        return Ok(None);
    };
    let believed = match authenticate(token, &said, theirs) {
        Some(key) => part.map(|part| (part, key)),
        None => Err((Errno::EACCES, Unwelcome::Token)),
    };
    match believed {
        Ok((part, key)) => {
            part.is_believed(shared);
            let ours = Reply::Authenticate(Proof(proof(token, Side::Server, &said).into()));
            writer.write_frame(&header.reply(), 0, &[&ours.payload()?])?;
            let key = Some(key);
            Ok(Some(Greeted {
                part,
                sizes,
                key,
                keeps,
            }))
        }
        Err((errno, unwelcome)) => {
            refuse(&mut writer, &header, errno)?;
            Err(unwelcome)
        }
    }
}

/// Requests of a client that may wait for their replies at the same time.
fn requests(options: &Options) -> usize {
    options.threads.max(1) + WAITING
}

type Refusal = (Errno, Unwelcome);

/// What the connection will be, if it is served. Its session has a number already.
fn part<'s>(
    shared: &'s Shared,
    (export, below): (&Arc<Export>, &Path),
    hello: &Hello,
    stream: &Arc<Stream>,
) -> io::Result<Result<(SessionId, Part<'s>), Refusal>> {
    let before = match hello.session {
        Wanted::Joined(id) => {
            let joined = shared.sessions.join(id, stream);
            return Ok(match joined {
                Ok(member) => Ok((id, Part::Joined(member))),
                Err(errno) => Err((errno, Unwelcome::Session(errno))),
            });
        }
        Wanted::Resumed(before) => {
            let still = shared.sessions.find(before);
            if let Some(common) = still.filter(|common| common.name == hello.export) {
                return Ok(Ok((before, Part::Resumed(common))));
            }
            Some(before)
        }
        Wanted::New => None,
    };
    let stack = match export.stack(below) {
        Ok(stack) => stack,
        // EACCES would mean the token.
        Err(error) => {
            let errno = error.errno();
            let errno = if errno == Errno::EACCES {
                Errno::EPERM
            } else {
                errno
            };
            return Ok(Err((errno, error.into())));
        }
    };
    let session = new_session()?;
    let of = Of {
        name: hello.export.clone(),
        export: Arc::clone(export),
    };
    let requests = requests(&shared.options);
    let has = Has {
        stack,
        locks: shared.locks(),
        share: shared.shares.none_yet(),
    };
    let begun = shared.sessions.begin(session, of, has, requests);
    // There may be others since the client came. Those who change them see the session from here on.
    if !begun.common.is_of(&shared.exports.now()) {
        return Ok(Err((Errno::ENOENT, Unwelcome::Export)));
    }
    Ok(Ok((session, Part::Own { begun, before })))
}

/// A number that no session has.
fn new_session() -> io::Result<SessionId> {
    let id: [u8; 32] = random()?;
    let mut session = SessionId([0; 16]);
    session.0.copy_from_slice(&id[..16]);
    Ok(session)
}

fn check<'e>(exports: &'e [Arc<Export>], hello: &Hello) -> Result<(&'e Arc<Export>, PathBuf), Refusal> {
    if hello.versions.agree(VERSIONS).is_none() {
        return Err((Errno::EPROTONOSUPPORT, Unwelcome::Version));
    }
    find(exports, &hello.export).ok_or((Errno::ENOENT, Unwelcome::Export))
}

/// The key of the session, if the proof is one.
fn authenticate(token: &Token, said: &Greeting, theirs: Proof) -> Option<SessionKey> {
    // Hashes are compared in constant time.
    (proof(token, Side::Client, said) == Hash::from(theirs.0)).then(|| SessionKey::new(token, said))
}

fn refuse(writer: &mut FrameWriter<Until<'_>>, to: &Header, errno: Errno) -> Result<(), WireError> {
    let header = Header {
        status: errno as u32,
        ..to.reply()
    };
    writer.write_frame(&header, 0, &[])
}
