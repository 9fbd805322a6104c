//! The private, persistent manifest of a workspace: what stood at every path of the base, by
//! stat data, raw id and git's id, so that a scan reads stat data only.
//!
//! An SQLite file of its own with one packed row a directory ([`crate::git::manifest::row`]). It is
//! a cache with a duty: while an attempt is unsettled it describes its base, so it is changed only
//! by [`Manifest::apply`], whole, and a damaged one is an error and never silently made anew.
//!
//! A file watcher may feed the same interface later: a change names paths, and touches only the
//! rows of their directories.
//!
//! Order rules: hold the workspace lock. What a row names as raw bytes of an untracked path is
//! pinned elsewhere before the manifest says so.
//!
//! # Limitations
//! The root itself has no entry. One process at a time.

pub mod baseline;
pub mod row;
pub mod snapshot;
pub mod touched;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Statement, TransactionBehavior,
    params,
};

use notable::Note;

use crate::git::files::root::RootId;
use crate::git::manifest::row::Row;
use crate::git::manifest::snapshot::{Rows, Snapshot};
use crate::git::manifest::touched::parent;
use crate::tx::entry::Entry;
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

pub(super) mod notable;

/// `user_version` of the file. 2 had a list of what is notable; 3 said why ([`notable`]), and had tracked
/// `.gitignore` files in it.
const VERSION: i64 = 4;

const SCHEMA: &str = "
CREATE TABLE dir (path BLOB PRIMARY KEY, entries BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE ignored_rules (path BLOB PRIMARY KEY, bytes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  generation INTEGER NOT NULL,
  head_tree BLOB,
  device INTEGER, inode INTEGER, mount INTEGER,
  notable_sum INTEGER NOT NULL DEFAULT 0
);
-- One that is made anew does not come to the numbers of an earlier one.
INSERT INTO meta (one, generation) VALUES (1, abs(random() / 4));
";

pub(super) const READ_ROW: &str = "SELECT entries FROM dir WHERE path = ?1";

/// The manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A row or the file is not whole. Where nothing is unsettled, it may be made anew.
    #[error("the manifest {} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Written by another version. Where nothing is unsettled, it may be made anew.
    #[error("the manifest {} has version {found}, known is {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// There is none yet, or one of an earlier version.
    #[error("there is no manifest {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// SQLite said no.
    #[error("the manifest {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}

impl ManifestError {
    /// Whether it says nothing of the manifest: a full disk, one that fails, somebody who reads.
    pub fn is_of_the_machine(&self) -> bool {
        let Self::Database { source, .. } = self else { return false };
        matches!(
            source.sqlite_error_code(),
            Some(
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::OutOfMemory
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
            )
        )
    }
}

/// What the manifest describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The tree of the commit that `tracked` is from; `None` where it is empty or never was set.
    pub head_tree: Option<Oid>,
    /// The work-tree root.
    pub root: Option<RootId>,
}

/// What the manifest describes, and how often it was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// One more with every change.
    pub generation: u64,
    /// See [`Described`].
    pub described: Described,
}

/// `.gitignore` files that are ignored themselves, so that they have no entry, by directory
/// (empty for the root). Their rules count for the base all the same: without the `*` that a
/// Python environment writes into its own `.gitignore`, all of it would look new.
pub type IgnoredRules = BTreeMap<Vec<u8>, Vec<u8>>;

/// A change to the manifest: the entry that a path has from now on, or none.
pub type EntryChange = (RepoPath, Option<Entry>);

/// The manifest file, opened.
#[derive(Debug)]
pub struct Manifest {
    db: Connection,
    path: PathBuf,
}

impl Manifest {
    /// Opens the file, or makes it. Its folder must be there.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        let wrong = |source| database(path, source);
        let mut db = Connection::open(path).map_err(wrong)?;
        // TRUNCATE: `synchronous=FULL` is enough with it, and a full disk can be opened. Both are
        // settings of the connection.
        db.execute_batch(
            "PRAGMA journal_mode=TRUNCATE; PRAGMA synchronous=FULL; PRAGMA busy_timeout=5000;
             PRAGMA cell_size_check=ON;",
        )
        .map_err(wrong)?;
        let found: i64 =
            db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(wrong)?;
        if found == 0 {
            let tx = db.transaction().map_err(wrong)?;
            tx.execute_batch(SCHEMA).map_err(wrong)?;
            tx.execute_batch(notable::SCHEMA).map_err(wrong)?;
            tx.pragma_update(None, "user_version", VERSION).map_err(wrong)?;
            tx.commit().map_err(wrong)?;
        } else if found < VERSION {
            notable::migrate(&mut db, path)?;
        } else if found != VERSION {
            return Err(ManifestError::Version { path: path.to_owned(), found });
        }
        Ok(Self { db, path: path.to_owned() })
    }

    /// Opens the file beside who has it for writing; makes nothing.
    pub fn open_to_read(path: &Path) -> Result<Self, ManifestError> {
        let wrong = |source| database(path, source);
        if !path.exists() {
            return Err(ManifestError::Missing { path: path.to_owned() });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).map_err(wrong)?;
        db.execute_batch("PRAGMA busy_timeout=100; PRAGMA cell_size_check=ON;").map_err(wrong)?;
        let found: i64 =
            db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(wrong)?;
        match found {
            VERSION => Ok(Self { db, path: path.to_owned() }),
            // Whoever holds the lock makes it, or brings it up to date.
            0..VERSION => Err(ManifestError::Missing { path: path.to_owned() }),
            _ => Err(ManifestError::Version { path: path.to_owned(), found }),
        }
    }

    /// What it describes.
    pub fn meta(&self) -> Result<Meta, ManifestError> {
        let sql = "SELECT generation, head_tree, device, inode, mount FROM meta";
        let row = self.db.query_row(sql, [], |row| {
            let number = |at| row.get::<_, Option<i64>>(at).map(|n| n.map(i64::cast_unsigned));
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, Option<Vec<u8>>>(1)?,
                [number(2)?, number(3)?, number(4)?],
            ))
        });
        let (generation, tree, root) = row.map_err(|source| database(&self.path, source))?;
        let head_tree = match tree.map(<[u8; 20]>::try_from) {
            None => None,
            Some(Ok(bytes)) => Some(Oid::from_bytes(bytes)),
            Some(Err(_)) => return Err(self.damaged("the head tree's id")),
        };
        let root = match root {
            [Some(device), Some(inode), Some(mount)] => Some(RootId { device, inode, mount }),
            _ => None,
        };
        let described = Described { head_tree, root };
        Ok(Meta { generation: generation.cast_unsigned(), described })
    }

    /// All of it.
    pub fn load(&self) -> Result<Snapshot, ManifestError> {
        let wrong = |source| database(&self.path, source);
        let mut all = HashMap::new();
        let mut query = self.db.prepare("SELECT path, entries FROM dir").map_err(wrong)?;
        let mut rows = query.query([]).map_err(wrong)?;
        while let Some(row) = rows.next().map_err(wrong)? {
            let path = row.get_ref(0).map_err(wrong)?.as_blob().map_err(|e| wrong(e.into()))?;
            let entries = row.get_ref(1).map_err(wrong)?.as_blob().map_err(|e| wrong(e.into()))?;
            let parsed = Row::parse(entries).ok_or_else(|| damaged_row(&self.path, path))?;
            all.insert(path.into(), parsed);
        }
        Ok(Snapshot::of(all, notable::read(&self.db, &self.path)?, self.rules()?, self.meta()?))
    }

    /// All of it, of which each row is read when it is asked for.
    pub fn load_by_lookup(&self) -> Result<Snapshot, ManifestError> {
        let (source, notable, meta) =
            (Rows::open(&self.path)?, notable::read(&self.db, &self.path)?, self.meta()?);
        let of_entries = notable.iter().filter(|(_, note)| **note == Note::Entry);
        let dirs = of_entries.map(|(path, _)| parent(path.as_bytes())).collect();
        source.read_ahead(&dirs, meta.generation)?;
        Ok(Snapshot::by_lookup(source, notable, self.rules()?, meta))
    }

    fn rules(&self) -> Result<IgnoredRules, ManifestError> {
        let wrong = |source| database(&self.path, source);
        let mut query = self.db.prepare("SELECT path, bytes FROM ignored_rules").map_err(wrong)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(wrong)?;
        rows.collect::<Result<_, _>>().map_err(wrong)
    }

    /// One path, by lookup only.
    pub fn get(&self, path: &RepoPath) -> Result<Option<Entry>, ManifestError> {
        let dir = path.parent();
        let row = self.row(dir.as_ref().map_or(&[], |dir| dir.as_bytes()))?;
        Ok(row.and_then(|row| row.get(path.name()).map(|child| child.entry())))
    }

    /// The children of a directory (`None` is the root) by name.
    pub fn children(&self, dir: Option<&RepoPath>) -> Result<Vec<(Vec<u8>, Entry)>, ManifestError> {
        let row = self.row(dir.map_or(&[], RepoPath::as_bytes))?;
        Ok(row.map(|row| row.unpack().into_iter().collect()).unwrap_or_default())
    }

    /// Changes it in one db transaction, reading and writing only the rows concerned. `rules`
    /// replaces all rules of ignored `.gitignore` files; `None` leaves them.
    pub fn apply(
        &mut self,
        changes: impl IntoIterator<Item = EntryChange>,
        rules: Option<&IgnoredRules>,
        described: Described,
    ) -> Result<Meta, ManifestError> {
        let generation = self.meta()?.generation + 1;
        let path = &self.path;
        let wrong = |source| database(path, source);
        let tx =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(wrong)?;
        {
            let mut read = tx.prepare(READ_ROW).map_err(wrong)?;
            let mut write = tx
                .prepare("INSERT OR REPLACE INTO dir (path, entries) VALUES (?1, ?2)")
                .map_err(wrong)?;
            let mut delete = tx.prepare("DELETE FROM dir WHERE path = ?1").map_err(wrong)?;
            let mut notes = notable::Writer::new(&tx).map_err(wrong)?;
            for (dir, children) in by_directory(changes) {
                let row = read_row(&mut read, path, &dir)?;
                let merged = merge(row.as_ref(), children);
                let changes = notable::changes(&dir, row.as_ref(), merged.as_ref());
                notes.write(changes).map_err(wrong)?;
                match merged {
                    Some(row) => write.execute(params![dir, row.as_bytes()]),
                    None => delete.execute([&dir]),
                }
                .map_err(wrong)?;
            }
            notes.finish(&tx).map_err(wrong)?;
            write_meta(&tx, generation, rules, described).map_err(wrong)?;
        }
        tx.commit().map_err(wrong)?;
        Ok(Meta { generation, described })
    }

    /// The rows of all directories beneath one (and of the root, beneath empty bytes), a directory
    /// before those in it.
    pub fn rows_beneath(&self, dir: &[u8]) -> Result<Vec<(Vec<u8>, Row)>, ManifestError> {
        let wrong = |source| database(&self.path, source);
        let (from, to) = if dir.is_empty() {
            (Vec::new(), None)
        } else {
            // `0` is the byte after `/`.
            ([dir, b"/"].concat(), Some([dir, b"0"].concat()))
        };
        let sql = "SELECT path, entries FROM dir
                   WHERE path >= ?1 AND (?2 IS NULL OR path < ?2) ORDER BY path";
        let mut query = self.db.prepare(sql).map_err(wrong)?;
        let mut rows = query.query(params![from, to]).map_err(wrong)?;
        let mut out = Vec::new();
        while let Some(row) = rows.next().map_err(wrong)? {
            let path: Vec<u8> = row.get(0).map_err(wrong)?;
            let entries = row.get_ref(1).map_err(wrong)?.as_blob().map_err(|e| wrong(e.into()))?;
            let parsed = Row::parse(entries).ok_or_else(|| damaged_row(&self.path, &path))?;
            out.push((path, parsed));
        }
        Ok(out)
    }

    /// The directories whose `.gitignore` is ignored itself: see [`IgnoredRules`].
    pub fn ignored_rules(&self) -> Result<Vec<Vec<u8>>, ManifestError> {
        let wrong = |source| database(&self.path, source);
        let mut query = self.db.prepare("SELECT path FROM ignored_rules").map_err(wrong)?;
        let rows = query.query_map([], |row| row.get(0)).map_err(wrong)?;
        rows.collect::<Result<_, _>>().map_err(wrong)
    }

    /// Forgets everything; the generation goes on.
    pub fn reset(&mut self) -> Result<(), ManifestError> {
        self.run(
            "BEGIN IMMEDIATE; DELETE FROM dir; DELETE FROM ignored_rules; DELETE FROM notable;
             UPDATE meta SET generation = generation + 1, head_tree = NULL,
                             device = NULL, inode = NULL, mount = NULL, notable_sum = 0;
             COMMIT;",
        )
    }

    fn run(&self, sql: &str) -> Result<(), ManifestError> {
        self.db.execute_batch(sql).map_err(|source| database(&self.path, source))
    }

    /// The packed children of a directory (empty bytes for the root).
    pub fn row(&self, dir: &[u8]) -> Result<Option<Row>, ManifestError> {
        let mut read = self.db.prepare(READ_ROW).map_err(|source| database(&self.path, source))?;
        read_row(&mut read, &self.path, dir)
    }

    fn damaged(&self, what: &str) -> ManifestError {
        ManifestError::Damaged { path: self.path.clone(), what: what.to_owned() }
    }
}

/// Changes of the children of one directory, by name.
pub(super) type Children = Vec<(Vec<u8>, Option<Entry>)>;

/// Changes by the directory that they are in.
pub(super) fn by_directory(
    changes: impl IntoIterator<Item = EntryChange>,
) -> BTreeMap<Vec<u8>, Children> {
    let mut dirs = BTreeMap::<Vec<u8>, Children>::new();
    for (path, entry) in changes {
        let dir = parent(path.as_bytes());
        let child = (path.name().to_vec(), entry);
        match dirs.get_mut(dir) {
            Some(children) => children.push(child),
            None => drop(dirs.insert(dir.to_vec(), vec![child])),
        }
    }
    dirs
}

/// A row after changes; `None` where nothing is left.
pub(super) fn merge(row: Option<&Row>, children: Children) -> Option<Row> {
    let mut all = row.map(Row::unpack).unwrap_or_default();
    for (name, entry) in children {
        match entry {
            Some(entry) => all.insert(name, entry),
            None => all.remove(&name),
        };
    }
    (!all.is_empty()).then(|| Row::pack(&all))
}

/// The path of a child of a directory of the manifest.
///
/// # Panics
/// Never: names of directories and manifests make a path.
pub fn child_path(dir: &[u8], name: &[u8]) -> RepoPath {
    let mut bytes = Vec::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        bytes.extend(dir);
        bytes.push(b'/');
    }
    bytes.extend(name);
    RepoPath::new(bytes).expect("names of directories and manifests make a path")
}

pub(super) fn read_row(
    read: &mut Statement<'_>,
    path: &Path,
    dir: &[u8],
) -> Result<Option<Row>, ManifestError> {
    let bytes: Option<Vec<u8>> = read
        .query_row([dir], |row| row.get(0))
        .optional()
        .map_err(|source| database(path, source))?;
    bytes.map(|bytes| Row::parse(&bytes).ok_or_else(|| damaged_row(path, dir))).transpose()
}

fn write_meta(
    db: &Connection,
    generation: u64,
    rules: Option<&IgnoredRules>,
    described: Described,
) -> rusqlite::Result<()> {
    if let Some(rules) = rules {
        db.execute("DELETE FROM ignored_rules", [])?;
        let mut insert = db.prepare("INSERT INTO ignored_rules VALUES (?1, ?2)")?;
        for (dir, bytes) in rules {
            insert.execute(params![dir, bytes])?;
        }
    }
    let number = |pick: fn(RootId) -> u64| described.root.map(|r| pick(r).cast_signed());
    db.execute(
        "UPDATE meta SET generation = ?1, head_tree = ?2, device = ?3, inode = ?4, mount = ?5",
        params![
            generation.cast_signed(),
            described.head_tree.as_ref().map(|tree| tree.as_bytes().as_slice()),
            number(|root| root.device),
            number(|root| root.inode),
            number(|root| root.mount),
        ],
    )?;
    Ok(())
}

pub(super) fn damaged_row(path: &Path, dir: &[u8]) -> ManifestError {
    let what = format!("the row of the directory `{}`", crate::tx::path::quote(dir));
    ManifestError::Damaged { path: path.to_owned(), what }
}

pub(super) fn database(path: &Path, source: rusqlite::Error) -> ManifestError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            ManifestError::Damaged { path, what: source.to_string() }
        }
        _ => ManifestError::Database { path, source },
    }
}

#[cfg(test)]
mod tests;
