// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions that outlive their connections.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::client::{About, Connection, Disconnected, Target};
use extfuse::remote::server::Options;
use extfuse::remote::wire::message::{
    Caller, Create, Data, Link as HardLink, Lookup, Mkdir, Open, Read, Rename, Rmdir, SetAttr, Symlink,
    Unlink,
};
use extfuse::remote::wire::{Flags, Reply, Request, Target as LinkTarget};
use nix::errno::Errno;
use tempfile::TempDir;

use super::link::Link;
use super::{Client, Inside, ROOT, about, name};

/// A folder, its server, a line to it, and who uses that and waits while it is broken.
fn scene(lease: Duration) -> (TempDir, Inside, Link, Connection) {
    let folder = TempDir::new().unwrap();
    let options = Options {
        lease,
        ..Options::default()
    };
    let server = Inside::start(folder.path(), "127.0.0.1:0", options);
    let link = Link::to(&server.address);
    let target = Target {
        address: link.address(),
        disconnected: Disconnected::Wait,
        ..server.target()
    };
    let connection = Connection::open(&target).unwrap();
    (folder, server, link, connection)
}

fn eventually(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(10), "still not so");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Asks; the server does it, as `is_done` sees, but the line breaks before the answer is here. Then `meanwhile` happens,
/// and the line is there again.
fn unheard<T: Send>(
    link: &Link,
    is_done: &dyn Fn() -> bool,
    meanwhile: impl FnOnce(),
    ask: impl FnOnce() -> T + Send,
) -> T {
    thread::scope(|scope| {
        link.mute();
        let asked = scope.spawn(ask);
        eventually(is_done);
        meanwhile();
        // Its answer may be on its way, but comes nowhere.
        link.cut();
        link.go_on();
        asked.join().unwrap()
    })
}

fn caller() -> Caller {
    Caller { uid: 0, gid: 0 }
}

fn create(leaf: &str) -> Request<'static> {
    Request::Create(Create {
        name: name(leaf),
        mode: 0o600,
        umask: 0,
        flags: libc::O_RDWR | libc::O_EXCL,
        caller: caller(),
    })
}

fn append(connection: &Connection, file: (u64, u64), bytes: &[u8]) -> Result<u64, Errno> {
    let at = About {
        node: file.0,
        handle: file.1,
        flags: Flags::APPEND,
        ..About::default()
    };
    let answer = connection.call(&at, &Request::Write(Data(bytes)))?;
    Ok(answer.header.offset)
}

fn read(connection: &Connection, file: (u64, u64)) -> Result<Vec<u8>, Errno> {
    let at = About {
        node: file.0,
        handle: file.1,
        ..About::default()
    };
    let answer = connection.call(&at, &Request::Read(Read { size: 1 << 20 }))?;
    Ok(answer.payload)
}

#[test]
fn what_was_done_and_not_heard_of_is_not_done_again_and_what_is_open_stays_open() {
    let (folder, _server, link, connection) = scene(Duration::from_secs(10));
    let path = |leaf: &str| folder.path().join(leaf);
    let quiet = |done: &dyn Fn() -> bool, node: u64, request: Request<'static>| {
        let connection = &connection;
        let ask = move || connection.call(&about(node), &request).map(drop);
        unheard(&link, done, || {}, ask)
    };

    let made = unheard(
        &link,
        &|| path("file").exists(),
        || {},
        || connection.call(&about(ROOT), &create("file")),
    );
    let made = made.unwrap();
    let Reply::Create(created) = made.reply().unwrap() else {
        panic!("{made:?}")
    };
    let file = (created.entry.node, created.handle);
    for round in 1..=5 {
        let before = fs::read(path("file")).unwrap().len();
        let written = unheard(
            &link,
            &|| fs::read(path("file")).unwrap().len() > before,
            || {},
            || append(&connection, file, b"once and once only\n"),
        );
        assert_eq!(written, Ok(19));
        assert_eq!(fs::read(path("file")).unwrap().len(), round * 19);
    }
    assert_eq!(read(&connection, file).unwrap(), fs::read(path("file")).unwrap());

    let mkdir = Request::Mkdir(Mkdir {
        name: name("dir"),
        mode: 0o700,
        umask: 0,
        caller: caller(),
    });
    assert_eq!(quiet(&|| path("dir").exists(), ROOT, mkdir), Ok(()));
    let symlink = Request::Symlink(Symlink {
        name: name("symlink"),
        target: LinkTarget::new("dir").unwrap(),
        caller: caller(),
    });
    assert_eq!(quiet(&|| path("symlink").exists(), ROOT, symlink), Ok(()));
    let hard = Request::Link(HardLink {
        parent: ROOT,
        name: name("hard"),
    });
    assert_eq!(quiet(&|| path("hard").exists(), file.0, hard), Ok(()));
    let rename = Request::Rename(Rename {
        name: name("hard"),
        new_parent: ROOT,
        new_name: name("moved"),
        flags: libc::RENAME_NOREPLACE,
        caller: caller(),
    });
    assert_eq!(quiet(&|| path("moved").exists(), ROOT, rename), Ok(()));
    let unlink = Request::Unlink(Unlink { name: name("moved") });
    assert_eq!(quiet(&|| !path("moved").exists(), ROOT, unlink), Ok(()));
    let rmdir = Request::Rmdir(Rmdir { name: name("dir") });
    assert_eq!(quiet(&|| !path("dir").exists(), ROOT, rmdir), Ok(()));
    // What somebody else does meanwhile is not undone.
    let truncate = Request::Setattr(SetAttr {
        size: Some(0),
        ..SetAttr::default()
    });
    let done = unheard(
        &link,
        &|| fs::read(path("file")).unwrap().is_empty(),
        || fs::write(path("file"), "another's").unwrap(),
        || connection.call(&about(file.0), &truncate).map(drop),
    );
    assert_eq!(done, Ok(()));
    assert_eq!(fs::read(path("file")).unwrap(), b"another's");
    assert_eq!(read(&connection, file).unwrap(), b"another's");
}

#[test]
fn what_is_still_being_done_when_it_is_asked_again_is_done_once() {
    let lease = Duration::from_secs(2);
    let (folder, server, link, connection) = scene(lease);
    let made = connection.call(&about(ROOT), &create("file")).unwrap();
    let Reply::Create(created) = made.reply().unwrap() else {
        panic!("{made:?}")
    };
    let file = (created.entry.node, created.handle);
    // One who hears of nothing: a change of what he was told waits for his lease.
    let deaf_link = Link::to(&server.address);
    let deaf = Client::connect(&Target {
        address: deaf_link.address(),
        ..server.target()
    });
    assert_eq!(deaf.size(deaf.lookup(ROOT, "file").unwrap()), Ok(0));
    deaf_link.hold();
    let start = Instant::now();
    thread::scope(|scope| {
        let written = scope.spawn(|| append(&connection, file, b"once\n"));
        for _ in 0..3 {
            thread::sleep(lease / 8);
            link.cut();
        }
        assert_eq!(written.join().unwrap(), Ok(5));
    });
    assert!(start.elapsed() > lease / 2, "it waited for nobody");
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"once\n");
    assert_eq!(read(&connection, file).unwrap(), b"once\n");
}

#[test]
fn over_a_line_that_breaks_all_the_time_everything_is_done_once() {
    const WRITERS: usize = 4;
    const LINES: usize = 150;
    let (folder, _server, link, connection) = scene(Duration::from_secs(10));
    let made = connection.call(&about(ROOT), &create("log")).unwrap();
    let Reply::Create(created) = made.reply().unwrap() else {
        panic!("{made:?}")
    };
    let file = (created.entry.node, created.handle);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (link, over) = (&link, &over);
        let cutter = scope.spawn(move || {
            let mut cuts = 0;
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(60));
                link.cut();
                cuts += 1;
            }
            cuts
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let connection = &connection;
                scope.spawn(move || {
                    for line in 0..LINES {
                        let text = format!("{writer} {line}\n");
                        let written = append(connection, file, text.as_bytes());
                        assert_eq!(written, Ok(text.len() as u64));
                        // Something that takes its time, so that it lasts for some breaks.
                        thread::sleep(Duration::from_millis(4));
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        let cuts = cutter.join().unwrap();
        assert!(cuts > 5, "{cuts}");
        println!("{cuts} cuts");
    });
    let text = fs::read_to_string(folder.path().join("log")).unwrap();
    let mut times = BTreeMap::new();
    for line in text.lines() {
        *times.entry(line).or_insert(0) += 1;
    }
    assert_eq!(times.len(), WRITERS * LINES);
    assert!(
        times.values().all(|times| *times == 1),
        "something was done twice"
    );
    // Each writer's in its order.
    for writer in 0..WRITERS {
        let prefix = format!("{writer} ");
        let its: Vec<usize> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert_eq!(its, (0..LINES).collect::<Vec<_>>());
    }
}

#[test]
fn a_session_that_nobody_goes_on_with_ends_with_its_lease() {
    let lease = Duration::from_secs(1);
    let (folder, server, link, connection) = scene(lease);
    fs::write(folder.path().join("file"), "content").unwrap();
    let lookup = || Request::Lookup(Lookup { name: name("file") });
    let open = |connection: &Connection| {
        let answer = connection.call(&about(ROOT), &lookup()).unwrap();
        let Reply::Lookup(entry) = answer.reply().unwrap() else {
            panic!("{answer:?}")
        };
        let open = Request::Open(Open {
            flags: libc::O_RDONLY,
        });
        let answer = connection.call(&about(entry.node), &open).unwrap();
        let Reply::Open(opened) = answer.reply().unwrap() else {
            panic!("{answer:?}")
        };
        (entry.node, opened.handle)
    };
    let file = open(&connection);
    link.cut();
    assert_eq!(read(&connection, file).unwrap(), b"content");

    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open_here = || {
        descriptors()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter(|path| *path == folder.path().join("file"))
            .count()
    };
    assert!(open_here() > 0);
    link.hold();
    link.cut();
    eventually(|| open_here() == 0);
    link.go_on();
    assert_eq!(read(&connection, file), Err(Errno::ESTALE));
    let file = open(&connection);
    assert_eq!(read(&connection, file).unwrap(), b"content");
    // The server's end ends them all, whoever may come back.
    link.hold();
    link.cut();
    drop(server);
    eventually(|| open_here() == 0);
    drop(connection);
}
