//! Blobs made ahead of their pack: where a seal has many files, two threads read, hash and compress
//! them, batch by batch. The pack itself is written by one, in order.
//!
//! # Limitations
//! Small files that are stored as they stand. What cannot be read or changes meanwhile is left out:
//! who adds it to the pack reads it again, and says why.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::base::spread;
use crate::git::files::root::Root;
use crate::git::objects::pack::{BlobDeflate, PackError, PackWriter};
use crate::git::scan::{RawFile, raw_id};
use crate::tx::entry::{Change, Entry, Kind};

/// Up to so many bytes a file is small.
const SMALL: u64 = 64 << 10;

/// How many changes make a batch: at most 32 MiB of small files are held at once.
pub const BATCH: usize = 512;

/// How many changes make a second thread worth its start.
const ALONE: usize = 32;

/// A blob that is ready for its pack.
#[derive(Debug)]
pub struct Ahead {
    /// What was read.
    pub raw: RawFile,
    /// As it stands in a pack; empty where the base tracks the same bytes.
    entry: Vec<u8>,
}

impl Ahead {
    /// Adds it to a pack.
    ///
    /// # Errors
    /// As [`PackWriter::add_blob`].
    pub fn add_to(&self, pack: &mut PackWriter<'_>) -> Result<(), PackError> {
        debug_assert!(!self.entry.is_empty());
        pack.add_entry(self.raw.oid, &self.entry)
    }
}

/// Makes those of the changes ahead that are `wanted`: the answer has as many as were asked for.
pub fn make(root: &Root, changes: &[Change], wanted: &[bool]) -> Vec<Option<Ahead>> {
    let mut made: Vec<Option<Ahead>> = changes.iter().map(|_| None).collect();
    if changes.len() < ALONE {
        return made;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut deflate = BlobDeflate::default();
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((change, wanted)) = changes.get(at).zip(wanted.get(at)) else { return done };
            if *wanted && let Some(blob) = one(root, change, &mut deflate) {
                done.push((at, blob));
            }
        }
    };
    let (mine, theirs) = spread::beside(work, work);
    for (at, blob) in mine.into_iter().chain(theirs) {
        made[at] = Some(blob);
    }
    made
}

fn one(root: &Root, change: &Change, deflate: &mut BlobDeflate) -> Option<Ahead> {
    let small = |size: u64| size <= SMALL;
    let found = change.after.as_ref();
    let found = found.filter(|found| found.kind == Kind::File && small(found.stat.size))?;
    let mut bytes = Vec::with_capacity(usize::try_from(found.stat.size).ok()?);
    let raw = raw_id(root, &change.path, found, |piece| bytes.extend_from_slice(piece)).ok()?;
    let same = |before: &Entry| before.raw == raw.oid && before.tracked.is_some();
    let same = change.before.as_ref().is_some_and(same);
    let entry = if same { Vec::new() } else { deflate.entry(&bytes)? };
    Some(Ahead { raw, entry })
}
