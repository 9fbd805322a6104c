//! What is to be seen of a quarantined attempt right now: its processes, its branch, its tree held
//! against base and candidate; and by that which decisions would not be refused.
//!
//! # Limitations
//! A look without any lock: it may be another a moment later, and the decision looks again. While
//! somebody works in the work tree it is not looked at. Beyond [`READ`] bytes of changed files
//! nothing more is read: what is left counts as neither.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::coordinator::attempt::drive::chain;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::report::documents::{SeenBranch, SeenDocument, SeenTree, SeenWriter, Step};
use crate::coordinator::report::query;
use crate::coordinator::report::view::{self, SealFile};
use crate::coordinator::settle::observe;
use crate::coordinator::spec::AttemptSpec;
use crate::git::files::root::Root;
use crate::git::manifest::Manifest;
use crate::git::objects::store::Store;
use crate::git::refs::{Head, Refs};
use crate::git::scan::{self, ScanRequest};
use crate::git::workspace::Workspace;
use crate::git::workspace::lockfile;
use crate::journal::Attempt;
use crate::process::{self, Death};
use crate::tx::entry::{Entry, Kind};
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::path::RepoPath;
use crate::tx::record::AttemptRecord;
use crate::tx::state::{Seal, TxState};
use crate::tx::verdict::{Row, Terminal, TerminalStatus, judge};

/// How many bytes of changed files are read to tell what they are.
const READ: u64 = 256 << 20;
/// How many paths of each kind are named.
const NAMED: usize = 10;

/// Looks.
pub(super) fn look(
    context: &Context,
    attempt: &Attempt,
    spec: &AttemptSpec,
    record: &AttemptRecord,
) -> Result<SeenDocument, Failure> {
    let (workspace, place) = context.work_tree(&attempt.workspace.id, &attempt.workspace.root)?;
    let writer = writer(&place, &attempt.key, spec, &record.state);
    let store = Store::open(workspace.common_dir())?;
    let branch = branch(&workspace, &store, spec, record.state.seal())?;
    let busy = lockfile::is_held(workspace.git_dir()).unwrap_or(false);
    let tree = if busy {
        Err("somebody is at work in it".to_owned())
    } else {
        tree(&workspace, &place, &store, &attempt.key, spec, record)
    };
    let (tree, tree_error) = match tree {
        Ok(tree) => (Some(tree), None),
        Err(why) => (None, Some(why)),
    };
    Ok(SeenDocument { writer, branch, tree, tree_error })
}

fn writer(place: &Place, key: &AttemptKey, spec: &AttemptSpec, state: &TxState) -> SeenWriter {
    let Some(recorded) = state.writer() else {
        return SeenWriter { state: "dead".to_owned(), detail: None };
    };
    let folder = observe::writer_folder_of(place, key, state);
    let (state, detail) = match process::check(recorded, &folder, spec.settings.exclusive_volume) {
        Death::Proven(_) => ("dead", None),
        Death::Alive(living) => {
            let all: Vec<String> =
                living.iter().map(|one| format!("{} {}", one.pid, one.command)).collect();
            ("alive", Some(all.join(", ")))
        }
        Death::Unproven(why) => ("unproven", Some(why)),
    };
    SeenWriter { state: state.to_owned(), detail }
}

fn branch(
    workspace: &Workspace,
    store: &Store,
    spec: &AttemptSpec,
    seal: Option<&Seal>,
) -> Result<SeenBranch, Failure> {
    let refs = Refs::open(workspace.git_dir(), workspace.common_dir())?;
    let head = refs.head()?;
    let (head_name, on_it, mut now) = match (&head, &spec.branch) {
        (Head::Branch(name, id), Some(branch)) => (name.short().to_owned(), name == branch, *id),
        (Head::Branch(name, id), None) => (name.short().to_owned(), false, *id),
        (Head::Detached(id), branch) => (id.to_string(), branch.is_none(), Some(*id)),
        (Head::Other(text), _) => (text.clone(), false, None),
    };
    if !on_it && let Some(branch) = &spec.branch {
        now = refs.get(branch)?;
    }
    let at = match (now, seal) {
        (None, _) => "gone",
        (Some(now), _) if now == spec.base => "base",
        (Some(now), Some(seal)) if now == seal.candidate => "candidate",
        (Some(now), Some(seal)) if now == seal.sealed_head => "sealed",
        (Some(now), Some(seal)) if descends(store, now, seal.candidate) => "past_candidate",
        (Some(now), _) if descends(store, now, spec.base) => "past_base",
        _ => "elsewhere",
    };
    Ok(SeenBranch { head: head_name, head_is_on_it: on_it, commit: now, at: at.to_owned() })
}

fn descends(store: &Store, tip: Oid, ancestor: Oid) -> bool {
    store.is_descendant(tip, ancestor).unwrap_or(false)
}

/// Each path that the turn or anybody else changed: where it is now.
fn tree(
    workspace: &Workspace,
    place: &Place,
    store: &Store,
    key: &AttemptKey,
    spec: &AttemptSpec,
    record: &AttemptRecord,
) -> Result<SeenTree, String> {
    let manifest = place.manifest();
    if !manifest.exists() {
        return Err("what was known of it at open is gone".to_owned());
    }
    let snapshot = Manifest::open_to_read(&manifest).and_then(|manifest| manifest.load());
    let snapshot = Arc::new(snapshot.map_err(|error| chain(&error))?);
    let told = snapshot.meta().described.head_tree;
    let sealed_tree = record.state.seal().map(|seal| seal.tree);
    if told.is_none() || (told != Some(spec.base_tree) && told != sealed_tree) {
        return Err("what was known of it at open is not this attempt's any more".to_owned());
    }
    let base = view::base_rules(store, &snapshot);
    let root = Root::open(workspace.root()).map_err(|error| chain(&error))?;
    let rules = view::rules(spec);
    let temporary = [spec.temporary.as_bytes().to_vec()];
    let mut request = ScanRequest::new(&root, &snapshot, &rules, Some(&base));
    request.temporary = &temporary;
    let scan = scan::scan(&request).map_err(|error| chain(&error))?;

    let sealed: Option<BTreeMap<RepoPath, Option<Entry>>> = record
        .state
        .seal()
        .and_then(|_| SealFile::read(&place.attempt(key)).ok())
        .map(|file| file.entries.into_iter().collect());
    let mut seen = SeenTree {
        has_candidate: sealed.is_some(),
        at_base: 0,
        at_candidate: 0,
        neither: 0,
        base_paths: Vec::new(),
        candidate_paths: Vec::new(),
        neither_paths: Vec::new(),
    };
    let mut read = 0;
    let mut changed = std::collections::BTreeSet::new();
    for change in scan.changes {
        let now = match &change.after {
            None => None,
            Some(found) if found.kind == Kind::File && read + found.stat.size > READ => {
                seen.neither += 1;
                changed.insert(change.path);
                continue;
            }
            Some(found) => {
                read += found.stat.size;
                let raw = scan::raw_id(&root, &change.path, found, |_| {});
                Some(view::entry(found, &raw.map_err(|error| chain(&error))?))
            }
        };
        let same = |other: Option<&Entry>| match (other, &now) {
            (Some(other), Some(now)) => view::is_same(other, now),
            (None, None) => true,
            _ => false,
        };
        if same(change.before.as_ref()) {
            continue;
        }
        let at_candidate = sealed
            .as_ref()
            .and_then(|sealed| sealed.get(&change.path))
            .is_some_and(|entry| same(entry.as_ref()));
        let (count, paths) = if at_candidate {
            (&mut seen.at_candidate, &mut seen.candidate_paths)
        } else {
            (&mut seen.neither, &mut seen.neither_paths)
        };
        *count += 1;
        if paths.len() < NAMED {
            paths.push(change.path.clone());
        }
        changed.insert(change.path);
    }
    for path in sealed.iter().flat_map(BTreeMap::keys).filter(|path| !changed.contains(*path)) {
        seen.at_base += 1;
        if seen.base_paths.len() < NAMED {
            seen.base_paths.push(path.clone());
        }
    }
    Ok(seen)
}

/// The commands that would not be refused as things stand, and what has to be done before them.
pub(super) fn commands(
    key: &AttemptKey,
    spec: &AttemptSpec,
    state: &TxState,
    row: Option<&Row>,
    seen: &SeenDocument,
) -> (Vec<Step>, Vec<String>) {
    let TxState::Quarantined { held, .. } = state else { return (Vec::new(), Vec::new()) };
    let mut all = query::legal(key, state, row, false, seen.writer.state != "dead");
    let branch = spec.branch.as_ref();
    let mut steps = Vec::new();
    if held.is_past_commit_point() {
        if let (Some(seal), Some(now), Some(branch)) = (state.seal(), seen.branch.commit, branch)
            && matches!(seen.branch.at.as_str(), "elsewhere" | "past_base" | "base")
            && now != seal.sealed_head
        {
            steps.push(Step {
                command: format!(
                    "git branch kept-{}-{} {}",
                    key.execution.short(),
                    key.attempt,
                    now.short()
                ),
                what: "keeps what stands on the branch now".to_owned(),
            });
            steps.push(Step {
                command: format!(
                    "git update-ref {branch} {} {}",
                    seal.sealed_head.short(),
                    now.short()
                ),
                what: "puts it back to where the work was sealed, and touches no file".to_owned(),
            });
        }
        return (steps, all);
    }
    if !seen.branch.head_is_on_it {
        let (command, what) = match branch {
            Some(branch) => (format!("git symbolic-ref HEAD {branch}"), "brings HEAD back"),
            None => (format!("git update-ref --no-deref HEAD {}", spec.base), "brings HEAD back"),
        };
        steps.push(Step {
            command,
            what: format!("{what}, and touches no file; without it only --keep goes"),
        });
    }
    if seen.branch.at == "gone"
        && let Some(branch) = branch
    {
        steps.push(Step {
            command: format!("git update-ref {branch} {}", spec.base),
            what: "makes the branch again, at the base".to_owned(),
        });
    }
    let refused = |command: &String| {
        command.contains("--adopt") && (seen.branch.at == "elsewhere" || would_lose(key, spec, row))
    };
    all.retain(|command| !refused(command));
    (steps, all)
}

/// Whether SUCCESS of this attempt would lose to what stands in the row.
pub(in crate::coordinator) fn would_lose(
    key: &AttemptKey,
    spec: &AttemptSpec,
    row: Option<&Row>,
) -> bool {
    let named = row.and_then(|row| row.success).map(|claim| claim.candidate);
    let ask = Terminal {
        status: TerminalStatus::Success(named.unwrap_or(spec.base)),
        from: Some(key.attempt),
        claim_token: spec.claim_token.clone(),
        error: None,
    };
    !judge(row, &ask)
}
