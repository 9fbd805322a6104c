//! A real repository with attempts in its ledger, put there through the journal's own calls.
//!
//! # Limitations
//! Tests only.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::config::Flags;
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::session::{Session, write_ledger};
use crate::coordinator::spec::AttemptSpec;
use crate::git::config::gitconfig::{GitConfig, GitEnv, Identity};
use crate::git::refs::reflog::LogMark;
use crate::git::testkit::Repo;
use crate::git::workspace::Workspace;
use crate::journal::{Attempt, Change, Facts, NewAttempt, Opened, Owner};
use crate::process;
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::{AttemptKey, Oid, Pin, RefPrefix};
use crate::tx::path::RepoPath;
use crate::tx::post_check::Capture;
use crate::tx::record::AttemptRecord;
use crate::tx::settings::Settings;
use crate::tx::state::{ChangeCounts, PostCheckRecord, Seal, TxState, Undo, VerdictState};
use crate::tx::writer::{DeathProof, ProcessId, ProvenDead, TurnResult, WriterRecord};

pub(super) struct Lab {
    pub(super) repo: Repo,
    pub(super) context: Context,
    pub(super) base: Oid,
}

impl Lab {
    /// A repository with one commit and a ledger.
    pub(super) fn new() -> Self {
        let repo = Repo::new();
        repo.git(&["config", "user.name", "Test"]);
        repo.git(&["config", "user.email", "test@example.org"]);
        let base = repo.commit("a.txt", "one\n").parse().expect("an id");
        let context = Self::context(&repo, None);
        context.place.create(context.workspace.common_dir()).expect("made");
        drop(write_ledger(&context.place).expect("made"));
        Self { repo, context, base }
    }

    pub(super) fn context(repo: &Repo, profile: Option<&str>) -> Context {
        let environment = [
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("HOME", repo.home().into()),
            ("GIT_CONFIG_NOSYSTEM", "1".into()),
        ];
        let invocation = Invocation {
            cwd: repo.root().to_owned(),
            workspace: None,
            flags: Flags { profile: profile.map(str::to_owned), ..Flags::default() },
            environment: environment.map(|(name, value)| (name.into(), value)).into(),
        };
        Context::find(invocation).expect("found")
    }

    pub(super) fn session(&self) -> Session {
        let Context { workspace, place, .. } = self.context.clone();
        Session::open(workspace, place, "test").expect("free")
    }

    fn spec(&self) -> AttemptSpec {
        let workspace = Workspace::discover(self.repo.root()).expect("found");
        let env = GitEnv::new(self.context.invocation.environment.iter().cloned());
        let identity = Identity { name: "Test".to_owned(), email: "test@example.org".to_owned() };
        AttemptSpec {
            git: GitConfig::capture(&workspace, &env, None).expect("captured"),
            workspace,
            boot_id: process::this_host().boot_id,
            branch: Some(crate::tx::id::RefName("refs/heads/main".to_owned())),
            base: self.base,
            base_tree: self.tree(self.base),
            settings: Settings::standard(),
            author: identity,
            post_check: Capture::Absent,
            command: vec!["make".to_owned(), "it so".to_owned()],
            log: LogMark::default(),
            index_meaning: String::new(),
            index_digest: None,
            temporary: RepoPath::new(".worktx-tmp-x").expect("valid"),
            claim_token: None,
            triggered_by: None,
            settle_by: None,
            other_refs: Vec::new(),
            previous: None,
            root_mode: None,
            operator: crate::config::Operator::default(),
        }
    }

    pub(super) fn tree(&self, commit: Oid) -> Oid {
        let text = self.repo.git(&["rev-parse", &format!("{commit}^{{tree}}")]);
        text.parse().expect("an id")
    }

    /// A commit on the base that nothing names.
    pub(super) fn work(&self, path: &str, text: &str) -> Oid {
        self.repo.commit(path, text);
        let id = self.repo.git(&["rev-parse", "HEAD"]).parse().expect("an id");
        self.repo.git(&["reset", "-q", "--hard", &self.base.to_string()]);
        id
    }

    /// A new attempt, open, owned by `owner`.
    pub(super) fn open(&self, id: &str, owner: &Owner) -> AttemptKey {
        let mut ledger = write_ledger(&self.context.place).expect("opened");
        let execution = id.parse().expect("valid");
        let workspace = crate::journal::Workspace {
            id: self.context.place.workspace_id.clone(),
            root: self.repo.root().to_owned(),
            git_dir: self.repo.root().join(".git"),
        };
        let new = NewAttempt {
            execution: &execution,
            largest_in_refs: None,
            workspace: &workspace,
            owner,
            claim_token: None,
        };
        let spec = serde_json::to_value(self.spec()).expect("plain data");
        let opened = ledger.open_attempt(&new, |_| Facts {
            record: AttemptRecord::open(),
            spec,
            detail: json!({}),
        });
        match opened.expect("opened") {
            Opened::Attempt(key) => key,
            other @ Opened::Standing(_) => panic!("{other:?}"),
        }
    }

    pub(super) fn attempt(&self, key: &AttemptKey) -> Option<Attempt> {
        write_ledger(&self.context.place).expect("opened").attempt(key).expect("read")
    }

    /// Brings an attempt into a state, with pins that are made.
    pub(super) fn set(&self, key: &AttemptKey, state: TxState, discarded: &[Oid]) {
        let found = self.attempt(key).expect("there");
        let prefix = RefPrefix("refs/worktx/tx".to_owned());
        let mut record = found.record().expect("read");
        record.state = state;
        record.pins.base = Some(Pin { name: prefix.base(key), id: self.base });
        for (k, id) in (1..).zip(discarded) {
            record.pins.discarded.push(Pin { name: prefix.discarded(key, k), id: *id });
        }
        for pin in record.pins.all() {
            self.repo.git(&["update-ref", pin.name.as_str(), &pin.id.to_string()]);
        }
        let change = Change {
            key,
            expected: found.tag().expect("known"),
            rev: found.rev,
            record: &record,
            event: "test",
            detail: &json!({}),
            outcome: None,
        };
        write_ledger(&self.context.place).expect("opened").transition(&change).expect("recorded");
    }

    /// An attempt that was rolled back, with a file in its folder.
    pub(super) fn rolled_back(&self, id: &str, work: Oid) -> AttemptKey {
        let key = self.open(id, &gone());
        self.set(&key, TxState::RollingBack { undo: undo() }, &[work]);
        self.set(&key, TxState::RolledBack { undo: Some(undo()) }, &[]);
        std::fs::create_dir_all(self.folder(&key)).expect("made");
        std::fs::write(self.folder(&key).join("gitdir.json"), "{}").expect("written");
        key
    }

    pub(super) fn folder(&self, key: &AttemptKey) -> PathBuf {
        self.context.place.attempt(key)
    }

    pub(super) fn own_refs(&self) -> Vec<String> {
        let text = self.repo.git(&["for-each-ref", "--format=%(refname)", "refs/worktx"]);
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn git_dir(&self) -> &Path {
        self.context.workspace.git_dir()
    }
}

/// An owner that cannot be alive.
pub(super) fn gone() -> Owner {
    Owner { host: process::this_host(), process: ProcessId { pid: i32::MAX, start_ticks: 1 } }
}

pub(super) fn writer(leader: ProcessId) -> WriterRecord {
    WriterRecord {
        host: process::this_host(),
        supervisor: ProcessId { pid: i32::MAX, start_ticks: 1 },
        leader,
        cgroup: None,
        started_ticks: 1,
    }
}

fn death() -> ProvenDead {
    ProvenDead::attest(DeathProof::NoChildren)
}

pub(super) fn undo() -> Undo {
    Undo {
        cause: Cause::TurnFailed,
        death: death(),
        turn: TurnResult { exit_code: Some(3), ..TurnResult::default() },
        seal: None,
        post_check: None,
        tip: None,
    }
}

pub(super) fn seal(candidate: Oid, tree: Oid, base: Oid) -> Seal {
    Seal {
        candidate,
        tree,
        sealed_head: base,
        changes: ChangeCounts { added: 1, modified: 0, deleted: 0 },
        turn: TurnResult { exit_code: Some(0), ..TurnResult::default() },
        death: death(),
        adopted: false,
    }
}

pub(super) fn committing(seal: Seal, verdict: VerdictState) -> TxState {
    TxState::Committing { seal, post_check: PostCheckRecord::absent(), verdict }
}

pub(super) fn held(state: TxState, reason: QuarantineReason) -> TxState {
    TxState::Quarantined { held: Box::new(state), reason, fingerprint: None }
}
