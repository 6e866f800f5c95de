// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listings, of directories that change, that are large, and of long names: the same on ext4, through stock
//! FUSE, through the module, and with handlers.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tempfile::TempDir;

use common::Mounted;
use guest::{Random, WITH_HANDLERS, WITHOUT_HANDLERS, ext4_folder, seconds, seed};

/// Arguments of `extfuse mount`; none for the directory itself.
const WAYS: [Option<&[&str]>; 5] = [
    None,
    Some(&["--stock"]),
    Some(WITHOUT_HANDLERS),
    Some(WITH_HANDLERS[0]),
    Some(WITH_HANDLERS[1]),
];

/// A directory as seen in one of the ways.
struct Place {
    at: PathBuf,
    _mounted: Option<(Mounted, TempDir)>,
}

impl Place {
    fn new(source: &Path, way: Option<&[&str]>) -> Self {
        println!("{way:?}");
        let Some(arguments) = way else {
            return Self {
                at: source.to_owned(),
                _mounted: None,
            };
        };
        let mountpoint = TempDir::new().unwrap();
        let mounted = Mounted::start(source, mountpoint.path(), arguments);
        Self {
            at: mountpoint.path().to_owned(),
            _mounted: Some((mounted, mountpoint)),
        }
    }
}

/// An entry as getdents64(2) gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: OsString,
    ino: u64,
    kind: u8,
    /// Where the next one is.
    next: i64,
}

/// One call, into a buffer of so many bytes; empty at the end.
fn getdents(directory: &File, bytes: usize) -> io::Result<Vec<Entry>> {
    let mut buffer = vec![0u8; bytes];
    // SAFETY: the buffer is valid for writes of its length.
    let got = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let (mut rest, mut entries) = (&buffer[..got], Vec::new());
    while !rest.is_empty() {
        let word = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().unwrap());
        let length = usize::from(u16::from_ne_bytes(rest[16..18].try_into().unwrap()));
        let name = rest[19..length].split(|byte| *byte == 0).next().unwrap();
        entries.push(Entry {
            name: OsStr::from_bytes(name).to_owned(),
            ino: word(0),
            kind: rest[18],
            next: word(8) as i64,
        });
        rest = &rest[length..];
    }
    Ok(entries)
}

/// From where it stands to its end, `.` and `..` included.
fn rest(directory: &File, bytes: usize) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        match getdents(directory, bytes).unwrap() {
            some if some.is_empty() => return all,
            mut some => all.append(&mut some),
        }
    }
}

fn list(path: &Path, bytes: usize) -> Vec<Entry> {
    rest(&File::open(path).unwrap(), bytes)
}

/// Without what lies above, which is a mount's own matter.
fn known(entries: &[Entry]) -> Vec<(&OsStr, u64, u8)> {
    entries
        .iter()
        .filter(|entry| entry.name != "..")
        .map(|entry| (entry.name.as_os_str(), entry.ino, entry.kind))
        .collect()
}

/// The longest name: 255 bytes, anything but slashes and NUL.
fn long(i: usize) -> OsString {
    let mut name = format!("{i:05}").into_bytes();
    name.extend((0..250).map(|n| match (n * 7 + i) as u8 {
        0 | b'/' => b'_',
        byte => byte,
    }));
    OsString::from_vec(name)
}

/// Names that are there all the time.
const STAYING: usize = 1500;

/// While names come, go and are renamed, each listing has every name once that was there all the time, and none
/// twice. Names are never used again: which of two of the same name was seen would be anybody's guess.
#[test]
fn each_name_is_listed_once_and_none_is_lost_while_others_change() {
    let time = seconds("EXTFUSE_READDIR_SECONDS", 3, 60);
    let seed = seed();
    for way in WAYS {
        let source = ext4_folder();
        for i in 0..STAYING {
            fs::write(source.path().join(format!("stays_{i}")), "").unwrap();
        }
        let place = Place::new(source.path(), way);
        let over = AtomicBool::new(false);
        let (changes, listings) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random(seed);
                let mut there: Vec<PathBuf> = Vec::new();
                let mut next = 0;
                while !over.load(Ordering::Relaxed) {
                    next += 1;
                    let fresh = match next % 5 {
                        0 => place.at.join(long(next)),
                        _ => place.at.join(format!("comes_{next}")),
                    };
                    let which = random.below(there.len().max(1) as u64) as usize;
                    match random.below(3) {
                        _ if there.len() < 10 => {
                            fs::write(&fresh, "").unwrap();
                            there.push(fresh);
                        }
                        0 if there.len() < 300 => {
                            fs::write(&fresh, "").unwrap();
                            there.push(fresh);
                        }
                        1 => {
                            fs::rename(&there[which], &fresh).unwrap();
                            there[which] = fresh;
                        }
                        _ => fs::remove_file(there.swap_remove(which)).unwrap(),
                    }
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
            for reader in 0..2 {
                let (place, over, listings) = (&place, &over, &listings);
                scope.spawn(move || {
                    let mut random = Random(seed ^ reader);
                    while !over.load(Ordering::Relaxed) {
                        let bytes = 280 + random.below(5000) as usize;
                        let entries = list(&place.at, bytes);
                        let names: BTreeSet<&OsStr> =
                            entries.iter().map(|entry| entry.name.as_os_str()).collect();
                        if names.len() != entries.len() {
                            over.store(true, Ordering::Relaxed);
                            panic!("a name was listed twice: {:?}", twice(&entries));
                        }
                        let stayed =
                            (0..STAYING).filter(|i| names.contains(OsStr::new(&format!("stays_{i}"))));
                        let stayed = stayed.count();
                        if stayed != STAYING {
                            over.store(true, Ordering::Relaxed);
                            panic!("{stayed} of {STAYING} names that stayed were listed");
                        }
                        listings.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let start = Instant::now();
            while start.elapsed() < time && !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
            over.store(true, Ordering::Relaxed);
        });
        println!("{changes:?} changes, {listings:?} listings");
        assert!(changes.into_inner() > 20 && listings.into_inner() > 3);
        // And when it is over, the listing is the directory.
        assert_eq!(
            names(&list(&place.at, 4096)),
            names(&list(source.path(), 32 << 10))
        );
    }
}

fn names(entries: &[Entry]) -> BTreeSet<OsString> {
    entries.iter().map(|entry| entry.name.clone()).collect()
}

fn twice(entries: &[Entry]) -> Vec<&OsStr> {
    let mut seen = BTreeMap::new();
    for entry in entries {
        *seen.entry(entry.name.as_os_str()).or_insert(0) += 1;
    }
    let more = seen.into_iter().filter(|(_, times)| *times > 1);
    more.map(|(name, _)| name).collect()
}

/// A listing that was begun before a change need not show it; one begun after it does, from the beginning.
#[test]
fn a_listing_shows_what_was_done_before_it_was_begun() {
    for way in WAYS {
        let source = ext4_folder();
        let place = Place::new(source.path(), way);
        let mut wanted: BTreeSet<OsString> = [".", ".."].map(OsString::from).into();
        let rewound = File::open(&place.at).unwrap();
        for i in 0..60 {
            match i % 3 {
                0 | 1 => {
                    fs::write(place.at.join(format!("name_{i}")), "").unwrap();
                    wanted.insert(format!("name_{i}").into());
                }
                _ => {
                    let (from, to) = (format!("name_{}", i - 1), format!("moved_{i}"));
                    fs::rename(place.at.join(&from), place.at.join(&to)).unwrap();
                    wanted.remove(OsStr::new(&from));
                    wanted.insert(to.into());
                }
            }
            if i % 7 == 6 {
                let gone = wanted
                    .iter()
                    .find(|name| name.as_bytes().len() > 2)
                    .cloned()
                    .unwrap();
                fs::remove_file(place.at.join(&gone)).unwrap();
                wanted.remove(&gone);
            }
            assert_eq!(names(&list(&place.at, 4096)), wanted, "after {i}");
            lseek(&rewound, 0, Whence::SeekSet).unwrap();
            assert_eq!(names(&rest(&rewound, 4096)), wanted, "rewound, after {i}");
        }
    }
}

/// telldir(3) and seekdir(3): a position leads to what came behind it, in any order, and still when names before
/// and behind it are gone.
#[test]
fn a_position_leads_to_what_came_behind_it() {
    let seed = seed();
    for way in WAYS {
        let source = ext4_folder();
        for i in 0..700 {
            fs::write(source.path().join(format!("name_{i}")), "").unwrap();
        }
        let place = Place::new(source.path(), way);
        let directory = File::open(&place.at).unwrap();
        let all = rest(&directory, 1000);
        assert_eq!(all.len(), 702);
        let mut random = Random(seed);
        let behind = |place: usize, bytes: usize| {
            lseek(&directory, all[place].next, Whence::SeekSet).unwrap();
            getdents(&directory, bytes).unwrap()
        };
        for round in 0..100 {
            let which = random.below(all.len() as u64) as usize;
            let entries = behind(which, 300 + round * 10);
            assert_eq!(
                known(&entries),
                known(&all[which + 1..][..entries.len()]),
                "behind {which}"
            );
            assert_eq!(entries.is_empty(), which + 1 == all.len());
        }
        // Every third one goes.
        let gone = |name: &OsStr| {
            let number = name.to_str().and_then(|name| name.strip_prefix("name_"));
            number.is_some_and(|number| number.parse::<u32>().unwrap() % 3 == 0)
        };
        for entry in all.iter().filter(|entry| gone(&entry.name)) {
            fs::remove_file(place.at.join(&entry.name)).unwrap();
        }
        for _ in 0..30 {
            let which = random.below(all.len() as u64) as usize;
            lseek(&directory, all[which].next, Whence::SeekSet).unwrap();
            let left: Vec<Entry> = rest(&directory, 2000)
                .into_iter()
                .filter(|entry| !gone(&entry.name))
                .collect();
            let mut wanted = all[which + 1..].to_vec();
            wanted.retain(|entry| !gone(&entry.name));
            assert_eq!(names(&left), names(&wanted), "behind {which}");
            assert_eq!(left.len(), wanted.len());
        }
    }
}

/// Names of all lengths up to the longest, in buffers of all sizes from the one that just takes it.
#[test]
fn long_names_are_listed_whole() {
    let source = ext4_folder();
    for i in 0..400 {
        let name = long(i);
        let name = &name.as_bytes()[..if i % 2 == 0 { 255 } else { 5 + i % 251 }];
        fs::write(source.path().join(OsStr::from_bytes(name)), "").unwrap();
    }
    let mut native = Vec::new();
    for way in WAYS {
        let place = Place::new(source.path(), way);
        for bytes in [280, 281, 500, 4095, 4096, 4097, 65536] {
            let seen = list(&place.at, bytes);
            if native.is_empty() {
                native = seen;
                assert_eq!(native.len(), 402);
                continue;
            }
            assert_eq!(known(&seen), known(&native), "{bytes} bytes");
        }
        // One byte less takes all but the longest.
        let directory = File::open(&place.at).unwrap();
        let refused = loop {
            match getdents(&directory, 272) {
                Ok(some) => assert!(!some.is_empty(), "no name was too long"),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.raw_os_error(), Some(Errno::EINVAL as i32));
    }
}

/// Names of the large directory.
const LARGE: usize = 100_000;

#[test]
fn a_directory_of_100_000_names_is_listed_in_full() {
    let source = ext4_folder();
    // Names of few files: an ext4 file has at most 65 000.
    for file in 0..LARGE / 50_000 {
        let first = source.path().join(format!("{file}_{:06}", 0));
        fs::write(&first, "").unwrap();
        for i in 1..50_000 {
            fs::hard_link(&first, source.path().join(format!("{file}_{i:06}"))).unwrap();
        }
    }
    let native = list(source.path(), 64 << 10);
    assert_eq!(native.len(), LARGE + 2);
    for way in &WAYS[1..] {
        let place = Place::new(source.path(), *way);
        let start = Instant::now();
        // Twice: the second time from what was kept of the first.
        for round in 0..2 {
            let seen = list(&place.at, 32 << 10);
            assert!(
                known(&seen) == known(&native),
                "round {round}: {} names",
                seen.len()
            );
        }
        let (from, to) = (place.at.join("0_000777"), place.at.join("renamed"));
        fs::rename(&from, &to).unwrap();
        fs::remove_file(place.at.join("1_000888")).unwrap();
        let seen = names(&list(&place.at, 64 << 10));
        assert_eq!(seen.len(), LARGE + 1);
        assert!(seen.contains(OsStr::new("renamed")) && !seen.contains(OsStr::new("0_000777")));
        assert!(!seen.contains(OsStr::new("1_000888")));
        // As it was, for the next.
        fs::rename(&to, &from).unwrap();
        fs::hard_link(place.at.join("1_000000"), place.at.join("1_000888")).unwrap();
        println!("{:?}", start.elapsed());
    }
}
