// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged files, mounted by the command over sources of this machine and of two servers. Needs root.

#[path = "../common/certificates.rs"]
mod certificates;
mod changing;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/guest.rs"]
mod guest;
#[path = "../common/merged.rs"]
mod merged;
mod refusals;
#[path = "../common/xattr.rs"]
mod xattr;

use std::fs::{self, File, OpenOptions, Permissions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use certificates::Authority;
use common::{EXTFUSE, Mounted, extfuse};
use guest::Random;
use merged::{Scene, Served, all_kinds, in_turn, reads_are_of};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statvfs::{FsFlags, statvfs};

const STOCK: &[&str] = &["--stock"];

#[test]
fn what_is_read_is_what_the_parts_have() {
    let mut scene = Scene::new();
    let (files, models) = all_kinds(&mut scene);
    let mounted = scene.mount(&files, STOCK);
    for (name, model) in &models {
        assert!(fs::read(mounted.join(name)).unwrap() == *model, "{name}");
        assert_eq!(
            fs::metadata(mounted.join(name)).unwrap().len(),
            model.len() as u64
        );
        reads_are_of(&mounted.join(name), model, &mut scene.dice, 60);
    }
    let (name, model) = &models[1];
    let file = File::open(mounted.join(name)).unwrap();
    let length = NonZeroUsize::new(model.len()).unwrap();
    // SAFETY: a mapping of its own, read before it is gone.
    unsafe {
        let at = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0).unwrap();
        let bytes = std::slice::from_raw_parts(at.as_ptr().cast::<u8>(), model.len());
        assert!(bytes == &model[..]);
        munmap(at, model.len()).unwrap();
    }
}

/// A block device over a file, gone when the test ends.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn block_devices_are_sources_as_long_as_they_are() {
    let mut scene = Scene::new();
    let members = ["a", "b"].map(|name| scene.source(name, 300 << 10));
    let devices = ["a", "b"].map(|name| Loop::over(&scene.path(name)));
    let files = format!(
        "[[file]]\npath = \"f\"\nstripe = 65536\nparts = [{{ local = {:?} }}, {{ local = {:?}, offset = 1024 }}]\n",
        devices[0].0, devices[1].0
    );
    let mounted = scene.mount(&files, STOCK);
    let model = in_turn(65536, &[&members[0], &members[1][1024..]]);
    assert!(fs::read(mounted.join("f")).unwrap() == model);
    reads_are_of(&mounted.join("f"), &model, &mut scene.dice, 10);
}

#[test]
fn a_server_is_reached_as_the_spec_says() {
    let mut scene = Scene::new();
    let bytes = scene.source("east/dir/b", 300_000);
    let authority = Authority::new(scene.scratch.path(), "ca");
    let identity = authority.of("server", "files.example");
    let token = scene.path("token");
    fs::write(&token, "sixteen bytes are enough").unwrap();
    let [token, certificate, key] =
        [&token, &identity.certificate, &identity.key].map(|path| path.to_str().unwrap());
    let (served, address) = Served::listening(
        &scene.path("east"),
        &[
            "--listen",
            "127.0.0.1:0",
            "--token-file",
            token,
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
        ],
    );
    let spec = |more: &str| {
        format!(
            "[server.far]\nurl = \"extfuse://{address}\"\ntoken_file = \"token\"\ntls = true\ntls_ca = \"ca.pem\"\n{more}\n\
             [[file]]\npath = \"f\"\nparts = [{{ server = \"far\", path = \"dir/b\" }}]\n"
        )
    };
    {
        let mounted = scene.mount(&spec("tls_name = \"files.example\""), STOCK);
        assert!(fs::read(mounted.join("f")).unwrap() == bytes);
        let remote = mounted.report().remote.expect("there is one server");
        assert!(remote.connected && remote.round_trips > 0, "{remote:?}");
    }
    // Whom the certificate is not for, and who does not have the token.
    let other = scene.spec(&spec(""));
    let refused = |said: &str| {
        let source = format!("merge:{}", other.display());
        let at = scene.scratch.mountpoint();
        let line = common::refusal(1, &["mount", "--stock", &source, at.to_str().unwrap()]);
        assert!(
            line.contains("spec.toml: server.far: ") && line.contains(said),
            "{line}: {said}"
        );
    };
    refused("certificate");
    scene.spec(&spec("tls_name = \"files.example\""));
    fs::write(scene.path("token"), "sixteen bytes that are others").unwrap();
    refused("token");
    drop(served);
}

#[test]
fn many_may_read_at_the_same_time() {
    let mut scene = Scene::new();
    let (files, models) = all_kinds(&mut scene);
    let mounted = scene.mount(&files, &["--stock", "--ttl", "0"]);
    thread::scope(|scope| {
        for seed in 1..9 {
            let (mounted, models) = (&mounted, &models);
            scope.spawn(move || {
                let mut dice = Random(seed);
                for (name, model) in models {
                    reads_are_of(&mounted.join(name), model, &mut dice, 60);
                }
            });
        }
    });
}

#[test]
fn attributes_and_listings_are_those_of_files_that_nobody_changes() {
    let mut scene = Scene::new();
    let (files, _) = all_kinds(&mut scene);
    let files = files
        + r#"
[[file]]
path = "private"
parts = [{ zeros = 1 }, { local = "source/private" }]
[[file]]
path = "shown"
mode = 0o644
parts = [{ local = "source/private" }]
[[file]]
path = "far"
parts = [{ server = "west", path = "private" }]
"#;
    for private in ["source/private", "west/private"] {
        scene.source(private, 10);
        fs::set_permissions(scene.path(private), Permissions::from_mode(0o640)).unwrap();
    }
    let new = SystemTime::UNIX_EPOCH + Duration::new(4_000_000_000, 123_456_789);
    let touch = |name: &str, time| {
        let file = OpenOptions::new().write(true).open(scene.path(name)).unwrap();
        file.set_modified(time).unwrap();
    };
    touch("east/dir/b", new);
    let look = |mounted: &Mounted| {
        let names = [
            "",
            "images",
            "images/joined",
            "images/striped",
            "narrow",
            "none",
            "private",
        ];
        names.map(|name| fs::metadata(mounted.join(name)).unwrap())
    };
    let first = {
        let mounted = scene.mount(&files, STOCK);
        let first = look(&mounted);
        let mode = |name: &str| fs::metadata(mounted.join(name)).unwrap().mode();
        assert_eq!(mode("images"), 0o40555);
        assert_eq!(mode("narrow"), 0o100_444);
        assert_eq!(mode("private"), 0o100_400, "not readable by being merged");
        assert_eq!(mode("far"), 0o100_400, "not readable by being merged");
        assert_eq!(mode("shown"), 0o100_644);
        assert_eq!(first[2].modified().unwrap(), new, "the newest of its sources");
        let none = fs::metadata(scene.path("source/near")).unwrap();
        assert_eq!(first[5].modified().unwrap(), none.modified().unwrap());
        assert_eq!((first[0].nlink(), first[1].nlink(), first[2].nlink()), (3, 2, 1));
        let list = |name: &str| {
            let entries = fs::read_dir(mounted.join(name)).unwrap().map(Result::unwrap);
            let mut names: Vec<_> = entries
                .map(|entry| {
                    let metadata = entry.metadata().unwrap();
                    assert_eq!(entry.ino(), metadata.ino());
                    assert_eq!(entry.file_type().unwrap(), metadata.file_type());
                    entry.file_name().into_string().unwrap()
                })
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            list(""),
            ["far", "images", "narrow", "none", "private", "shown", "twice"]
        );
        assert_eq!(list("images"), ["joined", "striped"]);
        let missing = fs::metadata(mounted.join("images/none")).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        let all = statvfs(mounted.path()).unwrap();
        let sizes = [
            "images/joined",
            "images/striped",
            "narrow",
            "twice",
            "private",
            "shown",
            "far",
        ];
        let blocks = sizes.map(|name| fs::metadata(mounted.join(name)).unwrap().blocks());
        assert_eq!(all.blocks(), blocks.iter().sum::<u64>());
        assert_eq!((all.blocks_free(), all.files()), (0, 10));
        first
    };
    let mounted = scene.mount(&files, STOCK);
    for (before, after) in first.iter().zip(look(&mounted)) {
        assert_eq!(before.ino(), after.ino(), "the same in the next mount");
    }
    let mut numbers: Vec<u64> = first.iter().map(MetadataExt::ino).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), first.len());
}

#[test]
fn nothing_can_be_changed() {
    let mut scene = Scene::new();
    scene.source("source/a", 100);
    let files = "[[file]]\npath = \"d/f\"\nparts = [{ local = \"source/a\" }]\n";
    let mounted = scene.mount(files, STOCK);
    let (file, new) = (mounted.join("d/f"), mounted.join("d/new"));
    let refused = |what: &str, result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS), "{what}");
    };
    let all = || {
        refused("write", OpenOptions::new().write(true).open(&file).map(drop));
        refused("append", OpenOptions::new().append(true).open(&file).map(drop));
        refused("create", File::create(&new).map(drop));
        refused("truncate", nix::unistd::truncate(&file, 0).map_err(Into::into));
        refused("chmod", fs::set_permissions(&file, Permissions::from_mode(0o777)));
        refused("chown", std::os::unix::fs::chown(&file, Some(1), None));
        refused("mkdir", fs::create_dir(&new));
        refused("rmdir", fs::remove_dir(mounted.join("d")));
        refused("unlink", fs::remove_file(&file));
        refused("rename", fs::rename(&file, &new));
        refused("link", fs::hard_link(&file, &new));
        refused("symlink", std::os::unix::fs::symlink("x", &new));
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        refused("mkfifo", nix::unistd::mkfifo(&new, mode).map_err(Into::into));
        assert_eq!(xattr::set(&file, c"user.x", b"x"), Err(Errno::EROFS));
    };
    all();
    // Whoever has the privilege can have the kernel ask.
    let (none, flags) = (
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
    );
    mount(none, mounted.path(), none, flags, none).unwrap();
    assert!(
        !statvfs(mounted.path())
            .unwrap()
            .flags()
            .contains(FsFlags::ST_RDONLY)
    );
    all();
    assert_eq!(
        fs::read(&file).unwrap(),
        fs::read(scene.path("source/a")).unwrap()
    );
}

#[test]
fn the_command_goes_to_the_background_and_umount_ends_it() {
    let mut scene = Scene::new();
    let (files, models) = all_kinds(&mut scene);
    scene.spec(&files);
    let at = scene.scratch.mountpoint();
    // Relative: to where the command is started, and in it to where the spec is.
    let status = Command::new(EXTFUSE)
        .args(["mount", "--stock", "merge:spec.toml", "mount"])
        .current_dir(scene.scratch.path())
        .status()
        .unwrap();
    assert!(status.success());
    let (name, model) = &models[0];
    assert!(fs::read(at.join(name)).unwrap() == *model);
    let output = extfuse(&["stat", at.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("merge:spec.toml"), "{text}");
    assert!(extfuse(&["umount", at.to_str().unwrap()]).status.success());
    assert!(common::mounts_at(&at).is_empty());
}
