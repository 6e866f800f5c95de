// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each operation of a file system by path, through the kernel.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use extfuse::session::{SessionError, Unmounter};
use extfuse::splice::{MountOptions, PathFilesystem, PathOptions, serve};
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, copy_file_range, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Whence, fsync, lseek};
use tempfile::TempDir;

use super::memory::{Census, Counts, Memory};

/// A mount that a thread of the test serves, gone at the end.
pub struct Mount {
    dir: TempDir,
    unmounter: Unmounter,
    serving: Option<JoinHandle<Result<(), SessionError>>>,
}

impl Mount {
    pub fn new(fs: impl PathFilesystem, options: &MountOptions) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("extfuse-test-")
            .tempdir()
            .unwrap();
        let mounted = serve(fs, dir.path(), options, PathOptions::default()).unwrap();
        let unmounter = mounted.unmounter();
        let serving = Some(thread::spawn(move || mounted.serve()));
        Self {
            dir,
            unmounter,
            serving,
        }
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn end(mut self) {
        self.unmounter.detach().unwrap();
        self.serving.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.unmounter.detach();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

#[track_caller]
fn fails<T>(result: io::Result<T>, errno: i32) {
    match result {
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno)),
        Ok(_) => panic!("no error {errno}"),
    }
}

/// Until the file system has so many files: what nobody knows any more is given back in the background.
#[track_caller]
fn eventually(census: &Census, files: usize) {
    let start = Instant::now();
    while census.files() != files {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} files",
            census.files()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// All of them, one after the other, with the file system empty in between.
pub fn everything(options: &MountOptions) {
    let (memory, census, counts) = Memory::new();
    let mount = Mount::new(memory, options);
    for check in [
        data,
        metadata,
        names,
        nodes,
        links,
        removed_and_open,
        renamed_and_open,
        xattrs,
        space,
    ] {
        check(&mount, &counts);
        eventually(&census, 1);
    }
    assert_eq!(counts.withheld.load(Ordering::Relaxed) > 0, options.withhold);
    mount.end();
    assert_eq!(counts.ended.load(Ordering::Relaxed), 1);
}

fn data(mount: &Mount, counts: &Arc<Counts>) {
    let path = mount.join("file");
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
    let mut file = File::create_new(&path).unwrap();
    file.write_all(&bytes).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    file.write_all_at(b"at", 400_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 400_002);
    let mut hole = vec![1; 100_000];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut hole, 300_000)
        .unwrap();
    assert!(hole.iter().all(|byte| *byte == 0));
    file.set_len(10).unwrap();
    fails(File::create_new(&path), libc::EEXIST);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"end")
        .unwrap();
    let mut read = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, [&bytes[..10], b"end"].concat());

    let before = counts.synced.load(Ordering::Relaxed);
    file.sync_data().unwrap();
    fsync(&file).unwrap();
    fsync(File::open(mount.join("")).unwrap()).unwrap();
    assert_eq!(counts.synced.load(Ordering::Relaxed) - before, 111);
    let before = counts.flushed.load(Ordering::Relaxed);
    drop(file.try_clone().unwrap());
    drop(file);
    assert_eq!(counts.flushed.load(Ordering::Relaxed) - before, 2);
    fs::remove_file(&path).unwrap();
    fails(fs::read(&path), libc::ENOENT);
}

fn metadata(mount: &Mount, _counts: &Arc<Counts>) {
    let path = mount.join("file");
    let file = File::create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode(), 0o100_640);
    file.set_permissions(fs::Permissions::from_mode(0o4751)).unwrap();
    assert_eq!(file.metadata().unwrap().mode(), 0o104_751);
    std::os::unix::fs::chown(&path, Some(12), None).unwrap();
    std::os::unix::fs::chown(&path, None, Some(34)).unwrap();
    let now = file.metadata().unwrap();
    assert_eq!((now.uid(), now.gid()), (12, 34));
    let times = |path: &Path| {
        let now = fs::metadata(path).unwrap();
        ((now.atime(), now.atime_nsec()), (now.mtime(), now.mtime_nsec()))
    };
    let at = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
    file.set_times(
        fs::FileTimes::new()
            .set_accessed(at(5_000_000_007))
            .set_modified(at(9_000_000_011)),
    )
    .unwrap();
    assert_eq!(times(&path), ((5, 7), (9, 11)));
    file.set_times(fs::FileTimes::new().set_modified(at(1))).unwrap();
    assert_eq!(times(&path), ((5, 7), (0, 1)), "one is left as it is");
    nix::sys::stat::futimens(
        &file,
        &nix::sys::time::TimeSpec::UTIME_NOW,
        &nix::sys::time::TimeSpec::UTIME_OMIT,
    )
    .unwrap();
    assert!(times(&path).0.0 > 1_700_000_000 && times(&path).1 == (0, 1));
    fs::remove_file(&path).unwrap();
}

fn names(mount: &Mount, _counts: &Arc<Counts>) {
    let listed = |path: &Path| {
        let mut all: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_encoded_bytes())
            .collect();
        all.sort();
        all
    };
    let dir = mount.join("dir");
    fs::create_dir(&dir).unwrap();
    fails(fs::create_dir(&dir), libc::EEXIST);
    assert_eq!(fs::metadata(mount.join("")).unwrap().nlink(), 3);
    for name in [b"a".as_slice(), b"\xff\xfe", b" \n\"", &[b'x'; 200]] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
        assert_eq!(fs::read(dir.join(OsStr::from_bytes(name))).unwrap(), name);
    }
    let many: Vec<_> = (0..500).map(|i| format!("many-{i:0100}")).collect();
    many.iter()
        .for_each(|name| drop(File::create(dir.join(name)).unwrap()));
    assert_eq!(listed(&dir).len(), 504);
    fails(fs::remove_dir(&dir), libc::ENOTEMPTY);
    many.iter()
        .for_each(|name| fs::remove_file(dir.join(name)).unwrap());
    assert_eq!(
        listed(&dir),
        [
            b" \n\"".to_vec(),
            b"a".to_vec(),
            [b'x'; 200].to_vec(),
            b"\xff\xfe".to_vec()
        ]
    );

    // A directory moves with what is in it, onto an empty one.
    fs::create_dir_all(mount.join("other/empty")).unwrap();
    fs::rename(&dir, mount.join("other/empty")).unwrap();
    let moved = mount.join("other/empty");
    assert_eq!(fs::read(moved.join("a")).unwrap(), b"a");
    fails(fs::metadata(&dir), libc::ENOENT);
    let rename = |from: &Path, to: &Path, flags| {
        renameat2(AT_FDCWD, from, AT_FDCWD, to, flags).map_err(io::Error::from)
    };
    fs::write(mount.join("b"), "b").unwrap();
    fails(
        rename(&mount.join("b"), &moved.join("a"), RenameFlags::RENAME_NOREPLACE),
        libc::EEXIST,
    );
    rename(&mount.join("b"), &moved, RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(mount.join("other/empty")).unwrap(), b"b");
    assert_eq!(fs::read(mount.join("b/a")).unwrap(), b"a");
    rename(
        &mount.join("b/a"),
        &mount.join("b/c"),
        RenameFlags::RENAME_NOREPLACE,
    )
    .unwrap();
    fs::rename(mount.join("b/c"), mount.join("other/empty")).unwrap();
    assert_eq!(fs::read(mount.join("other/empty")).unwrap(), b"a", "replaced");

    fs::create_dir(mount.join("closed")).unwrap();
    fails(fs::read_dir(mount.join("closed")), libc::EMFILE);
    for name in ["closed", "b", "other"] {
        let path = mount.join(name);
        if name == "b" {
            fs::read_dir(&path)
                .unwrap()
                .for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
        } else if name == "other" {
            fs::remove_file(path.join("empty")).unwrap();
        }
        fs::remove_dir(&path).unwrap();
    }
    assert!(listed(&mount.join("")).is_empty());
}

fn nodes(mount: &Mount, _counts: &Arc<Counts>) {
    let path = mount.join("node");
    for kind in [
        SFlag::S_IFIFO,
        SFlag::S_IFSOCK,
        SFlag::S_IFCHR,
        SFlag::S_IFBLK,
        SFlag::S_IFREG,
    ] {
        mknod(&path, kind, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        let made = fs::symlink_metadata(&path).unwrap();
        assert_eq!(made.mode() & 0o777, 0o666 & !umask(), "{kind:?}");
        let is = made.file_type();
        let device = made.rdev() == makedev(1, 3);
        let right = match kind {
            SFlag::S_IFIFO => is.is_fifo(),
            SFlag::S_IFSOCK => is.is_socket(),
            SFlag::S_IFCHR => is.is_char_device() && device,
            SFlag::S_IFBLK => is.is_block_device() && device,
            _ => is.is_file(),
        };
        assert!(right, "{kind:?}");
        fs::remove_file(&path).unwrap();
    }
    for target in ["somewhere", "/etc/passwd", &"long/".repeat(200)] {
        symlink(target, &path).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
        assert_eq!(fs::symlink_metadata(&path).unwrap().len(), target.len() as u64);
        fs::remove_file(&path).unwrap();
    }
    fs::write(mount.join("real"), "real").unwrap();
    symlink("real", &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"real");
    fs::remove_file(&path).unwrap();
    fs::remove_file(mount.join("real")).unwrap();
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))
        .unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

fn links(mount: &Mount, _counts: &Arc<Counts>) {
    let (one, other) = (mount.join("one"), mount.join("other"));
    fs::write(&one, "content").unwrap();
    fs::hard_link(&one, &other).unwrap();
    let (first, second) = (fs::metadata(&one).unwrap(), fs::metadata(&other).unwrap());
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    // One file, one page cache.
    let file = File::open(&one).unwrap();
    let mut room = [0; 7];
    file.read_exact_at(&mut room, 0).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&other)
        .unwrap()
        .write_all_at(b"C", 0)
        .unwrap();
    file.read_exact_at(&mut room, 0).unwrap();
    assert_eq!(&room, b"Content");
    // Also when the kernel has forgotten which is which.
    drop(file);
    forget(mount);
    assert_eq!(
        fs::metadata(&one).unwrap().ino(),
        fs::metadata(&other).unwrap().ino()
    );
    // The name that is left is its path, wherever it goes.
    let file = OpenOptions::new().read(true).write(true).open(&one).unwrap();
    fs::remove_file(&one).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    fs::create_dir(mount.join("dir")).unwrap();
    fs::rename(&other, mount.join("dir/new")).unwrap();
    file.set_len(3).unwrap();
    assert_eq!(fs::read(mount.join("dir/new")).unwrap(), b"Con");
    // Onto another name of itself: nothing happens.
    fs::hard_link(mount.join("dir/new"), &one).unwrap();
    fs::rename(&one, mount.join("dir/new")).unwrap();
    assert_eq!(
        (fs::read(&one).unwrap(), file.metadata().unwrap().nlink()),
        (b"Con".to_vec(), 2)
    );
    fails(
        fs::hard_link(mount.join("missing"), mount.join("x")),
        libc::ENOENT,
    );
    fs::remove_file(&one).unwrap();
    fs::remove_dir_all(mount.join("dir")).unwrap();
}

/// Has the kernel give back what it knows, once it is a second old.
fn forget(mount: &Mount) {
    thread::sleep(Duration::from_millis(1100));
    let _ = fs::write("/proc/sys/vm/drop_caches", "2");
    fs::metadata(mount.join("")).unwrap();
}

fn removed_and_open(mount: &Mount, _counts: &Arc<Counts>) {
    let path = mount.join("file");
    fs::write(&path, "before").unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another").unwrap();
    let mut read = String::new();
    file.read_to_string(&mut read).unwrap();
    assert_eq!(read, "before");
    file.write_all_at(b"BE", 0).unwrap();
    file.set_len(4).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.sync_all().unwrap();
    let now = file.metadata().unwrap();
    assert_eq!((now.len(), now.mode(), now.nlink()), (4, 0o100_600, 0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
    // Replaced by a rename.
    let replaced = File::open(&path).unwrap();
    fs::write(mount.join("new"), "new").unwrap();
    fs::rename(mount.join("new"), &path).unwrap();
    assert_eq!(replaced.metadata().unwrap().nlink(), 0);
    let mut room = [0; 7];
    replaced.read_exact_at(&mut room, 0).unwrap();
    assert_eq!((&room, fs::read(&path).unwrap()), (b"another", b"new".to_vec()));
    fs::remove_file(&path).unwrap();
}

fn renamed_and_open(mount: &Mount, _counts: &Arc<Counts>) {
    fs::create_dir_all(mount.join("a/b")).unwrap();
    let file = File::create(mount.join("a/b/file")).unwrap();
    fs::rename(mount.join("a"), mount.join("c")).unwrap();
    fs::rename(mount.join("c/b/file"), mount.join("c/moved")).unwrap();
    file.write_all_at(b"written", 0).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o611)).unwrap();
    assert_eq!(fs::read(mount.join("c/moved")).unwrap(), b"written");
    assert_eq!(fs::metadata(mount.join("c/moved")).unwrap().mode(), 0o100_611);
    drop(file);
    fs::remove_dir_all(mount.join("c")).unwrap();
}

fn xattrs(mount: &Mount, _counts: &Arc<Counts>) {
    let path = mount.join("file");
    File::create(&path).unwrap();
    let at = CString::new(path.as_os_str().as_bytes()).unwrap();
    let set = |name: &str, value: &[u8], flags| {
        let name = CString::new(name).unwrap();
        // SAFETY: both strings end, and the value is as long as it says.
        let result = unsafe {
            libc::setxattr(
                at.as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                flags,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    let get = |name: &str, room: usize| {
        let name = CString::new(name).unwrap();
        let mut value = vec![0u8; room];
        // SAFETY: as above, for writing.
        let n = unsafe { libc::getxattr(at.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
        match usize::try_from(n) {
            Ok(n) => {
                value.truncate(n);
                Ok((n, value))
            }
            Err(_) => Err(io::Error::last_os_error()),
        }
    };
    fails(get("user.a", 10), libc::ENODATA);
    set("user.a", b"va\0lue", 0).unwrap();
    set("user.empty", b"", libc::XATTR_CREATE).unwrap();
    fails(set("user.a", b"x", libc::XATTR_CREATE), libc::EEXIST);
    fails(set("user.b", b"x", libc::XATTR_REPLACE), libc::ENODATA);
    assert_eq!(get("user.a", 100).unwrap(), (6, b"va\0lue".to_vec()));
    assert_eq!(get("user.a", 6).unwrap().1, b"va\0lue");
    assert_eq!(
        (get("user.a", 0).unwrap().0, get("user.empty", 9).unwrap().0),
        (6, 0)
    );
    fails(get("user.a", 5), libc::ERANGE);
    let mut room = [0u8; 100];
    // SAFETY: as above, for writing.
    let n = unsafe { libc::listxattr(at.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
    assert_eq!(&room[..n as usize], b"user.a\0user.empty\0");
    // SAFETY: as above; nothing is written.
    let n = unsafe { libc::listxattr(at.as_ptr(), std::ptr::null_mut(), 0) };
    assert_eq!(n, 18);
    let name = CString::new("user.a").unwrap();
    // SAFETY: both strings end.
    let remove = || unsafe { libc::removexattr(at.as_ptr(), name.as_ptr()) };
    assert_eq!((remove(), remove()), (0, -1));
    fs::remove_file(&path).unwrap();
}

fn space(mount: &Mount, _counts: &Arc<Counts>) {
    let all = nix::sys::statvfs::statvfs(&mount.join("")).unwrap();
    assert_eq!(
        (all.blocks(), all.blocks_free(), all.blocks_available()),
        (1000, 500, 400)
    );
    assert_eq!((all.files(), all.files_free(), all.name_max()), (77, 66, 200));
    assert_eq!((all.block_size(), all.fragment_size()), (8192, 4096));

    let path = mount.join("file");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 20_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20_000);
    file.write_all(&[7; 20_000]).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 4096, 8192).unwrap();
    let refused = fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 5);
    assert_eq!(refused, Err(nix::errno::Errno::EOPNOTSUPP));
    assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(4096));
    assert_eq!(lseek(&file, 5000, Whence::SeekData), Ok(4096 + 8192));
    assert_eq!(
        lseek(&file, 20_000, Whence::SeekData),
        Err(nix::errno::Errno::ENXIO)
    );

    let copy = File::create_new(mount.join("copy")).unwrap();
    let (mut from, mut to) = (4090, 3);
    let copied = copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 100_000).unwrap();
    assert_eq!((copied, from, to), (20_000 - 4090, 20_000, 20_000 - 4087));
    assert!(fs::read(mount.join("copy")).unwrap()[3..] == fs::read(&path).unwrap()[4090..]);
    fs::remove_file(&path).unwrap();
    fs::remove_file(mount.join("copy")).unwrap();
}
