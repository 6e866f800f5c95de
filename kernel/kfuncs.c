// SPDX-License-Identifier: GPL-2.0-only
/*
 * What programs may call. Each checks everything it is given; a misuse is
 * answered with an error, remembered, and charged to the program's budget.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>

static int misuse(struct extfuse_call *call, int err, const char *what)
{
	call->errors++;
	call->error = what;
	return err;
}

static struct extfuse_call *to_call(struct extfuse_ctx *ctx)
{
	return container_of(ctx, struct extfuse_call, ctx);
}

/*
 * The bytes of an in argument. Arguments that live in pages (READ, READLINK,
 * READDIR, the payload of WRITE) have no address and are refused.
 */
static const void *in_arg(struct extfuse_call *call, u32 which, u32 *size)
{
	const struct fuse_args *args = call->args;

	if (!args || which >= args->in_numargs || !args->in_args[which].value ||
	    (args->in_pages && which == args->in_numargs - 1)) {
		misuse(call, 0, "read of an argument that is not there");
		return NULL;
	}
	*size = args->in_args[which].size;
	return args->in_args[which].value;
}

static const void *out_arg(struct extfuse_call *call, u32 which, u32 *size)
{
	const struct fuse_args *args = call->args;

	if (!args || which >= args->out_numargs || !args->out_args[which].value ||
	    (args->out_pages && which == args->out_numargs - 1)) {
		misuse(call, 0, "read of an answer that is not there");
		return NULL;
	}
	*size = args->out_args[which].size;
	return args->out_args[which].value;
}

__bpf_kfunc_start_defs();

/**
 * bpf_extfuse_read_args - copy an argument
 * @ctx: the request
 * @which: in argument, or EXTFUSE_OUT + out argument (in `reply`, of an answer without error)
 * @dst: where to
 * @dst__sz: bytes there
 *
 * Return: the argument's length; -EINVAL if there is none, -E2BIG if it does not fit,
 * -ENODATA if the daemon has not answered, or with an error.
 */
__bpf_kfunc int bpf_extfuse_read_args(struct extfuse_ctx *ctx, u32 which, void *dst, u32 dst__sz)
{
	struct extfuse_call *call = to_call(ctx);
	const void *from;
	u32 size;

	if (which >= EXTFUSE_OUT) {
		if (!call->answered)
			return -ENODATA;
		from = out_arg(call, which - EXTFUSE_OUT, &size);
	} else {
		from = in_arg(call, which, &size);
	}
	if (!from)
		return -EINVAL;
	if (size > dst__sz)
		return misuse(call, -E2BIG, "read into too small a buffer");
	memcpy(dst, from, size);
	return size;
}

/**
 * bpf_extfuse_write_args - answer: write an out argument
 * @ctx: the request, in `request`
 * @which: out argument, from 0
 * @src: the bytes; must be writable memory
 * @src__sz: how many: the argument's size, or less if it is the last one and variable
 *
 * Return: 0; -EINVAL if there is no such argument, if it lives in pages or if the size is
 * wrong, -ERANGE if a variable argument does not fit.
 */
__bpf_kfunc int bpf_extfuse_write_args(struct extfuse_ctx *ctx, u32 which, void *src, u32 src__sz)
{
	struct extfuse_call *call = to_call(ctx);
	const struct fuse_args *args = call->args;
	const struct fuse_arg *out;

	if (!args || call->replied || which >= args->out_numargs || (ctx->flags & EXTFUSE_CTX_EVENT))
		return misuse(call, -EINVAL, "write to an argument that is not there");
	out = &args->out_args[which];
	if (!out->value || (args->out_pages && which == args->out_numargs - 1))
		return misuse(call, -EINVAL, "write to an argument that lives in pages");
	if (args->out_argvar && which == args->out_numargs - 1) {
		if (src__sz > out->size)
			return -ERANGE;
		call->var_len = src__sz;
	} else if (src__sz != out->size) {
		return misuse(call, -EINVAL, "write of the wrong size");
	}
	memcpy(out->value, src, src__sz);
	call->written |= 1U << which;
	return 0;
}

/**
 * bpf_extfuse_name_key - hash of a name under the connection's key
 * @ctx: the request or event
 * @which: in argument that is a name
 *
 * Return: SipHash-2-4 of the name without its NUL; 0 if the argument is not a name.
 */
__bpf_kfunc u64 bpf_extfuse_name_key(struct extfuse_ctx *ctx, u32 which)
{
	struct extfuse_call *call = to_call(ctx);
	const char *name;
	u32 size;

	name = in_arg(call, which, &size);
	if (!name)
		return 0;
	if (!size || name[size - 1]) {
		misuse(call, 0, "key of an argument that is not a name");
		return 0;
	}
	return extfuse_name_hash(call->ext, name, size - 1);
}

/**
 * bpf_extfuse_name_is - compare a name
 * @ctx: the request or event
 * @which: in argument that is a name
 * @name: what to compare with, without NUL; must be writable memory
 * @name__sz: bytes there
 * @len: how many of them are the name
 *
 * Return: 1 if equal, else 0.
 */
__bpf_kfunc int bpf_extfuse_name_is(struct extfuse_ctx *ctx, u32 which, void *name, u32 name__sz, u32 len)
{
	const char *arg;
	u32 size;

	arg = in_arg(to_call(ctx), which, &size);
	return arg && len <= name__sz && size == len + 1 && !memcmp(arg, name, len);
}

/**
 * bpf_extfuse_current - is an answer current?
 * @ctx: the request
 * @slot: from extfuse_entry_slot(), extfuse_node_slot()
 * @stamp: the answer's
 *
 * To be asked after the answer was read. Covers the connection's slot and deadline too.
 *
 * Return: 1 if nothing that @slot stands for has changed since @stamp or is changing, else 0.
 */
__bpf_kfunc int bpf_extfuse_current(struct extfuse_ctx *ctx, u32 slot, u64 stamp)
{
	return extfuse_current(to_call(ctx)->ext, slot, stamp);
}

/**
 * bpf_extfuse_keep - let the kernel's own caches keep what was just answered
 * @ctx: the request: LOOKUP, GETATTR, OPEN, OPENDIR; READ of a backing file
 * @what: EXTFUSE_KEEP_ENTRY (the name), EXTFUSE_KEEP_ATTR, EXTFUSE_KEEP_OPEN (how it opens) or
 *	EXTFUSE_KEEP_PASSTHRU (the verdict; for ever)
 * @stamp: since when it is true
 * @expires: boot-time ns, or EXTFUSE_NEVER
 *
 * It is used until then, for as long as it is current. After bpf_extfuse_write_args().
 *
 * Return: 0; -EINVAL if no such answer was written.
 */
__bpf_kfunc int bpf_extfuse_keep(struct extfuse_ctx *ctx, u32 what, u64 stamp, u64 expires)
{
	struct extfuse_call *call = to_call(ctx);

	if (!call->args || call->replied || ctx->flags & EXTFUSE_CTX_EVENT || what > EXTFUSE_KEEP_PASSTHRU ||
	    extfuse_may_keep(call, what, stamp, expires))
		return misuse(call, -EINVAL, "keeping what was not answered");
	return 0;
}

/**
 * bpf_extfuse_private - this answer is for this caller only
 * @ctx: the request, in `request`
 *
 * Nothing of it is kept, whether the handler gives it or the daemon: the next look asks again. A handler's
 * errno for a name is what the caller gets, and the name stays as it is for others.
 */
__bpf_kfunc void bpf_extfuse_private(struct extfuse_ctx *ctx)
{
	struct extfuse_call *call = to_call(ctx);

	if (!call->args || call->replied || ctx->flags & EXTFUSE_CTX_EVENT)
		misuse(call, 0, "private where there is no answer to give");
	else
		call->args->ext_private = true;
}

/**
 * bpf_extfuse_xattr_class - which class a name of an extended attribute is of
 * @ctx: the request
 * @which: in argument that is a name
 *
 * Return: enum extfuse_xattr_class; -1 if none, or if the argument is not a name.
 */
__bpf_kfunc int bpf_extfuse_xattr_class(struct extfuse_ctx *ctx, u32 which)
{
	const char *name;
	u32 size;

	name = in_arg(to_call(ctx), which, &size);
	return name && size && !name[size - 1] ? extfuse_xattr_class(name) : -1;
}

/**
 * bpf_extfuse_name_in - is a name among others?
 * @ctx: the request
 * @which: in argument that is a name
 * @names: the others, each with a NUL at its end; must be writable memory
 * @names__sz: bytes there
 * @len: how many of them are names
 *
 * Return: 0 if it is not; 1 if it is, or if these are no names.
 */
__bpf_kfunc int bpf_extfuse_name_in(struct extfuse_ctx *ctx, u32 which, void *names, u32 names__sz, u32 len)
{
	const char *arg, *name = names;
	u32 size, here;

	arg = in_arg(to_call(ctx), which, &size);
	if (!arg || len > names__sz)
		return 1;
	for (; len; name += here, len -= here) {
		here = strnlen(name, len) + 1;
		if (here > len || (here == size && !memcmp(arg, name, size)))
			return 1;
	}
	return 0;
}

/**
 * bpf_extfuse_parent - a directory that has the node
 * @ctx: the request: GETXATTR, LISTXATTR
 *
 * Return: the nodeid of a directory in which the node has a name that the kernel keeps, and that is current; 0 if
 * none is known.
 */
__bpf_kfunc u64 bpf_extfuse_parent(struct extfuse_ctx *ctx)
{
	struct extfuse_call *call = to_call(ctx);
	const struct fuse_args *args = call->args;

	if (!args || (args->opcode != FUSE_GETXATTR && args->opcode != FUSE_LISTXATTR)) {
		misuse(call, 0, "parent of what may have none");
		return 0;
	}
	return args->ext_inode ? extfuse_known_parent(call->ext, args->ext_inode) : 0;
}

/**
 * bpf_extfuse_keep_absent - let the inode keep that it has no extended attributes
 * @ctx: the request: GETXATTR, LISTXATTR
 * @nodeid: the request's; 0 if that was said of every node
 * @stamp: since when it is true
 * @expires: boot-time ns, or EXTFUSE_NEVER
 * @says: as in the row
 *
 * It is used until then, for as long as it is current.
 *
 * Return: 0; -EINVAL if the request is not about that.
 */
__bpf_kfunc int bpf_extfuse_keep_absent(struct extfuse_ctx *ctx, u64 nodeid, u64 stamp, u64 expires, u64 says)
{
	struct extfuse_call *call = to_call(ctx);

	if (!call->args || call->replied || ctx->flags & EXTFUSE_CTX_EVENT ||
	    extfuse_keep_xattrs(call, nodeid, stamp, expires, says))
		return misuse(call, -EINVAL, "keeping what was not asked");
	return 0;
}

/**
 * bpf_extfuse_learn - let the kernel's own caches keep what the daemon has answered
 * @ctx: the request, in `reply`: LOOKUP, GETATTR, SETATTR, CREATE, MKNOD, MKDIR, SYMLINK, LINK, OPEN, OPENDIR,
 *	STATFS
 * @what: EXTFUSE_KEEP_ENTRY (that it does not exist, too), EXTFUSE_KEEP_ATTR, EXTFUSE_KEEP_OPEN or
 *	EXTFUSE_KEEP_STATFS
 * @expires: boot-time ns, or EXTFUSE_NEVER
 *
 * It is used until then, for as long as nothing has changed since before the daemon was asked.
 *
 * Return: 0; -EINVAL if the daemon gave no such answer.
 */
__bpf_kfunc int bpf_extfuse_learn(struct extfuse_ctx *ctx, u32 what, u64 expires)
{
	struct extfuse_call *call = to_call(ctx);

	if (!call->args || !call->replied || extfuse_may_learn(call, what, expires))
		return misuse(call, -EINVAL, "learning what was not answered");
	return 0;
}

/**
 * bpf_extfuse_set_cookie - leave a word for the reply hook of the same request
 * @ctx: the request
 * @cookie: the word
 */
__bpf_kfunc void bpf_extfuse_set_cookie(struct extfuse_ctx *ctx, u64 cookie)
{
	ctx->cookie = cookie;
}

/**
 * bpf_extfuse_enosys - give the caller ENOSYS
 * @ctx: the request
 *
 * -ENOSYS is the verdict UPCALL. A handler that means the errno calls this, then returns it.
 */
__bpf_kfunc void bpf_extfuse_enosys(struct extfuse_ctx *ctx)
{
	to_call(ctx)->enosys = true;
}

/**
 * bpf_extfuse_section_read - copy a part of a section's header or footer
 * @ctx: the section
 * @which: EXTFUSE_SECTION_HEADER or EXTFUSE_SECTION_FOOTER
 * @offset: of the first byte, in it
 * @dst: where to
 * @dst__sz: bytes there, all of which are filled
 *
 * Return: 0; -EINVAL if there are not that many bytes.
 */
__bpf_kfunc int bpf_extfuse_section_read(struct extfuse_section_ctx *ctx, u32 which, u32 offset, void *dst,
					 u32 dst__sz)
{
	struct extfuse_gate *gate = container_of(ctx, struct extfuse_gate, ctx);
	u32 size = which == EXTFUSE_SECTION_HEADER ? ctx->header : ctx->footer;

	if (which > EXTFUSE_SECTION_FOOTER || offset > size || dst__sz > size - offset) {
		gate->errors++;
		gate->error = "read beyond a section's header or footer";
		return -EINVAL;
	}
	memcpy(dst, gate->meta + (which == EXTFUSE_SECTION_HEADER ? 0 : ctx->header) + offset, dst__sz);
	return 0;
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(kfunc_ids)
BTF_ID_FLAGS(func, bpf_extfuse_read_args, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_write_args, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_name_key, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_name_is, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_current, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_keep, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_private, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_xattr_class, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_name_in, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_parent, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_keep_absent, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_learn, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_set_cookie, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_enosys, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, bpf_extfuse_section_read, KF_TRUSTED_ARGS)
BTF_KFUNCS_END(kfunc_ids)

static const struct btf_kfunc_id_set kfunc_set = {
	.owner = THIS_MODULE,
	.set = &kfunc_ids,
};

int extfuse_kfuncs_init(void)
{
	return register_btf_kfunc_id_set(BPF_PROG_TYPE_STRUCT_OPS, &kfunc_set);
}
