// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes, beside what the same calls do in the source.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};

use super::mount::{Mounted, run_as};

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn set(path: &Path, name: &str, value: &[u8], flags: i32) -> nix::Result<()> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    // SAFETY: strings with their NUL, and a buffer with its length.
    let rc = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    };
    Errno::result(rc).map(drop)
}

fn get(path: &Path, name: &str, room: usize) -> nix::Result<(usize, Vec<u8>)> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    let mut value = vec![0u8; room];
    // SAFETY: strings with their NUL, and a buffer with its length.
    let rc = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
    let size = Errno::result(rc)? as usize;
    value.truncate(size);
    Ok((size, value))
}

fn list(path: &Path) -> nix::Result<Vec<String>> {
    let path = c(path);
    let mut names = vec![0u8; 4096];
    // SAFETY: a string with its NUL, and a buffer with its length.
    let rc = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(Errno::result(rc)? as usize);
    let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

fn remove(path: &Path, name: &str) -> nix::Result<()> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    // SAFETY: strings with their NUL.
    Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

#[test]
fn values_are_set_read_listed_and_removed() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    let file = m.at("file");
    set(&file, "user.a", b"value", 0).unwrap();
    set(&file, "user.empty", b"", 0).unwrap();
    assert_eq!(get(&file, "user.a", 0), Ok((5, vec![])));
    assert_eq!(get(&file, "user.a", 5), Ok((5, b"value".to_vec())));
    assert_eq!(get(&file, "user.a", 4), Err(Errno::ERANGE));
    assert_eq!(get(&file, "user.empty", 10), Ok((0, vec![])));
    assert_eq!(get(&file, "user.none", 5), Err(Errno::ENODATA));
    assert_eq!(set(&file, "user.a", b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(
        set(&file, "user.b", b"", libc::XATTR_REPLACE),
        Err(Errno::ENODATA)
    );
    let mut names = list(&file).unwrap();
    names.sort();
    assert_eq!(names, ["user.a", "user.empty"]);
    assert_eq!(list(&m.behind("file")).unwrap().len(), 2);
    remove(&file, "user.a").unwrap();
    assert_eq!(remove(&file, "user.a"), Err(Errno::ENODATA));
}

#[test]
fn every_type_of_file_answers_as_it_does_natively() {
    let m = Mounted::new();
    for root in [&m.source, &m.mnt] {
        let tag = if root == &m.source { "native" } else { "fuse" };
        let make = |kind: &str| root.join(format!("{tag}.{kind}"));
        fs::write(make("file"), "").unwrap();
        fs::create_dir(make("dir")).unwrap();
        symlink("nowhere", make("link")).unwrap();
        mknod(&make("pipe"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        mknod(&make("chr"), SFlag::S_IFCHR, Mode::S_IRWXU, libc::makedev(1, 3)).unwrap();
        mknod(&make("sock"), SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap();
    }
    for kind in ["file", "dir", "link", "pipe", "chr", "sock"] {
        let (native, fuse) = (m.behind(&format!("native.{kind}")), m.at(&format!("fuse.{kind}")));
        for name in [
            "user.a",
            "trusted.a",
            "security.a",
            "system.a",
            "nonsense",
            "system.posix_acl_access",
        ] {
            assert_eq!(
                get(&fuse, name, 10),
                get(&native, name, 10),
                "get {name} of a {kind}"
            );
            assert_eq!(
                set(&fuse, name, b"v", 0),
                set(&native, name, b"v", 0),
                "set {name} of a {kind}"
            );
            assert_eq!(
                get(&fuse, name, 10),
                get(&native, name, 10),
                "get {name} of a {kind}"
            );
            let (mut a, mut b) = (list(&fuse).unwrap(), list(&native).unwrap());
            a.sort();
            b.sort();
            assert_eq!(a, b, "list of a {kind}");
            assert_eq!(
                remove(&fuse, name),
                remove(&native, name),
                "remove {name} of a {kind}"
            );
        }
    }
}

#[test]
fn large_values() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    let value = vec![7; 3_000];
    set(&m.at("file"), "user.large", &value, 0).unwrap();
    assert_eq!(get(&m.at("file"), "user.large", 65_536).unwrap().1, value);
    let too_large = vec![7; 65_536];
    let (fuse, native) = (
        set(&m.at("file"), "user.x", &too_large, 0),
        set(&m.behind("file"), "user.x", &too_large, 0),
    );
    assert_eq!(fuse.is_err(), native.is_err());
}

#[test]
fn trusted_names_are_shown_to_root_only() {
    let m = Mounted::new();
    fs::write(m.at("file"), "").unwrap();
    set(&m.at("file"), "user.a", b"", 0).unwrap();
    set(&m.at("file"), "trusted.a", b"", 0).unwrap();
    assert_eq!(list(&m.at("file")).unwrap().len(), 2);
    let getfattr = |path: &Path| {
        let output = run_as(
            1000,
            &[1000],
            &format!("getfattr -m - --absolute-names {}", path.display()),
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(getfattr(&m.at("file")), getfattr(&m.behind("file")));
    assert!(getfattr(&m.at("file")).contains(&"user.a".to_owned()));
}

#[test]
fn a_write_removes_file_capabilities() {
    for m in [Mounted::new(), Mounted::cached()] {
        fs::write(m.at("file"), "").unwrap();
        let capability = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set(&m.at("file"), "security.capability", &capability, 0).unwrap();
        assert!(get(&m.behind("file"), "security.capability", 100).is_ok());
        fs::write(m.at("file"), "text").unwrap();
        assert_eq!(
            get(&m.behind("file"), "security.capability", 100),
            Err(Errno::ENODATA)
        );
    }
}
