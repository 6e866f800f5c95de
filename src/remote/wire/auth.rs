// SPDX-License-Identifier: MIT OR Apache-2.0
//! How both ends prove to have the same token, and get a key out of it.
//!
//! HELLO and its reply bring a nonce of each end. Then the client proves first, and a server that is not
//! convinced answers with an error and no proof of its own. A proof covers the side it is of, both nonces and
//! both payloads of the HELLO, to the last byte: whoever stands between and changes what was agreed on
//! (sizes, export, read-only) can give neither proof. So does the session's key, and it signs what follows.
//!
//! Everything here is a pure function; the nonces have to come from the system's random numbers.

use std::fmt;

use blake3::{Hash, Hasher, derive_key};

use super::{Side, WireError};

const PROOF: &str = "extfuse remote 1: proof of the token";
const SESSION: &str = "extfuse remote 1: key of a session";
const CLIENT: &str = "extfuse remote 1: frames from the client";
const SERVER: &str = "extfuse remote 1: frames from the server";

/// 32 random bytes that are never used again.
pub type Nonce = [u8; 32];

/// What only the two ends of one TLS connection know: its exporter of 32 bytes for "EXPORTER-Channel-Binding"
/// (RFC 9266).
pub type Binding = [u8; 32];

/// What both ends know, and nobody else.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// These bytes, which should be random: whoever has seen one handshake can try guesses at leisure.
    ///
    /// # Errors
    ///
    /// [`WireError::Token`] for fewer than 16.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, WireError> {
        let bytes = bytes.as_ref();
        if bytes.len() < 16 {
            return Err(WireError::Token(bytes.len()));
        }
        Ok(Self(bytes.into()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// What both ends have said before one proves anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    client: Nonce,
    server: Nonce,
    said: Hash,
}

impl Greeting {
    /// The nonces of HELLO and its reply, and the payloads of both frames as they were on the wire; over TLS also
    /// what it is bound to. Whoever ends one TLS connection and begins another cannot carry a proof over.
    #[must_use]
    pub fn new(client: Nonce, server: Nonce, hello: &[u8], reply: &[u8], tls: Option<&Binding>) -> Self {
        let mut said = Hasher::new();
        for part in [hello, reply].into_iter().chain(tls.map(|tls| &tls[..])) {
            said.update(&(part.len() as u64).to_le_bytes());
            said.update(part);
        }
        Self {
            client,
            server,
            said: said.finalize(),
        }
    }

    fn hash(&self, mut with: Hasher) -> Hash {
        with.update(&self.client);
        with.update(&self.server);
        with.update(self.said.as_bytes());
        with.finalize()
    }
}

/// What `side` sends to prove that it has the token. Compared with what arrived as hashes are, in a time that
/// does not depend on where they differ.
#[must_use]
pub fn proof(token: &Token, side: Side, greeting: &Greeting) -> Hash {
    let mut hasher = Hasher::new_keyed(&derive_key(PROOF, &token.0));
    hasher.update(match side {
        Side::Client => b"c",
        Side::Server => b"s",
    });
    greeting.hash(hasher)
}

/// What signs the frames of one connection.
#[derive(Clone)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// The one that both ends get of these.
    #[must_use]
    pub fn new(token: &Token, greeting: &Greeting) -> Self {
        let hasher = Hasher::new_keyed(&derive_key(SESSION, &token.0));
        Self(greeting.hash(hasher).into())
    }

    /// The key of the frames that `side` sends.
    pub(super) fn of(&self, side: Side) -> [u8; 32] {
        let context = match side {
            Side::Client => CLIENT,
            Side::Server => SERVER,
        };
        derive_key(context, &self.0)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(last: u8) -> Token {
        Token::new([[7; 31].as_slice(), &[last]].concat()).unwrap()
    }

    fn greeting() -> Greeting {
        Greeting::new([1; 32], [2; 32], b"hello", b"reply", None)
    }

    /// All that differ from [`greeting`] in one thing.
    fn others() -> [Greeting; 8] {
        let tls = |last: u8| {
            let mut binding = [4; 32];
            binding[31] = last;
            Greeting::new([1; 32], [2; 32], b"hello", b"reply", Some(&binding))
        };
        assert_ne!(tls(0), tls(1));
        [
            Greeting::new([3; 32], [2; 32], b"hello", b"reply", None),
            Greeting::new([1; 32], [3; 32], b"hello", b"reply", None),
            Greeting::new([2; 32], [1; 32], b"hello", b"reply", None),
            Greeting::new([1; 32], [2; 32], b"hellO", b"reply", None),
            Greeting::new([1; 32], [2; 32], b"hello", b"replY", None),
            Greeting::new([1; 32], [2; 32], b"hellor", b"eply", None),
            tls(0),
            tls(1),
        ]
    }

    #[test]
    fn a_proof_is_of_one_side_one_token_and_one_greeting() {
        let client = proof(&token(0), Side::Client, &greeting());
        assert_eq!(client, proof(&token(0), Side::Client, &greeting()));
        assert_ne!(client, proof(&token(0), Side::Server, &greeting()));
        assert_ne!(client, proof(&token(1), Side::Client, &greeting()));
        for other in others() {
            assert_ne!(client, proof(&token(0), Side::Client, &other), "{other:?}");
        }
    }

    #[test]
    fn a_key_is_of_one_token_and_one_greeting_and_signs_one_direction() {
        let key = SessionKey::new(&token(0), &greeting());
        assert_eq!(key.0, SessionKey::new(&token(0), &greeting()).0);
        assert_ne!(key.0, SessionKey::new(&token(1), &greeting()).0);
        for other in others() {
            assert_ne!(key.0, SessionKey::new(&token(0), &other).0, "{other:?}");
        }
        assert_ne!(key.of(Side::Client), key.of(Side::Server));
        for side in [Side::Client, Side::Server] {
            assert_ne!(key.0, *proof(&token(0), side, &greeting()).as_bytes());
        }
    }

    #[test]
    fn a_token_has_bytes_enough_and_is_never_shown() {
        assert!(matches!(Token::new([7; 15]), Err(WireError::Token(15))));
        let key = SessionKey::new(&token(0), &greeting());
        let shown = format!("{:?} {:?}", Token::new([77; 16]).unwrap(), key);
        assert_eq!(shown, "Token(secret) SessionKey(secret)");
    }
}
