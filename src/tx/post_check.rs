//! The post-check as data: which one is wanted, what was captured of it at open, what is found of
//! it after the turn, and the table that turns all that into a decision.
//!
//! The order is: capture before the turn, [`before_run`] after the seal (a changed original may
//! decide without a run), the run, [`after_run`]. Both are total: every row of the design's table
//! in section 6 is one arm here.
//!
//! # Limitations
//! Nothing here looks at a file; `hook` does, and fills these types.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cause::{Cause, QuarantineReason};
use super::settings::{FailOpen, OnChanged, PostCheckSettings};

/// Which post-check a user asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PostCheckChoice {
    /// Nobody named one: the default places are looked at.
    #[default]
    Default,
    /// `--no-post-check`: none, and the default places are not looked at.
    Off,
    /// This file, absolute.
    Path {
        /// Where.
        #[serde(with = "path_text")]
        path: PathBuf,
    },
    /// A command for `sh -c`.
    Command {
        /// Its words, as given.
        words: String,
    },
}

/// Why a file that was found cannot be run as a post-check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Unrunnable {
    /// Nothing stands there (only for one that was named), or a link to nothing does.
    #[error("it is not there")]
    Missing,
    /// A directory, a FIFO, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// No run bit, for the user that worktx runs as.
    #[error("it is not executable (`chmod +x` it)")]
    NotExecutable,
    /// It cannot be read, so that it cannot be captured.
    #[error("it cannot be read: {error}")]
    Unreadable {
        /// What the system said.
        error: String,
    },
    /// More bytes than a post-check may have.
    #[error("it has {bytes} bytes, a post-check may have {limit}")]
    TooLarge {
        /// How many it has.
        bytes: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// Its first line names an interpreter that is not there, or cannot be run.
    #[error("its interpreter {} is not there or cannot be run{}", named.escape_debug(), carriage(named))]
    NoInterpreter {
        /// The name, as the line has it.
        named: String,
    },
    /// Neither `#!` nor ELF: the kernel does not run it.
    #[error("it has no `#!` line and is no binary: let it start with `#!/bin/sh`")]
    NoFormat,
}

/// The commonest cause of an interpreter that "is not there" although it is.
fn carriage(named: &str) -> &'static str {
    if named.ends_with('\r') { " (the file has Windows line ends)" } else { "" }
}

/// Where a captured post-check came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// A file.
    File {
        /// The path by which it was found.
        #[serde(with = "path_text")]
        named: PathBuf,
        /// The same after all links.
        #[serde(with = "path_text")]
        resolved: PathBuf,
    },
    /// A command for `sh -c`.
    Command {
        /// Its words.
        words: String,
    },
}

/// How a program file looked when its digest was taken; equal stamps spare a second reading.
///
/// The change time is in it: no unprivileged program can set that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The inode number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the bytes, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Last change of the inode, nanoseconds since the epoch.
    pub ctime_ns: i64,
}

/// A program that runs the post-check: what `#!` names, and what that needs in turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// The name, as the line that asks for it has it.
    pub named: String,
    /// The file, after `PATH` and all links.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// How it looked.
    pub stamp: Stamp,
}

/// A post-check that can run, captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Where it came from.
    pub origin: Origin,
    /// SHA-256 of its bytes, or of the command's words, in hex.
    pub sha256: String,
    /// The captured copy, in the state directory; a command has none.
    #[serde(with = "path_text::option")]
    pub captured: Option<PathBuf>,
    /// What runs it, outermost first: `/usr/bin/env`, then what `env` finds. Empty for a binary.
    pub interpreters: Vec<Interpreter>,
    /// The folder of the original (after all links), for helpers that lie beside it. For a command
    /// the workspace.
    #[serde(with = "path_text")]
    pub original_dir: PathBuf,
    /// `PATH` as it was at open: interpreters are found by it.
    #[serde(with = "path_text")]
    pub search_path: PathBuf,
}

/// What was found at open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Capture {
    /// `--no-post-check`.
    Off,
    /// None at the default places.
    Absent,
    /// One at a default place that cannot run.
    Misconfigured {
        /// Where.
        #[serde(with = "path_text")]
        path: PathBuf,
        /// Why not.
        why: Unrunnable,
    },
    /// One that can run.
    Ready(Ready),
}

impl Capture {
    /// The value of the commit's trailer `Worktx-Post-Check`: `sha256:…` or `absent`.
    pub fn trailer(&self) -> String {
        match self {
            Self::Ready(ready) => format!("sha256:{}", ready.sha256),
            Self::Off | Self::Absent | Self::Misconfigured { .. } => "absent".to_owned(),
        }
    }

    /// The digest, where something was captured.
    pub fn sha256(&self) -> Option<&str> {
        match self {
            Self::Ready(ready) => Some(&ready.sha256),
            Self::Off | Self::Absent | Self::Misconfigured { .. } => None,
        }
    }
}

/// One difference between what was captured and what stands there after the turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    /// The original has other bytes.
    #[error("{} has other bytes", path.display())]
    Bytes {
        /// The original.
        #[serde(with = "path_text")]
        path: PathBuf,
    },
    /// The original's name leads to another file now.
    #[error("{} leads to {} now", named.display(), resolved.display())]
    Elsewhere {
        /// The name.
        #[serde(with = "path_text")]
        named: PathBuf,
        /// Where it leads.
        #[serde(with = "path_text")]
        resolved: PathBuf,
    },
    /// The original cannot be run any more, or is gone.
    #[error("{} does not run any more: {why}", path.display())]
    Unrunnable {
        /// The original.
        #[serde(with = "path_text")]
        path: PathBuf,
        /// Why not.
        why: Unrunnable,
    },
    /// An interpreter is another one, or gone.
    #[error("its interpreter {} is not the one captured: {why}", named.escape_debug())]
    Interpreter {
        /// The name, as the line that asks for it has it.
        named: String,
        /// What differs.
        why: String,
    },
}

/// What is found of a captured post-check after the turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Recheck {
    /// Nothing differs.
    Same,
    /// Something does.
    Changed {
        /// What.
        what: Vec<Difference>,
    },
}

/// How the captured copy ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It returned this.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It was still there at its timeout (or at `--settle-by`, which the caller tells apart).
    TimedOut,
    /// worktx could not start it.
    Unstartable(String),
}

/// `post_check.outcome` of an outcome document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PostCheckOutcome {
    /// There was none.
    Absent,
    /// It said yes.
    Passed,
    /// It said no.
    Failed,
    /// It ran out of its time.
    Timeout,
    /// There was one that could not run.
    Misconfigured,
    /// It was not what was captured.
    Changed,
}

impl PostCheckOutcome {
    /// The word in a document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Misconfigured => "misconfigured",
            Self::Changed => "changed",
        }
    }
}

/// Where the attempt goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostCheckDecision {
    /// On, to the gate.
    Commit,
    /// Back.
    RollBack(Cause),
    /// To an operator.
    Quarantine(QuarantineReason),
}

/// A decision with its word.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Judged {
    /// The word.
    pub outcome: PostCheckOutcome,
    /// The decision.
    pub decision: PostCheckDecision,
}

/// What comes before the run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// There is nothing to run: this is the decision.
    Decided(Judged),
    /// Run the captured copy. `Changed` asks for a warning: the original differs, and the settings
    /// say to go by the copy.
    Run(Recheck),
}

/// What is decided before the captured copy runs.
///
/// `recheck` counts for a [`Capture::Ready`] only.
pub fn before_run(capture: &Capture, recheck: &Recheck, settings: &PostCheckSettings) -> Step {
    use PostCheckDecision::{Commit, Quarantine, RollBack};
    let fail_open = |policy, outcome| {
        let decision = match policy {
            FailOpen::Commit => Commit,
            FailOpen::Reject => RollBack(Cause::PostCheckMissing),
        };
        Step::Decided(Judged { outcome, decision })
    };
    match (capture, recheck) {
        // Asked for by name: the policy about one that nobody thought of has no say.
        (Capture::Off, _) => {
            Step::Decided(Judged { outcome: PostCheckOutcome::Absent, decision: Commit })
        }
        (Capture::Absent, _) => fail_open(settings.on_absent, PostCheckOutcome::Absent),
        (Capture::Misconfigured { .. }, _) => {
            fail_open(settings.on_misconfigured, PostCheckOutcome::Misconfigured)
        }
        (Capture::Ready(_), Recheck::Same) => Step::Run(Recheck::Same),
        (Capture::Ready(_), Recheck::Changed { .. }) => {
            let decision = match settings.on_changed {
                OnChanged::Reject => RollBack(Cause::PostCheckChanged),
                OnChanged::Quarantine => Quarantine(QuarantineReason::PostCheckChanged),
                OnChanged::Ignore => return Step::Run(recheck.clone()),
            };
            Step::Decided(Judged { outcome: PostCheckOutcome::Changed, decision })
        }
    }
}

/// What is decided once the captured copy has run.
pub fn after_run(ran: &Ran) -> Judged {
    use PostCheckDecision::{Commit, Quarantine, RollBack};
    let (outcome, decision) = match ran {
        Ran::Exited(0) => (PostCheckOutcome::Passed, Commit),
        Ran::Exited(_) | Ran::Signalled(_) => {
            (PostCheckOutcome::Failed, RollBack(Cause::PostCheckFailed))
        }
        Ran::TimedOut => (PostCheckOutcome::Timeout, RollBack(Cause::PostCheckFailed)),
        Ran::Unstartable(why) => (
            PostCheckOutcome::Misconfigured,
            Quarantine(QuarantineReason::PostCheckUnstartable { why: why.clone() }),
        ),
    };
    Judged { outcome, decision }
}

/// A path of the file system as text that can be read back, whatever its bytes.
pub(crate) mod path_text {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::tx::path::{quote, unquote};

    /// Writes it as git's commands show a path.
    pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&quote(path.as_os_str().as_bytes()))
    }

    /// Reads what [`serialize`] wrote.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = unquote(&text).ok_or_else(|| D::Error::custom("a path that cannot be read"))?;
        Ok(PathBuf::from(OsString::from_vec(bytes)))
    }

    /// The same for one that may be missing.
    pub(crate) mod option {
        use super::{Deserializer, Path, PathBuf, Serializer};
        use serde::Deserialize;

        #[derive(Deserialize)]
        struct Text(#[serde(with = "super")] PathBuf);

        /// Writes the path, or null.
        #[expect(clippy::ref_option, reason = "the form that serde calls")]
        pub(crate) fn serialize<S: Serializer>(
            path: &Option<PathBuf>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match path.as_deref() {
                Some(path) => super::serialize::<S>(Path::new(path), to),
                None => to.serialize_none(),
            }
        }

        /// Reads what [`serialize`] wrote.
        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<PathBuf>, D::Error> {
            Ok(Option::<Text>::deserialize(from)?.map(|text| text.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use crate::tx::settings::Settings;

    fn odd_path() -> PathBuf {
        PathBuf::from(std::ffi::OsString::from_vec(b"/s\xffp ace\n/x".to_vec()))
    }

    fn ready() -> Capture {
        Capture::Ready(Ready {
            origin: Origin::File { named: odd_path(), resolved: odd_path() },
            sha256: "ab".repeat(32),
            captured: Some(odd_path()),
            interpreters: Vec::new(),
            original_dir: odd_path(),
            search_path: PathBuf::from("/bin:/usr/bin"),
        })
    }

    fn changed() -> Recheck {
        Recheck::Changed { what: vec![Difference::Bytes { path: odd_path() }] }
    }

    fn settings(on_changed: OnChanged, fail_open: FailOpen) -> PostCheckSettings {
        PostCheckSettings {
            on_changed,
            on_absent: fail_open,
            on_misconfigured: fail_open,
            ..Settings::standard().post_check
        }
    }

    #[test]
    fn every_row_before_the_run() {
        use PostCheckDecision::{Commit, Quarantine, RollBack};
        let bad = Capture::Misconfigured { path: odd_path(), why: Unrunnable::NotExecutable };
        let decided = |outcome, decision| Step::Decided(Judged { outcome, decision });
        let missing = || RollBack(Cause::PostCheckMissing);
        for on_changed in [OnChanged::Reject, OnChanged::Quarantine, OnChanged::Ignore] {
            for policy in [FailOpen::Commit, FailOpen::Reject] {
                for recheck in [Recheck::Same, changed()] {
                    let settings = settings(on_changed, policy);
                    let at = |capture: &Capture| before_run(capture, &recheck, &settings);
                    let open = |outcome| match policy {
                        FailOpen::Commit => decided(outcome, Commit),
                        FailOpen::Reject => decided(outcome, missing()),
                    };
                    assert_eq!(at(&Capture::Off), decided(PostCheckOutcome::Absent, Commit));
                    assert_eq!(at(&Capture::Absent), open(PostCheckOutcome::Absent));
                    assert_eq!(at(&bad), open(PostCheckOutcome::Misconfigured));
                    let expected = match (&recheck, on_changed) {
                        (Recheck::Same, _) | (_, OnChanged::Ignore) => Step::Run(recheck.clone()),
                        (_, OnChanged::Reject) => {
                            decided(PostCheckOutcome::Changed, RollBack(Cause::PostCheckChanged))
                        }
                        (_, OnChanged::Quarantine) => decided(
                            PostCheckOutcome::Changed,
                            Quarantine(QuarantineReason::PostCheckChanged),
                        ),
                    };
                    assert_eq!(at(&ready()), expected);
                }
            }
        }
    }

    #[test]
    fn every_row_after_the_run() {
        use PostCheckDecision::{Commit, Quarantine, RollBack};
        let failed = || RollBack(Cause::PostCheckFailed);
        for (ran, outcome, decision) in [
            (Ran::Exited(0), PostCheckOutcome::Passed, Commit),
            (Ran::Exited(1), PostCheckOutcome::Failed, failed()),
            (Ran::Exited(126), PostCheckOutcome::Failed, failed()),
            (Ran::Signalled(9), PostCheckOutcome::Failed, failed()),
            (Ran::TimedOut, PostCheckOutcome::Timeout, failed()),
            (
                Ran::Unstartable("noexec".to_owned()),
                PostCheckOutcome::Misconfigured,
                Quarantine(QuarantineReason::PostCheckUnstartable { why: "noexec".to_owned() }),
            ),
        ] {
            assert_eq!(after_run(&ran), Judged { outcome, decision }, "{ran:?}");
        }
    }

    #[test]
    fn a_capture_survives_the_ledger_whatever_its_paths() {
        let mut plain = ready();
        if let Capture::Ready(ready) = &mut plain {
            ready.captured = None;
        }
        let bad = Capture::Misconfigured { path: odd_path(), why: Unrunnable::NoFormat };
        for capture in [ready(), plain, bad, Capture::Absent, Capture::Off] {
            let json = serde_json::to_string(&capture).expect("plain data");
            assert_eq!(serde_json::from_str::<Capture>(&json).expect("read back"), capture);
        }
    }

    #[test]
    fn windows_line_ends_are_named() {
        let why = Unrunnable::NoInterpreter { named: "/bin/sh\r".to_owned() };
        assert!(why.to_string().contains("Windows line ends"), "{why}");
    }
}
