// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requests of a client that is served.

use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Options;
use super::answers::{Answer, answer};
use super::greeting::Greeted;
use crate::fs::Stack;
use crate::remote::Stream;
use crate::remote::wire::message::Renewed;
use crate::remote::wire::{FrameReader, FrameWriter, Header, Kind, Reply, Request, Side, WireError};

/// Requests that wait for a thread. With those that are being answered it bounds what a client makes us hold.
const WAITING: usize = 16;

/// A request as it came.
type Job = (Header, Vec<u8>);

/// The stream, on which every frame has the same time, however slowly it is taken: the limit of a write begins anew
/// with each byte.
struct Prompt<'s> {
    stream: &'s Stream,
    timeout: Duration,
    /// Of the frame that has begun.
    deadline: Option<Instant>,
}

impl Prompt<'_> {
    /// The time that is left for the next part of the frame.
    fn hurry(&mut self) -> io::Result<()> {
        let Some(deadline) = self.deadline else {
            self.deadline = Some(Instant::now() + self.timeout);
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_write_timeout(Some(left))
    }
}

impl Write for Prompt<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.hurry()?;
        self.stream.write_vectored(slices)
    }

    /// The frame is whole.
    fn flush(&mut self) -> io::Result<()> {
        self.deadline = None;
        self.stream.set_write_timeout(Some(self.timeout))
    }
}

struct Session<'s> {
    stack: Stack,
    stream: &'s Stream,
    /// Locked for one frame, and nothing else is locked meanwhile.
    writer: Mutex<FrameWriter<Prompt<'s>>>,
}

/// Answers, until the client says goodbye, is gone, says nothing for too long, or nonsense.
pub fn serve(options: &Options, greeted: Greeted, stream: &Stream) {
    let mut reader = FrameReader::new(stream, Side::Client);
    let prompt = Prompt {
        stream,
        timeout: options.sending,
        deadline: None,
    };
    let mut writer = FrameWriter::new(prompt, Side::Server);
    reader.set_sizes(greeted.sizes);
    writer.set_sizes(greeted.sizes);
    if let Some(key) = &greeted.key {
        reader.sign_with(key);
        writer.sign_with(key);
    }
    let timeouts = stream
        .set_read_timeout(Some(options.lease))
        .and_then(|()| stream.set_write_timeout(Some(options.sending)));
    if let Err(error) = timeouts {
        tracing::warn!("a client is not served: {error}");
        return;
    }
    let session = Session {
        stack: greeted.stack,
        stream,
        writer: Mutex::new(writer),
    };
    let (jobs, waiting) = sync_channel::<Job>(WAITING);
    let waiting = Mutex::new(waiting);
    let (free, mut threads) = (AtomicUsize::new(0), 0);
    thread::scope(|scope| {
        let end = session.listen(options, &mut reader, |job| {
            // Only this thread takes from those that are free, so each is counted on once. One that waits for a
            // disk keeps nobody waiting but who comes when all are there.
            let taken = |n: usize| n.checked_sub(1);
            let is_free = free
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, taken)
                .is_ok();
            if !is_free && threads < options.threads.max(1) {
                let thread = thread::Builder::new().name("extfuse-answer".into());
                match thread.spawn_scoped(scope, || session.work(&waiting, &free)) {
                    Ok(_) => threads += 1,
                    Err(error) => tracing::warn!("a client has a thread less: {error}"),
                }
            }
            // Without a single one nobody would ever answer.
            threads > 0 && jobs.send(job).is_ok()
        });
        match end {
            Ok(()) => tracing::debug!("a client has gone"),
            Err(WireError::Idle) => tracing::info!("a client has said nothing for too long"),
            Err(error) => tracing::warn!("a client was sent away: {error}"),
        }
        // No frame will be understood from here on, and none be waited for; what was asked is still done.
        drop(jobs);
    });
}

impl Session<'_> {
    fn listen(
        &self,
        options: &Options,
        reader: &mut FrameReader<&Stream>,
        mut hand_over: impl FnMut(Job) -> bool,
    ) -> Result<(), WireError> {
        loop {
            let mut buffer = Vec::new();
            let Some(frame) = reader.read_frame(&mut buffer)? else {
                return Ok(());
            };
            let header = frame.header;
            match header.kind {
                Kind::Ping => self.send(&header.reply(), &Reply::Ping(Default::default()))?,
                Kind::Renew => {
                    let lease_ms = options.lease.as_millis().try_into().unwrap_or(u32::MAX);
                    self.send(&header.reply(), &Reply::Renew(Renewed { lease_ms }))?;
                }
                Kind::Goodbye => {
                    return self.send(&header.reply(), &Reply::Goodbye(Default::default()));
                }
                // Nothing is told that a client would have to take note of.
                Kind::Invalidated => {}
                Kind::Hello | Kind::Authenticate => return Err(WireError::NotThat(header.kind)),
                _ => {
                    if !hand_over((header, buffer)) {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn send(&self, header: &Header, reply: &Reply<'_>) -> Result<(), WireError> {
        let payload = reply.payload()?;
        self.writer.lock().write_frame(header, 0, &[&payload])
    }

    fn work(&self, waiting: &Mutex<Receiver<Job>>, free: &AtomicUsize) {
        loop {
            // The lock is held by who waits: the others wait for it.
            let job = waiting.lock().recv();
            let Ok((header, payload)) = job else { return };
            if let Err(error) = self.answer(&header, &payload) {
                tracing::info!("a reply did not reach its client: {error}");
                // Nobody can be answered any more: the requests that are still to come are not to be done.
                let _ = self.stream.shutdown();
            }
            free.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn answer(&self, header: &Header, payload: &[u8]) -> Result<(), WireError> {
        let request = match Request::decode(header, payload) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!("a request cannot be understood: {error}");
                return self.refuse(header, error.errno() as u32);
            }
        };
        // Its bytes go from the file's buffer to the stream.
        if let Request::Read(read) = &request {
            let sent = self.stack.read(
                fuser::FileHandle(header.handle),
                header.offset,
                read.size,
                |bytes| {
                    self.send(
                        &header.reply(),
                        &Reply::Read(crate::remote::wire::message::Data(bytes)),
                    )
                },
            );
            return sent.unwrap_or_else(|errno| self.refuse(header, errno as u32));
        }
        match answer(&self.stack, header, request) {
            Ok(None) => Ok(()),
            Ok(Some(Answer { reply, number })) => {
                let header = Header {
                    offset: number,
                    ..header.reply()
                };
                self.send(&header, &reply.as_reply())
            }
            Err(errno) => self.refuse(header, errno as u32),
        }
    }

    fn refuse(&self, header: &Header, errno: u32) -> Result<(), WireError> {
        // What has no reply has no error either.
        if header.kind == Kind::Forget {
            return Ok(());
        }
        let header = Header {
            status: errno.min(511),
            ..header.reply()
        };
        self.writer.lock().write_frame(&header, 0, &[])
    }
}
