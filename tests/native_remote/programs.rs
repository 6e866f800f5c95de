// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that people use, on what a server has: rsync, tar, git, a compiler.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::common::Scratch;
use crate::{Served, both, mount, text};

/// Runs a script of bash, in `at`, with these arguments.
fn run(script: &str, at: &Path, arguments: &[&str]) {
    let start = Instant::now();
    let done = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script, "bash"])
        .args(arguments)
        .current_dir(at)
        .env("HOME", at)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    let said = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(done.status.success(), "{}: {}{}", done.status, said[0], said[1]);
    println!("{:?}: {}", start.elapsed(), said[0].trim_end());
}

/// What is in a folder, and all that rsync tells of it; and that this is so.
const RSYNC: &str = r#"
    here=$1 there=$2/copy back=$3
    everything() {
        (cd "$1" && find . -printf '%P %y %m %U:%G %n %l ' \( -type d -printf '\n' -o -printf '%s %T@\n' \) | sort)
        (cd "$1" && getfattr -dhR -m 'user|trusted' . && getfacl -Rnp . && find . -type f -exec sha256sum {} + | sort)
    }
    same() {
        diff <(everything "$here") <(everything "$1")
        # And as rsync sees it, byte by byte.
        test -z "$(rsync -aHAX --checksum --delete --dry-run --itemize-changes "$here/" "$1/")"
    }
    copied() {
        rsync -aHAX --checksum --delete "$here/" "$there/"
        same "$there"
        rsync -aHAX --checksum --delete "$there/" "$back/"
        same "$back"
    }

    cp -a "$4" "$here/tree"
    cd "$here"
    ln -s tree/nowhere link
    ln tree/Cargo.toml hard
    mkfifo pipe
    mknod device c 1 3
    # Of what is not a file rsync compares whole seconds.
    touch -h -d '2001-02-03 04:05:06.789012345' link pipe device
    truncate -s 5M sparse
    printf x | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
    head -c 3000001 /dev/urandom >large
    touch -d '2001-02-03 04:05:06.789012345' large
    chown 1000:1001 large
    chmod 6755 large
    mkdir -m 1777 "$(printf 'odd\nname %s' "$(printf 'n%.0s' {1..200})")"
    setfattr -n user.colour -v blue hard
    setfacl -m u:1000:rw,g:1001:r large
    setfacl -d -m u:1000:rwx tree
    copied

    # Changed, so that neither size nor time tells; gone; another kind; under another name.
    dd if=/dev/urandom of=large bs=1 seek=1000000 count=10 conv=notrunc status=none
    touch -d '2001-02-03 04:05:06.789012345' large
    rm -r hard tree/src/remote
    mkdir hard
    rm link
    date >link
    mv tree/docs tree/texts
    setfattr -n user.colour -v red tree/Cargo.toml
    copied
"#;

#[test]
fn rsync_brings_a_tree_there_and_back() {
    for more in [&[] as &[&str], &["--writeback"]] {
        let scratch = Scratch::new();
        let served = Served::tcp(&scratch.source(), &[]);
        let mounted = mount(&served.url(), &scratch, more);
        let folders = ["here", "back", "sample"].map(|name| scratch.path().join(name));
        let [here, back, sample] = &folders;
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        for part in ["Cargo.toml", "docs", "src", "include"] {
            let part = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
            let copied = Command::new("cp").arg("-a").arg(part).arg(sample).status();
            assert!(copied.unwrap().success());
        }
        let arguments = [here, mounted.path(), back, sample].map(text);
        run(RSYNC, scratch.path(), &arguments);
    }
}

/// Everything of Linux, or, of its sources that scripts/setup has fetched ($1), these parts.
const LINUX: &str = r#"
    packed=$1 mounted=$2 served=$3
    shift 3
    step() { echo "$SECONDS s: $*"; }
    attributes() {
        (cd "$1" && find . -printf '%P %y %m %U:%G %l ' \( -type d -printf '\n' -o -printf '%s %T@\n' \) | sort)
    }
    same() {
        diff -r --no-dereference local "$1"
        diff <(attributes local) <(attributes "$1")
    }
    mkdir local
    mkfifo twin
    tar -x -C local "$@" <twin &
    xz -dcT0 "$packed" | tee twin | tar -x -C "$mounted" "$@"
    wait $!
    step "unpacked $(find local | wc -l) files"
    same "$mounted"
    same "$served"
    step 'compared'

    cd "$mounted"/linux-source-*
    here=$PWD
    git config --global user.name Somebody
    git config --global user.email somebody@example.org
    # In the parts all of it would be for nothing but time.
    test $# = 0 || cd tools
    git init -q
    git add -A -f
    git commit -q -m first
    test -z "$(git status --porcelain)"
    git fsck --strict --no-dangling
    git clone -q --no-local . "$mounted/clone"
    test -z "$(git -C "$mounted/clone" status --porcelain)"
    test "$(git -C "$mounted/clone" rev-parse 'HEAD^{tree}')" = "$(git rev-parse 'HEAD^{tree}')"
    git -C "$mounted/clone" fsck --strict --no-dangling
    diff -r --exclude .git . "$mounted/clone"
    step "$(git ls-files | wc -l) files committed and cloned"

    cd "$here"
    make -s -C tools/lib/subcmd
    # What is made is newer than what it was made from, for who looks at times.
    ! make -C tools/lib/subcmd | grep -E ' (CC|LD|AR) '
    cat >"$mounted/try.c" <<-'END'
	#include "tools/lib/subcmd/help.h"
	int main(void)
	{
		struct cmdnames names = {};

		add_cmdname(&names, "stat", 4);
		return !is_in_cmdlist(&names, "stat") || is_in_cmdlist(&names, "top");
	}
	END
    gcc -w -I. -Itools/include "$mounted/try.c" tools/lib/{ctype,string,str_error_r}.c \
        tools/lib/subcmd/libsubcmd.a -o "$mounted/try"
    "$mounted/try"
    step 'built a library, and a program that uses it'
    test $# = 0 || exit 0
    make -s -C tools/lib/bpf -j2
    test "$(ar t tools/lib/bpf/libbpf.a)" = libbpf-in.o
    step 'built libbpf'
"#;

#[test]
fn linux_is_unpacked_there_committed_and_built() {
    // All of it takes half an hour.
    let parts = ["fs/ext4", "fs/fuse", "fs/nfs", "fs/xfs", "include/uapi"];
    let built = ["tools/lib", "tools/include", "tools/scripts", "tools/build"];
    let parts: Vec<String> = match env::var_os("EXTFUSE_LONG") {
        Some(_) => Vec::new(),
        None => parts
            .iter()
            .chain(&built)
            .map(|part| format!("linux-source-6.12/{part}"))
            .collect(),
    };
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/linux-source.tar.xz");
    assert!(
        packed.exists(),
        "{} is missing: scripts/setup fetches it",
        packed.display()
    );
    let (scratch, _served, mounted) = both(&[]);
    let source = scratch.source();
    let mut arguments = [&packed, mounted.path(), &source].map(text).to_vec();
    arguments.extend(parts.iter().map(String::as_str));
    run(LINUX, scratch.path(), &arguments);
}
