//! What is read on a schedule: again and again, with a bound on failing, and all of it in by the front door.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::telemetry::Sample;
use tokio::{select, time};
use tracing::{debug, warn};

use super::complaints::Complaints;
use crate::{
    clock::Clock,
    metrics::Metrics,
    outbox::{self, SubmitError},
    stop::Stop,
    uplink::{self, Submission},
};

/// Shortest time between two rounds.
pub(crate) const LEAST: Duration = Duration::from_millis(100);

/// What rounds meet.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
}

/// One thing that is read.
pub(super) struct Round {
    /// `file` or `scrape`.
    pub(super) kind: &'static str,
    /// Its name in logs.
    pub(super) name: String,
    /// How often.
    pub(super) every: Duration,
}

/// Why nothing was read: a stable word, and a sentence.
pub(super) type Failure = (&'static str, String);

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) samples: Vec<Sample>,
    /// What was not taken, by reason.
    pub(super) passed_over: BTreeMap<&'static str, u64>,
}

impl Found {
    pub(super) fn passed_over(&mut self, why: &'static str) {
        *self.passed_over.entry(why).or_default() += 1;
    }
}

/// Reads until told to stop. A round that fails is told (reason and sentence) and the next one tries again; samples that
/// the outbox does not take are told and given up, for the next round has newer ones.
pub(super) async fn run<Read: Future<Output = Result<Found, Failure>>>(
    round: Round,
    surroundings: Surroundings,
    mut stop: Stop,
    mut read: impl FnMut(i64) -> Read,
) {
    let Surroundings { clock, outbox, metrics } = surroundings;
    let Round { kind, name, every } = round;
    let mut complaints = Complaints::default();
    let mut ticks = time::interval(every.max(LEAST));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        select! {
            _ = ticks.tick() => {}
            () = stop.wanted() => return,
        }
        let read = select! {
            read = read(clock.now().wall_ms) => read,
            () = stop.wanted() => return,
        };
        let mut complain = |reason, why: &str| {
            if let Some(unsaid) = complaints.due(reason, clock.now().up) {
                warn!(kind, name, unsaid, "{why}");
            }
        };
        let found = match read {
            Ok(found) => found,
            Err((reason, why)) => {
                metrics.collect_failed(kind, reason, 1);
                complain(reason, &why);
                continue;
            }
        };
        for (reason, count) in found.passed_over {
            metrics.collect_failed(kind, reason, count);
            complain(reason, &format!("{count} lines or values were passed over: {reason}"));
        }
        if found.samples.is_empty() {
            continue;
        }
        let mut parts = vec![Submission::Samples(found.samples)];
        while let Some(part) = parts.pop() {
            let count = part.len();
            match outbox.submit(part.clone()).await {
                Ok(()) => {
                    metrics.collected(kind, count as u64);
                    debug!(kind, name, count, "collected");
                }
                Err(SubmitError::Refused(uplink::SubmitError::Device(_))) if part.has_devices() => {
                    parts = part.by_device();
                }
                Err(error) => {
                    metrics.collect_failed(kind, error.reason(), count as u64);
                    complain(error.reason(), &format!("{count} samples are given up: {error}"));
                }
            }
        }
    }
}
