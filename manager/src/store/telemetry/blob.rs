//! Blobs: the batches of one (node, lane) merged into columns.
//!
//! Owns the layout, which is frozen: `1, lane u8, runs u16, {rows u32, shift i64}…, payload` (little-endian),
//! where the payload is a [`Samples`] of corrected times, in a zstd frame where that saves bytes. Row `i` was sent
//! with its corrected time minus the shift of its run; runs are left out when every shift is 0. Late data is in
//! blobs of the backfill lane. At most [`limits::BATCH_RECORDS`] rows and samples a blob.

use std::collections::HashMap;

use fleet_schemas::{
    DeviceId, Lane, MetricName,
    cbor::{Packer, Unpacker},
    limits,
    telemetry::{Column, Samples, Series},
};

use super::{Error, row};

const VERSION: u8 = 1;

/// Rows × series of one blob, at most: bounds what series that share no rows make of each other.
const CELLS: usize = 1 << 19;

/// A series' full name: its unit is part of it, so that a change of unit never mixes values.
pub(super) type Name = (DeviceId, MetricName, Option<MetricName>);

/// Merges batches into one blob.
#[derive(Default)]
pub(super) struct Merge {
    times: Vec<i64>,
    columns: Vec<Merging>,
    lookup: HashMap<Name, usize>,
    runs: Vec<(u32, i64)>,
    count: u64,
}

struct Merging {
    name: Name,
    values: Vec<f64>,
}

/// A merged blob, ready to be stored.
pub(super) struct Blob {
    pub bytes: Vec<u8>,
    pub start_ms: i64,
    pub end_ms: i64,
    pub count: u64,
    /// The newest value of each series.
    pub latest: Vec<(Name, i64, f64)>,
}

/// A decoded blob.
pub(super) struct Decoded {
    pub samples: Samples,
    pub lane: Lane,
    /// Rows and their shifts; empty when all are 0.
    pub runs: Vec<(u32, i64)>,
}

impl Merge {
    pub(super) fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Whether the blob stays within its limits with these samples too.
    pub(super) fn fits(&self, samples: &Samples) -> bool {
        let rows = self.times.len() + samples.dt.present();
        let series = self.columns.len().max(samples.series.len());
        self.count + samples.count() <= limits::BATCH_RECORDS as u64
            && rows <= limits::BATCH_RECORDS
            && rows * series <= CELLS
            && self.columns.len() + samples.series.len() <= limits::SERIES_PER_NODE + self.shared(samples)
    }

    // Series of the batch that stand where the last batch had them: nearly always all.
    fn shared(&self, samples: &Samples) -> usize {
        (samples.series.iter().enumerate()).filter(|(at, series)| self.is_at(*at, series)).count()
    }

    fn is_at(&self, at: usize, series: &Series) -> bool {
        self.columns.get(at).is_some_and(|column| {
            column.name.1 == series.m && column.name.0 == series.d && column.name.2 == series.u
        })
    }

    /// Adds a batch whose times are to be shifted by `shift_ms`.
    pub(super) fn add(&mut self, samples: &Samples, shift_ms: i64) {
        let before = self.times.len();
        self.times.extend(samples.times().into_iter().map(|time| time.saturating_add(shift_ms)));
        let rows = self.times.len() - before;
        self.run(rows as u32, shift_ms);
        self.count += samples.count();
        for (at, series) in samples.series.iter().enumerate() {
            let column = self.column(at, series, before);
            let values = &mut self.columns[column].values;
            values.resize(before, f64::NAN);
            values.extend_from_slice(&samples.values(series));
        }
    }

    /// Adds the rows of a blob again, with their shifts, which are in its times already.
    pub(super) fn add_blob(&mut self, blob: &Decoded) {
        let runs = std::mem::take(&mut self.runs);
        self.add(&blob.samples, 0);
        self.runs = runs;
        if blob.runs.is_empty() {
            self.run(blob.samples.dt.present() as u32, 0);
        }
        for (rows, shift_ms) in &blob.runs {
            self.run(*rows, *shift_ms);
        }
    }

    fn run(&mut self, rows: u32, shift_ms: i64) {
        match self.runs.last_mut() {
            Some((last, shift)) if *shift == shift_ms => *last += rows,
            Some(_) | None => self.runs.push((rows, shift_ms)),
        }
    }

    /// The column of a series that has no values yet beyond row `before`.
    fn column(&mut self, at: usize, series: &Series, before: usize) -> usize {
        if self.is_at(at, series) && self.columns[at].values.len() <= before {
            return at;
        }
        let name = (series.d.clone(), series.m.clone(), series.u.clone());
        let found = self.lookup.get(&name).copied();
        if let Some(found) = found.filter(|found| self.columns[*found].values.len() <= before) {
            return found;
        }
        // New; or a body that names one series twice: the second gets a column of its own.
        self.lookup.entry(name.clone()).or_insert(self.columns.len());
        self.columns.push(Merging { name, values: Vec::with_capacity(before) });
        self.columns.len() - 1
    }

    /// Encodes the blob and leaves the merge empty for the next.
    pub(super) fn finish(&mut self, lane: Lane, packer: &mut Packer) -> Blob {
        let Self { times, columns, lookup: _, runs, count } = std::mem::take(self);
        let start_ms = times.iter().copied().min().unwrap_or(0);
        let end_ms = times.iter().copied().max().unwrap_or(0);
        let offsets: Vec<i64> = times.iter().map(|time| time.saturating_sub(start_ms)).collect();
        let mut latest = Vec::with_capacity(columns.len());
        let mut series = Vec::with_capacity(columns.len());
        for Merging { name, mut values } in columns {
            values.resize(times.len(), f64::NAN);
            let newest = (times.iter().zip(&values))
                .filter(|(_, value)| !value.is_nan())
                .max_by(|a, b| a.0.cmp(b.0).then_with(|| a.1.total_cmp(b.1)));
            if let Some((time, value)) = newest {
                latest.push((name.clone(), *time, *value));
            }
            let (d, m, u) = name;
            series.push(Series { d, m, u, v: Column::of_numbers(&values) });
        }
        let samples = Samples { t0: start_ms, dt: Column::of_integers(&offsets), series };
        let mut bytes = vec![VERSION, row::lane_code(lane)];
        write_runs(&runs, &mut bytes);
        bytes.extend_from_slice(&packer.pack(samples.encode()));
        Blob { bytes, start_ms, end_ms, count, latest }
    }
}

fn write_runs(runs: &[(u32, i64)], into: &mut Vec<u8>) {
    let runs = if runs.iter().all(|(_, shift)| *shift == 0) { &[] } else { runs };
    into.extend_from_slice(&(runs.len() as u16).to_le_bytes());
    for (rows, shift_ms) in runs {
        into.extend_from_slice(&rows.to_le_bytes());
        into.extend_from_slice(&shift_ms.to_le_bytes());
    }
}

/// Reads a blob.
pub(super) fn decode(bytes: &[u8], unpacker: &mut Unpacker) -> Result<Decoded, Error> {
    let mut reader = row::Reader(bytes);
    let damaged = || Error::Damaged { what: "a blob".to_owned() };
    let mut head = || {
        let version = reader.byte().filter(|version| *version == VERSION);
        let lane = version.and_then(|_| row::lane_of(reader.byte()?))?;
        let runs = u16::from_le_bytes(reader.array()?);
        let runs = (0..runs).map(|_| Some((reader.u32()?, reader.i64()?))).collect::<Option<Vec<_>>>()?;
        Some((lane, runs))
    };
    let (lane, runs) = head().ok_or_else(damaged)?;
    let samples = Samples::decode(unpacker.unpack(reader.0)?)?;
    Ok(Decoded { samples, lane, runs })
}

#[cfg(test)]
mod tests {
    use fleet_schemas::telemetry::{Builder, Sample};

    use super::*;

    fn batch(from: i64, metrics: &[&str]) -> Samples {
        let mut builder = Builder::default();
        for row in 0..3 {
            for metric in metrics {
                let sample = Sample {
                    time_ms: from + row,
                    device: DeviceId::node(),
                    metric: MetricName::parse(metric).unwrap(),
                    unit: None,
                    value: (from + row) as f64,
                };
                assert_eq!(builder.push(sample), None);
            }
        }
        builder.build()
    }

    fn points(samples: &Samples) -> Vec<(i64, String, f64)> {
        let mut points = Vec::new();
        for series in &samples.series {
            for (time, value) in samples.times().into_iter().zip(samples.values(series)) {
                if !value.is_nan() {
                    points.push((time, series.m.to_string(), value));
                }
            }
        }
        points.sort_by(|a, b| a.partial_cmp(b).unwrap());
        points
    }

    #[test]
    fn merged_batches_keep_every_sample_with_its_shift() {
        let mut merge = Merge::default();
        merge.add(&batch(0, &["a", "b"]), 100);
        merge.add(&batch(50, &["b", "c"]), 0);
        let blob = merge.finish(Lane::Backfill, &mut Packer::new(3));
        assert_eq!((blob.start_ms, blob.end_ms, blob.count), (50, 102, 12));
        let decoded = decode(&blob.bytes, &mut Unpacker::default()).unwrap();
        assert_eq!(decoded.lane, Lane::Backfill);
        assert_eq!(decoded.runs, [(3, 100), (3, 0)]);
        let mut expected = Vec::new();
        for (from, shift, metrics) in [(0, 100, ["a", "b"]), (50, 0, ["b", "c"])] {
            for (row, metric) in (0..3).flat_map(|row| metrics.map(|metric| (row, metric))) {
                expected.push((from + row + shift, metric.to_owned(), (from + row) as f64));
            }
        }
        expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(points(&decoded.samples), expected);
        // Merged again, nothing changes.
        let mut again = Merge::default();
        again.add_blob(&decoded);
        let again = again.finish(Lane::Backfill, &mut Packer::new(3));
        assert_eq!(again.bytes, blob.bytes);
    }

    #[test]
    fn a_body_that_names_a_series_twice_keeps_both_values() {
        let mut twice = batch(0, &["a"]);
        twice.series.push(twice.series[0].clone());
        let mut merge = Merge::default();
        merge.add(&twice, 0);
        merge.add(&twice, 10);
        let blob = merge.finish(Lane::Telemetry, &mut Packer::new(3));
        let decoded = decode(&blob.bytes, &mut Unpacker::default()).unwrap();
        assert_eq!((blob.count, decoded.samples.count()), (12, 12));
    }

    #[test]
    fn the_layout_of_a_blob_is_frozen() {
        let mut merge = Merge::default();
        merge.add(&batch(1_000, &["a"]), 5);
        let blob = merge.finish(Lane::Telemetry, &mut Packer::new(3));
        let hex: String = blob.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = "01020100030000000500000000000000";
        let body = "a36274301903ed626474a16161d840430001026673657269657381a2616d61616176a26161d8404300010161641903e8";
        assert_eq!(hex, format!("{head}{body}"));
    }
}
