// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs to ask a program at all: one on every opcode that sends everything up, against none.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use extfuse::fs::{Stack, StackOptions};
use extfuse::session::{self, Session};
use extfuse::{MountOptions, abi};
use nix::fcntl::OFlag;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::close;

use crate::cases::{self, Case as Single};
use crate::controls::{self, Controls};
use crate::measure::{self, Call, Shape};
use crate::mounts::{Place, Variant};
use crate::party::{self, Party};
use crate::report::{self, Aim, Row};
use crate::tree::{self, Paths};

/// The program that only says UPCALL.
const UPCALL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/upcall.bpf.o"));

/// How often each variant is measured, in turn.
const ROUNDS: usize = 3;
const VARIANTS: &[(Variant, &str)] = &[(Variant::Unattached, "unattached"), (Variant::Trivial, "trivial")];

/// Bytes of a sequential read, and of a random one.
const LARGE: usize = 128 << 10;
const SMALL: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// The file from its beginning to its end, and again, past the page cache.
    Sequential,
    /// Blocks of it in no order, past the page cache.
    Random,
    Write,
    Single(Single),
    /// A file made and removed.
    Create,
}

/// Each with its limit in what it costs without a program, where there is one.
const CASES: &[(Case, Option<f64>)] = &[
    (Case::Sequential, Some(1.0033)),
    (Case::Random, Some(1.066)),
    (Case::Write, None),
    (Case::Single(Single::Stat), None),
    (Case::Single(Single::OpenClose), None),
    (Case::Create, None),
];

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Sequential => "read-128k",
            Self::Random => "read-4k-random",
            Self::Write => "write-4k-random",
            Self::Single(case) => case.name(),
            Self::Create => "create-unlink",
        }
    }

    /// What comes up with each call, among others.
    fn opcode(self) -> &'static str {
        match self {
            Self::Sequential | Self::Random => "READ",
            Self::Write => "WRITE",
            Self::Single(Single::OpenClose) => "OPEN",
            Self::Single(_) => "LOOKUP",
            Self::Create => "UNLINK",
        }
    }

    fn prepare(self, paths: &Paths) -> Result<Box<Call<'_>>> {
        let file = |flags| -> Result<(OwnedFd, Box<cases::Buffer>)> {
            Ok((
                cases::opened(&paths.file, flags | OFlag::O_DIRECT)?,
                cases::buffer(),
            ))
        };
        Ok(match self {
            Self::Sequential => {
                let (file, mut buffer) = file(OFlag::O_RDONLY)?;
                Box::new(move |i| pread(&file, &mut buffer.0[..LARGE], at(i, LARGE)) == Ok(LARGE))
            }
            Self::Random => {
                let (file, mut buffer) = file(OFlag::O_RDONLY)?;
                Box::new(move |i| pread(&file, &mut buffer.0[..SMALL], at(spread(i), SMALL)) == Ok(SMALL))
            }
            Self::Write => {
                let (file, buffer) = file(OFlag::O_WRONLY)?;
                Box::new(move |i| pwrite(&file, &buffer.0[..SMALL], at(spread(i), SMALL)) == Ok(SMALL))
            }
            Self::Single(case) => case.prepare(paths)?,
            Self::Create => Box::new(|_| {
                let made = cases::opened(&paths.made, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY);
                made.is_ok_and(|file| close(file).is_ok())
                    && nix::unistd::unlink(paths.made.as_c_str()).is_ok()
            }),
        })
    }
}

/// The offset of a block of the file.
fn at(block: usize, bytes: usize) -> i64 {
    (block % (tree::FILE_BYTES / bytes) * bytes) as i64
}

fn spread(i: usize) -> usize {
    (i as u64).wrapping_mul(abi::HASH_MULTIPLIER) as usize >> 32
}

/// Serves `tree`, with handlers attached or not, until standard input ends. It publishes nothing to them: what
/// the programs cost is all that differs.
pub fn serve(attach: bool, tree: &Path, mountpoint: &Path) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).clamp(2, 8);
    if !attach {
        let options = session::MountOptions {
            passthrough: false,
            ..session::MountOptions::default()
        };
        let session = Session::builder(tree, mountpoint)
            .options(options)
            .handlers(false)
            .require_module(true)
            .threads(threads);
        return serve_until_end(session.mount()?);
    }
    let stack = StackOptions {
        passthrough: false,
        ..StackOptions::default()
    };
    let options = MountOptions {
        fsname: "trivial".into(),
        require_module: true,
        threads,
        ..MountOptions::default()
    };
    serve_until_end(extfuse::mount(Stack::new(tree, stack)?, mountpoint, &options)?)
}

fn serve_until_end(session: Session<Stack>) -> Result<()> {
    let unmounter = session.unmounter();
    let serving = thread::spawn(move || session.serve());
    party::report_until_end(&"ready", || ())?;
    unmounter.detach()?;
    serving
        .join()
        .map_err(|_| anyhow!("the daemon's thread panicked"))??;
    Ok(())
}

/// A mount in one of the ways, and who serves it.
fn mounted(variant: Variant, tree: &Path, under: &Path) -> Result<(Place, Party)> {
    let path = under.join(variant.name());
    fs::create_dir_all(&path)?;
    let [tree, at] = [tree, &path].map(|path| path.to_str().context("not UTF-8"));
    let mut arguments = vec!["trivial-daemon", tree?, at?];
    if variant == Variant::Trivial {
        arguments.push("--attach");
    }
    let (daemon, _): (Party, String) = Party::start("daemon", &arguments)?;
    Ok((Place::mounted(variant, path)?, daemon))
}

/// Puts the program into the place of every handler.
fn load_everywhere(place: &Place, object: &Path) -> Result<()> {
    let asked = (0..abi::OPCODES as u32).filter(|opcode| !abi::NEVER_ASKED.contains(opcode));
    asked
        .filter_map(abi::opcode_name)
        .try_for_each(|opcode| place.load_handler(opcode, object))
}

/// All cases, both variants in turn, and of each the least: what a round trip costs moves between two mounts by
/// more than a program does, when the scheduler takes another turn.
pub fn run(base: &Path, metric: &str) -> Result<Vec<Row>> {
    let tree = base.join("trivial");
    tree::make(&tree, 0)?;
    let object = base.join("upcall.bpf.o");
    fs::write(&object, UPCALL)?;
    let paths = Paths::new(0)?;
    let mut checked = Vec::new();
    let mut costs = vec![[const { Vec::new() }; VARIANTS.len()]; CASES.len()];
    for _ in 0..ROUNDS {
        for (which, &(variant, label)) in VARIANTS.iter().enumerate() {
            let (place, daemon) = mounted(variant, &tree, &base.join("mnt"))?;
            if variant == Variant::Trivial {
                load_everywhere(&place, &object)?;
            }
            checked.push(Controls::measure(&place)?);
            for (costs, &(case, _)) in costs.iter_mut().zip(CASES) {
                let cost = cost(case, &place, &paths)
                    .with_context(|| format!("case {}, variant {label}", case.name()))?;
                eprintln!("{:15} {label:10} {cost:9.0} {metric}", case.name());
                costs[which].push(cost);
            }
            place.close()?;
            daemon.end()?;
        }
    }
    controls::compare(&checked, metric, false)?;
    let row = |case: Case, label: &str, cost: f64| Row {
        suite: "trivial".into(),
        case: case.name().into(),
        variant: label.into(),
        metric: metric.into(),
        unit: format!("{metric}/call"),
        value: cost.round(),
    };
    Ok(costs
        .iter()
        .zip(CASES)
        .flat_map(|(costs, (case, _))| {
            let labelled = costs.iter().zip(VARIANTS);
            labelled.map(move |(costs, (_, label))| {
                row(*case, label, costs.iter().copied().fold(f64::MAX, f64::min))
            })
        })
        .collect())
}

fn cost(case: Case, place: &Place, paths: &Paths) -> Result<f64> {
    let shape = Shape {
        warm: 50,
        runs: 7,
        calls: 300,
    };
    let mut call = case.prepare(paths)?;
    measure::warm(shape, &mut call)?;
    let before = place.counters()?;
    let cost = measure::cost(shape, &mut call)?;
    let counted = place.counted_since(&before)?;
    let upcalls = counted.of(case.opcode()).upcalls;
    ensure!(
        upcalls >= shape.all_calls(),
        "{upcalls} {} of {} calls came up",
        case.opcode(),
        shape.all_calls()
    );
    let answered = counted.total();
    ensure!(
        answered.answered() + answered.passthru == 0,
        "answered in the kernel: {answered:?}"
    );
    Ok(cost)
}

/// That asking a program is next to nothing beside a round trip.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, "trivial");
    CASES
        .iter()
        .filter_map(|(case, limit)| report::ratio(&rows, case.name(), "trivial", "unattached", (*limit)?))
        .collect()
}
