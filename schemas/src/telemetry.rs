//! The body of the telemetry and backfill lanes: one time column, one column of numbers per series.
//!
//! Owns the column encoding. Does not know batches, stores or queries.
#![doc = include_str!("telemetry/reader.md")]

mod column;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

pub use column::{Column, ColumnError};

use crate::{
    cbor::{self, DecodeError},
    id::{DeviceId, MetricName},
    limits,
};

/// One sample as it is handed in: the smallest record of the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Unix milliseconds.
    pub time_ms: i64,
    /// The device, empty for the node itself.
    pub device: DeviceId,
    /// The metric.
    pub metric: MetricName,
    /// The unit in UCUM, where known.
    pub unit: Option<MetricName>,
    /// A finite number.
    pub value: f64,
}

/// Samples in columns: row `i` is the instant `t0 + dt[i]`; each series has at most one value a row. Two rows
/// may be of the same instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Unix milliseconds from which `dt` counts.
    pub t0: i64,
    /// Milliseconds after `t0`, one a row.
    pub dt: Column,
    /// The series, at most [`limits::SERIES_PER_NODE`].
    pub series: Vec<Series>,
}

/// One series' column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The device; absent for the node itself.
    #[serde(default = "DeviceId::node", skip_serializing_if = "DeviceId::is_node")]
    pub d: DeviceId,
    /// The metric.
    pub m: MetricName,
    /// The unit in UCUM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub u: Option<MetricName>,
    /// The values, one a row.
    pub v: Column,
}

impl Samples {
    /// Reads a body and checks that its columns are whole and agree with each other, so that
    /// [`Samples::times`] and [`Samples::values`] cannot fail afterwards.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let samples: Self = cbor::decode(body)?;
        samples.check().map_err(|error| DecodeError::Shape(error.to_string()))?;
        Ok(samples)
    }

    /// The body as plain CBOR.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    fn check(&self) -> Result<(), ColumnError> {
        let rows = self.dt.check(None)?;
        if self.dt.n.is_some() || self.dt.is_fractional() {
            return Err(ColumnError::Time);
        }
        if rows > limits::BATCH_RECORDS
            || self.series.len() > limits::SERIES_PER_NODE
            || rows * self.series.len() > limits::BATCH_CELLS
        {
            return Err(ColumnError::Large);
        }
        let mut count = 0;
        for series in &self.series {
            series.v.check(Some(rows))?;
            count += series.v.present();
        }
        if count > limits::BATCH_RECORDS {
            return Err(ColumnError::Large);
        }
        Ok(())
    }

    /// How many samples: the values that are present.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.series.iter().map(|series| series.v.present() as u64).sum()
    }

    /// The instant of every row, Unix milliseconds.
    #[must_use]
    pub fn times(&self) -> Vec<i64> {
        let mut offsets = Vec::new();
        self.dt.integers(&mut offsets);
        offsets.iter_mut().for_each(|offset| *offset = offset.saturating_add(self.t0));
        offsets
    }

    /// The values of one series, one a row, NaN where there is none.
    #[must_use]
    pub fn values(&self, series: &Series) -> Vec<f64> {
        let mut values = Vec::new();
        series.v.numbers(self.dt.a.len(), &mut values);
        values
    }
}

/// Puts samples into columns. Keeps them in the order of their rows; says when the batch is full.
#[derive(Debug, Default)]
pub struct Builder {
    rows: Vec<i64>,
    // The newest row of each instant.
    instants: HashMap<i64, usize>,
    series: Vec<Building>,
    lookup: HashMap<(DeviceId, MetricName), usize>,
    count: usize,
    // Bytes of the series' names and what stands beside them.
    names: usize,
}

#[derive(Debug)]
struct Building {
    device: DeviceId,
    metric: MetricName,
    unit: Option<MetricName>,
    // (row, value), rows ascending.
    values: Vec<(usize, f64)>,
}

/// Bytes of one series beside its names and numbers: keys, headers, scale, first difference (at most 47).
const SERIES_BYTES: usize = 64;

impl Builder {
    /// How many samples it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a sample, or gives it back when the batch is full or its unit contradicts the series' unit: seal,
    /// and start the next batch with it.
    pub fn push(&mut self, sample: Sample) -> Option<Sample> {
        if self.count >= limits::BATCH_RECORDS {
            return Some(sample);
        }
        let known = self.lookup.get(&(sample.device.clone(), sample.metric.clone())).copied();
        let last_row = known.and_then(|index| self.series[index].values.last().map(|(row, _)| *row));
        // The newest row of this instant; behind the series' own last row a new row begins.
        let row = (self.instants.get(&sample.time_ms).copied())
            .filter(|row| last_row.is_none_or(|last| last < *row));
        let rows = self.rows.len() + usize::from(row.is_none());
        let series = self.series.len() + usize::from(known.is_none());
        let names = self.names + if known.is_none() { name_bytes(&sample) } else { 0 };
        // The widest numbers there are; a bit a cell for the gaps.
        let bytes = names + 8 * (rows + self.count + 1) + rows * series / 8;
        if series > limits::SERIES_PER_NODE
            || rows * series > limits::BATCH_CELLS
            || bytes > limits::SAMPLES_BYTES
        {
            return Some(sample);
        }
        if known.is_some_and(|index| self.series[index].unit != sample.unit) {
            return Some(sample);
        }
        let row = row.unwrap_or_else(|| {
            self.instants.insert(sample.time_ms, self.rows.len());
            self.rows.push(sample.time_ms);
            self.rows.len() - 1
        });
        let index = known.unwrap_or_else(|| {
            self.lookup.insert((sample.device.clone(), sample.metric.clone()), self.series.len());
            let Sample { device, metric, unit, .. } = sample;
            self.series.push(Building { device, metric, unit, values: Vec::new() });
            self.series.len() - 1
        });
        self.series[index].values.push((row, sample.value));
        self.count += 1;
        self.names = names;
        None
    }

    /// The columns. Empty builders give no rows and no series.
    #[must_use]
    pub fn build(self) -> Samples {
        let t0 = self.rows.iter().copied().min().unwrap_or(0);
        let offsets: Vec<i64> = self.rows.iter().map(|time| time.saturating_sub(t0)).collect();
        let rows = offsets.len();
        let column = |building: Building| {
            let mut values = vec![f64::NAN; rows];
            for (row, value) in building.values {
                values[row] = value;
            }
            Series {
                d: building.device,
                m: building.metric,
                u: building.unit,
                v: Column::of_numbers(&values),
            }
        };
        Samples {
            t0,
            dt: Column::of_integers(&offsets),
            series: self.series.into_iter().map(column).collect(),
        }
    }
}

fn name_bytes(sample: &Sample) -> usize {
    let unit = sample.unit.as_ref().map_or(0, |unit| unit.as_str().len());
    SERIES_BYTES + sample.device.as_str().len() + sample.metric.as_str().len() + unit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(time_ms: i64, device: &str, metric: &str, value: f64) -> Sample {
        Sample {
            time_ms,
            device: DeviceId::parse(device).unwrap(),
            metric: MetricName::parse(metric).unwrap(),
            unit: None,
            value,
        }
    }

    fn flatten(samples: &Samples) -> Vec<(i64, String, String, u64)> {
        let times = samples.times();
        let mut all = Vec::new();
        for series in &samples.series {
            for (time, value) in times.iter().zip(samples.values(series)) {
                if !value.is_nan() {
                    all.push((*time, series.d.to_string(), series.m.to_string(), value.to_bits()));
                }
            }
        }
        all.sort();
        all
    }

    fn build(given: &[Sample]) -> Vec<Samples> {
        let mut built = Vec::new();
        let mut builder = Builder::default();
        for sample in given {
            if let Some(back) = builder.push(sample.clone()) {
                built.push(std::mem::take(&mut builder).build());
                assert_eq!(builder.push(back), None);
            }
        }
        built.push(builder.build());
        built
    }

    #[test]
    fn two_values_of_one_series_at_one_instant_are_both_kept() {
        let given = [sample(5, "", "t", 1.0), sample(5, "", "t", 2.0), sample(5, "", "u", 3.0)];
        let built = build(&given);
        assert_eq!(built.len(), 1);
        assert_eq!(built[0].count(), 3);
        assert_eq!(built[0].times(), [5, 5]);
    }

    #[test]
    fn a_sparse_batch_is_closed_before_its_bitmaps_grow() {
        let given: Vec<_> = (0..4_000).map(|i| sample(i, "", &format!("m{i}"), 0.5)).collect();
        let built = build(&given);
        assert!(built.len() > 1);
        assert_eq!(built.iter().map(Samples::count).sum::<u64>(), 4_000);
        assert!(built.iter().all(|samples| samples.encode().len() < limits::PACKET_BYTES));
    }

    #[test]
    fn a_body_fits_a_packet_whatever_its_names_and_numbers() {
        let given: Vec<_> = (0..20_000_i64)
            .map(|i| Sample {
                unit: Some(MetricName::parse(&"u".repeat(63)).unwrap()),
                ..sample(i << 40, &format!("{:063}", i % 64), &format!("{:063}", i % 4_000), 0.1 + i as f64)
            })
            .collect();
        let built = build(&given);
        assert_eq!(built.iter().map(Samples::count).sum::<u64>(), 20_000);
        assert!(built.iter().all(|samples| samples.encode().len() <= limits::SAMPLES_BYTES));
    }

    #[test]
    fn realistic_telemetry_takes_less_than_2_5_bytes_a_sample() {
        let mut builder = Builder::default();
        let mut seed = 7_u32;
        for i in 0..100_i64 {
            for metric in 0..10 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = f64::from(seed >> 24) / 100.0;
                let value = ((20.0 + f64::from(metric) * 3.0 + noise) * 100.0).round() / 100.0;
                let name = format!("metric_{metric}");
                assert_eq!(builder.push(sample(1_790_000_000_000 + i * 1_000, "", &name, value)), None);
            }
        }
        let packed = cbor::Packer::new(3).pack(builder.build().encode());
        assert!(packed.len() < 2_500, "{} bytes for 1,000 samples", packed.len());
    }

    #[test]
    fn long_names_close_a_batch_before_the_packet_limit() {
        let name = |i: i64| format!("{i:0>63}");
        let given: Vec<_> = (0..4_000).map(|i| sample(0, &name(i), &name(i), i as f64 / 7.0)).collect();
        let built = build(&given);
        assert_eq!(built.iter().map(Samples::count).sum::<u64>(), 4_000);
        assert!(built.iter().all(|samples| samples.encode().len() < limits::PACKET_BYTES - 8_192));
    }

    fn values() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>().prop_filter("finite", |value| value.is_finite()),
            (-30_000_i32..30_000).prop_map(|n| f64::from(n) / 100.0),
            any::<i64>().prop_map(|n| n as f64),
            (0..3_u8).prop_map(f64::from),
        ]
    }

    proptest! {
        #[test]
        fn columns_give_back_what_was_put_in(
            given in prop::collection::vec((any::<i64>(), 0..3_u8, 0..4_u8, values()), 0..300),
            base in prop_oneof![Just(0_i64), Just(1_790_000_000_000), any::<i64>()],
            narrow in any::<bool>(),
        ) {
            let given: Vec<_> = given
                .into_iter()
                .map(|(time, device, metric, value)| {
                    let offset = if narrow { time.rem_euclid(5_000) } else { time >> 2 };
                    let device = ["", "a", "b"][usize::from(device)];
                    sample((base >> 2).wrapping_add(offset), device, &format!("m{metric}"), value)
                })
                .collect();
            let mut expected: Vec<_> = given
                .iter()
                .map(|s| (s.time_ms, s.device.to_string(), s.metric.to_string(), s.value.to_bits()))
                .collect();
            expected.sort();
            let mut found = Vec::new();
            for samples in build(&given) {
                let decoded = Samples::decode(&samples.encode()).unwrap();
                prop_assert_eq!(&decoded, &samples);
                found.extend(flatten(&decoded));
            }
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
