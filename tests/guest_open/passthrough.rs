// SPDX-License-Identifier: MIT OR Apache-2.0
//! Through `extfuse mount`: files that pass through to their source.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::unistd::Whence;

use crate::common::PATIENCE;
use crate::guest::{PAST_TTL, Tree, WITH_HANDLERS, as_nobody, dirty};

/// Runs a test on a mount of each kind, each fresh. Nothing expires while it is looked at.
fn on_each(test: impl Fn(&Tree)) {
    for how in ["--exclusive", "--ttl=600"] {
        println!("{how}");
        let tree = Tree::mount(&["--require-module", how]);
        test(&tree);
        let program = tree.report().program.expect("handlers");
        assert!(program.attached && program.errors == 0, "{program:?}");
    }
}

/// Upcalls by opcode that `act` makes.
fn upcalls<T>(tree: &Tree, act: impl FnOnce() -> T) -> (BTreeMap<String, u64>, T) {
    let read = || -> BTreeMap<_, _> {
        let report = tree.report();
        report
            .opcodes
            .into_iter()
            .map(|(opcode, row)| (opcode, row.upcalls))
            .collect()
    };
    let before = read();
    let result = act();
    let mut after = read();
    for (opcode, count) in &mut after {
        *count -= before.get(opcode).copied().unwrap_or_default();
    }
    after.retain(|_, count| *count > 0);
    (after, result)
}

/// Fails if `act` needs the daemon.
#[track_caller]
fn silent<T>(tree: &Tree, act: impl FnOnce() -> T) -> T {
    let (asked, result) = upcalls(tree, act);
    assert_eq!(asked, BTreeMap::new());
    result
}

fn names(tree: &Tree, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(tree.at(directory)).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Opened, read and closed once: from here on the kernel knows how.
fn known(tree: &Tree, name: &str, text: &str) {
    fs::write(tree.at(name), text).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read_to_string(tree.at(name)).unwrap(), text);
    }
}

#[test]
fn a_file_is_opened_read_and_closed_without_the_daemon() {
    on_each(|tree| {
        known(tree, "file", "text");
        assert_eq!(
            silent(tree, || fs::read_to_string(tree.at("file")).unwrap()),
            "text"
        );
        assert!(tree.count("OPEN").kept.unwrap() > 0);
    });
}

#[test]
fn what_is_written_is_read_by_the_next_open() {
    on_each(|tree| {
        known(tree, "file", "old");
        for text in ["new", "newer", ""] {
            fs::write(tree.at("file"), text).unwrap();
            assert_eq!(fs::read_to_string(tree.at("file")).unwrap(), text);
        }
        // Behind the mount, too: data that passes through is the source's.
        fs::write(tree.behind("file"), "behind").unwrap();
        let mut file = File::open(tree.at("file")).unwrap();
        let mut bytes = [0; 6];
        file.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"behind");
    });
}

#[test]
fn an_open_for_writing_always_reaches_the_daemon() {
    on_each(|tree| {
        known(tree, "file", "text");
        let options = [(false, true, false), (true, true, false), (true, true, true)];
        for (read, write, truncate) in options {
            let open = || {
                OpenOptions::new()
                    .read(read)
                    .write(write)
                    .truncate(truncate)
                    .open(tree.at("file"))
            };
            let (asked, file) = upcalls(tree, open);
            drop(file.unwrap());
            assert_eq!(asked["OPEN"], 1, "{asked:?}");
        }
    });
}

#[test]
fn permissions_are_checked_at_each_open() {
    on_each(|tree| {
        known(tree, "file", "text");
        let mode = |mode| fs::set_permissions(tree.at("file"), Permissions::from_mode(mode)).unwrap();
        let refused = || as_nobody(|| File::open(tree.at("file")).unwrap_err().raw_os_error());
        mode(0o600);
        assert_eq!(refused(), Some(libc::EACCES));
        mode(0o644);
        let (asked, ()) = upcalls(tree, || {
            as_nobody(|| File::open(tree.at("file")).map(drop).unwrap())
        });
        assert!(!asked.contains_key("OPEN"), "{asked:?}");
        mode(0o640);
        assert_eq!(refused(), Some(libc::EACCES));
    });
}

#[test]
fn a_file_that_the_daemon_never_heard_of_can_be_used_in_every_way() {
    on_each(|tree| {
        known(tree, "file", &"x".repeat(10_000));
        known(tree, "copy", "");
        let open = || silent(tree, || File::open(tree.at("file")).unwrap());

        assert_eq!(silent(tree, || open().metadata().unwrap().len()), 10_000);
        silent(tree, || open().sync_all().unwrap());
        silent(tree, || open().sync_data().unwrap());
        assert_eq!(open().seek(SeekFrom::End(-1)).unwrap(), 9_999);
        assert_eq!(nix::unistd::lseek(open(), 0, Whence::SeekHole).unwrap(), 10_000);
        assert_eq!(
            nix::unistd::lseek(open(), 10_000, Whence::SeekData),
            Err(Errno::ENXIO)
        );
        Flock::lock(open(), FlockArg::LockExclusive).unwrap();
        let file = open();
        let lock = libc::flock {
            l_type: libc::F_RDLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&file, FcntlArg::F_SETLK(&lock)).unwrap();
        let file = open();
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut polled, PollTimeout::ZERO).unwrap(), 1);
        let to = OpenOptions::new().write(true).open(tree.at("copy")).unwrap();
        let copied = nix::fcntl::copy_file_range(open(), None, &to, None, 10_000).unwrap();
        assert_eq!(copied, 10_000);
        assert_eq!(fs::metadata(tree.at("copy")).unwrap().len(), 10_000);
        // What needs a file that is open for writing still says so.
        assert_eq!(
            nix::fcntl::fallocate(open(), FallocateFlags::empty(), 0, 1),
            Err(Errno::EBADF)
        );
        assert_eq!(nix::unistd::ftruncate(open(), 0), Err(Errno::EINVAL));
        assert_eq!(
            open().write_at(b"x", 0).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        let mut flags: libc::c_long = 0;
        let file = open();
        // SAFETY: FS_IOC_GETFLAGS writes one long.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    });
}

#[test]
fn a_file_that_the_daemon_never_heard_of_is_synced_for_real() {
    on_each(|tree| {
        known(tree, "file", "text");
        let behind = OpenOptions::new().write(true).open(tree.behind("file")).unwrap();
        for data in [false, true] {
            behind.write_all_at(b"more", 0).unwrap();
            assert!(dirty(&behind) > 0);
            silent(tree, || {
                let file = File::open(tree.at("file")).unwrap();
                if data { file.sync_data() } else { file.sync_all() }.unwrap();
            });
            assert_eq!(dirty(&behind), 0);
        }
    });
}

#[test]
fn a_file_that_loses_its_name_is_opened_first() {
    on_each(|tree| {
        for rename in [false, true] {
            known(tree, "file", "text");
            let file = silent(tree, || File::open(tree.at("file")).unwrap());
            let lose = || {
                if rename {
                    fs::write(tree.behind("other"), "other").unwrap();
                    fs::rename(tree.at("other"), tree.at("file")).unwrap();
                } else {
                    fs::remove_file(tree.at("file")).unwrap();
                }
            };
            let (asked, ()) = upcalls(tree, lose);
            assert_eq!(asked["OPEN"], 1, "{asked:?}");
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"text");
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            file.sync_all().unwrap();
            let (asked, ()) = upcalls(tree, || {
                drop(file);
                sleep(Duration::from_millis(200));
            });
            assert_eq!(asked["RELEASE"], 1, "{asked:?}");
        }
    });
}

#[test]
fn a_listing_is_kept_until_the_directory_changes() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        for i in 0..1000 {
            fs::write(tree.behind(format!("dir/name-{i:04}")), "").unwrap();
        }
        let first = names(tree, "dir");
        assert_eq!(first.len(), 1000);
        assert_eq!(names(tree, "dir"), first);
        assert_eq!(silent(tree, || names(tree, "dir")), first);
        assert!(tree.count("OPENDIR").kept.unwrap() > 0);

        fs::write(tree.at("dir/new"), "").unwrap();
        assert_eq!(names(tree, "dir").len(), 1001);
        fs::remove_file(tree.at("dir/name-0500")).unwrap();
        assert!(!names(tree, "dir").contains(&"name-0500".to_owned()));
        fs::rename(tree.at("dir/new"), tree.at("dir/newer")).unwrap();
        let now = names(tree, "dir");
        assert!(now.contains(&"newer".to_owned()) && !now.contains(&"new".to_owned()));
        assert_eq!(names(tree, "dir"), now);
    });
}

#[test]
fn a_change_behind_the_mount_shows_in_a_listing_when_its_time_is_over() {
    let tree = Tree::mount(WITH_HANDLERS[0]);
    fs::create_dir(tree.at("dir")).unwrap();
    assert!(names(&tree, "dir").is_empty());
    fs::write(tree.behind("dir/new"), "").unwrap();
    sleep(PAST_TTL);
    assert_eq!(names(&tree, "dir"), ["new"]);
}

#[test]
fn a_name_that_does_not_exist_is_kept_until_it_does() {
    on_each(|tree| {
        let missing = || {
            fs::symlink_metadata(tree.at("missing"))
                .unwrap_err()
                .raw_os_error()
        };
        assert_eq!(missing(), Some(libc::ENOENT));
        let requests = tree.count("LOOKUP").requests;
        assert_eq!(silent(tree, missing), Some(libc::ENOENT));
        assert_eq!(tree.count("LOOKUP").requests, requests, "not even a request");
        fs::write(tree.at("missing"), "").unwrap();
        fs::symlink_metadata(tree.at("missing")).unwrap();
        fs::remove_file(tree.at("missing")).unwrap();
        assert_eq!(missing(), Some(libc::ENOENT));
    });
}

#[test]
fn what_was_just_made_or_changed_is_known() {
    on_each(|tree| {
        fs::create_dir(tree.at("dir")).unwrap();
        fs::write(tree.at("dir/file"), "x").unwrap();
        std::os::unix::fs::symlink("file", tree.at("dir/link")).unwrap();
        fs::hard_link(tree.at("dir/file"), tree.at("dir/hard")).unwrap();
        let look = || {
            for name in ["dir", "dir/file", "dir/link", "dir/hard"] {
                fs::symlink_metadata(tree.at(name)).unwrap();
            }
        };
        let (asked, ()) = upcalls(tree, look);
        assert!(!asked.contains_key("LOOKUP"), "{asked:?}");

        fs::set_permissions(tree.at("dir/file"), Permissions::from_mode(0o604)).unwrap();
        let seen = silent(tree, || fs::symlink_metadata(tree.at("dir/file")).unwrap());
        assert_eq!(seen.mode() & 0o777, 0o604);
        assert_eq!(seen.nlink(), 2);
        tree.assert_same("dir/file");
    });
}

#[test]
fn free_space_is_asked_again_after_each_change() {
    on_each(|tree| {
        let free = || nix::sys::statvfs::statvfs(tree.root()).unwrap().blocks_free();
        let behind = || {
            nix::sys::statvfs::statvfs(&tree.behind(""))
                .unwrap()
                .blocks_free()
        };
        free();
        let before = silent(tree, free);
        fs::write(tree.at("other"), "x").unwrap();
        // In the second after a change it may go on changing.
        free();
        sleep(Duration::from_millis(1_100));
        free();
        silent(tree, free);
        for round in 0..3 {
            fs::write(tree.at("file"), vec![round; 1 << 20]).unwrap();
            File::open(tree.at("file")).unwrap().sync_all().unwrap();
            assert_eq!(free(), behind());
        }
        assert!(free() < before);
        let full = free();
        fs::remove_file(tree.at("file")).unwrap();
        // The daemon closes the file when the kernel has forgotten it, and tells nobody.
        let start = Instant::now();
        while free() == full {
            assert!(start.elapsed() < PATIENCE, "what is removed keeps its space");
        }
        assert_eq!(free(), behind());
    });
}

#[test]
fn free_space_is_that_of_the_file_system_that_is_asked_about() {
    on_each(|tree| {
        fs::create_dir(tree.behind("below")).unwrap();
        let below = tree.behind("below");
        let flags = MsFlags::empty();
        mount(Some("below"), &below, Some("tmpfs"), flags, Some("size=1m")).unwrap();
        let blocks = |path: &Path| nix::sys::statvfs::statvfs(path).unwrap().blocks();
        for _ in 0..2 {
            for name in ["", "below"] {
                assert_eq!(blocks(&tree.at(name)), blocks(&tree.behind(name)), "{name}");
            }
        }
        umount2(&below, MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_symlink_is_followed_without_the_daemon_until_it_is_another() {
    on_each(|tree| {
        known(tree, "one", "1");
        known(tree, "two", "2");
        std::os::unix::fs::symlink("one", tree.at("link")).unwrap();
        for _ in 0..2 {
            assert_eq!(fs::read_to_string(tree.at("link")).unwrap(), "1");
        }
        assert_eq!(silent(tree, || fs::read_to_string(tree.at("link")).unwrap()), "1");
        assert_eq!(
            silent(tree, || fs::read_link(tree.at("link")).unwrap()).to_str(),
            Some("one")
        );
        std::os::unix::fs::symlink("two", tree.at("new")).unwrap();
        fs::rename(tree.at("new"), tree.at("link")).unwrap();
        assert_eq!(fs::read_to_string(tree.at("link")).unwrap(), "2");
        fs::remove_file(tree.at("link")).unwrap();
        std::os::unix::fs::symlink("one", tree.at("link")).unwrap();
        assert_eq!(fs::read_link(tree.at("link")).unwrap().to_str(), Some("one"));
    });
}
