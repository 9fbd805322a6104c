//! An index with a few changes, made of the bytes of the one before: what lies between the changes is
//! copied as it is. At 100,000 entries a sixth of what taking it apart and putting it together costs.
//!
//! # Limitations
//! Versions 2 and 3, and only entries without flags and stages; for all others there is
//! [`super::index::Index`].

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::index::{EXTENDED, FIXED, IndexChange, Meaning, NAME_MASK};
use super::index_form::{stat_words, word};

/// Signature, version, number of entries.
const HEAD: usize = 12;
const SUM: usize = 20;

struct Entry<'a> {
    name: &'a [u8],
    mode: &'a [u8],
    id: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

/// The entries of an index of this form; `None` where it is of another.
struct Entries<'a> {
    body: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Entries<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let body = bytes.get(..bytes.len().checked_sub(SUM)?)?;
        let version = word(body.get(4..8)?);
        let left = usize::try_from(word(body.get(8..HEAD)?)).ok()?;
        let fits = body.starts_with(b"DIRC") && (version == 2 || version == 3);
        fits.then_some(Self { body, at: HEAD, left })
    }

    /// The next entry; the outer `None` is an entry of another form.
    #[expect(clippy::option_option, reason = "the end, and what is none of ours, are two things")]
    fn next(&mut self) -> Option<Option<Entry<'a>>> {
        if self.left == 0 {
            return Some(None);
        }
        let fixed = self.body.get(self.at..self.at + FIXED + 2)?;
        let flags = u16::from_be_bytes([fixed[FIXED], fixed[FIXED + 1]]);
        // No flag and no stage.
        if flags & !NAME_MASK != 0 {
            return None;
        }
        let start = self.at + FIXED + 2;
        let length = match flags & NAME_MASK {
            NAME_MASK => self.body.get(start..)?.iter().position(|byte| *byte == 0)?,
            length => usize::from(length),
        };
        let name = self.body.get(start..start + length)?;
        let used = FIXED + 2 + length;
        let end = self.at + (used / 8 + 1) * 8;
        (end <= self.body.len()).then_some(())?;
        self.at = end;
        self.left -= 1;
        Some(Some(Entry { name, mode: &fixed[24..28], id: &fixed[40..60], end }))
    }

    /// Whether what follows the entries can be left out: extensions with a capital letter.
    fn has_only_optional(&self) -> bool {
        let mut rest = &self.body[self.at..];
        while !rest.is_empty() {
            let Some((head, more)) = rest.split_at_checked(8) else { return false };
            let length = usize::try_from(word(&head[4..])).unwrap_or(usize::MAX);
            let Some((_, more)) = more.split_at_checked(length) else { return false };
            if !head[0].is_ascii_uppercase() {
                return false;
            }
            rest = more;
        }
        true
    }
}

/// Whether the checksum at the end is that of all before it, or left out (`index.skipHash`).
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some((body, sum)) = bytes.split_last_chunk::<SUM>() else { return false };
    *sum == [0; SUM] || Sha1::digest(body).as_slice() == sum
}

/// The bytes with the changes in them, without extensions; `None` where they are of another form, or
/// a path that is added is one of a directory that stays.
///
/// Give the changes by path, each once, as a comparison of two trees tells them: a file that takes
/// the place of a directory comes with the paths that go.
pub fn splice(old: &[u8], changes: &[IndexChange]) -> Option<Vec<u8>> {
    let mut entries = Entries::of(old)?;
    let mut changes: Vec<&IndexChange> = changes.iter().collect();
    changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut changes = changes.into_iter().peekable();
    let mut out = Vec::with_capacity(old.len() + changes.len() * 128);
    out.extend_from_slice(&old[..HEAD]);
    let mut count = u32::try_from(entries.left).ok()?;
    // What was not copied yet begins here.
    let mut from = HEAD;
    loop {
        let start = entries.at;
        let entry = entries.next()?;
        let name = entry.as_ref().map(|entry| entry.name);
        while let Some(change) =
            changes.next_if(|change| name.is_none_or(|name| change.path.as_bytes() <= name))
        {
            out.extend_from_slice(&old[from..start]);
            from = start;
            if let Some(entry) = entry.as_ref().filter(|e| e.name == change.path.as_bytes()) {
                from = entry.end;
                count -= 1;
            }
            if let Some((mode, id, stat)) = change.to {
                put(&mut out, change.path.as_bytes(), mode, id.as_bytes(), stat.as_ref());
                count += 1;
            }
        }
        if entry.is_none() {
            break;
        }
    }
    if !entries.has_only_optional() {
        return None;
    }
    out.extend_from_slice(&old[from.min(entries.at)..entries.at]);
    out[4..8].copy_from_slice(&2_u32.to_be_bytes());
    out[8..HEAD].copy_from_slice(&count.to_be_bytes());
    let sum = Sha1::digest(&out);
    out.extend_from_slice(&sum);
    Some(out)
}

fn put(
    out: &mut Vec<u8>,
    name: &[u8],
    mode: u32,
    id: &[u8],
    stat: Option<&crate::tx::entry::Stat>,
) {
    let start = out.len();
    let mut words = stat.map_or([0; 10], stat_words);
    words[6] = mode;
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(id);
    let flags = u16::try_from(name.len()).map_or(NAME_MASK, |length| length.min(NAME_MASK));
    debug_assert_eq!(flags & EXTENDED, 0);
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(name);
    let used = out.len() - start;
    out.resize(start + (used / 8 + 1) * 8, 0);
}

/// What bytes of this form mean, as [`super::index::Index::meaning`] says it; `None` where they are
/// of another.
pub fn meaning(bytes: &[u8]) -> Option<Meaning> {
    let mut entries = Entries::of(bytes)?;
    let mut hash = Sha256::new();
    while let Some(entry) = entries.next()? {
        hash.update(entry.mode);
        hash.update(entry.id);
        hash.update([0, 0]);
        hash.update(entry.name);
        hash.update([0]);
    }
    Some(Meaning(hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::git::index::Index;
    use crate::tx::id::Oid;
    use crate::tx::path::RepoPath;

    fn change(name: &str, id: Option<u8>) -> IndexChange {
        let to = id.map(|id| (0o100_644, Oid::from_bytes([id; 20]), None));
        IndexChange { path: RepoPath::new(name).expect("valid"), to }
    }

    proptest! {
        /// The same bytes and the same meaning as by taking it apart.
        #[test]
        fn is_what_the_other_way_makes(
            old in proptest::collection::btree_map("[a-c]{1,12}", 0u8..4, 0..40),
            changes in proptest::collection::btree_map("[a-c]{1,12}", proptest::option::of(0u8..4), 0..12),
            long in proptest::bool::ANY,
        ) {
            let stretch = |name: &String| if long { name.repeat(400) } else { name.clone() };
            let old: BTreeMap<_, _> = old.iter().map(|(name, id)| (stretch(name), *id)).collect();
            let first: Vec<_> = old.iter().map(|(name, id)| change(name, Some(*id))).collect();
            let index = Index::empty().with_changes(&first, None);
            let bytes = index.to_bytes();
            // Some are of the old ones.
            let mut all: BTreeMap<_, _> = changes.iter().map(|(name, id)| (stretch(name), *id)).collect();
            for (number, name) in old.keys().enumerate().filter(|(number, _)| number % 5 == 0) {
                all.insert(name.clone(), (number % 2 == 0).then_some(9));
            }
            let changes: Vec<_> = all.iter().rev().map(|(name, id)| change(name, *id)).collect();
            let wanted = index.with_changes(&changes, None);
            let spliced = splice(&bytes, &changes).expect("of this form");
            prop_assert_eq!(&spliced, &wanted.to_bytes());
            prop_assert!(is_whole(&spliced));
            prop_assert_eq!(meaning(&spliced), Some(wanted.meaning()));
            prop_assert_eq!(Index::parse(&spliced).expect("whole").meaning(), wanted.meaning());
        }

        #[test]
        fn bytes_of_any_kind_do_not_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            count in 0u32..5,
        ) {
            if bytes.len() > HEAD {
                bytes[..8].copy_from_slice(b"DIRC\0\0\0\x02");
                bytes[8..HEAD].copy_from_slice(&count.to_be_bytes());
            }
            let _ = splice(&bytes, &[change("a", Some(1)), change("b", None)]);
            let _ = (meaning(&bytes), is_whole(&bytes));
        }
    }

    /// git's own, with extensions; and what is not of this form.
    #[test]
    fn gits_own_and_flags() {
        let repo = crate::git::testkit::Repo::new();
        repo.commit("dir/a", "a");
        repo.commit("b", "b");
        repo.git(&["status"]);
        let read = || std::fs::read(repo.git_dir().join("index")).expect("read");
        let bytes = read();
        let index = Index::parse(&bytes).expect("git's");
        assert_eq!(meaning(&bytes), Some(index.meaning()));
        let changes = [change("dir/a", None), change("c", Some(3))];
        let spliced = splice(&bytes, &changes).expect("of this form");
        assert_eq!(spliced, index.with_changes(&changes, None).to_bytes());
        std::fs::write(repo.git_dir().join("index"), &spliced).expect("written");
        assert!(repo.git(&["ls-files", "-s"]).contains("03030303"));
        std::fs::write(repo.git_dir().join("index"), &bytes).expect("written");
        repo.git(&["update-index", "--assume-unchanged", "b"]);
        assert!(splice(&read(), &changes).is_none() && meaning(&read()).is_none());
        repo.git(&["update-index", "--no-assume-unchanged", "--index-version", "4", "b"]);
        assert!(splice(&read(), &changes).is_none() && meaning(&read()).is_none());
    }
}
