// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data, sizes and extended attributes that lag behind, and calls that are swallowed.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, copy_file_range, fallocate, fcntl};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

use crate::guest::{Tree, dirty, on_each};

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn size(tree: &Tree, name: &str) -> u64 {
    fs::metadata(tree.at(name)).unwrap().len()
}

#[test]
fn truncation_is_seen_at_once() {
    on_each(|tree| {
        fs::write(tree.at("file"), [7; 10_000]).unwrap();
        for length in [5000, 12_000, 0, 4096] {
            tree.warm("file");
            read_write(&tree.at("file")).set_len(length).unwrap();
            assert_eq!(size(tree, "file"), length);
            assert_eq!(fs::read(tree.at("file")).unwrap().len() as u64, length);
            tree.assert_same("file");
        }
        fs::write(tree.at("file"), [7; 10_000]).unwrap();
        tree.warm("file");
        let other = File::open(tree.at("file")).unwrap();
        drop(File::create(tree.at("file")).unwrap());
        assert_eq!((size(tree, "file"), other.metadata().unwrap().len()), (0, 0));
        assert_eq!(other.read_at(&mut [0; 10], 0).unwrap(), 0);
        tree.assert_same("file");
    });
}

#[test]
fn appends_through_two_files_follow_each_other() {
    on_each(|tree| {
        let open = || {
            let mut options = OpenOptions::new();
            options.append(true).create(true).open(tree.at("file")).unwrap()
        };
        let mut files = [open(), open()];
        let mut expected = Vec::new();
        for round in 0..40_u8 {
            if round % 8 == 0 {
                tree.warm("file");
            }
            let line = [round; 11];
            files[usize::from(round) % 2].write_all(&line).unwrap();
            expected.extend(line);
            assert_eq!(size(tree, "file"), expected.len() as u64);
        }
        assert_eq!(fs::read(tree.at("file")).unwrap(), expected);
        tree.assert_same("file");
    });
}

#[test]
fn copied_ranges_and_allocations_are_seen_at_once() {
    on_each(|tree| {
        fs::write(tree.at("from"), [5; 9000]).unwrap();
        fs::write(tree.at("to"), "").unwrap();
        let (from, to) = (read_write(&tree.at("from")), read_write(&tree.at("to")));
        tree.warm("to");
        let (mut at_from, mut at_to) = (0, 100);
        let copied = copy_file_range(&from, Some(&mut at_from), &to, Some(&mut at_to), 9000).unwrap();
        assert_eq!((copied, size(tree, "to")), (9000, 9100));
        tree.assert_same("to");
        for (flags, at, length, expected) in [
            (FallocateFlags::empty(), 0, 20_000, 20_000),
            (FallocateFlags::FALLOC_FL_KEEP_SIZE, 20_000, 65_536, 20_000),
            (
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                4096,
                4096,
                20_000,
            ),
            (FallocateFlags::FALLOC_FL_ZERO_RANGE, 16_384, 8192, 24_576),
        ] {
            tree.warm("to");
            fallocate(&to, flags, at, length).unwrap();
            assert_eq!(size(tree, "to"), expected, "{flags:?}");
            tree.assert_same("to");
        }
        let content = fs::read(tree.at("to")).unwrap();
        assert_eq!(content, fs::read(tree.behind("to")).unwrap());
        assert_eq!(
            (content[99], content[100], content[4096], content[8192]),
            (0, 5, 0, 5)
        );
    });
}

#[test]
fn stores_through_a_mapping_are_seen_at_once() {
    on_each(|tree| {
        fs::write(tree.at("file"), [1; 8192]).unwrap();
        tree.warm("file");
        let file = read_write(&tree.at("file"));
        let length = NonZeroUsize::new(8192).unwrap();
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map = unsafe { mmap(None, length, both, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        for round in 2..20_u8 {
            // SAFETY: within the mapping, and the file is that long.
            unsafe { map.as_ptr().cast::<u8>().add(5000).write_volatile(round) };
            let mut byte = [0];
            file.read_exact_at(&mut byte, 5000).unwrap();
            assert_eq!(byte, [round]);
            assert_eq!(fs::read(tree.at("file")).unwrap()[5000], round);
            // The other way round.
            file.write_all_at(&[round], 6000).unwrap();
            // SAFETY: as above.
            let seen = unsafe { map.as_ptr().cast::<u8>().add(6000).read_volatile() };
            assert_eq!(seen, round);
        }
        // SAFETY: the whole mapping, of which nothing is borrowed.
        unsafe {
            msync(map, 8192, MsFlags::MS_SYNC).unwrap();
            munmap(map, 8192).unwrap();
        }
        tree.assert_same("file");
        file.set_len(100).unwrap();
        tree.assert_same("file");
    });
}

#[test]
fn a_mapping_keeps_growing_files_up_to_date() {
    on_each(|tree| {
        fs::write(tree.at("file"), [1; 4096]).unwrap();
        tree.warm("file");
        let file = read_write(&tree.at("file"));
        let length = NonZeroUsize::new(1 << 16).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map =
            unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        for page in 1..16_u8 {
            let at = u64::from(page) * 4096;
            file.write_all_at(&[page; 4096], at).unwrap();
            // SAFETY: within the mapping, and the file is that long by now.
            let seen = unsafe { map.as_ptr().cast::<u8>().add(at as usize + 7).read_volatile() };
            assert_eq!(seen, page);
            tree.assert_same("file");
        }
        // SAFETY: the whole mapping, of which nothing is borrowed.
        unsafe { munmap(map, 1 << 16) }.unwrap();
    });
}

#[test]
fn direct_and_buffered_files_see_each_other() {
    on_each(|tree| {
        fs::write(tree.at("file"), [0; 8192]).unwrap();
        let buffered = read_write(&tree.at("file"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let direct = options.open(tree.at("file")).unwrap();
        let mut memory = vec![0_u8; 3 * 4096];
        let start = memory.as_ptr().align_offset(4096);
        let page = &mut memory[start..start + 4096];
        for round in 1..10 {
            tree.warm("file");
            page.fill(round);
            direct.write_all_at(page, 8192 * u64::from(round)).unwrap();
            let mut seen = [0; 4096];
            buffered
                .read_exact_at(&mut seen, 8192 * u64::from(round))
                .unwrap();
            assert_eq!(seen, [round; 4096]);
            tree.assert_same("file");
            buffered.write_all_at(&[round + 100; 4096], 0).unwrap();
            direct.read_exact_at(page, 0).unwrap();
            assert_eq!(page, [round + 100; 4096]);
        }
    });
}

fn setxattr(path: &Path, name: &std::ffi::CStr, value: &[u8]) -> i32 {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: two strings, and as many bytes as are said.
    unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    }
}

fn removexattr(path: &Path, name: &std::ffi::CStr) -> i32 {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: two strings.
    unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }
}

/// The value, or the errno.
fn getxattr(path: &Path, name: &std::ffi::CStr) -> Result<Vec<u8>, i32> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut value = vec![0; 256];
    // SAFETY: two strings, and as much memory as is said.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let length = usize::try_from(length).map_err(|_| nix::errno::Errno::last_raw())?;
    value.truncate(length);
    Ok(value)
}

#[test]
fn extended_attributes_are_not_hidden() {
    on_each(|tree| {
        let path = tree.at("file");
        fs::write(&path, "").unwrap();
        fs::write(tree.behind("from before"), "").unwrap();
        assert_eq!(setxattr(&tree.behind("from before"), c"user.old", b"old"), 0);
        assert_eq!(getxattr(&tree.at("from before"), c"user.old").unwrap(), b"old");
        for round in 0..5_u8 {
            assert_eq!(getxattr(&path, c"user.new"), Err(libc::ENODATA));
            assert_eq!(getxattr(&path, c"user.new"), Err(libc::ENODATA));
            tree.warm("file");
            assert_eq!(setxattr(&path, c"user.new", &[round]), 0);
            assert_eq!(getxattr(&path, c"user.new").unwrap(), [round]);
            assert_eq!(getxattr(&tree.behind("file"), c"user.new").unwrap(), [round]);
            // ctime moved.
            tree.assert_same("file");
            tree.warm("file");
            assert_eq!(removexattr(&path, c"user.new"), 0);
            tree.assert_same("file");
        }
        // The mode is part of an access ACL: version 2, {tag, permissions, id} each.
        let acl: Vec<u8> = [(1_u16, 7_u16), (4, 5), (0x10, 5), (0x20, 0)]
            .iter()
            .flat_map(|(tag, permissions)| {
                let id = u32::MAX.to_le_bytes();
                [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id].concat()
            })
            .collect();
        let acl = [&2_u32.to_le_bytes()[..], &acl].concat();
        tree.warm("file");
        // A group's mask, without a named entry, is refused or taken: the mode tells the same either way.
        setxattr(&path, c"system.posix_acl_access", &acl);
        tree.assert_same("file");
        let plain: Vec<u8> = [(1_u16, 7_u16), (4, 5), (0x20, 1)]
            .iter()
            .flat_map(|(tag, permissions)| {
                let id = u32::MAX.to_le_bytes();
                [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id].concat()
            })
            .collect();
        tree.warm("file");
        let plain = [&2_u32.to_le_bytes()[..], &plain].concat();
        assert_eq!(setxattr(&path, c"system.posix_acl_access", &plain), 0);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o751);
        tree.assert_same("file");
    });
}

/// A daemon may have to write back then, and its error belongs to whoever closes. (Who cannot write
/// has nothing to hear: the daemon tells the kernel so when it opens.)
#[test]
fn every_close_of_a_writable_file_asks_the_daemon() {
    on_each(|tree| {
        fs::write(tree.at("file"), "content").unwrap();
        tree.warm("file");
        let before = tree.count("FLUSH").upcalls;
        for _ in 0..25 {
            let written = OpenOptions::new().write(true).open(tree.at("file")).unwrap();
            // A duplicate's close is one more.
            drop(written.try_clone().unwrap());
            drop(written);
        }
        let row = tree.count("FLUSH");
        assert_eq!(row.upcalls - before, 50);
        let by_handlers = [row.returned, row.errno].map(Option::unwrap_or_default);
        assert_eq!((by_handlers, row.requests), ([0, 0], Some(row.upcalls)));
    });
}

/// Reads of a file with a backing file do not go up, and are right.
#[test]
fn reads_pass_through_and_are_right() {
    on_each(|tree| {
        let content: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        fs::write(tree.at("file"), &content).unwrap();
        tree.warm("file");
        let file = File::open(tree.at("file")).unwrap();
        tree.warm("file");
        let before = tree.count("READ");
        let mut part = [0; 1000];
        for at in (0..200_000).step_by(1000) {
            file.read_exact_at(&mut part, at).unwrap();
            assert_eq!(part[..], content[at as usize..][..1000]);
        }
        let after = tree.count("READ");
        assert_eq!(after.upcalls, before.upcalls, "{after:?}");
        assert_eq!(
            after.passthru.unwrap() - before.passthru.unwrap_or(0),
            200,
            "{after:?}"
        );
    });
}

/// pwritev2(2).
fn write_with(file: &File, bytes: &[u8], at: i64, flags: i32) {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: one part, which is only read.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, at, flags) };
    assert_eq!(
        written,
        bytes.len() as isize,
        "{}",
        std::io::Error::last_os_error()
    );
}

#[test]
fn one_write_may_want_more_than_its_file_does() {
    on_each(|tree| {
        fs::write(tree.at("file"), "text").unwrap();
        let behind = File::open(tree.behind("file")).unwrap();
        behind.sync_all().unwrap();
        let mut file = read_write(&tree.at("file"));
        write_with(&file, b"t", 0, 0);
        assert!(dirty(&behind) > 0);
        write_with(&file, b"T", 0, libc::RWF_DSYNC);
        assert_eq!(dirty(&behind), 0);
        write_with(&file, b"t", 0, 0);
        write_with(&file, b"T", 0, libc::RWF_SYNC);
        assert_eq!(dirty(&behind), 0);
        write_with(&file, b", more", 0, libc::RWF_APPEND);
        assert_eq!(fs::read(tree.at("file")).unwrap(), b"Text, more");
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        file.write_all(b", most").unwrap();
        assert_eq!(file.stream_position().unwrap(), 16);
        assert_eq!(fs::read(tree.at("file")).unwrap(), b"Text, more, most");
        tree.assert_same("file");
    });
}

/// Submits one write of `bytes`, and waits for it: the result.
fn write_asynchronously(file: &File, bytes: &[u8], at: i64) -> i64 {
    // SAFETY: all of these are numbers.
    let mut call: libc::iocb = unsafe { std::mem::zeroed() };
    call.aio_lio_opcode = 1; // IOCB_CMD_PWRITE
    call.aio_fildes = file.as_raw_fd().try_into().unwrap();
    call.aio_buf = bytes.as_ptr() as u64;
    call.aio_nbytes = bytes.len() as u64;
    call.aio_offset = at;
    let calls = [&raw mut call];
    let mut context = 0_u64;
    let mut event = [0_u64; 4]; // struct io_event
    // SAFETY: the call and its bytes stay until the one event has come, and there is room for that.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, 1, &raw mut context), 0);
        assert_eq!(libc::syscall(libc::SYS_io_submit, context, 1, calls.as_ptr()), 1);
        let nothing = std::ptr::null::<libc::timespec>();
        let events = libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), nothing);
        assert_eq!(events, 1);
        assert_eq!(libc::syscall(libc::SYS_io_destroy, context), 0);
    }
    event[2].cast_signed()
}

#[test]
fn an_asynchronous_write_is_seen_at_once_and_ends() {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    on_each(|tree| {
        for (round, flags) in [0, libc::O_DIRECT].into_iter().enumerate() {
            fs::write(tree.at("file"), [1; 8192]).unwrap();
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open(tree.at("file"))
                .unwrap();
            tree.warm("file");
            let page = Page([2; 4096]);
            assert_eq!(write_asynchronously(&file, &page.0, 8192), 4096, "{round}");
            assert_eq!(size(tree, "file"), 8192 + 4096);
            assert_eq!(fs::read(tree.at("file")).unwrap()[8192..], page.0, "{round}");
            tree.assert_same("file");
            // Not in flight any more.
            tree.warm("file");
        }
    });
}
