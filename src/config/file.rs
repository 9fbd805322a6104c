//! A settings file as a list of keys with values and lines; the user's file and where it stands.
//!
//! # Limitations
//! The first fault is reported, not all of them.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::keys::{self, KEYS, Key};
use super::value::Raw;

/// Bytes that a settings file may have; more is no settings file.
const LIMIT: u64 = 1 << 20;

/// One key of a file.
pub(super) struct FileEntry {
    pub(super) key: &'static Key,
    pub(super) value: Raw,
    pub(super) line: usize,
}

/// The user's file, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserFile {
    /// Where it stands.
    pub path: PathBuf,
    /// What it says.
    pub bytes: Vec<u8>,
}

impl UserFile {
    /// Reads `$XDG_CONFIG_HOME/worktx/config.toml`, or `~/.config/worktx/config.toml` where that
    /// variable is not set or not absolute (which the XDG specification says to ignore).
    pub fn read(environment: &[(OsString, OsString)]) -> Result<Option<Self>, ConfigError> {
        let directory = |name: &str| {
            let found = environment.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| PathBuf::from(value)).filter(|path| path.is_absolute())
        };
        let folder =
            directory("XDG_CONFIG_HOME").or_else(|| directory("HOME").map(|h| h.join(".config")));
        let Some(path) = folder.map(|folder| folder.join("worktx/config.toml")) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(Self { path, bytes })),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(source) => Err(ConfigError::Unreadable { file: path, source }),
        }
    }
}

/// Reads a file's keys, in the order of their lines.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<FileEntry>, ConfigError> {
    let syntax = |line, why: String| ConfigError::Syntax { file: file.to_owned(), line, why };
    if bytes.len() as u64 > LIMIT {
        return Err(syntax(1, format!("it has more than {LIMIT} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + count_lines(&bytes[..error.valid_up_to()]);
        syntax(line, "it is not UTF-8".to_owned())
    })?;
    let line_of = |at: usize| 1 + count_lines(&bytes[..at.min(bytes.len())]);
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        syntax(line, error.message().to_owned())
    })?;
    let mut entries = Vec::new();
    walk(file, table.get_ref(), "", &line_of, &mut entries)?;
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.split(|b| *b == b'\n').count() - 1
}

fn walk(
    file: &Path,
    table: &DeTable<'_>,
    section: &str,
    line_of: &impl Fn(usize) -> usize,
    entries: &mut Vec<FileEntry>,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let line = line_of(name.span().start);
        let full = if section.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{section}.{}", name.get_ref())
        };
        if let Some(key) = keys::find(&full) {
            entries.push(FileEntry { key, value: raw(value.get_ref()), line });
            continue;
        }
        let is_section = KEYS.iter().any(|key| in_section(key.name, &full));
        match value.get_ref() {
            DeValue::Table(inner) if is_section => walk(file, inner, &full, line_of, entries)?,
            _ if is_section => {
                let why = format!("it is a section: write [{full}]");
                return Err(ConfigError::Value { at: place(file, line), key: full, why });
            }
            other => {
                let nearest = nearest(&full, other.is_table()).to_owned();
                return Err(ConfigError::UnknownKey { at: place(file, line), key: full, nearest });
            }
        }
    }
    Ok(())
}

fn in_section(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// A place in a file, as compilers write it.
pub(super) fn place(file: &Path, line: usize) -> String {
    format!("{}:{line}", file.display())
}

/// The known key, or section where a section was given, that is most like an unknown one: by the
/// whole name, or by its last part, since a key is as often in the wrong section as misspelt.
fn nearest(name: &str, is_section: bool) -> &'static str {
    fn last(name: &str) -> &str {
        name.rsplit('.').next().unwrap_or(name)
    }
    let likeness = |known: &str| {
        let whole = strsim::jaro_winkler(name, known);
        let part = strsim::jaro_winkler(last(name), last(known));
        whole.max(part * 0.99)
    };
    let known = KEYS.iter().filter_map(|key| match (is_section, key.name.split_once('.')) {
        (true, section) => section.map(|(section, _)| section),
        (false, _) => Some(key.name),
    });
    known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or_default()
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("an integer that is too large"), Raw::Integer),
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(Raw::Other("a list of other things than strings"), Raw::List),
        DeValue::Float(_) => Raw::Other("a float"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}
