// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a system call costs on extfuse, on stock FUSE and on the file system below: in instructions,
//! and in questions to the daemon. `scripts/bench` runs it in the guest, where the clock counts
//! instructions.

mod cases;
mod controls;
mod cpus;
mod demo;
mod measure;
mod mounts;
mod only;
#[path = "../../tests/common/pages.rs"]
mod pages;
mod party;
mod programs;
mod remote;
mod report;
mod requests;
mod scale;
mod sections;
mod storm;
mod tree;
mod trivial;
mod walk;
mod warm;
mod workloads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::builder::{RangedU64ValueParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};

use cases::Case;
use controls::Controls;
use mounts::{Place, STOCK_VARIANTS, VARIANTS};
use only::Only;
use report::Row;
use sections::Way;
use sections::frame::Address;
use storm::daemon::{Layout, Teller};
use tree::Paths;

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// stat, fstat, stat-deep, stat-10k, missing, getxattr-absent, open-close
    Meta,
    /// pread-4k, pread-128k, pwrite-4k, pread-4k-direct
    Data,
    /// find, ls-lR, git-status, grep-r, stat, cat: whole programs on a warm tree
    Warm,
    /// Single calls, whole files and listings, against the file system below
    Walk,
    /// Hits with four million cached entries against a thousand, and the memory an entry takes
    Scale,
    /// A program on every opcode that sends everything up, against none
    Trivial,
    /// Two readers on two processors against one, in time
    Cpus,
    /// A payload from a server to the application and back: copied, spliced, by sections
    Sections,
    /// 100 000 names invalidated while two readers look at them: by their daemon, and by another client of their server
    Storm,
    /// A directory that a server has: extfuse, sshfs and NFS, and the directory itself
    Remote,
    /// untar, find, git status, make...: what of them comes up to the daemon, by opcode
    Workloads,
}

#[derive(Debug, Parser)]
#[command(about, version)]
struct Arguments {
    /// Given by `cargo bench`.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Name the suites
    List,
    /// Measure, and print JSON
    Run {
        #[arg(value_enum, required = true)]
        suites: Vec<Suite>,
        /// Only cases of this name, in which * stands for anything; may be repeated. Of `meta`, `data`, `sections` and `remote`; of others: all
        #[arg(long, value_name = "CASE")]
        only: Vec<String>,
        /// Where the tree is made and the mounts appear
        #[arg(long)]
        base: PathBuf,
        /// How many names `storm` changes. Default: 100000
        #[arg(long, value_name = "N", value_parser = at_least_one())]
        names: Option<usize>,
        /// A few calls in nanoseconds, without the module: to try the benchmark itself
        #[arg(long)]
        smoke: bool,
    },
    /// Time lookups in maps on this machine, and add the figures to a JSON file
    Lookups {
        #[arg(long)]
        append: PathBuf,
    },
    /// Print a JSON file as tables
    Table {
        file: PathBuf,
        #[arg(long)]
        markdown: bool,
        /// This one's only
        #[arg(long, value_enum)]
        suite: Option<Suite>,
    },
    /// Put the suites of a JSON file into another one, in the place of what it has of them
    Merge {
        file: PathBuf,
        #[arg(long)]
        into: PathBuf,
    },
    /// Compare one directory on native, stock FUSE and extfuse, for people
    Demo {
        /// The directory: it is copied below `base` first
        directory: PathBuf,
        #[arg(long)]
        base: PathBuf,
        #[arg(long)]
        colour: bool,
        /// In nanoseconds and without the module: to try the demo itself
        #[arg(long)]
        smoke: bool,
    },
    /// The server of the suite `sections`
    #[command(hide = true)]
    SectionsServer { socket: PathBuf },
    /// The daemon of the suite `sections`
    #[command(hide = true)]
    SectionsDaemon {
        #[arg(value_enum)]
        way: Way,
        server: Address,
        mountpoint: PathBuf,
        #[arg(long)]
        stock: bool,
    },
    /// The daemon of the suite `trivial`
    #[command(hide = true)]
    TrivialDaemon {
        tree: PathBuf,
        mountpoint: PathBuf,
        #[arg(long)]
        attach: bool,
    },
    /// The daemon of the suite `storm`
    #[command(hide = true)]
    StormDaemon {
        #[arg(value_enum)]
        teller: Teller,
        names: usize,
        directories: usize,
        mountpoint: PathBuf,
    },
    /// The other client of the suite `storm`
    #[command(hide = true)]
    StormChanger {
        server: extfuse::remote::Address,
        token: PathBuf,
        names: usize,
        directories: usize,
    },
}

fn at_least_one() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::new().range(1..)
}

fn main() -> ExitCode {
    match act(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calls: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<()> {
    match action {
        Action::List => {
            for suite in Suite::value_variants() {
                let Some(value) = suite.to_possible_value() else {
                    continue;
                };
                println!(
                    "{:9} {}",
                    value.get_name(),
                    value.get_help().map(ToString::to_string).unwrap_or_default()
                );
            }
            Ok(())
        }
        Action::Run {
            suites,
            only,
            base,
            names,
            smoke,
        } => {
            let rows = run(&suites, Only::new(only), base, names, smoke)?;
            ensure!(!rows.is_empty(), "no such case");
            print!("{}", report::json(&rows)?);
            Ok(())
        }
        Action::Lookups { append } => {
            let mut rows = read(&append)?;
            rows.append(&mut scale::lookups()?);
            fs::write(&append, report::json(&rows)?)
                .with_context(|| format!("cannot write {}", append.display()))
        }
        Action::Table {
            file,
            markdown,
            suite,
        } => {
            let mut rows = read(&file)?;
            if let Some(suite) = suite.and_then(|suite| suite.to_possible_value()) {
                rows.retain(|row| row.suite == suite.get_name());
            }
            table(&rows, markdown)
        }
        Action::Merge { file, into } => {
            let rows = report::merged(read(&into)?, read(&file)?);
            fs::write(&into, report::json(&rows)?).with_context(|| format!("cannot write {}", into.display()))
        }
        Action::Demo {
            directory,
            base,
            colour,
            smoke,
        } => demo::run(&directory, &base, colour, smoke),
        Action::SectionsServer { socket } => sections::server::run(&socket),
        Action::SectionsDaemon {
            way,
            server,
            mountpoint,
            stock,
        } => sections::daemon::run(way, &server, &mountpoint, stock),
        Action::TrivialDaemon {
            tree,
            mountpoint,
            attach,
        } => trivial::serve(attach, &tree, &mountpoint),
        Action::StormDaemon {
            teller,
            names,
            directories,
            mountpoint,
        } => {
            let layout = Layout { names, directories };
            storm::daemon::run(teller, layout, &mountpoint)
        }
        Action::StormChanger {
            server,
            token,
            names,
            directories,
        } => {
            let layout = Layout { names, directories };
            storm::changer::run(server, &token, layout)
        }
    }
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let json = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("cannot understand {}", file.display()))
}

fn table(rows: &[Row], markdown: bool) -> Result<()> {
    print!(
        "{}",
        if markdown {
            report::markdown(rows)
        } else {
            report::text(rows)
        }
    );
    let bullet = if markdown { "- " } else { "" };
    for crossing in sections::findings::crossings(rows) {
        println!("{bullet}{crossing}");
    }
    for comparison in storm::comparisons(rows) {
        println!("{bullet}{comparison}");
    }
    for opcodes in requests::opcodes(rows) {
        println!("{bullet}{opcodes}");
    }
    let aims = [
        report::aims(rows),
        warm::aims(rows),
        requests::aims(rows),
        walk::aims(rows),
        scale::aims(rows),
        trivial::aims(rows),
        sections::findings::aims(rows),
        storm::aims(rows),
        remote::aims(rows),
    ];
    for aim in aims.into_iter().flatten() {
        let verdict = if aim.met { "met" } else { "MISSED" };
        println!("{bullet}{verdict}: {}", aim.text);
    }
    Ok(())
}

/// Instructions, or what stands for them where the clock doesn't count any.
fn metric(smoke: bool) -> Result<&'static str> {
    if smoke {
        return Ok("nanoseconds");
    }
    let message = "this clock does not count instructions: run it by scripts/bench, or with --smoke";
    ensure!(measure::clock_counts_instructions(), message);
    Ok("instructions")
}

fn run(suites: &[Suite], only: Only, base: PathBuf, names: Option<usize>, smoke: bool) -> Result<Vec<Row>> {
    // Upcalls are the same by whatever clock, and two processors take one that tells time.
    let by_any_clock = |suite: &Suite| matches!(suite, Suite::Cpus | Suite::Workloads);
    let metric = metric(smoke || suites.iter().all(by_any_clock))?;
    let bench = Bench {
        base,
        smoke,
        metric,
        many: if smoke { 200 } else { cases::MANY },
    };
    let mut rows = Vec::new();
    let wanted = |all: &[Case]| -> Vec<Case> {
        all.iter()
            .copied()
            .filter(|case| only.takes(case.name()))
            .collect()
    };
    let plain: Vec<(&str, Vec<Case>)> = suites
        .iter()
        .filter_map(|suite| match suite {
            Suite::Meta => Some(("meta", wanted(cases::META))),
            Suite::Data => Some(("data", wanted(cases::DATA))),
            _ => None,
        })
        .filter(|(_, cases)| !cases.is_empty())
        .collect();
    if !plain.is_empty() {
        rows.append(&mut bench.cases(&plain)?);
    }
    if suites.contains(&Suite::Warm) {
        rows.append(&mut warm::run(&bench.base, metric, smoke)?);
    }
    if suites.contains(&Suite::Walk) {
        rows.append(&mut walk::run(&bench.base, metric, smoke)?);
    }
    if suites.contains(&Suite::Scale) {
        rows.append(&mut scale::run(&bench.base, metric)?);
    }
    if suites.contains(&Suite::Trivial) {
        rows.append(&mut trivial::run(&bench.base, metric)?);
    }
    if suites.contains(&Suite::Cpus) {
        rows.append(&mut cpus::run(&bench.base, smoke)?);
    }
    if suites.contains(&Suite::Sections) {
        rows.append(&mut sections::run(&bench.base, metric, &only, smoke)?);
    }
    if suites.contains(&Suite::Remote) {
        rows.append(&mut remote::run(&bench.base, metric, &only, smoke)?);
    }
    if suites.contains(&Suite::Storm) {
        rows.append(&mut storm::run(&bench.base, metric, names, smoke)?);
    }
    if suites.contains(&Suite::Workloads) {
        rows.append(&mut requests::run(&bench.base, smoke)?);
    }
    Ok(rows)
}

struct Bench {
    base: PathBuf,
    smoke: bool,
    metric: &'static str,
    many: usize,
}

impl Bench {
    /// All variants, one after the other, over the same tree; rows ordered by suite and case.
    fn cases(&self, suites: &[(&'static str, Vec<Case>)]) -> Result<Vec<Row>> {
        let tree = self.base.join("tree");
        tree::make(&tree, self.many)?;
        let variants = if self.smoke { STOCK_VARIANTS } else { VARIANTS };
        let mut measured: Vec<Vec<Row>> = Vec::new();
        let mut checked: Vec<Controls> = Vec::new();
        for &variant in variants {
            let place = Place::new(variant, &tree, &self.base.join("mnt"), &[])?;
            let mut rows = Vec::new();
            checked.push(Controls::measure(&place)?);
            for (suite, cases) in suites {
                for &case in cases {
                    let (cost, upcalls) = self
                        .case(case, &place)
                        .with_context(|| format!("case {}, variant {}", case.name(), variant.name()))?;
                    if !self.smoke {
                        eprintln!(
                            "{:15} {:10} {cost:9.0} {} {upcalls:7.3} upcalls",
                            case.name(),
                            variant.name(),
                            self.metric
                        );
                    }
                    let row = |metric: &str, value: f64| Row {
                        suite: (*suite).into(),
                        case: case.name().into(),
                        variant: variant.name().into(),
                        metric: metric.into(),
                        unit: format!("{metric}/call"),
                        value,
                    };
                    rows.push([row(self.metric, cost.round()), row("upcalls", upcalls)]);
                }
            }
            checked.push(Controls::measure(&place)?);
            place.close()?;
            measured.push(rows.into_iter().flatten().collect());
        }
        controls::compare(&checked, self.metric, self.smoke)?;
        // From variant by variant to case by case.
        let cases = measured[0].len() / 2;
        Ok((0..cases)
            .flat_map(|i| {
                measured
                    .iter()
                    .flat_map(move |rows| rows[2 * i..2 * i + 2].to_vec())
            })
            .collect())
    }

    /// Cost and upcalls of one call.
    fn case(&self, case: Case, place: &Place) -> Result<(f64, f64)> {
        let shape = case.shape(self.smoke, self.many);
        let paths = Paths::new(self.many)?;
        let mut call = case.prepare(&paths)?;
        measure::warm(shape, &mut call)?;
        let before = place.counters()?;
        let cost = measure::cost(shape, &mut call)?;
        let counted = place.counted_since(&before)?;
        case.check(place.variant, &counted, shape)?;
        let upcalls = counted.total().upcalls as f64 / shape.all_calls() as f64;
        Ok((cost, (upcalls * 1000.0).round() / 1000.0))
    }
}
