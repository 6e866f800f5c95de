// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a mount point to a FUSE file system whose INIT waits for an answer.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};

use super::{Guard, SessionError};
use crate::sys::mount::{Detached, Flavor, MountError, Parameters, fusermount};
use crate::sys::mountinfo::Location;
use crate::sys::process::{Capability, has_capability};

/// Which FUSE is to serve a mount, with its device open.
#[derive(Debug)]
pub(crate) struct Fuse {
    flavor: Flavor,
    /// None where `fusermount3` opens it.
    device: Option<OwnedFd>,
    privileged: bool,
    lacking: Option<String>,
}

/// A FUSE file system that exists. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What the daemon answers through.
    pub device: OwnedFd,
    /// If nobody can see it yet.
    pub detached: Option<Detached>,
    /// Takes it off in the end.
    pub guard: Guard,
}

impl Fuse {
    /// The module if it can be used, and is not refused (`stock`).
    ///
    /// # Errors
    ///
    /// If it cannot be used and is required, and if there is no device at all.
    pub fn choose(stock: bool, require_module: bool) -> Result<Self, SessionError> {
        let privileged = has_capability(Capability::SysAdmin);
        let mut lacking = None;
        if !stock {
            match extfuse_device(privileged) {
                Ok(device) => {
                    return Ok(Self {
                        flavor: Flavor::Extfuse,
                        device: Some(device),
                        privileged,
                        lacking,
                    });
                }
                Err(reason) if require_module => return Err(SessionError::NoModule(reason)),
                Err(reason) => lacking = Some(reason),
            }
        }
        let device = privileged.then(|| open(Flavor::Stock)).transpose()?;
        Ok(Self {
            flavor: Flavor::Stock,
            device,
            privileged,
            lacking,
        })
    }

    /// Which it is.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Whether this process mounts by itself.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// Whether the mount is visible before INIT is answered: what the daemon needs of the place below has
    /// to be opened before.
    pub fn shows_at_once(&self) -> bool {
        self.device.is_none()
    }

    /// Why it is not the module, if that was not asked for.
    pub fn lacking(&self) -> Option<&str> {
        self.lacking.as_deref()
    }

    /// What a mount is told: permissions are the kernel's to check, set-user-id bits and devices do not
    /// count, and only root's mounts are for everybody, if nothing else is said.
    pub fn parameters(
        &self,
        fsname: OsString,
        subtype: Option<String>,
        allow_other: Option<bool>,
    ) -> Parameters {
        let stock = (self.flavor == Flavor::Stock).then(|| "extfuse".to_owned());
        Parameters {
            fsname,
            subtype: subtype.or(stock),
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            default_permissions: true,
            allow_other: allow_other.unwrap_or(self.privileged),
            max_read: None,
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            noatime: true,
        }
    }

    /// Makes the file system.
    pub fn connect(self, target: &Location, parameters: &Parameters) -> Result<Connection, SessionError> {
        let Some(device) = self.device else {
            let device = fusermount(&target.path, parameters)?;
            let mount = Location::of(&target.path).map_err(SessionError::Lost)?.id;
            return Ok(Connection {
                device,
                detached: None,
                guard: Guard::new(mount, false),
            });
        };
        let detached = Detached::create(self.flavor, device.as_fd(), parameters)?;
        Ok(Connection {
            guard: Guard::new(detached.id(), true),
            device,
            detached: Some(detached),
        })
    }
}

/// Makes a file system visible, if it is not yet.
pub(crate) fn show(detached: Option<Detached>, target: &Location) -> Result<(), MountError> {
    detached.map_or(Ok(()), |detached| detached.attach(target))
}

/// Opens the module's device, or says in a few words why it cannot be used.
fn extfuse_device(privileged: bool) -> Result<OwnedFd, String> {
    match open(Flavor::Extfuse) {
        Ok(_) if !privileged => Err("mounting extfuse needs CAP_SYS_ADMIN".into()),
        Ok(device) => Ok(device),
        Err(SessionError::Device {
            errno: Errno::ENOENT | Errno::ENODEV | Errno::ENXIO,
            ..
        }) => Err("the extfuse module is not loaded".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn open(flavor: Flavor) -> Result<OwnedFd, SessionError> {
    let path = flavor.device();
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(OwnedFd::from).map_err(|error| SessionError::Device {
        path,
        errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
    })
}
