// SPDX-License-Identifier: MIT OR Apache-2.0
//! An invalidation storm: what every name of a large tree stands for changes, and the kernel is told of each,
//! while two readers look at all of them.

pub mod changer;
pub mod daemon;
mod served;
mod synthetic;
mod system_calls;

use std::ffi::CString;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::stat::{FileStat, stat};

use crate::report::{self, Aim, Row};
use crate::tree::c_path;
use daemon::{Answer, BLOCK, Layout, Storm, Teller, now};
use served::Served;
use synthetic::Synthetic;

const READERS: usize = 2;
/// What nobody counts is asked so many at a time: as many as an `extfuse mount` has threads.
const AT_A_TIME: usize = 8;
/// Readers go through the names in steps of this prime, not in the order of the storm.
const STEP: usize = 7919;

/// Among which the names are spread.
const DIRECTORIES: usize = 100;

/// The longest that the control takes, in ns: a stall in it needs no more.
const COMPUTING: u64 = 500_000_000;

/// Case, metric, unit, value.
type Figure = (&'static str, &'static str, String, f64);

/// In the order of the table.
const CASES: &[&str] = &[
    "warm",
    CHANGED,
    STORM,
    "telling",
    "change",
    "stat-during",
    "looks",
    "stall",
    "stall-computing",
    "again",
    "system-calls",
    "calls-receiving",
    "calls-sending",
    "calls-handing-over",
    OTHER_CALLS,
];
const SUITE: &str = "storm";
const CHANGED: &str = "names";
const STORM: &str = "storm";
const OTHER_CALLS: &str = "calls-others";

/// Names of a storm, unless somebody wants another number.
const NAMES: usize = 100_000;
/// The same where it is only tried.
const FEW_NAMES: usize = 500;

/// Whose names they are, and how the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// A synthetic file system's, which changes them itself.
    Synthetic(Teller),
    /// A server's, whose directory is mounted with the module and leases; another client changes them.
    Served,
}

const VARIANTS: &[Variant] = &[
    Variant::Synthetic(Teller::StockNotify),
    Variant::Synthetic(Teller::Coherent),
    Variant::Served,
];

/// Those that need no module.
const STOCK_VARIANTS: &[Variant] = &[Variant::Synthetic(Teller::StockNotify), Variant::Served];

impl Variant {
    /// The name in tables and in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Synthetic(teller) => teller.name(),
            Self::Served => "served",
        }
    }
}

/// How often a name was changed, by what it shows; None if it never was that.
type Changes = fn(Layout, usize, &FileStat) -> Option<u64>;

/// Names that are seen somewhere, and may be changed.
trait Names {
    /// Where they are seen.
    fn root(&self) -> PathBuf;
    fn changes(&self) -> Changes;
    /// LOOKUP and GETATTR that come up to the daemon while somebody looks.
    fn upcalls(&mut self, look: &mut dyn FnMut() -> Result<()>) -> Result<u64>;
    /// Changes each of them, and comes back when the kernel has been told of all.
    fn storm(&mut self) -> Result<Storm>;
    /// What is asked of storms that nobody sees: the last ones, as nobody looks again.
    fn unseen(&mut self, metric: &'static str) -> Result<Vec<Figure>>;
    fn end(self: Box<Self>) -> Result<()>;
}

/// Does it for 0, 1, ... of so many, at the same time.
fn at_a_time<T: Send>(many: usize, what: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let what = &what;
        let threads: Vec<_> = (0..many)
            .map(|number| scope.spawn(move || what(number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect()
    })
}

fn succeeded(answer: Answer) -> Result<Answer> {
    match answer.failure {
        Some(failure) => bail!("who changes: {failure}"),
        None => Ok(answer),
    }
}

/// What a reader has seen.
#[derive(Debug)]
struct Seen {
    stats: u64,
    /// The longest stat.
    stall: u64,
    /// When the last stat of a name began that still showed what it stood for before the change.
    old: Vec<u64>,
}

/// What a storm goes over.
struct Mount<'a> {
    variant: Variant,
    layout: Layout,
    paths: &'a [CString],
    names: Box<dyn Names>,
    /// Storms so far.
    storms: u64,
}

impl Mount<'_> {
    /// Looks at every name once, at so many at a time; each has to stand for what it should. What it takes, and the
    /// upcalls.
    fn look(&mut self, lookers: usize) -> Result<(u64, u64)> {
        let (layout, paths, storms) = (self.layout, self.paths, self.storms);
        let changes = self.names.changes();
        // Those that are looked at together are in different directories.
        let look = |first: usize| -> Result<()> {
            for name in (first..paths.len()).step_by(lookers) {
                let path = &paths[name];
                let shown = stat(path.as_c_str()).with_context(|| format!("{path:?}"))?;
                let shown = changes(layout, name, &shown);
                ensure!(
                    shown == Some(storms),
                    "{path:?} shows {shown:?} changes instead of {storms}: stale"
                );
            }
            Ok(())
        };
        let mut took = 0;
        let upcalls = self.names.upcalls(&mut || {
            let began = now();
            match lookers {
                1 => look(0)?,
                _ => drop(at_a_time(lookers, look)?),
            }
            took = now() - began;
            Ok(())
        })?;
        Ok((took, upcalls))
    }

    /// Two readers while `what` happens. Each has looked once before that begins.
    fn read_during<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Vec<Seen>)> {
        let (layout, paths, storms) = (self.layout, self.paths, self.storms);
        let changes = self.names.changes();
        let stop = AtomicBool::new(false);
        // Nothing is ever sent: it ends when nobody has the other end any more.
        let (preparing, prepared) = channel::<()>();
        thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    let first = reader * layout.names / READERS;
                    let (stop, preparing) = (&stop, preparing.clone());
                    scope.spawn(move || read(layout, changes, paths, storms, first, preparing, stop))
                })
                .collect();
            drop(preparing);
            let _ = prepared.recv();
            let done = what(self);
            stop.store(true, Ordering::Relaxed);
            let seen = readers
                .into_iter()
                .map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
                .collect::<Result<_>>()?;
            Ok((done?, seen))
        })
    }

    fn say(&self, smoke: bool, what: &str, took: u64) {
        if !smoke {
            eprintln!("{what:8} {:12} {took:13} ns", self.variant.name());
        }
    }

    /// Every figure: case, metric, unit, value.
    fn figures(&mut self, metric: &'static str, smoke: bool) -> Result<Vec<Figure>> {
        let names = self.layout.names as u64;
        let (took, cold) = self.look(AT_A_TIME)?;
        self.say(smoke, "cold", took);
        let known = cold >= names;
        ensure!(
            known,
            "{cold} upcalls for {names} names that nobody had asked for"
        );
        // What was learnt is used for the first time.
        self.look(1)?;
        let (warm, silent) = self.look(1)?;
        self.say(smoke, "warm", warm);
        // Of what a server has stock FUSE keeps nothing.
        let keeps = !smoke || self.variant != Variant::Served;
        ensure!(!keeps || silent == 0, "{silent} upcalls for names that are known");

        let (storm, seen) = self.storm()?;
        let total = storm.ended - storm.began;
        self.say(smoke, "storm", total);
        let stats: u64 = seen.iter().map(|reader| reader.stats).sum();
        ensure!(stats > 0, "nobody has read anything");
        let (again, asked) = self.look(1)?;
        self.say(smoke, "again", again);
        // The control: somebody uses the processor as long, and tells nobody anything.
        let ((), computing) = self.read_during(|_| {
            compute(total.min(COMPUTING));
            Ok(())
        })?;
        let each = |sum: u64, of: u64| sum as f64 / of as f64;
        let per = |what: &str| format!("{metric}/{what}");
        let in_all = || String::from("in all");
        let mut figures = vec![
            ("warm", metric, per("stat"), each(warm, names)),
            (CHANGED, "names", "in all".into(), names as f64),
            (STORM, metric, metric.into(), total as f64),
            ("looks", "stats", in_all(), stats as f64),
            ("stall", metric, metric.into(), stall(&seen)),
            ("stall-computing", metric, metric.into(), stall(&computing)),
            ("again", metric, per("stat"), each(again, names)),
            ("again", "upcalls", "upcalls/stat".into(), each(asked, names)),
        ];
        if let Some(telling) = storm.telling {
            let during = each(total.saturating_sub(telling), stats);
            figures.push(("telling", metric, per("name"), each(telling, names)));
            figures.push(("stat-during", metric, per("stat"), during));
        }
        if !smoke {
            figures.append(&mut self.names.unseen(metric)?);
        }
        Ok(figures)
    }

    /// A storm with readers. Nothing that the kernel had been told of was seen as it was before.
    fn storm(&mut self) -> Result<(Storm, Vec<Seen>)> {
        let (storm, seen) = self.read_during(|mount| mount.names.storm())?;
        self.storms += 1;
        let mut stale = Vec::new();
        for reader in &seen {
            for (name, old) in reader.old.iter().enumerate() {
                let told = storm.told.get(name / BLOCK).context("the storm was incomplete")?;
                if old >= told {
                    stale.push(&self.paths[name]);
                }
            }
        }
        ensure!(
            stale.is_empty(),
            "{} names were stale after the kernel had been told, {:?} among them",
            stale.len(),
            stale[0]
        );
        Ok((storm, seen))
    }
}

fn read(
    layout: Layout,
    changes: Changes,
    paths: &[CString],
    storms: u64,
    first: usize,
    preparing: Sender<()>,
    stop: &AtomicBool,
) -> Result<Seen> {
    let mut preparing = Some(preparing);
    let mut seen = Seen {
        stats: 0,
        stall: 0,
        old: vec![0; paths.len()],
    };
    let mut name = first;
    while !stop.load(Ordering::Relaxed) {
        let path = &paths[name];
        let began = now();
        let shown = stat(path.as_c_str()).with_context(|| format!("{path:?}"))?;
        seen.stall = seen.stall.max(now() - began);
        seen.stats += 1;
        drop(preparing.take());
        let shown = changes(layout, name, &shown);
        if shown == Some(storms) {
            seen.old[name] = began;
        } else {
            ensure!(
                shown == Some(storms + 1),
                "{path:?} shows {shown:?} changes in storm {storms}, which it never was"
            );
        }
        name = (name + STEP) % paths.len();
    }
    Ok(seen)
}

/// Uses the processor for so long.
fn compute(nanoseconds: u64) {
    let began = now();
    while now() - began < nanoseconds {
        for i in 0..1000 {
            black_box(i);
        }
    }
}

fn stall(seen: &[Seen]) -> f64 {
    seen.iter().map(|reader| reader.stall).max().unwrap_or_default() as f64
}

/// All rows, ordered by case.
pub fn run(base: &Path, metric: &'static str, names: Option<usize>, smoke: bool) -> Result<Vec<Row>> {
    let variants = if smoke { STOCK_VARIANTS } else { VARIANTS };
    let usual = if smoke { FEW_NAMES } else { NAMES };
    let layout = Layout {
        names: names.unwrap_or(usual),
        directories: DIRECTORIES,
    };
    let mut rows = Vec::new();
    for variant in variants {
        let measured = measure(base, *variant, layout, metric, smoke);
        rows.append(&mut measured.with_context(|| variant.name())?);
    }
    let of = |case: &'static str| rows.iter().filter(move |row: &&Row| row.case == case);
    Ok(CASES.iter().copied().flat_map(of).cloned().collect())
}

fn measure(
    base: &Path,
    variant: Variant,
    layout: Layout,
    metric: &'static str,
    smoke: bool,
) -> Result<Vec<Row>> {
    let base = base.join("storm").join(variant.name());
    let names: Box<dyn Names> = match variant {
        Variant::Synthetic(teller) => Box::new(Synthetic::start(teller, &base, layout)?),
        Variant::Served => Box::new(Served::start(&base, layout, smoke)?),
    };
    std::env::set_current_dir(names.root())?;
    let paths: Vec<CString> = (0..layout.names)
        .map(|name| c_path(Path::new(&layout.path(name))))
        .collect::<Result<_>>()?;
    let mut mount = Mount {
        variant,
        layout,
        paths: &paths,
        names,
        storms: 0,
    };
    let rows = mount.figures(metric, smoke).map(|figures| {
        figures
            .into_iter()
            .map(|(case, metric, unit, value)| Row {
                suite: SUITE.into(),
                case: case.into(),
                variant: variant.name().into(),
                metric: metric.into(),
                value: match metric {
                    "upcalls" | "system calls" => (value * 1000.0).round() / 1000.0,
                    _ => value.round(),
                },
                unit,
            })
            .collect()
    });
    // A mount that is somebody's current directory could not be unmounted.
    std::env::set_current_dir("/")?;
    mount.names.end()?;
    rows
}

/// What a storm costs beside one that stock FUSE is told of.
pub fn comparisons(rows: &[Row]) -> Vec<String> {
    let rows = report::of_suite(rows, SUITE);
    let stock = VARIANTS[0].name();
    let compared = [
        (STORM, " a name", true),
        ("telling", " a name", false),
        ("stall", "", false),
    ];
    let compare = |(case, what, divided): (&str, &str, bool)| -> Vec<String> {
        let cost = |variant| {
            let names = report::value(&rows, CHANGED, variant, "names")?;
            let cost = report::value(&rows, case, variant, "instructions")?;
            Some(if divided { cost / names } else { cost })
        };
        let others = VARIANTS[1..].iter().map(|variant| variant.name());
        let ratios = others.filter_map(|variant| Some((variant, cost(variant)? / cost(stock)?)));
        ratios
            .map(|(variant, ratio)| format!("{case}{what}, {variant}: {ratio:.3} of {stock}"))
            .collect()
    };
    compared.into_iter().flat_map(compare).collect()
}

/// What is meant to be.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, SUITE);
    let served = Variant::Served.name();
    // The lease is kept all the time.
    let limit = 0.01;
    report::value(&rows, OTHER_CALLS, served, "system calls")
        .map(|calls| Aim {
            text: format!("{OTHER_CALLS}, {served}: {calls} system calls a name, at most {limit}"),
            met: calls <= limit,
        })
        .into_iter()
        .collect()
}
