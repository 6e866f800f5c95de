// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory of another machine: what its server and those who mount it say to each other ([`wire`]), and
//! both of them ([`server`], [`client`]).

pub mod address;
mod bare;
pub mod client;
mod greeting;
pub mod server;
pub mod tls;
pub mod wire;

pub use self::address::{Address, Stream};
