// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replies that may not have arrived, so that nothing is done twice.
//!
//! When a connection breaks, its client asks again, under the same number, whatever it has no answer to. What
//! may be done again is; of the rest the reply is still here. As many as a client may wait for are enough: replies
//! arrive in the order in which they are sent, so what is lost is the last of them.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::remote::wire::{Flags, Header, Kind};

/// Times a connection may break, one after the other, before anything that was asked on the first has come again.
const BREAKS: usize = 8;

/// Whether it may be done twice: it changes nothing, and leaves nothing behind that the client would have to know
/// of (a node that is looked up once too often goes with the session).
fn may_be_repeated(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Lookup
            | Kind::Getattr
            | Kind::Readlink
            | Kind::Read
            | Kind::Readdir
            | Kind::Lseek
            | Kind::Statfs
            | Kind::Getxattr
            | Kind::Listxattr
            | Kind::Fsync
            | Kind::Fsyncdir
            | Kind::GetLock
    )
}

/// A reply: header and payload.
type Sent = (Header, Vec<u8>);

#[derive(Debug, Default)]
struct Replies {
    /// Of this connection, in the order in which they are sent.
    now: VecDeque<Sent>,
    /// Of those before.
    before: VecDeque<Sent>,
}

/// The last replies of a session.
#[derive(Debug)]
pub struct Done {
    /// Requests that the client may wait for at the same time.
    most: usize,
    replies: Mutex<Replies>,
}

impl Done {
    /// For a client that waits for no more than `most` replies.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            replies: Mutex::default(),
        }
    }

    /// This reply is sent next.
    pub fn sends(&self, header: &Header, payload: &[u8]) {
        if may_be_repeated(header.kind) {
            return;
        }
        let mut replies = self.replies.lock();
        if replies.now.len() >= self.most {
            replies.now.pop_front();
        }
        replies.now.push_back((*header, payload.to_vec()));
    }

    /// Another connection: what was sent on the last one may not have arrived.
    pub fn breaks(&self) {
        let Replies { now, before } = &mut *self.replies.lock();
        before.append(now);
        let surplus = before.len().saturating_sub(BREAKS * self.most);
        before.drain(..surplus);
    }

    /// What was answered to this request on a connection before. Nothing of it may be kept any more.
    pub fn find(&self, asked: &Header) -> Option<Sent> {
        if may_be_repeated(asked.kind) {
            return None;
        }
        let replies = self.replies.lock();
        let found = replies
            .before
            .iter()
            .rev()
            .find(|(header, _)| header.is_reply_to(asked))?;
        let (mut header, payload) = found.clone();
        header.flags.remove(Flags::KEEP);
        Some((header, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: Kind, number: u64) -> Header {
        Header::request(kind, number)
    }

    fn reply(kind: Kind, number: u64) -> Header {
        let mut reply = asked(kind, number).reply();
        reply.flags.insert(Flags::KEEP);
        reply
    }

    #[test]
    fn what_was_done_is_found_when_it_is_asked_again_and_only_then() {
        let done = Done::new(3);
        done.sends(&reply(Kind::Write, 7), b"seven");
        assert_eq!(done.find(&asked(Kind::Write, 7)), None, "nothing has broken");
        done.breaks();
        let (header, payload) = done.find(&asked(Kind::Write, 7)).unwrap();
        assert_eq!((header.request, &payload[..]), (7, &b"seven"[..]));
        assert!(header.is_reply() && !header.flags.contains(Flags::KEEP));
        assert_eq!(done.find(&asked(Kind::Unlink, 7)), None);
        assert_eq!(done.find(&asked(Kind::Write, 8)), None);
        let elsewhere = Header {
            node: 5,
            ..asked(Kind::Write, 7)
        };
        assert_eq!(done.find(&elsewhere), None);
    }

    #[test]
    fn as_many_are_known_as_can_have_been_lost() {
        let done = Done::new(3);
        for round in 0..10_u64 {
            for number in 0..5 {
                done.sends(&reply(Kind::Mkdir, round * 10 + number), b"");
                done.sends(&reply(Kind::Read, round * 10 + 5 + number), &[0; 100]);
            }
            done.breaks();
        }
        let known = |number| done.find(&asked(Kind::Mkdir, number)).is_some();
        // The last three of each of the last eight connections.
        let all: Vec<_> = (0..100).filter(|number| known(*number)).collect();
        let expected: Vec<_> = (2..10)
            .flat_map(|round| (2..5).map(move |n| round * 10 + n))
            .collect();
        assert_eq!(all, expected);
        assert_eq!(done.find(&asked(Kind::Read, 99)), None);
    }
}
