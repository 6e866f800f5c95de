// SPDX-License-Identifier: GPL-2.0-only
/*
 * The handlers: maps, dispatch by opcode, and the programs of each family.
 */
#include "extfuse_bpf.h"

enum {
	EIO = 5,
	ERANGE = 34,
	FUSE_FORGET = 2,
};

char LICENSE[] SEC("license") = "GPL";

/* (parent, name) -> node. Written by the daemon; stale rows stay until replaced or evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct extfuse_entry_key);
	__type(value, struct extfuse_entry);
} entry_map SEC(".maps");

/* nodeid -> attributes. Written by the daemon; deleted when the node is forgotten, evicted at will. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct extfuse_attr_row);
} attr_map SEC(".maps");

/* (nodeid, name) -> extended attribute; nodeid -> their names. Written by the daemon, evicted at will. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct extfuse_xattr_key);
	__type(value, struct extfuse_xattr);
} xattr_map SEC(".maps");

/*
 * opcode -> program that answers its requests; an empty slot is an upcall. Filled by the daemon, with
 * what `defaults` has or with a handler of somebody's own.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, EXTFUSE_OPCODES);
	__type(key, __u32);
	__type(value, __u32);
} handlers SEC(".maps");

/* opcode -> program that sees its replies. Filled by the daemon. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, EXTFUSE_OPCODES);
	__type(key, __u32);
	__type(value, __u32);
} reply_handlers SEC(".maps");

/* 0 -> somebody's own program that judges sections. Filled by the daemon before the gate is attached. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} section_handlers SEC(".maps");

/* opcode * EXTFUSE_MISSES + reason -> requests without an answer. Answers the module counts. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EXTFUSE_OPCODES * EXTFUSE_MISSES);
	__type(key, __u32);
	__type(value, __u64);
} misses SEC(".maps");

/*
 * What only the daemon uses of the contract: named here so that BTF, and with
 * it Rust, has it. Nothing reads or writes the variable.
 */
struct extfuse_abi {
	struct extfuse_setup setup;
	struct extfuse_status status;
	struct extfuse_opcodes opcodes;
	struct extfuse_counters counters;
	struct extfuse_stamps stamps;
	struct extfuse_ctx ctx;
	struct extfuse_sections sections;
	struct extfuse_section section;
	struct extfuse_commit commit;
	struct extfuse_fill fill;
	struct extfuse_drain drain;
	struct extfuse_backing backing;
	enum extfuse_event event;
	enum extfuse_slot_kind slot_kind;
	enum extfuse_exit exit;
	enum extfuse_counter counter;
	enum extfuse_miss miss;
	enum extfuse_backing_op backing_op;
	enum extfuse_xattr_class xattr_class;
} *extfuse_abi;

#include "rows.h"
#include "attr.h"
#include "lookup.h"
#include "data.h"
#include "xattr.h"
#include "open.h"
#include "learn.h"

/* Every request: to the handler of its opcode, else up. */
SEC("struct_ops/request")
int BPF_PROG(extfuse_request, struct extfuse_ctx *c)
{
	bpf_tail_call(ctx, &handlers, c->opcode);
	return EXTFUSE_UPCALL;
}

/* Every reply: to the reply handler of its opcode. */
SEC("struct_ops/reply")
int BPF_PROG(extfuse_reply, struct extfuse_ctx *c)
{
	bpf_tail_call(ctx, &reply_handlers, c->opcode);
	return 0;
}

/* FORGET: nobody asks for the node's attributes any more. What is stale the stamps say. */
SEC("struct_ops/event")
int BPF_PROG(extfuse_event, struct extfuse_ctx *c)
{
	__u64 nodeid = c->nodeid;

	if (c->opcode == FUSE_FORGET)
		bpf_map_delete_elem(&attr_map, &nodeid);
	return 0;
}

/*
 * Every section, where there is a gate. Without, the daemon takes this out of the set: the module computes
 * the CRC of everything for it. Whatever is wrong with the slot, nothing gets through.
 */
SEC("struct_ops/section")
int BPF_PROG(extfuse_section, struct extfuse_section_ctx *c)
{
	bpf_tail_call(ctx, &section_handlers, 0);
	return -EIO;
}

/* What is attached. `conn`, `opcodes` are the daemon's to set; `replies` too. */
SEC(".struct_ops.link")
struct extfuse_ops extfuse = {
	.request = (void *)extfuse_request,
	.reply = (void *)extfuse_reply,
	.event = (void *)extfuse_event,
	.section = (void *)extfuse_section,
	.name = "extfuse",
};
