/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTFUSE_BPF_ATTR_H
#define EXTFUSE_BPF_ATTR_H

/* GETATTR: from attr_map, if the node has not changed since. Invalidates nothing. */
EXTFUSE_HANDLER(handle_getattr)
{
	struct extfuse_attr_out answer;
	struct extfuse_attr_row *row;
	struct row_head head;
	__u64 nodeid = c->nodeid;

	answer.attr_valid = 0;
	answer.attr_valid_nsec = 0;
	answer.dummy = 0;
	row = bpf_map_lookup_elem(&attr_map, &nodeid);
	if (!row)
		return miss(c, EXTFUSE_MISS_ABSENT);
	if (!copy_attr(nodeid, row, &head, &answer.attr))
		return miss(c, EXTFUSE_MISS_TORN);
	if (expired(head.expires))
		return miss(c, EXTFUSE_MISS_EXPIRED);
	if (!bpf_extfuse_current(c, extfuse_node_slot(nodeid, EXTFUSE_SLOT_ATTR), head.stamp))
		return miss(c, EXTFUSE_MISS_STALE);
	if (bpf_extfuse_write_args(c, 0, &answer, sizeof(answer)))
		return EXTFUSE_UPCALL;
	bpf_extfuse_keep(c, EXTFUSE_KEEP_ATTR, head.stamp, head.expires);
	__sync_fetch_and_add(&row->count, 1);
	return EXTFUSE_RETURN;
}

#endif
