// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files with a backing file: the READ and WRITE handlers decide, call by call,
 * whether it is used or the daemon is asked; and what is changed through it,
 * without any request, is announced.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/backing-file.h>
#include <linux/bpf.h>
#include <linux/file.h>
#include <linux/pagemap.h>
#include <linux/splice.h>

/* What the kernel reads ahead by default: smaller files are read at once. */
#define SHARED_SIZE (VM_READAHEAD_PAGES << PAGE_SHIFT)

/*
 * 1: use the backing file, 0: ask the daemon, or an errno. Without a handler the
 * backing file is used, as stock FUSE does.
 */
static noinline int ask(struct extfuse_conn *ext, struct fuse_conn *fc, struct inode *inode, u32 opcode)
{
	struct fuse_args args = { .opcode = opcode, .nodeid = get_node_id(inode), .ext_inode = inode };
	struct extfuse_call call __uninitialized;
	u64 attach;
	int verdict;

	call.ext = ext;
	call.args = &args;
	if (!extfuse_fill_ctx(fc, &args, &call))
		return 0;
	call.ctx.flags = EXTFUSE_CTX_PASSTHRU;
	verdict = extfuse_run_request(ext, &call, &attach);
	if (!attach)
		return 1;
	if (verdict == EXTFUSE_RETURN || verdict > EXTFUSE_PASSTHRU || verdict < -EXTFUSE_MAX_ERRNO) {
		call.errors++;
		call.error = "verdict out of range";
		verdict = EXTFUSE_UPCALL;
	}
	if (unlikely(call.errors))
		extfuse_charge(ext, attach, opcode, call.errors, call.error);
	if (verdict == EXTFUSE_UPCALL && !call.enosys)
		return 0;
	return verdict;
}

/* A READ handler that has let this node's READs pass through for as long as it is the node. */
static bool passthru_kept(struct extfuse_conn *ext, struct inode *inode)
{
	u64 stamp = READ_ONCE(get_fuse_inode(inode)->ext.passthru_stamp);

	return stamp && extfuse_current(ext, extfuse_node_slot(get_node_id(inode), EXTFUSE_SLOT_NODE), stamp);
}

/*
 * The file that the daemon has registered, which all who have it open for reading
 * may share: a file of one's own is much of what an open costs, and its merit is a
 * read-ahead window of one's own, which a small file has no use for. Who reads a
 * larger one, maps it, splices from it, or wants something special of it gets a
 * file of his own then.
 */
static bool may_share(const struct file *file, const struct fuse_backing *fb)
{
	const unsigned int same = O_ACCMODE | O_DIRECT | O_NOATIME;
	const struct file *shared = fb->file;

	return (file->f_flags & O_ACCMODE) == O_RDONLY && !((file->f_flags ^ shared->f_flags) & same) &&
	       shared->f_mode & FMODE_CAN_READ;
}

static bool is_own(const struct file *backing)
{
	return backing->f_mode & FMODE_BACKING;
}

static struct file *own_file(struct file *file, struct fuse_backing *fb)
{
	return backing_file_open(file, file->f_flags, &fb->file->f_path, fb->cred);
}

/* What @file reads from and writes to, which keeps @fb. */
struct file *extfuse_backing_file(struct file *file, struct fuse_backing *fb)
{
	struct fuse_file *ff = file->private_data;

	return ff->fm->fc->ext && may_share(file, fb) ? fb->file : own_file(file, fb);
}

void extfuse_put_backing_file(struct file *backing)
{
	if (is_own(backing))
		fput(backing);
}

/* From here on @file has a backing file of its own. */
static int stop_sharing(struct file *file)
{
	struct fuse_file *ff = file->private_data;
	struct fuse_backing *fb;
	struct file *own;

	if (is_own(READ_ONCE(ff->passthrough)))
		return 0;
	/* An open file that passes through keeps its inode's. */
	fb = fuse_inode_backing(get_fuse_inode(file_inode(file)));
	own = own_file(file, fb);
	if (IS_ERR(own))
		return PTR_ERR(own);
	if (cmpxchg(&ff->passthrough, fb->file, own) != fb->file)
		fput(own);
	return 0;
}

/* As fs/backing-file.c has it: what of a call's flags is for the file below. */
#define CALL_FLAGS (IOCB_NOWAIT | IOCB_HIPRI | IOCB_DSYNC | IOCB_SYNC | IOCB_APPEND)

/* The same call on the file below, whose end is seen by nobody else. */
static struct kiocb backing_call(const struct kiocb *iocb, struct file *backing)
{
	return (struct kiocb) {
		.ki_filp = backing,
		.ki_pos = iocb->ki_pos,
		.ki_flags = backing->f_iocb_flags | (iocb->ki_flags & CALL_FLAGS),
		.ki_ioprio = iocb->ki_ioprio,
	};
}

static __always_inline ssize_t read_backing(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *file = iocb->ki_filp;
	struct fuse_file *ff = file->private_data;
	struct file *backing = READ_ONCE(ff->passthrough);
	const struct cred *cred;
	struct kiocb call __uninitialized;
	ssize_t ret;

	if (is_own(backing) ? !is_sync_kiocb(iocb) || iocb->ki_flags & IOCB_DIRECT :
			      iocb->ki_flags & IOCB_DIRECT || i_size_read(file_inode(backing)) > SHARED_SIZE) {
		ret = stop_sharing(file);
		return ret ?: fuse_passthrough_read_iter(iocb, to);
	}
	call = backing_call(iocb, backing);
	cred = extfuse_use_cred(ff->cred);
	ret = vfs_iocb_iter_read(backing, &call, to);
	extfuse_use_cred(cred);
	iocb->ki_pos = call.ki_pos;
	fuse_invalidate_atime(file_inode(file));
	return ret;
}

/* What file_remove_privs() would do, which asks for an attribute by its name each time. */
static int remove_privs(struct extfuse_conn *ext, struct file *file)
{
	struct inode *inode = file_inode(file);

	if (ext && !(inode->i_mode & (S_ISUID | S_ISGID)) && extfuse_no_capability(ext, inode))
		return 0;
	return file_remove_privs(file);
}

static __always_inline ssize_t write_backing(struct extfuse_conn *ext, struct kiocb *iocb, struct iov_iter *from)
{
	struct file *file = iocb->ki_filp;
	struct inode *inode = file_inode(file);
	struct fuse_file *ff = file->private_data;
	struct file *backing = READ_ONCE(ff->passthrough);
	const struct cred *cred;
	struct kiocb call __uninitialized;
	ssize_t ret;

	if (iocb->ki_flags & IOCB_DIRECT)
		return fuse_passthrough_write_iter(iocb, from);
	if (!iov_iter_count(from))
		return 0;
	inode_lock(inode);
	ret = remove_privs(ext, file);
	if (!ret) {
		call = backing_call(iocb, backing);
		cred = extfuse_use_cred(ff->cred);
		ret = vfs_iocb_iter_write(backing, &call, from);
		extfuse_use_cred(cred);
		iocb->ki_pos = call.ki_pos;
		fuse_write_update_attr(inode, call.ki_pos, ret);
	}
	inode_unlock(inode);
	return ret;
}

static __always_inline int passthru(struct extfuse_conn *ext, struct inode *inode, u32 opcode)
{
	int verdict = 1;

	if (!ext)
		return 1;
	if (READ_ONCE(ext->opcodes) & BIT_ULL(opcode) && !(opcode == FUSE_READ && passthru_kept(ext, inode)))
		verdict = ask(ext, ext->fc, inode, opcode);
	/* What goes up is counted as the request that it then is. */
	if (verdict) {
		extfuse_count(ext, opcode, EXTFUSE_COUNT_REQUESTS);
		extfuse_count(ext, opcode, verdict < 0 ? EXTFUSE_COUNT_ERRNO : EXTFUSE_COUNT_PASSTHRU);
	}
	return verdict;
}

ssize_t extfuse_backing_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	int verdict = passthru(get_fuse_conn(inode)->ext, inode, FUSE_READ);

	if (verdict < 0)
		return verdict;
	return verdict ? read_backing(iocb, to) : fuse_direct_read_iter(iocb, to);
}

ssize_t extfuse_backing_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe,
				    size_t len, unsigned int flags)
{
	struct inode *inode = file_inode(in);
	int verdict = passthru(get_fuse_conn(inode)->ext, inode, FUSE_READ);

	if (verdict < 0)
		return verdict;
	/* Not through the page cache, which a file with a backing file must not fill. */
	if (!verdict)
		return copy_splice_read(in, ppos, pipe, len, flags);
	verdict = stop_sharing(in);
	return verdict ?: fuse_passthrough_splice_read(in, ppos, pipe, len, flags);
}

/* An asynchronous write, whose change ends when it does. */
struct backing_aio {
	struct kiocb iocb; /* what the backing file's code completes */
	struct kiocb *user;
	struct extfuse_conn *ext;
	struct extfuse_change change;
};

static void aio_complete(struct kiocb *iocb, long res)
{
	struct backing_aio *aio = container_of(iocb, struct backing_aio, iocb);
	struct kiocb *user = aio->user;

	extfuse_change_end(aio->ext, &aio->change);
	user->ki_pos = iocb->ki_pos;
	fput(iocb->ki_filp);
	kfree(aio);
	user->ki_complete(user, res);
}

static ssize_t write_async(struct extfuse_conn *ext, struct kiocb *iocb, struct iov_iter *from)
{
	struct backing_aio *aio = kzalloc(sizeof(*aio), GFP_KERNEL);
	ssize_t ret;

	if (!aio)
		return -ENOMEM;
	aio->user = iocb;
	aio->ext = ext;
	/* The file keeps the connection, and so @ext, until the write is done. */
	kiocb_clone(&aio->iocb, iocb, get_file(iocb->ki_filp));
	aio->iocb.ki_complete = aio_complete;
	extfuse_change_node(ext, get_node_id(file_inode(iocb->ki_filp)), &aio->change);
	ret = fuse_passthrough_write_iter(&aio->iocb, from);
	if (ret == -EIOCBQUEUED)
		return ret;
	extfuse_change_end(ext, &aio->change);
	iocb->ki_pos = aio->iocb.ki_pos;
	fput(aio->iocb.ki_filp);
	kfree(aio);
	return ret;
}

ssize_t extfuse_backing_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	int verdict = passthru(ext, inode, FUSE_WRITE);
	struct extfuse_change change __uninitialized;
	ssize_t ret;

	if (verdict < 0)
		return verdict;
	if (!verdict)
		return fuse_direct_write_iter(iocb, from);
	if (!ext)
		return fuse_passthrough_write_iter(iocb, from);
	if (!is_sync_kiocb(iocb))
		return write_async(ext, iocb, from);
	extfuse_change_node(ext, get_node_id(inode), &change);
	ret = write_backing(ext, iocb, from);
	extfuse_change_end(ext, &change);
	return ret;
}

ssize_t extfuse_backing_splice_write(struct pipe_inode_info *pipe, struct file *out, loff_t *ppos,
				     size_t len, unsigned int flags)
{
	struct inode *inode = file_inode(out);
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	int verdict = passthru(ext, inode, FUSE_WRITE);
	struct extfuse_change change __uninitialized;
	ssize_t ret;

	if (verdict < 0)
		return verdict;
	if (!verdict)
		return iter_file_splice_write(pipe, out, ppos, len, flags);
	if (!ext)
		return fuse_passthrough_splice_write(pipe, out, ppos, len, flags);
	extfuse_change_node(ext, get_node_id(inode), &change);
	ret = fuse_passthrough_splice_write(pipe, out, ppos, len, flags);
	extfuse_change_end(ext, &change);
	return ret;
}

/*
 * Stores through a writable shared mapping of the backing file are seen by
 * nobody. So the node counts as changing from the first one until its inode
 * goes, which every such mapping keeps (by its user path).
 */
ssize_t extfuse_backing_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct inode *inode = file_inode(file);
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	struct extfuse_change change;
	int err = stop_sharing(file);

	if (err)
		return err;
	if (ext && (vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) == (VM_SHARED | VM_MAYWRITE)) {
		extfuse_change_node(ext, get_node_id(inode), &change);
		if (test_and_set_bit(FUSE_I_EXTFUSE_MAPPED, &get_fuse_inode(inode)->state))
			extfuse_change_end(ext, &change); /* by the first one */
	}
	return fuse_passthrough_mmap(file, vma);
}

void extfuse_evict(struct inode *inode)
{
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	struct extfuse_change change = { .nr = 0 };

	/* What has no name any more gives its space back: extfuse_statfs_kept(). */
	if (ext && !inode->i_nlink)
		extfuse_changed(ext, &change);
	if (!test_and_clear_bit(FUSE_I_EXTFUSE_MAPPED, &get_fuse_inode(inode)->state))
		return;
	extfuse_change_add(&change, extfuse_node_slot(get_node_id(inode), EXTFUSE_SLOT_ATTR));
	extfuse_change_add(&change, extfuse_node_slot(get_node_id(inode), EXTFUSE_SLOT_DATA));
	extfuse_change_end(ext, &change);
}
