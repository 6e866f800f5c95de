// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs to have four million cached entries instead of a thousand.
//!
//! In the guest, instructions: the same calls over maps with few and with many rows. Instructions know
//! no cache misses, which are what a large map costs; so the lookups themselves are also timed, on the
//! machine as it is.

use std::ffi::CString;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use extfuse::abi::{AttrRow, EntryKey, EntryRow};
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::sys::stat::stat;

use crate::cases::Case;
use crate::measure::{self, Shape};
use crate::mounts::{Place, Variant};
use crate::report::{self, Aim, Row};
use crate::tree::{self, Paths, c_path};

/// How many rows, under which name. A quarter of the map stays free, and room for what is looked at, so that
/// nothing is evicted.
const SIZES: &[(&str, u32)] = &[
    ("1k", 1_000),
    ("64k", 64_000),
    ("1m", 1_000_000),
    ("4m", 4_000_000),
];
/// Rows for real files, names of them and absent ones.
const ROOM: u32 = 5_000;
/// Real files that are looked at in turn.
const FILES: usize = 500;
/// Rows given to the kernel at a time.
const BATCH: u32 = 4096;

fn row(case: &str, variant: &str, metric: &str, unit: &str, value: f64) -> Row {
    let [case, variant, metric, unit] = [case, variant, metric, unit].map(String::from);
    Row {
        suite: "scale".into(),
        case,
        variant,
        metric,
        unit,
        value,
    }
}

/// What is measured in the guest.
const HITS: &[Case] = &[Case::Stat, Case::StatMany, Case::Fstat, Case::Missing];

/// What is answered from the maps, and whether the names are there.
const FROM_MAPS: &[(&str, bool)] = &[("lookup", true), ("lookup-missing", false)];
/// How often the kernel's caches are emptied for it.
const RECLAIMS: usize = 5;

fn name(case: Case) -> &'static str {
    match case {
        Case::StatMany => "stat-500",
        case => case.name(),
    }
}

fn capacity(rows: u32) -> u32 {
    rows + rows.div_ceil(4).max(ROOM)
}

/// Key `i` of a map, spread over its key space; no key that the daemon would use.
fn key(i: u32, size: usize) -> Vec<u8> {
    let spread = (u64::from(i) | 1 << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread.to_le_bytes().into_iter().cycle().take(size).collect()
}

/// Puts `rows` rows into the map. They are no rows that a handler would answer from: their `check` is wrong.
fn fill(map: &MapHandle, rows: u32) -> Result<()> {
    let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
    let values = vec![0; BATCH as usize * value_size];
    for first in (0..rows).step_by(BATCH as usize) {
        let count = BATCH.min(rows - first);
        let keys: Vec<u8> = (first..first + count).flat_map(|i| key(i, key_size)).collect();
        let values = &values[..count as usize * value_size];
        map.update_batch(&keys, values, count, MapFlags::ANY, MapFlags::ANY)
            .context("cannot fill a map")?;
    }
    Ok(())
}

/// Bytes of kernel memory that the map holds, as the kernel accounts them.
fn memory(map: &MapHandle) -> Result<f64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?;
    let bytes = info
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .context("no memlock in fdinfo")?;
    Ok(bytes.trim().parse()?)
}

/// The map of that name that was made last: the one of the mount at hand.
fn newest(name: &str) -> Result<MapHandle> {
    let named = MapInfoIter::default().filter(|info| info.name.to_str() == Some(name));
    let id = named
        .map(|info| info.id)
        .max()
        .with_context(|| format!("no map is called {name}"))?;
    Ok(MapHandle::from_map_id(id)?)
}

/// That a hit costs the same however many others there are.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, "scale");
    let (Some((few, _)), Some((many, _))) = (SIZES.first(), SIZES.last()) else {
        return Vec::new();
    };
    HITS.iter()
        .map(|case| name(*case))
        .chain(FROM_MAPS.iter().map(|(case, _)| *case))
        .filter_map(|case| report::ratio(&rows, case, many, few, 1.02))
        .collect()
}

/// Names of one file that the kernel holds, so that its node stays known whatever is reclaimed; and names of
/// none.
fn found_and_missing() -> Result<[Vec<CString>; 2]> {
    let names = |what: &str| -> Result<Vec<CString>> {
        (0..FILES)
            .map(|i| c_path(Path::new(&format!("{what}-{i:03}"))))
            .collect()
    };
    Ok([names("name")?, names("none")?])
}

/// A `stat` of names that the kernel's own caches have lost: answered from the maps.
fn from_maps(place: &Place, names: &[CString], found: bool) -> Result<f64> {
    let _held = File::open("file")?;
    let look = || names.iter().all(|name| stat(name.as_c_str()).is_ok() == found);
    ensure!(look() && look(), "a name is not what it should be");
    let reclaimed = || -> Result<f64> {
        // A dentry that was used lately is only marked the first time.
        for _ in 0..3 {
            fs::write("/proc/sys/vm/drop_caches", "2")?;
        }
        let start = Instant::now();
        ensure!(look(), "a name is not what it should be");
        Ok(start.elapsed().as_nanos() as f64 / names.len() as f64)
    };
    // The first time some rows are missing, and come back with it.
    reclaimed()?;
    let before = place.counters()?;
    let mut costs = (0..RECLAIMS).map(|_| reclaimed()).collect::<Result<Vec<_>>>()?;
    let of = place.counted_since(&before)?.of("LOOKUP");
    ensure!(
        of.upcalls == 0 && of.returned + of.errno >= (RECLAIMS * names.len()) as u64,
        "not answered from the maps: {of:?}"
    );
    Ok(measure::median(&mut costs))
}

/// Hits with few and with many rows in the maps, and what a row takes.
pub fn run(base: &Path, metric: &str) -> Result<Vec<Row>> {
    let tree = base.join("scale");
    tree::make(&tree, FILES)?;
    let [found, _] = found_and_missing()?;
    for name in &found {
        fs::hard_link(tree.join("file"), tree.join(name.to_str()?))?;
    }
    let mut measured = Vec::new();
    for &(size, rows) in SIZES {
        let options = format!("entries={}", capacity(rows));
        let place = Place::new(Variant::Handlers, &tree, &base.join("mnt"), &["-o", &options])?;
        let mut figures = Vec::new();
        let mut all = 0.0;
        for name in ["entry_map", "attr_map"] {
            let map = newest(name)?;
            ensure!(
                map.max_entries() == capacity(rows),
                "{name} has room for {} rows",
                map.max_entries()
            );
            fill(&map, rows)?;
            let bytes = memory(&map)?;
            all += bytes;
            let each = (bytes / f64::from(capacity(rows))).round();
            figures.push(row(name, size, "memory", "bytes/entry", each));
        }
        all += memory(&newest("xattr_map")?)?;
        let mib = (all / f64::from(1 << 20)).round();
        figures.push(row("all maps", size, "memory", "MiB", mib));
        let paths = Paths::new(FILES)?;
        for &case in HITS {
            let shape = match case {
                Case::StatMany => Shape {
                    warm: FILES,
                    runs: 7,
                    calls: FILES,
                },
                case => case.shape(false, FILES),
            };
            let name = name(case);
            let mut call = case.prepare(&paths)?;
            measure::warm(shape, &mut call)?;
            let before = place.counters()?;
            let cost = measure::cost(shape, &mut call).with_context(|| format!("{name} with {rows} rows"))?;
            let counted = place.counted_since(&before)?.total();
            let upcalls = counted.upcalls as f64 / shape.all_calls() as f64;
            eprintln!(
                "{name:15} {size:10} {cost:9.0} {metric} {upcalls:7.3} upcalls, {} kept, {} returned",
                counted.kept, counted.returned
            );
            figures.push(row(name, size, metric, &format!("{metric}/call"), cost.round()));
            figures.push(row(name, size, "upcalls", "upcalls/call", upcalls));
        }
        for (names, (name, found)) in found_and_missing()?.iter().zip(FROM_MAPS) {
            let shown = || format!("{name} with {rows} rows");
            let cost = from_maps(&place, names, *found).with_context(shown)?;
            eprintln!("{name:15} {size:10} {cost:9.0} {metric}, from the maps");
            figures.push(row(name, size, metric, &format!("{metric}/call"), cost.round()));
        }
        place.close()?;
        measured.push(figures);
    }
    let count = measured[0].len();
    Ok((0..count)
        .flat_map(|i| measured.iter().map(move |figures| figures[i].clone()))
        .collect())
}

/// Time of a lookup from user space, with keys in random order, on the machine as it is. The system
/// call and the copy of the row are in it, the same for all sizes.
pub fn lookups() -> Result<Vec<Row>> {
    let maps = [
        ("entry-lookup", size_of::<EntryKey>(), size_of::<EntryRow>()),
        ("attr-lookup", 8, size_of::<AttrRow>()),
    ];
    let mut figures = Vec::new();
    for (name, key_size, value_size) in maps {
        for &(size, rows) in SIZES {
            let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
                sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as libbpf_rs::libbpf_sys::size_t,
                ..Default::default()
            };
            let (kind, room) = (MapType::LruHash, capacity(rows));
            let map = MapHandle::create(
                kind,
                Some("scale"),
                key_size as u32,
                value_size as u32,
                room,
                &options,
            )?;
            fill(&map, rows)?;
            let shape = Shape {
                warm: 1000,
                runs: 5,
                calls: 100_000,
            };
            let keys: Vec<Vec<u8>> = (0..rows)
                .map(|i| key(i.wrapping_mul(2_654_435_761) % rows, key_size))
                .collect();
            let mut runs: Vec<f64> = (0..shape.runs)
                .map(|run| -> Result<f64> {
                    let start = Instant::now();
                    for i in 0..shape.calls {
                        let key = &keys[(run * shape.calls + i) % keys.len()];
                        ensure!(
                            black_box(map.lookup(key, MapFlags::ANY)?).is_some(),
                            "{name}: a row is gone"
                        );
                    }
                    Ok(start.elapsed().as_nanos() as f64 / shape.calls as f64)
                })
                .collect::<Result<_>>()?;
            figures.push(row(
                name,
                size,
                "nanoseconds",
                "nanoseconds/lookup",
                measure::median(&mut runs).round(),
            ));
        }
    }
    Ok(figures)
}
