//! The newest value of every series of a node.
//!
//! The sealer keeps a table per node as it seals, writes it into the week file at times, and finds it again
//! by replaying the blobs since. Unsealed batches come on top when somebody asks. The newest is the one of
//! the latest instant, of several there the greatest: no order of arrival can change it.

use std::collections::{BTreeMap, HashMap};

use fleet_schemas::{
    DeviceId, MetricName,
    cbor::{self, Packer, Unpacker},
    limits,
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Opened,
    blob::Name,
    week::{LATEST, View},
};

/// The newest value of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Latest {
    /// The device, empty for the node itself.
    pub device: DeviceId,
    /// The metric.
    pub metric: MetricName,
    /// Its unit in UCUM, where known.
    pub unit: Option<MetricName>,
    /// Unix milliseconds, corrected.
    pub time_ms: i64,
    /// The value.
    pub value: f64,
}

/// A series of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesName {
    /// The device, empty for the node itself.
    pub device: DeviceId,
    /// The metric.
    pub metric: MetricName,
    /// Its unit in UCUM, where known.
    pub unit: Option<MetricName>,
}

/// Newest values by series; at most [`limits::SERIES_PER_NODE`], those that were silent longest go.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(BTreeMap<Name, (i64, f64)>);

/// Tables of the nodes that the sealer met.
#[derive(Debug, Default)]
pub(super) struct Cache {
    pub nodes: HashMap<u32, Cached>,
    series: usize,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Cached {
    pub table: Table,
    /// The file that has the row which was written last, when, and blobs sealed since.
    pub file: Option<u64>,
    pub written_ms: i64,
    pub blobs: u32,
}

/// Series in the cache, at most, over all nodes (about 100 bytes each); beyond it the cache starts anew.
const CACHED_SERIES: usize = 1_000_000;
/// A table is written again after this many blobs,
const WRITE_BLOBS: u32 = 64;
/// or after this time, milliseconds.
const WRITE_MS: u64 = 3_600_000;

#[derive(Serialize, Deserialize)]
struct Row {
    upto: u64,
    series: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
struct Value {
    d: DeviceId,
    m: MetricName,
    u: Option<MetricName>,
    t: i64,
    v: f64,
}

impl Table {
    pub(super) fn put(&mut self, name: Name, time_ms: i64, value: f64) {
        let newest = self.0.entry(name).or_insert((time_ms, value));
        if newest.0.cmp(&time_ms).then_with(|| newest.1.total_cmp(&value)).is_lt() {
            *newest = (time_ms, value);
        }
        // Twice the limit before it is cut down, so that cutting is rare.
        if self.0.len() > 2 * limits::SERIES_PER_NODE {
            self.bound();
        }
    }

    fn bound(&mut self) {
        if self.0.len() > limits::SERIES_PER_NODE {
            let mut times: Vec<_> = self.0.values().map(|(time, _)| *time).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            let (oldest, mut left) = (times[limits::SERIES_PER_NODE - 1], limits::SERIES_PER_NODE);
            left -= times.partition_point(|time| *time > oldest);
            self.0.retain(|_, (time, _)| {
                let tie = *time == oldest && left > 0;
                left -= usize::from(tie);
                *time > oldest || tie
            });
        }
    }

    pub(super) fn take_in(&mut self, latest: Vec<(Name, i64, f64)>) {
        for (name, time_ms, value) in latest {
            self.put(name, time_ms, value);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn into_list(mut self) -> Vec<Latest> {
        self.bound();
        let mut list: Vec<_> = (self.0.into_iter())
            .map(|((device, metric, unit), (time_ms, value))| Latest { device, metric, unit, time_ms, value })
            .collect();
        list.sort_unstable_by(|a, b| (&a.device, &a.metric, &a.unit).cmp(&(&b.device, &b.metric, &b.unit)));
        list
    }

    /// As a row that knows all blobs up to `upto`.
    pub(super) fn to_row(&self, upto: u64, packer: &mut Packer) -> Vec<u8> {
        let mut table = self.clone();
        table.bound();
        let series = (table.0.into_iter()).map(|((d, m, u), (t, v))| Value { d, m, u, t, v }).collect();
        packer.pack(cbor::encode(&Row { upto, series }))
    }

    /// Newest values of everything that is sealed: the newest row, and the blobs since.
    pub(super) fn load(
        node: u32,
        opened: &Opened,
        views: &[View],
        unpacker: &mut Unpacker,
    ) -> Result<Self, Error> {
        let mut table = Self::default();
        let mut upto = 0;
        let mut replay = Vec::new();
        for view in views.iter().rev() {
            if let Some(row) = view.node(node)? {
                replay.push((view, row));
            }
            if let Some(row) = view.read.open_table(LATEST)?.get(node)? {
                let read = unpacker.unpack(row.value()).and_then(cbor::decode::<Row>);
                let Ok(row) = read else {
                    // Nothing is lost: an older row and the blobs since say the same.
                    tracing::warn!(file = %view.id.name(), node, "the newest values are damaged and found again");
                    continue;
                };
                upto = row.upto;
                for Value { d, m, u, t, v } in row.series {
                    table.put((d, m, u), t, v);
                }
                break;
            }
        }
        for (view, row) in replay {
            let mut bytes = view.bytes()?;
            for blob in view.blobs(node, &row, i64::MIN, i64::MAX)? {
                if blob.2.last_seq > upto
                    && let Some(decoded) = opened.blob(view.id, node, &blob, &mut bytes, unpacker)?
                {
                    table.take_samples(&decoded.samples, 0);
                }
            }
        }
        Ok(table)
    }

    pub(super) fn take_samples(&mut self, samples: &fleet_schemas::telemetry::Samples, shift_ms: i64) {
        let times = samples.times();
        for series in &samples.series {
            let values = samples.values(series);
            let newest = (times.iter().zip(&values))
                .filter(|(_, value)| !value.is_nan())
                .max_by(|a, b| a.0.cmp(b.0).then_with(|| a.1.total_cmp(b.1)));
            if let Some((time, value)) = newest {
                let name = (series.d.clone(), series.m.clone(), series.u.clone());
                self.put(name, time.saturating_add(shift_ms), *value);
            }
        }
    }
}

impl Cached {
    /// Whether the table should be written with the next seal into `file`.
    pub(super) fn is_due(&self, file: u64, now_ms: i64) -> bool {
        self.file != Some(file) || self.blobs >= WRITE_BLOBS || now_ms.abs_diff(self.written_ms) >= WRITE_MS
    }
}

impl Cache {
    pub(super) fn put(&mut self, node: u32, cached: Cached) {
        if self.series > CACHED_SERIES {
            *self = Self::default();
        }
        self.series += cached.table.len();
        if let Some(before) = self.nodes.insert(node, cached) {
            self.series -= before.table.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(metric: &str) -> Name {
        (DeviceId::node(), MetricName::parse(metric).unwrap(), None)
    }

    #[test]
    fn the_newest_wins_in_any_order_and_the_silent_go() {
        let mut table = Table::default();
        for (time, value) in [(5, 1.0), (3, 9.0), (5, 2.0), (5, 1.5)] {
            table.put(name("a"), time, value);
        }
        assert_eq!(table.0[&name("a")], (5, 2.0));
        for n in 0..3 * limits::SERIES_PER_NODE {
            table.put(name(&format!("m{n}")), 1_000 + n as i64, 0.0);
        }
        let list = table.into_list();
        assert_eq!(list.len(), limits::SERIES_PER_NODE);
        assert!(list.iter().all(|latest| latest.time_ms >= 1_000 + 2 * limits::SERIES_PER_NODE as i64));
    }
}
