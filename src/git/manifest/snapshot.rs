//! The manifest as it was at one time, in memory: whole, or each row when it is asked for.
//!
//! By lookup, nothing that an attempt does to a few files costs more in a tree of a million. What has
//! to be found without a path in hand is [`Snapshot::notable`].
//!
//! # Limitations
//! A row that cannot be read later on is a panic: what would be taken for missing otherwise is what
//! an undo removes. The attempt is then settled as after any crash. So is a manifest that was written
//! meanwhile by somebody who does not hold the lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use elsa::sync::FrozenMap;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction};

use crate::git::manifest::notable::{self, Note};
use crate::git::manifest::row::{Packed, Row};
use crate::git::manifest::touched::{Touched, above, parent};
use crate::git::manifest::{
    EntryChange, IgnoredRules, ManifestError, Meta, READ_ROW, by_directory, child_path,
    damaged_row, database, merge, read_row,
};
use crate::tx::entry::{Entry, Kind};
use crate::tx::path::RepoPath;

const ROW: &str = "SELECT generation, (SELECT entries FROM dir WHERE path = ?1) FROM meta";

/// The rows of a manifest file, read when they are asked for.
#[derive(Debug)]
pub(super) struct Rows {
    db: Mutex<Connection>,
    path: PathBuf,
    read: FrozenMap<Vec<u8>, Box<Option<Row>>>,
    all: OnceLock<Vec<(Vec<u8>, Row)>>,
}

impl Rows {
    pub(super) fn open(path: &Path) -> Result<Self, ManifestError> {
        let wrong = |source| database(path, source);
        // Not read-only: what a crash left beside the file could not be cleared away then.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).map_err(wrong)?;
        db.execute_batch(
            "PRAGMA busy_timeout=5000; PRAGMA cell_size_check=ON; PRAGMA query_only=ON;",
        )
        .map_err(wrong)?;
        let (read, all) = (FrozenMap::new(), OnceLock::new());
        Ok(Self { db: Mutex::new(db), path: path.to_owned(), read, all })
    }

    fn row(&self, dir: &[u8], generation: u64) -> Option<&Row> {
        if let Some(known) = self.read.get(dir) {
            return known.as_ref();
        }
        let row = self.look_up(dir, generation).unwrap_or_else(|error| panic!("{error}"));
        self.read.insert(dir.to_vec(), Box::new(row)).as_ref()
    }

    fn look_up(&self, dir: &[u8], generation: u64) -> Result<Option<Row>, ManifestError> {
        let wrong = |source| database(&self.path, source);
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let mut query = db.prepare_cached(ROW).map_err(wrong)?;
        let found = query
            .query_row([dir], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Vec<u8>>>(1)?)))
            .optional()
            .map_err(wrong)?;
        let Some((now, bytes)) = found.filter(|(now, _)| now.cast_unsigned() == generation) else {
            return Err(self.moved_on());
        };
        let _ = now;
        bytes
            .map(|bytes| Row::parse(&bytes).ok_or_else(|| damaged_row(&self.path, dir)))
            .transpose()
    }

    /// Reads the rows that will be asked for anyway, in one transaction: each by itself costs several
    /// times as much.
    pub(super) fn read_ahead(
        &self,
        dirs: &BTreeSet<&[u8]>,
        generation: u64,
    ) -> Result<(), ManifestError> {
        if dirs.is_empty() {
            return Ok(());
        }
        let wrong = |source| database(&self.path, source);
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = db.transaction().map_err(wrong)?;
        self.is_still(&tx, generation)?;
        let mut query = tx.prepare(READ_ROW).map_err(wrong)?;
        for dir in dirs {
            let row = read_row(&mut query, &self.path, dir)?;
            self.read.insert(dir.to_vec(), Box::new(row));
        }
        Ok(())
    }

    fn all(&self, generation: u64) -> &[(Vec<u8>, Row)] {
        self.all.get_or_init(|| self.read_all(generation).unwrap_or_else(|error| panic!("{error}")))
    }

    fn read_all(&self, generation: u64) -> Result<Vec<(Vec<u8>, Row)>, ManifestError> {
        let wrong = |source| database(&self.path, source);
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = db.transaction().map_err(wrong)?;
        self.is_still(&tx, generation)?;
        let mut query = tx.prepare("SELECT path, entries FROM dir").map_err(wrong)?;
        let mut rows = query.query([]).map_err(wrong)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(wrong)? {
            let (dir, bytes): (Vec<u8>, Vec<u8>) =
                (row.get(0).map_err(wrong)?, row.get(1).map_err(wrong)?);
            let row = Row::parse(&bytes).ok_or_else(|| damaged_row(&self.path, &dir))?;
            all.push((dir, row));
        }
        Ok(all)
    }

    /// Within the transaction in which rows are read: the number is theirs then.
    fn is_still(&self, tx: &Transaction<'_>, generation: u64) -> Result<(), ManifestError> {
        let now: i64 = tx
            .query_row("SELECT generation FROM meta", [], |row| row.get(0))
            .map_err(|source| database(&self.path, source))?;
        if now.cast_unsigned() == generation { Ok(()) } else { Err(self.moved_on()) }
    }

    fn moved_on(&self) -> ManifestError {
        let what = "it was written while an attempt relied on it".to_owned();
        ManifestError::Damaged { path: self.path.clone(), what }
    }
}

/// The manifest at one time, packed: about 110 bytes a path.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rows in memory: all, or those that differ from the file's. `None`: there is no such row.
    rows: HashMap<Arc<[u8]>, Option<Row>>,
    /// Where the other rows are; `None` where there are none.
    source: Option<Arc<Rows>>,
    notable: BTreeMap<RepoPath, Note>,
    ignored_rules: IgnoredRules,
    meta: Meta,
}

impl Snapshot {
    pub(super) fn of(
        rows: HashMap<Arc<[u8]>, Row>,
        notable: BTreeMap<RepoPath, Note>,
        ignored_rules: IgnoredRules,
        meta: Meta,
    ) -> Self {
        let rows = rows.into_iter().map(|(dir, row)| (dir, Some(row))).collect();
        Self { rows, source: None, notable, ignored_rules, meta }
    }

    pub(super) fn by_lookup(
        source: Rows,
        notable: BTreeMap<RepoPath, Note>,
        ignored_rules: IgnoredRules,
        meta: Meta,
    ) -> Self {
        let source = Some(Arc::new(source));
        Self { rows: HashMap::new(), source, notable, ignored_rules, meta }
    }

    /// What the manifest described when this was loaded.
    pub const fn meta(&self) -> Meta {
        self.meta
    }

    /// The packed children of a directory (empty bytes for the root).
    ///
    /// # Panics
    /// Where a row cannot be read: see the module.
    pub fn row(&self, dir: &[u8]) -> Option<&Row> {
        match (self.rows.get(dir), &self.source) {
            (Some(row), _) => row.as_ref(),
            (None, Some(source)) => source.row(dir, self.meta.generation),
            (None, None) => None,
        }
    }

    /// Reads at once the rows that a look at these directories asks for.
    pub fn read_ahead(&self, touched: &Touched) -> Result<(), ManifestError> {
        let Some(source) = &self.source else { return Ok(()) };
        let named = touched.directories().chain(touched.wholes());
        let dirs = named.flat_map(|dir| std::iter::once(dir).chain(above(dir)));
        let unread =
            dirs.filter(|dir| !self.rows.contains_key(*dir) && source.read.get(*dir).is_none());
        source.read_ahead(&unread.collect(), self.meta.generation)
    }

    /// All directories that have children, in no order (empty bytes for the root).
    ///
    /// # Panics
    /// As [`Snapshot::row`].
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &Row)> {
        let others = self.source.iter().flat_map(|source| source.all(self.meta.generation));
        let others = others.filter(|(dir, _)| !self.rows.contains_key(dir.as_slice()));
        let own = self.rows.iter().filter_map(|(dir, row)| Some((dir.as_ref(), row.as_ref()?)));
        own.chain(others.map(|(dir, row)| (dir.as_slice(), row)))
    }

    /// The files that git does not track, or whose bytes git holds otherwise; what is neither file
    /// nor directory. By path.
    pub fn notable(&self) -> impl Iterator<Item = (&RepoPath, Packed<'_>)> {
        let of_entries = self.notable.iter().filter(|(_, note)| **note == Note::Entry);
        of_entries.filter_map(|(path, _)| Some((path, self.packed(path)?)))
    }

    /// Where something is called `.gitattributes`, whatever it is. By path.
    pub fn attributes(&self) -> impl Iterator<Item = &RepoPath> {
        self.notable.keys().filter(|path| path.name() == b".gitattributes")
    }

    /// One path in its packed form.
    pub fn packed(&self, path: &RepoPath) -> Option<Packed<'_>> {
        self.row(parent(path.as_bytes()))?.get(path.name())
    }

    /// One path.
    pub fn get(&self, path: &RepoPath) -> Option<Entry> {
        self.packed(path).map(|packed| packed.entry())
    }

    /// All paths, directory by directory, in no order of directories.
    ///
    /// # Panics
    /// As [`Snapshot::row`].
    pub fn iter(&self) -> impl Iterator<Item = (RepoPath, Packed<'_>)> {
        self.rows().flat_map(|(dir, row)| {
            row.iter().map(move |child| (child_path(dir, child.name), child))
        })
    }

    /// How many paths there are, directories included.
    pub fn len(&self) -> usize {
        self.rows().map(|(_, row)| row.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.row(b"").is_none()
    }

    /// Whether git tracks something beneath a directory.
    pub fn tracks_beneath(&self, dir: &[u8]) -> bool {
        let mut stack = vec![dir.to_vec()];
        while let Some(dir) = stack.pop() {
            let Some(row) = self.row(&dir) else { continue };
            for child in row.iter() {
                if child.is_tracked() {
                    return true;
                }
                if child.kind() == Kind::Directory {
                    stack.push(child_path(&dir, child.name).as_bytes().to_vec());
                }
            }
        }
        false
    }

    /// All paths beneath a directory, parents first.
    pub fn beneath(&self, dir: &[u8]) -> Vec<(RepoPath, Packed<'_>)> {
        let mut out = Vec::new();
        let mut stack = vec![dir.to_vec()];
        while let Some(dir) = stack.pop() {
            let Some(row) = self.row(&dir) else { continue };
            for child in row.iter() {
                let path = child_path(&dir, child.name);
                if child.kind() == Kind::Directory {
                    stack.push(path.as_bytes().to_vec());
                }
                out.push((path, child));
            }
        }
        out
    }

    /// See [`IgnoredRules`].
    pub const fn ignored_rules(&self) -> &IgnoredRules {
        &self.ignored_rules
    }

    /// The same as it is in the file after a change there that was made here too.
    #[must_use]
    pub fn described_by(self, meta: Meta, ignored_rules: IgnoredRules) -> Self {
        Self { ignored_rules, meta, ..self }
    }

    /// The same change as [`crate::git::manifest::Manifest::apply`] makes, in memory only; the
    /// generation stays.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = EntryChange>) {
        for (dir, children) in by_directory(changes) {
            let before = self.row(&dir).cloned();
            let after = merge(before.as_ref(), children);
            for (path, _, now) in notable::changes(&dir, before.as_ref(), after.as_ref()) {
                match now {
                    Some(note) => self.notable.insert(path, note),
                    None => self.notable.remove(&path),
                };
            }
            self.rows.insert(dir.into(), after);
        }
    }
}
