// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged files: a read-only file system of files, each of which is put together from ranges of others, one behind the
//! other or in turn, that are on this machine or on servers. What a user may rely on is in `docs/merge.md`.

mod filesystem;
mod source;
mod spec;
mod tree;
mod whole;

pub use self::filesystem::{Merged, Options, Servers};
pub use self::source::SourceError;
pub use self::spec::{File, Origin, Part, Server, Spec, SpecError};

/// Why there is no such file system.
#[derive(Debug, thiserror::Error)]
pub enum MergedError {
    /// What is asked for makes no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A source is not there, or not as large as it would have to be.
    #[error("{spec}:{line}: file {file:?}: {source}")]
    Source {
        /// The spec.
        spec: String,
        /// The line in it.
        line: usize,
        /// The file that wants it.
        file: String,
        /// What is wrong.
        source: SourceError,
    },
    /// It would be larger than files can be.
    #[error("{spec}:{line}: file {file:?}: together its parts are larger than the largest file")]
    TooLarge {
        /// The spec.
        spec: String,
        /// The line in it.
        line: usize,
        /// The file.
        file: String,
    },
    /// A part names a server to which there is no connection.
    #[error("no connection to server {0:?}")]
    NoServer(String),
}
