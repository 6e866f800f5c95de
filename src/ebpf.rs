// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs, maps and the cache protocol.

pub mod backing;
pub mod cache;
pub mod context;
pub mod group;
pub mod maps;
pub mod object;
pub mod row;
pub mod stamps;
pub mod tables;

pub use backing::{Backing, BackingError, BackingOptions};
pub use cache::{Cache, Key, NodeIo, Snapshot, Validity};
pub use context::{Capacity, Context, Learning};
pub use group::Group;
pub use maps::Maps;
pub use object::{OBJECT_MAX, Object, ObjectError};
pub use row::{Absent, boot_time};
pub use stamps::Stamps;
