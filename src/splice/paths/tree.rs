// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which path a nodeid stands for.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The nodeid of the root.
pub(super) const ROOT: u64 = 1;

/// Every node that the kernel knows, and those above it. A node has one name at a time; a path is that of
/// the names from the root, so renaming a directory renames what is below.
///
/// `nlookup` is how often the kernel was told a nodeid, less what it forgot: a node goes when that is zero
/// and nothing is below it. Nodeids are never used again.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    last: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// None of the root, and of what was removed while it was open.
    place: Option<(u64, OsString)>,
    nlookup: u64,
    children: HashMap<OsString, u64>,
}

impl Tree {
    pub fn new() -> Self {
        Self {
            nodes: HashMap::from([(ROOT, Node::default())]),
            last: ROOT,
        }
    }

    /// None of a node that was removed, or is not known.
    pub fn path(&self, nodeid: u64) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut at = nodeid;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.place.as_ref()?;
            names.push(name);
            at = *parent;
        }
        let mut path = PathBuf::from("/");
        path.extend(names.into_iter().rev());
        Some(path)
    }

    /// The nodeid of a name that the kernel knows.
    pub fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// The nodeid of a name that the kernel is told now. None if the parent is gone.
    pub fn look_up(&mut self, parent: u64, name: &OsStr) -> Option<u64> {
        let above = self.nodes.get_mut(&parent)?;
        let nodeid = match above.children.get(name) {
            Some(nodeid) => *nodeid,
            None => {
                self.last += 1;
                above.children.insert(name.into(), self.last);
                let node = Node {
                    place: Some((parent, name.into())),
                    ..Node::default()
                };
                self.nodes.insert(self.last, node);
                self.last
            }
        };
        self.nodes.get_mut(&nodeid)?.nlookup += 1;
        Some(nodeid)
    }

    /// The kernel forgets some of what it was told.
    pub fn forget(&mut self, nodeid: u64, nlookup: u64) {
        if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.nlookup = node.nlookup.saturating_sub(nlookup);
            self.drop_unused(nodeid);
        }
    }

    fn drop_unused(&mut self, nodeid: u64) {
        let mut at = nodeid;
        while at != ROOT
            && let Some(node) = self.nodes.get(&at)
            && node.nlookup == 0
            && node.children.is_empty()
        {
            let place = self.nodes.remove(&at).and_then(|node| node.place);
            let Some((parent, name)) = place else { return };
            if let Some(above) = self.nodes.get_mut(&parent) {
                above.children.remove(&name);
            }
            at = parent;
        }
    }

    /// A name is gone; who has it open keeps the node.
    pub fn remove(&mut self, parent: u64, name: &OsStr) {
        let child = self
            .nodes
            .get_mut(&parent)
            .and_then(|node| node.children.remove(name));
        if let Some(nodeid) = child {
            if let Some(node) = self.nodes.get_mut(&nodeid) {
                node.place = None;
            }
            self.drop_unused(nodeid);
        }
        self.drop_unused(parent);
    }

    /// A node with all that is below gets another name, which was another's or nobody's.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) {
        if from == to {
            return;
        }
        let moved = self
            .nodes
            .get_mut(&from.0)
            .and_then(|node| node.children.remove(from.1));
        self.remove(to.0, to.1);
        if let Some(nodeid) = moved {
            self.place(nodeid, to);
        }
        self.drop_unused(from.0);
    }

    /// Two nodes get each other's names.
    pub fn exchange(&mut self, one: (u64, &OsStr), other: (u64, &OsStr)) {
        let mut take = |(parent, name): (u64, &OsStr)| self.nodes.get_mut(&parent)?.children.remove(name);
        let (first, second) = (take(one), take(other));
        if let Some(nodeid) = first {
            self.place(nodeid, other);
        }
        if let Some(nodeid) = second {
            self.place(nodeid, one);
        }
    }

    fn place(&mut self, nodeid: u64, (parent, name): (u64, &OsStr)) {
        let above = self.nodes.get_mut(&parent);
        let place = above.map(|above| {
            above.children.insert(name.into(), nodeid);
            (parent, name.into())
        });
        if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.place = place;
        }
    }

    /// The path of a name in a directory.
    pub fn path_of(&self, parent: u64, name: &OsStr) -> Option<PathBuf> {
        self.path(parent).map(|path| path.join(Path::new(name)))
    }

    /// How many nodes there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_node_lives_until_all_that_the_kernel_was_told_is_forgotten() {
        let mut tree = Tree::new();
        let dir = tree.look_up(ROOT, name("dir")).unwrap();
        let file = tree.look_up(dir, name("file")).unwrap();
        assert_eq!(tree.look_up(dir, name("file")), Some(file));
        // The directory is forgotten first: what is below needs its name.
        tree.forget(dir, 1);
        tree.forget(file, 1);
        assert_eq!(tree.path(file).unwrap(), Path::new("/dir/file"));
        tree.forget(file, 1);
        assert_eq!((tree.len(), tree.path(file)), (1, None));
        assert_ne!(tree.look_up(ROOT, name("dir")), Some(dir));
    }

    #[test]
    fn renaming_a_directory_moves_what_is_below_and_detaches_what_was_there() {
        let mut tree = Tree::new();
        let (a, b) = (
            tree.look_up(ROOT, name("a")).unwrap(),
            tree.look_up(ROOT, name("b")).unwrap(),
        );
        let deep = tree.look_up(a, name("x")).unwrap();
        let deeper = tree.look_up(deep, OsStr::from_bytes(b"\xff\n")).unwrap();
        tree.rename((ROOT, name("a")), (ROOT, name("b")));
        let moved = [b"/b/x/".as_slice(), b"\xff\n"].concat();
        assert_eq!(tree.path(deeper).unwrap().as_os_str().as_bytes(), moved);
        assert_eq!((tree.path(b), tree.child(ROOT, name("b"))), (None, Some(a)));
        tree.forget(b, 1);
        tree.rename((ROOT, name("b")), (ROOT, name("b")));
        assert_eq!(tree.child(ROOT, name("b")), Some(a));
        tree.remove(deep, OsStr::from_bytes(b"\xff\n"));
        assert_eq!(tree.path(deeper), None);
        tree.forget(deeper, 1);
        assert_eq!(tree.len(), 3);
    }

    #[test]
    fn exchanged_names_change_hands() {
        let mut tree = Tree::new();
        let (a, b) = (
            tree.look_up(ROOT, name("a")).unwrap(),
            tree.look_up(ROOT, name("b")).unwrap(),
        );
        tree.exchange((ROOT, name("a")), (ROOT, name("b")));
        assert_eq!(tree.path(a).unwrap(), Path::new("/b"));
        assert_eq!(tree.path(b).unwrap(), Path::new("/a"));
        // Of a name that the kernel does not know.
        tree.exchange((ROOT, name("a")), (ROOT, name("c")));
        assert_eq!(
            (tree.path(b).unwrap(), tree.child(ROOT, name("a"))),
            ("/c".into(), None)
        );
    }
}
