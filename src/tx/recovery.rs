//! The recovery table: what an attempt that nobody drives any more comes to, from observations
//! alone.
//!
//! The laws, which a test holds against every combination of observations:
//! 1. what is settled is never touched, nor what a living owner drives;
//! 2. without proof of death nothing is undone;
//! 3. a won verdict is never undone;
//! 4. an undo goes to our own base only, and bytes that nothing recorded are pinned first;
//! 5. rolling forward past the gate needs proof from both stores, the row and the branch.
//!
//! # Limitations
//! It decides one step. After the step the world is observed anew.

use super::cause::{Cause, QuarantineReason};
use super::settings::OnInterrupted;
use super::state::{TxState, VerdictState};

/// Where an attempt is, as far as the table needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Recorded, no turn.
    OpenIdle,
    /// The turn was let go, or was about to be.
    OpenTurn,
    /// The candidate is built.
    Sealed,
    /// The post-check was let go, or was about to be.
    Validating,
    /// The gate may have been asked.
    Committing,
    /// The gate is won, and the journal says so.
    CommittingWon,
    /// The branch was moved.
    CommittedFs,
    /// The undo has begun.
    RollingBack,
    /// Held as `interrupted`.
    QuarantinedInterrupted,
    /// Held past the commit point.
    QuarantinedWon,
    /// Held for another reason.
    QuarantinedOther,
    /// Settled.
    Settled,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 12] = [
        Self::OpenIdle,
        Self::OpenTurn,
        Self::Sealed,
        Self::Validating,
        Self::Committing,
        Self::CommittingWon,
        Self::CommittedFs,
        Self::RollingBack,
        Self::QuarantinedInterrupted,
        Self::QuarantinedWon,
        Self::QuarantinedOther,
        Self::Settled,
    ];

    /// The stage of a state.
    pub fn of(state: &TxState) -> Self {
        match state {
            TxState::Open { turn: None } => Self::OpenIdle,
            TxState::Open { turn: Some(_) } => Self::OpenTurn,
            TxState::Sealed { .. } => Self::Sealed,
            TxState::Validating { .. } => Self::Validating,
            TxState::Committing { verdict: VerdictState::Pending, .. } => Self::Committing,
            TxState::Committing { verdict: VerdictState::Won, .. } => Self::CommittingWon,
            TxState::CommittedFs { .. } => Self::CommittedFs,
            TxState::RollingBack { .. } => Self::RollingBack,
            TxState::Quarantined { held, .. } if held.is_past_commit_point() => {
                Self::QuarantinedWon
            }
            TxState::Quarantined { reason: QuarantineReason::Interrupted, .. } => {
                Self::QuarantinedInterrupted
            }
            TxState::Quarantined { .. } => Self::QuarantinedOther,
            TxState::Done { .. } | TxState::RolledBack { .. } | TxState::Released { .. } => {
                Self::Settled
            }
        }
    }
}

/// Whether somebody drives the attempt: by lock and identity, never by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnerSeen {
    /// Its coordinator lives.
    Living,
    /// Nobody does.
    Gone,
}

/// What is known of the processes that may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriterSeen {
    /// Dead, with proof.
    ProvenDead,
    /// Alive, or nobody can say.
    Unproven,
}

/// What the row says of SUCCESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerdictSeen {
    /// No terminal stands.
    NotWritten,
    /// SUCCESS for this attempt and candidate.
    Ours,
    /// Another terminal, or a SUCCESS for somebody else.
    Theirs,
    /// The row could not be read.
    Unknown,
}

/// Where the attempt's branch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BranchSeen {
    /// At the base.
    AtBase,
    /// At the turn's own last commit, where that is not the base: where it was sealed.
    AtTip,
    /// At the candidate. Where the candidate is the tip itself, this is seen only past the commit
    /// point; before it the branch is [`BranchSeen::AtTip`].
    AtCandidate,
    /// Somebody built on the candidate.
    PastCandidate,
    /// The candidate was there once; it no longer is.
    MovedOff,
    /// Somewhere that the attempt cannot explain, a switched branch included.
    Elsewhere,
}

/// What the scope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TreeSeen {
    /// The base.
    Base,
    /// The candidate.
    Candidate,
    /// Each path is at the base or as it was pinned.
    Mixed,
    /// Some path is at neither: bytes that nothing recorded.
    Foreign,
}

/// Everything that the table looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Observed {
    /// See [`OwnerSeen`].
    pub owner: OwnerSeen,
    /// See [`WriterSeen`].
    pub writer: WriterSeen,
    /// See [`VerdictSeen`].
    pub verdict: VerdictSeen,
    /// See [`BranchSeen`].
    pub branch: BranchSeen,
    /// See [`TreeSeen`].
    pub tree: TreeSeen,
    /// The captured setting.
    pub on_interrupted: OnInterrupted,
    /// The same execution has come again, and the workspace still has the fingerprint that it had
    /// when it was quarantined.
    pub again: bool,
}

/// What is pinned before the scope is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinFirst {
    /// Everything that differs from the base.
    Everything,
    /// What is neither of the base nor pinned yet.
    WhatIsNew,
    /// Nothing has to be: all of it is pinned.
    Nothing,
}

/// What to do about the attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: settled, held for an operator, or somebody else's to drive.
    Leave,
    /// Drop its pins and record `rolled_back`: nothing was ever written.
    Abandon,
    /// End the writer and prove it dead, then observe anew.
    StopWriter,
    /// Run the next effect again; first pin, and put back, what is new in the scope if so told.
    Resume(PinFirst),
    /// Record that promotion is done or won, then go on.
    RollForward,
    /// Record the undo for this cause, then run it.
    RollBack(Cause, PinFirst),
    /// Hold it for an operator.
    Quarantine(QuarantineReason),
}

impl Decision {
    /// The word in the event table.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Abandon => "abandon",
            Self::StopWriter => "stop_writer",
            Self::Resume(_) => "resume",
            Self::RollForward => "roll_forward",
            Self::RollBack(..) => "roll_back",
            Self::Quarantine(_) => "quarantine",
        }
    }
}

/// The recovery table. No wildcard over the stage: a thirteenth does not compile.
pub fn decide(stage: Stage, seen: Observed) -> Decision {
    use BranchSeen as B;
    use Decision as D;
    use PinFirst as P;
    use TreeSeen as T;
    use VerdictSeen as V;

    if stage == Stage::Settled || seen.owner == OwnerSeen::Living {
        return D::Leave;
    }
    let held = matches!(
        stage,
        Stage::QuarantinedInterrupted | Stage::QuarantinedWon | Stage::QuarantinedOther
    );
    let nothing_ran = stage == Stage::OpenIdle;
    if seen.writer == WriterSeen::Unproven && !nothing_ran {
        return if held { D::Leave } else { D::StopWriter };
    }
    let moved = |why: &str| D::Quarantine(QuarantineReason::BranchMoved { why: why.to_owned() });
    let blocked =
        |why: &str| D::Quarantine(QuarantineReason::PromoteBlocked { why: why.to_owned() });
    let mismatch = || D::Quarantine(QuarantineReason::VerdictMismatch);

    match stage {
        Stage::Settled | Stage::QuarantinedOther => D::Leave,

        Stage::OpenIdle => D::Abandon,

        // Nobody can say what a turn that was cut off wanted to keep.
        Stage::OpenTurn => match (seen.on_interrupted, seen.verdict, seen.branch) {
            (_, V::Ours, _) => mismatch(),
            (OnInterrupted::Quarantine, ..) => D::Quarantine(QuarantineReason::Interrupted),
            (OnInterrupted::RollBack, _, B::AtBase | B::AtTip) => {
                D::RollBack(Cause::Crashed, P::Everything)
            }
            (
                OnInterrupted::RollBack,
                _,
                B::AtCandidate | B::PastCandidate | B::MovedOff | B::Elsewhere,
            ) => moved("the branch is not where the attempt left it"),
        },

        // The post-check decides over the candidate: what is not of it goes aside first.
        Stage::Sealed | Stage::Validating => match (seen.verdict, seen.branch, seen.tree) {
            (V::Ours, _, _) => mismatch(),
            (_, B::AtBase | B::AtTip, T::Candidate) => D::Resume(P::Nothing),
            (_, B::AtBase | B::AtTip, T::Base | T::Mixed | T::Foreign) => D::Resume(P::WhatIsNew),
            (_, B::AtCandidate | B::PastCandidate | B::MovedOff | B::Elsewhere, _) => {
                moved("the branch moved before the gate was asked")
            }
        },

        // The uncertain one: the row and the branch together say where it is.
        Stage::Committing => match (seen.verdict, seen.branch) {
            (V::NotWritten | V::Ours | V::Unknown, B::AtBase | B::AtTip) => D::Resume(P::Nothing),
            (V::Theirs, B::AtBase | B::AtTip) => {
                D::RollBack(Cause::VerdictLost { standing: None }, P::Everything)
            }
            (V::Ours, B::AtCandidate | B::PastCandidate) => D::RollForward,
            (V::Ours, B::MovedOff | B::Elsewhere) => {
                blocked("the branch is not where the attempt was sealed")
            }
            (V::NotWritten | V::Theirs | V::Unknown, B::AtCandidate | B::PastCandidate) => {
                mismatch()
            }
            (V::NotWritten | V::Theirs | V::Unknown, B::MovedOff | B::Elsewhere) => {
                moved("the branch moved before the verdict was known")
            }
        },

        // Past the commit point: forward, or held; never back.
        Stage::CommittingWon => match (seen.verdict, seen.branch) {
            (V::Theirs, _) => mismatch(),
            (_, B::AtBase | B::AtTip | B::AtCandidate | B::PastCandidate) => D::Resume(P::Nothing),
            (_, B::MovedOff | B::Elsewhere) => {
                blocked("the branch is not where the attempt was sealed")
            }
        },
        Stage::CommittedFs => match (seen.verdict, seen.branch) {
            (V::Theirs, _) => mismatch(),
            (_, B::AtCandidate | B::PastCandidate) => D::Resume(P::Nothing),
            (_, B::AtBase | B::AtTip | B::MovedOff | B::Elsewhere) => {
                blocked("the branch no longer contains the candidate")
            }
        },
        Stage::QuarantinedWon => match (seen.verdict, seen.branch) {
            (V::Theirs, _) => D::Leave,
            (_, B::AtBase | B::AtTip | B::AtCandidate | B::PastCandidate) => D::Resume(P::Nothing),
            (_, B::MovedOff | B::Elsewhere) => D::Leave,
        },

        Stage::RollingBack => match (seen.verdict, seen.branch, seen.tree) {
            (V::Ours, _, _) => mismatch(),
            (_, B::AtBase | B::AtTip, T::Base | T::Candidate | T::Mixed) => D::Resume(P::Nothing),
            (_, B::AtBase | B::AtTip, T::Foreign) => D::Resume(P::WhatIsNew),
            (_, B::AtCandidate | B::PastCandidate | B::MovedOff | B::Elsewhere, _) => {
                moved("the branch is not where the undo expects it")
            }
        },

        Stage::QuarantinedInterrupted => match (seen.again, seen.verdict, seen.branch) {
            (true, V::NotWritten | V::Theirs | V::Unknown, B::AtBase | B::AtTip) => {
                D::RollBack(Cause::Redelivered, P::Everything)
            }
            _ => D::Leave,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = (Stage, Observed)> {
        use {BranchSeen as B, OnInterrupted as I, TreeSeen as T, VerdictSeen as V};
        let mut cases = Vec::new();
        for stage in Stage::ALL {
            for owner in [OwnerSeen::Living, OwnerSeen::Gone] {
                for writer in [WriterSeen::ProvenDead, WriterSeen::Unproven] {
                    for verdict in [V::NotWritten, V::Ours, V::Theirs, V::Unknown] {
                        for branch in [
                            B::AtBase,
                            B::AtTip,
                            B::AtCandidate,
                            B::PastCandidate,
                            B::MovedOff,
                            B::Elsewhere,
                        ] {
                            for tree in [T::Base, T::Candidate, T::Mixed, T::Foreign] {
                                for on_interrupted in [I::Quarantine, I::RollBack] {
                                    for again in [false, true] {
                                        cases.push((
                                            stage,
                                            Observed {
                                                owner,
                                                writer,
                                                verdict,
                                                branch,
                                                tree,
                                                on_interrupted,
                                                again,
                                            },
                                        ));
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        cases.into_iter()
    }

    /// The scope is changed towards the base by this decision.
    fn undoes(stage: Stage, decision: &Decision) -> Option<PinFirst> {
        match decision {
            Decision::RollBack(_, pin) => Some(*pin),
            Decision::Resume(pin) if stage == Stage::RollingBack => Some(*pin),
            _ => None,
        }
    }

    #[test]
    fn laws_over_every_observation() {
        let mut cases = 0;
        for (stage, seen) in all() {
            cases += 1;
            let decision = decide(stage, seen);
            let at = format!("{stage:?} {seen:?} -> {decision:?}");
            let undo = undoes(stage, &decision);

            // 1. Settled, and what a living owner drives, is never touched.
            if stage == Stage::Settled || seen.owner == OwnerSeen::Living {
                assert_eq!(decision, Decision::Leave, "{at}");
                continue;
            }
            // 2. Without proof of death: stop the writer, and nothing else. (Where nothing was
            //    let go there is no writer; what is held for an operator is left alone.)
            if seen.writer == WriterSeen::Unproven {
                let expected = match stage {
                    Stage::OpenIdle => Decision::Abandon,
                    Stage::QuarantinedInterrupted
                    | Stage::QuarantinedWon
                    | Stage::QuarantinedOther => Decision::Leave,
                    _ => Decision::StopWriter,
                };
                assert_eq!(decision, expected, "{at}");
                assert_eq!(undo, None, "{at}");
            }
            // 3. A won verdict is never undone, be it known from the row or from the journal.
            let won = seen.verdict == VerdictSeen::Ours
                || matches!(
                    stage,
                    Stage::CommittingWon | Stage::CommittedFs | Stage::QuarantinedWon
                );
            assert!(!(won && undo.is_some()), "{at}");
            // 4. Undo to our own base only; unrecorded bytes are pinned first.
            if let Some(pin) = undo {
                assert!(matches!(seen.branch, BranchSeen::AtBase | BranchSeen::AtTip), "{at}");
                assert!(seen.tree != TreeSeen::Foreign || pin != PinFirst::Nothing, "{at}");
            }
            // 5. Forward past the gate only on proof from both stores.
            if decision == Decision::RollForward {
                assert_eq!(seen.verdict, VerdictSeen::Ours, "{at}");
                assert!(
                    matches!(seen.branch, BranchSeen::AtCandidate | BranchSeen::PastCandidate),
                    "{at}"
                );
            }
            // 6. A branch in a place that nobody can explain is never moved.
            if matches!(seen.branch, BranchSeen::MovedOff | BranchSeen::Elsewhere) {
                assert!(!matches!(decision, Decision::Resume(_) | Decision::RollForward), "{at}");
            }
            // 7. No limbo: whoever is dead and unsettled is acted on or held with a reason.
            if decision == Decision::Leave {
                assert!(
                    matches!(
                        stage,
                        Stage::QuarantinedInterrupted
                            | Stage::QuarantinedWon
                            | Stage::QuarantinedOther
                    ),
                    "{at}"
                );
            }
            // 8. A post-check never runs on bytes that are not the candidate's.
            if matches!(stage, Stage::Sealed | Stage::Validating)
                && let Decision::Resume(pin) = decision
            {
                assert_eq!(pin == PinFirst::Nothing, seen.tree == TreeSeen::Candidate, "{at}");
            }
        }
        assert_eq!(cases, 12 * 2 * 2 * 4 * 6 * 4 * 2 * 2);
    }
}
