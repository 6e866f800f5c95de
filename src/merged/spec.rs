// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is to be put together from what, as its file says it. Nothing is looked at here but the text.

mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::remote::wire::Name;

/// A file's name and line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    file: PathBuf,
    line: Option<usize>,
    reason: String,
}

impl std::error::Error for SpecError {}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// How a server is reached: the options of `extfuse mount`, with `_` for `-`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "named as the options are")]
pub struct Server {
    /// `extfuse://HOST:PORT/NAME` or `extfuse+unix:SOCKET`.
    pub url: String,
    pub token_file: Option<PathBuf>,
    #[serde(default)]
    pub tls: bool,
    pub tls_ca: Option<PathBuf>,
    pub tls_name: Option<String>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    #[serde(default)]
    pub insecure: bool,
    /// Seconds.
    pub timeout: Option<f64>,
    pub on_disconnect: Option<String>,
}

/// Where bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A file or block device of this machine, by its path.
    Local(PathBuf),
    /// A file of a server.
    Remote {
        /// The server's name in the spec.
        server: String,
        /// The names that lead to it from what the server serves.
        names: Vec<Name>,
    },
    /// Zeros.
    Zeros,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Remote { server, names } => {
                write!(f, "{server}:")?;
                names.iter().enumerate().try_for_each(|(at, name)| {
                    let slash = if at == 0 { "" } else { "/" };
                    write!(f, "{slash}{}", name.as_os_str().display())
                })
            }
            Self::Zeros => f.write_str("zeros"),
        }
    }
}

/// A range of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The source.
    pub origin: Origin,
    /// Its first byte there.
    pub offset: u64,
    /// Bytes; none: to the end that the source has when it is mounted.
    pub length: Option<u64>,
    /// Line in the spec.
    pub line: usize,
}

/// A file to be put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The names that lead to it; at least one.
    pub names: Vec<String>,
    /// Its permissions.
    pub mode: Option<u16>,
    /// How many bytes of each part in turn; none: one part behind the other.
    pub stripe: Option<NonZeroU64>,
    /// At least one.
    pub parts: Vec<Part>,
    /// Line in the spec.
    pub line: usize,
}

impl File {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        self.names.join("/")
    }
}

/// All that a spec says.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Where it was read.
    pub file: PathBuf,
    /// Those that a part names.
    pub servers: BTreeMap<String, Server>,
    /// At least one. No two have the same path, and no path leads through another file.
    pub files: Vec<File>,
}

impl Spec {
    /// What the file says. What it says of others is not looked at.
    ///
    /// # Errors
    ///
    /// If it can't be read, or makes no sense.
    pub fn read(file: &Path) -> Result<Self, SpecError> {
        let text = std::fs::read_to_string(file).map_err(|error| SpecError {
            file: file.to_owned(),
            line: None,
            reason: error.to_string(),
        })?;
        Self::parse(file, &text)
    }

    /// What the text of the file says.
    ///
    /// # Errors
    ///
    /// If it makes no sense.
    pub fn parse(file: &Path, text: &str) -> Result<Self, SpecError> {
        text::parse(file, text)
    }
}
