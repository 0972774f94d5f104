//! Watches the hub's disk: measures it, remembers it, and announces each level that it reaches or leaves, once.
//!
//! What a level is and what is to come is decided by `core::disk`. Called by the tidier, which is the thread that also
//! removes what is too much.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fleet_schemas::event::Severity;

use crate::{
    clock::{self, HubClock},
    consume::Shared,
    core::disk::{Budget, Forecast, History, Level, Point, Use, forecast},
    store::{
        state::{Error, FILE},
        telemetry::TelemetryStore,
    },
};

/// How often the disk is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// What is known of the disk now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskView {
    /// How full it is.
    pub level: Level,
    /// Bytes that are left for the hub.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// What is used, by what.
    pub used: Use,
    /// What telemetry may take, and for how long it is kept.
    pub budget: Budget,
    /// What is to come; none while there is too little to tell from.
    pub forecast: Option<Forecast>,
    /// How long the hub has looked, milliseconds.
    pub since_ms: i64,
}

/// Where the latest look is for others to see.
pub(super) type Seen = Arc<Mutex<Option<DiskView>>>;

/// The watch.
pub(super) struct Watch {
    keep: Duration,
    artifacts: super::Artifacts,
    seen: Seen,
    history: Option<History>,
    due: Duration,
}

/// What became of a look.
pub(super) struct Crossed {
    pub kind: &'static str,
    pub severity: Severity,
    pub message: String,
}

impl Watch {
    pub(super) fn new(keep: Duration, artifacts: super::Artifacts, seen: Seen) -> Self {
        Self { keep, artifacts, seen, history: None, due: Duration::ZERO }
    }

    /// Looks, if it is time; what is to be announced of it.
    ///
    /// # Errors
    /// What the store of the state says.
    pub(super) fn look(&mut self, shared: &Shared, clock: &HubClock) -> Result<Option<Crossed>, Error> {
        let up = clock::mono();
        if up < self.due {
            return Ok(None);
        }
        self.due = up + LOOK;
        let Some((point, free, budget)) = self.measure(shared, clock.now().wall_ms) else { return Ok(None) };
        let state = shared.state();
        let mut history = match self.history.take() {
            Some(history) => history,
            None => state.disk_history()?,
        };
        let (before, due) = (history.level, history.is_due(point.at_ms));
        let level = before.next(100.0 * used_ratio(free, budget.total));
        history.level = level;
        if due {
            history.push(point);
        }
        let view = DiskView {
            level,
            free,
            total: budget.total,
            used: point.used,
            budget,
            forecast: forecast(&history.points, &point, &budget),
            since_ms: history.points.first().map_or(0, |first| point.at_ms.saturating_sub(first.at_ms)),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
        if due || level != before {
            // Before it is announced: a crash in between loses the event, which the level still tells; a disk that
            // takes no write more must not be announced once a minute.
            state.put_disk_history(&history)?;
        }
        self.history = Some(history);
        Ok((level != before).then(|| crossed(before, &view)))
    }

    fn measure(&self, shared: &Shared, now_ms: i64) -> Option<(Point, u64, Budget)> {
        let telemetry: &TelemetryStore = &shared.telemetry;
        let space = telemetry.space()?;
        let held = telemetry.held().ok()?;
        let state = telemetry.size_beside(FILE);
        let artifacts = self.artifacts.get().map_or(0, |releases| releases.artifacts().bytes());
        let used = space.total.saturating_sub(space.free);
        let ours = held.bytes.saturating_add(state).saturating_add(artifacts);
        let used = Use { telemetry: held.bytes, state, artifacts, elsewhere: used.saturating_sub(ours) };
        let budget = Budget {
            total: space.total,
            telemetry: held.most_bytes.unwrap_or(space.total),
            days: u32::try_from(self.keep.as_secs() / 86_400).unwrap_or(u32::MAX),
            oldest_ms: held.oldest_ms,
        };
        Some((Point { at_ms: now_ms, used }, space.free, budget))
    }
}

/// Share of the filesystem that is used, as df(1) shows it.
fn used_ratio(free: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { 1.0 - free as f64 / total as f64 }
}

fn crossed(before: Level, view: &DiskView) -> Crossed {
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let used = 100.0 * used_ratio(view.free, view.total);
    let Use { telemetry, state, artifacts, elsewhere } = view.used;
    let by = format!(
        "telemetry has {}, state {}, artifacts {}, everything else {}",
        gigabytes(telemetry),
        gigabytes(state),
        gigabytes(artifacts),
        gigabytes(elsewhere)
    );
    let found = format!("{used:.0}% of the hub's disk is used, {} are free: {by}", gigabytes(view.free));
    let (kind, severity, then) = match view.level {
        Level::Full => {
            let then = "nodes keep their records when the hub cannot write any more; make room now";
            ("disk_full", Severity::Error, then)
        }
        Level::High if before < Level::High => {
            let then = "the oldest telemetry is removed to keep it there; `fleet doctor` tells for how long";
            ("disk_high", Severity::Warning, then)
        }
        Level::High => ("disk_high", Severity::Warning, "there is room again, though not much"),
        Level::Fine => ("disk_recovered", Severity::Info, "there is room again"),
    };
    Crossed { kind, severity, message: format!("{found}; {then}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_with_who_fills_the_disk() {
        let used =
            Use { telemetry: 60_000_000_000, state: 1_000_000_000, artifacts: 0, elsewhere: 35_000_000_000 };
        let budget = Budget { total: 100_000_000_000, telemetry: 0, days: 90, oldest_ms: None };
        let view = DiskView {
            level: Level::Full,
            free: 4_000_000_000,
            total: budget.total,
            used,
            budget,
            forecast: None,
            since_ms: 0,
        };
        let told = crossed(Level::High, &view);
        assert_eq!((told.kind, told.severity), ("disk_full", Severity::Error));
        assert!(
            told.message.starts_with("96% of the hub's disk is used, 4.0 GB are free"),
            "{}",
            told.message
        );
        assert!(told.message.contains("telemetry has 60.0 GB") && told.message.contains("else 35.0 GB"));
        let told = crossed(Level::Full, &DiskView { level: Level::Fine, ..view });
        assert_eq!((told.kind, told.severity), ("disk_recovered", Severity::Info));
    }
}
