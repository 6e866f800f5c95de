// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes that lock files.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::PATIENCE;

/// A process that does what it is told, in the words of `locker.py`.
#[derive(Debug)]
pub struct Locker {
    child: Child,
    tell: ChildStdin,
    told: Receiver<String>,
}

impl Locker {
    pub fn new() -> Self {
        let mut child = Command::new("python3")
            .args(["-I", "-S", "-c", include_str!("locker.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let tell = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (told, hears) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        Self {
            child,
            tell,
            told: hears,
        }
    }

    /// One that has this file open for reading and writing, as `f`.
    pub fn of(path: &Path) -> Self {
        let mut locker = Self::new();
        locker.open("f", path, "os.O_RDWR");
        locker
    }

    pub fn open(&mut self, name: &str, path: &Path, flags: &str) {
        let said = self.says(&format!("get_in({name:?}, {path:?}, {flags})"));
        assert_eq!(said, "ok", "{path:?}");
    }

    /// Begins with something.
    pub fn begin(&mut self, what: &str) {
        writeln!(self.tell, "{what}").unwrap();
    }

    /// What comes of what was begun.
    pub fn end(&mut self) -> String {
        let said = self.told.recv_timeout(PATIENCE);
        said.unwrap_or_else(|error| panic!("{:?}: {error}", self.child))
    }

    /// The same, if it comes so soon.
    pub fn ends_within(&mut self, patience: Duration) -> Option<String> {
        match self.told.recv_timeout(patience) {
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("{:?} has gone", self.child),
        }
    }

    pub fn says(&mut self, what: &str) -> String {
        self.begin(what);
        self.end()
    }

    /// What it says in the end, if that is not at once: a close is told of a little later.
    pub fn says_soon(&mut self, what: &str, expected: &str) {
        let start = Instant::now();
        loop {
            let said = self.says(what);
            if said == expected {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{what}: {said}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Whether it is gone so soon.
    pub fn is_gone_within(&mut self, patience: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < patience {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // One that cannot be killed is what the test has found.
        self.is_gone_within(Duration::from_secs(2));
    }
}
