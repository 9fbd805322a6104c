//! Making a ledger, opening one, and bringing an old one up to date.
//!
//! Order rules: a new ledger is built whole under another name, synced, given its name by
//! `link(2)` (which never replaces), and the directory synced. What is opened is looked at before
//! SQLite sees it (no links, nobody else's), then by SQLite (format, version), then as a whole
//! (`quick_check`) before the first write, unless it looks as worktx itself left it.
//!
//! # Limitations
//! `quick_check` is left out above [`CHECK_UP_TO`] bytes; damage then shows where it is read.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, FileControl, OpenFlags, Transaction, TransactionBehavior};

use super::error::{LOCK_WAIT_MS, LedgerError, fault};
use super::space;
use crate::base::{clock, durable, note};

/// "wtx1" in the header of the file: tells a ledger from other programs' databases.
pub(super) const APPLICATION_ID: i32 = 0x7774_7831;

/// The migrations: the n-th brings a ledger of version n (0: an empty file) to n + 1. None of them
/// is ever edited once it is released.
const MIGRATIONS: [&str; 1] = [include_str!("schema_1.sql")];

/// The version that this program writes.
pub(super) const KNOWN: u32 = 1;

/// The largest file that is checked whole at each opening for writing. Measured: 1 ms a MiB; with
/// the default retention a ledger has a few.
const CHECK_UP_TO: u64 = 64 << 20;

/// What a ledger is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To read and write. A ledger of an older format is brought up to date.
    ReadWrite,
    /// To read, also beside a writer, also a ledger of a newer format.
    ReadOnly,
}

/// The format of a ledger that a newer worktx wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newer {
    /// The version of the file.
    pub found: u32,
    /// The version that this program knows.
    pub known: u32,
}

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    id: String,
    mode: Mode,
    newer: Option<Newer>,
}

impl Ledger {
    /// Makes the ledger if none is there, its directory (0700) too, and opens it for writing.
    ///
    /// Only for where it is known that there may be none yet: a ledger that should be there and is
    /// not is [`LedgerError::Missing`] of [`Ledger::open`], and the operator's to bring back.
    ///
    /// # Errors
    /// [`LedgerError::Deleted`] where a journal without its ledger is found; else as
    /// [`Ledger::open`].
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        let failed = |doing| move |source| LedgerError::Io { path: path.to_owned(), doing, source };
        let dir = parent_of(path);
        durable::create_dir_all(dir, 0o700).map_err(failed("making its directory"))?;
        let path = &secured(path, Mode::ReadWrite)?;
        match std::fs::symlink_metadata(path) {
            Ok(_) => return Self::open(path, Mode::ReadWrite),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("looking at it")(source)),
        }
        let journal = journal_of(path);
        if journal.symlink_metadata().is_ok() && path.symlink_metadata().is_err() {
            return Err(LedgerError::Deleted { path: path.clone(), journal });
        }
        let draft = draft_name(path);
        let built = build(&draft).and_then(|()| {
            match std::fs::hard_link(&draft, path) {
                // Another process was first: its ledger is the one.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(failed("giving it its name")(error))
                }
                _ => Ok(()),
            }
        });
        let removed = durable::remove_file(&draft).map_err(failed("removing its draft"));
        built?;
        removed?;
        Self::open(path, Mode::ReadWrite)
    }

    /// Opens the ledger at `path`.
    ///
    /// # Errors
    /// [`LedgerError::Missing`] where there is none; [`LedgerError::Newer`] where a newer worktx
    /// wrote it and it is to be written; everything that [`LedgerError`] has about files.
    pub fn open(path: &Path, mode: Mode) -> Result<Self, LedgerError> {
        let path = secured(path, mode)?;
        let found = looked_at(&path, mode)?;
        looked_at(&journal_of(&path), mode).map_or_else(
            |error| if matches!(error, LedgerError::Missing { .. }) { Ok(()) } else { Err(error) },
            |_| Ok(()),
        )?;
        // Also a reader opens for writing where it may: a crash can have left a journal that has
        // to be rolled back before anything can be read. `query_only` keeps it from more.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let db = Connection::open_with_flags(&path, flags).map_err(|e| fault(&path, e))?;
        let newer = set_up(&db, &path, mode).map_err(|e| e.or_fault(&path))?;
        if mode == Mode::ReadWrite {
            if db.is_readonly("main").map_err(|e| fault(&path, e))? {
                let why = "it is write-protected".to_owned();
                return Err(LedgerError::ReadOnly { path, why });
            }
            if let Some(Newer { found, known }) = newer {
                return Err(LedgerError::Newer { path, found, known });
            }
            if found.len() <= CHECK_UP_TO && note::read(&note_of(&path)) != Some(look_of(&found)) {
                check(&db, &path)?;
            }
        }
        let id =
            db.query_row("SELECT id FROM ledger", [], |row| row.get(0)).map_err(
                |e| match fault(&path, e) {
                    LedgerError::Sqlite { path, source } => {
                        LedgerError::Corrupt { path, why: source.to_string() }
                    }
                    other => other,
                },
            )?;
        Ok(Self { db, path, id, mode, newer })
    }

    /// Where it stands; absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What names this ledger among all: made with it, never changed.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Looks through the whole file, whatever its size.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] with the first thing that is not in order.
    pub fn quick_check(&self) -> Result<(), LedgerError> {
        check(&self.db, &self.path)
    }

    /// Notes how the file looks now, so that it need not be looked through at the next opening if
    /// nobody has written it since.
    pub fn note_in_order(&self) {
        let noted = std::fs::symlink_metadata(&self.path)
            .and_then(|found| note::write(&note_of(&self.path), &look_of(&found)));
        if let Err(error) = noted {
            tracing::debug!(%error, "no note could be made of the ledger");
        }
    }

    /// Set where a newer worktx wrote it: what is read may then lack what only that one knows.
    pub fn newer(&self) -> Option<Newer> {
        self.newer
    }

    /// The connection, for a db transaction that reaches beyond the journal (the embedded gate).
    ///
    /// # Errors
    /// [`LedgerError::OpenedForReading`]; [`LedgerError::Moved`] where the file that is open is
    /// not the one at the path.
    pub fn writable(&mut self) -> Result<&mut Connection, LedgerError> {
        if self.mode == Mode::ReadOnly {
            return Err(LedgerError::OpenedForReading { path: self.path.clone() });
        }
        let mut moved = 0;
        self.db
            .file_control(Some("main"), FileControl::HasMoved(&mut moved))
            .map_err(|e| fault(&self.path, e))?;
        if moved != 0 {
            return Err(LedgerError::Moved { path: self.path.clone() });
        }
        Ok(&mut self.db)
    }

    /// Does `work` in one db transaction, whole or not at all.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let path = self.path.clone();
        let db = self.writable()?;
        let tx =
            Transaction::new(db, TransactionBehavior::Immediate).map_err(|e| fault(&path, e))?;
        let value = work(&tx)?;
        tx.commit().map_err(|e| fault(&path, e))?;
        Ok(value)
    }
}

/// What can go wrong while a connection is set up.
enum SetUp {
    Sql(rusqlite::Error),
    Typed(LedgerError),
}

impl From<rusqlite::Error> for SetUp {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl SetUp {
    fn or_fault(self, path: &Path) -> LedgerError {
        match self {
            Self::Sql(error) => fault(path, error),
            Self::Typed(error) => error,
        }
    }
}

/// Sets what a connection needs, and looks whose file it is and how old.
fn set_up(db: &Connection, path: &Path, mode: Mode) -> Result<Option<Newer>, SetUp> {
    let path = path.to_owned();
    db.busy_timeout(Duration::from_millis(LOCK_WAIT_MS))?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "cell_size_check", true)?;
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if application != APPLICATION_ID {
        let why = format!("its application id is {application:#x}, not {APPLICATION_ID:#x}");
        return Err(SetUp::Typed(LedgerError::NotALedger { path, why }));
    }
    if version == 0 {
        let why = "it has no format version".to_owned();
        return Err(SetUp::Typed(LedgerError::Corrupt { path, why }));
    }
    let newer = (version > KNOWN).then_some(Newer { found: version, known: KNOWN });
    if mode == Mode::ReadOnly || newer.is_some() {
        db.pragma_update(None, "query_only", true)?;
        if version < KNOWN {
            let older = LedgerError::Older { path, found: version, known: KNOWN };
            return Err(SetUp::Typed(older));
        }
        return Ok(newer);
    }
    db.pragma_update(None, "synchronous", "FULL")?;
    let journal: String =
        db.pragma_update_and_check(None, "journal_mode", "PERSIST", |row| row.get(0))?;
    // A read-only file keeps what it has, and is told apart by the caller.
    if journal != "persist" && !db.is_readonly("main")? {
        let why = format!("its journal mode is {journal} and cannot be changed");
        return Err(SetUp::Typed(LedgerError::ReadOnly { path, why }));
    }
    db.pragma_update(None, "journal_size_limit", space::JOURNAL_AT_MOST)?;
    if version < KNOWN {
        migrate(db)?;
    }
    Ok(None)
}

/// Brings a ledger up to date, one db transaction for each version.
fn migrate(db: &Connection) -> rusqlite::Result<()> {
    loop {
        let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        // Read inside: another process may have been here meanwhile.
        let version: u32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let Some(migration) = MIGRATIONS.get(version as usize) else { return Ok(()) };
        tx.execute_batch(migration)?;
        tx.pragma_update(None, "user_version", version + 1)?;
        tx.commit()?;
    }
}

/// Builds a whole ledger at `draft`, synced; its name is not.
fn build(draft: &Path) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Io { path: draft.to_owned(), doing: "making it", source };
    durable::create(draft, 0o600).map_err(failed)?;
    let fill = || -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let db = Connection::open_with_flags(draft, flags)?;
        // A draft that a crash leaves is never used: no journal, one sync at the end.
        db.pragma_update(None, "journal_mode", "MEMORY")?;
        db.pragma_update(None, "synchronous", "OFF")?;
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
        migrate(&db)?;
        db.execute(
            "INSERT INTO ledger (id, created_at, created_by) VALUES (?1, ?2, ?3)",
            (
                ulid::Ulid::generate().to_string(),
                clock::now_rfc3339(),
                concat!("worktx ", env!("CARGO_PKG_VERSION")),
            ),
        )?;
        db.close().map_err(|(_, error)| error)
    };
    fill().map_err(|error| fault(draft, error))?;
    File::open(draft).and_then(|file| file.sync_all()).map_err(failed)
}

/// `quick_check`: every page can be read, and what is in it is in order.
fn check(db: &Connection, path: &Path) -> Result<(), LedgerError> {
    let said: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| fault(path, error))?;
    if said == "ok" {
        Ok(())
    } else {
        Err(LedgerError::Corrupt { path: path.to_owned(), why: said })
    }
}

/// The path with its directory resolved, after a look at the directory: a real one, ours or
/// root's, not open to others. What is ours is put right.
fn secured(path: &Path, mode: Mode) -> Result<PathBuf, LedgerError> {
    let dir = parent_of(path);
    let found = looked_at_any(dir, path)?;
    if !found.is_dir() {
        return Err(untrusted(dir, "its directory is a link or no directory"));
    }
    close_to_others(dir, &found, 0o700, mode)?;
    let name = path.file_name().ok_or_else(|| untrusted(path, "it has no name"))?;
    let dir = dir.canonicalize().map_err(|source| LedgerError::Io {
        path: path.to_owned(),
        doing: "finding its directory",
        source,
    })?;
    Ok(dir.join(name))
}

/// A look at a file of the ledger: a regular one, ours or root's, not open to others.
fn looked_at(path: &Path, mode: Mode) -> Result<Metadata, LedgerError> {
    let found = looked_at_any(path, path)?;
    if found.is_symlink() {
        return Err(untrusted(path, "it is a symbolic link"));
    }
    if !found.is_file() {
        return Err(untrusted(path, "it is no regular file"));
    }
    close_to_others(path, &found, 0o600, mode)?;
    Ok(found)
}

fn looked_at_any(at: &Path, ledger: &Path) -> Result<Metadata, LedgerError> {
    std::fs::symlink_metadata(at).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LedgerError::Missing { path: ledger.to_owned() },
        _ => LedgerError::Io { path: at.to_owned(), doing: "looking at it", source },
    })
}

/// The rights of group and others.
const OTHERS: u32 = 0o077;

/// Takes rights of group and others away where the file is ours (a backup or a volume's group may
/// have brought them); where it is not and others may write it, it is not trusted.
fn close_to_others(
    at: &Path,
    found: &Metadata,
    mode_wanted: u32,
    mode: Mode,
) -> Result<(), LedgerError> {
    let (bits, owner) = (found.permissions().mode() & 0o777, found.uid());
    let own = rustix::process::geteuid().as_raw();
    if owner != own && owner != 0 && own != 0 {
        return Err(untrusted(at, &format!("it belongs to user {owner}")));
    }
    if bits & OTHERS == 0 {
        return Ok(());
    }
    if owner == own && mode == Mode::ReadWrite {
        let closed = std::fs::Permissions::from_mode(bits & 0o700 | mode_wanted & 0o700);
        match std::fs::set_permissions(at, closed) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error()) => {}
            Err(source) => {
                let (path, doing) = (at.to_owned(), "closing it to others");
                return Err(LedgerError::Io { path, doing, source });
            }
        }
    }
    if bits & 0o022 != 0 && owner != own {
        return Err(untrusted(at, &format!("others may write it (mode {bits:o})")));
    }
    Ok(())
}

fn untrusted(path: &Path, why: &str) -> LedgerError {
    LedgerError::Untrusted { path: path.to_owned(), why: why.to_owned() }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The note of how a ledger looked that was in order. No unprivileged program can set the time of
/// the last change back.
fn look_of(found: &Metadata) -> String {
    format!(
        "{} {} {}.{} {}.{}",
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec()
    )
}

fn note_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".in-order");
    name.into()
}

/// The rollback journal, by SQLite's rule.
pub(super) fn journal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-journal");
    name.into()
}

fn draft_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", ulid::Ulid::generate()));
    name.into()
}
