/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTFUSE_BPF_OPEN_H
#define EXTFUSE_BPF_OPEN_H

/*
 * OPEN for reading, OPENDIR: as the node's row says. How a file opens holds for as
 * long as the nodeid stands for it; a file whose I/O goes to its backing file is
 * current by itself, anything else for as long as the row. Invalidates nothing.
 */
static __always_inline int answer_open(struct extfuse_ctx *c)
{
	struct extfuse_open_out answer = {};
	struct extfuse_attr_row *row;
	struct extfuse_attr attr;
	struct row_head head;
	__u64 nodeid = c->nodeid;
	__u64 expires;

	row = bpf_map_lookup_elem(&attr_map, &nodeid);
	if (!row)
		return miss(c, EXTFUSE_MISS_ABSENT);
	if (!copy_attr(nodeid, row, &head, &attr))
		return miss(c, EXTFUSE_MISS_TORN);
	if (!(head.flags & EXTFUSE_ATTR_OPEN))
		return EXTFUSE_UPCALL;
	expires = head.flags & EXTFUSE_ATTR_PASSTHRU ? EXTFUSE_NEVER : head.expires;
	if (expired(expires))
		return miss(c, EXTFUSE_MISS_EXPIRED);
	if (!bpf_extfuse_current(c, extfuse_node_slot(nodeid, EXTFUSE_SLOT_NODE), head.stamp))
		return miss(c, EXTFUSE_MISS_STALE);
	answer.open_flags = head.open;
	answer.backing_id = head.open >> 32;
	if (bpf_extfuse_write_args(c, 0, &answer, sizeof(answer)))
		return EXTFUSE_UPCALL;
	bpf_extfuse_keep(c, EXTFUSE_KEEP_OPEN, head.stamp, expires);
	__sync_fetch_and_add(&row->count, 1);
	return EXTFUSE_RETURN;
}

EXTFUSE_HANDLER(handle_open)
{
	return answer_open(c);
}

EXTFUSE_HANDLER(handle_opendir)
{
	return answer_open(c);
}

#endif
