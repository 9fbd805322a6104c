//! A recording as a file, so that a failed case can be looked at again.
//!
//! # Limitations
//! The ledger names absolute paths: a recording is put back to where it was made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::flows::Recorded;
use crate::laws::Facts;
use crate::model::{Id, Op};
use crate::place::Place;

#[derive(Serialize, Deserialize)]
struct Saved {
    root: PathBuf,
    facts: Facts,
    initial: Vec<Op>,
    ops: Vec<Op>,
    made_by_git: Vec<Id>,
}

pub fn write(file: &Path, recorded: &Recorded) -> io::Result<()> {
    let saved = Saved {
        root: recorded.place.root.clone(),
        facts: recorded.facts.clone(),
        initial: recorded.initial.clone(),
        ops: recorded.ops.clone(),
        made_by_git: recorded.made_by_git.clone(),
    };
    fs::write(file, serde_json::to_vec(&saved)?)
}

pub fn read(file: &Path) -> io::Result<Recorded> {
    let saved: Saved = serde_json::from_slice(&fs::read(file)?)?;
    fs::create_dir_all(&saved.root)?;
    let Saved { root, facts, initial, ops, made_by_git } = saved;
    Ok(Recorded { lab: None, place: Place { root }, facts, initial, ops, made_by_git })
}

/// A change in a few words.
pub fn words(op: &Op) -> String {
    match op {
        Op::Write { id, offset, bytes } => {
            format!("write {} bytes to {id} at {offset}", bytes.len())
        }
        other => format!("{other:?}"),
    }
}
