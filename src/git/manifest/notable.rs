//! What of a manifest has to be found without a path in hand: files that git does not track, or whose
//! bytes git holds otherwise; what is neither file nor directory; and, by their names alone, files
//! with attributes.
//!
//! # Limitations
//! The sum over the list finds what is lost of it, not malice.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Statement, TransactionBehavior, params};

use super::{ManifestError, VERSION, child_path, damaged_row, database};
use crate::git::manifest::row::{Packed, Row};
use crate::tx::entry::Kind;
use crate::tx::path::RepoPath;

/// The table, and what it counts: part of the schema.
pub(super) const SCHEMA: &str =
    "CREATE TABLE notable (path BLOB PRIMARY KEY, note INTEGER NOT NULL) WITHOUT ROWID;";

/// How to come from version 1, which has no such table, or from a later one, which has it otherwise.
const FROM_1: &str = "ALTER TABLE meta ADD COLUMN notable_sum INTEGER NOT NULL DEFAULT 0;";
const FROM_2: &str = "DROP TABLE notable; UPDATE meta SET notable_sum = 0;";

/// Why a path is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::git) enum Note {
    /// Its entry tells.
    Entry,
    /// For its name alone: a file with attributes that is tracked, and as git holds it.
    Name,
}

impl Note {
    fn of(child: &Packed<'_>) -> Option<Self> {
        match child.kind() {
            Kind::File | Kind::Symlink if !child.is_tracked() || child.has_own_blob() => {
                Some(Self::Entry)
            }
            Kind::File | Kind::Symlink | Kind::Directory => {
                (child.name == b".gitattributes").then_some(Self::Name)
            }
            _ => Some(Self::Entry),
        }
    }

    const fn number(self) -> i64 {
        match self {
            Self::Entry => 0,
            Self::Name => 1,
        }
    }

    const fn from_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Entry),
            1 => Some(Self::Name),
            _ => None,
        }
    }

    /// What a path counts in the sum of what is notable: how many there are, and which, and why.
    fn sum(self, path: &RepoPath) -> i64 {
        let mut hash = crc32fast::Hasher::new();
        hash.update(path.as_bytes());
        hash.update(match self {
            Self::Entry => b"",
            Self::Name => b"\0",
        });
        (1 << 32) + i64::from(hash.finalize())
    }
}

/// A path that is listed otherwise than it was: before, and now.
pub(in crate::git) type NoteChange = (RepoPath, Option<Note>, Option<Note>);

/// What of the list changes with a row.
pub(in crate::git) fn changes(
    dir: &[u8],
    before: Option<&Row>,
    after: Option<&Row>,
) -> Vec<NoteChange> {
    let of = |row: Option<&Row>| -> BTreeMap<Vec<u8>, Note> {
        let children = row.into_iter().flat_map(Row::iter);
        children.filter_map(|child| Some((child.name.to_vec(), Note::of(&child)?))).collect()
    };
    let (before, after) = (of(before), of(after));
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    gone.chain(after.keys())
        .map(|name| (child_path(dir, name), before.get(name).copied(), after.get(name).copied()))
        .filter(|(_, before, after)| before != after)
        .collect()
}

/// Writes changes of the list.
pub(super) struct Writer<'db> {
    note: Statement<'db>,
    forget: Statement<'db>,
    sum: i64,
}

impl<'db> Writer<'db> {
    pub(super) fn new(db: &'db Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            note: db.prepare("INSERT OR REPLACE INTO notable VALUES (?1, ?2)")?,
            forget: db.prepare("DELETE FROM notable WHERE path = ?1")?,
            sum: 0,
        })
    }

    pub(super) fn write(&mut self, changes: Vec<NoteChange>) -> rusqlite::Result<()> {
        for (path, before, after) in changes {
            match after {
                Some(note) => self.note.execute(params![path.as_bytes(), note.number()])?,
                None => self.forget.execute([path.as_bytes()])?,
            };
            let sum = |note: Option<Note>| note.map_or(0, |note| note.sum(&path));
            self.sum += sum(after) - sum(before);
        }
        Ok(())
    }

    pub(super) fn finish(self, db: &Connection) -> rusqlite::Result<()> {
        db.execute("UPDATE meta SET notable_sum = notable_sum + ?1", [self.sum]).map(drop)
    }
}

/// The whole list.
pub(super) fn read(
    db: &Connection,
    path: &Path,
) -> Result<BTreeMap<RepoPath, Note>, ManifestError> {
    let wrong = |source| database(path, source);
    let damaged =
        |what: &str| ManifestError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let mut query = db.prepare("SELECT path, note FROM notable").map_err(wrong)?;
    let mut rows = query.query([]).map_err(wrong)?;
    let (mut found, mut sum) = (BTreeMap::new(), 0);
    while let Some(row) = rows.next().map_err(wrong)? {
        let listed: Vec<u8> = row.get(0).map_err(wrong)?;
        let listed = RepoPath::new(listed).map_err(|_| damaged("a notable path"))?;
        let note = Note::from_number(row.get(1).map_err(wrong)?);
        let note = note.ok_or_else(|| damaged("why a path is notable"))?;
        sum += note.sum(&listed);
        found.insert(listed, note);
    }
    let noted: i64 =
        db.query_row("SELECT notable_sum FROM meta", [], |row| row.get(0)).map_err(wrong)?;
    // What is left out here is neither pinned nor taken for ignored.
    if sum == noted { Ok(found) } else { Err(damaged("the list of what is notable")) }
}

/// Brings a manifest of an earlier version up to date.
pub(super) fn migrate(db: &mut Connection, path: &Path) -> Result<(), ManifestError> {
    let wrong = |source| database(path, source);
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(wrong)?;
    let found: i64 =
        tx.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(wrong)?;
    match found {
        1 => tx.execute_batch(FROM_1).map_err(wrong)?,
        2..VERSION => tx.execute_batch(FROM_2).map_err(wrong)?,
        // Somebody else was quicker.
        _ => return Ok(()),
    }
    {
        tx.execute_batch(SCHEMA).map_err(wrong)?;
        let mut writer = Writer::new(&tx).map_err(wrong)?;
        let mut query = tx.prepare("SELECT path, entries FROM dir").map_err(wrong)?;
        let mut rows = query.query([]).map_err(wrong)?;
        while let Some(row) = rows.next().map_err(wrong)? {
            let dir: Vec<u8> = row.get(0).map_err(wrong)?;
            let entries: Vec<u8> = row.get(1).map_err(wrong)?;
            let parsed = Row::parse(&entries).ok_or_else(|| damaged_row(path, &dir))?;
            writer.write(changes(&dir, None, Some(&parsed))).map_err(wrong)?;
        }
        writer.finish(&tx).map_err(wrong)?;
        tx.pragma_update(None, "user_version", VERSION).map_err(wrong)?;
    }
    tx.commit().map_err(wrong)
}
