//! The post-check: the captured copy runs on the sealed tree; what it leaves there goes back.
//!
//! Order rule: its processes stand in the ledger before they are let go; its verdict counts only
//! after HEAD, branch and index were found as sealed.
//!
//! # Limitations
//! It runs with the user's rights: what it does outside the workspace is its own business.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::base::fault::{self, Point};
use crate::base::hex::hex;
use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::attempt::rescue::PinKind;
use crate::coordinator::error::Failure;
use crate::git::promote::{self, Difference};
use crate::hook::capture::recheck;
use crate::hook::launch::{self, Facts};
use crate::hook::{Capture, PostCheckDecision, PostCheckOutcome, Ran, Ready, Step};
use crate::hook::{after_run, before_run};
use crate::process::{self, Output, Request, Stdin};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::entry::Change;
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::OnDrift;
use crate::tx::state::{PostCheckRecord, Seal, TxEvent, TxState};
use crate::tx::writer::EndedBy;

/// How much of what a post-check says is kept, in bytes: the platform's bound.
const OUTPUT: usize = 32_000;

impl Driver<'_> {
    pub(super) fn validate(&mut self) -> Result<(), Stop> {
        let Some(seal) = self.state().seal().cloned() else {
            return Err(Failure::bug("a validation without a seal").into());
        };
        if let Some(pin) = self.record.pins.candidate.clone() {
            // A ref to nothing would make the whole repository look damaged.
            self.session.store.commit(pin.id)?;
            self.make_ref(&pin).map_err(|e| Stop::seal_blocked(&e))?;
        }
        fault::point(Point::CandidatePinned);
        if let Some(cause) = self.asked_to_end(&seal)? {
            return self.reject(&seal, cause, None);
        }
        if matches!(self.state(), TxState::Validating { .. }) {
            // A run before a crash may have left something.
            self.check_git_untouched(&seal)?;
            self.put_back_since_seal(&seal)?;
        }
        let capture = self.spec.post_check.clone();
        let found = recheck(&capture, self.session.workspace.root());
        let mut post_check = PostCheckRecord {
            sha256: capture.sha256().map(str::to_owned),
            ..PostCheckRecord::absent()
        };
        let decision = match before_run(&capture, &found, &self.spec.settings.post_check) {
            Step::Decided(judged) => {
                post_check.outcome = judged.outcome;
                if let Capture::Misconfigured { path, why } = &capture {
                    self.record.warn(
                        "post_check_misconfigured",
                        format!("the post-check {} did not run: {why}", path.display()),
                    );
                }
                judged.decision
            }
            Step::Run(found) => {
                if found != crate::hook::Recheck::Same {
                    self.record.warn(
                        "post_check_changed",
                        "the post-check was changed; the captured copy decided",
                    );
                }
                let Capture::Ready(ready) = &capture else {
                    return Err(Failure::bug("a post-check that was not captured").into());
                };
                match self.run_on_view(&seal, ready, &mut post_check)? {
                    Ok(decision) => decision,
                    Err(cause) => return self.reject(&seal, cause, Some(post_check)),
                }
            }
        };
        fault::point(Point::PostCheckPassed);
        match decision {
            PostCheckDecision::Quarantine(reason) => Err(Stop::Quarantine(reason)),
            PostCheckDecision::RollBack(cause) => self.reject(&seal, cause, Some(post_check)),
            PostCheckDecision::Commit => {
                if let Some(cause) = self.asked_to_end(&seal)? {
                    return self.reject(&seal, cause, Some(post_check));
                }
                let detail = json!({ "post_check": post_check.outcome });
                self.apply(TxEvent::Passed(post_check), &detail)?;
                fault::point(Point::CommittingRecorded);
                Ok(())
            }
        }
    }

    /// Runs the captured copy in a folder: the root of the work tree, or a checkout. `Err` is a
    /// cause that is not the post-check's own.
    pub(super) fn run_post_check(
        &mut self,
        seal: &Seal,
        ready: &Ready,
        record: &mut PostCheckRecord,
        view: &Path,
    ) -> Result<Result<PostCheckDecision, Cause>, Stop> {
        let run = match self.state() {
            TxState::Validating { run, .. } => run + 1,
            _ => 1,
        };
        let folder = self.session.place.attempt(&self.key);
        let changed_files = folder.join("changed-files");
        let changed = self.session.store.diff_trees(self.spec.base_tree, seal.tree)?;
        launch::write_changed_files(
            &changed_files,
            changed.iter().map(|(path, ..)| path.as_bytes()),
        )
        .map_err(Failure::io("writing the list of changed files"))?;
        let facts = Facts {
            environment: &self.live.environment,
            key: &self.key,
            workspace: view,
            repository: self.session.workspace.root(),
            base: self.spec.base,
            candidate: seal.candidate,
            changed_files: &changed_files,
        };
        let unstartable =
            |why: String| Stop::Quarantine(QuarantineReason::PostCheckUnstartable { why });
        let launched = launch::command(ready, &facts).map_err(|e| unstartable(chain(&e)))?;
        let program = launched.argv.first().map(Into::into).unwrap_or_default();
        let command = process::Command {
            program,
            argv: launched.argv,
            cwd: launched.cwd,
            env: launched.environment,
            stdin: Stdin::Null,
            output: Output::KeepTail { bytes: OUTPUT },
            terminal: false,
            cgroup: true,
        };
        self.live.scope_seen = false;
        let lock = self.session.lock.share().map_err(Failure::io("sharing the lock"))?;
        self.live.others_ran = true;
        let waiting =
            process::start(&command, &folder.join(format!("post-check-{run}")), &[lock.as_fd()])
                .map_err(|e| unstartable(chain(&e)))?;
        let writer = waiting.record().clone();
        let detail = json!({ "leader": writer.leader.pid, "sha256": ready.sha256 });
        self.apply(TxEvent::PostCheckStarted(writer), &detail)?;

        let timeout = Duration::from_millis(self.spec.settings.post_check.timeout_ms);
        let over = self.supervise(waiting, Some(timeout));
        if over.death.is_err() {
            return Err(Stop::Quarantine(QuarantineReason::WriterUnproven));
        }
        self.session.verify().map_err(|why| self.lost(&why))?;
        record.exit_code = over.result.exit_code;
        record.duration_ms = Some(over.result.duration_ms);
        record.output = Some(kept_output(&over.output_tail, over.truncated));
        let ran = match (over.ended_by, over.exec_error) {
            (_, Some(error)) => Ran::Unstartable(error),
            (EndedBy::Timeout | EndedBy::SettleBy, _) => Ran::TimedOut,
            _ => match (over.result.exit_code, over.result.signal) {
                (Some(code), _) => Ran::Exited(code),
                (None, signal) => Ran::Signalled(signal.unwrap_or_default()),
            },
        };
        let judged = after_run(&ran);
        record.outcome = judged.outcome;
        self.check_git_untouched(seal)?;
        self.put_back_since_seal(seal)?;
        if !seal.adopted && matches!(over.ended_by, EndedBy::Cancel | EndedBy::Interrupt) {
            self.heed_signals()?;
        }
        let other = match over.ended_by {
            EndedBy::SettleBy => Some(Cause::SettleBy),
            EndedBy::Cancel => Some(self.by_the_row(Cause::Cancelled)),
            EndedBy::Interrupt => Some(Cause::Interrupted),
            EndedBy::Itself | EndedBy::Timeout => None,
        };
        if let Some(cause) = other {
            record.outcome = PostCheckOutcome::Failed;
            return Ok(Err(cause));
        }
        Ok(Ok(judged.decision))
    }

    /// Between two phases: a signal, a cancelled row, the time.
    ///
    /// # Errors
    /// [`Failure::LeftUnsettled`] where a signal came to a process that only took the attempt up.
    pub(super) fn asked_to_end(&mut self, seal: &Seal) -> Result<Option<Cause>, Stop> {
        if seal.adopted {
            return Ok(None);
        }
        self.heed_signals()?;
        if self.is_past_settle_by() {
            return Ok(Some(Cause::SettleBy));
        }
        Ok(match self.request() {
            None => None,
            Some(Request::Cancel) => Some(self.by_the_row(Cause::Cancelled)),
            Some(Request::Interrupt) => Some(Cause::Interrupted),
        })
    }

    /// A signal to who took the attempt up ends that process, and nothing of the attempt: whoever
    /// comes next goes on with it.
    fn heed_signals(&self) -> Result<(), Stop> {
        if self.live.taken_up && self.signals.pending().is_some() {
            return Err(Failure::LeftUnsettled { key: self.key.clone() }.into());
        }
        Ok(())
    }

    pub(super) fn reject(
        &mut self,
        seal: &Seal,
        cause: Cause,
        post_check: Option<PostCheckRecord>,
    ) -> Result<(), Stop> {
        if seal.adopted {
            let why = cause.reason().to_owned();
            return Err(Stop::Quarantine(QuarantineReason::AdoptFailed { why }));
        }
        let detail = json!({
            "reason": cause.reason(),
            "post_check": post_check.as_ref().map(|p| p.outcome),
        });
        self.apply(TxEvent::Rejected { cause, post_check }, &detail)?;
        Ok(())
    }

    /// HEAD, branch and index are as they were sealed.
    fn check_git_untouched(&mut self, seal: &Seal) -> Result<(), Stop> {
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        let meaning = self.sealed_meaning()?;
        let differences =
            promote::compare(&target, seal.sealed_head, meaning).map_err(|error| {
                let why = chain(&error);
                Stop::Quarantine(QuarantineReason::PostCheckTouchedGit { why })
            })?;
        if differences.is_empty() {
            return Ok(());
        }
        let why = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Stop::Quarantine(QuarantineReason::PostCheckTouchedGit { why }))
    }

    /// What the index meant at the seal.
    pub(super) fn sealed_meaning(&mut self) -> Result<crate::git::index::Meaning, Stop> {
        let text = self.sealed_view()?.file.index_meaning.clone();
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(pair).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(Failure::bug)?;
        }
        debug_assert_eq!(hex(&bytes), text);
        Ok(crate::git::index::Meaning(bytes))
    }

    /// What is not of the seal is pinned as somebody else's, and put back.
    pub(in crate::coordinator) fn put_back_since_seal(&mut self, seal: &Seal) -> Result<(), Stop> {
        let differ = self.since_seal()?;
        self.live.scope_seen = true;
        if differ.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = differ.into_iter().map(|(change, _)| change).collect();
        let count = changes.len();
        let pinned = self.pin_drift(seal, &changes)?;
        self.put_back_pinned(seal, changes, &pinned)?;
        self.record.warn(
            "put_back",
            format!("{count} paths were changed while the post-check ran; they are kept in a ref and put back"),
        );
        Ok(())
    }

    /// Pins what somebody else changed since the seal.
    pub(super) fn pin_drift(
        &mut self,
        seal: &Seal,
        changes: &[Change],
    ) -> Result<HashMap<RepoPath, Oid>, Stop> {
        let (parents, nothing) = ([seal.candidate], HashSet::new());
        self.pin_changes(PinKind::Rescue, changes, seal.tree, &parents, &nothing)
    }

    /// Puts the sealed state back where `pinned` holds what stands there now.
    pub(super) fn put_back_pinned(
        &mut self,
        seal: &Seal,
        changes: Vec<Change>,
        pinned: &HashMap<RepoPath, Oid>,
    ) -> Result<(), Stop> {
        let rules = self.sealed_view()?.rules.clone();
        let report = self.restore(
            seal.death.clone(),
            changes,
            pinned,
            &HashSet::new(),
            &rules,
            seal.tree,
            OnDrift::Restore,
        )?;
        self.refresh_view(report.new_stats)
    }

    /// What was put back has new stat data.
    pub(super) fn refresh_view(
        &mut self,
        new_stats: Vec<crate::git::manifest::EntryChange>,
    ) -> Result<(), Stop> {
        self.sealed_view()?;
        if let Some(view) = &mut self.live.sealed {
            Arc::make_mut(&mut view.snapshot).apply(new_stats.iter().cloned());
            let mut by_path: std::collections::BTreeMap<_, _> =
                std::mem::take(&mut view.file.entries).into_iter().collect();
            by_path.extend(new_stats);
            view.file.entries = by_path.into_iter().collect();
        }
        Ok(())
    }
}

/// The last of what a post-check said, as text.
fn kept_output(tail: &[u8], truncated: bool) -> String {
    let text = String::from_utf8_lossy(tail);
    if truncated { format!("[…]\n{text}") } else { text.into_owned() }
}

/// A difference to the seal, as a reason.
pub(super) fn difference_stop(differences: &[Difference]) -> Stop {
    let why = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let index_only =
        differences.iter().all(|d| matches!(d, Difference::Index | Difference::IndexUnreadable(_)));
    if index_only {
        Stop::Quarantine(QuarantineReason::IndexChanged)
    } else {
        crate::coordinator::attempt::turn::branch_moved(why)
    }
}
