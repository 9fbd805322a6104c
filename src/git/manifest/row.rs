//! One directory of the manifest as one packed blob: what the scan compares a listing with.
//!
//! ```text
//! crc32 of the rest, version, count, count offsets, then per entry, sorted by name:
//! name length, name, flags, mode, git mode, links, uid, gid, size, mtime, ctime, inode, raw id,
//! and the blob's id where git holds other bytes
//! ```
//!
//! Numbers are little-endian and of fixed width, so that nothing is decoded that is not asked for:
//! 100,000 entries are compared without an allocation each. A row is checked whole when it is
//! read; what is asked of it afterwards cannot fail.
//!
//! # Limitations
//! The checksum finds damage, not malice: the file lies where only its owner writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::tx::entry::{
    Entry, GIT_EXECUTABLE, GIT_FILE, GIT_LINK, GIT_SYMLINK, Kind, Stat, Tracked,
};
use crate::tx::id::Oid;

/// The version of this encoding.
const VERSION: u8 = 1;
/// Checksum, version, count.
const HEAD: usize = 9;
/// Everything of an entry but its name and the blob's id.
const BODY: usize = 1 + 2 + 1 + 4 + 4 + 4 + 8 + 8 + 8 + 8 + 20;

const KIND_BITS: u8 = 0x0f;
const PROOF: u8 = 0x10;
const TRACKED: u8 = 0x20;
const OWN_BLOB: u8 = 0x40;

/// The order is the number in the encoding: only ever added to.
const KINDS: [Kind; 8] = [
    Kind::File,
    Kind::Symlink,
    Kind::Directory,
    Kind::Fifo,
    Kind::Socket,
    Kind::Device,
    Kind::NestedRepository,
    Kind::Mount,
];
/// As [`KINDS`]. Another mode that git once wrote (0o100664) is kept as a plain file's.
const GIT_MODES: [u32; 4] = [GIT_FILE, GIT_EXECUTABLE, GIT_SYMLINK, GIT_LINK];

/// The children of one directory, packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(Arc<[u8]>);

/// One child in its packed form.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Its name.
    pub name: &'a [u8],
    body: &'a [u8],
}

impl Row {
    /// Packs children; the map sorts them.
    ///
    /// # Panics
    /// Where they would fill 4 GiB.
    pub fn pack(children: &BTreeMap<Vec<u8>, Entry>) -> Self {
        let names: usize = children.keys().map(Vec::len).sum();
        let mut out = Vec::with_capacity(HEAD + names + children.len() * (4 + 4 + BODY));
        out.extend([0; 4]);
        out.push(VERSION);
        out.extend(length(children.len()).to_le_bytes());
        let mut offset = HEAD + 4 * children.len();
        for (name, entry) in children {
            out.extend(length(offset).to_le_bytes());
            offset += 4 + name.len() + BODY + if own_blob(entry).is_some() { 20 } else { 0 };
        }
        for (name, entry) in children {
            out.extend(length(name.len()).to_le_bytes());
            out.extend(name);
            pack_entry(&mut out, entry);
        }
        let checksum = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&checksum.to_le_bytes());
        Self(out.into())
    }

    /// Takes bytes that were packed before; `None` where they are not whole.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (checksum, rest) = bytes.split_first_chunk::<4>()?;
        if crc32fast::hash(rest) != u32::from_le_bytes(*checksum) || *rest.first()? != VERSION {
            return None;
        }
        let row = Self(bytes.into());
        let count = usize::try_from(u32::from_le_bytes(*bytes.get(5..)?.first_chunk()?)).ok()?;
        let mut end = HEAD.checked_add(count.checked_mul(4)?)?;
        let mut before: Option<&[u8]> = None;
        for at in 0..count {
            let offset = bytes.get(HEAD + 4 * at..)?.first_chunk()?;
            if usize::try_from(u32::from_le_bytes(*offset)).ok()? != end {
                return None;
            }
            let name_length =
                usize::try_from(u32::from_le_bytes(*bytes.get(end..)?.first_chunk()?)).ok()?;
            let name = bytes.get(end + 4..(end + 4).checked_add(name_length)?)?;
            let body = bytes.get(end + 4 + name_length..)?;
            let flags = *body.first()?;
            let size = BODY + if flags & OWN_BLOB == 0 { 0 } else { 20 };
            let known = KINDS.get(usize::from(flags & KIND_BITS)).is_some()
                && GIT_MODES.get(usize::from(*body.get(3)?)).is_some();
            if name.is_empty() || before >= Some(name) || body.len() < size || !known {
                return None;
            }
            before = Some(name);
            end += 4 + name_length + size;
        }
        (end == bytes.len()).then_some(row)
    }

    /// The packed bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The checksum of all that it says.
    ///
    /// # Panics
    /// Never: a row has one.
    pub fn checksum(&self) -> u32 {
        u32::from_le_bytes(*self.0.first_chunk().expect("checked when read"))
    }

    /// How many children there are; never 0 in a manifest.
    pub fn len(&self) -> usize {
        self.u32_at(5)
    }

    /// Whether there is no child.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `at`-th child by name.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn at(&self, at: usize) -> Packed<'_> {
        let offset = self.u32_at(HEAD + 4 * at);
        let name_length = self.u32_at(offset);
        let (name, body) = self.0[offset + 4..].split_at(name_length);
        Packed { name, body }
    }

    /// All children, by name.
    pub fn iter(&self) -> impl Iterator<Item = Packed<'_>> {
        (0..self.len()).map(|at| self.at(at))
    }

    /// One child.
    pub fn get(&self, name: &[u8]) -> Option<Packed<'_>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let child = self.at(middle);
            match child.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(child),
            }
        }
        None
    }

    /// The children, for changing them.
    pub fn unpack(&self) -> BTreeMap<Vec<u8>, Entry> {
        self.iter().map(|child| (child.name.to_vec(), child.entry())).collect()
    }

    fn u32_at(&self, at: usize) -> usize {
        let bytes = self.0[at..].first_chunk().expect("checked when read");
        u32::from_le_bytes(*bytes) as usize
    }
}

impl Packed<'_> {
    /// What it is.
    pub fn kind(&self) -> Kind {
        KINDS[usize::from(self.body[0] & KIND_BITS)]
    }

    /// Whether git tracks it.
    pub fn is_tracked(&self) -> bool {
        self.body[0] & TRACKED != 0
    }

    /// Whether git tracks it and holds other bytes than these.
    pub fn has_own_blob(&self) -> bool {
        self.body[0] & OWN_BLOB != 0
    }

    /// Whether the stat data may prove that the bytes are the same.
    pub fn stat_is_proof(&self) -> bool {
        self.body[0] & PROOF != 0
    }

    /// The stat data.
    pub fn stat(&self) -> Stat {
        Stat {
            mode: u32::from(u16::from_le_bytes(self.chunk(1))),
            links: u32::from_le_bytes(self.chunk(4)),
            uid: u32::from_le_bytes(self.chunk(8)),
            gid: u32::from_le_bytes(self.chunk(12)),
            size: u64::from_le_bytes(self.chunk(16)),
            mtime_ns: i64::from_le_bytes(self.chunk(24)),
            ctime_ns: i64::from_le_bytes(self.chunk(32)),
            inode: u64::from_le_bytes(self.chunk(40)),
        }
    }

    /// The id of the raw bytes.
    pub fn raw(&self) -> Oid {
        Oid::from_bytes(self.chunk(48))
    }

    /// All of it.
    pub fn entry(&self) -> Entry {
        let raw = self.raw();
        let tracked = self.is_tracked().then(|| Tracked {
            blob: if self.body[0] & OWN_BLOB == 0 { raw } else { Oid::from_bytes(self.chunk(68)) },
            mode: GIT_MODES[usize::from(self.body[3])],
        });
        Entry {
            kind: self.kind(),
            stat: self.stat(),
            stat_is_proof: self.stat_is_proof(),
            raw,
            tracked,
        }
    }

    fn chunk<const N: usize>(&self, at: usize) -> [u8; N] {
        *self.body[at..].first_chunk().expect("checked when read")
    }
}

fn length(value: usize) -> u32 {
    u32::try_from(value).expect("a directory's row is smaller than 4 GiB")
}

fn own_blob(entry: &Entry) -> Option<Oid> {
    entry.tracked.map(|tracked| tracked.blob).filter(|blob| *blob != entry.raw)
}

fn pack_entry(out: &mut Vec<u8>, entry: &Entry) {
    let position = |found: Option<usize>| {
        found.and_then(|at| u8::try_from(at).ok()).expect("the tables know every value")
    };
    let mut flags = position(KINDS.iter().position(|kind| *kind == entry.kind));
    let blob = own_blob(entry);
    for (flag, set) in [
        (PROOF, entry.stat_is_proof),
        (TRACKED, entry.tracked.is_some()),
        (OWN_BLOB, blob.is_some()),
    ] {
        if set {
            flags |= flag;
        }
    }
    let git_mode = entry.tracked.map_or(GIT_FILE, |tracked| tracked.mode);
    let git_mode = GIT_MODES.iter().position(|mode| *mode == git_mode).unwrap_or(0);
    let stat = &entry.stat;
    out.push(flags);
    out.extend(u16::try_from(stat.mode & 0o7777).expect("twelve bits").to_le_bytes());
    out.push(position(Some(git_mode)));
    out.extend(stat.links.to_le_bytes());
    out.extend(stat.uid.to_le_bytes());
    out.extend(stat.gid.to_le_bytes());
    out.extend(stat.size.to_le_bytes());
    out.extend(stat.mtime_ns.to_le_bytes());
    out.extend(stat.ctime_ns.to_le_bytes());
    out.extend(stat.inode.to_le_bytes());
    out.extend(entry.raw.as_bytes());
    if let Some(blob) = blob {
        out.extend(blob.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = BTreeMap<Vec<u8>, Entry>> {
        let numbers = (any::<u64>(), any::<i64>(), any::<i64>(), any::<u64>(), any::<u32>());
        let ids = (any::<[u8; 20]>(), any::<[u8; 20]>(), 0usize..4, 0usize..3);
        let entry = (0usize..8, 0u32..0o10000, numbers, ids, any::<bool>()).prop_map(
            |(kind, mode, (size, mtime_ns, ctime_ns, inode, links), ids, proof)| {
                let raw = Oid::from_bytes(ids.0);
                let tracked = match ids.3 {
                    0 => None,
                    1 => Some(Tracked { blob: raw, mode: GIT_MODES[ids.2] }),
                    _ => Some(Tracked { blob: Oid::from_bytes(ids.1), mode: GIT_MODES[ids.2] }),
                };
                let (uid, gid) = (links ^ 1, links ^ 2);
                Entry {
                    kind: KINDS[kind],
                    stat: Stat { mode, size, mtime_ns, ctime_ns, inode, links, uid, gid },
                    stat_is_proof: proof,
                    raw,
                    tracked,
                }
            },
        );
        let name = proptest::collection::vec(1u8..=255, 1..20);
        proptest::collection::btree_map(name, entry, 0..20)
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(children in entries()) {
            let row = Row::parse(Row::pack(&children).as_bytes()).expect("whole");
            prop_assert_eq!(&row.unpack(), &children);
            for (name, entry) in &children {
                prop_assert_eq!(&row.get(name).expect("there").entry(), entry);
            }
            prop_assert!(row.get(b"\0none").is_none());
        }

        #[test]
        fn damage_is_noticed(children in entries(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = Row::pack(&children).as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Row::parse(&bytes).is_none());
            prop_assert!(Row::parse(&bytes[..at]).is_none());
        }

        #[test]
        fn bytes_with_a_right_checksum_do_not_panic(mut rest in proptest::collection::vec(any::<u8>(), 5..200)) {
            rest[0] = VERSION;
            rest[1] %= 3;
            rest[2..5].fill(0);
            let mut bytes = crc32fast::hash(&rest).to_le_bytes().to_vec();
            bytes.extend(rest);
            if let Some(row) = Row::parse(&bytes) {
                row.unpack();
            }
        }
    }
}
