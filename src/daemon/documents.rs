//! What goes over the socket, beside the documents that the commands print.
//!
//! # Limitations
//! Commands, variables and paths that are no UTF-8 cannot be submitted: JSON has no bytes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coordinator::attempt::outcome::Outcome;
use crate::coordinator::report::documents::{ListedAttempt, ShowDocument};
use crate::tx::cause::ErrorCode;
use crate::tx::id::ExecutionId;

/// A command to be run as a transaction; the options are those of `worktx run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Names the unit of work; by default a new one. The same request under the same name is
    /// answered with what is known of it, and nothing runs twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<String>,
    /// A directory in the work tree; may be left out where one work tree is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// The command, and what it is given.
    pub command: Vec<String>,
    /// Where it starts, beneath the root of the work tree; by default the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables beside those of the server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Its standard input; by default nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// A set of defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// An executable that validates the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_check: Option<String>,
    /// A shell command that validates the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Validate nothing.
    #[serde(default)]
    pub no_post_check: bool,
    /// The bound on the post-check, such as `90s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_check_timeout: Option<String>,
    /// The bound on the command, such as `2h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The time by which everything up to the verdict must be done, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle_by: Option<String>,
    /// What to do when tracked files differ from HEAD: `refuse` or `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dirty: Option<String>,
    /// Where to look for changes: `watched` or `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<String>,
    /// How long to wait for somebody else's work on the workspace; by default `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
    /// What set this off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// The subject of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The fence of a pull-model claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_token: Option<String>,
    /// An execution that is over without a success is tried once more.
    #[serde(default, skip_serializing)]
    pub retry: bool,
}

/// How far a submission is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its work tree.
    Queued,
    /// Its driver runs.
    Running,
    /// Its driver is over.
    Finished,
}

/// An execution, as the server knows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionDocument {
    /// The schema number.
    pub schema: u32,
    /// Which.
    pub execution_id: ExecutionId,
    /// The root of the work tree.
    pub workspace: String,
    /// How far the submission is; `null` where it was not submitted here.
    pub phase: Option<Phase>,
    /// The exit code of the driver, once it is over: that of `worktx run`. `null` also where no
    /// server saw it end.
    pub exit_code: Option<u8>,
    /// The outcome, once there is one.
    pub outcome: Option<Outcome>,
    /// What stands in the ledger; `null` before anything does.
    pub history: Option<ShowDocument>,
}

/// The answer to a submission and to a cancel.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionsDocument {
    /// The schema number.
    pub schema: u32,
    /// Which.
    pub execution_id: ExecutionId,
    /// The root of the work tree.
    pub workspace: String,
    /// How far it is.
    pub phase: Phase,
    /// It was there already.
    pub existed: bool,
}

/// Attempts of all ledgers: the document of `worktx list`, and what it is without.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct AttemptsDocument {
    /// The schema number.
    pub schema: u32,
    /// The attempts, newest first.
    pub attempts: Vec<ListedAttempt>,
    /// The ledgers that could not be read: their attempts are not among these.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// A ledger that could not be read.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct LeftOut {
    /// Its state directory.
    pub state: String,
    /// Why.
    pub reason: String,
}

/// A decision about a quarantined attempt.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// `adopt`, `discard` or `keep`.
    pub decision: String,
    /// The word that nobody of the turn writes any more.
    #[serde(default)]
    pub writer_dead: bool,
}

/// Somebody wants a workspace for a while, to work in it with git.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardRequest {
    /// A directory in the work tree; may be left out where one work tree is served.
    #[serde(default)]
    pub workspace: Option<String>,
    /// Who wants it: shown to others while it is held.
    #[serde(default)]
    pub holder: Option<String>,
    /// How long it is held at most without being renewed; by default `60s`, at most `1h`.
    #[serde(default)]
    pub ttl: Option<String>,
    /// How long to wait for it; by default not at all.
    #[serde(default)]
    pub wait: Option<String>,
}

/// A lease on a workspace: no attempt begins on it meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GuardDocument {
    /// The schema number.
    pub schema: u32,
    /// Names it: whoever knows this may renew and end it.
    pub lease: String,
    /// The root of the work tree.
    pub workspace: String,
    /// When it ends by itself.
    pub expires_at: String,
}

/// A work tree that is served.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkspaceDocument {
    /// The root of the work tree.
    pub root: String,
    /// The state directory, with the socket in it.
    pub state: String,
    /// The submission that runs.
    pub running: Option<ExecutionId>,
    /// How many submissions wait.
    pub queued: usize,
    /// How many attempts are not settled, running ones included.
    pub unsettled: usize,
    /// How many of those are quarantined: an operator decides.
    pub quarantined: usize,
    /// Why the work tree cannot be used, where it cannot: the counts of attempts are 0 then.
    pub error: Option<String>,
    /// Files and directories that are watched; 0 where a watch is not set up, `null` where there is
    /// none.
    pub watches: Option<u64>,
}

/// The work trees that are served.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WorkspacesDocument {
    /// The schema number.
    pub schema: u32,
    /// All of them.
    pub workspaces: Vec<WorkspaceDocument>,
}

/// Why a request was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The schema number.
    pub schema: u32,
    /// The reason, in a word that stays the same.
    pub reason: String,
    /// The kind of error.
    pub error_code: ErrorCode,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What the command of the same name exits with.
    pub exit_code: u8,
}
