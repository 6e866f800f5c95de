// SPDX-License-Identifier: GPL-2.0-only
/*
 * Handlers in the RCU walk: what the kernel does not hold, or not any more, a handler may confirm there, be it
 * a name, the attributes that decide whether it may be walked through, or that there is no ACL. What it says must
 * be what the kernel's caches have. Anything else is left to the walk with references (-ECHILD), which asks again:
 * there a request may sleep, and caches may change.
 *
 * Inodes and dentries are kept by RCU alone: what is written to one may be lost with it, and does no harm.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/posix_acl.h>
#include <linux/xattr.h>

/* What asks is noinline: who has no handler does not pay for its frame. */
static bool has_handler(const struct fuse_conn *fc, u32 opcode)
{
	return fc->ext && READ_ONCE(fc->ext->opcodes) & BIT_ULL(opcode);
}

/* It is no request if it is not settled here. */
static void settled(struct extfuse_conn *ext, u32 opcode, enum extfuse_counter how)
{
	extfuse_count(ext, opcode, EXTFUSE_COUNT_REQUESTS);
	extfuse_count(ext, opcode, how);
}

static bool same_time(struct timespec64 time, u64 sec, u32 nsec)
{
	return time.tv_sec == sec && time.tv_nsec == nsec;
}

/* Under fi->lock: as fuse_change_attributes() would leave them. */
static bool same_attr(struct inode *inode, const struct fuse_attr *attr)
{
	const struct fuse_inode *fi = get_fuse_inode(inode);
	struct fuse_conn *fc = get_fuse_conn(inode);

	return fi->orig_ino == attr->ino && fi->orig_i_mode == attr->mode && inode->i_nlink == attr->nlink &&
	       uid_eq(inode->i_uid, make_kuid(fc->user_ns, attr->uid)) &&
	       gid_eq(inode->i_gid, make_kgid(fc->user_ns, attr->gid)) &&
	       i_size_read(inode) == attr->size && inode->i_blocks == attr->blocks &&
	       same_time(inode_get_atime(inode), attr->atime, attr->atimensec) &&
	       same_time(inode_get_mtime(inode), attr->mtime, attr->mtimensec) &&
	       same_time(inode_get_ctime(inode), attr->ctime, attr->ctimensec) &&
	       inode->i_blkbits == (attr->blksize ? ilog2(attr->blksize) : inode->i_sb->s_blocksize_bits);
}

/* Are the attributes of an answer those that the kernel has? If so, they may be kept. */
static bool keep_same_attr(struct inode *inode, const struct fuse_attr *attr, const struct fuse_args *args)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	bool same;

	if (attr->flags & FUSE_ATTR_SUBMOUNT || IS_AUTOMOUNT(inode))
		return false;
	spin_lock(&fi->lock);
	same = !(READ_ONCE(fi->inval_mask) & STATX_BASIC_STATS) && same_attr(inode, attr);
	if (same)
		extfuse_keep_attr_locked(fi, args);
	spin_unlock(&fi->lock);
	return same;
}

/* The name of @entry, and where it is, as of @seq; its length, 0 if it is being moved or none of ours. */
static unsigned int copy_name(const struct dentry *entry, char *name, struct inode **dir, unsigned int *seq)
{
	const unsigned char *from;
	unsigned int len;

	*seq = raw_read_seqcount(&entry->d_seq);
	if (*seq & 1)
		return 0;
	from = READ_ONCE(entry->d_name.name);
	len = READ_ONCE(entry->d_name.len);
	*dir = d_inode_rcu(READ_ONCE(entry->d_parent));
	/* Both of the same name: then so many bytes are there, whatever becomes of them. */
	if (read_seqcount_retry(&entry->d_seq, *seq) || len > EXTFUSE_NAME_MAX || !*dir)
		return 0;
	memcpy(name, from, len);
	name[len] = '\0';
	return read_seqcount_retry(&entry->d_seq, *seq) ? 0 : len;
}

/*
 * That the dentry is still what the walk found, and has that inode, the walk itself makes sure of before it uses
 * either.
 */
static noinline int confirm_name(struct fuse_conn *fc, struct dentry *entry, int otherwise)
{
	struct inode *inode = d_inode_rcu(entry), *dir;
	char name[EXTFUSE_NAME_MAX + 1] __uninitialized;
	struct fuse_entry_out out __uninitialized;
	struct fuse_args args = {
		.opcode = FUSE_LOOKUP,
		.in_numargs = 1,
		.in_args[0].value = name,
		.out_numargs = 1,
		.out_args[0] = { sizeof(out), &out },
	};
	unsigned int seq, len;
	int err;

	if (inode && READ_ONCE(get_fuse_inode(inode)->state) & (BIT(FUSE_I_BAD) | BIT(FUSE_I_INIT_RDPLUS)))
		return otherwise;
	len = copy_name(entry, name, &dir, &seq);
	if (!len)
		return otherwise;
	args.nodeid = get_node_id(dir);
	args.in_args[0].size = len + 1;
	err = extfuse_ask_in_walk(fc, &args);
	/* A handler's errno for everybody is an end of the name, which is not for us to make. */
	if (read_seqcount_retry(&entry->d_seq, seq) || err == -ECHILD || (err && !args.ext_private))
		return otherwise;
	if (err) {
		settled(fc->ext, FUSE_LOOKUP, EXTFUSE_COUNT_ERRNO);
		return err;
	}
	if (inode ? out.nodeid != get_node_id(inode) || fuse_stale_inode(inode, out.generation, &out.attr) ||
		    !keep_same_attr(inode, &out.attr, &args) : out.nodeid)
		return otherwise;
	extfuse_keep_entry(entry, &args.ext_keep[EXTFUSE_KEEP_ENTRY]);
	settled(fc->ext, FUSE_LOOKUP, EXTFUSE_COUNT_RETURNED);
	return 1;
}

/* What fs/fuse says of a name is @otherwise. */
int extfuse_confirm_name(struct dentry *entry, int otherwise)
{
	struct fuse_conn *fc = get_fuse_conn_super(entry->d_sb);

	return has_handler(fc, FUSE_LOOKUP) ? confirm_name(fc, entry, otherwise) : otherwise;
}

static noinline int confirm_attr(struct fuse_conn *fc, struct inode *inode)
{
	struct fuse_getattr_in in = {};
	struct fuse_attr_out out __uninitialized;
	struct fuse_args args = {
		.opcode = FUSE_GETATTR,
		.nodeid = get_node_id(inode),
		.ext_inode = inode,
		.in_numargs = 1,
		.in_args[0] = { sizeof(in), &in },
		.out_numargs = 1,
		.out_args[0] = { sizeof(out), &out },
	};
	int err = extfuse_ask_in_walk(fc, &args);

	if (err == -ECHILD)
		return err;
	if (err) {
		settled(fc->ext, FUSE_GETATTR, EXTFUSE_COUNT_ERRNO);
		return err;
	}
	if (inode_wrong_type(inode, out.attr.mode) || !keep_same_attr(inode, &out.attr, &args))
		return -ECHILD;
	settled(fc->ext, FUSE_GETATTR, EXTFUSE_COUNT_RETURNED);
	return 0;
}

/* 0: the inode's attributes are current. An errno is what a request would have given. */
int extfuse_confirm_attr(struct inode *inode)
{
	struct fuse_conn *fc = get_fuse_conn(inode);

	return has_handler(fc, FUSE_GETATTR) && !fuse_is_bad(inode) ? confirm_attr(fc, inode) : -ECHILD;
}

static noinline int confirm_no_acl(struct fuse_conn *fc, struct inode *inode, int type)
{
	const char *name = type == ACL_TYPE_ACCESS ? XATTR_NAME_POSIX_ACL_ACCESS : XATTR_NAME_POSIX_ACL_DEFAULT;
	struct fuse_getxattr_in in = {};
	struct fuse_getxattr_out out __uninitialized;
	/* For its size only: one that is there is read elsewhere. */
	struct fuse_args args = {
		.opcode = FUSE_GETXATTR,
		.nodeid = get_node_id(inode),
		.ext_inode = inode,
		.in_numargs = 2,
		.in_args = { { sizeof(in), &in }, { strlen(name) + 1, name } },
		.out_numargs = 1,
		.out_args[0] = { sizeof(out), &out },
	};

	if (extfuse_ask_in_walk(fc, &args) != -ENODATA)
		return -ECHILD;
	settled(fc->ext, FUSE_GETXATTR, EXTFUSE_COUNT_ERRNO);
	return 0;
}

/* 0: it has no ACL of that type. */
int extfuse_confirm_no_acl(struct inode *inode, int type)
{
	struct fuse_conn *fc = get_fuse_conn(inode);

	return has_handler(fc, FUSE_GETXATTR) && !fuse_is_bad(inode) ? confirm_no_acl(fc, inode, type) : -ECHILD;
}
