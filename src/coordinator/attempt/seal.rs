//! The seal: what a turn that returned 0 did becomes a commit, durable, before anything decides
//! over it.
//!
//! The commit is what a careful person's `git add -A && git commit` of the scope would have made.
//! Of the turn's index only the set of its paths is read. Whatever a policy refuses is found here,
//! so that a rejected turn never has a candidate.
//!
//! Order rule: objects, their folder, what was seen at the seal, then the ledger; the ref is made
//! from the recorded state by the next effect.
//!
//! # Limitations
//! What each path becomes is [`crate::coordinator::attempt::gather`]'s business.

use std::collections::BTreeSet;

use crate::base::clock;
use crate::base::hex::hex;
use serde_json::json;

use crate::base::fault::{self, Point};
use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::attempt::gather::Made;
use crate::coordinator::attempt::newindex::IndexCheck;
use crate::coordinator::attempt::policy::{self, Verdicts};
use crate::coordinator::error::Failure;
use crate::coordinator::report::view::{self, SealFile};
use crate::git::config::attributes::{Attributes, CapturedAttributes};
use crate::git::config::convert::{AutoCrlf, Conversions};
use crate::git::index::known::IndexDigest;
use crate::git::index::{self, Index};
use crate::git::manifest::snapshot::Snapshot;
use crate::git::objects::ahead;
use crate::git::objects::pack::PackWriter;
use crate::git::objects::tree::{self, Signature};
use crate::git::scan::rules::{Source, View};
use crate::git::scan::{self, NewDirectories, Scan, ScanError};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::entry::{Change, Entry, GIT_SYMLINK, Kind};
use crate::tx::id::{Oid, Pin};
use crate::tx::path::RepoPath;
use crate::tx::phase::Phase;
use crate::tx::post_check::Capture;
use crate::tx::state::{Seal, TxEvent};
use crate::tx::writer::{ProvenDead, TurnResult};

/// The index that the turn left, as far as it counts.
pub(super) struct TurnIndex {
    meaning: String,
    /// Its stage-0 paths; `None` where it is what it was at open.
    pub(super) paths: Option<BTreeSet<Vec<u8>>>,
    /// Of its bytes, where they are those of the index at open.
    of_base: Option<IndexDigest>,
}

/// Who commits, now.
pub(super) fn signature(identity: &crate::git::config::gitconfig::Identity) -> Signature {
    let now = jiff::Timestamp::now();
    Signature {
        name: identity.name.clone(),
        email: identity.email.clone(),
        time: now.as_second(),
        offset_minutes: clock::local_offset(now) / 60,
    }
}

impl Driver<'_> {
    /// Seals what stands in the scope, and records it; or records the undo that a policy asks for.
    pub(super) fn seal(
        &mut self,
        turn: TurnResult,
        death: ProvenDead,
        adopted: bool,
    ) -> Result<(), Stop> {
        let tip = self.judge_moves()?;
        self.seal_at(tip, turn, death, adopted)
    }

    /// As [`Driver::seal`], with the branch at `tip`: an operator vouches for it, or the reflog.
    pub(in crate::coordinator) fn seal_at(
        &mut self,
        tip: Option<Oid>,
        turn: TurnResult,
        death: ProvenDead,
        adopted: bool,
    ) -> Result<(), Stop> {
        self.live.laps.enter(Phase::Seal);
        if let Some(why) = self.unfit()? {
            return self.reject_turn(Cause::Unfit { why }, turn, death, adopted);
        }
        let new_attributes = self.put_back_programs()?;
        self.make_durable(tip)?;
        let sealed_head = tip.unwrap_or(self.spec.base);
        let turn_index = self.read_turn_index()?;

        let snapshot = self.snapshot()?;
        let base_rules = self.base_rules(&snapshot);
        let scan = match view::look(
            self.session,
            &self.spec,
            &snapshot,
            &base_rules,
            NewDirectories::Walk,
        ) {
            Ok(scan) => scan,
            Err(ScanError::TooMany { .. } | ScanError::TooDeep { .. }) => {
                let cause = Cause::TooLarge { paths: Vec::new() };
                return self.reject_turn(cause, turn, death, adopted);
            }
            Err(error) => return Err(view::scan_stop(error)),
        };
        let mut unreadable = scan.unreadable.clone();
        unreadable.extend(self.closed_files(&scan.changes));
        if !unreadable.is_empty() {
            let paths = unreadable
                .iter()
                .map(|path| crate::tx::writer::BlockedPath {
                    path: path.clone(),
                    why: "it cannot be read".to_owned(),
                })
                .collect();
            return self.reject_turn(Cause::Unstorable { paths }, turn, death, adopted);
        }

        let mut verdicts = Verdicts::new(&self.spec.settings);
        policy::judge_changes(&scan.changes, turn_index.paths.as_ref(), &mut verdicts);
        self.judge_commits(&snapshot, &base_rules, sealed_head, &mut verdicts)?;
        let forced =
            self.forced_paths(&snapshot, &turn_index, sealed_head, &scan, &mut verdicts)?;

        let attributes = Attributes::of_tree(
            &CapturedAttributes::of(&self.spec.git),
            &self.session.root,
            &scan.attributes,
        )
        .map_err(Failure::other("reading the attributes of the tree"))?;
        let mut converter = Conversions::new(attributes, AutoCrlf::of(&self.spec.git));
        policy::judge_attributes(&scan.changes, converter.attributes(), &mut verdicts);
        if let Some(info) = new_attributes {
            self.judge_info(info, &snapshot, &scan, &mut verdicts)?;
        }
        if let Some(cause) = verdicts.cause() {
            return self.reject_turn(cause, turn, death, adopted);
        }

        let git_dir = self.session.workspace.git_dir();
        // What a post-check leaves of the index counts: then its bytes are looked at afterwards.
        let is_next = matches!(self.spec.post_check, Capture::Absent) && !scan.changes.is_empty();
        let of_base = turn_index.of_base.filter(|_| is_next);
        self.live.index_check = of_base.and_then(|digest| IndexCheck::begin(git_dir, digest));
        let store = &self.session.store;
        let mut pack = PackWriter::new(store);
        let mut made = Made::default();
        let in_index = |path: &RepoPath| {
            turn_index.paths.as_ref().map(|paths| paths.contains(path.as_bytes()))
        };
        // What the turn ignores stays on disk, and is nobody's business from now on.
        let is_left = |change: &Change| {
            change.before.is_none()
                && change.ignored_by_turn
                && in_index(&change.path) != Some(true)
        };
        let mut changes = scan.changes.into_iter().filter(|change| !is_left(change)).peekable();
        while changes.peek().is_some() {
            let batch: Vec<Change> = changes.by_ref().take(ahead::BATCH).collect();
            let as_it_is = |change: &Change| !converter.needs_conversion(&change.path);
            let wanted: Vec<bool> = batch.iter().map(as_it_is).collect();
            let ahead = ahead::make(&self.session.root, &batch, &wanted);
            for (change, ahead) in batch.into_iter().zip(ahead) {
                self.make(change, ahead, &in_index, &mut converter, &mut pack, &mut made)?;
            }
        }
        for (path, entry) in forced {
            self.force(path, &entry, &mut converter, &mut pack, &mut made)?;
        }
        self.leave_out(&snapshot, &turn_index, &mut made)?;

        let tree = tree::edit(store, self.spec.base_tree, &made.edits, &mut pack)
            .map_err(|e| Stop::seal_blocked(&e))?;
        let head_tree = store.commit(sealed_head)?.tree;
        let candidate = if tree == head_tree {
            sealed_head
        } else {
            let who = signature(&self.spec.author);
            let message = self.spec.message(&self.key);
            let bytes = tree::commit_bytes(tree, &[sealed_head], &who, &who, &message);
            pack.add_commit(&bytes).map_err(|e| Stop::seal_blocked(&e))?
        };
        let written: BTreeSet<Oid> =
            made.edits.values().flatten().map(|(_, id)| *id).filter(|id| pack.wrote(*id)).collect();
        let size = pack.finish().map_err(|e| Stop::seal_blocked(&e))?;
        store.refresh();
        let (base, shallow) = (Some(self.spec.base), self.shallow()?);
        let gaps = tree::closure(store, candidate, base, &shallow, &|id| written.contains(&id))?;
        if let Some(gap) = gaps.first() {
            return Err(Stop::damaged(format!("of the candidate, {gap}")));
        }

        for path in &made.untracked_changed {
            self.record.warn(
                "untracked_changed",
                format!("{path} was untracked before; the turn changed it, so it is committed"),
            );
        }
        made.gone.iter().for_each(|path| self.warn_of_gone(path));
        for path in &made.left {
            self.record.warn(
                "not_committed",
                format!(
                    "{path} is nothing that git commits (a repository, a pipe, a mount); it stays"
                ),
            );
        }
        let of_rules = scan.ignored_rules.iter().map(|(dir, bytes)| (hex(dir), hex(bytes)));
        let ignored_rules = Some(of_rules.collect());
        let file =
            SealFile { index_meaning: turn_index.meaning, entries: made.entries, ignored_rules };
        file.write(&self.session.place.attempt(&self.key))?;
        self.live.sealed = Some(self.view_of(file)?);
        self.live.scope_seen = true;

        self.pin_candidate(candidate)?;
        let detail = json!({
            "candidate": candidate, "tree": tree, "head": sealed_head, "changes": made.counts,
            "death": death.how(), "exit_code": turn.exit_code, "bytes": size,
        });
        let seal =
            Seal { candidate, tree, sealed_head, changes: made.counts, turn, death, adopted };
        let event = if adopted { TxEvent::Adopted(seal) } else { TxEvent::Sealed(seal) };
        self.apply(event, &detail)?;
        fault::point(Point::SealRecorded);
        Ok(())
    }

    /// Names the candidate's pin in the record. An earlier candidate of the same attempt (adopted
    /// again) is kept under a rescue pin.
    fn pin_candidate(&mut self, candidate: Oid) -> Result<(), Stop> {
        let name = self.spec.prefix().candidate(&self.key);
        let before = self.record.pins.candidate.take().filter(|pin| pin.id != candidate);
        if let Some(before) = before {
            self.record_pin(crate::coordinator::attempt::rescue::PinKind::Rescue, before.id, 0)?;
            let pin = Pin { name: name.clone(), id: candidate };
            self.session
                .refs
                .put_back(&self.spec.settings.ref_prefix, &pin)
                .map_err(|e| Stop::seal_blocked(&e))?;
        }
        self.record.pins.candidate = Some(Pin { name, id: candidate });
        Ok(())
    }

    /// Judges every file by an `info/attributes` that the turn wrote: it stays, and holds for what the
    /// turn did not touch too.
    fn judge_info(
        &self,
        info: Vec<u8>,
        snapshot: &Snapshot,
        scan: &Scan,
        verdicts: &mut Verdicts<'_>,
    ) -> Result<(), Stop> {
        let captured = CapturedAttributes { info, ..CapturedAttributes::of(&self.spec.git) };
        let mut attributes = Attributes::of_tree(&captured, &self.session.root, &scan.attributes)
            .map_err(Failure::other("reading the attributes of the tree"))?;
        if attributes.may_refuse() {
            let files = snapshot.iter().filter(|(_, child)| child.kind() == Kind::File);
            let files: Vec<RepoPath> = files.map(|(path, _)| path).collect();
            for (path, _) in attributes.unsupported(&files) {
                verdicts.filtered(&path);
            }
            policy::judge_attributes(&scan.changes, &mut attributes, verdicts);
        }
        Ok(())
    }

    /// Files that would be committed and that their own owner may not read.
    fn closed_files(&self, changes: &[Change]) -> Vec<RepoPath> {
        let closed = |change: &&Change| {
            let file = change.after.as_ref().filter(|found| found.kind == Kind::File);
            !change.ignored_by_turn && file.is_some_and(|found| found.stat.mode & 0o400 == 0)
        };
        changes
            .iter()
            .filter(closed)
            .filter(|change| self.session.root.open_file(&change.path).is_err())
            .map(|change| change.path.clone())
            .collect()
    }

    /// A policy says no: an undo, or, where an operator adopts, the quarantine that it was in.
    fn reject_turn(
        &mut self,
        cause: Cause,
        turn: TurnResult,
        death: ProvenDead,
        adopted: bool,
    ) -> Result<(), Stop> {
        if adopted {
            let mut more: Vec<String> = cause.paths().iter().map(ToString::to_string).collect();
            more.extend(cause.detail().map(str::to_owned));
            let why = format!("{} {}", cause.reason(), more.join(", "));
            return Err(Stop::Quarantine(QuarantineReason::AdoptFailed {
                why: why.trim_end().to_owned(),
            }));
        }
        self.fail(cause, turn, death)
    }

    fn read_turn_index(&self) -> Result<TurnIndex, Stop> {
        let git_dir = self.session.workspace.git_dir();
        let unread = |why: &dyn std::error::Error| {
            Stop::damaged(format!("the index cannot be read: {}", chain(why)))
        };
        let digest = index::known::digest_now(git_dir).map_err(|error| unread(&error))?;
        if digest.map(|digest| hex(&digest)) == self.spec.index_digest {
            let of_base = digest;
            let meaning = self.spec.index_meaning.clone();
            return Ok(TurnIndex { meaning, paths: None, of_base });
        }
        let index = index::read(git_dir).map_err(|error| unread(&error))?;
        let index = index.unwrap_or_else(Index::empty);
        let meaning = hex(&index.meaning().0);
        let same = meaning == self.spec.index_meaning;
        let paths = (!same).then(|| index.paths_stage0().map(|p| p.to_vec()).collect());
        Ok(TurnIndex { meaning, paths, of_base: None })
    }

    /// The turn's own commits pass the same policies, each of them.
    fn judge_commits(
        &self,
        snapshot: &crate::git::manifest::snapshot::Snapshot,
        base_rules: &crate::git::scan::rules::BaseRules,
        tip: Oid,
        verdicts: &mut Verdicts<'_>,
    ) -> Result<(), Stop> {
        if tip == self.spec.base {
            return Ok(());
        }
        let store = &self.session.store;
        let rules = view::rules(&self.spec);
        let mut base_view = View::new(&rules, Source::Base(base_rules));
        let commits = store
            .commits_between(self.spec.base, tip, &self.shallow()?)
            .map_err(|error| Stop::damaged(format!("the turn's own commits: {}", chain(&error))))?;
        for commit in commits {
            let tree = store.commit(commit)?.tree;
            for (path, before, after) in store.diff_trees(self.spec.base_tree, tree)? {
                let Some((mode, id)) = after else { continue };
                if mode == crate::tx::entry::GIT_LINK {
                    verdicts.unstorable(&path, "a submodule's commit");
                    continue;
                }
                if before.is_none() {
                    verdicts.name(&path, mode == GIT_SYMLINK);
                }
                let known = before.is_some() || snapshot.get(&path).is_some();
                if !known
                    && base_view
                        .ignores(&path, false)
                        .map_err(Failure::other("reading the ignore rules of the base"))?
                {
                    verdicts.unignored(&path);
                }
                if mode != GIT_SYMLINK {
                    verdicts.size(&path, store.blob_size(id)?, false);
                }
            }
        }
        Ok(())
    }

    /// Paths that the turn put into the index or into its own commits although they are untracked
    /// and unchanged, or ignored: they stand on disk and are in no change.
    fn forced_paths(
        &self,
        snapshot: &crate::git::manifest::snapshot::Snapshot,
        turn_index: &TurnIndex,
        tip: Oid,
        scan: &scan::Scan,
        verdicts: &mut Verdicts<'_>,
    ) -> Result<Vec<(RepoPath, Entry)>, Stop> {
        let mut wanted: BTreeSet<RepoPath> = BTreeSet::new();
        if let Some(paths) = &turn_index.paths {
            wanted.extend(paths.iter().filter_map(|p| RepoPath::new(p.clone()).ok()));
        }
        if tip != self.spec.base {
            let tree = self.session.store.commit(tip)?.tree;
            for (path, _, after) in self.session.store.diff_trees(self.spec.base_tree, tree)? {
                if after.is_some() {
                    wanted.insert(path);
                }
            }
        }
        let changed: BTreeSet<&RepoPath> = scan.changes.iter().map(|c| &c.path).collect();
        let mut forced = Vec::new();
        for path in wanted {
            if changed.contains(&path) {
                continue;
            }
            match snapshot.get(&path) {
                Some(entry) if entry.tracked.is_some() => {}
                Some(entry) if entry.kind.is_storable() => forced.push((path, entry)),
                Some(_) => {}
                None => {
                    let Some(found) = self.session.root.stat(&path).ok().flatten() else {
                        continue;
                    };
                    if !found.kind.is_storable() {
                        continue;
                    }
                    verdicts.unignored(&path);
                    let raw = scan::raw_id(&self.session.root, &path, &found, |_| {})
                        .map_err(view::scan_stop)?;
                    forced.push((path, view::entry(&found, &raw)));
                }
            }
        }
        Ok(forced)
    }
}
