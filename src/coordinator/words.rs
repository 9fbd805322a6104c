//! Warnings of the workspace, as a code and a sentence.
//!
//! # Limitations
//! Failures and refusals have their words in `cli`; warnings are recorded, so theirs are here.

use crate::git::judge::BaseWarning;

/// The code and the sentence of a warning.
pub const fn base_warning(warning: &BaseWarning) -> (&'static str, &'static str) {
    match warning {
        BaseWarning::DetachedHead => {
            ("detached_head", "HEAD is on no branch: the commit is on HEAD alone")
        }
        BaseWarning::NotSigned => {
            ("not_signed", "commit.gpgSign is set; worktx does not sign, so the commit is unsigned")
        }
        BaseWarning::FileModeIgnored => {
            ("file_mode_ignored", "core.fileMode is off: a changed executable bit is not committed")
        }
        BaseWarning::ReplaceRefs => (
            "replace_refs",
            "the repository has refs/replace/; worktx reads the objects that they replace",
        ),
        BaseWarning::Shallow => ("shallow", "the clone is shallow: some history is not there"),
    }
}

/// A warning of the workspace, as documents have it.
pub fn warning(warning: &BaseWarning) -> crate::tx::record::Warning {
    let (code, message) = base_warning(warning);
    crate::tx::record::Warning { code: code.to_owned(), message: message.to_owned() }
}
