// SPDX-License-Identifier: MIT OR Apache-2.0
//! What people do with a tree of sources, and what of it comes up to the daemon: requests by opcode, the first
//! time on a mount and when it is warm.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::controls::{self, Controls};
use crate::mounts::{Counters, Place, Variant};
use crate::report::{self, Aim, Row};
use crate::workloads;

/// The variants, and what they are called here. The first one is what the others are held against.
const VARIANTS: &[(Variant, &str)] = &[
    (Variant::Native, "native"),
    (Variant::Stock0, "stock-0"),
    (Variant::StockInf, "stock-inf"),
    (Variant::Handlers, "coherent"),
];

/// Requests that nobody waits for, and that come when the kernel wants its memory back.
const UNASKED: &[&str] = &["FORGET", "BATCH_FORGET"];

/// What changes a name comes up in each variant, and as often.
const CHANGES: &[&str] = &[
    "CREATE", "MKNOD", "MKDIR", "SYMLINK", "LINK", "UNLINK", "RMDIR", "RENAME", "RENAME2",
];

/// The first column of what is named by opcode.
const BY_OPCODE: &str = "upcalls.";

/// Something to do, as scripts for sh(1) in the root of what is mounted.
#[derive(Debug)]
struct Job {
    name: &'static str,
    /// Before the mount, on the file system below.
    before: &'static [&'static str],
    /// What is counted.
    work: &'static str,
    /// Between two times, through the mount; nothing if it leaves no trace.
    undo: &'static str,
}

const COPY: &str = r#"cp -a "$TREE" tree"#;

/// A program of six files and a header. The compiler by its own name: in the guest there are no alternatives.
const PROJECT: &str = r#"(
    mkdir project
    cd project
    echo 'int sum(int);' >sum.h
    for i in 0 1 2 3; do
        printf '#include "sum.h"\nint part_%d(int n) { return sum(n) + %d; }\n' $i $i >part_$i.c
    done
    printf '#include "sum.h"\nint sum(int n) { return n * (n + 1) / 2; }\n' >sum.c
    printf 'int part_3(int);\nint main(void) { return part_3(0) != 3; }\n' >main.c
    printf '%s\n' 'CC := gcc' 'objects := $(patsubst %.c,%.o,$(wildcard *.c))' 'program: $(objects)' \
        '	$(CC) -o $@ $^' '$(objects): sum.h' 'clean:' '	rm -f program $(objects)' >Makefile
)"#;

const JOBS: &[Job] = &[
    Job {
        name: "untar",
        before: &["mkdir out"],
        work: r#"tar -xf "$ARCHIVE" -C out"#,
        undo: "rm -r out && mkdir out",
    },
    Job {
        name: "find",
        before: &[COPY],
        work: "find tree",
        undo: "",
    },
    Job {
        name: "ls-lR",
        before: &[COPY],
        work: "ls -lR tree",
        undo: "",
    },
    Job {
        name: "git-status",
        // Its index knows the files of another copy.
        before: &[COPY, "git -C tree status --porcelain"],
        work: "git -C tree --no-optional-locks status --porcelain",
        undo: "",
    },
    Job {
        name: "grep-r",
        before: &[COPY],
        work: "! grep -r 'no such words' tree",
        undo: "",
    },
    Job {
        name: "cp-r",
        before: &[COPY],
        work: "cp -r tree copy",
        undo: "rm -r copy",
    },
    Job {
        name: "make",
        before: &[PROJECT],
        work: "make -s -C project && project/program",
        undo: "make -s -C project clean",
    },
    Job {
        name: "make-again",
        before: &[PROJECT, "make -s -C project"],
        work: "make -s -C project",
        undo: "",
    },
    Job {
        name: "rm-r",
        before: &[COPY],
        work: "rm -r tree",
        undo: r#"cp -r "$TREE" tree"#,
    },
    Job {
        name: "randread",
        before: &["dd if=/dev/zero of=data bs=1M count=16 status=none"],
        // Whether there are pages is up to the mount: fio would drop them first.
        work: "fio --name=data --filename=data --readonly --rw=randread --bs=4k --size=16m --io_size=4m \
               --ioengine=psync --invalidate=0 --randseed=1 --output=/dev/null",
        undo: "",
    },
    Job {
        name: "sqlite",
        before: &[],
        work: r#"
            i=0
            { echo 'CREATE TABLE pairs (name TEXT PRIMARY KEY, value INTEGER);'
              while [ $i -lt 200 ]; do
                  [ $((i % 10)) != 0 ] || echo 'BEGIN;'
                  echo "INSERT INTO pairs VALUES ('name $i', $i);"
                  [ $((i % 10)) != 9 ] || echo 'COMMIT;'
                  i=$((i + 1))
              done
              echo 'SELECT count(*), sum(value) FROM pairs;'
            } | sqlite3 data.db"#,
        undo: "rm data.db",
    },
    Job {
        name: "create-300",
        before: &["mkdir new"],
        work: "i=0; while [ $i -lt 300 ]; do : >new/$i; i=$((i + 1)); done",
        undo: "rm -r new && mkdir new",
    },
];

/// Those that are quick on stock FUSE.
const TRIED: &[&str] = &["find", "make-again", "sqlite", "create-300"];

/// The first time on a mount, and when it is warm.
const TIMES: [&str; 2] = ["cold", "warm"];

/// What the jobs work on.
struct Material {
    tree: PathBuf,
    archive: PathBuf,
}

impl Material {
    fn make(at: &Path) -> Result<Self> {
        let (tree, archive) = (at.join("tree"), at.join("tree.tar"));
        workloads::make(&tree).context("cannot make the tree")?;
        let status = Command::new("tar")
            .args(["-c", "-C"])
            .args([&tree, Path::new("-f"), &archive])
            .arg(".")
            .status()?;
        ensure!(status.success(), "tar: {status}");
        Ok(Self { tree, archive })
    }

    /// Runs scripts one after the other, in the current directory or in `at`; what they print.
    fn run(&self, scripts: &[&str], at: &Path) -> Result<Vec<u8>> {
        let mut printed = Vec::new();
        for script in scripts {
            let mut command = Command::new("sh");
            command.args(["-ec", script]).current_dir(at);
            command.env("TREE", &self.tree).env("ARCHIVE", &self.archive);
            let output = workloads::quiet(&mut command).output()?;
            ensure!(
                output.status.success() && output.stderr.is_empty(),
                "{script}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
            printed.extend(output.stdout);
        }
        Ok(printed)
    }
}

/// What git knows of its files: inode numbers and times, which another copy of the tree has not.
const INDEX: &str = ".git/index";

/// Everything below a directory: mode and size, and a checksum of files.
type Listing = BTreeMap<PathBuf, (u32, u64, u32)>;

fn list(directory: &Path, below: &Path, listing: &mut Listing) -> Result<()> {
    for entry in fs::read_dir(directory.join(below))? {
        let path = below.join(entry?.file_name());
        let at = directory.join(&path);
        let metadata = fs::symlink_metadata(&at)?;
        let mut row = (metadata.mode(), 0, 0);
        if metadata.is_file() && !path.ends_with(INDEX) {
            let bytes = fs::read(&at)?;
            row = (metadata.mode(), bytes.len() as u64, crc32c::crc32c(&bytes));
        }
        listing.insert(path.clone(), row);
        if metadata.is_dir() {
            list(directory, &path, listing)?;
        }
    }
    Ok(())
}

/// What a job asked, each time that it was counted, and what it left behind.
struct Done {
    asked: [Option<Counters>; 2],
    printed: Vec<u8>,
    left: Listing,
}

/// Nothing is learnt, so that each time is like the first.
fn learns(variant: Variant) -> bool {
    !matches!(variant, Variant::Native | Variant::Stock0)
}

/// Everything has to be as in the variants `before` but for the requests that change nothing.
fn compare(job: &Job, before: &[Done], done: &Done) -> Result<()> {
    if let Some(native) = before.first() {
        ensure!(done.printed == native.printed, "other output than natively");
        ensure!(done.left == native.left, "other files than natively");
    }
    for (time, which) in TIMES.iter().enumerate() {
        // The first one is native.
        let others = before.iter().skip(1).find_map(|other| other.asked[time].as_ref());
        let (Some(ours), Some(others)) = (&done.asked[time], others) else {
            continue;
        };
        for opcode in CHANGES {
            let (ours, others) = (ours.of(opcode).upcalls, others.of(opcode).upcalls);
            let same = ours == others;
            ensure!(same, "{}, {which}: {ours} {opcode} instead of {others}", job.name);
        }
    }
    Ok(())
}

fn done(job: &Job, material: &Material, variant: Variant, base: &Path) -> Result<Done> {
    let root = base.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    material.run(job.before, &root).context("before the mount")?;
    let place = Place::new(variant, &root, &base.join("mnt"), &[])?;
    let work = || material.run(&[job.work], &place.path);
    let undo = || material.run(&[job.undo], &place.path).context("undoing");
    let before = place.counters()?;
    let printed = work()?;
    let cold = place.counted_since(&before)?;
    let mut warm = None;
    if learns(variant) {
        undo()?;
        // What was learnt is used for the first time.
        work()?;
        undo()?;
        let before = place.counters()?;
        ensure!(work()? == printed, "other output than the first time");
        warm = Some(place.counted_since(&before)?);
    }
    place.close()?;
    let mut left = Listing::new();
    list(&root, Path::new(""), &mut left)?;
    Ok(Done {
        asked: [Some(cold), warm],
        printed,
        left,
    })
}

/// All jobs in all variants, each on a mount of its own.
pub fn run(base: &Path, smoke: bool) -> Result<Vec<Row>> {
    let base = &base.join("workloads");
    fs::create_dir_all(base)?;
    let material = Material::make(base)?;
    let variants: Vec<_> = VARIANTS
        .iter()
        .filter(|(variant, _)| !smoke || variant.is_stock())
        .collect();
    check(base, &variants)?;
    let mut rows = Vec::new();
    for job in JOBS.iter().filter(|job| !smoke || TRIED.contains(&job.name)) {
        let mut all: Vec<Done> = Vec::new();
        for &&(variant, label) in &variants {
            let shown = || format!("{}, {label}", job.name);
            let done = done(job, &material, variant, base).with_context(shown)?;
            compare(job, &all, &done).with_context(shown)?;
            let said: Vec<u64> = done.asked.iter().flatten().map(total).collect();
            eprintln!("{:10} {label:9} {said:?} upcalls", job.name);
            all.push(done);
        }
        for (time, which) in TIMES.into_iter().enumerate() {
            for (&&(_, label), done) in variants.iter().zip(&all).skip(1) {
                if let Some(asked) = &done.asked[time] {
                    rows.extend(figures(job, which, label, asked));
                }
            }
        }
    }
    Ok(rows)
}

/// That the daemon is asked, and counts, in each variant.
fn check(base: &Path, variants: &[&(Variant, &str)]) -> Result<()> {
    let root = base.join("root");
    fs::create_dir_all(&root)?;
    let checked = variants
        .iter()
        .map(|(variant, _)| {
            let place = Place::new(*variant, &root, &base.join("mnt"), &[])?;
            let controls = Controls::measure(&place)?;
            place.close()?;
            Ok(controls)
        })
        .collect::<Result<Vec<_>>>()?;
    // What a call costs is not what this is about.
    controls::compare(&checked, "nanoseconds", true)
}

/// What the daemon was asked, by opcode.
fn by_opcode(asked: &Counters) -> Vec<(&str, u64)> {
    let rows = asked.0.iter();
    rows.map(|(opcode, counts)| (opcode.as_str(), counts.upcalls))
        .filter(|(opcode, upcalls)| *upcalls > 0 && !UNASKED.contains(opcode))
        .collect()
}

fn total(asked: &Counters) -> u64 {
    by_opcode(asked).iter().map(|(_, upcalls)| upcalls).sum()
}

fn figures(job: &Job, time: &str, variant: &str, asked: &Counters) -> Vec<Row> {
    let row = |metric: String, value: u64| Row {
        suite: "workloads".into(),
        case: format!("{}, {time}", job.name),
        variant: variant.into(),
        metric,
        unit: "upcalls".into(),
        value: value as f64,
    };
    let all = row("upcalls".into(), total(asked));
    let each = by_opcode(asked)
        .into_iter()
        .map(|(opcode, upcalls)| row(format!("{BY_OPCODE}{opcode}"), upcalls));
    std::iter::once(all).chain(each).collect()
}

/// That a warm tree is silent for who only reads.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = report::of_suite(rows, "workloads");
    let silent = JOBS.iter().filter(|job| job.undo.is_empty());
    silent
        .filter_map(|job| {
            let case = format!("{}, {}", job.name, TIMES[1]);
            let upcalls = report::value(&rows, &case, "coherent", "upcalls")?;
            Some(Aim {
                text: format!(
                    "{case}, coherent: {} upcalls, at most 0",
                    report::grouped(upcalls)
                ),
                met: upcalls == 0.0,
            })
        })
        .collect()
}

/// A line for each case and variant: what was asked, by opcode.
pub fn opcodes(rows: &[Row]) -> Vec<String> {
    let rows = report::of_suite(rows, "workloads");
    let totals = rows.iter().filter(|row| row.metric == "upcalls");
    totals
        .map(|total| {
            let mut asked: Vec<(&str, f64)> = rows
                .iter()
                .filter(|row| row.case == total.case && row.variant == total.variant)
                .filter_map(|row| Some((row.metric.strip_prefix(BY_OPCODE)?, row.value)))
                .collect();
            asked.sort_by(|a, b| b.1.total_cmp(&a.1));
            let words: Vec<String> = asked
                .iter()
                .map(|(opcode, upcalls)| format!("{opcode} {}", report::grouped(*upcalls)))
                .collect();
            let words = if words.is_empty() {
                "nothing".into()
            } else {
                words.join(", ")
            };
            format!("{}, {}: {words}", total.case, total.variant)
        })
        .collect()
}
