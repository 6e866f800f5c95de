// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which path a nodeid stands for.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The nodeid of the root.
pub(super) const ROOT: u64 = 1;

/// Every node that the kernel knows, and those above it. A path is that of the names from the root, so
/// renaming a directory renames what is below. A file has as many names as it has hard links that the kernel
/// has been told of, a directory one.
///
/// `nlookup` is how often the kernel was told a nodeid, less what it forgot: a node goes when that is zero
/// and nothing is below it. Nodeids are never used again.
///
/// Names and children mirror each other: a node has the name (parent, name) if and only if the parent has
/// the node as its child of that name.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    /// By inode number, the nodes that may have further names: [`Node::inode`].
    inodes: HashMap<u64, u64>,
    last: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// None of the root, and of what was removed while it was open. Its path is by the last.
    names: Vec<(u64, OsString)>,
    nlookup: u64,
    children: HashMap<OsString, u64>,
    /// What the file system calls it, if it has a name and more than one link.
    inode: Option<u64>,
}

impl Tree {
    pub fn new() -> Self {
        Self {
            nodes: HashMap::from([(ROOT, Node::default())]),
            inodes: HashMap::new(),
            last: ROOT,
        }
    }

    /// None of a node that was removed, or is not known.
    pub fn path(&self, nodeid: u64) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut at = nodeid;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.names.last()?;
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
    ///
    /// `inode` is the number of a file with more than one link: names with the same one are one node.
    pub fn look_up(&mut self, parent: u64, name: &OsStr, inode: Option<u64>) -> Option<u64> {
        let known = self.nodes.get(&parent)?.children.get(name).copied();
        let nodeid = match known.or_else(|| self.inodes.get(&inode?).copied()) {
            Some(nodeid) => nodeid,
            None => {
                self.last += 1;
                self.nodes.insert(self.last, Node::default());
                self.last
            }
        };
        if known.is_none() {
            self.add_name(nodeid, (parent, name));
        }
        let node = self.nodes.get_mut(&nodeid)?;
        node.nlookup += 1;
        if let Some(inode) = inode
            && node.inode.is_none()
            && !self.inodes.contains_key(&inode)
        {
            node.inode = Some(inode);
            self.inodes.insert(inode, nodeid);
        }
        Some(nodeid)
    }

    /// A node gets one more name, of which the kernel is told now. False if the node or the parent is gone.
    pub fn link(&mut self, nodeid: u64, to: (u64, &OsStr)) -> bool {
        if !self.nodes.contains_key(&nodeid) || !self.nodes.contains_key(&to.0) {
            return false;
        }
        // What had it went without our being told.
        if self.child(to.0, to.1) != Some(nodeid) {
            self.take_name(to);
            self.add_name(nodeid, to);
        }
        if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.nlookup += 1;
        }
        true
    }

    /// The kernel forgets some of what it was told.
    pub fn forget(&mut self, nodeid: u64, nlookup: u64) {
        if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.nlookup = node.nlookup.saturating_sub(nlookup);
            self.drop_unused(nodeid);
        }
    }

    fn drop_unused(&mut self, nodeid: u64) {
        let mut unused = vec![nodeid];
        while let Some(at) = unused.pop() {
            let in_use = |node: &Node| node.nlookup > 0 || !node.children.is_empty();
            if at == ROOT || self.nodes.get(&at).is_none_or(in_use) {
                continue;
            }
            let node = self.nodes.remove(&at).unwrap_or_default();
            if let Some(inode) = node.inode {
                self.inodes.remove(&inode);
            }
            for (parent, name) in node.names {
                if let Some(above) = self.nodes.get_mut(&parent) {
                    above.children.remove(&name);
                }
                unused.push(parent);
            }
        }
    }

    /// A name is gone; who has the node open keeps it, and other names are names of it still.
    pub fn remove(&mut self, parent: u64, name: &OsStr) {
        self.take_name((parent, name));
        self.drop_unused(parent);
    }

    /// A node with all that is below gets another name, which was another's or nobody's. Of two names of
    /// one node both stay, as rename(2) has it.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) {
        let moved = self.child(from.0, from.1);
        if from == to || moved.is_some() && moved == self.child(to.0, to.1) {
            return;
        }
        self.take_name(to);
        if let Some(nodeid) = moved {
            self.add_name(nodeid, to);
            self.drop_name(nodeid, from);
        }
        self.drop_unused(from.0);
        self.drop_unused(to.0);
    }

    /// Two nodes get each other's names.
    pub fn exchange(&mut self, one: (u64, &OsStr), other: (u64, &OsStr)) {
        let (first, second) = (self.child(one.0, one.1), self.child(other.0, other.1));
        if first == second {
            return;
        }
        for (nodeid, from) in [(first, one), (second, other)] {
            if let Some(nodeid) = nodeid {
                self.drop_name(nodeid, from);
            }
        }
        for (nodeid, to) in [(first, other), (second, one)] {
            if let Some(nodeid) = nodeid {
                self.add_name(nodeid, to);
            }
        }
        self.drop_unused(one.0);
        self.drop_unused(other.0);
    }

    fn add_name(&mut self, nodeid: u64, (parent, name): (u64, &OsStr)) {
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.children.insert(name.into(), nodeid);
            if let Some(node) = self.nodes.get_mut(&nodeid) {
                node.names.push((parent, name.into()));
            }
        }
    }

    /// Takes a name from a node that keeps another, or gets one.
    fn drop_name(&mut self, nodeid: u64, (parent, name): (u64, &OsStr)) {
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.children.remove(name);
        }
        if let Some(node) = self.nodes.get_mut(&nodeid) {
            node.names
                .retain(|(above, called)| (*above, called.as_os_str()) != (parent, name));
        }
    }

    /// Takes a name from whoever has it. Without any, the node's inode number may soon be another's.
    fn take_name(&mut self, at: (u64, &OsStr)) {
        let Some(nodeid) = self.child(at.0, at.1) else {
            return;
        };
        self.drop_name(nodeid, at);
        if let Some(node) = self.nodes.get_mut(&nodeid).filter(|node| node.names.is_empty())
            && let Some(inode) = node.inode.take()
        {
            self.inodes.remove(&inode);
        }
        self.drop_unused(nodeid);
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

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_node_lives_until_all_that_the_kernel_was_told_is_forgotten() {
        let mut tree = Tree::new();
        let dir = tree.look_up(ROOT, name("dir"), None).unwrap();
        let file = tree.look_up(dir, name("file"), None).unwrap();
        assert_eq!(tree.look_up(dir, name("file"), None), Some(file));
        // The directory is forgotten first: what is below needs its name.
        tree.forget(dir, 1);
        tree.forget(file, 1);
        assert_eq!(tree.path(file).unwrap(), Path::new("/dir/file"));
        tree.forget(file, 1);
        assert_eq!((tree.len(), tree.path(file)), (1, None));
        assert_ne!(tree.look_up(ROOT, name("dir"), None), Some(dir));
    }

    #[test]
    fn renaming_a_directory_moves_what_is_below_and_detaches_what_was_there() {
        let mut tree = Tree::new();
        let (a, b) = (
            tree.look_up(ROOT, name("a"), None).unwrap(),
            tree.look_up(ROOT, name("b"), None).unwrap(),
        );
        let deep = tree.look_up(a, name("x"), None).unwrap();
        let deeper = tree.look_up(deep, OsStr::from_bytes(b"\xff\n"), None).unwrap();
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
            tree.look_up(ROOT, name("a"), None).unwrap(),
            tree.look_up(ROOT, name("b"), None).unwrap(),
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

    #[test]
    fn hard_links_are_one_node_and_its_path_is_a_name_that_is_left() {
        let mut tree = Tree::new();
        let dir = tree.look_up(ROOT, name("dir"), None).unwrap();
        let file = tree.look_up(ROOT, name("a"), None).unwrap();
        assert!(tree.link(file, (dir, name("b"))));
        assert_eq!(tree.look_up(dir, name("b"), Some(9)), Some(file));
        assert_eq!(tree.look_up(dir, name("c"), Some(9)), Some(file));
        tree.remove(dir, name("c"));
        // Of two names of one file, rename(2) leaves both.
        tree.rename((ROOT, name("a")), (dir, name("b")));
        assert_eq!(tree.child(ROOT, name("a")), tree.child(dir, name("b")));
        tree.remove(dir, name("b"));
        assert_eq!(tree.path(file).unwrap(), Path::new("/a"));
        tree.remove(ROOT, name("a"));
        assert_eq!(tree.path(file), None);
        // Somebody has it open still, and its number is another's now.
        let next = tree.look_up(ROOT, name("d"), Some(9)).unwrap();
        assert_ne!(next, file);
        assert!(!tree.link(77, (ROOT, name("e"))) && !tree.link(next, (77, name("e"))));
        tree.forget(file, 4);
        assert_eq!(tree.len(), 3, "the root, the directory, the other file");
    }

    /// Paths and counts of nodes as a list of names has them, without a tree.
    #[derive(Debug, Default)]
    struct Model {
        /// What the kernel knows: path and nodeid.
        names: Vec<(PathBuf, u64)>,
        nlookup: HashMap<u64, u64>,
        directories: Vec<u64>,
    }

    impl Model {
        fn at(&self, path: &Path) -> Option<u64> {
            self.names
                .iter()
                .find(|(known, _)| known == path)
                .map(|(_, nodeid)| *nodeid)
        }

        fn is_below(path: &Path, dir: &Path) -> bool {
            path != dir && path.starts_with(dir)
        }

        /// Names of what is neither counted nor above something that has a name.
        fn tidy(&mut self) {
            loop {
                let unused = self.names.iter().position(|(path, nodeid)| {
                    self.nlookup.get(nodeid).is_none_or(|count| *count == 0)
                        && !self.names.iter().any(|(other, _)| Self::is_below(other, path))
                });
                match unused {
                    Some(at) => drop(self.names.remove(at)),
                    None => return,
                }
            }
        }

        fn moved(&self, from: &Path, to: &Path) -> Vec<(PathBuf, u64)> {
            let below = self.names.iter().filter(|(path, _)| path.starts_with(from));
            below
                .map(|(path, nodeid)| match path.strip_prefix(from) {
                    Ok(rest) if rest.as_os_str().is_empty() => (to.to_owned(), *nodeid),
                    Ok(rest) => (to.join(rest), *nodeid),
                    Err(_) => unreachable!(),
                })
                .collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the kernel does with names: every nodeid has one of its paths, no other nodeid has, and
        /// what is forgotten is gone.
        #[test]
        fn paths_and_counts_are_those_of_a_list_of_names(
            steps in proptest::collection::vec((0..6u8, 0..8usize, 0..4usize, 0..8usize, 0..4usize), 1..80)
        ) {
            let (mut tree, mut model) = (Tree::new(), Model::default());
            let all = ["a", "b", "c", "d"].map(name);
            for (what, dir, one, other_dir, other) in steps {
                // Directories that have a path: the root, and what is there now.
                let mut dirs: Vec<(u64, PathBuf)> = vec![(ROOT, "/".into())];
                dirs.extend(model.names.iter().filter(|(_, id)| model.directories.contains(id)).map(|(path, id)| (*id, path.clone())));
                let (parent, above) = dirs[dir % dirs.len()].clone();
                let (to_parent, to_above) = dirs[other_dir % dirs.len()].clone();
                let (from, to) = (above.join(all[one]), to_above.join(all[other]));
                match what {
                    0 => {
                        let known = model.at(&from);
                        let nodeid = tree.look_up(parent, all[one], None).unwrap();
                        match known {
                            Some(known) => prop_assert_eq!(nodeid, known),
                            None => {
                                prop_assert!(!model.nlookup.contains_key(&nodeid), "used twice");
                                model.names.push((from, nodeid));
                                if other % 2 == 0 {
                                    model.directories.push(nodeid);
                                }
                            }
                        }
                        *model.nlookup.entry(nodeid).or_default() += 1;
                    }
                    1 => {
                        let Some((nodeid, count)) = model.nlookup.iter_mut().nth(dir) else { continue };
                        let forgotten = (*count).min(one as u64);
                        *count -= forgotten;
                        tree.forget(*nodeid, forgotten);
                        model.tidy();
                    }
                    2 => {
                        let Some(nodeid) = model.at(&from) else { continue };
                        if model.directories.contains(&nodeid) || model.at(&to).is_some() {
                            continue;
                        }
                        prop_assert!(tree.link(nodeid, (to_parent, all[other])));
                        model.names.push((to, nodeid));
                        *model.nlookup.entry(nodeid).or_default() += 1;
                    }
                    3 => {
                        // Only what is empty.
                        if model.names.iter().any(|(path, _)| Model::is_below(path, &from)) {
                            continue;
                        }
                        tree.remove(parent, all[one]);
                        model.names.retain(|(path, _)| *path != from);
                        model.tidy();
                    }
                    4 => {
                        let full = model.names.iter().any(|(path, _)| Model::is_below(path, &to));
                        if full || Model::is_below(&to, &from) || from == to {
                            continue;
                        }
                        tree.rename((parent, all[one]), (to_parent, all[other]));
                        if model.at(&from).is_some() && model.at(&from) == model.at(&to) {
                            continue;
                        }
                        let moved = model.moved(&from, &to);
                        model.names.retain(|(path, _)| *path != to && !path.starts_with(&from));
                        model.names.extend(moved);
                        model.tidy();
                    }
                    _ => {
                        if Model::is_below(&to, &from) || Model::is_below(&from, &to) || from == to {
                            continue;
                        }
                        tree.exchange((parent, all[one]), (to_parent, all[other]));
                        let mut moved = model.moved(&from, &to);
                        moved.extend(model.moved(&to, &from));
                        model.names.retain(|(path, _)| !path.starts_with(&to) && !path.starts_with(&from));
                        model.names.extend(moved);
                        model.tidy();
                    }
                }
                for (nodeid, count) in &model.nlookup {
                    let paths: Vec<_> = model.names.iter().filter(|(_, id)| id == nodeid).collect();
                    match tree.path(*nodeid) {
                        Some(path) => prop_assert!(paths.iter().any(|(known, _)| *known == path), "{:?}", path),
                        None => prop_assert!(paths.is_empty(), "{:?}", paths),
                    }
                    let lives = *count > 0 || !paths.is_empty();
                    prop_assert_eq!(tree.nodes.contains_key(nodeid), lives);
                }
                let known = tree.nodes.values().map(|node| node.names.len()).sum::<usize>();
                prop_assert_eq!(known, model.names.len());
            }
            for (nodeid, count) in &model.nlookup {
                tree.forget(*nodeid, *count);
            }
            prop_assert_eq!((tree.len(), tree.inodes.len()), (1, 0));
        }
    }
}
