// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several clients at once, lines that break, servers that are killed and started again: whatever they have seen has to
//! be what one copy would have shown.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use extfuse::remote::client::{Disconnected, Target};
use extfuse::remote::server::Options;
use extfuse::remote::wire;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::link::Link;
use super::players::{Player, Random, plan, run};
use super::{Client, Inside, ROOT};

const CLIENTS: usize = 3;
const LEASE: Duration = Duration::from_millis(300);
/// Of one client in one history.
const OPERATIONS: usize = 12;

/// A client in the folder of a history.
struct Visitor {
    client: Client,
    folder: u64,
    file: u64,
    data: u64,
    /// A node is an inode for as long as the client has it.
    inodes: Mutex<HashMap<u64, u64>>,
}

impl Visitor {
    fn new(target: &Target) -> Self {
        Self {
            client: Client::connect(target),
            folder: ROOT,
            file: 0,
            data: 0,
            inodes: Mutex::default(),
        }
    }
}

impl Player for Visitor {
    fn enter(&mut self, folder: &str) -> Result<(), Errno> {
        self.folder = self.client.lookup(ROOT, folder)?;
        self.file = self.client.lookup(self.folder, "file")?;
        self.data = self.client.lookup(self.folder, "data")?;
        Ok(())
    }

    fn look(&self, name: &str) -> Result<u64, Errno> {
        let node = self.client.lookup(self.folder, name)?;
        if let Some(ino) = self.inodes.lock().unwrap().get(&node) {
            return Ok(*ino);
        }
        let ino = self.client.fresh(node)?.ino;
        self.inodes.lock().unwrap().insert(node, ino);
        Ok(ino)
    }

    fn make(&self, name: &str) -> Result<u64, Errno> {
        let entry = self.client.create(self.folder, name)?;
        self.inodes.lock().unwrap().insert(entry.node, entry.attr.ino);
        Ok(entry.attr.ino)
    }

    fn remove(&self, name: &str) -> Result<(), Errno> {
        self.client.unlink(self.folder, name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.client.rename(self.folder, from, to)
    }

    fn size(&self) -> Result<u64, Errno> {
        self.client.size(self.file)
    }

    fn set_size(&self, size: u64) -> Result<(), Errno> {
        self.client.truncate(self.file, size)
    }

    /// Nothing is kept of data here, so it is the size of another file.
    fn read(&self) -> Result<u64, Errno> {
        Ok(self.client.size(self.data)? - 8)
    }

    fn write(&self, number: u64) -> Result<(), Errno> {
        self.client.truncate(self.data, number + 8)
    }
}

fn options() -> Options {
    Options {
        lease: LEASE,
        keep: None,
        ..Options::default()
    }
}

#[test]
fn what_several_clients_see_is_what_one_copy_would_show() {
    let folder = TempDir::new().unwrap();
    let server = Inside::start(folder.path(), "127.0.0.1:0", options());
    let again = |_| Visitor::new(&server.target());
    let mut visitors: Vec<_> = (0..CLIENTS).map(again).collect();
    let told = run(
        plan(700),
        OPERATIONS,
        folder.path(),
        &mut visitors,
        |_, _| {},
        again,
    );
    assert_eq!(told.broken, 0);
}

#[test]
fn what_several_clients_see_is_what_one_copy_would_show_though_lines_break() {
    let folder = TempDir::new().unwrap();
    let server = Inside::start(folder.path(), "127.0.0.1:0", options());
    let links: Vec<_> = (0..CLIENTS).map(|_| Link::to(&server.address)).collect();
    let again = |who: usize| {
        Visitor::new(&Target {
            address: links[who].address(),
            timeout: Duration::from_secs(5),
            ..server.target()
        })
    };
    let mut visitors: Vec<_> = (0..CLIENTS).map(again).collect();
    let fault = |number, random: &mut Random| {
        let link = &links[random.below(CLIENTS as u64) as usize];
        thread::sleep(Duration::from_micros(random.below(1500)));
        match number % 8 {
            0 => link.cut(),
            // Longer than a lease, or shorter.
            4 => {
                link.hold();
                thread::sleep(LEASE * random.below(5) as u32 / 2);
                link.go_on();
            }
            _ => {}
        }
    };
    let told = run(plan(200), OPERATIONS, folder.path(), &mut visitors, fault, again);
    assert!(told.broken > 0);
}

/// `extfuse serve`, which is killed, or told to end, and started again.
struct Process {
    folder: PathBuf,
    child: Child,
}

impl Process {
    fn spawn(folder: &Path) -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_extfuse"))
            .args(["serve", "--exclusive", "--lease", "0.3", "--listen"])
            .arg(Self::socket(folder))
            .arg(folder.join("served"))
            // Where it finds that there was one before.
            .env("RUNTIME_DIRECTORY", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("extfuse: serving on "), "{line}");
        child
    }

    fn socket(folder: &Path) -> String {
        format!("unix:{}", folder.join("socket").display())
    }

    fn new(folder: &Path) -> Self {
        std::fs::create_dir(folder.join("served")).unwrap();
        Self {
            folder: folder.to_owned(),
            child: Self::spawn(folder),
        }
    }

    fn again(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.folder);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_several_clients_see_is_what_one_copy_would_show_though_servers_are_killed() {
    let folder = TempDir::new().unwrap();
    let mut server = Process::new(folder.path());
    let target = Target {
        address: Process::socket(folder.path()).parse().unwrap(),
        export: wire::Export::new("").unwrap(),
        token: None,
        keeps: true,
        disconnected: Disconnected::Wait,
        tls: None,
        timeout: Duration::from_secs(5),
    };
    let again = |_| Visitor::new(&target);
    let mut visitors: Vec<_> = (0..CLIENTS).map(again).collect();
    let fault = |number, random: &mut Random| {
        thread::sleep(Duration::from_micros(random.below(3000)));
        match number % 4 {
            0 => server.again(Signal::SIGKILL),
            2 => server.again(Signal::SIGTERM),
            _ => {}
        }
    };
    let root = folder.path().join("served");
    let told = run(plan(100), OPERATIONS, &root, &mut visitors, fault, again);
    assert!(told.broken > 0);
}
