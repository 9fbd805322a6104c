//! The documents of every command but `run`: the forms behind `--json`, and what the tables on a
//! terminal are made from.
//!
//! `docs/schema/` is generated from these types, a test keeps it in step. Within a schema number
//! fields are only ever added.
//!
//! # Limitations
//! Paths that are no UTF-8 stand in them as git quotes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coordinator::attempt::outcome::{OutcomeWord, RefsDocument};
use crate::tx::id::{AttemptNo, ExecutionId, Oid};
use crate::tx::path::RepoPath;
use crate::tx::phase::PhaseTime;
use crate::tx::record::Warning;
use crate::tx::state::{ChangeCounts, PostCheckRecord};
use crate::tx::tag::StateTag;
use crate::tx::verdict::Status;
use crate::tx::writer::{TurnResult, WriterRecord};

/// `list`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ListDocument {
    /// The schema number.
    pub schema: u32,
    /// The attempts, newest first.
    pub attempts: Vec<ListedAttempt>,
}

/// An attempt, in one line.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ListedAttempt {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Which try of it.
    pub attempt: AttemptNo,
    /// Where it is.
    pub state: StateTag,
    /// What came of it; `null` while it is on its way.
    pub outcome: Option<OutcomeWord>,
    /// Why.
    pub reason: Option<String>,
    /// The root of the work tree.
    pub workspace: String,
    /// The command, as a shell would take it.
    pub command: String,
    /// When it was opened.
    pub started_at: String,
    /// When its state last changed.
    pub updated_at: String,
    /// When it was settled.
    pub settled_at: Option<String>,
    /// Whether its coordinator lives.
    pub running: bool,
}

/// `show`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ShowDocument {
    /// The schema number.
    pub schema: u32,
    /// The execution.
    pub execution_id: ExecutionId,
    /// What stands in its row.
    pub execution_status: Option<Status>,
    /// The error that stands in its row.
    pub error: Option<String>,
    /// The attempt that may write a terminal into its row.
    #[serde(default)]
    pub current_attempt: Option<AttemptNo>,
    /// The attempt that a SUCCESS in its row names.
    #[serde(default)]
    pub success_attempt: Option<AttemptNo>,
    /// Its attempts, oldest first.
    pub attempts: Vec<ShownAttempt>,
}

/// An attempt, whole.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ShownAttempt {
    /// Which try of the execution.
    pub attempt: AttemptNo,
    /// Where it is.
    pub state: StateTag,
    /// What came of it; `null` while it is on its way.
    pub outcome: Option<OutcomeWord>,
    /// The root of the work tree.
    pub workspace: String,
    /// The branch; `HEAD` where it is detached.
    pub branch: String,
    /// The command, as a shell would take it.
    pub command: String,
    /// The commit that it started from.
    pub base: Oid,
    /// The commit that stands for what the turn did.
    pub candidate: Option<Oid>,
    /// How many paths differ from the base.
    pub changes: Option<ChangeCounts>,
    /// Why it went where it went.
    pub reason: Option<String>,
    /// More about the reason.
    pub detail: Option<String>,
    /// The state in which it was quarantined.
    pub held: Option<StateTag>,
    /// The processes that may be writing, by the last record of them.
    pub writer: Option<WriterRecord>,
    /// How the turn ended.
    pub turn: Option<TurnResult>,
    /// What the post-check said.
    pub post_check: Option<PostCheckRecord>,
    /// Which refs keep what.
    pub refs: RefsDocument,
    /// Where somebody else's bytes were found.
    pub drift: Vec<RepoPath>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
    /// Where the time went, once it is at an end.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// When it was opened.
    pub started_at: String,
    /// When its state last changed.
    pub updated_at: String,
    /// When it was settled.
    pub settled_at: Option<String>,
    /// Whether its coordinator lives.
    pub running: bool,
    /// The commands that settle it, where it is quarantined.
    pub commands: Vec<String>,
    /// What has to be done before some of them are not refused.
    #[serde(default)]
    pub first: Vec<Step>,
    /// What is to be seen of it now, where it is quarantined.
    #[serde(default)]
    pub seen: Option<SeenDocument>,
    /// Why that could not be looked at.
    #[serde(default)]
    pub seen_error: Option<String>,
}

/// A command and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// To be typed.
    pub command: String,
    /// What it does.
    pub what: String,
}

/// What is to be seen of a quarantined attempt.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SeenDocument {
    /// Its processes.
    pub writer: SeenWriter,
    /// Its branch.
    pub branch: SeenBranch,
    /// Its tree; `null` where it could not be looked at.
    pub tree: Option<SeenTree>,
    /// Why it could not.
    pub tree_error: Option<String>,
}

/// Whether anybody of a turn may still write.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SeenWriter {
    /// `dead`, `alive` or `unproven`.
    pub state: String,
    /// Who lives, or why it cannot be told.
    pub detail: Option<String>,
}

/// Where the branch of an attempt stands.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SeenBranch {
    /// What HEAD is on: a branch, or a commit.
    pub head: String,
    /// Whether that is where the attempt began.
    pub head_is_on_it: bool,
    /// Where the branch stands.
    pub commit: Option<Oid>,
    /// What that is: `base`, `sealed` (where it was sealed), `candidate`, `past_candidate`,
    /// `past_base` (it descends from the base), `elsewhere` or `gone`.
    pub at: String,
}

/// What a tree holds, of the paths that the turn or anybody else changed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SeenTree {
    /// Whether there is a candidate to compare with.
    pub has_candidate: bool,
    /// Changed by the turn, and as in the base again.
    pub at_base: u64,
    /// As the turn left them.
    pub at_candidate: u64,
    /// Neither; without a candidate: all that differ from the base.
    pub neither: u64,
    /// The first of `at_base`.
    pub base_paths: Vec<RepoPath>,
    /// The first of `at_candidate`.
    pub candidate_paths: Vec<RepoPath>,
    /// The first of `neither`.
    pub neither_paths: Vec<RepoPath>,
}

/// `events`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventsDocument {
    /// The schema number.
    pub schema: u32,
    /// The execution.
    pub execution_id: ExecutionId,
    /// What was recorded, oldest first.
    pub events: Vec<EventDocument>,
}

/// One record of the journal.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventDocument {
    /// Its number; they grow.
    pub id: i64,
    /// When.
    pub at: String,
    /// The attempt; `null` for a refusal.
    pub attempt: Option<AttemptNo>,
    /// What happened.
    pub event: String,
    /// The state before.
    pub from: Option<String>,
    /// The state after.
    pub to: Option<String>,
    /// What was known of it.
    pub detail: serde_json::Value,
}

/// `status`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusDocument {
    /// The schema number.
    pub schema: u32,
    /// The root of the work tree.
    pub workspace: String,
    /// The branch; `HEAD` where it is detached; `null` where there is none.
    pub branch: Option<String>,
    /// Where it stands.
    pub head: Option<Oid>,
    /// The state directory.
    pub state_dir: String,
    /// The profile.
    pub profile: String,
    /// Whether a run, or a command that holds the workspace, is at work.
    pub busy: bool,
    /// Whether the next `run` would start.
    pub can_be_base: bool,
    /// Why it would not.
    pub refusals: Vec<RefusalDocument>,
    /// What is not settled here.
    pub unsettled: Vec<ListedAttempt>,
    /// The post-check that the next `run` would use.
    pub post_check: Option<String>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
}

impl StatusDocument {
    /// Whether an attempt is on its way that nobody is at: a crash left it, and `reconcile` settles it.
    pub fn is_left_by_a_crash(&self) -> bool {
        let on_its_way = |a: &ListedAttempt| {
            !a.running && !a.state.is_settled() && a.state != StateTag::Quarantined
        };
        !self.busy && self.unsettled.iter().any(on_its_way)
    }
}

/// Why a workspace cannot be a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusalDocument {
    /// A word that stays the same.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The paths that it is about.
    pub paths: Vec<RepoPath>,
}

/// `diff`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DiffDocument {
    /// The schema number.
    pub schema: u32,
    /// The execution.
    pub execution_id: ExecutionId,
    /// Which try of it.
    pub attempt: AttemptNo,
    /// The commit before.
    pub from: Oid,
    /// The commit after.
    pub to: Oid,
    /// The paths that differ.
    pub paths: Vec<DiffPath>,
}

/// A path that differs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DiffPath {
    /// Where.
    pub path: RepoPath,
    /// `added`, `modified` or `deleted`.
    pub change: String,
}

/// `restore`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RestoreDocument {
    /// The schema number.
    pub schema: u32,
    /// The execution.
    pub execution_id: ExecutionId,
    /// Which try of it.
    pub attempt: AttemptNo,
    /// The branch that was made.
    pub branch: String,
    /// The commit that it names.
    pub commit: Oid,
}

/// `cancel`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CancelDocument {
    /// The schema number.
    pub schema: u32,
    /// The execution.
    pub execution_id: ExecutionId,
    /// `won` or `lost`.
    pub verdict: String,
    /// What stands in its row.
    pub execution_status: Option<Status>,
    /// The state of its attempt, as it was found; `null` where it has none.
    pub state: Option<StateTag>,
    /// `continued` where its run was suspended (Ctrl-Z, SIGSTOP) and was continued, to end its
    /// command; `pid N` where it is suspended and could not be continued from here: until somebody
    /// does, nothing is ended. Else `null`.
    pub suspended: Option<String>,
}

/// `post-check`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PostCheckDocument {
    /// The schema number.
    pub schema: u32,
    /// The root of the work tree.
    pub workspace: String,
    /// What would be decided: `commit`, `roll_back` or `error`; `interrupted` where it was ended by
    /// a signal to worktx and said nothing.
    pub decision: String,
    /// Which one ran, or cannot run.
    pub origin: Option<String>,
    /// Why it cannot run.
    pub why: Option<String>,
    /// What it saw: `tree`, the live tree, or `checkout`, a clean checkout of HEAD.
    pub view: String,
    /// What it said.
    pub post_check: PostCheckRecord,
}

/// `reconcile`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReconcileDocument {
    /// The schema number.
    pub schema: u32,
    /// How many landed.
    pub rolled_forward: u32,
    /// How many were undone.
    pub rolled_back: u32,
    /// How many are held for an operator.
    pub quarantined: u32,
    /// How many a living owner drives, or could not be finished.
    pub left: u32,
    /// Each of them.
    pub attempts: Vec<ReconciledAttempt>,
    /// What a person should know.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// An attempt that reconcile looked at.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReconciledAttempt {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Which try of it.
    pub attempt: AttemptNo,
    /// The root of the work tree.
    pub workspace: String,
    /// Where it was.
    pub from: StateTag,
    /// Where it is.
    pub state: StateTag,
    /// `rolled_forward`, `rolled_back`, `quarantined` or `left`.
    pub result: String,
    /// Why.
    pub reason: Option<String>,
    /// More about the reason.
    pub detail: Option<String>,
}

/// `resolve`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResolveDocument {
    /// The schema number.
    pub schema: u32,
    /// Each attempt that was decided about.
    pub attempts: Vec<ResolvedAttempt>,
    /// What a person should know.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// An attempt that an operator decided about.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedAttempt {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Which try of it.
    pub attempt: AttemptNo,
    /// `adopt`, `discard` or `keep`.
    pub decision: String,
    /// Whether it is settled now.
    pub settled: bool,
    /// Where it is.
    pub state: StateTag,
    /// What stands in the row.
    pub execution_status: Option<Status>,
    /// What the gate said: `won` or `lost`; `null` where it was not asked.
    #[serde(default)]
    pub verdict: Option<String>,
    /// Why it could not be settled.
    pub detail: Option<String>,
    /// Which refs keep what.
    pub refs: RefsDocument,
}

/// `gc`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GcDocument {
    /// The schema number.
    pub schema: u32,
    /// Nothing was removed.
    pub dry_run: bool,
    /// The attempts that went, as `<execution>/<attempt>`.
    pub removed: Vec<String>,
    /// How many refs went with them.
    pub refs_removed: u64,
    /// How many attempts stay.
    pub kept: u64,
    /// How many of those are not settled.
    pub unsettled: u64,
}

/// `init`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InitDocument {
    /// The schema number.
    pub schema: u32,
    /// The root of the work tree.
    pub workspace: String,
    /// The state directory.
    pub state_dir: String,
    /// `installed`, `updated`, `present`, `removed` or `absent`.
    pub guard: String,
    /// The hook, where there is one.
    pub hook: Option<String>,
}

/// `doctor`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DoctorDocument {
    /// The schema number.
    pub schema: u32,
    /// Nothing is in the way.
    pub healthy: bool,
    /// Each thing that was looked at.
    pub checks: Vec<DoctorCheck>,
}

/// One thing that `doctor` looks at.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DoctorCheck {
    /// What.
    pub name: String,
    /// `ok`, `warning` or `problem`.
    pub level: String,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}
