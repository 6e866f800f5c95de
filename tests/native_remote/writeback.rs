// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that the server hears of later.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount as mount_fs, umount};
use nix::sys::signal::Signal;

use crate::common::{Mounted, Scratch};
use crate::exerciser::in_every_mode;
use crate::link::Link;
use crate::{Served, mount, text};

fn to_write(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

/// What close(2) says.
fn close(file: File) -> Result<(), Errno> {
    nix::unistd::close(file)
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A served directory, and a mount of it over a line that may stand still.
fn behind_a_link(more: &[&str]) -> (Scratch, Served, Link, Mounted) {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &["--lease", "1"]);
    let link = Link::to(&served.address.parse().unwrap());
    let url = format!("extfuse://{}", link.address());
    let mounted = mount(&url, &scratch, &[&["--writeback"], more].concat());
    (scratch, served, link, mounted)
}

#[test]
fn close_waits_for_the_server() {
    let (scratch, _served, link, mounted) = behind_a_link(&[]);
    let there = scratch.source().join("file");
    let file = to_write(&mounted.join("file"));
    link.mute();
    let (over, bytes) = (AtomicBool::new(false), b"0123456789abcdef".repeat(256));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            file.write_all_at(&bytes, 0).unwrap();
            let closed = close(file);
            over.store(true, Ordering::SeqCst);
            closed
        });
        thread::sleep(Duration::from_millis(500));
        assert!(!over.load(Ordering::SeqCst));
        link.go_on();
        assert_eq!(writer.join().unwrap(), Ok(()));
    });
    assert_eq!(fs::read(there).unwrap(), bytes);
}

#[test]
fn everything_on_the_mount_is_as_if_it_had_been_written() {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &["--exclusive"]);
    let mounted = mount(&served.url(), &scratch, &["--writeback", "--spool", "memory"]);
    let path = mounted.join("file");
    let mut file = to_write(&path);
    let mut wanted = Vec::new();
    let mut state = 7u64;
    let mut dice = |sides: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    for step in 0..600 {
        // Large ones take a while.
        let most = [20_000, 20_000, 20_000, 700_000][dice(4) as usize];
        let (at, len) = (dice(300_000) as usize, dice(most) as usize + 1);
        let bytes = vec![dice(256) as u8; len];
        match dice(10) {
            0..5 => {
                file.write_all_at(&bytes, at as u64).unwrap();
                wanted.resize(wanted.len().max(at + len), 0);
                wanted[at..at + len].copy_from_slice(&bytes);
            }
            5 => {
                file.seek(SeekFrom::End(0)).unwrap();
                let bytes = &bytes[..len.min(20_000)];
                for some in bytes.chunks(100) {
                    file.write_all(some).unwrap();
                }
                wanted.extend(bytes);
            }
            6 => {
                file.set_len(at as u64).unwrap();
                wanted.resize(at, 0);
            }
            7 if step % 2 == 0 => assert_eq!(file.metadata().unwrap().len(), wanted.len() as u64, "{step}"),
            7 => assert_eq!(fs::metadata(&path).unwrap().len(), wanted.len() as u64, "{step}"),
            8 => {
                // The page cache has it; but what it has not is read as it was written, too.
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
                let mut read = vec![0; len];
                let n = file.read_at(&mut read, at as u64).unwrap();
                let there = wanted.get(at..).unwrap_or_default();
                assert!(
                    there.starts_with(&read[..n]) && n == len.min(there.len()),
                    "{step}"
                );
            }
            _ => {
                fs::rename(&path, mounted.join("other")).unwrap();
                // Nobody finds it there without what was written.
                assert!(
                    fs::read(scratch.source().join("other")).unwrap() == wanted,
                    "{step}"
                );
                fs::rename(mounted.join("other"), &path).unwrap();
                assert_eq!(fs::metadata(&path).unwrap().len(), wanted.len() as u64);
            }
        }
    }
    file.sync_all().unwrap();
    assert!(fs::read(scratch.source().join("file")).unwrap() == wanted);
}

#[test]
fn each_who_has_it_open_is_told_once_of_what_failed() {
    let scratch = Scratch::new();
    let tmpfs = Some("tmpfs");
    mount_fs(tmpfs, &scratch.source(), tmpfs, MsFlags::empty(), Some("size=1m")).unwrap();
    {
        let served = Served::tcp(&scratch.source(), &[]);
        let mounted = mount(&served.url(), &scratch, &["--writeback"]);
        let (one, two) = (to_write(&mounted.join("file")), to_write(&mounted.join("file")));
        let elsewhere = to_write(&mounted.join("elsewhere"));
        let early = to_write(&mounted.join("file"));
        one.write_all_at(b"fits", 0).unwrap();
        assert_eq!(errno(one.sync_all()), None);
        for piece in 0..4 {
            one.write_all_at(&vec![1; 1 << 20], piece << 20).unwrap();
        }
        let full = Some(libc::ENOSPC);
        assert_eq!(errno(one.sync_all()), full);
        assert_eq!(errno(one.sync_all()), None);
        assert_eq!(errno(two.sync_data()), full);
        assert_eq!(close(early), Err(Errno::ENOSPC));
        // Who opens it now has nothing to do with it.
        let later = to_write(&mounted.join("file"));
        assert_eq!(close(later), Ok(()));
        assert_eq!((close(one), close(two)), (Ok(()), Ok(())));
        assert_eq!(errno(elsewhere.sync_all()), None);
        let late = to_write(&mounted.join("file"));
        assert_eq!(errno(late.sync_all()), None);
        late.set_len(0).unwrap();
        late.write_all_at(b"goes on", 0).unwrap();
        assert_eq!(close(late), Ok(()));
        assert_eq!(fs::read(scratch.source().join("file")).unwrap(), b"goes on");
        // With O_SYNC, at once.
        let sync = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_SYNC)
            .open(mounted.join("file"))
            .unwrap();
        assert_eq!(errno(sync.write_all_at(&vec![1; 1 << 20], 1 << 20)), full);
        sync.set_len(7).unwrap();
    }
    umount(&scratch.source()).unwrap();
}

#[test]
fn others_see_it_when_it_is_closed_and_appends_do_not_get_lost() {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &[]);
    let one = mount(&served.url(), &scratch, &["--writeback"]);
    let elsewhere = Scratch::new();
    let two = mount(&served.url(), &elsewhere, &["--writeback"]);
    for round in 0..20u8 {
        let mut file = to_write(&one.join("file"));
        for _ in 0..50 {
            file.write_all(&[round; 1000]).unwrap();
        }
        close(file).unwrap();
        assert_eq!(fs::read(two.join("file")).unwrap(), [round; 50_000]);
    }
    let append = |mounted: &Mounted, mark: u8| {
        let path = mounted.join("log");
        move || {
            let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
            for line in 0..300u16 {
                let mut bytes = [mark; 64];
                bytes[1..3].copy_from_slice(&line.to_le_bytes());
                log.write_all(&bytes).unwrap();
            }
            close(log).unwrap();
        }
    };
    let threads = [
        thread::spawn(append(&one, b'1')),
        thread::spawn(append(&two, b'2')),
    ];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let log = fs::read(scratch.source().join("log")).unwrap();
    assert_eq!(log.len(), 2 * 300 * 64);
    for mark in [b'1', b'2'] {
        let lines = log.chunks(64).filter(|line| line[0] == mark);
        let lines: Vec<_> = lines
            .map(|line| {
                assert!(line[3..].iter().all(|byte| *byte == mark));
                u16::from_le_bytes([line[1], line[2]])
            })
            .collect();
        assert_eq!(lines, (0..300).collect::<Vec<_>>());
    }
}

#[test]
fn a_line_that_breaks_loses_nothing_and_a_server_that_is_gone_is_told_of() {
    let (scratch, served, link, mounted) = behind_a_link(&["--timeout", "4"]);
    let mut file = to_write(&mounted.join("file"));
    let mut wanted = Vec::new();
    for round in 0..30u8 {
        let bytes = vec![round; 30_000];
        file.write_all(&bytes).unwrap();
        wanted.extend(bytes);
        if round % 10 == 5 {
            link.cut();
        }
    }
    file.sync_all().unwrap();
    assert!(fs::read(scratch.source().join("file")).unwrap() == wanted);
    served.signal(Signal::SIGSTOP);
    let start = Instant::now();
    // It may fail here already, if the kernel has something to ask first.
    let written = file.write_all(b"lost");
    let synced = file.sync_all();
    assert!(written.is_err() || synced.is_err());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    served.signal(Signal::SIGCONT);
}

#[test]
fn what_is_mapped_and_what_is_written_agree() {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &[]);
    let mounted = mount(&served.url(), &scratch, &["--writeback"]);
    in_every_mode(
        mounted.path(),
        1500,
        SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    );
}

#[test]
fn an_unmount_waits_for_what_was_written() {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &[]);
    let mut mounted = mount(&served.url(), &scratch, &["--writeback"]);
    let bytes = vec![3; 1 << 20];
    let mut files = Vec::new();
    for number in 0..20 {
        let file = to_write(&mounted.join(&number.to_string()));
        (&file).write_all(&bytes).unwrap();
        files.push(file);
    }
    // Detached, it ends with its last user.
    mounted.signal(Signal::SIGTERM);
    thread::sleep(Duration::from_millis(200));
    let mut first = &files[0];
    first.write_all(b"more").unwrap();
    first.seek(SeekFrom::Start(1 << 20)).unwrap();
    let mut read = String::new();
    first.read_to_string(&mut read).unwrap();
    assert_eq!(read, "more");
    assert!(files[0].as_raw_fd() >= 0);
    drop(files);
    let (status, _) = mounted.wait();
    assert!(status.success(), "{status}");
    for number in 0..20 {
        let there = fs::read(scratch.source().join(text(Path::new(&number.to_string())))).unwrap();
        assert!(there.starts_with(&bytes), "{number}");
    }
}
