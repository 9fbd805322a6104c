//! What is read of executions, attempts and their history.
//!
//! # Limitations
//! In a ledger of a newer format a state or a document may be one that is not known here:
//! [`Attempt::tag`], [`Attempt::record`] and [`Attempt::spec`] then say so, and everything else of
//! the attempt can still be shown.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension as _, ToSql, named_params};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::attempt::{Owner, Workspace};
use super::error::LedgerError;
use super::open::Ledger;
use super::sql::{Sorted as _, parsed, parsed_opt, path_from_sql, path_of};
use crate::tx::id::{AttemptKey, AttemptNo, ExecutionId};
use crate::tx::record::AttemptRecord;
use crate::tx::tag::StateTag;
use crate::tx::verdict::{Claim, Row};

/// An attempt, as it stands. Times are RFC 3339 in UTC.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which.
    pub key: AttemptKey,
    /// Where.
    pub workspace: Workspace,
    /// The word of its state: [`Attempt::tag`].
    pub state: String,
    /// How often it was changed: what a [`super::Change`] expects.
    pub rev: u64,
    /// When it was opened.
    pub started_at: String,
    /// When its state was changed last.
    pub updated_at: String,
    /// When it settled, if it did.
    pub settled_at: Option<String>,
    /// The outcome document, if there is one.
    pub outcome: Option<Value>,
    ledger: PathBuf,
    owner: Option<String>,
    data: String,
    spec: String,
}

impl Attempt {
    /// The state.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where it is none that is known here.
    pub fn tag(&self) -> Result<StateTag, LedgerError> {
        self.state.parse().map_err(|error: crate::tx::id::InvalidName| LedgerError::Corrupt {
            path: self.ledger.clone(),
            why: format!("attempt {}: {error}", self.key),
        })
    }

    /// What is kept of it.
    ///
    /// # Errors
    /// [`LedgerError::Json`] where its form is not known here; [`LedgerError::Corrupt`] where the
    /// state in it is another than the `state` column says.
    pub fn record(&self) -> Result<AttemptRecord, LedgerError> {
        let record: AttemptRecord = self.json("data", &self.data)?;
        if record.state.tag() == self.tag()? {
            return Ok(record);
        }
        Err(LedgerError::Corrupt {
            path: self.ledger.clone(),
            why: format!(
                "attempt {}: the column says {}, the data {}",
                self.key,
                self.state,
                record.state.tag()
            ),
        })
    }

    /// What was recorded at open and never changes.
    ///
    /// # Errors
    /// [`LedgerError::Json`] where its form is not known here.
    pub fn spec<T: DeserializeOwned>(&self) -> Result<T, LedgerError> {
        self.json("spec", &self.spec)
    }

    /// The process that drives it, or drove it last.
    ///
    /// # Errors
    /// [`LedgerError::Json`] where its form is not known here.
    pub fn owner(&self) -> Result<Option<Owner>, LedgerError> {
        self.owner.as_deref().map(|text| self.json("owner", text)).transpose()
    }

    /// Whether nothing is left to do or to decide.
    pub fn is_settled(&self) -> bool {
        self.settled_at.is_some()
    }

    fn json<T: DeserializeOwned>(&self, column: &str, text: &str) -> Result<T, LedgerError> {
        serde_json::from_str(text).map_err(|source| LedgerError::Json {
            path: self.ledger.clone(),
            what: format!("{column} of attempt {}", self.key),
            source,
        })
    }
}

/// Which attempt, and whether it settled: what can be read of a thousand at no cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptHead {
    /// Which.
    pub key: AttemptKey,
    /// When it settled, if it did; RFC 3339 in UTC.
    pub settled_at: Option<String>,
}

/// An execution row with its times, RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The row.
    pub row: Row,
    /// When it came.
    pub created_at: String,
    /// When it was changed last.
    pub updated_at: String,
    /// When its terminal was written, if one stands.
    pub completed_at: Option<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number: grows with time, never reused.
    pub id: i64,
    /// To which execution.
    pub execution: ExecutionId,
    /// To which attempt; `None` for a refusal.
    pub attempt: Option<AttemptNo>,
    /// When; RFC 3339 in UTC.
    pub at: String,
    /// What.
    pub kind: String,
    /// The state before, where a state was changed.
    pub from_state: Option<String>,
    /// The state after, where a state was changed.
    pub to_state: Option<String>,
    /// More about it.
    pub detail: Value,
}

/// Which attempts; all of what is set must be true.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this execution.
    pub execution: Option<ExecutionId>,
    /// In the workspace of this [`Workspace::id`].
    pub workspace: Option<String>,
    /// In this state.
    pub state: Option<StateTag>,
    /// Only settled ones, or only unsettled ones.
    pub settled: Option<bool>,
    /// At most so many, the newest ones.
    pub limit: Option<u32>,
}

/// Which events; all of what is set must be true.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Of this execution.
    pub execution: Option<ExecutionId>,
    /// Of this attempt of it.
    pub attempt: Option<AttemptNo>,
    /// With a larger number than this one: to follow what happens.
    pub after: Option<i64>,
}

/// The most ids that an [`LedgerError::Ambiguous`] carries.
const IDS_SHOWN: u32 = 10;

/// The shortest end of an id that is taken for the id: what [`ExecutionId::short`] shows of a
/// ULID is eight long.
const SHORTEST_END: usize = 6;

impl Ledger {
    /// One attempt.
    pub fn attempt(&self, key: &AttemptKey) -> Result<Option<Attempt>, LedgerError> {
        let sql = format!("{ATTEMPT} WHERE a.execution_id = ?1 AND a.attempt = ?2");
        self.query(&sql, &[&key.execution.as_str(), &key.attempt.0]).map(|mut all| all.pop())
    }

    /// The attempts that the filter lets through, newest first.
    pub fn attempts(&self, filter: &Filter) -> Result<Vec<Attempt>, LedgerError> {
        let sql = format!(
            "{ATTEMPT} WHERE (?1 IS NULL OR a.execution_id = ?1)
                 AND (?2 IS NULL OR a.workspace_id = ?2)
                 AND (?3 IS NULL OR a.state = ?3)
                 AND (?4 IS NULL OR (a.settled_at IS NOT NULL) = ?4)
             ORDER BY a.rowid DESC LIMIT ?5"
        );
        self.query(
            &sql,
            &[
                &filter.execution.as_ref().map(ExecutionId::as_str),
                &filter.workspace,
                &filter.state.map(StateTag::as_str),
                &filter.settled,
                &filter.limit.map_or(-1, i64::from),
            ],
        )
    }

    /// About how many attempts there ever were: each one opened makes it larger, and what gc takes
    /// away makes it smaller only where the newest ones went.
    pub fn attempts_ever(&self) -> Result<i64, LedgerError> {
        let sql = "SELECT coalesce(max(rowid), 0) FROM attempt";
        self.db.query_row(sql, [], |row| row.get(0)).at(&self.db)
    }

    /// All attempts without their documents, newest first.
    pub fn heads(&self) -> Result<Vec<AttemptHead>, LedgerError> {
        let mut statement = self
            .db
            .prepare("SELECT execution_id, attempt, settled_at FROM attempt ORDER BY rowid DESC")
            .at(&self.db)?;
        statement
            .query_map([], |row| {
                Ok(AttemptHead {
                    key: AttemptKey {
                        execution: parsed(row, "execution_id")?,
                        attempt: AttemptNo(row.get("attempt")?),
                    },
                    settled_at: row.get("settled_at")?,
                })
            })
            .at(&self.db)?
            .collect::<Result<_, _>>()
            .at(&self.db)
    }

    /// What is unsettled (quarantined included), oldest first; of one workspace, or of all.
    pub fn unsettled(&self, workspace: Option<&str>) -> Result<Vec<Attempt>, LedgerError> {
        let sql = format!(
            "{ATTEMPT} WHERE a.settled_at IS NULL AND (?1 IS NULL OR a.workspace_id = ?1)
             ORDER BY a.rowid"
        );
        self.query(&sql, &[&workspace])
    }

    fn query(&self, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<Attempt>, LedgerError> {
        let mut statement = self.db.prepare_cached(sql).at(&self.db)?;
        let rows = statement
            .query_map(params, |row| attempt_from(&self.db, row))
            .at(&self.db)?
            .collect::<Result<Vec<_>, _>>();
        rows.at(&self.db)
    }

    /// The row of one execution.
    pub fn execution(&self, id: &ExecutionId) -> Result<Option<Execution>, LedgerError> {
        self.db
            .query_row("SELECT * FROM execution WHERE execution_id = ?1", [id.as_str()], |row| {
                Ok(Execution {
                    row: row_from(row)?,
                    created_at: row.get("created_at")?,
                    updated_at: row.get("updated_at")?,
                    completed_at: row.get("completed_at")?,
                })
            })
            .optional()
            .at(&self.db)
    }

    /// The execution that a person means: by its whole id, by a prefix of it that no other has,
    /// else by an end of it that no other has (the short form of a ULID is its end). Executions
    /// that were only refused count.
    ///
    /// # Errors
    /// [`LedgerError::NoExecution`], [`LedgerError::Ambiguous`].
    pub fn resolve(&self, short: &str) -> Result<ExecutionId, LedgerError> {
        let mut statement = self
            .db
            .prepare(
                "WITH known (id) AS (SELECT execution_id FROM execution
                                     UNION SELECT execution_id FROM event)
                 SELECT id AS execution_id FROM known
                 WHERE CASE :how WHEN 0 THEN id = :short
                                 WHEN 1 THEN substr(id, 1, length(:short)) = :short
                                 ELSE substr(id, -length(:short)) = :short END
                 ORDER BY id LIMIT :limit",
            )
            .at(&self.db)?;
        let ways: &[u8] = match short.len() {
            0 => &[],
            n if n < SHORTEST_END => &[0, 1],
            _ => &[0, 1, 2],
        };
        for how in ways {
            let mut ids: Vec<ExecutionId> = statement
                .query_map(
                    named_params! { ":how": how, ":short": short, ":limit": IDS_SHOWN },
                    |row| parsed(row, "execution_id"),
                )
                .at(&self.db)?
                .collect::<Result<_, _>>()
                .at(&self.db)?;
            match (ids.len(), ids.pop()) {
                (1, Some(id)) => return Ok(id),
                (_, Some(last)) => {
                    ids.push(last);
                    return Err(LedgerError::Ambiguous { prefix: short.to_owned(), ids });
                }
                _ => {}
            }
        }
        Err(LedgerError::NoExecution { prefix: short.to_owned() })
    }

    /// The events that the filter lets through, oldest first.
    pub fn events(&self, filter: &EventFilter) -> Result<Vec<Event>, LedgerError> {
        let mut statement = self
            .db
            .prepare(
                "SELECT * FROM event
                 WHERE (?1 IS NULL OR execution_id = ?1) AND (?2 IS NULL OR attempt = ?2)
                     AND id > ?3
                 ORDER BY id",
            )
            .at(&self.db)?;
        statement
            .query_map(
                (
                    filter.execution.as_ref().map(ExecutionId::as_str),
                    filter.attempt.map(|n| n.0),
                    filter.after.unwrap_or(0),
                ),
                event_from,
            )
            .at(&self.db)?
            .collect::<Result<_, _>>()
            .at(&self.db)
    }

    /// The number of the last event ever written, removed ones included; 0 before the first. A
    /// ledger whose number is smaller than one seen before is an old copy.
    pub fn last_event_id(&self) -> Result<i64, LedgerError> {
        self.db
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |r| r.get(0))
            .optional()
            .map(|found| found.unwrap_or(0))
            .at(&self.db)
    }
}

const ATTEMPT: &str = "SELECT a.*, w.root, w.git_dir
     FROM attempt AS a JOIN workspace AS w USING (workspace_id)";

fn attempt_from(db: &Connection, row: &rusqlite::Row<'_>) -> rusqlite::Result<Attempt> {
    Ok(Attempt {
        key: AttemptKey {
            execution: parsed(row, "execution_id")?,
            attempt: AttemptNo(row.get("attempt")?),
        },
        workspace: Workspace {
            id: row.get("workspace_id")?,
            root: path_from_sql(row, "root")?,
            git_dir: path_from_sql(row, "git_dir")?,
        },
        state: row.get("state")?,
        rev: row.get::<_, i64>("rev")?.unsigned_abs(),
        started_at: row.get("started_at")?,
        updated_at: row.get("updated_at")?,
        settled_at: row.get("settled_at")?,
        outcome: row
            .get::<_, Option<String>>("outcome")?
            .map(|text| parsed_json(row, "outcome", &text))
            .transpose()?,
        ledger: path_of(db),
        owner: row.get("owner")?,
        data: row.get("data")?,
        spec: row.get("spec")?,
    })
}

fn event_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get("id")?,
        execution: parsed(row, "execution_id")?,
        attempt: row.get::<_, Option<u32>>("attempt")?.map(AttemptNo),
        at: row.get("at")?,
        kind: row.get("kind")?,
        from_state: row.get("from_state")?,
        to_state: row.get("to_state")?,
        detail: parsed_json(row, "detail", &row.get::<_, String>("detail")?)?,
    })
}

fn parsed_json(row: &rusqlite::Row<'_>, column: &str, text: &str) -> rusqlite::Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        let index = row.as_ref().column_index(column).unwrap_or(usize::MAX);
        let kind = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(index, kind, Box::new(error))
    })
}

/// The execution row, if there is one.
pub(super) fn row_of(db: &Connection, id: &ExecutionId) -> rusqlite::Result<Option<Row>> {
    db.query_row("SELECT * FROM execution WHERE execution_id = ?1", [id.as_str()], row_from)
        .optional()
}

fn row_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let attempt: Option<u32> = row.get("success_attempt")?;
    let candidate = parsed_opt(row, "success_candidate")?;
    Ok(Row {
        execution: parsed(row, "execution_id")?,
        status: parsed(row, "status")?,
        current_attempt: row.get::<_, Option<u32>>("current_attempt")?.map(AttemptNo),
        success: attempt
            .zip(candidate)
            .map(|(attempt, candidate)| Claim { attempt: AttemptNo(attempt), candidate }),
        claim_token: row.get("claim_token")?,
        error: row.get("error")?,
    })
}
