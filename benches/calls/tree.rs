// SPDX-License-Identifier: MIT OR Apache-2.0
//! The directory tree that all variants are measured on, and its paths as seen through a mount.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Bytes of the file that is read.
pub const FILE_BYTES: usize = 1 << 20;

/// Makes the tree, with `many` files in one directory.
pub fn make(at: &Path, many: usize) -> Result<()> {
    let make = || -> std::io::Result<()> {
        fs::create_dir_all(at.join("a/b/c"))?;
        fs::create_dir_all(at.join("many"))?;
        fs::write(at.join("file"), vec![0x5a; FILE_BYTES])?;
        fs::write(at.join("scratch"), [0; 4096])?;
        fs::write(at.join("a/b/c/file"), b"deep\n")?;
        for i in 0..many {
            fs::File::create(at.join(format!("many/{i:05}")))?;
        }
        Ok(())
    };
    make().with_context(|| format!("cannot make the tree in {}", at.display()))?;
    // What is written back later would be counted as somebody's call.
    nix::unistd::sync();
    Ok(())
}

/// A path as system calls take it.
pub fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).context("a path with a NUL byte")
}

/// Every path that a case uses, ready for the system call.
#[derive(Debug)]
pub struct Paths {
    /// A file in the root.
    pub file: CString,
    /// A file in the root that is there to be written.
    pub scratch: CString,
    /// A file below three directories: four components.
    pub deep: CString,
    /// A name that isn't there.
    pub missing: CString,
    /// A directory that isn't there, to be made and removed.
    pub made: CString,
    pub many: Vec<CString>,
}

impl Paths {
    /// The paths, relative to the root of the tree: how deep that lies is not what is measured.
    pub fn new(many: usize) -> Result<Self> {
        let path = |name: &str| c_path(Path::new(name));
        Ok(Self {
            file: path("file")?,
            scratch: path("scratch")?,
            deep: path("a/b/c/file")?,
            missing: path("missing")?,
            made: path("made")?,
            many: (0..many)
                .map(|i| path(&format!("many/{i:05}")))
                .collect::<Result<_>>()?,
        })
    }
}
