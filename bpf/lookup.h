/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTFUSE_BPF_LOOKUP_H
#define EXTFUSE_BPF_LOOKUP_H

/*
 * LOOKUP: the name from entry_map, the attributes of what it stands for from
 * attr_map; a name that does not exist has none. Current if nothing has changed
 * of the name, of the directory as a whole, of what the nodeid stands for, and
 * of the attributes. Invalidates nothing.
 */
EXTFUSE_HANDLER(handle_lookup)
{
	struct extfuse_entry_key key = { .parent = c->nodeid, .hash = bpf_extfuse_name_key(c, 0) };
	struct extfuse_entry_out answer = {};
	struct extfuse_attr_row *attr_row;
	struct extfuse_entry entry;
	struct extfuse_entry *row;
	struct row_head attr;

	row = bpf_map_lookup_elem(&entry_map, &key);
	if (!row)
		return miss(c, EXTFUSE_MISS_ABSENT);
	if (!copy_entry(&key, row, &entry) ||
	    !bpf_extfuse_name_is(c, 0, row->name, sizeof(row->name), entry.name_len))
		return miss(c, EXTFUSE_MISS_TORN);
	if (expired(entry.expires))
		return miss(c, EXTFUSE_MISS_EXPIRED);
	if (entry.nodeid) {
		attr_row = bpf_map_lookup_elem(&attr_map, &entry.nodeid);
		if (!attr_row)
			return miss(c, EXTFUSE_MISS_ABSENT);
		if (!copy_attr(entry.nodeid, attr_row, &attr, &answer.attr))
			return miss(c, EXTFUSE_MISS_TORN);
		if (expired(attr.expires))
			return miss(c, EXTFUSE_MISS_EXPIRED);
		if (!bpf_extfuse_current(c, extfuse_node_slot(entry.nodeid, EXTFUSE_SLOT_NODE), entry.stamp) ||
		    !bpf_extfuse_current(c, extfuse_node_slot(entry.nodeid, EXTFUSE_SLOT_ATTR), attr.stamp))
			return miss(c, EXTFUSE_MISS_STALE);
		answer.nodeid = entry.nodeid;
		answer.generation = entry.generation;
	}
	if (!bpf_extfuse_current(c, extfuse_entry_slot(key.parent, key.hash), entry.stamp) ||
	    !bpf_extfuse_current(c, extfuse_node_slot(key.parent, EXTFUSE_SLOT_DIR), entry.stamp))
		return miss(c, EXTFUSE_MISS_STALE);
	if (bpf_extfuse_write_args(c, 0, &answer, sizeof(answer)))
		return EXTFUSE_UPCALL;
	bpf_extfuse_keep(c, EXTFUSE_KEEP_ENTRY, entry.stamp, entry.expires);
	if (entry.nodeid)
		bpf_extfuse_keep(c, EXTFUSE_KEEP_ATTR, attr.stamp, attr.expires);
	__sync_fetch_and_add(&row->count, 1);
	return EXTFUSE_RETURN;
}

#endif
