// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client of a directory against servers that are slow, or lie.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::client::{About, Connection, Target};
use extfuse::remote::wire::message::{Data, Empty, HelloReply, Invalidate, Invalidation, Read, SessionId};
use extfuse::remote::wire::{
    Export, FrameReader, FrameWriter, Header, Kind, Reply, Request, Sealer, Side, Sizes, VERSION,
};
use nix::errno::Errno;

const TIMEOUT: Duration = Duration::from_secs(2);

/// For a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server's end of a connection that was greeted.
struct Peer {
    stream: TcpStream,
    reader: FrameReader<TcpStream>,
    writer: FrameWriter<TcpStream>,
}

impl Peer {
    fn greet(stream: TcpStream) -> Self {
        let mut peer = Self {
            reader: FrameReader::new(stream.try_clone().unwrap(), Side::Client),
            writer: FrameWriter::new(stream.try_clone().unwrap(), Side::Server),
            stream,
        };
        let hello = peer.next().unwrap();
        assert_eq!(hello.kind, Kind::Hello);
        peer.answer(
            &hello,
            &Reply::Hello(HelloReply {
                version: VERSION,
                sizes: Sizes::default(),
                nonce: [2; 32],
                token: false,
                session: SessionId([3; 16]),
                lease_ms: 60_000,
                read_only: false,
                requests: 32,
                keep_ms: None,
                reads_nodes: false,
            }),
        );
        peer
    }

    /// What comes, but for PINGs, which are answered. None at the end.
    fn next(&mut self) -> Option<Header> {
        loop {
            let mut payload = Vec::new();
            let header = self.reader.read_frame(&mut payload).ok()??.header;
            match header.kind {
                Kind::Ping => self.answer(&header, &Reply::Ping(Empty)),
                Kind::Goodbye => self.answer(&header, &Reply::Goodbye(Empty)),
                _ => return Some(header),
            }
        }
    }

    /// The client may have gone.
    fn answer(&mut self, to: &Header, reply: &Reply<'_>) {
        let _ = self
            .writer
            .write_frame(&to.reply(), 0, &[&reply.payload().unwrap()]);
    }
}

/// A connection to somebody who behaves like this once it is greeted.
fn connected(behave: impl FnOnce(Peer) + Send + 'static) -> (Connection, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target {
        keeps: false,
        disconnected: extfuse::remote::client::Disconnected::Fail,
        address: listener.local_addr().unwrap().to_string().parse().unwrap(),
        export: Export::new("").unwrap(),
        token: None,
        tls: None,
        timeout: TIMEOUT,
    };
    let peer = thread::spawn(move || behave(Peer::greet(listener.accept().unwrap().0)));
    (Connection::open(&target).unwrap(), peer)
}

fn read() -> (About, Request<'static>) {
    let about = About {
        node: 5,
        handle: 6,
        ..About::default()
    };
    (about, Request::Read(Read { size: 4096 }))
}

#[test]
fn a_disk_may_take_its_time_while_the_server_is_there() {
    let (connection, peer) = connected(|mut peer| {
        let fsync = peer.next().unwrap();
        // It goes on answering PINGs meanwhile.
        let start = Instant::now();
        peer.stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        while start.elapsed() < TIMEOUT * 3 {
            assert!(peer.next().is_none());
        }
        peer.stream.set_read_timeout(None).unwrap();
        peer.answer(&fsync, &Reply::Fsync(Empty));
        assert!(peer.next().is_none());
    });
    let start = Instant::now();
    connection
        .call(&About::default(), &Request::Fsync(Empty))
        .unwrap();
    assert!(start.elapsed() >= TIMEOUT * 3 && !connection.is_broken());
    drop(connection);
    peer.join().unwrap();
}

#[test]
fn a_read_that_is_never_answered_is_given_up_though_the_server_is_there() {
    let (connection, peer) = connected(|mut peer| while peer.next().is_some() {});
    let (about, request) = read();
    let start = Instant::now();
    assert_eq!(connection.call(&about, &request).unwrap_err(), Errno::ETIMEDOUT);
    assert!(start.elapsed() >= TIMEOUT && start.elapsed() < PATIENCE);
    assert!(connection.is_broken());
    assert_eq!(connection.call(&about, &request).unwrap_err(), Errno::EIO);
    drop(connection);
    peer.join().unwrap();
}

#[test]
fn a_server_that_says_nothing_at_all_is_given_up_whatever_it_was_asked() {
    let (given_up, until) = channel();
    let (connection, peer) = connected(move |mut peer| {
        peer.next();
        until.recv().unwrap();
    });
    let start = Instant::now();
    let error = connection.call(&About::default(), &Request::Fsync(Empty));
    assert!(matches!(error.unwrap_err(), Errno::ETIMEDOUT | Errno::EIO));
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    given_up.send(()).unwrap();
    drop(connection);
    peer.join().unwrap();
}

#[test]
fn what_is_invalidated_is_acknowledged() {
    let (connection, peer) = connected(|mut peer| {
        let invalidate = Request::Invalidate(Invalidate {
            what: vec![Invalidation::Everything],
        });
        for number in [100, 200] {
            let header = Header::request(Kind::Invalidate, number);
            let payload = invalidate.payload().unwrap();
            peer.writer.write_frame(&header, 0, &[&payload]).unwrap();
        }
        // In this order, whenever the request comes.
        let came: Vec<_> = (0..3).map(|_| peer.next().unwrap()).collect();
        let (asked, done): (Vec<Header>, Vec<Header>) =
            came.into_iter().partition(|header| header.kind == Kind::Fsync);
        let done: Vec<_> = done.iter().map(|header| (header.kind, header.request)).collect();
        assert_eq!(done, [(Kind::Invalidated, 100), (Kind::Invalidated, 200)]);
        // The client is gone once it has its answer.
        peer.answer(&asked[0], &Reply::Fsync(Empty));
        assert!(peer.next().is_none());
    });
    connection
        .call(&About::default(), &Request::Fsync(Empty))
        .unwrap();
    drop(connection);
    peer.join().unwrap();
}

#[test]
fn with_any_bit_of_an_answer_wrong_nobody_gets_its_data() {
    let content = [0xa5; 40];
    // What a whole frame has.
    let reply = Header {
        length: content.len() as u32,
        node: 5,
        handle: 6,
        ..Header::request(Kind::Read, 3).reply()
    };
    let frame = move |reply: &Header| {
        let body = extfuse::remote::wire::Body::Bytes(&[&content]);
        let sealed = Sealer::new(Side::Server).seal(reply, 0, body).unwrap();
        [&sealed.header[..], &content, &sealed.footer].concat()
    };
    let bits = frame(&reply).len() * 8;
    // Every one of the payload, and some of the others: each is a connection.
    let payload = 102 * 8..(102 + content.len()) * 8;
    for bit in (0..bits).filter(|bit| payload.contains(bit) || bit % 7 == 0) {
        let (connection, peer) = connected(move |mut peer| {
            let asked = peer.next().unwrap();
            let mut bytes = frame(&Header {
                length: content.len() as u32,
                ..asked.reply()
            });
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = peer.stream.write_all(&bytes);
            // A length that is too long is not waited for.
            let _ = peer.stream.shutdown(std::net::Shutdown::Write);
            while peer.next().is_some() {}
        });
        let (about, request) = read();
        assert_eq!(
            connection.call(&about, &request).unwrap_err(),
            Errno::EIO,
            "bit {bit}"
        );
        assert!(connection.is_broken());
        drop(connection);
        peer.join().unwrap();
    }
}

#[test]
fn an_answer_to_something_else_is_nobodys() {
    type Spoil = fn(&mut Header);
    let cases: [(&str, Spoil); 5] = [
        ("number", |header| header.request += 1),
        ("node", |header| header.node += 1),
        ("handle", |header| header.handle += 1),
        ("kind", |header| header.kind = Kind::Fsync),
        ("status beyond errors", |header| header.status = 511),
    ];
    for (what, spoil) in cases {
        let (connection, peer) = connected(move |mut peer| {
            let mut reply = peer.next().unwrap().reply();
            spoil(&mut reply);
            let data = Reply::Read(Data(b"somebody else's"));
            let payload = data.payload().unwrap();
            let empty = reply.kind == Kind::Fsync || reply.status != 0;
            let pieces: &[&[u8]] = if empty { &[] } else { &[&payload] };
            peer.writer.write_frame(&reply, 0, pieces).unwrap();
            while peer.next().is_some() {}
        });
        let (about, request) = read();
        assert_eq!(
            connection.call(&about, &request).unwrap_err(),
            Errno::EIO,
            "{what}"
        );
        drop(connection);
        peer.join().unwrap();
    }
}
