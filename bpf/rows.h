/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading rows: copy, prove, then ask the stamps. A row may be replaced, or its
 * memory given to another key, while it is read, and nothing read after the
 * stamps were asked is covered by them.
 */
#ifndef EXTFUSE_BPF_ROWS_H
#define EXTFUSE_BPF_ROWS_H

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

/* Of a row of attr_map. */
struct row_head {
	__u64 stamp;
	__u64 expires;
	__u64 flags;
	__u64 open;
};

/* Counts a request that goes up, and why. What the walk does not get is asked again. */
static __always_inline int miss(const struct extfuse_ctx *c, enum extfuse_miss reason)
{
	__u32 key = c->opcode * EXTFUSE_MISSES + reason;
	__u64 *count;

	if (c->flags & EXTFUSE_CTX_WALK)
		return EXTFUSE_UPCALL;
	count = bpf_map_lookup_elem(&misses, &key);
	if (count)
		(*count)++;
	return EXTFUSE_UPCALL;
}

/* A row of attr_map, in two parts; false if it was being replaced. */
static __always_inline int copy_attr(__u64 nodeid, struct extfuse_attr_row *from, struct row_head *head,
				     struct extfuse_attr *attr)
{
	const volatile __u64 *source = (void *)&from->attr;
	__u64 check = READ_ONCE(from->check);
	__u64 *copy = (void *)attr;
	int i;

	head->stamp = READ_ONCE(from->stamp);
	head->expires = READ_ONCE(from->expires);
	head->flags = READ_ONCE(from->flags);
	head->open = READ_ONCE(from->open);
#pragma unroll
	for (i = 0; i < (int)(sizeof(*attr) / 8); i++)
		copy[i] = source[i];
	return check == extfuse_attr_mix(nodeid, head->stamp, head->expires, head->flags, head->open,
					 attr);
}

/* What of a row of entry_map its check covers; the name stays where it is. */
static __always_inline int copy_entry(const struct extfuse_entry_key *key, struct extfuse_entry *from,
				      struct extfuse_entry *to)
{
	to->check = READ_ONCE(from->check);
	to->nodeid = READ_ONCE(from->nodeid);
	to->generation = READ_ONCE(from->generation);
	to->stamp = READ_ONCE(from->stamp);
	to->expires = READ_ONCE(from->expires);
	to->name_len = READ_ONCE(from->name_len);
	return to->check == extfuse_entry_check(key, to);
}

static __always_inline int expired(__u64 expires)
{
	return expires != EXTFUSE_NEVER && bpf_ktime_get_boot_ns() >= expires;
}

#endif
