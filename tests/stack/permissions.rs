// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may do what, and who owns what comes of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use super::mount::{Mounted, works_as};

fn mode(path: impl AsRef<std::path::Path>) -> u32 {
    path.as_ref().symlink_metadata().unwrap().mode() & 0o7777
}

fn open_to_all(m: &Mounted) {
    fs::set_permissions(&m.source, fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn what_a_user_makes_is_the_users() {
    let m = Mounted::new();
    open_to_all(&m);
    let script = "umask 027; echo > file; mkdir dir; ln -s x link; mkfifo pipe";
    assert!(works_as(
        1000,
        &[1001],
        &format!("cd {} && {script}", m.mnt.display())
    ));
    for (name, mask) in [("file", 0o640), ("dir", 0o750), ("link", 0o777), ("pipe", 0o640)] {
        let meta = m.behind(name).symlink_metadata().unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (1000, 1001, mask),
            "{name}"
        );
    }
    fs::write(m.at("by root"), "").unwrap();
    assert_eq!(m.behind("by root").metadata().unwrap().uid(), 0);
}

#[test]
fn a_supplementary_group_opens_a_directory() {
    let m = Mounted::new();
    fs::create_dir(m.at("dir")).unwrap();
    chown(m.at("dir"), Some(0), Some(4242)).unwrap();
    fs::set_permissions(m.at("dir"), fs::Permissions::from_mode(0o770)).unwrap();
    let script = format!("echo text > {0}/dir/file && cat {0}/dir/file", m.mnt.display());
    assert!(works_as(1000, &[1000, 4242], &script));
    assert!(!works_as(1001, &[1001], &script));
    assert_eq!(m.behind("dir/file").metadata().unwrap().uid(), 1000);
}

#[test]
fn a_set_group_id_directory_hands_down_its_group() {
    let m = Mounted::new();
    open_to_all(&m);
    fs::create_dir(m.at("dir")).unwrap();
    chown(m.at("dir"), Some(0), Some(4242)).unwrap();
    fs::set_permissions(m.at("dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    assert!(works_as(
        1000,
        &[1000],
        &format!("cd {}/dir && mkdir sub && echo > file", m.mnt.display())
    ));
    for (name, bits) in [("dir/sub", 0o2755), ("dir/file", 0o644)] {
        assert_eq!(
            (m.behind(name).metadata().unwrap().gid(), mode(m.behind(name))),
            (4242, bits),
            "{name}"
        );
    }
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    let m = Mounted::new();
    fs::set_permissions(&m.source, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(works_as(
        1000,
        &[1000],
        &format!("echo > {}/theirs", m.mnt.display())
    ));
    assert!(!works_as(
        1001,
        &[1001],
        &format!("rm -f {}/theirs", m.mnt.display())
    ));
    assert!(!works_as(
        1001,
        &[1001],
        &format!("mv {0}/theirs {0}/mine", m.mnt.display())
    ));
    assert!(works_as(1000, &[1000], &format!("rm {}/theirs", m.mnt.display())));
}

#[test]
fn permissions_are_checked() {
    let m = Mounted::new();
    fs::write(m.at("secret"), "text").unwrap();
    fs::set_permissions(m.at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!works_as(
        1000,
        &[1000],
        &format!("cat {}/secret", m.mnt.display())
    ));
    assert!(!works_as(
        1000,
        &[1000],
        &format!("chmod 666 {}/secret", m.mnt.display())
    ));
    assert!(!works_as(
        1000,
        &[1000],
        &format!("echo > {}/new", m.mnt.display())
    ));
    assert!(!works_as(
        1000,
        &[1000],
        &format!("test -r {}/secret", m.mnt.display())
    ));
}

/// A directory with a default ACL ignores the umask; one without doesn't.
#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let m = Mounted::new();
    open_to_all(&m);
    for dir in ["with", "without"] {
        fs::create_dir(m.at(dir)).unwrap();
        fs::set_permissions(m.at(dir), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let acl = "u::rwx,u:1234:rwx,g::r-x,m::rwx,o::---";
    let set = Command::new("setfacl")
        .args(["-d", "-m", acl])
        .arg(m.at("with"))
        .status()
        .unwrap();
    assert!(set.success());
    // Natively, beside: the same directory by another way.
    for root in [&m.source, &m.mnt] {
        let tag = if root == &m.source { "native" } else { "fuse" };
        for dir in ["with", "without"] {
            let script = format!(
                "umask 077; cd {}/{dir} && touch {tag}.f && mkdir {tag}.d",
                root.display()
            );
            assert!(works_as(1000, &[1000], &script));
        }
    }
    let getfacl = |path: &str| {
        let output = Command::new("getfacl")
            .args(["-cn", "--absolute-names"])
            .arg(m.at(path))
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    for (native, fuse) in [("with/native.f", "with/fuse.f"), ("with/native.d", "with/fuse.d")] {
        assert_eq!(getfacl(native), getfacl(fuse));
        assert!(getfacl(fuse).contains("user:1234"), "{}", getfacl(fuse));
    }
    assert_eq!(mode(m.at("without/fuse.f")), 0o600);
    assert_eq!(mode(m.at("without/fuse.d")), 0o700);
    assert_eq!(mode(m.at("with/fuse.f")), mode(m.at("with/native.f")));
}

#[test]
fn an_acl_lets_one_user_in_and_chmod_moves_its_mask() {
    let m = Mounted::new();
    fs::write(m.at("file"), "text").unwrap();
    fs::set_permissions(m.at("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let cat = format!("cat {}", m.at("file").display());
    assert!(!works_as(1234, &[1234], &cat));
    assert!(
        Command::new("setfacl")
            .args(["-m", "u:1234:r"])
            .arg(m.at("file"))
            .status()
            .unwrap()
            .success()
    );
    assert!(works_as(1234, &[1234], &cat));
    assert!(!works_as(1235, &[1235], &cat));
    assert_eq!(mode(m.behind("file")), 0o640);
    fs::set_permissions(m.at("file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!works_as(1234, &[1234], &cat));
}

/// As natively: an ACL set by somebody outside the file's group clears its set-group-ID bit.
#[test]
fn an_acl_set_from_outside_the_group_clears_the_set_group_id_bit() {
    let m = Mounted::new();
    for (groups, left) in [(vec![1000, 4242], 0o2000), (vec![1000], 0)] {
        for dir in [&m.source, &m.mnt] {
            let file = dir.join("file");
            fs::write(&file, "").unwrap();
            chown(&file, Some(1000), Some(4242)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o2755)).unwrap();
            assert!(works_as(
                1000,
                &groups,
                &format!("setfacl -m u:1234:r {}", file.display())
            ));
            assert_eq!(mode(&file) & 0o2000, left, "{groups:?} {file:?}");
            fs::remove_file(&file).unwrap();
        }
    }
}

/// Somebody makes the file behind the mount between LOOKUP and CREATE: the kernel has checked nothing of it.
#[test]
fn create_never_opens_what_was_there_already() {
    use extfuse::abi::NodeId;
    use extfuse::fs::stack::Caller;
    use extfuse::fs::{Stack, StackOptions};
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), "text").unwrap();
    let stack = Stack::new(dir.path(), StackOptions::default()).unwrap();
    let caller = Caller {
        uid: 1000,
        gid: 1000,
        pid: 0,
    };
    let create = |flags| {
        let no_backing = |_: std::os::fd::BorrowedFd<'_>| Err(std::io::ErrorKind::Unsupported.into());
        stack
            .create(
                NodeId::ROOT,
                "secret".as_ref(),
                0o644,
                0,
                flags,
                caller,
                no_backing,
            )
            .map(drop)
    };
    assert_eq!(
        create(libc::O_RDWR | libc::O_CREAT),
        Err(nix::errno::Errno::ESTALE)
    );
    assert_eq!(
        create(libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC),
        Err(nix::errno::Errno::ESTALE)
    );
    assert_eq!(
        create(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL),
        Err(nix::errno::Errno::EEXIST)
    );
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"text");
}
