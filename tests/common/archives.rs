// SPDX-License-Identifier: MIT OR Apache-2.0
//! Archives to mount.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::fs::File;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Files a directory, in [`tree`].
pub const FILES: usize = 10;
/// Directories of them.
pub const DIRECTORIES: usize = 10;

/// What is in a file of that number.
pub fn content(number: usize) -> Vec<u8> {
    format!("{number} ").repeat(1 + number * 70).into_bytes()
}

/// A tar under construction.
pub struct Tar(tar::Builder<File>);

impl Tar {
    pub fn new(path: &Path) -> Self {
        Self(tar::Builder::new(File::create(path).unwrap()))
    }

    /// A member with a name that a builder would not take.
    pub fn add(&mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o750
        } else {
            0o640
        });
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_000_000_000);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
    }

    pub fn file(&mut self, name: &str, data: &[u8]) {
        self.add(EntryType::Regular, name, "", data);
    }

    pub fn finish(self) {
        self.0.into_inner().unwrap();
    }
}

/// A tar of directories of files.
pub fn tree(at: &Path) -> PathBuf {
    let path = at.join("tree.tar");
    let mut tar = Tar::new(&path);
    for number in 0..DIRECTORIES * FILES {
        let name = format!("d{}/f{number}", number / FILES);
        tar.file(&name, &content(number));
    }
    tar.finish();
    path
}

/// A zip of some text, stored and deflated, and a symlink.
pub fn zip(at: &Path, text: &[u8]) -> PathBuf {
    let path = at.join("some.zip");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let how = |method| SimpleFileOptions::default().compression_method(method);
    zip.add_directory("d", SimpleFileOptions::default()).unwrap();
    zip.start_file("d/stored", how(CompressionMethod::Stored))
        .unwrap();
    zip.write_all(text).unwrap();
    zip.start_file("d/deflated", how(CompressionMethod::Deflated))
        .unwrap();
    zip.write_all(text).unwrap();
    zip.add_symlink("link", "d/deflated", SimpleFileOptions::default())
        .unwrap();
    std::fs::write(&path, zip.finish().unwrap().into_inner()).unwrap();
    path
}
