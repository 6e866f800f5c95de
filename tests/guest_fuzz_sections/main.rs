// SPDX-License-Identifier: MIT OR Apache-2.0
//! Daemons that use the sections at random, rightly, half rightly and wrongly, while applications read and
//! write, are killed, and signals hit anybody. Whatever they do, what an application sees are the file's own
//! bytes, or zeros, or an error; what a program at the gate has refused nobody sees; nobody hangs; and
//! nothing is left.
//!
//! `EXTFUSE_SEED` repeats the choices (not how threads meet); `EXTFUSE_FUZZ_SECONDS` says for how long.

#[path = "../common/mod.rs"]
mod common;
#[path = "../guest_sections/frames.rs"]
#[allow(dead_code)]
mod frames;
#[path = "../common/guest.rs"]
mod guest;
#[path = "../guest_sections/harness.rs"]
#[allow(dead_code)]
mod harness;
#[path = "../guest_sections/program.rs"]
#[allow(dead_code)]
mod program;
#[path = "../guest_sections/wires.rs"]
#[allow(dead_code)]
mod wires;

mod applications;
mod daemons;
mod gate;
mod receivers;
mod signals;
mod sources;
mod wild;
mod world;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest::{Random, seed};
use harness::{Read, Served, remove_and_load_the_module};
use world::World;

const SIZE: u64 = 8 << 20;
const DAEMONS: u64 = 3;
/// The first of them writes.
const APPLICATIONS: u64 = 4;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A thread of the world, with choices of its own.
fn start(
    world: &Arc<World>,
    random: Random,
    what: impl FnOnce(&World, Random) + Send + 'static,
) -> JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || what(&world, random))
}

/// For half of the time that the tests have.
fn at_random(gated: bool) {
    let seed = seed();
    let time = guest::seconds("EXTFUSE_FUZZ_SECONDS", 120, 3600) / 2;
    signals::do_nothing();
    // What is loaded at the first use takes its time, which is not to look like a hang.
    drop(wires::tls());
    assert!(
        applications::dd(Path::new("/dev/null"), Stdio::null(), &[])
            .status()
            .unwrap()
            .success()
    );
    let before = descriptors();
    let served = Served::new(SIZE);
    let world = Arc::new(World::new(&served, gated, APPLICATIONS));
    let random = |nr: u64| Random(seed.wrapping_add(nr << 32));
    let (daemons, to): (Vec<_>, Vec<Sender<Read>>) = (0..DAEMONS)
        .map(|nr| {
            let (sender, reads) = channel();
            let thread = start(&world, random(nr), move |world, random| {
                daemons::daemon(world, &reads, random);
            });
            (thread, sender)
        })
        .unzip();
    let (to_drain, writes) = channel();
    let draining = start(&world, random(20), move |world, random| {
        receivers::daemon(world, &writes, random);
    });
    let mut users: Vec<_> = (0..APPLICATIONS)
        .map(|nr| {
            let at = served.at.clone();
            start(&world, random(10 + nr), move |world, random| {
                applications::application(world, nr as usize, &at, random);
            })
        })
        .collect();
    let at = served.at.clone();
    users.push(start(&world, random(31), move |world, random| {
        applications::kill_some(world, &at, random);
    }));
    users.push(start(&world, random(32), signals::send_some));
    if gated {
        let conn = served.conn;
        users.push(start(&world, random(33), move |world, random| {
            gate::come_and_go(world, conn, random);
        }));
    }

    let mut random = random(30);
    while !users.iter().all(JoinHandle::is_finished) {
        if world.began.elapsed() > time {
            world.stop.store(true, Ordering::Relaxed);
        }
        if let Some(read) = served.try_read() {
            drop(to[random.below(DAEMONS) as usize].send(read));
        }
        if let Some(write) = served.try_write() {
            drop(to_drain.send(write));
        }
        let dead = |thread: &JoinHandle<()>| thread.is_finished();
        assert!(
            !daemons.iter().any(dead) && !dead(&draining),
            "a daemon has found something"
        );
        world.assert_nobody_hangs();
    }
    drop((to, to_drain));
    for thread in users.into_iter().chain(daemons).chain([draining]) {
        harness::within(thread, Duration::from_secs(30));
    }
    world.assert_all_happened();
    drop((world, served));
    // Threads that fed sockets may need a moment.
    common::eventually(|| descriptors() <= before);
    remove_and_load_the_module();
}

#[test]
fn sections_at_random() {
    at_random(false);
}

#[test]
fn sections_at_random_behind_a_gate_that_comes_and_goes() {
    at_random(true);
}
