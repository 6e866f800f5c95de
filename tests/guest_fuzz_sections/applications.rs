// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reads and writes, and those of them who are killed.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::SIZE;
use crate::guest::Random;
use crate::harness::{POISON, bytes};
use crate::sources::length;
use crate::world::{HANGS, World};

const READ_FROM: [&str; 2] = ["cached", "direct"];
const WRITTEN_TO: [&str; 2] = ["cached-withheld", "direct-withheld"];

/// Every byte is the right one, or zero.
#[track_caller]
fn assert_right(seen: &[u8], offset: u64, what: &str) {
    let right = |(at, seen): &(u64, &u8)| **seen == 0 || **seen == bytes(offset + at, 1)[0];
    let wrong = match seen == bytes(offset, seen.len()) {
        true => None,
        false => (0..).zip(seen).find(|byte| !right(byte)),
    };
    assert_eq!(wrong, None, "{what} from {offset} on");
}

/// The first one writes, the others read.
pub fn application(world: &World, nr: usize, at: &Path, mut random: Random) {
    world.may_be_hit();
    while world.goes_on() {
        let name = READ_FROM[random.below(2) as usize];
        let flags = [0, 0, libc::O_DIRECT][random.below(3) as usize];
        world.waits(nr);
        let mut options = File::options();
        let options = options.read(true).write(true);
        if nr == 0 {
            let name = WRITTEN_TO[random.below(2) as usize];
            let (offset, size) = (random.below(SIZE - (1 << 20)), length(&mut random, 1 << 19));
            let written = options
                .open(at.join(name))
                .and_then(|to| to.write_at(&bytes(offset, size), offset));
            world.note("write", &written);
        } else if let Ok(file) = options.custom_flags(flags).open(at.join(name)) {
            for _ in 0..1 + random.below(3) {
                let (offset, size) = (random.below(SIZE - (1 << 20)), length(&mut random, 1 << 19));
                world.waits(nr);
                let mut buffer = vec![POISON; size + 1];
                let got = file.read_at(&mut buffer[1..], offset);
                world.note("read", &got);
                let seen = &buffer[1..1 + got.unwrap_or(0)];
                assert_right(seen, offset, &format!("{name} {flags}, {size}"));
            }
        }
        world.has_what_it_wanted(nr);
    }
}

/// A process that copies; what of a file it copies, in blocks.
pub fn dd(from: &Path, to: Stdio, more: &[String]) -> Command {
    let mut command = Command::new("dd");
    command
        .arg(format!("if={}", from.display()))
        .args(more)
        .stdout(to)
        .stderr(Stdio::null());
    command
}

/// Processes that read or write, and are killed at some moment; what they had read by then is right.
pub fn kill_some(world: &World, at: &Path, mut random: Random) {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(&bytes(0, SIZE as usize)).unwrap();
    while world.goes_on() {
        let size = 1 + length(&mut random, 1 << 18) as u64;
        let skip = random.below((SIZE - (1 << 20)) / size);
        let blocks = format!("bs={size} skip={skip} count={}", 1 + random.below(3));
        let mut blocks: Vec<_> = blocks.split(' ').map(str::to_owned).collect();
        let mut output = File::from(memfd_create("output", MFdFlags::MFD_CLOEXEC).unwrap());
        let reads = random.below(2) == 0;
        let mut command = if reads {
            let to = OwnedFd::from(output.try_clone().unwrap());
            dd(&at.join(READ_FROM[random.below(2) as usize]), to.into(), &blocks)
        } else {
            let to = at.join(WRITTEN_TO[random.below(2) as usize]);
            blocks.push(format!("seek={skip}"));
            blocks.push(format!("of={}", to.display()));
            blocks.push("conv=notrunc".to_owned());
            dd(source.path(), Stdio::null(), &blocks)
        };
        let mut child = command.spawn().unwrap();
        // It needs some time to get there.
        thread::sleep(Duration::from_millis(random.below(120)));
        child.kill().unwrap();
        let killed = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(
                killed.elapsed() < Duration::from_millis(HANGS),
                "{command:?} cannot be killed"
            );
            thread::sleep(Duration::from_millis(1));
        };
        // Else it was too fast, or got an error.
        let too_late = status.signal().is_none();
        world.count("killed", i32::from(too_late));
        let (mut seen, mut from) = (Vec::new(), File::from(OwnedFd::from(output.try_clone().unwrap())));
        output.rewind().unwrap();
        std::io::Read::read_to_end(&mut from, &mut seen).unwrap();
        assert!(reads || seen.is_empty());
        if reads {
            assert_right(&seen, skip * size, "killed");
        }
    }
}
