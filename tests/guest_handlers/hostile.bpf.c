// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program set that does what the test says, mostly wrong things.
 */
#include "extfuse_bpf.h"

enum {
	FUSE_FORGET = 2,
	FUSE_GETATTR = 3,
};

char LICENSE[] SEC("license") = "GPL";

/* What `request` does for opcode `target`; set by the test at any time. */
__u32 target;
int verdict = EXTFUSE_UPCALL;
__u32 write_size; /* of `answer`, to out argument 0; 0: nothing is written */
__u32 answer_by_name; /* only for a LOOKUP of `name` */
__u8 name[256];
__u32 name_len;
__u8 answer[256];
__u32 wrong_reads; /* read arguments that are not there */
__u32 say_enosys;
__u32 private; /* the answer is the caller's own */
__u32 keep_entry, keep_attr; /* what is kept of an answer, as of now */
__u64 only_node; /* only for requests about it, if not 0 */
__u32 not_in_walk; /* UPCALL in the RCU walk */
__u64 way_node; /* a directory that may be walked through: its GETATTR is answered, whatever the target is */
__u8 way[104];

/* What was seen. */
__u64 requests;
__u64 walks; /* in the RCU walk: no requests */
__u64 replies;
__u64 cookies_wrong;
__u64 errors_seen;
__u64 reply_size;
__u64 reply_bytes;
__u64 forgets, inval_inodes, inval_entries, deletes, stores;
struct extfuse_ctx last;
struct extfuse_ctx last_event;

static __u8 scratch[256];

/* Word by word: the verifier takes no access that spans members. */
static __always_inline void copy_ctx(struct extfuse_ctx *to, struct extfuse_ctx *c)
{
#define COPY(member) (to->member = *(volatile typeof(to->member) *)&c->member)
	COPY(opcode);
	COPY(flags);
	COPY(nodeid);
	COPY(node2);
	COPY(node3);
	COPY(snapshot);
	COPY(cookie);
	COPY(uid);
	COPY(gid);
	COPY(pid);
	COPY(error);
	COPY(in_numargs);
	COPY(out_numargs);
	COPY(in_size[0]);
	COPY(in_size[1]);
	COPY(in_size[2]);
	COPY(out_size[0]);
	COPY(out_size[1]);
	COPY(reserved);
#undef COPY
}

SEC("struct_ops/request")
int BPF_PROG(request, struct extfuse_ctx *c)
{
	__u64 size = write_size; /* 64 bits, for the verifier to follow */

	if (c->opcode == FUSE_GETATTR && way_node && c->nodeid == way_node)
		return bpf_extfuse_write_args(c, 0, way, sizeof(way)) ? EXTFUSE_UPCALL : EXTFUSE_RETURN;
	if (c->opcode != target || size > sizeof(answer))
		return EXTFUSE_UPCALL;
	if (answer_by_name && !bpf_extfuse_name_is(c, 0, name, sizeof(name), name_len))
		return EXTFUSE_UPCALL;
	if (only_node && c->nodeid != only_node)
		return EXTFUSE_UPCALL;
	__sync_fetch_and_add(c->flags & EXTFUSE_CTX_WALK ? &walks : &requests, 1);
	if (c->flags & EXTFUSE_CTX_WALK && not_in_walk)
		return EXTFUSE_UPCALL;
	copy_ctx(&last, c);
	bpf_extfuse_set_cookie(c, c->nodeid ^ 0x5eed);
	if (wrong_reads) {
		bpf_extfuse_read_args(c, 9, scratch, sizeof(scratch));
		bpf_extfuse_read_args(c, EXTFUSE_OUT + 9, scratch, sizeof(scratch));
		bpf_extfuse_write_args(c, 7, scratch, sizeof(scratch));
		bpf_extfuse_name_key(c, 5);
		bpf_extfuse_current(c, 1U << 31, ~0ULL);
	}
	if (size)
		bpf_extfuse_write_args(c, 0, answer, size);
	if (private)
		bpf_extfuse_private(c);
	if (keep_entry)
		bpf_extfuse_keep(c, EXTFUSE_KEEP_ENTRY, c->snapshot, EXTFUSE_NEVER);
	if (keep_attr)
		bpf_extfuse_keep(c, EXTFUSE_KEEP_ATTR, c->snapshot, EXTFUSE_NEVER);
	if (say_enosys)
		bpf_extfuse_enosys(c);
	return verdict;
}

SEC("struct_ops/reply")
int BPF_PROG(reply, struct extfuse_ctx *c)
{
	int size;

	if (c->opcode != target)
		return 0;
	__sync_fetch_and_add(&replies, 1);
	if (c->cookie != (c->nodeid ^ 0x5eed))
		__sync_fetch_and_add(&cookies_wrong, 1);
	if (c->error)
		__sync_fetch_and_add(&errors_seen, 1);
	size = bpf_extfuse_read_args(c, EXTFUSE_OUT, scratch, sizeof(scratch));
	reply_size = size;
	reply_bytes = *(__u64 *)scratch;
	return 0;
}

SEC("struct_ops/event")
int BPF_PROG(event, struct extfuse_ctx *c)
{
	copy_ctx(&last_event, c);
	switch (c->opcode) {
	case FUSE_FORGET:
		__sync_fetch_and_add(&forgets, 1);
		break;
	case EXTFUSE_EVENT_INVAL_INODE:
		__sync_fetch_and_add(&inval_inodes, 1);
		break;
	case EXTFUSE_EVENT_INVAL_ENTRY:
		__sync_fetch_and_add(&inval_entries, 1);
		break;
	case EXTFUSE_EVENT_DELETE:
		__sync_fetch_and_add(&deletes, 1);
		break;
	case EXTFUSE_EVENT_STORE:
		__sync_fetch_and_add(&stores, 1);
		break;
	}
	return 0;
}

SEC(".struct_ops.link")
struct extfuse_ops hostile = {
	.request = (void *)request,
	.reply = (void *)reply,
	.event = (void *)event,
	.name = "hostile",
};

/* The same programs under another name, to replace the first with. */
SEC(".struct_ops.link")
struct extfuse_ops second = {
	.request = (void *)request,
	.reply = (void *)reply,
	.name = "second",
};
