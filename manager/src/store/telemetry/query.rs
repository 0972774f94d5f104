//! Queries: samples of a node from the inbox, the week files and the rollups, as one.
//!
//! A reader takes its snapshots under one short lock and then works alone: it waits for nobody's transaction
//! and sees every sample exactly once, wherever the sealer has it at that moment.

use std::collections::{BTreeMap, HashMap};

use super::{
    Aggregate, Error, Latest, Opened, SeriesName, TelemetryStore,
    aggregate::{self, Cell},
    blob::Name,
    inbox::Rows,
    latest::Table,
    lock, read_lock, rollup,
    unsealed::Batch,
    week::View,
};
use fleet_schemas::{DeviceId, MetricName, cbor::Unpacker, telemetry::Samples};

/// What to look for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The node's number.
    pub node: u32,
    /// Only this device; [`DeviceId::node`] is the node itself.
    pub device: Option<DeviceId>,
    /// Only this metric.
    pub metric: Option<MetricName>,
    /// The first instant, corrected Unix milliseconds,
    pub from_ms: i64,
    /// and the first one beyond. With a step both widen to whole steps.
    pub to_ms: i64,
    /// One value a step instead of every sample.
    pub step: Option<Step>,
    /// Most series in the answer.
    pub series_max: usize,
    /// Most points in the answer, over all series.
    pub points_max: usize,
}

/// Steps are counted from 1970; the instant of a point is the start of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its length, milliseconds; at least 1.
    pub ms: i64,
    /// How samples become one value.
    pub aggregate: Aggregate,
}

/// The points of one series, by time; several of one instant by value.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesPoints {
    /// The device, empty for the node itself.
    pub device: DeviceId,
    /// The metric.
    pub metric: MetricName,
    /// Its unit; when it changed there is a series for each.
    pub unit: Option<MetricName>,
    /// Unix milliseconds and value.
    pub points: Vec<(i64, f64)>,
}

/// Which series [`TelemetryStore::history`] gives: device, metric, unit.
pub type Wants<'a> = dyn Fn(&DeviceId, &MetricName, Option<&MetricName>) -> bool + 'a;

/// Samples that one query may decode: a few seconds of work.
const SCAN_SAMPLES: u64 = 200_000_000;
/// From this range on, milliseconds, steps of whole rollups are answered from rollups: two days.
const LONG_MS: i64 = 2 * 86_400_000;

/// Everything of one node, at one moment.
pub(super) struct Snapshot {
    node: u32,
    pub unsealed: Vec<Batch>,
    pub rows: Rows,
    pub views: Vec<View>,
    pub rollups: Vec<rollup::View>,
}

impl Snapshot {
    pub(super) fn take(opened: &Opened, node: u32) -> Result<Self, Error> {
        let memory = read_lock(&opened.inbox.memory);
        let unsealed = memory.unsealed.nodes.get(&node).map(|node| node.batches.clone());
        let rows = opened.inbox.rows()?;
        let views = opened.weeks.views()?;
        // After the week files: what is merged there must be rolled up here.
        let rollups = opened.rollups.views()?;
        drop(memory);
        let mut snapshot = Self { node, unsealed: unsealed.unwrap_or_default(), rows, views, rollups };
        // What was just sealed may still be in the index.
        let mut cursor = 0;
        for view in &snapshot.views {
            cursor = view.node(node)?.map_or(cursor, |row| row.cursor.max(cursor));
        }
        snapshot.unsealed.retain(|batch| batch.seq > cursor);
        Ok(snapshot)
    }

    /// Hands over the samples of unsealed batches with their shift; those that rotted are left out.
    pub(super) fn each_unsealed(
        &mut self,
        opened: &Opened,
        unpacker: &mut Unpacker,
        mut wanted: impl FnMut(&Batch) -> bool,
        mut take: impl FnMut(&Batch, &Samples, i64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for batch in self.unsealed.iter().filter(|batch| wanted(batch)) {
            if let Some((head, samples)) = opened.batch(self.node, batch, &mut self.rows, unpacker)? {
                take(batch, &samples, head.shift_ms)?;
            }
        }
        Ok(())
    }
}

impl TelemetryStore {
    /// Samples of a node. What rotted on the disk is left out, and told by the next [`TelemetryStore::seal`].
    ///
    /// # Errors
    /// [`Error::TooMuch`] when the answer or the work would be larger than allowed.
    pub fn query(&self, query: &Query) -> Result<Vec<SeriesPoints>, Error> {
        let opened = self.opened()?;
        let found = Found::new(query);
        self.note(Snapshot::take(&opened, query.node).and_then(|snapshot| answer(&opened, snapshot, found)))
    }

    /// Samples of those series of a node that `wants` (device, metric, unit) chooses, for whoever draws them by their
    /// own times: the point of a step stands at its last sample, and where samples have expired the last of each
    /// rollup stands for them.
    ///
    /// # Errors
    /// As [`TelemetryStore::query`].
    pub fn history(&self, query: &Query, wants: &Wants<'_>) -> Result<Vec<SeriesPoints>, Error> {
        let opened = self.opened()?;
        let found = Found { history: Some(wants), ..Found::new(query) };
        self.note(Snapshot::take(&opened, query.node).and_then(|snapshot| answer(&opened, snapshot, found)))
    }

    /// The newest value of every series of a node, by device and metric; at most
    /// [`fleet_schemas::limits::SERIES_PER_NODE`].
    ///
    /// # Errors
    /// [`Error`] when a file cannot be read.
    pub fn latest(&self, node: u32) -> Result<Vec<Latest>, Error> {
        let opened = self.opened()?;
        let table = || {
            let mut unpacker = Unpacker::default();
            let mut snapshot = Snapshot::take(&opened, node)?;
            // After the snapshot: the sealer moves this table before it takes batches out of the index.
            let cached = lock(&opened.latest).nodes.get(&node).map(|cached| cached.table.clone());
            let mut table = match cached {
                Some(table) => table,
                None => Table::load(node, &opened, &snapshot.views, &mut unpacker)?,
            };
            snapshot.each_unsealed(
                &opened,
                &mut unpacker,
                |_| true,
                |_, samples, shift_ms| {
                    table.take_samples(samples, shift_ms);
                    Ok(())
                },
            )?;
            Ok(table.into_list())
        };
        self.note(table())
    }

    /// The series of a node, by device and metric.
    ///
    /// # Errors
    /// [`Error`] when a file cannot be read.
    pub fn series(&self, node: u32) -> Result<Vec<SeriesName>, Error> {
        let latest = self.latest(node)?;
        let name = |Latest { device, metric, unit, .. }| SeriesName { device, metric, unit };
        Ok(latest.into_iter().map(name).collect())
    }
}

fn answer(opened: &Opened, mut snapshot: Snapshot, mut found: Found<'_>) -> Result<Vec<SeriesPoints>, Error> {
    let query = found.query;
    let (from_ms, to_ms) = (found.from_ms, found.to_ms);
    if from_ms >= to_ms {
        return Ok(Vec::new());
    }
    let rollable = query.step.is_some_and(|step| step.ms % rollup::STEP_MS == 0);
    let long = rollable && to_ms.saturating_sub(from_ms) >= LONG_MS;
    let mut unpacker = Unpacker::default();
    if rollable || found.history.is_some() {
        let gone = |source: u64| !snapshot.views.iter().any(|view| view.id.key() == source);
        for view in &snapshot.rollups {
            view.each(
                query.node,
                from_ms,
                to_ms,
                |source| long || gone(source),
                &mut unpacker,
                &mut |name, time, cell| found.cell(name, time, cell),
            )?;
        }
    }
    for view in &snapshot.views {
        let Some(row) = view.node(query.node)?.filter(|row| row.start_ms < to_ms && row.end_ms >= from_ms)
        else {
            continue;
        };
        let mut rolled = 0;
        if long {
            for rollups in &snapshot.rollups {
                rolled = rollups.rolled(view.id.key(), query.node)?.max(rolled);
            }
        }
        let mut bytes = view.bytes()?;
        for blob in view.blobs(query.node, &row, from_ms, to_ms)? {
            if blob.1 > rolled {
                found.scan(blob.2.count.into())?;
                let decoded = opened.blob(view.id, query.node, &blob, &mut bytes, &mut unpacker)?;
                decoded.map_or(Ok(()), |decoded| found.samples(&decoded.samples, 0))?;
            }
        }
    }
    let overlaps = |batch: &Batch| batch.overlaps(from_ms, to_ms);
    snapshot.each_unsealed(opened, &mut unpacker, overlaps, |batch, samples, shift_ms| {
        found.scan(batch.count.into())?;
        found.samples(samples, shift_ms)
    })?;
    Ok(found.finish())
}

/// An answer in the making.
struct Found<'a> {
    query: &'a Query,
    history: Option<&'a Wants<'a>>,
    from_ms: i64,
    to_ms: i64,
    step: Option<Step>,
    series: HashMap<Name, Gathered>,
    points: usize,
    scanned: u64,
}

#[derive(Default)]
struct Gathered {
    points: Vec<(i64, f64)>,
    cells: BTreeMap<i64, Cell>,
}

impl<'a> Found<'a> {
    fn new(query: &'a Query) -> Self {
        let step = query.step.map(|step| Step { ms: step.ms.max(1), ..step });
        let (from_ms, to_ms) = match step {
            None => (query.from_ms, query.to_ms),
            Some(Step { ms, .. }) => {
                let up = aggregate::floor(query.to_ms.saturating_sub(1), ms).saturating_add(ms);
                (
                    aggregate::floor(query.from_ms, ms),
                    if query.to_ms > query.from_ms { up } else { query.from_ms },
                )
            }
        };
        Self { query, history: None, from_ms, to_ms, step, series: HashMap::new(), points: 0, scanned: 0 }
    }

    fn scan(&mut self, samples: u64) -> Result<(), Error> {
        self.scanned += samples;
        let most = SCAN_SAMPLES as usize;
        if self.scanned > SCAN_SAMPLES {
            Err(Error::TooMuch { most, what: "samples to read" })
        } else {
            Ok(())
        }
    }

    fn wants(&self, device: &DeviceId, metric: &MetricName, unit: Option<&MetricName>) -> bool {
        self.query.device.as_ref().is_none_or(|wanted| wanted == device)
            && self.query.metric.as_ref().is_none_or(|wanted| wanted == metric)
            && self.history.is_none_or(|wants| wants(device, metric, unit))
    }

    fn gathered(&mut self, name: Name) -> Result<&mut Gathered, Error> {
        let most = self.query.series_max;
        if self.series.len() >= most && !self.series.contains_key(&name) {
            return Err(Error::TooMuch { most, what: "series" });
        }
        Ok(self.series.entry(name).or_default())
    }

    fn grown(&mut self, by: usize) -> Result<(), Error> {
        self.points += by;
        let most = self.query.points_max;
        if self.points > most { Err(Error::TooMuch { most, what: "points" }) } else { Ok(()) }
    }

    fn samples(&mut self, samples: &Samples, shift_ms: i64) -> Result<(), Error> {
        let mut times = samples.times();
        times.iter_mut().for_each(|time| *time = time.saturating_add(shift_ms));
        let (from_ms, to_ms, step) = (self.from_ms, self.to_ms, self.step);
        for series in &samples.series {
            if !self.wants(&series.d, &series.m, series.u.as_ref()) {
                continue;
            }
            let values = samples.values(series);
            let mut within = (times.iter().copied().zip(values))
                .filter(|(time, value)| (from_ms..to_ms).contains(time) && !value.is_nan())
                .peekable();
            if within.peek().is_none() {
                continue;
            }
            let gathered = self.gathered((series.d.clone(), series.m.clone(), series.u.clone()))?;
            let before = gathered.points.len() + gathered.cells.len();
            match step {
                None => gathered.points.extend(within),
                Some(Step { ms, .. }) => gathered.aggregate(within, ms),
            }
            let grown = gathered.points.len() + gathered.cells.len() - before;
            self.grown(grown)?;
        }
        Ok(())
    }

    fn cell(&mut self, name: &Name, time_ms: i64, cell: &Cell) -> Result<(), Error> {
        let within = (self.from_ms..self.to_ms).contains(&time_ms);
        if !within || !self.wants(&name.0, &name.1, name.2.as_ref()) {
            return Ok(());
        }
        let step = self.step;
        let gathered = self.gathered(name.clone())?;
        let Some(Step { ms, .. }) = step else {
            gathered.points.push((cell.last_ms, cell.last));
            return self.grown(1);
        };
        let before = gathered.cells.len();
        gathered.merge(aggregate::floor(time_ms, ms), cell);
        let grown = gathered.cells.len() - before;
        self.grown(grown)
    }

    fn finish(self) -> Vec<SeriesPoints> {
        let aggregate = self.step.map(|step| step.aggregate);
        let own_times = self.history.is_some();
        let mut all: Vec<_> = (self.series.into_iter())
            .map(|((device, metric, unit), Gathered { mut points, cells })| {
                if let Some(aggregate) = aggregate {
                    let time = |step: i64, cell: &Cell| if own_times { cell.last_ms } else { step };
                    let point = |(step, cell): (&i64, &Cell)| (time(*step, cell), cell.value(aggregate));
                    points = cells.iter().map(point).collect();
                } else if !points.is_sorted_by(|a, b| a.0 < b.0) {
                    points.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.total_cmp(&b.1)));
                }
                SeriesPoints { device, metric, unit, points }
            })
            .collect();
        all.sort_unstable_by(|a, b| (&a.device, &a.metric, &a.unit).cmp(&(&b.device, &b.metric, &b.unit)));
        all
    }
}

impl Gathered {
    fn aggregate(&mut self, samples: impl Iterator<Item = (i64, f64)>, step_ms: i64) {
        // Neighbours are nearly always in the same bucket.
        let mut current: Option<(i64, Cell)> = None;
        for (time, value) in samples {
            let bucket = aggregate::floor(time, step_ms);
            match &mut current {
                Some((at, cell)) if *at == bucket => cell.merge(&Cell::of(time, value)),
                Some(_) | None => {
                    if let Some((at, cell)) = current.replace((bucket, Cell::of(time, value))) {
                        self.merge(at, &cell);
                    }
                }
            }
        }
        if let Some((at, cell)) = current {
            self.merge(at, &cell);
        }
    }

    fn merge(&mut self, bucket: i64, cell: &Cell) {
        self.cells.entry(bucket).and_modify(|known| known.merge(cell)).or_insert(*cell);
    }
}
