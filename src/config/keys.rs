//! The table of every key: its name, kind, who may set it, what it means, and where its value
//! stands. The one source for files, environment and `docs/configuration.md`.
//!
//! # Limitations
//! Keys of what is not built yet are known by name, so that they are answered as such and not as
//! typing errors.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::value::{show_duration, show_size};
use crate::tx::post_check::PostCheckChoice;
use crate::tx::settings::Settings;

/// `[operator]`: how an operator is told. Captured at open, like everything that runs a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The platform's queue file, absolute.
    pub queue_file: Option<PathBuf>,
    /// A command for `sh -c`.
    pub command: Option<String>,
}

/// What all layers together say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// What decides about an attempt.
    pub settings: Settings,
    /// Which post-check.
    pub post_check: PostCheckChoice,
    /// Where the state lives, absolute; `None` is `<git common directory>/worktx`.
    pub state_dir: Option<PathBuf>,
    /// See [`Operator`].
    pub operator: Operator,
    /// The work trees that a server serves where it is told of none; absolute.
    pub workspaces: Vec<PathBuf>,
    /// How many files and directories of one work tree a server watches at most.
    pub watches: u64,
}

/// As many as the kernel allows by default on a large machine (inotify(7)).
const WATCHES: u64 = 1 << 20;

impl Values {
    /// What stands before any file is read.
    pub fn of(settings: Settings) -> Self {
        Self {
            settings,
            post_check: PostCheckChoice::Default,
            state_dir: None,
            operator: Operator::default(),
            workspaces: Vec::new(),
            watches: WATCHES,
        }
    }
}

/// What the repository's `.worktx.toml` may do with a key (design section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repository {
    /// Not set it.
    No,
    /// Set it.
    Yes,
    /// Add to the list; the user's layers replace it.
    Adds,
    /// Set it to a value that is at least as strict as the default.
    Stricter,
    /// Set it to a path inside the repository.
    Inside,
}

/// Where a value stands, and by that its kind.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    /// One of some words, the laxest first.
    Word {
        words: &'static [&'static str],
        get: fn(&Values) -> String,
        set: fn(&mut Values, &str),
    },
    Millis(fn(&mut Values) -> &mut u64),
    Bytes(fn(&mut Values) -> &mut u64),
    Count(fn(&mut Values) -> &mut u64),
    Count32(fn(&mut Values) -> &mut u32),
    Flag(fn(&mut Values) -> &mut bool),
    Text(fn(&mut Values) -> &mut Option<String>),
    /// gitignore patterns.
    Patterns(fn(&mut Values) -> &mut Vec<String>),
    /// Absolute, or below `~/`.
    Path(fn(&mut Values) -> &mut Option<PathBuf>),
    /// As [`Slot::Path`], several.
    Paths(fn(&mut Values) -> &mut Vec<PathBuf>),
    PostCheckPath,
    PostCheckCommand,
    Unsupported,
}

/// One key.
pub struct Key {
    /// The name: `section.key`, or `key` alone.
    pub name: &'static str,
    /// What the repository's file may do.
    pub repository: Repository,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    pub(super) slot: Slot,
}

impl Key {
    /// The variable that sets it: `WORKTX_POST_CHECK_TIMEOUT` for `post_check.timeout`.
    pub fn variable(&self) -> String {
        format!("WORKTX_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// The kind of its value, for people.
    pub fn kind(&self) -> String {
        match self.slot {
            Slot::Word { words, .. } => {
                let mut words: Vec<_> = words.iter().map(|w| format!("`{w}`")).collect();
                words.reverse();
                words.join(", ")
            }
            Slot::Millis(_) => "duration".to_owned(),
            Slot::Bytes(_) => "size".to_owned(),
            Slot::Count(_) | Slot::Count32(_) => "number".to_owned(),
            Slot::Flag(_) => "`true`, `false`".to_owned(),
            Slot::Text(_) => "text".to_owned(),
            Slot::Patterns(_) => "list of patterns".to_owned(),
            Slot::Paths(_) => "list of paths".to_owned(),
            Slot::Path(_) | Slot::PostCheckPath => "path".to_owned(),
            Slot::PostCheckCommand => "command".to_owned(),
            Slot::Unsupported => "not supported yet".to_owned(),
        }
    }

    /// The value that stands, for people; `None` where there is none.
    pub fn show(&self, values: &Values) -> Option<String> {
        // The accessors are of the writing kind.
        let mut copy = values.clone();
        match self.slot {
            Slot::Word { get, .. } => Some(get(values)),
            Slot::Millis(at) => Some(show_duration(*at(&mut copy))),
            Slot::Bytes(at) => Some(show_size(*at(&mut copy))),
            Slot::Count(at) => Some(at(&mut copy).to_string()),
            Slot::Count32(at) => Some(at(&mut copy).to_string()),
            Slot::Flag(at) => Some(at(&mut copy).to_string()),
            Slot::Text(at) => at(&mut copy).clone(),
            Slot::Patterns(at) => Some(at(&mut copy).join(" ")).filter(|text| !text.is_empty()),
            Slot::Path(at) => at(&mut copy).as_ref().map(|path| path.display().to_string()),
            Slot::Paths(at) => {
                let all: Vec<_> = at(&mut copy).iter().map(|p| p.display().to_string()).collect();
                Some(all.join(" ")).filter(|text| !text.is_empty())
            }
            Slot::PostCheckPath => match &values.post_check {
                PostCheckChoice::Path { path } => Some(path.display().to_string()),
                _ => None,
            },
            Slot::PostCheckCommand => match &values.post_check {
                PostCheckChoice::Command { words } => Some(words.clone()),
                _ => None,
            },
            Slot::Unsupported => None,
        }
    }
}

/// A key by its name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn read<T: DeserializeOwned>(word: &str) -> T {
    serde_json::from_value(word.into()).expect("the table lists the words of the type, a test says")
}

fn spell<T: Serialize>(value: &T) -> String {
    let word = serde_json::to_value(value).expect("a word");
    word.as_str().expect("a word").to_owned()
}

macro_rules! word {
    ($($field:ident).+, $words:expr) => {
        Slot::Word {
            words: $words,
            get: |values| spell(&values.$($field).+),
            set: |values, word| values.$($field).+ = read(word),
        }
    };
}

macro_rules! slot {
    ($kind:ident, $($field:ident).+) => { Slot::$kind(|values| &mut values.$($field).+) };
}

const fn key(name: &'static str, repository: Repository, slot: Slot, meaning: &'static str) -> Key {
    Key { name, repository, meaning, slot }
}

use Repository::{Adds, Inside, No, Stricter, Yes};

/// Every key, in the order of the page.
pub static KEYS: &[Key] = &[
    key(
        "on_dirty",
        Stricter,
        word!(settings.on_dirty, &["run", "capture", "refuse"]),
        "Tracked content differs from HEAD at open: refuse; or run unprotected. To take it as the base \
         (`capture`) is not supported yet.",
    ),
    key(
        "on_drift",
        Stricter,
        word!(settings.on_drift, &["leave", "restore", "quarantine"]),
        "Bytes that appear from the seal on and are nobody's of the attempt. Pinned in any case. \
         After a restart of the machine they may be what a power loss left: `leave` then puts back.",
    ),
    key(
        "on_unignored",
        Stricter,
        word!(settings.on_unignored, &["allow", "reject"]),
        "A path that the base ignored and the turn un-ignored: roll back, or commit it.",
    ),
    key(
        "on_git_change",
        Stricter,
        word!(settings.on_git_change, &["allow", "undo", "quarantine"]),
        "The turn changed the git directory's configuration, hooks or alternates.",
    ),
    key(
        "on_interrupted",
        Stricter,
        word!(settings.on_interrupted, &["roll_back", "quarantine"]),
        "A crash cut the turn off: leave its work to an operator, or pin it and roll back.",
    ),
    key("grace", No, slot!(Millis, settings.grace_ms), "From SIGTERM to SIGKILL."),
    key(
        "bound",
        No,
        slot!(Millis, settings.bound_ms),
        "How long a lock, or an answer of the gate, is waited for before the attempt is quarantined.",
    ),
    key(
        "base.untracked",
        No,
        word!(settings.untracked, &["keep", "refuse"]),
        "Untracked files at open: part of the base, or no base at all.",
    ),
    key(
        "scope.exclude",
        Adds,
        slot!(Patterns, settings.scope.exclude),
        "Untracked paths that are no business of the transaction.",
    ),
    key(
        "scope.also",
        Adds,
        Slot::Unsupported,
        "Ignored paths to be pinned and restored, never committed.",
    ),
    key(
        "scope.survives",
        Adds,
        slot!(Patterns, settings.scope.survives),
        "Paths that are committed like any other and never undone.",
    ),
    key(
        "limits.file",
        Yes,
        slot!(Bytes, settings.limits.file_bytes),
        "The largest file that is pinned at open, or that a turn may create.",
    ),
    key("limits.total", Yes, slot!(Bytes, settings.limits.total_bytes), "All of them together."),
    key("limits.files", Yes, slot!(Count, settings.limits.files), "How many of them."),
    key(
        "post_check.path",
        Inside,
        Slot::PostCheckPath,
        "The post-check: an executable. A relative path is meant from the root of the work tree.",
    ),
    key(
        "post_check.check",
        Yes,
        Slot::PostCheckCommand,
        "The post-check as a command for `sh -c`, instead of a path.",
    ),
    key(
        "post_check.timeout",
        No,
        slot!(Millis, settings.post_check.timeout_ms),
        "How long it may run.",
    ),
    key(
        "post_check.on_changed",
        Stricter,
        word!(settings.post_check.on_changed, &["ignore", "reject", "quarantine"]),
        "It, or its interpreter, is not what it was before the turn.",
    ),
    key(
        "post_check.on_absent",
        Stricter,
        word!(settings.post_check.on_absent, &["commit", "reject"]),
        "There is none at the default places.",
    ),
    key(
        "post_check.on_misconfigured",
        Stricter,
        word!(settings.post_check.on_misconfigured, &["commit", "reject"]),
        "The one at a default place cannot run.",
    ),
    key(
        "post_check.view",
        No,
        word!(settings.post_check.view, &["tree", "checkout"]),
        "What it sees: the live tree, or a clean checkout of the candidate.",
    ),
    key(
        "commit.author",
        No,
        slot!(Text, settings.author),
        "`Name <mail>`, instead of the repository's own identity.",
    ),
    key(
        "commit.message",
        Yes,
        slot!(Text, settings.message),
        "The subject, instead of `worktx: <command> (<short id>)`.",
    ),
    key("commit.sign", No, Slot::Unsupported, "Sign the commit."),
    key(
        "state.dir",
        No,
        slot!(Path, state_dir),
        "Where ledger and state live, instead of `<git common directory>/worktx`.",
    ),
    key(
        "container.exclusive_volume",
        No,
        slot!(Flag, settings.exclusive_volume),
        "No other container shares the volume: a free lock then proves that a writer is dead.",
    ),
    key("gc.days", No, slot!(Count32, settings.retention.days), "Days that settled attempts stay."),
    key(
        "gc.attempts",
        No,
        slot!(Count32, settings.retention.attempts),
        "How many settled attempts stay; a tenth more, at most ten, until a run's gc.",
    ),
    key(
        "gc.discarded",
        No,
        slot!(Bytes, settings.retention.discarded_bytes),
        "How much discarded work stays.",
    ),
    key(
        "operator.queue_file",
        No,
        slot!(Path, operator.queue_file),
        "The operator queue of the platform: what an operator has to decide is added to this file.",
    ),
    key(
        "operator.command",
        No,
        slot!(Text, operator.command),
        "A command for `sh -c` that tells an operator; it gets the outcome on its standard input.",
    ),
    key(
        "serve.workspaces",
        No,
        slot!(Paths, workspaces),
        "Directories in the work trees that `worktx serve` serves where it is told of none.",
    ),
    key(
        "serve.watches",
        No,
        slot!(Count, watches),
        "How many files and directories of one work tree `worktx serve` watches at most; 0 is none.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variables_are_distinct() {
        let handed_out = crate::config::load::HANDED_OUT;
        let mut seen = std::collections::BTreeSet::new();
        for key in KEYS {
            assert!(seen.insert(key.variable()), "{}", key.name);
            assert!(!handed_out.contains(&key.variable().as_str()), "{}", key.name);
            assert!(key.name.split('.').count() <= 2);
        }
    }

    #[test]
    fn every_word_is_one_of_its_type() {
        for key in KEYS {
            let Slot::Word { words, get, set } = key.slot else { continue };
            let mut values = Values::of(Settings::standard());
            assert!(words.contains(&get(&values).as_str()), "{}", key.name);
            for word in words {
                set(&mut values, word);
                assert_eq!(get(&values), *word, "{}", key.name);
            }
        }
    }

    #[test]
    fn on_values_are_the_ones_that_may_only_get_stricter() {
        for key in KEYS {
            let is_policy = key.name.rsplit('.').next().is_some_and(|n| n.starts_with("on_"));
            assert_eq!(key.repository == Stricter, is_policy, "{}", key.name);
            assert!(!is_policy || matches!(key.slot, Slot::Word { .. }), "{}", key.name);
        }
    }
}
