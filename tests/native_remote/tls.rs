// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same over TLS: who is believed, what is seen on the way, and what becomes of it when somebody is there.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::client::{About, ConnectError, Connection, Disconnected, Target};
use extfuse::remote::server::Options;
use extfuse::remote::tls::{ClientTls, ServerTls};
use extfuse::remote::wire::auth::{Greeting, Token, proof};
use extfuse::remote::wire::message::{Lookup, Open, Proof, Read as ReadRequest};
use extfuse::remote::wire::{self, FrameReader, FrameWriter, Header, Reply, Request, Side};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use rustls::{ClientConnection, StreamOwned};

use crate::certificates::{Authority, Identity};
use crate::clients::{Inside, is_closed};
use crate::common::{EXTFUSE, PATIENCE, Scratch, eventually, extfuse, one_line};
use crate::tls_ends::{self, hello};
use crate::{Served, TOKEN, mount, text, token_file};

/// One who signs, and a server's certificate.
struct Scene {
    scratch: Scratch,
    authority: Authority,
    server: Identity,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new();
        let authority = Authority::new(scratch.path(), "authority");
        let server = authority.of("server", "127.0.0.1");
        scratch.write("file", "content");
        Self {
            scratch,
            authority,
            server,
        }
    }

    /// `extfuse serve` over TLS.
    fn serve(&self, identity: &Identity, more: &[&str]) -> Served {
        let tls = [
            "--tls-cert",
            text(&identity.certificate),
            "--tls-key",
            text(&identity.key),
        ];
        Served::tcp(&self.scratch.source(), &[&tls[..], more].concat())
    }

    /// What a client says that believes whom the authority does.
    fn tls(&self) -> [&str; 3] {
        ["--tls", "--tls-ca", text(&self.authority.own.certificate)]
    }

    /// The error of a mount, which has to come soon.
    fn refused(&self, served: &Served, more: &[&str]) -> String {
        let (mountpoint, url) = (self.scratch.mountpoint(), served.url());
        let start = Instant::now();
        let arguments = [&["mount", "--stock"], more, &[&url, text(&mountpoint)]].concat();
        let error = one_line(1, &extfuse(&arguments));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}: {error}",
            start.elapsed()
        );
        error
    }

    /// A server in this process, over TLS.
    fn inside(&self, options: Options) -> Inside {
        let tls = ServerTls::new(&self.server.certificate, &self.server.key, None).unwrap();
        Inside::start(
            &self.scratch.source(),
            Options {
                tls: Some(tls),
                ..options
            },
        )
    }

    fn target(&self, inside: &Inside) -> Target {
        let tls = ClientTls::new(&self.authority.own.certificate, "127.0.0.1", None).unwrap();
        Target {
            tls: Some(tls),
            ..inside.target()
        }
    }

    /// A client that does not need our code for TLS.
    fn client(&self, socket: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
        tls_ends::client(&self.authority, socket)
    }
}

fn connect(address: &str) -> TcpStream {
    TcpStream::connect(address).unwrap()
}

/// Between a client and a server at `server`: hands on what comes, as `change` leaves it, which is told the direction (to
/// the server?) and how many bytes went before. Gives where to connect.
fn between(server: String, change: impl Fn(bool, usize, &mut [u8]) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let change = Arc::new(change);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), connect(&server));
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            for to_server in [true, false] {
                let (mut from, mut to) = match to_server {
                    true => (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    false => (server.try_clone().unwrap(), client.try_clone().unwrap()),
                };
                let change = Arc::clone(&change);
                thread::spawn(move || {
                    let (mut before, mut buffer) = (0, vec![0; 64 << 10]);
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        change(to_server, before, &mut buffer[..read]);
                        before += read;
                        if to.write_all(&buffer[..read]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                    let _ = from.shutdown(Shutdown::Both);
                });
            }
        }
    });
    address
}

/// Opens the file; errors are the connection's.
fn open_file(connection: &Connection) -> Result<About, nix::errno::Errno> {
    let at = |node, handle| About {
        node,
        handle,
        ..About::default()
    };
    let name = wire::Name::new("file").unwrap();
    let answer = connection.call(&at(1, 0), &Request::Lookup(Lookup { name }))?;
    let Ok(Reply::Lookup(entry)) = answer.reply() else {
        panic!("{answer:?}")
    };
    let flags = libc::O_RDONLY;
    let answer = connection.call(&at(entry.node, 0), &Request::Open(Open { flags }))?;
    let Ok(Reply::Open(opened)) = answer.reply() else {
        panic!("{answer:?}")
    };
    Ok(at(entry.node, opened.handle))
}

fn read_open(connection: &Connection, file: &About) -> Result<Vec<u8>, nix::errno::Errno> {
    let read = Request::Read(ReadRequest { size: 1 << 20 });
    Ok(connection.call(file, &read)?.payload)
}

fn read_file(connection: &Connection) -> Result<Vec<u8>, nix::errno::Errno> {
    read_open(connection, &open_file(connection)?)
}

#[test]
fn a_tree_is_copied_both_ways_and_nothing_of_it_is_seen_on_the_way() {
    let scene = Scene::new();
    let served = scene.serve(&scene.server, &[]);
    let (marks, seen) = (
        ["nobody-is-to-read-this", "nor-this-name"],
        Arc::new(Mutex::new(Vec::new())),
    );
    let tape = Arc::clone(&seen);
    let address = between(served.address.clone(), move |_, _, bytes| {
        tape.lock().extend_from_slice(bytes)
    });
    let mounted = mount(&format!("extfuse://{address}"), &scene.scratch, &scene.tls());
    let tree = scene.scratch.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    let noise = Command::new("head")
        .args(["-c", "5000000", "/dev/urandom"])
        .output()
        .unwrap();
    fs::write(tree.join("a/large"), noise.stdout).unwrap();
    fs::write(tree.join(marks[1]), marks[0].repeat(100)).unwrap();
    for i in 0..200 {
        fs::write(tree.join(format!("a/b/{i}")), vec![i as u8; i * 37]).unwrap();
    }
    let run = |program: &str, arguments: &[&Path]| {
        let done = Command::new(program).arg("-a").args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let same = |one: &Path, two: &Path| {
        let done = Command::new("diff").arg("-r").args([one, two]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let (there, back) = (
        scene.scratch.source().join("tree"),
        scene.scratch.path().join("back"),
    );
    run("cp", &[&tree, &mounted.join("tree")]);
    same(&tree, &there);
    same(&tree, &mounted.join("tree"));
    run("cp", &[&mounted.join("tree"), &back]);
    same(&tree, &back);
    drop(mounted);
    let seen = seen.lock();
    assert!(seen.len() > 3 * 5_000_000, "{}", seen.len());
    for mark in marks {
        assert!(
            !seen.windows(mark.len()).any(|bytes| bytes == mark.as_bytes()),
            "{mark}"
        );
    }
}

#[test]
fn nobody_is_believed_but_the_server_that_was_meant() {
    let scene = Scene::new();
    let other = Authority::new(scene.scratch.path(), "other");
    let url =
        |served: &Served, host: &str| format!("extfuse://{}", served.address.replace("127.0.0.1", host));
    let served = scene.serve(&scene.server, &[]);
    {
        let mounted = mount(&served.url(), &scene.scratch, &scene.tls());
        assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
    }
    let stranger = ["--tls", "--tls-ca", text(&other.own.certificate)];
    let error = scene.refused(&served, &stranger);
    assert!(error.contains("UnknownIssuer"), "{error}");

    let named = scene.authority.of("named", "files.example");
    let named = scene.serve(&named, &[]);
    let error = scene.refused(&named, &scene.tls());
    assert!(error.contains("not valid for name \"127.0.0.1\""), "{error}");
    let error = scene.refused(
        &named,
        &[&scene.tls()[..], &["--tls-name", "other.example"]].concat(),
    );
    assert!(error.contains("not valid for name \"other.example\""), "{error}");
    let by_name = [&scene.tls()[..], &["--tls-name", "files.example"]].concat();
    drop(mount(&url(&named, "localhost"), &scene.scratch, &by_name));

    let past = scene.serve(&scene.authority.of_years("past", "127.0.0.1", 2000, 2001), &[]);
    let error = scene.refused(&past, &scene.tls());
    assert!(error.contains("expired"), "{error}");
    let future = scene.serve(&scene.authority.of_years("future", "127.0.0.1", 3000, 3001), &[]);
    let error = scene.refused(&future, &scene.tls());
    assert!(error.contains("not valid yet"), "{error}");
}

#[test]
fn only_clients_with_the_right_certificate_are_served_if_that_is_wanted() {
    let scene = Scene::new();
    let clients = Authority::new(scene.scratch.path(), "clients");
    let (right, wrong) = (
        clients.of("right", "somebody"),
        scene.authority.of("wrong", "somebody"),
    );
    let tls = [
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        text(&scene.server.certificate),
        "--tls-key",
        text(&scene.server.key),
        "--tls-client-ca",
        text(&clients.own.certificate),
    ];
    let source = scene.scratch.source();
    // No --insecure, no token: the certificate is what lets them in.
    let served = Served::start(&[&tls[..], &[text(&source)]].concat());
    let with = |identity: &Identity| {
        let own = [
            "--tls-cert",
            text(&identity.certificate),
            "--tls-key",
            text(&identity.key),
        ];
        [&scene.tls()[..], &own]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let words = |words: &[String]| {
        words
            .iter()
            .map(|word| word.as_str().to_owned())
            .collect::<Vec<_>>()
    };
    let refused = |more: &[String]| {
        let more = words(more);
        scene.refused(&served, &more.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let error = scene.refused(&served, &scene.tls());
    assert!(error.contains("certificate"), "{error}");
    let error = refused(&with(&wrong));
    assert!(error.contains("certificate"), "{error}");
    let right = with(&right);
    let mounted = mount(
        &served.url(),
        &scene.scratch,
        &right.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
}

#[test]
fn the_token_is_wanted_over_tls_too() {
    let scene = Scene::new();
    let right = token_file(&scene.scratch, TOKEN);
    let wrong = token_file(&scene.scratch, b"sixteen bytes, wrong");
    let served = scene.serve(&scene.server, &["--token-file", text(&right)]);
    let with = |token: &Path| {
        let words = [&scene.tls()[..], &["--token-file", text(token)]].concat();
        words.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let words = |words: &[String]| words.to_vec();
    let (right, wrong) = (words(&with(&right)), words(&with(&wrong)));
    let error = scene.refused(&served, &scene.tls());
    assert!(error.contains("wants a token"), "{error}");
    let error = scene.refused(&served, &wrong.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("refuses the token"), "{error}");
    let right = right.iter().map(String::as_str).collect::<Vec<_>>();
    let mounted = mount(&served.url(), &scene.scratch, &right);
    fs::write(mounted.join("new"), vec![7; 300_000]).unwrap();
    assert_eq!(
        fs::read(scene.scratch.source().join("new")).unwrap(),
        vec![7; 300_000]
    );
}

/// Somebody whom the client believes, and who is not the server: reads and hands on all that is said.
fn impostor(scene: &Scene, server: String) -> String {
    let identity = scene.authority.of("impostor", "127.0.0.1");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let to_server = scene.client(connect(&server));
    thread::spawn(move || {
        let client = listener.accept().unwrap().0;
        let mut client = tls_ends::server(&identity, client);
        let mut server = to_server;
        for socket in [&client.sock, &server.sock] {
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        }
        let mut buffer = vec![0; 64 << 10];
        // One after the other: whoever has nothing to say is skipped.
        let mut hand_on = |from: &mut dyn Read, to: &mut dyn Write| match from.read(&mut buffer) {
            Ok(0) => false,
            Ok(read) => to.write_all(&buffer[..read]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        while hand_on(&mut client, &mut server) && hand_on(&mut server, &mut client) {}
        let _ = client.sock.shutdown(Shutdown::Both);
    });
    address
}

#[test]
fn a_token_is_of_no_use_to_somebody_between() {
    let scene = Scene::new();
    let target = |inside: &Inside, address: &str, token: Option<Token>| Target {
        address: address.parse().unwrap(),
        token,
        ..scene.target(inside)
    };
    // Without a token nobody would notice.
    let open = scene.inside(Options::default());
    let address = impostor(&scene, open.address.to_string());
    let connection = Connection::open(&target(&open, &address, None)).unwrap();
    assert_eq!(read_file(&connection).unwrap(), b"content");
    drop(connection);

    let token = Token::new(TOKEN).unwrap();
    let inside = scene.inside(Options {
        token: Some(token.clone()),
        ..Options::default()
    });
    let direct = inside.address.to_string();
    Connection::open(&target(&inside, &direct, Some(token.clone()))).unwrap();
    let address = impostor(&scene, direct);
    let error = Connection::open(&target(&inside, &address, Some(token))).unwrap_err();
    assert!(matches!(error, ConnectError::TokenRefused), "{error}");
}

/// As documented, by one that does TLS itself.
#[test]
fn what_a_token_proves_is_bound_to_the_exporter() {
    let scene = Scene::new();
    let token = Token::new(TOKEN).unwrap();
    let server = scene.inside(Options {
        token: Some(token.clone()),
        ..Options::default()
    });
    let labels: [(&[u8], u32); 2] = [
        (b"EXPORTER-Channel-Binding", 0),
        (b"EXPORTER-Channel-Bindung", libc::EACCES as u32),
    ];
    for (label, status) in labels {
        let mut client = scene.client(server.connect());
        let hello = hello();
        let said = hello.payload().unwrap().into_owned();
        FrameWriter::new(&mut client, Side::Client)
            .write_frame(&Header::request(hello.kind(), 1), 0, &[&said])
            .unwrap();
        let mut buffer = Vec::new();
        let answer = FrameReader::new(&mut client, Side::Server).read_frame(&mut buffer);
        let answer = answer.unwrap().unwrap();
        let Ok(Reply::Hello(reply)) = Reply::decode(&answer.header, answer.payload) else {
            panic!("{answer:?}")
        };
        let exporter = client.conn.export_keying_material([0; 32], label, None).unwrap();
        let greeting = Greeting::new([1; 32], reply.nonce, &said, answer.payload, Some(&exporter));
        let request = Request::Authenticate(Proof(proof(&token, Side::Client, &greeting).into()));
        FrameWriter::new(&mut client, Side::Client)
            .write_frame(
                &Header::request(request.kind(), 2),
                0,
                &[&request.payload().unwrap()],
            )
            .unwrap();
        let mut buffer = Vec::new();
        let answer = FrameReader::new(&mut client, Side::Server).read_frame(&mut buffer);
        assert_eq!(answer.unwrap().unwrap().header.status, status);
    }
}

#[test]
fn whoever_says_half_a_handshake_or_trickles_is_sent_away_in_time() {
    let scene = Scene::new();
    let server = scene.inside(Options {
        greeting: Duration::from_secs(1),
        ..Options::default()
    });
    let start = Instant::now();
    let silent = server.connect();
    // The handshake, and then nothing; and a handshake and a HELLO that trickle.
    let mut shaken = scene.client(server.connect());
    shaken.conn.complete_io(&mut shaken.sock).unwrap();
    let mut half = scene.client(server.connect());
    let mut said = Vec::new();
    half.conn.write_tls(&mut said).unwrap();
    let trickling = half.sock;
    let mut slow = scene.client(server.connect());
    slow.conn.complete_io(&mut slow.sock).unwrap();
    let mut frame = Vec::new();
    let hello = hello();
    FrameWriter::new(&mut frame, Side::Client)
        .write_frame(&Header::request(hello.kind(), 1), 0, &[&hello.payload().unwrap()])
        .unwrap();
    for (byte, other) in said.iter().zip(frame) {
        let sent = (&trickling)
            .write_all(&[*byte])
            .and_then(|()| slow.write_all(&[other]));
        if sent.is_err() || start.elapsed() > PATIENCE {
            break;
        }
        thread::sleep(Duration::from_millis(30));
    }
    for socket in [&silent, &trickling, &shaken.sock, &slow.sock] {
        assert!(is_closed(socket));
    }
    // Less than that of the trickling ones alone would be.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    Connection::open(&scene.target(&server)).unwrap();
}

#[test]
fn what_is_no_data_keeps_nobody_waiting() {
    let scene = Scene::new();
    let server = scene.inside(Options::default());
    tls_ends::server_hears_what_is_no_data(&scene.authority, &server.address.to_string());
    tls_ends::client_hears_what_is_no_data(&scene.authority, &scene.server);
}

#[test]
fn strangers_under_tls_make_room() {
    let scene = Scene::new();
    let server = scene.inside(Options {
        strangers: 20,
        greeting: PATIENCE * 10,
        ..Options::default()
    });
    let silent: Vec<_> = (0..60)
        .map(|i| {
            let mut client = scene.client(server.connect());
            if i % 2 == 0 {
                // Somebody may be shown out in the middle of it.
                let _ = client.conn.complete_io(&mut client.sock);
            }
            client.sock
        })
        .collect();
    Connection::open(&scene.target(&server)).unwrap();
    assert!(silent[..30].iter().all(is_closed));
}

#[test]
fn a_line_that_breaks_is_made_again_with_tls_and_not_without() {
    let scene = Scene::new();
    let server = scene.inside(Options::default());
    // What each line to the server began with; and those that there are.
    let (begun, lines) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(Mutex::new(Vec::<TcpStream>::new())),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tape, kept, there) = (Arc::clone(&begun), Arc::clone(&lines), server.address.to_string());
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), connect(&there));
            for (mut from, mut to, says) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap(), true),
                (server.try_clone().unwrap(), client.try_clone().unwrap(), false),
            ] {
                let tape = Arc::clone(&tape);
                thread::spawn(move || {
                    let mut first = [0; 3];
                    if from.read_exact(&mut first).is_ok() && to.write_all(&first).is_ok() {
                        if says {
                            tape.lock().push(first);
                        }
                        let _ = io::copy(&mut from, &mut to);
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
            kept.lock().push(client);
        }
    });
    let target = Target {
        address: address.parse().unwrap(),
        disconnected: Disconnected::Wait,
        ..scene.target(&server)
    };
    let connection = Connection::open(&target).unwrap();
    for breaks in 1..=3 {
        assert_eq!(read_file(&connection).unwrap(), b"content");
        for line in lines.lock().drain(..) {
            line.shutdown(Shutdown::Both).unwrap();
        }
        eventually(|| connection.is_broken() || begun.lock().len() > breaks);
        eventually(|| !connection.is_broken());
    }
    assert_eq!(read_file(&connection).unwrap(), b"content");
    drop(connection);
    // A record of the handshake, each of them.
    assert_eq!(*begun.lock(), [[22, 3, 1]; 4]);
}

#[test]
fn who_speaks_without_tls_where_it_is_spoken_or_the_other_way_is_told_soon() {
    let scene = Scene::new();
    let served = scene.serve(&scene.server, &[]);
    let error = scene.refused(&served, &[]);
    assert!(error.contains("--tls"), "{error}");
    let plain = Served::tcp(&scene.scratch.source(), &[]);
    let error = scene.refused(&plain, &scene.tls());
    assert!(error.contains("may not speak TLS"), "{error}");
    // Somebody who says something else first, and keeps the line open.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let talker = thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        client.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        assert!(is_closed(&client));
    });
    let mountpoint = scene.scratch.mountpoint();
    let url = format!("extfuse://{address}");
    let arguments = [
        &["mount", "--stock"],
        &scene.tls()[..],
        &[&url, text(&mountpoint)],
    ]
    .concat();
    let error = one_line(1, &extfuse(&arguments));
    assert!(error.contains("is no TLS"), "{error}");
    talker.join().unwrap();
}

fn s_client(address: &str, more: &[&str]) -> io::Result<Output> {
    Command::new("openssl")
        .args(["s_client", "-connect", address])
        .args(more)
        .stdin(Stdio::null())
        .output()
}

#[test]
fn nothing_older_than_tls_1_3_is_spoken_and_one_cipher() {
    let scene = Scene::new();
    let served = scene.serve(&scene.server, &[]);
    let output = match s_client(&served.address, &["-tls1_2"]) {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: there is no openssl here: {error}");
            return;
        }
    };
    let said = |output: &Output| {
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        String::from_utf8_lossy(&text).into_owned()
    };
    assert!(
        said(&output).contains("alert protocol version"),
        "{}",
        said(&output)
    );
    let aes = s_client(
        &served.address,
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
    )
    .unwrap();
    assert!(said(&aes).contains("alert handshake failure"), "{}", said(&aes));
    let good = s_client(&served.address, &["-tls1_3"]).unwrap();
    assert!(
        said(&good).contains("TLS_CHACHA20_POLY1305_SHA256"),
        "{}",
        said(&good)
    );
    assert!(
        !said(&good).contains("New Session Ticket arrived"),
        "{}",
        said(&good)
    );
}

#[test]
fn a_byte_that_is_changed_on_the_way_gives_an_error_and_never_wrong_data() {
    let scene = Scene::new();
    let content: Vec<u8> = (0..300_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(scene.scratch.source().join("file"), &content).unwrap();
    let server = scene.inside(Options::default());
    let address = server.address.to_string();
    let run = |position: Option<(bool, usize)>| {
        let passed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let counting = Arc::clone(&passed);
        let relay = between(address.clone(), move |to_server, before, bytes| {
            if let Some((direction, at)) = position
                && direction == to_server
                && let Some(byte) = at.checked_sub(before).and_then(|at| bytes.get_mut(at))
            {
                *byte ^= 1 << (at % 8);
            }
            counting[usize::from(to_server)].store(before + bytes.len(), Ordering::Relaxed);
        });
        let target = Target {
            address: relay.parse().unwrap(),
            timeout: Duration::from_secs(1),
            ..scene.target(&server)
        };
        let read = Connection::open(&target).map(|connection| {
            let read = read_file(&connection);
            // What a goodbye says does not matter.
            (read, [0, 1].map(|i| passed[i].load(Ordering::Relaxed)))
        });
        match read {
            Ok((Ok(read), passed)) => {
                assert!(read == content, "wrong data with {position:?}");
                Some(passed)
            }
            Ok((Err(_), _)) | Err(_) => None,
        }
    };
    let length = run(None).expect("nothing was changed");
    assert!(length[0] > content.len(), "{length:?}");
    let (mut errors, mut all) = (0, 0);
    for (to_server, length) in [(true, length[1]), (false, length[0])] {
        for i in 0..24 {
            all += 1;
            errors += usize::from(run(Some((to_server, i * (length - 1) / 23))).is_none());
        }
    }
    // Of a record's header the version says nothing, and is not looked at.
    assert!(errors >= all - 3, "{errors} errors of {all}");
}

#[test]
fn a_client_under_tls_that_hardly_reads_is_sent_away() {
    let scene = Scene::new();
    fs::write(scene.scratch.source().join("file"), vec![7; 1 << 20]).unwrap();
    let server = scene.inside(Options {
        sending: Duration::from_secs(1),
        ..Options::default()
    });
    // The relay that nobody reads from keeps it back.
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stuck, told) = (Arc::clone(&stop), Arc::clone(&stopped));
    let relay = between(server.address.to_string(), move |to_server, _, _| {
        while !to_server && stuck.load(Ordering::Relaxed) {
            told.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
    });
    let target = Target {
        address: relay.parse().unwrap(),
        timeout: PATIENCE,
        ..scene.target(&server)
    };
    let connection = Arc::new(Connection::open(&target).unwrap());
    let file = open_file(&connection).unwrap();
    assert_eq!(read_open(&connection, &file).unwrap().len(), 1 << 20);
    let before = threads("extfuse-tls");
    stop.store(true, Ordering::Relaxed);
    let start = Instant::now();
    // More than all buffers on the way hold.
    let readers: Vec<_> = (0..24)
        .map(|_| {
            let connection = Arc::clone(&connection);
            thread::spawn(move || read_open(&connection, &file))
        })
        .collect();
    // The server's thread of two, though what it has for the client never leaves.
    eventually(|| threads("extfuse-tls") < before);
    // The client would have waited for longer.
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    assert!(stopped.load(Ordering::Relaxed) > 0);
    stop.store(false, Ordering::Relaxed);
    let read = readers.into_iter().map(|reader| reader.join().unwrap());
    assert!(read.filter(Result::is_err).count() > 0);
}

/// Threads of this process that are called so.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|of| of.trim() == name).count()
}

#[test]
fn two_hundred_connections_over_tls_leave_nothing_behind() {
    let scene = Scene::new();
    let served = scene.serve(&scene.server, &[]);
    let count =
        |pid: &str| ["fd", "task"].map(|what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count());
    let server = served.child.id().to_string();
    let target = Target {
        address: served.address.parse().unwrap(),
        export: wire::Export::new("").unwrap(),
        token: None,
        keeps: false,
        disconnected: Disconnected::Fail,
        tls: Some(ClientTls::new(&scene.authority.own.certificate, "127.0.0.1", None).unwrap()),
        timeout: Duration::from_secs(10),
    };
    let once = || {
        assert_eq!(
            read_file(&Connection::open(&target).unwrap()).unwrap(),
            b"content"
        )
    };
    let idle = count(&server);
    once();
    let own = count("self");
    for round in 0..200 {
        match round % 4 {
            // One who hangs up after the handshake, and one in it.
            0 => {
                let mut client = scene.client(connect(&served.address));
                client.conn.complete_io(&mut client.sock).unwrap();
                client.write_all(b"half a frame").unwrap();
            }
            1 => {
                let mut client = scene.client(connect(&served.address));
                client.conn.write_tls(&mut client.sock).unwrap();
            }
            _ => once(),
        }
    }
    eventually(|| count(&server) == idle);
    eventually(|| count("self") == own);
}

#[test]
fn a_server_over_tls_that_is_told_to_end_ends_well_and_its_clients_hear_of_it() {
    let scene = Scene::new();
    let mut served = scene.serve(&scene.server, &[]);
    let impatient = [&scene.tls()[..], &["--on-disconnect", "eio"]].concat();
    let mounted = mount(&served.url(), &scene.scratch, &impatient);
    fs::write(mounted.join("new"), "new").unwrap();
    served.signal(Signal::SIGTERM);
    let start = Instant::now();
    assert!(served.child.wait().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    eventually(|| fs::metadata(mounted.join("file")).is_err());
    let error = fs::metadata(mounted.join("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn what_makes_no_sense_with_tls_is_refused_and_what_does_is_not() {
    let scene = Scene::new();
    let (source, mountpoint) = (scene.scratch.source(), scene.scratch.mountpoint());
    let (certificate, key) = (text(&scene.server.certificate), text(&scene.server.key));
    let token = token_file(&scene.scratch, TOKEN);
    let tls = ["--tls-cert", certificate, "--tls-key", key];
    let serve = |listen: &str, more: &[&str]| {
        let arguments = [&["serve", "--listen", listen], more, &[text(&source)]].concat();
        extfuse(&arguments)
    };
    // Encrypted, but for everybody.
    let error = one_line(2, &serve("127.0.0.1:0", &tls));
    assert!(
        error.contains("--tls-client-ca") && error.contains("--insecure"),
        "{error}"
    );
    one_line(
        2,
        &serve("127.0.0.1:0", &["--insecure", "--tls-cert", certificate]),
    );
    one_line(
        2,
        &serve("127.0.0.1:0", &["--insecure", "--tls-client-ca", certificate]),
    );
    let other = scene.authority.of("another", "127.0.0.1");
    for (key, why) in [
        (text(&other.key), "server.pem: the certificate there is not for"),
        (text(&other.key), text(&other.key)),
        (certificate, "server.pem: there is no private key in it"),
        ("/nonexistent", "/nonexistent: I/O error: No such file"),
    ] {
        let error = one_line(
            1,
            &serve(
                "127.0.0.1:0",
                &["--insecure", "--tls-cert", certificate, "--tls-key", key],
            ),
        );
        assert!(error.contains(why), "{error}");
    }
    let error = one_line(
        1,
        &serve(
            "127.0.0.1:0",
            &["--insecure", "--tls-cert", key, "--tls-key", key],
        ),
    );
    assert!(error.contains("no certificate"), "{error}");
    for wrong in [
        &["--tls"][..],
        &["--tls-ca", certificate],
        &["--tls-name", "name"],
        &["--tls", "--tls-ca", certificate, "--tls-cert", certificate],
    ] {
        let arguments = [&["mount"], wrong, &["extfuse://127.0.0.1:9", text(&mountpoint)]].concat();
        one_line(2, &extfuse(&arguments));
    }
    let ca = ["mount", "--tls", "--tls-ca", certificate];
    one_line(
        2,
        &extfuse(&[&ca[..], &[text(&source), text(&mountpoint)]].concat()),
    );
    let error = one_line(
        2,
        &extfuse(&[&ca[..], &["extfuse+unix:/run/x", text(&mountpoint)]].concat()),
    );
    assert!(error.contains("--tls-name"), "{error}");
    // Beyond this machine, and nobody said --insecure.
    let served = Served::start(
        &[
            &["--listen", "0.0.0.0:0", "--token-file", text(&token)],
            &tls[..],
            &[text(&source)],
        ]
        .concat(),
    );
    let port = served.address.rsplit_once(':').unwrap().1.to_owned();
    drop(served);
    let start = Instant::now();
    let url = format!("extfuse://192.0.2.1:{port}");
    let beyond = [&ca[..], &["--timeout", "1", &url, text(&mountpoint)]].concat();
    let error = one_line(1, &extfuse(&beyond));
    assert!(
        error.contains("cannot connect") && start.elapsed() < PATIENCE,
        "{error}"
    );
}

#[test]
fn the_certificates_that_are_made_as_documented_are_good() {
    let scene = Scene::new();
    let folder = scene.scratch.path();
    if let Err(error) = Command::new("openssl").arg("version").output() {
        println!("skipped: there is no openssl here: {error}");
        return;
    }
    let page = include_str!("../../docs/certificates.md");
    let blocks = page.split("```sh\n").skip(1);
    let blocks = blocks.map(|rest| rest.split_once("```").unwrap().0);
    let script: String = blocks.filter(|block| block.contains("openssl")).collect();
    let made = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let names = ["ca.pem", "client.pem", "client.key", "self.pem"];
    let [ca, client, client_key, own] = names.map(file);
    let identity = |name: &str| Identity {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    let served = scene.serve(&identity("server"), &["--tls-client-ca", &ca]);
    let error = scene.refused(&served, &["--tls", "--tls-ca", &ca]);
    assert!(error.contains("certificate"), "{error}");
    let all = [
        "--tls",
        "--tls-ca",
        &ca,
        "--tls-cert",
        &client,
        "--tls-key",
        &client_key,
    ];
    drop(mount(&served.url(), &scene.scratch, &all));
    let served = scene.serve(&identity("self"), &[]);
    let all = ["--tls", "--tls-ca", &own, "--tls-name", "files.example"];
    drop(mount(&served.url(), &scene.scratch, &all));
}

#[test]
fn over_a_socket_of_this_machine_with_tls_and_a_key_that_everybody_can_read() {
    let scene = Scene::new();
    let socket = scene.scratch.path().join("socket");
    let listen = format!("unix:{}", socket.display());
    fs::set_permissions(&scene.server.key, fs::Permissions::from_mode(0o644)).unwrap();
    let log = scene.scratch.path().join("log");
    let mut child = Command::new(EXTFUSE)
        .args(["--log", "info", "serve", "--listen", &listen])
        .args([
            "--tls-cert",
            text(&scene.server.certificate),
            "--tls-key",
            text(&scene.server.key),
        ])
        .arg(scene.scratch.source())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    eventually(|| socket.exists());
    let tls = [&scene.tls()[..], &["--tls-name", "127.0.0.1"]].concat();
    let mounted = mount(&format!("extfuse+{listen}"), &scene.scratch, &tls);
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
    drop(mounted);
    child.kill().unwrap();
    child.wait().unwrap();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("everybody can read this key"), "{log}");
    assert!(log.contains("TLS in user space"), "{log}");
}
