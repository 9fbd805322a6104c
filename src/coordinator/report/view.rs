//! Looking at the work tree with the eyes of an attempt: its base, its rules, its limits.
//!
//! A scan against the base tells what the turn did; a scan against the [`SealView`] tells what
//! somebody did since the seal.
//!
//! A server that watches the tree says where to look ([`crate::coordinator::warm`]); without one
//! every look is at all.
//!
//! # Limitations
//! What a crash left is always looked at whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::durable;
use crate::base::hex::unhex;
use crate::base::spread;
use crate::coordinator::attempt::drive::{Driver, Stop};
use crate::coordinator::attempt::gitdir;
use crate::coordinator::error::Failure;
use crate::coordinator::session::Session;
use crate::coordinator::spec::AttemptSpec;
use crate::coordinator::warm::{self, Warmth};
use crate::git::files::root::Root;
use crate::git::manifest::baseline;
use crate::git::manifest::snapshot::Snapshot;
use crate::git::manifest::{Described, EntryChange, IgnoredRules};
use crate::git::objects::store::Store;
use crate::git::scan::rules::{BaseRules, CapturedExcludes, Rules};
use crate::git::scan::{self, NewDirectories, Scan, ScanError, ScanRequest};
use crate::git::undo::restore;
use crate::journal::Change as LedgerChange;
use crate::tx::cause::QuarantineReason;
use crate::tx::entry::{Change, Entry, Found, Kind};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::phase::Phase;
use crate::tx::settings::Scope;
use crate::tx::state::TxEvent;

/// How many changed paths make it worth to write them into the manifest beside a server: each is a
/// file that the next attempt hashes again, some 20 µs, against the five syncs of a db transaction.
const MANY: usize = 500;

/// What was sealed, as far as the commit does not tell: kept in the attempt's folder, durable
/// before the state `sealed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealFile {
    /// What the index meant, in hex.
    pub index_meaning: String,
    /// What stands at each path that differs from the base.
    pub entries: Vec<EntryChange>,
    /// The rules that are ignored themselves, directory and bytes in hex digits. `None` where what
    /// sealed did not keep them: then they are those of the base.
    #[serde(default)]
    pub ignored_rules: Option<Vec<(String, String)>>,
}

impl SealFile {
    const NAME: &'static str = "sealed.json";

    /// Writes it, durable.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(self).map_err(Failure::bug)?;
        durable::create_dir_all(folder, crate::coordinator::place::PRIVATE_DIR)
            .and_then(|()| {
                durable::write_file(
                    &folder.join(Self::NAME),
                    &bytes,
                    crate::coordinator::place::PRIVATE_FILE,
                )
            })
            .map_err(Failure::io("writing what was sealed"))
    }

    /// Reads it back.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(folder.join(Self::NAME))
            .map_err(Failure::io("reading what was sealed"))?;
        serde_json::from_slice(&bytes).map_err(Failure::other("reading what was sealed"))
    }
}

/// The work tree as it was sealed.
#[derive(Debug)]
pub struct SealView {
    /// The base with what the turn did on top.
    pub snapshot: Arc<Snapshot>,
    /// The ignore rules as sealed.
    pub rules: BaseRules,
    /// What was kept of the seal.
    pub file: SealFile,
    /// Whether it is of another process's seal: a crash lies between.
    pub of_earlier: bool,
}

/// The rules of an attempt: captured excludes and the scope.
pub fn rules(spec: &AttemptSpec) -> Rules {
    rules_of(&spec.git, &spec.settings.scope)
}

/// The rules from captured configuration and a scope.
pub fn rules_of(git: &crate::git::config::gitconfig::GitConfig, scope: &Scope) -> Rules {
    let captured = CapturedExcludes {
        info_exclude: git.info_exclude.bytes.clone(),
        excludes_file: git.excludes.bytes.clone(),
        ignore_case: git.ignore_case,
    };
    Rules::new(&captured, scope)
}

/// The `.gitignore` files of a snapshot.
///
/// The objects are opened once more where one has to be read, since two threads may ask: mostly
/// none has to, as what stands in the tree is what the base has.
pub fn base_rules(store: &Store, snapshot: &Arc<Snapshot>) -> BaseRules {
    let store = store.shared();
    let blobs = move |id| store.blob(id).map_err(|error| error.to_string());
    BaseRules::of(Arc::clone(snapshot), blobs)
}

/// Scans against a snapshot, with the rules that belong to it.
pub fn look(
    session: &Session,
    spec: &AttemptSpec,
    snapshot: &Snapshot,
    base: &BaseRules,
    new_directories: NewDirectories,
) -> Result<Scan, ScanError> {
    let mut warmth = session.warmth.borrow_mut();
    look_in(&session.root, &mut warmth, spec, snapshot, base, new_directories)
}

fn look_in(
    root: &Root,
    warmth: &mut Warmth,
    spec: &AttemptSpec,
    snapshot: &Snapshot,
    base: &BaseRules,
    new_directories: NewDirectories,
) -> Result<Scan, ScanError> {
    let rules = rules(spec);
    let temporary = [spec.temporary.as_bytes().to_vec()];
    let mut request = ScanRequest::new(root, snapshot, &rules, Some(base));
    request.temporary = &temporary;
    request.new_directories = new_directories;
    let asked = warmth.may_know().then(|| {
        let view = warm::view(&spec.git, &spec.settings.scope, root);
        warmth.ask(root, snapshot.meta().generation, Some(snapshot), view)
    });
    request.only = asked.as_ref().and_then(|asked| asked.touched.as_ref());
    if let Some(only) = request.only
        && let Err(error) = snapshot.read_ahead(only)
    {
        // Whatever it is, who asks for a row finds it too.
        tracing::debug!(%error, "rows are read one by one");
    }
    scan::scan(&request)
}

/// A scan that could not be finished, as a reason to stop.
pub fn scan_stop(error: ScanError) -> Stop {
    match error {
        ScanError::Unstable { path } => {
            Stop::Quarantine(QuarantineReason::Unstable { paths: vec![path] })
        }
        other => Stop::seal_blocked(&other),
    }
}

/// The entry of something that has been read.
pub const fn entry(found: &Found, raw: &scan::RawFile) -> Entry {
    Entry {
        kind: found.kind,
        stat: raw.stat,
        stat_is_proof: raw.stat_is_proof,
        raw: raw.oid,
        tracked: None,
    }
}

/// Whether two looks at a path found the same thing: kind, mode and bytes, whatever the times.
pub fn is_same(before: &Entry, after: &Entry) -> bool {
    before.kind == after.kind
        && before.raw == after.raw
        && (before.kind == Kind::Symlink || before.stat.mode == after.stat.mode)
}

/// The changes that are none once their bytes are read: the raw ids of the others.
///
/// Gives for each path that really differs what stands there now.
pub fn settle(
    session: &Session,
    changes: Vec<Change>,
) -> Result<Vec<(Change, Option<Entry>)>, Stop> {
    let mut differ = Vec::new();
    for change in changes {
        let now = match &change.after {
            None => None,
            Some(found) => {
                let raw =
                    scan::raw_id(&session.root, &change.path, found, |_| {}).map_err(scan_stop)?;
                Some(entry(found, &raw))
            }
        };
        let same = match (&change.before, &now) {
            (Some(before), Some(now)) => is_same(before, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            differ.push((change, now));
        }
    }
    Ok(differ)
}

impl Driver<'_> {
    /// The `.gitignore` files of a snapshot; what was read of them stays known.
    pub(in crate::coordinator) fn base_rules(&mut self, snapshot: &Arc<Snapshot>) -> BaseRules {
        match &self.live.base_rules {
            Some(known) if known.are_of(snapshot) => known.clone(),
            _ => {
                let rules = base_rules(&self.session.store, snapshot);
                self.live.base_rules.insert(rules).clone()
            }
        }
    }

    /// The manifest as it was at open.
    pub(in crate::coordinator) fn snapshot(&mut self) -> Result<Arc<Snapshot>, Stop> {
        if let Some(snapshot) = &self.live.snapshot {
            Ok(Arc::clone(snapshot))
        } else {
            let snapshot = Arc::new(self.session.manifest.load()?);
            // An empty one, made anew because the file was gone, would make an undo remove
            // everything.
            let told = snapshot.meta().described.head_tree;
            let sealed = self.state().seal().map(|seal| seal.tree);
            if told != Some(self.spec.base_tree) && (told.is_none() || told != sealed) {
                return Err(Stop::damaged("the manifest is not that of this attempt"));
            }
            self.live.snapshot = Some(Arc::clone(&snapshot));
            Ok(snapshot)
        }
    }

    /// Records that the undo begins, and looks at the tree meanwhile, in another thread: to look
    /// changes nothing. What it saw is in [`Live::looked`].
    ///
    /// [`Live::looked`]: crate::coordinator::attempt::drive::Live::looked
    pub(in crate::coordinator) fn begin_undo(
        &mut self,
        event: TxEvent,
        detail: &Value,
    ) -> Result<(), Stop> {
        self.live.laps.enter(Phase::Discard);
        // Whatever keeps from looking keeps from it again once the undo is recorded, and is told then.
        let root_mode = restore::root_mode(self.session.root.handle()).ok();
        let is_open = root_mode.is_some() && root_mode == self.spec.root_mode;
        let snapshot = if is_open { self.snapshot().ok() } else { None };
        let known = snapshot.map(|snapshot| {
            let rules = self.base_rules(&snapshot);
            (snapshot, rules)
        });
        let expected = self.record.state.tag();
        let name = event.name();
        let record = self.record.with(event).map_err(Failure::bug)?;
        let (key, rev, spec) = (&self.key, self.rev, &self.spec);
        let change = LedgerChange {
            key,
            expected,
            rev,
            record: &record,
            event: name,
            detail,
            outcome: None,
        };
        let Session { ledger, root, warmth, workspace, .. } = &mut *self.session;
        let warmth = warmth.get_mut();
        let look = || {
            let (snapshot, rules) = known?;
            Some(look_in(root, warmth, spec, &snapshot, &rules, NewDirectories::Walk))
        };
        // The look takes longer: what is needed next is read here meanwhile.
        let record_and_read = || {
            let recorded = ledger.transition(&change);
            (recorded, gitdir::capture(workspace, spec.git.hooks_path.as_deref()))
        };
        let ((recorded, git_now), looked) = spread::beside(record_and_read, look);
        self.rev = recorded.map_err(Failure::from)?;
        self.live.git_now = git_now.ok();
        tracing::info!(event = name, state = record.state.tag().as_str(), "recorded");
        self.record = record;
        self.live.looked = looked;
        Ok(())
    }

    /// Records what stands in the tree from now on, at the end of an attempt: after a commit, or where
    /// it is so much that the next open would write it down. A manifest that was moved or damaged
    /// meanwhile is begun anew, empty: the next look is a full one.
    ///
    /// The turn does not sync what it wrote, and a power loss may take the bytes and leave the times:
    /// the next open reads the files, and only what it finds is a proof.
    ///
    /// Nothing relies on it: the next attempt compares the tree with the manifest, and HEAD's tree
    /// with the one that it describes, and until then it is the base of this one.
    pub(in crate::coordinator) fn remember(
        &mut self,
        mut changes: Vec<EntryChange>,
        tree: Oid,
    ) -> Result<(), Failure> {
        let is_base = tree == self.spec.base_tree;
        let is_rules = |path: &RepoPath| path.name() == b".gitignore";
        let not_worth_it = if self.session.warmth.borrow().is_of_a_server() {
            // The next open looks at them, and writes. Where rules changed, it has to see that they did.
            changes.len() < MANY || changes.iter().any(|(path, _)| is_rules(path))
        } else {
            is_base && changes.len() <= baseline::STALE
        };
        if not_worth_it || (is_base && changes.is_empty()) {
            return Ok(());
        }
        for entry in changes.iter_mut().filter_map(|(_, entry)| entry.as_mut()).filter(|_| !is_base)
        {
            entry.stat_is_proof = false;
        }
        let root = Some(self.session.root.id());
        let described = Described { head_tree: Some(tree), root };
        let before = self.session.manifest.meta().map(|meta| meta.generation);
        let rewritten = baseline::directories(changes.iter().map(|(path, _)| path));
        let Err(error) = self.session.manifest.apply(changes, None, described) else {
            if let Ok(before) = before {
                self.session.warmth.borrow_mut().moved_on(before, &rewritten);
            }
            // They are of the manifest before, and may read more of it.
            self.live.snapshot = None;
            self.live.base_rules = None;
            self.live.sealed = None;
            return Ok(());
        };
        if error.is_of_the_machine() {
            tracing::warn!(%error, "the manifest is left as it was");
            return Ok(());
        }
        if self.live.snapshot.is_none() {
            return Err(error.into());
        }
        tracing::warn!(%error, "the manifest is begun anew");
        self.session.renew_manifest()
    }

    /// The work tree as it was sealed; after a crash from what was kept of it.
    ///
    /// The turn does not sync what it writes. A power loss may take the bytes of a file and leave
    /// its size and times: stat data from before a crash proves nothing of what the turn wrote.
    pub(in crate::coordinator) fn sealed_view(&mut self) -> Result<&SealView, Stop> {
        if self.live.sealed.is_none() {
            // Trying again would not bring it back.
            let mut file =
                SealFile::read(&self.session.place.attempt(&self.key)).map_err(|error| {
                    Stop::damaged(crate::coordinator::attempt::drive::chain(&error))
                })?;
            for entry in file.entries.iter_mut().filter_map(|(_, entry)| entry.as_mut()) {
                entry.stat_is_proof = false;
            }
            self.live.sealed = Some(SealView { of_earlier: true, ..self.view_of(file)? });
        }
        self.live.sealed.as_ref().ok_or_else(|| Failure::bug("a seal without a view").into())
    }

    pub(in crate::coordinator) fn view_of(&mut self, file: SealFile) -> Result<SealView, Stop> {
        let mut snapshot = Snapshot::clone(&*self.snapshot()?);
        snapshot.apply(file.entries.iter().cloned());
        if let Some(told) = &file.ignored_rules {
            // Without them, what they ignore would look as if it had come since the seal.
            let read = |(dir, bytes): &(String, String)| Some((unhex(dir)?, unhex(bytes)?));
            let rules: Option<IgnoredRules> = told.iter().map(read).collect();
            let rules = rules.ok_or_else(|| Stop::damaged("the rules of the seal"))?;
            let meta = snapshot.meta();
            snapshot = snapshot.described_by(meta, rules);
        }
        let snapshot = Arc::new(snapshot);
        let rules = base_rules(&self.session.store, &snapshot);
        Ok(SealView { snapshot, rules, file, of_earlier: false })
    }

    /// What of the sealed paths looks otherwise now: for a second look at a scope that was just
    /// scanned whole. Somebody else's edit of another path in between is as one a moment after the
    /// commit: it is in the tree, and in no commit.
    pub(in crate::coordinator) fn sealed_paths_touched(&self) -> bool {
        let root = &self.session.root;
        let Some(view) = &self.live.sealed else { return true };
        for (path, entry) in &view.file.entries {
            let Ok(now) = root.stat(path) else { return true };
            let same = match (entry, &now) {
                (None, None) => true,
                (Some(entry), Some(now)) if entry.kind == Kind::Directory => {
                    now.kind == Kind::Directory && entry.stat.mode == now.stat.mode
                }
                (Some(entry), Some(now)) => {
                    let (was, is) = (&entry.stat, &now.stat);
                    entry.kind == now.kind
                        && (was.mode, was.size, was.mtime_ns, was.ctime_ns, was.inode)
                            == (is.mode, is.size, is.mtime_ns, is.ctime_ns, is.inode)
                }
                _ => false,
            };
            if !same {
                return true;
            }
        }
        false
    }

    /// What differs from the seal now.
    pub(in crate::coordinator) fn since_seal(
        &mut self,
    ) -> Result<Vec<(Change, Option<Entry>)>, Stop> {
        self.sealed_view()?;
        let Some(view) = &self.live.sealed else {
            return Err(Failure::bug("a seal without a view").into());
        };
        let scan =
            look(self.session, &self.spec, &view.snapshot, &view.rules, NewDirectories::Walk)
                .map_err(scan_stop)?;
        if let Some(path) = scan.unreadable.into_iter().next() {
            return Err(Stop::Quarantine(QuarantineReason::Unstable { paths: vec![path] }));
        }
        settle(self.session, scan.changes)
    }
}

/// The blobs of a tree, by path.
pub fn tree_blobs(store: &Store, tree: Oid) -> Result<BTreeMap<RepoPath, (u32, Oid)>, Failure> {
    store
        .tree_walk(tree)
        .map(|item| item.map(|(path, mode, id)| (path, (mode, id))).map_err(Failure::from))
        .collect()
}
