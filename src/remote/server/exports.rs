// SPDX-License-Identifier: MIT OR Apache-2.0
//! The directories that are served, which may be others from one moment to the next.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::{Export, ServerError};
use crate::remote::wire::Export as ExportName;

/// Those that there are at a time.
pub type List = Arc<Vec<Arc<Export>>>;

/// A greeting and a session have the list, or the export, that there was when they began.
#[derive(Debug)]
pub struct Exports(RwLock<List>);

/// Looks at all of them: to be told now, not to the first client.
fn check(exports: Vec<Export>) -> Result<List, ServerError> {
    for (i, export) in exports.iter().enumerate() {
        if exports[..i].iter().any(|other| other.name == export.name) {
            return Err(ServerError::Twice(export.name.clone()));
        }
        export.stack(Path::new(""))?;
    }
    Ok(Arc::new(exports.into_iter().map(Arc::new).collect()))
}

impl Exports {
    /// # Errors
    /// If two have the same name, or one is no directory.
    pub fn new(exports: Vec<Export>) -> Result<Self, ServerError> {
        Ok(Self(RwLock::new(check(exports)?)))
    }

    /// The same; nothing is another then.
    pub fn replace(&self, exports: Vec<Export>) -> Result<(), ServerError> {
        let exports = check(exports)?;
        *self.0.write() = exports;
        Ok(())
    }

    pub fn now(&self) -> List {
        Arc::clone(&self.0.read())
    }
}

/// Which export that is, and which directory of it: behind its name a path may follow. Without a name that there
/// is, it is a path in the one without a name.
pub fn find<'e>(exports: &'e [Arc<Export>], name: &ExportName) -> Option<(&'e Arc<Export>, PathBuf)> {
    let below = |export: &'e Arc<Export>| {
        let rest = name.as_bytes().strip_prefix(export.name.as_bytes())?;
        let begins = rest.is_empty() || rest.starts_with(b"/") || export.name.as_bytes().is_empty();
        let slashes = rest.iter().take_while(|byte| **byte == b'/').count();
        begins.then(|| (export, OsStr::from_bytes(&rest[slashes..]).into()))
    };
    let found = exports.iter().filter_map(below);
    found.max_by_key(|(export, _)| export.name.as_bytes().len())
}

/// Whether who asks for `name` still gets what he has.
pub fn goes_on(exports: &[Arc<Export>], name: &ExportName, has: &Export) -> bool {
    find(exports, name).is_some_and(|(export, _)| **export == *has)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: &str, read_only: bool) -> Arc<Export> {
        Arc::new(Export {
            name: ExportName::new(name.as_bytes()).unwrap(),
            directory: "/".into(),
            read_only,
        })
    }

    #[test]
    fn the_longest_name_decides() {
        let exports = ["", "a", "a/b"].map(|name| export(name, false));
        let found = |name: &str| {
            let name = ExportName::new(name.as_bytes()).unwrap();
            let (export, below) = find(&exports, &name).unwrap();
            (
                String::from_utf8(export.name.as_bytes().into()).unwrap(),
                below.to_str().unwrap().to_owned(),
            )
        };
        let pair = |name: &str, below: &str| (name.to_owned(), below.to_owned());
        assert_eq!(found("a/b/c"), pair("a/b", "c"));
        assert_eq!(found("a/bc"), pair("a", "bc"));
        assert_eq!(found("ab"), pair("", "ab"));
        assert_eq!(found(""), pair("", ""));
        assert!(find(&exports[1..], &ExportName::new(b"ab").unwrap()).is_none());
    }

    #[test]
    fn an_export_goes_on_if_it_is_the_same_under_that_name() {
        let name = ExportName::new(b"a/b").unwrap();
        let old = export("a", false);
        assert!(goes_on(&[export("a", false)], &name, &old));
        assert!(!goes_on(&[export("a", true)], &name, &old));
        assert!(!goes_on(&[export("b", false)], &name, &old));
        // Another one has that name now.
        assert!(!goes_on(&[export("a", false), export("a/b", false)], &name, &old));
    }
}
