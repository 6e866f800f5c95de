// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory of its own for a test, and the mount of it by stock FUSE.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use extfuse::fs::{Stack, StackOptions, Upcalls};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::mount::{MntFlags, umount2};

/// A source directory and its mount, gone when dropped.
pub struct Mounted {
    pub source: PathBuf,
    pub mnt: PathBuf,
    pub upcalls: Arc<Upcalls>,
    session: Option<BackgroundSession>,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// With the default options: timeouts 0, passthrough.
    pub fn new() -> Self {
        Self::with(StackOptions::default())
    }

    /// Everything through the page cache and the daemon.
    pub fn cached() -> Self {
        Self::with(StackOptions {
            passthrough: false,
            ..StackOptions::default()
        })
    }

    pub fn with(options: StackOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users have to come by.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (source, mnt) = (dir.path().join("source"), dir.path().join("mnt"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&mnt).unwrap();
        let (session, upcalls) = serve(&source, &mnt, options);
        Self {
            source,
            mnt,
            upcalls,
            session: Some(session),
            _dir: dir,
        }
    }

    /// A path in the mount.
    pub fn at(&self, path: &str) -> PathBuf {
        self.mnt.join(path)
    }

    /// The same path in the source.
    pub fn behind(&self, path: &str) -> PathBuf {
        self.source.join(path)
    }

    /// Descriptors that the daemon, which is this process, holds in the source.
    pub fn held(&self) -> usize {
        let fds = fs::read_dir("/proc/self/fd").unwrap();
        fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
            .filter(|target| target.starts_with(&self.source))
            .count()
    }
}

/// Mounts `source` on `mnt`, served by threads of this process.
pub fn serve(source: &Path, mnt: &Path, options: StackOptions) -> (BackgroundSession, Arc<Upcalls>) {
    let stack = Stack::new(source, options).unwrap();
    let upcalls = stack.upcalls();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("extfuse-test".into()),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(3);
    let session = Session::new(stack, mnt, &config)
        .expect("needs root and /dev/fuse")
        .spawn()
        .unwrap();
    (session, upcalls)
}

/// Unmounts, and waits for the daemon to end.
pub fn unmount(mnt: &Path, session: BackgroundSession) {
    // A process that a test started may take a moment to let go.
    let busy = !wait_until(|| umount2(mnt, MntFlags::empty()).is_ok());
    if busy {
        umount2(mnt, MntFlags::MNT_DETACH).unwrap();
    }
    let end = session.join();
    if !std::thread::panicking() {
        assert!(!busy, "the mount was busy at the end of the test");
        end.unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.mnt, self.session.take().unwrap());
    }
}

/// Waits until `condition` holds, for two seconds at most; tells whether it does.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a shell command as a user with some groups, the first being the main one.
pub fn run_as(uid: u32, groups: &[u32], script: &str) -> Output {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={}", groups[0]));
    match groups.len() {
        1 => command.arg("--clear-groups"),
        _ => {
            let all: Vec<String> = groups[1..].iter().map(u32::to_string).collect();
            command.arg(format!("--groups={}", all.join(",")))
        }
    };
    command.args(["sh", "-c", script]).output().unwrap()
}

/// Whether the command succeeds; prints what it says.
pub fn works_as(uid: u32, groups: &[u32], script: &str) -> bool {
    let output = run_as(uid, groups, script);
    eprintln!(
        "{script}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.status.success()
}
