//! The base: whether the workspace can be one, what stands in it, and the pin that keeps it alive.
//!
//! # Limitations
//! What is told is what was found first: a repository that git cannot read has no other faults.

use std::collections::HashSet;

use crate::base::spread;
use crate::coordinator::attempt::drive::chain;
use crate::coordinator::attempt::gitdir;
use crate::coordinator::attempt::rescue::pin_stop;
use crate::coordinator::attempt::seal::signature;
use crate::coordinator::error::Failure;
use crate::coordinator::report::query;
use crate::coordinator::report::view;
use crate::coordinator::session::Session;
use crate::coordinator::warm;
use crate::git::config::attributes::CapturedAttributes;
use crate::git::config::convert::AutoCrlf;
use crate::git::config::gitconfig::{Identity, NoIdentity};
use crate::git::guarded;
use crate::git::index;
use crate::git::index::{Index, IndexError, Meaning};
use crate::git::manifest::baseline::{self, Baseline, BaselineError, BaselineRequest};
use crate::git::objects::pack::PackWriter;
use crate::git::undo::pin::{self, PinSource};
use crate::git::workspace::judge::{self, BaseFacts};
use crate::git::workspace::refusal::Refusal;
use crate::process;
use crate::tx::entry::{Found, GIT_LINK};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::Untracked;
use crate::tx::state::TxState;

use crate::coordinator::attempt::begin::Begin;

/// A base that was accepted.
pub(in crate::coordinator) struct Base {
    pub(super) facts: BaseFacts,
    pub(super) baseline: Baseline,
    pub(super) index: FoundIndex,
    /// The files of the git directory that are watched over.
    pub(super) git_directory: guarded::Snapshot,
}

/// The index at open.
pub(super) struct FoundIndex {
    /// Of its bytes; `None` where there is no file.
    pub(super) digest: Option<index::known::IndexDigest>,
    pub(super) meaning: Meaning,
    /// The base's tree says all that it means.
    pub(super) is_plain: bool,
}

impl Begin<'_> {
    /// Who commits: `[commit] author`, else the repository's own identity.
    pub(super) fn author(&self, facts: &BaseFacts) -> Result<Identity, Failure> {
        let set = self.loaded.values.settings.author.as_deref();
        let parts = set.and_then(|text| text.strip_suffix('>')?.split_once('<'));
        match parts {
            Some((name, email)) => {
                Ok(Identity { name: name.trim().to_owned(), email: email.trim().to_owned() })
            }
            None => Ok(facts.config.author()?.clone()),
        }
    }

    pub(in crate::coordinator) fn judge(&mut self, session: &mut Session) -> Result<Base, Failure> {
        let refused = |refusals: Vec<Refusal>| Failure::Refused { refusals, warnings: Vec::new() };
        if let Some(attempt) =
            session.ledger.unsettled(Some(&session.workspace.id()))?.into_iter().next()
        {
            let record = attempt.record()?;
            let reason = match &record.state {
                TxState::Quarantined { reason, .. } => reason.as_str(),
                other => other.tag().as_str(),
            };
            let row = session.ledger.execution(&attempt.key.execution)?.map(|found| found.row);
            return Err(refused(vec![Refusal::Quarantined {
                reason: reason.to_owned(),
                commands: query::commands(
                    &attempt.key,
                    &attempt.spec()?,
                    &record.state,
                    row.as_ref(),
                    false,
                ),
                attempt: attempt.key,
            }]));
        }
        let (workspace, store) = (&session.workspace, &session.store);
        let facts = judge::judge_but_submodules(workspace, store, &self.git_env, |_| false)
            .map_err(refused)?;
        self.loaded = self.request.context.settings(&session.store, facts.tree)?;
        self.author(&facts).map_err(|failure| match failure {
            Failure::Identity(NoIdentity { role }) => {
                refused(vec![Refusal::NoIdentity { role: role.to_owned() }])
            }
            other => other,
        })?;

        let mut refusals = Vec::new();
        let index = judge_index(session, facts.tree, &mut refusals)?;
        let workspace = session.workspace.clone();
        let hooks_path = facts.config.hooks_path.as_deref();
        let (baseline, git_directory) = spread::beside(
            || self.establish(session, &facts),
            || gitdir::capture(&workspace, hooks_path),
        );
        let baseline = baseline?;
        refusals.extend(self.judge_baseline(&baseline));
        if !refusals.is_empty() {
            return Err(refused(refusals));
        }
        let git_directory = git_directory.map_err(Failure::other("reading the git directory"))?;
        Ok(Base { facts, baseline, index, git_directory })
    }

    fn establish(&self, session: &mut Session, facts: &BaseFacts) -> Result<Baseline, Failure> {
        let settings = &self.loaded.values.settings;
        let rules = view::rules_of(&facts.config, &settings.scope);
        let attributes = CapturedAttributes::of(&facts.config);
        let mut warmth = session.warmth.borrow_mut();
        let asked = if warmth.may_know() {
            let generation =
                session.manifest.meta().map_err(Failure::other("reading the manifest"))?;
            let view = if warmth.is_of_a_server() { warm::view } else { warm::view_at_open };
            let view = view(&facts.config, &settings.scope, &session.root);
            Some(warmth.ask(&session.root, generation.generation, None, view))
        } else {
            None
        };
        let watcher = self.request.watcher.as_deref();
        let progress = watcher.map(|w| move |names| w.looked_at(names));
        let request = BaselineRequest {
            root: &session.root,
            store: &session.store,
            head_tree: facts.tree,
            rules: &rules,
            attributes: &attributes,
            autocrlf: AutoCrlf::of(&facts.config),
            file_mode: facts.config.file_mode,
            limits: settings.limits,
            temporary: &[],
            keep_modified: false,
            progress: progress.as_ref().map(|told| told as &(dyn Fn(u64) + Sync)),
            only: asked.as_ref().and_then(|asked| asked.touched.as_ref()),
            stale: match warmth.is_of_a_server() {
                _ if self.is_warming => 0,
                true => baseline::STALE_WATCHED,
                false => baseline::STALE,
            },
        };
        let established = baseline::establish(&mut session.manifest, &request);
        if let Some(watcher) = watcher {
            watcher.over();
        }
        if let (Some(asked), Ok(found)) = (&asked, &established)
            && found.modified.is_empty()
            && found.can_be_watched
        {
            warmth.looked(asked, found.full, &found.rewritten, &found.stale);
        }
        established.map_err(|error| match error {
            BaselineError::TooMuch { too_large: paths, files, bytes } => {
                let limits = settings.limits;
                let (limit, allowed, found) = if !paths.is_empty() {
                    ("file", limits.file_bytes, bytes)
                } else if files > limits.files {
                    ("files", limits.files, files)
                } else {
                    ("total", limits.total_bytes, bytes)
                };
                let limit = limit.to_owned();
                Failure::Refused {
                    refusals: vec![Refusal::UntrackedBeyondLimits { limit, allowed, found, paths }],
                    warnings: Vec::new(),
                }
            }
            BaselineError::Unreadable { paths } => Failure::Refused {
                refusals: vec![Refusal::Unreadable { paths }],
                warnings: Vec::new(),
            },
            other => Failure::other("looking at the work tree")(other),
        })
    }

    fn judge_baseline(&self, baseline: &Baseline) -> Vec<Refusal> {
        use crate::git::config::attributes::Unsupported;
        let mut refusals = Vec::new();
        if !baseline.modified.is_empty() {
            refusals.push(Refusal::ModifiedTracked { paths: baseline.modified.clone() });
        }
        if self.loaded.values.settings.untracked == Untracked::Refuse
            && !baseline.untracked.is_empty()
        {
            let paths = baseline.untracked.iter().map(|(path, _)| path.clone()).collect();
            refusals.push(Refusal::UntrackedPresent { paths });
        }
        for (path, why) in &baseline.unsupported {
            let paths = vec![path.clone()];
            refusals.push(match why {
                Unsupported::Filter(driver) => {
                    Refusal::FilterDriver { driver: driver.clone(), paths }
                }
                Unsupported::Encoding(_) => Refusal::WorkingTreeEncoding { paths },
                Unsupported::Ident => Refusal::Ident { paths },
            });
            if refusals.len() > 20 {
                break;
            }
        }
        refusals
    }
}

/// The commit that keeps the base alive: the base itself, or one on top of it with what is
/// untracked and what differs from git's bytes.
pub(super) fn base_pin(session: &Session, base: &Base, author: &Identity) -> Result<Oid, Failure> {
    let mut additions: Vec<(RepoPath, Found)> = base
        .baseline
        .untracked
        .iter()
        .map(|(path, entry)| (path.clone(), Found { kind: entry.kind, stat: entry.stat }))
        .collect();
    for (path, child) in base.baseline.snapshot.notable() {
        if child.has_own_blob() && child.kind().has_bytes() {
            let found = Found { kind: child.kind(), stat: child.stat() };
            additions.push((path.clone(), found));
        }
    }
    let mut stash = session.refs.stash_entries()?;
    stash.retain(|id| session.store.exists(*id));
    if additions.is_empty() && stash.is_empty() {
        return Ok(base.facts.commit);
    }
    let who = signature(author);
    let nothing = HashSet::new();
    let mut pack = PackWriter::new(&session.store);
    let from = PinSource {
        root: session.root.handle(),
        store: &session.store,
        onto: base.facts.tree,
        parents: &[base.facts.commit],
        too_large: &nothing,
        who: &who,
        message: "worktx: the base, with what was untracked\n",
    };
    let stopped = |stop| match stop {
        crate::coordinator::attempt::drive::Stop::Failure(failure) => failure,
        crate::coordinator::attempt::drive::Stop::Quarantine(reason) => Failure::impossible(
            format!(
                "the base cannot be pinned: {} {}",
                reason.as_str(),
                reason.detail().unwrap_or_default()
            ),
            "worktx status",
        ),
    };
    let built = pin::build_base_pin(&from, &additions, &mut pack)
        .map_err(|error| stopped(pin_stop(error)))?;
    pack.finish().map_err(Failure::other("pinning the base"))?;
    session.store.refresh();
    if stash.is_empty() {
        return Ok(built.commit);
    }
    // A turn may drop the stash and prune: its entries live on as parents of the pin.
    let tree = session.store.commit(built.commit)?.tree;
    let mut parents = vec![built.commit];
    parents.extend(stash);
    parents.dedup();
    let message = "worktx: the base, with the stash beside it\n";
    let bytes = crate::git::objects::tree::commit_bytes(tree, &parents, &who, &who, message);
    let mut pack = PackWriter::new(&session.store);
    let id = pack.add_commit(&bytes).map_err(Failure::other("pinning the stash"))?;
    pack.finish().map_err(Failure::other("pinning the stash"))?;
    session.store.refresh();
    Ok(id)
}

/// Looks at the index, which has to have what the base's tree has; one that was found so before is
/// not read again.
fn judge_index(
    session: &Session,
    tree: Oid,
    refusals: &mut Vec<Refusal>,
) -> Result<FoundIndex, Failure> {
    let refused = |refusals: Vec<Refusal>| Failure::Refused { refusals, warnings: Vec::new() };
    let git_dir = session.workspace.git_dir();
    let boot_id = process::this_host().boot_id;
    let noted = session.place.noted_index().filter(|noted| noted.tree == tree);
    if let Some(noted) = &noted
        && index::known::is_noted(git_dir, &boot_id, noted)?
    {
        let (digest, meaning, is_plain) = (Some(noted.digest), noted.meaning, noted.is_plain);
        return Ok(FoundIndex { digest, meaning, is_plain });
    }
    let (bytes, digest) = index::known::read(git_dir)?.unzip();
    let index = match &bytes {
        None => Ok(Index::empty()),
        Some(bytes) => Index::parse(bytes),
    };
    let index = index.map_err(|error| refused(vec![unreadable(&error)]))?;
    let conflicts = index.conflicts();
    if !conflicts.is_empty() {
        return Err(refused(vec![Refusal::ConflictedIndex { paths: conflicts }]));
    }
    let (meaning, is_plain) = (index.meaning(), index.is_plain());
    if let Some(digest) = digest {
        index::known::remember(digest, meaning);
    }
    // git writes it anew whenever somebody looks: one of the same meaning has what it had.
    let (staged, submodules) = if noted.is_some_and(|noted| noted.meaning == meaning) {
        (Vec::new(), Vec::new())
    } else {
        let staged = index
            .differs_from_tree(&session.store, tree)
            .map_err(|error| refused(vec![Refusal::Damaged { why: chain(&error) }]))?;
        (staged, submodules(&session.store, tree, &index)?)
    };
    if staged.is_empty()
        && submodules.is_empty()
        && let Some(noted) = digest
            .and_then(|d| index::known::to_note(git_dir, &boot_id, d, meaning, tree, is_plain))
    {
        session.place.note_index(&noted);
    }
    if !staged.is_empty() {
        let paths = staged.into_iter().map(|(path, _)| path).collect();
        refusals.push(Refusal::StagedChanges { paths });
    }
    if !submodules.is_empty() {
        refusals.push(Refusal::Submodules { paths: submodules });
    }
    Ok(FoundIndex { digest, meaning, is_plain })
}

/// What an index that cannot be read is to a base.
pub(in crate::coordinator) fn unreadable(error: &IndexError) -> Refusal {
    match error {
        IndexError::Split => Refusal::SplitIndex,
        IndexError::Sparse => Refusal::SparseIndex,
        other => Refusal::Damaged { why: chain(other) },
    }
}

/// The submodules of a base: links to commits, and a list of them. Where nothing is staged, the
/// index has what the tree has.
fn submodules(
    store: &crate::git::objects::store::Store,
    tree: Oid,
    index: &Index,
) -> Result<Vec<RepoPath>, Failure> {
    let links = index.entries().filter(|entry| entry.mode == GIT_LINK);
    let mut paths: Vec<RepoPath> = links.take(100).map(|entry| entry.repo_path()).collect();
    let list = RepoPath::new(".gitmodules").map_err(Failure::bug)?;
    if store.lookup(tree, &list)?.is_some() {
        paths.push(list);
    }
    paths.sort();
    Ok(paths)
}
