// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's TLS.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;

use nix::errno::Errno;
use rustls::{AlertDescription, Connection, ConnectionTrafficSecrets};

use super::TlsError;
use crate::remote::Stream;
use crate::sys::tls::{Key, Record, offload, receive};

/// Whether the kernel takes keys. It is tried out once, on a connection of this process with itself: one that
/// has taken those of one direction only would be of no use to anybody.
pub(super) fn is_able() -> bool {
    static ABLE: OnceLock<bool> = OnceLock::new();
    *ABLE.get_or_init(|| match probe() {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!("the kernel takes no keys of TLS: {error}");
            false
        }
    })
}

fn probe() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    let key = Key {
        key: [0; 32],
        iv: [0; 12],
        sequence: 0,
    };
    Ok(offload(&socket, &key, &key)?)
}

/// Gives it the keys. What to use from here on.
pub(super) fn hand_over(tls: Connection, socket: &TcpStream) -> Result<Stream, TlsError> {
    let secrets = tls.dangerous_extract_secrets()?;
    let key = |(sequence, secrets)| match secrets {
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Some(Key {
            key: key.as_ref().try_into().ok()?,
            iv: iv.as_ref().try_into().ok()?,
            sequence,
        }),
        _ => None,
    };
    let (Some(transmit), Some(receive)) = (key(secrets.tx), key(secrets.rx)) else {
        return Err(TlsError::Kernel(Errno::EOPNOTSUPP));
    };
    offload(socket, &transmit, &receive).map_err(|errno| match errno {
        Errno::ENOTCONN => TlsError::Closed,
        errno => TlsError::Kernel(errno),
    })?;
    Ok(Stream::Tls(socket.try_clone()?))
}

/// Reads what the kernel has decrypted. That the other end says no more is the end; of a handshake that it goes on with
/// (new keys, say) the kernel understands nothing, so that is an error, as any other alert is.
pub(in crate::remote) fn read(socket: &TcpStream, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    match receive(socket, buffers)? {
        Record::Data(bytes) => Ok(bytes),
        Record::Alert(2..) => match alert(buffers) {
            AlertDescription::CloseNotify => Ok(0),
            other => Err(io::Error::new(
                ErrorKind::ConnectionAborted,
                format!("the other end has given up TLS: {other:?}"),
            )),
        },
        other => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("a TLS record that is no data, {other:?}: neither end may change the keys"),
        )),
    }
}

/// What an alert says: its second byte.
fn alert(buffers: &[IoSliceMut<'_>]) -> AlertDescription {
    let mut bytes = buffers.iter().flat_map(|buffer| buffer.iter());
    bytes.nth(1).copied().unwrap_or_default().into()
}
