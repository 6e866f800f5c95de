// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse handler`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use extfuse::abi;
use extfuse::control::{self, AskError, Handler as Listed};
use extfuse::ebpf::Object;

use super::umount::find;
use super::{Failure, say};

/// Have eBPF programs of your own answer requests of a mount.
///
/// Such a program takes the place of extfuse's own handler of one kind of request, and may call on to it.
/// It is gone with the mount's daemon; one that makes too many errors is ejected, and the mount goes on
/// with extfuse's own. How to write and compile one: docs/handlers.md.
#[derive(Debug, Args)]
pub struct Handler {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Put the program of an object file into the place of a handler
    ///
    /// In the place of another one loaded before, too, between two requests.
    Load {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Whose requests the program answers: LOOKUP, GETATTR...
        #[arg(value_parser = opcode)]
        opcode: u32,
        /// The object file: clang -O2 -g -target bpf -I include -c FILE.bpf.c -o FILE.bpf.o
        file: PathBuf,
    },
    /// Show which requests have a handler, and whose
    List {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put extfuse's own handler back
    Unload {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Whose requests
        #[arg(value_parser = opcode)]
        opcode: u32,
    },
}

/// By its name in the protocol, or its number.
fn opcode(text: &str) -> Result<u32, String> {
    let number = |text: &str| {
        text.parse()
            .ok()
            .filter(|number| abi::opcode_name(*number).is_some())
    };
    abi::opcode_of(text)
        .or_else(|| number(text))
        .ok_or_else(|| "no kind of request there is".into())
}

impl Handler {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self.what {
            What::Load {
                mountpoint,
                opcode,
                file,
            } => {
                // Here, with this user's rights: the daemon opens no file for anybody.
                let object =
                    Object::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                let location = find(&mountpoint)?;
                let loaded = control::load(location.id.dev, location.mount.owner(), opcode, &object);
                if let Err(AskError::Refusal(refusal)) = &loaded
                    && !refusal.log.is_empty()
                {
                    eprintln!("{}", refusal.log);
                }
                loaded.map_err(|error| anyhow!("{}: {error}", mountpoint.display()))?;
            }
            What::List { mountpoint, json } => {
                let location = find(&mountpoint)?;
                let handlers = control::handlers(location.id.dev, location.mount.owner())
                    .with_context(|| mountpoint.display().to_string())?;
                if json {
                    say(&(serde_json::to_string_pretty(&handlers)? + "\n"))?;
                } else {
                    say(&handlers.iter().map(line).collect::<String>())?;
                }
            }
            What::Unload { mountpoint, opcode } => {
                let location = find(&mountpoint)?;
                control::unload(location.id.dev, location.mount.owner(), opcode)
                    .map_err(|error| anyhow!("{}: {error}", mountpoint.display()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(handler: &Listed) -> String {
    format!("{:<16} {}\n", handler.opcode, whose(handler))
}

/// What is known of a handler, beside its opcode.
pub fn whose(handler: &Listed) -> String {
    let object = handler.object.as_deref().unwrap_or("extfuse");
    match (handler.attached, handler.reason.as_str()) {
        (true, _) => object.to_owned(),
        (false, "") => format!("{object} (not attached any more)"),
        (false, reason) => format!("{object} (ejected: {reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opcode_is_a_name_or_a_number_that_there_is() {
        assert_eq!(opcode("lookup"), Ok(1));
        assert_eq!(opcode("GETATTR"), Ok(3));
        assert_eq!(opcode("15"), Ok(15));
        for wrong in ["", "LOOK", "0", "7", "63", "-1", "4096"] {
            assert!(opcode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_says_whose_it_is_and_why_not_any_more() {
        let mut handler = Listed {
            opcode: "LOOKUP".into(),
            object: None,
            attached: true,
            reason: String::new(),
        };
        assert_eq!(line(&handler), "LOOKUP           extfuse\n");
        handler.object = Some("mine.o".into());
        assert_eq!(whose(&handler), "mine.o");
        handler.attached = false;
        handler.reason = "opcode 1: bad".into();
        assert_eq!(whose(&handler), "mine.o (ejected: opcode 1: bad)");
    }
}
