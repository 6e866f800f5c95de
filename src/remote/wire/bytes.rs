// SPDX-License-Identifier: MIT OR Apache-2.0
//! Strings of bytes that mean something, and are what they should be once they exist.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

use super::WireError;

/// One rule: how many bytes, and which.
struct Rule {
    what: &'static str,
    least: usize,
    most: usize,
    allowed: fn(&[u8]) -> bool,
}

impl Rule {
    fn check(&self, bytes: &[u8]) -> Result<(), WireError> {
        if bytes.len() > self.most {
            return Err(WireError::TooLong {
                what: self.what,
                length: bytes.len(),
                most: self.most,
            });
        }
        if bytes.len() < self.least || !(self.allowed)(bytes) {
            return Err(WireError::Bytes(self.what));
        }
        Ok(())
    }
}

/// Takes bytes out of a message only if they keep the rule: what does not is never copied.
struct Ruled<'r>(&'r Rule);

impl Visitor<'_> for Ruled<'_> {
    type Value = Box<[u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of at most {} bytes", self.0.what, self.0.most)
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Box<[u8]>, E> {
        self.0.check(bytes).map_err(E::custom)?;
        Ok(bytes.into())
    }
}

macro_rules! ruled {
    ($($(#[$doc:meta])* $name:ident: $what:literal, $least:literal..=$most:expr, $allowed:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name(Box<[u8]>);

        impl $name {
            const RULE: Rule = Rule {
                what: $what,
                least: $least,
                most: $most,
                allowed: $allowed,
            };

            /// These bytes.
            ///
            /// # Errors
            ///
            /// [`WireError::Bytes`], [`WireError::TooLong`].
            pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, WireError> {
                Self::RULE.check(bytes.as_ref())?;
                Ok(Self(bytes.as_ref().into()))
            }

            /// The bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// The bytes, as the system takes them.
            #[must_use]
            pub fn as_os_str(&self) -> &OsStr {
                OsStr::from_bytes(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_os_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_bytes(Ruled(&Self::RULE)).map(Self)
            }
        }
    )*};
}

ruled! {
    /// One component of a path: 1 to 255 bytes without `/` or NUL, not `.` or `..`.
    Name: "a name", 1..=255, |name| is_component(name) && name != b"." && name != b"..";
    /// A name in a listing, where `.` and `..` are names like any other.
    ListedName: "a listed name", 1..=255, is_component;
    /// What a symbolic link leads to: 1 to 4095 bytes without NUL.
    Target: "a link's target", 1..=4095, no_nul;
    /// The directory that a client wants: at most 4095 bytes without NUL. None: the one that the server has.
    Export: "an export", 0..=4095, no_nul;
    /// The name of an extended attribute: 1 to 255 bytes without NUL.
    XattrName: "an attribute's name", 1..=255, no_nul;
    /// The value of an extended attribute: at most 64 KiB.
    XattrValue: "an attribute's value", 0..=super::MAX_XATTR as usize, |_| true;
}

impl From<Name> for ListedName {
    /// Every name may be listed.
    fn from(name: Name) -> Self {
        Self(name.0)
    }
}

fn no_nul(bytes: &[u8]) -> bool {
    !bytes.contains(&0)
}

fn is_component(bytes: &[u8]) -> bool {
    no_nul(bytes) && !bytes.contains(&b'/')
}
