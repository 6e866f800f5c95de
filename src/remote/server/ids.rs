// SPDX-License-Identifier: MIT OR Apache-2.0
//! Users and groups that clients call by other numbers than the export's file system does.

use nix::errno::Errno;

use crate::remote::wire::Request;
use crate::remote::wire::message::{Attr, Caller};

/// Pairs of a number as clients have it, and as the file system has it. Each number is in one pair at most; those that
/// are in none are the same on both sides, unless they would be taken for one of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    pairs: Vec<(u32, u32)>,
}

/// What is not to be told apart from somebody else: the kernel's overflow id.
const NOBODY: u32 = 65534;

impl Ids {
    /// These pairs.
    ///
    /// # Errors
    ///
    /// A number that is in two of them on the same side.
    pub fn new(pairs: Vec<(u32, u32)>) -> Result<Self, u32> {
        for (i, (client, own)) in pairs.iter().enumerate() {
            for (other_client, other_own) in &pairs[..i] {
                if client == other_client {
                    return Err(*client);
                }
                if own == other_own {
                    return Err(*own);
                }
            }
        }
        Ok(Self { pairs })
    }

    /// The file system's number; `EINVAL` for one that clients must not use, as it is told for another.
    fn inward(&self, id: u32) -> Result<u32, Errno> {
        match self.pairs.iter().find(|(client, _)| *client == id) {
            Some((_, own)) => Ok(*own),
            None if self.pairs.iter().any(|(_, own)| *own == id) => Err(Errno::EINVAL),
            None => Ok(id),
        }
    }

    /// The clients' number.
    fn outward(&self, id: u32) -> u32 {
        match self.pairs.iter().find(|(_, own)| *own == id) {
            Some((client, _)) => *client,
            None if self.pairs.iter().any(|(client, _)| *client == id) => NOBODY,
            None => id,
        }
    }
}

/// Of users and of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Users.
    pub users: Ids,
    /// Groups.
    pub groups: Ids,
}

impl Mapping {
    fn is_none(&self) -> bool {
        self.users.pairs.is_empty() && self.groups.pairs.is_empty()
    }

    fn caller(&self, caller: &mut Caller) -> Result<(), Errno> {
        caller.uid = self.users.inward(caller.uid)?;
        caller.gid = self.groups.inward(caller.gid)?;
        Ok(())
    }

    /// A request as the file system would have it.
    pub(super) fn request(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        if self.is_none() {
            return Ok(());
        }
        match request {
            Request::Mknod(m) => self.caller(&mut m.caller),
            Request::Mkdir(m) => self.caller(&mut m.caller),
            Request::Symlink(m) => self.caller(&mut m.caller),
            Request::Rename(m) => self.caller(&mut m.caller),
            Request::Create(m) => self.caller(&mut m.caller),
            Request::Setxattr(m) => self.caller(&mut m.caller),
            Request::Listxattr(m) => self.caller(&mut m.caller),
            Request::Setattr(m) => {
                m.uid = m.uid.map(|uid| self.users.inward(uid)).transpose()?;
                m.gid = m.gid.map(|gid| self.groups.inward(gid)).transpose()?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Attributes as clients would have them.
    pub(super) fn attr(&self, attr: &mut Attr) {
        attr.uid = self.users.outward(attr.uid);
        attr.gid = self.groups.outward(attr.gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_in_and_out_and_nobody_is_taken_for_another() {
        let ids = Ids::new(vec![(1000, 33), (0, 500)]).unwrap();
        assert_eq!(ids.inward(1000), Ok(33));
        assert_eq!(ids.outward(33), 1000);
        assert_eq!(ids.inward(0), Ok(500));
        assert_eq!((ids.inward(7), ids.outward(7)), (Ok(7), 7));
        // The file system's own 1000 is not the clients', nor is their 33 its own.
        assert_eq!(ids.outward(1000), NOBODY);
        assert_eq!(ids.inward(33), Err(Errno::EINVAL));
        assert_eq!(ids.outward(0), NOBODY);
        // Exchanged.
        let ids = Ids::new(vec![(1, 2), (2, 1)]).unwrap();
        assert_eq!([ids.inward(1), ids.inward(2)], [Ok(2), Ok(1)]);
        assert_eq!([ids.outward(1), ids.outward(2)], [2, 1]);
    }

    #[test]
    fn each_number_is_in_one_pair() {
        assert_eq!(Ids::new(vec![(1, 2), (1, 3)]), Err(1));
        assert_eq!(Ids::new(vec![(1, 2), (3, 2)]), Err(2));
    }
}
