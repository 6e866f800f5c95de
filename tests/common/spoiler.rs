// SPDX-License-Identifier: MIT OR Apache-2.0
//! A way to a server on which answers to READs are spoiled, as many as wanted.

// Every test program uses a part of it.
#![allow(dead_code)]

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use extfuse::remote::wire::{Header, Kind};
use extfuse::remote::{Address, Stream};

/// Bytes of a header and of a footer, as nobody has asked for other sizes.
const FRAMING: usize = 102;

/// From how many bytes on an answer is spoiled: none that goes with something else.
const FROM: u32 = 4096;

/// What happens to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// A bit of its payload is another one.
    Flip,
    /// The connection breaks in the middle of its payload.
    Cut,
}

type Hook = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct State {
    how: Mutex<Option<Spoil>>,
    left: AtomicU32,
    seen: AtomicU32,
    refuses: AtomicBool,
    hook: Mutex<Option<Hook>>,
}

/// Between clients and a server that neither speaks TLS nor has a token.
pub struct Spoiler {
    address: Address,
    state: Arc<State>,
}

impl Spoiler {
    /// Clients come over TCP.
    pub fn tcp(server: &Address) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        Self::over(address, server, move || Ok(Stream::Tcp(listener.accept()?.0)))
    }

    /// Clients come over a socket that is made here.
    pub fn unix(here: &Path, server: &Address) -> Self {
        let listener = UnixListener::bind(here).unwrap();
        let address = Address::Unix(here.to_owned());
        Self::over(address, server, move || Ok(Stream::Unix(listener.accept()?.0)))
    }

    fn over(
        address: Address,
        server: &Address,
        accept: impl Fn() -> io::Result<Stream> + Send + 'static,
    ) -> Self {
        let state = Arc::new(State::default());
        let (shared, server) = (Arc::clone(&state), server.clone());
        thread::spawn(move || {
            while let Ok(client) = accept() {
                let connected = match shared.refuses.load(Ordering::SeqCst) {
                    false => server.connect(Duration::from_secs(10)),
                    true => Err(io::ErrorKind::ConnectionRefused.into()),
                };
                let Ok(server) = connected else { continue };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(&from, &to));
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    // Whoever is still there is told.
                    let _ = state.answers(&server, &client);
                    let _ = client.shutdown();
                    let _ = server.shutdown();
                });
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn url(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!("extfuse+unix:{}", path.display()),
            address => format!("extfuse://{address}"),
        }
    }

    /// From now on so many answers are spoiled.
    pub fn spoil(&self, how: Spoil, times: u32) {
        *self.state.how.lock().unwrap() = Some(how);
        self.state.seen.store(0, Ordering::SeqCst);
        self.state.left.store(times, Ordering::SeqCst);
    }

    /// Answers that came since then.
    pub fn seen(&self) -> u32 {
        self.state.seen.load(Ordering::SeqCst)
    }

    /// To say whether nobody who comes is led to the server.
    pub fn refusing(&self) -> impl Fn(bool) + Send + use<> {
        let state = Arc::clone(&self.state);
        move |refuses| state.refuses.store(refuses, Ordering::SeqCst)
    }

    /// Done before each answer that is spoiled is passed on.
    pub fn before(&self, hook: impl FnMut() + Send + 'static) {
        *self.state.hook.lock().unwrap() = Some(Box::new(hook));
    }
}

fn pass(mut from: &Stream, mut to: &Stream) {
    let mut bytes = vec![0; 32 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown();
    let _ = from.shutdown();
}

impl State {
    /// Whether this one is to be spoiled, and how.
    fn next(&self, header: &Header) -> Option<Spoil> {
        if header.kind != Kind::Read || header.length < FROM {
            return None;
        }
        self.seen.fetch_add(1, Ordering::SeqCst);
        let left = |left: u32| left.checked_sub(1);
        let more = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        more.ok()?;
        if let Some(hook) = &mut *self.hook.lock().unwrap() {
            hook();
        }
        *self.how.lock().unwrap()
    }

    fn answers(&self, mut server: &Stream, mut client: &Stream) -> io::Result<()> {
        loop {
            let mut frame = vec![0; FRAMING];
            server.read_exact(&mut frame)?;
            let header = Header::decode(&frame).map_err(io::Error::other)?;
            let length = header.length as usize;
            frame.resize(FRAMING + length + FRAMING, 0);
            server.read_exact(&mut frame[FRAMING..])?;
            match self.next(&header) {
                None => {}
                Some(Spoil::Flip) => frame[FRAMING + length / 2] ^= 1,
                Some(Spoil::Cut) => return client.write_all(&frame[..FRAMING + length / 2]),
            }
            client.write_all(&frame)?;
        }
    }
}
