//! The settings of an attempt: captured, whole, before the turn, so that nothing that the turn
//! writes can change the rules that it is judged by.
//!
//! # Limitations
//! Where they come from (files, environment, flags) is the business of `config`.

use serde::{Deserialize, Serialize};

macro_rules! word_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vmeta])* $variant),+ }
    };
}

word_enum! {
    /// What to do with a work tree whose tracked content differs from HEAD (`--on-dirty`).
    OnDirty {
        /// Refuse it as a base.
        Refuse,
        /// Run without protection, with a warning.
        Run,
        /// Take the dirty state as the base.
        Capture,
    }
}
word_enum! {
    /// Pre-existing untracked files at open (`[base] untracked`).
    Untracked {
        /// They are part of the base.
        Keep,
        /// They make the workspace no base.
        Refuse,
    }
}
word_enum! {
    /// A path that the base ignored and the turn un-ignored (`on_unignored`).
    OnUnignored {
        /// Roll back, reason `unignored`.
        Reject,
        /// Commit it.
        Allow,
    }
}
word_enum! {
    /// Bytes that appear from the seal on and are nobody's of this attempt (`on_drift`).
    OnDrift {
        /// Pinned, left in place, warned about.
        Leave,
        /// Pinned and put back.
        Restore,
        /// Pinned; an operator decides.
        Quarantine,
    }
}
word_enum! {
    /// Configuration, hooks and alternates of the git directory, changed by a turn
    /// (`on_git_change`).
    OnGitChange {
        /// Put back what runs programs, on success; everything, on rollback.
        Undo,
        /// An operator decides.
        Quarantine,
        /// Left as it is, and reported.
        Allow,
    }
}
word_enum! {
    /// A post-check that is not what was captured any more (`on_changed`).
    OnChanged {
        /// Roll back.
        Reject,
        /// An operator decides.
        Quarantine,
        /// The captured copy decides as if nothing were.
        Ignore,
    }
}
word_enum! {
    /// No post-check, or none that can run, at the default places (`on_absent`,
    /// `on_misconfigured`).
    FailOpen {
        /// Go on without.
        Commit,
        /// Roll back.
        Reject,
    }
}
word_enum! {
    /// What a crashed turn's leftovers become (`on_interrupted`).
    OnInterrupted {
        /// An operator decides.
        Quarantine,
        /// Pinned and rolled back.
        RollBack,
    }
}
word_enum! {
    /// What the post-check sees (`view`).
    View {
        /// The live tree.
        Tree,
        /// A clean checkout of the candidate, in a scratch folder.
        Checkout,
    }
}

/// `[scope]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Untracked paths that are no business of the transaction, as gitignore patterns.
    pub exclude: Vec<String>,
    /// Ignored paths to be pinned and restored, never committed, as gitignore patterns.
    pub also: Vec<String>,
    /// Committed like anything else, never undone: the rollback-survives set.
    pub survives: Vec<String>,
}

/// `[limits]`: what may be pinned as untracked at open, and what a turn may create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
    /// How many.
    pub files: u64,
}

impl Default for Limits {
    /// 100 MiB a file, 1 GiB and 200,000 files in all: design section 4.
    fn default() -> Self {
        Self { file_bytes: 100 << 20, total_bytes: 1 << 30, files: 200_000 }
    }
}

/// How long what is kept after an attempt stays (`[gc]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Days.
    pub days: u32,
    /// Attempts.
    pub attempts: u32,
    /// Bytes of discarded work.
    pub discarded_bytes: u64,
}

impl Default for Retention {
    /// 30 days, 100 attempts, 5 GiB: design section 7.
    fn default() -> Self {
        Self { days: 30, attempts: 100, discarded_bytes: 5 << 30 }
    }
}

/// `[post_check]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostCheckSettings {
    /// The bound on one run, in milliseconds.
    pub timeout_ms: u64,
    /// The captured original, or its interpreter, is another one after the turn.
    pub on_changed: OnChanged,
    /// There is none.
    pub on_absent: FailOpen,
    /// There is one at a default place that cannot run.
    pub on_misconfigured: FailOpen,
    /// What it sees.
    pub view: View,
}

/// Everything that decides about an attempt, as captured at open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The name of the profile: `default` or `trinity`.
    pub profile: String,
    /// Where an attempt's refs go: `refs/worktx/tx`, in the trinity profile `refs/trinity/tx`.
    pub ref_prefix: String,
    /// See [`OnDirty`].
    pub on_dirty: OnDirty,
    /// See [`Untracked`].
    pub untracked: Untracked,
    /// See [`Scope`].
    pub scope: Scope,
    /// See [`Limits`].
    pub limits: Limits,
    /// See [`OnUnignored`].
    pub on_unignored: OnUnignored,
    /// See [`OnDrift`].
    pub on_drift: OnDrift,
    /// See [`OnGitChange`].
    pub on_git_change: OnGitChange,
    /// See [`OnInterrupted`].
    pub on_interrupted: OnInterrupted,
    /// See [`PostCheckSettings`].
    pub post_check: PostCheckSettings,
    /// The author, `Name <mail>`; `None` is the repository's own identity.
    pub author: Option<String>,
    /// The subject of the commit; `None` is `worktx: <command> (<short id>)`.
    pub message: Option<String>,
    /// The grace between SIGTERM and SIGKILL, in milliseconds.
    pub grace_ms: u64,
    /// How long a lock or an answer of the gate is waited for before quarantine, in milliseconds.
    pub bound_ms: u64,
    /// `[container] exclusive_volume`: no other container shares the volume.
    pub exclusive_volume: bool,
    /// See [`Retention`].
    pub retention: Retention,
    /// Also write the failed-attempt record to `.trinity/journal/` where the base ignores it.
    pub tree_record: bool,
}

impl Settings {
    /// The defaults of design sections 4 to 7.
    pub fn standard() -> Self {
        Self {
            profile: "default".to_owned(),
            ref_prefix: "refs/worktx/tx".to_owned(),
            on_dirty: OnDirty::Refuse,
            untracked: Untracked::Keep,
            scope: Scope::default(),
            limits: Limits::default(),
            on_unignored: OnUnignored::Reject,
            on_drift: OnDrift::Leave,
            on_git_change: OnGitChange::Undo,
            on_interrupted: OnInterrupted::Quarantine,
            post_check: PostCheckSettings {
                timeout_ms: 600_000,
                on_changed: OnChanged::Reject,
                on_absent: FailOpen::Commit,
                on_misconfigured: FailOpen::Commit,
                view: View::Tree,
            },
            author: None,
            message: None,
            grace_ms: 5_000,
            bound_ms: 10_000,
            exclusive_volume: false,
            retention: Retention::default(),
            tree_record: false,
        }
    }

    /// The trinity profile: the platform's refs, scope, times and strictness.
    pub fn trinity() -> Self {
        let standard = Self::standard();
        let words = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Self {
            profile: "trinity".to_owned(),
            ref_prefix: "refs/trinity/tx".to_owned(),
            untracked: Untracked::Refuse,
            scope: Scope {
                exclude: words(&[
                    "content/",
                    "node_modules/",
                    ".venv/",
                    "venv/",
                    "__pycache__/",
                    "shared-in/",
                    "shared-out/",
                    ".trinity/backup/",
                ]),
                also: Vec::new(),
                survives: words(&["/.trinity/journal/**", "/.trinity/failure-memory/**"]),
            },
            on_drift: OnDrift::Restore,
            post_check: PostCheckSettings { timeout_ms: 60_000, ..standard.post_check },
            tree_record: true,
            ..standard
        }
    }
}
