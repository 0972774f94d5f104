//! Samples as the hub tells them to tools that read JSON. Owns the names of the fields and the order of a batch.

use fleet_schemas::{DeviceId, Lane, MetricName};
use serde::Serialize;

use crate::store::telemetry::Followed;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample<'a> {
    /// When, corrected, Unix milliseconds.
    pub time_ms: i64,
    /// The device, empty for the node itself.
    pub device: &'a DeviceId,
    /// The metric.
    pub metric: &'a MetricName,
    /// The value.
    pub value: f64,
    /// Its unit in UCUM, where known.
    pub unit: Option<&'a MetricName>,
    /// Whether it came over the backfill lane.
    pub late: bool,
}

/// The samples of a batch, series by series: always in the same order, so that a place among them can be kept.
#[must_use]
pub fn samples(batch: &Followed) -> Vec<Sample<'_>> {
    let times = batch.samples.times();
    let late = batch.lane == Lane::Backfill;
    let mut all = Vec::with_capacity(usize::try_from(batch.samples.count()).unwrap_or(0));
    for series in &batch.samples.series {
        let values = batch.samples.values(series);
        for (time, value) in times.iter().zip(values).filter(|(_, value)| !value.is_nan()) {
            let time_ms = time.saturating_add(batch.shift_ms);
            let (device, metric, unit) = (&series.d, &series.m, series.u.as_ref());
            all.push(Sample { time_ms, device, metric, value, unit, late });
        }
    }
    all
}
