// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cases: one system call (or one pair) each, made the way a C program would make it, with
//! everything prepared outside of the loop.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{UnlinkatFlags, close, unlinkat};

use crate::measure::{Call, Shape};
use crate::mounts::{Counters, Variant};
use crate::tree::Paths;

/// Files in the directory of `stat-10k`.
pub const MANY: usize = 10_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Stat,
    Fstat,
    StatDeep,
    StatMany,
    Missing,
    GetxattrAbsent,
    OpenClose,
    OpenReadClose,
    PwriteSmall,
    Pread4k,
    Pread128k,
    Pwrite4k,
    Pread4kDirect,
}

/// The suite `meta`.
pub const META: &[Case] = &[
    Case::Stat,
    Case::Fstat,
    Case::StatDeep,
    Case::StatMany,
    Case::Missing,
    Case::GetxattrAbsent,
    Case::OpenClose,
];

/// The suite `data`.
pub const DATA: &[Case] = &[
    Case::Pread4k,
    Case::Pread128k,
    Case::Pwrite4k,
    Case::Pread4kDirect,
];

/// How a request was ended without the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Returned,
    Passthru,
}

/// Aligned as `O_DIRECT` wants it.
#[repr(align(4096))]
pub struct Buffer(pub [u8; 128 << 10]);

pub fn buffer() -> Box<Buffer> {
    Box::new(Buffer([0; 128 << 10]))
}

pub fn opened(path: &CStr, flags: OFlag) -> Result<OwnedFd> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open {}", path.to_string_lossy()))
}

/// `fgetxattr` of an attribute that isn't there.
fn attribute_is_absent(fd: &OwnedFd, name: &CStr, value: &mut [u8]) -> bool {
    // SAFETY: the name ends with a NUL, and `value` is valid for writes of its length.
    let got = unsafe {
        libc::fgetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    got < 0 && Errno::last() == Errno::ENODATA
}

impl Case {
    /// The name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Case::Stat => "stat",
            Case::Fstat => "fstat",
            Case::StatDeep => "stat-deep",
            Case::StatMany => "stat-10k",
            Case::Missing => "missing",
            Case::GetxattrAbsent => "getxattr-absent",
            Case::OpenClose => "open-close",
            Case::OpenReadClose => "open-pread-close",
            Case::PwriteSmall => "pwrite-100",
            Case::Pread4k => "pread-4k",
            Case::Pread128k => "pread-128k",
            Case::Pwrite4k => "pwrite-4k",
            Case::Pread4kDirect => "pread-4k-direct",
        }
    }

    /// How often it is run; `many` files are in the directory of `stat-10k`.
    pub fn shape(self, smoke: bool, many: usize) -> Shape {
        match (self, smoke) {
            (Case::StatMany, _) => Shape {
                warm: many,
                runs: if smoke { 1 } else { 3 },
                calls: many,
            },
            (_, true) => Shape {
                warm: 3,
                runs: 3,
                calls: 20,
            },
            (Case::Pread128k, false) => Shape {
                warm: 20,
                runs: 7,
                calls: 100,
            },
            (_, false) => Shape {
                warm: 50,
                runs: 7,
                calls: 300,
            },
        }
    }

    /// The opcode that, where handlers are attached, ends in the kernel with each call at least once.
    fn answered_by_handlers(self) -> Option<(&'static str, Ending)> {
        match self {
            Case::Stat | Case::StatDeep | Case::StatMany | Case::Missing => {
                Some(("LOOKUP", Ending::Returned))
            }
            Case::Fstat => Some(("GETATTR", Ending::Returned)),
            Case::Pread4k | Case::Pread128k => Some(("READ", Ending::Passthru)),
            Case::GetxattrAbsent
            | Case::OpenClose
            | Case::OpenReadClose
            | Case::PwriteSmall
            | Case::Pwrite4k
            | Case::Pread4kDirect => None,
        }
    }

    /// Fails unless as many requests ended in the kernel as the variant says.
    pub fn check(self, variant: Variant, counted: &Counters, shape: Shape) -> Result<()> {
        let Some((opcode, ending)) = self.answered_by_handlers() else {
            return Ok(());
        };
        let (of, calls) = (counted.of(opcode), shape.all_calls());
        let ended = match ending {
            Ending::Returned => of.answered(),
            Ending::Passthru => of.passthru,
        };
        match variant {
            Variant::Handlers | Variant::Asked => ensure!(
                ended >= calls,
                "only {ended} {opcode} of {calls} calls ended in the kernel"
            ),
            Variant::Unattached => ensure!(
                counted.total().answered() == 0,
                "answered without a program attached"
            ),
            Variant::Native | Variant::Stock0 | Variant::StockInf | Variant::Trivial => {}
        }
        Ok(())
    }

    /// The call, with its files open.
    pub fn prepare(self, paths: &Paths) -> Result<Box<Call<'_>>> {
        let read = |flags, bytes: usize| -> Result<Box<Call<'_>>> {
            let (file, mut buffer) = (opened(&paths.file, OFlag::O_RDONLY | flags)?, buffer());
            Ok(Box::new(move |_| {
                pread(&file, &mut buffer.0[..bytes], 0) == Ok(bytes)
            }))
        };
        Ok(match self {
            Case::Stat => Box::new(|_| stat(paths.file.as_c_str()).is_ok()),
            Case::StatDeep => Box::new(|_| stat(paths.deep.as_c_str()).is_ok()),
            Case::StatMany => Box::new(|i| stat(paths.many[i].as_c_str()).is_ok()),
            Case::Missing => Box::new(|_| stat(paths.missing.as_c_str()).err() == Some(Errno::ENOENT)),
            Case::Fstat => {
                let file = opened(&paths.file, OFlag::O_RDONLY)?;
                Box::new(move |_| fstat(&file).is_ok())
            }
            Case::GetxattrAbsent => {
                let file = opened(&paths.file, OFlag::O_RDONLY)?;
                let mut value = [0u8; 256];
                Box::new(move |_| attribute_is_absent(&file, c"user.absent", &mut value))
            }
            Case::OpenClose => Box::new(|_| {
                let file = open(paths.file.as_c_str(), OFlag::O_RDONLY, Mode::empty());
                file.and_then(close).is_ok()
            }),
            Case::OpenReadClose => {
                let mut buffer = buffer();
                Box::new(move |_| {
                    let Ok(file) = open(paths.file.as_c_str(), OFlag::O_RDONLY, Mode::empty()) else {
                        return false;
                    };
                    pread(&file, &mut buffer.0[..4 << 10], 0) == Ok(4 << 10) && close(file).is_ok()
                })
            }
            Case::PwriteSmall => {
                let (file, buffer) = (opened(&paths.scratch, OFlag::O_WRONLY)?, buffer());
                Box::new(move |_| pwrite(&file, &buffer.0[..100], 0) == Ok(100))
            }
            Case::Pread4k => read(OFlag::empty(), 4 << 10)?,
            Case::Pread128k => read(OFlag::empty(), 128 << 10)?,
            Case::Pread4kDirect => read(OFlag::O_DIRECT, 4 << 10)?,
            Case::Pwrite4k => {
                let (file, buffer) = (opened(&paths.scratch, OFlag::O_WRONLY)?, buffer());
                Box::new(move |_| pwrite(&file, &buffer.0[..4 << 10], 0) == Ok(4 << 10))
            }
        })
    }
}

/// A control: a directory made and removed, which no handler may answer.
pub fn make_and_remove(paths: &Paths) -> bool {
    nix::unistd::mkdir(paths.made.as_c_str(), Mode::S_IRWXU).is_ok()
        && unlinkat(
            nix::fcntl::AT_FDCWD,
            paths.made.as_c_str(),
            UnlinkatFlags::RemoveDir,
        )
        .is_ok()
}
