//! What an attempt's time goes into: the phases of an outcome document.
//!
//! # Limitations
//! Phases follow each other and never overlap. Those of a process that was killed are lost with
//! it: who finishes an attempt tells its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What worktx is at; in the order in which an attempt comes to it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Finding, locking and opening the workspace; settling what an earlier attempt left.
    Begin,
    /// Judging whether the workspace can be a base: the look at all of it.
    Judge,
    /// Capturing the post-check and the git directory, and recording the attempt.
    Record,
    /// Pinning the base and bringing the turn's processes up.
    Start,
    /// The command, and the proof that all of it is dead.
    Turn,
    /// Looking at what the turn did, and building and pinning the candidate.
    Seal,
    /// The post-check, and putting back what it left.
    PostCheck,
    /// Taking git's locks, comparing with the seal, asking the gate.
    Gate,
    /// Moving branch and index.
    Promote,
    /// Looking at what has to be undone, and pinning it.
    Discard,
    /// Putting everything back.
    Restore,
    /// Recording the end.
    Finish,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 12] = [
        Self::Begin,
        Self::Judge,
        Self::Record,
        Self::Start,
        Self::Turn,
        Self::Seal,
        Self::PostCheck,
        Self::Gate,
        Self::Promote,
        Self::Discard,
        Self::Restore,
        Self::Finish,
    ];

    /// The word in a document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Judge => "judge",
            Self::Record => "record",
            Self::Start => "start",
            Self::Turn => "turn",
            Self::Seal => "seal",
            Self::PostCheck => "post_check",
            Self::Gate => "gate",
            Self::Promote => "promote",
            Self::Discard => "discard",
            Self::Restore => "restore",
            Self::Finish => "finish",
        }
    }
}

/// How long a phase took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// In microseconds, all its parts together.
    pub duration_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_documents() {
        for phase in Phase::ALL {
            let word = serde_json::to_value(phase).expect("a word");
            assert_eq!(word, phase.as_str());
        }
        assert!(Phase::ALL.is_sorted());
    }
}
