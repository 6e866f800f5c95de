// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `extfuse serve` serves: directories that are named on the command line, or in a file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use extfuse::remote::server::Export;
use extfuse::remote::wire;
use serde::Deserialize;

/// Where the exports are named.
#[derive(Debug, Args)]
pub struct Exports {
    /// The directories: DIR, or NAME=DIR for one of several
    #[arg(
        required_unless_present = "exports",
        conflicts_with = "exports",
        value_name = "[NAME=]DIR"
    )]
    directories: Vec<OsString>,
    /// The directories, in a file; see below. It is read anew on SIGHUP: clients of those that are still the same go
    /// on, the others' sessions end
    #[arg(long, value_name = "FILE")]
    exports: Option<PathBuf>,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
}

/// What `--help` says of the file.
pub const HELP: &str = "\
A file of exports (--exports) is TOML. Relative directories are below its own:

  [[export]]
  directory = \"/srv/data\"     # extfuse://HOST:PORT

  [[export]]
  name = \"music\"              # extfuse://HOST:PORT/music
  directory = \"/srv/music\"
  read_only = true            # optional";

/// As the file has them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    export: Vec<One>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    #[serde(default)]
    name: String,
    directory: PathBuf,
    #[serde(default)]
    read_only: bool,
}

impl Exports {
    /// Those that are named now.
    pub fn read(&self) -> anyhow::Result<Vec<Export>> {
        match &self.exports {
            Some(file) => self.in_file(file),
            None => self.directories.iter().map(|given| self.given(given)).collect(),
        }
    }

    /// What tells them from those of another server.
    pub fn parts(&self) -> impl Iterator<Item = &OsStr> {
        let file = self.exports.as_deref().map(Path::as_os_str);
        self.directories.iter().map(OsString::as_os_str).chain(file)
    }

    fn in_file(&self, path: &Path) -> anyhow::Result<Vec<Export>> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(shown)?;
        let file: File = toml::from_str(&text).with_context(shown)?;
        ensure!(!file.export.is_empty(), "{} has no [[export]]", path.display());
        let folder = path.parent().unwrap_or(Path::new(""));
        let export = |one: One| -> anyhow::Result<Export> {
            ensure!(
                !one.directory.as_os_str().is_empty(),
                "an export names no directory"
            );
            Ok(Export {
                name: name(one.name.as_bytes())?,
                directory: folder.join(one.directory),
                read_only: one.read_only || self.read_only,
            })
        };
        let exports: anyhow::Result<_> = file.export.into_iter().map(export).collect();
        exports.with_context(shown)
    }

    /// An `=` behind a `/` belongs to a path.
    fn given(&self, given: &OsString) -> anyhow::Result<Export> {
        let bytes = given.as_bytes();
        let equals = bytes.iter().position(|byte| b"=/".contains(byte));
        let (called, directory) = match equals {
            Some(at) if bytes[at] == b'=' => (&bytes[..at], &bytes[at + 1..]),
            _ => (&b""[..], bytes),
        };
        ensure!(!directory.is_empty(), "{} names no directory", given.display());
        Ok(Export {
            name: name(called).with_context(|| given.display().to_string())?,
            directory: OsString::from_vec(directory.to_vec()).into(),
            read_only: self.read_only,
        })
    }
}

fn name(bytes: &[u8]) -> anyhow::Result<wire::Export> {
    wire::Export::new(bytes).map_err(|error| anyhow!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Vec<Export>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exports.toml");
        std::fs::write(&path, text).unwrap();
        let exports = Exports {
            directories: Vec::new(),
            exports: Some(path),
            read_only: false,
        };
        let strip = |export: Export| Export {
            directory: export
                .directory
                .strip_prefix(folder.path())
                .map_or(export.directory.clone(), Path::to_path_buf),
            ..export
        };
        let read = exports.read();
        read.map(|exports| exports.into_iter().map(strip).collect())
            .map_err(|error| format!("{error:#}"))
    }

    fn export(name: &str, directory: &str, read_only: bool) -> Export {
        Export {
            name: wire::Export::new(name.as_bytes()).unwrap(),
            directory: directory.into(),
            read_only,
        }
    }

    #[test]
    fn exports_are_read_from_a_file() {
        let text = "[[export]]\ndirectory = '/srv'\n\
                    [[export]]\nname = 'm'\ndirectory = 'music'\nread_only = true\n";
        let expected = vec![export("", "/srv", false), export("m", "music", true)];
        assert_eq!(from_file(text), Ok(expected));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (text, why) in [
            ("", "no [[export]]"),
            ("[[export]]\nname = 'a'\n", "directory"),
            ("[[export]]\ndirectory = ''\n", "names no directory"),
            ("[[export]]\ndirectory = '/'\nreadonly = true\n", "readonly"),
            ("[[exports]]\ndirectory = '/'\n", "exports"),
            (
                "[[export]]\ndirectory = '/'\nname = \"a\\u0000\"\n",
                "exports.toml",
            ),
            ("no toml", "exports.toml"),
        ] {
            let said = from_file(text).unwrap_err();
            assert!(said.contains(why), "{text:?}: {said}");
        }
    }
}
