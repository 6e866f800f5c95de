// SPDX-License-Identifier: MIT OR Apache-2.0
//! TLS 1.3 in the kernel (kTLS, `Documentation/networking/tls.rst`): a socket of TCP that is given the keys of both
//! directions encrypts what is written to it and checks what is read from it. ChaCha20-Poly1305 only.

use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, TlsGetRecordType, recvmsg, setsockopt};

/// What protects the records of one direction from a record on.
#[derive(Clone)]
pub struct Key {
    /// The key.
    pub key: [u8; 32],
    /// What the nonces are made of.
    pub iv: [u8; 12],
    /// The next record's number.
    pub sequence: u64,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl From<&Key> for TlsCryptoInfo {
    fn from(key: &Key) -> Self {
        Self::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
            info: libc::tls_crypto_info {
                version: libc::TLS_1_3_VERSION,
                cipher_type: libc::TLS_CIPHER_CHACHA20_POLY1305,
            },
            iv: key.iv,
            key: key.key,
            salt: [],
            rec_seq: key.sequence.to_be_bytes(),
        })
    }
}

/// Gives the keys to a socket that is connected: from here on it writes and reads what is in the records. Bytes that
/// have arrived and were not read yet are records of `receive`.
///
/// A read by other means than [`receive`] fails with `EIO` when what comes is no application data.
///
/// # Errors
///
/// `ENOENT` if the kernel has no module `tls` (it may load it only for root), or not this cipher; `ENOTCONN` if the
/// connection has ended. After an error the socket is of no use any more.
pub fn offload(socket: &impl AsFd, transmit: &Key, receive: &Key) -> nix::Result<()> {
    setsockopt(socket, TcpUlp::default(), b"tls")?;
    setsockopt(socket, TcpTlsTx, &transmit.into())?;
    setsockopt(socket, TcpTlsRx, &receive.into())
}

/// What a [`receive`] has read, all of it of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// So many bytes; none if the stream has ended.
    Data(usize),
    /// So many bytes of an alert: its level, and what it says.
    Alert(usize),
    /// Anything else: the handshake goes on, which the kernel does not understand.
    Other(TlsGetRecordType),
}

/// Reads from a socket that has keys.
///
/// # Errors
///
/// Those of recvmsg(2); `EBADMSG` if it was changed on the way, `EMSGSIZE` and `EINVAL` if it was never a record.
pub fn receive(socket: &impl AsFd, buffers: &mut [IoSliceMut<'_>]) -> nix::Result<Record> {
    let mut space = cmsg_space!(TlsGetRecordType);
    let descriptor = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(descriptor, buffers, Some(&mut space), MsgFlags::empty())?;
    let bytes = message.bytes;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::TlsGetRecordType(kind) = control {
            return Ok(match kind {
                TlsGetRecordType::ApplicationData => Record::Data(bytes),
                TlsGetRecordType::Alert => Record::Alert(bytes),
                kind => Record::Other(kind),
            });
        }
    }
    Ok(Record::Data(bytes))
}
