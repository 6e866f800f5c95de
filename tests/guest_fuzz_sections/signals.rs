// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals that do nothing but interrupt.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::guest::Random;
use crate::world::World;

/// SIGUSR1 has a handler, after which no system call is begun again by itself.
pub fn do_nothing() {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: a handler that does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
}

pub fn send_some(world: &World, mut random: Random) {
    let process = std::process::id();
    while world.goes_on() {
        thread::sleep(Duration::from_micros(random.below(4_000)));
        if let Some(thread) = world.one_to_hit(&mut random) {
            // SAFETY: no memory is involved; a thread that has ended is not found.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread.as_raw(), libc::SIGUSR1) };
            world.count("signal", sent as i32);
        }
    }
}
