// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose name a thread of the daemon acts in, for the length of one operation.
//!
//! The kernel has checked the caller's permissions before it asks us (Stack insists on POSIX ACLs, and they
//! imply `default_permissions`). What is left to us is who owns a new file, and which mode it gets. The file
//! system below decides both, atomically with the creation, from the ids and the umask of the thread that
//! calls it: so the thread takes these on, and keeps root's capabilities, lest a second check with half the
//! caller's groups refuse what the first has allowed.
//!
//! All of it is per thread: `setfsuid`, raw `setgroups` and `capset`, and a umask of its own.

use std::cell::Cell;
use std::marker::PhantomData;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Thread, or 0 if it is in a pid namespace that the daemon can't see.
    pub pid: u32,
}

const CAP_FSETID: u32 = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

type Capabilities = [CapData; 2];

fn capget() -> Result<Capabilities, Errno> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = Capabilities::default();
    // SAFETY: both point to what version 3 of the call expects, this thread's (pid 0).
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) })?;
    Ok(data)
}

fn capset(data: &Capabilities) -> Result<(), Errno> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    // SAFETY: both point to what version 3 of the call expects, this thread's (pid 0).
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) })?;
    Ok(())
}

/// Supplementary groups of this thread only; libc's `setgroups` would change all threads.
fn set_thread_groups(groups: &[Gid]) -> Result<(), Errno> {
    // SAFETY: `Gid` is a transparent gid_t, and the length is the slice's.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Supplementary groups of the process `pid`; none if it has gone, or can't be seen.
fn groups_of(pid: u32) -> Vec<Gid> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .unwrap_or_default();
    line.split_whitespace()
        .filter_map(|group| group.parse().ok().map(Gid::from_raw))
        .collect()
}

/// While it lives, the thread acts as somebody else. Dropping it brings back the daemon's own identity.
#[derive(Debug)]
pub struct Acting {
    /// What to go back to; nothing was changed if it is empty.
    own: Option<Own>,
    /// The identity is the thread's: the guard must stay on it.
    thread: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Own {
    capabilities: Capabilities,
    groups: Option<Vec<Gid>>,
}

impl Acting {
    const UNCHANGED: Self = Self {
        own: None,
        thread: PhantomData,
    };

    /// New files belong to `caller`. A daemon without root's privilege stays what it is.
    pub fn creating(caller: Caller) -> Result<Self, Errno> {
        if !Uid::effective().is_root() || (caller.uid == 0 && caller.gid == 0) {
            return Ok(Self::UNCHANGED);
        }
        let capabilities = capget()?;
        let acting = Self {
            own: Some(Own {
                capabilities,
                groups: None,
            }),
            thread: PhantomData,
        };
        nix::unistd::setfsgid(Gid::from_raw(caller.gid));
        nix::unistd::setfsuid(Uid::from_raw(caller.uid));
        // setfsuid cannot report failure; an id that does not exist (-1) would leave files to root.
        let invalid = u32::MAX;
        if nix::unistd::setfsuid(Uid::from_raw(invalid)).as_raw() != caller.uid
            || nix::unistd::setfsgid(Gid::from_raw(invalid)).as_raw() != caller.gid
        {
            return Err(Errno::EOVERFLOW);
        }
        if caller.uid != 0 {
            // Leaving uid 0 has dropped the file-system capabilities.
            capset(&capabilities)?;
        }
        Ok(acting)
    }

    /// Setting an ACL clears the set-group-ID bit if `caller` is not in the file's group: the file system
    /// below asks the thread's groups, and the capability that overrules them.
    pub fn setting_acl(caller: Caller) -> Result<Self, Errno> {
        if !Uid::effective().is_root() || caller.uid == 0 {
            return Ok(Self::UNCHANGED);
        }
        let capabilities = capget()?;
        let groups = nix::unistd::getgroups()?;
        let acting = Self {
            own: Some(Own {
                capabilities,
                groups: Some(groups),
            }),
            thread: PhantomData,
        };
        set_thread_groups(&groups_of(caller.pid))?;
        nix::unistd::setfsgid(Gid::from_raw(caller.gid));
        let mut fewer = capabilities;
        fewer[0].effective &= !(1 << CAP_FSETID);
        capset(&fewer)?;
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let Some(own) = &self.own else { return };
        nix::unistd::setfsuid(Uid::effective());
        nix::unistd::setfsgid(Gid::effective());
        let groups = own
            .groups
            .as_ref()
            .map_or(Ok(()), |groups| set_thread_groups(groups));
        // A thread that cannot go back to its own identity must not serve anybody else.
        if groups.and(capset(&own.capabilities)).is_err() {
            std::process::abort();
        }
    }
}

/// Sets this thread's umask. The file system below ignores it where the directory has a default ACL: that
/// is why it is not applied to the mode beforehand.
pub fn set_umask(umask: u32) -> Result<(), Errno> {
    thread_local!(static OWN_FS: Cell<bool> = const { Cell::new(false) });
    if !OWN_FS.get() {
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        OWN_FS.set(true);
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(umask));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_process_without_groups_or_none_at_all_has_none() {
        assert!(groups_of(u32::MAX).is_empty());
    }

    #[test]
    fn root_creates_for_the_caller_and_is_root_again() {
        if !Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs");
        let before = capget().unwrap();
        {
            let _acting = Acting::creating(Caller {
                uid: 1234,
                gid: 5678,
                pid: 0,
            })
            .unwrap();
            // A directory that only root may write to: the capabilities have stayed.
            std::fs::write(&path, "").unwrap();
        }
        let meta = path.metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 5678));
        assert_eq!(capget().unwrap()[0].effective, before[0].effective);
        std::fs::write(dir.path().join("ours"), "").unwrap();
        assert_eq!(dir.path().join("ours").metadata().unwrap().uid(), 0);
    }

    #[test]
    fn an_id_that_does_not_exist_creates_nothing() {
        if Uid::effective().is_root() {
            let caller = Caller {
                uid: u32::MAX,
                gid: 0,
                pid: 0,
            };
            assert_eq!(Acting::creating(caller).unwrap_err(), Errno::EOVERFLOW);
        }
    }

    #[test]
    fn the_umask_is_the_threads_own() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("here");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                set_umask(0o777).unwrap();
                std::fs::write(dir.path().join("there"), "").unwrap();
            });
        });
        std::fs::write(&here, "").unwrap();
        assert_eq!(
            dir.path().join("there").metadata().unwrap().permissions().mode() & 0o777,
            0
        );
        assert_ne!(here.metadata().unwrap().permissions().mode() & 0o777, 0);
    }
}
