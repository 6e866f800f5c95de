// SPDX-License-Identifier: MIT OR Apache-2.0
//! How large headers and footers are.

use serde::{Deserialize, Serialize};

use super::WireError;

pub(super) const SMALLEST: u16 = 102;
pub(super) const LARGEST: u16 = 4096;

/// The bytes of every header and every footer of a connection: 102 to 4096. What is behind their fields is
/// zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct Sizes {
    header: u16,
    footer: u16,
}

impl Sizes {
    /// These many.
    ///
    /// # Errors
    ///
    /// [`WireError::Size`].
    pub fn new(header: u16, footer: u16) -> Result<Self, WireError> {
        for size in [header, footer] {
            if !(SMALLEST..=LARGEST).contains(&size) {
                return Err(WireError::Size(size.into()));
            }
        }
        Ok(Self { header, footer })
    }

    /// Bytes of a header.
    #[must_use]
    pub fn header(self) -> usize {
        self.header.into()
    }

    /// Bytes of a footer.
    #[must_use]
    pub fn footer(self) -> usize {
        self.footer.into()
    }

    /// What a server answers that would like `other`: the larger of each.
    #[must_use]
    pub fn or_larger(self, other: Self) -> Self {
        Self {
            header: self.header.max(other.header),
            footer: self.footer.max(other.footer),
        }
    }
}

/// The smallest: those of HELLO and its reply, whatever is agreed on there.
impl Default for Sizes {
    fn default() -> Self {
        Self {
            header: SMALLEST,
            footer: SMALLEST,
        }
    }
}

impl TryFrom<(u16, u16)> for Sizes {
    type Error = WireError;

    fn try_from((header, footer): (u16, u16)) -> Result<Self, WireError> {
        Self::new(header, footer)
    }
}

impl From<Sizes> for (u16, u16) {
    fn from(sizes: Sizes) -> Self {
        (sizes.header, sizes.footer)
    }
}
