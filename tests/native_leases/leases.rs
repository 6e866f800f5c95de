// SPDX-License-Identifier: MIT OR Apache-2.0
//! One thing at a time.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use extfuse::abi::NodeId;
use extfuse::remote::Address;
use extfuse::remote::client::{Disconnected, Target};
use extfuse::remote::server::Options;
use extfuse::remote::wire::message::{Empty, Hello, Lookup, Versions, Wanted};
use extfuse::remote::wire::{self, FrameReader, FrameWriter, Header, Kind, Request, Side, Sizes};
use nix::errno::Errno;
use tempfile::TempDir;

use super::link::Link;
use super::{Client, Inside, ROOT, kept, name};

const LEASE: Duration = Duration::from_millis(1500);

fn served(lease: Duration) -> (TempDir, Inside) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "1234").unwrap();
    let options = Options {
        lease,
        keep: None,
        sending: Duration::from_secs(3),
        ..Options::default()
    };
    let server = Inside::start(folder.path(), "127.0.0.1:0", options);
    (folder, server)
}

/// A client of few words: it answers nothing that it is told.
struct Rude {
    stream: TcpStream,
    requests: u64,
}

impl Rude {
    fn connect(server: &Inside) -> Self {
        let Address::Tcp(address) = &server.address else {
            unreachable!()
        };
        let mut rude = Self {
            stream: TcpStream::connect(address).unwrap(),
            requests: 0,
        };
        let hello = Request::Hello(Hello {
            versions: Versions { min: 1, max: 1 },
            sizes: Sizes::default(),
            nonce: [1; 32],
            export: wire::Export::new("").unwrap(),
            session: Wanted::New,
            keeps: true,
        });
        assert_eq!(rude.ask(0, &hello).status, 0);
        rude
    }

    fn send(&mut self, node: u64, request: &Request<'_>) {
        self.requests += 1;
        let header = Header {
            node,
            ..Header::request(request.kind(), self.requests)
        };
        FrameWriter::new(&self.stream, Side::Client)
            .write_frame(&header, 0, &[&request.payload().unwrap()])
            .unwrap();
    }

    /// The next frame of this kind; none at the end of the stream.
    fn next(&self, kind: Kind) -> Option<Header> {
        let mut reader = FrameReader::new(&self.stream, Side::Server);
        loop {
            let mut payload = Vec::new();
            let header = reader.read_frame(&mut payload).ok()??.header;
            if header.kind == kind {
                return Some(header);
            }
        }
    }

    fn ask(&mut self, node: u64, request: &Request<'_>) -> Header {
        self.send(node, request);
        self.next(request.kind()).unwrap()
    }

    /// Is told what `file` stands for.
    fn knows_the_file(&mut self) {
        let answer = self.ask(ROOT, &Request::Lookup(Lookup { name: name("file") }));
        assert_eq!(answer.status, 0);
        assert!(answer.flags.contains(wire::Flags::KEEP));
    }
}

#[test]
fn what_somebody_changes_nobody_uses_any_more_when_he_is_told_so() {
    let (_folder, server) = served(LEASE);
    let (a, b) = (
        Client::connect(&server.target()),
        Client::connect(&server.target()),
    );
    for round in 0..200 {
        let node = a.lookup(ROOT, "file").unwrap();
        a.size(node).unwrap();
        assert!(
            a.cache.attr(NodeId(node)).is_some(),
            "nothing is kept in round {round}"
        );
        assert_eq!(a.lookup(ROOT, "other"), Err(Errno::ENOENT));
        assert!(a.cache.entry(NodeId(ROOT), b"other").is_some());
        assert!(a.cache.entry(NodeId(ROOT), b"file").is_some());

        b.truncate(b.lookup(ROOT, "file").unwrap(), round).unwrap();
        assert!(a.cache.attr(NodeId(node)).is_none());
        assert!(
            a.cache.entry(NodeId(ROOT), b"file").is_some(),
            "the name has not changed"
        );
        assert_eq!(a.size(node), Ok(round));

        b.rename(ROOT, "file", "other").unwrap();
        assert!(a.cache.entry(NodeId(ROOT), b"other").is_none());
        assert_eq!(a.lookup(ROOT, "file"), Err(Errno::ENOENT));
        assert_eq!(a.lookup(ROOT, "other"), Ok(node));
        a.rename(ROOT, "other", "file").unwrap();
        assert!(b.lookup(ROOT, "file").is_ok());
    }
}

#[test]
fn a_change_waits_for_one_who_says_nothing_until_his_lease_is_over_and_no_longer() {
    let (_folder, server) = served(LEASE);
    let mut rude = Rude::connect(&server);
    rude.knows_the_file();
    let client = Client::connect(&server.target());
    let node = client.lookup(ROOT, "file").unwrap();
    let start = Instant::now();
    client.unlink(ROOT, "file").unwrap();
    let took = start.elapsed();
    assert!(took > LEASE / 2 && took < LEASE * 2, "{took:?}");
    assert!(rude.next(Kind::Invalidate).is_some(), "he was told first");
    // He knows nothing any more, and keeps nobody waiting.
    let start = Instant::now();
    client.truncate(node, 0).unwrap();
    client.create(ROOT, "file").unwrap();
    assert!(start.elapsed() < LEASE / 2);
}

#[test]
fn one_who_talks_and_never_answers_is_sent_away() {
    let (_folder, server) = served(LEASE);
    let mut rude = Rude::connect(&server);
    rude.knows_the_file();
    let talker = thread::spawn(move || {
        // As long as the server takes it.
        let hello = Request::Ping(Empty);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            rude.requests += 1;
            let header = Header::request(hello.kind(), rude.requests);
            let mut writer = FrameWriter::new(&rude.stream, Side::Client);
            if writer.write_frame(&header, 0, &[&[]]).is_err() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    });
    let client = Client::connect(&server.target());
    let start = Instant::now();
    client.unlink(ROOT, "file").unwrap();
    let took = start.elapsed();
    // `sending`, and what is left of his lease then.
    assert!(
        took > Duration::from_secs(3) && took < Duration::from_secs(7),
        "{took:?}"
    );
    assert!(talker.join().unwrap(), "he was not sent away");
}

#[test]
fn who_is_cut_off_is_waited_for_and_who_says_goodbye_is_not() {
    let (_folder, server) = served(LEASE);
    let client = Client::connect(&server.target());
    let mut rude = Rude::connect(&server);
    rude.knows_the_file();
    drop(rude);
    let start = Instant::now();
    client.rename(ROOT, "file", "other").unwrap();
    let took = start.elapsed();
    assert!(took > LEASE / 2 && took < LEASE * 2, "{took:?}");

    let mut rude = Rude::connect(&server);
    assert_eq!(
        rude.ask(ROOT, &Request::Lookup(Lookup { name: name("other") }))
            .status,
        0
    );
    assert_eq!(rude.ask(0, &Request::Goodbye(Empty)).status, 0);
    let start = Instant::now();
    client.rename(ROOT, "other", "file").unwrap();
    assert!(start.elapsed() < LEASE / 2);
}

#[test]
fn nothing_that_is_being_changed_may_be_kept() {
    let (_folder, server) = served(LEASE);
    let mut rude = Rude::connect(&server);
    rude.knows_the_file();
    let (changer, other) = (
        Client::connect(&server.target()),
        Client::connect(&server.target()),
    );
    let node = other.lookup(ROOT, "file").unwrap();
    thread::scope(|scope| {
        let change = scope.spawn(|| changer.rename(ROOT, "file", "new"));
        // It has begun, and is not made before the rude one's lease is over.
        assert!(rude.next(Kind::Invalidate).is_some());
        for leaf in ["file", "new"] {
            let lookup = Request::Lookup(Lookup { name: name(leaf) });
            let kept_now = match other.connection.call(&super::about(ROOT), &lookup) {
                Ok(answer) => kept(&answer),
                Err(errno) => {
                    assert_eq!((leaf, errno), ("new", Errno::ENOENT));
                    false
                }
            };
            assert!(!kept_now, "{leaf}");
            let _ = other.lookup(ROOT, leaf);
            assert!(
                other.cache.entry(NodeId(ROOT), leaf.as_bytes()).is_none(),
                "{leaf}"
            );
        }
        other.size(node).unwrap();
        assert!(other.cache.attr(NodeId(node)).is_none());
        assert!(!change.is_finished(), "the change was too soon");
        change.join().unwrap().unwrap();
    });
    assert_eq!(other.lookup(ROOT, "file"), Err(Errno::ENOENT));
    assert_eq!(other.lookup(ROOT, "new"), Ok(node));
    assert!(other.cache.entry(NodeId(ROOT), b"new").is_some());
}

#[test]
fn a_server_that_is_not_heard_of_is_believed_for_its_lease_and_no_longer() {
    let lease = Duration::from_secs(3);
    let (_folder, server) = served(lease);
    let proxy = Link::to(&server.address);
    let mut target = server.target();
    target.address = proxy.address();
    let (far, near) = (Client::connect(&target), Client::connect(&server.target()));
    let node = far.lookup(ROOT, "file").unwrap();
    assert_eq!(far.size(node), Ok(4));
    // It lives on without anybody asking.
    thread::sleep(lease * 2);
    assert!(far.cache.attr(NodeId(node)).is_some());
    proxy.hold();
    let start = Instant::now();
    near.truncate(near.lookup(ROOT, "file").unwrap(), 7).unwrap();
    let took = start.elapsed();
    assert!(far.cache.attr(NodeId(node)).is_none(), "stale after {took:?}");
    assert!(far.cache.entry(NodeId(ROOT), b"file").is_none());
    assert!(took < lease * 2, "{took:?}");
    // When the line is there again it goes on as if nothing had been.
    proxy.go_on();
    assert_eq!(far.size(node), Ok(7));
    // The first answer may have come together with what it was told.
    assert_eq!(far.size(node), Ok(7));
    assert!(far.cache.attr(NodeId(node)).is_some());
}

#[test]
fn no_more_is_written_down_of_a_client_than_the_server_allows() {
    let folder = TempDir::new().unwrap();
    for n in 0..20 {
        fs::write(folder.path().join(format!("f{n}")), "").unwrap();
    }
    let options = Options {
        keep: None,
        told: 21,
        ..Options::default()
    };
    let server = Inside::start(folder.path(), "127.0.0.1:0", options);
    let client = Client::connect(&server.target());
    let mut kept = 0;
    for n in 0..20 {
        let leaf = format!("f{n}");
        client.lookup(ROOT, &leaf).unwrap();
        kept += usize::from(client.cache.entry(NodeId(ROOT), leaf.as_bytes()).is_some());
    }
    // The directory, and a name and a node for each.
    assert_eq!(kept, 10);
    // What is given back makes room.
    for leaf in ["f0", "f1"] {
        client.connection.forget(client.lookup(ROOT, leaf).unwrap(), 1);
    }
    let start = Instant::now();
    while client.cache.entry(NodeId(ROOT), b"f15").is_none() {
        assert!(start.elapsed() < Duration::from_secs(5));
        client.lookup(ROOT, "f15").unwrap();
    }
}

#[test]
fn a_server_that_was_killed_leaves_its_leases_to_the_next_one() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "1234").unwrap();
    let note = folder.path().join("leases");
    let options = |lease| Options {
        lease,
        leases: Some(note.clone()),
        keep: None,
        ..Options::default()
    };
    // Nothing was before it.
    let server = Inside::start(folder.path(), "127.0.0.1:0", options(LEASE));
    let client = Client::connect(&server.target());
    let start = Instant::now();
    let node = client.lookup(ROOT, "file").unwrap();
    client.truncate(node, 1).unwrap();
    assert!(start.elapsed() < LEASE / 2);
    // One that ends in order takes back what it has said.
    assert_eq!(client.size(node), Ok(1));
    let cached = std::sync::Arc::clone(&client.cache);
    assert!(cached.attr(NodeId(node)).is_some());
    assert!(note.exists());
    drop(server);
    assert!(cached.attr(NodeId(node)).is_none());
    assert!(!note.exists());
    // What is left by one that does not, with longer leases than the next one's.
    let long = LEASE * 2;
    fs::write(&note, format!("{}\n", long.as_millis())).unwrap();
    let server = Inside::start(folder.path(), "127.0.0.1:0", options(LEASE));
    let start = Instant::now();
    let client = Client::connect(&server.target());
    let node = client.lookup(ROOT, "file").unwrap();
    assert_eq!(client.size(node), Ok(1));
    assert!(start.elapsed() < LEASE / 2, "looking waits for nothing");
    client.truncate(node, 2).unwrap();
    let took = start.elapsed();
    assert!(took > long - LEASE / 2 && took < long + LEASE, "{took:?}");
    // A client that is cut off may believe what it was told.
    let mut rude = Rude::connect(&server);
    rude.knows_the_file();
    drop(rude);
    drop(server);
    assert!(note.exists());
}

#[test]
fn when_a_line_breaks_it_is_made_again_and_nothing_of_before_is_used() {
    let (folder, server) = served(LEASE);
    let link = Link::to(&server.address);
    let target = Target {
        address: link.address(),
        disconnected: Disconnected::Wait,
        tls: None,
        ..server.target()
    };
    let (client, near) = (Client::connect(&target), Client::connect(&server.target()));
    let held =
        || fs::read_dir("/proc/self/fd").unwrap().count() + fs::read_dir("/proc/self/task").unwrap().count();
    let mut first = None;
    for round in 0..60 {
        let node = client.lookup(ROOT, "file").unwrap();
        assert_eq!(client.size(node), Ok(4));
        assert!(client.cache.attr(NodeId(node)).is_some());
        link.cut();
        // Asked on the way, before or after anybody has noticed.
        let start = Instant::now();
        while client.cache.attr(NodeId(node)).is_some() {
            assert!(start.elapsed() < Duration::from_secs(5), "round {round}");
        }
        assert_eq!(client.lookup(ROOT, "file"), Ok(node), "the session goes on");
        assert_eq!(client.size(node), Ok(4));
        // Nobody waits for what it was told before.
        let start = Instant::now();
        near.truncate(near.lookup(ROOT, "file").unwrap(), 4).unwrap();
        assert!(
            start.elapsed() < LEASE / 2,
            "round {round}: {:?}",
            start.elapsed()
        );
        if round == 10 {
            first = Some(held());
        }
    }
    let most = first.unwrap() + 6;
    let start = Instant::now();
    while held() > most {
        assert!(start.elapsed() < Duration::from_secs(10), "{} of {most}", held());
        thread::sleep(Duration::from_millis(20));
    }
    drop(folder);
}

#[test]
fn while_there_is_no_server_a_client_waits_for_its_timeout_or_not_at_all() {
    let timeout = Duration::from_secs(2);
    for (disconnected, errno) in [
        (Disconnected::Wait, Errno::ETIMEDOUT),
        (Disconnected::Fail, Errno::EIO),
    ] {
        let (folder, server) = served(LEASE);
        let client = Client::connect(&Target {
            disconnected,
            tls: None,
            timeout,
            ..server.target()
        });
        let address = server.address.to_string();
        client.lookup(ROOT, "file").unwrap();
        drop(server);
        let start = Instant::now();
        while client.connection.lease_left() > Duration::ZERO && !client.connection.is_broken() {
            assert!(start.elapsed() < timeout);
        }
        let start = Instant::now();
        assert_eq!(client.lookup(ROOT, "file"), Err(errno));
        let took = start.elapsed();
        match disconnected {
            Disconnected::Wait => assert!(took > timeout / 2 && took < timeout * 2, "{took:?}"),
            Disconnected::Fail => assert!(took < timeout / 4, "{took:?}"),
        }
        // And goes on when there is one again.
        let options = Options {
            keep: None,
            ..Options::default()
        };
        let _server = Inside::start(folder.path(), &address, options);
        let start = Instant::now();
        while client.lookup(ROOT, "file").is_err() {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_server_that_allows_less_to_be_kept_than_the_one_before_is_asked_about_everything() {
    let (folder, server) = served(LEASE);
    let client = Client::connect(&server.target());
    let node = client.lookup(ROOT, "file").unwrap();
    assert_eq!(client.size(node), Ok(4));
    assert!(client.cache.attr(NodeId(node)).is_some());
    let address = server.address.to_string();
    drop(server);
    // By default others may work in the directory without it.
    let _server = Inside::start(folder.path(), &address, Options::default());
    let start = Instant::now();
    let node = loop {
        match client.lookup(ROOT, "file") {
            Ok(node) => break node,
            Err(_) => assert!(start.elapsed() < Duration::from_secs(10)),
        }
    };
    for size in [7, 9] {
        fs::write(folder.path().join("file"), vec![0; size]).unwrap();
        assert_eq!(client.size(node), Ok(size as u64));
        assert!(client.cache.attr(NodeId(node)).is_none());
    }
}
