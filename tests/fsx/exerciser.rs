// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations on one file, compared with a model in memory: the idea of Apple's fsx.
//!
//! Everything is drawn from the seed, so a failure is repeated by its seed, mode and number of operations.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::str::FromStr;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use nix::unistd::{Whence, lseek};

/// The largest file, in bytes.
const MAX: u64 = 256 * 1024;
/// What O_DIRECT asks of offsets, sizes and memory.
const BLOCK: u64 = 4096;

/// By which calls data is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// pread and pwrite.
    Cached,
    /// The same on a descriptor with `O_DIRECT`.
    Direct,
    /// A shared mapping that lasts, and pread and pwrite beside it.
    Mmap,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Cached, Self::Direct, Self::Mmap];
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = |mode: &Self| mode.to_string() == name;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| format!("{name} is none of cached, direct, mmap"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cached => "cached",
            Self::Direct => "direct",
            Self::Mmap => "mmap",
        })
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where the file is made.
    pub dir: PathBuf,
    /// How many operations.
    pub ops: u64,
    /// What they are drawn from.
    pub seed: u64,
    /// By which calls.
    pub mode: Mode,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fsx {} --ops {} --seed {} --mode {}",
            self.dir.display(),
            self.ops,
            self.seed,
            self.mode
        )
    }
}

impl Run {
    /// Runs it. The error tells how to repeat it, what differed, and the last operations.
    pub fn run(&self) -> Result<Counts, String> {
        let path = self.dir.join(format!("fsx.{}.{}", self.mode, self.seed));
        let report = |error: String, last: &VecDeque<String>| {
            let last: Vec<&str> = last.iter().map(String::as_str).collect();
            format!("{self}\n{error}\nlast operations:\n{}", last.join("\n"))
        };
        let mut exerciser = Exerciser::new(&path, self.seed, self.mode)
            .map_err(|error| report(format!("cannot begin: {error}"), &VecDeque::new()))?;
        for number in 0..self.ops {
            let checked = exerciser.step(number).and_then(|()| match number % 128 {
                127 => exerciser.check_all("in between"),
                _ => exerciser.check_size(),
            });
            checked.map_err(|error| report(error, &exerciser.last))?;
        }
        exerciser
            .reopen()
            .and_then(|()| exerciser.check_all("at the end"))
            .map_err(|error| report(error, &exerciser.last))?;
        let counts = exerciser.counts.clone();
        drop(exerciser);
        std::fs::remove_file(&path).map_err(|error| report(error.to_string(), &VecDeque::new()))?;
        Ok(counts)
    }
}

/// How often each operation was done.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub Vec<(&'static str, u64)>);

impl Counts {
    fn add(&mut self, name: &'static str) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.0.push((name, 1)),
        }
    }
}

/// splitmix64: one word of state, any seed is good.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end` - 1, and 0 if that is empty.
    fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }
}

/// Memory that O_DIRECT takes.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let memory = vec![0; (MAX + BLOCK) as usize];
        let start = memory.as_ptr().align_offset(BLOCK as usize);
        Self { memory, start }
    }

    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }
}

/// A shared mapping of as much as the file may ever be.
struct Map(NonNull<std::ffi::c_void>);

impl Map {
    fn new(file: &File) -> nix::Result<Self> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(MAX as usize).ok_or(Errno::EINVAL)?;
        // SAFETY: a mapping at an address of the kernel's choice.
        unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, file, 0) }.map(Self)
    }

    /// Copies out of the mapping; the file must be at least `at + data.len()` long.
    fn read(&self, at: u64, data: &mut [u8]) {
        // SAFETY: within the mapping, and within the file: nobody else truncates it.
        unsafe {
            let from = self.0.as_ptr().cast::<u8>().add(at as usize);
            std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len());
        }
    }

    /// Copies into the mapping; the file must be at least `at + data.len()` long.
    fn write(&self, at: u64, data: &[u8]) {
        // SAFETY: within the mapping, and within the file: nobody else truncates it.
        unsafe {
            let to = self.0.as_ptr().cast::<u8>().add(at as usize);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
    }

    fn sync(&self) -> nix::Result<()> {
        // SAFETY: the whole mapping.
        unsafe { msync(self.0, MAX as usize, MsFlags::MS_SYNC) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nothing borrows.
        let _ = unsafe { munmap(self.0, MAX as usize) };
    }
}

struct Exerciser {
    path: PathBuf,
    mode: Mode,
    random: Random,
    model: Vec<u8>,
    file: File,
    direct: Option<File>,
    map: Option<Map>,
    memory: Aligned,
    counts: Counts,
    last: VecDeque<String>,
    /// Modes of fallocate that the file system does not have.
    missing: Vec<&'static str>,
}

type Step = Result<(), String>;

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

impl Exerciser {
    fn new(path: &Path, seed: u64, mode: Mode) -> Result<Self, String> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(path).map_err(text)?;
        let mut exerciser = Self {
            path: path.to_owned(),
            mode,
            random: Random(seed),
            model: Vec::new(),
            file,
            direct: None,
            map: None,
            memory: Aligned::new(),
            counts: Counts::default(),
            last: VecDeque::new(),
            missing: Vec::new(),
        };
        exerciser.open_second()?;
        Ok(exerciser)
    }

    fn open_second(&mut self) -> Step {
        match self.mode {
            Mode::Cached => {}
            Mode::Direct => {
                let mut options = OpenOptions::new();
                let options = options.read(true).write(true).custom_flags(libc::O_DIRECT);
                self.direct = Some(
                    options
                        .open(&self.path)
                        .map_err(|error| format!("O_DIRECT: {error}"))?,
                );
            }
            Mode::Mmap => self.map = Some(Map::new(&self.file).map_err(|error| format!("mmap: {error}"))?),
        }
        Ok(())
    }

    fn reopen(&mut self) -> Step {
        (self.direct, self.map) = (None, None);
        self.file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .map_err(text)?;
        self.open_second()
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    fn note(&mut self, name: &'static str, what: String) {
        self.counts.add(name);
        if self.last.len() == 24 {
            self.last.pop_front();
        }
        self.last.push_back(what);
    }

    /// A range within the first `end` bytes; as O_DIRECT has it, if `aligned`.
    fn range(&mut self, end: u64, aligned: bool) -> (u64, u64) {
        let at = self.random.below(end);
        // Most are short, some are as long as they can be.
        let longest = if self.random.below(4) == 0 {
            end - at.min(end)
        } else {
            (end - at.min(end)).min(8192)
        };
        let len = self.random.below(longest) + 1;
        if aligned {
            let at = at / BLOCK * BLOCK;
            return (at, len.next_multiple_of(BLOCK).min(MAX - at));
        }
        (at, len.min(end - at.min(end)))
    }

    fn step(&mut self, number: u64) -> Step {
        let op = self.random.below(100);
        let result = match op {
            0..30 => self.read(),
            30..58 => self.write(number),
            58..66 => self.truncate(),
            66..72 => self.fallocate("punch"),
            72..77 => self.fallocate("zero"),
            77..81 => self.fallocate("allocate"),
            81..84 => self.fallocate("allocate past the end"),
            84..90 => self.copy(),
            90..94 => self.append(number),
            94..96 => self.seek(),
            // Disks are slow, and a file system that is wrong without is wrong with it.
            96..98 if number.is_multiple_of(16) => self.sync(),
            _ => {
                self.note("reopen", "reopen".into());
                self.reopen()
            }
        };
        result.map_err(|error| format!("operation {number}: {error}"))
    }

    fn read(&mut self) -> Step {
        let (at, len) = self.range(MAX, self.mode == Mode::Direct);
        let by_map = self.map.is_some() && self.random.below(4) > 0;
        let end = (at + len).min(self.size());
        if by_map {
            if at >= end {
                return Ok(());
            }
            self.note("mapped read", format!("mapped read {at}..{end}"));
            let mut data = vec![0; (end - at) as usize];
            if let Some(map) = &self.map {
                map.read(at, &mut data);
            }
            return self.compare(at, &data);
        }
        self.note("read", format!("read {at}..{}", at + len));
        let file = self.direct.as_ref().unwrap_or(&self.file);
        let data = self.memory.get(len as usize);
        let mut done = 0;
        while done < data.len() {
            match file.read_at(&mut data[done..], at + done as u64).map_err(text)? {
                0 => break,
                // The rest of a direct read that the end cut short is not aligned: there is nothing more.
                n if self.direct.is_some() && !(n as u64).is_multiple_of(BLOCK) => {
                    done += n;
                    break;
                }
                n => done += n,
            }
        }
        let expected = end.saturating_sub(at);
        if done as u64 != expected {
            return Err(format!("read at {at} gave {done} bytes, not {expected}"));
        }
        let data = data[..done].to_vec();
        self.compare(at, &data)
    }

    fn compare(&self, at: u64, data: &[u8]) -> Step {
        let at = at as usize;
        let Some(expected) = self
            .model
            .get(at.min(self.model.len())..(at + data.len()).min(self.model.len()))
        else {
            return Ok(());
        };
        if expected == data {
            return Ok(());
        }
        let differing = expected.iter().zip(data).enumerate().filter(|(_, (a, b))| a != b);
        match differing.clone().next() {
            None => Ok(()),
            Some((i, (expected, got))) => {
                let (count, of) = (differing.count(), data.len());
                Err(format!(
                    "byte {} is {got:#04x}, not {expected:#04x}; {count} of {of} differ",
                    at + i
                ))
            }
        }
    }

    fn fill(&mut self, number: u64, len: u64) -> Vec<u8> {
        // Never even: a zero is always a hole, or lost.
        let word = self.random.next() | 0x0101_0101_0101_0101;
        let mut data = word.to_ne_bytes().repeat(len.div_ceil(8) as usize);
        data.truncate(len as usize);
        // Each block differs from the next, or one in the wrong place would not be noticed.
        for (i, byte) in data.iter_mut().enumerate().step_by(64) {
            *byte = (number as usize + i / 64) as u8 | 1;
        }
        data
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        let end = at as usize + data.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at as usize..end].copy_from_slice(data);
    }

    fn write(&mut self, number: u64) -> Step {
        let (at, len) = self.range(MAX, self.mode == Mode::Direct);
        let data = self.fill(number, len);
        if let Some(map) = &self.map
            && !number.is_multiple_of(4)
        {
            // Memory beyond the end of the file is not there to be written.
            if self.size() < at + len {
                self.file.set_len(at + len).map_err(text)?;
            }
            map.write(at, &data);
            self.note("mapped write", format!("mapped write {at}..{}", at + len));
        } else {
            let file = self.direct.as_ref().unwrap_or(&self.file);
            let memory = self.memory.get(len as usize);
            memory.copy_from_slice(&data);
            file.write_all_at(memory, at).map_err(text)?;
            self.note("write", format!("write {at}..{}", at + len));
        }
        self.store(at, &data);
        Ok(())
    }

    fn append(&mut self, number: u64) -> Step {
        let len = self.random.below(8192).min(MAX - self.size());
        let data = self.fill(number, len);
        self.note("append", format!("append {len} to {}", self.size()));
        let mut file = OpenOptions::new().append(true).open(&self.path).map_err(text)?;
        std::io::Write::write_all(&mut file, &data).map_err(text)?;
        self.store(self.size(), &data);
        Ok(())
    }

    fn truncate(&mut self) -> Step {
        let size = self.random.below(MAX + 1);
        self.note("truncate", format!("truncate {} to {size}", self.size()));
        if self.random.below(2) == 0 {
            self.file.set_len(size).map_err(text)?;
        } else {
            nix::unistd::truncate(&self.path, size as i64).map_err(text)?;
        }
        self.model.resize(size as usize, 0);
        Ok(())
    }

    fn fallocate(&mut self, name: &'static str) -> Step {
        let (at, len) = self.range(MAX, false);
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (flags, zeroes, extends) = match name {
            "punch" => (FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, true, false),
            "zero" if self.random.below(2) == 0 => (FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, true, false),
            "zero" => (FallocateFlags::FALLOC_FL_ZERO_RANGE, true, true),
            "allocate past the end" => (keep, false, false),
            _ => (FallocateFlags::empty(), false, true),
        };
        if len == 0 || self.missing.contains(&name) {
            return Ok(());
        }
        match fallocate(&self.file, flags, at as i64, len as i64) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                self.missing.push(name);
                eprintln!("fsx: no {name} on this file system");
                return Ok(());
            }
            result => result.map_err(text)?,
        }
        self.note(name, format!("{name} {at}..{} of {}", at + len, self.size()));
        let end = (at + len) as usize;
        if extends && self.model.len() < end {
            self.model.resize(end, 0);
        }
        if zeroes {
            let size = self.model.len();
            self.model[(at as usize).min(size)..end.min(size)].fill(0);
        }
        Ok(())
    }

    fn copy(&mut self) -> Step {
        let (from, len) = self.range(self.size(), false);
        let to = self.random.below(MAX);
        let len = len.min(MAX - to);
        if len == 0 || from.abs_diff(to) < len {
            return Ok(());
        }
        self.note("copy", format!("copy {from}..{} to {to}", from + len));
        let (mut source, mut target, mut left) = (from as i64, to as i64, len as usize);
        while left > 0 {
            match copy_file_range(&self.file, Some(&mut source), &self.file, Some(&mut target), left) {
                Ok(0) => return Err(format!("copy ended {left} bytes early")),
                Ok(n) => left -= n,
                Err(errno) => return Err(format!("copy: {errno}")),
            }
        }
        let data = self.model[from as usize..(from + len) as usize].to_vec();
        self.store(to, &data);
        Ok(())
    }

    /// What is said to be a hole must be zeros.
    fn seek(&mut self) -> Step {
        let at = self.random.below(self.size());
        self.note("seek", format!("seek from {at} of {}", self.size()));
        if at >= self.size() {
            return Ok(());
        }
        if self.mode == Mode::Mmap {
            // Data in mapped pages may not have a place in the file yet.
            self.sync()?;
        }
        let data = match lseek(&self.file, at as i64, Whence::SeekData) {
            Ok(data) => data as usize,
            Err(Errno::ENXIO) => self.model.len(),
            Err(errno) => return Err(format!("SEEK_DATA: {errno}")),
        };
        let hole = lseek(&self.file, at as i64, Whence::SeekHole).map_err(text)?;
        if (hole as u64) < at || hole as u64 > self.size() {
            return Err(format!(
                "SEEK_HOLE from {at} gave {hole} in {} bytes",
                self.size()
            ));
        }
        match self.model[at as usize..data.min(self.model.len())]
            .iter()
            .position(|&byte| byte != 0)
        {
            Some(i) => Err(format!(
                "SEEK_DATA from {at} gave {data}, but byte {} is data",
                at as usize + i
            )),
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> Step {
        self.note("sync", "sync".into());
        if let Some(map) = &self.map {
            map.sync().map_err(text)?;
        }
        self.file.sync_data().map_err(text)
    }

    fn check_size(&self) -> Step {
        let size = self.file.metadata().map_err(text)?.len();
        match size == self.size() {
            true => Ok(()),
            false => Err(format!("the file has {size} bytes, not {}", self.size())),
        }
    }

    fn check_all(&mut self, when: &str) -> Step {
        let data = std::fs::read(&self.path).map_err(text)?;
        if data.len() as u64 != self.size() {
            return Err(format!("{when}: {} bytes read, not {}", data.len(), self.size()));
        }
        self.compare(0, &data).map_err(|error| format!("{when}: {error}"))
    }
}

/// Runs of `ops` operations in each mode, in this directory.
#[allow(dead_code, reason = "the programs of fsx choose their modes")]
pub fn in_every_mode(dir: &Path, ops: u64, seed: u64) {
    for mode in Mode::ALL {
        let run = Run {
            dir: dir.to_owned(),
            ops,
            seed,
            mode,
        };
        println!("{run}");
        run.run().unwrap_or_else(|error| panic!("{error}"));
    }
}
