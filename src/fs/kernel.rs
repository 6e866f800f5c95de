// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every file system here has to settle with the kernel, and what it leaves to it.

use std::io;
use std::os::fd::AsFd;

use fuser::{InitFlags, KernelConfig};
use nix::errno::Errno;
use nix::sys::statfs::{ECRYPTFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, fstatfs};
use tracing::{debug, warn};

/// At INIT: insists on what a safe mount needs, and asks for `wanted`, which it can do without.
///
/// # Errors
///
/// `EOPNOTSUPP` if the kernel's FUSE lacks what is needed.
pub(crate) fn agree(config: &mut KernelConfig, wanted: InitFlags) -> io::Result<()> {
    // Without these two nobody would check permissions, and ACLs would not be inherited.
    let needed = InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
    if let Err(missing) = config.add_capabilities(needed) {
        warn!(?missing, "the kernel's FUSE lacks what a safe mount needs");
        return Err(Errno::EOPNOTSUPP.into());
    }
    for flag in wanted.iter() {
        if config.add_capabilities(flag).is_err() {
            debug!(?flag, "not offered by the kernel");
        }
    }
    Ok(())
}

/// File systems stacked below one whose files are backed by files of `fd`'s, and including it; the kernel allows two.
///
/// # Errors
///
/// Those of fstatfs(2).
pub(crate) fn stack_depth(fd: impl AsFd) -> nix::Result<u32> {
    let kind = fstatfs(fd)?.filesystem_type();
    let stacked = [OVERLAYFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, ECRYPTFS_SUPER_MAGIC].contains(&kind);
    Ok(if stacked { 2 } else { 1 })
}

/// Whether a file that is opened with these flags may be changed through it.
pub(crate) fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

/// Operations of a [`fuser::Filesystem`] that are counted (`self.count`) and answered with ENOSYS, which tells the
/// kernel to do them itself, or never to ask again.
macro_rules! left_to_the_kernel {
    () => {
        /// The kernel has checked.
        fn access(
            &self,
            _req: &fuser::Request,
            _ino: fuser::INodeNo,
            _mask: fuser::AccessFlags,
            reply: fuser::ReplyEmpty,
        ) {
            self.count($crate::fs::upcalls::Opcode::Access);
            reply.error(fuser::Errno::ENOSYS);
        }

        /// Blocks can be mapped on a block device only, and a directory is none.
        fn bmap(
            &self,
            _req: &fuser::Request,
            _ino: fuser::INodeNo,
            _blocksize: u32,
            _idx: u64,
            reply: fuser::ReplyBmap,
        ) {
            self.count($crate::fs::upcalls::Opcode::Bmap);
            reply.error(fuser::Errno::ENOSYS);
        }

        /// Regular files are always ready, and pipes and devices are the kernel's own.
        fn poll(
            &self,
            _req: &fuser::Request,
            _ino: fuser::INodeNo,
            _fh: fuser::FileHandle,
            _ph: fuser::PollNotifier,
            _events: fuser::PollEvents,
            _flags: fuser::PollFlags,
            reply: fuser::ReplyPoll,
        ) {
            self.count($crate::fs::upcalls::Opcode::Poll);
            reply.error(fuser::Errno::ENOSYS);
        }
    };
}
pub(crate) use left_to_the_kernel;

/// The same of locks.
macro_rules! locks_left_to_the_kernel {
    () => {
        /// Locks are the kernel's.
        fn getlk(
            &self,
            _req: &fuser::Request,
            _ino: fuser::INodeNo,
            _fh: fuser::FileHandle,
            _lock_owner: fuser::LockOwner,
            _start: u64,
            _end: u64,
            _typ: i32,
            _pid: u32,
            reply: fuser::ReplyLock,
        ) {
            self.count($crate::fs::upcalls::Opcode::Getlk);
            reply.error(fuser::Errno::ENOSYS);
        }

        /// Locks are the kernel's.
        fn setlk(
            &self,
            _req: &fuser::Request,
            _ino: fuser::INodeNo,
            _fh: fuser::FileHandle,
            _lock_owner: fuser::LockOwner,
            _start: u64,
            _end: u64,
            _typ: i32,
            _pid: u32,
            sleep: bool,
            reply: fuser::ReplyEmpty,
        ) {
            self.count(if sleep {
                $crate::fs::upcalls::Opcode::Setlkw
            } else {
                $crate::fs::upcalls::Opcode::Setlk
            });
            reply.error(fuser::Errno::ENOSYS);
        }
    };
}
pub(crate) use locks_left_to_the_kernel;
