//! A week file: the blobs that were received in one ISO week, `telemetry/2026-W48.redb`, and its further parts,
//! `telemetry/2026-W48-2.redb`.
//!
//! Owns its tables. A blob is a run of bytes in `dense` (many blobs end to end in rows that fill whole pages) or a
//! row in `loose` (small ones, merged again later); `blobs` finds them by node and time.

use std::sync::Arc;

use fleet_schemas::Lane;
use redb::{
    Database, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, TableDefinition,
};

use super::{
    Error,
    blob::Blob,
    row::{self, Reader},
};
use crate::store::disk::{self, Disk, DiskError, migrate::Migration};

const FORMAT: u32 = 1;
/// The ways from older formats; there is none yet.
const MIGRATIONS: &[Migration] = &[];
/// Where the week files and the inbox are.
pub(super) const FOLDER: &str = "telemetry";

/// (node, earliest instant, first seq) → [`Entry`]. One a blob; replaced when small blobs are merged.
pub(super) const BLOBS: TableDefinition<(u32, i64, u64), &[u8]> = TableDefinition::new("blobs");
/// node → [`NodeRow`]. One a node; changed with every seal.
pub(super) const NODES: TableDefinition<u32, &[u8]> = TableDefinition::new("nodes");
/// Segment → bytes. Appended only.
const DENSE: TableDefinition<u64, &[u8]> = TableDefinition::new("dense");
/// Number → one small blob. Removed when merged.
const LOOSE: TableDefinition<u64, &[u8]> = TableDefinition::new("loose");
/// node → newest value of each series, see `latest`. Replaced now and then.
pub(super) const LATEST: TableDefinition<u32, &[u8]> = TableDefinition::new("latest");

/// A segment fills eight pages of 4 KiB with redb's 16 bytes around a single row; a larger row would take
/// sixteen.
const SEGMENT: usize = 8 * 4096 - 32;
/// A blob below this size, in bytes, is stored by itself, to be merged with its neighbours later.
const LOOSE_BELOW: usize = 4096;

/// Which week, and which part of it. Ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId {
    pub year: u16,
    pub week: u8,
    pub part: u16,
}

/// Where a blob is and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub end_ms: i64,
    pub last_seq: u64,
    pub count: u32,
    pub lane: Lane,
    pub place: Place,
}

/// Where its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Dense { segment: u64, offset: u32, len: u32 },
    Loose { number: u64 },
}

/// What a week file has of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeRow {
    /// Batches up to this inbox seq are sealed.
    pub cursor: u64,
    /// Samples by lane.
    pub telemetry: u64,
    pub backfill: u64,
    /// Earliest and latest instant, and the longest blob, milliseconds.
    pub start_ms: i64,
    pub end_ms: i64,
    pub span_ms: i64,
    /// Small blobs.
    pub loose: u32,
}

pub(super) enum Db {
    Write(Database),
    /// A week that is over: a crash leaves it clean.
    Read(ReadOnlyDatabase),
}

pub(super) struct WeekFile {
    pub id: FileId,
    pub db: Db,
}

/// A snapshot of a week file.
pub(super) struct View {
    pub id: FileId,
    pub read: ReadTransaction,
    // Keeps the file open.
    _file: Arc<WeekFile>,
}

/// Reads blobs out of a snapshot.
pub(super) struct Blobs {
    dense: ReadOnlyTable<u64, &'static [u8]>,
    loose: ReadOnlyTable<u64, &'static [u8]>,
    buffer: Vec<u8>,
}

/// Lays blobs down in one write transaction.
pub(super) struct Sink {
    first: u64,
    dense: Vec<u8>,
    loose: Vec<(u64, Vec<u8>)>,
    next_loose: u64,
}

/// How a week file is opened, whichever store's it is.
pub(super) fn how(cache_bytes: usize) -> disk::Open {
    disk::Open { format: FORMAT, cache_bytes, store_id: None, migrations: MIGRATIONS }
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(BLOBS)?;
    copier.table(NODES)?;
    copier.table(DENSE)?;
    copier.table(LOOSE)?;
    copier.table(LATEST)
}

/// Shows what tells a week file from an earlier state of it: every node's row, which moves with each seal and each
/// merging, and how many blobs there are.
pub(super) fn content(read: &ReadTransaction, show: &mut dyn FnMut(&[u8])) -> Result<(), redb::Error> {
    use redb::{ReadableTable as _, ReadableTableMetadata as _};
    for row in read.open_table(NODES)?.iter()? {
        let (node, row) = row?;
        show(&node.value().to_le_bytes());
        show(row.value());
    }
    let counts =
        [read.open_table(BLOBS)?.len()?, read.open_table(DENSE)?.len()?, read.open_table(LOOSE)?.len()?];
    counts.iter().for_each(|count| show(&count.to_le_bytes()));
    Ok(())
}

impl FileId {
    /// The first part of the ISO week of an instant; the years 1970 to 9999.
    pub(super) fn of(ms: i64) -> Self {
        const DAY_MS: i64 = 86_400_000;
        let days = ms.clamp(0, 253_402_300_799_999) / DAY_MS;
        // The week belongs to the year of its Thursday; 1970-01-01 was one.
        let thursday = (days + 3) / 7 * 7;
        let mut year = 1970 + thursday / 366;
        while first_day(year + 1) <= thursday {
            year += 1;
        }
        let week = (thursday - first_day(year)) / 7 + 1;
        Self { year: year as u16, week: week as u8, part: 1 }
    }

    pub(super) fn name(self) -> String {
        let Self { year, week, part } = self;
        let part = if part > 1 { format!("-{part}") } else { String::new() };
        format!("{FOLDER}/{year:04}-W{week:02}{part}.redb")
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".redb")?;
        let (year, rest) = stem.split_once("-W")?;
        let (week, part) = rest.split_once('-').unwrap_or((rest, "1"));
        let id = Self { year: year.parse().ok()?, week: week.parse().ok()?, part: part.parse().ok()? };
        (id.name() == name).then_some(id)
    }

    /// Whether both are of the same week.
    pub(super) fn same_week(self, other: Self) -> bool {
        (self.year, self.week) == (other.year, other.week)
    }

    /// The instant at which the week is over, Unix milliseconds.
    pub(super) fn end_ms(self) -> i64 {
        // The Thursday of week 1 is the first one of the year.
        let first = first_day(self.year.into());
        let thursday = (first + 6) / 7 * 7 + (i64::from(self.week) - 1) * 7;
        (thursday + 4) * 86_400_000
    }

    /// As a key: ascending like the weeks.
    pub(super) fn key(self) -> u64 {
        u64::from(self.year) << 32 | u64::from(self.week) << 16 | u64::from(self.part)
    }
}

/// Days from 1970-01-01 to the first day of a year.
fn first_day(year: i64) -> i64 {
    let before = year - 1;
    365 * (year - 1970) + (before / 4 - before / 100 + before / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

impl Entry {
    pub(super) fn to_bytes(self) -> [u8; 37] {
        let (kind, id, offset, len) = match self.place {
            Place::Dense { segment, offset, len } => (0, segment, offset, len),
            Place::Loose { number } => (1, number, 0, 0),
        };
        let mut bytes = [0; 37];
        bytes[..8].copy_from_slice(&self.end_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.last_seq.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        // One byte for both: the lane, and where the bytes are.
        bytes[20] = row::lane_code(self.lane) << 4 | kind;
        bytes[21..29].copy_from_slice(&id.to_le_bytes());
        bytes[29..33].copy_from_slice(&offset.to_le_bytes());
        bytes[33..].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        let mut entry = || {
            let (end_ms, last_seq, count) = (reader.i64()?, reader.u64()?, reader.u32()?);
            let code = reader.byte()?;
            let (id, offset, len) = (reader.u64()?, reader.u32()?, reader.u32()?);
            let place = match code & 15 {
                0 => Place::Dense { segment: id, offset, len },
                1 => Place::Loose { number: id },
                _ => return None,
            };
            Some(Self { end_ms, last_seq, count, lane: row::lane_of(code >> 4)?, place })
        };
        entry().ok_or_else(|| Error::Damaged { what: "a row of `blobs`".to_owned() })
    }
}

impl NodeRow {
    pub(super) const NONE: Self = Self {
        cursor: 0,
        telemetry: 0,
        backfill: 0,
        start_ms: i64::MAX,
        end_ms: i64::MIN,
        span_ms: 0,
        loose: 0,
    };

    pub(super) fn add(&mut self, lane: Lane, blob: &Blob) {
        match lane {
            Lane::Backfill => self.backfill += blob.count,
            Lane::Telemetry | Lane::Event | Lane::Command => self.telemetry += blob.count,
        }
        self.start_ms = self.start_ms.min(blob.start_ms);
        self.end_ms = self.end_ms.max(blob.end_ms);
        self.span_ms = self.span_ms.max(blob.end_ms.saturating_sub(blob.start_ms));
    }

    pub(super) fn stored(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Telemetry => self.telemetry,
            Lane::Backfill => self.backfill,
            Lane::Event | Lane::Command => 0,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; 52] {
        let mut bytes = [0; 52];
        let counts = [self.cursor, self.telemetry, self.backfill].map(u64::to_le_bytes);
        let times = [self.start_ms, self.end_ms, self.span_ms].map(i64::to_le_bytes);
        for (slot, number) in bytes.chunks_exact_mut(8).zip(counts.iter().chain(&times)) {
            slot.copy_from_slice(number);
        }
        bytes[48..].copy_from_slice(&self.loose.to_le_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        let mut row = || {
            Some(Self {
                cursor: reader.u64()?,
                telemetry: reader.u64()?,
                backfill: reader.u64()?,
                start_ms: reader.i64()?,
                end_ms: reader.i64()?,
                span_ms: reader.i64()?,
                loose: reader.u32()?,
            })
        };
        row().ok_or_else(|| Error::Damaged { what: "a row of `nodes`".to_owned() })
    }
}

impl WeekFile {
    /// Opens a file of a week; for reading only, unless it is `current` or needs repair.
    pub(super) fn open(
        disk: &dyn Disk,
        id: FileId,
        current: bool,
        cache_bytes: usize,
        store_id: Option<[u8; 16]>,
    ) -> Result<Self, Error> {
        let name = id.name();
        let how = disk::Open { store_id, ..how(cache_bytes) };
        if !current {
            match disk::open_read_only(disk, &name, how) {
                Ok(db) => return Ok(Self { id, db: Db::Read(db) }),
                Err(error @ (DiskError::Newer { .. } | DiskError::Foreign { .. })) => {
                    return Err(error.into());
                }
                // It needs repair, or is not whole: opening it for writing tells.
                Err(_) => {}
            }
        }
        let db = disk::open(disk, &name, how)?;
        let write = db.begin_write()?;
        write.open_table(BLOBS)?;
        write.open_table(NODES)?;
        write.open_table(DENSE)?;
        write.open_table(LOOSE)?;
        write.open_table(LATEST)?;
        write.commit()?;
        Ok(Self { id, db: Db::Write(db) })
    }

    pub(super) fn view(self: &Arc<Self>) -> Result<View, Error> {
        let read = match &self.db {
            Db::Write(db) => db.begin_read()?,
            Db::Read(db) => db.begin_read()?,
        };
        Ok(View { id: self.id, read, _file: Arc::clone(self) })
    }

    /// The database, where it may be written to.
    pub(super) fn writable(&self) -> Option<&Database> {
        match &self.db {
            Db::Write(db) => Some(db),
            Db::Read(_) => None,
        }
    }
}

impl View {
    /// The file's name, the snapshot, and what keeps the file open.
    pub(super) fn into_parts(self) -> (String, ReadTransaction, Arc<WeekFile>) {
        (self.id.name(), self.read, self._file)
    }

    /// What the file has of a node.
    pub(super) fn node(&self, node: u32) -> Result<Option<NodeRow>, Error> {
        let table = self.read.open_table(NODES)?;
        table.get(node)?.map(|row| NodeRow::read(row.value())).transpose()
    }

    /// What the file has of all nodes.
    pub(super) fn nodes(&self) -> Result<Vec<(u32, NodeRow)>, Error> {
        self.nodes_from(0, usize::MAX)
    }

    /// The same for at most `most` nodes, from one on.
    pub(super) fn nodes_from(&self, from: u32, most: usize) -> Result<Vec<(u32, NodeRow)>, Error> {
        let table = self.read.open_table(NODES)?;
        let rows = table.range(from..)?.take(most);
        rows.map(|entry| {
            let (node, row) = entry?;
            Ok((node.value(), NodeRow::read(row.value())?))
        })
        .collect()
    }

    /// The blobs of a node that may hold instants in `from_ms..to_ms`: first instant, first seq, entry.
    pub(super) fn blobs(
        &self,
        node: u32,
        row: &NodeRow,
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<(i64, u64, Entry)>, Error> {
        let table = self.read.open_table(BLOBS)?;
        let from = (node, from_ms.saturating_sub(row.span_ms), 0);
        let mut found = Vec::new();
        for entry in table.range(from..=(node, to_ms, u64::MAX))? {
            let (key, value) = entry?;
            let (_, start_ms, first_seq) = key.value();
            let Ok(entry) = Entry::read(value.value()) else {
                // What it stood for cannot be told; a recount finds it missing.
                tracing::warn!(file = %self.id.name(), node, start_ms, "an entry of a blob is damaged");
                continue;
            };
            // `i64::MAX` means no bound: there is no instant beyond.
            if (start_ms < to_ms || to_ms == i64::MAX) && entry.end_ms >= from_ms {
                found.push((start_ms, first_seq, entry));
            }
        }
        Ok(found)
    }

    pub(super) fn bytes(&self) -> Result<Blobs, Error> {
        let (dense, loose) = (self.read.open_table(DENSE)?, self.read.open_table(LOOSE)?);
        Ok(Blobs { dense, loose, buffer: Vec::new() })
    }
}

impl Blobs {
    /// The bytes of a blob.
    pub(super) fn get(&mut self, place: Place) -> Result<&[u8], Error> {
        let missing = || Error::Damaged { what: "a blob's place".to_owned() };
        self.buffer.clear();
        match place {
            Place::Loose { number } => {
                let row = self.loose.get(number)?.ok_or_else(missing)?;
                self.buffer.extend_from_slice(row.value());
            }
            Place::Dense { segment, offset, len } => {
                let (mut segment, mut offset, len) = (segment, offset as usize, len as usize);
                while self.buffer.len() < len {
                    let row = self.dense.get(segment)?.ok_or_else(missing)?;
                    let rest =
                        row.value().get(offset..).filter(|rest| !rest.is_empty()).ok_or_else(missing)?;
                    let take = rest.len().min(len - self.buffer.len());
                    self.buffer.extend_from_slice(&rest[..take]);
                    (segment, offset) = (segment + 1, 0);
                }
            }
        }
        Ok(&self.buffer)
    }
}

impl Sink {
    /// For blobs that are laid down after those of `view`.
    pub(super) fn after(view: &View) -> Result<Self, Error> {
        let last = |table: TableDefinition<u64, &[u8]>| {
            let table = view.read.open_table(table)?;
            let mut rows = table.range::<u64>(..)?;
            Ok::<_, Error>(rows.next_back().transpose()?.map_or(0, |(key, _)| key.value() + 1))
        };
        Ok(Self { first: last(DENSE)?, dense: Vec::new(), loose: Vec::new(), next_loose: last(LOOSE)? })
    }

    /// Takes a blob's bytes and says where they will be.
    pub(super) fn put(&mut self, bytes: Vec<u8>) -> Place {
        if bytes.len() < LOOSE_BELOW {
            let number = self.next_loose;
            self.next_loose += 1;
            self.loose.push((number, bytes));
            return Place::Loose { number };
        }
        let place = Place::Dense {
            segment: self.first + (self.dense.len() / SEGMENT) as u64,
            offset: (self.dense.len() % SEGMENT) as u32,
            len: bytes.len() as u32,
        };
        self.dense.extend_from_slice(&bytes);
        place
    }

    /// Writes them, and removes merged ones.
    pub(super) fn write(&self, write: &redb::WriteTransaction, merged: &[u64]) -> Result<(), Error> {
        let mut dense = write.open_table(DENSE)?;
        for (segment, bytes) in (self.first..).zip(self.dense.chunks(SEGMENT)) {
            dense.insert(segment, bytes)?;
        }
        let mut loose = write.open_table(LOOSE)?;
        for number in merged {
            loose.remove(number)?;
        }
        for (number, bytes) in &self.loose {
            loose.insert(number, &bytes[..])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weeks_are_those_of_iso_8601() {
        const DAY: i64 = 86_400_000;
        let week = |days: i64| {
            let id = FileId::of(days * DAY);
            (id.year, id.week)
        };
        assert_eq!(week(0), (1970, 1));
        assert_eq!(week(-5), (1970, 1));
        // 2021-01-03 was the Sunday of 2020-W53; the next day began 2021-W01.
        assert_eq!((week(18_630), week(18_631)), ((2020, 53), (2021, 1)));
        // 2024-12-30, a Monday, began 2025-W01.
        assert_eq!((week(20_086), week(20_087)), ((2024, 52), (2025, 1)));
        // 2026-11-23
        assert_eq!(week(20_780), (2026, 48));
    }

    #[test]
    fn names_round_trip_and_others_are_ignored() {
        for part in [1, 2, 30] {
            let id = FileId { year: 2026, week: 5, part };
            assert_eq!(FileId::parse(&id.name()), Some(id));
        }
        for name in ["telemetry/inbox.redb", "telemetry/2026-W5.redb", "telemetry/2026-W05.redb.damaged-1"] {
            assert_eq!(FileId::parse(name), None);
        }
    }

    proptest! {
        #[test]
        fn a_week_ends_where_the_next_begins(ms in 0..200_000_000_000_000_i64) {
            let id = FileId::of(ms);
            prop_assert!(ms < id.end_ms() && ms >= id.end_ms() - 7 * 86_400_000);
            prop_assert_eq!(FileId::of(id.end_ms() - 1), id);
            prop_assert!(FileId::of(id.end_ms()) > id);
        }

        #[test]
        fn rows_round_trip(numbers in any::<[i64; 6]>(), loose in any::<u32>(), dense in any::<bool>()) {
            let [a, b, c, d, e, f] = numbers;
            let row = NodeRow {
                cursor: a as u64, telemetry: b as u64, backfill: c as u64,
                start_ms: d, end_ms: e, span_ms: f, loose,
            };
            prop_assert_eq!(NodeRow::read(&row.to_bytes()).unwrap(), row);
            let place = if dense {
                Place::Dense { segment: a as u64, offset: loose, len: loose / 2 }
            } else {
                Place::Loose { number: a as u64 }
            };
            let entry = Entry { end_ms: b, last_seq: c as u64, count: loose, lane: Lane::Backfill, place };
            prop_assert_eq!(Entry::read(&entry.to_bytes()).unwrap(), entry);
        }
    }
}
