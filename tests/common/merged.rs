// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged files of sources on this machine and on two servers, and what has to be in them.
//!
//! Included beside `common` and `guest`, by the tests of merged files.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{EXTFUSE, Mounted, Scratch, eventually};
use crate::guest::{Random, seed};

/// `extfuse serve` on a socket, gone when the test ends.
pub struct Served {
    child: Child,
    pub socket: PathBuf,
}

impl Served {
    /// On a socket.
    pub fn start(directory: &Path, socket: &Path) -> Self {
        let _ = fs::remove_file(socket);
        let listen = format!("unix:{}", socket.display());
        let (mut served, _) = Self::listening(directory, &["--listen", &listen]);
        served.socket = socket.to_owned();
        served
    }

    /// Wherever the arguments say, and what the command says of it.
    pub fn listening(directory: &Path, arguments: &[&str]) -> (Self, String) {
        let mut command = Command::new(EXTFUSE);
        command.arg("serve").args(arguments).arg(directory);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.strip_prefix("extfuse: serving on ").expect(&line);
        let address = address.trim().to_owned();
        let socket = PathBuf::new();
        (Self { child, socket }, address)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Until SIGCONT, all of its threads.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap();
        let stopped = |task: std::io::Result<fs::DirEntry>| status(task.unwrap()).contains("State:\tT");
        eventually(|| fs::read_dir(&tasks).unwrap().all(stopped));
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder for local sources, `east` and `west` with a server each, and a mount point.
pub struct Scene {
    pub scratch: Scratch,
    pub east: Served,
    pub west: Served,
    pub dice: Random,
}

impl Scene {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let serve = |name: &str| {
            let directory = scratch.path().join(name);
            fs::create_dir_all(directory.join("dir")).unwrap();
            Served::start(&directory, &scratch.path().join(format!("{name}.sock")))
        };
        let (east, west) = (serve("east"), serve("west"));
        Self {
            scratch,
            east,
            west,
            dice: Random(seed()),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A file of chance, made below the scratch.
    pub fn source(&mut self, name: &str, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).map(|_| self.dice.below(u64::MAX).to_ne_bytes());
        let mut bytes: Vec<u8> = words.flatten().collect();
        bytes.truncate(len);
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }

    /// The spec, with both servers; what is asked of them takes 2 seconds at most.
    pub fn spec(&self, files: &str) -> PathBuf {
        let server = |name: &str, served: &Served| {
            let socket = served.socket.display();
            format!("[server.{name}]\nurl = \"extfuse+unix:{socket}\"\ntimeout = 2\n")
        };
        let text = server("east", &self.east) + &server("west", &self.west) + files;
        let path = self.path("spec.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Mounts what the spec says.
    pub fn mount(&self, files: &str, more: &[&str]) -> Mounted {
        let source = format!("merge:{}", self.spec(files).display());
        Mounted::start(Path::new(&source), &self.scratch.mountpoint(), more)
    }
}

/// `unit` bytes of each in turn.
pub fn in_turn(unit: usize, members: &[&[u8]]) -> Vec<u8> {
    let (mut all, mut left) = (Vec::new(), members.to_vec());
    while left.iter().any(|left| !left.is_empty()) {
        for left in &mut left {
            let (now, later) = left.split_at(unit.min(left.len()));
            all.extend_from_slice(now);
            *left = later;
        }
    }
    all
}

pub fn read_at(file: &File, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], (offset + done) as u64).unwrap() {
            0 => break,
            more => done += more,
        }
    }
    bytes.truncate(done);
    bytes
}

/// So many chance reads, with pages and without, give what the model has.
pub fn reads_are_of(path: &Path, model: &[u8], dice: &mut Random, rounds: usize) {
    let file = File::open(path).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    for _ in 0..rounds {
        let offset = dice.below(model.len() as u64 + 10) as usize;
        let largest = [20, 9000, 2 << 20][dice.below(3) as usize];
        let len = dice.below(largest) as usize;
        let expected = &model[offset.min(model.len())..(offset + len).min(model.len())];
        for file in [&file, &direct] {
            let got = read_at(file, offset, len);
            assert!(got == expected, "{}: {len} from {offset} on", path.display());
        }
    }
}

/// Files of all kinds of parts, and what is in them.
pub fn all_kinds(scene: &mut Scene) -> (String, Vec<(&'static str, Vec<u8>)>) {
    let local = scene.source("source/local", 700_001);
    let near = scene.source("source/near", 5000);
    let east = scene.source("east/dir/b", 1_300_000);
    let west = scene.source("west/c", 900_100);
    let files = r#"
[[file]]
path = "images/joined"
parts = [
  { local = "source/near" },
  { server = "east", path = "dir/b" },
  { zeros = 7000 },
  { local = "source/local", offset = 1, length = 600000 },
  { server = "west", path = "c", offset = 100 },
  { server = "east", path = "dir/b", offset = 5, length = 11 },
  { zeros = 3 },
]
[[file]]
path = "images/striped"
stripe = 4096
parts = [
  { local = "source/local" },
  { server = "east", path = "dir/b", offset = 3 },
  { server = "west", path = "c" },
  { zeros = 50000 },
  { local = "source/near", length = 4999 },
]
[[file]]
path = "narrow"
stripe = 512
parts = [{ server = "east", path = "dir/b", length = 512000 }, { server = "west", path = "c", length = 512000 }]
[[file]]
path = "twice"
parts = [
  { server = "east", path = "dir/b", offset = 100, length = 3000 },
  { server = "east", path = "dir/b", length = 2000 },
  { local = "source/near", offset = 4000 },
  { server = "east", path = "dir/b", offset = 3100, length = 900 },
]
[[file]]
path = "none"
parts = [{ zeros = 0 }, { local = "source/near", offset = 5000 }]
"#;
    let joined = [
        &near,
        &east,
        &[0; 7000][..],
        &local[1..600_001],
        &west[100..],
        &east[5..16],
        &[0; 3],
    ]
    .concat();
    let striped = in_turn(4096, &[&local, &east[3..], &west, &[0; 50000], &near[..4999]]);
    let narrow = in_turn(512, &[&east[..512_000], &west[..512_000]]);
    let twice = [&east[100..3100], &east[..2000], &near[4000..], &east[3100..4000]].concat();
    let models = vec![
        ("images/joined", joined),
        ("images/striped", striped),
        ("narrow", narrow),
        ("twice", twice),
        ("none", Vec::new()),
    ];
    (files.to_owned(), models)
}
