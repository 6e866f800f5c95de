// SPDX-License-Identifier: MIT OR Apache-2.0
//! pjdfstest gives the same verdict, test by test, natively, on Stack, and on what a server has.
//!
//! Level: native (root, /dev/fuse, loop devices). The program is taken from `$PJDFSTEST`, or from
//! `target/tools/bin`, where `cargo install pjdfstest --version 0.2.2 --locked --root target/tools` puts
//! it. `EXTFUSE_PJDFSTEST_NATIVE` and `EXTFUSE_PJDFSTEST_DIR`, each the root of a mount, are compared instead
//! if they are set: that is how other kernels and other mounts are checked.

#[path = "../stack/mount.rs"]
mod mount;
mod verdicts;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use extfuse::fs::StackOptions;
use extfuse::remote::Address;
use extfuse::remote::client::{Connection, Remote, Target};
use extfuse::remote::server::{Export, Options, Server};
use extfuse::remote::wire;
use verdicts::{Verdict, compare, verdicts};

/// File systems of the test's own, unmounted in reverse when it ends.
struct Mounts {
    dir: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Mounts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            dir,
            mounted: Vec::new(),
        }
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn mount(&mut self, name: &str, arguments: &[&str]) -> PathBuf {
        let dir = self.dir(name);
        let status = Command::new("mount").args(arguments).arg(&dir).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
        self.mounted.push(dir.clone());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        dir
    }

    fn ext4(&mut self, name: &str) -> PathBuf {
        let image = self.dir.path().join(format!("{name}.ext4"));
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let made = Command::new("/sbin/mkfs.ext4")
            .arg("-qF")
            .arg(&image)
            .status()
            .unwrap();
        assert!(made.success(), "mkfs.ext4");
        self.mount(name, &["-o", "loop", &image.to_string_lossy()])
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for dir in self.mounted.iter().rev() {
            let unmounted = Command::new("umount")
                .arg(dir)
                .status()
                .is_ok_and(|status| status.success());
            if !unmounted {
                let _ = Command::new("umount").arg("-l").arg(dir).status();
            }
        }
    }
}

#[test]
fn verdicts_are_those_of_the_file_system_below() {
    let mut mounts = Mounts::new();
    let elsewhere = mounts.mount("elsewhere", &["-t", "tmpfs", "none"]);
    let given = |variable| env::var_os(variable).map(PathBuf::from);
    if let Some(dir) = given("EXTFUSE_PJDFSTEST_DIR") {
        let native = given("EXTFUSE_PJDFSTEST_NATIVE").unwrap_or_else(|| mounts.ext4("native"));
        return compare(&verdicts(&native, &elsewhere).0, &dir, &elsewhere);
    }
    let ext4 = mounts.ext4("native");
    let native = verdicts(&ext4, &elsewhere).0;
    let failed: Vec<_> = native
        .iter()
        .filter(|(_, verdict)| **verdict == Verdict::Failed)
        .collect();
    assert!(failed.is_empty(), "ext4 itself fails: {failed:?}");
    let source = |name: &str| {
        let source = ext4.join(name);
        fs::create_dir(&source).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o777)).unwrap();
        source
    };
    for (name, passthrough) in [("backed", true), ("unbacked", false)] {
        let source = source(name);
        let mnt = mounts.dir(&format!("{name}.mnt"));
        let options = StackOptions {
            passthrough,
            ..StackOptions::default()
        };
        let (session, _) = mount::serve(&source, &mnt, options);
        let result = std::panic::catch_unwind(|| compare(&native, &mnt, &elsewhere));
        mount::unmount(&mnt, session);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }
    let mnt = mounts.dir("served.mnt");
    let socket = mounts.dir.path().join("socket");
    with_server(source("served"), socket, &mnt, || {
        compare(&native, &mnt, &elsewhere)
    });
}

/// Does `what` while the source is served, and mounted.
fn with_server(source: PathBuf, socket: PathBuf, mnt: &Path, what: impl FnOnce()) {
    let export = Export {
        name: wire::Export::new("").unwrap(),
        directory: source,
        read_only: false,
    };
    let address = Address::Unix(socket);
    let server = Server::bind(&address, vec![export], Options::default()).unwrap();
    let stopper = server.stopper();
    let server = thread::spawn(move || server.serve());
    let target = Target {
        keeps: false,
        disconnected: extfuse::remote::client::Disconnected::Fail,
        address,
        export: wire::Export::new("").unwrap(),
        token: None,
        tls: None,
        timeout: Duration::from_secs(30),
    };
    let options = extfuse::MountOptions {
        stock: true,
        threads: 4,
        ..extfuse::MountOptions::default()
    };
    let remote = Remote::new(Connection::open(&target).unwrap());
    let session = extfuse::mount(remote, mnt, &options).unwrap();
    let unmounter = session.unmounter();
    let session = thread::spawn(move || session.serve());
    let result = std::panic::catch_unwind(AssertUnwindSafe(what));
    unmounter.detach().unwrap();
    session.join().unwrap().unwrap();
    stopper.stop();
    server.join().unwrap().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
