// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse umount`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use extfuse::session::{Outcome, Unmounter};
use extfuse::sys::mountinfo::Location;
use extfuse::sys::process::{Capability, has_capability};
use nix::unistd::geteuid;

use super::Failure;

/// End a mount, whether its daemon lives or not.
#[derive(Debug, Args)]
pub struct Umount {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Take it off even if it is in use; it ends with its last user
    #[arg(short = 'z', long)]
    lazy: bool,
}

impl Umount {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let path = self.mountpoint.display();
        let location = find(&self.mountpoint)?;
        let (id, owner) = (location.id, location.mount.owner());
        // An open descriptor is a use.
        drop(location);
        let privileged = has_capability(Capability::SysAdmin);
        let user = geteuid().as_raw();
        if let Some(owner) = owner
            && !privileged
            && owner != user
        {
            return Err(anyhow::anyhow!("{path} belongs to uid {owner}, not to you (uid {user})").into());
        }
        let unmounter = Unmounter::new(id, privileged);
        let cannot = || format!("cannot unmount {path}");
        if self.lazy {
            unmounter.detach().with_context(cannot)?;
        } else if unmounter.unmount().with_context(cannot)? == Outcome::Busy {
            return Err(
                anyhow::anyhow!("{path} is in use (fuser -vm shows by whom; --lazy does not wait)").into(),
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The extfuse mount at `path`. Its daemon is not asked anything, it may be dead or hang.
pub fn find(path: &Path) -> anyhow::Result<Location> {
    let location = Location::of(path).map_err(|error| match error.raw_os_error() {
        Some(errno) => anyhow::anyhow!(
            "{}: {}",
            path.display(),
            nix::errno::Errno::from_raw(errno).desc()
        ),
        None => anyhow::anyhow!("{}: {error}", path.display()),
    })?;
    if !location.is_mount_point() {
        bail!("{} is not a mount point", path.display());
    }
    if !location.mount.is_ours() {
        bail!(
            "{} is not an extfuse mount, but {}",
            path.display(),
            location.mount.fs_type
        );
    }
    Ok(location)
}
