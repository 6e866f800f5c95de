// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an inode keeps of extended attributes: that it has none. Almost no file
 * has any, and all of them are asked: before a write for security.capability, by
 * `ls -l` for ACLs, and by the kernel itself wherever an ACL could decide.
 *
 * As with what keep.c keeps, only a handler's answer is kept, with its row's own
 * stamp; `time` is written last and read first. Two answers that are kept at the
 * same time may mix: both say that there are none, and the slot of either, the
 * node's or that of all nodes, changes with the node's extended attributes.
 *
 * ACLs are not cached beside this (ACL_DONT_CACHE): whoever reads them from the
 * VFS's cache asks nobody, us neither, whether they are current.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/posix_acl.h>
#include <linux/xattr.h>

int extfuse_xattr_class(const char *name)
{
	if (str_has_prefix(name, XATTR_USER_PREFIX))
		return EXTFUSE_XATTR_USER;
	if (str_has_prefix(name, XATTR_TRUSTED_PREFIX))
		return EXTFUSE_XATTR_TRUSTED;
	if (!strcmp(name, XATTR_NAME_CAPS))
		return EXTFUSE_XATTR_CAPABILITY;
	if (!strcmp(name, XATTR_NAME_POSIX_ACL_ACCESS) || !strcmp(name, XATTR_NAME_POSIX_ACL_DEFAULT))
		return EXTFUSE_XATTR_ACL;
	if (!strcmp(name, XATTR_NAME_SELINUX))
		return EXTFUSE_XATTR_SELINUX;
	return -1;
}

/* A handler's word for it; an error if that is not what the request is about. */
int extfuse_keep_xattrs(struct extfuse_call *call, u64 nodeid, u64 stamp, u64 expires, u64 says)
{
	struct fuse_args *args = call->args;
	struct fuse_inode *fi;

	if ((args->opcode != FUSE_GETXATTR && args->opcode != FUSE_LISTXATTR) || !args->ext_inode ||
	    (nodeid && nodeid != args->nodeid) || stamp > EXTFUSE_CLOCK_MAX)
		return -EINVAL;
	if (args->ext_private)
		return 0;
	/* The caller of the request holds the inode. */
	fi = get_fuse_inode(args->ext_inode);
	WRITE_ONCE(fi->ext_xattr.says, says);
	WRITE_ONCE(fi->ext_xattr.stamp, stamp);
	smp_wmb();
	WRITE_ONCE(fi->ext_xattr.time, extfuse_keep_time(extfuse_node_slot(nodeid, EXTFUSE_SLOT_XATTR), expires));
	return 0;
}

/* `says` of what is kept, 0 if it is not current. Also in the RCU walk. */
static __always_inline u64 kept(const struct extfuse_conn *ext, struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	u64 time = READ_ONCE(fi->ext_xattr.time);
	u64 stamp, says;

	if (!(time & EXTFUSE_KEPT) || fuse_is_bad(inode))
		return 0;
	smp_rmb();
	stamp = READ_ONCE(fi->ext_xattr.stamp);
	says = READ_ONCE(fi->ext_xattr.says);
	return extfuse_kept_at(ext, time, stamp) ? says : 0;
}

/* What GETXATTR gives for a name that is known to be absent, -errno; 0 if that is not known. */
int extfuse_absent_xattr(struct inode *inode, const char *name)
{
	int class = extfuse_xattr_class(name);
	u8 err;

	if (class < 0)
		return 0;
	err = kept(get_fuse_conn(inode)->ext, inode) >> 8 * class;
	if (err)
		extfuse_count(get_fuse_conn(inode)->ext, FUSE_GETXATTR, EXTFUSE_COUNT_KEPT);
	return -err;
}

/* Is it known that it has no file capabilities, which a write would have to remove? */
bool extfuse_no_capability(const struct extfuse_conn *ext, struct inode *inode)
{
	return (kept(ext, inode) >> 8 * EXTFUSE_XATTR_CAPABILITY) & 0xff;
}

/* Is it known that LISTXATTR gives no names? */
bool extfuse_no_xattrs(struct inode *inode)
{
	if (!(kept(get_fuse_conn(inode)->ext, inode) & EXTFUSE_XATTR_LISTED))
		return false;
	extfuse_count(get_fuse_conn(inode)->ext, FUSE_LISTXATTR, EXTFUSE_COUNT_KEPT);
	return true;
}

/* Is it known that it has no ACL of that type? Also in the RCU walk. */
bool extfuse_no_acl(struct inode *inode, int type)
{
	return extfuse_absent_xattr(inode, type == ACL_TYPE_ACCESS ? XATTR_NAME_POSIX_ACL_ACCESS :
				    XATTR_NAME_POSIX_ACL_DEFAULT) == -ENODATA;
}
