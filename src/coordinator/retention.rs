//! The bounded gc: what is kept of settled attempts goes when it is too old, too many or too much.
//!
//! Order rule: the ledger knows refs and folders, so they go first and the record last. A crash in
//! between leaves a record whose things are partly gone, and the next gc goes on with it; nothing
//! is ever left that no record names. What is not settled is never touched, whatever its age, nor
//! is anything of an execution that has an unsettled attempt.
//!
//! # Limitations
//! Objects that no ref names any more are git's own gc to drop; the packs that hold them are only
//! made few. An attempt one of whose refs was moved by somebody, or whose folder cannot be removed,
//! stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use crate::base::clock;
use crate::base::note;
use crate::base::rmtree::remove_tree;
use crate::coordinator::attempt::checkout;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::report::documents::GcDocument;
use crate::coordinator::session::Session;
use crate::coordinator::spec::AttemptSpec;
use crate::git::objects::repack;
use crate::git::objects::store::Store;
use crate::git::refs::RefError;
use crate::journal::Attempt;
use crate::process;
use crate::tx::id::{AttemptKey, AttemptNo, Oid};
use crate::tx::record::AttemptRecord;
use crate::tx::settings::Retention;

/// How much each attempt keeps of what was undone: computed once, then noted, all in one note, with
/// how many attempts there ever were at that time.
struct Sizes {
    at: Option<i64>,
    known: BTreeMap<AttemptKey, u64>,
    /// What the note is to say: attempts that are still there.
    told: BTreeMap<AttemptKey, u64>,
}

impl Sizes {
    fn read(place: &Place) -> Self {
        let text = note::read(&place.sizes_note()).unwrap_or_default();
        let line = |line: &str| -> Option<(AttemptKey, u64)> {
            let (name, bytes) = line.split_once(' ')?;
            let (execution, attempt) = name.rsplit_once('/')?;
            let attempt = AttemptNo(attempt.parse().ok()?);
            Some((AttemptKey { execution: execution.parse().ok()?, attempt }, bytes.parse().ok()?))
        };
        let at = text.lines().next().and_then(|line| line.strip_prefix(AT)?.parse().ok());
        Self { at, known: text.lines().filter_map(line).collect(), told: BTreeMap::new() }
    }

    /// The blobs that an attempt's pins add to its base, and what was spilled.
    fn of(&mut self, session: &Session, key: &AttemptKey) -> Result<u64, Failure> {
        let bytes = match self.known.get(key) {
            Some(known) => *known,
            None => discarded_bytes(session, key)?,
        };
        self.told.insert(key.clone(), bytes);
        Ok(bytes)
    }

    /// A note to save time: lost, it is computed again.
    fn write(&self, place: &Place, at: i64) {
        if self.told == self.known && self.at == Some(at) {
            return;
        }
        let sizes = self.told.iter().map(|(key, size)| format!("{key} {size}"));
        let lines: Vec<String> = std::iter::once(format!("{AT}{at}")).chain(sizes).collect();
        if let Err(error) = note::write(&place.sizes_note(), &lines.join("\n")) {
            tracing::debug!(%error, "no note could be made of the sizes");
        }
    }
}

/// What the note's first line begins with.
const AT: &str = "attempts ";

/// At most so many runs go by without a gc: it looks at every attempt and pack, and a removal costs a
/// db transaction and syncs of folders, which that many runs share.
///
/// Own packs stay below what makes `git gc --auto` set to work: see [`repack::consolidate`].
const RUNS_AT_MOST: u32 = 10;

/// A gc at the end of a run, where ten attempts came since the last one; sooner where so few may stay
/// that ten would be more than a tenth of them.
///
/// The attempt that has `ended` stays whatever the bounds say: its work was just said to be kept.
pub fn after_run(
    session: &mut Session,
    retention: &Retention,
    ended: &AttemptKey,
) -> Result<(), Failure> {
    let every = (retention.attempts / RUNS_AT_MOST).clamp(1, RUNS_AT_MOST);
    let now = session.ledger.attempts_ever()?;
    let is_due = |last: i64| now < last || now - last >= i64::from(every);
    if Sizes::read(&session.place).at.is_none_or(is_due) {
        collect(session, retention, Some(ended), false)?;
    }
    Ok(())
}

/// Drops what the bounds do not cover; with `dry_run` only says what would go.
pub fn gc(
    session: &mut Session,
    retention: &Retention,
    dry_run: bool,
) -> Result<GcDocument, Failure> {
    collect(session, retention, None, dry_run)
}

fn collect(
    session: &mut Session,
    retention: &Retention,
    ended: Option<&AttemptKey>,
    dry_run: bool,
) -> Result<GcDocument, Failure> {
    let attempts = session.ledger.heads()?;
    let all_settled = attempts.iter().filter(|a| a.settled_at.is_some()).count() as u64;
    let unsettled: BTreeSet<_> = attempts
        .iter()
        .filter(|a| a.settled_at.is_none())
        .map(|a| a.key.execution.clone())
        .collect();
    let mut document = GcDocument {
        schema: SCHEMA,
        dry_run,
        removed: Vec::new(),
        refs_removed: 0,
        kept: 0,
        unsettled: attempts.len() as u64 - all_settled,
    };
    let days = i64::from(retention.days);
    let oldest = Timestamp::now()
        .checked_sub(SignedDuration::from_hours(24 * days))
        .unwrap_or(Timestamp::MIN);
    let oldest = clock::rfc3339(oldest);
    let mut sizes = Sizes::read(&session.place);
    let (mut settled, mut bytes) = (0_u32, 0_u64);
    let (mut gone, mut failed) = (Vec::new(), None);
    // Newest first: the bounds keep the newest.
    for attempt in &attempts {
        let Some(at) = attempt.settled_at.as_deref() else {
            document.kept += 1;
            continue;
        };
        settled += 1;
        // Written by one function, so that the text sorts as the time does.
        let is_old = at < oldest.as_str();
        let is_many = settled > retention.attempts;
        let with_it = bytes.saturating_add(sizes.of(session, &attempt.key)?);
        let is_much = with_it > retention.discarded_bytes;
        let is_needed =
            unsettled.contains(&attempt.key.execution) || ended.is_some_and(|e| *e == attempt.key);
        if is_needed || !(is_old || is_many || is_much) {
            // What does not stay takes no room from others: one attempt that is too much by itself
            // goes alone.
            if !is_much {
                bytes = with_it;
            }
            document.kept += 1;
            continue;
        }
        let Some(attempt) = session.ledger.attempt(&attempt.key)? else { continue };
        match remove(session, &attempt, dry_run) {
            Ok(Some(refs)) => {
                sizes.told.remove(&attempt.key);
                document.refs_removed += refs;
                document.removed.push(attempt.key.to_string());
                gone.push(attempt.key);
            }
            Ok(None) => document.kept += 1,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if !dry_run {
        session.ledger.remove_settled(&gone)?;
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if !dry_run {
        sizes.write(&session.place, session.ledger.attempts_ever()?);
        session.ledger.remove_refusals_before(&oldest)?;
        repack::consolidate(&session.store).map_err(Failure::other("making few packs of many"))?;
    }
    Ok(document)
}

/// Removes what settled attempts have left of scratch, checkouts and cgroups, and what a crash left
/// before they settled: for the command, not for the end of every run.
pub fn sweep_scratch(session: &Session) -> Result<(), Failure> {
    for attempt in session.ledger.heads()?.iter().filter(|a| a.settled_at.is_some()) {
        let folder = session.place.attempt(&attempt.key);
        process::sweep_cgroups(&folder);
        for (path, error) in checkout::sweep(&folder) {
            tracing::warn!(path = %path.display(), %error, "a checkout stays");
        }
    }
    Ok(())
}

/// Removes what there is of one settled attempt but its record, and says how many refs went; `None`
/// where it has to stay.
fn remove(session: &mut Session, attempt: &Attempt, dry_run: bool) -> Result<Option<u64>, Failure> {
    let key = &attempt.key;
    let (spec, record): (AttemptSpec, AttemptRecord) = (attempt.spec()?, attempt.record()?);
    let pins: Vec<_> = record.pins.all().cloned().collect();
    let mut standing = 0;
    for pin in &pins {
        match session.refs.get(&pin.name) {
            Ok(None) => {}
            Ok(Some(id)) if id == pin.id => standing += 1,
            // Somebody's now: nothing of ours to drop.
            Ok(Some(_)) => return Ok(None),
            Err(RefError::Broken { .. }) => standing += 1,
            Err(error) => return Err(error.into()),
        }
    }
    if dry_run {
        return Ok(Some(standing));
    }
    let prepared = session.place.prepared(key);
    match session.refs.unpin_all(&spec.settings.ref_prefix, pins.iter(), &prepared) {
        Ok(()) => {}
        Err(RefError::Differs { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    process::sweep_cgroups(&session.place.attempt(key));
    let folders = [&session.place.spill(key), &session.place.attempt(key), &prepared];
    if !folders.into_iter().all(|folder| remove_folder(folder)) {
        return Ok(None);
    }
    // Its execution's folder, once the last attempt of it is gone.
    if let Some(parent) = session.place.attempt(key).parent() {
        let _ = std::fs::remove_dir(parent);
    }
    Ok(Some(standing))
}

/// Whether a folder is gone. One that cannot be removed keeps its attempt, for the next gc.
fn remove_folder(folder: &Path) -> bool {
    let removed = remove_tree(folder);
    if let Err(error) = &removed {
        tracing::warn!(path = %folder.display(), %error, "a folder cannot be removed");
    }
    removed.is_ok()
}

fn discarded_bytes(session: &Session, key: &AttemptKey) -> Result<u64, Failure> {
    let Some(attempt) = session.ledger.attempt(key)? else { return Ok(0) };
    let (spec, record): (AttemptSpec, AttemptRecord) = (attempt.spec()?, attempt.record()?);
    let base = record.pins.base.as_ref().map_or(spec.base, |pin| pin.id);
    let pins = record.pins.discarded.iter().chain(&record.pins.rescue);
    let pinned: u64 = pins.map(|pin| added_bytes(&session.store, base, pin.id)).sum();
    Ok(pinned.saturating_add(folder_bytes(&session.place.spill(key))))
}

/// An object that is gone takes no space.
fn added_bytes(store: &Store, base: Oid, pin: Oid) -> u64 {
    let tree = |id| store.commit(id).map(|commit| commit.tree);
    let changes = tree(base).and_then(|a| tree(pin).and_then(|b| store.diff_trees(a, b)));
    let held = changes.unwrap_or_default().into_iter().filter_map(|(_, _, after)| after);
    held.map(|(_, id)| store.blob_size(id).unwrap_or(0)).sum()
}

fn folder_bytes(folder: &Path) -> u64 {
    let mut todo = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) => bytes += meta.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::report::query;
    use crate::coordinator::test_lab::{Lab, gone, held};
    use crate::tx::cause::QuarantineReason;
    use crate::tx::state::TxState;

    const NONE: Retention = Retention { days: 30, attempts: 0, discarded_bytes: 0 };

    #[test]
    fn only_what_is_settled_goes_and_all_of_it() {
        let lab = Lab::new();
        let work = lab.work("big", &"x".repeat(4000));
        let old = lab.rolled_back("old", work);
        let new = lab.rolled_back("new", work);
        let stuck = lab.open("stuck", &gone());
        let state = held(TxState::Open { turn: None }, QuarantineReason::Interrupted);
        lab.set(&stuck, state, &[work]);
        let earlier = lab.rolled_back("twice", work);
        let later = lab.open("twice", &gone());
        lab.repo.git(&["pack-refs", "--all"]);

        let mut session = lab.session();
        let everything = gc(&mut session, &NONE, true).expect("looked");
        assert_eq!(everything.removed, ["new/1", "old/1"], "newest first");
        assert_eq!((everything.refs_removed, everything.kept, everything.unsettled), (4, 3, 2));
        assert_eq!(lab.own_refs().len(), 8, "a dry run leaves all");

        // The newest settled ones stay: `twice/1` is one, `new/1` the other.
        let two = Retention { attempts: 2, ..Retention::default() };
        assert_eq!(gc(&mut session, &two, false).expect("done").removed, ["old/1"]);
        assert!(lab.attempt(&old).is_none() && !lab.folder(&old).exists());
        assert!(!lab.context.place.prepared(&old).exists());
        // By bytes: two of 4,000 are more than 5,000.
        let bytes = Retention { discarded_bytes: 5000, ..Retention::default() };
        assert_eq!(gc(&mut session, &bytes, false).expect("done").removed, ["new/1"]);
        assert!(lab.attempt(&new).is_none());
        for key in [&stuck, &earlier, &later] {
            assert!(lab.attempt(key).is_some(), "{key}");
        }
        assert_eq!(lab.own_refs().len(), 4);
        lab.repo.git(&["fsck", "--strict"]);
        drop(session);
        // The row of what went still answers.
        assert!(query::show(&lab.context, "old").expect("read").attempts.is_empty());
    }

    #[test]
    fn runs_share_a_gc_whatever_their_numbers() {
        let lab = Lab::new();
        let work = lab.work("a.txt", "two\n");
        let settled = |lab: &Lab| lab.session().ledger.heads().expect("read").len();
        let keep = |attempts| Retention { attempts, ..Retention::default() };
        let run = |names: &[&str], attempts| {
            for name in names {
                lab.rolled_back(name, work);
            }
            let newest = lab.session().ledger.heads().expect("read").remove(0).key;
            after_run(&mut lab.session(), &keep(attempts), &newest).expect("done");
            settled(&lab)
        };
        // Twenty may stay: every second one.
        assert_eq!(run(&["a"], 20), 1);
        assert_eq!(run(&["b", "c"], 20), 3, "two work trees end at once");
        assert_eq!(run(&["d"], 1), 1, "each, where so few stay");
        assert_eq!(run(&["e", "f"], 1), 1);
        let many: Vec<String> = (0..21).map(|n| format!("many{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(run(&many, 20), 20);
        assert_eq!(run(&["g"], 20), 21, "not so soon");
        assert_eq!(run(&["h"], 20), 20);
    }

    /// Whatever a failed turn has left behind: it takes nothing with it, and stays for the one who was
    /// just told of it.
    #[test]
    fn an_attempt_that_is_too_much_goes_alone_and_not_at_its_own_end() {
        let lab = Lab::new();
        let work = lab.work("a.txt", "two\n");
        let earlier = lab.rolled_back("earlier", work);
        let huge = lab.rolled_back("huge", lab.work("big", &"x".repeat(4000)));
        let later = lab.rolled_back("later", work);
        let bounds = Retention { discarded_bytes: 1000, attempts: 1, ..Retention::default() };
        after_run(&mut lab.session(), &bounds, &huge).expect("done");
        assert!(lab.attempt(&huge).is_some() && lab.attempt(&later).is_some());
        assert!(lab.attempt(&earlier).is_none(), "one may stay");

        let earlier = lab.rolled_back("earlier", work);
        let bounds = Retention { discarded_bytes: 1000, ..Retention::default() };
        let done = gc(&mut lab.session(), &bounds, false).expect("done");
        assert_eq!(done.removed, ["huge/1"]);
        assert!(lab.attempt(&earlier).is_some() && lab.attempt(&later).is_some());
    }

    #[test]
    fn a_gc_that_was_cut_off_is_gone_on_with() {
        let lab = Lab::new();
        let work = lab.work("a.txt", "two\n");
        let key = lab.rolled_back("old", work);
        for name in lab.own_refs() {
            lab.repo.git(&["update-ref", "-d", &name]);
        }
        std::fs::remove_dir_all(lab.folder(&key)).expect("removed");
        let done = gc(&mut lab.session(), &NONE, false).expect("done");
        assert_eq!((done.removed.len(), done.refs_removed), (1, 0));
        assert!(lab.attempt(&key).is_none());
    }

    #[test]
    fn a_ref_that_somebody_moved_is_kept_with_its_attempt() {
        let lab = Lab::new();
        let work = lab.work("a.txt", "two\n");
        let key = lab.rolled_back("old", work);
        let name = format!("refs/worktx/tx/{key}/discarded/1");
        lab.repo.git(&["update-ref", &name, &lab.base.to_string()]);
        let done = gc(&mut lab.session(), &NONE, false).expect("done");
        assert!(done.removed.is_empty());
        assert_eq!(lab.repo.git(&["rev-parse", &name]), lab.base.to_string());
        assert!(lab.attempt(&key).is_some());
    }
}
