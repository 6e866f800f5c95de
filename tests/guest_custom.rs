// SPDX-License-Identifier: MIT OR Apache-2.0
//! Handlers of other authors: loaded by the command, asked, refused, ejected, taken off.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{extfuse, one_line};
use extfuse::control::Handler;
use guest::{Tree, as_nobody};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

const HIDE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hide_dotfiles.bpf.o"));
const MISTAKEN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mistaken.bpf.o"));
const UNSAFE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/unsafe.bpf.o"));
const GATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/frame_gate.bpf.o"));
const ARGUMENTS: &[&str] = &["--require-module", "--exclusive"];

/// A mount with a few names, and objects to load.
struct Scene {
    tree: Tree,
    objects: TempDir,
}

impl Scene {
    fn new() -> Self {
        let tree = Tree::mount(ARGUMENTS);
        fs::write(tree.behind("plain"), "plain").unwrap();
        fs::write(tree.behind(".secret"), "secret").unwrap();
        fs::create_dir(tree.behind(".dir")).unwrap();
        fs::write(tree.behind(".dir/inside"), "inside").unwrap();
        let objects = TempDir::new().unwrap();
        Self { tree, objects }
    }

    fn object(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.objects.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn root(&self) -> &str {
        self.tree.root().to_str().unwrap()
    }

    #[track_caller]
    fn load(&self, opcode: &str, file: &Path) {
        let output = extfuse(&["handler", "load", self.root(), opcode, file.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
    }

    /// The one line that says why not.
    #[track_caller]
    fn refused(&self, code: i32, opcode: &str, file: &Path) -> String {
        let arguments = ["handler", "load", self.root(), opcode, file.to_str().unwrap()];
        one_line(code, &extfuse(&arguments))
    }

    fn list(&self) -> Vec<Handler> {
        let output = extfuse(&["handler", "list", self.root(), "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Whose handler of LOOKUP is asked.
    fn lookup(&self) -> Option<String> {
        let handlers = self.list();
        let lookup = handlers
            .iter()
            .find(|handler| handler.opcode == "LOOKUP" && handler.attached);
        lookup.expect("LOOKUP has a handler").object.clone()
    }

    fn unload(&self, opcode: &str) {
        let output = extfuse(&["handler", "unload", self.root(), opcode]);
        assert!(output.status.success(), "{output:?}");
    }

    fn nobody_finds(&self, name: &str) -> bool {
        let path = self.tree.at(name);
        match as_nobody(|| fs::metadata(path)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn names_are_hidden_from_one_user_and_stay_for_the_others() {
    let scene = Scene::new();
    let secret = scene.tree.at(".secret");
    // What the kernel keeps from before does not help.
    for _ in 0..3 {
        fs::metadata(&secret).unwrap();
    }
    assert!(scene.nobody_finds(".secret"));
    scene.load("LOOKUP", &scene.object("hide.o", HIDE));
    assert_eq!(scene.lookup().as_deref(), Some("hide.o"));
    for _ in 0..3 {
        assert!(!scene.nobody_finds(".secret"));
        assert!(!scene.nobody_finds(".dir/inside"));
        assert!(scene.nobody_finds("plain"));
        // Often enough for the kernel to keep the name, if it is let.
        for _ in 0..3 {
            fs::metadata(&secret).unwrap();
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(
            fs::read_to_string(scene.tree.at(".dir/inside")).unwrap(),
            "inside"
        );
    }
    // What is made meanwhile is found by who may.
    fs::write(scene.tree.at(".new"), "new").unwrap();
    assert!(!scene.nobody_finds(".new"));
    assert_eq!(fs::read_to_string(scene.tree.at(".new")).unwrap(), "new");
    fs::remove_file(scene.tree.at(".new")).unwrap();
    assert!(!scene.tree.at(".new").exists());
    fs::write(scene.tree.at(".new"), "again").unwrap();
    // Other names are answered by extfuse's own handler, which the policy calls.
    let plain = scene.tree.at("plain");
    fs::metadata(&plain).unwrap();
    let before = scene.tree.count("LOOKUP");
    for _ in 0..10 {
        fs::metadata(&plain).unwrap();
    }
    let after = scene.tree.count("LOOKUP");
    assert_eq!(after.upcalls, before.upcalls);
    assert!(after.kept > before.kept, "{after:?}");
    scene.unload("lookup");
    assert_eq!(scene.lookup(), None);
    assert!(scene.nobody_finds(".secret"));
}

/// The handlers know what the kernel has forgotten, for those whom it is hidden from nobody, too.
#[test]
fn a_private_name_that_the_kernel_has_forgotten_is_found() {
    let scene = Scene::new();
    scene.load("LOOKUP", &scene.object("hide.o", HIDE));
    let secret = scene.tree.at(".secret");
    // Its node has changed once: what is known of it is known since then.
    fs::hard_link(&secret, scene.tree.at("link")).unwrap();
    fs::remove_file(scene.tree.at("link")).unwrap();
    for _ in 0..3 {
        fs::metadata(&secret).unwrap();
    }
    let asked = || scene.tree.count("LOOKUP").upcalls;
    let before = asked();
    for _ in 0..3 {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert!(!scene.nobody_finds(".secret"));
    }
    assert_eq!(asked(), before);
}

/// An answer for one caller does not take the name away from those who use it.
#[test]
fn a_mount_on_a_hidden_name_stays_when_somebody_looks() {
    let scene = Scene::new();
    scene.load("LOOKUP", &scene.object("hide.o", HIDE));
    let at = scene.tree.at(".dir");
    let inode = fs::metadata(&at).unwrap().ino();
    mount(None::<&str>, &at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    assert_ne!(
        fs::metadata(&at).unwrap().dev(),
        fs::metadata(scene.tree.root()).unwrap().dev()
    );
    for _ in 0..3 {
        assert!(!scene.nobody_finds(".dir"));
    }
    let still = fs::metadata(&at).unwrap().dev() != fs::metadata(scene.tree.root()).unwrap().dev();
    let _ = umount2(&at, MntFlags::MNT_DETACH);
    assert!(still, "nobody's look has unmounted it");
    assert_eq!(fs::metadata(&at).unwrap().ino(), inode);
}

#[test]
fn what_cannot_be_used_is_told_and_changes_nothing() {
    let scene = Scene::new();
    let hide = scene.object("hide.o", HIDE);
    let text = scene.object("words.o", b"not an object");
    assert!(
        scene
            .refused(1, "LOOKUP", &text)
            .contains("words.o is no eBPF object")
    );
    let gate = scene.object("gate.o", GATE);
    assert!(
        scene
            .refused(1, "LOOKUP", &gate)
            .contains("gate.o has no program that answers requests")
    );
    let missing = scene.objects.path().join("missing");
    assert!(
        scene
            .refused(1, "LOOKUP", &missing)
            .contains("missing: No such file")
    );
    for opcode in ["FLUSH", "INIT", "FORGET"] {
        assert!(
            scene
                .refused(1, opcode, &hide)
                .contains("no handler is ever asked about")
        );
    }
    assert!(
        scene
            .refused(2, "LOOKDOWN", &hide)
            .contains("no kind of request there is")
    );
    // The verifier's words, and the end of its log before them.
    let unsafe_object = scene.object("unsafe.o", UNSAFE);
    let output = extfuse(&[
        "handler",
        "load",
        scene.root(),
        "LOOKUP",
        unsafe_object.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert!(
        last.contains("unsafe.o is refused: R1 invalid mem access"),
        "{said}"
    );
    assert!(said.contains("processed "), "{said}");
    assert_eq!(scene.lookup(), None);
    assert!(scene.list().iter().all(|handler| handler.object.is_none()));
    assert_eq!(fs::read_to_string(scene.tree.at(".secret")).unwrap(), "secret");
    let never = extfuse(&["handler", "unload", scene.root(), "LOOKUP"]);
    assert!(one_line(1, &never).contains("no handler of somebody's own"));
}

#[test]
fn one_is_replaced_by_the_next_and_gone_with_the_daemon() {
    let scene = Scene::new();
    let hide = scene.object("hide.o", HIDE);
    let other = scene.object("other.o", HIDE);
    scene.load("LOOKUP", &hide);
    scene.load("1", &other);
    assert_eq!(scene.lookup().as_deref(), Some("other.o"));
    assert!(!scene.nobody_finds(".secret"));
    // In a place where there was none, too.
    scene.load("READDIR", &hide);
    assert_eq!(fs::read_dir(scene.tree.root()).unwrap().count(), 3);
    assert!(scene.list().iter().any(|handler| handler.opcode == "READDIR"));
    scene.unload("READDIR");
    assert!(!scene.list().iter().any(|handler| handler.opcode == "READDIR"));
    scene.unload("LOOKUP");
    assert!(scene.nobody_finds(".secret"));
    scene.load("LOOKUP", &hide);
    drop(scene);
    // The next daemon has its own handlers only.
    let scene = Scene::new();
    assert_eq!(scene.lookup(), None);
    assert!(scene.nobody_finds(".secret"));
}

#[test]
fn one_that_errs_is_ejected_and_the_others_go_on() {
    let scene = Scene::new();
    scene.load("LOOKUP", &scene.object("hide.o", HIDE));
    scene.load("STATFS", &scene.object("mistaken.o", MISTAKEN));
    // An error costs the user nothing.
    for _ in 0..100 {
        nix::sys::statvfs::statvfs(scene.tree.root()).unwrap();
    }
    // It is noticed without anybody's asking.
    let began = Instant::now();
    while scene.nobody_finds(".secret") {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "nothing is attached any more"
        );
    }
    let handlers = scene.list();
    let ejected = handlers
        .iter()
        .find(|handler| handler.opcode == "STATFS")
        .unwrap();
    assert!(
        !ejected.attached && ejected.object.as_deref() == Some("mistaken.o"),
        "{handlers:?}"
    );
    assert!(
        ejected.reason.contains("RETURN without an answer"),
        "{handlers:?}"
    );
    assert_eq!(scene.lookup().as_deref(), Some("hide.o"));
    let stat = extfuse(&["stat", scene.root()]);
    let text = String::from_utf8(stat.stdout).unwrap();
    assert!(text.contains("extfuse attached"), "{text}");
    assert!(
        text.contains("STATFS: mistaken.o (ejected: opcode 17: RETURN without an answer"),
        "{text}"
    );
    assert!(text.contains("LOOKUP: hide.o"), "{text}");
    // Forgotten when told so, or when the next comes.
    scene.unload("STATFS");
    assert!(!scene.list().iter().any(|handler| handler.opcode == "STATFS"));
}

#[test]
fn without_handlers_there_is_no_place_for_one() {
    let tree = Tree::mount(guest::WITHOUT_HANDLERS);
    let objects = TempDir::new().unwrap();
    let path = objects.path().join("hide.o");
    fs::write(&path, HIDE).unwrap();
    let root = tree.root().to_str().unwrap();
    let output = extfuse(&["handler", "load", root, "LOOKUP", path.to_str().unwrap()]);
    assert!(one_line(1, &output).contains("the mount has no handlers"));
    assert!(one_line(1, &extfuse(&["handler", "list", root])).contains("the mount has no handlers"));
}
