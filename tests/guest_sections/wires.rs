// SPDX-License-Identifier: MIT OR Apache-2.0
//! What frames come out of, and go into.

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, recv, setsockopt, socket, sockopt,
};
use std::os::fd::AsRawFd;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Unix,
    Pipe,
    File,
    Memfd,
    Tls,
}

pub const KINDS: [Kind; 6] = [
    Kind::Tcp,
    Kind::Unix,
    Kind::Pipe,
    Kind::File,
    Kind::Memfd,
    Kind::Tls,
];
pub const STREAMS: [Kind; 4] = [Kind::Tcp, Kind::Unix, Kind::Pipe, Kind::Tls];

/// A connected pair over loopback.
pub fn tcp() -> (OwnedFd, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    far.set_nodelay(true).unwrap();
    (near.into(), far.into())
}

/// One that takes little at a time: the first end has room for about `room` bytes. Segments are short: of
/// loopback's, none would fit, and the kernel would send what fits only after a while.
fn narrow_tcp(room: usize) -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    setsockopt(&near, sockopt::RcvBuf, &room).unwrap();
    setsockopt(&near, sockopt::TcpMaxSeg, &1400).unwrap();
    let address = match listener.local_addr().unwrap() {
        SocketAddr::V4(address) => SockaddrIn::from(address),
        SocketAddr::V6(_) => unreachable!(),
    };
    connect(near.as_raw_fd(), &address).unwrap();
    let far = listener.accept().unwrap().0;
    far.set_nodelay(true).unwrap();
    (near, far.into())
}

/// A TCP pair with the kernel's TLS: the second sends, the first receives.
pub fn tls() -> (OwnedFd, OwnedFd) {
    encrypted(tcp())
}

fn encrypted((near, far): (OwnedFd, OwnedFd)) -> (OwnedFd, OwnedFd) {
    let key = sockopt::TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_2_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [1; 8],
        key: [2; 16],
        salt: [3; 4],
        rec_seq: [0; 8],
    });
    // The kernel loads the module by itself: a process that we start would close our files on the mount, and
    // wait there for a WRITE that waits for us.
    for end in [&near, &far] {
        setsockopt(end, sockopt::TcpUlp::default(), b"tls").unwrap();
    }
    setsockopt(&far, sockopt::TcpTlsTx, &key).unwrap();
    setsockopt(&near, sockopt::TcpTlsRx, &key).unwrap();
    (near, far)
}

enum Feed {
    /// Bytes go through a thread, so that nobody waits for room; how many it has still to write.
    Stream(Option<Sender<Vec<u8>>>, Arc<AtomicUsize>),
    File(u64),
}

/// A source of frames, and how to get them in there.
pub struct Wire {
    pub fd: OwnedFd,
    /// The other end; the same for a file.
    pub peer: Option<OwnedFd>,
    feed: Feed,
}

impl Wire {
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Tcp => Self::stream(tcp()),
            Kind::Tls => Self::stream(tls()),
            Kind::Unix => {
                let (near, far) = UnixStream::pair().unwrap();
                Self::stream((near.into(), far.into()))
            }
            Kind::Pipe => Self::stream(nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap()),
            Kind::File => Self::file(tempfile::tempfile_in("/mnt/ext4").unwrap().into()),
            Kind::Memfd => Self::file(memfd_create("frames", MFdFlags::MFD_CLOEXEC).unwrap()),
        }
    }

    /// A stream that takes some 10 to 40 KiB, and then no more until somebody reads.
    pub fn narrow(kind: Kind) -> Self {
        let wire = match kind {
            Kind::Tcp => Self::stream(narrow_tcp(10_000)),
            // A record has to fit.
            Kind::Tls => Self::stream(encrypted(narrow_tcp(20_000))),
            _ => Self::new(kind),
        };
        if kind != Kind::Pipe {
            setsockopt(wire.peer.as_ref().unwrap(), sockopt::SndBuf, &10_000).unwrap();
        }
        wire
    }

    fn stream((fd, peer): (OwnedFd, OwnedFd)) -> Self {
        let (sender, receiver) = channel::<Vec<u8>>();
        let mut to = File::from(peer.try_clone().unwrap());
        let left = Arc::new(AtomicUsize::new(0));
        let (peer, feed) = (Some(peer), Feed::Stream(Some(sender), Arc::clone(&left)));
        thread::spawn(move || {
            // Ends with either end.
            while let Ok(bytes) = receiver.recv() {
                if to.write_all(&bytes).is_err() {
                    break;
                }
                left.fetch_sub(bytes.len(), Ordering::SeqCst);
            }
        });
        Self { fd, peer, feed }
    }

    fn file(fd: OwnedFd) -> Self {
        let (peer, feed) = (Some(fd.try_clone().unwrap()), Feed::File(0));
        Self { fd, peer, feed }
    }

    /// Gives the position, in a file.
    pub fn send(&mut self, bytes: &[u8]) -> u64 {
        match &mut self.feed {
            Feed::Stream(to, left) => {
                // After the end, to nobody.
                if let Some(to) = to {
                    left.fetch_add(bytes.len(), Ordering::SeqCst);
                    drop(to.send(bytes.to_vec()));
                }
                0
            }
            Feed::File(end) => {
                let at = *end;
                let file = File::from(self.fd.try_clone().unwrap());
                file.write_all_at(bytes, at).unwrap();
                *end += bytes.len() as u64;
                at
            }
        }
    }

    /// What was sent comes, and then the end.
    pub fn end(&mut self) {
        if let Feed::Stream(to, _) = &mut self.feed {
            *to = None;
        }
        if let Some(peer) = self.peer.take() {
            drop(peer);
        }
    }

    /// Waits until everything that was sent has been received, and `peer` has nothing more.
    pub fn until_taken(&self) {
        let Feed::Stream(_, left) = &self.feed else {
            panic!("nobody takes anything out of a file");
        };
        crate::common::eventually(|| left.load(Ordering::SeqCst) == 0);
        crate::common::eventually(|| {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            recv(self.fd.as_raw_fd(), &mut [0], flags) == Err(nix::Error::EAGAIN)
        });
    }
}

/// A pipe with room for `size` bytes.
pub fn pipe_of(size: usize) -> (OwnedFd, OwnedFd) {
    let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&pipe.1, FcntlArg::F_SETPIPE_SZ(size as i32)).unwrap();
    pipe
}

pub fn set_nonblocking(fd: impl AsFd) {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
}
