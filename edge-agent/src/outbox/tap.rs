//! What was accepted, passed on to whoever judges it.
//!
//! Owns the choice of what is worth passing on, and the bound when nobody keeps up: the newest wins.

use std::sync::Arc;

use fleet_schemas::telemetry::Sample;
use tokio::sync::{mpsc, watch};

use crate::{
    core::rules::{Interest, Seen},
    uplink::Submission,
};

/// Rounds that may wait to be judged.
const ROUNDS: usize = 256;
/// Values that wait behind them; older ones go first.
const VALUES: usize = 20_000;

/// The end of the outbox's thread.
#[derive(Debug)]
pub(crate) struct Tap {
    interest: watch::Receiver<Arc<Interest>>,
    seen: mpsc::Sender<Seen>,
    backlog: Seen,
    // Values were given up since the last round that went on: told once.
    missed: bool,
}

/// The end of whoever judges.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) interest: watch::Sender<Arc<Interest>>,
    pub(crate) seen: mpsc::Receiver<Seen>,
}

pub(crate) fn channel() -> (Tap, Listener) {
    let (interest, interested) = watch::channel(Arc::default());
    let (sender, seen) = mpsc::channel(ROUNDS);
    let tap = Tap { interest: interested, seen: sender, backlog: Seen::default(), missed: false };
    (tap, Listener { interest, seen })
}

impl Tap {
    /// What of a submission is worth passing on, once it is accepted.
    pub(super) fn pick(&self, submission: &Submission) -> Seen {
        match submission {
            Submission::Samples(samples) => self.pick_samples(samples),
            Submission::Events(_) => Seen::default(),
        }
    }

    pub(super) fn pick_samples(&self, samples: &[Sample]) -> Seen {
        let interest = self.interest.borrow();
        let mut seen = Seen::default();
        if !interest.any {
            return seen;
        }
        for sample in samples {
            if !seen.devices.contains(&sample.device) {
                seen.devices.insert(sample.device.clone());
            }
            if interest.metrics.contains(&sample.metric) {
                seen.values.push((
                    sample.device.clone(),
                    sample.metric.clone(),
                    sample.time_ms,
                    sample.value,
                ));
            }
        }
        seen
    }

    /// Passes it on without waiting. Says how many values nobody will judge: older ones that made room.
    pub(super) fn pass(&mut self, seen: Seen) -> u64 {
        if seen.devices.is_empty() {
            return 0;
        }
        self.backlog.devices.extend(seen.devices);
        self.backlog.values.extend(seen.values);
        let excess = self.backlog.values.len().saturating_sub(VALUES);
        self.missed |= excess > 0;
        self.backlog.values.drain(..excess);
        if let Ok(room) = self.seen.try_reserve() {
            room.send(std::mem::take(&mut self.backlog));
            if std::mem::take(&mut self.missed) {
                tracing::warn!("samples came faster than rules can judge them; the oldest were not judged");
            }
        }
        excess as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use fleet_schemas::{DeviceId, MetricName};

    use super::*;

    fn samples(count: usize) -> Vec<Sample> {
        let sample = |n: usize| Sample {
            time_ms: 0,
            device: DeviceId::parse("d").unwrap(),
            metric: MetricName::parse(if n.is_multiple_of(2) { "t" } else { "h" }).unwrap(),
            unit: None,
            value: n as f64,
        };
        (0..count).map(sample).collect()
    }

    #[test]
    fn a_flood_that_nobody_judges_keeps_the_newest() {
        let (mut tap, mut listener) = channel();
        assert_eq!(tap.pick_samples(&samples(4)), Seen::default(), "no rules, no work");
        let metrics = HashSet::from([MetricName::parse("t").unwrap()]);
        listener.interest.send_replace(Arc::new(Interest { any: true, metrics }));
        let mut missed = 0;
        for _ in 0..ROUNDS + 10 {
            let seen = tap.pick_samples(&samples(10_000));
            assert_eq!((seen.devices.len(), seen.values.len()), (1, 5_000));
            missed += tap.pass(seen);
        }
        assert_eq!(tap.backlog.values.len(), VALUES);
        assert_eq!(missed, 10 * 5_000 - VALUES as u64, "each value is passed on or counted");
        while listener.seen.try_recv().is_ok() {}
        assert_eq!(tap.pass(tap.pick_samples(&samples(2))), 1, "the oldest of a full backlog");
        assert_eq!(listener.seen.try_recv().unwrap().values.len(), VALUES);
    }
}
