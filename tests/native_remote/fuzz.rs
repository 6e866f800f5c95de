// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that send anything: half a minute of them, two with `--long`. What they may do in the export they do; nothing outside
//! of it is read or changed, others are served, and nothing is left of them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use extfuse::remote::client::{About, Connection};
use extfuse::remote::server::Options;
use extfuse::remote::wire::message::{
    Caller, Create, Empty, Hello, Link, Lookup, Open, Read as ReadRequest, Rename, SessionId, Unlink,
    Versions, Wanted,
};
use extfuse::remote::wire::{Export, FrameWriter, Header, Kind, Name, Request, Side, Sizes};
use nix::mount::{MsFlags, mount, umount};

use crate::clients::Inside;
use crate::common::{Scratch, eventually};
use crate::dice::Dice;

/// What nobody may get to see.
const SECRET: &[u8] = b"what is outside of the export";

fn hello(session: Wanted, keeps: bool) -> Request<'static> {
    Request::Hello(Hello {
        versions: Versions { min: 1, max: 1 },
        sizes: Sizes::default(),
        nonce: [7; 32],
        export: Export::new("").unwrap(),
        session,
        keeps,
    })
}

fn name(dice: &mut Dice) -> Name {
    Name::new(NAMES[dice.below(NAMES.len())]).unwrap()
}

/// A request that may mean something.
fn request(dice: &mut Dice) -> Request<'static> {
    let caller = Caller { uid: 0, gid: 0 };
    let flags = [
        libc::O_RDONLY,
        libc::O_RDWR,
        libc::O_WRONLY,
        libc::O_RDWR | libc::O_TRUNC,
    ];
    match dice.below(15) {
        0..3 => Request::Lookup(Lookup { name: name(dice) }),
        3 => Request::Open(Open {
            flags: flags[dice.below(4)],
        }),
        4 => Request::Create(Create {
            name: name(dice),
            mode: 0o644,
            umask: 0,
            flags: flags[dice.below(4)],
            caller,
        }),
        5 => Request::Rename(Rename {
            name: name(dice),
            new_parent: dice.below(20) as u64,
            new_name: name(dice),
            flags: dice.below(8) as u32,
            caller,
        }),
        6 => Request::Link(Link {
            parent: dice.below(20) as u64,
            name: name(dice),
        }),
        7 => Request::Unlink(Unlink { name: name(dice) }),
        8 => Request::Readlink(Empty),
        9 => Request::Opendir(Empty),
        10..13 => Request::Read(ReadRequest { size: 4096 }),
        _ => {
            let mut all = dice.requests(&[0x5a; 300]);
            all.swap_remove(dice.below(all.len()))
        }
    }
}

/// One connection of somebody who is up to no good; how many requests it sent.
fn attack(dice: &mut Dice, server: &Inside) -> u64 {
    let mut stream = server.connect();
    stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut sent = 0;
    let (mut bytes, mut heard) = (Vec::new(), Vec::new());
    match dice.below(8) {
        // Not even a frame.
        0 => bytes.extend((0..dice.below(2000)).map(|_| dice.below(256) as u8)),
        1 => {
            let session = SessionId(std::array::from_fn(|_| dice.below(256) as u8));
            let wanted = match dice.below(2) {
                0 => Wanted::Joined(session),
                _ => Wanted::Resumed(session),
            };
            let hello = hello(wanted, true);
            frame(&mut bytes, 1, (0, 0), &hello, dice);
        }
        _ => {
            frame(
                &mut bytes,
                1,
                (0, 0),
                &hello(Wanted::New, dice.below(2) == 0),
                dice,
            );
            let mut number = 1;
            if dice.below(3) == 0 {
                // One who looks at everything first, each time when he has heard what there is.
                for (step, of) in walk(dice) {
                    for request in step {
                        number += 1;
                        frame(&mut bytes, number, of, &request, dice);
                    }
                    let _ = stream.write_all(&std::mem::take(&mut bytes));
                    hear(&mut stream, &mut heard);
                }
            }
            for number in number + 1..number + 1 + dice.below(200) as u64 {
                let request = request(dice);
                let of = match dice.below(6) {
                    0 => (1, 0),
                    1 => (u64::MAX, u64::MAX),
                    _ => (dice.below(9) as u64, dice.below(9) as u64),
                };
                frame(&mut bytes, number, of, &request, dice);
                sent += 1;
            }
        }
    }
    match dice.below(6) {
        // Any bit, or the end.
        0 if !bytes.is_empty() => {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
        1 => bytes.truncate(dice.below(bytes.len() + 1)),
        _ => {}
    }
    for part in bytes.chunks(4096) {
        // It may be closed by now.
        if stream.write_all(part).is_err() {
            break;
        }
        if dice.below(4) == 0 && !hear(&mut stream, &mut heard) {
            break;
        }
    }
    if dice.below(2) == 0 {
        let _ = stream.shutdown(Shutdown::Write);
    }
    hear(&mut stream, &mut heard);
    let found = heard.windows(SECRET.len()).any(|window| window == SECRET);
    assert!(!found, "somebody has read what is outside");
    sent
}

/// Takes what there is to hear; whether there may be more later.
fn hear(stream: &mut TcpStream, heard: &mut Vec<u8>) -> bool {
    let mut part = [0; 64 << 10];
    while heard.len() < 8 << 20 {
        match stream.read(&mut part) {
            Ok(0) => return false,
            Ok(n) => heard.extend_from_slice(&part[..n]),
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
    false
}

/// Steps, and of what node and handle they are.
fn walk(dice: &mut Dice) -> Vec<(Vec<Request<'static>>, (u64, u64))> {
    let lookup = |name: &str| {
        Request::Lookup(Lookup {
            name: Name::new(name).unwrap(),
        })
    };
    let flags = libc::O_RDONLY;
    let mut steps = vec![(NAMES.map(lookup).into(), (1, 0))];
    // Nodes have numbers in the order in which they are found, whatever is found.
    let below = (2..9).map(|node| (vec![lookup("file"), Request::Readlink(Empty)], (node, 0)));
    steps.extend(below);
    let opened = (2..14).map(|node| (vec![Request::Open(Open { flags })], (node, 0)));
    steps.extend(opened.filter(|_| dice.below(2) == 0));
    let read = |handle| (vec![Request::Read(ReadRequest { size: 4096 })], (2, handle));
    steps.extend((1..9).map(read));
    steps
}

/// Names of what is there, and of ways out.
const NAMES: [&str; 10] = [
    "file", "dir", "absolute", "relative", "to-dir", "new", "other", "...", "dir2", "file2",
];

/// Puts a frame behind others; now and then one whose payload is of another kind.
fn frame(
    bytes: &mut Vec<u8>,
    number: u64,
    (node, handle): (u64, u64),
    request: &Request<'_>,
    dice: &mut Dice,
) {
    let kind = match dice.below(30) {
        0 => Kind::ALL[dice.below(Kind::ALL.len())],
        _ => request.kind(),
    };
    let header = Header {
        node,
        handle,
        offset: [0, 0, 0, 0, 0, 0, 4096, u64::MAX][dice.below(8)],
        ..Header::request(kind, number)
    };
    let Ok(payload) = request.payload() else { return };
    // Some requests are too large for their kind.
    let _ = FrameWriter::new(bytes, Side::Client).write_frame(&header, 0, &[&payload]);
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Everything about what is outside.
fn outside(dir: &Path) -> Vec<(String, Vec<u8>, u32, u64, i64)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let about = fs::symlink_metadata(&path).unwrap();
            let bytes = if about.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            (
                path.display().to_string(),
                bytes,
                about.mode(),
                about.nlink(),
                about.ctime_nsec(),
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn whoever_sends_anything_gets_nowhere() {
    let scratch = Scratch::new();
    let source = scratch.source();
    // What is made there must not fill the disk.
    let tmpfs = Some("tmpfs");
    mount(
        tmpfs,
        &source,
        tmpfs,
        MsFlags::empty(),
        Some("size=64m,nr_inodes=20k"),
    )
    .unwrap();
    let beyond = scratch.path().join("beyond");
    fs::create_dir_all(beyond.join("dir")).unwrap();
    fs::write(beyond.join("file"), SECRET).unwrap();
    fs::create_dir(source.join("dir")).unwrap();
    fs::write(source.join("file"), "inside").unwrap();
    symlink(beyond.join("file"), source.join("absolute")).unwrap();
    symlink("../beyond/file", source.join("relative")).unwrap();
    symlink(&beyond, source.join("dir/to-dir")).unwrap();
    symlink("../../beyond", source.join("to-dir")).unwrap();
    let before = outside(&beyond);
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let time = Duration::from_secs(120);
    // A thread of the server that panics takes nobody with it.
    static PANICS: AtomicU64 = AtomicU64::new(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        if thread.name().is_some_and(|name| name.starts_with("extfuse-")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        hook(panic);
    }));
    let sent = AtomicU64::new(0);
    {
        let options = Options {
            lease: Duration::from_secs(1),
            open: 200,
            nodes: 500,
            ..Options::default()
        };
        let server = Inside::start(&source, options);
        server.still_serves();
        let had = descriptors();
        let until = Instant::now() + time;
        thread::scope(|scope| {
            for attacker in 0..3 {
                let (server, sent) = (&server, &sent);
                scope.spawn(move || {
                    let mut dice = Dice(seed + attacker);
                    while Instant::now() < until {
                        sent.fetch_add(attack(&mut dice, server), Ordering::Relaxed);
                    }
                });
            }
            // Meanwhile others are served, and soon.
            let connection = Connection::open(&server.target()).unwrap();
            while Instant::now() < until {
                let root = About {
                    node: 1,
                    ..About::default()
                };
                let start = Instant::now();
                let answer = connection.call(&root, &Request::Getattr(Empty));
                assert!(answer.is_ok(), "{answer:?}");
                assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
                thread::sleep(Duration::from_millis(50));
            }
        });
        // Sessions last for a lease more; then nothing is left of them.
        eventually(|| descriptors() <= had + 2);
        server.still_serves();
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
    assert_eq!(outside(&beyond), before);
    println!("{} requests", sent.load(Ordering::Relaxed));
    assert!(sent.into_inner() > 1000);
    umount(&source).unwrap();
}
