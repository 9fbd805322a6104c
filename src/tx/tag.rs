//! The word for a state in the ledger and in documents.
//!
//! # Limitations
//! It says less than the state: what a state carries decides what comes next.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::InvalidName;
#[cfg(doc)]
use super::state::TxState;

/// The `state` column: the fieldless shadow of [`TxState`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StateTag {
    /// [`TxState::Open`]
    Open,
    /// [`TxState::Sealed`]
    Sealed,
    /// [`TxState::Validating`]
    Validating,
    /// [`TxState::Committing`]
    Committing,
    /// [`TxState::CommittedFs`]
    CommittedFs,
    /// [`TxState::Done`]
    Done,
    /// [`TxState::RollingBack`]
    RollingBack,
    /// [`TxState::RolledBack`]
    RolledBack,
    /// [`TxState::Released`]
    Released,
    /// [`TxState::Quarantined`]
    Quarantined,
}

impl StateTag {
    /// Every tag.
    pub const ALL: [Self; 10] = [
        Self::Open,
        Self::Sealed,
        Self::Validating,
        Self::Committing,
        Self::CommittedFs,
        Self::Done,
        Self::RollingBack,
        Self::RolledBack,
        Self::Released,
        Self::Quarantined,
    ];

    /// The word in the ledger and in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Sealed => "sealed",
            Self::Validating => "validating",
            Self::Committing => "committing",
            Self::CommittedFs => "committed_fs",
            Self::Done => "done",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Released => "released",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether nothing is left to do or to decide. Quarantined is **not** settled.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack | Self::Released)
    }
}

impl fmt::Display for StateTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StateTag {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        Self::ALL.into_iter().find(|tag| tag.as_str() == value).ok_or_else(|| InvalidName {
            what: "state",
            value: value.to_owned(),
            rule: "one of the ten of docs/state-machine.md",
        })
    }
}
