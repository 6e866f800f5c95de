// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that have no extended attributes, which is said with their names.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;

use crate::common::Scratch;
use crate::{Options, Scene, while_running, xattr};

/// Of each class, and what `ls -l` asks for.
const NAMES: [&CStr; 6] = [
    c"security.selinux",
    c"security.capability",
    c"system.posix_acl_access",
    c"system.posix_acl_default",
    c"trusted.none",
    c"user.none",
];

/// All that can be asked of a file's attributes.
fn all(path: &Path) -> Vec<Result<Vec<u8>, Errno>> {
    let values = NAMES.iter().map(|name| xattr::get(path, name));
    let names = xattr::list_in(path, 4096).map(|(_, names)| names);
    values.chain([names]).collect()
}

#[test]
fn that_there_are_no_attributes_comes_with_the_name() {
    let scratch = Scratch::new();
    let source = scratch.source();
    for file in ["file", "changed", "other", "marked"] {
        fs::write(source.join(file), file).unwrap();
    }
    fs::create_dir(source.join("dir")).unwrap();
    symlink("file", source.join("link")).unwrap();
    xattr::set(&source.join("marked"), c"user.none", b"some").unwrap();
    let options = Options {
        keep: None,
        ..Options::default()
    };
    let scene = Scene::over(scratch, options, &[&[], &[]]);
    let (here, there) = (&scene.mounts[0], &scene.mounts[1]);
    let bare = ["file", "changed", "other", "dir", "link"];
    let asked = while_running(here, || {
        for name in bare {
            fs::symlink_metadata(here.join(name)).unwrap();
            assert_eq!(all(&here.join(name)), all(&source.join(name)), "{name}");
        }
    });
    // What is made is told of likewise.
    let made = while_running(here, || {
        fs::write(here.join("made"), "made").unwrap();
        fs::create_dir(here.join("made too")).unwrap();
        for name in ["made", "made too"] {
            assert_eq!(all(&here.join(name)), all(&source.join(name)), "{name}");
        }
    });
    for (opcode, _) in asked.iter().chain(&made) {
        assert!(!opcode.contains("XATTR"), "{asked:?} {made:?}");
    }
    assert_eq!(asked.get("LOOKUP"), Some(&(bare.len() as u64)), "{asked:?}");

    // One that has some does not pass for one that has none.
    assert_eq!(all(&here.join("marked")), all(&source.join("marked")));
    assert_eq!(
        xattr::get(&here.join("marked"), c"user.none"),
        Ok(b"some".to_vec())
    );
    // What somebody else changes is seen at once, and what we change ourselves.
    for by in [there, here] {
        xattr::set(&by.join("changed"), c"user.none", b"now").unwrap();
        assert_eq!(
            xattr::get(&here.join("changed"), c"user.none"),
            Ok(b"now".to_vec())
        );
        assert_eq!(all(&here.join("changed")), all(&source.join("changed")));
        xattr::remove(&by.join("changed"), c"user.none").unwrap();
        assert_eq!(all(&here.join("changed")), all(&source.join("changed")));
        let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x01\0\0\0\x04\0\x04\0\xff\xff\xff\xff\
            \x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
        xattr::set(&by.join("other"), c"system.posix_acl_access", acl).unwrap();
        assert_eq!(
            xattr::get(&here.join("other"), c"system.posix_acl_access"),
            Ok(acl.to_vec())
        );
        xattr::remove(&by.join("other"), c"system.posix_acl_access").unwrap();
        assert_eq!(all(&here.join("other")), all(&source.join("other")));
    }
}
