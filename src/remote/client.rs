// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end that mounts the directory: [`Connection`] asks, and [`Remote`] is what the kernel sees of it.

mod calls;
mod connection;
mod data;
mod epoch;
mod figures;
mod filesystem;
mod greeting;
mod keeper;
mod kept;
mod line;
mod locks;
mod opens;
mod questions;
mod room;
mod spool;
mod writeback;

pub use self::connection::{About, Answer, Connection};
pub(crate) use self::data::{Outcome, Question};
pub use self::filesystem::Remote;
pub use self::greeting::{ConnectError, Disconnected, Target};
pub use self::locks::Pages;
pub(crate) use self::spool::SHARE as SPOOL_SHARE;
pub use self::spool::{Place, Spool, SpoolError, SpoolOptions};
