//! Where the time of an attempt goes: one phase at a time, each with its span in the traces.
//!
//! # Limitations
//! By the monotonic clock of this process, from when `run` was called: not the start of the
//! process before.

use std::time::{Duration, Instant};

use tracing::span::EnteredSpan;

use crate::tx::phase::{Phase, PhaseTime};

/// A clock that is in one phase at a time.
#[derive(Debug, Default)]
pub struct Laps {
    past: [Duration; Phase::ALL.len()],
    now: Option<Lap>,
}

#[derive(Debug)]
struct Lap {
    phase: Phase,
    since: Instant,
    /// Closed with the phase.
    _span: EnteredSpan,
}

impl Laps {
    /// Ends the phase that it is in, and begins another; the same one simply goes on.
    pub fn enter(&mut self, phase: Phase) {
        if self.now.as_ref().is_some_and(|lap| lap.phase == phase) {
            return;
        }
        self.rest();
        self.now = Some(Lap { phase, since: Instant::now(), _span: span(phase) });
    }

    /// Ends the phase that it is in.
    pub fn rest(&mut self) {
        if let Some(lap) = self.now.take() {
            self.past[lap.phase as usize] += lap.since.elapsed();
        }
    }

    /// The phases that there were, the present one up to now.
    pub fn so_far(&self) -> Vec<PhaseTime> {
        let mut all = self.past;
        if let Some(lap) = &self.now {
            all[lap.phase as usize] += lap.since.elapsed();
        }
        let each = Phase::ALL.into_iter().zip(all).filter(|(_, time)| !time.is_zero());
        each.map(|(phase, time)| PhaseTime {
            phase,
            duration_us: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
        })
        .collect()
    }
}

/// The span of a phase, by its own name: traces are read by names.
fn span(phase: Phase) -> EnteredSpan {
    macro_rules! named {
        ($($phase:ident $name:literal),*) => {
            match phase { $(Phase::$phase => tracing::info_span!($name),)* }
        };
    }
    named!(
        Begin "begin", Judge "judge", Record "record", Start "start", Turn "turn", Seal "seal",
        PostCheck "post_check", Gate "gate", Promote "promote", Discard "discard",
        Restore "restore", Finish "finish"
    )
    .entered()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(laps: &Laps) -> Vec<Phase> {
        laps.so_far().iter().map(|time| time.phase).collect()
    }

    #[test]
    fn phases_do_not_overlap_and_add_up() {
        let begun = Instant::now();
        let mut laps = Laps::default();
        assert_eq!(phases(&laps), []);
        for phase in [Phase::Turn, Phase::Judge, Phase::Turn] {
            laps.enter(phase);
            std::thread::yield_now();
            laps.enter(phase);
        }
        assert_eq!(phases(&laps), [Phase::Judge, Phase::Turn]);
        laps.rest();
        let told = laps.so_far();
        assert_eq!(told, laps.so_far(), "no phase goes on");
        let sum: u64 = told.iter().map(|time| time.duration_us).sum();
        assert!(u128::from(sum) <= begun.elapsed().as_micros());
    }
}
