// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program at the gate (`gate.bpf.c`), and frames as it wants them.

use std::mem::MaybeUninit;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};

use crate::harness::{Frame, Served, crc32c};

#[allow(
    dead_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    unused_qualifications,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/gate.skel.rs"));
}

use skeleton::types::bss as Seen;
use skeleton::{GateSkel, GateSkelBuilder};

/// The program, loaded for a mount.
pub struct Gate {
    skeleton: GateSkel<'static>,
    link: Option<Link>,
}

impl Gate {
    /// Attached.
    pub fn at(served: &Served) -> Self {
        let mut gate = Self::loaded(served.conn);
        gate.attach();
        gate
    }

    /// For the connection `conn`, and not attached yet.
    pub fn loaded(conn: u64) -> Self {
        // One a test process: the object has to outlive its skeleton.
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = GateSkelBuilder::default().open(storage).unwrap();
        // SAFETY: it lives in the shadow value of `open`.
        let ops: &mut skeleton::types::extfuse_ops = unsafe { &mut *(open.struct_ops.gate_mut() as *mut _) };
        ops.conn = conn;
        Self {
            skeleton: open.load().unwrap(),
            link: None,
        }
    }

    pub fn attach(&mut self) {
        self.link = Some(self.skeleton.maps.gate.attach_struct_ops().unwrap());
    }

    /// At once: closing the link does it only when nobody else has it open, not even a process that is
    /// being started.
    pub fn detach(&mut self) {
        if let Some(link) = self.link.take() {
            link.detach().unwrap();
        }
    }

    pub fn tell(&mut self, how: impl FnOnce(&mut Seen)) {
        how(self.skeleton.maps.bss_data.as_deref_mut().unwrap());
    }

    pub fn seen(&self) -> &Seen {
        self.skeleton.maps.bss_data.as_deref().unwrap()
    }
}

/// A frame whose header and footer say of what is between them what the program wants to read there. The
/// header has 8 bytes or more, the footer 4.
pub fn seal(frame: &mut Frame, nodeid: u64) {
    let crc = crc32c(&frame.payload).to_le_bytes();
    frame.header[..8].copy_from_slice(&nodeid.to_le_bytes());
    let at = frame.footer.len() - crc.len();
    frame.footer[at..].copy_from_slice(&crc);
}
