// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this machine has: its kernel, its devices, its tools.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

/// The running kernel's release, such as `6.12.57+deb12-amd64`.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".into(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

/// Major and minor of a release.
#[must_use]
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether a device node can be opened for reading and writing: `Err` says why not.
pub fn device(path: &Path) -> Result<(), nix::errno::Errno> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened
        .map(drop)
        .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

/// Whether the kernel knows a file system type, as of now.
#[must_use]
pub fn knows_file_system(name: &str) -> bool {
    let table = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    table
        .lines()
        .any(|line| line.split('\t').next_back() == Some(name))
}

/// Why this kernel takes no modules at all, if so.
#[must_use]
pub fn refuses_modules() -> Option<&'static str> {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if words.split_whitespace().any(|word| word == "nomodule") {
        return Some("it was booted with nomodule");
    }
    match fs::read_to_string("/proc/sys/kernel/modules_disabled") {
        Ok(text) if text.trim() == "1" => Some("kernel.modules_disabled is set"),
        Ok(_) => None,
        Err(_) => Some("it was built without module support"),
    }
}

/// Which of `wanted` are symbols of the kernel: how one sees what it was built with when its
/// configuration is nowhere. None if the kernel does not show its symbols.
#[must_use]
pub fn symbols<'a>(wanted: &[&'a str]) -> Option<HashSet<&'a str>> {
    let mut found = HashSet::new();
    let mut seen = false;
    for line in BufReader::new(fs::File::open("/proc/kallsyms").ok()?).lines() {
        let line = line.ok()?;
        seen = true;
        let name = line.split_whitespace().nth(2).unwrap_or_default();
        if let Some(symbol) = wanted.iter().find(|symbol| **symbol == name) {
            found.insert(*symbol);
            if found.len() == wanted.len() {
                break;
            }
        }
    }
    seen.then_some(found)
}

/// Whether the kernel describes its types, which loading the handlers needs.
#[must_use]
pub fn has_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// Whether eBPF programs are compiled to machine code; None if the kernel cannot.
#[must_use]
pub fn bpf_jit() -> Option<bool> {
    let value = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok()?;
    Some(value.trim() != "0")
}

/// The folder of headers that modules for `release` are built against.
#[must_use]
pub fn headers(release: &str) -> Option<PathBuf> {
    let path = Path::new("/lib/modules").join(release).join("build");
    path.join("Makefile").exists().then_some(path)
}

/// The limits of open files: now, and as far as this process may raise it.
#[must_use]
pub fn open_files() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// Whether users may pass `allow_other` to `fusermount3`.
#[must_use]
pub fn user_allow_other() -> bool {
    let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// A program in `PATH`.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    search_path()
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
}

/// The clang that the handlers are built with: `$CLANG`, `clang`, or the newest `clang-NN` from 15.
#[must_use]
pub fn clang() -> Option<PathBuf> {
    if let Some(chosen) = std::env::var_os("CLANG") {
        let path = PathBuf::from(&chosen);
        return if path.components().count() > 1 {
            is_executable(&path).then_some(path)
        } else {
            program(&chosen.to_string_lossy())
        };
    }
    program("clang").or_else(|| {
        let numbered = |path: PathBuf| Some((clang_number(path.file_name()?)?, path));
        let all = search_path()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten();
        all.filter_map(|entry| numbered(entry.path()))
            .max()
            .map(|(_, path)| path)
    })
}

fn clang_number(name: &OsStr) -> Option<u32> {
    let number = name.to_str()?.strip_prefix("clang-")?.parse().ok()?;
    (number >= 15).then_some(number)
}

fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_taken_apart() {
        assert_eq!(version("6.12.57+deb12-amd64"), Some((6, 12)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn old_and_odd_compilers_do_not_count() {
        let number = |name: &str| clang_number(OsStr::new(name));
        assert_eq!(number("clang-19"), Some(19));
        assert_eq!(number("clang-14"), None);
        assert_eq!(number("clang-format-19"), None);
    }

    #[test]
    fn this_kernel_knows_proc_and_has_a_name() {
        assert!(knows_file_system("proc"));
        assert!(!knows_file_system("no-such-type"));
        assert!(version(&release()).is_some());
    }
}
