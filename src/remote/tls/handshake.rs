// SPDX-License-Identifier: MIT OR Apache-2.0
//! The handshake, and not a byte more.

use std::io::{self, Read};
use std::time::Instant;

use rustls::Connection;

use super::TlsError;
use crate::remote::Stream;
use crate::remote::greeting::Until;
use crate::remote::wire::auth::Binding;

/// A record's type, version, and length.
const HEADER: usize = 5;

/// The longest record, without its header (RFC 8446, 5.2).
const LONGEST: usize = (1 << 14) + 256;

/// What the other end may say, all in all: certificates are large, and nothing else is.
const MOST: usize = 256 << 10;

/// RFC 9266.
const BINDING: &[u8] = b"EXPORTER-Channel-Binding";

/// Does it, by `deadline`, however slowly the other end trickles. What is behind its last record is left
/// in the stream. Gives what binds to this connection.
pub(super) fn shake(tls: &mut Connection, stream: &Stream, deadline: Instant) -> Result<Binding, TlsError> {
    let mut until = Until::by(stream, deadline);
    let mut heard = 0;
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut until).map_err(closed)?;
        }
        if !tls.is_handshaking() {
            break;
        }
        let record = record(&mut until)?;
        heard += record.len();
        if heard > MOST {
            return Err(TlsError::TooLong);
        }
        let mut rest = &record[..];
        while !rest.is_empty() {
            tls.read_tls(&mut rest)?;
        }
        if let Err(error) = tls.process_new_packets() {
            // It is told why, if it listens.
            let _ = tls.write_tls(&mut until);
            return Err(error.into());
        }
    }
    Ok(tls.export_keying_material([0; 32], BINDING, None)?)
}

/// The next record, as it came.
fn record(stream: &mut impl Read) -> Result<Vec<u8>, TlsError> {
    let mut record = vec![0; HEADER];
    stream.read_exact(&mut record).map_err(closed)?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    // change_cipher_spec, alert, handshake, application data; of TLS 1.0 by name, or 1.2.
    if !(20..=23).contains(&record[0]) || record[1] != 3 || length > LONGEST {
        return Err(TlsError::NotTls);
    }
    record.resize(HEADER + length, 0);
    stream.read_exact(&mut record[HEADER..]).map_err(closed)?;
    Ok(record)
}

fn closed(error: io::Error) -> TlsError {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => TlsError::Closed,
        _ => error.into(),
    }
}
