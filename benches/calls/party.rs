// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other processes: this program, started again, which says a line of JSON when it is ready and
//! for each line it reads, and ends with its standard input.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug)]
pub struct Party {
    name: &'static str,
    child: Child,
    /// None once it was told to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Party {
    /// Starts this program with `arguments`; with it comes what it says at the beginning.
    pub fn start<T: DeserializeOwned>(name: &'static str, arguments: &[&str]) -> Result<(Self, T)> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the {name} has no pipes");
        };
        let mut party = Self {
            name,
            child,
            input: Some(input),
            output: BufReader::new(output),
        };
        let said = party.hear()?;
        Ok((party, said))
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the {} ended", self.name);
        serde_json::from_str(&line).with_context(|| format!("the {} said: {line}", self.name))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// What it says now.
    pub fn ask<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.ask_for("")
    }

    /// What it says to a line, which does not contain its end.
    pub fn ask_for<T: DeserializeOwned>(&mut self, line: &str) -> Result<T> {
        let input = self.input.as_mut().context("it was told to end")?;
        input
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("the {} does not listen", self.name))?;
        self.hear()
    }

    /// Tells it to end, and waits until it has.
    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        if self.input.take().is_none() {
            return Ok(());
        }
        // For as long as it takes: where the clock counts instructions, it leaps while the guest waits
        // for the machine, and no deadline means anything.
        let status = self.child.wait()?;
        ensure!(status.success(), "the {}: {status}", self.name);
        Ok(())
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("cannot clean up: {error:#}");
        }
    }
}

/// The party's own side, where all questions are the same.
pub fn report_until_end<T: Serialize>(ready: &impl Serialize, mut report: impl FnMut() -> T) -> Result<()> {
    answer_until_end(ready, |_| report())
}

/// The party's own side.
pub fn answer_until_end<T: Serialize>(
    ready: &impl Serialize,
    mut answer: impl FnMut(&str) -> T,
) -> Result<()> {
    let say = |line: String| -> Result<()> {
        writeln!(stdout(), "{line}")?;
        Ok(())
    };
    say(serde_json::to_string(ready)?)?;
    for line in stdin().lock().lines() {
        say(serde_json::to_string(&answer(&line?))?)?;
    }
    Ok(())
}
