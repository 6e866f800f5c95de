// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files with a backing file: the READ and WRITE handlers decide, call by call,
 * whether it is used or the daemon is asked; and what is changed through it,
 * without any request, is announced.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bpf.h>
#include <linux/splice.h>

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

static int passthru(struct file *file, u32 opcode)
{
	struct inode *inode = file_inode(file);
	struct fuse_conn *fc = get_fuse_conn(inode);
	struct extfuse_conn *ext = fc->ext;
	int verdict = 1;

	if (!ext)
		return 1;
	if (READ_ONCE(ext->opcodes) & BIT_ULL(opcode) && !(opcode == FUSE_READ && passthru_kept(ext, inode)))
		verdict = ask(ext, fc, inode, opcode);
	/* What goes up is counted as the request that it then is. */
	if (verdict) {
		extfuse_count(ext, opcode, EXTFUSE_COUNT_REQUESTS);
		extfuse_count(ext, opcode, verdict < 0 ? EXTFUSE_COUNT_ERRNO : EXTFUSE_COUNT_PASSTHRU);
	}
	return verdict;
}

ssize_t extfuse_backing_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	int verdict = passthru(iocb->ki_filp, FUSE_READ);

	if (verdict < 0)
		return verdict;
	return verdict ? fuse_passthrough_read_iter(iocb, to) : fuse_direct_read_iter(iocb, to);
}

ssize_t extfuse_backing_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe,
				    size_t len, unsigned int flags)
{
	int verdict = passthru(in, FUSE_READ);

	if (verdict < 0)
		return verdict;
	/* Not through the page cache, which a file with a backing file must not fill. */
	return verdict ? fuse_passthrough_splice_read(in, ppos, pipe, len, flags) :
			 copy_splice_read(in, ppos, pipe, len, flags);
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
	int verdict = passthru(iocb->ki_filp, FUSE_WRITE);
	struct extfuse_change change;
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
	ret = fuse_passthrough_write_iter(iocb, from);
	extfuse_change_end(ext, &change);
	return ret;
}

ssize_t extfuse_backing_splice_write(struct pipe_inode_info *pipe, struct file *out, loff_t *ppos,
				     size_t len, unsigned int flags)
{
	struct inode *inode = file_inode(out);
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	int verdict = passthru(out, FUSE_WRITE);
	struct extfuse_change change;
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

	if (ext && (vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) == (VM_SHARED | VM_MAYWRITE)) {
		extfuse_change_node(ext, get_node_id(inode), &change);
		if (test_and_set_bit(FUSE_I_EXTFUSE_MAPPED, &get_fuse_inode(inode)->state))
			extfuse_change_end(ext, &change); /* by the first one */
	}
	return fuse_passthrough_mmap(file, vma);
}

void extfuse_evict(struct inode *inode)
{
	struct extfuse_change change;

	if (!test_and_clear_bit(FUSE_I_EXTFUSE_MAPPED, &get_fuse_inode(inode)->state))
		return;
	change.nr = 0;
	extfuse_change_add(&change, extfuse_node_slot(get_node_id(inode), EXTFUSE_SLOT_ATTR));
	extfuse_change_add(&change, extfuse_node_slot(get_node_id(inode), EXTFUSE_SLOT_DATA));
	extfuse_change_end(get_fuse_conn(inode)->ext, &change);
}
