// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects of other authors: programs that take a place among ours.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Once};

use libbpf_rs::{ErrorKind, MapCore, Object as Live, ObjectBuilder, PrintLevel};

use super::context;
use crate::abi;
use crate::sys::bpf::set_program;

/// The largest object. One of ours has some 30 KiB.
pub const OBJECT_MAX: usize = 4 << 20;
/// How much of the verifier's log is kept: its end says what was wrong.
const LOG_LINES: usize = 24;
/// The map of an object that becomes the mount's own (`include/extfuse_bpf.h`).
const DEFAULTS: &str = "defaults";

/// A compiled eBPF object with a program of its author, as `clang -target bpf` makes it from a source
/// that includes `include/extfuse_bpf.h`. Nothing is looked at before it is loaded.
#[derive(Clone)]
pub struct Object {
    name: String,
    bytes: Arc<[u8]>,
}

impl Object {
    /// An object that is in memory. The name is for messages.
    pub fn new(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }

    /// Reads an object file.
    ///
    /// # Errors
    ///
    /// Those of reading; `FileTooLarge` beyond [`OBJECT_MAX`].
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        File::open(path)?
            .take(OBJECT_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() > OBJECT_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self::new(name.to_string_lossy(), bytes))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("name", &self.name)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// Why a program of somebody else's cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// libbpf cannot read it.
    #[error("{0} is no eBPF object")]
    NotAnObject(String),
    /// No program of the wanted kind.
    #[error("{name} has no program {wanted}")]
    NoProgram {
        /// The object.
        name: String,
        /// What it should have.
        wanted: &'static str,
    },
    /// More than one, and it is not said which.
    #[error("{name} has several programs {wanted}: {programs}")]
    Several {
        /// The object.
        name: String,
        /// What there should be one of.
        wanted: &'static str,
        /// Their names.
        programs: String,
    },
    /// The verifier, or libbpf, does not take it.
    #[error("{name} is refused: {reason}")]
    Refused {
        /// The object.
        name: String,
        /// The last word on it.
        reason: String,
        /// The end of the verifier's log, or what libbpf said.
        log: String,
    },
    /// Its program was made for another place than its section says.
    #[error("the program of {0} is carried for something else than its section says")]
    Misplaced(String),
    /// No privilege, no module.
    #[error(transparent)]
    Context(#[from] Box<context::Error>),
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Requests of one opcode.
    Request(u32),
    /// Sections.
    Section,
}

impl Place {
    fn section(self) -> &'static str {
        match self {
            Self::Request(_) => "struct_ops/request",
            Self::Section => "struct_ops/section",
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Request(_) => "that answers requests (EXTFUSE_HANDLER)",
            Self::Section => "that judges sections (EXTFUSE_GATE)",
        }
    }

    fn slot(self) -> u32 {
        match self {
            Self::Request(opcode) => opcode,
            Self::Section => 0,
        }
    }
}

/// An object whose programs the kernel has taken.
pub(super) struct Loaded {
    pub name: String,
    pub place: Place,
    program: String,
    /// With the descriptors of its maps: the kernel empties some with their last one.
    live: Live,
}

impl Loaded {
    /// Loads all of the object, and finds the program for that place. The object's `defaults` are those
    /// of the mount.
    pub fn load(object: &Object, place: Place, defaults: BorrowedFd<'_>) -> Result<Self, ObjectError> {
        listen();
        let name = || object.name.clone();
        let (opened, _) = caught(|| ObjectBuilder::default().open_memory(&object.bytes));
        let mut open = opened.map_err(|_| ObjectError::NotAnObject(name()))?;
        let candidates: Vec<String> = open
            .progs()
            .filter(|program| program.section() == place.section())
            .map(|program| program.name().to_string_lossy().into_owned())
            .collect();
        let program = choose(&candidates, place, &object.name)?;
        for mut map in open.maps_mut() {
            if map.name() == DEFAULTS {
                map.reuse_fd(defaults).map_err(refused(object, ""))?;
            }
        }
        let (loaded, log) = caught(|| open.load());
        let live = loaded.map_err(|error| match context::load_error(error) {
            context::Error::Load(error) => refused(object, &log)(error),
            error => Box::new(error).into(),
        })?;
        Ok(Self {
            name: name(),
            place,
            program,
            live,
        })
    }

    /// Puts the program into its slot of `array`: from here on it runs, if `array` is asked.
    pub fn put(&self, array: &impl MapCore) -> Result<(), ObjectError> {
        let misplaced = || ObjectError::Misplaced(self.name.clone());
        let program = self
            .live
            .progs()
            .find(|program| program.name() == self.program.as_str())
            .ok_or_else(misplaced)?;
        // The kernel compares what both were made for.
        set_program(array, self.place.slot(), program.as_fd()).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => misplaced(),
            _ => Box::new(context::Error::Bpf(error)).into(),
        })
    }
}

/// The only one, or the one that has the opcode's name.
fn choose(candidates: &[String], place: Place, name: &str) -> Result<String, ObjectError> {
    let named = match place {
        Place::Request(opcode) => abi::opcode_name(opcode),
        Place::Section => None,
    };
    let named = named.map(|opcode| format!("{}{}", context::REQUEST_PREFIX, opcode.to_lowercase()));
    match candidates {
        [] => Err(ObjectError::NoProgram {
            name: name.into(),
            wanted: place.wanted(),
        }),
        [only] => Ok(only.clone()),
        several => named
            .filter(|named| several.contains(named))
            .ok_or_else(|| ObjectError::Several {
                name: name.into(),
                wanted: place.wanted(),
                programs: several.join(", "),
            }),
    }
}

fn refused(object: &Object, said: &str) -> impl FnOnce(libbpf_rs::Error) -> ObjectError {
    let (reason, log) = verdict(said);
    let name = object.name.clone();
    move |error| ObjectError::Refused {
        name,
        reason: reason.unwrap_or_else(|| format!("{error:#}")),
        log,
    }
}

/// What the verifier has against a program, and the end of its log, out of all that libbpf said. Where
/// there is no log, libbpf has its own reason, which it says first.
fn verdict(said: &str) -> (Option<String>, String) {
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    let begin = lines
        .iter()
        .position(|line| line.ends_with("-- BEGIN PROG LOAD LOG --"));
    let end = lines
        .iter()
        .position(|line| line.ends_with("-- END PROG LOAD LOG --"));
    if let (Some(begin), Some(end)) = (begin, end)
        && begin < end
    {
        let log = &lines[begin + 1..end];
        // Its last line is how much work it was.
        let is_word = |line: &&&str| !line.is_empty() && !line.starts_with("processed ");
        let reason = log.iter().rev().find(is_word).map(|line| (*line).to_owned());
        return (reason, log[log.len().saturating_sub(LOG_LINES)..].join("\n"));
    }
    let words = |line: &&str| line.strip_prefix("libbpf: ").unwrap_or(line).to_owned();
    (
        lines.first().map(words),
        lines
            .iter()
            .map(words)
            .take(LOG_LINES)
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

thread_local! {
    /// What libbpf says to this thread, while somebody wants to know.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Takes what libbpf would print.
pub(super) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Info, |level, message| {
            tracing::debug!(target: "libbpf", "{}", message.trim_end());
            SAID.with_borrow_mut(|said| match said {
                Some(said) if level == PrintLevel::Warn => said.push_str(&message),
                _ => {}
            });
        })));
    });
}

/// What `work` gives, and what libbpf says against it.
fn caught<T>(work: impl FnOnce() -> T) -> (T, String) {
    SAID.set(Some(String::new()));
    let result = work();
    (result, SAID.take().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_program_is_taken_or_the_one_of_the_opcodes_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let lookup = Place::Request(1);
        assert_eq!(choose(&names(&["any"]), lookup, "o").unwrap(), "any");
        let both = names(&["handle_getattr", "handle_lookup"]);
        assert_eq!(choose(&both, lookup, "o").unwrap(), "handle_lookup");
        assert!(matches!(
            choose(&both, Place::Request(15), "o"),
            Err(ObjectError::Several { .. })
        ));
        assert!(matches!(
            choose(&both, Place::Section, "o"),
            Err(ObjectError::Several { .. })
        ));
        assert!(matches!(
            choose(&[], lookup, "o"),
            Err(ObjectError::NoProgram { .. })
        ));
    }

    #[test]
    fn the_verifiers_last_word_is_the_reason() {
        let log = "libbpf: prog 'p': BPF program load failed: Permission denied\n\
                   libbpf: prog 'p': -- BEGIN PROG LOAD LOG --\n\
                   0: R1=ctx()\n\
                   1: (85) call 0#0\n\
                   R1 invalid mem access 'scalar'\n\
                   processed 3 insns (limit 1000000) max_states_per_insn 0\n\
                   -- END PROG LOAD LOG --\n\
                   libbpf: prog 'p': failed to load: -13\n";
        let (reason, tail) = verdict(log);
        assert_eq!(reason.as_deref(), Some("R1 invalid mem access 'scalar'"));
        assert!(
            tail.starts_with("0: R1") && tail.ends_with("max_states_per_insn 0"),
            "{tail}"
        );
        let long = log.replace("0: R1=ctx()\n", &"0: r1 = 1\n".repeat(1000));
        assert_eq!(verdict(&long).1.lines().count(), LOG_LINES);
        let (reason, _) = verdict("libbpf: extern 'f': not found\nlibbpf: failed to load\n");
        assert_eq!(reason.as_deref(), Some("extern 'f': not found"));
        assert_eq!(verdict("").0, None);
    }

    #[test]
    fn an_object_file_is_read_up_to_a_size() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("large.o");
        File::create(&path)
            .unwrap()
            .set_len(OBJECT_MAX as u64 + 1)
            .unwrap();
        assert_eq!(
            Object::read(&path).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        std::fs::write(&path, b"abc").unwrap();
        let object = Object::read(&path).unwrap();
        assert_eq!((object.name(), object.bytes()), ("large.o", &b"abc"[..]));
    }
}
