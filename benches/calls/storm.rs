// SPDX-License-Identifier: MIT OR Apache-2.0
//! An invalidation storm: what every name of a large tree stands for changes, and the kernel is told of each,
//! while two readers look at all of them.

pub mod daemon;
mod system_calls;

use std::ffi::CString;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use nix::sys::stat::stat;

use crate::mounts::file_system_at;
use crate::party::Party;
use crate::report::Row;
use crate::tree::c_path;
use daemon::{Answer, BLOCK, COUNTED_STORM, COUNTS, Layout, STORM, Storm, Teller, now};

const READERS: usize = 2;
/// Readers go through the names in steps of this prime, not in the order of the storm.
const STEP: usize = 7919;

/// Among which the names are spread.
const DIRECTORIES: usize = 100;

/// The longest that the control takes, in ns: a stall in it needs no more.
const COMPUTING: u64 = 500_000_000;

/// Case, metric, unit, value.
type Figure = (&'static str, &'static str, String, f64);

fn names(smoke: bool) -> usize {
    if smoke { 2_000 } else { 100_000 }
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

/// A daemon, and its tree.
struct Mount<'a> {
    teller: Teller,
    layout: Layout,
    paths: &'a [CString],
    daemon: Party,
    /// Storms so far.
    storms: u64,
}

impl Mount<'_> {
    fn ask(&mut self, line: &str) -> Result<Answer> {
        let answer: Answer = self.daemon.ask_for(line)?;
        match answer.failure {
            Some(failure) => bail!("the daemon: {failure}"),
            None => Ok(answer),
        }
    }

    /// Looks at every name once; it has to stand for what it should. What it takes, and the upcalls.
    fn look(&mut self) -> Result<(u64, u64)> {
        let before = self.ask(COUNTS)?;
        let began = now();
        for (name, path) in self.paths.iter().enumerate() {
            let node = stat(path.as_c_str()).with_context(|| format!("{path:?}"))?.st_ino;
            let right = self.layout.node(name, self.storms);
            ensure!(node == right, "{path:?} is node {node} instead of {right}: stale");
        }
        let took = now() - began;
        let after = self.ask(COUNTS)?;
        let upcalls = |answer: &Answer| answer.lookups + answer.getattrs;
        Ok((took, upcalls(&after) - upcalls(&before)))
    }

    /// Two readers while `what` happens.
    fn read_during<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Vec<Seen>)> {
        let (layout, paths, storms) = (self.layout, self.paths, self.storms);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    let first = reader * layout.names / READERS;
                    let stop = &stop;
                    scope.spawn(move || read(layout, paths, storms, first, stop))
                })
                .collect();
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
            eprintln!("{what:8} {:12} {took:13} ns", self.teller.name());
        }
    }

    /// Every figure: case, metric, unit, value.
    fn figures(&mut self, metric: &'static str, smoke: bool) -> Result<Vec<Figure>> {
        let names = self.layout.names as u64;
        let (took, cold) = self.look()?;
        self.say(smoke, "cold", took);
        let known = cold >= names;
        ensure!(
            known,
            "{cold} upcalls for {names} names that nobody had asked for"
        );
        // What was learnt is used for the first time.
        self.look()?;
        let (warm, silent) = self.look()?;
        self.say(smoke, "warm", warm);
        ensure!(silent == 0, "{silent} upcalls for names that are known");

        let (storm, seen) = self.storm()?;
        let total = storm.ended - storm.began;
        self.say(smoke, "storm", total);
        let stats: u64 = seen.iter().map(|reader| reader.stats).sum();
        ensure!(stats > 0, "nobody has read anything");
        let (again, asked) = self.look()?;
        self.say(smoke, "again", again);
        // The control: somebody uses the processor as long, and tells nobody anything.
        let ((), computing) = self.read_during(|_| {
            compute(total.min(COMPUTING));
            Ok(())
        })?;
        let each = |sum: u64, of: u64| sum as f64 / of as f64;
        let per = |what: &str| format!("{metric}/{what}");
        let during = each(total.saturating_sub(storm.telling), stats);
        let mut figures = vec![
            ("warm", metric, per("stat"), each(warm, names)),
            ("storm", metric, metric.into(), total as f64),
            ("telling", metric, per("name"), each(storm.telling, names)),
            ("stat-during", metric, per("stat"), during),
            ("stall", metric, metric.into(), stall(&seen)),
            ("stall-computing", metric, metric.into(), stall(&computing)),
            ("again", metric, per("stat"), each(again, names)),
            ("again", "upcalls", "upcalls/stat".into(), each(asked, names)),
        ];
        if !smoke {
            // The last one, as nobody looks again.
            let calls = self
                .ask(COUNTED_STORM)?
                .storm
                .and_then(|storm| storm.system_calls);
            let calls = calls.context("nobody has counted")?;
            self.say(smoke, "calls", calls);
            figures.push(("system-calls", "system calls", "in all".into(), calls as f64));
        }
        Ok(figures)
    }

    /// A storm with readers. Nothing that the kernel had been told of was seen as it was before.
    fn storm(&mut self) -> Result<(Storm, Vec<Seen>)> {
        let (answer, seen) = self.read_during(|mount| mount.ask(STORM))?;
        self.storms += 1;
        let storm = answer.storm.context("there was no storm")?;
        for reader in &seen {
            for (name, old) in reader.old.iter().enumerate() {
                let told = storm.told.get(name / BLOCK).context("the storm was incomplete")?;
                ensure!(
                    old < told,
                    "{:?} was stale after the kernel had been told",
                    self.paths[name]
                );
            }
        }
        Ok((storm, seen))
    }
}

fn read(layout: Layout, paths: &[CString], storms: u64, first: usize, stop: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen {
        stats: 0,
        stall: 0,
        old: vec![0; paths.len()],
    };
    let mut name = first;
    while !stop.load(Ordering::Relaxed) {
        let path = &paths[name];
        let began = now();
        let node = stat(path.as_c_str()).with_context(|| format!("{path:?}"))?.st_ino;
        seen.stall = seen.stall.max(now() - began);
        seen.stats += 1;
        if node == layout.node(name, storms) {
            seen.old[name] = began;
        } else {
            ensure!(
                node == layout.node(name, storms + 1),
                "{path:?} is node {node}, which it never was"
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
pub fn run(base: &Path, metric: &'static str, smoke: bool) -> Result<Vec<Row>> {
    let tellers = match smoke {
        true => &[Teller::StockNotify][..],
        false => Teller::value_variants(),
    };
    let layout = Layout {
        names: names(smoke),
        directories: DIRECTORIES,
    };
    let measured: Vec<Vec<Row>> = tellers
        .iter()
        .map(|&teller| measure(base, teller, layout, metric, smoke).with_context(|| teller.name()))
        .collect::<Result<_>>()?;
    let count = measured[0].len();
    Ok((0..count)
        .flat_map(|i| measured.iter().map(move |rows| rows[i].clone()))
        .collect())
}

fn measure(
    base: &Path,
    teller: Teller,
    layout: Layout,
    metric: &'static str,
    smoke: bool,
) -> Result<Vec<Row>> {
    let mountpoint = base.join("storm");
    fs::create_dir_all(&mountpoint)?;
    let numbers = [layout.names, layout.directories].map(|number| number.to_string());
    let arguments = [
        "storm-daemon",
        teller.name(),
        &numbers[0],
        &numbers[1],
        mountpoint.to_str().context("not UTF-8")?,
    ];
    let (daemon, _): (Party, String) = Party::start("daemon", &arguments)?;
    let wanted = match teller {
        Teller::StockNotify => "fuse",
        Teller::Coherent => "extfuse",
    };
    let found = file_system_at(&mountpoint)?.unwrap_or_default();
    ensure!(
        found.split('.').next() == Some(wanted),
        "{found} is mounted instead of {wanted}"
    );
    std::env::set_current_dir(&mountpoint)?;
    let paths: Vec<CString> = (0..layout.names)
        .map(|name| c_path(Path::new(&layout.path(name))))
        .collect::<Result<_>>()?;
    let mut mount = Mount {
        teller,
        layout,
        paths: &paths,
        daemon,
        storms: 0,
    };
    let rows = mount.figures(metric, smoke).map(|figures| {
        figures
            .into_iter()
            .map(|(case, metric, unit, value)| Row {
                suite: "storm".into(),
                case: case.into(),
                variant: teller.name().into(),
                metric: metric.into(),
                unit,
                value: if metric == "upcalls" {
                    (value * 1000.0).round() / 1000.0
                } else {
                    value.round()
                },
            })
            .collect()
    });
    // A mount that is somebody's current directory could not be unmounted.
    std::env::set_current_dir("/")?;
    mount.daemon.end()?;
    rows
}
