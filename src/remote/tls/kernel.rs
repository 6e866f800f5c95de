// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's TLS.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;

use nix::errno::Errno;
use rustls::{Connection, ConnectionTrafficSecrets};

use super::TlsError;
use crate::sys::tls::{Key, offload};

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

/// Gives it the keys.
pub(super) fn hand_over(tls: Connection, socket: &TcpStream) -> Result<(), TlsError> {
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
    })
}
