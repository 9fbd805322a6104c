//! An index with a few changes, made of the bytes of the one before: what lies between the changes is
//! copied as it is, piece by piece, so that none of the two is ever in memory whole. What is to be known
//! of the new one is found out by a second thread while it is written.
//!
//! # Limitations
//! Versions 2 and 3, and only entries without flags and stages; for all others there is
//! [`crate::git::index::Index`].

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::iter::Peekable;
use std::ops::Range;
use std::sync::mpsc::channel;
use std::vec;

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::base::{spread, writeback};
use crate::git::index::form::{stat_words, word};
use crate::git::index::known::{IndexDigest, Trailer, digest_by};
use crate::git::index::{EXTENDED, FIXED, IndexChange, Meaning, NAME_MASK};
use crate::tx::path::RepoPath;

/// Signature, version, number of entries.
const HEAD: usize = 12;
const SUM: usize = 20;
/// How much is read, and handed on, at once.
const PIECE: usize = 256 << 10;
/// After so many bytes the disk is set to work.
const WRITTEN: usize = 2 << 20;

/// No index was made of the old one this way.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
    /// It is of another form, damaged, or does not have what it was thought to have.
    #[error("the index cannot be spliced")]
    Form,
    /// The system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The index that is changed.
pub struct Old<'a> {
    /// Its bytes, from their beginning.
    pub from: &'a File,
    /// How many there are.
    pub size: u64,
    /// Its trailer is to be that of its bytes (or left out, `index.skipHash`). Else it was found so
    /// already.
    pub check: bool,
    /// By how many entries the changes make it longer.
    pub grows: i64,
}

/// What is known of an index that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of its bytes.
    pub digest: IndexDigest,
    /// Its last bytes.
    pub trailer: Trailer,
    /// What it means, as [`crate::git::index::Index::meaning`] says it.
    pub meaning: Meaning,
}

/// Writes the old index with the changes in it, without extensions.
///
/// Give the changes by path, each once, as a comparison of two trees tells them: a file that takes
/// the place of a directory comes with the paths that go.
pub fn write(
    old: &Old<'_>,
    changes: Vec<IndexChange>,
    to: &mut File,
) -> Result<Written, SpliceError> {
    let (send, receive) = channel::<Vec<u8>>();
    let (back, again) = channel::<Vec<u8>>();
    let find_out = move || {
        let mut found = Found::default();
        for piece in receive {
            found.take(&piece);
            // Who writes may have enough of them.
            let _ = back.send(piece);
        }
        found.finish()
    };
    let mut file: &File = to;
    let copy = move || {
        let (mut piece, mut written) = (Vec::with_capacity(PIECE), 0);
        let mut hand_on = |piece: &mut Vec<u8>, at_least: usize| -> io::Result<()> {
            if piece.len() < at_least {
                return Ok(());
            }
            file.write_all(piece)?;
            written += piece.len();
            if written >= WRITTEN {
                written = 0;
                writeback::begin(file);
            }
            let mut next = again.try_recv().unwrap_or_default();
            next.clear();
            // It hears as long as this goes on.
            let _ = send.send(std::mem::replace(piece, next));
            Ok(())
        };
        splice(old, changes, &mut |bytes| {
            piece.extend_from_slice(bytes);
            hand_on(&mut piece, PIECE)
        })?;
        hand_on(&mut piece, 1)?;
        Ok(())
    };
    let (copied, found): (Result<(), SpliceError>, Written) =
        if old.size < PIECE as u64 { (copy(), find_out()) } else { spread::beside(copy, find_out) };
    copied?;
    to.write_all(&found.trailer)?;
    Ok(found)
}

/// What is found out of an index piece by piece: its head, then whole entries.
#[derive(Default)]
struct Found {
    has_head: bool,
    sum: Sha1,
    meaning: Sha256,
    words: Vec<u8>,
}

impl Found {
    fn take(&mut self, piece: &[u8]) {
        self.sum.update(piece);
        let body = if self.has_head { piece } else { &piece[HEAD..] };
        self.has_head = true;
        self.words.clear();
        let mut entries = Entries { body, at: 0, left: usize::MAX };
        while let Some(Some(entry)) = entries.next() {
            entry.put_meaning(&mut self.words);
        }
        debug_assert_eq!(entries.at, body.len(), "pieces are whole entries");
        self.meaning.update(&self.words);
    }

    fn finish(self) -> Written {
        let trailer = self.sum.finalize().into();
        let meaning = Meaning(self.meaning.finalize().into());
        Written { digest: digest_by(trailer, trailer, meaning), trailer, meaning }
    }
}

struct Entry<'a> {
    name: &'a [u8],
    mode: &'a [u8],
    id: &'a [u8],
}

impl Entry<'_> {
    /// What counts of it: see [`crate::git::index::Index::meaning`].
    fn put_meaning(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.mode);
        out.extend_from_slice(self.id);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(self.name);
        out.push(0);
    }
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
        let rest = self.body.get(self.at..)?;
        let Extent::Known { name, size } = extent(rest)? else { return None };
        let bytes = rest.get(..size)?;
        self.at += size;
        self.left -= 1;
        Some(Some(Entry { name: &bytes[name], mode: &bytes[24..28], id: &bytes[40..60] }))
    }
}

/// How far an entry reaches.
enum Extent {
    /// Its name, and all of it.
    Known { name: Range<usize>, size: usize },
    /// More bytes than these are needed to tell.
    More,
}

/// How far the entry that begins these bytes reaches; `None` where it has a flag or a stage.
fn extent(bytes: &[u8]) -> Option<Extent> {
    const NAME: usize = FIXED + 2;
    let Some(flags) = bytes.get(FIXED..NAME) else { return Some(Extent::More) };
    let flags = u16::from_be_bytes([flags[0], flags[1]]);
    if flags & !NAME_MASK != 0 {
        return None;
    }
    let length = match flags & NAME_MASK {
        NAME_MASK => match bytes[NAME..].iter().position(|byte| *byte == 0) {
            Some(length) => length,
            None => return Some(Extent::More),
        },
        length => usize::from(length),
    };
    let used = NAME + length;
    Some(Extent::Known { name: NAME..used, size: (used / 8 + 1) * 8 })
}

/// Whether what follows the entries can be left out: extensions with a capital letter.
fn has_only_optional(mut rest: &[u8]) -> bool {
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

/// Takes what is to stand in the new index: its head, then whole entries, in any portions.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// An old index while it is read.
struct Source<'a> {
    from: &'a File,
    hash: Option<Sha1>,
    /// Bytes before the trailer that were not read yet.
    left: u64,
    held: Vec<u8>,
    /// What is held from here on has not been handed on.
    run: usize,
    /// The next entry.
    at: usize,
}

impl Source<'_> {
    /// Reads on; what is done with is handed on.
    fn more(&mut self, sink: Sink<'_>) -> Result<(), SpliceError> {
        self.hand_on(sink)?;
        self.held.drain(..self.at);
        (self.run, self.at) = (0, 0);
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE);
        let start = self.held.len();
        self.held.resize(start + want, 0);
        let count = loop {
            match self.from.read(&mut self.held[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.held.truncate(start + count);
        // Cut off, or an entry that is not whole.
        if count == 0 {
            return Err(SpliceError::Form);
        }
        self.left -= count as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(&self.held[start..]);
        }
        Ok(())
    }

    fn hand_on(&mut self, sink: Sink<'_>) -> io::Result<()> {
        if self.run < self.at {
            sink(&self.held[self.run..self.at])?;
            self.run = self.at;
        }
        Ok(())
    }

    /// The extents of the next entry in what is held.
    fn entry(&mut self, sink: Sink<'_>) -> Result<(Range<usize>, usize), SpliceError> {
        loop {
            if let Extent::Known { name, size } =
                extent(&self.held[self.at..]).ok_or(SpliceError::Form)?
                && self.held.len() - self.at >= size
            {
                return Ok((self.at + name.start..self.at + name.end, self.at + size));
            }
            self.more(sink)?;
        }
    }

    /// What is before the trailer, to its end; and the trailer.
    fn rest(&mut self) -> Result<(Vec<u8>, Trailer), SpliceError> {
        let mut rest = self.held.split_off(self.at);
        let held = rest.len();
        self.from.take(self.left).read_to_end(&mut rest)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&rest[held..]);
        }
        let mut trailer = Trailer::default();
        match self.from.read_exact(&mut trailer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SpliceError::Form),
            read => Ok(read.map(|()| (rest, trailer))?),
        }
    }
}

fn splice(old: &Old<'_>, mut changes: Vec<IndexChange>, sink: Sink<'_>) -> Result<(), SpliceError> {
    let mut source = Source {
        from: old.from,
        hash: old.check.then(Sha1::new),
        left: old.size.checked_sub(SUM as u64).ok_or(SpliceError::Form)?,
        held: Vec::new(),
        run: 0,
        at: 0,
    };
    while source.held.len() < HEAD {
        source.more(sink)?;
    }
    let version = word(&source.held[4..8]);
    if !source.held.starts_with(b"DIRC") || !(version == 2 || version == 3) {
        return Err(SpliceError::Form);
    }
    let mut left = word(&source.held[8..HEAD]);
    let count = u32::try_from(i64::from(left) + old.grows).map_err(|_| SpliceError::Form)?;
    let mut is = i64::from(left);
    sink(&[b"DIRC".as_slice(), &2_u32.to_be_bytes(), &count.to_be_bytes()].concat())?;
    (source.run, source.at) = (HEAD, HEAD);
    changes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut changes = changes.into_iter().peekable();
    loop {
        if left == 0 {
            is += put_before(None, &mut source, &mut changes, sink)?;
            break;
        }
        let entry = source.entry(sink)?;
        is += put_before(Some(&entry), &mut source, &mut changes, sink)?;
        source.at = entry.1;
        left -= 1;
    }
    source.hand_on(sink)?;
    let (rest, trailer) = source.rest()?;
    let sum = source.hash.map(|hash| Trailer::from(hash.finalize()));
    let is_whole = sum.is_none_or(|sum| sum == trailer || trailer == Trailer::default());
    if is_whole && has_only_optional(&rest) && is == i64::from(count) {
        Ok(())
    } else {
        Err(SpliceError::Form)
    }
}

/// Hands on what comes before an entry (or the end), and what takes its place; says by how many
/// entries that is more.
fn put_before(
    entry: Option<&(Range<usize>, usize)>,
    source: &mut Source<'_>,
    changes: &mut Peekable<vec::IntoIter<IndexChange>>,
    sink: Sink<'_>,
) -> io::Result<i64> {
    let mut more = 0;
    let standing = |held: &[u8], path: &RepoPath| {
        entry.map_or(Ordering::Less, |(name, _)| path.as_bytes().cmp(&held[name.clone()]))
    };
    while let Some(change) = changes.next_if(|c| standing(&source.held, &c.path).is_le()) {
        source.hand_on(sink)?;
        if let (Some((_, end)), Ordering::Equal) = (entry, standing(&source.held, &change.path)) {
            source.run = *end;
            more -= 1;
        }
        if let Some((mode, id, stat)) = change.to {
            let mut bytes = Vec::new();
            put(&mut bytes, change.path.as_bytes(), mode, id.as_bytes(), stat.as_ref());
            sink(&bytes)?;
            more += 1;
        }
    }
    Ok(more)
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

/// What bytes of this form mean, as [`crate::git::index::Index::meaning`] says it; `None` where
/// they are of another.
pub fn meaning(bytes: &[u8]) -> Option<Meaning> {
    let mut entries = Entries::of(bytes)?;
    let (mut hash, mut words) = (Sha256::new(), Vec::with_capacity(PIECE));
    while let Some(entry) = entries.next()? {
        entry.put_meaning(&mut words);
        if words.len() >= PIECE {
            hash.update(&words);
            words.clear();
        }
    }
    hash.update(&words);
    has_only_optional(&entries.body[entries.at..]).then(|| Meaning(hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Seek as _;

    use proptest::prelude::*;

    use super::*;
    use crate::git::index;
    use crate::git::index::Index;
    use crate::tx::id::Oid;

    fn change(name: &str, id: Option<u8>) -> IndexChange {
        let to = id.map(|id| (0o100_644, Oid::from_bytes([id; 20]), None));
        IndexChange { path: RepoPath::new(name).expect("valid"), to }
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("made");
        file.write_all(bytes).and_then(|()| file.rewind()).expect("written");
        file
    }

    /// The bytes that are written, and what is said of them.
    fn spliced(
        old: &[u8],
        changes: &[IndexChange],
        grows: i64,
        check: bool,
    ) -> Result<(Vec<u8>, Written), SpliceError> {
        let (from, mut to) = (file_of(old), tempfile::tempfile().expect("made"));
        let old = Old { from: &from, size: old.len() as u64, check, grows };
        let written = write(&old, changes.to_vec(), &mut to)?;
        let mut bytes = Vec::new();
        to.rewind().and_then(|()| to.read_to_end(&mut bytes)).expect("read");
        Ok((bytes, written))
    }

    /// That it is what taking the index apart makes.
    fn judge(index: &Index, changes: &[IndexChange]) {
        let more = |change: &IndexChange| {
            let is_there = index.get(change.path.as_bytes()).is_some();
            i64::from(change.to.is_some()) - i64::from(is_there)
        };
        let grows = changes.iter().map(more).sum();
        let (bytes, written) =
            spliced(&index.to_bytes(), changes, grows, true).expect("of this form");
        let wanted = index.with_changes(changes, None);
        assert!(bytes == wanted.to_bytes());
        assert_eq!(meaning(&bytes), Some(wanted.meaning()));
        let meaning = Index::parse(&bytes).expect("whole").meaning();
        let (digest, trailer) = (index::known::digest(&bytes), index::known::trailer(&bytes));
        assert_eq!(written, Written { digest, trailer, meaning });
        let other = spliced(&index.to_bytes(), changes, grows + 1, true);
        assert!(matches!(other, Err(SpliceError::Form)), "not what it was thought to have");
    }

    fn of(entries: &BTreeMap<String, u8>) -> Index {
        let first: Vec<_> = entries.iter().map(|(name, id)| change(name, Some(*id))).collect();
        Index::empty().with_changes(&first, None)
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
            // Some are of the old ones.
            let mut all: BTreeMap<_, _> = changes.iter().map(|(name, id)| (stretch(name), *id)).collect();
            for (number, name) in old.keys().enumerate().filter(|(number, _)| number % 5 == 0) {
                all.insert(name.clone(), (number % 2 == 0).then_some(9));
            }
            let changes: Vec<_> = all.iter().rev().map(|(name, id)| change(name, *id)).collect();
            judge(&of(&old), &changes);
        }

        #[test]
        fn bytes_of_any_kind_do_not_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            count in 0u32..5,
            check in proptest::bool::ANY,
        ) {
            if bytes.len() > HEAD {
                bytes[..8].copy_from_slice(b"DIRC\0\0\0\x02");
                bytes[8..HEAD].copy_from_slice(&count.to_be_bytes());
            }
            let _ = spliced(&bytes, &[change("a", Some(1)), change("b", None)], 1, check);
            let _ = meaning(&bytes);
        }
    }

    /// Of more than one piece, so that a second thread hears of them: changes at either end, in each
    /// piece, and where one piece ends.
    #[test]
    fn of_many_pieces() {
        let name = |number: usize| format!("{}/{number:06}", "folder".repeat(number % 7 + 1));
        let old: BTreeMap<_, _> = (0..9_000).map(|n| (name(n), 1)).collect();
        let index = of(&old);
        assert!(index.to_bytes().len() > 3 * PIECE);
        let (first, last) = (old.keys().next().expect("some"), old.keys().last().expect("some"));
        for step in [1, 7, 2_500] {
            let mut changes =
                vec![change("a", Some(2)), change("z", Some(3)), change("none", None)];
            changes.extend([change(first, None), change(last, Some(4))]);
            let inner = old.keys().skip(1).take(8_000).step_by(step).enumerate();
            changes.extend(inner.map(|(at, name)| change(name, (at % 3 > 0).then_some(5))));
            judge(&index, &changes);
        }
        judge(&index, &[]);
        let all: Vec<_> = old.keys().map(|name| change(name, None)).collect();
        judge(&index, &all);
    }

    #[test]
    fn what_is_not_as_its_trailer_says_is_none() {
        let index = of(&(0..9_000).map(|n| (format!("{n:06}"), 1)).collect());
        let changes = [change("000007", Some(3))];
        let mut bytes = index.to_bytes();
        let at = bytes.len() / 2;
        // In an object's id: the form stays.
        bytes[at] ^= 1;
        assert!(matches!(spliced(&bytes, &changes, 0, true), Err(SpliceError::Form)));
        assert!(spliced(&bytes, &changes, 0, false).is_ok(), "its looks are the proof");
        let sum = bytes.len() - SUM;
        bytes[sum..].fill(0);
        assert!(spliced(&bytes, &changes, 0, true).is_ok(), "left out");
        bytes.truncate(at);
        assert!(matches!(spliced(&bytes, &changes, 0, false), Err(SpliceError::Form)));
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
        let (new, _) = spliced(&bytes, &changes, 0, true).expect("of this form");
        assert_eq!(new, index.with_changes(&changes, None).to_bytes());
        std::fs::write(repo.git_dir().join("index"), &new).expect("written");
        assert!(repo.git(&["ls-files", "-s"]).contains("03030303"));
        let is_none =
            |bytes: &[u8]| spliced(bytes, &changes, 0, true).is_err() && meaning(bytes).is_none();
        std::fs::write(repo.git_dir().join("index"), &bytes).expect("written");
        repo.git(&["update-index", "--assume-unchanged", "b"]);
        assert!(is_none(&read()));
        repo.git(&["update-index", "--no-assume-unchanged", "--index-version", "4", "b"]);
        assert!(is_none(&read()));
    }
}
