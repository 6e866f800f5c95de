// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other end: makes the frames.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::filesystem::{META, REQUEST};

/// The regular files of a directory, open.
pub struct Files {
    files: Vec<(PathBuf, File)>,
    /// How many frames were spoilt, if they are to be.
    spoilt: Option<AtomicUsize>,
}

impl Files {
    pub fn of(dir: &Path, spoil: bool) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push((entry.file_name().into(), File::open(entry.path())?));
            }
        }
        let spoilt = spoil.then(AtomicUsize::default);
        Ok(Self { files, spoilt })
    }

    pub fn names_and_sizes(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        let size = |(name, file): &(PathBuf, File)| Ok((name.clone(), file.metadata()?.len()));
        self.files.iter().map(size).collect()
    }

    /// Serves them as long as the process lives; says where.
    pub fn serve(self) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let files = Arc::new(self);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let files = Arc::clone(&files);
                thread::spawn(move || files.answer(client));
            }
        });
        Ok(address)
    }

    /// Each request of a connection with a frame. What can't be answered ends the connection.
    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        let mut request = [0; REQUEST];
        loop {
            client.read_exact(&mut request)?;
            let (offset, length) = (number(&request[..8]), number(&request[8..12]) as usize);
            let (_, file) = self
                .files
                .get(number(&request[12..]) as usize)
                .ok_or(io::ErrorKind::NotFound)?;
            let mut frame = vec![0; META + length + META];
            frame[..REQUEST].copy_from_slice(&request);
            file.read_exact_at(&mut frame[META..][..length], offset)?;
            let crc = crc32c::crc32c(&frame[META..][..length]);
            frame[META + length..][..4].copy_from_slice(&crc.to_le_bytes());
            self.spoil(&mut frame);
            client.write_all(&frame)?;
        }
    }

    /// The other way round, the next bit of what a frame says each time: request, payload, checksum.
    fn spoil(&self, frame: &mut [u8]) {
        let Some(spoilt) = &self.spoilt else { return };
        let payload = frame.len() - 2 * META;
        let bit = spoilt.fetch_add(1, Ordering::Relaxed) % ((REQUEST + payload + 4) * 8);
        let byte = match bit / 8 {
            byte if byte < REQUEST => byte,
            byte => byte - REQUEST + META,
        };
        frame[byte] ^= 1 << (bit % 8);
    }
}

/// Little-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
