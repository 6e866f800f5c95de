// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is mounted, and where: the checks before anything is done.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys::mountinfo::Location;

/// Why a source cannot be mounted at a mount point.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The source cannot be looked at.
    #[error("source {}: {}", path.display(), reason(error))]
    Source {
        /// As given.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
    /// The source is something else.
    #[error("source {} is not a directory", .0.display())]
    SourceNotDirectory(PathBuf),
    /// The mount point cannot be looked at.
    #[error("mount point {}: {}", path.display(), reason(error))]
    Target {
        /// As given.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
    /// The mount point is something else.
    #[error("mount point {} is not a directory", .0.display())]
    TargetNotDirectory(PathBuf),
    /// A FUSE file system is mounted there.
    #[error(
        "mount point {} is occupied: {fs_type} of {origin} is mounted there (extfuse umount {0})",
        path.display()
    )]
    Occupied {
        /// Where.
        path: PathBuf,
        /// Its type.
        fs_type: String,
        /// Its source.
        origin: String,
    },
    /// Looking into the mount would lead the daemon into the mount that it serves.
    #[error("mount point {} lies inside the source {}: the mount would contain itself", target.display(), served.display())]
    Inside {
        /// Where.
        target: PathBuf,
        /// What.
        served: PathBuf,
    },
}

/// A directory that can be mounted at.
pub(crate) fn target_at(path: &Path) -> Result<Location, PlaceError> {
    let wrong = |error| PlaceError::Target {
        path: path.into(),
        error,
    };
    let target = Location::of(path).map_err(wrong)?;
    if target.is_mount_point() && target.mount.is_fuse() {
        // Not asked anything: it may be dead, or hang.
        return Err(PlaceError::Occupied {
            path: target.path.clone(),
            fs_type: target.mount.fs_type.clone(),
            origin: target.mount.source.to_string_lossy().into_owned(),
        });
    }
    if !target.proc_path().metadata().map_err(wrong)?.is_dir() {
        return Err(PlaceError::TargetNotDirectory(path.into()));
    }
    Ok(target)
}

/// A source and a mount point that go together.
#[derive(Debug)]
pub(super) struct Place {
    pub source: PathBuf,
    pub target: Location,
}

impl Place {
    /// Checks both. A source that lies below the mount point, or is the mount point, is fine: the
    /// daemon opens it before it mounts.
    pub fn check(source: &Path, target: &Path) -> Result<Self, PlaceError> {
        let wrong_source = |error| PlaceError::Source {
            path: source.into(),
            error,
        };
        let path = source.canonicalize().map_err(wrong_source)?;
        if !path.metadata().map_err(wrong_source)?.is_dir() {
            return Err(PlaceError::SourceNotDirectory(source.into()));
        }
        let location = target_at(target)?;
        if location.path != path && location.path.starts_with(&path) {
            return Err(PlaceError::Inside {
                target: location.path.clone(),
                served: path,
            });
        }
        Ok(Self {
            source: path,
            target: location,
        })
    }
}

/// The error without Rust's "(os error 2)".
fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |errno| nix::errno::Errno::from_raw(errno).desc().into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (good, file, missing) = (dir.path().join("d"), dir.path().join("f"), dir.path().join("m"));
        std::fs::create_dir(&good).unwrap();
        std::fs::write(&file, "").unwrap();
        let other = tempfile::tempdir().unwrap();
        let message = |source: &Path, target: &Path| Place::check(source, target).unwrap_err().to_string();
        assert!(message(&missing, other.path()).ends_with("m: No such file or directory"));
        assert!(message(&file, other.path()).ends_with("f is not a directory"));
        assert!(message(&good, &missing).starts_with("mount point"));
        assert!(message(&good, &file).ends_with("f is not a directory"));
    }

    #[test]
    fn a_mount_point_inside_the_source_is_refused_but_not_the_reverse() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let error = Place::check(outer.path(), &inner).unwrap_err();
        assert!(matches!(error, PlaceError::Inside { .. }));
        assert!(Place::check(&inner, outer.path()).is_ok());
        assert!(Place::check(&inner, &inner).is_ok());
        // Only whole components count.
        let sibling = outer.path().join("inner2");
        std::fs::create_dir(&sibling).unwrap();
        assert!(Place::check(&inner, &sibling).is_ok());
    }
}
