// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls behind lsattr(1), chattr(1) and project quotas.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// An ioctl of inode flags. The kernel checks the caller's right to set flags before it sends these, which
/// cannot be said of any other ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeFlags {
    /// `FS_IOC_GETFLAGS`
    Get,
    /// `FS_IOC_SETFLAGS`
    Set,
    /// `FS_IOC_FSGETXATTR`
    GetExtended,
    /// `FS_IOC_FSSETXATTR`
    SetExtended,
}

/// `sizeof(struct fsxattr)` in <linux/fs.h>.
const FSXATTR_SIZE: u32 = 28;
const FS_IOC_FSGETXATTR: u32 = 2 << 30 | FSXATTR_SIZE << 16 | (b'X' as u32) << 8 | 31;
const FS_IOC_FSSETXATTR: u32 = 1 << 30 | FSXATTR_SIZE << 16 | (b'X' as u32) << 8 | 32;

impl InodeFlags {
    /// The ioctl of this number, if it is one of these.
    #[must_use]
    pub fn from_command(command: u32) -> Option<Self> {
        match command {
            c if c == libc::FS_IOC_GETFLAGS as u32 => Some(Self::Get),
            c if c == libc::FS_IOC_SETFLAGS as u32 => Some(Self::Set),
            FS_IOC_FSGETXATTR => Some(Self::GetExtended),
            FS_IOC_FSSETXATTR => Some(Self::SetExtended),
            _ => None,
        }
    }

    /// Whether it changes the inode.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Set | Self::SetExtended)
    }

    fn command(self) -> u32 {
        match self {
            Self::Get => libc::FS_IOC_GETFLAGS as u32,
            Self::Set => libc::FS_IOC_SETFLAGS as u32,
            Self::GetExtended => FS_IOC_FSGETXATTR,
            Self::SetExtended => FS_IOC_FSSETXATTR,
        }
    }

    /// Bytes that the kernel reads or writes: an int, whatever the command's number says.
    fn size(self) -> usize {
        match self {
            Self::Get | Self::Set => 4,
            Self::GetExtended | Self::SetExtended => FSXATTR_SIZE as usize,
        }
    }

    /// Runs it on an open file or directory; the answer is empty for the two that set.
    pub fn run(self, file: impl AsFd, input: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut words = [0u64; 4];
        let mut bytes: Vec<u8> = input.iter().copied().take(self.size()).collect();
        if self.changes() && bytes.len() < self.size() {
            return Err(Errno::EINVAL);
        }
        bytes.resize(size_of_val(&words), 0);
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().map_err(|_| Errno::EINVAL)?);
        }
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: each of the four reads or writes at most 28 bytes at the pointer, which has 32, aligned.
        Errno::result(unsafe { libc::ioctl(fd, libc::Ioctl::from(self.command()), words.as_mut_ptr()) })?;
        if self.changes() {
            return Ok(Vec::new());
        }
        Ok(words
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .take(self.size())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_kernel_headers() {
        assert_eq!(InodeFlags::from_command(0x8008_6601), Some(InodeFlags::Get));
        assert_eq!(InodeFlags::from_command(0x4008_6602), Some(InodeFlags::Set));
        assert_eq!(
            InodeFlags::from_command(0x801c_581f),
            Some(InodeFlags::GetExtended)
        );
        assert_eq!(
            InodeFlags::from_command(0x401c_5820),
            Some(InodeFlags::SetExtended)
        );
        assert_eq!(InodeFlags::from_command(0x5401), None, "TCGETS");
    }

    #[test]
    fn too_little_input_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(InodeFlags::Set.run(&file, &[0; 3]), Err(Errno::EINVAL));
    }
}
