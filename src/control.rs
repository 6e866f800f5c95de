// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a running daemon tells about itself, and what it can be told, over a local socket.
//!
//! The socket has an abstract name made of the mount's device number. Nothing is left behind when the
//! daemon dies, and who asks needs no request to the mount: a dead daemon refuses the connection, a
//! stopped one runs into the time limit. Both sides check who the other is: anybody could have taken
//! the name first.
//!
//! The kernel gives a device number out again as soon as its mount is gone, perhaps before the
//! daemon is: such a daemon says that it is not the one, and both the next daemon and who asks try
//! again until it has ended.

mod ask;
mod question;
mod server;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::{Deserialize, Serialize};

use crate::sys::mountinfo::Dev;
pub use ask::{AskError, ask, handlers, load, unload};
pub use question::{Handler, Refusal};
pub use server::{Daemon, Server};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon to try again where a daemon of a mount that is gone still has the name.
const AGAIN: Duration = Duration::from_millis(10);
/// The answer of a daemon whose mount is gone.
const GONE: &[u8] = b"gone\n";

/// What a daemon tells about its mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The directory that is served.
    pub source: String,
    /// Where it was mounted.
    pub mountpoint: String,
    /// Which FUSE serves it.
    pub mode: Mode,
    /// Device number of the mount, `major:minor`.
    pub dev: String,
    /// The daemon.
    pub pid: u32,
    /// Threads that answer requests.
    pub threads: usize,
    /// Seconds since the mount.
    pub uptime: f64,
    /// The handlers, unless there are none: see `warnings`.
    pub program: Option<Program>,
    /// Handlers of other authors, those that were ejected among them.
    #[serde(default)]
    pub custom: Vec<Handler>,
    /// Requests by opcode; those that never came are left out.
    pub opcodes: BTreeMap<String, Requests>,
    /// What is in the handlers' maps.
    pub maps: Option<Maps>,
    /// Nodes that the daemon holds for the maps when the kernel has forgotten them, if it does that. There may be more for
    /// a moment, and as long as the kernel has inodes of them again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<Fill>,
    /// How it stands with the server, if the directory is one of a server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remote: Option<Remote>,
    /// What the mount had to do without, and why.
    pub warnings: Vec<String>,
}

/// How it stands with the server of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remote {
    /// Whether there is a way to it.
    pub connected: bool,
    /// How often there was one: 1 unless it broke.
    pub connections: u64,
    /// Seconds for which what it has told still holds, unless it says otherwise.
    pub lease_left: f64,
    /// Requests that it has answered.
    pub round_trips: u64,
    /// Bytes of files that went from the socket to the application, past the daemon.
    pub filled: u64,
    /// Bytes of files that went through the daemon's memory.
    pub copied: u64,
    /// Bytes of files that came from the spool, through the daemon's memory.
    #[serde(default)]
    pub spooled: u64,
    /// The spool, if it has one.
    #[serde(default)]
    pub spool: Option<Spool>,
}

/// Copies of a server's files, and how good they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spool {
    /// Bytes that it has.
    pub bytes: u64,
    /// Bytes that it may have.
    pub limit: u64,
    /// READs that the daemon answered from it, without asking for data.
    pub hits: u64,
    /// READs for which something had to be fetched.
    pub misses: u64,
    /// READs of what is not kept.
    pub passed: u64,
    /// Bytes that were fetched for it.
    pub fetched: u64,
}

impl Spool {
    /// How large a file is kept, bytes.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.limit / crate::remote::client::SPOOL_SHARE
    }
}

/// Who knows how it stands with the server of a mount.
pub trait TellsRemote: fmt::Debug + Send + Sync {
    /// Just now.
    fn remote(&self) -> Remote;
}

/// Which FUSE serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The extfuse module.
    Extfuse,
    /// The kernel's own.
    Stock,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Extfuse => "extfuse",
            Self::Stock => "stock",
        })
    }
}

/// The program set of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Whether it is attached now.
    pub attached: bool,
    /// How the last one ended: `none`, `unlink`, `unmount`, `abort`, `error`.
    pub exit: String,
    /// Why it was ejected.
    pub reason: String,
    /// Its errors so far; too many eject it.
    pub errors: u64,
    /// How often one was attached or replaced.
    pub attaches: u64,
}

/// Requests of one opcode, by how they ended. On stock FUSE only what the daemon counts is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// All.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requests: Option<u64>,
    /// Answered in the kernel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub returned: Option<u64>,
    /// Uses of what a handler answered before, which was still current: no requests.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept: Option<u64>,
    /// Answered in the kernel with an errno.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub errno: Option<u64>,
    /// Done on the backing file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub passthru: Option<u64>,
    /// Answers of a handler that the module refused; asked of the daemon then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<u64>,
    /// Answered by the daemon.
    pub upcalls: u64,
    /// The same as the daemon counts them.
    #[serde(default)]
    pub served: u64,
    /// Those of them that it answered with an error, absent names and attributes among them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub errors: Option<u64>,
}

/// What is in the handlers' maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    /// Names.
    pub entries: Fill,
    /// Attributes.
    pub attrs: Fill,
    /// Extended attributes.
    pub xattrs: Fill,
    /// Rows that the daemon could not write.
    pub publish_failures: u64,
}

/// How full a map is, or what else has room for so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// In use.
    pub used: u64,
    /// That fit.
    pub capacity: u64,
}

fn name(dev: Dev) -> Vec<u8> {
    format!("extfuse/{dev}").into_bytes()
}

fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(stream, PeerCredentials)?.uid())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::Arc;
    use std::time::Instant;

    use super::ask::{ANSWER_PATIENCE, connect};
    use super::*;
    use crate::ebpf::Object;

    fn report() -> Report {
        let lookups = Requests {
            upcalls: 7,
            served: 7,
            errors: Some(1),
            ..Requests::default()
        };
        Report {
            source: "/src".into(),
            mountpoint: "/mnt".into(),
            mode: Mode::Stock,
            dev: "0:45".into(),
            pid: 1,
            threads: 2,
            uptime: 1.5,
            program: None,
            custom: vec![],
            opcodes: [("LOOKUP".into(), lookups)].into(),
            maps: None,
            held: None,
            remote: None,
            warnings: vec![],
        }
    }

    /// Whether its mount is there.
    struct Told(bool);

    impl Daemon for Told {
        fn is_mounted(&self) -> bool {
            self.0
        }

        fn report(&self) -> Report {
            report()
        }

        fn handlers(&self) -> Result<Vec<Handler>, Refusal> {
            Err(Refusal::because("none here".into()))
        }

        fn load(&self, opcode: u32, object: &Object) -> Result<(), Refusal> {
            let right = object
                .bytes()
                .iter()
                .zip(0..)
                .all(|(byte, at): (_, u32)| *byte == at as u8);
            match (right, opcode) {
                (true, 1) => Ok(()),
                _ => Err(Refusal {
                    error: format!("{} of {}", object.name(), object.bytes().len()),
                    log: "1\n2".into(),
                }),
            }
        }

        fn unload(&self, opcode: u32) -> Result<(), Refusal> {
            let refusal = || Refusal::because("nothing there".into());
            (opcode == 1).then_some(()).ok_or_else(refusal)
        }
    }

    fn reporter() -> Arc<dyn Daemon> {
        Arc::new(Told(true))
    }

    /// A device number that no mount has: FUSE's major is 0.
    fn dev(minor: u32) -> Dev {
        Dev {
            major: std::process::id(),
            minor,
        }
    }

    fn uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[test]
    fn the_owner_gets_the_report_again_and_again() {
        let _server = Server::start(dev(1), uid(), reporter()).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(dev(1), None).unwrap(), report());
        }
    }

    #[test]
    fn nobody_listening_is_a_dead_daemon() {
        drop(Server::start(dev(2), uid(), reporter()).unwrap());
        assert!(matches!(ask(dev(2), None), Err(AskError::Dead)));
    }

    #[test]
    fn a_daemon_whose_mount_is_gone_makes_way_for_the_next() {
        let last = Server::start(dev(6), uid(), Arc::new(Told(false))).unwrap();
        let next = std::thread::spawn(|| Server::start(dev(6), uid(), reporter()).unwrap());
        let asked = std::thread::spawn(|| ask(dev(6), None));
        std::thread::sleep(5 * AGAIN);
        drop(last);
        let _next = next.join().unwrap();
        // Between the two nobody listens.
        let answer = asked.join().unwrap();
        assert!(matches!(answer, Ok(_) | Err(AskError::Dead)), "{answer:?}");
        assert_eq!(ask(dev(6), None).unwrap(), report());
    }

    #[test]
    fn a_daemon_that_takes_its_time_to_end_makes_way_as_well() {
        let last = Server::start(dev(11), uid(), Arc::new(Told(false))).unwrap();
        last.is_shown();
        let start = Instant::now();
        let _next = Server::start(dev(11), uid(), reporter()).unwrap();
        assert_eq!(ask(dev(11), None).unwrap(), report());
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        drop(last);
        assert_eq!(ask(dev(11), None).unwrap(), report());
    }

    #[test]
    fn one_who_says_nothing_holds_nobody_up_for_long() {
        let _server = Server::start(dev(3), uid(), reporter()).unwrap();
        let silent = connect(dev(3)).unwrap();
        let start = Instant::now();
        while ask(dev(3), None).is_err() {
            assert!(start.elapsed() < 5 * PATIENCE);
        }
        drop(silent);
    }

    #[test]
    fn who_finds_somebody_else_there_for_long_answers_later() {
        let address = SocketAddr::from_abstract_name(name(dev(9))).unwrap();
        let before = UnixListener::bind_addr(&address).unwrap();
        let _server = Server::start(dev(9), uid(), reporter()).unwrap();
        // It has given up to wait, and not to come.
        drop(before);
        assert_eq!(ask(dev(9), None).unwrap(), report());
        // One who never comes to it ends all the same.
        let _before = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name(dev(10))).unwrap());
        drop(Server::start(dev(10), uid(), reporter()).unwrap());
    }

    #[test]
    fn a_listener_that_does_not_answer_is_given_up() {
        let address = SocketAddr::from_abstract_name(name(dev(4))).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let start = Instant::now();
        assert!(matches!(ask(dev(4), None), Err(AskError::Silent)));
        assert!(start.elapsed() < 2 * ANSWER_PATIENCE);
    }

    #[test]
    fn objects_arrive_whole_and_refusals_come_back() {
        let _server = Server::start(dev(7), uid(), reporter()).unwrap();
        for size in [0, 1, 511, 512, 513, 100_000, crate::ebpf::OBJECT_MAX] {
            let bytes: Vec<u8> = (0..size).map(|at| at as u8).collect();
            load(dev(7), None, 1, &Object::new("object", bytes)).unwrap();
        }
        let refused = load(dev(7), None, 2, &Object::new("a name", vec![0; 9])).unwrap_err();
        let AskError::Refusal(refusal) = refused else {
            panic!("{refused}")
        };
        assert_eq!(
            (refusal.error.as_str(), refusal.log.as_str()),
            ("a name of 9", "1\n2")
        );
        unload(dev(7), None, 1).unwrap();
        assert_eq!(unload(dev(7), None, 3).unwrap_err().to_string(), "nothing there");
        assert_eq!(handlers(dev(7), None).unwrap_err().to_string(), "none here");
    }

    #[test]
    fn an_object_that_is_cut_short_is_not_loaded() {
        let _server = Server::start(dev(8), uid(), reporter()).unwrap();
        for (line, bytes) in [("load 1 1000 name\n", 999), ("load 1 5 name\n", 6)] {
            let mut stream = connect(dev(8)).unwrap();
            let message = [line.as_bytes(), &vec![0; bytes]].concat();
            stream.write_all(&message).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert_eq!(answer, b"", "{line}");
        }
    }

    #[test]
    fn other_questions_and_endless_ones_are_not_answered_with_a_report() {
        let _server = Server::start(dev(5), uid(), reporter()).unwrap();
        for question in [&b"what\n"[..], &[b'x'; 1000]] {
            let mut stream = connect(dev(5)).unwrap();
            let _ = stream.write_all(question);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert!(!answer.contains("source"), "{answer}");
        }
    }
}
