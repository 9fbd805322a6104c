//! What the attempts of a long life do.
//!
//! # Limitations
//! The tree stays small on purpose: it is the number of attempts that is tried.

use crate::life::Random;

/// A kind of turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Commits,
    Nothing,
    Fails,
    Rejected,
    CheckLitters,
    OwnCommits,
    OwnCommitsFails,
    TimesOut,
    BranchMoved,
    LeavesDaemon,
    Cancelled,
    ManyFiles,
}

impl Kind {
    const ALL: [(Self, u64); 12] = [
        (Self::Commits, 6),
        (Self::Nothing, 1),
        (Self::Fails, 5),
        (Self::Rejected, 3),
        (Self::CheckLitters, 2),
        (Self::OwnCommits, 2),
        (Self::OwnCommitsFails, 2),
        (Self::TimesOut, 1),
        (Self::BranchMoved, 1),
        (Self::LeavesDaemon, 1),
        (Self::Cancelled, 1),
        (Self::ManyFiles, 1),
    ];

    /// One of them, some more often than others.
    pub fn any(random: &mut Random) -> Self {
        let mut at = random.below(Self::ALL.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in Self::ALL {
            if at < weight {
                return kind;
            }
            at -= weight;
        }
        unreachable!("the weights were summed up")
    }

    /// One that is rolled back.
    pub fn any_undone(random: &mut Random) -> Self {
        loop {
            let kind = Self::any(random);
            if matches!(kind, Self::Fails | Self::Rejected | Self::OwnCommitsFails) {
                return kind;
            }
        }
    }

    /// What `run` returns where nobody is killed.
    pub const fn code(self) -> i32 {
        match self {
            Self::Commits | Self::Nothing | Self::CheckLitters | Self::OwnCommits => 0,
            Self::LeavesDaemon | Self::ManyFiles => 0,
            Self::Fails | Self::OwnCommitsFails => 10,
            Self::Rejected => 11,
            Self::TimesOut => 12,
            Self::Cancelled => 13,
            Self::BranchMoved => 20,
        }
    }

    /// Whether the token of the attempt has been written in any case.
    pub const fn writes_token(self) -> bool {
        !matches!(self, Self::Nothing | Self::TimesOut)
    }

    /// Whether its command runs git, which may be killed with a lock in its hand.
    pub const fn runs_git(self) -> bool {
        matches!(self, Self::OwnCommits | Self::OwnCommitsFails | Self::BranchMoved)
    }

    /// Options of `run`.
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Rejected => &["--check", "exit 1"],
            Self::CheckLitters => &["--check", "echo litter > litter; echo spoiled > README.md"],
            Self::TimesOut => &["--timeout", "100ms"],
            _ => &["--no-post-check"],
        }
    }

    /// The command of the n-th attempt. It may run on any tree that earlier ones left.
    pub fn script(self, n: u64, random: &mut Random) -> String {
        let (a, b) = (random.below(1 << 40), random.below(7));
        let work = format!(
            "echo 'token {n}' > tokens/{slot}; echo {a} > src/f{file}; \
             if [ -e extra/{b} ]; then rm extra/{b}; else mkdir -p extra; echo {a} > extra/{b}; fi",
            slot = n % 16,
            file = a % 12,
        );
        let own = "git add -A; git commit -qm own; echo later > later";
        match self {
            Self::Nothing => "true".to_owned(),
            Self::Commits | Self::Rejected | Self::CheckLitters => work,
            Self::Fails => format!(
                "{work}; rm -rf src; mkfifo pipe; chmod 000 README.md; mkdir -p a/b; \
                 ln -s /nowhere a/b/link; exit 3"
            ),
            Self::OwnCommits => format!("{work}; {own}"),
            Self::OwnCommitsFails => format!("{work}; {own}; exit 3"),
            Self::TimesOut => format!("{work}; exec sleep 60"),
            Self::BranchMoved => format!(
                "{work}; git update-ref refs/heads/main \
                 $(git commit-tree -m moved -p HEAD 'HEAD^{{tree}}')"
            ),
            Self::LeavesDaemon => format!("(setsid sleep 60 > /dev/null 2>&1 &); {work}"),
            Self::Cancelled => format!(
                "{work}; \"$WORKTX\" cancel \"$WORKTX_EXECUTION_ID\" > /dev/null; exec sleep 60"
            ),
            Self::ManyFiles => format!(
                "{work}; if [ -e many ]; then rm -rf many; else mkdir many; i=0; \
                 while [ $i -lt 60 ]; do echo $i {a} > many/$i; i=$((i+1)); done; fi"
            ),
        }
    }
}
