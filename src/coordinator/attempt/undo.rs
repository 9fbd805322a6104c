//! The undo: pin what stands there, put the git directory, the branch and the scope back, then
//! write the terminal that the cause calls for.
//!
//! Order rule: nothing of the tree is touched before everything in scope is pinned; the terminal
//! and the state `rolled_back` are one db transaction, after everything is durable.
//!
//! # Limitations
//! A path that cannot be brought back is retried a few times and then shown to an operator.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use serde_json::json;

use crate::base::fault::{self, Point};
use crate::base::hex::hex;
use crate::coordinator::attempt::baseindex;
use crate::coordinator::attempt::drive::{ASK_AGAIN, Driver, Stop, is_stale};
use crate::coordinator::attempt::outcome::Outcome;
use crate::coordinator::attempt::rescue::{PinKind, RescueSink, StoreBytes, held_by_pin};
use crate::coordinator::attempt::seal::signature;
use crate::coordinator::attempt::turn::branch_moved;
use crate::coordinator::error::Failure;
use crate::coordinator::report::view;
use crate::gate::{Answer, EmbeddedGate};
use crate::git::index::{self, Index};
use crate::git::promote::{self, Move};
use crate::git::refs::Head;
use crate::git::refs::locks::{self, LockError};
use crate::git::scan::rules::{BaseRules, Source, View};
use crate::git::scan::{NewDirectories, ScanError};
use crate::git::undo::restore::{self, Restore, RestoreError, RestoreReport};
use crate::git::undo::spill::Spill;
use crate::git::undo::{self, Rules as UndoRules};
use crate::journal::{Change as LedgerChange, LedgerError};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::entry::{Change, Kind};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::phase::Phase;
use crate::tx::settings::{Limits, OnDrift};
use crate::tx::state::{TxEvent, TxState, Undo};
use crate::tx::verdict::{Status, Terminal, Verdict};
use crate::tx::writer::{BlockedPath, ProvenDead};

/// How often a restore is tried before an operator is asked.
const TRIES: u32 = 3;

impl Driver<'_> {
    pub(super) fn undo(&mut self) -> Result<(), Stop> {
        let TxState::RollingBack { undo } = self.state().clone() else {
            return Err(Failure::bug("an undo in another state").into());
        };
        fault::point(Point::RollbackRecorded);
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        locks::forget(&target)?;
        let tip = self.where_to_rewind(&undo)?;

        self.put_back_root_mode()?;
        let snapshot = self.snapshot()?;
        let base_rules = self.base_rules(&snapshot);
        let look = |how| view::look(self.session, &self.spec, &snapshot, &base_rules, how);
        let (mut how, mut opened) = (NewDirectories::Walk, HashSet::new());
        let mut looked = self.live.looked.take();
        let (scan, listed) = loop {
            match looked.take().unwrap_or_else(|| look(how)) {
                Ok(scan) if scan.unreadable.is_empty() => {
                    break (scan, how == NewDirectories::Whole);
                }
                Ok(scan) => self.open_up(&scan.unreadable, &mut opened)?,
                Err(ScanError::TooMany { .. } | ScanError::TooDeep { .. })
                    if how == NewDirectories::Walk =>
                {
                    how = NewDirectories::Whole;
                }
                Err(error) => return Err(view::scan_stop(error)),
            }
        };
        self.session.warmth.borrow_mut().rest();
        let too_large = too_large(&scan.changes, &self.spec.settings.limits, listed);
        let base_pin_tree = self.base_pin_tree()?;

        let begun_before = !self.record.pins.discarded.is_empty();
        let own = self.record.pins.discarded.iter().skip(self.record.earlier_discarded);
        let pinned = match own.last().cloned() {
            Some(pin) => {
                self.make_ref(&pin).map_err(|e| Stop::seal_blocked(&e))?;
                held_by_pin(&self.session.store, base_pin_tree, pin.id)?
            }
            None if scan.changes.is_empty() && tip.is_none() => HashMap::new(),
            None => {
                let parent = self.parent_of_pin(tip)?;
                self.pin_changes(
                    PinKind::Discarded,
                    &scan.changes,
                    base_pin_tree,
                    &[parent],
                    &too_large,
                )?
            }
        };
        fault::point(Point::DiscardedPinned);
        self.live.laps.enter(Phase::Restore);

        self.put_back_git_directory()?;
        if let Some(tip) = tip {
            self.rewind(tip)?;
        }
        let report = self.restore(
            undo.death.clone(),
            scan.changes,
            &pinned,
            &too_large,
            &base_rules,
            base_pin_tree,
            self.on_drift(),
        )?;
        if begun_before {
            // A run that was killed may have put back what this one found in order, unsynced.
            let tree = self.session.root.open_self();
            tree.and_then(|tree| rustix::fs::syncfs(tree).map_err(Into::into)).map_err(
                |error| {
                    Stop::Quarantine(QuarantineReason::RestoreBlocked {
                        paths: Vec::new(),
                        why: format!("what was restored cannot be made durable: {error}"),
                    })
                },
            )?;
        }
        self.put_back_index()?;
        self.note_index(self.spec.base_tree)?;
        self.remember(report.new_stats, self.spec.base_tree)?;
        fault::point(Point::Restored);
        for path in report.drift {
            if !self.record.drift.contains(&path) {
                self.record.drift.push(path);
            }
        }
        if !self.record.drift.is_empty() {
            match self.on_drift() {
                OnDrift::Quarantine => {
                    let paths = self.record.drift.clone();
                    return Err(Stop::Quarantine(QuarantineReason::Drift { paths }));
                }
                OnDrift::Leave => self.record.warn(
                    "drift_left",
                    "somebody else changed files meanwhile; they are kept in a ref and left as they are",
                ),
                OnDrift::Restore => self.record.warn(
                    "drift_restored",
                    "somebody else changed files meanwhile; they are kept in a ref and put back",
                ),
            }
        }
        if !report.spilled.is_empty() {
            let folder = self.session.place.spill(&self.key);
            self.record.warn(
                "spilled",
                format!(
                    "what no pin holds (too large, or a repository of its own) was moved to {}",
                    folder.display()
                ),
            );
        }
        self.report_other_refs();
        self.settle_undo(&undo)
    }

    /// The root's own mode, before anything beneath it is looked at: it may keep us out.
    fn put_back_root_mode(&self) -> Result<(), Stop> {
        // What an older worktx began has it in a file.
        let noted = || {
            let path = self.session.place.attempt(&self.key).join("root-mode");
            u32::from_str_radix(std::fs::read_to_string(path).ok()?.trim(), 8).ok()
        };
        let Some(mode) = self.spec.root_mode.or_else(noted) else { return Ok(()) };
        restore::set_root_mode(self.session.root.handle(), mode).map_err(|error| {
            Stop::Quarantine(QuarantineReason::RestoreBlocked {
                paths: Vec::new(),
                why: format!("the root's mode cannot be put back: {error}"),
            })
        })
    }

    /// What the turn closed to its own owner is opened, or it could neither be pinned nor undone.
    /// Nothing of the base was closed: it would not have been taken for one.
    fn open_up(&self, paths: &[RepoPath], opened: &mut HashSet<RepoPath>) -> Result<(), Stop> {
        let root = self.session.root.handle();
        let blocked = |path: &RepoPath, why: String| BlockedPath { path: path.clone(), why };
        let mut left = Vec::new();
        for path in paths {
            if !opened.insert(path.clone()) {
                left.push(blocked(path, "it cannot be read".to_owned()));
            } else if let Err(why) = restore::open_up(root, path) {
                left.push(blocked(path, why));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(Stop::Quarantine(QuarantineReason::RestoreBlocked { paths: left, why: String::new() }))
    }

    /// Where the turn's own commits have the branch, if it is not at the base already.
    ///
    /// # Errors
    /// Quarantine where the branch is somewhere that the undo cannot explain.
    fn where_to_rewind(&mut self, undo: &Undo) -> Result<Option<Oid>, Stop> {
        let head = self.session.refs.head()?;
        let now = match (&head, &self.spec.branch) {
            (Head::Branch(name, id), Some(branch)) if name == branch => *id,
            (Head::Detached(id), None) => Some(*id),
            _ => return Err(branch_moved(format!("HEAD is {head:?}"))),
        };
        match now {
            Some(id) if id == self.spec.base => Ok(None),
            Some(id) if Some(id) == undo.tip => Ok(Some(id)),
            // A crash cut the turn off before anything of the branch was recorded.
            Some(_) if undo.tip.is_none() => self.judge_moves(),
            Some(id) => Err(branch_moved(format!("{} is at {id}", self.branch_ref()))),
            None => Err(branch_moved(format!("{} is gone", self.branch_ref()))),
        }
    }

    /// Moves the branch from the turn's own last commit back to the base, under git's locks.
    fn rewind(&mut self, tip: Oid) -> Result<(), Stop> {
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        let held = locks::take(&target, self.bound()).map_err(lock_stop)?;
        let who = signature(&self.spec.author);
        let message = format!("worktx {}: rolled back", self.key);
        let plan = Move {
            from: tip,
            to: self.spec.base,
            // Nobody asks: it is put back later, and may be damaged now.
            index_before: Index::empty().meaning(),
            index_changes: false,
            who: &who,
            message: &message,
            make_logs: self.spec.git.logs_branches(),
        };
        promote::prepare(&held, tip, self.spec.base, None)?;
        let moved = promote::promote(&held, &plan);
        held.release()?;
        moved.map_err(|error| branch_moved(crate::coordinator::attempt::drive::chain(&error)))?;
        locks::forget(&target)?;
        Ok(())
    }

    /// Puts the index back as it was saved at open, if it is another.
    fn put_back_index(&mut self) -> Result<(), Stop> {
        match index::known::digest_now(self.session.workspace.git_dir()) {
            Ok(now) if now.map(|digest| hex(&digest)) == self.spec.index_digest => return Ok(()),
            Ok(_) => {}
            // A link, a pipe, or closed to everybody: not what was saved, and replaced like it.
            Err(error) => tracing::warn!(%error, "the index cannot be read, and is replaced"),
        }
        let saved = match &self.spec.index_digest {
            None => None,
            Some(_) => Some(baseindex::saved(self.session, &self.key, &self.spec)?),
        };
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        index::restore(&target, saved.as_deref(), self.bound()).map_err(|error| {
            Stop::Quarantine(QuarantineReason::RestoreBlocked {
                paths: Vec::new(),
                why: crate::coordinator::attempt::drive::chain(&error),
            })
        })?;
        locks::forget(&target)?;
        Ok(())
    }

    /// Brings the paths of `changes` back to what they were before. Whatever turns up and is held
    /// by nothing is pinned first.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of one restore")]
    pub(super) fn restore(
        &mut self,
        death: ProvenDead,
        changes: Vec<Change>,
        pinned: &HashMap<RepoPath, Oid>,
        too_large: &HashSet<RepoPath>,
        rules_of: &BaseRules,
        onto: Oid,
        on_drift: OnDrift,
    ) -> Result<RestoreReport, Stop> {
        let rules = view::rules(&self.spec);
        let survives = |path: &RepoPath| rules.survives(path, false);
        let plan_rules = UndoRules { pinned, survives: &survives, too_large };
        let plan = undo::plan(death, changes, &plan_rules);
        for path in &plan.left {
            let text = format!("a file system is mounted on {path}, and is left as it is");
            self.record.warn("mount_left", text);
        }
        plan.gone.iter().for_each(|path| self.warn_of_gone(path));
        if plan.steps.is_empty() && plan.blocked.is_empty() && !self.has_temporary() {
            restore::sync_same(self.session.root.handle(), &plan)
                .map_err(|error| restore_stop(&error))?;
            return Ok(RestoreReport::default());
        }
        let base_view = RefCell::new(View::new(&rules, Source::Base(rules_of)));
        // Of what cannot be told it is not: it stays as it is, and an operator is asked.
        let unsure = RefCell::new(BTreeMap::new());
        let in_scope = |path: &RepoPath| {
            if rules.survives(path, false) || rules.is_excluded(path, false) {
                return false;
            }
            match base_view.borrow_mut().ignores(path, false) {
                Ok(ignored) => !ignored,
                Err(error) => {
                    unsure
                        .borrow_mut()
                        .insert(path.clone(), crate::coordinator::attempt::drive::chain(&error));
                    false
                }
            }
        };
        let mut spill = Spill::at(self.session.place.spill(&self.key));
        let session = &mut *self.session;
        let bytes = StoreBytes(&session.store);
        let mut tries = 0;
        // What only an earlier try met.
        let (mut drift, mut spilled) = (Vec::new(), Vec::new());
        let mut report = loop {
            tries += 1;
            let mut sink = RescueSink {
                store: &session.store,
                refs: &session.refs,
                ledger: &mut session.ledger,
                key: &self.key,
                record: &mut self.record,
                rev: &mut self.rev,
                prefix: &self.spec.settings.ref_prefix,
                onto,
                parent: self.spec.base,
                who: signature(&self.spec.author),
                pack: None,
                held: Vec::new(),
            };
            let mut on = Restore {
                root: session.root.handle(),
                temporary: &self.spec.temporary,
                pinned,
                in_scope: &in_scope,
                on_drift,
                bytes: &bytes,
                rescue: &mut sink,
                spill: &mut spill,
                plain_renames: false,
            };
            let report = restore::restore(&plan, &mut on).map_err(|error| restore_stop(&error))?;
            if report.blocked.is_empty() || tries == TRIES {
                break report;
            }
            drift.extend(report.drift);
            spilled.extend(report.spilled);
        };
        for (all, earlier) in [(&mut report.drift, drift), (&mut report.spilled, spilled)] {
            all.extend(earlier);
            all.sort_unstable();
            all.dedup();
        }
        let unsure = unsure.into_inner().into_iter();
        report.blocked.extend(unsure.map(|(path, why)| BlockedPath { path, why }));
        if !report.blocked.is_empty() {
            let paths = report.blocked;
            let why = String::new();
            return Err(Stop::Quarantine(QuarantineReason::RestoreBlocked { paths, why }));
        }
        Ok(report)
    }

    /// A repository of its own that stood in the tree at open, where no attempt looks.
    pub(super) fn warn_of_gone(&mut self, path: &RepoPath) {
        self.record.warn(
            "nested_gone",
            format!("{path} was a repository of its own, which no attempt looks into: the command took it away, and it is not brought back"),
        );
    }

    fn has_temporary(&self) -> bool {
        !matches!(self.session.root.stat(&self.spec.temporary), Ok(None))
    }

    /// Writes the terminal, if the cause calls for one, and the state, in one db transaction.
    fn settle_undo(&mut self, undo: &Undo) -> Result<(), Stop> {
        let cause = &undo.cause;
        let state = self.state().clone().apply(TxEvent::Undone).map_err(Failure::bug)?;
        let record = crate::tx::record::AttemptRecord { state, ..self.record.clone() };
        let expected = self.state().tag();
        self.live.laps.enter(Phase::Finish);
        let phases = self.live.laps.so_far();
        let detail = json!({ "reason": cause.reason(), "phases": phases });
        let (key, rev) = (self.key.clone(), self.rev);
        let standing = self.row()?.map(|row| row.status);
        let facts = self.spec.facts(&self.key);
        let change = |status: Option<Status>| {
            let mut outcome = Outcome::of(facts.clone(), &record, status)?;
            outcome.phases.clone_from(&phases);
            serde_json::to_value(outcome).ok()
        };
        match cause.terminal() {
            None => {
                let outcome = change(standing);
                self.rev = self.session.ledger.transition(&LedgerChange {
                    key: &key,
                    expected,
                    rev,
                    record: &record,
                    event: "undone",
                    detail: &detail,
                    outcome: outcome.as_ref(),
                })?;
            }
            Some(status) => {
                let ask = Terminal {
                    status,
                    from: Some(self.key.attempt),
                    claim_token: self.spec.claim_token.clone(),
                    error: Some(error_text(undo)),
                };
                let record_with = |tx: &rusqlite::Transaction<'_>, answer: &Answer| {
                    let outcome = change(answer.row.as_ref().map(|row| row.status));
                    let change = LedgerChange {
                        key: &key,
                        expected,
                        rev,
                        record: &record,
                        event: "undone",
                        detail: &json!({
                            "reason": cause.reason(), "terminal_won": answer.won, "phases": phases,
                        }),
                        outcome: outcome.as_ref(),
                    };
                    change.apply(tx)?;
                    Ok::<(), LedgerError>(())
                };
                let until = Instant::now() + self.bound();
                loop {
                    let db = self.session.ledger.writable()?;
                    let mut gate = EmbeddedGate::new(db);
                    match gate.ask_and_record(&key.execution, &ask, record_with) {
                        Ok(Verdict::Unknown(_)) if Instant::now() < until => {
                            std::thread::sleep(ASK_AGAIN);
                        }
                        Ok(Verdict::Unknown(why)) => {
                            return Err(Stop::Quarantine(QuarantineReason::GateUnknown { why }));
                        }
                        Ok(_) => break,
                        // An answer that was not heard may have been recorded.
                        Err(error) if is_stale(&error) && self.is_recorded(&record)? => break,
                        Err(error) => return Err(error.into()),
                    }
                }
                self.rev = rev + 1;
            }
        }
        tracing::info!(event = "undone", state = record.state.tag().as_str(), "recorded");
        self.record = record;
        self.leave_trace();
        Ok(())
    }
}

fn restore_stop(error: &RestoreError) -> Stop {
    let why = crate::coordinator::attempt::drive::chain(error);
    Stop::Quarantine(QuarantineReason::RestoreBlocked { paths: Vec::new(), why })
}

/// `[code] message`, as the platform folds it.
fn error_text(undo: &Undo) -> String {
    let code = undo.cause.error_code().as_str();
    let message = match (&undo.cause, undo.turn.exit_code, undo.turn.signal) {
        (Cause::TurnFailed, Some(code), _) => format!("the command returned {code}"),
        (Cause::TurnFailed, None, Some(signal)) => format!("signal {signal} ended the command"),
        _ => undo.cause.reason().replace('_', " "),
    };
    format!("[{code}] {message}")
}

pub(super) fn lock_stop(error: LockError) -> Stop {
    match error {
        LockError::Foreign { path } => {
            Stop::Quarantine(QuarantineReason::ForeignLock { lock: path.display().to_string() })
        }
        LockError::Dir(error) => Stop::damaged(crate::coordinator::attempt::drive::chain(&error)),
    }
}

/// What a turn created beyond the limits: moved aside unread instead of being pinned. With
/// `listed`, new directories stand for everything beneath them.
pub(in crate::coordinator) fn too_large(
    changes: &[Change],
    limits: &Limits,
    listed: bool,
) -> HashSet<RepoPath> {
    let mut large = HashSet::new();
    let mut rest: Vec<(&Change, u64)> = Vec::new();
    for change in changes {
        let Some(found) = &change.after else { continue };
        if listed && change.before.is_none() && found.kind == Kind::Directory {
            large.insert(change.path.clone());
        } else if found.kind == Kind::File {
            if found.stat.size > limits.file_bytes {
                large.insert(change.path.clone());
            } else {
                rest.push((change, found.stat.size));
            }
        }
    }
    let mut bytes: u64 = rest.iter().map(|(_, size)| size).sum();
    let mut files = rest.len() as u64;
    if bytes > limits.total_bytes || files > limits.files {
        // The largest first: the most is kept as a pin that way.
        rest.sort_unstable_by_key(|(_, size)| std::cmp::Reverse(*size));
        for (change, size) in rest {
            if bytes <= limits.total_bytes && files <= limits.files {
                break;
            }
            bytes -= size;
            files -= 1;
            large.insert(change.path.clone());
        }
    }
    large
}
