//! The tidier's thread: seals the inbox, lets old data go. Every step is idempotent; a failed one is tried again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fleet_schemas::{
    MetricName,
    event::{Event, Severity},
};

use tokio::sync::watch;

use super::{disk, readiness::Health};
use crate::{
    clock::{self, HubClock},
    consume::Shared,
    core::{fleet::HUB, time::millis},
    store::{
        state::{Commit, EventRow},
        telemetry::{self, RetainReport, Rotten},
    },
};

/// Pause between looks at the inbox when there is nothing to seal.
const PAUSE: Duration = Duration::from_millis(500);
/// How often retention looks for what is too old or too much.
const RETAIN: Duration = Duration::from_secs(600);
/// Events removed in one transaction.
const EVENTS_AT_ONCE: usize = 2_000;
/// Commands removed in one transaction; each may have 10,000 executions.
const COMMANDS_AT_ONCE: usize = 20;

pub(super) struct Tidier {
    pub shared: Shared,
    pub committed: watch::Sender<u64>,
    pub health: Arc<Health>,
    pub clock: Arc<HubClock>,
    pub stop: Arc<AtomicBool>,
    pub retain_events: Duration,
    pub disk: disk::Watch,
}

impl Tidier {
    pub(super) fn run(&mut self) {
        let mut retain_due = Duration::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            let more = self.health.failure().is_none() && self.seal();
            if clock::mono() >= retain_due && self.health.failure().is_none() {
                retain_due = clock::mono() + RETAIN;
                self.keep_time();
                self.retain();
            }
            if self.health.failure().is_none() {
                self.watch_disk();
            }
            if !more {
                thread::park_timeout(PAUSE);
            }
        }
        self.keep_time();
    }

    fn keep_time(&self) {
        if let Err(error) = self.clock.keep() {
            tracing::warn!(%error, "the time could not be kept for the next start");
        }
    }

    fn seal(&self) -> bool {
        let now_ms = self.clock.now().wall_ms;
        match self.shared.telemetry.seal(now_ms) {
            Ok(report) => {
                self.announce(report.rotten, now_ms);
                report.more
            }
            Err(error) => {
                self.failed(&error, "failed to seal samples");
                false
            }
        }
    }

    fn watch_disk(&mut self) {
        match self.disk.look(&self.shared, &self.clock) {
            Ok(None) => {}
            Ok(Some(crossed)) => self.tell(crossed.kind, crossed.severity, crossed.message),
            Err(error) => self.health.failed(error.to_string()),
        }
    }

    /// An event of the hub itself.
    fn tell(&self, kind: &str, severity: Severity, message: String) {
        let now_ms = self.clock.now().wall_ms;
        match severity {
            Severity::Info => tracing::info!(kind, "{message}"),
            Severity::Warning => tracing::warn!(kind, "{message}"),
            Severity::Error | Severity::Critical => tracing::error!(kind, "{message}"),
        }
        let kind = MetricName::parse(kind).expect("our own kinds are short and printable");
        let event = Event { time_ms: now_ms, kind, severity, message, data: None, device: None, id: None };
        let row = EventRow { node: HUB, time_ms: now_ms, recv_ms: now_ms, by_hub: true, event };
        match self.shared.state().apply(&Commit { events: vec![row], ..Commit::default() }) {
            Ok(_) => self.committed.send_modify(|count| *count = count.wrapping_add(1)),
            Err(error) => self.health.failed(error.to_string()),
        }
    }

    /// Opening the stores again helps against a failing disk, not against a damaged row.
    fn failed(&self, error: &telemetry::Error, what: &str) {
        if error.poisons() {
            self.health.failed(error.to_string());
        }
        tracing::error!(%error, "{what}");
    }

    /// Tells of samples that rotted on the disk, by an event of the hub. They are booked already: a crash before this
    /// loses the event, not the account.
    fn announce(&self, rotten: Vec<Rotten>, now_ms: i64) {
        let event = |Rotten { node, lane, records, reason }| {
            let message = format!(
                "{records} samples of the {lane} lane cannot be read any more and were put into quarantine: {reason}; \
                 check the hub's disk"
            );
            tracing::error!(node, "{message}");
            let kind = MetricName::parse("samples_rotted").expect("our own kinds are short and printable");
            let severity = Severity::Error;
            let event =
                Event { time_ms: now_ms, kind, severity, message, data: None, device: None, id: None };
            EventRow { node, time_ms: now_ms, recv_ms: now_ms, by_hub: true, event }
        };
        // A row that does not even tell its node is in the log alone.
        let events: Vec<_> = rotten.into_iter().map(event).filter(|row| row.node != 0).collect();
        if events.is_empty() {
            return;
        }
        match self.shared.state().apply(&Commit { events, ..Commit::default() }) {
            Ok(_) => self.committed.send_modify(|count| *count = count.wrapping_add(1)),
            Err(error) => self.health.failed(error.to_string()),
        }
    }

    fn tell_removed(&self, report: &RetainReport) {
        if report.removed.is_empty() {
            return;
        }
        let samples: u64 = report.expired.iter().map(|(_, _, samples)| samples).sum();
        let files = report.removed.join(", ");
        let message =
            format!("{files} was removed by retention; {samples} samples are over, as the ledger has it");
        self.tell("telemetry_expired", Severity::Info, message);
    }

    fn retain(&self) {
        let (now, in_doubt) = self.clock.read();
        if in_doubt {
            // Expiry waits until somebody has set the clock.
            return;
        }
        while !self.stop.load(Ordering::Acquire) {
            match self.shared.telemetry.retain(now.wall_ms) {
                Ok(report) => {
                    self.tell_removed(&report);
                    if !report.more {
                        break;
                    }
                }
                Err(error) => {
                    self.failed(&error, "failed to remove old samples");
                    break;
                }
            }
        }
        let before_ms = now.wall_ms.saturating_sub(millis(self.retain_events));
        loop {
            match self.shared.state().expire_events(before_ms, EVENTS_AT_ONCE) {
                Ok(EVENTS_AT_ONCE..) if !self.stop.load(Ordering::Acquire) => {}
                Ok(_) => break,
                Err(error) => {
                    self.health.failed(error.to_string());
                    tracing::error!(%error, "failed to remove old events");
                    break;
                }
            }
        }
        loop {
            match self.shared.state().expire_alerts(before_ms, EVENTS_AT_ONCE) {
                Ok(EVENTS_AT_ONCE..) if !self.stop.load(Ordering::Acquire) => {}
                Ok(_) => break,
                Err(error) => {
                    self.health.failed(error.to_string());
                    tracing::error!(%error, "failed to remove old alerts");
                    break;
                }
            }
        }
        loop {
            match self.shared.state().expire_commands(before_ms, COMMANDS_AT_ONCE) {
                Ok(COMMANDS_AT_ONCE..) if !self.stop.load(Ordering::Acquire) => {}
                Ok(_) => break,
                Err(error) => {
                    self.health.failed(error.to_string());
                    tracing::error!(%error, "failed to remove old commands");
                    break;
                }
            }
        }
    }
}
