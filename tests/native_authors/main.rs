// SPDX-License-Identifier: MIT OR Apache-2.0
//! File systems of other authors on stock FUSE: the mount call, and the examples.

#[path = "../common/archives.rs"]
mod archives;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/archive/filesystem.rs"]
mod filesystem;
#[allow(dead_code)]
#[path = "../../examples/hello.rs"]
mod hello;
#[path = "../../examples/archive/members.rs"]
mod members;
#[path = "../common/served.rs"]
mod served;
#[path = "../../examples/archive/tree.rs"]
mod tree;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use extfuse::MountOptions;
use extfuse::session::{PlaceError, SessionError};
use tar::EntryType;
use tempfile::TempDir;

use archives::{DIRECTORIES, FILES, Tar, content};
use common::{eventually, mounts_at};
use hello::Hello;
use served::{Served, find, mountpoint};

fn stock() -> MountOptions {
    MountOptions {
        stock: true,
        threads: 2,
        ..MountOptions::default()
    }
}

fn hello() -> Served {
    Served::new(|at| extfuse::mount(Hello, at, &stock()).unwrap())
}

fn archive(path: &Path, spool: u64) -> Served {
    Served::new(|at| filesystem::mount(path, at, spool, &stock()).unwrap())
}

fn names(served: &Served) -> Vec<PathBuf> {
    let relative = |path: PathBuf| path.strip_prefix(served.root()).unwrap().to_owned();
    find(served.root()).into_iter().map(relative).collect()
}

#[test]
fn a_file_system_of_fusers_is_mounted_as_it_is() {
    let served = hello();
    assert_eq!(names(&served), [PathBuf::from("hello.txt")]);
    assert_eq!(fs::read(served.path("hello.txt")).unwrap(), b"Hello World!\n");
    assert!(File::open(served.path("other")).is_err());
    assert!(served.kernel.cache().is_none() && served.kernel.device().is_none());
    let report = served.report();
    assert!(report.program.is_none() && report.warnings.is_empty());
    served.kernel.invalidate(&[extfuse::ebpf::Key::All]);
}

#[test]
fn without_the_module_there_is_a_warning_or_no_mount() {
    assert!(
        !Path::new("/dev/extfuse").exists(),
        "a test of the machine without the module"
    );
    let at = mountpoint();
    let session = extfuse::mount(Hello, at.path(), &MountOptions::default()).unwrap();
    assert_eq!(session.warnings().len(), 1);
    drop(session);
    let options = MountOptions {
        require_module: true,
        ..MountOptions::default()
    };
    let error = extfuse::mount(Hello, at.path(), &options).unwrap_err();
    assert!(matches!(error, SessionError::NoModule(_)), "{error}");
    assert!(mounts_at(at.path()).is_empty());
}

#[test]
fn what_cannot_be_mounted_at_is_refused() {
    let served = hello();
    let refused = |at: &Path| match extfuse::mount(Hello, at, &stock()).unwrap_err() {
        SessionError::Place(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(refused(served.root()), PlaceError::Occupied { .. }));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(refused(file.path()), PlaceError::TargetNotDirectory(_)));
    assert!(matches!(
        refused(Path::new("/no/such")),
        PlaceError::Target { .. }
    ));
}

#[test]
fn a_session_that_is_dropped_is_unmounted() {
    let at = mountpoint();
    let session = extfuse::mount(Hello, at.path(), &stock()).unwrap();
    assert_eq!(mounts_at(at.path()).len(), 1);
    drop(session);
    assert!(mounts_at(at.path()).is_empty());
}

#[test]
fn an_unmount_ends_serving() {
    let mut served = hello();
    served.unmounter.unmount().unwrap();
    served.end().unwrap();
}

#[test]
fn a_mount_in_use_is_served_to_its_last_user() {
    let mut served = hello();
    let mut file = File::open(served.path("hello.txt")).unwrap();
    served.unmounter.detach().unwrap();
    assert!(mounts_at(served.root()).is_empty());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "Hello World!\n");
    drop(file);
    served.end().unwrap();
}

#[test]
fn a_tar_is_shown_as_it_would_be_unpacked() {
    let dir = TempDir::new().unwrap();
    let path = archives::tree(dir.path());
    let served = archive(&path, 0);
    assert_eq!(names(&served).len(), DIRECTORIES * (FILES + 1));
    for number in 0..DIRECTORIES * FILES {
        let name = format!("d{}/f{number}", number / FILES);
        assert_eq!(fs::read(served.path(&name)).unwrap(), content(number), "{name}");
    }
    let meta = fs::metadata(served.path("d0/f1")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode(), meta.mtime()),
        (1000, 100, 0o100_640, 1_000_000_000)
    );
    let mut some = [0; 10];
    let file = File::open(served.path("d9/f99")).unwrap();
    file.read_exact_at(&mut some, 5000).unwrap();
    assert_eq!(some, content(99)[5000..5010]);
    let error = File::create(served.path("new")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn links_devices_and_duplicates_are_what_they_are() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.tar");
    let mut tar = Tar::new(&path);
    tar.file("a/file", b"first");
    tar.file("twice", b"old");
    tar.add(EntryType::Symlink, "soft", "a/file", b"");
    tar.add(EntryType::Symlink, "away", "/etc/passwd", b"");
    tar.add(EntryType::Link, "hard", "a/file", b"");
    tar.add(EntryType::Fifo, "fifo", "", b"");
    tar.add(EntryType::Char, "null", "", b"");
    tar.add(EntryType::Directory, "a", "", b"");
    tar.file("./twice", b"new");
    tar.file("/absolute", b"inside");
    tar.finish();
    let served = archive(&path, 0);
    assert_eq!(fs::read(served.path("twice")).unwrap(), b"new");
    assert_eq!(fs::read(served.path("absolute")).unwrap(), b"inside");
    assert_eq!(fs::read(served.path("soft")).unwrap(), b"first");
    assert_eq!(
        fs::read_link(served.path("away")).unwrap(),
        Path::new("/etc/passwd")
    );
    let (one, other) = (
        fs::metadata(served.path("hard")).unwrap(),
        fs::metadata(served.path("a/file")).unwrap(),
    );
    assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
    assert_eq!(fs::metadata(served.path("a")).unwrap().mode(), 0o040_750);
    assert!(fs::metadata(served.path("fifo")).unwrap().file_type().is_fifo());
    let null = fs::metadata(served.path("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), nix::sys::stat::makedev(1, 3));
    let error = File::open(served.path("null")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES), "a device was opened");
}

#[test]
fn what_would_lead_out_of_the_tree_is_left_out() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.tar");
    let mut tar = Tar::new(&path);
    tar.file("../outside", b"x");
    tar.file("a/../../outside", b"x");
    tar.file("file", b"x");
    tar.file("file/below", b"x");
    tar.add(EntryType::Symlink, "soft", "/tmp", b"");
    tar.file("soft/through", b"x");
    tar.add(EntryType::Link, "hard", "../outside", b"");
    tar.add(EntryType::Link, "missing", "nothing", b"");
    tar.add(EntryType::Directory, "d", "", b"");
    tar.file("d/kept", b"x");
    tar.file("d", b"a file in its place");
    tar.add(EntryType::new(b'Z'), "unknown", "", b"");
    tar.finish();
    assert_eq!(members::read(&path).unwrap().0.left_out, 8);
    let served = archive(&path, 0);
    assert_eq!(names(&served), ["d", "d/kept", "file", "soft"].map(PathBuf::from));
}

#[test]
fn what_is_no_archive_or_cut_off_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = archives::tree(dir.path());
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(50_000)
        .unwrap();
    assert!(members::read(&path).is_err());
    fs::write(&path, "no archive ".repeat(100)).unwrap();
    assert!(members::read(&path).is_err());
    fs::write(&path, "PK\x03\x04 nor this").unwrap();
    assert!(members::read(&path).is_err());
}

#[test]
fn compressed_members_are_unpacked_once_and_not_beyond_the_bound() {
    let dir = TempDir::new().unwrap();
    let text = b"again and again ".repeat(20_000);
    let path = archives::zip(dir.path(), &text);
    let served = archive(&path, text.len() as u64);
    assert_eq!(
        names(&served),
        ["d", "d/deflated", "d/stored", "link"].map(PathBuf::from)
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for name in ["d/stored", "d/deflated", "link"] {
                    assert!(fs::read(served.path(name)).unwrap() == text, "{name}");
                }
            });
        }
    });
    let served = archive(&path, text.len() as u64 - 1);
    assert!(fs::read(served.path("d/stored")).unwrap() == text);
    let error = File::open(served.path("d/deflated")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
}

#[test]
fn a_compressed_member_that_is_spoiled_is_an_error() {
    let dir = TempDir::new().unwrap();
    let text: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
    let path = archives::zip(dir.path(), &text);
    let mut bytes = fs::read(&path).unwrap();
    // Behind the stored member, in the middle of the compressed one.
    let at = text.len() + 3000;
    bytes[at] ^= 0x10;
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let served = archive(&path, 1 << 30);
    let error = File::open(served.path("d/deflated")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    eventually(|| fs::read(served.path("d/stored")).unwrap() == text);
}
