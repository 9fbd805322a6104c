//! The states of an attempt, the events that lead from one to the next, and the effect that each
//! state calls for.
//!
//! Order rules: *record, then do*. An effect runs only from a recorded state, may be run again,
//! and looks at the world first. [`TxState::next_effect`] is a function of the state alone, so
//! that resuming after a crash and carrying on are the same code.
//!
//! # Limitations
//! What a crash leaves behind is not decided here: [`super::recovery`] does that from observations.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cause::{Cause, QuarantineReason};
use super::id::Oid;
use super::post_check::PostCheckOutcome;
use super::tag::StateTag;
use super::verdict::Status;
use super::writer::{ProvenDead, TurnResult, WriterRecord};

/// How many paths a turn changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeCounts {
    /// Paths that the base does not have.
    pub added: u64,
    /// Paths with other bytes, type or mode.
    pub modified: u64,
    /// Paths that are gone.
    pub deleted: u64,
}

impl ChangeCounts {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.added + self.modified + self.deleted
    }
}

/// What the turn did, pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The commit that stands for it; the branch's own where there is nothing to add.
    pub candidate: Oid,
    /// Its tree.
    pub tree: Oid,
    /// Where the branch stood when it was sealed: the base, or the turn's own last commit.
    pub sealed_head: Oid,
    /// How many paths differ from the base.
    pub changes: ChangeCounts,
    /// How the turn ended.
    pub turn: TurnResult,
    /// Nobody writes any more.
    pub death: ProvenDead,
    /// An operator's `resolve --adopt` made it: nothing of it is undone by itself.
    pub adopted: bool,
}

impl Seal {
    /// Whether promotion has a commit to move the branch to.
    pub fn has_new_commit(&self) -> bool {
        self.candidate != self.sealed_head
    }
}

/// A post-check's run, as the outcome document shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PostCheckRecord {
    /// What came of it.
    pub outcome: PostCheckOutcome,
    /// What it returned, if it returned.
    pub exit_code: Option<i32>,
    /// How long it ran, in milliseconds.
    pub duration_ms: Option<u64>,
    /// The digest of what was captured.
    pub sha256: Option<String>,
    /// The last of what it said, escapes neutralised, at most 32,000 bytes.
    pub output: Option<String>,
}

impl PostCheckRecord {
    /// The record of no post-check.
    pub const fn absent() -> Self {
        Self {
            outcome: PostCheckOutcome::Absent,
            exit_code: None,
            duration_ms: None,
            sha256: None,
            output: None,
        }
    }
}

/// An undo, with everything that it takes to run it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Why.
    pub cause: Cause,
    /// Nobody writes any more.
    pub death: ProvenDead,
    /// How the turn ended.
    pub turn: TurnResult,
    /// What was sealed before it came to this.
    pub seal: Option<Seal>,
    /// What the post-check said before it came to this.
    pub post_check: Option<PostCheckRecord>,
    /// Where the turn's own commits moved the branch to; the undo moves it back to the base.
    pub tip: Option<Oid>,
}

/// Whether the gate has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictState {
    /// Asked, or about to be; not known to be ours.
    Pending,
    /// Ours. This is the commit point.
    Won,
}

/// What the workspace looked like when an attempt was quarantined: tells whether somebody has
/// been at it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

/// The durable state of one attempt. Data stands in the variant that needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TxState {
    /// Recorded. The turn runs once `turn` is there.
    Open {
        /// The turn's processes, waiting or running.
        turn: Option<WriterRecord>,
    },
    /// The candidate is built; nothing has decided over it.
    Sealed {
        /// It.
        seal: Seal,
    },
    /// The post-check runs on it.
    Validating {
        /// The candidate.
        seal: Seal,
        /// Which run of the post-check this is, from 1.
        run: u32,
        /// The post-check's processes.
        writer: WriterRecord,
    },
    /// The gate is being asked, or has answered.
    Committing {
        /// The candidate.
        seal: Seal,
        /// What the post-check said.
        post_check: PostCheckRecord,
        /// What the gate said.
        verdict: VerdictState,
    },
    /// Branch and index hold the candidate.
    CommittedFs {
        /// The candidate.
        seal: Seal,
        /// What the post-check said.
        post_check: PostCheckRecord,
    },
    /// Settled: it landed.
    Done {
        /// The candidate.
        seal: Seal,
        /// What the post-check said.
        post_check: PostCheckRecord,
    },
    /// The scope is on its way back to the base.
    RollingBack {
        /// Everything that it takes.
        undo: Undo,
    },
    /// Settled: the scope is what it was.
    RolledBack {
        /// What was undone, and why; `None` where nothing had started.
        undo: Option<Undo>,
    },
    /// Settled: an operator keeps the tree as it is.
    Released {
        /// What it was quarantined for.
        reason: QuarantineReason,
    },
    /// Nothing is touched until an operator decides.
    Quarantined {
        /// The state that it was in.
        held: Box<TxState>,
        /// Why.
        reason: QuarantineReason,
        /// What the workspace looked like.
        fingerprint: Option<Fingerprint>,
    },
}

/// What happened to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxEvent {
    /// The turn's processes are recorded; they are let go after this.
    TurnStarted(WriterRecord),
    /// It never started.
    Abandoned,
    /// The turn returned 0 and is proven dead; the candidate is built.
    Sealed(Seal),
    /// The turn did not come to a seal.
    Failed(Undo),
    /// The post-check's processes are recorded; they are let go after this.
    PostCheckStarted(WriterRecord),
    /// The post-check passed, or there is none to ask.
    Passed(PostCheckRecord),
    /// The post-check, a policy, a cancel or the time said no, before the gate.
    Rejected {
        /// Which of them.
        cause: Cause,
        /// What the post-check said, if it was asked.
        post_check: Option<PostCheckRecord>,
    },
    /// The gate said won.
    VerdictWon,
    /// The gate said lost.
    VerdictLost {
        /// The terminal that stands.
        standing: Option<Status>,
    },
    /// Branch and index hold the candidate, durably.
    Promoted,
    /// The effects of a success are done.
    Finished,
    /// The scope is the base again, durably.
    Undone,
    /// Nobody can go on.
    Quarantined {
        /// Why.
        reason: QuarantineReason,
        /// What the workspace looks like.
        fingerprint: Option<Fingerprint>,
    },
    /// The way is free for what was held past the commit point.
    Resumed,
    /// An operator wants the work; it was sealed as it stands.
    Adopted(Seal),
    /// An operator, or the same execution coming again, wants it undone.
    TakenBack {
        /// Which of them.
        cause: Cause,
        /// Nobody writes any more.
        death: ProvenDead,
        /// Where the turn's own commits moved the branch to, if they did.
        tip: Option<Oid>,
    },
    /// An operator keeps the tree as it is.
    Released,
}

impl TxEvent {
    /// The word in the event table.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TurnStarted(_) => "turn_started",
            Self::Abandoned => "abandoned",
            Self::Sealed(_) => "sealed",
            Self::Failed(_) => "failed",
            Self::PostCheckStarted(_) => "post_check_started",
            Self::Passed(_) => "passed",
            Self::Rejected { .. } => "rejected",
            Self::VerdictWon => "verdict_won",
            Self::VerdictLost { .. } => "verdict_lost",
            Self::Promoted => "promoted",
            Self::Finished => "finished",
            Self::Undone => "undone",
            Self::Quarantined { .. } => "quarantined",
            Self::Resumed => "resumed",
            Self::Adopted(_) => "adopted",
            Self::TakenBack { .. } => "taken_back",
            Self::Released => "released",
        }
    }
}

/// What the coordinator does next. Every effect may be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Pin the base, bring up the turn's processes.
    Start,
    /// Let the turn run to its end.
    RunTurn,
    /// Pin the candidate, run the post-check on it.
    Validate,
    /// Take the locks, compare with the seal, ask the gate.
    AskGate,
    /// Move branch and index to the candidate.
    Promote,
    /// The effects of a success; the locks' last trace goes.
    Finish,
    /// Pin what stands there, restore the base, write the terminal.
    Undo,
}

/// An event that a state cannot take: a bug, never a user's doing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attempt in state {from} cannot take the event {event}")]
pub struct IllegalTransition {
    /// The state.
    pub from: StateTag,
    /// The event.
    pub event: &'static str,
}

impl TxState {
    /// The word for the `state` column.
    pub const fn tag(&self) -> StateTag {
        match self {
            Self::Open { .. } => StateTag::Open,
            Self::Sealed { .. } => StateTag::Sealed,
            Self::Validating { .. } => StateTag::Validating,
            Self::Committing { .. } => StateTag::Committing,
            Self::CommittedFs { .. } => StateTag::CommittedFs,
            Self::Done { .. } => StateTag::Done,
            Self::RollingBack { .. } => StateTag::RollingBack,
            Self::RolledBack { .. } => StateTag::RolledBack,
            Self::Released { .. } => StateTag::Released,
            Self::Quarantined { .. } => StateTag::Quarantined,
        }
    }

    /// Whether the gate was won: from here the only way is forward.
    pub fn is_past_commit_point(&self) -> bool {
        match self {
            Self::Committing { verdict, .. } => *verdict == VerdictState::Won,
            Self::CommittedFs { .. } | Self::Done { .. } => true,
            Self::Quarantined { held, .. } => held.is_past_commit_point(),
            Self::Open { .. }
            | Self::Sealed { .. }
            | Self::Validating { .. }
            | Self::RollingBack { .. }
            | Self::RolledBack { .. }
            | Self::Released { .. } => false,
        }
    }

    /// Whether an undo has begun: SUCCESS is never sent after that.
    pub fn has_begun_undo(&self) -> bool {
        match self {
            Self::RollingBack { .. } | Self::RolledBack { .. } => true,
            Self::Quarantined { held, .. } => held.has_begun_undo(),
            _ => false,
        }
    }

    /// The seal, in whatever state it is carried.
    pub fn seal(&self) -> Option<&Seal> {
        match self {
            Self::Sealed { seal }
            | Self::Validating { seal, .. }
            | Self::Committing { seal, .. }
            | Self::CommittedFs { seal, .. }
            | Self::Done { seal, .. } => Some(seal),
            Self::RollingBack { undo } | Self::RolledBack { undo: Some(undo) } => {
                undo.seal.as_ref()
            }
            Self::Quarantined { held, .. } => held.seal(),
            Self::Open { .. } | Self::RolledBack { undo: None } | Self::Released { .. } => None,
        }
    }

    /// The post-check's record, in whatever state it is carried.
    pub fn post_check(&self) -> Option<&PostCheckRecord> {
        match self {
            Self::Committing { post_check, .. }
            | Self::CommittedFs { post_check, .. }
            | Self::Done { post_check, .. } => Some(post_check),
            Self::RollingBack { undo } | Self::RolledBack { undo: Some(undo) } => {
                undo.post_check.as_ref()
            }
            Self::Quarantined { held, .. } => held.post_check(),
            _ => None,
        }
    }

    /// How the turn ended, where it did.
    pub fn turn(&self) -> Option<&TurnResult> {
        match self {
            Self::RollingBack { undo } | Self::RolledBack { undo: Some(undo) } => Some(&undo.turn),
            Self::Quarantined { held, .. } => held.turn(),
            other => other.seal().map(|seal| &seal.turn),
        }
    }

    /// The processes that may be writing, by the last record of them.
    pub fn writer(&self) -> Option<&WriterRecord> {
        match self {
            Self::Open { turn } => turn.as_ref(),
            Self::Validating { writer, .. } => Some(writer),
            Self::Quarantined { held, .. } => held.writer(),
            _ => None,
        }
    }

    /// The whole machine. Pure: the same input, the same answer.
    ///
    /// # Errors
    /// [`IllegalTransition`] where the state cannot take the event; nothing has changed then.
    pub fn apply(self, event: TxEvent) -> Result<Self, IllegalTransition> {
        use TxEvent as E;
        use TxState as S;
        let illegal = IllegalTransition { from: self.tag(), event: event.name() };
        Ok(match (self, event) {
            // The way forward.
            (S::Open { turn: None }, E::TurnStarted(writer)) => S::Open { turn: Some(writer) },
            (S::Open { turn: None }, E::Abandoned) => S::RolledBack { undo: None },
            (S::Open { turn: Some(_) }, E::Sealed(seal)) if !seal.adopted => S::Sealed { seal },
            (S::Sealed { seal }, E::PostCheckStarted(writer)) => {
                S::Validating { seal, run: 1, writer }
            }
            // Entered again after a crash: the captured post-check runs again.
            (S::Validating { seal, run, .. }, E::PostCheckStarted(writer)) => {
                S::Validating { seal, run: run + 1, writer }
            }
            (S::Sealed { seal } | S::Validating { seal, .. }, E::Passed(post_check)) => {
                S::Committing { seal, post_check, verdict: VerdictState::Pending }
            }
            // Winning twice is one win: the compare-and-set is replayed after a crash.
            (S::Committing { seal, post_check, .. }, E::VerdictWon) => {
                S::Committing { seal, post_check, verdict: VerdictState::Won }
            }
            (S::Committing { seal, post_check, verdict: VerdictState::Won }, E::Promoted) => {
                S::CommittedFs { seal, post_check }
            }
            (S::CommittedFs { seal, post_check }, E::Finished) => S::Done { seal, post_check },

            // The way back: only before the commit point, and only with proof of death.
            (S::Open { turn: Some(_) }, E::Failed(undo)) => S::RollingBack { undo },
            (
                S::Sealed { seal } | S::Validating { seal, .. },
                E::Rejected { cause, post_check },
            ) if !seal.adopted => S::RollingBack { undo: seal.undo(cause, post_check) },
            // The gate was not asked yet: who waits for git's locks may be told to end.
            (
                S::Committing { seal, post_check, verdict: VerdictState::Pending },
                E::Rejected { cause, .. },
            ) if !seal.adopted => S::RollingBack { undo: seal.undo(cause, Some(post_check)) },
            (
                S::Committing { seal, post_check, verdict: VerdictState::Pending },
                E::VerdictLost { standing },
            ) if !seal.adopted => S::RollingBack {
                undo: seal.undo(Cause::VerdictLost { standing }, Some(post_check)),
            },
            (S::RollingBack { undo }, E::Undone) => S::RolledBack { undo: Some(undo) },

            // Quarantine: in from everything unsettled, out by an operator, by the way becoming
            // free past the commit point, or by the same execution coming again.
            (S::Quarantined { held, .. }, E::Quarantined { reason, fingerprint }) => {
                S::Quarantined { held, reason, fingerprint }
            }
            (state, E::Quarantined { reason, fingerprint }) if !state.tag().is_settled() => {
                S::Quarantined { held: Box::new(state), reason, fingerprint }
            }
            (S::Quarantined { held, .. }, E::Resumed) if held.is_past_commit_point() => *held,
            (S::Quarantined { held, .. }, E::Adopted(seal))
                if seal.adopted && !held.is_past_commit_point() && !held.has_begun_undo() =>
            {
                S::Sealed { seal }
            }
            (S::Quarantined { held, .. }, E::TakenBack { cause, death, tip })
                if !held.is_past_commit_point() =>
            {
                S::RollingBack { undo: held.taken_back(cause, death, tip) }
            }
            (S::Quarantined { held, reason, .. }, E::Released) if !held.is_past_commit_point() => {
                S::Released { reason }
            }
            _ => return Err(illegal),
        })
    }

    /// What to do next: a function of the state alone.
    ///
    /// [`Effect::RunTurn`] is only for who brought the turn up: after a crash the recovery table
    /// decides over a started turn, since nobody can take it up again.
    pub const fn next_effect(&self) -> Option<Effect> {
        match self {
            Self::Open { turn: None } => Some(Effect::Start),
            Self::Open { turn: Some(_) } => Some(Effect::RunTurn),
            Self::Sealed { .. } | Self::Validating { .. } => Some(Effect::Validate),
            Self::Committing { verdict: VerdictState::Pending, .. } => Some(Effect::AskGate),
            Self::Committing { verdict: VerdictState::Won, .. } => Some(Effect::Promote),
            Self::CommittedFs { .. } => Some(Effect::Finish),
            Self::RollingBack { .. } => Some(Effect::Undo),
            Self::Done { .. }
            | Self::RolledBack { .. }
            | Self::Released { .. }
            | Self::Quarantined { .. } => None,
        }
    }

    fn taken_back(self, cause: Cause, death: ProvenDead, tip: Option<Oid>) -> Undo {
        let turn = self.turn().cloned().unwrap_or_default();
        let post_check = self.post_check().cloned();
        let seal = self.seal().cloned();
        Undo { cause, death, turn, seal, post_check, tip }
    }
}

impl Seal {
    fn undo(self, cause: Cause, post_check: Option<PostCheckRecord>) -> Undo {
        Undo {
            cause,
            death: self.death.clone(),
            turn: self.turn.clone(),
            tip: Some(self.sealed_head),
            seal: Some(self),
            post_check,
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
