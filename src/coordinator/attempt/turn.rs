//! The effects around the turn: pin the base, bring the turn up, let it run, judge how it ended.
//!
//! Order rule: the base's pin stands in the ledger before its ref is made; the turn's processes
//! stand in the ledger before they are let go.
//!
//! # Limitations
//! After a crash nobody can take a turn up again: the recovery table decides over it.

use serde_json::json;
use std::os::fd::AsFd as _;
use std::time::Duration;

use crate::base::fault::{self, Point};
use crate::coordinator::attempt::drive::{Driver, Stop};
use crate::coordinator::error::Failure;
use crate::git::refs::RefError;
use crate::git::refs::reflog::{self, Moves};
use crate::process::{self, Bounds, Request, Requests, TurnOver, Waiting};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::Oid;
use crate::tx::state::{TxEvent, Undo};
use crate::tx::verdict::Status;
use crate::tx::writer::{EndedBy, ProvenDead, TurnResult};

impl Driver<'_> {
    pub(super) fn start_turn(&mut self) -> Result<(), Stop> {
        fault::point(Point::OpenRecorded);
        let Some(command) = self.live.command.clone() else {
            return Err(Failure::bug("a turn without a command").into());
        };
        let own = self.session.place.attempt(&self.key);
        let lock = self.session.lock.share().map_err(Failure::io("sharing the lock"))?;
        let prepared = self.live.prepared.take();
        let starting = process::begin(prepared, &command, &own.join("turn"), &[lock.as_fd()]);
        // The supervisor brings its leader up while the base is pinned.
        if let Some(pin) = self.record.pins.base.clone()
            && let Err(error) = self.make_ref(&pin)
        {
            if let Ok(starting) = starting {
                starting.give_up();
                process::sweep_cgroups(&own);
            }
            return Err(error.into());
        }
        fault::point(Point::BasePinned);
        match starting.and_then(process::Starting::wait) {
            Ok(waiting) => {
                let record = waiting.record().clone();
                let detail = json!({ "leader": record.leader.pid });
                self.apply(TxEvent::TurnStarted(record), &detail)?;
                self.live.waiting = Some(waiting);
                fault::point(Point::TurnRecorded);
                Ok(())
            }
            Err(error) => {
                process::sweep_cgroups(&own);
                self.abandon()?;
                Err(Failure::from(error).into())
            }
        }
    }

    /// Nothing was ever written: the pins go, and so does the attempt.
    pub(in crate::coordinator) fn abandon(&mut self) -> Result<(), Stop> {
        let prepared = self.session.place.prepared(&self.key);
        for pin in self.record.pins.all() {
            match self.session.refs.unpin(&self.spec.settings.ref_prefix, pin, &prepared) {
                // Of that name, and not ours: a ledger that was exchanged for an old copy gives a
                // number twice.
                Err(error @ RefError::Differs { .. }) => {
                    tracing::warn!(%error, "a ref of this attempt's name is left");
                }
                done => done?,
            }
        }
        self.record.pins = crate::tx::record::Pins::default();
        self.apply(TxEvent::Abandoned, &json!({}))?;
        Ok(())
    }

    pub(super) fn run_turn(&mut self) -> Result<(), Stop> {
        let Some(waiting) = self.live.waiting.take() else {
            return Err(Failure::bug("a turn that nobody brought up").into());
        };
        let over = self.supervise(waiting, self.live.timeout);
        fault::point(Point::TurnOver);
        self.record.turn = Some(over.result.clone());
        if let Some(error) = &over.exec_error {
            self.record.warn("exec_failed", format!("the command could not be executed: {error}"));
        }
        let Ok(death) = over.death else {
            return Err(Stop::Quarantine(QuarantineReason::WriterUnproven));
        };
        self.session.verify().map_err(|why| self.lost(&why))?;
        let cause = match over.ended_by {
            EndedBy::Itself if over.result.exit_code == Some(0) => {
                return self.seal(over.result, death, false);
            }
            EndedBy::Itself => Cause::TurnFailed,
            EndedBy::Timeout => Cause::TurnTimeout,
            EndedBy::SettleBy => Cause::SettleBy,
            EndedBy::Cancel => Cause::Cancelled,
            EndedBy::Interrupt => Cause::Interrupted,
        };
        self.fail(cause, over.result, death)
    }

    /// Lets recorded processes run to their end, within the bounds of the attempt. A signal, or a
    /// row that says cancelled, ends them.
    pub(super) fn supervise(&mut self, waiting: Waiting, timeout: Option<Duration>) -> TurnOver {
        let bounds = Bounds {
            timeout,
            settle_by: self.settle_by(),
            grace: Duration::from_millis(self.spec.settings.grace_ms),
            proof_bound: self.bound(),
            ..Bounds::default()
        };
        let signals = self.signals;
        let (session, key) = (&mut *self.session, &self.key);
        let mut poll = || match crate::coordinator::attempt::drive::row(session, key) {
            Ok(Some(row)) if row.status == Status::Cancelled => Some(Request::Cancel),
            _ => None,
        };
        let mut over = waiting.run(&bounds, &mut Requests { signals, poll: &mut poll });
        // It takes a moment to leave, in which the work goes on.
        self.live.leaving.extend(over.leaving.take());
        over
    }

    /// The turn did not come to a seal: record the undo.
    pub(super) fn fail(
        &mut self,
        cause: Cause,
        turn: TurnResult,
        death: ProvenDead,
    ) -> Result<(), Stop> {
        let tip = self.judge_moves()?;
        self.make_durable(tip)?;
        let cause = self.by_the_row(cause);
        let detail = json!({ "reason": cause.reason(), "turn": turn });
        let undo = Undo { cause, death, turn, seal: None, post_check: None, tip };
        self.begin_undo(TxEvent::Failed(undo), &detail)
    }

    /// A cancel that stands in the row already is another writer's terminal, not our own.
    pub(super) fn by_the_row(&mut self, cause: Cause) -> Cause {
        if cause != Cause::Cancelled {
            return cause;
        }
        match self.row() {
            Ok(Some(row)) if row.status.is_terminal() => {
                Cause::VerdictLost { standing: Some(row.status) }
            }
            _ => cause,
        }
    }

    /// Where the turn's own commits moved the branch to; `None` where it stands at the base.
    ///
    /// # Errors
    /// Quarantine where nobody vouches for the move.
    pub(in crate::coordinator) fn judge_moves(&mut self) -> Result<Option<Oid>, Stop> {
        let branch = self.branch_ref();
        let head = self.session.refs.head()?;
        let tip = match self.session.refs.get(&branch) {
            Err(error @ RefError::Broken { .. }) => return Err(branch_moved(error.to_string())),
            read => read?,
        };
        let vouched = crate::hook::guard::read_vouches(&self.vouch_file())
            .map_err(Failure::io("reading what the guard hook vouched for"))?
            .into_iter()
            .map(|vouch| (vouch.old, vouch.new))
            .collect();
        let appended = reflog::read_since(&self.session.workspace, &branch, &self.spec.log)
            .map_err(|error| branch_moved(format!("the reflog cannot be read: {error}")))?;
        self.session.store.refresh();
        let seen = reflog::Observed {
            head: &head,
            branch: &branch,
            base: self.spec.base,
            tip,
            log: &appended,
            vouched: &vouched,
        };
        let store = &self.session.store;
        let moves = reflog::judge_moves(&seen, &self.key, |tip, base| {
            store.is_descendant(tip, base).unwrap_or(false)
        });
        match moves {
            Moves::None => Ok(None),
            Moves::TurnsOwn { tip } => Ok(Some(tip)),
            Moves::Unvouched { why } | Moves::Rewritten { why } => Err(branch_moved(why)),
            Moves::Switched { to } => Err(branch_moved(format!("HEAD is on {to}"))),
        }
    }

    /// Makes the turn's own commits durable: git does not sync what it commits, and neither the
    /// ledger nor a pin may outlive what it names. Called before either does.
    pub(in crate::coordinator) fn make_durable(&mut self, tip: Option<Oid>) -> Result<(), Stop> {
        if tip.is_some() && tip != self.live.durable_tip {
            self.session
                .store
                .sync()
                .map_err(Failure::other("making the turn's own commits durable"))?;
            self.live.durable_tip = tip;
        }
        Ok(())
    }

    /// Where the guard hook writes which moves it let pass.
    pub(super) fn vouch_file(&self) -> std::path::PathBuf {
        self.session.place.attempt(&self.key).join("vouched")
    }
}

pub(in crate::coordinator) fn branch_moved(why: impl Into<String>) -> Stop {
    Stop::Quarantine(QuarantineReason::BranchMoved { why: why.into() })
}
