// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel would never send, sent to the operations themselves, without FUSE.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use extfuse::abi::NodeId;
use extfuse::fs::stack::{Caller, SetAttr, XattrReply};
use extfuse::fs::{Stack, StackOptions};
use fuser::{BackingId, FileHandle, RenameFlags, WriteFlags};
use nix::errno::Errno;

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const NOBODY: NodeId = NodeId(999);
const NO_HANDLE: FileHandle = FileHandle(999);

fn stack() -> (tempfile::TempDir, Stack) {
    let dir = tempfile::tempdir().unwrap();
    let stack = Stack::new(dir.path(), StackOptions::default()).unwrap();
    (dir, stack)
}

fn no_backing(_: BorrowedFd<'_>) -> std::io::Result<BackingId> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[test]
fn a_node_that_is_not_there_is_stale() {
    let (_dir, s) = stack();
    let name = OsStr::new("name");
    let empty = RenameFlags::empty();
    for result in [
        s.lookup(NOBODY, name).map(drop),
        s.getattr(NOBODY).map(drop),
        s.setattr(NOBODY, &SetAttr::default()).map(drop),
        s.readlink(NOBODY).map(drop),
        s.mknod(NOBODY, name, libc::S_IFREG, 0, 0, ROOT).map(drop),
        s.mkdir(NOBODY, name, 0, 0, ROOT).map(drop),
        s.symlink(NOBODY, name, Path::new("x"), ROOT).map(drop),
        s.link(NOBODY, NodeId::ROOT, name).map(drop),
        s.link(NodeId::ROOT, NOBODY, name).map(drop),
        s.unlink(NOBODY, name),
        s.rmdir(NOBODY, name),
        s.rename(NOBODY, name, NodeId::ROOT, name, empty, ROOT),
        s.rename(NodeId::ROOT, name, NOBODY, name, empty, ROOT),
        s.open(NOBODY, libc::O_RDONLY, no_backing).map(drop),
        s.create(NOBODY, name, 0, 0, libc::O_RDWR, ROOT, no_backing)
            .map(drop),
        s.opendir(NOBODY).map(drop),
        s.statfs(NOBODY).map(drop),
        s.getxattr(NOBODY, name, 0).map(drop),
        s.listxattr(NOBODY, 0, ROOT).map(drop),
        s.setxattr(NOBODY, name, b"", 0, ROOT),
        s.removexattr(NOBODY, name),
        s.ioctl(NOBODY, libc::FS_IOC_GETFLAGS as u32, &[]).map(drop),
    ] {
        assert_eq!(result, Err(Errno::ESTALE));
    }
    s.forget(NOBODY, 1);
    s.forget(NodeId(0), u64::MAX);
    s.forget(NodeId::ROOT, u64::MAX);
    assert!(s.getattr(NodeId::ROOT).is_ok());
}

#[test]
fn a_handle_that_is_not_there_is_bad() {
    let (_dir, s) = stack();
    for result in [
        s.read(NO_HANDLE, 0, 1, |_| ()),
        s.write(NO_HANDLE, 0, b"x", WriteFlags::empty(), 0).map(drop),
        s.flush(NO_HANDLE),
        s.release(NO_HANDLE),
        s.fsync(NO_HANDLE, false),
        s.fallocate(NO_HANDLE, 0, 1, 0),
        s.lseek(NO_HANDLE, 0, libc::SEEK_DATA).map(drop),
        s.copy_file_range((NO_HANDLE, 0), (NO_HANDLE, 0), 1, 0).map(drop),
        s.readdir(NO_HANDLE, 0, |_| false),
        s.releasedir(NO_HANDLE),
        s.fsyncdir(NO_HANDLE, false),
    ] {
        assert_eq!(result, Err(Errno::EBADF));
    }
}

#[test]
fn a_name_that_is_none_leads_nowhere() {
    let (dir, s) = stack();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/file"), "").unwrap();
    for (name, errno) in [
        ("", Errno::ENOENT),
        (".", Errno::EINVAL),
        ("..", Errno::EINVAL),
        ("d/file", Errno::EINVAL),
        ("/etc", Errno::EINVAL),
        ("../x", Errno::EINVAL),
        ("a\0b", Errno::EINVAL),
    ] {
        let name = OsStr::new(name);
        assert_eq!(s.lookup(NodeId::ROOT, name).map(drop), Err(errno), "{name:?}");
        assert_eq!(
            s.mkdir(NodeId::ROOT, name, 0, 0, ROOT).map(drop),
            Err(errno),
            "{name:?}"
        );
        assert_eq!(s.unlink(NodeId::ROOT, name), Err(errno), "{name:?}");
        let fine = OsStr::new("fine");
        let empty = RenameFlags::empty();
        assert_eq!(
            s.rename(NodeId::ROOT, fine, NodeId::ROOT, name, empty, ROOT),
            Err(errno),
            "{name:?}"
        );
    }
    assert_eq!(s.nodes(), 1);
}

#[test]
fn operations_on_the_wrong_type_fail_and_never_block() {
    let (dir, s) = stack();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(dir.path().join("file"), "text").unwrap();
    let node = |name: &str| s.lookup(NodeId::ROOT, OsStr::new(name)).unwrap().node;
    let (pipe, file) = (node("pipe"), node("file"));
    let truncate = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    assert_eq!(
        s.open(pipe, libc::O_RDONLY, no_backing).map(drop),
        Err(Errno::EINVAL)
    );
    assert_eq!(s.setattr(pipe, &truncate).map(drop), Err(Errno::EINVAL));
    assert_eq!(s.setattr(NodeId::ROOT, &truncate).map(drop), Err(Errno::EISDIR));
    assert_eq!(
        s.ioctl(pipe, libc::FS_IOC_GETFLAGS as u32, &[]),
        Err(Errno::ENOTTY)
    );
    assert_eq!(s.opendir(file).map(drop), Err(Errno::ENOTDIR));
    assert_eq!(s.lookup(file, OsStr::new("x")).map(drop), Err(Errno::ENOTDIR));
    assert_eq!(s.readlink(file).map(drop), Err(Errno::EINVAL));
    assert_eq!(s.ioctl(file, 0x5401, &[]), Err(Errno::ENOTTY));
}

#[test]
fn numbers_out_of_range_are_errors() {
    let (dir, s) = stack();
    fs::write(dir.path().join("file"), "text").unwrap();
    let file = s.lookup(NodeId::ROOT, OsStr::new("file")).unwrap().node;
    let fh = s.open(file, libc::O_RDWR, no_backing).unwrap().fh;
    assert_eq!(s.fallocate(fh, u64::MAX, 1, 0), Err(Errno::EINVAL));
    assert_eq!(s.fallocate(fh, 0, 1, 1 << 30), Err(Errno::EOPNOTSUPP));
    assert!(s.read(fh, u64::MAX, 10, |_| ()).is_err());
    assert!(s.write(fh, u64::MAX, b"text", WriteFlags::empty(), 0).is_err());
    assert_eq!(s.lseek(fh, 0, libc::SEEK_SET), Err(Errno::EINVAL));
    assert_eq!(s.copy_file_range((fh, 0), (fh, 10), 1, 1), Err(Errno::EINVAL));
    let too_large = SetAttr {
        size: Some(u64::MAX),
        ..SetAttr::default()
    };
    assert_eq!(s.setattr(file, &too_large).map(drop), Err(Errno::EFBIG));
    let dir = s.opendir(NodeId::ROOT).unwrap().fh;
    assert_eq!(s.readdir(dir, u64::MAX, |_| false), Err(Errno::EINVAL));
    let flags = RenameFlags::from_bits_retain(1 << 31);
    let name = OsStr::new("file");
    assert_eq!(
        s.rename(NodeId::ROOT, name, NodeId::ROOT, name, flags, ROOT),
        Err(Errno::EINVAL)
    );
}

#[test]
fn an_open_file_outlives_its_forgotten_node() {
    let (dir, s) = stack();
    fs::write(dir.path().join("file"), "text").unwrap();
    let file = s.lookup(NodeId::ROOT, OsStr::new("file")).unwrap().node;
    let fh = s.open(file, libc::O_RDONLY, no_backing).unwrap().fh;
    s.forget(file, 1);
    assert_eq!(s.nodes(), 1);
    assert_eq!(s.read(fh, 1, 10, <[u8]>::to_vec), Ok(b"ext".to_vec()));
    s.release(fh).unwrap();
    assert_eq!(s.release(fh), Err(Errno::EBADF));
}

#[test]
fn a_listing_that_is_cut_short_goes_on_with_the_entry_that_had_no_room() {
    let (dir, s) = stack();
    for i in 0..500 {
        fs::write(dir.path().join(format!("{i}")), "").unwrap();
    }
    let fh = s.opendir(NodeId::ROOT).unwrap().fh;
    let mut names = Vec::new();
    let mut position = 0;
    loop {
        let mut room = 7;
        s.readdir(fh, position, |entry| {
            if room == 0 {
                return true;
            }
            room -= 1;
            names.push(entry.name.to_owned());
            position = entry.next;
            false
        })
        .unwrap();
        if room == 7 {
            break;
        }
    }
    assert_eq!(names.len(), 502);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 502);
    // Back to the middle, as seekdir(3) goes.
    let mut again = 0;
    s.readdir(fh, position, |_| {
        again += 1;
        false
    })
    .unwrap();
    assert_eq!(again, 0);
}

#[test]
fn a_listing_from_the_beginning_forgets_what_was_buffered() {
    let (dir, s) = stack();
    let fh = s.opendir(NodeId::ROOT).unwrap().fh;
    s.readdir(fh, 0, |_| true).unwrap();
    fs::write(dir.path().join("new"), "").unwrap();
    let mut names = Vec::new();
    s.readdir(fh, 0, |entry| {
        names.push(entry.name.to_owned());
        false
    })
    .unwrap();
    assert!(names.contains(&"new".into()), "{names:?}");
}

#[test]
fn an_attribute_is_measured_read_and_refused_by_size() {
    let (dir, s) = stack();
    fs::write(dir.path().join("file"), "").unwrap();
    let file = s.lookup(NodeId::ROOT, OsStr::new("file")).unwrap().node;
    let name = OsStr::new("user.a");
    s.setxattr(file, name, b"value", 0, ROOT).unwrap();
    assert_eq!(s.getxattr(file, name, 0), Ok(XattrReply::Size(5)));
    assert_eq!(
        s.getxattr(file, name, 100),
        Ok(XattrReply::Data(b"value".to_vec()))
    );
    assert_eq!(s.getxattr(file, name, 4), Err(Errno::ERANGE));
    assert_eq!(s.listxattr(file, 0, ROOT), Ok(XattrReply::Size(7)));
    assert_eq!(s.listxattr(file, 3, ROOT), Err(Errno::ERANGE));
}
