// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory that a server has, seen by a client on the same machine: extfuse beside sshfs, NFS, and the
//! directory itself.

pub mod far;
mod meter;
mod transport;

use std::cell::OnceCell;
use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::stat::stat;
use nix::sys::uio::{pread, pwrite};

use crate::cases;
use crate::measure;
use crate::mounts::Counters;
use crate::only::Only;
use crate::pages::drop_pages;
use crate::programs::Programs;
use crate::report::{self, Aim, Row};
use crate::tree::c_path;
use crate::walk;
use crate::workloads::{self, Workload};
use far::{Far, Mount};
use meter::{Cost, Meter};
use transport::Transport;

/// How the directory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The directory itself.
    Native,
    /// No file system: an application that gets the same bytes from a socket.
    Transport,
    /// `extfuse serve`, and `extfuse mount` with the module.
    Extfuse,
    /// The same with copies in memory, and writes that return before the server has them.
    Spool,
    /// sshd with its sftp-server, and sshfs.
    Sshfs,
    /// The kernel's server and client.
    Nfs,
}

const VARIANTS: &[Variant] = &[
    Variant::Native,
    Variant::Extfuse,
    Variant::Spool,
    Variant::Sshfs,
    Variant::Nfs,
    Variant::Transport,
];

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Transport => "transport",
            Self::Extfuse => "extfuse",
            Self::Spool => "spool",
            Self::Sshfs => "sshfs",
            Self::Nfs => "nfs",
        }
    }

    /// Whether it needs nothing but this program and stock FUSE.
    fn is_everywhere(self) -> bool {
        !matches!(self, Self::Sshfs | Self::Nfs)
    }

    /// Whether it asks its server about everything each time. An emulator needs minutes for what others do in
    /// seconds, so it does less of it; what a figure is for is the same.
    fn asks_always(self) -> bool {
        matches!(self, Self::Sshfs | Self::Nfs)
    }

    fn runs(self) -> usize {
        if self.asks_always() { 1 } else { 3 }
    }
}

/// Files, in directories, in groups.
#[derive(Clone, Copy, Debug)]
struct Files {
    /// Where they are, relative to the root of the tree.
    at: &'static str,
    groups: usize,
    /// Of each group.
    directories: usize,
    /// Of each directory.
    files: usize,
}

/// What a variant goes through.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    files: Files,
    /// Calls of `stat` a run.
    stats: usize,
    /// Of [`LONG`], in the file that is read.
    blocks: usize,
    /// Reads at random places, at most.
    random: usize,
}

const WIDE: Files = Files {
    at: "wide",
    groups: 10,
    directories: 10,
    files: 100,
};
const NARROW: Files = Files {
    at: "narrow",
    groups: 1,
    directories: 3,
    files: 100,
};

impl Amounts {
    fn of(variant: Variant, smoke: bool) -> Self {
        match (smoke, variant.asks_always()) {
            (true, _) => Self {
                files: Files {
                    directories: 1,
                    files: 40,
                    ..NARROW
                },
                stats: 20,
                blocks: 8,
                random: 64,
            },
            (false, true) => Self {
                files: NARROW,
                stats: 60,
                blocks: 16,
                random: 128,
            },
            (false, false) => Self {
                files: WIDE,
                stats: 300,
                blocks: BLOCKS,
                random: 1024,
            },
        }
    }
}

/// The lengths of reads.
const SHORT: usize = 4 << 10;
const LONG: usize = 128 << 10;
/// Of [`LONG`], of the whole file that is read.
const BLOCKS: usize = 128;
/// Writes between opening and closing a file.
const WRITES: usize = 60;

/// What else is below the root of the tree.
const EMPTY: &str = "empty";
const GIT: &str = "git";
const DATA: &str = "data";
const WRITTEN: &str = "written";

impl Files {
    /// Relative to the root of the tree.
    fn paths(self) -> impl Iterator<Item = PathBuf> {
        let directories = (0..self.groups)
            .flat_map(move |group| (0..self.directories).map(move |directory| (group, directory)));
        directories.flat_map(move |(group, directory)| {
            (0..self.files).map(move |file| {
                let file = format!("group_{group}/dir_{directory:02}/file_{file:03}.dat");
                Path::new(self.at).join(file)
            })
        })
    }

    /// Entries of the directories.
    fn entries(self) -> usize {
        self.groups * (1 + self.directories * (1 + self.files))
    }

    fn make(self, tree: &Path) -> Result<()> {
        for file in self.paths() {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            fs::write(path, [0x5a; walk::SMALL])?;
        }
        Ok(())
    }
}

fn make_tree(at: &Path, smoke: bool) -> Result<()> {
    fs::create_dir_all(at.join(EMPTY))?;
    match smoke {
        true => Amounts::of(Variant::Native, smoke).files.make(at)?,
        false => [WIDE, NARROW].iter().try_for_each(|files| files.make(at))?,
    }
    let words = (0..(BLOCKS * LONG / 8) as u64).map(u64::to_le_bytes);
    fs::write(at.join(DATA), words.flatten().collect::<Vec<u8>>())?;
    fs::write(at.join(WRITTEN), vec![0; LONG])?;
    if !smoke {
        fs::create_dir_all(at.join(GIT))?;
        workloads::make(&at.join(GIT))?;
    }
    nix::unistd::sync();
    Ok(())
}

const FIND: Workload = Workload {
    name: "find",
    arguments: &["find", "."],
    each_file: false,
    status: 0,
};

const LS: Workload = Workload {
    name: "ls-lR",
    arguments: &["ls", "-lR", "."],
    each_file: false,
    status: 0,
};

/// Without what sshfs cannot tell, inode numbers and times of change: git would read every file there.
const STATUS: Workload = Workload {
    name: "git-status",
    arguments: &[
        "git",
        "--no-optional-locks",
        "-c",
        "core.checkStat=minimal",
        "-c",
        "core.trustctime=false",
        "status",
        "--porcelain",
    ],
    each_file: false,
    status: 0,
};

/// Where reads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Sequential,
    Random,
}

/// What is measured, cold and warm.
const READS: &[(&str, Order, usize)] = &[
    ("seq-4k", Order::Sequential, SHORT),
    ("seq-128k", Order::Sequential, LONG),
    ("rand-4k", Order::Random, SHORT),
    ("rand-128k", Order::Random, LONG),
];

const WRITE: &str = "write-128k";

/// In the order of the table.
const CASES: &[&[&str]] = &[NAMES, ATTRIBUTES, CONTENTS];
const NAMES: &[&str] = &["stat", "find-cold", "find-warm", STATUS.name];
const ATTRIBUTES: &[&str] = &["ls-lR-cold", "ls-lR-warm"];
const CONTENTS: &[&str] = &[
    "small-cold",
    "small-warm",
    "seq-4k-cold",
    "seq-4k-warm",
    "seq-128k-cold",
    "seq-128k-warm",
    "rand-4k-cold",
    "rand-4k-warm",
    "rand-128k-cold",
    "rand-128k-warm",
    WRITE,
];

/// A figure, before it is one.
struct Measured {
    case: String,
    cost: Cost,
    /// None where nobody counts.
    upcalls: Option<f64>,
    /// All of these, by opcode.
    asked: String,
}

struct Bench<'a> {
    metric: &'static str,
    only: &'a Only,
    smoke: bool,
    /// The control: what a call costs that no file system is asked for.
    null_call: OnceCell<f64>,
    programs: Programs,
    /// What a program costs where there is nothing for it to do.
    starts: Vec<(&'static str, f64)>,
    tree: PathBuf,
}

type Look = for<'a> fn(&Visit<'a>) -> Result<Vec<Measured>>;

/// One variant, mounted.
struct Visit<'a> {
    bench: &'a Bench<'a>,
    variant: Variant,
    amounts: Amounts,
    mount: Mount,
    meter: Meter,
}

/// All cases in all variants, in one boot; rows ordered by case.
pub fn run(base: &Path, metric: &'static str, only: &Only, smoke: bool) -> Result<Vec<Row>> {
    let base = &base.join("remote");
    fs::create_dir_all(base)?;
    let tree = base.join("tree");
    make_tree(&tree, smoke).context("cannot make the tree")?;
    let programs = Programs::copy(&base.join("programs"), &[FIND, LS, STATUS])?;
    std::env::set_current_dir(tree.join(EMPTY))?;
    let bench = Bench {
        metric,
        only,
        smoke,
        starts: [FIND, LS]
            .map(|workload| started(&programs, &workload))
            .into_iter()
            .collect::<Result<_>>()?,
        null_call: OnceCell::new(),
        programs,
        tree,
    };
    let mut rows = Vec::new();
    for &variant in VARIANTS
        .iter()
        .filter(|variant| !smoke || variant.is_everywhere())
    {
        let measured = match variant {
            Variant::Transport => bench.transport(base),
            // What is not read or written costs the same.
            Variant::Spool => bench.variant(variant, base, &[CONTENTS]),
            _ => bench.variant(variant, base, CASES),
        };
        for figure in measured.with_context(|| variant.name())? {
            rows.extend(bench.rows(variant, &figure));
        }
    }
    bench.again(base, &rows)?;
    let of = |case: &'static str| {
        let rows = rows.iter();
        rows.filter(move |row: &&Row| row.case == case)
    };
    Ok(CASES
        .iter()
        .copied()
        .flatten()
        .flat_map(|case| of(case))
        .cloned()
        .collect())
}

/// What a program costs in the current directory.
fn started(programs: &Programs, workload: &Workload) -> Result<(&'static str, f64)> {
    programs.cost(workload)?;
    let mut costs = (0..3)
        .map(|_| programs.cost(workload))
        .collect::<Result<Vec<_>>>()?;
    Ok((workload.name, measure::median(&mut costs)))
}

impl Bench<'_> {
    fn wants(&self, case: &str) -> bool {
        self.only.takes(case)
    }

    fn rows(&self, variant: Variant, figure: &Measured) -> Vec<Row> {
        let unit = unit(&figure.case);
        let row = |metric: &str, value: f64| Row {
            suite: "remote".into(),
            case: figure.case.clone(),
            variant: variant.name().into(),
            metric: metric.into(),
            unit: format!("{metric}/{unit}"),
            value,
        };
        let mut rows = vec![row(self.metric, figure.cost.total.round())];
        if let Some(upcalls) = figure.upcalls {
            rows.push(row("upcalls", (upcalls * 1e6).round() / 1e6));
        }
        if variant != Variant::Native {
            rows.push(row(report::SERVER, figure.cost.server.round()));
        }
        rows
    }

    fn say(&self, variant: Variant, figure: &Measured) {
        if !self.smoke {
            eprintln!(
                "{:15} {:10} {:12.0} {}, {:9.0} of them the server's; {}",
                figure.case,
                variant.name(),
                figure.cost.total,
                self.metric,
                figure.cost.server,
                figure.asked
            );
        }
    }

    fn meter(&self, servers: Vec<nix::unistd::Pid>) -> Meter {
        Meter {
            servers,
            counts_instructions: !self.smoke,
        }
    }

    /// The cases of these kinds.
    fn variant(&self, variant: Variant, base: &Path, kinds: &[&[&str]]) -> Result<Vec<Measured>> {
        let null_call = measure::null_call()?;
        let first = *self.null_call.get_or_init(|| null_call);
        ensure!(
            self.smoke || (null_call - first).abs() <= 0.02 * first,
            "getpid costs {null_call:.1} instructions, and {first:.1} before: not comparable"
        );
        let far = Far::serve(variant, &self.tree, &base.join("far"), self.smoke)?;
        let mut measured = Vec::new();
        // Each on a mount that knows nothing yet.
        let looks: [(&[&str], Look); 3] = [
            (NAMES, |visit| visit.names()),
            (ATTRIBUTES, |visit| visit.attributes()),
            (CONTENTS, |visit| visit.contents()),
        ];
        for (cases, look) in looks {
            if !kinds.contains(&cases) || !cases.iter().any(|case| self.wants(case)) {
                continue;
            }
            let mount = far.mount()?;
            let meter = self.meter(far.processes()?);
            let visit = Visit {
                bench: self,
                variant,
                amounts: Amounts::of(variant, self.smoke),
                mount,
                meter,
            };
            let figures = look(&visit)?;
            figures.iter().for_each(|figure| self.say(variant, figure));
            measured.extend(figures);
            visit.mount.close()?;
        }
        far.stop()?;
        Ok(measured)
    }

    /// The other control: what is warm of the directory itself costs in the end what it cost in the beginning.
    fn again(&self, base: &Path, rows: &[Row]) -> Result<()> {
        let names = self.variant(Variant::Native, base, &[NAMES])?;
        for figure in names.into_iter().filter(|figure| !figure.case.ends_with("-cold")) {
            let first = report::value(rows, &figure.case, Variant::Native.name(), self.metric);
            let (first, last) = (first.context("nothing was measured before")?, figure.cost.total);
            ensure!(
                self.smoke || (last - first).abs() <= 0.05 * first,
                "{}: {first} natively in the beginning, {last} in the end",
                figure.case
            );
        }
        Ok(())
    }

    /// What is read one after the other is received from one request for [`LONG`] after the other, as read-ahead
    /// would ask for it.
    fn transport(&self, base: &Path) -> Result<Vec<Measured>> {
        let transport = Transport::new(base)?;
        let meter = self.meter(vec![transport.server()]);
        let mut buffer = cases::buffer();
        let mut measured = Vec::new();
        for &(name, order, bytes) in READS {
            let case = format!("{name}-cold");
            if !self.wants(&case) {
                continue;
            }
            let asked = if order == Order::Sequential { LONG } else { bytes };
            let requests = Amounts::of(Variant::Transport, self.smoke).blocks;
            let mut run = || {
                let run = || (0..requests).try_for_each(|_| transport.read(asked, &mut buffer.0[..bytes]));
                meter.around(run).map(|(_, cost)| cost)
            };
            run()?;
            let cost = median(&mut [run()?, run()?, run()?]);
            measured.push(Measured {
                case,
                cost: each(cost, requests * (asked / bytes)),
                upcalls: None,
                asked: String::new(),
            });
        }
        if self.wants(WRITE) {
            let run = || {
                let run = || (0..WRITES).try_for_each(|_| transport.write(&buffer.0));
                meter.around(run).map(|(_, cost)| cost)
            };
            run()?;
            let cost = median(&mut [run()?, run()?, run()?]);
            measured.push(Measured {
                case: WRITE.into(),
                cost: each(cost, WRITES),
                upcalls: None,
                asked: String::new(),
            });
        }
        measured
            .iter()
            .for_each(|figure| self.say(Variant::Transport, figure));
        transport.end()?;
        Ok(measured)
    }
}

fn each(cost: Cost, units: usize) -> Cost {
    Cost {
        total: cost.total / units as f64,
        server: cost.server / units as f64,
    }
}

/// The one in the middle, by its total.
fn median(costs: &mut [Cost]) -> Cost {
    costs.sort_by(|a, b| a.total.total_cmp(&b.total));
    costs[costs.len() / 2]
}

/// What a figure of a case is for.
fn unit(case: &str) -> &'static str {
    match case.split('-').next() {
        Some("find" | "ls") => "entry",
        Some("small") => "file",
        Some("git") => "run",
        _ => "call",
    }
}

/// Places in the file, in blocks, each at most once.
fn places(order: Order, blocks: usize, random: usize) -> Vec<usize> {
    match order {
        Order::Sequential => (0..blocks).collect(),
        // Of full period, as the number of blocks is a power of two.
        Order::Random => std::iter::successors(Some(7 % blocks), |at| Some((at * 1597 + 51_749) % blocks))
            .take(blocks.min(random))
            .collect(),
    }
}

impl Visit<'_> {
    fn enter(&self, directory: &Path) -> Result<()> {
        let path = self.mount.path.join(directory);
        std::env::set_current_dir(&path).with_context(|| path.display().to_string())
    }

    /// Runs of one thing, `units` of something each, after `before_each`: the median, if somebody wants it.
    fn measure(
        &self,
        case: &str,
        runs: usize,
        units: usize,
        mut before_each: impl FnMut() -> Result<()>,
        mut run: impl FnMut() -> Result<()>,
    ) -> Result<Option<Measured>> {
        if !self.bench.wants(case) {
            return Ok(None);
        }
        let mut costs = Vec::new();
        let mut counted: Option<Counters> = None;
        for _ in 0..runs {
            before_each()?;
            let before = self.mount.counters()?;
            costs.push(self.meter.around(&mut run)?.1);
            if let Some(now) = self.mount.counted_since(&before)? {
                counted = Some(counted.unwrap_or_default().plus(&now));
            }
        }
        let upcalls = counted
            .as_ref()
            .map(|counted| counted.total().upcalls as f64 / (runs * units) as f64);
        let figure = Measured {
            case: case.into(),
            cost: each(median(&mut costs), units),
            upcalls,
            asked: counted.as_ref().map(Counters::upcalls).unwrap_or_default(),
        };
        Ok(Some(figure))
    }

    /// The first time on a mount, and when it is warm. The second time is not measured, but looked at.
    fn cold_and_warm(
        &self,
        name: &str,
        units: usize,
        mut run: impl FnMut() -> Result<()>,
        between: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<Measured>> {
        let (cold, warm) = (format!("{name}-cold"), format!("{name}-warm"));
        if !self.bench.wants(&cold) && !self.bench.wants(&warm) {
            return Ok(Vec::new());
        }
        let mut measured = Vec::new();
        if self.bench.wants(&cold) {
            measured.extend(self.measure(&cold, 1, units, nothing, &mut run)?);
        } else {
            run()?;
        }
        between()?;
        measured.extend(self.measure(&warm, self.variant.runs(), units, nothing, &mut run)?);
        Ok(measured)
    }

    fn program(&self, workload: &Workload) -> Result<Vec<Measured>> {
        let files = self.amounts.files;
        self.enter(Path::new(files.at))?;
        let programs = &self.bench.programs;
        let run = || programs.cost(workload).map(drop);
        let mut measured = self.cold_and_warm(workload.name, files.entries(), run, || {
            let here = programs.output(workload)?;
            std::env::set_current_dir(self.bench.tree.join(files.at))?;
            let natively = programs.output(workload)?;
            self.enter(Path::new(files.at))?;
            let (here, natively) = (said(&here)?, said(&natively)?);
            ensure!(here == natively, "{}: other output than natively", workload.name);
            let enough = here.len() >= files.entries();
            ensure!(enough, "{}: {} lines only", workload.name, here.len());
            Ok(())
        })?;
        let starts = self.bench.starts.iter();
        let start = starts
            .filter(|(name, _)| *name == workload.name)
            .map(|(_, cost)| cost)
            .sum::<f64>();
        for figure in &mut measured {
            figure.cost.total -= start / files.entries() as f64;
        }
        Ok(measured)
    }

    /// Of a mount that is new.
    fn names(&self) -> Result<Vec<Measured>> {
        let mut measured = self.program(&FIND)?;
        self.enter(Path::new(""))?;
        if self.bench.wants("stat") {
            let files = self.amounts.files;
            let file = files.paths().nth(files.files / 2).context("no files")?;
            let file = c_path(&file)?;
            let calls = self.amounts.stats;
            let run = || {
                let right = (0..calls).all(|_| stat(file.as_c_str()).is_ok());
                ensure!(right, "stat has failed");
                Ok(())
            };
            run()?;
            measured.extend(self.measure("stat", 3, calls, nothing, run)?);
        }
        // All of it is asked of the server where it is only tried.
        if self.bench.wants(STATUS.name) && !self.bench.smoke {
            self.enter(Path::new(GIT))?;
            for _ in 0..if self.variant.asks_always() { 1 } else { 2 } {
                let said = self.bench.programs.output(&STATUS)?;
                ensure!(said.is_empty(), "git sees changes");
            }
            let run = || self.bench.programs.cost(&STATUS).map(drop);
            measured.extend(self.measure(STATUS.name, self.variant.runs(), 1, nothing, run)?);
        }
        Ok(measured)
    }

    /// Of a mount that is new.
    fn attributes(&self) -> Result<Vec<Measured>> {
        self.program(&LS)
    }

    /// Of a mount that is new.
    fn contents(&self) -> Result<Vec<Measured>> {
        self.enter(Path::new(""))?;
        let paths = self.amounts.files.paths();
        let files: Vec<CString> = paths.map(|path| c_path(&path)).collect::<Result<_>>()?;
        let mut buffer = cases::buffer();
        let mut run = || {
            let read = files.iter().all(|path| walk::cat(path, &mut buffer.0));
            ensure!(read, "a file could not be read");
            Ok(())
        };
        let mut again = cases::buffer();
        let mut measured = self.cold_and_warm("small", files.len(), &mut run, || {
            for path in &files {
                again.0[..walk::SMALL].fill(0);
                let right = walk::cat(path, &mut again.0) && again.0[..walk::SMALL] == [0x5a; walk::SMALL];
                ensure!(right, "{path:?} was not read as it is");
            }
            Ok(())
        })?;
        for &(name, order, bytes) in READS {
            measured.append(&mut self.reads(name, order, bytes)?);
        }
        if self.bench.wants(WRITE) {
            measured.extend(self.writes()?);
        }
        Ok(measured)
    }

    /// A file is opened, and read: without its pages on the mount, and with them.
    fn reads(&self, name: &str, order: Order, bytes: usize) -> Result<Vec<Measured>> {
        let (cold, warm) = (format!("{name}-cold"), format!("{name}-warm"));
        if !self.bench.wants(&cold) && !self.bench.wants(&warm) {
            return Ok(Vec::new());
        }
        let places = places(order, self.amounts.blocks * LONG / bytes, self.amounts.random);
        let file = File::open(DATA)?;
        let mut buffer = cases::buffer();
        let mut run = || {
            for &place in &places {
                let at = place * bytes;
                let read = pread(&file, &mut buffer.0[..bytes], at as i64)?;
                let words = [at / 8, (at + bytes) / 8 - 1].map(|word| (word as u64).to_le_bytes());
                let right = buffer.0[..8] == words[0] && buffer.0[bytes - 8..bytes] == words[1];
                ensure!(read == bytes && right, "{at} was not read as it is");
            }
            Ok(())
        };
        let forget = || {
            // They are all that there is of a file natively: dropped, it would be the disk that is measured.
            if self.variant != Variant::Native {
                drop_pages(&file)?;
            }
            Ok(())
        };
        forget()?;
        run()?;
        let mut measured = Vec::new();
        measured.extend(self.measure(&cold, self.variant.runs(), places.len(), forget, &mut run)?);
        run()?;
        measured.extend(self.measure(&warm, self.variant.runs(), places.len(), nothing, &mut run)?);
        Ok(measured)
    }

    /// A file is opened, written to at its beginning again and again, and closed: who goes on before the server
    /// has answered waits for that then.
    fn writes(&self) -> Result<Option<Measured>> {
        let buffer = cases::buffer();
        let run = || {
            let file = File::options().write(true).open(WRITTEN)?;
            for _ in 0..WRITES {
                ensure!(pwrite(&file, &buffer.0, 0)? == LONG, "a write was not whole");
            }
            Ok(())
        };
        run()?;
        self.measure(WRITE, 3, WRITES, nothing, run)
    }
}

fn nothing() -> Result<()> {
    Ok(())
}

/// What a program has said, line by line, as far as all file systems agree about it: directories come in another
/// order, sshfs does not know of links, and blocks are counted differently.
fn said(output: &[u8]) -> Result<Vec<String>> {
    let text = std::str::from_utf8(output)?;
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("total "))
        .map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            if words.len() == 9 {
                words.remove(1);
            }
            words.join(" ")
        })
        .collect();
    lines.sort();
    Ok(lines)
}

/// What is meant to be.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, "remote");
    let against = |cases: &[&str], other: &str, limit| -> Vec<Aim> {
        let cases = cases.iter();
        cases
            .filter_map(|case| report::ratio(&rows, case, Variant::Extfuse.name(), other, limit))
            .collect()
    };
    let metadata = ["stat", "find-warm", "ls-lR-warm", STATUS.name];
    let contents = [
        "small-warm",
        "seq-4k-warm",
        "seq-128k-warm",
        "rand-4k-warm",
        "rand-128k-warm",
    ];
    let warm = [&metadata[..], &contents].concat();
    let silent = warm.iter().filter_map(|case| {
        let value = |metric| report::value(&rows, case, Variant::Extfuse.name(), metric);
        // Where it is only tried, there is no module.
        let (Some(_), Some(upcalls)) = (value("instructions"), value("upcalls")) else {
            return None;
        };
        Some(Aim {
            // One of a whole run is not nothing.
            text: match upcalls {
                0.0 => format!("{case}, extfuse: 0 upcalls, at most 0"),
                some => format!("{case}, extfuse: {some} upcalls, at most 0"),
            },
            met: upcalls == 0.0,
        })
    });
    let cold = [
        "small-cold",
        "seq-4k-cold",
        "seq-128k-cold",
        "rand-4k-cold",
        "rand-128k-cold",
    ];
    silent
        .chain(against(&warm, "native", 1.3))
        .chain(against(&["seq-4k-cold", "seq-128k-cold"], "transport", 1.3))
        .chain(against(&metadata, "sshfs", 0.1))
        .chain(against(&cold, "sshfs", 0.5))
        .collect()
}
