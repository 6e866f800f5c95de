// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line to a server, over which things happen to what is said.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use extfuse::remote::Address;

/// A line to a server, which may stand still or break.
pub struct Link {
    address: Address,
    state: Arc<Line>,
}

#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: bool,
    /// Only what the server says.
    muted: bool,
    over: bool,
    streams: Vec<TcpStream>,
}

impl Link {
    pub fn to(server: &Address) -> Self {
        let Address::Tcp(server) = server.clone() else {
            unreachable!()
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let state = Arc::new(Line::default());
        let line = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), false) = (client, line.state.lock().unwrap().over) else {
                    return;
                };
                // A server that is not there takes nobody.
                let Ok(server) = TcpStream::connect(&server) else {
                    continue;
                };
                for (from, to, says) in [(&client, &server, false), (&server, &client, true)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let line = Arc::clone(&line);
                    thread::spawn(move || line.pump(from, to, says));
                }
                line.state.lock().unwrap().streams.extend([client, server]);
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// Nothing arrives any more, and nobody is told so.
    pub fn hold(&self) {
        self.state.state.lock().unwrap().held = true;
    }

    /// Nothing that the server says arrives any more.
    pub fn mute(&self) {
        self.state.state.lock().unwrap().muted = true;
    }

    /// What was under way arrives.
    pub fn go_on(&self) {
        let mut state = self.state.state.lock().unwrap();
        (state.held, state.muted) = (false, false);
        drop(state);
        self.state.changed.notify_all();
    }

    /// All connections break.
    pub fn cut(&self) {
        for stream in self.state.state.lock().unwrap().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.state.lock().unwrap().over = true;
        self.go_on();
        self.cut();
        if let Address::Tcp(address) = &self.address {
            let _ = TcpStream::connect(address);
        }
    }
}

impl Line {
    /// `says`: from the server.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, says: bool) {
        let mut buffer = [0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let held = |state: &mut State| state.held || says && state.muted;
            drop(self.changed.wait_while(self.state.lock().unwrap(), held).unwrap());
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
