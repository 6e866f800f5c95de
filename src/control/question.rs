// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be asked of a daemon.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::abi;
use crate::ebpf::{OBJECT_MAX, Object};

/// Longest name of an object that is shown.
const NAME_MAX: usize = 64;

/// A handler of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// Whose requests it answers.
    pub opcode: String,
    /// The object that it was loaded from; none of extfuse's own.
    pub object: Option<String>,
    /// Whether it is asked.
    pub attached: bool,
    /// Why it was ejected.
    #[serde(default)]
    pub reason: String,
}

/// Why a daemon does not do what it was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("{error}")]
pub struct Refusal {
    /// In a line.
    pub error: String,
    /// The end of the verifier's log, if it was that.
    #[serde(default)]
    pub log: String,
}

impl Refusal {
    /// Without a log.
    #[must_use]
    pub fn because(error: String) -> Self {
        Self {
            error,
            log: String::new(),
        }
    }
}

/// A line, with an object behind it where one is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Stat,
    Handlers,
    Load { opcode: u32, size: usize, name: String },
    Unload { opcode: u32 },
}

impl Question {
    pub fn load(opcode: u32, object: &Object) -> Self {
        // Of any characters that make a line.
        let name = object
            .name()
            .chars()
            .map(|c| if c.is_control() { '?' } else { c });
        Self::Load {
            opcode,
            size: object.bytes().len(),
            name: name.take(NAME_MAX).collect(),
        }
    }

    pub fn line(&self) -> String {
        match self {
            Self::Stat => "stat\n".into(),
            Self::Handlers => "handlers\n".into(),
            Self::Load { opcode, size, name } => format!("load {opcode} {size} {name}\n"),
            Self::Unload { opcode } => format!("unload {opcode}\n"),
        }
    }

    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let opcode = |text: &str| {
            let opcode = text.parse().ok()?;
            ((opcode as usize) < abi::OPCODES).then_some(opcode)
        };
        match (word, rest) {
            ("stat", "") => Some(Self::Stat),
            ("handlers", "") => Some(Self::Handlers),
            ("unload", number) => Some(Self::Unload {
                opcode: opcode(number)?,
            }),
            ("load", rest) => {
                let mut words = rest.splitn(3, ' ');
                let opcode = opcode(words.next()?)?;
                let size = words.next()?.parse().ok().filter(|size| *size <= OBJECT_MAX)?;
                let name = words.next()?;
                let fits = name.chars().count() <= NAME_MAX && !name.chars().any(char::is_control);
                fits.then(|| Self::Load {
                    opcode,
                    size,
                    name: name.into(),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_understood() {
        let named = |name: &str| Question::load(1, &Object::new(name, &b"abc"[..]));
        for question in [
            Question::Stat,
            Question::Handlers,
            Question::Unload { opcode: 63 },
            named("a name with spaces.o"),
            named("two\nlines"),
            named(&"ä".repeat(300)),
            named(""),
        ] {
            assert_eq!(Question::parse(question.line().as_bytes()), Some(question));
        }
    }

    #[test]
    fn other_questions_are_none() {
        for line in [
            "",
            "stat",
            "stat \n\n",
            "stat now\n",
            "unload 64\n",
            "unload -1\n",
            "load 1\n",
            "load 1 5\n",
            "load 64 5 name\n",
            "load 1 4194305 name\n",
            "load 1 99999999999999999999 name\n",
            "load 1 5 tab\there\n",
        ] {
            assert_eq!(Question::parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(Question::parse(b"load 1 5 \xff\n"), None);
    }
}
