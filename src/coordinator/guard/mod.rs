//! What the guard hook is answered: who of the living attempts owns the branch that is to move.
//!
//! Order rule: only reads, but for the vouches, which are written before git goes on.
//!
//! # Limitations
//! Where anything cannot be told the answer is "pass": a guard that fails must not stop git.

pub mod guarded;

use std::path::Path;

use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::session::read_ledger;
use crate::coordinator::spec::AttemptSpec;
use crate::git::refs::Refs;
use crate::git::workspace::lockfile;
use crate::hook::guard::{Asker, GuardDecision, Owner, Update, append_vouches, decide};
use crate::process;
use crate::tx::id::{AttemptKey, RefName};
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;

/// The file in an attempt's folder that holds the moves of its turn.
pub const VOUCHED: &str = "vouched";

/// Decides about a ref transaction of git in `git_dir`, by this process's ancestry; writes down
/// what the turn is vouched for. Gives back whose branch it is where the answer is no.
pub fn judge(git_dir: &Path, updates: &[Update]) -> Result<Option<(AttemptKey, RefName)>, Failure> {
    let git_dir = git_dir.canonicalize().map_err(Failure::io("finding the git directory"))?;
    let common_dir = common_dir(&git_dir)?;
    // The root and the name of the work tree matter to who makes a place, not to who reads one.
    let place = Place::find(&git_dir, &git_dir, &common_dir, "", None)?;
    let Some(ledger) = read_ledger(&place)? else { return Ok(None) };
    let mut ancestry = None;
    for attempt in ledger.unsettled(None)? {
        if attempt.tag()? == StateTag::Quarantined {
            continue;
        }
        let spec: AttemptSpec = attempt.spec()?;
        let branch = spec.branch.clone().unwrap_or_else(|| RefName("HEAD".to_owned()));
        if !updates.iter().any(|update| update.name == branch.as_str()) {
            continue;
        }
        let owner = Owner {
            turn: match attempt.record()?.state {
                TxState::Open { turn: Some(writer) } => vec![writer.supervisor, writer.leader],
                _ => Vec::new(),
            },
            lock_held: lockfile::is_held(spec.workspace.git_dir()).unwrap_or(false),
            tip: Refs::open(spec.workspace.git_dir(), &common_dir)?.get(&branch).ok().flatten(),
            git_dir: spec.workspace.git_dir().to_owned(),
            key: attempt.key.clone(),
            branch,
        };
        let ancestry = ancestry.get_or_insert_with(process::own_ancestry);
        match decide(updates, &Asker { git_dir: &git_dir, ancestry }, Some(&owner)) {
            GuardDecision::Pass => {}
            GuardDecision::Vouch(moves) => {
                append_vouches(&place.attempt(&attempt.key).join(VOUCHED), &moves)
                    .map_err(Failure::io("writing down the moves of the turn"))?;
            }
            GuardDecision::Refuse { key, branch } => return Ok(Some((key, branch))),
        }
    }
    Ok(None)
}

fn common_dir(git_dir: &Path) -> Result<std::path::PathBuf, Failure> {
    match std::fs::read_to_string(git_dir.join("commondir")) {
        Ok(text) => git_dir
            .join(text.trim_end_matches('\n'))
            .canonicalize()
            .map_err(Failure::io("finding the common git directory")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(git_dir.to_owned()),
        Err(error) => Err(Failure::io("finding the common git directory")(error)),
    }
}
