// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which names there are. They never change.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use fuser::INodeNo;

use super::spec;

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// The names in it, and their nodes.
    Directory(BTreeMap<String, INodeNo>),
    /// Which file of the spec.
    File(usize),
}

#[derive(Debug)]
pub(super) struct Node {
    pub parent: INodeNo,
    pub kind: Kind,
}

/// All nodes. The root is 1, the others are numbered in the order in which the spec names them, so that the same spec
/// gives the same numbers.
#[derive(Debug)]
pub(super) struct Tree(Vec<Node>);

/// The number of a node by its place.
fn number(place: usize) -> INodeNo {
    INodeNo(place as u64 + 1)
}

impl Tree {
    pub fn new(files: &[spec::File]) -> Self {
        let mut tree = Self(vec![Node {
            parent: INodeNo::ROOT,
            kind: Kind::Directory(BTreeMap::new()),
        }]);
        for (index, file) in files.iter().enumerate() {
            let Some((last, above)) = file.names.split_last() else {
                continue;
            };
            let mut at = INodeNo::ROOT;
            for name in above {
                at = tree.add(at, name, || Kind::Directory(BTreeMap::new()));
            }
            tree.add(at, last, || Kind::File(index));
        }
        tree
    }

    /// The node of this name, made if there is none.
    fn add(&mut self, parent: INodeNo, name: &str, kind: impl FnOnce() -> Kind) -> INodeNo {
        let new = number(self.0.len());
        let Some(Kind::Directory(names)) = self.get_mut(parent).map(|node| &mut node.kind) else {
            // The spec lets no path lead through a file.
            return parent;
        };
        if let Some(known) = names.get(name) {
            return *known;
        }
        names.insert(name.to_owned(), new);
        let kind = kind();
        self.0.push(Node { parent, kind });
        new
    }

    fn get_mut(&mut self, node: INodeNo) -> Option<&mut Node> {
        self.0.get_mut(usize::try_from(node.0.checked_sub(1)?).ok()?)
    }

    pub fn get(&self, node: INodeNo) -> Option<&Node> {
        self.0.get(usize::try_from(node.0.checked_sub(1)?).ok()?)
    }

    pub fn child(&self, parent: INodeNo, name: &OsStr) -> Option<INodeNo> {
        match &self.get(parent)?.kind {
            Kind::Directory(names) => names.get(name.to_str()?).copied(),
            Kind::File(_) => None,
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many directories are right below this one.
    pub fn directories_in(&self, names: &BTreeMap<String, INodeNo>) -> u32 {
        let directories = names.values().filter(|node| {
            self.get(**node)
                .is_some_and(|node| matches!(node.kind, Kind::Directory(_)))
        });
        u32::try_from(directories.count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Spec;
    use super::*;

    #[test]
    fn directories_come_by_themselves_and_numbers_in_order() {
        let file = |path: &str| format!("[[file]]\npath = {path:?}\nparts = [{{ zeros = 1 }}]\n");
        let text: String = ["b/c/x", "a", "b/y"].map(file).concat();
        let spec = Spec::parse(Path::new("spec"), &text).unwrap();
        let tree = Tree::new(&spec.files);
        let find = |path: &str| {
            path.split('/')
                .try_fold(INodeNo::ROOT, |at, name| tree.child(at, OsStr::new(name)))
        };
        let numbers = ["b", "b/c", "b/c/x", "a", "b/y"].map(|path| find(path).unwrap().0);
        assert_eq!(numbers, [2, 3, 4, 5, 6]);
        assert_eq!(tree.len(), 6);
        assert_eq!((find("c"), find("a/x")), (None, None));
        let node = |path| tree.get(find(path).unwrap()).unwrap();
        assert!(matches!(node("b/y").kind, Kind::File(2)));
        assert_eq!(node("b/c/x").parent, INodeNo(3));
        let Kind::Directory(names) = &node("b").kind else {
            panic!("no directory");
        };
        assert_eq!(tree.directories_in(names), 1);
    }
}
