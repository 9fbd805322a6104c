//! What a successful turn may not leave behind: secrets un-ignored, more than the limits, what git
//! cannot store, filters that worktx does not run, a repository in which no attempt could begin.
//!
//! # Limitations
//! Policies look at paths and sizes, never at the meaning of bytes: that is the post-check's.

use std::collections::BTreeSet;

use crate::git::config::attributes::Attributes;
use crate::git::files::names::{passes_fsck, storable_path};
use crate::tx::cause::Cause;
use crate::tx::entry::{Change, Kind};
use crate::tx::path::RepoPath;
use crate::tx::settings::{OnUnignored, Settings};
use crate::tx::writer::BlockedPath;

/// The kernel's bound on a path given as a whole, as git gives it; with the zero at its end.
const PATH_MAX: usize = 4096;

/// How many paths of each kind are told.
const TOLD: usize = 100;

/// What was found, by policy.
#[derive(Debug)]
pub(super) struct Verdicts<'a> {
    settings: &'a Settings,
    unignored: Vec<RepoPath>,
    too_large: Vec<RepoPath>,
    filtered: Vec<RepoPath>,
    unstorable: Vec<BlockedPath>,
    unfit: Option<String>,
    bytes: u64,
    files: u64,
}

impl<'a> Verdicts<'a> {
    /// Nothing yet.
    pub(super) const fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            unignored: Vec::new(),
            too_large: Vec::new(),
            filtered: Vec::new(),
            unstorable: Vec::new(),
            unfit: None,
            bytes: 0,
            files: 0,
        }
    }

    /// The base ignored it, and it would be committed.
    pub(super) fn unignored(&mut self, path: &RepoPath) {
        if self.settings.on_unignored == OnUnignored::Reject && !self.unignored.contains(path) {
            push(&mut self.unignored, path);
        }
    }

    /// Something of this size would be committed; `created` counts it among what the turn made.
    pub(super) fn size(&mut self, path: &RepoPath, bytes: u64, created: bool) {
        let limits = &self.settings.limits;
        if created {
            self.bytes = self.bytes.saturating_add(bytes);
            self.files += 1;
        }
        let over = bytes > limits.file_bytes
            || self.bytes > limits.total_bytes
            || self.files > limits.files;
        if over && !self.too_large.contains(path) {
            push(&mut self.too_large, path);
        }
    }

    /// Git cannot store it.
    pub(super) fn unstorable(&mut self, path: &RepoPath, why: &str) {
        if self.unstorable.len() < TOLD {
            self.unstorable.push(BlockedPath { path: path.clone(), why: why.to_owned() });
        }
    }

    /// No attempt could begin in what would be committed.
    pub(super) fn unfit(&mut self, why: &str) {
        self.unfit.get_or_insert_with(|| why.to_owned());
    }

    /// A filter, or the like, that the turn put a path under.
    pub(super) fn filtered(&mut self, path: &RepoPath) {
        push(&mut self.filtered, path);
    }

    /// A path comes into the repository: whoever checks what is pushed must take it.
    pub(super) fn name(&mut self, path: &RepoPath, is_symlink: bool) {
        if !passes_fsck(path, is_symlink) {
            self.unstorable(path, "git fsck does not take this name");
        }
    }

    /// Why the turn is rolled back, if it is.
    pub(super) fn cause(self) -> Option<Cause> {
        if let Some(why) = self.unfit {
            return Some(Cause::Unfit { why });
        }
        if !self.unignored.is_empty() {
            return Some(Cause::Unignored { paths: self.unignored });
        }
        if !self.too_large.is_empty() {
            return Some(Cause::TooLarge { paths: self.too_large });
        }
        if !self.filtered.is_empty() {
            return Some(Cause::FilterUnsupported { paths: self.filtered });
        }
        (!self.unstorable.is_empty()).then_some(Cause::Unstorable { paths: self.unstorable })
    }
}

fn push(list: &mut Vec<RepoPath>, path: &RepoPath) {
    if list.len() < TOLD {
        list.push(path.clone());
    }
}

/// Judges what the scan found. `index` has the paths of the turn's index, where it is another
/// than at open.
pub(super) fn judge_changes(
    changes: &[Change],
    index: Option<&BTreeSet<Vec<u8>>>,
    verdicts: &mut Verdicts<'_>,
) {
    for change in changes {
        let Some(found) = &change.after else { continue };
        if !found.kind.is_storable() {
            continue;
        }
        let tracked = change.before.as_ref().is_some_and(|entry| entry.tracked.is_some());
        let forced = index.is_some_and(|paths| paths.contains(change.path.as_bytes()));
        if change.ignored_by_turn && !forced && !tracked {
            continue;
        }
        if change.ignored_by_base && change.before.is_none() {
            verdicts.unignored(&change.path);
        }
        if found.kind == Kind::File {
            verdicts.size(&change.path, found.stat.size, true);
        }
        // No base has one: submodules are refused.
        if change.path.as_bytes() == b".gitmodules" {
            verdicts.unfit("a list of submodules (.gitmodules)");
        }
        if change.path.as_bytes().len() >= PATH_MAX {
            verdicts.unstorable(&change.path, "git cannot open a path as long as this");
        }
        let link = found.kind == Kind::Symlink;
        if !storable_path(&change.path, link) {
            verdicts.unstorable(&change.path, "git does not take this name");
        } else if !tracked {
            verdicts.name(&change.path, link);
        }
    }
}

/// Judges which conversions the turn's attributes ask for.
pub(super) fn judge_attributes(
    changes: &[Change],
    attributes: &mut Attributes,
    verdicts: &mut Verdicts<'_>,
) {
    let files = changes
        .iter()
        .filter(|c| !c.ignored_by_turn)
        .filter(|c| c.after.as_ref().is_some_and(|found| found.kind == Kind::File))
        .map(|c| &c.path);
    for (path, _) in attributes.unsupported(files) {
        verdicts.filtered(&path);
    }
}
