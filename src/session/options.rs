// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `-o` of `extfuse mount`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use thiserror::Error;

use crate::ebpf::{Capacity, Validity};

/// How long an answer may be served while the source may change behind the mount: what stock FUSE
/// daemons use by default.
pub const DEFAULT_TTL: Duration = Duration::from_secs(1);

/// What is told to the kernel as "for ever": far beyond any uptime, and no overflow in jiffies.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86400);

/// Options of a mount, by the names that mount(8) and FUSE use for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`: no changes.
    pub read_only: bool,
    /// `suid`: set-user-id bits count. Off by default, as in libfuse.
    pub suid: bool,
    /// `dev`: device nodes can be opened. Off by default, as in libfuse.
    pub dev: bool,
    /// `noexec` turns it off.
    pub exec: bool,
    /// `noatime`: reads through the mount do not change the access time.
    pub noatime: bool,
    /// `allow_other`: not only the owner may use the mount. By default exactly for root's mounts.
    pub allow_other: Option<bool>,
    /// `fsname=`: shown as the source; by default the source's path.
    pub fsname: Option<OsString>,
    /// `subtype=`: shown behind the type; by default `extfuse` on stock FUSE.
    pub subtype: Option<String>,
    /// `max_read=`: the largest READ, in bytes.
    pub max_read: Option<u32>,
    /// `entry_timeout=`: how long the kernel itself keeps names; by default see `timeouts`.
    pub entry_timeout: Option<Duration>,
    /// `attr_timeout=`: how long the kernel itself keeps attributes.
    pub attr_timeout: Option<Duration>,
    /// `keep_cache`: opening a file does not drop its cached pages. Reads and writes then go through
    /// the daemon: a file with a backing file has no pages here.
    pub keep_cache: bool,
    /// `no_passthrough` turns it off: reads and writes then go through the daemon.
    pub passthrough: bool,
    /// `ttl=`: the oldest answer to give when the source changed behind the mount.
    pub ttl: Option<Duration>,
    /// `exclusive`: all changes come through this mount; answers hold until then.
    pub exclusive: bool,
    /// `entries=`: how many names and how many nodes the handlers' maps hold.
    pub entries: Option<u32>,
    /// `hold=`: how many nodes are held when the kernel has forgotten them; see [`hold`](Self::hold).
    pub hold: Option<u32>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            noatime: false,
            allow_other: None,
            fsname: None,
            subtype: None,
            max_read: None,
            entry_timeout: None,
            attr_timeout: None,
            keep_cache: false,
            passthrough: true,
            ttl: None,
            exclusive: false,
            entries: None,
            hold: None,
        }
    }
}

/// What is wrong with an option.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// Nobody here knows it.
    #[error("unknown mount option {0:?}")]
    Unknown(String),
    /// A value that cannot be one, or none where one is needed.
    #[error("mount option {name}={value:?}: {expected} expected")]
    Value {
        /// The option's name.
        name: String,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// A value for an option that takes none.
    #[error("mount option {0} takes no value")]
    Superfluous(String),
    /// `ttl` and `exclusive` say opposite things.
    #[error("mount options ttl and exclusive exclude each other")]
    Contradiction,
}

impl MountOptions {
    /// Adds the options of one `-o`, comma-separated, a backslash before a comma that is meant. A
    /// later option overrides an earlier one.
    pub fn add(&mut self, list: &OsStr) -> Result<(), OptionError> {
        for option in split(list.as_bytes()) {
            let mut parts = option.splitn(2, |byte| *byte == b'=');
            let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
            match parts.next() {
                Some(value) => self.assign(&name, value)?,
                None => self.switch(&name)?,
            }
        }
        self.check()
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<(), OptionError> {
        if self.exclusive && self.ttl.is_some() {
            return Err(OptionError::Contradiction);
        }
        Ok(())
    }

    /// How long what the daemon publishes for the handlers may be served.
    #[must_use]
    pub fn validity(&self) -> Validity {
        if self.exclusive {
            Validity::UntilChanged
        } else {
            Validity::For(self.ttl.unwrap_or(DEFAULT_TTL))
        }
    }

    /// The entry and attribute timeouts of the kernel's own caches. 0 unless more is asked for: with
    /// handlers their maps are the truth, and without them nothing tells the kernel of changes, so
    /// that `ttl` and `exclusive` become times.
    #[must_use]
    pub fn timeouts(&self, handlers: bool) -> (Duration, Duration) {
        let default = match (handlers, self.exclusive) {
            (true, _) => Duration::ZERO,
            (false, true) => FOREVER,
            (false, false) => self.ttl.unwrap_or_default(),
        };
        (
            self.entry_timeout.unwrap_or(default),
            self.attr_timeout.unwrap_or(default),
        )
    }

    /// How many nodes are held, with handlers, when the kernel has forgotten them. By default as many as
    /// the handlers' maps have rows, if answers hold until something changes. Those that hold for a time
    /// are soon of no use, and a file that is removed behind the mount would keep its space for as long.
    #[must_use]
    pub fn hold(&self) -> u32 {
        let usual = match self.validity() {
            Validity::UntilChanged => self.entries.unwrap_or(Capacity::default().attrs),
            Validity::For(_) => 0,
        };
        match self.validity() {
            Validity::For(Duration::ZERO) => 0,
            _ => self.hold.unwrap_or(usual),
        }
    }

    fn switch(&mut self, name: &str) -> Result<(), OptionError> {
        match name {
            // Always so: a daemon that runs as root must not be what decides on permissions.
            "defaults" | "default_permissions" => {}
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "noatime" => self.noatime = true,
            "atime" => self.noatime = false,
            "allow_other" => self.allow_other = Some(true),
            "no_allow_other" => self.allow_other = Some(false),
            "keep_cache" => self.keep_cache = true,
            "no_passthrough" => self.passthrough = false,
            "exclusive" => self.exclusive = true,
            "fsname" | "subtype" | "max_read" | "entry_timeout" | "attr_timeout" | "ttl" | "entries"
            | "hold" => {
                return self.assign(name, b"");
            }
            _ => return Err(OptionError::Unknown(name.into())),
        }
        Ok(())
    }

    fn assign(&mut self, name: &str, value: &[u8]) -> Result<(), OptionError> {
        let text = String::from_utf8_lossy(value);
        let wrong = |expected| OptionError::Value {
            name: name.into(),
            value: text.clone().into_owned(),
            expected,
        };
        let seconds = || parse_seconds(&text).ok_or_else(|| wrong("a number of seconds"));
        let count = || {
            text.parse()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| wrong("a positive number"))
        };
        match name {
            "fsname" if !value.is_empty() => self.fsname = Some(OsString::from_vec(value.to_vec())),
            "fsname" => return Err(wrong("a name")),
            "subtype"
                if !text.is_empty()
                    && text
                        .chars()
                        .all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter)) =>
            {
                self.subtype = Some(text.into_owned());
            }
            "subtype" => return Err(wrong("letters and digits")),
            "max_read" => self.max_read = Some(count()?),
            "entries" => self.entries = Some(count()?),
            "hold" => self.hold = Some(text.parse().map_err(|_| wrong("a number"))?),
            "entry_timeout" => self.entry_timeout = Some(seconds()?),
            "attr_timeout" => self.attr_timeout = Some(seconds()?),
            "ttl" => self.ttl = Some(seconds()?),
            // One that takes no value is named as such, not as unknown.
            _ => {
                return Err(match self.clone().switch(name) {
                    Ok(()) => OptionError::Superfluous(name.into()),
                    Err(error) => error,
                });
            }
        }
        Ok(())
    }
}

/// Seconds with a fraction: at most ten years, which stand for `inf` too.
#[must_use]
pub fn parse_seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (seconds >= 0.0)
        .then(|| Duration::try_from_secs_f64(seconds).map_or(FOREVER, |duration| duration.min(FOREVER)))
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = list.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b',' => options.push(Vec::new()),
            byte => {
                let byte = if byte == b'\\' {
                    *bytes.next().unwrap_or(&byte)
                } else {
                    byte
                };
                if let Some(option) = options.last_mut() {
                    option.push(byte);
                }
            }
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.add(OsStr::new(list)).map(|()| options)
    }

    #[test]
    fn later_options_override_earlier_ones() {
        let options = parse("ro,suid,dev,noexec,rw,nosuid,noatime").unwrap();
        let expected = MountOptions {
            dev: true,
            exec: false,
            noatime: true,
            ..MountOptions::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn values_are_read() {
        let options = parse(
            r"fsname=a\,b=c,subtype=x-1,max_read=4096,entry_timeout=0.5,attr_timeout=inf,entries=7,hold=0",
        )
        .unwrap();
        assert_eq!(options.fsname, Some("a,b=c".into()));
        assert_eq!(options.subtype.as_deref(), Some("x-1"));
        assert_eq!(options.max_read, Some(4096));
        assert_eq!(options.timeouts(true), (Duration::from_millis(500), FOREVER));
        assert_eq!((options.entries, options.hold), (Some(7), Some(0)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("ro,bogus"), Err(OptionError::Unknown("bogus".into())));
        assert_eq!(parse("bogus=1"), Err(OptionError::Unknown("bogus".into())));
        assert_eq!(parse("ro=1"), Err(OptionError::Superfluous("ro".into())));
        assert_eq!(parse("ttl=1,exclusive"), Err(OptionError::Contradiction));
        for bad in [
            "ttl=-1",
            "ttl=soon",
            "ttl",
            "ttl=nan",
            "entries=0",
            "hold=-1",
            "hold",
            "max_read=x",
            "fsname=",
            "subtype=a.b",
        ] {
            assert!(matches!(parse(bad), Err(OptionError::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn nodes_are_held_where_answers_outlive_them() {
        let hold = |list: &str| parse(list).unwrap().hold();
        assert_eq!((hold(""), hold("ttl=60"), hold("exclusive")), (0, 0, 65536));
        assert_eq!(hold("exclusive,entries=7"), 7);
        assert_eq!((hold("exclusive,hold=0"), hold("ttl=60,hold=9")), (0, 9));
        assert_eq!(hold("ttl=0,hold=9"), 0, "nothing is answered");
    }

    #[test]
    fn the_kernel_keeps_nothing_by_itself_unless_asked_to() {
        assert_eq!(
            parse("").unwrap().timeouts(true),
            (Duration::ZERO, Duration::ZERO)
        );
        assert_eq!(
            parse("").unwrap().timeouts(false),
            (Duration::ZERO, Duration::ZERO)
        );
        let ttl = Duration::from_secs(5);
        assert_eq!(parse("ttl=5").unwrap().timeouts(false), (ttl, ttl));
        assert_eq!(parse("exclusive").unwrap().timeouts(false), (FOREVER, FOREVER));
        assert_eq!(
            parse("exclusive,attr_timeout=2").unwrap().timeouts(false).1,
            Duration::from_secs(2)
        );
    }
}
