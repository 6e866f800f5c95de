// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs of one connection: loading, attaching, replacing.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle};

use super::maps::Maps;
use super::object::{Loaded, Object, ObjectError, Place, listen};
use super::row::Validity;
use crate::abi::skeleton::{ExtfuseSkel, ExtfuseSkelBuilder, OpenExtfuseSkel};
use crate::abi::{self, Miss};
use crate::sys::bpf::{set_program, update_struct_ops};

/// Where the running kernel shows the types of the module.
const MODULE_BTF: &str = "/sys/kernel/btf/extfuse";

/// Programs of these names answer requests, or see replies, of the opcode in the rest of the name.
pub(super) const REQUEST_PREFIX: &str = "handle_";
const REPLY_PREFIX: &str = "reply_";
/// Maps of these names carry a program that is for no member of what is attached.
const CARRIER_PREFIX: &str = "carry_";

/// Whose replies tell what a handler of requests would be asked.
const LEARNT: [(&str, &[&str]); 5] = [
    (
        "LOOKUP",
        &[
            "LOOKUP", "CREATE", "MKNOD", "MKDIR", "SYMLINK", "LINK", "RENAME", "RENAME2",
        ],
    ),
    ("GETATTR", &["LOOKUP", "GETATTR", "SETATTR"]),
    ("OPEN", &["OPEN"]),
    ("OPENDIR", &["OPENDIR"]),
    ("STATFS", &["STATFS"]),
];

/// Why programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not privileged.
    #[error("loading eBPF programs needs CAP_BPF and CAP_PERFMON, or root")]
    Privilege(#[source] libbpf_rs::Error),
    /// The module is not loaded, or has no type information.
    #[error("the kernel does not know the types of extfuse ({MODULE_BTF}): load extfuse.ko, built with BTF")]
    NoModule(#[source] libbpf_rs::Error),
    /// The verifier or libbpf refused.
    #[error("the eBPF programs cannot be loaded: {0:#} (the reasons are logged at level debug)")]
    Load(libbpf_rs::Error),
    /// There are programs on this connection already.
    #[error("programs are attached to this connection already")]
    Busy(#[source] libbpf_rs::Error),
    /// The connection is unmounted, aborted, or was never set up.
    #[error("the connection is gone")]
    Gone(#[source] libbpf_rs::Error),
    /// The kernel has taken the programs off; [`detach`](Context::detach), then
    /// [`replace`](Context::replace) puts on new ones.
    #[error("the programs were ejected")]
    Ejected(#[source] libbpf_rs::Error),
    /// Anything else from a map, link or program.
    #[error("eBPF: {0:#}")]
    Bpf(#[from] libbpf_rs::Error),
    /// A descriptor could not be duplicated, or the maps are not those of this program.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A handler whose name is not that of an opcode.
    #[error("the eBPF program {0} is for no opcode that there is")]
    Handler(String),
    /// A program of somebody else's.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl Error {
    /// Whether no program would do better here.
    #[must_use]
    pub fn is_of_the_machine(&self) -> bool {
        match self {
            Self::Privilege(_) | Self::NoModule(_) => true,
            Self::Object(ObjectError::Context(error)) => error.is_of_the_machine(),
            _ => false,
        }
    }
}

/// How many rows the maps hold. The kernel allocates them at once (an entry takes about 400 bytes,
/// attributes about 200, an extended attribute about 350), and evicts the least recently used when they are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rows of `entry_map`.
    pub entries: u32,
    /// Rows of `attr_map`.
    pub attrs: u32,
    /// Rows of `xattr_map`: one for the names of each node, and one for each value.
    pub xattrs: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            entries: 65536,
            attrs: 65536,
            xattrs: 32768,
        }
    }
}

/// What the kernel's own caches may keep of the daemon's answers, beside what handlers answer. By
/// default, what the daemon says with them: its timeouts, but ended by the next change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learning {
    /// How long an answer may be kept, counted from before it was asked, if the daemon's own timeout is
    /// shorter.
    pub valid: Option<Validity>,
    /// Whether the attributes that come with a name are those of the node, with the right inode number.
    pub entry_attributes: bool,
    /// Whether files and directories may be opened for reading as they were opened before, without the
    /// daemon hearing of it. It does when it is asked something about an open file; a daemon that counts
    /// opens, or decides by who opens, must not allow it.
    pub opens: bool,
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Rows of `entry_map`, stale ones included.
    pub entries: u64,
    /// Rows of `attr_map`, stale ones included.
    pub attrs: u64,
    /// Rows of `xattr_map`, stale ones included.
    pub xattrs: u64,
    /// How many there can be.
    pub capacity: Capacity,
}

/// The requests of one opcode that a handler did not answer, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// No row.
    pub absent: u64,
    /// A row that was being replaced, or of another name.
    pub torn: u64,
    /// Something changed since the row was published.
    pub stale: u64,
    /// Its time was over.
    pub expired: u64,
}

/// What belongs to one load of the programs and goes with it.
struct Programs {
    request: OwnedFd,
    handlers: MapHandle,
    /// Not used, but open: the kernel empties a PROG_ARRAY with its last descriptor.
    _reply_handlers: MapHandle,
    _section_handlers: MapHandle,
    /// Bitmaps of the opcodes that the programs of the skeleton are for.
    opcodes: u64,
    replies: u64,
    defaults: BTreeMap<u32, OwnedFd>,
}

/// The maps that outlive a replacement of the programs.
struct Rows {
    entries: MapHandle,
    attrs: MapHandle,
    xattrs: MapHandle,
    misses: MapHandle,
    /// Other authors' handlers call it.
    defaults: MapHandle,
}

/// What of the skeleton is wanted.
#[derive(Clone, Copy)]
struct Wanted {
    conn: u64,
    handlers: bool,
    gate: bool,
    learning: Learning,
}

/// The eBPF context of a connection: the program that is loaded, the maps that were created, and
/// the link that attaches them. Dropping it detaches.
pub struct Context {
    wanted: Wanted,
    rows: Rows,
    programs: Programs,
    /// Handlers of other authors, by opcode.
    custom: BTreeMap<u32, Loaded>,
    gate: Option<Loaded>,
    link: Option<Link>,
}

impl Context {
    /// Loads the programs with maps of that capacity and attaches them to the connection of
    /// that id ([`abi::Setup::conn`]); `learning` says what they keep of the daemon's answers.
    ///
    /// # Errors
    ///
    /// [`Error`] says what is missing.
    pub fn attach(conn: u64, capacity: Capacity, learning: Learning) -> Result<Self, Error> {
        let wanted = Wanted {
            conn,
            handlers: true,
            gate: false,
            learning,
        };
        Self::new(wanted, capacity, None)
    }

    /// Attaches nothing but a gate: the object's program that judges sections. Requests go up as if there
    /// were no programs.
    ///
    /// # Errors
    ///
    /// [`Error`] says what is missing, or what is wrong with the object.
    pub fn attach_gate(conn: u64, gate: &Object) -> Result<Self, Error> {
        let wanted = Wanted {
            conn,
            handlers: false,
            gate: true,
            learning: Learning::default(),
        };
        let nothing = Capacity {
            entries: 1,
            attrs: 1,
            xattrs: 1,
        };
        Self::new(wanted, nothing, Some(gate))
    }

    fn new(wanted: Wanted, capacity: Capacity, gate: Option<&Object>) -> Result<Self, Error> {
        let mut storage = MaybeUninit::uninit();
        let mut open = open(&mut storage)?;
        open.maps.entry_map.set_max_entries(capacity.entries)?;
        open.maps.attr_map.set_max_entries(capacity.attrs)?;
        open.maps.xattr_map.set_max_entries(capacity.xattrs)?;
        let (mut skeleton, programs) = load(open, wanted)?;
        let rows = Rows {
            entries: MapHandle::try_from(&skeleton.maps.entry_map)?,
            attrs: MapHandle::try_from(&skeleton.maps.attr_map)?,
            xattrs: MapHandle::try_from(&skeleton.maps.xattr_map)?,
            misses: MapHandle::try_from(&skeleton.maps.misses)?,
            defaults: MapHandle::try_from(&skeleton.maps.defaults)?,
        };
        let gate = gate.map(|gate| Loaded::load(gate, Place::Section, rows.defaults.as_fd()));
        let gate = gate.transpose()?;
        if let Some(gate) = &gate {
            gate.put(&skeleton.maps.section_handlers)?;
        }
        let link = skeleton.maps.extfuse.attach_struct_ops().map_err(attach_error)?;
        Ok(Self {
            wanted,
            rows,
            programs,
            custom: BTreeMap::new(),
            gate,
            link: Some(link),
        })
    }

    /// Loads the programs anew and puts them in the place of those that are attached, without a
    /// moment in which none are; attaches them if none are. The rows stay, and the programs of other
    /// authors.
    ///
    /// # Errors
    ///
    /// [`Error`]; what was attached stays attached.
    pub fn replace(&mut self) -> Result<(), Error> {
        let mut storage = MaybeUninit::uninit();
        let mut open = open(&mut storage)?;
        open.maps.entry_map.reuse_fd(self.rows.entries.as_fd())?;
        open.maps.attr_map.reuse_fd(self.rows.attrs.as_fd())?;
        open.maps.xattr_map.reuse_fd(self.rows.xattrs.as_fd())?;
        open.maps.misses.reuse_fd(self.rows.misses.as_fd())?;
        open.maps.defaults.reuse_fd(self.rows.defaults.as_fd())?;
        let (mut skeleton, programs) = load(open, self.wanted)?;
        for handler in self.custom.values() {
            handler.put(&skeleton.maps.handlers)?;
        }
        if let Some(gate) = &self.gate {
            gate.put(&skeleton.maps.section_handlers)?;
        }
        match &mut self.link {
            Some(link) => {
                update_struct_ops(link, &skeleton.maps.extfuse)
                    .map_err(|error| attach_error(error.into()))?;
            }
            None => {
                self.link = Some(skeleton.maps.extfuse.attach_struct_ops().map_err(attach_error)?);
            }
        }
        self.programs = programs;
        Ok(())
    }

    /// Detaches the programs: the daemon is asked everything. The rows stay.
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// Puts the program of another author into the place of the handler of `opcode`, between two requests.
    /// Then [`opcodes`](Self::opcodes) are to be told to the module.
    ///
    /// # Errors
    ///
    /// [`ObjectError`]; the handler that was there stays.
    pub fn load_handler(&mut self, opcode: u32, object: &Object) -> Result<(), ObjectError> {
        let handler = Loaded::load(object, Place::Request(opcode), self.rows.defaults.as_fd())?;
        handler.put(&self.programs.handlers)?;
        self.custom.insert(opcode, handler);
        Ok(())
    }

    /// Puts the default handler of `opcode` back, or none where there is none. False if no other author's
    /// was there.
    ///
    /// # Errors
    ///
    /// As the kernel gives them; the handler stays.
    pub fn unload_handler(&mut self, opcode: u32) -> Result<bool, Error> {
        if !self.custom.contains_key(&opcode) {
            return Ok(false);
        }
        match self.programs.defaults.get(&opcode) {
            Some(program) => set_program(&self.programs.handlers, opcode, program.as_fd())?,
            None => self.programs.handlers.delete(&opcode.to_ne_bytes())?,
        }
        self.custom.remove(&opcode);
        Ok(true)
    }

    /// Leaves the handler of another author out of the next [`replace`](Self::replace). Until then it stays.
    pub fn forget_handler(&mut self, opcode: u32) {
        self.custom.remove(&opcode);
    }

    /// The handlers of other authors: opcode, name of the object.
    pub fn custom_handlers(&self) -> impl Iterator<Item = (u32, &str)> {
        self.custom
            .iter()
            .map(|(opcode, handler)| (*opcode, handler.name.as_str()))
    }

    /// Whether programs were attached and not [detached](Self::detach) here. The kernel may have
    /// taken them off since: [`Device::status`](crate::sys::device::Device::status) says.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// The program that every request with a handler goes through.
    #[must_use]
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.programs.request.as_fd()
    }

    /// The maps: `entry_map`, `attr_map`, `xattr_map`, and the handlers by opcode.
    #[must_use]
    pub fn map_fds(&self) -> [BorrowedFd<'_>; 4] {
        [
            self.rows.entries.as_fd(),
            self.rows.attrs.as_fd(),
            self.rows.xattrs.as_fd(),
            self.programs.handlers.as_fd(),
        ]
    }

    /// The names of [`map_fds`](Self::map_fds).
    pub const MAP_NAMES: [&'static str; 4] = ["entry_map", "attr_map", "xattr_map", "handlers"];

    /// Bitmaps of the opcodes that have a handler of requests, and of replies. What another author's
    /// handler decides about is not learnt: what the kernel keeps it is not asked about.
    #[must_use]
    pub fn opcodes(&self) -> (u64, u64) {
        let custom = bitmap(self.custom.keys().copied());
        let decided = self.custom.keys().filter_map(|opcode| abi::opcode_name(*opcode));
        let replies = decided.fold(self.programs.replies, |replies, opcode| {
            let learnt = LEARNT.iter().find(|(decided, _)| *decided == opcode);
            let learnt = learnt.map_or(&[][..], |(_, replies)| replies);
            replies & !bitmap(learnt.iter().filter_map(|reply| abi::opcode_of(reply)))
        });
        (self.programs.opcodes | custom, replies)
    }

    /// The maps for a [`Cache`](super::Cache) to publish to.
    ///
    /// # Errors
    ///
    /// If their descriptors cannot be duplicated.
    pub fn maps(&self) -> Result<Maps, Error> {
        Ok(Maps::new(
            MapHandle::try_from(&self.rows.entries)?,
            MapHandle::try_from(&self.rows.attrs)?,
            MapHandle::try_from(&self.rows.xattrs)?,
        )?)
    }

    /// How full the maps are. Reads them all, some thousand rows a system call.
    #[must_use]
    pub fn fill(&self) -> Fill {
        const BATCH: u32 = 4096;
        let used = |map: &MapHandle| {
            let rows = map.lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY);
            // A map that changes meanwhile may give a row twice: no more than fit are counted.
            rows.map_or(0, |rows| rows.take(map.max_entries() as usize).count() as u64)
        };
        Fill {
            entries: used(&self.rows.entries),
            attrs: used(&self.rows.attrs),
            xattrs: used(&self.rows.xattrs),
            capacity: Capacity {
                entries: self.rows.entries.max_entries(),
                attrs: self.rows.attrs.max_entries(),
                xattrs: self.rows.xattrs.max_entries(),
            },
        }
    }

    /// What handlers did not answer, by opcode, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// As the kernel gives them.
    pub fn misses(&self) -> Result<[Misses; abi::OPCODES], Error> {
        let mut misses = [Misses::default(); abi::OPCODES];
        for (opcode, misses) in (0..).zip(&mut misses) {
            misses.absent = self.missed(opcode, Miss::EXTFUSE_MISS_ABSENT)?;
            misses.torn = self.missed(opcode, Miss::EXTFUSE_MISS_TORN)?;
            misses.stale = self.missed(opcode, Miss::EXTFUSE_MISS_STALE)?;
            misses.expired = self.missed(opcode, Miss::EXTFUSE_MISS_EXPIRED)?;
        }
        Ok(misses)
    }

    fn missed(&self, opcode: u32, reason: Miss) -> Result<u64, Error> {
        let key = opcode * Miss::EXTFUSE_MISSES.0 + reason.0;
        let values = self
            .rows
            .misses
            .lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY)?;
        let value = |bytes: Vec<u8>| bytes.try_into().map_or(0, u64::from_ne_bytes);
        Ok(values.into_iter().flatten().map(value).sum())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connection's id is a secret: whoever knows it may attach.
        formatter
            .debug_struct("Context")
            .field("attached", &self.is_attached())
            .field("opcodes", &format_args!("{:#x}", self.programs.opcodes))
            .field("replies", &format_args!("{:#x}", self.programs.replies))
            .finish_non_exhaustive()
    }
}

fn open(storage: &mut MaybeUninit<libbpf_rs::OpenObject>) -> Result<OpenExtfuseSkel<'_>, Error> {
    listen();
    Ok(ExtfuseSkelBuilder::default().open(storage)?)
}

fn bitmap(opcodes: impl IntoIterator<Item = u32>) -> u64 {
    opcodes.into_iter().fold(0, |bits, opcode| bits | 1_u64 << opcode)
}

/// Loads the programs that are wanted for the connection and puts the handlers into their arrays.
fn load(mut open: OpenExtfuseSkel<'_>, wanted: Wanted) -> Result<(ExtfuseSkel<'_>, Programs), Error> {
    if let Some(config) = open.maps.rodata_data.as_deref_mut() {
        config.learn_age = match wanted.learning.valid {
            None => 0,
            Some(Validity::UntilChanged) => abi::NEVER,
            Some(Validity::For(age)) => u64::try_from(age.as_nanos()).unwrap_or(abi::NEVER),
        };
        config.learn_entry_attr = wanted.learning.entry_attributes.into();
        config.learn_opens = wanted.learning.opens.into();
    }
    let mut handlers = Vec::new();
    let mut reply_handlers = Vec::new();
    for program in open.open_object().progs() {
        let name = program.name().to_string_lossy();
        let (opcode, list) = if let Some(opcode) = name.strip_prefix(REQUEST_PREFIX) {
            (opcode, &mut handlers)
        } else if let Some(opcode) = name.strip_prefix(REPLY_PREFIX) {
            (opcode, &mut reply_handlers)
        } else {
            continue;
        };
        if !wanted.handlers {
            continue;
        }
        let opcode = abi::opcode_of(opcode).ok_or_else(|| Error::Handler(name.to_string()))?;
        list.push((opcode, name.into_owned()));
    }
    let of = |list: &[(u32, String)]| bitmap(list.iter().map(|(opcode, _)| *opcode));
    let (opcodes, replies) = (of(&handlers), of(&reply_handlers));

    let ops = open.struct_ops.extfuse_mut();
    ops.conn = wanted.conn;
    ops.opcodes = opcodes;
    ops.replies = replies;
    if !wanted.gate {
        ops.section = ptr::null_mut();
        open.progs.extfuse_section.set_autoload(false);
    }
    if !wanted.handlers {
        let ops = open.struct_ops.extfuse_mut();
        ops.event = ptr::null_mut();
        open.progs.extfuse_event.set_autoload(false);
        // A program without its carrier is not loaded.
        for mut map in open.open_object_mut().maps_mut() {
            if map.name().to_string_lossy().starts_with(CARRIER_PREFIX) {
                map.set_autocreate(false)?;
            }
        }
    }

    let skeleton = open.load().map_err(load_error)?;
    fill(&skeleton, &skeleton.maps.defaults, &handlers)?;
    let defaults = fill(&skeleton, &skeleton.maps.handlers, &handlers)?;
    fill(&skeleton, &skeleton.maps.reply_handlers, &reply_handlers)?;
    let programs = Programs {
        request: skeleton.progs.extfuse_request.as_fd().try_clone_to_owned()?,
        handlers: MapHandle::try_from(&skeleton.maps.handlers)?,
        _reply_handlers: MapHandle::try_from(&skeleton.maps.reply_handlers)?,
        _section_handlers: MapHandle::try_from(&skeleton.maps.section_handlers)?,
        opcodes,
        replies,
        defaults,
    };
    Ok((skeleton, programs))
}

/// Gives the programs that were put into `array`.
fn fill(
    skeleton: &ExtfuseSkel<'_>,
    array: &impl MapCore,
    programs: &[(u32, String)],
) -> Result<BTreeMap<u32, OwnedFd>, Error> {
    let mut put = BTreeMap::new();
    for (opcode, name) in programs {
        let program = skeleton
            .object()
            .progs()
            .find(|program| program.name() == name.as_str());
        let program = program.ok_or_else(|| Error::Handler(name.clone()))?;
        set_program(array, *opcode, program.as_fd())?;
        put.insert(*opcode, program.as_fd().try_clone_to_owned()?);
    }
    Ok(put)
}

pub(super) fn load_error(error: libbpf_rs::Error) -> Error {
    match errno(&error) {
        Some(libc::EPERM) => Error::Privilege(error),
        _ if !Path::new(MODULE_BTF).exists() => Error::NoModule(error),
        _ => Error::Load(error),
    }
}

fn attach_error(error: libbpf_rs::Error) -> Error {
    match errno(&error) {
        Some(libc::EPERM) => Error::Privilege(error),
        Some(libc::EBUSY) => Error::Busy(error),
        Some(libc::ENOENT | libc::ENOTCONN) => Error::Gone(error),
        Some(libc::ENOLINK) => Error::Ejected(error),
        _ => Error::Bpf(error),
    }
}

/// The errno, which libbpf-rs shows in its messages but does not give away.
fn errno(error: &libbpf_rs::Error) -> Option<i32> {
    let message = format!("{error:#}");
    let (_, rest) = message.rsplit_once("(os error ")?;
    rest.split(')').next()?.parse().ok()
}
