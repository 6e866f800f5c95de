// SPDX-License-Identifier: MIT OR Apache-2.0
//! What pjdfstest says of a file system, and whether it says the same of another.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// By the name of the test.
pub type Verdicts = BTreeMap<String, Verdict>;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn program() -> PathBuf {
    let path = env::var_os("PJDFSTEST").map_or(here("target/tools/bin/pjdfstest"), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: scripts/setup installs it",
        path.display()
    );
    path
}

/// Runs all tests in `dir`, the root of a mount. `elsewhere` is on another file system.
///
/// Those that make the file system read-only for a moment run by themselves: after the others, which leave
/// files open, that would be refused.
pub fn verdicts(dir: &Path, elsewhere: &Path) -> (Verdicts, String) {
    let (mut verdicts, mut text) = run(dir, elsewhere, false, &[]);
    assert!(verdicts.len() > 300, "only {} verdicts:\n{text}", verdicts.len());
    let (read_only, more) = run(dir, elsewhere, true, &["erofs"]);
    assert!(
        read_only.len() > 10,
        "only {} verdicts of EROFS:\n{more}",
        read_only.len()
    );
    verdicts.extend(read_only);
    text.push_str(&more);
    (verdicts, text)
}

fn run(dir: &Path, elsewhere: &Path, may_remount: bool, patterns: &[&str]) -> (Verdicts, String) {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let text = fs::read_to_string(here("tests/pjdfstest/config.toml")).unwrap();
    let remount = format!("allow_remount = {may_remount}");
    config
        .write_all(text.replace("allow_remount = false", &remount).as_bytes())
        .unwrap();
    // mount(8) as pjdfstest calls it would leave a remount to mount.fuse(8), which can't do it.
    let tools = tempfile::tempdir().unwrap();
    let mount = tools.path().join("mount");
    fs::write(&mount, "#!/bin/sh\nexec /bin/mount -i \"$@\"\n").unwrap();
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        tools.path().display(),
        env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program())
        .env("PATH", path)
        .arg("-c")
        .arg(config.path())
        .arg("-p")
        .arg(dir)
        .arg("-s")
        .arg(elsewhere)
        .args(patterns)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdicts = text
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ']))
        .filter_map(|line| {
            let (name, verdict) = line.split_once(char::is_whitespace)?;
            let verdict = match verdict.trim() {
                "ok" => Verdict::Passed,
                "FAILED" => Verdict::Failed,
                "skipped" => Verdict::Skipped,
                _ => return None,
            };
            Some((name.to_owned(), verdict))
        })
        .collect();
    (verdicts, text + &String::from_utf8_lossy(&output.stderr))
}

fn exclusions() -> BTreeMap<String, String> {
    let text = fs::read_to_string(here("tests/pjdfstest/exclusions.txt")).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, reason) = line
                .split_once(char::is_whitespace)
                .expect("an exclusion has a reason");
            (name.to_owned(), reason.trim().to_owned())
        })
        .collect()
}

/// What pjdfstest says of a test, to show beside its verdict.
fn excerpt<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let after = text
        .lines()
        .skip_while(|line| line.split_whitespace().next() != Some(name))
        .skip(1);
    after.take_while(|line| line.starts_with('\t')).collect()
}

/// Fails unless the tests in `dir` have the same verdicts as `native`, but for the exclusions.
pub fn compare(native: &Verdicts, dir: &Path, elsewhere: &Path) {
    let (found, text) = verdicts(dir, elsewhere);
    let excluded = exclusions();
    let differing: Vec<String> = native
        .iter()
        .filter(|(name, verdict)| found.get(*name) != Some(*verdict) && !excluded.contains_key(*name))
        .map(|(name, verdict)| {
            format!(
                "{name}: {:?}, natively {verdict:?} {:?}",
                found.get(name),
                excerpt(&text, name)
            )
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
    let count = |verdict| found.values().filter(|&&v| v == verdict).count();
    let (passed, skipped) = (count(Verdict::Passed), count(Verdict::Skipped));
    println!(
        "{}: {passed} passed, {skipped} skipped, as natively",
        dir.display()
    );
}
