// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two readers on two processors against one: how much longer a call takes when somebody else makes the same
//! one at the same time.
//!
//! In time, and as a ratio. A guest that counts instructions runs its processors in turns of millions of
//! instructions each: two readers never meet there, and what they cost each other is no instruction anyway,
//! but a cache line that goes to and fro.

use std::fs;
use std::hint::spin_loop;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::stat::stat;
use nix::unistd::{Pid, getpid};

use crate::mounts::{COHERENT_VARIANTS, Place, Variant};
use crate::report::Row;
use crate::tree::{self, c_path};

const READERS: usize = 2;
/// How long a round takes, about: the machine has other things to do, and many short rounds find times when
/// it has not.
const ROUND: f64 = 500_000.0;
const ROUNDS: usize = 400;
/// How much longer the control may take.
const CONTROL: f64 = 1.25;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// The control: nothing is shared.
    Getpid,
    /// Both look at one file.
    Same,
    /// Each looks at its own, in its own directory.
    Apart,
}

const CASES: &[(Case, &str)] = &[
    (Case::Getpid, "getpid"),
    (Case::Same, "stat, one file"),
    (Case::Apart, "stat, two files"),
];

type Call = dyn Fn() -> bool + Send;

fn call(case: Case, reader: usize) -> Result<Box<Call>> {
    let of = match case {
        Case::Getpid => {
            let pid = getpid();
            return Ok(Box::new(move || getpid() == pid));
        }
        Case::Same => 0,
        Case::Apart => reader,
    };
    let path = c_path(Path::new(&file(of)))?;
    Ok(Box::new(move || stat(path.as_c_str()).is_ok()))
}

fn file(reader: usize) -> String {
    format!("{reader}/file")
}

/// The processors that we may use, as many as there are readers at most.
fn processors() -> Result<Vec<usize>> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count())
        .filter(|cpu| ours.is_set(*cpu).unwrap_or(false))
        .take(READERS)
        .collect())
}

/// Until all readers are here. They do not sleep: they are to go on at the same time.
fn meet(arrived: &AtomicUsize, round: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    while arrived.load(Ordering::Acquire) < (round + 1) * READERS {
        spin_loop();
    }
}

/// The shortest time of a call, in ns: alone, and beside the other.
#[derive(Clone, Copy, Debug)]
struct Times {
    alone: f64,
    beside: f64,
}

impl Times {
    fn ratio(self) -> f64 {
        self.beside / self.alone
    }
}

struct Meeting {
    /// Before each turn; who waits leaves the machine to the other.
    turns: Barrier,
    arrived: AtomicUsize,
}

/// One reader's rounds: in turns each alone, and both.
fn read(
    cpu: usize,
    calls: usize,
    rounds: usize,
    call: &Call,
    reader: usize,
    meeting: &Meeting,
) -> Result<Times> {
    let mut only = CpuSet::new();
    // Whatever happens here, the other one waits.
    let settled = only
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    let mut failed = 0usize;
    let mut time = || {
        let start = Instant::now();
        for _ in 0..calls {
            failed += usize::from(!call());
        }
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let mut times = Times {
        alone: f64::MAX,
        beside: f64::MAX,
    };
    time();
    for round in 0..rounds {
        for turn in 0..READERS {
            meeting.turns.wait();
            if turn == reader {
                times.alone = times.alone.min(time());
            }
        }
        meeting.turns.wait();
        meet(&meeting.arrived, round);
        times.beside = times.beside.min(time());
    }
    settled.context("a reader has no processor of its own")?;
    ensure!(failed == 0, "{failed} calls failed");
    Ok(times)
}

/// Both readers' times, and their mean.
fn times(case: Case, cpus: &[usize], calls: usize, rounds: usize) -> Result<Times> {
    let meeting = Meeting {
        turns: Barrier::new(READERS),
        arrived: AtomicUsize::new(0),
    };
    let made = (0..READERS)
        .map(|reader| call(case, reader))
        .collect::<Result<Vec<_>>>()?;
    let both: Vec<Times> = thread::scope(|scope| {
        let meeting = &meeting;
        let readers: Vec<_> = made
            .into_iter()
            .zip(cpus)
            .enumerate()
            .map(|(reader, (call, &cpu))| {
                scope.spawn(move || read(cpu, calls, rounds, &*call, reader, meeting))
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
            .collect::<Result<_>>()
    })?;
    let mean = |of: fn(&Times) -> f64| both.iter().map(of).sum::<f64>() / READERS as f64;
    Ok(Times {
        alone: mean(|times| times.alone),
        beside: mean(|times| times.beside),
    })
}

/// All cases in all variants, in one boot; rows ordered by case.
pub fn run(base: &Path, smoke: bool) -> Result<Vec<Row>> {
    let cpus = processors()?;
    if cpus.len() < READERS {
        ensure!(smoke, "this takes {READERS} processors");
        eprintln!("cpus: not tried, as there are no {READERS} processors");
        return Ok(Vec::new());
    }
    let tree = base.join("cpus");
    tree::make(&tree, 0)?;
    for reader in 0..READERS {
        let path = tree.join(file(reader));
        fs::create_dir_all(path.parent().context("no parent")?)?;
        fs::write(path, b"file")?;
    }
    let variants: Vec<_> = COHERENT_VARIANTS
        .iter()
        .filter(|(variant, _)| !smoke || variant.is_stock())
        .collect();
    let mut measured = Vec::new();
    for &&(variant, label) in &variants {
        let place = Place::new(variant, &tree, &base.join("mnt"), &[])?;
        let mut rows = Vec::new();
        for &(case, name) in CASES {
            let once = times(case, &cpus, 10, 3)?.alone;
            let calls = ((ROUND / once) as usize).max(1);
            let rounds = if smoke { 3 } else { ROUNDS };
            let before = place.counters()?;
            let times = times(case, &cpus, calls, rounds)?;
            let counted = place.counted_since(&before)?.total();
            let shown = format!("{name}, {label}");
            eprintln!(
                "{shown:28} {:8.0} ns alone, {:8.0} beside another: {:.3}, {} upcalls",
                times.alone,
                times.beside,
                times.ratio(),
                counted.upcalls
            );
            ensure!(
                smoke || case != Case::Getpid || times.ratio() <= CONTROL,
                "getpid takes {:.2} as long beside another: the machine is too busy",
                times.ratio()
            );
            ensure!(
                variant != Variant::Handlers || counted.upcalls == 0,
                "{shown}: {} upcalls of what is known",
                counted.upcalls
            );
            let row = |metric: &str, value: f64| Row {
                suite: "cpus".into(),
                case: name.into(),
                variant: label.into(),
                metric: metric.into(),
                unit: metric.into(),
                value,
            };
            rows.push([
                row("percent of alone", (100.0 * times.ratio()).round()),
                row("alone", times.alone.round()),
            ]);
        }
        place.close()?;
        measured.push(rows);
    }
    Ok((0..CASES.len())
        .flat_map(|case| measured.iter().flat_map(move |rows| rows[case].clone()))
        .collect())
}
