/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/*
 * extfuse: the contract between the kernel module, the eBPF handlers and the
 * daemon. This is the single source of truth: the module and the BPF program
 * include it, Rust gets the same types from the BPF program's BTF.
 *
 * The includer provides the fixed-width types (__u8 ... __u64, __s32).
 * Everything here is little-endian and 8-byte aligned, without holes.
 */
#ifndef EXTFUSE_H
#define EXTFUSE_H

/* Raised by every change that an older daemon or program would misread. */
#define EXTFUSE_ABI 1

/*
 * ---- Verdicts: what a request handler returns --------------------------
 *
 * Any other negative number from -1 to -EXTFUSE_MAX_ERRNO is the errno that
 * the caller gets. Anything else is an error of the program.
 */
#define EXTFUSE_UPCALL (-38) /* -ENOSYS: ask the daemon, as stock FUSE does */
#define EXTFUSE_RETURN 0 /* answered: every out argument was written */
#define EXTFUSE_PASSTHRU 1 /* READ, WRITE: do it on the backing file */

/* The largest errno that stock FUSE takes from a daemon (fuse_dev_do_write). */
#define EXTFUSE_MAX_ERRNO 511

/* Errors of a program (bad kfunc arguments, bad verdicts, refused answers)
 * after which the module ejects it from its connection. */
#define EXTFUSE_ERROR_BUDGET 64

/* Opcodes from here on have no handler and no counter of their own. */
#define EXTFUSE_OPCODES 64

/*
 * Events: passed to the `event` program only, in extfuse_ctx.opcode. FORGET
 * keeps its own opcode (2).
 */
enum extfuse_event {
	EXTFUSE_EVENT_INVAL_INODE = 0x1000, /* FUSE_NOTIFY_INVAL_INODE: nodeid */
	EXTFUSE_EVENT_INVAL_ENTRY = 0x1001, /* FUSE_NOTIFY_INVAL_ENTRY: nodeid = parent, in 0 = name */
	EXTFUSE_EVENT_DELETE = 0x1002, /* FUSE_NOTIFY_DELETE: nodeid = parent, node2 = child, in 0 = name */
	EXTFUSE_EVENT_STORE = 0x1003, /* FUSE_NOTIFY_STORE: nodeid */
};

/* extfuse_ctx.flags */
#define EXTFUSE_CTX_PASSTHRU (1U << 0) /* the file has a backing file: PASSTHRU is possible */
#define EXTFUSE_CTX_EVENT (1U << 1) /* an event: the verdict is ignored */
#define EXTFUSE_CTX_BACKGROUND (1U << 2) /* nobody waits for it: read-ahead, asynchronous READ; WRITE: as an event */
#define EXTFUSE_CTX_WALK (1U << 3) /* LOOKUP, GETATTR, GETXATTR in the RCU walk: asked again without it if not answered */

/*
 * What a program is told about a request: scalars only, every one set, and
 * read-only. The module keeps the request itself out of the program's sight;
 * arguments are read and written through the kfuncs.
 */
struct extfuse_ctx {
	__u32 opcode; /* FUSE opcode, or an event */
	__u32 flags; /* EXTFUSE_CTX_* */
	__u64 nodeid; /* node the request is about; the parent for names */
	__u64 node2; /* victim, moved or linked node; 0 if none */
	__u64 node3; /* node that a rename replaces or exchanges; 0 if none */
	__u64 snapshot; /* clock read before the request: the stamp of its answer */
	__u64 cookie; /* bpf_extfuse_set_cookie() in `request`, seen by `reply` of the same request */
	__u32 uid; /* caller's fsuid, in the connection's user namespace */
	__u32 gid; /* caller's fsgid */
	__u32 pid; /* caller, in the connection's pid namespace */
	__s32 error; /* `reply`: what the daemon answered, 0 or -errno */
	__u32 in_numargs; /* 0 to 3 */
	__u32 out_numargs; /* 0 to 2 */
	__u32 in_size[3]; /* bytes of each in argument */
	__u32 out_size[2]; /* bytes that each out argument can take */
	__u32 reserved; /* 0 */
	__u64 asked; /* `reply`: boot-time ns, before the daemon was asked */
};

/*
 * What the `section` program is told about a section that is whole, before
 * anything is committed. Header and footer are read with
 * bpf_extfuse_section_read().
 */
struct extfuse_section_ctx {
	__u64 nodeid; /* of the READ */
	__u64 fh;
	__u64 pos; /* in the file, of the payload */
	__u32 header; /* bytes */
	__u32 payload;
	__u32 footer;
	__u32 crc; /* CRC32C of the payload: always computed where there is a program */
	__u32 uid; /* reader's, as in the request's header; 0 for read-ahead */
	__u32 gid;
	__u32 pid;
	__u32 flags; /* EXTFUSE_SECTION_* of the call */
};

/* bpf_extfuse_section_read(): which part */
#define EXTFUSE_SECTION_HEADER 0
#define EXTFUSE_SECTION_FOOTER 1

/*
 * The program set of a connection (a struct_ops type of the module). `request`
 * must be there; none may sleep. Replaced live by a link update.
 */
struct extfuse_ops {
	int (*request)(struct extfuse_ctx *ctx); /* verdict */
	int (*reply)(struct extfuse_ctx *ctx); /* result ignored */
	int (*event)(struct extfuse_ctx *ctx); /* result ignored */
	int (*section)(struct extfuse_section_ctx *ctx); /* 0: accept; -errno: reject */
	__u64 conn; /* extfuse_setup.conn: shows that the device fd is ours */
	__u64 opcodes; /* bitmap: opcodes for which `request` is called */
	__u64 replies; /* bitmap: opcodes for which `reply` is called */
	char name[16];
};

/*
 * Which argument a kfunc reads or writes: in arguments count from 0, out
 * arguments from EXTFUSE_OUT.
 */
#define EXTFUSE_OUT 16

/* bpf_extfuse_keep(), bpf_extfuse_learn(): which part of an answer */
#define EXTFUSE_KEEP_ENTRY 0
#define EXTFUSE_KEEP_ATTR 1
#define EXTFUSE_KEEP_OPEN 2 /* how a file or directory opens: others may be opened so without the daemon */
#define EXTFUSE_KEEP_PASSTHRU 3 /* READ of a backing file: the verdict */
#define EXTFUSE_KEEP_STATFS 4 /* bpf_extfuse_learn(): how full the file system is, until anything changes */

/*
 * ---- Stamps --------------------------------------------------------------
 *
 * One page of header, then EXTFUSE_SLOTS slots of 8 bytes: module memory, one
 * set a connection, mapped by the daemon at offset 0 of the device fd.
 *
 * A slot is {changes in flight : 16, clock at the end of the last change : 48}
 * with the count in the high bits, so that one comparison tells everything:
 * an answer with stamp s is current if and only if slot <= s.
 */
#define EXTFUSE_CLOCK_BITS 48
#define EXTFUSE_CLOCK_MAX ((1ULL << EXTFUSE_CLOCK_BITS) - 1)
/* In flight, counted apart: the daemon's 15 at most, the kernel's 4095. */
#define EXTFUSE_FLIGHT_DAEMON (1ULL << 48)
#define EXTFUSE_FLIGHT_DAEMON_MASK (0xfULL << 48)
#define EXTFUSE_FLIGHT_KERNEL (1ULL << 52)
#define EXTFUSE_FLIGHT_KERNEL_MASK (0xfffULL << 52)
#define EXTFUSE_FLIGHT_MASK (0xffffULL << 48)

#define EXTFUSE_SLOT_BITS 16
#define EXTFUSE_SLOTS (1U << EXTFUSE_SLOT_BITS)
#define EXTFUSE_SLOT_CONN 0U /* the whole connection */

/* `deadline` and every `expires`: CLOCK_BOOTTIME, ns; this one never comes. */
#define EXTFUSE_NEVER (~0ULL)

struct extfuse_stamps {
	__u64 clock; /* grows by one with every change; starts at 1 */
	__u64 apart[7]; /* who only looks does not read the line that every change writes */
	__u64 deadline; /* when everything stops being current (a lease's end) */
	__u64 reserved[503];
	__u64 slot[EXTFUSE_SLOTS];
};

/* What a slot stands for, beside the entry slots, which have a hash. */
enum extfuse_slot_kind {
	EXTFUSE_SLOT_ATTR = 1, /* a node's attributes */
	EXTFUSE_SLOT_XATTR = 2, /* its extended attributes and ACLs; of node 0: anybody's */
	EXTFUSE_SLOT_DATA = 3, /* its data; a directory's listing */
	EXTFUSE_SLOT_DIR = 4, /* every name in this directory */
	EXTFUSE_SLOT_NODE = 5, /* what the nodeid stands for: forgotten, reused */
};

#define EXTFUSE_HASH_MULTIPLIER 0x9e3779b97f4a7c15ULL /* 2^64 / golden ratio, as in <linux/hash.h> */

/*
 * Slot of a node, 1 to EXTFUSE_SLOTS - 1. The kind adds a multiple of
 * EXTFUSE_SLOTS / 16: nodeids that share one slot share those of every kind.
 */
static inline __u32 extfuse_node_slot(__u64 nodeid, __u32 kind)
{
	__u32 slot = ((nodeid + ((__u64)kind << 60)) * EXTFUSE_HASH_MULTIPLIER) >> (64 - EXTFUSE_SLOT_BITS);

	return slot ? slot : 1;
}

/* Slot of a name in a directory, 1 to EXTFUSE_SLOTS - 1; hash from bpf_extfuse_name_key(). */
static inline __u32 extfuse_entry_slot(__u64 parent, __u64 hash)
{
	__u32 slot = (parent * EXTFUSE_HASH_MULTIPLIER ^ hash) >> (64 - EXTFUSE_SLOT_BITS);

	return slot ? slot : 1;
}

/*
 * ---- Maps ----------------------------------------------------------------
 *
 * BPF reuses a replaced or evicted element while a program may still read it,
 * so a row proves itself: `check` is EXTFUSE_MIX() over the key and every other
 * word but `count`. A reader copies the row, then compares. The name is not
 * part of it: a reader compares it with the request's.
 */
#define EXTFUSE_NAME_MAX 255

struct extfuse_entry_key {
	__u64 parent; /* nodeid of the directory */
	__u64 hash; /* SipHash-2-4 of the name's bytes under the connection's key */
};

struct extfuse_entry {
	__u64 check;
	__u64 nodeid; /* 0: the name does not exist */
	__u64 generation;
	__u64 stamp; /* clock before the daemon asked the truth */
	__u64 expires; /* boot-time ns, or EXTFUSE_NEVER */
	__u64 name_len; /* 1 to EXTFUSE_NAME_MAX */
	__u64 count; /* answers given from this row */
	__u8 name[256]; /* zero-padded */
};

/* struct fuse_attr of the FUSE protocol (7.x, x >= 9). */
struct extfuse_attr {
	__u64 ino;
	__u64 size;
	__u64 blocks;
	__u64 atime;
	__u64 mtime;
	__u64 ctime;
	__u32 atimensec;
	__u32 mtimensec;
	__u32 ctimensec;
	__u32 mode;
	__u32 nlink;
	__u32 uid;
	__u32 gid;
	__u32 rdev;
	__u32 blksize;
	__u32 flags;
};

/* extfuse_attr_row.flags */
#define EXTFUSE_ATTR_PASSTHRU (1ULL << 0) /* reads and writes may go to the backing file */
#define EXTFUSE_ATTR_OPEN (1ULL << 1) /* opens for reading may be answered, with `open` */

/* attr_map: key = nodeid */
struct extfuse_attr_row {
	__u64 check;
	__u64 stamp;
	__u64 expires;
	__u64 flags; /* EXTFUSE_ATTR_* */
	__u64 open; /* FOPEN_* of fuse_open_out, and its backing_id in the upper half */
	__u64 count; /* answers given from this row */
	struct extfuse_attr attr;
};

/*
 * What tells of names that a node has no extended attribute of, in byte `class`
 * of `says`: the errno that GETXATTR gives for it, 0 if that is not known.
 * Classes are of names that a file system cannot have without listing them; the
 * last one is of a name for which a security module may answer instead, but then
 * it does for every node.
 */
enum extfuse_xattr_class {
	EXTFUSE_XATTR_USER = 0, /* user.* */
	EXTFUSE_XATTR_TRUSTED = 1, /* trusted.* */
	EXTFUSE_XATTR_CAPABILITY = 2, /* security.capability */
	EXTFUSE_XATTR_ACL = 3, /* system.posix_acl_access, system.posix_acl_default */
	EXTFUSE_XATTR_SELINUX = 4, /* security.selinux, which `ls -l` asks for */
	EXTFUSE_XATTR_CLASSES = 5,
};

/* Other bits of extfuse_xattr.says */
#define EXTFUSE_XATTR_ERRNO_MASK 0xffULL /* a row of a value: the errno instead of it, 0 if there is one */
#define EXTFUSE_XATTR_LISTED (1ULL << 62) /* the names are what LISTXATTR answers, whoever asks */
#define EXTFUSE_XATTR_DATA (1ULL << 63) /* a change of the node's data may change it */

#define EXTFUSE_XATTR_VALUE_MAX 128 /* bytes of a value that a row can hold */
#define EXTFUSE_XATTR_NAME_MAX 72 /* ... of the name of a value */
#define EXTFUSE_XATTR_NAMES_MAX 200 /* ... of all names of a node, each with its NUL */

/*
 * xattr_map. A row with hash 0 holds the names of all extended attributes of a
 * node. With nodeid 0 as well it speaks for every node, and depends on slot
 * XATTR of node 0.
 */
struct extfuse_xattr_key {
	__u64 nodeid;
	__u64 hash; /* SipHash-2-4 of the name under the connection's key; 0: the names; EXTFUSE_XATTR_CHILDREN */
};

/*
 * The row of a directory with this hash, and without names, says of every node in it that it has no extended
 * attributes. It depends on slots XATTR of node 0, DATA and DIR of the directory, and XATTR of the node.
 */
#define EXTFUSE_XATTR_CHILDREN 1ULL

struct extfuse_xattr {
	__u64 check;
	__u64 stamp;
	__u64 expires;
	__u64 says; /* errnos by class, or of the value; EXTFUSE_XATTR_* */
	__u64 count; /* answers given from this row */
	__u64 size; /* bytes of the value, or of the names */
	__u64 name_len; /* 0 in a row of names */
	__u8 bytes[200]; /* the names; or the value, and the name behind EXTFUSE_XATTR_VALUE_MAX; zero-padded */
};

/* Why a handler had no answer: misses, key = opcode * EXTFUSE_MISSES + reason. */
enum extfuse_miss {
	EXTFUSE_MISS_ABSENT = 0, /* no row */
	EXTFUSE_MISS_TORN = 1, /* a row that was being replaced, or of another name */
	EXTFUSE_MISS_STALE = 2, /* something changed since the row was published */
	EXTFUSE_MISS_EXPIRED = 3, /* its time is over */
	EXTFUSE_MISSES = 4,
};

/* One round of the mix that makes `check`; start with EXTFUSE_MIX_SEED. */
#define EXTFUSE_MIX_SEED 0x6578746675736531ULL
#define EXTFUSE_MIX(h, word) ((h) * EXTFUSE_HASH_MULTIPLIER + (word))

/*
 * check of an entry row: mix over parent, hash, nodeid, generation, stamp,
 * expires, name_len, in this order.
 */
static inline __u64 extfuse_entry_check(const struct extfuse_entry_key *key, const struct extfuse_entry *row)
{
	__u64 h = EXTFUSE_MIX_SEED;

	h = EXTFUSE_MIX(h, key->parent);
	h = EXTFUSE_MIX(h, key->hash);
	h = EXTFUSE_MIX(h, row->nodeid);
	h = EXTFUSE_MIX(h, row->generation);
	h = EXTFUSE_MIX(h, row->stamp);
	h = EXTFUSE_MIX(h, row->expires);
	return EXTFUSE_MIX(h, row->name_len);
}

/*
 * check of an attribute row: mix over nodeid, stamp, expires, flags, open, then
 * the eleven 8-byte words of attr.
 */
static inline __u64 extfuse_attr_mix(__u64 nodeid, __u64 stamp, __u64 expires, __u64 flags, __u64 open,
				     const struct extfuse_attr *attr)
{
	const __u64 *word = (const __u64 *)attr;
	__u64 h = EXTFUSE_MIX_SEED;
	int i;

	h = EXTFUSE_MIX(h, nodeid);
	h = EXTFUSE_MIX(h, stamp);
	h = EXTFUSE_MIX(h, expires);
	h = EXTFUSE_MIX(h, flags);
	h = EXTFUSE_MIX(h, open);
	for (i = 0; i < (int)(sizeof(*attr) / 8); i++)
		h = EXTFUSE_MIX(h, word[i]);
	return h;
}

static inline __u64 extfuse_attr_check(__u64 nodeid, const struct extfuse_attr_row *row)
{
	return extfuse_attr_mix(nodeid, row->stamp, row->expires, row->flags, row->open, &row->attr);
}

/*
 * check of an xattr row: mix over nodeid, hash, stamp, expires, says, size,
 * name_len, then the 8-byte words of bytes.
 */
static inline __u64 extfuse_xattr_mix(const struct extfuse_xattr_key *key, const struct extfuse_xattr *row)
{
	__u64 h = EXTFUSE_MIX_SEED;

	h = EXTFUSE_MIX(h, key->nodeid);
	h = EXTFUSE_MIX(h, key->hash);
	h = EXTFUSE_MIX(h, row->stamp);
	h = EXTFUSE_MIX(h, row->expires);
	h = EXTFUSE_MIX(h, row->says);
	h = EXTFUSE_MIX(h, row->size);
	return EXTFUSE_MIX(h, row->name_len);
}

static inline __u64 extfuse_xattr_check(const struct extfuse_xattr_key *key, const struct extfuse_xattr *row)
{
	const __u64 *word = (const __u64 *)row->bytes;
	__u64 h = extfuse_xattr_mix(key, row);
	int i;

	for (i = 0; i < (int)(sizeof(row->bytes) / 8); i++)
		h = EXTFUSE_MIX(h, word[i]);
	return h;
}

/*
 * ---- Device --------------------------------------------------------------
 *
 * ioctls on a /dev/extfuse fd that is mounted. All give ENOTTY on a device of
 * the stock FUSE, and EPERM on an fd that is not mounted, or before SETUP.
 */
#define EXTFUSE_IOC_MAGIC 0xef

/*
 * The daemon knows every nodeid that was ever in a map, whether the kernel does or
 * not: none goes with a FORGET, which therefore changes no slot and is no event,
 * and none is used again. So a name may be bound to a nodeid from a map that the
 * kernel does not hold, or not any more; such an inode counts no lookup, and is
 * not forgotten. A daemon that lets a nodeid go all the same first changes its
 * NODE slot; then it asks the kernel whether it holds one, by NOTIFY_INVAL_INODE
 * (ENOENT if not), and answers ESTALE from then on.
 */
#define EXTFUSE_HOLDS_NODES (1U << 0)

/*
 * SETUP: give this connection its stamps and its key, and say what a program
 * set needs to attach to it. The first call must come before INIT is answered
 * (EBUSY after it): a change that is already on its way could not be announced.
 * Later calls give the same again.
 */
struct extfuse_setup {
	__u32 abi; /* in: EXTFUSE_ABI of the caller; EPROTO if the module's differs */
	__u32 flags; /* in: EXTFUSE_HOLDS_NODES; those of the first call count */
	__u64 conn; /* out: what extfuse_ops.conn must hold; random, never reused */
	__u64 key[2]; /* out: SipHash key of names */
	__u64 stamps_size; /* out: bytes to map at offset 0, MAP_SHARED */
	__u64 dev; /* out: st_dev of the mount, as in /sys/fs/extfuse/connections */
};

/* Why a program set is not attached any more. */
enum extfuse_exit {
	EXTFUSE_EXIT_NONE = 0, /* never attached, or attached now */
	EXTFUSE_EXIT_UNLINK = 1, /* its link was closed or detached */
	EXTFUSE_EXIT_UNMOUNT = 2, /* the file system was unmounted */
	EXTFUSE_EXIT_ABORT = 3, /* aborted, or the daemon died */
	EXTFUSE_EXIT_ERROR = 4, /* ejected: its error budget was used up */
};

/* STATUS */
struct extfuse_status {
	__u32 attached; /* 1 if a program set is attached */
	__u32 exit; /* enum extfuse_exit of the last one */
	__u64 attaches; /* how often one was attached or replaced */
	__u64 errors; /* of the program set that is (or was last) attached */
	__u64 opcodes; /* bitmap: opcodes with a request handler */
	__u64 replies; /* bitmap: opcodes with a reply handler */
	__u8 name[16]; /* of the program set that is (or was last) attached */
	__u8 reason[96]; /* why it was ejected, for people */
	__u32 error_opcode; /* of the request where its last error was; 0: none */
	__u32 reserved;
};

/* OPCODES: replace the two bitmaps of the attached program set; ENOENT if none. */
struct extfuse_opcodes {
	__u64 opcodes;
	__u64 replies;
};

/* COUNTERS, indexed by opcode. */
enum extfuse_counter {
	EXTFUSE_COUNT_REQUESTS = 0, /* all, background ones too */
	EXTFUSE_COUNT_RETURNED = 1, /* answered by a handler: RETURN */
	EXTFUSE_COUNT_ERRNO = 2, /* answered by a handler with an errno */
	EXTFUSE_COUNT_PASSTHRU = 3, /* done on a backing file */
	EXTFUSE_COUNT_UPCALLS = 4, /* sent to the daemon */
	EXTFUSE_COUNT_REFUSED = 5, /* answers that a daemon would not get away with; then upcalls */
	EXTFUSE_COUNT_KEPT = 6, /* not even a request: what a handler answered before was still current */
	EXTFUSE_COUNTERS = 7,
};

struct extfuse_counters {
	__u64 count[EXTFUSE_OPCODES][EXTFUSE_COUNTERS];
};

#define EXTFUSE_IOC(dir, nr, type) \
	((__u32)(dir) << 30 | (__u32)sizeof(type) << 16 | EXTFUSE_IOC_MAGIC << 8 | (nr))
#define EXTFUSE_IOC_SETUP EXTFUSE_IOC(3, 1, struct extfuse_setup) /* _IOWR */
#define EXTFUSE_IOC_STATUS EXTFUSE_IOC(2, 2, struct extfuse_status) /* _IOR */
#define EXTFUSE_IOC_OPCODES EXTFUSE_IOC(1, 3, struct extfuse_opcodes) /* _IOW */
#define EXTFUSE_IOC_COUNTERS EXTFUSE_IOC(2, 4, struct extfuse_counters) /* _IOR */

/*
 * ---- Sections ------------------------------------------------------------
 *
 * The answer to a READ, put together from frames `header | payload | footer`:
 * the payload goes into the request's pages, header and footer to the daemon.
 * A frame comes by STAGE (written or spliced to the device) or by FILL (from a
 * stream socket, pipe or file). Either leaves the request pending. Then the
 * daemon's ordinary reply ends it: without error and empty, it commits all that
 * was staged; with a struct extfuse_commit, less of it; with an error, it
 * rejects.
 *
 * Several sections may go into one request, at any offsets; what lies between
 * them reads as zeros. A section that is not whole is not staged. A reply while
 * one is being filled ends the request with EIO.
 */
#define EXTFUSE_SECTION_META_MAX 65536U /* bytes of a header, and of a footer */

#define EXTFUSE_SECTION_CRC (1U << 0) /* compute the CRC32C of the payload */
#define EXTFUSE_SECTION_COMMIT (1U << 1) /* FILL: the answer is complete with this section */
/*
 * FILL with COMMIT: only if a `section` program accepts it. Where there is none
 * (any more) the section is staged, and COMMIT is not set in what comes back.
 */
#define EXTFUSE_SECTION_GATED (1U << 2)
/* FILL, comes back only: it was received, and the `section` program refused it. */
#define EXTFUSE_SECTION_REFUSED (1U << 3)

/*
 * SECTIONS: allow STAGE on this connection, by this address space only: a
 * pointer inside written data is trusted from nobody else. EBUSY if another one
 * has it. With WITHHOLD, every WRITE comes without its payload. Here and for files
 * that were opened with EXTFUSE_OPEN_WITHHOLD, a payload of less than
 * `withhold_from` bytes comes with its WRITE all the same.
 */
#define EXTFUSE_SECTIONS_WITHHOLD (1U << 0)

struct extfuse_sections {
	__u32 flags; /* EXTFUSE_SECTIONS_* */
	__u32 withhold_from; /* bytes; 0: withhold any */
};

/*
 * STAGE: a message of fuse_out_header {len, error = EXTFUSE_STAGE, unique},
 * this, and the frame. The daemon finds at `mem`: header, footer and, if asked
 * for, the CRC (4 bytes).
 */
#define EXTFUSE_STAGE 0x5ec7

struct extfuse_section {
	__u64 mem; /* address of header + footer (+ 4) bytes */
	__u32 header;
	__u32 footer;
	__u32 offset; /* of the payload, in the request */
	__u32 flags; /* EXTFUSE_SECTION_CRC */
};

/* A reply of this instead of data: commit the first `size` bytes of what is staged. */
struct extfuse_commit {
	__u32 size;
	__u32 reserved;
};

/*
 * FILL: receive a frame. Ends early with EINTR, EAGAIN (a descriptor that does
 * not block), ETIMEDOUT or ENODATA (the source ended inside the frame), and may
 * be called again with `crc` and `done` as they came back. ENOENT: the request
 * has been answered or aborted.
 */
struct extfuse_fill {
	__u64 unique; /* of the READ */
	__u64 mem; /* address of header + footer bytes */
	__u64 pos; /* of the frame, in a file that can seek */
	__s32 fd;
	__u32 header;
	__u32 payload;
	__u32 footer;
	__u32 offset; /* of the payload, in the request */
	__u32 flags; /* in, out: EXTFUSE_SECTION_* */
	__u32 timeout; /* ms to wait in all; 0: not at all */
	__u32 crc; /* in, out: CRC32C of the payload so far */
	__u32 done; /* in, out: bytes of the frame so far */
	__u32 reserved;
};

/*
 * A WRITE whose payload is withheld: the message ends after fuse_write_in, whose
 * `size` is 0; `write_flags` tell that, and the size.
 */
#define EXTFUSE_OPEN_WITHHOLD (1U << 31) /* fuse_open_out.open_flags: for this open file */
#define EXTFUSE_WRITE_WITHHELD (1U << 31) /* fuse_write_in.write_flags */
#define EXTFUSE_WRITE_SIZE_SHIFT 4 /* ... size of the payload, 27 bits */
#define EXTFUSE_WRITE_SIZE_MASK 0x7ffffffU

/*
 * DRAIN: send header, `payload` bytes of the WRITE's payload from `offset` on,
 * and footer. Errors and resuming as for FILL; EPIPE where the receiver is gone.
 */
struct extfuse_drain {
	__u64 unique; /* of the WRITE */
	__u64 mem; /* address of header + footer bytes */
	__u64 pos; /* of the frame, in a file that can seek */
	__s32 fd;
	__u32 header;
	__u32 payload;
	__u32 footer;
	__u32 offset; /* in the request's payload */
	__u32 flags; /* EXTFUSE_SECTION_CRC */
	__u32 timeout; /* ms to wait in all; 0: not at all */
	__u32 crc; /* in, out: CRC32C of the payload that was sent */
	__u32 done; /* in, out: bytes of the frame so far */
	__u32 crc_at; /* where in the footer to put the CRC, little-endian; EXTFUSE_NOWHERE: nowhere */
};
#define EXTFUSE_NOWHERE (~0U)

#define EXTFUSE_IOC_SECTIONS EXTFUSE_IOC(1, 5, struct extfuse_sections) /* _IOW */
#define EXTFUSE_IOC_FILL EXTFUSE_IOC(3, 6, struct extfuse_fill) /* _IOWR */
#define EXTFUSE_IOC_DRAIN EXTFUSE_IOC(3, 7, struct extfuse_drain) /* _IOWR */

/*
 * ---- Backing files of nodes ------------------------------------------------
 *
 * READs of a node, from the page cache or direct, that are filled from a file in
 * the kernel, in whatever way the node is open, or without its being open to the
 * daemon at all: where the file's bytes are declared valid, and the READ handler
 * says PASSTHRU. Anything else is an upcall: bytes that are not declared, an
 * error of the file.
 *
 * BACKING needs FUSE_PASSTHROUGH to be negotiated, and CAP_SYS_ADMIN. A
 * registration ends with REMOVE, with FORGET of the node, with the next one of
 * the node, and with the connection.
 */
enum extfuse_backing_op {
	EXTFUSE_BACKING_REGISTER = 0, /* this file, with this range */
	EXTFUSE_BACKING_EXTEND = 1, /* this range is valid, too */
	EXTFUSE_BACKING_WITHDRAW = 2, /* it is not any more */
	EXTFUSE_BACKING_REMOVE = 3, /* nor is the file the node's */
};

/*
 * REGISTER. A file without COPY is the node's own: it ends where the node ends,
 * and whoever writes to either writes to both.
 */
#define EXTFUSE_BACKING_ALWAYS (1U << 0) /* also while no READ handler is attached */
#define EXTFUSE_BACKING_COPY (1U << 1) /* ranges are valid while DATA(nodeid) is current as of `stamp` */

#define EXTFUSE_BACKING_EOF (~0ULL) /* `end`: up to the file's end, wherever that is */

/* Ranges that do not touch each other, of one node; and nodes of a connection with a file. */
#define EXTFUSE_BACKING_RANGES 8
#define EXTFUSE_BACKINGS_MAX 65536U

struct extfuse_backing {
	__u64 nodeid;
	__u64 generation; /* REGISTER: as in fuse_entry_out */
	__u64 id; /* out for REGISTER; in for the others, which mean that registration only */
	__u64 stamp; /* REGISTER: clock before the nodeid was known to stand for the file; COPY: before the data was */
	__u64 start; /* of the range; empty if it is `end` */
	__u64 end;
	__s32 fd; /* REGISTER */
	__u32 op; /* enum extfuse_backing_op */
	__u32 flags; /* REGISTER: EXTFUSE_BACKING_* */
	__u32 reserved;
};

#define EXTFUSE_IOC_BACKING EXTFUSE_IOC(3, 8, struct extfuse_backing) /* _IOWR */

#endif /* EXTFUSE_H */
