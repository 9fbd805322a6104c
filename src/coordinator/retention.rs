//! The bounded gc: what is kept of settled attempts goes when it is too old, too many or too much.
//!
//! Order rule: the ledger knows refs and folders, so they go first and the record last. A crash in
//! between leaves a record whose things are partly gone, and the next gc goes on with it; nothing
//! is ever left that no record names. What is not settled is never touched, whatever its age, nor
//! is anything of an execution that has an unsettled attempt.
//!
//! # Limitations
//! Objects that no ref names any more are git's own gc to drop. A folder that a crash left before
//! its attempt was recorded stays. An attempt one of whose refs was moved by somebody stays.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::documents::GcDocument;
use super::error::Failure;
use super::outcome::SCHEMA;
use super::session::Session;
use super::spec::AttemptSpec;
use crate::base::clock;
use crate::git::refs::RefError;
use crate::git::store::Store;
use crate::journal::{Attempt, Filter};
use crate::tx::id::Oid;
use crate::tx::settings::Retention;
use crate::tx::state::AttemptRecord;

/// Where the size of an attempt's discarded work is remembered, in its folder.
const SIZE: &str = "discarded-bytes";

/// Drops what the bounds do not cover; with `dry_run` only says what would go.
pub fn gc(
    session: &mut Session,
    retention: &Retention,
    dry_run: bool,
) -> Result<GcDocument, Failure> {
    let attempts = session.ledger.attempts(&Filter::default())?;
    let unsettled: BTreeSet<_> =
        attempts.iter().filter(|a| !a.is_settled()).map(|a| a.key.execution.clone()).collect();
    let mut document = GcDocument {
        schema: SCHEMA,
        dry_run,
        removed: Vec::new(),
        refs_removed: 0,
        kept: 0,
        unsettled: attempts.iter().filter(|a| !a.is_settled()).count() as u64,
    };
    let days = i64::from(retention.days);
    let oldest = Timestamp::now()
        .checked_sub(SignedDuration::from_hours(24 * days))
        .unwrap_or(Timestamp::MIN);
    let oldest = clock::rfc3339(oldest);
    let (mut settled, mut bytes) = (0_u32, 0_u64);
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
        bytes = bytes.saturating_add(discarded_bytes(session, attempt, dry_run)?);
        let is_much = bytes > retention.discarded_bytes;
        let is_needed = unsettled.contains(&attempt.key.execution);
        if is_needed || !(is_old || is_many || is_much) {
            document.kept += 1;
            continue;
        }
        match remove(session, attempt, dry_run)? {
            Some(refs) => {
                document.refs_removed += refs;
                document.removed.push(attempt.key.to_string());
            }
            None => document.kept += 1,
        }
    }
    if !dry_run {
        session.ledger.remove_refusals_before(&oldest)?;
    }
    Ok(document)
}

/// Removes one settled attempt, and says how many refs went; `None` where it has to stay.
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
    for pin in &pins {
        match session.refs.unpin(&spec.settings.ref_prefix, pin, &prepared) {
            Ok(()) => {}
            Err(RefError::Differs { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    for folder in [&session.place.spill(key), &session.place.attempt(key), &prepared] {
        remove_folder(folder)?;
    }
    // Its execution's folder, once the last attempt of it is gone.
    if let Some(parent) = session.place.attempt(key).parent() {
        let _ = std::fs::remove_dir(parent);
    }
    session.ledger.remove_settled(key)?;
    Ok(Some(standing))
}

fn remove_folder(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("removing {}", folder.display()))(error))
        }
        _ => Ok(()),
    }
}

/// How much an attempt keeps of what was undone: the blobs that its pins add to its base, and
/// what was spilled. Computed once, then remembered.
fn discarded_bytes(session: &Session, attempt: &Attempt, dry_run: bool) -> Result<u64, Failure> {
    let note = session.place.attempt(&attempt.key).join(SIZE);
    let known = std::fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok());
    if let Some(known) = known {
        return Ok(known);
    }
    let (spec, record): (AttemptSpec, AttemptRecord) = (attempt.spec()?, attempt.record()?);
    let base = record.pins.base.as_ref().map_or(spec.base, |pin| pin.id);
    let pins = record.pins.discarded.iter().chain(&record.pins.rescue);
    let pinned: u64 = pins.map(|pin| added_bytes(&session.store, base, pin.id)).sum();
    let bytes = pinned.saturating_add(folder_bytes(&session.place.spill(&attempt.key)));
    if !dry_run {
        // A note to save time: lost in a crash, it is computed again.
        let _ = std::fs::write(&note, format!("{bytes}\n"));
    }
    Ok(bytes)
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
