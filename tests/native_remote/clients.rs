// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server and clients that speak the protocol by themselves: too much, too little, wrongly.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use extfuse::remote::server::{Export, Options, Server, Stopper};
use extfuse::remote::wire::message::{Hello, Open, Read as ReadRequest, Versions, Wanted};
use extfuse::remote::wire::{self, FrameReader, FrameWriter, Header, Reply, Request, Side, Sizes};
use extfuse::remote::{Address, client};

use crate::TOKEN;
use crate::common::{PATIENCE, Scratch, eventually};

/// A server in this process.
pub struct Inside {
    pub address: Address,
    stopper: Stopper,
    thread: Option<thread::JoinHandle<()>>,
}

impl Inside {
    pub fn start(directory: &Path, options: Options) -> Self {
        let exports = vec![Export {
            name: wire::Export::new("").unwrap(),
            directory: directory.to_owned(),
            read_only: false,
        }];
        let server = Server::bind(&"127.0.0.1:0".parse().unwrap(), exports, options).unwrap();
        Self {
            address: server.address().unwrap(),
            stopper: server.stopper(),
            thread: Some(thread::spawn(move || server.serve().unwrap())),
        }
    }

    pub fn connect(&self) -> TcpStream {
        let Address::Tcp(address) = &self.address else {
            unreachable!()
        };
        TcpStream::connect(address).unwrap()
    }

    /// A client that knows how, and is served.
    fn greeted(&self) -> TcpStream {
        let stream = self.connect();
        let hello = Request::Hello(Hello {
            versions: Versions { min: 1, max: 1 },
            sizes: Sizes::default(),
            nonce: [1; 32],
            export: wire::Export::new("").unwrap(),
            session: Wanted::New,
            keeps: false,
        });
        send(&stream, Header::request(hello.kind(), 1), &hello);
        assert!(matches!(receive(&stream), (_, Some(()))));
        stream
    }

    pub fn target(&self) -> client::Target {
        client::Target {
            keeps: false,
            disconnected: client::Disconnected::Fail,
            address: self.address.clone(),
            export: wire::Export::new("").unwrap(),
            token: None,
            tls: None,
            timeout: Duration::from_secs(10),
        }
    }

    pub fn still_serves(&self) {
        client::Connection::open(&self.target()).unwrap();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

fn send(stream: &TcpStream, header: Header, request: &Request<'_>) {
    FrameWriter::new(stream, Side::Client)
        .write_frame(&header, 0, &[&request.payload().unwrap()])
        .unwrap();
}

/// The header of a reply, and that it is one without an error.
fn receive(stream: &TcpStream) -> (Header, Option<()>) {
    let mut payload = Vec::new();
    let mut reader = FrameReader::new(stream, Side::Server);
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let good = frame.header.status == 0 && Reply::decode(&frame.header, frame.payload).is_ok();
    (frame.header, good.then_some(()))
}

/// Whether the other end has closed it, within our patience.
pub fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_thousand_who_say_nothing_keep_nobody_out() {
    let scratch = Scratch::new();
    let options = Options {
        strangers: 100,
        greeting: PATIENCE * 10,
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let silent: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    let start = Instant::now();
    server.still_serves();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert!(is_closed(&silent[0]));
    // It had to make room, not merely to go in its time.
    assert!(
        start.elapsed() < Options::default().greeting / 2,
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn as_many_are_served_as_there_may_be_and_strangers_do_not_count() {
    let scratch = Scratch::new();
    let options = Options {
        connections: 2,
        strangers: 5,
        greeting: PATIENCE * 10,
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let _silent: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let (one, two) = (server.greeted(), server.greeted());
    let getattr = Request::Getattr(Default::default());
    let about = Header {
        node: 1,
        ..Header::request(getattr.kind(), 2)
    };
    for served in [&one, &two] {
        send(served, about, &getattr);
        assert!(receive(served).1.is_some());
    }
    // One too many has a greeting, and is closed then.
    assert!(is_closed(&server.greeted()));
    drop(one);
    // Its place is free again, once its thread has ended.
    eventually(|| client::Connection::open(&server.target()).is_ok());
}

#[test]
fn whoever_says_half_a_word_or_trickles_is_sent_away_in_time() {
    let scratch = Scratch::new();
    let options = Options {
        greeting: Duration::from_secs(1),
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let start = Instant::now();
    let mut trickling = server.connect();
    let silent = server.connect();
    let hello = Header::request(wire::Kind::Hello, 1).encode(102).unwrap();
    for byte in hello {
        if trickling.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(is_closed(&silent) && is_closed(&trickling));
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn who_has_not_greeted_is_served_nothing_and_who_has_not_twice() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let stranger = server.connect();
    let getattr = Request::Getattr(Default::default());
    let header = Header {
        node: 1,
        ..Header::request(getattr.kind(), 1)
    };
    send(&stranger, header, &getattr);
    assert!(is_closed(&stranger));
    let known = server.greeted();
    send(&known, header, &getattr);
    assert!(receive(&known).1.is_some());
    // Nodes that it was not given, and a handle; and what is no file to read.
    send(&known, Header { node: 77, ..header }, &getattr);
    assert_eq!(receive(&known).0.status, libc::ESTALE as u32);
    let read = Request::Read(ReadRequest { size: 5 });
    for (node, handle, status) in [
        (0, 0, libc::ESTALE),
        (77, 0, libc::ESTALE),
        (1, 77, libc::EBADF),
        (1, 0, libc::EINVAL),
    ] {
        let header = Header {
            node,
            handle,
            ..Header::request(read.kind(), 2)
        };
        send(&known, header, &read);
        assert_eq!(receive(&known).0.status, status as u32, "{node}, {handle}");
    }
    // A pipe would keep a thread for good.
    let open = Request::Open(Open {
        flags: libc::O_RDONLY,
    });
    send(
        &known,
        Header {
            node: 1,
            ..Header::request(open.kind(), 3)
        },
        &open,
    );
    assert_eq!(receive(&known).0.status, libc::EINVAL as u32);
    // Nothing leads out of the export: a name is one component, and a link is not followed.
    let up = Header {
        node: 1,
        ..Header::request(wire::Kind::Lookup, 4)
    };
    for name in ["..", ".", "a/b", "a\0b", ""] {
        let payload = [&[name.len() as u8], name.as_bytes()].concat();
        FrameWriter::new(&known, Side::Client)
            .write_frame(&up, 0, &[&payload])
            .unwrap();
        assert_eq!(receive(&known).0.status, libc::EPROTO as u32, "{name:?}");
    }
    symlink("/etc", scratch.source().join("link")).unwrap();
    let lookup = Request::Lookup(wire::message::Lookup {
        name: wire::Name::new("link").unwrap(),
    });
    send(&known, up, &lookup);
    let mut payload = Vec::new();
    let mut reader = FrameReader::new(&known, Side::Server);
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let Reply::Lookup(link) = Reply::decode(&frame.header, frame.payload).unwrap() else {
        unreachable!()
    };
    let below = Request::Lookup(wire::message::Lookup {
        name: wire::Name::new("passwd").unwrap(),
    });
    for (request, node) in [(&below, link.node), (&open, link.node), (&read, link.node)] {
        send(
            &known,
            Header {
                node,
                ..Header::request(request.kind(), 5)
            },
            request,
        );
        assert!(matches!(
            receive(&known).0.status as i32,
            libc::ENOTDIR | libc::EINVAL
        ));
    }
    server.still_serves();
}

#[test]
fn a_proof_that_is_none_opens_nothing() {
    let scratch = Scratch::new();
    let options = Options {
        token: Some(wire::auth::Token::new(TOKEN).unwrap()),
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let ask = |request: &Request<'_>| {
        let stream = server.greeted();
        let header = Header {
            node: 1,
            ..Header::request(request.kind(), 2)
        };
        send(&stream, header, request);
        stream
    };
    let guess = ask(&Request::Authenticate(wire::message::Proof([7; 32])));
    assert_eq!(receive(&guess).0.status, libc::EACCES as u32);
    assert!(is_closed(&guess));
    assert!(is_closed(&ask(&Request::Getattr(Default::default()))));
}

#[test]
fn a_listing_is_no_longer_than_what_was_asked_for() {
    let scratch = Scratch::new();
    for i in 0..300 {
        File::create(scratch.source().join(format!("{i:0100}"))).unwrap();
    }
    let server = Inside::start(&scratch.source(), Options::default());
    let stream = server.greeted();
    let ask = |header: Header, request: &Request<'_>| {
        send(&stream, header, request);
        let mut payload = Vec::new();
        let mut reader = FrameReader::new(&stream, Side::Server);
        let frame = reader.read_frame(&mut payload).unwrap().unwrap();
        (frame.header, frame.payload.to_vec())
    };
    let root = |kind, request| Header {
        node: 1,
        ..Header::request(kind, request)
    };
    let (header, payload) = ask(
        root(wire::Kind::Opendir, 2),
        &Request::Opendir(Default::default()),
    );
    let Reply::Opendir(opened) = Reply::decode(&header, &payload).unwrap() else {
        unreachable!()
    };
    let (mut offset, mut names) = (0, BTreeSet::new());
    loop {
        let readdir = Request::Readdir(wire::message::Readdir { size: 1000 });
        let at = Header {
            handle: opened.handle,
            offset,
            ..root(readdir.kind(), 3)
        };
        let (header, payload) = ask(at, &readdir);
        assert!(payload.len() <= 1000, "{}", payload.len());
        let Reply::Readdir(listing) = Reply::decode(&header, &payload).unwrap() else {
            unreachable!()
        };
        let Some(last) = listing.entries.last() else { break };
        offset = last.offset;
        names.extend(listing.entries.iter().map(|entry| entry.name.as_bytes().to_vec()));
    }
    assert_eq!(names.len(), 302);
    // No room for one is not the end.
    let readdir = Request::Readdir(wire::message::Readdir { size: 10 });
    let at = Header {
        handle: opened.handle,
        ..root(readdir.kind(), 4)
    };
    assert_eq!(ask(at, &readdir).0.status, libc::EINVAL as u32);
}

#[test]
fn nonsense_is_sent_away_and_hurts_nobody_else() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut stream = if round % 2 == 0 {
            server.connect()
        } else {
            server.greeted()
        };
        let mut bytes = Header::request(wire::Kind::ALL[round % wire::Kind::ALL.len()], 5)
            .encode(102)
            .unwrap();
        bytes.extend((0..random() % 300).map(|_| random() as u8));
        for _ in 0..random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] ^= 1 << (random() % 8);
        }
        // It may be sent away in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(is_closed(&stream), "round {round}");
    }
    server.still_serves();
}

#[test]
fn a_client_that_hardly_reads_is_sent_away_and_keeps_nobody() {
    let scratch = Scratch::new();
    fs::write(scratch.source().join("file"), vec![7; 1 << 20]).unwrap();
    let options = Options {
        sending: Duration::from_secs(1),
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let greedy = server.greeted();
    let lookup = Request::Lookup(wire::message::Lookup {
        name: wire::Name::new("file").unwrap(),
    });
    send(
        &greedy,
        Header {
            node: 1,
            ..Header::request(lookup.kind(), 1)
        },
        &lookup,
    );
    let mut payload = Vec::new();
    let mut reader = FrameReader::new(&greedy, Side::Server);
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let Reply::Lookup(entry) = Reply::decode(&frame.header, frame.payload).unwrap() else {
        unreachable!()
    };
    let open = Request::Open(Open {
        flags: libc::O_RDONLY,
    });
    send(
        &greedy,
        Header {
            node: entry.node,
            ..Header::request(open.kind(), 2)
        },
        &open,
    );
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let Reply::Open(opened) = Reply::decode(&frame.header, frame.payload).unwrap() else {
        unreachable!()
    };
    let asking = Arc::new(greedy);
    let greedy = Arc::clone(&asking);
    let asked = thread::spawn(move || {
        let mut writer = FrameWriter::new(&*asking, Side::Client);
        let read = Request::Read(ReadRequest { size: 1 << 20 });
        for request in 3..1000 {
            let header = Header {
                node: entry.node,
                handle: opened.handle,
                ..Header::request(read.kind(), request)
            };
            if writer
                .write_frame(&header, 0, &[&read.payload().unwrap()])
                .is_err()
            {
                return;
            }
        }
    });
    server.still_serves();
    asked.join().unwrap();
    // Or next to never: there is always some of a frame that goes, and no frame in its time.
    for _ in 0..20 {
        if let Err(error) = (&*greedy).read_exact(&mut [0; 64 << 10]) {
            // Of what it has asked for not everything was heard.
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            return;
        }
        thread::sleep(Duration::from_millis(300));
    }
    assert!(is_closed(&greedy));
}

#[test]
fn who_asks_one_thing_after_another_has_one_thread() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let stream = server.greeted();
    let answering = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        // Some of them, of other tests, end meanwhile.
        let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "extfuse-answer").count()
    };
    assert_eq!(answering(), 0);
    let getattr = Request::Getattr(Default::default());
    for request in 0..100 {
        let header = Header {
            node: 1,
            ..Header::request(getattr.kind(), request)
        };
        send(&stream, header, &getattr);
        assert!(receive(&stream).1.is_some());
        // Its thread is free only when it has answered.
        thread::sleep(Duration::from_millis(2));
    }
    assert!((1..=3).contains(&answering()), "{}", answering());
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    server.still_serves();
    let before = (descriptors(), threads());
    for _ in 0..1000 {
        server.still_serves();
    }
    eventually(|| descriptors() <= before.0 + 2 && threads() <= before.1 + 2);
}
