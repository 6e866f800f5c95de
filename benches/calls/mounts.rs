// SPDX-License-Identifier: MIT OR Apache-2.0
//! The variants, their mounts, and what these count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use serde::Deserialize;

/// The command whose mounts are measured.
pub const EXTFUSE: &str = env!("CARGO_BIN_EXE_extfuse");

/// In which way the same directory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The directory itself, without FUSE.
    Native,
    /// Stock FUSE with backing files, timeouts 0: asks the daemon about everything, and sees every change.
    Stock0,
    /// Stock FUSE at its best: infinite timeouts, and pages that are kept (which backing files would
    /// rule out). Sees no changes from elsewhere.
    StockInf,
    /// The module without a program, timeouts 0.
    Unattached,
    /// The module with handlers, timeouts 0.
    Handlers,
    /// The same, and nothing of what they answer about names and attributes is kept: every look asks them.
    Asked,
    /// The module with programs that answer nothing, and a daemon that knows of none.
    Trivial,
}

/// All variants, in the order of the tables.
pub const VARIANTS: &[Variant] = &[
    Variant::Native,
    Variant::Stock0,
    Variant::StockInf,
    Variant::Unattached,
    Variant::Handlers,
];

/// The same, by the names they have where coherence is what is compared.
pub const COHERENT_VARIANTS: &[(Variant, &str)] = &[
    (Variant::Native, "native"),
    (Variant::Stock0, "stock-0"),
    (Variant::StockInf, "stock-inf"),
    (Variant::Unattached, "unattached"),
    (Variant::Handlers, "coherent"),
];

/// The variants that need no module.
pub const STOCK_VARIANTS: &[Variant] = &[Variant::Native, Variant::Stock0, Variant::StockInf];

impl Variant {
    /// The name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Native => "native",
            Variant::Stock0 => "stock-0",
            Variant::StockInf => "stock-inf",
            Variant::Unattached => "unattached",
            Variant::Handlers => "handlers",
            Variant::Asked => "asked",
            Variant::Trivial => "trivial",
        }
    }

    /// What `extfuse mount` is told; nothing where it mounts nothing.
    pub fn options(self) -> Option<&'static [&'static str]> {
        match self {
            Variant::Native | Variant::Trivial => None,
            Variant::Stock0 => Some(&["--stock", "-o", "entry_timeout=0,attr_timeout=0"]),
            Variant::StockInf => Some(&[
                "--stock",
                "-o",
                "entry_timeout=86400,attr_timeout=86400,keep_cache,no_passthrough",
            ]),
            Variant::Unattached => Some(&[
                "--require-module",
                "--no-handlers",
                "-o",
                "entry_timeout=0,attr_timeout=0",
            ]),
            Variant::Handlers | Variant::Asked => Some(&[
                "--require-module",
                "--exclusive",
                "-o",
                "entry_timeout=0,attr_timeout=0",
            ]),
        }
    }

    /// Whether it needs no module.
    pub fn is_stock(self) -> bool {
        STOCK_VARIANTS.contains(&self)
    }

    fn file_system(self) -> Option<&'static str> {
        match self {
            Variant::Native => None,
            Variant::Stock0 | Variant::StockInf => Some("fuse"),
            Variant::Unattached | Variant::Handlers | Variant::Asked | Variant::Trivial => Some("extfuse"),
        }
    }
}

/// What a mount counted for one opcode: on stock FUSE only upcalls, which the daemon counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub requests: u64,
    pub returned: u64,
    pub kept: u64,
    pub errno: u64,
    pub passthru: u64,
    pub upcalls: u64,
}

impl Counts {
    /// Answered by a handler, now or before.
    pub fn answered(self) -> u64 {
        self.returned + self.kept + self.errno
    }

    fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            returned: self.returned.saturating_sub(other.returned),
            kept: self.kept.saturating_sub(other.kept),
            errno: self.errno.saturating_sub(other.errno),
            passthru: self.passthru.saturating_sub(other.passthru),
            upcalls: self.upcalls.saturating_sub(other.upcalls),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            returned: self.returned + other.returned,
            kept: self.kept + other.kept,
            errno: self.errno + other.errno,
            passthru: self.passthru + other.passthru,
            upcalls: self.upcalls + other.upcalls,
        }
    }
}

/// Counts by the opcode's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<String, Counts>);

impl Counters {
    pub fn of(&self, opcode: &str) -> Counts {
        self.0.get(opcode).copied().unwrap_or_default()
    }

    pub fn total(&self) -> Counts {
        self.0
            .values()
            .fold(Counts::default(), |sum, &counts| sum.plus(counts))
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (opcode, &counts) in &other.0 {
            let of = sum.0.entry(opcode.clone()).or_default();
            *of = of.plus(counts);
        }
        sum
    }

    /// The opcodes that the daemon was asked, with their numbers.
    pub fn upcalls(&self) -> String {
        let asked = self.0.iter().filter(|(_, counts)| counts.upcalls > 0);
        let words = asked.map(|(opcode, counts)| format!("{opcode} {}", counts.upcalls));
        words.collect::<Vec<_>>().join(", ")
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self
            .0
            .iter()
            .map(|(opcode, counts)| (opcode.clone(), counts.minus(earlier.of(opcode))));
        Self(counts.collect())
    }
}

/// One of the places where the tree can be seen.
#[derive(Debug)]
pub struct Place {
    pub variant: Variant,
    /// The root of the tree there.
    pub path: PathBuf,
    /// What asking for the counters adds to them.
    asking: Counters,
    mounted: bool,
}

fn extfuse(arguments: &[&str], paths: &[&Path]) -> Result<String> {
    let shown = || format!("extfuse {} {paths:?}", arguments.join(" "));
    let out = Command::new(EXTFUSE)
        .args(arguments)
        .args(paths)
        // A mount that is somebody's current directory could not be unmounted.
        .current_dir("/")
        .output()
        .with_context(shown)?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.success(),
        "{}: {}: {}",
        shown(),
        out.status,
        said.trim()
    );
    Ok(String::from_utf8(out.stdout)?)
}

/// The type of the file system mounted at `path`, as in /proc/self/mountinfo.
pub fn file_system_at(path: &Path) -> Result<Option<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let path = path.to_str().context("a mount point that is not UTF-8")?;
    // The last line of a mount point is the one on top.
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(path));
    let kind = line
        .and_then(|line| line.split(" - ").nth(1))
        .and_then(|rest| rest.split(' ').next());
    Ok(kind.map(String::from))
}

impl Place {
    /// Shows `tree` in the way of `variant`: mounted on a new directory of that name in
    /// `under`, and makes it the current directory. `more` options go to `extfuse mount`.
    pub fn new(variant: Variant, tree: &Path, under: &Path, more: &[&str]) -> Result<Self> {
        let Some(options) = variant.options() else {
            let (path, asking) = (tree.to_path_buf(), Counters::default());
            std::env::set_current_dir(&path)?;
            return Ok(Self {
                variant,
                path,
                asking,
                mounted: false,
            });
        };
        let path = under.join(variant.name());
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let arguments: Vec<&str> = [&["mount"], options, more].concat();
        extfuse(&arguments, &[tree, &path])?;
        Self::mounted(variant, path)
    }

    /// What has been mounted at `path` in the way of `variant`; makes it the current directory.
    pub fn mounted(variant: Variant, path: PathBuf) -> Result<Self> {
        let mut place = Self {
            variant,
            path,
            asking: Counters::default(),
            mounted: true,
        };
        place.check()?;
        let before = place.counters()?;
        place.asking = place.counters()?.since(&before);
        std::env::set_current_dir(&place.path)?;
        Ok(place)
    }

    fn status(&self) -> Result<Status> {
        let json = extfuse(&["stat", "--json"], &[&self.path])?;
        serde_json::from_str(&json).with_context(|| format!("`extfuse stat --json` printed: {json}"))
    }

    /// The counters now; none where nothing is mounted.
    pub fn counters(&self) -> Result<Counters> {
        if !self.mounted {
            return Ok(Counters::default());
        }
        Ok(Counters(self.status()?.opcodes))
    }

    /// Who serves it.
    pub fn daemon(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.status()?.pid))
    }

    /// Puts the program of the file into the place of the handler of `opcode`.
    pub fn load_handler(&self, opcode: &str, object: &Path) -> Result<()> {
        extfuse(&["handler", "load"], &[&self.path, Path::new(opcode), object]).map(drop)
    }

    /// What was counted since `earlier` was asked, less what asking counts itself.
    pub fn counted_since(&self, earlier: &Counters) -> Result<Counters> {
        Ok(self.counters()?.since(earlier).since(&self.asking))
    }

    /// That the mount is what the variant says: a wrong one measures well, too.
    fn check(&self) -> Result<()> {
        let Some(wanted) = self.variant.file_system() else {
            return Ok(());
        };
        let name = self.variant.name();
        let found = file_system_at(&self.path)?;
        let base = found
            .as_deref()
            .map(|kind| kind.split('.').next().unwrap_or(kind));
        ensure!(
            base == Some(wanted),
            "{name}: file system {found:?} is mounted instead of {wanted}"
        );
        let attached = self.status()?.program.is_some_and(|program| program.attached);
        let wanted = matches!(
            self.variant,
            Variant::Handlers | Variant::Asked | Variant::Trivial
        );
        ensure!(
            attached == wanted,
            "{name}: program attached: {attached}, should be {wanted}"
        );
        Ok(())
    }

    /// Checks once more, at the end, that the program is still attached, and unmounts.
    pub fn close(mut self) -> Result<()> {
        if self.mounted {
            self.check()?;
            std::env::set_current_dir("/")?;
            self.mounted = false;
            extfuse(&["umount"], &[&self.path])?;
            if let Some(kind) = file_system_at(&self.path)? {
                bail!("{}: {kind} is still mounted after umount", self.path.display());
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let left = std::env::set_current_dir("/").context("cannot leave the mount");
            if let Err(error) = left.and_then(|()| extfuse(&["umount"], &[&self.path])) {
                eprintln!("cannot clean up: {error:#}");
            }
        }
    }
}

/// What `extfuse stat --json` prints, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Status {
    pid: i32,
    program: Option<Program>,
    opcodes: BTreeMap<String, Counts>,
}

#[derive(Debug, Deserialize)]
struct Program {
    attached: bool,
}
