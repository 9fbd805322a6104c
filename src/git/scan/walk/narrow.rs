//! A walk of the touched directories only: what is left out is known to be as the snapshot says.
//!
//! # Limitations
//! Rules that changed make everything beneath be looked at, touched or not.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use super::{GITATTRIBUTES, GITIGNORE, Here, Worker, look, same_stat};
use crate::git::files::listing::Names;
use crate::git::manifest::child_path;
use crate::git::manifest::row::Row;
use crate::git::manifest::touched::{Touched, above, parent};
use crate::git::scan::pool::Task;
use crate::git::scan::rules::read_rules;
use crate::git::scan::{Scan, ScanError, ScanRequest};
use crate::tx::entry::Kind;
use crate::tx::path::RepoPath;

/// Adds what holds of the directories that were left out: they are as the snapshot says.
pub(super) fn carry_over(
    request: &ScanRequest<'_>,
    touched: &Touched,
    all: &mut Scan,
) -> Result<(), ScanError> {
    // What was walked for another reason has been told already; what has gone is not there, and
    // what is dropped is out of scope.
    let dropped = std::mem::take(&mut all.dropped);
    let reread: BTreeSet<Vec<u8>> = std::mem::take(&mut all.reread).into_iter().collect();
    let was_looked_at =
        |dir: &[u8]| touched.covers(dir) || above(dir).any(|above| reread.contains(above));
    let is_dropped = |path: &RepoPath| dropped.binary_search(path).is_ok();
    let holds = |dir: &[u8], name: &[u8]| -> Result<bool, ScanError> {
        let path = child_path(dir, name);
        let is_out = is_dropped(&path) || RepoPath::new(dir).is_ok_and(|dir| is_dropped(&dir));
        Ok(!is_out && !was_looked_at(dir) && request.root.stat(&path)?.is_some())
    };
    let mut attributes: BTreeSet<Vec<u8>> =
        std::mem::take(&mut all.attributes).into_iter().collect();
    for path in request.snapshot.attributes() {
        let dir = parent(path.as_bytes());
        if !attributes.contains(dir) && holds(dir, GITATTRIBUTES)? {
            attributes.insert(dir.to_vec());
        }
    }
    all.attributes = attributes.into_iter().collect();
    for (dir, bytes) in request.snapshot.ignored_rules() {
        if !all.ignored_rules.contains_key(dir) && holds(dir, GITIGNORE)? {
            all.ignored_rules.insert(dir.clone(), bytes.clone());
        }
    }
    all.dropped = dropped;
    Ok(())
}

impl Worker<'_> {
    /// Goes through a directory in which nothing was touched to those beneath in which something
    /// was; `false` where it has to be listed.
    pub(super) fn pass(&mut self, task: &Task) -> Result<bool, ScanError> {
        let request = self.request;
        let Some(touched) = request.only.filter(|_| !task.whole) else { return Ok(false) };
        let Some(row) = request.snapshot.row(&task.dir) else { return Ok(false) };
        if touched.lists(&task.dir) {
            return Ok(false);
        }
        let mut children = Vec::new();
        for name in touched.next_beneath(&task.dir) {
            match row.get(&name) {
                Some(known) if known.kind() == Kind::Directory => children.push(known),
                _ => return Ok(false),
            }
        }
        let has_rules = row.get(GITIGNORE).is_some()
            || request.snapshot.ignored_rules().contains_key(&task.dir);
        let (base, turn) = self.views(task, has_rules, Some(row))?;
        let shared = base.is(&turn);
        let fd = request.root.handle();
        let here = Here { task, fd, base, turn, shared, whole: !shared };
        for known in children {
            self.path = child_path(&task.dir, known.name).as_bytes().to_vec();
            let ignored = self.ignored(&here, &self.path, true);
            self.enter(&here, known.stat(), ignored, None)?;
        }
        Ok(true)
    }

    /// Whether the ignore rules of the directory may be others than the snapshot was made by, where
    /// that decides over what is looked at beneath.
    pub(super) fn has_other_rules(
        &self,
        names: &Names,
        task: &Task,
        fd: BorrowedFd<'_>,
        row: Option<&Row>,
    ) -> Result<bool, ScanError> {
        if task.whole || self.request.only.is_none() {
            return Ok(false);
        }
        let at = names.find(GITIGNORE);
        let known = row.and_then(|row| row.get(GITIGNORE));
        match (at, known) {
            (None, None) => Ok(self.request.snapshot.ignored_rules().contains_key(&task.dir)),
            (Some(at), Some(known)) => {
                let seen = look(fd, names, at, &task.dir)?;
                Ok(!seen.is_some_and(|seen| {
                    known.stat_is_proof()
                        && seen.kind == known.kind()
                        && same_stat(&known.stat(), &seen.stat)
                }))
            }
            (Some(_), None) => {
                let before = self.request.snapshot.ignored_rules().get(&task.dir);
                let now = read_rules(self.request.root, &child_path(&task.dir, GITIGNORE));
                Ok(!now.is_ok_and(|now| now.as_ref() == before && before.is_some()))
            }
            (None, Some(_)) => Ok(true),
        }
    }
}
