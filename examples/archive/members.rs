// SPDX-License-Identifier: MIT OR Apache-2.0
//! The members of tar and zip archives, as a tree.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use fuser::FileType;
use nix::sys::stat::makedev;
use tar::EntryType;
use zip::{CompressionMethod, DateTime, ZipArchive};

use super::tree::{Content, Kind, Meta, Tree};

/// The longest target of a symlink.
const TARGET_MAX: u64 = 4095;

/// A zip archive, for its compressed members.
pub type Zip = ZipArchive<File>;

/// Reads the names of an archive: a zip if it begins like one, else a tar.
pub fn read(path: &Path) -> anyhow::Result<(Tree, Option<Zip>)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut magic = [0; 4];
    let known = file.read(&mut magic)?;
    // Its own descriptor: both have a position.
    let file = File::open(path)?;
    if known == 4 && (magic == *b"PK\x03\x04" || magic == *b"PK\x05\x06") {
        let mut zip = ZipArchive::new(file).context("not a zip archive")?;
        let tree = read_zip(&mut zip, size)?;
        Ok((tree, Some(zip)))
    } else {
        Ok((read_tar(file, size)?, None))
    }
}

fn read_tar(file: File, end: u64) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let mut entry = entry.context("not a tar archive")?;
        // A file with holes whose data is not in one piece.
        let sparse = match entry.pax_extensions()? {
            Some(mut extensions) => extensions.any(|extension| {
                extension.is_ok_and(|extension| extension.key_bytes().starts_with(b"GNU.sparse."))
            }),
            None => false,
        };
        let path = entry.path_bytes().into_owned();
        let header = entry.header();
        let meta = Meta {
            perm: (header.mode()? & 0o7777) as u16,
            uid: u32::try_from(header.uid()?).unwrap_or(u32::MAX),
            gid: u32::try_from(header.gid()?).unwrap_or(u32::MAX),
            mtime: time(header.mtime()?),
        };
        let device = || -> io::Result<u32> {
            let number = makedev(
                header.device_major()?.unwrap_or_default().into(),
                header.device_minor()?.unwrap_or_default().into(),
            );
            // As FUSE sends it: 12 bits of major, 20 of minor.
            Ok(u32::try_from(number).unwrap_or_default())
        };
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if !sparse => {
                let (at, size) = (entry.raw_file_position(), entry.size());
                if at.checked_add(size).is_none_or(|last| last > end) {
                    bail!("the archive is cut off in {}", String::from_utf8_lossy(&path));
                }
                let content = Content::At(at);
                Kind::File { content, size }
            }
            EntryType::Directory => Kind::Directory(Default::default()),
            EntryType::Symlink => match target {
                Some(target) if !target.is_empty() && target.len() as u64 <= TARGET_MAX => {
                    Kind::Symlink(OsString::from_vec(target))
                }
                _ => {
                    tree.left_out += 1;
                    continue;
                }
            },
            EntryType::Link => {
                tree.link(&path, &target.unwrap_or_default());
                continue;
            }
            EntryType::Char => Kind::Special(FileType::CharDevice, device()?),
            EntryType::Block => Kind::Special(FileType::BlockDevice, device()?),
            EntryType::Fifo => Kind::Special(FileType::NamedPipe, 0),
            _ => {
                tree.left_out += 1;
                continue;
            }
        };
        tree.insert(&path, meta, kind);
    }
    Ok(tree)
}

fn read_zip(zip: &mut Zip, end: u64) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    for index in 0..zip.len() {
        // Not unpacked: what cannot be is known by its method.
        let member = zip.by_index_raw(index)?;
        let mode = member.unix_mode();
        let path = member.name_raw().to_vec();
        let (size, packed) = (member.size(), member.compressed_size());
        let content = match member.compression() {
            _ if member.encrypted() => None,
            CompressionMethod::Stored if size == packed => member.data_start().map(Content::At),
            CompressionMethod::Deflated => Some(Content::Compressed(index)),
            _ => None,
        };
        if let Some(Content::At(at)) = content
            && at.checked_add(size).is_none_or(|last| last > end)
        {
            bail!("the archive is cut off in {}", String::from_utf8_lossy(&path));
        }
        let (directory, symlink) = (member.is_dir(), member.is_symlink());
        let usual = if directory { 0o755 } else { 0o644 };
        let meta = Meta {
            perm: (mode.unwrap_or(usual) & 0o7777) as u16,
            uid: 0,
            gid: 0,
            mtime: member.last_modified().map_or(UNIX_EPOCH, zip_time),
        };
        drop(member);
        let kind = match content {
            _ if directory => Kind::Directory(Default::default()),
            Some(_) if symlink && size <= TARGET_MAX => {
                let mut target = Vec::new();
                zip.by_index(index)?.take(TARGET_MAX).read_to_end(&mut target)?;
                Kind::Symlink(OsString::from_vec(target))
            }
            Some(content) if !symlink => Kind::File { content, size },
            _ => {
                tree.left_out += 1;
                continue;
            }
        };
        tree.insert(&path, meta, kind);
    }
    Ok(tree)
}

fn time(seconds: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.unwrap_or(UNIX_EPOCH)
}

/// A zip's local time, for which no zone is told, as UTC.
fn zip_time(at: DateTime) -> SystemTime {
    let (year, month) = (u64::from(at.year()), u64::from(at.month()));
    // Years from March on, so that the day of the leap year is the last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + u64::from(at.day());
    let clock = 3600 * u64::from(at.hour()) + 60 * u64::from(at.minute()) + u64::from(at.second());
    // 1970-01-01 is day 719 469 of this count.
    time((days.saturating_sub(719_469)) * 86400 + clock)
}
