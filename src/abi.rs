// SPDX-License-Identifier: MIT OR Apache-2.0
//! The numbers and layouts that kernel, handlers and daemon share (`include/extfuse.h`).
//!
//! Types and enums come out of the BTF of the compiled handlers, so they cannot differ from the
//! header. Its `#define`s leave no trace there: they are written again below, and `tests/pure_abi.rs`
//! compares each with the header.

/// The skeleton of `bpf/extfuse.bpf.c`, made by `build.rs`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    unused_qualifications,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports
)]
pub(crate) mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/extfuse.skel.rs"));
}

use plain::Plain;

pub use skeleton::types::{
    extfuse_attr as Attr, extfuse_attr_row as AttrRow, extfuse_backing as Backing,
    extfuse_backing_op as BackingOp, extfuse_commit as Commit, extfuse_counter as Counter,
    extfuse_counters as Counters, extfuse_drain as Drain, extfuse_entry as EntryRow,
    extfuse_entry_key as EntryKey, extfuse_event as Event, extfuse_exit as Exit, extfuse_fill as Fill,
    extfuse_miss as Miss, extfuse_opcodes as Opcodes, extfuse_section as Section,
    extfuse_sections as Sections, extfuse_setup as Setup, extfuse_slot_kind as SlotKind,
    extfuse_stamps as StampsLayout, extfuse_status as Status, extfuse_xattr as XattrRow,
    extfuse_xattr_class as XattrClass, extfuse_xattr_key as XattrKey,
};

/// A FUSE node id: 1 is the root, 0 is no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of every mount (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// Defines constants of the header under their own names without the prefix, and lists them for the
/// test that compares the two.
macro_rules! mirror {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr, $header:literal;)*) => {
        $($(#[$doc])* pub const $name: $type = $value;)*

        /// Each mirrored constant: its name in the header, and the bits of its value here.
        pub const MIRRORED: &[(&str, u64)] = &[$(($header, $name as u64)),*];
    };
}

mirror! {
    /// Raised by every change that an older daemon or program would misread.
    ABI: u32 = 1, "EXTFUSE_ABI";
    /// Verdict: ask the daemon.
    UPCALL: i32 = -libc::ENOSYS, "EXTFUSE_UPCALL";
    /// Verdict: answered.
    RETURN: i32 = 0, "EXTFUSE_RETURN";
    /// Verdict: to be done on the backing file.
    PASSTHRU: i32 = 1, "EXTFUSE_PASSTHRU";
    /// The largest errno that a daemon or a handler may answer.
    MAX_ERRNO: i32 = 511, "EXTFUSE_MAX_ERRNO";
    /// Errors after which a program is ejected.
    ERROR_BUDGET: u64 = 64, "EXTFUSE_ERROR_BUDGET";
    /// Opcodes from here on have no handler and no counter of their own.
    OPCODES: usize = 64, "EXTFUSE_OPCODES";
    /// Bits of the clock, and of a slot's time of the last change.
    CLOCK_BITS: u32 = 48, "EXTFUSE_CLOCK_BITS";
    /// The last time that the clock can tell.
    CLOCK_MAX: u64 = (1 << CLOCK_BITS) - 1, "EXTFUSE_CLOCK_MAX";
    /// One change of the daemon in flight.
    FLIGHT_DAEMON: u64 = 1 << 48, "EXTFUSE_FLIGHT_DAEMON";
    /// The daemon's changes in flight.
    FLIGHT_DAEMON_MASK: u64 = 0xf << 48, "EXTFUSE_FLIGHT_DAEMON_MASK";
    /// One change of the kernel in flight.
    FLIGHT_KERNEL: u64 = 1 << 52, "EXTFUSE_FLIGHT_KERNEL";
    /// The kernel's changes in flight.
    FLIGHT_KERNEL_MASK: u64 = 0xfff << 52, "EXTFUSE_FLIGHT_KERNEL_MASK";
    /// All changes in flight.
    FLIGHT_MASK: u64 = 0xffff << 48, "EXTFUSE_FLIGHT_MASK";
    /// log2 of [`SLOTS`].
    SLOT_BITS: u32 = 16, "EXTFUSE_SLOT_BITS";
    /// Slots of a connection.
    SLOTS: usize = 1 << SLOT_BITS, "EXTFUSE_SLOTS";
    /// The slot of the whole connection.
    SLOT_CONN: u32 = 0, "EXTFUSE_SLOT_CONN";
    /// The time that never comes, as a deadline and as an expiry.
    NEVER: u64 = u64::MAX, "EXTFUSE_NEVER";
    /// What spreads node ids over the slots, and rounds of the check word.
    HASH_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15, "EXTFUSE_HASH_MULTIPLIER";
    /// Longest name, in bytes.
    NAME_MAX: usize = 255, "EXTFUSE_NAME_MAX";
    /// [`AttrRow::flags`]: reads and writes may go to the backing file.
    ATTR_PASSTHRU: u64 = 1, "EXTFUSE_ATTR_PASSTHRU";
    /// [`XattrRow::says`] of a value: the errno instead of it.
    XATTR_ERRNO_MASK: u64 = 0xff, "EXTFUSE_XATTR_ERRNO_MASK";
    /// [`XattrRow::says`]: the names are what LISTXATTR answers, whoever asks.
    XATTR_LISTED: u64 = 1 << 62, "EXTFUSE_XATTR_LISTED";
    /// [`XattrKey::hash`] of what a directory's nodes don't have.
    XATTR_CHILDREN: u64 = 1, "EXTFUSE_XATTR_CHILDREN";
    /// [`XattrRow::says`]: a change of the node's data may change it.
    XATTR_DATA: u64 = 1 << 63, "EXTFUSE_XATTR_DATA";
    /// Longest value that a row can hold, in bytes.
    XATTR_VALUE_MAX: usize = 128, "EXTFUSE_XATTR_VALUE_MAX";
    /// Longest name of a value in a row, in bytes.
    XATTR_NAME_MAX: usize = 72, "EXTFUSE_XATTR_NAME_MAX";
    /// All names of a node in a row, each with its NUL, in bytes.
    XATTR_NAMES_MAX: usize = 200, "EXTFUSE_XATTR_NAMES_MAX";
    /// [`AttrRow::flags`]: opens for reading may be answered.
    ATTR_OPEN: u64 = 2, "EXTFUSE_ATTR_OPEN";
    /// What a check word starts with.
    MIX_SEED: u64 = 0x6578_7466_7573_6531, "EXTFUSE_MIX_SEED";
    /// Bytes that a header, or a footer, may have.
    SECTION_META_MAX: usize = 1 << 16, "EXTFUSE_SECTION_META_MAX";
    /// [`Section::flags`], [`Fill::flags`], [`Drain::flags`]: compute the CRC32C of the payload.
    SECTION_CRC: u32 = 1, "EXTFUSE_SECTION_CRC";
    /// [`Fill::flags`]: the answer is complete with this section.
    SECTION_COMMIT: u32 = 2, "EXTFUSE_SECTION_COMMIT";
    /// The same: only what a program at the gate accepts.
    SECTION_GATED: u32 = 4, "EXTFUSE_SECTION_GATED";
    /// The same, where it comes back: a program at the gate refused the section.
    SECTION_REFUSED: u32 = 8, "EXTFUSE_SECTION_REFUSED";
    /// [`Sections::flags`]: every WRITE comes without its payload, from a size on.
    SECTIONS_WITHHOLD: u32 = 1, "EXTFUSE_SECTIONS_WITHHOLD";
    /// The error of a `fuse_out_header` that stages a section.
    STAGE: u32 = 0x5ec7, "EXTFUSE_STAGE";
    /// `fuse_open_out.open_flags`: WRITEs to this open file come without their payload.
    OPEN_WITHHOLD: u32 = 1 << 31, "EXTFUSE_OPEN_WITHHOLD";
    /// SETUP: the daemon knows every nodeid that was ever in a map, and uses none again.
    HOLDS_NODES: u32 = 1 << 0, "EXTFUSE_HOLDS_NODES";
    /// `fuse_write_in.write_flags`: the payload is withheld.
    WRITE_WITHHELD: u32 = 1 << 31, "EXTFUSE_WRITE_WITHHELD";
    /// Where in `fuse_write_in.write_flags` the size of a withheld payload is.
    WRITE_SIZE_SHIFT: u32 = 4, "EXTFUSE_WRITE_SIZE_SHIFT";
    /// Its bits, there.
    WRITE_SIZE_MASK: u32 = 0x7ff_ffff, "EXTFUSE_WRITE_SIZE_MASK";
    /// [`Drain::crc_at`]: the CRC goes nowhere.
    NOWHERE: u32 = u32::MAX, "EXTFUSE_NOWHERE";
    /// [`Backing::flags`]: also while no READ handler is attached.
    BACKING_ALWAYS: u32 = 1, "EXTFUSE_BACKING_ALWAYS";
    /// [`Backing::flags`]: ranges are valid while the node's data is current as of the stamp.
    BACKING_COPY: u32 = 2, "EXTFUSE_BACKING_COPY";
    /// [`Backing::end`]: up to the file's end, wherever that is.
    BACKING_EOF: u64 = u64::MAX, "EXTFUSE_BACKING_EOF";
    /// Ranges of one backing file that do not touch each other.
    BACKING_RANGES: usize = 8, "EXTFUSE_BACKING_RANGES";
    /// Nodes of a connection that may have a backing file.
    BACKINGS_MAX: usize = 65536, "EXTFUSE_BACKINGS_MAX";
    /// Type of the ioctls.
    IOC_MAGIC: u8 = 0xef, "EXTFUSE_IOC_MAGIC";
}

/// A type of the header that is bytes and nothing else: no padding, no pointer, every pattern valid.
///
/// # Safety
///
/// The implementing type must be `repr(C)`, made of integers, arrays of them and other `Wire` types,
/// without padding.
pub unsafe trait Wire: Plain + Sized {
    /// Its bytes, as they travel.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, as the trait demands: every byte is initialised.
        unsafe { plain::as_bytes(self) }
    }
}

macro_rules! wire {
    ($($type:ty = $size:expr;)*) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        // SAFETY: a struct of integers and arrays of them.
        unsafe impl Plain for $type {}
        // SAFETY: the same, and the sum of its members' sizes, above, is its own: there is no padding.
        unsafe impl Wire for $type {}
    )*};
}

wire! {
    EntryKey = 2 * 8;
    EntryRow = 7 * 8 + 256;
    Attr = 6 * 8 + 10 * 4;
    XattrKey = 2 * 8;
    XattrRow = 7 * 8 + 200;
    AttrRow = 6 * 8 + 88;
    Setup = 2 * 4 + 5 * 8;
    Status = 2 * 4 + 4 * 8 + 16 + 96 + 2 * 4;
    Opcodes = 2 * 8;
    Counters = OPCODES * 7 * 8;
    Sections = 2 * 4;
    Section = 8 + 4 * 4;
    Commit = 2 * 4;
    Fill = 3 * 8 + 10 * 4;
    Drain = 3 * 8 + 10 * 4;
    Backing = 6 * 8 + 4 * 4;
    StampsLayout = 512 * 8 + SLOTS * 8;
}

/// FUSE opcodes below [`OPCODES`], by the protocol's names.
const OPCODE_NAMES: &[(u32, &str)] = &[
    (1, "LOOKUP"),
    (2, "FORGET"),
    (3, "GETATTR"),
    (4, "SETATTR"),
    (5, "READLINK"),
    (6, "SYMLINK"),
    (8, "MKNOD"),
    (9, "MKDIR"),
    (10, "UNLINK"),
    (11, "RMDIR"),
    (12, "RENAME"),
    (13, "LINK"),
    (14, "OPEN"),
    (15, "READ"),
    (16, "WRITE"),
    (17, "STATFS"),
    (18, "RELEASE"),
    (20, "FSYNC"),
    (21, "SETXATTR"),
    (22, "GETXATTR"),
    (23, "LISTXATTR"),
    (24, "REMOVEXATTR"),
    (25, "FLUSH"),
    (26, "INIT"),
    (27, "OPENDIR"),
    (28, "READDIR"),
    (29, "RELEASEDIR"),
    (30, "FSYNCDIR"),
    (31, "GETLK"),
    (32, "SETLK"),
    (33, "SETLKW"),
    (34, "ACCESS"),
    (35, "CREATE"),
    (36, "INTERRUPT"),
    (37, "BMAP"),
    (38, "DESTROY"),
    (39, "IOCTL"),
    (40, "POLL"),
    (41, "NOTIFY_REPLY"),
    (42, "BATCH_FORGET"),
    (43, "FALLOCATE"),
    (44, "READDIRPLUS"),
    (45, "RENAME2"),
    (46, "LSEEK"),
    (47, "COPY_FILE_RANGE"),
    (48, "SETUPMAPPING"),
    (49, "REMOVEMAPPING"),
    (50, "SYNCFS"),
    (51, "TMPFILE"),
    (52, "STATX"),
];

/// Opcodes whose requests no handler sees: they are no questions, or have to reach the daemon.
pub const NEVER_ASKED: &[u32] = &[
    2,  // FORGET
    18, // RELEASE
    25, // FLUSH
    26, // INIT
    29, // RELEASEDIR
    36, // INTERRUPT
    38, // DESTROY
    41, // NOTIFY_REPLY
    42, // BATCH_FORGET
];

/// The protocol's name of an opcode.
#[must_use]
pub fn opcode_name(opcode: u32) -> Option<&'static str> {
    OPCODE_NAMES
        .iter()
        .find(|(number, _)| *number == opcode)
        .map(|(_, name)| *name)
}

/// The opcode of that name, in either case.
#[must_use]
pub fn opcode_of(name: &str) -> Option<u32> {
    OPCODE_NAMES
        .iter()
        .find(|(_, known)| known.eq_ignore_ascii_case(name))
        .map(|(number, _)| *number)
}
