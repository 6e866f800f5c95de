# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
#
# What setup, build-module and vm agree on: where things lie, and how to give
# up. Sourced, after `set -euo pipefail`.
#
# $EXTFUSE_CACHE/          (default target/kernel) made by setup
#   guest                  version of the kernel that the guest boots
#   VERSION/source         fs/fuse of that version
#   VERSION/headers        what modules for it are built against
#   VERSION/vmlinuz, VERSION/modules/lib/modules/VERSION
# target/module/VERSION/   the module, made by build-module
# target/linux-source.tar.xz  all of Linux, packed, made by setup for tests
# $EXTFUSE_VM_DIR/         (default target/vm) made by vm

# shellcheck disable=SC2034 # used by those who source this
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$repository/target
PATH+=:/usr/sbin:/sbin # depmod, mkfs, for callers who are not root
cache=$(realpath -m "${EXTFUSE_CACHE:-$target/kernel}")

die() {
	local status=1
	if [[ $1 == -[0-9]* ]]; then
		status=${1#-}
		shift
	fi
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit "$status"
}

# The comment at the top of the calling script, from its third line on.
usage() {
	sed -n '3,/^[^#]/{/^#/!q;s/^# \?//;p}' "$0"
}

# Version of the guest's kernel; fails if there is none yet.
guest_kernel() {
	[[ -s $cache/guest ]] && cat "$cache/guest"
}
