// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles the handlers (`bpf/`) into the skeleton that `src/abi.rs` includes.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use libbpf_cargo::SkeletonBuilder;

const OLDEST_CLANG: u32 = 15;
const NEWEST_CLANG: u32 = 40;

/// The major version of `clang`, if it runs.
fn major(clang: &str) -> Option<u32> {
    let output = Command::new(clang)
        .arg("-dumpversion")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    String::from_utf8(output.stdout)
        .ok()?
        .split('.')
        .next()?
        .trim()
        .parse()
        .ok()
}

fn find_clang() -> String {
    let usable = |clang: &String| major(clang).is_some_and(|version| version >= OLDEST_CLANG);
    if let Ok(clang) = env::var("CLANG") {
        assert!(
            usable(&clang),
            "$CLANG is {clang:?}, which is no clang >= {OLDEST_CLANG}"
        );
        return clang;
    }
    let versioned = (OLDEST_CLANG..=NEWEST_CLANG)
        .rev()
        .map(|version| format!("clang-{version}"));
    std::iter::once("clang".to_owned())
        .chain(versioned)
        .find(usable)
        .unwrap_or_else(|| {
            panic!("no clang >= {OLDEST_CLANG} to compile eBPF: `apt-get install clang-19`, or set $CLANG")
        })
}

/// Compiles `source` into the skeleton `name`.skel.rs.
fn skeleton(source: &str, name: &str, clang: &str) {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed={source}");
    SkeletonBuilder::new()
        .source(source)
        .clang(clang)
        .clang_args(["-Wall", "-Werror", "-I", "include"])
        .build_and_generate(Path::new(&out).join(name).with_extension("skel.rs"))
        .unwrap_or_else(|error| panic!("{error:#}"));
}

/// Compiles `source` into the object `name`.bpf.o, as an author does who has it loaded.
fn object(source: &str, name: &str, clang: &str) {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed={source}");
    SkeletonBuilder::new()
        .source(source)
        .clang(clang)
        .clang_args(["-Wall", "-Werror", "-I", "include"])
        .obj(Path::new(&out).join(name).with_extension("bpf.o"))
        .build()
        .unwrap_or_else(|error| panic!("{error:#}"));
}

fn main() {
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=bpf");
    let clang = find_clang();
    skeleton("bpf/extfuse.bpf.c", "extfuse", &clang);
    object("examples/frames/gate.bpf.c", "frames_gate", &clang);
    object("examples/hide_dotfiles.bpf.c", "hide_dotfiles", &clang);
    object("benches/calls/trivial/upcall.bpf.c", "upcall", &clang);
    // Program sets for the tests; cargo has no build script for tests or benches alone.
    skeleton("tests/guest_handlers/hostile.bpf.c", "hostile", &clang);
    skeleton("tests/guest_sections/gate.bpf.c", "gate", &clang);
    object("tests/guest_gate/gate.bpf.c", "frame_gate", &clang);
    object("tests/guest_gate/unsafe.bpf.c", "unsafe", &clang);
    object("tests/guest_custom/mistaken.bpf.c", "mistaken", &clang);
    object("tests/common/private.bpf.c", "private", &clang);
}
