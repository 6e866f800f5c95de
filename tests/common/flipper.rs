// SPDX-License-Identifier: MIT OR Apache-2.0
//! A way to a server on which a bit is changed now and then.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Between a socket of ours and the server's. What the server sends has one bit changed every `every` bytes.
pub struct Flipper {
    flipped: Arc<AtomicU64>,
}

impl Flipper {
    pub fn new(here: &Path, server: &Path, every: u64) -> Self {
        let listener = UnixListener::bind(here).unwrap();
        let flipped = Arc::new(AtomicU64::new(0));
        let (server, count) = (server.to_owned(), Arc::clone(&flipped));
        let passed = Arc::new(AtomicU64::new(0));
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = UnixStream::connect(&server) else {
                    return;
                };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(from, to, |_| {}));
                let (passed, count) = (Arc::clone(&passed), Arc::clone(&count));
                thread::spawn(move || {
                    pass(server, client, |bytes| {
                        let before = passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        let at = (every - before % every) as usize;
                        if let Some(byte) = bytes.get_mut(at - 1) {
                            *byte ^= 1 << (before % 8);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                });
            }
        });
        Self { flipped }
    }

    /// How many bits were changed.
    pub fn flipped(&self) -> u64 {
        self.flipped.load(Ordering::Relaxed)
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, mut change: impl FnMut(&mut [u8])) {
    let mut bytes = vec![0; 32 << 10];
    while let Ok(n) = from.read(&mut bytes) {
        change(&mut bytes[..n]);
        if n == 0 || to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    // Whoever is still there is told.
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}
