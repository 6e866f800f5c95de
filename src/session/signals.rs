// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals that end a mount.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Outcome, SessionError, UnmountError, Unmounter};

/// From here on SIGINT, SIGTERM and SIGHUP unmount; a mount in use is detached and served until its last
/// user is gone ([`Outcome::Busy`]). A second signal ends the process, with errors for those users. `tell`
/// hears, in a thread of its own, how the first one ended.
///
/// # Errors
///
/// If the process handles signals in this way already.
pub fn unmount_on_signals(
    unmounter: Unmounter,
    tell: impl Fn(Result<Outcome, UnmountError>) + Clone + Send + 'static,
) -> Result<(), SessionError> {
    let signalled = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if signalled.swap(true, Ordering::Relaxed) {
            // The kernel takes the device away, and fails what was waiting.
            std::process::exit(1);
        }
        let tell = tell.clone();
        // In a thread: a second signal must be heard while unmounting takes its time.
        std::thread::spawn(move || tell(end(unmounter)));
    })?;
    Ok(())
}

fn end(unmounter: Unmounter) -> Result<Outcome, UnmountError> {
    let outcome = unmounter.unmount()?;
    if outcome == Outcome::Busy {
        unmounter.detach()?;
    }
    Ok(outcome)
}
