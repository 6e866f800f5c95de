// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Rust makes of `include/extfuse.h` against what a C compiler makes of it.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use extfuse::abi::{self, AttrRow, EntryKey, EntryRow, NodeId, SlotKind, Wire, XattrKey, XattrRow};
use extfuse::ebpf::row;
use extfuse::ebpf::stamps::Slot;
use extfuse::sys::device::IOCTLS;
use plain::Plain;
use proptest::prelude::*;
use proptest::test_runner::Config;

/// Prints each constant; then, for each record on standard input, what the header's functions give.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <linux/types.h>
#include "extfuse.h"

struct record {
	__u64 nodeid, kind;
	struct extfuse_entry_key key;
	struct extfuse_entry entry;
	struct extfuse_attr_row attr;
	struct extfuse_xattr xattr;
};

int main(int argc, char **argv)
{
	struct extfuse_xattr_key key;
	struct record r;

	if (argc > 1) {
CONSTANTS
		return 0;
	}
	while (fread(&r, sizeof(r), 1, stdin) == 1) {
		key.nodeid = r.nodeid;
		key.hash = r.key.hash;
		printf("%u %u %llu %llu %llu\n", extfuse_node_slot(r.nodeid, r.kind),
		       extfuse_entry_slot(r.key.parent, r.key.hash), extfuse_entry_check(&r.key, &r.entry),
		       extfuse_attr_check(r.nodeid, &r.attr), extfuse_xattr_check(&key, &r.xattr));
	}
	return 0;
}
"#;

/// The program, compiled.
fn compiled() -> &'static Path {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let names = abi::MIRRORED.iter().chain(&IOCTLS).map(|(name, _)| name);
        let prints: String = names
            .map(|name| format!("printf(\"{name} %llu\\n\", (unsigned long long)({name}));\n"))
            .collect();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Tests run in processes of their own, at the same time: each compiles, one name remains.
        let own = folder.join(format!("abi-{}", process::id()));
        let source = own.with_extension("c");
        std::fs::write(&source, PROGRAM.replace("CONSTANTS", &prints)).unwrap();
        let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-Wall", "-Werror", "-I", include, "-o"])
            .arg(&own)
            .arg(&source);
        assert!(compiler.status().unwrap().success());
        std::fs::remove_file(source).unwrap();
        let program = folder.join("abi");
        std::fs::rename(own, &program).unwrap();
        program
    })
}

#[test]
fn constants_are_those_of_the_header() {
    let output = Command::new(compiled()).arg("constants").output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let header: HashMap<_, u64> = printed
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect();
    for (name, value) in abi::MIRRORED.iter().chain(&IOCTLS) {
        assert_eq!(header[name], *value, "{name}");
    }
}

/// A `#define` that the mirror lacks is one that nobody compares.
#[test]
fn every_number_of_the_header_is_mirrored() {
    let header = include_str!("../include/extfuse.h");
    for line in header.lines() {
        let Some(name) = line
            .strip_prefix("#define ")
            .and_then(|rest| rest.split_whitespace().next())
        else {
            continue;
        };
        let known = abi::MIRRORED
            .iter()
            .chain(&IOCTLS)
            .any(|(mirrored, _)| *mirrored == name);
        // Those of the programs and the module only, the guard, and macros with arguments.
        let others = [
            "EXTFUSE_H",
            "EXTFUSE_CTX_PASSTHRU",
            "EXTFUSE_CTX_EVENT",
            "EXTFUSE_CTX_BACKGROUND",
            "EXTFUSE_CTX_WALK",
            "EXTFUSE_OUT",
            "EXTFUSE_KEEP_ENTRY",
            "EXTFUSE_KEEP_ATTR",
            "EXTFUSE_KEEP_OPEN",
            "EXTFUSE_KEEP_PASSTHRU",
            "EXTFUSE_KEEP_STATFS",
            "EXTFUSE_SECTION_HEADER",
            "EXTFUSE_SECTION_FOOTER",
        ];
        assert!(
            known || others.contains(&name) || name.contains('('),
            "{name} is not in abi.rs"
        );
    }
}

#[derive(Clone, Debug)]
struct Record {
    nodeid: u64,
    kind: u32,
    key: [u64; 2],
    entry: Vec<u64>,
    attr: Vec<u64>,
    xattr: Vec<u64>,
}

fn record() -> impl Strategy<Value = Record> {
    let words = |bytes: usize| proptest::collection::vec(any::<u64>(), bytes / 8);
    let small = prop_oneof![any::<u64>(), 0..16_u64];
    (
        small,
        1..=5_u32,
        any::<[u64; 2]>(),
        words(size_of::<EntryRow>()),
        words(size_of::<AttrRow>()),
        words(size_of::<XattrRow>()),
    )
        .prop_map(|(nodeid, kind, key, entry, attr, xattr)| Record {
            nodeid,
            kind,
            key,
            entry,
            attr,
            xattr,
        })
}

fn from_words<T: Wire + Default>(words: &[u64]) -> T {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut value = T::default();
    Plain::copy_from_bytes(&mut value, &bytes).unwrap();
    value
}

proptest! {
    #![proptest_config(Config { cases: 16, ..Config::default() })]

    #[test]
    fn slots_and_checks_are_those_of_the_header(records in proptest::collection::vec(record(), 1..200)) {
        let mut child =
            Command::new(compiled()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = Vec::new();
        let mut expected = String::new();
        for Record { nodeid, kind, key: [parent, hash], entry, attr, xattr } in &records {
            let key = EntryKey { parent: *parent, hash: *hash };
            let (entry, attr) = (from_words::<EntryRow>(entry), from_words::<AttrRow>(attr));
            input.extend([nodeid.to_ne_bytes(), u64::from(*kind).to_ne_bytes()].as_flattened());
            let xattr = from_words::<XattrRow>(xattr);
            let xattr_key = XattrKey { nodeid: *nodeid, hash: *hash };
            input.extend(key.bytes().iter().chain(entry.bytes()).chain(attr.bytes()).chain(xattr.bytes()));
            expected += &format!(
                "{} {} {} {} {}\n",
                Slot::node(NodeId(*nodeid), SlotKind(*kind)).index(),
                Slot::entry(NodeId(*parent), *hash).index(),
                row::entry_check(&key, &entry),
                row::attr_check(NodeId(*nodeid), &attr),
                row::xattr_check(&xattr_key, &xattr),
            );
        }
        let mut stdin = child.stdin.take().unwrap();
        let writer = thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}

#[test]
fn slots_of_nodes_and_names_are_never_that_of_the_connection() {
    // 0 times anything is 0, which is the connection's.
    assert_eq!(Slot::entry(NodeId(0), 0).index(), 1);
    assert_eq!(Slot::node(NodeId(0), SlotKind(0)).index(), 1);
    assert_eq!(Slot::CONNECTION.index(), 0);
}

/// The reference vectors of SipHash-2-4: key 00..0f, input 00..n.
#[test]
fn names_are_hashed_by_siphash_2_4() {
    let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
    let input: Vec<u8> = (0..64).collect();
    assert_eq!(row::name_hash(key, &[]), 0x726f_db47_dd0e_0e31);
    assert_eq!(row::name_hash(key, &input[..1]), 0x74f8_39c5_93dc_67fd);
    assert_eq!(row::name_hash(key, &input[..2]), 0x0d6c_8009_d9a9_4f5a);
    assert_eq!(row::name_hash(key, &input[..3]), 0x8567_6696_d7fb_7e2d);
    assert_eq!(row::name_hash(key, &input[..15]), 0xa129_ca61_49be_45e5);
}

#[test]
fn opcodes_have_one_name_each() {
    assert_eq!(abi::opcode_name(1), Some("LOOKUP"));
    assert_eq!(abi::opcode_name(7), None);
    for opcode in 0..abi::OPCODES as u32 {
        if let Some(name) = abi::opcode_name(opcode) {
            assert_eq!(abi::opcode_of(&name.to_lowercase()), Some(opcode));
        }
    }
}
