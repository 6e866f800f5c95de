// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends that refuse, fail or have had enough: nothing is lost, nothing is sent twice.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::AtomicU8;
use std::time::Duration;
use std::{env, ptr, thread};

use extfuse::splice::{BufFlags, CopyFlags, Fd, FuseBuf, FuseBufVec, Mem, copy};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::pipe;

use super::{NONE, WAYS, nonblocking, pattern, small, vec};

fn errno(result: io::Result<usize>) -> i32 {
    let error = result.unwrap_err();
    error.raw_os_error().unwrap_or_else(|| panic!("{error}"))
}

/// A socket that holds these bytes and ends.
fn socket_with(bytes: &[u8]) -> UnixStream {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(bytes).unwrap();
    near
}

/// What is still to come of a source is delivered elsewhere, in full.
fn deliver_rest(src: &mut FuseBufVec<'_>) -> Vec<u8> {
    let size = src.size();
    let mut dst = vec([FuseBuf::owned(vec![0; size])]);
    assert_eq!(copy(&mut dst, src, NONE).unwrap(), size);
    let rest = dst.get(0).unwrap().mem.as_slice().unwrap().to_vec();
    assert!(src.iter().all(|buf| buf.taken().is_empty()));
    rest
}

#[test]
fn a_destination_that_fails_loses_nothing() {
    let data = pattern(1, 30_000);
    let closed_pipe = || -> OwnedFd { pipe().unwrap().1 };
    let closed_socket = || -> OwnedFd { UnixStream::pair().unwrap().0.into() };
    let full_device = || -> OwnedFd { OpenOptions::new().write(true).open("/dev/full").unwrap().into() };
    let read_only = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
    let cases: [(&str, &dyn Fn() -> OwnedFd, i32); 4] = [
        ("pipe without a reader", &closed_pipe, libc::EPIPE),
        ("socket without a peer", &closed_socket, libc::EPIPE),
        ("/dev/full", &full_device, libc::ENOSPC),
        ("opened for reading", &read_only, libc::EBADF),
    ];
    for (what, open, expected) in cases {
        for flags in WAYS {
            for as_section in [false, true] {
                let near = socket_with(&data);
                let mut src = if as_section {
                    vec([FuseBuf::section(&near, 100, data.len() - 150, 50)])
                } else {
                    vec([FuseBuf::fd(&near, data.len()).with(BufFlags::FD_RETRY)])
                };
                let all = src.size();
                let mut dst = vec([FuseBuf::fd(open(), data.len())]);
                let error = errno(copy(&mut dst, &mut src, flags));
                // /dev/full can't be spliced to at all.
                let refused = flags == CopyFlags::FORCE_SPLICE && error == libc::EINVAL;
                assert!(
                    error == expected || refused && what == "/dev/full",
                    "{what}: {error}"
                );
                assert_eq!(
                    (src.size(), src.off, dst.off),
                    (all, 0, 0),
                    "{what}: nothing was delivered"
                );
                let (begin, end) = if as_section {
                    (100, data.len() - 50)
                } else {
                    (0, data.len())
                };
                assert!(
                    deliver_rest(&mut src) == data[begin..end],
                    "{what}: all goes elsewhere"
                );
            }
        }
    }
}

/// The reader goes away after a while.
#[test]
fn what_was_delivered_before_a_failure_is_counted() {
    let data = pattern(2, 300_000);
    for flags in WAYS {
        let near = UnixStream::pair().unwrap();
        let feeder = {
            let (mut far, data) = (near.1, data.clone());
            thread::spawn(move || far.write_all(&data).unwrap())
        };
        let (read, write) = pipe().unwrap();
        let reader = thread::spawn(move || {
            let mut got = vec![0; 100_000];
            File::from(read).read_exact(&mut got).unwrap();
            got
        });
        let mut src = vec([FuseBuf::fd(&near.0, data.len()).with(BufFlags::FD_RETRY)]);
        let mut dst = vec([FuseBuf::fd(write, data.len())]);
        let mut copied = copy(&mut dst, &mut src, flags).unwrap();
        assert_eq!(errno(copy(&mut dst, &mut src, flags)), libc::EPIPE);
        assert!(copied >= 100_000 && copied < data.len());
        assert!(reader.join().unwrap() == data[..100_000]);
        assert_eq!((src.off, dst.off), (copied, copied));
        let rest = deliver_rest(&mut src);
        assert!(rest == data[copied..], "{flags:?}");
        copied += rest.len();
        assert_eq!(copied, data.len());
        feeder.join().unwrap();
    }
}

#[test]
fn append_mode_is_refused_or_written_once() {
    let data = pattern(3, 150_000);
    let dir = tempfile::tempdir().unwrap();
    for seek in [false, true] {
        let path = dir.path().join(format!("log{seek}"));
        let log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&data, 0).unwrap();
        let mut feeder = None;
        let mut src = match seek {
            true => vec([FuseBuf::file(&source, 0, data.len())]),
            false => {
                let (near, mut far) = UnixStream::pair().unwrap();
                let data = data.clone();
                feeder = Some(thread::spawn(move || far.write_all(&data).unwrap()));
                vec([FuseBuf::fd(OwnedFd::from(near), 150_000).with(BufFlags::FD_RETRY)])
            }
        };
        let mut dst = vec([FuseBuf::fd(&log, data.len())]);
        assert_eq!(
            errno(copy(&mut dst, &mut src, CopyFlags::FORCE_SPLICE)),
            libc::EINVAL
        );
        assert_eq!(log.metadata().unwrap().len(), 0);
        assert_eq!(
            src.current().unwrap().taken().is_empty(),
            seek,
            "a file is not moved on"
        );
        assert_eq!(copy(&mut dst, &mut src, NONE).unwrap(), data.len());
        if let Some(feeder) = feeder {
            feeder.join().unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == data);
    }
}

/// Devices that can't be spliced from.
#[test]
fn what_splice_refuses_is_read() {
    let (near, far) = UnixStream::pair().unwrap();
    // A directory of no use to read(2) either: the error is that of read(2).
    let directory = File::open("/").unwrap();
    let mut src = vec([FuseBuf::fd(&directory, 10)]);
    let mut dst = vec([FuseBuf::fd(&near, 10)]);
    assert_eq!(errno(copy(&mut dst, &mut src, NONE)), libc::EISDIR);
    // An event counter knows read(2) only.
    let event = nix::sys::eventfd::EventFd::from_value(0x0102_0304).unwrap();
    let mut src = vec([FuseBuf::fd(&event, 8)]);
    let mut dst = vec([FuseBuf::fd(&near, 8)]);
    assert_eq!(
        errno(copy(&mut dst, &mut src, CopyFlags::FORCE_SPLICE)),
        libc::EINVAL
    );
    assert_eq!(copy(&mut dst, &mut src, NONE).unwrap(), 8);
    let mut got = [0; 8];
    (&far).read_exact(&mut got).unwrap();
    assert_eq!(u64::from_ne_bytes(got), 0x0102_0304);
}

#[test]
fn pipes_have_no_position() {
    let (read, write) = pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    for flags in WAYS {
        let mut src = vec([FuseBuf::file(&read, 3, 10)]);
        let mut dst = vec([FuseBuf::file(&file, 0, 10)]);
        assert_eq!(errno(copy(&mut dst, &mut src, flags)), libc::ESPIPE);
        let mut src = vec([FuseBuf::memory(b"x")]);
        let mut dst = vec([FuseBuf::file(&write, 0, 10)]);
        assert_eq!(errno(copy(&mut dst, &mut src, flags)), libc::ESPIPE);
    }
}

/// Without FD_RETRY, the first short transfer is the last; the next call goes on.
#[test]
fn a_short_transfer_is_retried_on_request_only() {
    for flags in WAYS {
        for retry in [false, true] {
            for to_file in [false, true] {
                let (read, write) = pipe().unwrap();
                let mut feed = File::from(write);
                feed.write_all(b"first").unwrap();
                let feeder = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(20));
                    feed.write_all(b"second").unwrap();
                });
                let mut buf = FuseBuf::fd(read, 100);
                if retry {
                    buf = buf.with(BufFlags::FD_RETRY);
                }
                let file = tempfile::tempfile().unwrap();
                let mut src = vec([buf]);
                let mut dst = match to_file {
                    true => vec([FuseBuf::file(&file, 0, 100)]),
                    false => vec([FuseBuf::owned(vec![0; 100])]),
                };
                let first = copy(&mut dst, &mut src, flags).unwrap();
                assert_eq!(first, if retry { 11 } else { 5 }, "{flags:?}");
                assert_eq!(copy(&mut dst, &mut src, flags).unwrap(), 11 - first);
                assert_eq!(copy(&mut dst, &mut src, flags).unwrap(), 0, "the end");
                feeder.join().unwrap();
            }
        }
    }
}

#[test]
fn nonblock_is_for_pipes() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 10_000], 0).unwrap();
    let (read, write) = pipe().unwrap();
    small(&write);
    let mut src = vec([FuseBuf::fd(&read, 10)]);
    let mut dst = vec([FuseBuf::file(&file, 20_000, 10)]);
    assert_eq!(
        errno(copy(&mut dst, &mut src, CopyFlags::SPLICE_NONBLOCK)),
        libc::EAGAIN
    );
    let mut src = vec([FuseBuf::file(&file, 0, 10_000).with(BufFlags::FD_RETRY)]);
    let mut dst = vec([FuseBuf::fd(&write, 10_000)]);
    assert_eq!(
        copy(&mut dst, &mut src, CopyFlags::SPLICE_NONBLOCK).unwrap(),
        4096
    );
    assert_eq!(
        errno(copy(&mut dst, &mut src, CopyFlags::SPLICE_NONBLOCK)),
        libc::EAGAIN
    );
    assert_eq!((src.off, dst.off), (4096, 4096));
    // A source that does not wait.
    nonblocking(&read);
    let mut bytes = [0; 4096];
    (&File::from(read.try_clone().unwrap()))
        .read_exact(&mut bytes)
        .unwrap();
    let mut src = vec([FuseBuf::fd(&read, 10)]);
    let mut dst = vec([FuseBuf::file(&file, 20_000, 10)]);
    assert_eq!(
        errno(copy(&mut dst, &mut src, CopyFlags::FORCE_SPLICE)),
        libc::EAGAIN
    );
}

#[test]
fn buffers_that_lie_are_refused() {
    let file = tempfile::tempfile().unwrap();
    let fine = || FuseBuf::owned(vec![0; 10]);
    let lying = |change: &dyn Fn(&mut FuseBuf<'static>)| {
        let mut buf = fine();
        change(&mut buf);
        buf
    };
    let fd = || Some(Fd::from(file.as_fd().try_clone_to_owned().unwrap()));
    let cases = [
        (
            fine(),
            lying(&|buf| buf.mem = Mem::Owned(vec![0; 9])),
            libc::EINVAL,
        ),
        (fine(), lying(&|buf| buf.mem = Mem::None), libc::EINVAL),
        (fine(), lying(&|buf| buf.flags = BufFlags::IS_FD), libc::EINVAL),
        (lying(&|buf| buf.mem = Mem::Ref(&[0; 10])), fine(), libc::EINVAL),
        (
            lying(&|buf| buf.mem = Mem::Owned(vec![0; 9])),
            fine(),
            libc::EINVAL,
        ),
        (
            fine(),
            lying(&|buf| {
                buf.fd = fd();
                buf.flags = BufFlags::IS_FD | BufFlags::FD_SECTION;
                (buf.header, buf.footer) = (6, 5);
            }),
            libc::EIO,
        ),
        (
            lying(&|buf| {
                buf.fd = fd();
                buf.flags = BufFlags::IS_FD | BufFlags::FD_SECTION;
                (buf.header, buf.footer) = (usize::MAX, 5);
            }),
            fine(),
            libc::EINVAL,
        ),
        (FuseBuf::file(&file, u64::MAX, 10), fine(), libc::EOVERFLOW),
        (fine(), FuseBuf::file(&file, u64::MAX - 3, 10), libc::EOVERFLOW),
    ];
    file.write_all_at(&[1; 100], 0).unwrap();
    for (dst, src, expected) in cases {
        let what = format!("{dst:?} <- {src:?}");
        let (mut dst, mut src) = (vec([dst]), vec([src]));
        let first = copy(&mut dst, &mut src, NONE);
        if expected == libc::EIO {
            // The memory has no room for the last byte of the footer: found out only there.
            assert_eq!(first.unwrap(), 10, "{what}");
            assert_eq!(errno(copy(&mut dst, &mut src, NONE)), libc::EINVAL, "{what}");
        } else {
            assert_eq!(errno(first), expected, "{what}");
        }
    }
}

/// Signals come while the copy waits.
#[test]
fn signals_do_not_end_a_copy() {
    use std::os::unix::thread::JoinHandleExt;

    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all of it is set before use; the handler does nothing. No SA_RESTART: calls give EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
    }
    for flags in WAYS {
        let ((from, mut feed), (to, mut out)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let copier = thread::spawn(move || {
            let (header, payload, footer) = (2, 6, 2);
            let mut src = vec([FuseBuf::section(OwnedFd::from(from), header, payload, footer)]);
            let mut dst = vec([FuseBuf::fd(OwnedFd::from(to), payload)]);
            copy(&mut dst, &mut src, flags).map(|n| (n, src.is_done()))
        });
        for byte in *b"HHpaylodFF" {
            thread::sleep(Duration::from_millis(3));
            // SAFETY: the thread has not been joined, so it is one.
            unsafe { libc::pthread_kill(copier.as_pthread_t(), libc::SIGUSR1) };
            thread::sleep(Duration::from_millis(3));
            feed.write_all(&[byte]).unwrap();
        }
        assert_eq!(copier.join().unwrap().unwrap(), (6, true));
        let mut got = Vec::new();
        out.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"paylod");
    }
}

#[test]
fn a_position_that_no_file_has_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(1, 100), 0).unwrap();
    for (pos, off) in [(u64::MAX, 0), (u64::MAX - 1, 10), (i64::MAX as u64, 1)] {
        for flags in WAYS {
            let mut src = vec([FuseBuf::file(&file, pos, 50)]);
            src.off = off;
            let mut dst = vec([FuseBuf::owned(vec![0; 50])]);
            assert_eq!(
                errno(copy(&mut dst, &mut src, flags)),
                libc::EOVERFLOW,
                "{pos} {off}"
            );
            let sink = File::options().write(true).open("/dev/null").unwrap();
            let mut dst = vec([FuseBuf::fd(&sink, 50)]);
            assert_eq!(
                errno(copy(&mut dst, &mut src, flags)),
                libc::EOVERFLOW,
                "{pos} {off}"
            );
        }
    }
}

#[test]
fn what_was_not_spliced_does_not_change_with_its_file() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    let (read, write) = pipe().unwrap();
    let mut src = vec([FuseBuf::file(&file, 0, 4096)]);
    let mut dst = vec([FuseBuf::fd(&write, 4096)]);
    assert_eq!(copy(&mut dst, &mut src, CopyFlags::NO_SPLICE).unwrap(), 4096);
    file.write_all_at(&[2; 4096], 0).unwrap();
    let mut bytes = [0; 4096];
    File::from(read).read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
}

/// A destination with positions that can be written, but not spliced to: this process's memory. All but
/// what the first pipe held goes by read(2) and write(2), from where that ended.
#[test]
fn what_follows_a_refused_splice_goes_where_it_belongs() {
    let data = pattern(4, 3 << 20);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[&[9; 10], &data[..]].concat(), 0).unwrap();
    let memory = File::options().write(true).open("/proc/self/mem").unwrap();
    for flags in [NONE, CopyFlags::NO_SPLICE, CopyFlags::FORCE_SPLICE] {
        let room: Vec<AtomicU8> = (0..data.len() + 20).map(|_| AtomicU8::new(7)).collect();
        let address = room.as_ptr().expose_provenance() as u64;
        let mut src = vec([FuseBuf::file(&file, 10, data.len())]);
        let mut dst = vec([FuseBuf::file(&memory, address + 10, data.len())]);
        let copied = copy(&mut dst, &mut src, flags);
        let mut expected = vec![7; room.len()];
        if flags == CopyFlags::FORCE_SPLICE {
            assert_eq!(errno(copied), libc::EINVAL);
        } else {
            assert_eq!(copied.unwrap(), data.len(), "{flags:?}");
            expected[10..][..data.len()].copy_from_slice(&data);
        }
        let found: Vec<u8> = room.into_iter().map(AtomicU8::into_inner).collect();
        assert!(found == expected, "{flags:?}");
    }
}

/// In a process of its own, which may open nothing any more.
#[test]
fn without_a_pipe_bytes_go_through_memory() {
    const ALONE: &str = "EXTFUSE_TEST_WITHOUT_PIPES";
    if env::var_os(ALONE).is_none() {
        let name = "failures::without_a_pipe_bytes_go_through_memory";
        let status = Command::new(env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(ALONE, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let data = pattern(5, 50_000);
    let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    from.write_all_at(&data, 0).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let copied = |flags| {
        let mut src = vec([FuseBuf::file(&from, 0, data.len())]);
        let mut dst = vec([FuseBuf::file(&to, 3, data.len())]);
        copy(&mut dst, &mut src, flags)
    };
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    let results = [CopyFlags::FORCE_SPLICE, NONE].map(copied);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let [forced, free] = results;
    assert_eq!(errno(forced), libc::EMFILE);
    assert_eq!(free.unwrap(), data.len());
    let mut found = vec![0; data.len()];
    to.read_exact_at(&mut found, 3).unwrap();
    assert!(found == data);
}
