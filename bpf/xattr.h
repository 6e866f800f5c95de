/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTFUSE_BPF_XATTR_H
#define EXTFUSE_BPF_XATTR_H

/* struct fuse_getxattr_in, struct fuse_getxattr_out */
struct xattr_size {
	__u32 size; /* in: room for the answer; 0: only its size is wanted */
	__u32 padding;
};

/*
 * A row of xattr_map; false if it was being replaced. All of it, used or not: a loop that
 * ends early would have the verifier follow each of its ends.
 */
static __always_inline int copy_xattr(const struct extfuse_xattr_key *key, struct extfuse_xattr *from,
				      struct extfuse_xattr *to)
{
	const volatile __u64 *source = (void *)from->bytes;
	__u64 *copy = (void *)to->bytes;
	__u64 mix;
	int i;

	to->check = READ_ONCE(from->check);
	to->stamp = READ_ONCE(from->stamp);
	to->expires = READ_ONCE(from->expires);
	to->says = READ_ONCE(from->says);
	to->size = READ_ONCE(from->size);
	to->name_len = READ_ONCE(from->name_len);
	mix = extfuse_xattr_mix(key, to);
#pragma unroll
	for (i = 0; i < (int)(sizeof(to->bytes) / 8); i++) {
		copy[i] = source[i];
		mix = EXTFUSE_MIX(mix, copy[i]);
	}
	return to->check == mix;
}

/* The row of a key, copied and with time left, for an answer; NULL and *@reason otherwise. */
static __always_inline struct extfuse_xattr *find_xattr(const struct extfuse_xattr_key *key,
							 struct extfuse_xattr *copy,
							 enum extfuse_miss *reason)
{
	struct extfuse_xattr *row = bpf_map_lookup_elem(&xattr_map, key);

	if (!row)
		return NULL;
	if (!copy_xattr(key, row, copy)) {
		*reason = EXTFUSE_MISS_TORN;
		return NULL;
	}
	if (expired(copy->expires)) {
		*reason = EXTFUSE_MISS_EXPIRED;
		return NULL;
	}
	return row;
}

/* Whether what was copied is still so. */
static __always_inline int current_xattr(struct extfuse_ctx *c, __u64 nodeid, const struct extfuse_xattr *copy,
					 enum extfuse_miss *reason)
{
	if (bpf_extfuse_current(c, extfuse_node_slot(nodeid, EXTFUSE_SLOT_XATTR), copy->stamp) &&
	    (!(copy->says & EXTFUSE_XATTR_DATA) ||
	     bpf_extfuse_current(c, extfuse_node_slot(c->nodeid, EXTFUSE_SLOT_DATA), copy->stamp)))
		return 1;
	*reason = EXTFUSE_MISS_STALE;
	return 0;
}

/* Once a node has been found to have none, its inode keeps that. */
static __always_inline void keep_absent(struct extfuse_ctx *c, __u64 nodeid, const struct extfuse_xattr *copy)
{
	if (!copy->size && !(copy->says & EXTFUSE_XATTR_DATA))
		bpf_extfuse_keep_absent(c, nodeid, copy->stamp, copy->expires, copy->says);
}

/* Answers with the bytes of a copy, or their number. */
static __always_inline int answer_xattr(struct extfuse_ctx *c, struct extfuse_xattr *copy, __u64 max)
{
	struct xattr_size room = {};
	__u64 size = copy->size;

	if (size > max || bpf_extfuse_read_args(c, 0, &room, sizeof(room)) != sizeof(room))
		return EXTFUSE_UPCALL;
	if (!room.size) {
		room.size = size;
		return bpf_extfuse_write_args(c, 0, &room, sizeof(room)) ? EXTFUSE_UPCALL : EXTFUSE_RETURN;
	}
	if (room.size < size)
		return -ERANGE;
	return bpf_extfuse_write_args(c, 0, copy->bytes, size) ? EXTFUSE_UPCALL : EXTFUSE_RETURN;
}

/* The errno for a name that the names in the row of @nodeid show to be absent; 0 if they don't. */
static __always_inline int absent_xattr(struct extfuse_ctx *c, __u64 nodeid, int class,
					struct extfuse_xattr *copy, enum extfuse_miss *reason)
{
	struct extfuse_xattr_key key = { .nodeid = nodeid, .hash = 0 };
	struct extfuse_xattr *row = find_xattr(&key, copy, reason);
	__u64 size;
	int error;

	if (!row)
		return 0;
	size = copy->size;
	error = copy->says >> 8 * class & 0xff;
	if (!error || size > sizeof(copy->bytes))
		return 0;
	if (size && bpf_extfuse_name_in(c, 1, copy->bytes, sizeof(copy->bytes), size))
		return 0;
	if (!current_xattr(c, nodeid, copy, reason))
		return 0;
	keep_absent(c, nodeid, copy);
	__sync_fetch_and_add(&row->count, 1);
	return error;
}

/*
 * Whether a directory that has the node says that none of its nodes has extended attributes: true for as long as none
 * has got any, and the directory has the same nodes.
 */
static __always_inline int none_in_directory(struct extfuse_ctx *c, struct extfuse_xattr *copy,
					     enum extfuse_miss *reason)
{
	struct extfuse_xattr_key key = { .nodeid = bpf_extfuse_parent(c), .hash = EXTFUSE_XATTR_CHILDREN };
	struct extfuse_xattr *row;

	if (!key.nodeid)
		return 0;
	row = find_xattr(&key, copy, reason);
	if (!row || copy->size || copy->name_len)
		return 0;
	if (!bpf_extfuse_current(c, extfuse_node_slot(0, EXTFUSE_SLOT_XATTR), copy->stamp) ||
	    !bpf_extfuse_current(c, extfuse_node_slot(key.nodeid, EXTFUSE_SLOT_DATA), copy->stamp) ||
	    !bpf_extfuse_current(c, extfuse_node_slot(key.nodeid, EXTFUSE_SLOT_DIR), copy->stamp) ||
	    !bpf_extfuse_current(c, extfuse_node_slot(c->nodeid, EXTFUSE_SLOT_XATTR), copy->stamp)) {
		*reason = EXTFUSE_MISS_STALE;
		return 0;
	}
	keep_absent(c, c->nodeid, copy);
	__sync_fetch_and_add(&row->count, 1);
	return 1;
}

/*
 * GETXATTR: of a name whose class is known to be listed, from the names of the
 * node, or of every node, or from a directory that has it, that it is absent; else from the row of that very name.
 * Invalidates nothing.
 */
EXTFUSE_HANDLER(handle_getxattr)
{
	enum extfuse_miss reason = EXTFUSE_MISS_ABSENT;
	int class = bpf_extfuse_xattr_class(c, 1);
	struct extfuse_xattr_key key;
	struct extfuse_xattr copy;
	struct extfuse_xattr *row;
	int error;

	if (class >= 0 && class < EXTFUSE_XATTR_CLASSES) {
		error = absent_xattr(c, c->nodeid, class, &copy, &reason);
		if (!error)
			error = absent_xattr(c, 0, class, &copy, &reason);
		if (!error && none_in_directory(c, &copy, &reason))
			error = copy.says >> 8 * class & 0xff;
		if (error)
			return -error;
	}
	key.nodeid = c->nodeid;
	key.hash = bpf_extfuse_name_key(c, 1);
	row = find_xattr(&key, &copy, &reason);
	if (!row)
		return miss(c, reason);
	if (!bpf_extfuse_name_is(c, 1, row->bytes + EXTFUSE_XATTR_VALUE_MAX, EXTFUSE_XATTR_NAME_MAX,
				 copy.name_len))
		return miss(c, EXTFUSE_MISS_TORN);
	if (!current_xattr(c, c->nodeid, &copy, &reason))
		return miss(c, reason);
	__sync_fetch_and_add(&row->count, 1);
	error = copy.says & EXTFUSE_XATTR_ERRNO_MASK;
	if (error)
		return -error;
	return answer_xattr(c, &copy, EXTFUSE_XATTR_VALUE_MAX);
}

/* The answer from the names in the row of @nodeid; UPCALL if there is none. */
static __always_inline int list_xattr(struct extfuse_ctx *c, __u64 nodeid, struct extfuse_xattr *copy,
				      enum extfuse_miss *reason)
{
	struct extfuse_xattr_key key = { .nodeid = nodeid, .hash = 0 };
	struct extfuse_xattr *row = find_xattr(&key, copy, reason);

	if (!row || !(copy->says & EXTFUSE_XATTR_LISTED) || !current_xattr(c, nodeid, copy, reason))
		return EXTFUSE_UPCALL;
	keep_absent(c, nodeid, copy);
	__sync_fetch_and_add(&row->count, 1);
	return answer_xattr(c, copy, sizeof(copy->bytes));
}

/* LISTXATTR: from the names of the node, or of every node, if everybody may see them; from its directory. Invalidates nothing. */
EXTFUSE_HANDLER(handle_listxattr)
{
	enum extfuse_miss reason = EXTFUSE_MISS_ABSENT;
	struct extfuse_xattr copy;
	int verdict = list_xattr(c, c->nodeid, &copy, &reason);

	if (verdict == EXTFUSE_UPCALL)
		verdict = list_xattr(c, 0, &copy, &reason);
	if (verdict == EXTFUSE_UPCALL && none_in_directory(c, &copy, &reason))
		verdict = answer_xattr(c, &copy, sizeof(copy.bytes));
	return verdict == EXTFUSE_UPCALL ? miss(c, reason) : verdict;
}

#endif
