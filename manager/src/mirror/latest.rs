//! The newest value of every series of a node, as it is told on `hub/latest/{node}`. Pure.

use std::collections::BTreeMap;

use fleet_schemas::{DeviceId, MetricName};
use serde::Serialize;

use crate::{feed::json::Sample, store::telemetry::Latest};

/// Newest values by device and metric: of one instant the greatest, whatever the order of arrival.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Table(BTreeMap<(DeviceId, MetricName), Newest>);

#[derive(Debug, Clone, PartialEq)]
struct Newest {
    time_ms: i64,
    value: f64,
    unit: Option<MetricName>,
}

/// The message.
#[derive(Debug, Serialize)]
struct Told<'a> {
    time_ms: i64,
    values: BTreeMap<&'a str, f64>,
    devices: BTreeMap<&'a str, BTreeMap<&'a str, f64>>,
}

/// Bytes of a value beside its names in JSON: quotes, colons, braces, comma, the longest number.
const VALUE_BYTES: usize = 40;
/// Bytes of a message without values.
const HEAD_BYTES: usize = 64;

impl Table {
    pub(super) fn of(latest: Vec<Latest>) -> Self {
        let mut table = Self::default();
        for Latest { device, metric, unit, time_ms, value } in latest {
            table.put(&device, &metric, unit.as_ref(), time_ms, value);
        }
        table
    }

    /// Takes samples; says whether any of them is the newest of its series.
    pub(super) fn take(&mut self, samples: &[Sample<'_>]) -> bool {
        let put = |s: &Sample<'_>| self.put(s.device, s.metric, s.unit, s.time_ms, s.value);
        samples.iter().map(put).fold(false, |any, newest| any | newest)
    }

    fn put(
        &mut self,
        device: &DeviceId,
        metric: &MetricName,
        unit: Option<&MetricName>,
        time_ms: i64,
        value: f64,
    ) -> bool {
        let key = (device.clone(), metric.clone());
        let known = self.0.get(&key);
        let is_newest = known.is_none_or(|known| {
            known.time_ms.cmp(&time_ms).then_with(|| known.value.total_cmp(&value)).is_lt()
        });
        if is_newest {
            self.0.insert(key, Newest { time_ms, value, unit: unit.cloned() });
        }
        is_newest
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Devices other than the node itself.
    pub(super) fn devices_count(&self) -> usize {
        let mut devices: Vec<_> =
            self.0.keys().map(|(device, _)| device).filter(|device| !device.is_node()).collect();
        devices.dedup();
        devices.len()
    }

    /// Every series with its unit, by device and metric.
    pub(super) fn series(&self) -> impl Iterator<Item = (&DeviceId, &MetricName, Option<&MetricName>)> {
        self.0.iter().map(|((device, metric), newest)| (device, metric, newest.unit.as_ref()))
    }

    /// The message, at most about `most` bytes: beyond that the series that were silent longest are left out.
    pub(super) fn json(&self, most: usize) -> Vec<u8> {
        let size = |device: &DeviceId, metric: &MetricName| {
            written(device.as_str()) + written(metric.as_str()) + VALUE_BYTES
        };
        let most = most.saturating_sub(HEAD_BYTES);
        let mut oldest = i64::MIN;
        if self.0.keys().map(|(device, metric)| size(device, metric)).sum::<usize>() > most {
            let mut by_time: Vec<_> = self.0.iter().collect();
            by_time.sort_unstable_by_key(|(_, newest)| std::cmp::Reverse(newest.time_ms));
            let mut left = most;
            for ((device, metric), newest) in by_time {
                let Some(rest) = left.checked_sub(size(device, metric)) else {
                    oldest = newest.time_ms.saturating_add(1);
                    break;
                };
                left = rest;
            }
        }
        let mut told = Told { time_ms: 0, values: BTreeMap::new(), devices: BTreeMap::new() };
        for ((device, metric), newest) in self.0.iter().filter(|(_, newest)| newest.time_ms >= oldest) {
            told.time_ms = told.time_ms.max(newest.time_ms);
            let values = match device.as_str() {
                "" => &mut told.values,
                device => told.devices.entry(device).or_default(),
            };
            values.insert(metric.as_str(), newest.value);
        }
        serde_json::to_vec(&told).expect("names and numbers are JSON")
    }
}

/// Bytes of a name in JSON: names are printable, so only these two are escaped.
fn written(name: &str) -> usize {
    name.len() + name.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn latest(device: &str, metric: &str, time_ms: i64, value: f64) -> Latest {
        let (device, metric) = (DeviceId::parse(device).unwrap(), MetricName::parse(metric).unwrap());
        Latest { device, metric, unit: None, time_ms, value }
    }

    #[test]
    fn newest_values_are_told_whatever_the_order() {
        let mut table =
            Table::of(vec![latest("", "t", 5, 1.0), latest("b", "t", 3, 2.0), latest("b", "u", 4, 3.0)]);
        let (device, metric) = (DeviceId::node(), MetricName::parse("t").unwrap());
        let sample = |time_ms, value| Sample {
            time_ms,
            device: &device,
            metric: &metric,
            value,
            unit: None,
            late: true,
        };
        assert!(!table.take(&[sample(4, 9.0), sample(5, 0.5)]), "older, and less at the same instant");
        assert!(table.take(&[sample(6, 0.25), sample(1, 7.0)]));
        let told: Value = serde_json::from_slice(&table.json(1_000)).unwrap();
        let expected = json!({"time_ms": 6, "values": {"t": 0.25}, "devices": {"b": {"t": 2.0, "u": 3.0}}});
        assert_eq!(told, expected);
        assert_eq!((table.devices_count(), table.len()), (1, 3));
    }

    #[test]
    fn a_message_stays_within_its_bytes_and_keeps_the_newest() {
        let long = |n: i64| latest(&format!("{n:\"<63}"), &format!("{n:063}"), n, f64::MIN);
        let table = Table::of((0..4_096).map(long).collect());
        let json = table.json(200_000);
        assert!(json.len() <= 200_000, "{}", json.len());
        let told: Value = serde_json::from_slice(&json).unwrap();
        assert!(told["devices"].as_object().unwrap().len() > 800);
        assert_eq!(told["time_ms"], 4_095);
    }
}
