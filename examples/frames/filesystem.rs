// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that come over a socket in frames: a header of 102 bytes that begins with the request (the offset,
//! the length, the file's number); the payload; a footer of 102 bytes that begins with its CRC32C. The payload
//! goes to whoever reads the file; header and footer decide whether it may: in the kernel, where `gate.bpf.c`
//! can be, else here.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use extfuse::splice::{DirEntry, FuseBuf, FuseBufVec, Mem, PathFilesystem, attributes};
use fuser::{FileAttr, FileType, OpenFlags};
use nix::errno::Errno;

/// Bytes of a header, and of a footer.
pub const META: usize = 102;
/// Bytes of a request: offset (8), length (4), file (4), little-endian.
pub const REQUEST: usize = 16;

#[derive(Debug)]
pub struct Frames {
    /// Names and sizes, by the files' numbers.
    files: Vec<(PathBuf, u64)>,
    server: SocketAddr,
    /// Connections. One that a vector holds has its frame still to come.
    streams: Mutex<Vec<Arc<OwnedFd>>>,
}

impl Frames {
    pub fn new(files: Vec<(PathBuf, u64)>, server: SocketAddr) -> Self {
        let streams = Mutex::default();
        Self {
            files,
            server,
            streams,
        }
    }

    fn find(&self, path: &Path) -> Result<(usize, u64), Errno> {
        let name = path.strip_prefix("/").map_err(|_| Errno::ENOENT)?;
        let number = self
            .files
            .iter()
            .position(|(file, _)| file == name)
            .ok_or(Errno::ENOENT)?;
        Ok((number, self.files[number].1))
    }

    /// A connection over which the request went: one that nobody holds, or a new one.
    fn ask(&self, request: &[u8]) -> io::Result<Arc<OwnedFd>> {
        let mut streams = self.streams.lock().map_err(|_| io::ErrorKind::Other)?;
        while let Some(at) = streams.iter().position(|stream| Arc::strong_count(stream) == 1) {
            if nix::unistd::write(&streams[at], request).is_ok_and(|n| n == REQUEST) {
                return Ok(Arc::clone(&streams[at]));
            }
            streams.swap_remove(at); // it failed in an earlier frame
        }
        let mut stream = TcpStream::connect(self.server)?;
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        let stream = Arc::new(stream.into());
        streams.push(Arc::clone(&stream));
        Ok(stream)
    }
}

impl PathFilesystem for Frames {
    fn getattr(&self, path: &Path, _fh: Option<u64>) -> Result<FileAttr, Errno> {
        if path == Path::new("/") {
            return Ok(attributes(FileType::Directory, 0o555, 0));
        }
        Ok(attributes(FileType::RegularFile, 0o444, self.find(path)?.1))
    }

    fn readdir(&self, _path: &Path) -> Result<Vec<DirEntry>, Errno> {
        let kind = FileType::RegularFile;
        let names = self.files.iter().map(|(name, _)| name.into());
        Ok(names.map(|name| DirEntry { name, kind }).collect())
    }

    /// The handle is the file's number: that is what the gate knows of a file.
    fn open(&self, path: &Path, _flags: OpenFlags) -> Result<u64, Errno> {
        Ok(self.find(path)?.0 as u64)
    }

    fn read_buf(&self, _: &Path, fh: u64, size: usize, offset: u64) -> Result<FuseBufVec<'static>, Errno> {
        let (_, end) = self.files.get(fh as usize).ok_or(Errno::EBADF)?;
        let length = end.saturating_sub(offset).min(size as u64) as usize;
        let mut request = offset.to_le_bytes().to_vec();
        request.extend_from_slice(&(length as u32).to_le_bytes());
        request.extend_from_slice(&(fh as u32).to_le_bytes());
        let stream = self.ask(&request).map_err(|_| Errno::EIO)?;
        let mut section = FuseBuf::section(stream, META, length, META);
        // Behind header and footer: what the header must begin with.
        section.mem = Mem::Owned([&[0; 2 * META], &request[..]].concat());
        Ok(section.into())
    }

    fn check(&self, path: &Path, bufs: &FuseBufVec<'static>, crcs: &[Option<u32>]) -> Result<(), Errno> {
        for (buf, crc) in bufs.iter().zip(crcs) {
            let asked = buf.mem.as_slice().and_then(|mem| mem.get(2 * META..));
            if buf.header_bytes().get(..REQUEST) != asked {
                eprintln!("{}: a frame of something else", path.display());
                return Err(Errno::EIO);
            }
            let right = buf.footer_bytes().first_chunk().copied().map(u32::from_le_bytes);
            if *crc != right {
                eprintln!("{}: wrong checksum", path.display());
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }
}
