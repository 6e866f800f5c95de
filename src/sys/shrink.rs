// SPDX-License-Identifier: MIT OR Apache-2.0
//! Having the kernel forget what nobody uses.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::mount::reconfigure;
use super::mountinfo::{MountId, Whereabouts};

/// How often, at most: what is in use is not given up, however often it is asked for.
const PAUSE: Duration = Duration::from_secs(1);

/// Has the kernel give up the names of a mounted file system that nobody uses, with their inodes: it is what a change of a
/// mount's options does, and here none is changed. Needs the privilege to mount.
#[derive(Debug)]
pub struct Shrinker {
    mount: MountId,
    busy: AtomicBool,
}

impl Shrinker {
    /// Of this mount, as long as it can be seen.
    #[must_use]
    pub fn new(mount: MountId) -> Arc<Self> {
        Arc::new(Self {
            mount,
            busy: AtomicBool::new(false),
        })
    }

    /// In the background, unless it has just been done. The file system hears FORGET of what is given up, and has to
    /// answer WRITEs of pages that are dirty.
    pub fn start(self: &Arc<Self>) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        let shrink = move || {
            if let Err(error) = this.shrink() {
                tracing::debug!("the kernel forgets nothing: {error}");
            }
            thread::sleep(PAUSE);
            this.busy.store(false, Ordering::Release);
        };
        let thread = thread::Builder::new().name("shrink".into()).spawn(shrink);
        if let Err(error) = thread {
            tracing::debug!("the kernel is not asked to forget: {error}");
            self.busy.store(false, Ordering::Release);
        }
    }

    fn shrink(&self) -> io::Result<()> {
        match self.mount.find()? {
            Whereabouts::At(location) => Ok(reconfigure(location.as_fd())?),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
