// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where ranges and files end: exactly the right bytes, from exactly the right place.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use extfuse::ebpf::{BackingError, BackingOptions};

use crate::harness::{PAGE, Served, assert_bytes, backing_bytes, daemon_bytes};
use crate::kinds::{COPY, OWN};
use crate::reading::{WAYS, one_by_one, page};

/// A file of `size` bytes with a backing file of `spool` bytes, of which `valid` are: the pages that are
/// filled, all others come up.
#[track_caller]
fn pages(
    served: &Served,
    options: BackingOptions,
    (size, spool): (u64, u64),
    valid: &[Range<u64>],
    filled: &[u64],
) {
    let name = &served.fresh("cached");
    let path = served.file(name, size);
    let before = (served.filled(), served.upcalls());
    let file = served.spool(&backing_bytes(0, spool as usize));
    let backing = served.register(name, &file, options, 0..0);
    for range in valid {
        backing.extend(range.clone(), served.snapshot()).unwrap();
    }
    let what = format!("{options:?} {size} {spool} {valid:?}");
    let seen = one_by_one(&path);
    let mut right = Vec::new();
    for number in 0..size.div_ceil(PAGE) {
        let (at, length) = (number * PAGE, PAGE.min(size - number * PAGE) as usize);
        right.extend(match filled.contains(&number) {
            true => backing_bytes(at, length),
            false => daemon_bytes(at, length),
        });
    }
    assert_bytes(&seen, &right, &what);
    let (filled, all) = (filled.len() as u64, size.div_ceil(PAGE));
    let counts = (served.filled() - before.0, served.upcalls() - before.1);
    assert_eq!(counts, (filled, all - filled), "{what}");
}

#[test]
fn a_page_is_filled_if_all_of_it_is_valid() {
    const SIZE: u64 = 10 * PAGE;
    let served = Served::new();
    for options in [OWN, COPY] {
        let is = |valid: &[Range<u64>], filled: &[u64]| pages(&served, options, (SIZE, SIZE), valid, filled);
        is(&[], &[]);
        is(&[0..1], &[]);
        is(&[0..PAGE - 1], &[]);
        is(&[0..PAGE], &[0]);
        is(&[0..PAGE + 1], &[0]);
        is(&[1..2 * PAGE], &[1]);
        is(&[PAGE - 1..3 * PAGE + 1], &[1, 2]);
        is(&[9 * PAGE..SIZE], &[9]);
        is(&[9 * PAGE..SIZE - 1], &[]);
        // Ranges that touch are one; those that don't, are not.
        is(&[PAGE..PAGE + 100, PAGE + 100..2 * PAGE], &[1]);
        is(&[PAGE + 100..2 * PAGE, PAGE..PAGE + 100], &[1]);
        is(&[PAGE..PAGE + 100, PAGE + 101..2 * PAGE], &[]);
        is(&[0..100, 3 * PAGE..4 * PAGE, 50..3 * PAGE + 1], &[0, 1, 2, 3]);
        is(&[8 * PAGE..9 * PAGE, 0..PAGE, 4 * PAGE..5 * PAGE], &[0, 4, 8]);
    }
}

#[test]
fn the_last_page_of_a_copy_is_valid_up_to_the_files_end() {
    const SIZE: u64 = 2 * PAGE + 1000;
    let served = Served::new();
    for spool in [SIZE, SIZE + 1, 3 * PAGE, 4 * PAGE] {
        let is = |valid: Range<u64>, filled: &[u64]| pages(&served, COPY, (SIZE, spool), &[valid], filled);
        is(0..SIZE, &[0, 1, 2]);
        is(0..SIZE + 1, &[0, 1, 2]);
        is(0..SIZE - 1, &[0, 1]);
        is(0..3 * PAGE, &[0, 1, 2]);
        is(0..u64::MAX, &[0, 1, 2]);
        is(2 * PAGE + 1..SIZE, &[]);
    }
    // A file that ends with a page has nothing behind it.
    pages(&served, COPY, (PAGE, PAGE), &[0..PAGE], &[0]);
    pages(&served, COPY, (1, 1), &[0..1], &[0]);
}

/// The node's own file knows its end itself. Where it is declared to end before, the daemon is asked.
#[test]
fn the_last_page_of_an_own_file() {
    const SIZE: u64 = 2 * PAGE + 1000;
    let is = |valid: Range<u64>, filled: &[u64]| pages(&Served::new(), OWN, (SIZE, SIZE), &[valid], filled);
    is(0..u64::MAX, &[0, 1, 2]);
    is(0..3 * PAGE, &[0, 1, 2]);
    is(0..SIZE, &[0, 1]);
}

/// What was declared is not there: as if it had not been.
#[test]
fn a_copy_that_is_too_short_is_not_used() {
    const SIZE: u64 = 3 * PAGE;
    let served = Served::new();
    for spool in [0, 1, PAGE - 1] {
        pages(&served, COPY, (SIZE, spool), &[0..u64::MAX], &[]);
    }
    pages(&served, COPY, (SIZE, PAGE), &[0..SIZE], &[0]);
    pages(&served, COPY, (SIZE, 2 * PAGE + 1), &[0..SIZE], &[0, 1]);
    pages(&served, COPY, (SIZE - 1, SIZE - 2), &[0..SIZE], &[0, 1]);
}

/// An own file that is shorter than the kernel thinks: the file ends there, as if the daemon had said so.
#[test]
fn an_own_file_that_is_shorter_ends_the_file() {
    let served = Served::new();
    let path = served.file("cached", 3 * PAGE);
    let file = served.spool(&backing_bytes(0, 5000));
    let _backing = served.register("cached", &file, OWN, 0..u64::MAX);
    let open = File::open(&path).unwrap();
    assert_bytes(&page(&open, 1), &backing_bytes(PAGE, 904), "its end");
    assert_eq!(served.upcalls(), 0);
}

/// Zeros, whatever was in that memory before.
#[test]
fn holes() {
    const SIZE: u64 = 20 * PAGE + 7;
    let served = Served::new();
    for (way, read) in WAYS {
        let name = &served.fresh("cached");
        let path = served.file(name, SIZE);
        let file = served.spool(&backing_bytes(0, 100));
        file.set_len(SIZE).unwrap();
        file.write_all_at(&backing_bytes(9 * PAGE + 5, 10), 9 * PAGE + 5)
            .unwrap();
        let _backing = served.register(name, &file, COPY, 0..SIZE);
        let mut right = vec![0; SIZE as usize];
        right[..100].copy_from_slice(&backing_bytes(0, 100));
        right[9 * 4096 + 5..9 * 4096 + 15].copy_from_slice(&backing_bytes(9 * PAGE + 5, 10));
        assert_bytes(&read(&path), &right, way);
        assert_eq!(served.upcalls(), 0, "{way}");
    }
}

/// A READ of many pages comes up as a whole if a part of it is not valid.
#[test]
fn every_kind_across_the_end_of_a_range() {
    const SIZE: u64 = 64 * PAGE + 10;
    let served = Served::new();
    for (way, read) in WAYS {
        for end in [20 * PAGE, 20 * PAGE + 1, 21 * PAGE - 1] {
            let (name, before) = (&served.fresh("cached"), served.upcalls());
            let path = served.file(name, SIZE);
            let file = served.spool(&backing_bytes(0, end as usize));
            let _backing = served.register(name, &file, COPY, 0..end);
            let seen = read(&path);
            let valid = seen.iter().position(|byte| *byte >= 0x80).unwrap();
            assert!(
                valid.is_multiple_of(4096) && valid as u64 <= end,
                "{way}: {valid}"
            );
            assert_bytes(&seen[..valid], &backing_bytes(0, valid), way);
            let rest = daemon_bytes(valid as u64, SIZE as usize - valid);
            assert_bytes(&seen[valid..], &rest, way);
            assert!(served.upcalls() > before, "{way}");
        }
    }
}

#[test]
fn a_part_is_withdrawn() {
    const SIZE: u64 = 10 * PAGE;
    let served = Served::new();
    let path = served.file("cached", SIZE);
    let file = served.spool(&backing_bytes(0, SIZE as usize));
    let backing = served.register("cached", &file, COPY, 0..SIZE);
    let valid = |pages: &[u64]| {
        let open = File::open(&path).unwrap();
        for number in 0..10 {
            let filled = page(&open, number)[0] < 0x80;
            assert_eq!(filled, pages.contains(&number), "page {number} of {pages:?}");
        }
    };
    valid(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    backing.withdraw(3 * PAGE + 1..3 * PAGE + 2).unwrap();
    valid(&[0, 1, 2, 4, 5, 6, 7, 8, 9]);
    backing.withdraw(0..1).unwrap();
    backing.withdraw(SIZE - 1..u64::MAX).unwrap();
    valid(&[1, 2, 4, 5, 6, 7, 8]);
    backing.withdraw(0..6 * PAGE).unwrap();
    backing.withdraw(100 * PAGE..u64::MAX).unwrap();
    valid(&[6, 7, 8]);
    backing.extend(0..7 * PAGE, served.snapshot()).unwrap();
    valid(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    backing.withdraw(5 * PAGE..5 * PAGE).unwrap();
    valid(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for _twice in 0..2 {
        backing.withdraw(0..u64::MAX).unwrap();
        valid(&[]);
    }
}

#[test]
fn only_so_many_ranges_fit() {
    let served = Served::new();
    let path = served.file("cached", 40 * PAGE);
    let file = served.spool(&backing_bytes(0, 40 * PAGE as usize));
    let backing = served.register("cached", &file, COPY, 0..0);
    for number in 0..8 {
        backing
            .extend(4 * number * PAGE..(4 * number + 3) * PAGE, served.snapshot())
            .unwrap();
    }
    let more = 36 * PAGE..37 * PAGE;
    let refused = backing.extend(more.clone(), served.snapshot());
    assert!(matches!(refused, Err(BackingError::Full)), "{refused:?}");
    // One that touches another is not one more.
    backing.extend(31 * PAGE..32 * PAGE, served.snapshot()).unwrap();
    // Cut in two where nothing more fits: the second part is lost, which is a miss.
    backing.withdraw(PAGE..2 * PAGE).unwrap();
    let open = File::open(&path).unwrap();
    let filled: Vec<_> = (0..40).filter(|number| page(&open, *number)[0] < 0x80).collect();
    let kept: Vec<_> = (0..7).flat_map(|n| [4 * n, 4 * n + 1, 4 * n + 2]).collect();
    let right: Vec<_> = kept.into_iter().filter(|page| *page != 1).collect();
    assert_eq!(filled, right);
    // Joined, they leave room.
    backing.extend(0..8 * PAGE, served.snapshot()).unwrap();
    backing.extend(more, served.snapshot()).unwrap();
}

/// A write through the mount makes a copy an old one, wherever it ends.
#[test]
fn a_copy_ends_with_a_change_of_the_data() {
    type Change = fn(&File);
    let changes: [(&str, Change); 4] = [
        ("a write", |file| file.write_all_at(&[0xee], 5).unwrap()),
        ("a write behind the end", |file| {
            file.write_all_at(&[0xee], 3 * PAGE).unwrap()
        }),
        ("a truncation", |file| file.set_len(PAGE + 9).unwrap()),
        ("an allocation", |file| {
            nix::fcntl::fallocate(
                file,
                nix::fcntl::FallocateFlags::FALLOC_FL_ZERO_RANGE,
                0,
                4 * PAGE as i64,
            )
            .unwrap()
        }),
    ];
    for (what, change) in changes {
        let served = Served::new();
        let path = served.file("cached", 2 * PAGE + 100);
        let file = served.spool(&backing_bytes(0, 2 * PAGE as usize + 100));
        let backing = served.register("cached", &file, COPY, 0..2 * PAGE + 100);
        let before = served.snapshot();
        assert_bytes(&one_by_one(&path), &backing_bytes(0, 2 * 4096 + 100), what);
        change(&File::options().write(true).open(&path).unwrap());
        let filled = served.filled();
        let truth = one_by_one(&path);
        assert!(truth[6] >= 0x80 || truth[6] == 0, "{what}");
        assert_eq!(served.filled(), filled, "{what}");
        // Declared by somebody who has not heard of it.
        let refused = backing.extend(0..2 * PAGE, before);
        assert!(matches!(refused, Err(BackingError::Stale)), "{what}: {refused:?}");
        // What was declared before does not come back with what is declared anew.
        backing.extend(PAGE..2 * PAGE, served.snapshot()).unwrap();
        let seen = one_by_one(&path);
        assert!(seen[6] >= 0x80 || seen[6] == 0, "{what}");
        assert_eq!(served.filled(), filled + 1, "{what}");
    }
}

/// An own file changes with its node.
#[test]
fn an_own_file_does_not() {
    let served = Served::new();
    let path = served.file("cached", 2 * PAGE);
    let file = served.spool(&backing_bytes(0, 2 * PAGE as usize));
    let _backing = served.register("cached", &file, OWN, 0..u64::MAX);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[0xee], 5)
        .unwrap();
    assert_bytes(&one_by_one(&path), &backing_bytes(0, 2 * 4096), "still");
}
