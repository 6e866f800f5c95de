// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is not a request but ends what maps and caches know: FORGET, and the
 * daemon's notifications. Stamped before the inode cache is asked, which may not
 * know a node that a map still does; then told to the `event` program.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bpf.h>

static noinline void tell(struct extfuse_conn *ext, u32 event, u64 nodeid, u64 node2, const struct qstr *name)
{
	struct fuse_args args = {
		.opcode = event,
		.in_numargs = name ? 1 : 0,
		.in_args[0] = { .size = name ? name->len + 1 : 0, .value = name ? name->name : NULL },
	};
	struct extfuse_call call = {
		.ext = ext,
		.args = &args,
		.ctx = {
			.opcode = event,
			.flags = EXTFUSE_CTX_EVENT,
			.nodeid = nodeid,
			.node2 = node2,
			.snapshot = extfuse_snapshot(ext),
			.in_numargs = args.in_numargs,
			.in_size[0] = args.in_args[0].size,
		},
	};
	struct extfuse_ops *ops;

	rcu_read_lock();
	ops = rcu_dereference(ext->ops);
	if (ops && ops->event)
		ops->event(&call.ctx);
	rcu_read_unlock();
}

static void add(struct extfuse_change *change, u64 nodeid, u32 kind)
{
	extfuse_change_add(change, extfuse_node_slot(nodeid, kind));
}

static void node_changed(struct extfuse_conn *ext, u64 nodeid, bool gone)
{
	struct extfuse_change change = {};

	add(&change, nodeid, EXTFUSE_SLOT_ATTR);
	add(&change, nodeid, EXTFUSE_SLOT_XATTR);
	add(&change, nodeid, EXTFUSE_SLOT_DATA);
	if (gone) {
		/* Also as a directory: names in another one of this nodeid are other names. */
		add(&change, nodeid, EXTFUSE_SLOT_NODE);
		add(&change, nodeid, EXTFUSE_SLOT_DIR);
	} else {
		add(&change, 0, EXTFUSE_SLOT_XATTR);
	}
	extfuse_changed(ext, &change);
}

/* Before the daemon hears of it, and may give the nodeid to another file. */
void extfuse_forget(struct fuse_conn *fc, u64 nodeid)
{
	extfuse_count(fc->ext, FUSE_FORGET, EXTFUSE_COUNT_REQUESTS);
	extfuse_count(fc->ext, FUSE_FORGET, EXTFUSE_COUNT_UPCALLS);
	if (fc->ext->holds_nodes)
		return;
	node_changed(fc->ext, nodeid, true);
	extfuse_backing_forget(fc->ext, nodeid);
	tell(fc->ext, FUSE_FORGET, nodeid, 0, NULL);
}

void extfuse_inval_inode(struct fuse_conn *fc, u64 nodeid)
{
	node_changed(fc->ext, nodeid, false);
	tell(fc->ext, EXTFUSE_EVENT_INVAL_INODE, nodeid, 0, NULL);
}

void extfuse_inval_entry(struct fuse_conn *fc, u64 parent, u64 child, const struct qstr *name)
{
	struct extfuse_conn *ext = fc->ext;
	struct extfuse_change change = {};

	extfuse_change_add(&change, extfuse_entry_slot(parent, extfuse_name_hash(ext, name->name, name->len)));
	add(&change, parent, EXTFUSE_SLOT_ATTR);
	add(&change, parent, EXTFUSE_SLOT_DATA);
	if (child)
		add(&change, child, EXTFUSE_SLOT_ATTR);
	extfuse_changed(ext, &change);
	tell(ext, child ? EXTFUSE_EVENT_DELETE : EXTFUSE_EVENT_INVAL_ENTRY, parent, child, name);
}

void extfuse_store(struct fuse_conn *fc, u64 nodeid)
{
	node_changed(fc->ext, nodeid, false);
	tell(fc->ext, EXTFUSE_EVENT_STORE, nodeid, 0, NULL);
}
