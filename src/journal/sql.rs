//! Small helpers between rows and types.
//!
//! # Limitations
//! Private to the journal.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rusqlite::types::{ToSqlOutput, Type, Value, ValueRef};
use rusqlite::{Connection, Row};

use super::error::{LedgerError, fault};

/// The path of the file behind a connection, for messages.
pub(super) fn path_of(db: &Connection) -> PathBuf {
    db.path().map(PathBuf::from).unwrap_or_default()
}

/// What a statement says, sorted.
pub(super) trait Sorted<T> {
    fn at(self, db: &Connection) -> Result<T, LedgerError>;
}

impl<T> Sorted<T> for rusqlite::Result<T> {
    fn at(self, db: &Connection) -> Result<T, LedgerError> {
        self.map_err(|error| fault(&path_of(db), error))
    }
}

/// A column of text that one of our types is made from.
pub(super) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| conversion(row, column, Type::Text, error))
}

/// As [`parsed`], for a column that may be null.
pub(super) fn parsed_opt<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|error| conversion(row, column, Type::Text, error)))
        .transpose()
}

fn conversion(
    row: &Row<'_>,
    column: &str,
    kind: Type,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    let index = row.as_ref().column_index(column).unwrap_or(usize::MAX);
    rusqlite::Error::FromSqlConversionFailure(index, kind, Box::new(error))
}

/// A path as it is stored: text where it is UTF-8, so that it can be read, else its bytes.
pub(super) fn path_to_sql(path: &Path) -> ToSqlOutput<'_> {
    match path.to_str() {
        Some(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        None => ToSqlOutput::Owned(Value::Blob(path.as_os_str().as_bytes().to_vec())),
    }
}

/// A path from a column of [`path_to_sql`].
pub(super) fn path_from_sql(row: &Row<'_>, column: &str) -> rusqlite::Result<PathBuf> {
    match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            Ok(OsString::from_vec(bytes.to_vec()).into())
        }
        other => Err(rusqlite::Error::InvalidColumnType(
            row.as_ref().column_index(column)?,
            column.to_owned(),
            other.data_type(),
        )),
    }
}

/// A value as JSON text.
pub(super) fn to_json<T: serde::Serialize>(
    db: &Connection,
    what: &str,
    value: &T,
) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(|source| LedgerError::Json {
        path: path_of(db),
        what: what.to_owned(),
        source,
    })
}
