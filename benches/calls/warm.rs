// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on a warm tree: what all of it costs, and what still goes to the daemon.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::controls::{self, Controls};
use crate::measure;
use crate::mounts::{Counters, Place, Variant};
use crate::programs::Programs;
use crate::report::{self, Aim, Row};
use crate::workloads::{self, READERS, Workload};

/// The variants, and what they are called here.
const VARIANTS: &[(Variant, &str)] = &[
    (Variant::Native, "native"),
    (Variant::Stock0, "stock-0"),
    (Variant::StockInf, "stock-inf"),
    (Variant::Handlers, "coherent"),
];

/// Runs that are measured. One where all is asked each time, which takes an emulator minutes.
fn runs(variant: Variant) -> usize {
    if variant == Variant::Stock0 { 1 } else { 3 }
}

/// All workloads in all variants, in one boot.
pub fn run(base: &Path, metric: &str, smoke: bool) -> Result<Vec<Row>> {
    let tree = base.join("warm");
    workloads::make(&tree).context("cannot make the tree")?;
    let programs = Programs::copy(&base.join("programs"), READERS)?;
    let variants = VARIANTS
        .iter()
        .filter(|(variant, _)| !smoke || variant.is_stock());
    let (mut rows, mut checked) = (Vec::new(), Vec::new());
    let mut outputs: Vec<Vec<u8>> = Vec::new();
    for &(variant, label) in variants {
        let place = Place::new(variant, &tree, &base.join("mnt"), &[])?;
        checked.push(Controls::measure(&place)?);
        for (i, workload) in READERS.iter().enumerate() {
            let shown = || format!("{}, {label}", workload.name);
            let output = programs.output(workload).with_context(shown)?;
            match outputs.get(i) {
                Some(native) => ensure!(*native == output, "{}: other output than native", shown()),
                None => outputs.push(output),
            }
            let (cost, counted) = measured(&programs, workload, &place).with_context(shown)?;
            let upcalls = counted.total().upcalls as f64 / runs(variant) as f64;
            if !smoke {
                eprintln!(
                    "{:15} {label:10} {cost:12.0} {metric} {upcalls:9.1} upcalls {}",
                    workload.name,
                    counted.upcalls()
                );
            }
            let row = |metric: &str, value: f64| Row {
                suite: "warm".into(),
                case: workload.name.into(),
                variant: label.into(),
                metric: metric.into(),
                unit: metric.into(),
                value,
            };
            rows.push([row(metric, cost.round()), row("upcalls", upcalls)]);
        }
        checked.push(Controls::measure(&place)?);
        place.close()?;
    }
    controls::compare(&checked, metric, smoke)?;
    if !smoke {
        again(&tree, base, &programs, rows[0][0].value)?;
    }
    // From variant by variant to case by case; the table does not need it, who reads the file does.
    let cases = READERS.len();
    Ok((0..cases)
        .flat_map(|case| rows.iter().skip(case).step_by(cases).flatten())
        .cloned()
        .collect())
}

/// The median cost, and what was counted in all runs.
fn measured(programs: &Programs, workload: &Workload, place: &Place) -> Result<(f64, Counters)> {
    // What was learnt while it was looked at for its output is used for the first time now.
    // What is left of the mount before goes in the background: its maps, thousands of pages of them.
    thread::sleep(Duration::from_secs(1));
    programs.cost(workload)?;
    let before = place.counters()?;
    let mut costs = (0..runs(place.variant))
        .map(|_| programs.cost(workload))
        .collect::<Result<Vec<f64>>>()?;
    let counted = place.counted_since(&before)?;
    match place.variant {
        Variant::Native => {}
        // Programs that look at nothing cost nothing.
        Variant::Handlers => ensure!(
            counted.total().answered() > workloads::DIRECTORIES as u64,
            "nothing was answered in the kernel"
        ),
        Variant::Stock0 => ensure!(
            counted.total().upcalls > workloads::DIRECTORIES as u64,
            "the daemon was not asked"
        ),
        Variant::StockInf | Variant::Unattached | Variant::Asked | Variant::Trivial => {}
    }
    Ok((measure::median(&mut costs), counted))
}

/// How far the native cost of a whole program may move within a boot.
const DRIFT: f64 = 0.02;

/// The control: the first workload costs natively in the end what it did in the beginning.
fn again(tree: &Path, base: &Path, programs: &Programs, first: f64) -> Result<()> {
    let place = Place::new(Variant::Native, tree, &base.join("mnt"), &[])?;
    let (cost, _) = measured(programs, &READERS[0], &place)?;
    ensure!(
        (cost - first).abs() <= DRIFT * first,
        "{} costs {cost:.0} natively in the end, and {first:.0} in the beginning",
        READERS[0].name
    );
    eprintln!("control: {} again, natively: {cost:.0}", READERS[0].name);
    place.close()
}

/// What a warm tree is meant to cost, and that it is silent.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, "warm");
    let ratios = ["find", "ls-lR", "git-status", "grep-r", "cat"]
        .into_iter()
        .filter_map(|case| report::ratio(&rows, case, "coherent", "native", 1.15));
    let silent = READERS.iter().filter_map(|workload| {
        let upcalls = report::value(&rows, workload.name, "coherent", "upcalls")?;
        Some(Aim {
            text: format!(
                "{}, coherent: {} upcalls, at most 0",
                workload.name,
                report::counted(upcalls)
            ),
            met: upcalls == 0.0,
        })
    });
    ratios.chain(silent).collect()
}
