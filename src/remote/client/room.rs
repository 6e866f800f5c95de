// SPDX-License-Identifier: MIT OR Apache-2.0
//! What takes a descriptor of the server's, which may have none for us.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::questions::Result;
use crate::Kernel;

/// How long it may take until there is room again on the server, and how soon that is looked at.
const ROOM: Duration = Duration::from_secs(3);
const BREATH: Duration = Duration::from_millis(50);

/// The answer to it. If there is no room the server has done nothing, and is asked again when this kernel has forgotten
/// what nobody uses.
pub fn with_room<T>(kernel: &Kernel, ask: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + ROOM;
    loop {
        match ask() {
            Err(Errno::ENFILE) if kernel.forget_unused() && Instant::now() < deadline => {}
            asked => return asked,
        }
        thread::sleep(BREATH);
    }
}
