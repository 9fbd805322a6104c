//! What the journal keeps of an attempt beside its immutable facts: state, pins, warnings.
//!
//! # Limitations
//! A record says what was meant to be: whether a ref stands is git's to say.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::Pin;
use super::path::RepoPath;
use super::state::{IllegalTransition, TxEvent, TxState};
use super::writer::TurnResult;

/// A warning of an outcome document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// A word that stays the same.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
}

/// The refs that keep an attempt's objects alive. A pin stands here before its ref is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// What it started from.
    pub base: Option<Pin>,
    /// What the turn did.
    pub candidate: Option<Pin>,
    /// What was undone; the k-th is `…/discarded/<k+1>`.
    pub discarded: Vec<Pin>,
    /// Somebody else's bytes; the k-th is `…/rescue/<k+1>`.
    pub rescue: Vec<Pin>,
}

impl Pins {
    /// All of them, in the order in which they are made.
    pub fn all(&self) -> impl Iterator<Item = &Pin> {
        self.base.iter().chain(&self.candidate).chain(&self.discarded).chain(&self.rescue)
    }
}

/// What the journal keeps of an attempt beside its immutable facts: its `data` column, whose
/// state's tag stands in the `state` column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// Where it is.
    pub state: TxState,
    /// What is kept for it.
    pub pins: Pins,
    /// What a person should know.
    pub warnings: Vec<Warning>,
    /// Where somebody else's bytes were found.
    pub drift: Vec<RepoPath>,
    /// How the turn ended, for the states that do not hold it.
    #[serde(default)]
    pub turn: Option<TurnResult>,
    /// How many of `pins.discarded` stood before the undo that goes on: it has to pin anew what an
    /// operator has seen and discards.
    #[serde(default)]
    pub earlier_discarded: usize,
}

impl AttemptRecord {
    /// A new attempt.
    pub fn open() -> Self {
        Self {
            state: TxState::Open { turn: None },
            pins: Pins::default(),
            warnings: Vec::new(),
            drift: Vec::new(),
            turn: None,
            earlier_discarded: 0,
        }
    }

    /// The record after an event.
    ///
    /// # Errors
    /// [`IllegalTransition`] where its state cannot take it.
    pub fn with(&self, event: TxEvent) -> Result<Self, IllegalTransition> {
        Ok(Self { state: self.state.clone().apply(event)?, ..self.clone() })
    }

    /// Adds a warning, once.
    pub fn warn(&mut self, code: &str, message: impl Into<String>) {
        let warning = Warning { code: code.to_owned(), message: message.into() };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}
