// SPDX-License-Identifier: GPL-2.0-only
/*
 * struct extfuse_ops as a struct_ops type: what BPF may load, and how a set is
 * attached to its connection, replaced and taken off.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/ctype.h>

static int stub(struct extfuse_ctx *ctx)
{
	return EXTFUSE_UPCALL;
}

static int stub_section(struct extfuse_section_ctx *ctx)
{
	return 0;
}

static struct extfuse_ops stubs = {
	.request = stub,
	.reply = stub,
	.event = stub,
	.section = stub_section,
};

static int ops_init(struct btf *btf)
{
	return 0;
}

static bool is_valid_access(int off, int size, enum bpf_access_type type, const struct bpf_prog *prog,
			    struct bpf_insn_access_aux *info)
{
	return bpf_tracing_btf_ctx_access(off, size, type, prog, info);
}

static const struct bpf_func_proto *get_func_proto(enum bpf_func_id id, const struct bpf_prog *prog)
{
	return bpf_base_func_proto(id, prog);
}

/* No btf_struct_access: a context is read-only. */
static const struct bpf_verifier_ops verifier_ops = {
	.get_func_proto = get_func_proto,
	.is_valid_access = is_valid_access,
};

/* Programs run under RCU, where a request would have been allocated. */
static int check_member(const struct btf_type *t, const struct btf_member *member, const struct bpf_prog *prog)
{
	return prog->sleepable ? -EINVAL : 0;
}

/* 1 to 15 printable characters: it is shown to people. */
static int copy_name(char *to, const char *from)
{
	size_t len = strnlen(from, sizeof_field(struct extfuse_ops, name)), i;

	if (!len || len == sizeof_field(struct extfuse_ops, name))
		return -EINVAL;
	for (i = 0; i < len; i++)
		if (!isgraph(from[i]))
			return -EINVAL;
	memcpy(to, from, len);
	return 1;
}

static int init_member(const struct btf_type *t, const struct btf_member *member, void *kdata, const void *udata)
{
	const struct extfuse_ops *from = udata;
	struct extfuse_ops *ops = kdata;

	switch (__btf_member_bit_offset(t, member) / 8) {
	case offsetof(struct extfuse_ops, conn):
		ops->conn = from->conn;
		return 1;
	case offsetof(struct extfuse_ops, opcodes):
		ops->opcodes = from->opcodes;
		return 1;
	case offsetof(struct extfuse_ops, replies):
		ops->replies = from->replies;
		return 1;
	case offsetof(struct extfuse_ops, name):
		return copy_name(ops->name, from->name);
	default:
		return 0;
	}
}

static int validate(void *kdata)
{
	const struct extfuse_ops *ops = kdata;

	return ops->request && ops->conn ? 0 : -EINVAL;
}

/* Caller holds extfuse_lock. */
static void attach(struct extfuse_conn *ext, struct extfuse_ops *ops)
{
	ext->attaches++;
	ext->exit = EXTFUSE_EXIT_NONE;
	ext->reason[0] = '\0';
	atomic64_set(&ext->errors, 0);
	WRITE_ONCE(ext->error_opcode, 0);
	memcpy(ext->name, ops->name, sizeof(ext->name));
	rcu_assign_pointer(ext->ops, ops);
	WRITE_ONCE(ext->opcodes, ops->opcodes);
	WRITE_ONCE(ext->replies, ops->reply ? ops->replies : 0);
}

static bool alive(const struct extfuse_conn *ext)
{
	return !ext->dead && READ_ONCE(ext->fc->connected);
}

static int ops_reg(void *kdata, struct bpf_link *link)
{
	struct extfuse_ops *ops = kdata;
	struct extfuse_conn *ext;
	int err = 0;

	/* Without a link nothing would take the programs off when the daemon dies. */
	if (!link)
		return -EOPNOTSUPP;
	spin_lock_bh(&extfuse_lock);
	ext = extfuse_find(ops->conn);
	if (!ext)
		err = -ENOENT;
	else if (!alive(ext))
		err = -ENOTCONN;
	else if (rcu_access_pointer(ext->ops))
		err = -EBUSY;
	else
		attach(ext, ops);
	spin_unlock_bh(&extfuse_lock);
	return err;
}

static int ops_update(void *kdata, void *old_kdata, struct bpf_link *link)
{
	struct extfuse_ops *ops = kdata, *old = old_kdata;
	struct extfuse_conn *ext;
	int err = 0;

	if (ops->conn != old->conn)
		return -EINVAL;
	spin_lock_bh(&extfuse_lock);
	ext = extfuse_find(ops->conn);
	if (!ext || !alive(ext))
		err = -ENOTCONN;
	else if (rcu_access_pointer(ext->ops) != old)
		err = -ENOLINK; /* ejected */
	else
		attach(ext, ops);
	spin_unlock_bh(&extfuse_lock);
	/* Nobody runs the old one once we return: its maps may be emptied now. */
	if (!err)
		synchronize_rcu();
	return err;
}

static void ops_unreg(void *kdata, struct bpf_link *link)
{
	struct extfuse_ops *ops = kdata;
	struct extfuse_conn *ext;

	spin_lock_bh(&extfuse_lock);
	ext = extfuse_find(ops->conn);
	if (ext && rcu_access_pointer(ext->ops) == ops) {
		RCU_INIT_POINTER(ext->ops, NULL);
		WRITE_ONCE(ext->opcodes, 0);
		WRITE_ONCE(ext->replies, 0);
		ext->exit = EXTFUSE_EXIT_UNLINK;
		strscpy(ext->reason, "link closed", sizeof(ext->reason));
	}
	spin_unlock_bh(&extfuse_lock);
	/* Nobody runs it once we return. */
	synchronize_rcu();
}

static struct bpf_struct_ops struct_ops = {
	.verifier_ops = &verifier_ops,
	.init = ops_init,
	.check_member = check_member,
	.init_member = init_member,
	.validate = validate,
	.reg = ops_reg,
	.update = ops_update,
	.unreg = ops_unreg,
	.cfi_stubs = &stubs,
	.name = "extfuse_ops",
	.owner = THIS_MODULE,
};

int extfuse_ops_init(void)
{
	return register_bpf_struct_ops(&struct_ops, extfuse_ops);
}
