// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server with few descriptors, and clients of which some take all that they can get.

use std::fs::{self, File, OpenOptions};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extfuse::remote::Address;
use extfuse::remote::wire::message::{
    Empty, Forget, Forgotten, Lock, LockKind, Open, Release, SessionId, SetLock, Wanted,
};
use extfuse::remote::wire::{Reply, Request};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::common::{Mounted, Scratch, eventually};
use crate::line::Line;
use crate::opens::served_with_few;
use crate::{Served, mount};

/// Files of the source, descriptors of the server.
const FILES: usize = 500;
const DESCRIPTORS: u32 = 400;

/// What one client alone gets of them: 7/16, but for 64.
const ALONE: usize = 147;

/// A client that gives nothing back.
struct Hoarder {
    line: Line,
    session: SessionId,
    nodes: Vec<u64>,
}

impl Hoarder {
    fn new(served: &Served) -> Self {
        let address: Address = served.address.parse().unwrap();
        let (line, session) = Line::new(&address);
        Self {
            line,
            session,
            nodes: Vec::new(),
        }
    }

    /// Takes as many nodes as it is given.
    fn take(&mut self) {
        while self.nodes.len() < FILES {
            match self.line.lookup(&self.nodes.len().to_string()) {
                Ok(node) => self.nodes.push(node),
                Err(errno) => return assert_eq!(errno, Errno::ENFILE),
            }
        }
    }

    fn full(served: &Served) -> Self {
        let mut hoarder = Self::new(served);
        hoarder.take();
        hoarder
    }
}

/// Says so when it is dropped.
struct End<'o>(&'o AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Lists, reads, writes, makes and removes files, and locks, of so many.
fn works(mounted: &Mounted, files: usize) {
    assert!(fs::read_dir(mounted.path()).unwrap().count() >= FILES);
    for number in 0..files {
        let (old, new) = (number.to_string(), format!("new-{number}"));
        assert_eq!(fs::read(mounted.join(&old)).unwrap(), b"x", "{old}");
        fs::write(mounted.join(&new), "y").unwrap();
        let locked = Flock::lock(
            File::open(mounted.join(&new)).unwrap(),
            FlockArg::LockExclusiveNonblock,
        );
        drop(locked.map_err(|(_, errno)| errno).unwrap());
        let mut options = OpenOptions::new();
        let made = options
            .write(true)
            .create_new(true)
            .open(mounted.join(&format!("made-{number}")));
        drop(made.unwrap());
        fs::remove_file(mounted.join(&new)).unwrap();
        fs::remove_file(mounted.join(&format!("made-{number}"))).unwrap();
    }
}

#[test]
fn who_gives_nothing_back_keeps_nobody_from_working() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let mut hoarder = Hoarder::full(&served);
    let had = hoarder.nodes.len();
    assert!((ALONE - 5..=ALONE).contains(&had), "{had}");
    let scratch = Scratch::new();
    let mounted = mount(&served.url(), &scratch, &[]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                hoarder.take();
                thread::sleep(Duration::from_millis(1));
            }
        });
        works(&mounted, FILES);
    });
    // It gets nothing of what the other one has given back, who has been at the end of what there is.
    assert_eq!(hoarder.nodes.len(), had);
    drop(mounted);
    // What it had is there for the next one.
    hoarder.line.ask((0, 0), &Request::Goodbye(Empty)).unwrap();
    eventually(|| Hoarder::full(&served).nodes.len() == had);
}

#[test]
fn however_many_take_all_whoever_comes_next_works() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let hoarders: Vec<_> = (0..5).map(|_| Hoarder::full(&served)).collect();
    let had: Vec<_> = hoarders.iter().map(|hoarder| hoarder.nodes.len()).collect();
    assert!(had.is_sorted_by(|one, next| one >= next), "{had:?}");
    assert!(had[1] < had[0] * 2 / 3, "{had:?}");
    // Beside the root.
    assert_eq!(had[4], 15, "{had:?}");
    let scratch = Scratch::new();
    let mounted = mount(&served.url(), &scratch, &["--threads", "2"]);
    works(&mounted, 20);
}

#[test]
fn what_is_given_back_is_there_for_others_though_nothing_more_is_asked_for() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let mut one = Hoarder::new(&served);
    let (node, _) = one.line.open("0");
    let open = Request::Open(Open { flags: 0 });
    let handles: Vec<_> = (0..50)
        .map(|_| {
            let (header, payload) = one.line.ask((node, 0), &open).unwrap();
            match Reply::decode(&header, &payload).unwrap() {
                Reply::Open(opened) => opened.handle,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    one.take();
    let mut other = Hoarder::full(&served);
    let had = other.nodes.len();
    for handle in handles {
        let release = Request::Release(Release { owner: None });
        one.line.ask((node, handle), &release).unwrap();
    }
    other.take();
    assert!(other.nodes.len() > had + 15, "{had}, {}", other.nodes.len());
    let had = other.nodes.len();
    let nodes = one.nodes.iter().map(|node| Forgotten {
        node: *node,
        nlookup: 1,
    });
    let nodes = nodes.collect();
    one.line.send((0, 0), &Request::Forget(Forget { nodes }));
    // It has no reply, but its place.
    one.line.ask((0, 0), &Request::Ping(Empty)).unwrap();
    other.take();
    assert!(other.nodes.len() > had + 30, "{had}, {}", other.nodes.len());
}

#[test]
fn those_who_give_back_get_on_beside_each_other() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let scratches = [Scratch::new(), Scratch::new()];
    let mounts = scratches
        .each_ref()
        .map(|scratch| mount(&served.url(), scratch, &[]));
    thread::scope(|scope| {
        for mounted in &mounts {
            scope.spawn(|| {
                for number in 0..FILES {
                    let path = mounted.join(&number.to_string());
                    assert_eq!(fs::read(path).unwrap(), b"x", "{number}");
                }
            });
        }
    });
}

#[test]
fn connections_that_say_nothing_do_not_take_the_last_descriptors() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let _hoarder = Hoarder::full(&served);
    let start = Instant::now();
    let silent: Vec<_> = (0..DESCRIPTORS)
        .map(|_| TcpStream::connect(&served.address).unwrap())
        .collect();
    let scratch = Scratch::new();
    let mounted = mount(&served.url(), &scratch, &[]);
    works(&mounted, 10);
    // They would be sent away after ten seconds.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(silent);
}

#[test]
fn locks_are_no_way_around() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let mut hoarder = Hoarder::new(&served);
    let file = hoarder.line.open("0");
    let mut lock = |owner: u64, kind: LockKind| {
        let wish = SetLock {
            owner,
            lock: Lock {
                kind,
                start: 0,
                end: 0,
                pid: 1,
            },
            flock: false,
            wait: false,
        };
        hoarder.line.ask(file, &Request::SetLock(wish)).map(drop)
    };
    let refused = (0..FILES as u64).find_map(|owner| Some((owner, lock(owner, LockKind::Read).err()?)));
    let (owners, errno) = refused.unwrap();
    assert_eq!(errno, Errno::ENFILE);
    assert!((ALONE - 5..=ALONE).contains(&(owners as usize)), "{owners}");
    // Who has one may do with it what he likes.
    lock(0, LockKind::Read).unwrap();
    lock(0, LockKind::Unlock).unwrap();
    lock(owners, LockKind::Read).unwrap();
    hoarder.take();
    let scratch = Scratch::new();
    works(&mount(&served.url(), &scratch, &[]), 50);
}

#[test]
fn who_comes_back_has_what_he_had() {
    let (_source, served) = served_with_few(FILES, DESCRIPTORS);
    let (mut one, mut other) = (Hoarder::new(&served), Hoarder::new(&served));
    while one.nodes.len() < 50 {
        let name = one.nodes.len().to_string();
        one.nodes.push(one.line.lookup(&name).unwrap());
    }
    one.line.stream.shutdown().unwrap();
    other.take();
    let address: Address = served.address.parse().unwrap();
    let (line, session) = Line::greet(&address, Wanted::Resumed(one.session));
    assert_eq!(session, Ok(one.session));
    one.line = line;
    for node in &one.nodes {
        one.line.ask((*node, 0), &Request::Getattr(Empty)).unwrap();
    }
    one.take();
    // It has what is its due, as if it had been there all the time.
    assert!(one.nodes.len() > 80, "{}", one.nodes.len());
    assert!(other.nodes.len() > one.nodes.len());
}
