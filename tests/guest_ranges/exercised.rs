// SPDX-License-Identifier: MIT OR Apache-2.0
//! fsx on a mount whose reads are filled: from the node's own file, and from copies that the daemon makes
//! anew whenever a READ comes up.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use extfuse::abi::NodeId;
use extfuse::ebpf::{Backing, Stamps};

use crate::exerciser::{Mode, Run};
use crate::harness::Served;
use crate::kinds::{COPY, OWN};

const OPS: u64 = 600;
const DIR: &str = "EXTFUSE_RANGES_FSX_DIR";

/// A process of its own: one that serves a mount must not map its files.
#[test]
fn in_a_directory() {
    let dir = std::env::var_os(DIR).map_or_else(std::env::temp_dir, Into::into);
    for mode in Mode::ALL {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let run = Run {
            dir: dir.clone(),
            ops: OPS,
            seed,
            mode,
        };
        println!("{run}");
        run.run().unwrap_or_else(|error| panic!("{error}"));
    }
}

fn exercise(served: &Served) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "exercised::in_a_directory", "--nocapture"])
        .env(DIR, &served.at)
        .status()
        .unwrap();
    assert!(status.success());
    println!("{} filled, {} upcalls", served.filled(), served.upcalls());
}

#[test]
fn from_the_nodes_own_file() {
    let served = Served::new();
    let (device, stamps) = (
        Arc::clone(&served.device),
        Stamps::new(served.device.map_stamps().unwrap()),
    );
    let kept = Mutex::new(HashMap::new());
    *served.state.on_node.lock().unwrap() = Some(Arc::new(move |nodeid, node| {
        let at = stamps.snapshot();
        let backing = Backing::register(&device, NodeId(nodeid), &node.truth, OWN, 0..u64::MAX, at);
        kept.lock().unwrap().insert(nodeid, backing.unwrap());
    }));
    exercise(&served);
    assert_eq!(served.upcalls(), 0);
    assert!(served.filled() > 200);
}

#[test]
fn from_copies() {
    let served = Served::new();
    let (device, stamps) = (
        Arc::clone(&served.device),
        Stamps::new(served.device.map_stamps().unwrap()),
    );
    let (state, spools) = (Arc::downgrade(&served.state), served.spools.clone());
    let kept = Mutex::new(HashMap::new());
    served.on_read(move |nodeid, _| {
        let mut kept = kept.lock().unwrap();
        let node = state.upgrade().unwrap().node(nodeid).unwrap();
        let at = stamps.snapshot();
        let (spool, backing) = kept.entry(nodeid).or_insert_with(|| {
            let spool = tempfile::tempfile_in(&spools).unwrap();
            let backing = Backing::register(&device, NodeId(nodeid), &spool, COPY, 0..0, at).unwrap();
            (spool, backing)
        });
        backing.withdraw(0..u64::MAX).unwrap();
        let mut data = vec![0; node.truth.metadata().unwrap().len() as usize];
        let got = node.truth.read_at(&mut data, 0).unwrap();
        // Behind its end nothing may be seen.
        spool.set_len(0).unwrap();
        spool.write_all_at(&data[..got], 0).unwrap();
        spool.write_all_at(&[0xdd; 5000], got as u64).unwrap();
        // Somebody may be writing already: then it is no copy.
        let _stale = backing.extend(0..got as u64, at);
        None
    });
    exercise(&served);
    assert!(served.filled() > 100 && served.upcalls() > 100);
}
