// SPDX-License-Identifier: GPL-2.0-only
/*
 * The write side of sections: a WRITE goes to the daemon without its payload
 * (WITHHOLD), which the daemon sends on in a frame `header | payload | footer`
 * (DRAIN), without ever seeing it.
 *
 * The payload is copied once, into pages that nobody else has, and those are
 * lent to the socket. Lending out the request's own pages would save the copy,
 * but the application may still change what is in them: a retransmission would
 * send other bytes than the checksum says.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bvec.h>
#include <linux/file.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/uio.h>
#include <linux/unaligned.h>
#include <net/sock.h>

/* Pages that are sent at a time, as an order; or one, if they can't be had. */
#define ORDER 3

static_assert(sizeof(struct extfuse_drain) == 64);

/* ---- WITHHOLD ---------------------------------------------------------------- */

bool extfuse_withholds(const struct fuse_req *req)
{
	const struct fuse_args *args = req->args;
	const struct extfuse_conn *ext = req->fm->fc->ext;

	return args->in_pages && args->in_args[0].size == sizeof(struct fuse_write_in) &&
	       (args->ext_withhold || READ_ONCE(ext->withhold)) &&
	       args->in_args[args->in_numargs - 1].size >= READ_ONCE(ext->withhold_from);
}

/* To the daemon: the message without its payload, and the payload's size. */
int extfuse_copy_withheld(struct fuse_copy_state *cs, struct fuse_req *req)
{
	struct fuse_in_header header = req->in.h;
	struct fuse_write_in in = *(const struct fuse_write_in *)req->args->in_args[0].value;
	int err;

	header.len = sizeof(header) + sizeof(in);
	in.write_flags |= EXTFUSE_WRITE_WITHHELD | (in.size & EXTFUSE_WRITE_SIZE_MASK) << EXTFUSE_WRITE_SIZE_SHIFT;
	in.size = 0;
	err = fuse_copy_one(cs, &header, sizeof(header));
	return err ?: fuse_copy_one(cs, &in, sizeof(in));
}

/* ---- DRAIN --------------------------------------------------------------------- */

struct drain {
	struct extfuse_drain args;
	struct fuse_dev *fud;
	struct file *file;
	struct socket *sock;
	loff_t pos;
	long left;
	u8 *meta; /* header, footer */
	u8 __user *mem;
	struct page *page; /* of 1 << order; bytes of the frame, from args.done on */
	unsigned int order;
};

static u32 drain_size(const struct drain *drain)
{
	return drain->args.header + drain->args.payload + drain->args.footer;
}

/* Bytes [@from, @from + @len) of the payload to @to. */
static int copy_payload(struct drain *drain, u32 from, u32 len, u8 *to)
{
	struct bio_vec bv[16];
	struct iov_iter iter;
	struct fuse_req *req = extfuse_own(drain->fud, drain->args.unique, FUSE_WRITE);

	if (IS_ERR(req))
		return PTR_ERR(req);
	while (len) {
		size_t n;

		extfuse_map(req, ITER_SOURCE, drain->args.offset + from, len, bv, ARRAY_SIZE(bv), &iter);
		n = copy_from_iter(to, iov_iter_count(&iter), &iter);
		if (WARN_ON_ONCE(!n))
			break;
		to += n;
		from += n;
		len -= n;
	}
	return extfuse_disown(drain->fud, req, false);
}

/* Puts the CRC, which is complete now, into the footer, here and where the daemon sees it. */
static int seal(struct drain *drain, u32 crc)
{
	const struct extfuse_drain *args = &drain->args;
	u32 at = args->header + args->crc_at;

	if (args->crc_at == EXTFUSE_NOWHERE)
		return 0;
	put_unaligned_le32(~crc, drain->meta + at);
	return copy_to_user(drain->mem + at, drain->meta + at, sizeof(crc)) ? -EFAULT : 0;
}

/* The part of the frame that [@at, @at + ...) is in ends where? */
static u32 part_end(const struct drain *drain, u32 at)
{
	const struct extfuse_drain *args = &drain->args;

	if (at < args->header)
		return args->header;
	return at < args->header + args->payload ? args->header + args->payload : drain_size(drain);
}

static bool in_payload(const struct drain *drain, u32 at)
{
	return at >= drain->args.header && at < drain->args.header + drain->args.payload;
}

/* The next bytes of the frame into fresh pages; returns how many. */
static ssize_t assemble(struct drain *drain)
{
	struct extfuse_drain *args = &drain->args;
	u32 at = args->done, crc = ~args->crc, stop;
	int err;
	u8 *to;

	drain->order = drain_size(drain) - at > PAGE_SIZE ? ORDER : 0;
	drain->page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_COMP | __GFP_NOWARN | __GFP_NORETRY, drain->order);
	if (!drain->page) {
		drain->order = 0;
		drain->page = alloc_page(GFP_KERNEL_ACCOUNT);
	}
	if (!drain->page)
		return -ENOMEM;
	to = page_address(drain->page);
	stop = min(drain_size(drain) - at, (u32)PAGE_SIZE << drain->order) + at;
	while (at < stop) {
		u32 n = min(part_end(drain, at), stop) - at;

		if (in_payload(drain, at)) {
			err = copy_payload(drain, at - args->header, n, to);
			if (err)
				return err;
			if (args->flags & EXTFUSE_SECTION_CRC)
				crc = extfuse_crc(crc, to, n);
		} else {
			if (at >= args->header) {
				err = seal(drain, crc);
				if (err)
					return err;
			}
			memcpy(to, drain->meta + at - (at < args->header ? 0 : args->payload), n);
		}
		to += n;
		at += n;
	}
	return at - args->done;
}

/* Bytes [@from, @from + @len) of the pages; returns how many went. */
static ssize_t send(struct drain *drain, u32 from, u32 len, bool more)
{
	struct bio_vec bv;
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_SPLICE_PAGES | (more ? MSG_MORE : 0) };

	bvec_set_page(&bv, drain->page, len, from);
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, &bv, 1, len);
	if (drain->sock)
		return sock_sendmsg(drain->sock, &msg);
	return vfs_iter_write(drain->file, &msg.msg_iter, &drain->pos,
			      S_ISFIFO(file_inode(drain->file)->i_mode) ? RWF_NOWAIT : 0);
}

/* @n more bytes of the frame, which are @bytes, are gone. */
static void sent(struct drain *drain, const u8 *bytes, u32 n)
{
	struct extfuse_drain *args = &drain->args;

	while (n) {
		u32 some = min(part_end(drain, args->done) - args->done, n);

		if (in_payload(drain, args->done) && args->flags & EXTFUSE_SECTION_CRC)
			args->crc = ~extfuse_crc(~args->crc, bytes, some);
		args->done += some;
		bytes += some;
		n -= some;
	}
}

static int drain_frame(struct drain *drain)
{
	int err = 0;

	while (!err && drain->args.done < drain_size(drain)) {
		ssize_t have = assemble(drain), at = 0;
		u32 all = drain_size(drain) - drain->args.done;

		if (have < 0)
			err = have;
		while (!err && at < have) {
			ssize_t n = send(drain, at, have - at, have < all);

			if (n > 0) {
				sent(drain, page_address(drain->page) + at, n);
				at += n;
			} else if (n == -EAGAIN) {
				err = extfuse_wait(drain->fud->fc, drain->file, EPOLLOUT, &drain->left);
			} else {
				err = n ?: -EIO;
			}
		}
		/* Who has not sent them yet holds a reference. */
		if (drain->page)
			put_page(drain->page);
		drain->page = NULL;
	}
	return err;
}

/* Is it a WRITE with that many bytes? */
static int check(struct drain *drain)
{
	const struct extfuse_drain *args = &drain->args;
	struct fuse_req *req = extfuse_own(drain->fud, args->unique, FUSE_WRITE);
	u32 size;
	int err;

	if (IS_ERR(req))
		return PTR_ERR(req);
	size = req->args->in_args[req->args->in_numargs - 1].size;
	err = extfuse_disown(drain->fud, req, false);
	if (!err && (args->offset > size || args->payload > size - args->offset))
		err = -ERANGE;
	return err;
}

static bool valid(const struct extfuse_drain *args)
{
	if (args->flags & ~EXTFUSE_SECTION_CRC || args->header > EXTFUSE_SECTION_META_MAX ||
	    args->footer > EXTFUSE_SECTION_META_MAX || args->payload > INT_MAX ||
	    args->done > args->header + args->payload + args->footer || args->pos > (u64)LLONG_MAX - INT_MAX * 2ULL)
		return false;
	if (args->crc_at == EXTFUSE_NOWHERE)
		return true;
	return args->flags & EXTFUSE_SECTION_CRC && args->footer >= sizeof(u32) &&
	       args->crc_at <= args->footer - sizeof(u32);
}

long extfuse_ioctl_drain(struct fuse_dev *fud, struct extfuse_drain __user *arg)
{
	struct drain drain = { .fud = fud };
	struct extfuse_drain *args = &drain.args;
	u32 meta;
	int err;

	if (copy_from_user(args, arg, sizeof(*args)))
		return -EFAULT;
	if (!valid(args))
		return -EINVAL;
	meta = args->header + args->footer;
	drain.mem = u64_to_user_ptr(args->mem);
	drain.pos = args->pos + args->done;
	drain.left = msecs_to_jiffies(min(args->timeout, (u32)INT_MAX));
	drain.file = fget(args->fd);
	if (!drain.file)
		return -EBADF;
	err = extfuse_stream(drain.file, &drain.sock);
	if (err)
		goto put;
	err = -ENOMEM;
	drain.meta = kvmalloc(max(meta, 1U), GFP_KERNEL_ACCOUNT);
	if (!drain.meta)
		goto put;
	err = -EFAULT;
	if (copy_from_user(drain.meta, drain.mem, meta))
		goto put;
	err = check(&drain) ?: drain_frame(&drain);
put:
	kvfree(drain.meta);
	fput(drain.file);
	if (copy_to_user(arg, args, sizeof(*args)) && !err)
		err = -EFAULT;
	return err == -ERESTARTSYS ? -EINTR : err;
}
