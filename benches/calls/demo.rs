// SPDX-License-Identifier: MIT OR Apache-2.0
//! One real directory, seen natively, through stock FUSE and through extfuse: what calls cost, and
//! who answers them.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::uio::pread;
use nix::unistd::close;

use crate::measure::{self, Call, Shape};
use crate::mounts::{Counters, Counts, Place, Variant};
use crate::report::{columns, counted, grouped};
use crate::tree::c_path;

/// More calls a run than there are files smooth the timer's ticks out.
const CALLS: usize = 300;
/// Bytes read in one call.
const READ: usize = 4096;

/// The files of a directory, relative to it.
#[derive(Debug, Default)]
struct Survey {
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    bytes: u64,
}

impl Survey {
    /// Copies `from` to `to`: directories and regular files.
    fn copy(from: &Path, to: &Path) -> Result<Self> {
        let mut survey = Self {
            directories: vec![PathBuf::new()],
            ..Self::default()
        };
        let mut next = 0;
        while let Some(directory) = survey.directories.get(next).cloned() {
            next += 1;
            fs::create_dir_all(to.join(&directory))?;
            for entry in fs::read_dir(from.join(&directory))? {
                let entry = entry?;
                let (kind, path) = (entry.file_type()?, directory.join(entry.file_name()));
                if kind.is_dir() {
                    survey.directories.push(path);
                } else if kind.is_file() {
                    survey.bytes += fs::copy(entry.path(), to.join(&path))?;
                    survey.files.push(path);
                }
            }
        }
        survey.files.sort();
        ensure!(!survey.files.is_empty(), "no files in it");
        nix::unistd::sync();
        Ok(survey)
    }
}

/// What is done with every file in turn.
#[derive(Clone, Copy, Debug)]
enum Step {
    Stat,
    Missing,
    Fstat,
    Read,
    OpenReadClose,
}

const STEPS: &[Step] = &[
    Step::Stat,
    Step::Missing,
    Step::Fstat,
    Step::Read,
    Step::OpenReadClose,
];

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Stat => "stat each file by its path",
            Step::Missing => "look for a name that is not there",
            Step::Fstat => "fstat an open file",
            Step::Read => "read 4 KiB of an open file",
            Step::OpenReadClose => "open, read 4 KiB, close",
        }
    }

    fn prepare(self, survey: &Survey) -> Result<Box<Call<'static>>> {
        let paths: Vec<CString> = survey
            .files
            .iter()
            .map(|file| c_path(file))
            .collect::<Result<_>>()?;
        let count = paths.len();
        let opened = || -> Result<Vec<OwnedFd>> {
            let open = |path: &CString| open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty());
            paths
                .iter()
                .map(|path| open(path).with_context(|| format!("cannot open {path:?}")))
                .collect()
        };
        let mut buffer = Box::new([0u8; READ]);
        Ok(match self {
            Step::Stat => Box::new(move |i| stat(paths[i % count].as_c_str()).is_ok()),
            Step::Missing => {
                let missing = |directory: &PathBuf| c_path(&directory.join("no-such-name"));
                let paths: Vec<CString> = survey.directories.iter().map(missing).collect::<Result<_>>()?;
                Box::new(move |i| stat(paths[i % paths.len()].as_c_str()).err() == Some(Errno::ENOENT))
            }
            Step::Fstat => {
                let files = opened()?;
                Box::new(move |i| fstat(&files[i % count]).is_ok())
            }
            Step::Read => {
                let files = opened()?;
                Box::new(move |i| pread(&files[i % count], &mut buffer[..], 0).is_ok())
            }
            Step::OpenReadClose => Box::new(move |i| {
                let Ok(file) = open(paths[i % count].as_c_str(), OFlag::O_RDONLY, Mode::empty()) else {
                    return false;
                };
                pread(&file, &mut buffer[..], 0).is_ok() && close(file).is_ok()
            }),
        })
    }
}

/// What one variant showed.
struct Seen {
    variant: Variant,
    /// Cost and upcalls of a call, for each step.
    steps: Vec<(f64, f64)>,
    /// Everything that was counted in all steps.
    counters: Counters,
}

fn see(variant: Variant, tree: &Path, base: &Path, survey: &Survey, smoke: bool) -> Result<Seen> {
    let place = Place::new(variant, tree, &base.join("mnt"), &[])?;
    let beginning = place.counters()?;
    let (runs, calls) = if smoke {
        (2, 20)
    } else {
        (5, CALLS.max(survey.files.len()))
    };
    let shape = Shape {
        warm: survey.files.len(),
        runs,
        calls,
    };
    let mut steps = Vec::new();
    for &step in STEPS {
        let mut call = step.prepare(survey)?;
        measure::warm(shape, &mut call)?;
        let before = place.counters()?;
        let cost = measure::cost(shape, &mut call).with_context(|| step.name())?;
        let upcalls = place.counted_since(&before)?.total().upcalls;
        steps.push((cost, upcalls as f64 / shape.all_calls() as f64));
    }
    let counters = place.counted_since(&beginning)?;
    place.close()?;
    Ok(Seen {
        variant,
        steps,
        counters,
    })
}

/// Emphasis, where the output is looked at by a person.
#[derive(Clone, Copy)]
struct Ink(bool);

impl Ink {
    fn paint(self, code: &str, text: String) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text
        }
    }
    fn bold(self, text: String) -> String {
        self.paint("1", text)
    }
    fn dim(self, text: String) -> String {
        self.paint("2", text)
    }
    fn good(self, text: String) -> String {
        self.paint("1;32", text)
    }
}

fn heading(variant: Variant) -> [&'static str; 2] {
    match variant {
        Variant::Native => ["native", "ext4"],
        Variant::Stock0 => ["stock FUSE", "timeouts 0"],
        Variant::StockInf => ["stock FUSE", "never asks again"],
        Variant::Unattached => ["extfuse", "no handlers"],
        Variant::Handlers => ["extfuse", "handlers"],
        Variant::Asked => ["extfuse", "nothing kept"],
        Variant::Trivial => ["extfuse", "trivial programs"],
    }
}

fn costs(seen: &[Seen], ink: Ink) {
    let line =
        |first: &str, rest: Vec<String>| std::iter::once(first.to_string()).chain(rest).collect::<Vec<_>>();
    let headings = |which: usize| {
        seen.iter()
            .map(|s| heading(s.variant)[which].to_string())
            .collect()
    };
    let mut table = vec![line("", headings(0)), line("", headings(1))];
    for (i, step) in STEPS.iter().enumerate() {
        let cell = |s: &Seen| {
            let (cost, upcalls) = s.steps[i];
            if s.variant == Variant::Native {
                return grouped(cost);
            }
            format!("{} ({})", grouped(cost), counted(upcalls))
        };
        table.push(line(step.name(), seen.iter().map(cell).collect()));
    }
    let extfuse = seen
        .iter()
        .position(|s| s.variant == Variant::Handlers)
        .map(|i| i + 1);
    for text in columns(&table, "   ", |line, column, cell| match line {
        0 => ink.bold(cell),
        1 => ink.dim(cell),
        _ if Some(column) == extfuse => ink.good(cell),
        _ => cell,
    }) {
        println!("  {text}");
    }
}

/// Who answered the requests, by opcode. Of stock FUSE there is only what the daemon was asked.
fn answers(seen: &[Seen], ink: Ink) {
    let of = |variant| seen.iter().find(|s| s.variant == variant).map(|s| &s.counters);
    let nothing = Counters::default();
    let (stock, extfuse) = (
        of(Variant::Stock0).unwrap_or(&nothing),
        of(Variant::Handlers).unwrap_or(&nothing),
    );
    let numbers = |stock: Counts, extfuse: Counts| {
        let numbers = [
            stock.upcalls,
            extfuse.requests,
            extfuse.answered(),
            extfuse.passthru,
            extfuse.upcalls,
        ];
        numbers.map(|n| if n == 0 { "·".into() } else { grouped(n as f64) })
    };
    let line = |cells: [&str; 6]| cells.map(String::from).to_vec();
    let mut table = vec![
        line(["", "stock FUSE", "extfuse", "answered in", "passed", "extfuse"]),
        line(["", "daemon", "requests", "the kernel", "through", "daemon"]),
    ];
    let mut opcodes: Vec<(&str, u64)> = Vec::new();
    for opcode in stock.0.keys().chain(extfuse.0.keys()) {
        let weight = stock.of(opcode).upcalls + extfuse.of(opcode).requests;
        if weight > 0 && !opcodes.contains(&(opcode, weight)) {
            opcodes.push((opcode, weight));
        }
    }
    opcodes.sort_by_key(|&(_, weight)| std::cmp::Reverse(weight));
    for (opcode, _) in opcodes {
        let numbers = numbers(stock.of(opcode), extfuse.of(opcode));
        table.push([vec![opcode.to_string()], numbers.to_vec()].concat());
    }
    let total = numbers(stock.total(), extfuse.total());
    table.push([vec!["all".into()], total.to_vec()].concat());
    let last = table.len() - 1;
    for text in columns(&table, "   ", |line, column, cell| match line {
        0 => ink.bold(cell),
        1 => ink.dim(cell),
        _ if line == last => ink.bold(cell),
        _ if column == 3 || column == 4 => ink.good(cell),
        _ => cell,
    }) {
        println!("  {text}");
    }
}

/// The finding in words, from the figures themselves.
fn finding(seen: &[Seen]) -> Option<[String; 4]> {
    let of = |variant| seen.iter().find(|s| s.variant == variant);
    let (native, stock, extfuse) = (of(Variant::Native)?, of(Variant::Stock0)?, of(Variant::Handlers)?);
    let times = |s: &Seen| s.steps[0].0 / native.steps[0].0;
    let asked = |s: &Seen| grouped(s.counters.total().upcalls as f64);
    Some([
        format!(
            "A stat costs {:.1} times as much as without FUSE; on stock FUSE it is {:.1} times.",
            times(extfuse),
            times(stock)
        ),
        format!(
            "For the same work the daemon was asked {} times instead of {}. Neither mount trusts",
            asked(extfuse),
            asked(stock)
        ),
        "anything by time: what the kernel answers holds until the next change through the mount, not".into(),
        "for a while. (It is mounted with --exclusive: all changes come through it.)".into(),
    ])
}

const CAVEAT: [&str; 3] = [
    "Instructions are counted by the emulator that the guest runs on. Neither cache misses nor what",
    "the switch to another process costs the processor are in them, so they understate what is gained",
    "on real hardware where the daemon is not asked.",
];

pub fn run(directory: &Path, base: &Path, colour: bool, smoke: bool) -> Result<()> {
    let unit = crate::metric(smoke)?;
    let name = directory
        .file_name()
        .with_context(|| format!("{} has no name", directory.display()))?;
    let tree = base.join("demo").join(name);
    let survey =
        Survey::copy(directory, &tree).with_context(|| format!("cannot copy {}", directory.display()))?;
    let variants: &[Variant] = match smoke {
        true => &[Variant::Native, Variant::Stock0],
        false => &[Variant::Native, Variant::Stock0, Variant::Handlers],
    };
    let seen: Vec<Seen> = variants
        .iter()
        .map(|&v| see(v, &tree, base, &survey, smoke))
        .collect::<Result<_>>()?;

    let ink = Ink(colour);
    let kernel = nix::sys::utsname::uname()?;
    println!();
    println!(
        "  {}",
        ink.bold(format!(
            "{} on extfuse, beside stock FUSE and no FUSE at all",
            name.display()
        ))
    );
    println!(
        "  {} files in {} directories, {} KiB, on ext4; Linux {}\n",
        survey.files.len(),
        survey.directories.len(),
        survey.bytes.div_ceil(1024),
        kernel.release().display(),
    );
    println!(
        "  {}\n",
        ink.bold(format!(
            "What a call costs: {unit} (in brackets: questions to the daemon)"
        ))
    );
    costs(&seen, ink);
    println!("\n  {}\n", ink.bold("Who answered, over all of the above".into()));
    answers(&seen, ink);
    if let Some(lines) = finding(&seen) {
        println!("\n  {}", lines.join("\n  "));
    }
    if !smoke {
        println!();
        CAVEAT
            .iter()
            .for_each(|line| println!("  {}", ink.dim((*line).into())));
    }
    println!();
    Ok(())
}
