//! Rollups: what every series did in each five minutes, kept for two years, `telemetry/rollup-2026-Q4.redb`.
//!
//! Owns their files and layout. A rollup is partial: late data adds another of the same five minutes, and readers
//! merge them. Each remembers the week file it was made of, so that a reader never counts both. The transaction
//! that adds rollups of a node's blobs moves the node's cursor in that week file: nothing is rolled up twice.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock},
};

use fleet_schemas::{
    cbor::{Packer, Unpacker},
    limits,
    telemetry::{Column, Samples, Series},
};
use redb::{Database, ReadTransaction, ReadableDatabase as _, TableDefinition};

use super::{
    Config, Error, Opened,
    aggregate::{self, Cell},
    blob::Name,
    read_lock, week,
    week::{FOLDER, FileId, NodeRow},
    write_lock,
};
use crate::store::disk::{self, Disk, migrate::Migration};

const FORMAT: u32 = 1;
/// The ways from older formats; there is none yet.
const MIGRATIONS: &[Migration] = &[];
/// Length of a rollup: five minutes.
pub(super) const STEP_MS: i64 = 300_000;
const DAY_MS: i64 = 86_400_000;

/// (node, day's start, week file, number) → [`Samples`] with six columns a series: min, max, sum, last, count,
/// milliseconds from the step's start to the last. Appended only.
const ROLLUPS: TableDefinition<(u32, i64, u64, u64), &[u8]> = TableDefinition::new("rollups");
/// (week file, node) → the inbox seq up to which its blobs are rolled up.
const ROLLED: TableDefinition<(u64, u32), u64> = TableDefinition::new("rolled");

/// Columns a series has.
const COLUMNS: usize = 6;
/// Rollups that one step makes, at most, and bytes of blobs that it reads: about 50 ms of work.
const STEP_CELLS: usize = 200_000;
const STEP_SAMPLES: u64 = 1_000_000;

/// How a file of rollups is opened, whichever store's it is.
pub(super) fn how(cache_bytes: usize) -> disk::Open {
    disk::Open { format: FORMAT, cache_bytes, store_id: None, migrations: MIGRATIONS }
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(ROLLUPS)?;
    copier.table(ROLLED)
}

/// A quarter of thirteen weeks.
pub(super) type Quarter = (u16, u8);

pub(super) struct Rollups {
    files: RwLock<BTreeMap<Quarter, Arc<Database>>>,
    pub aside: Vec<String>,
}

/// A snapshot of one file.
pub(super) struct View {
    read: ReadTransaction,
    _db: Arc<Database>,
}

fn quarter_of(id: FileId) -> Quarter {
    (id.year, (id.week.saturating_sub(1) / 13 + 1).min(4))
}

fn name((year, quarter): Quarter) -> String {
    format!("{FOLDER}/rollup-{year:04}-Q{quarter}.redb")
}

pub(super) fn parse(text: &str) -> Option<Quarter> {
    let stem = text.strip_prefix(FOLDER)?.strip_prefix("/rollup-")?.strip_suffix(".redb")?;
    let (year, quarter) = stem.split_once("-Q")?;
    let found = (year.parse().ok()?, quarter.parse().ok()?);
    (name(found) == text).then_some(found)
}

fn open(disk: &dyn Disk, config: &Config, quarter: Quarter) -> Result<Arc<Database>, Error> {
    let how = disk::Open { store_id: config.store_id, ..how(config.week_cache_bytes) };
    let db = disk::open(disk, &name(quarter), how)?;
    let write = db.begin_write()?;
    write.open_table(ROLLUPS)?;
    write.open_table(ROLLED)?;
    write.commit()?;
    Ok(Arc::new(db))
}

impl View {
    /// The snapshot, and what keeps the file open.
    pub(super) fn into_parts(self) -> (ReadTransaction, Arc<Database>) {
        (self.read, self._db)
    }
}

impl Rollups {
    pub(super) fn open(disk: &dyn Disk, config: &Config) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        let mut aside = Vec::new();
        for quarter in disk.list(FOLDER)?.iter().filter_map(|name| parse(name)) {
            match open(disk, config, quarter) {
                Ok(db) => {
                    files.insert(quarter, db);
                }
                Err(Error::Disk(error)) if error.is_corrupt() => aside.push(disk.set_aside(&name(quarter))?),
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files: RwLock::new(files), aside })
    }

    pub(super) fn views(&self) -> Result<Vec<View>, Error> {
        read_lock(&self.files).values().map(view).collect()
    }

    /// Names of the files.
    pub(super) fn names(&self) -> Vec<String> {
        read_lock(&self.files).keys().copied().map(name).collect()
    }

    /// The seq up to which a node's blobs of a week file are rolled up.
    pub(super) fn rolled(&self, id: FileId, node: u32) -> Result<u64, Error> {
        let db = read_lock(&self.files).get(&quarter_of(id)).cloned();
        db.map_or(Ok(0), |db| view(&db)?.rolled(id.key(), node))
    }

    /// Rolls up a node's blobs of a week file, or some of them when there are many; says whether all are done.
    pub(super) fn roll(
        &self,
        disk: &dyn Disk,
        config: &Config,
        opened: &Opened,
        week: &week::View,
        (node, row): (u32, &NodeRow),
        (packer, unpacker): (&mut Packer, &mut Unpacker),
    ) -> Result<bool, Error> {
        let rolled = self.rolled(week.id, node)?;
        if rolled >= row.cursor {
            return Ok(true);
        }
        let mut blobs = week.blobs(node, row, i64::MIN, i64::MAX)?;
        blobs.retain(|(_, first_seq, _)| *first_seq > rolled);
        blobs.sort_unstable_by_key(|(_, first_seq, _)| *first_seq);
        let mut cells: Cells = BTreeMap::new();
        let (mut made, mut read, mut reached, mut cursor) = (0, 0, rolled, row.cursor);
        let mut bytes = week.bytes()?;
        for blob in &blobs {
            let (_, first_seq, entry) = blob;
            // Between two blobs that do not interleave the work may be cut in two.
            if (made >= STEP_CELLS || read >= STEP_SAMPLES) && *first_seq > reached {
                cursor = reached;
                break;
            }
            if let Some(decoded) = opened.blob(week.id, node, blob, &mut bytes, unpacker)? {
                made += gather(&decoded.samples, &mut cells);
            }
            read += u64::from(entry.count);
            reached = entry.last_seq.max(reached);
        }
        let rows = encode(&cells, packer);
        let db = self.for_writing(disk, config, week.id)?;
        let write = db.begin_write()?;
        {
            let mut table = write.open_table(ROLLUPS)?;
            for (number, (day, bytes)) in (0_u64..).zip(&rows) {
                // A pass over one node makes fewer than 2^20 rows; `rolled` makes passes differ.
                table.insert((node, *day, week.id.key(), rolled << 20 | number), &bytes[..])?;
            }
            write.open_table(ROLLED)?.insert((week.id.key(), node), cursor)?;
        }
        write.commit()?;
        Ok(cursor == row.cursor)
    }

    fn for_writing(&self, disk: &dyn Disk, config: &Config, id: FileId) -> Result<Arc<Database>, Error> {
        let quarter = quarter_of(id);
        if let Some(db) = read_lock(&self.files).get(&quarter) {
            return Ok(Arc::clone(db));
        }
        let db = open(disk, config, quarter)?;
        write_lock(&self.files).insert(quarter, Arc::clone(&db));
        Ok(db)
    }

    /// Unlinks files whose quarter ended before an instant; gives their names.
    pub(super) fn expire(&self, disk: &dyn Disk, before_ms: i64) -> Result<Vec<String>, Error> {
        let over = |quarter: &Quarter| {
            let last =
                FileId { year: quarter.0, week: if quarter.1 == 4 { 53 } else { quarter.1 * 13 }, part: 1 };
            last.end_ms() < before_ms
        };
        let gone: Vec<_> = read_lock(&self.files).keys().copied().filter(over).collect();
        for quarter in &gone {
            write_lock(&self.files).remove(quarter);
            disk.remove(&name(*quarter))?;
        }
        Ok(gone.into_iter().map(name).collect())
    }
}

fn view(db: &Arc<Database>) -> Result<View, Error> {
    Ok(View { read: db.begin_read()?, _db: Arc::clone(db) })
}

impl View {
    pub(super) fn rolled(&self, source: u64, node: u32) -> Result<u64, Error> {
        let table = self.read.open_table(ROLLED)?;
        Ok(table.get((source, node))?.map_or(0, |seq| seq.value()))
    }

    /// Hands over the rollups of a node in `from_ms..to_ms` that come from a source that is wanted.
    pub(super) fn each(
        &self,
        node: u32,
        from_ms: i64,
        to_ms: i64,
        wanted: impl Fn(u64) -> bool,
        unpacker: &mut Unpacker,
        take: &mut dyn FnMut(&Name, i64, &Cell) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let table = self.read.open_table(ROLLUPS)?;
        let range = (node, aggregate::floor(from_ms, DAY_MS), 0, 0)..(node, to_ms, 0, 0);
        for entry in table.range(range)? {
            let (key, value) = entry?;
            if wanted(key.value().2) {
                match unpacker.unpack(value.value()).and_then(Samples::decode) {
                    Ok(samples) => decode(&samples, take)?,
                    // Derived of samples that may be there still; what is around it can be read.
                    Err(error) => tracing::warn!(node, %error, "a rollup is damaged and left out"),
                }
            }
        }
        Ok(())
    }
}

/// day → series → step → cell
type Cells = BTreeMap<i64, HashMap<Name, BTreeMap<i64, Cell>>>;

/// Adds samples to their cells; gives how many cells are new.
fn gather(samples: &Samples, cells: &mut Cells) -> usize {
    let times = samples.times();
    let mut made = 0;
    for series in &samples.series {
        let name: Name = (series.d.clone(), series.m.clone(), series.u.clone());
        let mut current: Option<(i64, Cell)> = None;
        let mut put = |at: i64, cell: Cell| {
            let day = cells.entry(aggregate::floor(at, DAY_MS)).or_default();
            let steps = match day.get_mut(&name) {
                Some(steps) => steps,
                None => day.entry(name.clone()).or_default(),
            };
            let before = steps.len();
            steps.entry(at).and_modify(|known| known.merge(&cell)).or_insert(cell);
            made += steps.len() - before;
        };
        for (time, value) in times.iter().copied().zip(samples.values(series)) {
            if value.is_nan() {
                continue;
            }
            let at = aggregate::floor(time, STEP_MS);
            match &mut current {
                Some((open, cell)) if *open == at => cell.merge(&Cell::of(time, value)),
                Some(_) | None => {
                    if let Some((open, cell)) = current.replace((at, Cell::of(time, value))) {
                        put(open, cell);
                    }
                }
            }
        }
        if let Some((open, cell)) = current {
            put(open, cell);
        }
    }
    made
}

/// Rows of at most as many values as a batch may have: a day of a few series each.
fn encode(cells: &Cells, packer: &mut Packer) -> Vec<(i64, Vec<u8>)> {
    let mut rows = Vec::new();
    for (day, series) in cells {
        let mut names: Vec<_> = series.iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let most = limits::BATCH_RECORDS / COLUMNS / (DAY_MS / STEP_MS) as usize;
        for some in names.chunks(most) {
            let mut steps: Vec<i64> = some.iter().flat_map(|(_, steps)| steps.keys().copied()).collect();
            steps.sort_unstable();
            steps.dedup();
            let mut columns = Vec::with_capacity(some.len() * COLUMNS);
            for ((d, m, u), cells) in some {
                let mut values = [const { Vec::new() }; COLUMNS];
                for step in &steps {
                    let row = cells.get(step).map_or([f64::NAN; COLUMNS], |cell| {
                        let offset = cell.last_ms.saturating_sub(*step) as f64;
                        // A sum beyond the range of a float would not be stored at all.
                        let sum = cell.sum.clamp(f64::MIN, f64::MAX);
                        [cell.min, cell.max, sum, cell.last, cell.count, offset]
                    });
                    values.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
                }
                for column in values {
                    let v = Column::of_numbers(&column);
                    columns.push(Series { d: d.clone(), m: m.clone(), u: u.clone(), v });
                }
            }
            let offsets: Vec<i64> = steps.iter().map(|step| step.saturating_sub(*day)).collect();
            let samples = Samples { t0: *day, dt: Column::of_integers(&offsets), series: columns };
            rows.push((*day, packer.pack(samples.encode())));
        }
    }
    rows
}

fn decode(
    samples: &Samples,
    take: &mut dyn FnMut(&Name, i64, &Cell) -> Result<(), Error>,
) -> Result<(), Error> {
    let steps = samples.times();
    for six in samples.series.chunks_exact(COLUMNS) {
        let name: Name = (six[0].d.clone(), six[0].m.clone(), six[0].u.clone());
        let columns: Vec<_> = six.iter().map(|series| samples.values(series)).collect();
        for (row, step) in steps.iter().enumerate() {
            let [min, max, sum, last, count, offset] = std::array::from_fn(|column| columns[column][row]);
            if !count.is_nan() {
                let last_ms = step.saturating_add(offset as i64);
                take(&name, *step, &Cell { min, max, sum, count, last_ms, last })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{DeviceId, MetricName};

    use super::*;

    #[test]
    fn quarters_have_names_and_hold_their_weeks() {
        for (week, quarter) in [(1, 1), (13, 1), (14, 2), (48, 4), (53, 4)] {
            assert_eq!(quarter_of(FileId { year: 2026, week, part: 2 }), (2026, quarter));
        }
        assert_eq!(parse(&name((2026, 4))), Some((2026, 4)));
        assert_eq!(parse("telemetry/rollup-2026-Q44.redb.damaged-1"), None);
    }

    #[test]
    fn cells_round_trip() {
        let mut cells = Cells::new();
        let name = |n: usize| (DeviceId::node(), MetricName::parse(&format!("m{n}")).unwrap(), None);
        for n in 0..12 {
            for step in (0..288).filter(|step| (step + n) % 3 != 0) {
                let at = 5 * DAY_MS + step as i64 * STEP_MS;
                let mut cell = Cell::of(at + 7, n as f64 + 0.25);
                cell.merge(&Cell::of(at + 5, -1.5));
                cells.entry(5 * DAY_MS).or_default().entry(name(n)).or_default().insert(at, cell);
            }
        }
        let rows = encode(&cells, &mut Packer::new(3));
        assert!(rows.len() > 1);
        let mut found = Cells::new();
        for (day, bytes) in rows {
            let samples = Samples::decode(Unpacker::default().unpack(&bytes).unwrap()).unwrap();
            decode(&samples, &mut |name, at, cell| {
                found.entry(day).or_default().entry(name.clone()).or_default().insert(at, *cell);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(found, cells);
    }
}
