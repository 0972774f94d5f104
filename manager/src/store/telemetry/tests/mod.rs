//! The store against a list of everything that was ever appended.

mod crash;
mod model;
mod rot;
mod store;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::{
    DeviceId, Lane, MetricName, StreamId,
    telemetry::{Builder, Sample, Samples},
};

use super::*;
use crate::store::disk::Memory;

pub(super) const NOW: i64 = 1_795_000_000_000;
pub(super) const MINUTE: i64 = 60_000;
pub(super) const DAY: i64 = 86_400_000;

/// One sample as the model remembers it: node, lane, corrected time, device, metric, bits of the value.
pub(super) type Fact = (u32, Lane, i64, String, String, u64);

/// A batch to append.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub node: u32,
    pub lane: Lane,
    pub recv_ms: i64,
    pub shift_ms: i64,
    pub samples: Samples,
}

impl Given {
    pub(super) fn facts(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        for series in &self.samples.series {
            for (time, value) in self.samples.times().into_iter().zip(self.samples.values(series)) {
                if !value.is_nan() {
                    let (device, metric) = (series.d.to_string(), series.m.to_string());
                    facts.push((self.node, self.lane, time + self.shift_ms, device, metric, value.to_bits()));
                }
            }
        }
        facts
    }
}

pub(super) fn samples(rows: &[(i64, &str, &str, f64)]) -> Samples {
    let mut builder = Builder::default();
    for (time_ms, device, metric, value) in rows {
        let device = DeviceId::parse(device).unwrap();
        let metric = MetricName::parse(metric).unwrap();
        let sample = Sample { time_ms: *time_ms, device, metric, unit: None, value: *value };
        assert_eq!(builder.push(sample), None);
    }
    builder.build()
}

pub(super) fn config() -> Config {
    Config { seal_bytes: 400, inbox_cache_bytes: 1 << 20, week_cache_bytes: 1 << 20, ..Config::default() }
}

pub(super) fn open(disk: &Memory, config: Config) -> Result<TelemetryStore, Error> {
    TelemetryStore::open(Arc::new(disk.clone()), config, NOW)
}

/// Appends batches as one group, with a mark that counts groups per node.
pub(super) fn append(store: &TelemetryStore, group: &[Given], mark: u64) -> Result<(), Error> {
    let mut write = store.begin()?;
    for given in group {
        let body = given.samples.encode();
        write.append(&InboxBatch {
            node: given.node,
            lane: given.lane,
            recv_ms: given.recv_ms,
            shift_ms: given.shift_ms,
            samples: &given.samples,
            body: &body,
            payload: None,
        })?;
        write.set_mark(mark_key(given.node, given.lane), &mark.to_le_bytes());
    }
    write.commit()
}

pub(super) fn mark_key(node: u32, lane: Lane) -> MarkKey {
    MarkKey { node, lane, stream: StreamId([node as u8; 16]) }
}

/// Seals until there is nothing to do.
pub(super) fn seal_all(store: &TelemetryStore, now_ms: i64) -> Result<SealReport, Error> {
    let mut total = SealReport::default();
    loop {
        let report = store.seal(now_ms)?;
        total.batches += report.batches;
        total.samples += report.samples;
        total.merged += report.merged;
        total.truncated += report.truncated;
        total.rotten.extend(report.rotten);
        if !report.more {
            return Ok(total);
        }
    }
}

pub(super) fn all(node: u32) -> Query {
    Query {
        node,
        device: None,
        metric: None,
        from_ms: i64::MIN,
        to_ms: i64::MAX,
        step: None,
        series_max: 10_000,
        points_max: 10_000_000,
    }
}

/// Everything a query finds of a node: time, device, metric, bits; sorted.
pub(super) fn found(store: &TelemetryStore, query: &Query) -> Vec<(i64, String, String, u64)> {
    let mut found = Vec::new();
    for series in store.query(query).unwrap() {
        assert!(series.points.is_sorted_by_key(|(time, _)| *time));
        for (time, value) in series.points {
            found.push((time, series.device.to_string(), series.metric.to_string(), value.to_bits()));
        }
    }
    found.sort();
    found
}

pub(super) fn expected(facts: &[Fact], node: u32) -> Vec<(i64, String, String, u64)> {
    let mut expected: Vec<_> = (facts.iter())
        .filter(|fact| fact.0 == node)
        .map(|(_, _, time, device, metric, bits)| (*time, device.clone(), metric.clone(), *bits))
        .collect();
    expected.sort();
    expected
}

/// Checks the store against the facts: every sample once, the account, the recount.
pub(super) fn check(store: &TelemetryStore, facts: &[Fact]) {
    let nodes: std::collections::BTreeSet<_> = facts.iter().map(|fact| fact.0).collect();
    for node in nodes {
        assert_eq!(found(store, &all(node)), expected(facts, node), "node {node}");
        for lane in [Lane::Telemetry, Lane::Backfill] {
            let count = facts.iter().filter(|fact| fact.0 == node && fact.1 == lane).count() as u64;
            assert_eq!(store.recount(node, lane).unwrap(), count);
            assert_eq!(store.counters(node, lane).unwrap().stored, count);
        }
    }
}
