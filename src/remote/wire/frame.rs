// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames on a stream.

use std::io::{self, IoSlice, Read, Write};

use super::{Body, Footer, Header, Sealed, Sealer, SessionKey, Side, Sizes, Verifier, WireError};

/// A frame that is whole.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What is in front of the payload.
    pub header: Header,
    /// The payload.
    pub payload: &'a [u8],
    /// What is behind it.
    pub footer: Footer,
}

/// Takes frames from a stream. It never takes a byte more than it needs: between a header and its footer,
/// somebody else may take the payload.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    verifier: Verifier,
    header: Vec<u8>,
    /// A frame has begun, and has not been found to be whole.
    broken: bool,
}

impl<R: Read> FrameReader<R> {
    /// Frames that `from` sends; the smallest ones, without a key.
    pub fn new(inner: R, from: Side) -> Self {
        Self {
            inner,
            verifier: Verifier::new(from),
            header: Vec::new(),
            broken: false,
        }
    }

    /// From the next frame on: headers and footers of these sizes.
    pub fn set_sizes(&mut self, sizes: Sizes) {
        self.verifier.set_sizes(sizes);
    }

    /// From the next frame on: refuses what is not signed.
    pub fn sign_with(&mut self, key: &SessionKey) {
        self.verifier.sign_with(key);
    }

    /// The stream.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next frame, with its payload in `buffer`, which grows to the largest payload there was. None at
    /// the end of the stream.
    ///
    /// # Errors
    ///
    /// [`WireError`]. Unless it is [`Idle`](WireError::Idle), the reader refuses to go on.
    pub fn read_frame<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Result<Option<Frame<'b>>, WireError> {
        self.read_header()?
            .map(|arriving| arriving.read(buffer))
            .transpose()
    }

    /// The next frame's header; its payload comes next in the stream. None at the end of the stream.
    ///
    /// # Errors
    ///
    /// As [`read_frame`](Self::read_frame).
    pub fn read_header(&mut self) -> Result<Option<Arriving<'_, R>>, WireError> {
        if self.broken {
            return Err(WireError::Broken);
        }
        self.header.resize(self.verifier.sizes().header(), 0);
        let first = loop {
            match self.inner.read(&mut self.header) {
                Ok(0) => return Ok(None),
                Ok(n) => break n,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(WireError::Idle),
                    _ => {
                        self.broken = true;
                        return Err(error.into());
                    }
                },
            }
        };
        self.broken = true;
        read_all(&mut self.inner, self.header.get_mut(first..).unwrap_or_default())?;
        let header = self.verifier.header(&self.header)?;
        Ok(Some(Arriving { header, reader: self }))
    }
}

fn read_all(inner: &mut impl Read, bytes: &mut [u8]) -> Result<(), WireError> {
    inner.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => WireError::Truncated,
        _ => error.into(),
    })
}

/// A frame whose header has been read. If it is given up, the reader is of no more use.
#[derive(Debug)]
pub struct Arriving<'r, R> {
    header: Header,
    reader: &'r mut FrameReader<R>,
}

impl<R: Read> Arriving<'_, R> {
    /// What its header says; see [`Verifier::header`].
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The stream, from which exactly the payload, or payload and footer, may be taken.
    pub fn stream(&mut self) -> &mut R {
        &mut self.reader.inner
    }

    /// Its payload and its footer.
    ///
    /// # Errors
    ///
    /// As [`FrameReader::read_frame`].
    pub fn read(self, buffer: &mut Vec<u8>) -> Result<Frame<'_>, WireError> {
        // The header's limits make it at most `MAX_PAYLOAD`.
        let length = self.header.length as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let payload = buffer.get_mut(..length).unwrap_or_default();
        read_all(&mut self.reader.inner, payload)?;
        Ok(Frame {
            header: self.header,
            footer: self.read_footer(Body::Bytes(&[payload]))?,
            payload,
        })
    }

    /// Its footer, after the payload was taken.
    ///
    /// # Errors
    ///
    /// As [`FrameReader::read_frame`].
    pub fn read_footer(self, body: Body<'_>) -> Result<Footer, WireError> {
        let mut footer = vec![0; self.reader.verifier.sizes().footer()];
        read_all(&mut self.reader.inner, &mut footer)?;
        self.verify(body, &footer)
    }

    /// Its footer, after both payload and footer were taken.
    ///
    /// # Errors
    ///
    /// As [`FrameReader::read_frame`].
    pub fn verify(self, body: Body<'_>, footer: &[u8]) -> Result<Footer, WireError> {
        let reader = self.reader;
        let footer = reader.verifier.verify(&reader.header, body, footer)?;
        reader.broken = false;
        Ok(footer)
    }
}

/// Puts frames on a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    sealer: Sealer,
    /// Some of a frame is missing.
    broken: bool,
}

impl<W: Write> FrameWriter<W> {
    /// Frames that `from` sends; the smallest ones, without a key.
    pub fn new(inner: W, from: Side) -> Self {
        Self {
            inner,
            sealer: Sealer::new(from),
            broken: false,
        }
    }

    /// From the next frame on: headers and footers of these sizes.
    pub fn set_sizes(&mut self, sizes: Sizes) {
        self.sealer.set_sizes(sizes);
    }

    /// From the next frame on: signed.
    pub fn sign_with(&mut self, key: &SessionKey) {
        self.sealer.sign_with(key);
    }

    /// The stream, for a payload that is sent between the two parts of what [`seal`](Self::seal) gives.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Sends a frame with a payload of these pieces, whose length goes into the header; `file_version` is
    /// the footer's.
    ///
    /// # Errors
    ///
    /// Those of [`Sealer::seal`], after which nothing was sent; of the stream, after which the writer
    /// refuses to go on.
    pub fn write_frame(
        &mut self,
        header: &Header,
        file_version: u64,
        payload: &[&[u8]],
    ) -> Result<(), WireError> {
        if self.broken {
            return Err(WireError::Broken);
        }
        let header = with_length(header, payload)?;
        let sealed = self.sealer.seal(&header, file_version, Body::Bytes(payload))?;
        self.write_sealed(&sealed, payload)
    }

    /// The same, of data whose CRC is known.
    ///
    /// # Errors
    ///
    /// As [`write_frame`](Self::write_frame).
    pub fn write_data(
        &mut self,
        header: &Header,
        file_version: u64,
        crc: u32,
        data: &[u8],
    ) -> Result<(), WireError> {
        let header = with_length(header, &[data])?;
        let sealed = self.seal(&header, file_version, crc)?;
        self.write_sealed(&sealed, &[data])
    }

    fn write_sealed(&mut self, sealed: &Sealed, payload: &[&[u8]]) -> Result<(), WireError> {
        let pieces = [&sealed.header[..]].into_iter();
        let pieces = pieces.chain(payload.iter().copied()).chain([&sealed.footer[..]]);
        let mut slices: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
        self.broken = true;
        write_all(&mut self.inner, &mut slices)?;
        self.inner.flush()?;
        self.broken = false;
        Ok(())
    }

    /// Header and footer of a frame that the caller sends: header, payload, footer, before anything else is
    /// written here. The header says how long the payload is.
    ///
    /// # Errors
    ///
    /// Those of [`Sealer::seal`].
    pub fn seal(&mut self, header: &Header, file_version: u64, crc: u32) -> Result<Sealed, WireError> {
        if self.broken {
            return Err(WireError::Broken);
        }
        self.sealer.seal(header, file_version, Body::Crc(crc))
    }
}

/// A header of as much payload.
fn with_length(header: &Header, payload: &[&[u8]]) -> Result<Header, WireError> {
    let length: u64 = payload.iter().map(|piece| piece.len() as u64).sum();
    let length = u32::try_from(length).map_err(|_| WireError::Length {
        kind: header.kind,
        length,
        most: super::MAX_PAYLOAD,
    })?;
    Ok(Header { length, ..*header })
}

fn write_all(inner: &mut impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // The first is a header; empty ones behind it go with what is in front of them.
    while !slices.is_empty() {
        match inner.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
