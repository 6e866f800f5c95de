// SPDX-License-Identifier: MIT OR Apache-2.0
//! File systems by path on stock FUSE: all operations, and those that are not there. Needs root.

mod checks;
mod memory;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use extfuse::splice::{MountOptions, PathFilesystem, attributes};
use fuser::{FileAttr, FileType};
use nix::errno::Errno;

use checks::{Mount, everything};

fn stock() -> MountOptions {
    MountOptions {
        stock: true,
        ..MountOptions::default()
    }
}

#[test]
fn a_file_system_in_memory_does_everything() {
    everything(&stock());
}

/// The least there can be: a directory and a file.
struct Nothing;

impl PathFilesystem for Nothing {
    fn getattr(&self, path: &Path, _fh: Option<u64>) -> Result<FileAttr, Errno> {
        match path.to_str() {
            Some("/") => Ok(attributes(FileType::Directory, 0o777, 0)),
            Some("/file") => Ok(attributes(FileType::RegularFile, 0o666, 5)),
            Some("/link") => Ok(attributes(FileType::Symlink, 0o777, 5)),
            _ => Err(Errno::ENOENT),
        }
    }
}

#[test]
fn what_is_not_there_is_an_error_and_what_can_be_done_without_is_none() {
    let mount = Mount::new(Nothing, &stock());
    let path = mount.join("file");
    let errno = |result: io::Result<()>| result.map_err(|error| error.raw_os_error().unwrap());
    let missing = Err(libc::ENOSYS);
    assert_eq!(
        errno(fs::read_dir(mount.join("")).and_then(|mut all| all.next().unwrap().map(drop))),
        missing
    );
    assert_eq!(errno(fs::read(&path).map(drop)), missing);
    assert_eq!(errno(fs::write(&path, "x")), missing);
    assert_eq!(errno(fs::write(mount.join("new"), "x")), missing);
    assert_eq!(errno(fs::create_dir(mount.join("new"))), missing);
    assert_eq!(errno(symlink("x", mount.join("new"))), missing);
    // What later kernels make of it.
    let linked = errno(fs::hard_link(&path, mount.join("new")));
    assert!(linked == missing || linked == Err(libc::EPERM), "{linked:?}");
    assert_eq!(errno(fs::rename(&path, mount.join("new"))), missing);
    assert_eq!(errno(fs::remove_file(&path)), missing);
    assert_eq!(errno(fs::read_link(mount.join("link")).map(drop)), missing);
    assert_eq!(
        errno(fs::set_permissions(&path, fs::Permissions::from_mode(0o600))),
        missing
    );
    assert_eq!(errno(std::os::unix::fs::chown(&path, Some(1), None)), missing);
    let file = File::open(&path).unwrap();
    assert_eq!(errno(file.set_modified(std::time::UNIX_EPOCH)), missing);
    // And no error: nothing is kept back, nobody knows better, all is said by the attributes.
    file.sync_all().unwrap();
    drop(file.try_clone().unwrap());
    let all = nix::sys::statvfs::statvfs(&mount.join("")).unwrap();
    assert_eq!((all.blocks(), all.name_max()), (0, 255));
    assert_eq!(nix::unistd::access(&path, nix::unistd::AccessFlags::R_OK), Ok(()));
    drop(file);
    mount.end();
}
