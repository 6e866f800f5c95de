# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
#
# What bench and demo share: the benchmark program, and everything that it
# needs. Sourced after lib.sh.

# build_calls [CARGO OPTION...]: sets `calls` to the program; the command `extfuse`
# that it starts is built with it.
build_calls() {
	local messages

	messages=$(cargo build --quiet --bench calls --message-format=json-render-diagnostics "$@") ||
		die "the benchmark program does not build"
	calls=$(sed -n 's/.*"name":"calls".*"executable":"\([^"]*\)".*/\1/p' <<<"$messages")
	[[ -x $calls ]] || die "cargo does not say where the benchmark program is"
}

# Everything that measuring in the guest needs.
prepare() {
	"$repository/scripts/setup"
	"$repository/scripts/build-module" --quiet
	build_calls --release
}

# What remote is measured beside, unpacked by setup.
export EXTFUSE_PEERS=$target/peers

# in_guest VM OPTION... -- ARGUMENT...: runs the program in the guest, over an ext4
# in memory: waiting for a disk is no work, but a clock that counts instructions
# (--icount) would count it.
in_guest() {
	local options=()

	while [[ $1 != -- ]]; do
		options+=("$1") && shift
	done
	shift
	"$repository/scripts/vm" "${options[@]}" -- bash -ec '
		modprobe brd rd_nr=1 rd_size=$((400 << 10))
		mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/ram0
		mkdir -p /mnt/ram
		mount /dev/ram0 /mnt/ram
		# What programs look up of users and zones, too.
		mkdir /run/etc
		cp -L /etc/{group,ld.so.cache,nsswitch.conf,passwd} /run/etc
		cp -L /etc/netconfig /run/etc
		# Whose rights a server takes for strangers: sshd is not installed.
		grep -q ^sshd: /run/etc/passwd || echo sshd:x:100:65534::/run/sshd:/usr/sbin/nologin >>/run/etc/passwd
		# No password, which is not to be locked out.
		echo "root:*:20000:0:99999:7:::" >/run/etc/shadow
		mount --bind /run/etc /etc
		# And of what is in the root, most of which is not there.
		mkdir /mnt/root
		mount -t tmpfs none /mnt/root
		for each in /*; do
			if [[ -L $each ]]; then
				cp -P "$each" /mnt/root/
			elif [[ -d $each && $each != /mnt ]]; then
				mkdir "/mnt/root$each"
				mount --rbind "$each" "/mnt/root$each"
			fi
		done
		mkdir -p /mnt/root/mnt/ram
		mount --bind /mnt/ram /mnt/root/mnt/ram
		export HOME=/mnt/ram
		exec chroot /mnt/root "$0" "$@" --base /mnt/ram' "$calls" "$@"
}
