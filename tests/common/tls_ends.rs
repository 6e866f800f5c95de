// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends of TLS connections that say what ours never do.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::client::{ConnectError, Connection, Disconnected, Target};
use extfuse::remote::tls::ClientTls;
use extfuse::remote::wire::message::{Empty, Hello, HelloReply, SessionId, Versions, Wanted};
use extfuse::remote::wire::{Export, FrameReader, FrameWriter, Header, Reply, Request, Side, Sizes, VERSION};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::certificates::{Authority, Identity};

/// Far less than anybody would wait for a frame.
const SOON: Duration = Duration::from_secs(5);

/// What is said after the first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// That no more comes, though the connection stays open.
    CloseNotify,
    /// That the keys change.
    KeyUpdate,
}

/// Whether our ends on this machine have their TLS done by the kernel: once one of them has tried.
pub fn by_kernel() -> bool {
    Path::new("/proc/net/tls_stat").exists()
}

/// One that believes whom the authority does.
pub fn client(authority: &Authority, socket: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(&authority.own.certificate).unwrap();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
}

/// One who is whom the certificate is for.
pub fn server(identity: &Identity, socket: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
    let certificate = CertificateDer::from_pem_file(&identity.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    // The protocol has no tickets.
    config.send_tls13_tickets = 0;
    StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket)
}

pub fn hello() -> Request<'static> {
    Request::Hello(Hello {
        versions: Versions { min: 1, max: 1 },
        sizes: Sizes::default(),
        nonce: [1; 32],
        export: Export::new("").unwrap(),
        session: Wanted::New,
        keeps: false,
    })
}

fn frame(header: &Header, side: Side, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut writer = FrameWriter::new(&mut frame, side);
    writer.write_frame(header, 0, &[payload]).unwrap();
    frame
}

/// Whether more comes; false at the end.
fn hears_more(stream: &mut impl Read) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read > 0,
        Err(error) => {
            let waits = [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind());
            assert!(!waits, "neither an answer nor an end");
            false
        }
    }
}

/// A server at `address` (no token) whose client says what is no data ends the connection, or goes on, and waits for nothing.
pub fn server_hears_what_is_no_data(authority: &Authority, address: &str) {
    for said in [Said::CloseNotify, Said::KeyUpdate] {
        println!("{said:?}");
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut client = client(authority, socket);
        let hello = hello();
        let payload = hello.payload().unwrap();
        let greeting = frame(&Header::request(hello.kind(), 1), Side::Client, &payload);
        client.write_all(&greeting).unwrap();
        let mut buffer = Vec::new();
        let reply = FrameReader::new(&mut client, Side::Server).read_frame(&mut buffer);
        assert!(reply.unwrap().is_some());
        match said {
            Said::CloseNotify => {
                client.conn.send_close_notify();
                client.conn.complete_io(&mut client.sock).unwrap();
                assert!(!hears_more(&mut client));
            }
            Said::KeyUpdate => {
                client.conn.refresh_traffic_keys().unwrap();
                let ping = Request::Ping(Empty);
                let ping = frame(&Header::request(ping.kind(), 2), Side::Client, &[]);
                // It may have hung up already.
                let _ = client.write_all(&ping);
                assert_eq!(hears_more(&mut client), !by_kernel());
            }
        }
    }
}

/// A client whose server says what is no data gives up, or goes on, and waits for nothing.
pub fn client_hears_what_is_no_data(authority: &Authority, identity: &Identity) {
    for said in [Said::CloseNotify, Said::KeyUpdate] {
        println!("{said:?}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target {
            address: listener.local_addr().unwrap().to_string().parse().unwrap(),
            export: Export::new("").unwrap(),
            token: None,
            keeps: false,
            disconnected: Disconnected::Fail,
            tls: Some(ClientTls::new(&authority.own.certificate, "127.0.0.1", None).unwrap()),
            timeout: SOON * 4,
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = server(identity, listener.accept().unwrap().0);
                let mut buffer = Vec::new();
                let hello = FrameReader::new(&mut stream, Side::Client)
                    .read_frame(&mut buffer)
                    .unwrap()
                    .unwrap()
                    .header;
                if said == Said::CloseNotify {
                    stream.conn.send_close_notify();
                    stream.conn.complete_io(&mut stream.sock).unwrap();
                } else {
                    stream.conn.refresh_traffic_keys().unwrap();
                    let reply = Reply::Hello(HelloReply {
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
                    });
                    let reply = frame(&hello.reply(), Side::Server, &reply.payload().unwrap());
                    let _ = stream.write_all(&reply);
                }
                // Until it hangs up; of its GOODBYE nobody takes note.
                while matches!(stream.sock.read(&mut [0; 1024]), Ok(1..)) {}
            });
            let start = Instant::now();
            let opened = Connection::open(&target).map(drop);
            assert!(start.elapsed() < SOON, "{:?}: {opened:?}", start.elapsed());
            match (said, opened) {
                (Said::CloseNotify, Err(ConnectError::ClosedTls)) => {}
                (Said::KeyUpdate, Ok(())) => assert!(!by_kernel()),
                (Said::KeyUpdate, Err(ConnectError::Wire(error))) => {
                    assert!(by_kernel());
                    assert!(error.to_string().contains("change the keys"), "{error}");
                }
                other => panic!("{other:?}"),
            }
        });
    }
}
