//! What leads from one commit to another.
//!
//! # Limitations
//! Commits are walked by their dates. A clock that is wrong by more than a week may hide that a commit
//! descends from another, and so does a commit between them that is missing.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

use crate::git::objects::odb::OdbError;
use crate::git::objects::store::{Store, StoreError};
use crate::tx::id::Oid;

/// How far a commit's clock may be behind its parent's before descent goes unseen, in seconds.
const CLOCK_SLACK: i64 = 7 * 24 * 3600;

impl Store {
    /// Whether `tip` is `ancestor` or has it in its history, as far as that is there: a shallow clone
    /// lacks some of it.
    pub fn is_descendant(&self, tip: Oid, ancestor: Oid) -> Result<bool, StoreError> {
        if tip == ancestor {
            return Ok(true);
        }
        let floor = self.commit(ancestor)?.time.saturating_sub(CLOCK_SLACK);
        let mut seen = HashSet::from([tip]);
        let mut queue = BinaryHeap::from([Dated { time: self.commit(tip)?.time, id: tip }]);
        while let Some(Dated { id, time }) = queue.pop() {
            if time < floor {
                return Ok(false);
            }
            for parent in self.commit(id)?.parents {
                if parent == ancestor {
                    return Ok(true);
                }
                if seen.insert(parent)
                    && let Some(time) = self.time_of(parent)?
                {
                    queue.push(Dated { time, id: parent });
                }
            }
        }
        Ok(false)
    }

    /// When a commit was made; `None` where it is not there.
    fn time_of(&self, id: Oid) -> Result<Option<i64>, StoreError> {
        match self.commit(id) {
            Ok(commit) => Ok(Some(commit.time)),
            Err(StoreError::Odb(OdbError::Missing(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The commits that `tip` has in its history (itself included) and `base` has not, newest
    /// first. Parents of `shallow` commits need not be there: where a shallow clone was cut off.
    pub fn commits_between(
        &self,
        base: Oid,
        tip: Oid,
        shallow: &BTreeSet<Oid>,
    ) -> Result<Vec<Oid>, StoreError> {
        // Flags per commit: true once it is known to be in the history of the base.
        let mut known: HashMap<Oid, bool> = HashMap::from([(base, true)]);
        known.entry(tip).or_insert(false);
        let mut queue = BinaryHeap::new();
        for id in known.keys() {
            queue.push(Dated { time: self.commit(*id)?.time, id: *id });
        }
        // How many commits of the tip's side are still to be walked, and the oldest one walked.
        let mut wanted = known.values().filter(|is_base| !**is_base).count();
        let mut oldest = i64::MAX;
        let mut listed = Vec::new();
        let mut done = HashSet::new();
        while let Some(Dated { id, time }) = queue.pop() {
            // The base's side may still reach what is listed, as long as its clock may be wrong.
            if wanted == 0 && (listed.is_empty() || time < oldest.saturating_sub(CLOCK_SLACK)) {
                break;
            }
            let of_base = known[&id];
            if done.insert(id) && !of_base {
                wanted -= 1;
                oldest = oldest.min(time);
                listed.push(id);
            }
            for parent in self.commit(id)?.parents {
                let time = match self.time_of(parent)? {
                    Some(time) => time,
                    None if shallow.contains(&id) => continue,
                    None => return Err(OdbError::Missing(parent).into()),
                };
                match known.get(&parent).copied() {
                    None => {
                        known.insert(parent, of_base);
                        wanted += usize::from(!of_base);
                    }
                    Some(false) if of_base => {
                        known.insert(parent, true);
                        // Not walked yet: one less to walk. Walked: its parents are told again.
                        wanted -= usize::from(!done.contains(&parent));
                    }
                    Some(_) => continue,
                }
                queue.push(Dated { time, id: parent });
            }
        }
        listed.retain(|id| !known[id]);
        Ok(listed)
    }
}

#[derive(PartialEq, Eq)]
struct Dated {
    time: i64,
    id: Oid,
}

impl Ord for Dated {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time, self.id).cmp(&(other.time, other.id))
    }
}

impl PartialOrd for Dated {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
