//! The directories in which something may not be as the manifest says: what a watch
//! ([`crate::git::scan::watch`]) gives a scan, so that it looks there only.
//!
//! # Limitations
//! A directory is the unit: where one name of it was touched, all of its names are looked at.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::tx::path::RepoPath;

/// Directories to look at, by path; empty bytes are the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// These are listed.
    listed: BTreeSet<Vec<u8>>,
    /// These and everything beneath.
    whole: BTreeSet<Vec<u8>>,
}

impl Touched {
    /// The directory is to be listed.
    pub fn directory(&mut self, dir: impl Into<Vec<u8>>) {
        self.listed.insert(dir.into());
    }

    /// The directory is to be looked at with everything beneath.
    pub fn whole(&mut self, dir: impl Into<Vec<u8>>) {
        self.whole.insert(dir.into());
    }

    /// The directory of the path is to be listed.
    pub fn path(&mut self, path: &RepoPath) {
        self.directory(parent(path.as_bytes()));
    }

    /// Those to be listed, sorted.
    pub fn directories(&self) -> impl Iterator<Item = &[u8]> {
        self.listed.iter().map(Vec::as_slice)
    }

    /// Those to be looked at with everything beneath, sorted.
    pub fn wholes(&self) -> impl Iterator<Item = &[u8]> {
        self.whole.iter().map(Vec::as_slice)
    }

    /// How many directories are named.
    pub fn len(&self) -> usize {
        self.listed.len() + self.whole.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the directory itself is to be listed, if not for one above it.
    pub(in crate::git) fn lists(&self, dir: &[u8]) -> bool {
        self.listed.contains(dir) || self.whole.contains(dir)
    }

    /// Whether everything beneath is to be looked at, if not for one above it.
    pub(in crate::git) fn is_whole(&self, dir: &[u8]) -> bool {
        self.whole.contains(dir)
    }

    /// Whether it is to be listed for itself or for one above it.
    pub(in crate::git) fn covers(&self, dir: &[u8]) -> bool {
        self.lists(dir) || above(dir).any(|dir| self.is_whole(dir))
    }

    /// Whether something is named at or beneath the directory.
    pub(in crate::git) fn leads_to(&self, dir: &[u8]) -> bool {
        self.lists(dir) || !self.next_beneath(dir).is_empty()
    }

    /// The names directly in the directory at or beneath which something is named, sorted.
    pub(in crate::git) fn next_beneath(&self, dir: &[u8]) -> BTreeSet<Vec<u8>> {
        let mut names = BTreeSet::new();
        for set in [&self.listed, &self.whole] {
            let mut from = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
            let prefix = from.clone();
            loop {
                let range = (Bound::Included(from.as_slice()), Bound::Unbounded);
                let found = set.range::<[u8], _>(range).find(|path| !path.is_empty());
                let Some(rest) = found.and_then(|path| path.strip_prefix(prefix.as_slice())) else {
                    break;
                };
                let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
                let name = &rest[..end];
                names.insert(name.to_vec());
                // `0` is the byte after `/`: past everything beneath the name. Names between the
                // two (`a-b` beside `a/…`) come before `a/` and are not passed over.
                from.truncate(prefix.len());
                from.extend_from_slice(name);
                from.push(if end == rest.len() { 0 } else { b'0' });
            }
        }
        names
    }
}

/// The directory that holds the path; empty for the root.
pub(in crate::git) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |cut| &path[..cut])
}

/// The directories above one, the nearest first, the root last.
pub(in crate::git) fn above(dir: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors((!dir.is_empty()).then(|| parent(dir)), |dir| {
        (!dir.is_empty()).then(|| parent(dir))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn leads_to_what_is_named() {
        let mut touched = Touched::default();
        for dir in ["", "a/b/c", "a-b", "a", "a/b", "a0", "x/y"] {
            touched.directory(dir);
        }
        touched.whole("x/z");
        let next = |dir: &str| {
            let names = touched.next_beneath(dir.as_bytes());
            names.into_iter().map(|n| String::from_utf8(n).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(next(""), ["a", "a-b", "a0", "x"]);
        assert_eq!(next("a"), ["b"]);
        assert_eq!(next("a/b"), ["c"]);
        assert_eq!(next("x"), ["y", "z"]);
        assert!(next("a/b/c").is_empty() && next("nowhere").is_empty());
        assert!(touched.leads_to(b"x") && !touched.lists(b"x") && !touched.leads_to(b"x/zz"));
        assert!(touched.covers(b"x/z/deep/er") && !touched.covers(b"x/y/deep"));
    }

    proptest! {
        #[test]
        fn next_is_what_a_look_at_all_finds(
            dirs in proptest::collection::vec("[ab/.]{0,6}", 0..12),
            at in "[ab/.]{0,4}",
        ) {
            let clean = |dir: &String| {
                dir.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
            };
            let (dirs, at): (Vec<_>, _) = (dirs.iter().map(clean).collect(), clean(&at));
            let mut touched = Touched::default();
            for (number, dir) in dirs.iter().enumerate() {
                if number % 3 == 0 { touched.whole(dir.as_str()) } else { touched.directory(dir.as_str()) }
            }
            let prefix = if at.is_empty() { String::new() } else { format!("{at}/") };
            let wanted: BTreeSet<Vec<u8>> = dirs
                .iter()
                .filter(|dir| !dir.is_empty())
                .filter_map(|dir| dir.strip_prefix(&prefix))
                .filter_map(|rest| rest.split('/').next())
                .map(|name| name.as_bytes().to_vec())
                .collect();
            prop_assert_eq!(touched.next_beneath(at.as_bytes()), wanted);
        }
    }
}
