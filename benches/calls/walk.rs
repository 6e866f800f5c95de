// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single calls, against the file system below.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::read;

use crate::cases;
use crate::controls::{self, Controls};
use crate::measure::{self, Call, Shape};
use crate::mounts::{COHERENT_VARIANTS, Counters, Place, Variant};
use crate::pages;
use crate::report::{self, Aim, Row};
use crate::tree::{self, Paths, c_path};

/// Files of a directory that are read in turn, or listed.
const FILES: usize = 1000;
/// Bytes of each.
pub const SMALL: usize = 4096;
/// Bytes of entries that libc asks for in one call.
const LISTING: usize = 32 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// One of those of `meta`.
    Single(cases::Case),
    /// Every small file opened, read to its end, closed; a unit is a file.
    CatWarm,
    /// The same without its pages on the mount. The file system below has them.
    CatCold,
    /// A directory opened, listed, closed; a unit is an entry.
    Getdents,
    /// The same, and `lstat` of each entry.
    LsL,
}

const CASES: &[Case] = &[
    Case::Single(cases::Case::Stat),
    Case::Single(cases::Case::StatDeep),
    Case::Single(cases::Case::Missing),
    Case::Single(cases::Case::Fstat),
    Case::Single(cases::Case::OpenClose),
    Case::Single(cases::Case::OpenReadClose),
    Case::Single(cases::Case::GetxattrAbsent),
    Case::Single(cases::Case::PwriteSmall),
    Case::CatWarm,
    Case::CatCold,
    Case::Getdents,
    Case::LsL,
];

/// Beside the others.
const ASKED: (Variant, &str) = (Variant::Asked, "asked");

/// The handlers that let nothing be kept.
const PRIVATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/private.bpf.o"));

/// Limits in native's, with the handlers.
const LIMITS: &[(Case, f64)] = &[
    (Case::Single(cases::Case::Stat), 1.05),
    (Case::Single(cases::Case::StatDeep), 1.10),
    (Case::Single(cases::Case::Missing), 1.05),
    (Case::Single(cases::Case::Fstat), 1.10),
    (Case::Single(cases::Case::OpenClose), 1.32),
    (Case::Single(cases::Case::GetxattrAbsent), 1.6),
    (Case::Single(cases::Case::PwriteSmall), 1.3),
    (Case::CatCold, 1.6),
];

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Single(case) => case.name(),
            Self::CatWarm => "cat-warm",
            Self::CatCold => "cat-cold",
            Self::Getdents => "getdents",
            Self::LsL => "ls-l",
        }
    }

    /// Whether it is measured in a variant: where every look asks, looks at paths are.
    fn is_of(self, variant: Variant) -> bool {
        let looks = [cases::Case::Stat, cases::Case::StatDeep, cases::Case::Missing];
        variant != Variant::Asked || looks.iter().any(|&case| self == Self::Single(case))
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Single(_) => "call",
            Self::CatWarm | Self::CatCold => "file",
            Self::Getdents | Self::LsL => "entry",
        }
    }

    /// Units of one call.
    fn units(self) -> f64 {
        match self {
            Self::Single(_) => 1.0,
            _ => FILES as f64,
        }
    }

    fn shape(self, smoke: bool) -> Shape {
        match self {
            Self::Single(case) => case.shape(smoke, 0),
            // Two questions and a thousand entries: how these two are scheduled is much of what differs.
            Self::Getdents if !smoke => Shape {
                warm: 2,
                runs: 25,
                calls: 1,
            },
            _ => Shape {
                warm: 2,
                runs: if smoke { 1 } else { 5 },
                calls: 1,
            },
        }
    }

    fn prepare<'a>(self, paths: &'a Paths, small: &'a [CString]) -> Result<Box<Call<'a>>> {
        Ok(match self {
            Self::Single(case) => case.prepare(paths)?,
            Self::CatWarm | Self::CatCold => {
                let mut buffer = cases::buffer();
                Box::new(move |_| small.iter().all(|path| cat(path, &mut buffer.0)))
            }
            Self::Getdents => {
                let mut buffer = cases::buffer();
                Box::new(move |_| list(&mut buffer.0[..LISTING], |_, _| true) == Some(FILES))
            }
            Self::LsL => {
                let mut buffer = cases::buffer();
                let there = |directory: BorrowedFd<'_>, name: &CStr| {
                    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
                };
                Box::new(move |_| list(&mut buffer.0[..LISTING], there) == Some(FILES))
            }
        })
    }
}

/// The directory of small files.
const DIRECTORY: &str = "small";

/// What cat(1) does with a file.
pub fn cat(path: &CString, buffer: &mut [u8]) -> bool {
    let Ok(file) = open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty()) else {
        return false;
    };
    fstat(&file).is_ok() && read(&file, buffer) == Ok(SMALL) && read(&file, buffer) == Ok(0)
}

/// Lists the directory; how many names there are for which `what` is true. The way to do so in libraries
/// allocates for each entry, which would be measured, too.
fn list(buffer: &mut [u8], what: impl Fn(BorrowedFd<'_>, &CStr) -> bool) -> Option<usize> {
    /// Where in an entry its length and its name are.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let directory = open(DIRECTORY, flags, Mode::empty()).ok()?;
    let mut count = 0;
    loop {
        // SAFETY: the buffer is valid for writes of its length.
        let got = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                directory.as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        let mut rest = buffer.get(..usize::try_from(got).ok()?)?;
        if rest.is_empty() {
            return Some(count);
        }
        while !rest.is_empty() {
            let length = u16::from_ne_bytes([*rest.get(LENGTH)?, *rest.get(LENGTH + 1)?]);
            let (entry, others) = rest.split_at_checked(length.into())?;
            let name = CStr::from_bytes_until_nul(entry.get(NAME..)?).ok()?;
            let above = name == c"." || name == c"..";
            count += usize::from(!above && what(directory.as_fd(), name));
            rest = others;
        }
    }
}

/// Takes its pages from a file on a mount.
fn drop_pages(path: &CString) -> Result<()> {
    let file = open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty())?;
    Ok(pages::drop_pages(&file.into())?)
}

/// All cases in all variants, in one boot.
pub fn run(base: &Path, metric: &str, smoke: bool) -> Result<Vec<Row>> {
    let tree = base.join("walk");
    tree::make(&tree, 0)?;
    fs::create_dir(tree.join(DIRECTORY))?;
    let small: Vec<String> = (0..FILES).map(|i| format!("{DIRECTORY}/{i:04}")).collect();
    for path in &small {
        fs::write(tree.join(path), [0x5a; SMALL])?;
    }
    nix::unistd::sync();
    let small: Vec<CString> = small
        .iter()
        .map(|path| c_path(Path::new(path)))
        .collect::<Result<_>>()?;

    let private = base.join("private.bpf.o");
    fs::write(&private, PRIVATE)?;
    let variants: Vec<_> = COHERENT_VARIANTS
        .iter()
        .chain([&ASKED])
        .filter(|(variant, _)| !smoke || variant.is_stock())
        // The control: what it was in the beginning it is in the end.
        .chain(&COHERENT_VARIANTS[..1])
        .collect();
    let (mut measured, mut checked) = (Vec::new(), Vec::new());
    for &&(variant, label) in &variants {
        let place = Place::new(variant, &tree, &base.join("mnt"), &[])?;
        if variant == Variant::Asked {
            for opcode in ["LOOKUP", "GETATTR"] {
                place.load_handler(opcode, &private)?;
            }
        }
        checked.push(Controls::measure(&place)?);
        let mut rows = Vec::new();
        for case in CASES.iter().copied().filter(|case| case.is_of(variant)) {
            let shown = || format!("{}, {label}", case.name());
            let shape = case.shape(smoke);
            let (cost, counted) = cost(case, shape, &place, &small).with_context(shown)?;
            check(case, shape, variant, &counted).with_context(shown)?;
            let units = case.units();
            let upcalls = counted.total().upcalls as f64 / shape.all_calls() as f64 / units;
            if !smoke {
                eprintln!(
                    "{:15} {label:10} {:9.0} {metric} {upcalls:7.3} upcalls",
                    case.name(),
                    cost / units,
                );
            }
            let row = |metric: &str, value: f64| Row {
                suite: "walk".into(),
                case: case.name().into(),
                variant: label.into(),
                metric: metric.into(),
                unit: format!("{metric}/{}", case.unit()),
                value,
            };
            rows.push([
                row(metric, (cost / units).round()),
                row("upcalls", (upcalls * 1000.0).round() / 1000.0),
            ]);
        }
        checked.push(Controls::measure(&place)?);
        place.close()?;
        measured.push(rows);
    }
    controls::compare(&checked, metric, smoke)?;
    let again = measured.pop().context("nothing was measured")?;
    for ([first, _], [last, _]) in measured[0].iter().zip(&again) {
        ensure!(
            smoke || (first.value - last.value).abs() <= 0.03 * first.value,
            "{}: {} natively in the beginning, {} in the end",
            first.case,
            first.value,
            last.value
        );
    }
    let rows: Vec<Row> = measured.into_iter().flatten().flatten().collect();
    let of_case = |name: &'static str| rows.iter().filter(move |row| row.case == name).cloned();
    Ok(CASES.iter().flat_map(|case| of_case(case.name())).collect())
}

/// The median cost of a call, and what was counted in all.
fn cost(case: Case, shape: Shape, place: &Place, small: &[CString]) -> Result<(f64, Counters)> {
    let paths = Paths::new(0)?;
    let mut call = case.prepare(&paths, small)?;
    measure::warm(shape, &mut call)?;
    if case != Case::CatCold {
        let before = place.counters()?;
        let cost = measure::cost(shape, &mut call)?;
        return Ok((cost, place.counted_since(&before)?));
    }
    let mut counted = Counters::default();
    let mut runs = Vec::new();
    for run in 0..shape.runs {
        // They are all that there is of a file natively: dropped, it would be the disk that is measured.
        if place.variant != Variant::Native {
            small.iter().try_for_each(drop_pages)?;
        }
        let before = place.counters()?;
        let start = Instant::now();
        ensure!(call(run), "a call did not answer as expected");
        runs.push(start.elapsed().as_nanos() as f64);
        counted = counted.plus(&place.counted_since(&before)?);
    }
    Ok((measure::median(&mut runs), counted))
}

/// That it is what it is called.
fn check(case: Case, shape: Shape, variant: Variant, counted: &Counters) -> Result<()> {
    if let Case::Single(case) = case {
        case.check(variant, counted, shape)?;
    }
    let files = shape.all_calls() * FILES as u64;
    if variant == Variant::StockInf {
        let reads = counted.of("READ").upcalls;
        match case {
            Case::CatCold => ensure!(reads == files, "{reads} reads of {files} files"),
            _ => ensure!(reads == 0, "{reads} reads of what is cached"),
        }
    }
    if matches!(variant, Variant::Stock0 | Variant::Unattached) {
        let upcalls = counted.total().upcalls;
        ensure!(upcalls >= shape.all_calls(), "{upcalls} upcalls only");
    }
    Ok(())
}

/// What a walk is meant to cost.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, "walk");
    let limits = LIMITS
        .iter()
        .filter_map(|(case, limit)| report::ratio(&rows, case.name(), "coherent", "native", *limit));
    let unattached = CASES
        .iter()
        .filter_map(|case| report::ratio(&rows, case.name(), "unattached", "stock-0", 1.01));
    limits.chain(unattached).collect()
}
