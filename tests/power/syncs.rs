//! How often a flow syncs, and for what: the figures of `docs/durability.md`.
//!
//! # Limitations
//! By the path alone; a sync of a folder counts for what the folder is for.

use std::collections::BTreeMap;

use bstr::{BString, ByteSlice as _};

use crate::flows::Recorded;
use crate::model::{Id, Op, ROOT};

/// What a sync is for, in the order of the table.
const KINDS: [&str; 11] = [
    "the ledger",
    "the manifest",
    "the attempt's folder",
    "the proof of death",
    "the marker",
    "objects",
    "pins",
    "locks, and what is ready under them",
    "branch, index, HEAD and their logs",
    "the work tree",
    "everything (`syncfs`)",
];

/// A row for each kind of sync, a column for each flow.
pub fn table(flows: &[(&str, Recorded)]) -> String {
    let counts: Vec<BTreeMap<&str, usize>> =
        flows.iter().map(|(_, recorded)| count(recorded)).collect();
    let names: Vec<&str> = flows.iter().map(|(name, _)| *name).collect();
    let mut lines = vec![
        format!("| what is synced | {} |", names.join(" | ")),
        format!("|---|{}", "---:|".repeat(names.len())),
    ];
    let row = |name: &str, numbers: Vec<usize>| {
        let cells: Vec<String> =
            numbers.iter().map(|n| if *n == 0 { String::new() } else { n.to_string() }).collect();
        format!("| {name} | {} |", cells.join(" | "))
    };
    for kind in KINDS {
        let numbers: Vec<usize> =
            counts.iter().map(|of| of.get(kind).copied().unwrap_or(0)).collect();
        if numbers.iter().any(|n| *n > 0) {
            lines.push(row(kind, numbers));
        }
    }
    lines.push(row("in all", counts.iter().map(|of| of.values().sum()).collect()));
    lines.join("\n")
}

fn count(recorded: &Recorded) -> BTreeMap<&'static str, usize> {
    let mut paths: BTreeMap<Id, BString> = BTreeMap::from([(ROOT, BString::default())]);
    let mut counts = BTreeMap::new();
    for op in recorded.initial.iter().chain(&recorded.ops) {
        match op {
            Op::Make { id, at: Some((dir, name)), .. } | Op::Link { id, at: (dir, name) } => {
                let path = [&paths[dir][..], b"/", name].concat().into();
                paths.entry(*id).or_insert(path);
            }
            Op::Sync { id, data_only } => {
                let kind = kind_of(paths.get(id).map_or(&b""[..], |path| path), *data_only);
                *counts.entry(kind).or_default() += 1;
            }
            Op::SyncAll => *counts.entry(KINDS[10]).or_default() += 1,
            _ => {}
        }
    }
    counts
}

fn kind_of(path: &[u8], data_only: bool) -> &'static str {
    let Some(inside) = path.strip_prefix(b"/repo/.git") else { return KINDS[9] };
    let has = |part: &str| inside.find(part).is_some();
    match () {
        () if has("/worktx/ledger.db") || (inside == b"/worktx" && data_only) => KINDS[0],
        () if has("/worktx/manifest") => KINDS[1],
        () if has("/turn/death.json") || inside.ends_with(b"/turn") => KINDS[3],
        () if has("/worktx/attempts") => KINDS[2],
        () if has("worktx-marker") => KINDS[4],
        () if has("/objects") => KINDS[5],
        () if has("/refs/worktx") || inside == b"/refs" => KINDS[6],
        () if has("/worktx/prepared") || inside == b"/worktx" || inside.ends_with(b".lock") => {
            KINDS[7]
        }
        () => KINDS[8],
    }
}
