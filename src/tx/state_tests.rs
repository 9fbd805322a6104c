//! The whole transition table, and what must hold over it.

use std::fmt::Write as _;

use super::*;
use crate::tx::record::AttemptRecord;
use crate::tx::writer::{DeathProof, HostId, ProcessId};

fn oid(n: u8) -> Oid {
    Oid::from_bytes([n; 20])
}
fn death() -> ProvenDead {
    ProvenDead::attest(DeathProof::NoChildren)
}
fn writer() -> WriterRecord {
    let process = ProcessId { pid: 7, start_ticks: 70 };
    let host = HostId {
        machine_id: "m".into(),
        boot_id: "b".into(),
        pid_namespace: 1,
        init_start_ticks: 1,
    };
    WriterRecord { host, supervisor: process, leader: process, cgroup: None, started_ticks: 60 }
}
fn seal(adopted: bool) -> Seal {
    Seal {
        candidate: oid(2),
        tree: oid(3),
        sealed_head: oid(1),
        changes: ChangeCounts::default(),
        turn: TurnResult::default(),
        death: death(),
        adopted,
    }
}
fn undo() -> Undo {
    Undo {
        cause: Cause::TurnFailed,
        death: death(),
        turn: TurnResult::default(),
        seal: None,
        post_check: None,
        tip: None,
    }
}
fn committing(verdict: VerdictState, adopted: bool) -> TxState {
    let post_check = PostCheckRecord::absent();
    TxState::Committing { seal: seal(adopted), post_check, verdict }
}
fn live() -> Vec<TxState> {
    let post_check = PostCheckRecord::absent;
    let mut all = vec![TxState::Open { turn: None }, TxState::Open { turn: Some(writer()) }];
    for adopted in [false, true] {
        all.push(TxState::Sealed { seal: seal(adopted) });
        all.push(TxState::Validating { seal: seal(adopted), run: 1, writer: writer() });
        all.push(committing(VerdictState::Pending, adopted));
    }
    all.push(committing(VerdictState::Won, false));
    all.push(TxState::CommittedFs { seal: seal(false), post_check: post_check() });
    all.push(TxState::RollingBack { undo: undo() });
    all
}
fn states() -> Vec<TxState> {
    let held = live().into_iter().map(|state| TxState::Quarantined {
        held: Box::new(state),
        reason: QuarantineReason::Interrupted,
        fingerprint: None,
    });
    let mut all = live();
    all.extend(held);
    all.push(TxState::Done { seal: seal(false), post_check: PostCheckRecord::absent() });
    all.push(TxState::RolledBack { undo: Some(undo()) });
    all.push(TxState::Released { reason: QuarantineReason::Interrupted });
    all
}
fn events() -> Vec<TxEvent> {
    vec![
        TxEvent::TurnStarted(writer()),
        TxEvent::Abandoned,
        TxEvent::Sealed(seal(false)),
        TxEvent::Failed(undo()),
        TxEvent::PostCheckStarted(writer()),
        TxEvent::Passed(PostCheckRecord::absent()),
        TxEvent::Rejected { cause: Cause::PostCheckFailed, post_check: None },
        TxEvent::VerdictWon,
        TxEvent::VerdictLost { standing: None },
        TxEvent::Promoted,
        TxEvent::Finished,
        TxEvent::Undone,
        TxEvent::Quarantined { reason: QuarantineReason::LockLost, fingerprint: None },
        TxEvent::Resumed,
        TxEvent::Adopted(seal(true)),
        TxEvent::TakenBack { cause: Cause::Discarded, death: death(), tip: None },
        TxEvent::Released,
    ]
}
fn label(state: &TxState) -> String {
    let adopted = if state.seal().is_some_and(|s| s.adopted) { "+adopted" } else { "" };
    match state {
        TxState::Open { turn } => format!("open/{}", if turn.is_some() { "turn" } else { "idle" }),
        TxState::Committing { verdict, .. } => {
            format!("committing/{}{adopted}", format!("{verdict:?}").to_lowercase())
        }
        TxState::Quarantined { held, .. } => format!("quarantined[{}]", label(held)),
        other => format!("{}{adopted}", other.tag()),
    }
}

/// Every pair of state and event that is legal, as one table.
#[test]
fn transition_table() {
    let mut table = String::new();
    for state in states() {
        for event in events() {
            let Ok(next) = state.clone().apply(event.clone()) else { continue };
            writeln!(table, "{:38} {:18} {}", label(&state), event.name(), label(&next))
                .expect("a string");
        }
    }
    insta::assert_snapshot!(table, @r"
    open/idle                              turn_started       open/turn
    open/idle                              abandoned          rolled_back
    open/idle                              quarantined        quarantined[open/idle]
    open/turn                              sealed             sealed
    open/turn                              failed             rolling_back
    open/turn                              quarantined        quarantined[open/turn]
    sealed                                 post_check_started validating
    sealed                                 passed             committing/pending
    sealed                                 rejected           rolling_back
    sealed                                 quarantined        quarantined[sealed]
    validating                             post_check_started validating
    validating                             passed             committing/pending
    validating                             rejected           rolling_back
    validating                             quarantined        quarantined[validating]
    committing/pending                     rejected           rolling_back
    committing/pending                     verdict_won        committing/won
    committing/pending                     verdict_lost       rolling_back
    committing/pending                     quarantined        quarantined[committing/pending]
    sealed+adopted                         post_check_started validating+adopted
    sealed+adopted                         passed             committing/pending+adopted
    sealed+adopted                         quarantined        quarantined[sealed+adopted]
    validating+adopted                     post_check_started validating+adopted
    validating+adopted                     passed             committing/pending+adopted
    validating+adopted                     quarantined        quarantined[validating+adopted]
    committing/pending+adopted             verdict_won        committing/won+adopted
    committing/pending+adopted             quarantined        quarantined[committing/pending+adopted]
    committing/won                         verdict_won        committing/won
    committing/won                         promoted           committed_fs
    committing/won                         quarantined        quarantined[committing/won]
    committed_fs                           finished           done
    committed_fs                           quarantined        quarantined[committed_fs]
    rolling_back                           undone             rolled_back
    rolling_back                           quarantined        quarantined[rolling_back]
    quarantined[open/idle]                 quarantined        quarantined[open/idle]
    quarantined[open/idle]                 adopted            sealed+adopted
    quarantined[open/idle]                 taken_back         rolling_back
    quarantined[open/idle]                 released           released
    quarantined[open/turn]                 quarantined        quarantined[open/turn]
    quarantined[open/turn]                 adopted            sealed+adopted
    quarantined[open/turn]                 taken_back         rolling_back
    quarantined[open/turn]                 released           released
    quarantined[sealed]                    quarantined        quarantined[sealed]
    quarantined[sealed]                    adopted            sealed+adopted
    quarantined[sealed]                    taken_back         rolling_back
    quarantined[sealed]                    released           released
    quarantined[validating]                quarantined        quarantined[validating]
    quarantined[validating]                adopted            sealed+adopted
    quarantined[validating]                taken_back         rolling_back
    quarantined[validating]                released           released
    quarantined[committing/pending]        quarantined        quarantined[committing/pending]
    quarantined[committing/pending]        adopted            sealed+adopted
    quarantined[committing/pending]        taken_back         rolling_back
    quarantined[committing/pending]        released           released
    quarantined[sealed+adopted]            quarantined        quarantined[sealed+adopted]
    quarantined[sealed+adopted]            adopted            sealed+adopted
    quarantined[sealed+adopted]            taken_back         rolling_back+adopted
    quarantined[sealed+adopted]            released           released
    quarantined[validating+adopted]        quarantined        quarantined[validating+adopted]
    quarantined[validating+adopted]        adopted            sealed+adopted
    quarantined[validating+adopted]        taken_back         rolling_back+adopted
    quarantined[validating+adopted]        released           released
    quarantined[committing/pending+adopted] quarantined        quarantined[committing/pending+adopted]
    quarantined[committing/pending+adopted] adopted            sealed+adopted
    quarantined[committing/pending+adopted] taken_back         rolling_back+adopted
    quarantined[committing/pending+adopted] released           released
    quarantined[committing/won]            quarantined        quarantined[committing/won]
    quarantined[committing/won]            resumed            committing/won
    quarantined[committed_fs]              quarantined        quarantined[committed_fs]
    quarantined[committed_fs]              resumed            committed_fs
    quarantined[rolling_back]              quarantined        quarantined[rolling_back]
    quarantined[rolling_back]              taken_back         rolling_back
    quarantined[rolling_back]              released           released
    ");
}

/// What no table may do, whatever else it says.
#[test]
fn laws_of_the_table() {
    for state in states() {
        for event in events() {
            let Ok(next) = state.clone().apply(event.clone()) else { continue };
            let at = format!("{} + {}", label(&state), event.name());
            assert!(!state.tag().is_settled(), "settled is never touched: {at}");
            if state.is_past_commit_point() {
                assert!(next.is_past_commit_point(), "a won verdict is never undone: {at}");
            }
            if state.has_begun_undo() {
                assert!(!next.is_past_commit_point(), "an undo never becomes a success: {at}");
                assert!(next.seal().is_none_or(|s| !s.adopted), "nor is it adopted: {at}");
            }
            if next.tag() == StateTag::Done {
                assert_eq!(state.tag(), StateTag::CommittedFs, "{at}");
            }
            if next.tag() == StateTag::CommittedFs && state.tag() != StateTag::Quarantined {
                assert!(state.is_past_commit_point(), "promotion needs a won verdict: {at}");
            }
            if state.seal().is_some_and(|s| s.adopted) && next.has_begun_undo() {
                assert_eq!(event.name(), "taken_back", "an adopted one is undone by word: {at}");
            }
        }
    }
}

#[test]
fn the_way_forward_follows_the_effects() {
    let mut state = TxState::Open { turn: None };
    let steps = [
        (Effect::Start, TxEvent::TurnStarted(writer())),
        (Effect::RunTurn, TxEvent::Sealed(seal(false))),
        (Effect::Validate, TxEvent::PostCheckStarted(writer())),
        (Effect::Validate, TxEvent::Passed(PostCheckRecord::absent())),
        (Effect::AskGate, TxEvent::VerdictWon),
        (Effect::Promote, TxEvent::Promoted),
        (Effect::Finish, TxEvent::Finished),
    ];
    for (effect, event) in steps {
        assert_eq!(state.next_effect(), Some(effect));
        state = state.apply(event).expect("legal");
    }
    assert_eq!(state.tag(), StateTag::Done);
    assert_eq!(state.next_effect(), None);
}

#[test]
fn a_record_survives_the_ledger() {
    for state in states() {
        let mut record = AttemptRecord::open();
        record.state = state;
        record.warn("a", "b");
        let json = serde_json::to_string(&record).expect("data");
        let back: AttemptRecord = serde_json::from_str(&json).expect("read back");
        assert_eq!(back, record, "{json}");
    }
}
