/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTFUSE_BPF_DATA_H
#define EXTFUSE_BPF_DATA_H

/*
 * READ: through the backing file if the node's row says so. That holds for as
 * long as the nodeid stands for the same file: neither a change of attributes
 * nor the row's expiry, which bound what an answer shows, take it back.
 * Invalidates nothing.
 */
EXTFUSE_HANDLER(handle_read)
{
	struct extfuse_attr_row *row;
	struct extfuse_attr attr;
	struct row_head head;
	__u64 nodeid = c->nodeid;

	row = bpf_map_lookup_elem(&attr_map, &nodeid);
	if (!row)
		return miss(c, EXTFUSE_MISS_ABSENT);
	if (!copy_attr(nodeid, row, &head, &attr))
		return miss(c, EXTFUSE_MISS_TORN);
	if (!(head.flags & EXTFUSE_ATTR_PASSTHRU))
		return EXTFUSE_UPCALL;
	if (!bpf_extfuse_current(c, extfuse_node_slot(nodeid, EXTFUSE_SLOT_NODE), head.stamp))
		return miss(c, EXTFUSE_MISS_STALE);
	if (c->flags & EXTFUSE_CTX_PASSTHRU)
		bpf_extfuse_keep(c, EXTFUSE_KEEP_PASSTHRU, head.stamp, EXTFUSE_NEVER);
	__sync_fetch_and_add(&row->count, 1);
	return EXTFUSE_PASSTHRU;
}

#endif
