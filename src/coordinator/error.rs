//! Why a command of the coordinator could not be done: one enum, with what is needed to act.
//!
//! # Limitations
//! The sentences with hints are made in `cli`; the ones here are short, for chains of causes.

use crate::config::ConfigError;
use crate::gate::GateError;
use crate::git::config::gitconfig::{ConfigError as GitConfigError, NoIdentity};
use crate::git::files::dir::DirError;
use crate::git::files::root::RootError;
use crate::git::manifest::ManifestError;
use crate::git::objects::store::StoreError;
use crate::git::refs::RefError;
use crate::git::workspace::OpenError;
use crate::git::workspace::lockfile::{Holder, LockError, MarkerError};
use crate::git::workspace::refusal::Refusal;
use crate::hook::capture::CaptureError;
use crate::hook::install::InstallError;
use crate::journal::LedgerError;
use crate::process::{ProgramNotFound, StartError};
use crate::tx::id::AttemptKey;
use crate::tx::record::Warning;
use crate::tx::verdict::Status;

use crate::coordinator::place::PlaceError;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no such thing, or it is not in the state for this.
    #[error("{message}")]
    Impossible {
        /// What.
        message: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// There is no workspace here.
    #[error(transparent)]
    Workspace(#[from] OpenError),
    /// A configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// git's configuration.
    #[error(transparent)]
    GitConfig(#[from] GitConfigError),
    /// The state directory.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The row cannot be read.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Somebody else is at work here.
    #[error("the workspace is busy")]
    Busy {
        /// Who, if they have written it down.
        holder: Option<Box<Holder>>,
    },
    /// A signal came while it waited for somebody else's work here: nothing ran.
    #[error("told to end while it waited for the workspace")]
    WaitEnded {
        /// Who was at work, if they have written it down.
        holder: Option<Box<Holder>>,
    },
    /// The workspace lock, apart from being busy.
    #[error(transparent)]
    Lock(LockError),
    /// The workspace cannot be a base.
    #[error("the workspace cannot be a base")]
    Refused {
        /// Why not.
        refusals: Vec<Refusal>,
        /// What a person should know beside.
        warnings: Vec<Warning>,
    },
    /// The execution is done with: cancelled or skipped.
    #[error("the execution already is {0}")]
    Standing(Status),
    /// Another ledger has an attempt here.
    #[error(transparent)]
    Marker(MarkerError),
    /// The command is not there.
    #[error(transparent)]
    Program(#[from] ProgramNotFound),
    /// The command cannot be brought up.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody to commit as.
    #[error(transparent)]
    Identity(#[from] NoIdentity),
    /// The post-check that was named cannot be captured.
    #[error(transparent)]
    PostCheck(#[from] CaptureError),
    /// The guard hook.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The refs.
    #[error(transparent)]
    Ref(#[from] RefError),
    /// The work tree.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What was known of the work tree.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A folder of the git directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A file.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Something of the work tree could not be read.
    #[error("{what}")]
    Other {
        /// What was being done.
        what: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The turn ran, and its end could not be recorded.
    #[error("attempt {key} could not be brought to its end")]
    LeftOpen {
        /// Which.
        key: AttemptKey,
        /// What its row says.
        status: Option<Status>,
        /// Why.
        source: Box<Failure>,
    },
    /// A signal came while an attempt of another process was settled: it waits for who comes next.
    #[error("told to end; attempt {key} waits to be settled")]
    LeftUnsettled {
        /// Which.
        key: AttemptKey,
    },
    /// A bug.
    #[error("{0}")]
    Bug(String),
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Busy { holder } => Self::Busy { holder },
            other => Self::Lock(other),
        }
    }
}

impl From<MarkerError> for Failure {
    fn from(error: MarkerError) -> Self {
        Self::Marker(error)
    }
}

impl Failure {
    /// Something that cannot be.
    pub fn bug(error: impl std::fmt::Display) -> Self {
        Self::Bug(error.to_string())
    }

    /// For `map_err`: what was being done with a file.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err`: what was being done.
    pub fn other<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let what = what.into();
        move |source| Self::Other { what, source: Box::new(source) }
    }

    /// Not to be done as things stand.
    pub fn impossible(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Impossible { message: message.into(), hint: Some(hint.into()) }
    }
}
