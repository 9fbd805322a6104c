//! The immutable facts of an attempt: recorded when it opens, read by whoever takes it up later.
//!
//! # Limitations
//! What is large (the saved index, the git directory's files, the captured post-check) lies in the
//! attempt's folder and is named here by its digest only.

use serde::{Deserialize, Serialize};

use crate::config::Operator;
use crate::git::config::gitconfig::{GitConfig, Identity};
use crate::git::refs::reflog::LogMark;
use crate::git::workspace::Workspace;
use crate::tx::id::{AttemptKey, AttemptNo, Oid, RefName, RefPrefix};
use crate::tx::path::RepoPath;
use crate::tx::post_check::Capture;
use crate::tx::settings::Settings;

/// The facts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptSpec {
    /// Where, by recorded paths and identities.
    pub workspace: Workspace,
    /// The boot in which `workspace`'s device numbers mean something.
    pub boot_id: String,
    /// The branch; `None` where HEAD is detached.
    pub branch: Option<RefName>,
    /// The base commit.
    pub base: Oid,
    /// Its tree.
    pub base_tree: Oid,
    /// The settings, whole.
    pub settings: Settings,
    /// git's configuration, as far as it is used.
    pub git: GitConfig,
    /// Who commits.
    pub author: Identity,
    /// The post-check.
    pub post_check: Capture,
    /// The command, for people; bytes that are no UTF-8 are replaced.
    pub command: Vec<String>,
    /// Where the reflog of the branch ended.
    pub log: LogMark,
    /// What the index meant at open, in hex.
    pub index_meaning: String,
    /// The digest of the index file at open, in hex; `None` where there was none.
    pub index_digest: Option<String>,
    /// The folder at the work-tree root in which files are made and wait.
    pub temporary: RepoPath,
    /// The permission bits of the root at open: the manifest has no entry for it. `None` where the
    /// attempt is of a worktx that kept them in a file.
    #[serde(default)]
    pub root_mode: Option<u32>,
    /// The fence of a pull-model claim.
    pub claim_token: Option<String>,
    /// What set it off.
    pub triggered_by: Option<String>,
    /// When everything up to the gate must be done, RFC 3339.
    pub settle_by: Option<String>,
    /// Other refs at open, by name: reported if they move, never moved back.
    pub other_refs: Vec<(RefName, Oid)>,
    /// Where the outcome of the attempt before lies, if there was one.
    pub previous: Option<String>,
    /// How an operator is told.
    #[serde(default)]
    pub operator: Operator,
}

impl AttemptSpec {
    /// Where its refs go.
    pub fn prefix(&self) -> RefPrefix {
        RefPrefix(self.settings.ref_prefix.clone())
    }

    /// The branch as people call it.
    pub fn branch_name(&self) -> &str {
        self.branch.as_ref().map_or("HEAD", RefName::short)
    }

    /// The command as a shell would take it.
    pub fn command_line(&self) -> String {
        command_line(&self.command)
    }

    /// What an outcome document says of it beside its state.
    pub fn facts(&self, key: &AttemptKey) -> crate::coordinator::attempt::outcome::Facts {
        crate::coordinator::attempt::outcome::Facts {
            key: key.clone(),
            workspace: self.workspace.root().display().to_string(),
            branch: self.branch_name().to_owned(),
            base: self.base,
        }
    }

    /// The subject and body of the commit.
    pub fn message(&self, key: &AttemptKey) -> String {
        let subject = self.settings.message.clone().unwrap_or_else(|| {
            let line = self.command_line().replace(['\n', '\r'], " ");
            let cut: String = line.chars().take(60).collect();
            let dots = if cut.len() < line.len() { "…" } else { "" };
            format!("worktx: {cut}{dots} ({})", key.execution.short())
        });
        let AttemptNo(number) = key.attempt;
        format!(
            "{}\n\nWorktx-Execution: {}\nWorktx-Attempt: {number}\nWorktx-Post-Check: {}\n",
            subject.trim_end(),
            key.execution,
            self.post_check.trailer()
        )
    }
}

/// Words as a shell would take them.
pub fn command_line(words: &[String]) -> String {
    let quoted = words.iter().map(|word| {
        let plain = !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c));
        if plain { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_split() {
        let words = ["sh", "-c", "it's", "", "a b"].map(str::to_owned);
        assert_eq!(command_line(&words), r"sh -c 'it'\''s' '' 'a b'");
    }
}
