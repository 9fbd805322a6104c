//! Writing: all objects of a seal go into one pack, synced once.
//!
//! Order: objects into a temporary file; its head and checksum; sync; the index beside it; sync;
//! pack renamed, index renamed; the folder synced. Only then [`PackWriter::finish`] says so, after
//! every object was found again. git looks for `.idx` files, so that a pack without one is not
//! there yet. A pack is named so that it is known as worktx's own (`repack`). Temporary names start with `tmp_`, which `git gc` clears, and do not end in `.idx`
//! or `.pack`: git uses any pair of these, whatever it is called.
//!
//! Own code, and not `git2::Indexer`: that one wants the number of objects before the first one,
//! and writes through a memory map, so that a full disk is a SIGBUS instead of an error
//! (libgit2 1.9 `indexer.c`, `append_to_pack`).
//!
//! # Limitations
//! No deltas: `git gc` makes them. An error leaves nothing behind but what a crash leaves: files
//! named `tmp_worktx_*`, removed by the next writer. A kill between the two renames may leave a
//! pack without an index, which nobody reads. At most 2^32 - 1 objects.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use flate2::{Compress, Compression, FlushCompress, Status};
use sha1::{Digest as _, Sha1};

use crate::base::durable;
use crate::base::writeback::write_back;
use crate::git::objects::odb::ObjectKind;
use crate::git::objects::packed::{IDX_HEADER, PackedIds};
use crate::git::objects::repack::own_name;
use crate::git::objects::store::{Store, StoreError};
use crate::tx::id::Oid;

const TEMPORARY: &str = "tmp_worktx_";
/// Quick over small: `git gc` compresses again.
const LEVEL: u32 = 1;
const CHUNK: usize = 64 << 10;

/// Objects could not be written. Nothing that was added counts as written after one.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file of the pack folder.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The bytes of a blob could not be read from where they come from. The writer can go on.
    #[error("cannot read the bytes to keep: {0}")]
    Source(io::Error),
    /// A blob grew or shrank while it was read. The writer can go on.
    #[error("it had {declared} bytes when looked at, and {read} or more when read")]
    Unstable {
        /// The bytes that were announced.
        declared: u64,
        /// The bytes that were read before it was noticed.
        read: u64,
    },
    /// An object was written and cannot be found again.
    #[error("object {0} was written and is not there")]
    Lost(Oid),
    /// An object was written and cannot be read back.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An earlier error left the pack in doubt; nothing can be added to it.
    #[error("the pack was given up after an earlier error")]
    GivenUp,
}

#[derive(Clone, Copy)]
struct Written {
    id: Oid,
    crc: u32,
    offset: u64,
}

/// Collects objects into one pack.
#[must_use = "objects are there after `finish`, not before"]
pub struct PackWriter<'a> {
    store: &'a Store,
    folder: PathBuf,
    packed: PackedIds,
    file: Option<(PathBuf, BufWriter<File>)>,
    at: u64,
    written: Vec<Written>,
    ids: HashSet<Oid>,
    last_commit: Option<Oid>,
    broken: bool,
    deflate: Compress,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<'a> PackWriter<'a> {
    /// A writer into the store's own object folder. Makes no file before the first object.
    pub fn new(store: &'a Store) -> Self {
        let mut writer = Self::apart(store);
        writer.packed = PackedIds::read(store.objects_dir());
        writer
    }

    /// A writer of objects that lie in other packs already, and are to lie in this one too.
    pub(super) fn apart(store: &'a Store) -> Self {
        Self {
            store,
            folder: store.objects_dir().join("pack"),
            packed: PackedIds::default(),
            file: None,
            at: 0,
            written: Vec::new(),
            ids: HashSet::new(),
            last_commit: None,
            broken: false,
            deflate: Compress::new(Compression::new(LEVEL), true),
            input: vec![0; CHUNK],
            output: vec![0; CHUNK],
        }
    }

    /// Whether the object is durably there already, or in this pack: adding it would be for
    /// nothing. Loose objects do not count (git does not sync them), nor those of alternates.
    pub fn contains(&self, id: Oid) -> bool {
        self.ids.contains(&id) || self.packed.contains(id)
    }

    /// Whether this writer wrote the object itself, and so knows its bytes.
    pub fn wrote(&self, id: Oid) -> bool {
        self.ids.contains(&id)
    }

    /// How many objects are in the pack so far.
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Adds a blob of `size` bytes from a reader, without holding it in memory.
    pub fn add_blob(&mut self, size: u64, mut from: impl Read) -> Result<Oid, PackError> {
        self.add(ObjectKind::Blob, size, &mut from)
    }

    /// Adds a blob.
    pub fn add_blob_bytes(&mut self, bytes: &[u8]) -> Result<Oid, PackError> {
        self.add_bytes(ObjectKind::Blob, bytes)
    }

    /// Adds a tree, in git's raw form.
    pub fn add_tree(&mut self, bytes: &[u8]) -> Result<Oid, PackError> {
        self.add_bytes(ObjectKind::Tree, bytes)
    }

    /// Adds a commit, in git's raw form.
    pub fn add_commit(&mut self, bytes: &[u8]) -> Result<Oid, PackError> {
        let id = self.add_bytes(ObjectKind::Commit, bytes)?;
        self.last_commit = Some(id);
        Ok(id)
    }

    fn add_bytes(&mut self, kind: ObjectKind, mut bytes: &[u8]) -> Result<Oid, PackError> {
        let id = object_id(kind, bytes);
        if self.contains(id) {
            return Ok(id);
        }
        self.add(kind, bytes.len() as u64, &mut bytes)
    }

    fn add(&mut self, kind: ObjectKind, size: u64, from: &mut dyn Read) -> Result<Oid, PackError> {
        if self.broken {
            return Err(PackError::GivenUp);
        }
        let start = self.at.max(12);
        match self.append(kind, size, from) {
            Ok((id, crc)) if !self.contains(id) => {
                self.ids.insert(id);
                self.written.push(Written { id, crc, offset: start });
                Ok(id)
            }
            // The bytes are there already: take them back.
            Ok((id, _)) => self.rewind(start).map(|()| id),
            Err(error @ (PackError::Source(_) | PackError::Unstable { .. })) => {
                self.rewind(start)?;
                Err(error)
            }
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }

    /// Adds an object as it stands in another pack: its head and its compressed bytes. The caller
    /// has hashed them.
    pub(super) fn add_entry(&mut self, id: Oid, entry: &[u8]) -> Result<(), PackError> {
        if self.contains(id) {
            return Ok(());
        }
        let start = self.at.max(12);
        let (path, file) = self.begun()?;
        let written = file.write_all(entry).map_err(|e| io_error("write", path, e));
        self.broken |= written.is_err();
        written?;
        self.at = start + entry.len() as u64;
        self.ids.insert(id);
        self.written.push(Written { id, crc: crc32fast::hash(entry), offset: start });
        Ok(())
    }

    /// The temporary file, with the head of a pack.
    fn begun(&mut self) -> Result<(&Path, &mut BufWriter<File>), PackError> {
        if self.file.is_none() {
            let (path, mut file) = self.make_temporary("pack")?;
            // The number of objects is not known yet: it is put in at the end.
            file.write_all(b"PACK\0\0\0\x02\0\0\0\0").map_err(|e| io_error("write", &path, e))?;
            self.file = Some((path, BufWriter::with_capacity(4 * CHUNK, file)));
            self.at = 12;
        }
        let (path, file) = self.file.as_mut().expect("made above");
        Ok((path.as_path(), file))
    }

    fn append(
        &mut self,
        kind: ObjectKind,
        size: u64,
        from: &mut dyn Read,
    ) -> Result<(Oid, u32), PackError> {
        self.begun()?;
        let (path, file) = self.file.as_mut().expect("made above");
        let mut crc = crc32fast::Hasher::new();
        let mut put = |bytes: &[u8]| {
            crc.update(bytes);
            self.at += bytes.len() as u64;
            file.write_all(bytes).map_err(|e| io_error("write", path, e))
        };
        put(&entry_header(kind, size))?;
        let mut hash = Sha1::new();
        hash.update(format!("{} {size}\0", kind.name()));
        let (deflate, input, output) = (&mut self.deflate, &mut self.input, &mut self.output);
        deflate.reset();
        let mut read = 0u64;
        loop {
            let count = match from.read(input) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(PackError::Source(e)),
            };
            read += count as u64;
            if read > size || (count == 0 && read < size) {
                return Err(PackError::Unstable { declared: size, read });
            }
            hash.update(&input[..count]);
            let flush = if count == 0 { FlushCompress::Finish } else { FlushCompress::None };
            let mut rest = &input[..count];
            loop {
                let (before_in, before_out) = (deflate.total_in(), deflate.total_out());
                let status = deflate
                    .compress(rest, output, flush)
                    .map_err(|e| io_error("compress for", &self.folder, e.into()))?;
                let taken = usize::try_from(deflate.total_in() - before_in).expect("of a slice");
                let made = usize::try_from(deflate.total_out() - before_out).expect("of a slice");
                rest = &rest[taken..];
                put(&output[..made])?;
                let over = if count == 0 {
                    status == Status::StreamEnd
                } else {
                    rest.is_empty() && made < output.len()
                };
                if over {
                    break;
                }
            }
            if count == 0 {
                break;
            }
        }
        Ok((Oid::from_bytes(hash.finalize().into()), crc.finalize()))
    }

    fn rewind(&mut self, to: u64) -> Result<(), PackError> {
        let Some((path, file)) = self.file.as_mut() else { return Ok(()) };
        let result = file
            .seek(SeekFrom::Start(to))
            .and_then(|_| file.get_ref().set_len(to))
            .map_err(|e| io_error("write", path, e));
        self.at = to;
        self.broken |= result.is_err();
        result
    }

    /// Makes everything that was added durable, and finds it again. Nothing added: nothing done.
    ///
    /// Gives the bytes that were written, without the pack's trailer and its index.
    pub fn finish(self) -> Result<u64, PackError> {
        let bytes = if self.written.is_empty() { 0 } else { self.at };
        self.finish_named().map(|_| bytes)
    }

    /// As [`PackWriter::finish`]; gives the name of the pack, where one was written.
    pub(super) fn finish_named(mut self) -> Result<Option<Oid>, PackError> {
        if self.broken {
            return Err(PackError::GivenUp);
        }
        if self.written.is_empty()
            && let Some((path, _)) = self.file.take()
        {
            // Begun, and everything was there already.
            std::fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
        }
        let Some((pack_path, writer)) = self.file.take() else {
            // What was found in packs may be of a run that died before this sync.
            return match durable::sync_dir(&self.folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    Err(io_error("sync", &self.folder, e))
                }
                _ => Ok(None),
            };
        };
        let result = self.publish(&pack_path, writer);
        if result.is_err() {
            let _ = std::fs::remove_file(&pack_path);
        }
        let name = result?;
        self.read_back()?;
        Ok(Some(name))
    }

    fn publish(&mut self, path: &Path, writer: BufWriter<File>) -> Result<Oid, PackError> {
        let fail = |what| move |e: io::Error| io_error(what, path, e);
        let mut pack = writer.into_inner().map_err(|e| fail("write")(e.into_error()))?;
        let count = u32::try_from(self.written.len()).expect("fewer than 2^32 objects");
        pack.write_all_at(&count.to_be_bytes(), 8).map_err(fail("write"))?;
        let checksum = checksum(&mut pack).map_err(fail("read back"))?;
        pack.seek(SeekFrom::End(0)).map_err(fail("write"))?;
        pack.write_all(&checksum).map_err(fail("write"))?;

        self.written.sort_unstable_by_key(|object| object.id);
        let name = own_name(checksum);
        let (index_path, mut index) = self.make_temporary("idx")?;
        let published = index
            .write_all(&index_bytes(&self.written, checksum))
            .map_err(|e| io_error("write", &index_path, e))
            .and_then(|()| {
                // Both are there before the first sync: one commit of the file system's journal.
                write_back(&[&pack, &index]);
                pack.sync_all().map_err(fail("sync"))?;
                index.sync_all().map_err(|e| io_error("sync", &index_path, e))?;
                let rename = |from: &Path, ending: &str| {
                    let to = self.folder.join(format!("pack-{name}.{ending}"));
                    std::fs::rename(from, &to).map_err(|e| io_error("rename to", &to, e))
                };
                rename(path, "pack")?;
                rename(&index_path, "idx")?;
                durable::sync_dir(&self.folder).map_err(|e| io_error("sync", &self.folder, e))
            });
        if published.is_err() {
            let _ = std::fs::remove_file(&index_path);
        }
        published.map(|()| name)
    }

    fn read_back(&self) -> Result<(), PackError> {
        self.store.refresh();
        if let Some(lost) = self.written.iter().find(|object| !self.store.exists(object.id)) {
            return Err(PackError::Lost(lost.id));
        }
        if let Some(commit) = self.last_commit {
            let tree = self.store.commit(commit)?.tree;
            self.store.tree(tree)?;
        }
        Ok(())
    }

    /// Makes a temporary file under a lock that its owner holds while it lives, so that a
    /// leftover can be told from a file at work.
    fn make_temporary(&self, ending: &str) -> Result<(PathBuf, File), PackError> {
        durable::create_dir_all(&self.folder, 0o777)
            .map_err(|e| io_error("make", &self.folder, e))?;
        if ending == "pack" {
            remove_leftovers(&self.folder);
        }
        let pid = std::process::id();
        for n in 0u32.. {
            let path = self.folder.join(format!("{TEMPORARY}{pid}_{n}_{ending}"));
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o444).open(&path);
            match file {
                Ok(file) => {
                    // Refused only where the file system has no locks: then leftovers stay. Who
                    // clears up may have had the lock first, and the file is gone with it.
                    let _ = file.lock();
                    if std::fs::symlink_metadata(&path).is_ok() {
                        return Ok((path, file));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error("make", &path, e)),
            }
        }
        unreachable!("a number below 2^32 is free")
    }
}

impl Drop for PackWriter<'_> {
    /// Tidiness only: the next writer removes what is left.
    fn drop(&mut self) {
        if let Some((path, _)) = self.file.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The id of an object with these bytes.
pub fn object_id(kind: ObjectKind, bytes: &[u8]) -> Oid {
    let mut hash = Sha1::new();
    hash.update(format!("{} {}\0", kind.name(), bytes.len()));
    hash.update(bytes);
    Oid::from_bytes(hash.finalize().into())
}

/// Removes temporary files whose writer is gone: their lock is free.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let own = entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
        if own
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            // Under the lock: who has just made it and waits for the lock finds it gone.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> PackError {
    PackError::Io { what, path: path.to_owned(), source }
}

/// Compresses blobs for [`PackWriter::add_entry`], each by itself.
pub(super) struct BlobDeflate(Compress);

impl Default for BlobDeflate {
    fn default() -> Self {
        Self(Compress::new(Compression::new(LEVEL), true))
    }
}

impl BlobDeflate {
    /// A blob as it stands in a pack; `None` where it could not be compressed.
    pub(super) fn entry(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.0.reset();
        let mut entry = entry_header(ObjectKind::Blob, bytes.len() as u64);
        // What zlib says that it needs at most, and some more: it writes into what is there.
        entry.reserve(bytes.len() + (bytes.len() >> 8) + 256);
        let done = self.0.compress_vec(bytes, &mut entry, FlushCompress::Finish).ok()?;
        (done == Status::StreamEnd).then_some(entry)
    }
}

/// Kind and size: four bits of size, then seven each, low ones first (`gitformat-pack`).
fn entry_header(kind: ObjectKind, size: u64) -> Vec<u8> {
    let kind = match kind {
        ObjectKind::Commit => 1u8,
        ObjectKind::Tree => 2,
        ObjectKind::Blob => 3,
        ObjectKind::Tag => 4,
    };
    let low = |value: u64, mask: u8| value.to_le_bytes()[0] & mask;
    let mut bytes = Vec::with_capacity(10);
    let (mut byte, mut rest) = (kind << 4 | low(size, 0x0f), size >> 4);
    while rest > 0 {
        bytes.push(byte | 0x80);
        byte = low(rest, 0x7f);
        rest >>= 7;
    }
    bytes.push(byte);
    bytes
}

fn checksum(file: &mut File) -> io::Result<[u8; 20]> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha1::new();
    let mut buffer = vec![0; 4 * CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A version 2 index (`gitformat-pack`) over objects sorted by id.
fn index_bytes(objects: &[Written], pack: [u8; 20]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + 1024 + objects.len() * 28 + 40);
    out.extend_from_slice(&IDX_HEADER);
    let mut upto = 0u32;
    let mut rest = objects.iter().peekable();
    for first in 0..=255u8 {
        while rest.next_if(|object| object.id.as_bytes()[0] == first).is_some() {
            upto += 1;
        }
        out.extend_from_slice(&upto.to_be_bytes());
    }
    for object in objects {
        out.extend_from_slice(object.id.as_bytes());
    }
    for object in objects {
        out.extend_from_slice(&object.crc.to_be_bytes());
    }
    // Offsets of 2 GiB and more stand in a table of their own.
    let mut far = Vec::new();
    for object in objects {
        let near = u32::try_from(object.offset).ok().filter(|offset| offset >> 31 == 0);
        let word = near.unwrap_or_else(|| {
            far.push(object.offset);
            1 << 31 | u32::try_from(far.len() - 1).expect("fewer than 2^31 objects")
        });
        out.extend_from_slice(&word.to_be_bytes());
    }
    for offset in far {
        out.extend_from_slice(&offset.to_be_bytes());
    }
    out.extend_from_slice(&pack);
    let own: [u8; 20] = Sha1::digest(&out).into();
    out.extend_from_slice(&own);
    out
}
