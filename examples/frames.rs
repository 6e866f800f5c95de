// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that come over a socket in frames: a header of 102 bytes with the number of the request, the
//! offset, the length and the file's number; the payload; a footer of 102 bytes with its CRC32C. The payload
//! goes to whoever reads the file, header and footer come here, and decide whether it may.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use anyhow::Context;
use clap::Parser;
use extfuse::splice::{
    DirEntry, FuseBuf, FuseBufVec, Mem, MountOptions, PathFilesystem, PathOptions, attributes, serve,
};
use fuser::{FileAttr, FileType};
use nix::errno::Errno;

const META: usize = 102;
const REQUEST: usize = 24; // number, offset, length, file: little-endian

/// Mounts the regular files of a directory, read over TCP in frames
#[derive(Debug, Parser)]
struct Arguments {
    /// Whose files are served
    source: PathBuf,
    /// Where they are mounted
    mountpoint: PathBuf,
    /// Use stock FUSE even where the extfuse module is loaded
    #[arg(long)]
    stock: bool,
}

/// The other end: answers each request of a connection with a frame.
fn serve_frames(mut client: TcpStream, files: &[(PathBuf, fs::File)]) -> io::Result<()> {
    let mut request = [0; REQUEST];
    loop {
        client.read_exact(&mut request)?;
        let (offset, length) = (number(&request[8..16]), number(&request[16..20]) as usize);
        let mut frame = vec![0; META + length + META];
        frame[..REQUEST].copy_from_slice(&request);
        files[number(&request[20..24]) as usize]
            .1
            .read_exact_at(&mut frame[META..][..length], offset)?;
        let crc = crc32c::crc32c(&frame[META..][..length]);
        frame[META + length..][..4].copy_from_slice(&crc.to_le_bytes());
        client.write_all(&frame)?;
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[derive(Debug)]
struct Frames {
    files: Arc<Vec<(PathBuf, fs::File)>>,
    server: std::net::SocketAddr,
    idle: Mutex<Vec<Arc<OwnedFd>>>,
    last: AtomicU64,
}

impl Frames {
    fn find(&self, path: &Path) -> Result<(u64, u64), Errno> {
        let file = self
            .files
            .iter()
            .position(|(name, _)| path.strip_prefix("/").is_ok_and(|path| path == name));
        let file = file.ok_or(Errno::ENOENT)?;
        let size = self.files[file].1.metadata().map_err(|_| Errno::EIO)?.len();
        Ok((file as u64, size))
    }

    /// A connection over which the request went: one that nobody holds, or a new one.
    fn ask(&self, request: &[u8]) -> io::Result<Arc<OwnedFd>> {
        let mut all = self.idle.lock().map_err(|_| io::ErrorKind::Other)?;
        while let Some(at) = all.iter().position(|fd| Arc::strong_count(fd) == 1) {
            if nix::unistd::write(&all[at], request).is_ok_and(|n| n == REQUEST) {
                return Ok(Arc::clone(&all[at]));
            }
            all.swap_remove(at); // it failed in an earlier frame
        }
        let mut stream = TcpStream::connect(self.server)?;
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        all.push(Arc::new(stream.into()));
        Ok(Arc::clone(&all[all.len() - 1]))
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
        let entry = |(name, _): &(PathBuf, _)| DirEntry {
            name: name.into(),
            kind: FileType::RegularFile,
        };
        Ok(self.files.iter().map(entry).collect())
    }

    fn read_buf(
        &self,
        path: &Path,
        _fh: u64,
        size: usize,
        offset: u64,
    ) -> Result<FuseBufVec<'static>, Errno> {
        let (file, end) = self.find(path)?;
        let length = end.saturating_sub(offset).min(size as u64);
        let mut request = Vec::with_capacity(REQUEST);
        request.extend_from_slice(&self.last.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        request.extend_from_slice(&offset.to_le_bytes());
        request.extend_from_slice(&(length as u32).to_le_bytes());
        request.extend_from_slice(&(file as u32).to_le_bytes());
        let stream = self.ask(&request).map_err(|_| Errno::EIO)?;
        // Behind header and footer is room for what the check compares them with.
        let mut mem = vec![0; 2 * META];
        mem.extend_from_slice(&request);
        let mut section = FuseBuf::section(stream, META, length as usize, META);
        section.mem = Mem::Owned(mem);
        Ok(section.into())
    }

    fn check(&self, path: &Path, bufs: &FuseBufVec<'static>, crcs: &[Option<u32>]) -> Result<(), Errno> {
        for (buf, crc) in bufs.iter().zip(crcs) {
            let asked = buf.mem.as_slice().and_then(|mem| mem.get(2 * META..));
            if buf.header_bytes().get(..REQUEST) != asked {
                eprintln!("{}: a frame of something else", path.display());
                return Err(Errno::EIO);
            }
            if *crc
                != buf
                    .footer_bytes()
                    .first_chunk()
                    .map(|crc| u32::from_le_bytes(*crc))
            {
                eprintln!("{}: wrong checksum", path.display());
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }
}

fn files(dir: &Path) -> io::Result<Vec<(PathBuf, fs::File)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push((entry.file_name().into(), fs::File::open(entry.path())?));
        }
    }
    Ok(files)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("frames: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let source = arguments.source.display();
    let files =
        Arc::new(files(&arguments.source).with_context(|| format!("cannot open the files of {source}"))?);
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let server = listener.local_addr()?;
    let served = Arc::clone(&files);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let files = Arc::clone(&served);
            thread::spawn(move || serve_frames(client, &files));
        }
    });
    let (idle, last) = (Mutex::default(), AtomicU64::new(1));
    let frames = Frames {
        files,
        server,
        idle,
        last,
    };
    let options = MountOptions {
        fsname: "frames".into(),
        stock: arguments.stock,
        read_only: true,
        ..MountOptions::default()
    };
    let paths = PathOptions {
        crc: true,
        ..PathOptions::default()
    };
    let mounted = serve(frames, &arguments.mountpoint, &options, paths)?;
    let unmounter = mounted.unmounter();
    ctrlc::set_handler(move || {
        if let Err(error) = unmounter.detach() {
            eprintln!("cannot unmount: {error}");
        }
    })?;
    Ok(mounted.serve()?)
}
