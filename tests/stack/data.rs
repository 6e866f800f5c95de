// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data: each test with a backing file and without.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use extfuse::fs::StackOptions;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use nix::unistd::{Whence, lseek};

use super::mount::Mounted;

fn mounts() -> [Mounted; 3] {
    let keep_cache = StackOptions {
        keep_cache: true,
        ..Default::default()
    };
    [Mounted::new(), Mounted::cached(), Mounted::with(keep_cache)]
}

fn rw(m: &Mounted, name: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(m.at(name))
        .unwrap()
}

#[test]
fn large_files_are_read_as_they_were_written() {
    for m in mounts() {
        let data: Vec<u8> = (0..5_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        fs::write(m.at("file"), &data).unwrap();
        assert!(fs::read(m.at("file")).unwrap() == data);
        assert!(fs::read(m.behind("file")).unwrap() == data);
        let file = File::open(m.at("file")).unwrap();
        let mut buf = [0; 100];
        assert_eq!(file.read_at(&mut buf, 4_999_950).unwrap(), 50);
        assert_eq!(file.read_at(&mut buf, 6_000_000).unwrap(), 0);
    }
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    for m in mounts() {
        let mut file = rw(&m, "file");
        fs::remove_file(m.at("file")).unwrap();
        file.write_all(b"text").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), ("text", 0));
    }
}

#[test]
fn appending_goes_to_the_real_end() {
    for m in mounts() {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(m.at("log"))
            .unwrap();
        file.write_all(b"one ").unwrap();
        OpenOptions::new()
            .append(true)
            .open(m.behind("log"))
            .unwrap()
            .write_all(b"two ")
            .unwrap();
        file.write_all(b"three").unwrap();
        assert_eq!(fs::read_to_string(m.behind("log")).unwrap(), "one two three");
    }
}

fn with_map(file: &File, len: usize, change: impl FnOnce(&mut [u8])) {
    let len = NonZeroUsize::new(len).unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh shared mapping of a file that is at least this long and that nobody truncates.
    unsafe {
        let map = mmap(None, len, prot, MapFlags::MAP_SHARED, file, 0).unwrap();
        change(std::slice::from_raw_parts_mut(map.as_ptr().cast(), len.get()));
        msync(map, len.get(), MsFlags::MS_SYNC).unwrap();
        munmap(map, len.get()).unwrap();
    }
}

#[test]
fn mapped_pages_and_reads_see_the_same() {
    for m in mounts() {
        let file = rw(&m, "file");
        file.set_len(8192).unwrap();
        with_map(&file, 8192, |map| {
            map[4096..4100].copy_from_slice(b"page");
            file.write_all_at(b"call", 0).unwrap();
            assert_eq!(&map[..4], b"call");
        });
        let mut buf = [0; 4];
        file.read_exact_at(&mut buf, 4096).unwrap();
        assert_eq!(&buf, b"page");
        assert_eq!(&fs::read(m.behind("file")).unwrap()[4096..4100], b"page");
    }
}

/// Pages are written back through any open file: also through one that appends.
#[test]
fn a_mapped_page_is_not_appended() {
    for m in mounts() {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(m.at("file"))
            .unwrap();
        (&file).write_all(&[b'a'; 4096]).unwrap();
        with_map(&file, 4096, |map| map[..4].copy_from_slice(b"page"));
        let data = fs::read(m.behind("file")).unwrap();
        assert_eq!((data.len(), &data[..4]), (4096, &b"page"[..]));
    }
}

#[test]
fn holes_are_made_and_found() {
    for m in mounts() {
        let file = rw(&m, "file");
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(1 << 20));
        assert_eq!(lseek(&file, 1 << 20, Whence::SeekHole), Ok((1 << 20) + 4096));
        assert_eq!(lseek(&file, 1 << 21, Whence::SeekData), Err(Errno::ENXIO));
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, 1 << 20, 4096).unwrap();
        assert_eq!(lseek(&file, 0, Whence::SeekData), Err(Errno::ENXIO));
        let mut buf = [9; 4096];
        file.read_exact_at(&mut buf, 1 << 20).unwrap();
        assert_eq!(buf, [0; 4096]);
        fallocate(&file, FallocateFlags::empty(), 1 << 21, 4096).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (1 << 21) + 4096);
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 1 << 22, 65536).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (1 << 21) + 4096);
        assert!(file.metadata().unwrap().blocks() >= 128);
        file.write_all_at(&[7; 8192], 0).unwrap();
        fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 4096).unwrap();
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [0; 4096]);
        let collapse = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
        assert_eq!(collapse, Err(Errno::EOPNOTSUPP));
    }
}

#[test]
fn ranges_are_copied_between_files() {
    for m in mounts() {
        fs::write(m.at("from"), (0..100_000u32).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
        let (from, to) = (File::open(m.at("from")).unwrap(), rw(&m, "to"));
        let (mut at, mut into) = (1_000, 5);
        let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 50_000).unwrap();
        assert_eq!((copied, at, into), (50_000, 51_000, 50_005));
        assert!(fs::read(m.at("to")).unwrap()[5..] == fs::read(m.at("from")).unwrap()[1_000..51_000]);
    }
}

#[repr(align(4096))]
struct Page([u8; 4096]);

#[test]
fn direct_io_and_cached_io_agree() {
    for m in mounts() {
        let cached = rw(&m, "file");
        let mut options = OpenOptions::new();
        let direct = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(m.at("file"))
            .unwrap();
        direct.write_all_at(&Page([3; 4096]).0, 4096).unwrap();
        let mut page = Page([0; 4096]);
        cached.read_exact_at(&mut page.0, 4096).unwrap();
        assert_eq!(page.0, [3; 4096]);
        cached.write_all_at(&[4; 4096], 0).unwrap();
        direct.read_exact_at(&mut page.0, 0).unwrap();
        assert_eq!(page.0, [4; 4096]);
    }
}

#[test]
fn syncing_works_on_files_and_directories() {
    for m in mounts() {
        let file = rw(&m, "file");
        file.write_all_at(b"text", 0).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        File::open(&m.mnt).unwrap().sync_all().unwrap();
        nix::unistd::fdatasync(File::open(&m.mnt).unwrap().as_fd()).unwrap();
    }
}

#[test]
fn locks_hold_among_those_who_use_the_mount() {
    let m = Mounted::new();
    let file = rw(&m, "file");
    file.lock().unwrap();
    let flock = |path: &std::path::Path| {
        Command::new("flock")
            .args(["-n"])
            .arg(path)
            .arg("true")
            .status()
            .unwrap()
            .success()
    };
    assert!(!flock(&m.at("file")));
    file.unlock().unwrap();
    assert!(flock(&m.at("file")));
}

#[test]
fn inode_flags_are_those_of_the_source() {
    let m = Mounted::new();
    fs::write(m.at("file"), "text").unwrap();
    fs::create_dir(m.at("dir")).unwrap();
    let run = |args: &[&str], path| {
        let output = Command::new(args[0]).args(&args[1..]).arg(path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["chattr", "+d"], m.at("dir"));
    run(&["chattr", "+i"], m.at("file"));
    assert_eq!(
        fs::write(m.at("file"), "").unwrap_err().raw_os_error(),
        Some(libc::EPERM)
    );
    let flags = |path| {
        run(&["lsattr", "-d"], path)
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(flags(m.at("file")), flags(m.behind("file")));
    assert_eq!(flags(m.at("dir")), flags(m.behind("dir")));
    assert!(flags(m.at("file")).contains('i'));
    run(&["chattr", "-i"], m.at("file"));
    fs::write(m.at("file"), "").unwrap();
    let unknown = Command::new("blockdev")
        .arg("--getsize64")
        .arg(m.at("file"))
        .output()
        .unwrap();
    assert!(!unknown.status.success());
}

#[test]
fn many_threads_write_and_read_their_own_files_at_once() {
    for m in mounts() {
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let m = &m;
                scope.spawn(move || {
                    for round in 0..30 {
                        let name = format!("{thread}.{round}");
                        fs::write(m.at(&name), vec![thread; 10_000]).unwrap();
                        assert_eq!(fs::read(m.at(&name)).unwrap(), vec![thread; 10_000]);
                        fs::rename(m.at(&name), m.at(&format!("{thread}"))).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&m.mnt).unwrap().count(), 8);
    }
}

#[test]
fn a_program_is_run_from_the_mount() {
    for m in mounts() {
        fs::copy("/bin/true", m.at("true")).unwrap();
        assert!(Command::new(m.at("true")).status().unwrap().success());
    }
}
