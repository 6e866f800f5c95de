// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that join a session.

use std::fs;
use std::time::{Duration, Instant};

use extfuse::remote::server::Options;
use extfuse::remote::wire::message::{Data, Empty, Read, Release, SessionId, SetAttr, Wanted};
use extfuse::remote::wire::{Flags, Kind, Reply, Request};
use nix::errno::Errno;

use crate::clients::Inside;
use crate::common::{Scratch, eventually};
use crate::line::Line;

fn read(line: &mut Line, file: (u64, u64)) -> Result<Vec<u8>, Errno> {
    let (header, payload) = line.ask(file, &Request::Read(Read { size: 1 << 20 }))?;
    match Reply::decode(&header, &payload).unwrap() {
        Reply::Read(Data(data)) => Ok(data.to_vec()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_joined_connection_reads_what_the_session_has_open_and_does_nothing_else() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i / 7) as u8).collect();
    fs::write(scratch.source().join("file"), &bytes).unwrap();
    // One connection is all that is served; those that join do not count.
    let options = Options {
        connections: 1,
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let (mut own, session) = Line::new(&server.address);
    let file = own.open("file");
    let (mut joined, its) = Line::greet(&server.address, Wanted::Joined(session));
    assert_eq!(its, Ok(session));
    assert!(read(&mut joined, file).unwrap() == bytes);
    joined.ask((0, 0), &Request::Ping(Empty)).unwrap();
    assert_eq!(read(&mut joined, (file.0, file.1 + 1)), Err(Errno::EBADF));

    // It is the session's file, not the connection's.
    let release = Request::Release(Release { owner: None });
    own.ask(file, &release).unwrap();
    assert_eq!(read(&mut joined, file), Err(Errno::EBADF));
    for (of, request) in [
        ((1, 0), Request::Getattr(Empty)),
        (file, release.clone()),
        ((1, 0), Request::Opendir(Empty)),
    ] {
        let (mut joined, its) = Line::greet(&server.address, Wanted::Joined(session));
        assert_eq!(its, Ok(session));
        joined.send(of, &request);
        assert!(joined.is_closed(), "{request:?}");
    }
    own.ask((1, 0), &Request::Getattr(Empty)).unwrap();
    assert!(read(&mut own, (1, 77)).is_err());
}

#[test]
fn a_session_takes_so_many_connections_and_they_end_with_it() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let (_stranger, refused) = Line::greet(&server.address, Wanted::Joined(SessionId([7; 16])));
    assert_eq!(refused, Err(Errno::ESTALE));
    let (mut own, session) = Line::new(&server.address);
    let join = || Line::greet(&server.address, Wanted::Joined(session));
    let mut joined: Vec<_> = (0..16).map(|_| join()).collect();
    assert!(joined.iter().all(|(_, its)| *its == Ok(session)));
    assert_eq!(join().1, Err(Errno::EMFILE));
    joined.pop();
    eventually(|| join().1.is_ok());

    own.ask((0, 0), &Request::Goodbye(Empty)).unwrap();
    for (line, _) in &joined {
        assert!(line.is_closed());
    }
    eventually(|| join().1 == Err(Errno::ESTALE));
}

#[test]
fn what_a_joined_connection_tells_a_client_that_is_about_to_go_on_may_not_be_kept() {
    let scratch = Scratch::new();
    fs::write(scratch.source().join("file"), "content").unwrap();
    fs::write(scratch.source().join("other"), "content").unwrap();
    let lease = Duration::from_secs(2);
    let options = Options {
        lease,
        keep: None,
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let keeping = |session| Line::greet_and(&server.address, session, true);
    let (mut own, session) = keeping(Wanted::New);
    let session = session.unwrap();
    let file = own.open("file");
    let (mut joined, its) = keeping(Wanted::Joined(session));
    assert_eq!(its, Ok(session));
    let kept = |joined: &mut Line| {
        let (header, _) = joined.ask(file, &Request::Read(Read { size: 100 })).unwrap();
        header.flags.contains(Flags::KEEP)
    };
    assert!(kept(&mut joined), "as things are");

    // One who never says that he has heard of a change: it is not done before his lease is over.
    let (mut deaf, _) = keeping(Wanted::New);
    let (other, _) = deaf.open("other");
    deaf.ask((other, 0), &Request::Getattr(Empty)).unwrap();
    let (its_other, _) = own.open("other");
    let truncate = Request::Setattr(SetAttr {
        size: Some(0),
        ..SetAttr::default()
    });
    let start = Instant::now();
    own.send((its_other, 0), &truncate);
    let (told, _) = deaf.receive().unwrap();
    assert_eq!(told.kind, Kind::Invalidate);
    // Its client goes on elsewhere meanwhile, and is told so.
    let (mut again, its) = keeping(Wanted::Resumed(session));
    assert_eq!(its, Ok(session));
    assert!(!kept(&mut joined), "nobody would tell of a change");
    assert!(start.elapsed() < lease / 2, "the change was too soon");
    // Once it is done, all is as it was.
    again.ask((1, 0), &Request::Getattr(Empty)).unwrap();
    assert!(start.elapsed() > lease / 2);
    assert_eq!(fs::metadata(scratch.source().join("other")).unwrap().len(), 0);
    assert!(kept(&mut joined));
}
