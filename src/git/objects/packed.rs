//! Which objects lie in packs of the repository's own folder: those need not be written again.
//!
//! A pack is synced by whoever makes it (git and worktx do); a loose object is not by default,
//! and one that only an alternate has goes away with it. So only "in an own pack" counts as there.
//!
//! # Limitations
//! Index version 2, which git has written since 2007. Ids beyond [`MAX_IDS`] are left out: objects
//! of such packs are written again, which costs space and nothing else.

use std::cell::{Cell, OnceCell};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::tx::id::Oid;

/// How many ids are held in memory at most: 60 MB of them.
const MAX_IDS: usize = 3_000_000;
/// The most bytes of the names in a multi-pack index: a million packs'.
const LONGEST_NAMES: u64 = 64 << 20;
/// Magic, version and fan-out of a pack index.
const HEAD: usize = 8 + 256 * 4;
/// Where its ids begin.
const TABLE: u64 = HEAD as u64;
/// Up to so many ids of a pack are read at once.
const FEW: usize = 4096;
/// Magic and version of a pack index.
pub(crate) const IDX_HEADER: [u8; 8] = [0xff, b't', b'O', b'c', 0, 0, 0, 2];

/// The ids of all packs: read where they are asked for.
#[derive(Default)]
pub(crate) struct PackedIds {
    tables: Vec<Table>,
}

/// The ids of one pack.
struct Table {
    index: PathBuf,
    pack: PathBuf,
    ids: Ids,
    /// Whether somebody relies on what is in it, and it was touched for that.
    relied_on: Cell<bool>,
}

/// Sorted ids. What cannot be read is empty.
enum Ids {
    All(Vec<[u8; 20]>),
    ByFirst {
        /// How many ids begin with a byte up to this one.
        fanout: Box<[u32; 256]>,
        /// Those that begin with a byte.
        buckets: Vec<OnceCell<Vec<[u8; 20]>>>,
    },
}

impl Table {
    fn is_relied_on(&self) -> bool {
        if self.relied_on.get() {
            return true;
        }
        let now = std::time::SystemTime::now();
        match File::open(&self.pack).and_then(|file| file.set_modified(now)) {
            Ok(()) => self.relied_on.set(true),
            Err(error) => {
                tracing::debug!(%error, pack = %self.pack.display(), "it cannot be touched");
            }
        }
        self.relied_on.get()
    }

    fn contains(&self, id: Oid) -> bool {
        let ids = match &self.ids {
            Ids::All(ids) => ids,
            Ids::ByFirst { fanout, buckets } => {
                let first = usize::from(id.as_bytes()[0]);
                buckets[first].get_or_init(|| {
                    let from = first.checked_sub(1).map_or(0, |before| fanout[before]);
                    let read = File::open(&self.index)
                        .and_then(|file| read_ids(&file, from, fanout[first]));
                    read.unwrap_or_else(|error| {
                        let index = self.index.display();
                        tracing::debug!(%error, %index, "it cannot be read");
                        Vec::new()
                    })
                })
            }
        };
        ids.binary_search(id.as_bytes()).is_ok()
    }
}

impl PackedIds {
    /// Reads the heads of the indexes beneath an object folder. What cannot be read is left out.
    pub(crate) fn read(objects: &Path) -> Self {
        let mut all = Self::default();
        let mut room = MAX_IDS;
        let Ok(entries) = std::fs::read_dir(objects.join("pack")) else { return all };
        for index in entries.flatten().map(|entry| entry.path()) {
            let pack = index.with_extension("pack");
            if index.extension().is_some_and(|e| e == "idx")
                && pack.is_file()
                && let Ok(Some((file, fanout))) = read_head(&index, room)
            {
                let count = usize::try_from(fanout[255]).unwrap_or(room);
                room -= count;
                let ids = if count > FEW {
                    Ids::ByFirst {
                        fanout: Box::new(fanout),
                        buckets: (0..256).map(|_| OnceCell::new()).collect(),
                    }
                } else {
                    Ids::All(read_ids(&file, 0, fanout[255]).unwrap_or_default())
                };
                all.tables.push(Table { index, pack, ids, relied_on: Cell::new(false) });
            }
        }
        all
    }

    /// Whether an object is there. Whoever asks relies on it from now on, and would not write it: its
    /// pack is touched, as git does, so that no gc of git's takes it for forgotten meanwhile. Where it
    /// cannot be touched the object does not count as there, and is written.
    pub(crate) fn contains(&self, id: Oid) -> bool {
        self.tables.iter().any(|table| table.contains(id) && table.is_relied_on())
    }
}

/// How many ids of an index begin with a byte up to each; `None` where it is no index that can be
/// read, or has too many.
fn read_head(path: &Path, room: usize) -> io::Result<Option<(File, [u32; 256])>> {
    let file = File::open(path)?;
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0)?;
    let (words, _) = head[8..].as_chunks();
    let mut fanout = [0; 256];
    for (count, word) in fanout.iter_mut().zip(words) {
        *count = u32::from_be_bytes(*word);
    }
    let count = usize::try_from(fanout[255]).unwrap_or(usize::MAX);
    let fits = file.metadata()?.len() / 20 >= count as u64;
    let is_sound = head[..8] == IDX_HEADER && fanout.is_sorted() && count <= room && fits;
    Ok(is_sound.then_some((file, fanout)))
}

/// The ids from one number to before another one.
fn read_ids(file: &File, from: u32, to: u32) -> io::Result<Vec<[u8; 20]>> {
    let count = usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?;
    let mut bytes = vec![0; count * 20];
    file.read_exact_at(&mut bytes, TABLE + u64::from(from) * 20)?;
    Ok(bytes.as_chunks().0.to_vec())
}

/// The ids of one index, sorted; `None` where it is no index that can be read, or has too many.
pub(super) fn read_table(path: &Path, room: usize) -> io::Result<Option<Vec<[u8; 20]>>> {
    let Some((file, fanout)) = read_head(path, room)? else { return Ok(None) };
    read_ids(&file, 0, fanout[255]).map(Some)
}

/// The indexes (`pack-….idx`) that git has put together into multi-pack indexes, which name packs: one
/// that is gone would be missed. `None` where such an index cannot be read.
pub(super) fn put_together(folder: &Path) -> io::Result<Option<HashSet<String>>> {
    let mut names = HashSet::new();
    let mut files = vec![folder.join("multi-pack-index")];
    for entry in std::fs::read_dir(folder.join("multi-pack-index.d")).into_iter().flatten() {
        files.push(entry?.path());
    }
    for file in files {
        if file.file_name().is_some_and(|name| name == "multi-pack-index-chain") {
            continue;
        }
        match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => match pack_names(&opened?)? {
                Some(found) => names.extend(found),
                None => return Ok(None),
            },
        }
    }
    Ok(Some(names))
}

/// The names in a multi-pack index (gitformat-pack(5)): a header, a table of chunks, and of them the
/// one with names, each with a zero behind it.
fn pack_names(file: &File) -> io::Result<Option<Vec<String>>> {
    let mut head = [0; 12];
    if file.read_exact_at(&mut head, 0).is_err() || &head[..4] != b"MIDX" {
        return Ok(None);
    }
    let mut table = vec![0; (usize::from(head[6]) + 1) * 12];
    if file.read_exact_at(&mut table, 12).is_err() {
        return Ok(None);
    }
    let offset = |entry: &[u8]| u64::from_be_bytes(entry[4..12].try_into().expect("eight bytes"));
    let chunks: Vec<&[u8]> = table.chunks_exact(12).collect();
    let names = chunks.windows(2).find(|pair| &pair[0][..4] == b"PNAM");
    let Some((start, end)) = names.map(|pair| (offset(pair[0]), offset(pair[1]))) else {
        return Ok(None);
    };
    let length = end.checked_sub(start).filter(|length| *length <= LONGEST_NAMES);
    let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, start)?;
    let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(Some(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
}

/// Ids and offsets of an index without far offsets: of a pack below 2 GiB.
pub(super) fn entries(index: &[u8]) -> Option<Vec<(Oid, usize)>> {
    let word = |at: usize| Some(u32::from_be_bytes(index.get(at..at + 4)?.try_into().ok()?));
    if !index.starts_with(&IDX_HEADER) {
        return None;
    }
    let tables = IDX_HEADER.len() + 256 * 4;
    let count = usize::try_from(word(tables - 4)?).ok()?;
    if count > index.len() / 28 {
        return None;
    }
    let mut all = Vec::with_capacity(count);
    for n in 0..count {
        let at = tables + n * 20;
        let id = Oid::from_bytes(index.get(at..at + 20)?.try_into().ok()?);
        let offset = word(tables + count * 24 + n * 4)?;
        if offset >> 31 != 0 {
            return None;
        }
        all.push((id, usize::try_from(offset).ok()?));
    }
    Some(all)
}
