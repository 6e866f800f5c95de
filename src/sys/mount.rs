// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounting and unmounting.
//!
//! A privileged mount is made with the file-descriptor interface (`fsopen` … `move_mount`): the
//! file system exists, and its INIT can be answered, before anybody can see it; what fails on the
//! way leaves nothing mounted, because an unattached mount ends with its descriptor. Users without
//! privilege go through `fusermount3`.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use thiserror::Error;

use crate::sys::mountinfo::{Location, MountId};

/// Which FUSE serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// The FUSE of the kernel: type `fuse`, `/dev/fuse`.
    Stock,
    /// The extfuse module: type `extfuse`, `/dev/extfuse`.
    Extfuse,
}

impl Flavor {
    /// The device that the daemon opens.
    #[must_use]
    pub fn device(self) -> &'static Path {
        Path::new(match self {
            Self::Stock => "/dev/fuse",
            Self::Extfuse => "/dev/extfuse",
        })
    }

    fn fs_type(self) -> &'static CStr {
        match self {
            Self::Stock => c"fuse",
            Self::Extfuse => c"extfuse",
        }
    }
}

/// What FUSE and the VFS are told about a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// What `/proc/self/mounts` shows as the source.
    pub fsname: OsString,
    /// Shown behind the type, as in `fuse.extfuse`.
    pub subtype: Option<String>,
    /// The owner: of all users, the one who may use it without `allow_other`.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// The kernel checks permissions by mode and ACL; without it nobody does.
    pub default_permissions: bool,
    /// Users other than the owner may use it.
    pub allow_other: bool,
    /// The largest READ, in bytes.
    pub max_read: Option<u32>,
    /// No changes.
    pub read_only: bool,
    /// Set-user-id bits and file capabilities count.
    pub suid: bool,
    /// Device nodes can be opened.
    pub dev: bool,
    /// Programs can be executed.
    pub exec: bool,
    /// Reads do not change the access time.
    pub noatime: bool,
}

/// Why a mount was not made or not ended.
#[derive(Debug, Error)]
pub enum MountError {
    /// The kernel does not know the type.
    #[error("this kernel has no file system type {0:?}")]
    UnknownType(String),
    /// A step of mounting failed; the kernel's own words where it has any.
    #[error("cannot mount: {step}: {reason}")]
    Step {
        /// The system call or the parameter.
        step: String,
        /// What the kernel says.
        reason: String,
        /// The error number behind it.
        errno: Errno,
    },
    /// `fusermount3` is not installed or could not be started.
    #[error("mounting without privilege needs fusermount3 (Debian package fuse3): {0}")]
    NoFusermount(io::Error),
    /// `fusermount3` said no.
    #[error("{0}")]
    Fusermount(String),
}

/// A file system that exists and is mounted nowhere yet; dropping it ends it.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
    id: MountId,
}

impl Detached {
    /// Makes a FUSE file system for the daemon that holds `device`. INIT is sent, not awaited.
    pub fn create(
        flavor: Flavor,
        device: BorrowedFd<'_>,
        parameters: &Parameters,
    ) -> Result<Self, MountError> {
        let context = fsopen(flavor.fs_type())?;
        let set = |key: &CStr, value: &OsStr| {
            let value = CString::new(value.as_bytes()).map_err(|_| step(&context, key, Errno::EINVAL))?;
            fsconfig(&context, libc::FSCONFIG_SET_STRING, Some(key), Some(&value))
                .map_err(|errno| step(&context, key, errno))
        };
        let flag = |key: &CStr| {
            fsconfig(&context, libc::FSCONFIG_SET_FLAG, Some(key), None)
                .map_err(|errno| step(&context, key, errno))
        };
        let number = |key: &CStr, value: u32| set(key, OsStr::new(&value.to_string()));

        set(c"source", &parameters.fsname)?;
        if let Some(subtype) = &parameters.subtype {
            set(c"subtype", OsStr::new(subtype))?;
        }
        set(c"fd", OsStr::new(&device.as_raw_fd().to_string()))?;
        set(c"rootmode", OsStr::new(&format!("{:o}", libc::S_IFDIR)))?;
        number(c"user_id", parameters.uid)?;
        number(c"group_id", parameters.gid)?;
        if parameters.default_permissions {
            flag(c"default_permissions")?;
        }
        if parameters.allow_other {
            flag(c"allow_other")?;
        }
        if let Some(bytes) = parameters.max_read {
            number(c"max_read", bytes)?;
        }
        if parameters.read_only {
            flag(c"ro")?;
        }
        fsconfig(&context, libc::FSCONFIG_CMD_CREATE, None, None)
            .map_err(|errno| step(&context, c"create", errno))?;
        let mount =
            fsmount(&context, attributes(parameters)).map_err(|errno| step(&context, c"fsmount", errno))?;
        let id = MountId::of(mount.as_fd()).map_err(|error| {
            step(
                &context,
                c"statx",
                Errno::from_raw(error.raw_os_error().unwrap_or_default()),
            )
        })?;
        Ok(Self { mount, id })
    }

    /// Which mount it is, and stays when it is attached.
    #[must_use]
    pub fn id(&self) -> MountId {
        self.id
    }

    /// Makes the mount visible at `target`.
    pub fn attach(self, target: &Location) -> Result<(), MountError> {
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
        // SAFETY: both descriptors are open, and both paths are constant C strings.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.mount.as_raw_fd(),
                c"".as_ptr(),
                target.as_fd().as_raw_fd(),
                c"".as_ptr(),
                flags,
            )
        };
        Errno::result(result).map(drop).map_err(|errno| MountError::Step {
            step: format!("at {}", target.path.display()),
            reason: errno.desc().into(),
            errno,
        })
    }
}

/// Mounts with `fusermount3`, which has the privilege, and gives the device that it opened.
pub fn fusermount(target: &Path, parameters: &Parameters) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(MountError::NoFusermount)?;
    // The socket is its standard input: descriptors that Rust opens are closed by exec, this one not.
    let output = Command::new("fusermount3")
        .arg("-o")
        .arg(fusermount_options(parameters))
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .output()
        .map_err(MountError::NoFusermount)?;
    if !output.status.success() {
        return Err(MountError::Fusermount(first_line(&output.stderr)));
    }
    receive_fd(&ours).map_err(|error| MountError::Fusermount(format!("no device from fusermount3: {error}")))
}

/// Unmounts with `fusermount3`, which checks that the caller is the owner.
pub fn fusermount_unmount(target: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new("fusermount3");
    command
        .arg("-u")
        .args(lazy.then_some("-z"))
        .arg("--")
        .arg(target)
        .stdin(Stdio::null());
    let output = command.output().map_err(MountError::NoFusermount)?;
    if !output.status.success() {
        return Err(MountError::Fusermount(first_line(&output.stderr)));
    }
    Ok(())
}

/// Unmounts what is topmost at `path`; EBUSY if it is in use.
pub fn unmount(path: &Path) -> Result<(), Errno> {
    umount2(path, MntFlags::UMOUNT_NOFOLLOW)
}

/// Takes off the mount that `location` is in, in use or not: exactly that one, whatever came on
/// top. It ends with its last user.
pub fn detach(location: &Location) -> Result<(), Errno> {
    umount2(&location.proc_path(), MntFlags::MNT_DETACH)
}

fn fusermount_options(parameters: &Parameters) -> OsString {
    let mut options = Vec::new();
    let mut push = |words: &[&[u8]]| {
        if !options.is_empty() {
            options.push(b',');
        }
        words.iter().for_each(|word| options.extend_from_slice(word));
    };
    push(&[b"fsname=", &escape(parameters.fsname.as_bytes())]);
    if let Some(subtype) = &parameters.subtype {
        push(&[b"subtype=", &escape(subtype.as_bytes())]);
    }
    if let Some(bytes) = parameters.max_read {
        push(&[b"max_read=", bytes.to_string().as_bytes()]);
    }
    let flags: [(bool, &str, &str); 7] = [
        (parameters.default_permissions, "default_permissions", ""),
        (parameters.allow_other, "allow_other", ""),
        (parameters.read_only, "ro", "rw"),
        (parameters.suid, "suid", "nosuid"),
        (parameters.dev, "dev", "nodev"),
        (parameters.exec, "exec", "noexec"),
        (parameters.noatime, "noatime", ""),
    ];
    for (set, yes, no) in flags {
        let word = if set { yes } else { no };
        if !word.is_empty() {
            push(&[word.as_bytes()]);
        }
    }
    OsString::from_vec(options)
}

/// fusermount3 splits at commas and takes a backslash before them as part of the value.
fn escape(value: &[u8]) -> Vec<u8> {
    let special = |byte: u8| matches!(byte, b',' | b'\\');
    value
        .iter()
        .flat_map(|&byte| special(byte).then_some(b'\\').into_iter().chain([byte]))
        .collect()
}

fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines()
        .next()
        .unwrap_or("fusermount3 failed")
        .trim()
        .to_owned()
}

fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn attributes(parameters: &Parameters) -> u64 {
    let flags = [
        (parameters.read_only, libc::MOUNT_ATTR_RDONLY),
        (!parameters.suid, libc::MOUNT_ATTR_NOSUID),
        (!parameters.dev, libc::MOUNT_ATTR_NODEV),
        (!parameters.exec, libc::MOUNT_ATTR_NOEXEC),
        (parameters.noatime, libc::MOUNT_ATTR_NOATIME),
    ];
    flags
        .iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, flag)| all | flag)
}

fn fsopen(fs_type: &CStr) -> Result<OwnedFd, MountError> {
    // SAFETY: the argument is a C string.
    let fd = unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), libc::FSOPEN_CLOEXEC) };
    owned(fd).map_err(|errno| match errno {
        Errno::ENODEV => MountError::UnknownType(fs_type.to_string_lossy().into_owned()),
        errno => MountError::Step {
            step: "fsopen".into(),
            reason: errno.desc().into(),
            errno,
        },
    })
}

/// Changes nothing of a mounted file system; `root` is where it begins.
///
/// # Errors
/// Those of fspick(2) and fsconfig(2): `EPERM` without the privilege to mount.
pub(super) fn reconfigure(root: BorrowedFd<'_>) -> Result<(), Errno> {
    const FSPICK_CLOEXEC: libc::c_uint = 1;
    const FSPICK_EMPTY_PATH: libc::c_uint = 8;
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the descriptor is open, and the path is a constant C string.
    let fd = unsafe { libc::syscall(libc::SYS_fspick, root.as_raw_fd(), c"".as_ptr(), flags) };
    fsconfig(&owned(fd)?, libc::FSCONFIG_CMD_RECONFIGURE, None, None)
}

fn fsconfig(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are C strings or null, as the commands used here want them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    Errno::result(result).map(drop)
}

fn fsmount(context: &OwnedFd, attributes: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: scalars only.
    owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: a system call has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The error of one step, in the words of the file system where it left any on its context.
fn step(context: &OwnedFd, what: &CStr, errno: Errno) -> MountError {
    let mut words = String::new();
    if let Ok(fd) = context.try_clone() {
        let mut log = std::fs::File::from(fd);
        let mut line = [0; 512];
        // One message a read, errors first letter `e`; ENODATA behind the last.
        while let Ok(length) = log.read(&mut line) {
            if let Some(message) = line[..length].strip_prefix(b"e ") {
                words = String::from_utf8_lossy(message).trim().to_owned();
            }
        }
    }
    let reason = if words.is_empty() {
        errno.desc().to_owned()
    } else {
        words
    };
    MountError::Step {
        step: what.to_string_lossy().into_owned(),
        reason,
        errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters {
            fsname: "/a,b\\c".into(),
            subtype: Some("extfuse".into()),
            uid: 1000,
            gid: 1000,
            default_permissions: true,
            allow_other: false,
            max_read: Some(4096),
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            noatime: true,
        }
    }

    #[test]
    fn fusermount_gets_commas_and_backslashes_escaped() {
        let options = fusermount_options(&parameters());
        let expected =
            r"fsname=/a\,b\\c,subtype=extfuse,max_read=4096,default_permissions,rw,nosuid,nodev,exec,noatime";
        assert_eq!(options, expected);
    }

    #[test]
    fn set_user_id_and_devices_are_off_unless_wanted() {
        let safe = attributes(&parameters());
        assert_eq!(
            safe,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOATIME
        );
        let open = attributes(&Parameters {
            suid: true,
            dev: true,
            noatime: false,
            ..parameters()
        });
        assert_eq!(open, 0);
    }
}
