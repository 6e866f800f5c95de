// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounting a file system that answers through a [`Channel`].

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use fuser::{Filesystem, SessionACL};

use super::channel::{Channel, ChannelError, WITHHOLD_FROM};
use crate::ebpf::Object;
use crate::session::connection::{Connection, Fuse, show};
use crate::session::place::target_at;
use crate::session::{Guard, SessionError, Unmounter};
use crate::sys::lent::Lent;
use crate::sys::mount::Parameters;

/// What to mount, and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the mount table shows as the source.
    pub fsname: OsString,
    /// What it shows behind the type.
    pub subtype: Option<String>,
    /// Use stock FUSE even where the module is loaded.
    pub stock: bool,
    /// Do not do without the module.
    pub require_module: bool,
    /// WRITEs come without their payload, where the module is. See [`Channel::withholding`] for those of some
    /// open files.
    pub withhold: bool,
    /// Those of so many bytes and more.
    pub withhold_from: u32,
    /// A program that accepts or refuses frames in the kernel, where that can be: see
    /// [`Channel::with_gate`].
    pub gate: Option<Object>,
    /// Users other than the owner may use it. None: if the owner has the privilege to mount.
    pub allow_other: Option<bool>,
    /// No changes.
    pub read_only: bool,
    /// The largest READ, in bytes.
    pub max_read: Option<u32>,
    /// How many threads answer requests.
    pub threads: usize,
    /// How long an answer may take to come from its sources.
    pub timeout: Duration,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            fsname: "extfuse".into(),
            subtype: None,
            stock: false,
            require_module: false,
            withhold: false,
            withhold_from: WITHHOLD_FROM,
            gate: None,
            allow_other: None,
            read_only: false,
            max_read: None,
            // They wait for sources.
            threads: 4,
            timeout: Duration::from_secs(30),
        }
    }
}

/// A mounted file system, waiting to be served. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted<FS: Filesystem> {
    engine: Option<fuser::Session<FS>>,
    channel: Channel,
    /// The descriptor that fuser has.
    device: Option<Lent>,
    keeps_replies: bool,
    guard: Guard,
}

/// Mounts the file system that `make` gives. INIT has been answered then, requests wait for
/// [`Mounted::serve`].
///
/// # Errors
///
/// See [`SessionError`]; nothing is mounted then.
pub fn mount<FS: Filesystem>(
    mountpoint: impl AsRef<Path>,
    options: &MountOptions,
    make: impl FnOnce(Channel) -> FS,
) -> Result<Mounted<FS>, SessionError> {
    let target = target_at(mountpoint.as_ref())?;
    let fuse = Fuse::choose(options.stock, options.require_module)?;
    let parameters = Parameters {
        max_read: options.max_read,
        read_only: options.read_only,
        ..fuse.parameters(
            options.fsname.clone(),
            options.subtype.clone(),
            options.allow_other,
        )
    };
    // An error unmounts.
    let Connection {
        device,
        detached,
        guard,
    } = fuse.connect(&target, &parameters)?;
    let mut mounted = Mounted {
        engine: None,
        channel: channel(&device, options)?,
        device: Some(Lent::of(&device)),
        keeps_replies: true,
        guard,
    };
    let mut config = fuser::Config::default();
    config.n_threads = Some(options.threads.max(1));
    // The kernel has decided already who may ask.
    let engine = fuser::Session::from_fd(make(mounted.channel.clone()), device, SessionACL::All, config)
        .map_err(SessionError::Handshake)?;
    mounted.engine = Some(engine);
    show(detached, &target)?;
    Ok(mounted)
}

impl<FS: Filesystem> Mounted<FS> {
    /// Ends the mount, from whatever thread.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.guard.unmounter()
    }

    /// What the file system answers through.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The file system answers every request before its method returns, so that the number of the device
    /// can be given back at the end. Without, and after an answer in one call ([`Way::Splice`],
    /// [`Way::FillCommit`]), a descriptor stays that nobody can do anything with: a reply may still
    /// be somewhere that has its number.
    ///
    /// # Safety
    ///
    /// Nothing of fuser's that the file system was given (replies, [`fuser::Notifier`], [`fuser::BackingId`])
    /// outlives it.
    ///
    /// [`Way::Splice`]: super::Way::Splice
    /// [`Way::FillCommit`]: super::Way::FillCommit
    #[must_use]
    pub unsafe fn keeps_no_reply(mut self) -> Self {
        self.keeps_replies = false;
        self
    }

    /// Answers requests until the file system is unmounted.
    ///
    /// # Errors
    ///
    /// If the connection was aborted, or the mount could not be taken off in the end.
    pub fn serve(mut self) -> Result<(), SessionError> {
        let Some(engine) = self.engine.take() else {
            return Ok(());
        };
        let served = engine.run();
        // fuser waits for all of its threads before it says one of these.
        let joined = match &served {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::ECONNABORTED),
        };
        let aborted = self.guard.unmounter().is_mounted();
        self.give_back(joined);
        self.guard.release()?;
        match served {
            Ok(()) if aborted => Err(SessionError::Aborted),
            Err(_) if joined => Err(SessionError::Aborted),
            Err(error) => Err(SessionError::Loop(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Closes the device for fuser, if a forgotten reply keeps it from doing that itself.
    fn give_back(&mut self, joined: bool) {
        let Some(device) = self
            .device
            .take()
            .filter(|_| self.channel.answered_in_one_call() > 0)
        else {
            return;
        };
        if joined && !self.keeps_replies {
            // SAFETY: a reply that was forgotten holds a count of fuser's device, so it has not been closed,
            // and never will be. Those who had the other counts are gone: fuser's threads have ended,
            // its session with them, and the file system keeps nothing (keeps_no_reply()).
            unsafe { device.close() }
        } else {
            // SAFETY: it has not been closed, as above.
            if let Err(error) = unsafe { device.disable() } {
                tracing::warn!("the device stays open: {error}");
            }
        }
    }
}

fn channel(device: &OwnedFd, options: &MountOptions) -> Result<Channel, SessionError> {
    let withhold = options.withhold.then_some(options.withhold_from);
    let timeout = options.timeout;
    let Some(gate) = &options.gate else {
        return Channel::new(device, withhold, timeout).map_err(SessionError::Handshake);
    };
    let channel = Channel::with_gate(device, withhold, timeout, gate).map_err(|error| match error {
        ChannelError::Device(error) => SessionError::Handshake(error),
        ChannelError::Gate(error) => SessionError::NoHandlers(error.into()),
    })?;
    if options.require_module && !channel.has_gate() {
        return Err(SessionError::NoModule("no program can be attached here".into()));
    }
    Ok(channel)
}
