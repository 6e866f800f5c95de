// SPDX-License-Identifier: GPL-2.0-only
/*
 * FILL: a frame out of a stream socket, a pipe or a file into a READ. Bytes are
 * waited for with nothing owned; a socket's lock is taken before the request,
 * since who holds it may sleep; what cannot be read without sleeping comes
 * through a buffer. And the waiting, which DRAIN shares.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bvec.h>
#include <linux/file.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/skbuff.h>
#include <linux/uio.h>
#include <net/sock.h>
#include <net/tcp.h>

/* Pages that are mapped at a time, and bytes that are read into a buffer at a time. */
#define MAPPED 256U
#define BUFFERED 32768U

static_assert(sizeof(struct extfuse_fill) == 64);

/* ---- Sources and receivers of frames, and waiting for them ------------------- */

/*
 * Until @events, or an error: EINTR, ETIMEDOUT, EAGAIN (@file does not block), ENOENT
 * (aborted). Nothing is owned. @left: jiffies.
 */
int extfuse_wait(struct fuse_conn *fc, struct file *file, __poll_t events, long *left)
{
	struct socket *sock = sock_from_file(file);
	struct poll_wqueues table;
	int err = 0;

	if (file->f_flags & O_NONBLOCK)
		return -EAGAIN;
	poll_initwait(&table);
	table.pt._key = events | EPOLLERR | EPOLLHUP;
	poll_wait(file, &fc->blocked_waitq, &table.pt); /* woken by an abort */
	for (;;) {
		__poll_t ready = vfs_poll(file, &table.pt) & (events | EPOLLERR | EPOLLHUP);

		/* It may be for the queue of errors, where notices of zero-copy sends wait. */
		if (ready == EPOLLERR && sock && !READ_ONCE(sock->sk->sk_err))
			ready = 0;
		table.pt._qproc = NULL;
		err = -ENOENT;
		if (!READ_ONCE(fc->connected))
			break;
		err = -EINTR;
		if (signal_pending(current))
			break;
		err = 0;
		if (ready)
			break;
		err = -ETIMEDOUT;
		if (*left <= 0)
			break;
		err = table.error;
		if (err)
			break;
		set_current_state(TASK_INTERRUPTIBLE);
		if (!table.triggered)
			*left = schedule_timeout(*left);
		__set_current_state(TASK_RUNNING);
		smp_store_mb(table.triggered, 0);
	}
	poll_freewait(&table);
	return err;
}

/* A stream socket, a pipe or a regular file; @sock is NULL for the latter two. */
int extfuse_stream(struct file *file, struct socket **sock)
{
	*sock = sock_from_file(file);
	if (*sock)
		return (*sock)->type == SOCK_STREAM ? 0 : -EOPNOTSUPP;
	return S_ISREG(file_inode(file)->i_mode) || S_ISFIFO(file_inode(file)->i_mode) ? 0 : -EOPNOTSUPP;
}

/* ---- FILL -------------------------------------------------------------------- */

struct fill {
	struct extfuse_frame frame;
	struct fuse_dev *fud;
	struct file *file;
	struct socket *sock;
	u64 unique;
	loff_t pos;
	long left;
	u32 done; /* bytes of the frame */
	bool urgent; /* the socket has something for recvmsg() only */
	bool sums_pages; /* as nobody else writes to them; otherwise what comes from the socket */
	u8 *buffer; /* BUFFERED bytes, for what cannot be read with the request owned */
	unsigned int max;
	struct bio_vec *bv;
	struct iov_iter to; /* over what of the payload's rest is mapped */
	int low_water; /* of the socket, before; 0: not raised */
};

static u32 frame_size(const struct extfuse_frame *frame)
{
	return frame->header + frame->payload + frame->footer;
}

/* Where byte @done of the frame goes: how many bytes go there, and the address, NULL for the payload. */
static u32 part(const struct extfuse_frame *frame, u32 done, u8 **to)
{
	if (done < frame->header) {
		*to = frame->meta + done;
		return frame->header - done;
	}
	if (done < frame->header + frame->payload) {
		*to = NULL;
		return frame->header + frame->payload - done;
	}
	*to = frame->meta + (done - frame->payload);
	return frame_size(frame) - done;
}

static u32 payload_done(const struct extfuse_frame *frame, u32 done)
{
	return clamp(done, frame->header, frame->header + frame->payload) - frame->header;
}

/* With the socket's lock, the request owned: a piece of the stream. */
static int take(read_descriptor_t *desc, struct sk_buff *skb, unsigned int offset, size_t len)
{
	struct fill *fill = desc->arg.data;
	struct extfuse_frame *frame = &fill->frame;
	size_t all = min(len, desc->count), taken = 0;
	struct skb_seq_state pieces;

	skb_prepare_seq_read(skb, offset, offset + all, &pieces);
	while (taken < all) {
		const u8 *from;
		u8 *to;
		/* A piece that goes on behind what is ours: the tag of a kTLS record. */
		size_t n = min_t(size_t, skb_seq_read(taken, &from, &pieces), all - taken);

		if (WARN_ON_ONCE(!n))
			break;
		n = min_t(size_t, part(frame, fill->done, &to), n);
		if (to) {
			memcpy(to, from, n);
		} else {
			n = _copy_to_iter(from, n, &fill->to);
			if (!n) {
				desc->count = taken; /* map the next pages first */
				break;
			}
			if (frame->summed && !fill->sums_pages)
				frame->crc = extfuse_crc(frame->crc, from, n);
		}
		taken += n;
		fill->done += n;
	}
	skb_abort_seq_read(&pieces);
	desc->count -= taken;
	return taken;
}

/* Owned. The pages stay the same as long as it is found. */
static void map_rest(struct fill *fill, struct fuse_req *req)
{
	u32 done = payload_done(&fill->frame, fill->done);

	if (!iov_iter_count(&fill->to))
		extfuse_map(req, ITER_DEST, fill->frame.offset + done, fill->frame.payload - done, fill->bv, fill->max,
			    &fill->to);
	fill->sums_pages = !req->args->user_pages;
}

/*
 * From a socket that lends out its buffers: into the pages, without a copy
 * between. The socket's lock is taken first: who holds it may sleep. Pages of
 * the cache lie together more than what came, and are summed up after it.
 */
static ssize_t receive(struct fill *fill)
{
	read_descriptor_t desc = { .arg.data = fill, .count = frame_size(&fill->frame) - fill->done };
	struct sock *sk = fill->sock->sk;
	struct extfuse_frame *frame = &fill->frame;
	u32 before = fill->done;
	struct fuse_req *req;
	struct iov_iter to;
	ssize_t ret;
	int err;

	lock_sock(sk);
	req = extfuse_section_own_again(fill->fud, fill->unique, frame);
	if (IS_ERR(req)) {
		release_sock(sk);
		return PTR_ERR(req);
	}
	map_rest(fill, req);
	to = fill->to;
	ret = READ_ONCE(fill->sock->ops)->read_sock(sk, &desc, take);
	if (frame->summed && fill->sums_pages)
		frame->crc = extfuse_crc_of(frame->crc, &to, iov_iter_count(&to) - iov_iter_count(&fill->to));
	err = extfuse_disown(fill->fud, req, false);
	release_sock(sk);
	if (err)
		return err;
	if (fill->done != before)
		return fill->done - before;
	if (ret < 0)
		return ret;
	/* Nothing came: an error, the end, or not yet; or urgent data is in the way. */
	lock_sock(sk);
	fill->urgent = !skb_queue_empty(&sk->sk_receive_queue);
	ret = sock_error(sk);
	if (!ret)
		ret = !fill->urgent && sk->sk_shutdown & RCV_SHUTDOWN ? 0 : -EAGAIN;
	release_sock(sk);
	return ret;
}

/* From anything else: through a buffer, since it may sleep. */
static ssize_t read_through(struct fill *fill)
{
	struct extfuse_frame *frame = &fill->frame;
	struct kvec vec;
	struct msghdr msg = {};
	struct fuse_req *req;
	ssize_t ret;
	int err;
	u8 *meta;

	if (!fill->buffer) {
		fill->buffer = kmalloc(BUFFERED, GFP_KERNEL_ACCOUNT);
		if (!fill->buffer)
			return -ENOMEM;
	}
	vec.iov_len = part(frame, fill->done, &meta);
	vec.iov_base = meta;
	if (!meta) {
		vec.iov_base = fill->buffer;
		vec.iov_len = min_t(size_t, vec.iov_len, BUFFERED);
	}
	iov_iter_kvec(&msg.msg_iter, ITER_DEST, &vec, 1, vec.iov_len);
	if (fill->sock)
		ret = sock_recvmsg(fill->sock, &msg, MSG_DONTWAIT);
	else
		ret = vfs_iter_read(fill->file, &msg.msg_iter, &fill->pos,
				    S_ISFIFO(file_inode(fill->file)->i_mode) ? RWF_NOWAIT : 0);
	if (ret <= 0 || meta) {
		if (ret > 0)
			fill->done += ret;
		return ret;
	}
	/* They are gone from the source, whatever comes of the request. */
	req = extfuse_section_own_again(fill->fud, fill->unique, frame);
	if (!IS_ERR(req)) {
		u8 *from = fill->buffer;
		size_t rest = ret;

		while (rest) {
			size_t n;

			map_rest(fill, req);
			n = copy_to_iter(from, min(rest, iov_iter_count(&fill->to)), &fill->to);
			if (WARN_ON_ONCE(!n))
				break;
			from += n;
			rest -= n;
			fill->done += n;
		}
		if (frame->summed)
			frame->crc = extfuse_crc(frame->crc, fill->buffer, ret);
		err = extfuse_disown(fill->fud, req, false);
	} else {
		fill->done += ret;
		err = PTR_ERR(req);
	}
	return err ?: ret;
}

/*
 * TCP wakes us once, with the rest of the frame, or as much as fits its buffer,
 * instead of with every segment. Not where somebody else takes the bytes first
 * (kTLS): what waits there would never be enough.
 */
static void raise_low_water(struct fill *fill)
{
	u32 rest = frame_size(&fill->frame) - fill->done;
	struct sock *sk = fill->sock->sk;

	lock_sock(sk);
	if (READ_ONCE(fill->sock->ops)->read_sock == tcp_read_sock) {
		if (!fill->low_water)
			fill->low_water = sk->sk_rcvlowat;
		READ_ONCE(fill->sock->ops)->set_rcvlowat(sk, rest);
	}
	release_sock(sk);
}

static void restore_low_water(struct fill *fill)
{
	struct sock *sk = fill->sock->sk;

	lock_sock(sk);
	WRITE_ONCE(sk->sk_rcvlowat, fill->low_water);
	release_sock(sk);
}

static int fill_frame(struct fill *fill)
{
	bool lends = fill->sock && READ_ONCE(fill->sock->ops)->read_sock, idle = false;
	ssize_t got;
	int err;

	while (fill->done < frame_size(&fill->frame)) {
		got = -EAGAIN;
		if (lends)
			got = receive(fill);
		/* Where it was said to be ready in vain, recvmsg() knows why. */
		if (got == -EAGAIN && (!lends || fill->urgent || idle))
			got = read_through(fill);
		if (!got)
			return -ENODATA;
		if (got > 0) {
			idle = false;
			continue;
		}
		if (got != -EAGAIN)
			return got;
		if (lends)
			raise_low_water(fill);
		err = extfuse_wait(fill->fud->fc, fill->file, EPOLLIN | EPOLLRDHUP, &fill->left);
		if (err) {
			/* What was too little to be woken for counts, too. */
			if (fill->low_water && receive(fill) > 0 && fill->done == frame_size(&fill->frame))
				err = 0;
			return err;
		}
		/* Ready once more, and nothing there: not in a tight loop, and not for ever. */
		if (idle) {
			if (fill->left <= 0)
				return -ETIMEDOUT;
			fill->left--;
			schedule_timeout_interruptible(1);
		}
		idle = true;
	}
	return 0;
}

/* The bytes of header and footer that came between @from and @to of the frame. */
static int give_meta(const struct extfuse_frame *frame, u8 __user *mem, u32 from, u32 to)
{
	while (from < to) {
		u8 *at;
		u32 n = min(part(frame, from, &at), to - from);

		if (at && copy_to_user(mem + (at - frame->meta), at, n))
			return -EFAULT;
		from += n;
	}
	return 0;
}

/* What came stays for the next call, which brings the rest. */
static bool resumable(int err)
{
	return err == -EINTR || err == -ERESTARTSYS || err == -EAGAIN || err == -ETIMEDOUT || err == -ENODATA;
}

static int run_fill(struct fill *fill, u8 __user *mem)
{
	struct extfuse_conn *ext = fill->fud->fc->ext;
	struct extfuse_frame *frame = &fill->frame;
	u32 began = fill->done;
	struct fuse_req *req;
	int err, late;
	bool answered;

	/* What an earlier call received, for the program at the gate. */
	if (frame->resumed && copy_from_user(frame->meta, mem, frame->header + frame->footer))
		return -EFAULT;
	req = extfuse_section_own(fill->fud, fill->unique, frame->offset, frame->payload);
	if (IS_ERR(req))
		return PTR_ERR(req);
	err = extfuse_section_begin(req, frame, payload_done(frame, fill->done));
	late = extfuse_disown(fill->fud, req, false);
	if (err || late)
		return err ?: late;

	err = fill_frame(fill);
	if (fill->low_water)
		restore_low_water(fill);
	late = give_meta(frame, mem, began, fill->done);
	err = late ?: err;

	req = extfuse_section_own_again(fill->fud, fill->unique, frame);
	if (IS_ERR(req))
		return PTR_ERR(req);
	err = extfuse_section_end(ext, req, frame, err, resumable(err) ? payload_done(frame, fill->done) : 0);
	answered = !err && frame->flags & EXTFUSE_SECTION_COMMIT &&
		   (frame->judged || !(frame->flags & EXTFUSE_SECTION_GATED));
	if (answered && req->ext.filling) {
		err = -EBUSY;
		answered = false;
	}
	if (answered)
		extfuse_set_length(req, req->ext.staged);
	late = extfuse_disown(fill->fud, req, answered);
	return err ?: late;
}

long extfuse_ioctl_fill(struct fuse_dev *fud, struct extfuse_fill __user *arg)
{
	struct extfuse_fill args;
	struct fill fill;
	int err;

	if (copy_from_user(&args, arg, sizeof(args)))
		return -EFAULT;
	if (args.flags & ~(EXTFUSE_SECTION_CRC | EXTFUSE_SECTION_COMMIT | EXTFUSE_SECTION_GATED) || args.reserved ||
	    args.header > EXTFUSE_SECTION_META_MAX || args.footer > EXTFUSE_SECTION_META_MAX ||
	    args.payload > INT_MAX || args.done > args.header + args.payload + args.footer ||
	    args.pos > (u64)LLONG_MAX - INT_MAX * 2ULL)
		return -EINVAL;
	fill = (struct fill) {
		.frame = {
			.header = args.header,
			.payload = args.payload,
			.footer = args.footer,
			.offset = args.offset,
			.flags = args.flags,
			.crc = ~args.crc,
			.resumed = args.done,
			.summed = args.flags & EXTFUSE_SECTION_CRC || extfuse_has_gate(fud->fc->ext),
		},
		.fud = fud,
		.unique = args.unique,
		.pos = args.pos + args.done,
		.left = msecs_to_jiffies(min(args.timeout, (u32)INT_MAX)),
		.done = args.done,
		/* Pages of unaligned buffers may be parts of pages: then in several rounds. */
		.max = clamp(args.payload / PAGE_SIZE + 2, 2U, MAPPED),
	};
	fill.file = fget(args.fd);
	if (!fill.file)
		return -EBADF;
	err = extfuse_stream(fill.file, &fill.sock);
	if (err)
		goto put;
	err = -ENOMEM;
	fill.frame.meta = kvmalloc(max(args.header + args.footer, 1U), GFP_KERNEL_ACCOUNT);
	fill.bv = kmalloc_array(fill.max, sizeof(*fill.bv), GFP_KERNEL_ACCOUNT);
	if (fill.frame.meta && fill.bv)
		err = run_fill(&fill, u64_to_user_ptr(args.mem));
	kfree(fill.buffer);
	kfree(fill.bv);
	kvfree(fill.frame.meta);
put:
	fput(fill.file);
	args.done = fill.done;
	args.crc = ~fill.frame.crc;
	if (fill.frame.refused)
		args.flags |= EXTFUSE_SECTION_REFUSED;
	else if (!err && args.flags & EXTFUSE_SECTION_GATED && !fill.frame.judged)
		args.flags &= ~EXTFUSE_SECTION_COMMIT;
	if (copy_to_user(arg, &args, sizeof(args)) && !err)
		err = -EFAULT;
	/* The daemon calls again by itself, with what came back. */
	return err == -ERESTARTSYS ? -EINTR : err;
}
