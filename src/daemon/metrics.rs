//! What Prometheus reads: counted from the ledgers' events when it asks, so that an idle server
//! does nothing, and drivers that it did not start are counted too.
//!
//! # Limitations
//! Counters begin with the server; gauges are as the ledger stands.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::documents::Phase;
use super::server::Server;
use super::watching::Told;
use crate::coordinator::error::Failure;
use crate::journal::{Event, EventFilter};
use crate::tx::id::{AttemptNo, ExecutionId};
use crate::tx::phase::PhaseTime;
use crate::tx::tag::StateTag;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verdict {
    verdict: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Fallback {
    workspace: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Workspace {
    workspace: String,
}

/// Where the reading of a ledger's events stands.
#[derive(Default)]
struct Read {
    last: Option<i64>,
    /// When each unsettled attempt came into the state that it is in.
    since: HashMap<(ExecutionId, AttemptNo), jiff::Timestamp>,
    /// The quarantined attempts, which were counted as such: their settlement is no other end.
    quarantined: HashSet<(ExecutionId, AttemptNo)>,
}

/// All figures.
pub(super) struct Metrics {
    registry: Registry,
    attempts: Family<Outcome, Counter>,
    verdicts: Family<Verdict, Counter>,
    durations: Family<State, Histogram>,
    phases: Family<Of, Histogram>,
    unsettled: Family<Workspace, Gauge>,
    quarantined: Family<Workspace, Gauge>,
    pinned: Counter<u64, AtomicU64>,
    watches: Family<Workspace, Gauge>,
    bounded: Family<Workspace, Counter>,
    fallbacks: Family<Fallback, Counter>,
    running: Gauge,
    queued: Gauge,
    leases: Gauge,
    requests: Counter<u64, AtomicU64>,
    read: Mutex<Vec<Read>>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("worktx");
        let attempts = Family::<Outcome, Counter>::default();
        registry.register("attempts", "Attempts that came to an end, by the first one: what was quarantined and then settled counts as quarantined", attempts.clone());
        let verdicts = Family::<Verdict, Counter>::default();
        registry.register("gate_verdicts", "Verdicts on a success, by kind", verdicts.clone());
        // A millisecond to over an hour.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 12));
        let durations = Family::<State, Histogram>::new_with_constructor(histogram);
        registry.register_with_unit(
            "state_duration",
            "How long attempts were in a state",
            Unit::Seconds,
            durations.clone(),
        );
        let phases = Family::<Of, Histogram>::new_with_constructor(histogram);
        registry.register_with_unit(
            "phase_duration",
            "How long attempts that came to an end were in a phase",
            Unit::Seconds,
            phases.clone(),
        );
        let pinned = Counter::<u64, AtomicU64>::default();
        registry.register_with_unit(
            "pinned",
            "Packed for candidates and pins of undone and rescued work",
            Unit::Bytes,
            pinned.clone(),
        );
        let unsettled = Family::<Workspace, Gauge>::default();
        registry.register("unsettled", "Attempts that are not settled", unsettled.clone());
        let quarantined = Family::<Workspace, Gauge>::default();
        registry.register("quarantined", "Attempts that wait for an operator", quarantined.clone());
        let watches = Family::<Workspace, Gauge>::default();
        registry.register("watches", "Files and directories that are watched", watches.clone());
        let bounded = Family::<Workspace, Counter>::default();
        registry.register("scans_watched", "Looks at what a watch named", bounded.clone());
        let fallbacks = Family::<Fallback, Counter>::default();
        registry.register(
            "scan_fallbacks",
            "Looks at all although the work tree is served, by reason",
            fallbacks.clone(),
        );
        let (running, queued, leases) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("drivers", "Drivers that run", running.clone());
        registry.register("queued", "Submissions that wait", queued.clone());
        registry.register("guard_leases", "Leases that are given", leases.clone());
        let requests = Counter::<u64, AtomicU64>::default();
        registry.register("requests", "Requests that came in", requests.clone());
        Self {
            registry,
            attempts,
            verdicts,
            durations,
            phases,
            unsettled,
            quarantined,
            pinned,
            watches,
            bounded,
            fallbacks,
            running,
            queued,
            leases,
            requests,
            read: Mutex::default(),
        }
    }

    /// Counts a request.
    pub(super) fn request(&self) {
        self.requests.inc();
    }

    /// Takes in one event, which came after all before.
    fn take(&self, read: &mut Read, event: &Event) {
        read.last = Some(event.id);
        match event.kind.as_str() {
            "refused" => self.outcome("refused"),
            "verdict_won" => self.verdict("won"),
            "verdict_lost" => self.verdict("lost"),
            "sealed" | "adopted" | "discarded_pinned" | "rescue_pinned" => {
                let bytes = event.detail.get("bytes").and_then(serde_json::Value::as_u64);
                self.pinned.inc_by(bytes.unwrap_or(0));
            }
            _ => {}
        }
        let phases = event.detail.get("phases").cloned();
        let phases: Vec<PhaseTime> =
            phases.and_then(|told| serde_json::from_value(told).ok()).unwrap_or_default();
        for PhaseTime { phase, duration_us } in phases {
            let seconds = Duration::from_micros(duration_us).as_secs_f64();
            self.phases.get_or_create(&Of { phase: phase.as_str() }).observe(seconds);
        }
        let (Some(attempt), Some(to)) = (event.attempt, event.to_state.as_deref()) else { return };
        if event.from_state.as_deref() == Some(to) {
            return;
        }
        let key = (event.execution.clone(), attempt);
        let is_new = match to {
            "quarantined" => read.quarantined.insert(key.clone()),
            "done" | "rolled_back" | "released" => !read.quarantined.remove(&key),
            _ => false,
        };
        if is_new {
            self.outcome(if to == "done" { "committed" } else { to });
        }
        let Ok(at) = event.at.parse::<jiff::Timestamp>() else { return };
        let before = read.since.insert(key.clone(), at);
        if let (Some(before), Some(from)) = (before, event.from_state.clone()) {
            let seconds = at.duration_since(before).as_secs_f64().max(0.0);
            self.durations.get_or_create(&State { state: from }).observe(seconds);
        }
        if matches!(to, "done" | "rolled_back" | "released") {
            read.since.remove(&key);
        }
    }

    fn take_watches(&self, server: &Server) {
        for served in &server.served {
            let Some(told) = served.watched.get().map(Told::now) else { continue };
            let workspace = served.root.display().to_string();
            let label = Workspace { workspace: workspace.clone() };
            self.watches.get_or_create(&label).set(i64::try_from(told.watches).unwrap_or(i64::MAX));
            // They only grow, and nobody else counts them.
            let up_to = |counter: &Counter, now: u64| {
                counter.inc_by(now.saturating_sub(counter.get()));
            };
            up_to(&self.bounded.get_or_create(&label), told.bounded);
            for (reason, count) in told.fallbacks {
                let label = Fallback { workspace: workspace.clone(), reason };
                up_to(&self.fallbacks.get_or_create(&label), count);
            }
        }
    }

    fn outcome(&self, word: &str) {
        self.attempts.get_or_create(&Outcome { outcome: word.to_owned() }).inc();
    }

    fn verdict(&self, word: &str) {
        self.verdicts.get_or_create(&Verdict { verdict: word.to_owned() }).inc();
    }

    /// Where the events of each ledger begin to be counted: now.
    pub(super) fn begin(&self, server: &Server) -> Result<(), Failure> {
        let mut all = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for state in &server.states {
            let last = server.context_near(state.first)?.need_ledger()?.last_event_id()?;
            all.push(Read { last: Some(last), ..Read::default() });
        }
        Ok(())
    }

    /// Takes in what came since, and how the work trees of a state directory stand.
    fn take_state(&self, server: &Server, at: usize, read: &mut Read) -> Result<(), Failure> {
        let ledger = server.context_near(server.states[at].first)?.need_ledger()?;
        let filter = EventFilter { after: read.last, ..EventFilter::default() };
        for event in ledger.events(&filter)? {
            self.take(read, &event);
        }
        for served in server.served.iter().filter(|served| served.state == at) {
            let unsettled = ledger.unsettled(Some(&served.id))?;
            let mut quarantined = 0;
            for attempt in &unsettled {
                quarantined += i64::from(attempt.tag()? == StateTag::Quarantined);
            }
            let label = Workspace { workspace: served.root.display().to_string() };
            let count = i64::try_from(unsettled.len()).unwrap_or(i64::MAX);
            self.unsettled.get_or_create(&label).set(count);
            self.quarantined.get_or_create(&label).set(quarantined);
        }
        Ok(())
    }

    /// The page, in the text form of `OpenMetrics`.
    pub(super) fn page(&self, server: &Server) -> Result<String, Failure> {
        let mut all = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, read) in all.iter_mut().enumerate() {
            // One that cannot be read keeps nobody from the figures of the others.
            if let Err(error) = self.take_state(server, at, read) {
                let state = server.states[at].path.display();
                tracing::warn!(%state, %error, "a ledger cannot be read");
            }
        }
        drop(all);
        self.take_watches(server);
        let (mut running, mut queued) = (0, 0);
        for entry in server.entries().values() {
            match *entry.phase.borrow() {
                Phase::Running => running += 1,
                Phase::Queued => queued += 1,
                Phase::Finished => {}
            }
        }
        self.running.set(running);
        self.queued.set(queued);
        self.leases.set(i64::try_from(server.leases.count()).unwrap_or(i64::MAX));
        let mut page = String::new();
        text::encode(&mut page, &self.registry).map_err(Failure::bug)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: i64, kind: &str, at: &str, states: Option<(&str, &str)>) -> Event {
        Event {
            id,
            execution: "one".parse().expect("an id"),
            attempt: Some(AttemptNo(1)),
            at: at.to_owned(),
            kind: kind.to_owned(),
            from_state: states.map(|s| s.0.to_owned()),
            to_state: states.map(|s| s.1.to_owned()),
            detail: serde_json::Value::Null,
        }
    }

    #[test]
    fn events_become_figures() {
        let metrics = Metrics::new();
        let mut read = Read::default();
        let mut all = [
            event(1, "turn_started", "2026-01-01T00:00:00Z", Some(("open", "open"))),
            event(2, "sealed", "2026-01-01T00:00:01Z", Some(("open", "sealed"))),
            event(3, "verdict_won", "2026-01-01T00:00:03Z", Some(("sealed", "committed"))),
            event(4, "finished", "2026-01-01T00:00:03.5Z", Some(("committed", "done"))),
        ];
        all[1].detail = serde_json::json!({ "bytes": 4096 });
        all[3].detail =
            serde_json::json!({ "phases": [{ "phase": "turn", "duration_us": 250_000 }] });
        for event in all {
            metrics.take(&mut read, &event);
        }
        assert_eq!(read.last, Some(4));
        assert!(read.since.is_empty());
        // An operator's decision about what was quarantined is no second end.
        for (id, from, to) in [(5, "open", "quarantined"), (6, "quarantined", "rolling_back")] {
            metrics.take(&mut read, &event(id, "x", "2026-01-01T00:00:04Z", Some((from, to))));
        }
        let states = Some(("rolling_back", "rolled_back"));
        metrics.take(&mut read, &event(7, "finished", "2026-01-01T00:00:05Z", states));
        assert!(read.quarantined.is_empty());
        let mut page = String::new();
        text::encode(&mut page, &metrics.registry).expect("text");
        for line in [
            "worktx_attempts_total{outcome=\"committed\"} 1",
            "worktx_attempts_total{outcome=\"quarantined\"} 1",
            "worktx_gate_verdicts_total{verdict=\"won\"} 1",
            "worktx_state_duration_seconds_sum{state=\"sealed\"} 2.0",
            "worktx_state_duration_seconds_sum{state=\"committed\"} 0.5",
            "worktx_phase_duration_seconds_sum{phase=\"turn\"} 0.25",
            "worktx_pinned_bytes_total 4096",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
        assert!(!page.contains("outcome=\"rolled_back\""), "{page}");
    }
}
