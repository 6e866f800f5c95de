// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example `frames`, as a user runs it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{EXTFUSE, Mounted, Scratch, mounts_at};
use nix::sys::signal::Signal;

/// Built with the tests.
fn frames() -> PathBuf {
    let path = Path::new(EXTFUSE).with_file_name("examples").join("frames");
    assert!(path.exists(), "cargo build --example frames");
    path
}

#[test]
fn files_are_read_over_the_socket_and_an_interrupt_unmounts() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(i) >> 8) as u8)
        .collect();
    fs::write(scratch.source().join("large"), &bytes).unwrap();
    scratch.write("empty", "");
    scratch.write("small", "hello\n");
    let mut command = Command::new(frames());
    command
        .arg("--stock")
        .arg(scratch.source())
        .arg(scratch.mountpoint());
    let mut mounted = Mounted::from_command(command, &scratch.mountpoint());
    let mut names: Vec<_> = fs::read_dir(mounted.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["empty", "large", "small"]);
    assert!(fs::read(mounted.join("large")).unwrap() == bytes);
    assert_eq!(fs::read_to_string(mounted.join("small")).unwrap(), "hello\n");
    assert_eq!(fs::read(mounted.join("empty")).unwrap(), b"");
    assert!(fs::write(mounted.join("new"), "x").is_err());
    mounted.signal(Signal::SIGINT);
    let (status, words) = mounted.wait();
    assert!(status.success(), "{words}");
    assert!(mounts_at(&scratch.mountpoint()).is_empty());
}

/// The bits of what the frame of a file of 16 bytes says: request, payload, checksum.
const BITS: usize = (16 + 16 + 4) * 8;

#[test]
fn with_any_bit_wrong_nobody_reads_a_byte() {
    use std::os::unix::fs::FileExt;

    let scratch = Scratch::new();
    scratch.write("small", "sixteen bytes...");
    let mut command = Command::new(frames());
    command.args(["--stock", "--spoil"]);
    command.arg(scratch.source()).arg(scratch.mountpoint());
    let mounted = Mounted::from_command(command, &scratch.mountpoint());
    for _ in 0..BITS {
        let mut room = [0xaa; 16];
        let file = fs::File::open(mounted.join("small")).unwrap();
        let error = file.read_at(&mut room, 0).unwrap_err();
        assert_eq!((error.raw_os_error(), room), (Some(libc::EIO), [0xaa; 16]));
    }
}

#[test]
fn mistakes_are_told_in_a_line() {
    let scratch = Scratch::new();
    let run = |source: &Path, mountpoint: &Path| {
        let output = Command::new(frames())
            .arg(source)
            .arg(mountpoint)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(words.lines().count(), 1, "{words}");
        words
    };
    let missing = scratch.path().join("missing");
    assert!(run(&missing, &scratch.mountpoint()).contains("missing: No such file"));
    assert!(run(&scratch.source(), &missing).contains("missing: No such file"));
    let help = Command::new(frames()).arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--stock"));
}

/// In a mount namespace of its own, where every user may open /dev/fuse.
#[test]
fn a_user_without_privilege_mounts_by_fusermount_reads_and_unmounts() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..1_000_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    fs::write(scratch.source().join("file"), &bytes).unwrap();
    let script = r#"
        mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse && chown 65534 mount && chmod 755 . || exit
        user="setpriv --reuid 65534 --regid 65534 --clear-groups"
        serve() {
            $user "$FRAMES" --stock source mount & daemon=$!
            for i in {1..300}; do grep -q "$PWD/mount " /proc/self/mountinfo && return; sleep 0.1; done
        }
        serve
        grep "$PWD/mount .* - fuse.extfuse frames .*user_id=65534" /proc/self/mountinfo |
            grep -v allow_other | grep -o "nosuid,nodev"
        $user cmp source/file mount/file && echo same
        $user dd if=mount/file bs=128k iflag=direct status=none | cmp - source/file && echo direct
        cat mount/file 2>&1 | grep -o "Permission denied"
        kill -INT $daemon; wait $daemon; echo "interrupted: $?"
        grep -c "$PWD/mount " /proc/self/mountinfo
        serve
        $user fusermount3 -u mount; wait $daemon; echo "unmounted: $?"
        grep -c "$PWD/mount " /proc/self/mountinfo
        # Another's directory is no place for a mount.
        chown 1 mount; $user "$FRAMES" --stock source mount 2>&1 | grep -c "^frames: .*fusermount3"
    "#;
    let output = Command::new("timeout")
        .args(["-k", "1", "60", "unshare", "-m", "--propagation", "private"])
        .args(["bash", "-c", script])
        .env("FRAMES", frames())
        .current_dir(scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<_> = said.lines().collect();
    let right = [
        "nosuid,nodev",
        "same",
        "direct",
        "Permission denied",
        "interrupted: 0",
        "0",
        "unmounted: 0",
        "0",
        "1",
    ];
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, right, "{complaints}");
}
