// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rows as BPF maps keep them: elements that are written and read word by word, and used again for
//! another key as soon as they are replaced.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use plain::Plain;

use crate::abi::{AttrRow, EntryKey, EntryRow, NodeId, Wire};
use crate::ebpf::tables::Tables;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Words of an element: an attribute row, or an entry row with a name of up to 72 bytes.
const WORDS: usize = size_of::<AttrRow>() / 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Entry(u64, u64),
    Attr(u64),
}

#[derive(Debug, Default)]
struct Index {
    used: HashMap<Key, usize>,
    /// The one freed last is taken first.
    free: Vec<usize>,
    /// The rows themselves, with [`Grain::Rows`].
    whole: Vec<Vec<u8>>,
}

impl Index {
    fn put(&mut self, key: Key, element: usize) {
        if let Some(old) = self.used.insert(key, element) {
            self.free.push(old);
        }
    }
}

/// How finely the accesses to a row interleave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// As they do in the kernel.
    Words,
    /// Not at all: fewer interleavings, for what does not depend on it.
    Rows,
}

#[derive(Debug)]
pub struct Elements {
    grain: Grain,
    memory: Vec<Vec<AtomicU64>>,
    index: Mutex<Index>,
}

impl Elements {
    /// Room for so many keys, and for as many writers at once.
    pub fn new(keys: usize, grain: Grain) -> Self {
        let elements = keys + 3;
        let words = if grain == Grain::Words { WORDS } else { 0 };
        Self {
            grain,
            memory: (0..elements)
                .map(|_| (0..words).map(|_| AtomicU64::new(0)).collect())
                .collect(),
            index: Mutex::new(Index {
                used: HashMap::new(),
                free: (0..elements).rev().collect(),
                whole: vec![Vec::new(); elements],
            }),
        }
    }

    fn write(&self, key: Key, bytes: &[u8]) {
        let element = {
            let mut index = self.index.lock().unwrap();
            let element = index.free.pop().expect("an element for each writer");
            if self.grain == Grain::Rows {
                index.whole[element] = bytes.to_vec();
                index.put(key, element);
                return;
            }
            element
        };
        for (word, bytes) in self.memory[element].iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(bytes.try_into().unwrap()), Ordering::SeqCst);
        }
        self.index.lock().unwrap().put(key, element);
    }

    fn read<T: Wire + Default>(&self, key: Key) -> Option<T> {
        let mut bytes = vec![0; size_of::<T>()];
        let element = {
            let index = self.index.lock().unwrap();
            let element = index.used.get(&key).copied()?;
            if self.grain == Grain::Rows {
                bytes.copy_from_slice(&index.whole[element]);
            }
            element
        };
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(&self.memory[element]) {
            bytes.copy_from_slice(&word.load(Ordering::SeqCst).to_ne_bytes());
        }
        let mut row = T::default();
        Plain::copy_from_bytes(&mut row, &bytes).unwrap();
        Some(row)
    }

    pub fn read_entry(&self, key: &EntryKey) -> Option<EntryRow> {
        self.read(Key::Entry(key.parent, key.hash))
    }

    pub fn read_attr(&self, nodeid: NodeId) -> Option<AttrRow> {
        self.read(Key::Attr(nodeid.0))
    }
}

impl Tables for Arc<Elements> {
    fn put_entry(&self, key: &EntryKey, row: &EntryRow) -> io::Result<()> {
        self.write(Key::Entry(key.parent, key.hash), row.bytes());
        Ok(())
    }

    fn put_attr(&self, nodeid: NodeId, row: &AttrRow) -> io::Result<()> {
        self.write(Key::Attr(nodeid.0), row.bytes());
        Ok(())
    }

    fn entry(&self, key: &EntryKey) -> io::Result<Option<EntryRow>> {
        Ok(self.read_entry(key))
    }

    fn attr(&self, nodeid: NodeId) -> io::Result<Option<AttrRow>> {
        Ok(self.read_attr(nodeid))
    }
}
