//! The loop that drives one attempt: next effect, perform, record.
//!
//! Order rule: *record, then do*. An effect runs from the state that the ledger holds; what it
//! brings about is recorded before the next one begins. Resuming after a crash calls the same
//! loop.
//!
//! # Limitations
//! One attempt, one thread: every change of a file is made by the thread that drives.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::coordinator::attempt::laps::Laps;
use crate::coordinator::attempt::outcome::Outcome;
use crate::coordinator::error::Failure;
use crate::coordinator::report::view::SealView;
use crate::coordinator::session::Session;
use crate::coordinator::spec::AttemptSpec;
use crate::gate::EmbeddedGate;
use crate::git::guarded;
use crate::git::manifest::snapshot::Snapshot;
use crate::git::refs::RefError;
use crate::git::scan::rules::BaseRules;
use crate::git::scan::{Scan, ScanError};
use crate::journal::{Change, LedgerError};
use crate::process::{self, Leaving, Prepared, Request, Signals, Waiting};
use crate::tx::cause::QuarantineReason;
use crate::tx::id::{AttemptKey, Oid, Pin, RefName};
use crate::tx::phase::Phase;
use crate::tx::record::AttemptRecord;
use crate::tx::settings::OnDrift;
use crate::tx::state::{Effect, TxEvent, TxState};
use crate::tx::verdict::{Row, Status};

/// How soon the gate is asked again that could not answer.
pub(in crate::coordinator) const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Why an effect did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// An operator decides.
    Quarantine(QuarantineReason),
    /// Nothing can be recorded, or the machine fails: the state stays, reconcile goes on later.
    Failure(Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failure(error.into())
    }
}

impl Stop {
    /// What was done could not be finished: the candidate, or the pin of what is to be undone.
    pub fn seal_blocked(error: &dyn std::error::Error) -> Self {
        Self::Quarantine(QuarantineReason::SealBlocked { why: chain(error) })
    }

    /// The git directory or the workspace is not what it was.
    pub fn damaged(why: impl Into<String>) -> Self {
        Self::Quarantine(QuarantineReason::WorkspaceDamaged { why: why.into() })
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// What only who started the turn has.
#[derive(Debug, Default)]
pub struct Live {
    /// The turn's processes, waiting at their pipe.
    pub waiting: Option<Waiting>,
    /// The command to run.
    pub command: Option<crate::process::Command>,
    /// A supervisor that waits to be told of it.
    pub prepared: Option<Prepared>,
    /// Supervisors of what is over, waited for at the end.
    pub leaving: Vec<Leaving>,
    /// The bound on it.
    pub timeout: Option<Duration>,
    /// The manifest as it was at open.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The rules of that.
    pub base_rules: Option<BaseRules>,
    /// The git directory's files as they were at open.
    pub git_directory: Option<Arc<guarded::Snapshot>>,
    /// The git directory's files after the turn, where they were read while the undo was recorded.
    pub git_now: Option<guarded::Snapshot>,
    /// What differs from the base, where it was looked at while the undo was recorded.
    pub looked: Option<Result<Scan, ScanError>>,
    /// What stands in the scope since the seal.
    pub sealed: Option<SealView>,
    /// The whole scope was compared with the seal, and since then nothing of this attempt ran.
    pub scope_seen: bool,
    /// It was begun by another process: a signal to this one says nothing of the attempt.
    pub taken_up: bool,
    /// Since the seal another program ran, of this attempt or of anybody: what was made durable may
    /// be gone.
    pub others_ran: bool,
    /// The turn's own last commit, where this process made it durable with all that it needs.
    pub durable_tip: Option<Oid>,
    /// The verdict, where this process won it.
    pub won: Option<crate::tx::verdict::Won>,
    /// Whether promotion gives the index another meaning.
    pub index_changes: Option<bool>,
    /// The index that promotion puts in place; it agrees with the candidate's tree.
    pub new_index: Option<crate::coordinator::attempt::newindex::NewIndex>,
    /// A look at the bytes of the index that the commit will be made of.
    pub index_check: Option<crate::coordinator::attempt::newindex::IndexCheck>,
    /// The index that was put in place gets its second name.
    pub keeping: Option<crate::coordinator::attempt::baseindex::Keeping>,
    /// git's locks, held across the gate.
    pub held: Option<crate::git::refs::locks::HeldLocks>,
    /// Where the time goes.
    pub laps: Laps,
    /// The environment that `run` was started with.
    pub environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
}

impl Live {
    /// Nothing but this process's environment: for who takes an attempt up.
    pub fn with_environment() -> Self {
        let environment = crate::coordinator::context::environment();
        Self { environment, taken_up: true, others_ran: true, ..Self::default() }
    }
}

/// Drives one attempt.
pub struct Driver<'s> {
    /// The workspace.
    pub session: &'s mut Session,
    /// Which attempt.
    pub key: AttemptKey,
    /// Its facts.
    pub spec: AttemptSpec,
    /// Its record, as the ledger has it.
    pub record: AttemptRecord,
    /// The ledger's revision of it.
    pub rev: u64,
    /// What is not in the ledger.
    pub live: Live,
    /// Requests to end.
    pub signals: Signals,
}

impl Driver<'_> {
    /// Drives the attempt until nothing is left to do by itself.
    ///
    /// # Errors
    /// [`Failure`] where the ledger cannot be written or the machine fails: the attempt stays as
    /// it is recorded, and a later reconcile goes on with it.
    pub fn drive(&mut self) -> Result<(), Failure> {
        // What was begun before is no part of the span.
        self.live.laps.rest();
        let (execution, attempt) = (&self.key.execution, self.key.attempt);
        let _span = tracing::info_span!("attempt", %execution, %attempt).entered();
        let driven = self.drive_on();
        // Within the span of the attempt.
        self.live.laps.rest();
        driven
    }

    fn drive_on(&mut self) -> Result<(), Failure> {
        while let Some(effect) = self.record.state.next_effect() {
            self.live.laps.enter(match effect {
                Effect::Start => Phase::Start,
                Effect::RunTurn => Phase::Turn,
                Effect::Validate => Phase::PostCheck,
                Effect::AskGate => Phase::Gate,
                Effect::Promote => Phase::Promote,
                Effect::Finish => Phase::Finish,
                Effect::Undo => Phase::Discard,
            });
            let checked = self.session.verify().map_err(|why| self.lost(&why));
            let done = checked.and_then(|()| match effect {
                Effect::Start => self.start_turn(),
                Effect::RunTurn => self.run_turn(),
                Effect::Validate => self.validate(),
                Effect::AskGate => self.ask_gate(),
                Effect::Promote => self.promote(),
                Effect::Finish => self.finish(),
                Effect::Undo => self.undo(),
            });
            match done {
                Ok(()) => {}
                Err(Stop::Quarantine(reason)) => self.quarantine(reason)?,
                Err(Stop::Failure(failure))
                    if is_for_good(&failure)
                        && !matches!(self.record.state, TxState::Open { turn: None }) =>
                {
                    let why = chain(&failure);
                    self.quarantine(QuarantineReason::WorkspaceDamaged { why })?;
                }
                Err(Stop::Failure(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    pub(in crate::coordinator) fn lost(&self, why: &str) -> Stop {
        match self.session.lock.verify() {
            Err(_) => Stop::Quarantine(QuarantineReason::LockLost),
            Ok(()) => Stop::damaged(why),
        }
    }

    /// Records an event, by compare-and-set.
    pub fn apply(&mut self, event: TxEvent, detail: &Value) -> Result<(), Failure> {
        let name = event.name();
        let expected = self.record.state.tag();
        let record = self.record.with(event).map_err(Failure::bug)?;
        self.write(&record, expected, name, detail)?;
        self.record = record;
        Ok(())
    }

    /// Records pins, warnings and drift without a change of state.
    pub fn save(&mut self, event: &str, detail: &Value) -> Result<(), Failure> {
        let record = self.record.clone();
        self.write(&record, record.state.tag(), event, detail)
    }

    /// Whether the ledger has a record as the next one after what this driver knows: an answer that
    /// was not heard stands there all the same.
    pub(super) fn is_recorded(&self, record: &AttemptRecord) -> Result<bool, Failure> {
        let there = self.session.ledger.attempt(&self.key)?;
        let Some(there) = there.filter(|there| there.rev == self.rev + 1) else { return Ok(false) };
        Ok(there.record()? == *record)
    }

    fn write(
        &mut self,
        record: &AttemptRecord,
        expected: crate::tx::tag::StateTag,
        event: &str,
        detail: &Value,
    ) -> Result<(), Failure> {
        let outcome = self.outcome_value(record, None);
        let change = Change {
            key: &self.key,
            expected,
            rev: self.rev,
            record,
            event,
            detail,
            outcome: outcome.as_ref(),
        };
        self.rev = self.session.ledger.transition(&change)?;
        tracing::info!(event, state = record.state.tag().as_str(), "recorded");
        Ok(())
    }

    /// The outcome document, where the record is at an end.
    pub fn outcome_value(&self, record: &AttemptRecord, status: Option<Status>) -> Option<Value> {
        serde_json::to_value(self.outcome(record, status)?).ok()
    }

    /// The outcome, where the record is at an end.
    pub fn outcome(&self, record: &AttemptRecord, status: Option<Status>) -> Option<Outcome> {
        let mut outcome = Outcome::of(self.spec.facts(&self.key), record, status)?;
        outcome.phases = self.live.laps.so_far();
        Some(outcome)
    }

    /// Records that an operator decides. Where the ledger itself is gone, there is nothing to
    /// record it in: whoever waits for the outcome is told all the same.
    pub fn quarantine(&mut self, reason: QuarantineReason) -> Result<(), Failure> {
        let fingerprint =
            crate::coordinator::settle::observe::fingerprint(self.session, &self.spec).ok();
        let detail = json!({ "reason": reason.as_str(), "detail": reason.detail() });
        let event = TxEvent::Quarantined { reason, fingerprint };
        match self.apply(event.clone(), &detail) {
            Err(Failure::Ledger(error)) if is_lost(&error) => {
                tracing::warn!(%error, "the quarantine could not be recorded");
                self.record
                    .warn("not_recorded", format!("this could not be recorded: {}", chain(&error)));
                self.record.state = self.record.state.clone().apply(event).map_err(Failure::bug)?;
                Ok(())
            }
            done => done,
        }
    }

    /// Makes the ref of a pin that the ledger has.
    pub fn make_ref(&self, pin: &Pin) -> Result<(), crate::git::refs::RefError> {
        self.session.refs.pin(&self.spec.settings.ref_prefix, pin)
    }

    /// The ref of the attempt's branch: HEAD itself where it is detached.
    pub fn branch_ref(&self) -> RefName {
        self.spec.branch.clone().unwrap_or_else(|| RefName("HEAD".to_owned()))
    }

    /// How long a lock or an answer is waited for.
    pub const fn bound(&self) -> Duration {
        Duration::from_millis(self.spec.settings.bound_ms)
    }

    /// Whether the machine was started anew since the attempt began.
    pub fn crossed_boot(&self) -> bool {
        self.spec.boot_id != process::this_host().boot_id
    }

    /// What is done with bytes that are nobody's of the attempt. After another boot they may be
    /// what a power loss left of the turn's, which are not synced: they are not left in its place.
    pub fn on_drift(&self) -> OnDrift {
        match self.spec.settings.on_drift {
            OnDrift::Leave if self.crossed_boot() => OnDrift::Restore,
            set => set,
        }
    }

    /// The time by which everything up to the gate must be done.
    pub fn settle_by(&self) -> Option<SystemTime> {
        time_of(self.spec.settle_by.as_deref())
    }

    /// Whether that time has passed.
    pub fn is_past_settle_by(&self) -> bool {
        self.settle_by().is_some_and(|time| SystemTime::now() >= time)
    }

    /// The row of the execution.
    pub fn row(&mut self) -> Result<Option<Row>, Failure> {
        row(self.session, &self.key)
    }

    /// A request to end that came between two phases: a signal, or a row that says cancelled.
    pub fn request(&mut self) -> Option<Request> {
        if let Some(request) = self.signals.pending() {
            return Some(request);
        }
        match self.row() {
            Ok(Some(row)) if row.status == Status::Cancelled => Some(Request::Cancel),
            _ => None,
        }
    }

    /// The state.
    pub const fn state(&self) -> &TxState {
        &self.record.state
    }
}

/// A time as it was given, RFC 3339.
pub fn time_of(text: Option<&str>) -> Option<SystemTime> {
    text?.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

/// The row of an execution.
pub fn row(session: &mut Session, key: &AttemptKey) -> Result<Option<Row>, Failure> {
    use crate::gate::Gate as _;
    let db = session.ledger.writable()?;
    EmbeddedGate::new(db).row(&key.execution).map_err(Failure::from)
}

/// Whether an error of the ledger says that there is none any more to record anything in.
const fn is_lost(error: &LedgerError) -> bool {
    matches!(
        error,
        LedgerError::Moved { .. } | LedgerError::NotALedger { .. } | LedgerError::Corrupt { .. }
    )
}

/// Whether a failure would be there again each time: the ledger or objects are gone.
pub(in crate::coordinator) fn is_for_good(failure: &Failure) -> bool {
    match failure {
        Failure::Ledger(error) => is_lost(error),
        Failure::Store(error) => error.object().is_some(),
        Failure::Dir(error) | Failure::Ref(RefError::Dir(error)) => error.is_irregular(),
        _ => false,
    }
}

/// Whether an error of the ledger says that somebody else has gone on with the attempt.
pub const fn is_stale(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Stale { .. })
}
