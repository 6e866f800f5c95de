// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program at the gate, now and then.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::guest::Random;
use crate::program::Gate;
use crate::world::World;

pub fn come_and_go(world: &World, conn: u64, mut random: Random) {
    let mut gate = Gate::loaded(conn);
    while world.goes_on() {
        gate.attach();
        world.attached.fetch_add(1, Ordering::SeqCst);
        world.count("attach", 0);
        thread::sleep(Duration::from_millis(random.below(400)));
        world.attached.fetch_add(1, Ordering::SeqCst);
        gate.detach();
        thread::sleep(Duration::from_millis(random.below(150)));
    }
    assert!(gate.seen().asked > 0, "it was never asked");
    assert_eq!(world.device.status().unwrap().errors, 0);
}
