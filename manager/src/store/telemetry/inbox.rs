//! `telemetry/inbox.redb`: batches as received, and with them the lane marks and the account.
//!
//! Owns its tables and what of it is held in memory. Marks and counters move in notes, rows of the same
//! log, so that a group commit writes one run of pages however many nodes it serves; a checkpoint folds notes
//! into their tables and removes sealed rows from the front. Must not know week files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use fleet_schemas::{Lane, StreamId};
use redb::{
    AccessGuard, Database, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, TableDefinition,
};

use super::{
    Config, Error, MarkKey, Quarantined,
    counters::{self, Delta},
    rot::{Rot, Spot},
    row::{self, HEAD_BYTES, Note, Row},
    unsealed::{Batch, Unsealed},
    week::FileId,
    window::Window,
};
use crate::{
    core::ledger::Counters,
    store::disk::{
        self, Disk, META,
        migrate::{self, Migration},
    },
};

pub(super) const NAME: &str = "telemetry/inbox.redb";
const FORMAT: u32 = 1;
/// The ways from older formats; there is none yet.
const MIGRATIONS: &[Migration] = &[];

/// First seq → chunk of batches and notes, see `row`. Appended, removed from the front.
const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
/// (node, lane, stream) → what the ledger core wrote. A few per node; as of the checkpoint.
const MARKS: TableDefinition<(u32, u8, [u8; 16]), &[u8]> = TableDefinition::new("marks");
/// (node, lane) → [`Counters`]. Two per node; as of the checkpoint.
const COUNTERS: TableDefinition<(u32, u8), &[u8]> = TableDefinition::new("counters");
/// seq → `node u32, lane u8, recv i64, records u64, reason length u8, reason, payload`. Bounded by
/// [`Config::quarantine_bytes`], oldest removed; they stay counted.
const QUARANTINE: TableDefinition<u64, &[u8]> = TableDefinition::new("quarantine");
/// Names of files whose samples are booked as expired and that are about to be unlinked.
pub(super) const DOOMED: TableDefinition<&str, ()> = TableDefinition::new("doomed");

/// (file or 0, node, earliest instant, seq) → (lane, samples): bodies that do not read any more and are booked as
/// quarantined, see `rot`. Removed with the row or the file.
const ROTTEN: TableDefinition<(u64, u32, i64, u64), (u8, u64)> = TableDefinition::new("rotten");

/// In [`META`]: the last seq whose marks and counters are in their tables; u64, little-endian.
const CHECKPOINT: &str = "checkpoint";

/// Most bytes of a chunk of several rows: it fills eight pages, where rows of half a page would waste the rest.
const CHUNK_BYTES: usize = 8 * 4096 - 32;

/// How the inbox is opened, whichever store's it is.
pub(super) fn how(cache_bytes: usize) -> disk::Open {
    disk::Open { format: FORMAT, cache_bytes, store_id: None, migrations: MIGRATIONS }
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(ROWS)?;
    copier.table(MARKS)?;
    copier.table(COUNTERS)?;
    copier.table(QUARANTINE)?;
    copier.table(DOOMED)?;
    copier.table(ROTTEN)
}

#[derive(Debug)]
pub(super) struct Inbox {
    pub db: Database,
    // Migrated, and not written to since.
    untouched: AtomicBool,
    /// What readers see; moves only after a commit.
    pub memory: RwLock<Memory>,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub unsealed: Unsealed,
    pub counters: HashMap<(u32, Lane), Counters>,
    // What the table does not have yet. In order, so that the same input makes the same file.
    marks: BTreeMap<MarkKey, Option<Box<[u8]>>>,
    dirty_counters: BTreeSet<(u32, Lane)>,
    /// Bytes of all rows that are in the file, sealed ones too.
    pub row_bytes: u64,
    /// Where those bytes are.
    pub window: Window,
    /// Lowest row in the file; `next_seq` when there is none.
    pub front: u64,
    pub next_seq: u64,
    quarantine_bytes: u64,
    /// Bodies that are booked as quarantined.
    pub rotten: HashMap<Spot, (Lane, u64)>,
    /// Rows that could not be read when the file was opened, not booked yet.
    pub unreadable: Vec<Rot>,
}

impl Memory {
    pub(super) fn mark(&self, key: &MarkKey) -> Option<&Option<Box<[u8]>>> {
        self.marks.get(key)
    }

    /// The first row that is wanted: not sealed yet, or kept for the feed.
    pub(super) fn wanted_from(&self, config: &Config, now_ms: i64) -> u64 {
        let age_ms = i64::try_from(config.feed_age.as_millis()).unwrap_or(i64::MAX);
        let fed = self.window.newest(config.feed_bytes, now_ms.saturating_sub(age_ms));
        self.unsealed_from().min(fed.unwrap_or(self.next_seq))
    }

    /// The first row that is not sealed.
    pub(super) fn unsealed_from(&self) -> u64 {
        self.unsealed.first().unwrap_or(self.next_seq)
    }

    /// About how many bytes there are from the first unsealed row on.
    pub(super) fn pressing_bytes(&self) -> u64 {
        self.row_bytes.saturating_sub(self.window.bytes_below(self.unsealed_from()))
    }

    /// Whether a checkpoint would save anything.
    pub(super) fn is_dirty(&self) -> bool {
        !(self.marks.is_empty() && self.dirty_counters.is_empty())
    }

    /// Samples of a week file that are booked as quarantined.
    pub(super) fn rotten_of(&self, id: FileId, node: u32, lane: Lane) -> u64 {
        let of = |spot: &Spot| (spot.file, spot.node) == (id.key(), node);
        let counts = self.rotten.iter().filter(|(spot, (rotten, _))| of(spot) && *rotten == lane);
        counts.map(|(_, (_, count))| count).sum()
    }

    pub(super) fn apply(&mut self, note: Note) {
        for (key, mark) in note.marks {
            self.marks.insert(key, mark);
        }
        for (key, delta) in note.counters {
            self.count(key, &delta);
        }
    }

    pub(super) fn count(&mut self, key: (u32, Lane), delta: &Delta) {
        self.dirty_counters.insert(key);
        counters::apply(self.counters.entry(key).or_default(), delta);
    }
}

/// Rows of the inbox at one moment.
pub(super) struct Rows {
    // The chunk that was read last: its first seq, where its rows end, its bytes. A guard does not keep its snapshot
    // alive, so it stands before the table, to be dropped before it: a writer frees the page as soon as that is gone.
    current: Option<(u64, Vec<usize>, Chunk)>,
    table: ReadOnlyTable<u64, &'static [u8]>,
}

type Chunk = AccessGuard<'static, &'static [u8]>;

/// What a write transaction adds, staged until it commits.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Where the rows end in the arena.
    ends: Vec<usize>,
    arena: Vec<u8>,
    pub heads: Vec<(row::Head, Batch)>,
    pub marks: HashMap<MarkKey, Option<Box<[u8]>>>,
    pub counters: HashMap<(u32, Lane), Delta>,
    pub quarantine: Vec<Vec<u8>>,
    pub rotten: Vec<(Spot, Lane, u64)>,
    pub doomed: Option<FileId>,
}

impl Inbox {
    /// Opens the file and rebuilds what is in memory. `sealed` says up to which seq a node's batches are in
    /// week files; `floor` is the highest seq that any of them knows, below which no number is given again.
    pub(super) fn open(
        disk: &dyn Disk,
        config: &Config,
        sealed: &HashMap<u32, u64>,
        floor: u64,
    ) -> Result<Self, Error> {
        let how = disk::Open { store_id: config.store_id, ..how(config.inbox_cache_bytes) };
        let db = disk::open(disk, NAME, how)?;
        let untouched = AtomicBool::new(migrate::is_untouched(&db).map_err(|e| Error::Redb(Box::new(e)))?);
        create_tables(&db)?;
        let mut memory = Memory::default();
        let read = db.begin_read()?;
        let checkpoint = read.open_table(META)?.get(CHECKPOINT)?;
        let checkpoint = checkpoint.map_or(Ok(0), |bytes| number(bytes.value(), "the checkpoint"))?;
        for entry in read.open_table(COUNTERS)?.iter()? {
            let (key, value) = entry?;
            let (node, lane) = key.value();
            let damaged = || Error::Damaged { what: format!("counters of node {node}") };
            let lane = row::lane_of(lane).ok_or_else(damaged)?;
            let counters = counters::from_bytes(value.value()).ok_or_else(damaged)?;
            memory.counters.insert((node, lane), counters);
        }
        for entry in read.open_table(QUARANTINE)?.iter()? {
            memory.quarantine_bytes += entry?.1.value().len() as u64;
        }
        for entry in read.open_table(ROTTEN)?.iter()? {
            let (key, value) = entry?;
            let (lane, count) = value.value();
            let lane = row::lane_of(lane).unwrap_or(Lane::Telemetry);
            memory.rotten.insert(Spot::of_row(key.value()), (lane, count));
        }
        memory.next_seq = checkpoint.max(floor) + 1;
        memory.front = memory.next_seq;
        for entry in read.open_table(ROWS)?.iter()? {
            let (seq, value) = entry?;
            memory.row_bytes += value.value().len() as u64;
            memory.front = memory.front.min(seq.value());
            memory.load_chunk(seq.value(), value.value(), checkpoint, sealed);
        }
        drop(read);
        Ok(Self { db, untouched, memory: RwLock::new(memory) })
    }

    /// When the inbox is new but there are week files (it was damaged and set aside): their samples are stored.
    pub(super) fn adopt(&self, stored: &HashMap<(u32, Lane), u64>) -> Result<(), Error> {
        let fresh = super::read_lock(&self.memory).counters.is_empty();
        if !fresh || stored.is_empty() {
            return Ok(());
        }
        let counters = stored.iter().map(|(key, count)| (*key, Delta::stored(*count))).collect();
        self.commit(Staged { counters, ..Staged::default() }, 0)
    }

    /// Commits what was staged, with its note, then shows it to readers.
    pub(super) fn commit(&self, staged: Staged, quarantine_cap: u64) -> Result<(), Error> {
        let (quarantined, next_seq) = {
            let memory = super::read_lock(&self.memory);
            (memory.quarantine_bytes, memory.next_seq)
        };
        let Staged { mut ends, mut arena, .. } = staged;
        // In order, so that the same input makes the same file.
        let note = Note {
            marks: staged.marks.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect(),
            counters: staged.counters.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect(),
        };
        for part in note.parts() {
            let start = row::begin(&mut arena);
            part.write(&mut arena);
            row::end(&mut arena, start);
            ends.push(arena.len());
        }
        let chunks = chunks(&ends);
        let mut kept = quarantined;
        let write = self.begin_write()?;
        {
            let mut rows = write.open_table(ROWS)?;
            for (first, chunk) in &chunks {
                rows.insert(next_seq + first, &arena[chunk.clone()])?;
            }
        }
        if !staged.quarantine.is_empty() {
            kept = quarantine(&write, &staged.quarantine, quarantined, quarantine_cap)?;
        }
        if !staged.rotten.is_empty() {
            let mut table = write.open_table(ROTTEN)?;
            for (spot, lane, count) in &staged.rotten {
                table.insert(spot.row(), (row::lane_code(*lane), *count))?;
            }
        }
        if let Some(id) = staged.doomed {
            write.open_table(DOOMED)?.insert(id.name().as_str(), ())?;
            write.open_table(ROTTEN)?.retain(|key, _| key.0 != id.key())?;
        }
        write.commit()?;

        let mut memory = super::write_lock(&self.memory);
        memory.next_seq = next_seq + ends.len() as u64;
        memory.quarantine_bytes = kept;
        memory.row_bytes += arena.len() as u64;
        let recv_ms = staged.heads.last().map(|(head, _)| head.recv_ms);
        for (first, chunk) in chunks {
            memory.window.push(next_seq + first, chunk.len() as u64, recv_ms);
        }
        for (head, batch) in &staged.heads {
            memory.count((head.node, head.lane), &Delta::stored(head.count.into()));
            memory.unsealed.push(head, *batch);
        }
        memory.apply(note);
        memory.rotten.extend(staged.rotten.into_iter().map(|(spot, lane, count)| (spot, (lane, count))));
        if let Some(id) = staged.doomed {
            memory.rotten.retain(|spot, _| spot.file != id.key());
        }
        Ok(())
    }

    /// Forgets what rotted in files that are there no more.
    pub(super) fn forget_rotten(&self, files: &HashSet<u64>) -> Result<(), Error> {
        let is_gone = |file: u64| file != 0 && !files.contains(&file);
        if !super::read_lock(&self.memory).rotten.keys().any(|spot| is_gone(spot.file)) {
            return Ok(());
        }
        let write = self.begin_write()?;
        write.open_table(ROTTEN)?.retain(|key, _| !is_gone(key.0))?;
        write.commit()?;
        super::write_lock(&self.memory).rotten.retain(|spot, _| !is_gone(spot.file));
        Ok(())
    }

    /// Folds notes into their tables and removes sealed rows below `wanted`, at most `most` rows.
    /// Must not run beside [`Inbox::commit`]. Gives how many rows it removed.
    pub(super) fn checkpoint(&self, most: u64, wanted: u64) -> Result<u64, Error> {
        let rotten;
        let (marks, counters, next_seq, before, to) = {
            let memory = super::read_lock(&self.memory);
            let marks: Vec<_> = memory.marks.iter().map(|(key, mark)| (*key, mark.clone())).collect();
            let counters: Vec<_> = (memory.dirty_counters.iter())
                .map(|key| (*key, memory.counters.get(key).copied().unwrap_or_default()))
                .collect();
            let to = memory.unsealed_from().min(wanted);
            let front = memory.front;
            rotten = memory.rotten.keys().any(|spot| spot.file == 0);
            (marks, counters, memory.next_seq, front, to.min(front.saturating_add(most)))
        };
        let mut removed_bytes = 0;
        let kept;
        let write = self.begin_write()?;
        {
            save_marks(&write, marks)?;
            save_counters(&write, counters)?;
            write.open_table(META)?.insert(CHECKPOINT, &(next_seq - 1).to_le_bytes()[..])?;
            let mut rows = write.open_table(ROWS)?;
            // The chunk that has row `to` stays as a whole.
            kept = if to == next_seq {
                to
            } else {
                rows.range(..=to)?.next_back().transpose()?.map_or(before, |(key, _)| key.value())
            };
            rows.retain_in(before..kept.max(before), |_, chunk| {
                removed_bytes += chunk.len() as u64;
                false
            })?;
            if rotten {
                write.open_table(ROTTEN)?.retain(|key, _| key.0 != 0 || key.3 >= kept)?;
            }
        }
        write.commit()?;

        let mut memory = super::write_lock(&self.memory);
        // They are in the table now, and there are some for each start of an agent in 30 days.
        memory.marks.clear();
        memory.dirty_counters.clear();
        memory.row_bytes = memory.row_bytes.saturating_sub(removed_bytes);
        memory.front = kept.max(before);
        let front = memory.front;
        memory.window.removed(front);
        memory.rotten.retain(|spot, _| spot.file != 0 || spot.seq >= kept);
        Ok(kept.saturating_sub(before))
    }

    fn begin_write(&self) -> Result<redb::WriteTransaction, Error> {
        let write = self.db.begin_write()?;
        if self.untouched.swap(false, Ordering::Relaxed) {
            migrate::touch(&write).map_err(|error| Error::Redb(Box::new(error)))?;
        }
        Ok(write)
    }

    /// A mark as committed.
    pub(super) fn mark(&self, key: &MarkKey) -> Result<Option<Vec<u8>>, Error> {
        if let Some(mark) = super::read_lock(&self.memory).mark(key) {
            return Ok(mark.as_deref().map(<[u8]>::to_vec));
        }
        let table = self.db.begin_read()?.open_table(MARKS)?;
        Ok(table.get(mark_row(key))?.map(|mark| mark.value().to_vec()))
    }

    /// All marks as committed, in the order of their keys.
    pub(super) fn marks(&self) -> Result<Vec<(MarkKey, Vec<u8>)>, Error> {
        let memory = super::read_lock(&self.memory);
        let mut marks = std::collections::BTreeMap::new();
        for entry in self.db.begin_read()?.open_table(MARKS)?.iter()? {
            let (key, value) = entry?;
            let (node, lane, stream) = key.value();
            let lane = row::lane_of(lane)
                .ok_or_else(|| Error::Damaged { what: format!("a mark of node {node}") })?;
            marks.insert(MarkKey { node, lane, stream: StreamId(stream) }, value.value().to_vec());
        }
        for (key, mark) in &memory.marks {
            match mark {
                Some(mark) => marks.insert(*key, mark.to_vec()),
                None => marks.remove(key),
            };
        }
        Ok(marks.into_iter().collect())
    }

    /// The newest quarantined payloads, newest first.
    pub(super) fn quarantined(&self, most: usize) -> Result<Vec<Quarantined>, Error> {
        let table = self.db.begin_read()?.open_table(QUARANTINE)?;
        let rows = table.iter()?.rev().take(most);
        rows.map(|entry| {
            let (seq, value) = entry?;
            let damaged = || Error::Damaged { what: format!("quarantine row {}", seq.value()) };
            Quarantined::read(value.value()).ok_or_else(damaged)
        })
        .collect()
    }

    /// Files that were booked as expired but perhaps not unlinked.
    pub(super) fn doomed(&self) -> Result<Vec<String>, Error> {
        let table = self.db.begin_read()?.open_table(DOOMED)?;
        table.iter()?.map(|entry| Ok(entry?.0.value().to_owned())).collect()
    }

    /// Forgets a doomed file: it is unlinked.
    pub(super) fn unlinked(&self, name: &str) -> Result<(), Error> {
        let write = self.begin_write()?;
        write.open_table(DOOMED)?.remove(name)?;
        Ok(write.commit()?)
    }

    /// A snapshot to read rows from.
    pub(super) fn rows(&self) -> Result<Rows, Error> {
        Ok(Rows { table: self.db.begin_read()?.open_table(ROWS)?, current: None })
    }
}

impl Memory {
    fn load_chunk(&mut self, first: u64, chunk: &[u8], checkpoint: u64, sealed: &HashMap<u32, u64>) {
        let (mut seq, mut bytes, mut recv_ms) = (first, 0, None);
        for row in row::each(chunk) {
            recv_ms = self.load(seq, row, checkpoint, sealed).or(recv_ms);
            (seq, bytes) = (seq + 1, bytes + row::LENGTH + row.len());
        }
        self.window.push(first, chunk.len() as u64, recv_ms);
        let rest = &chunk[bytes..];
        if !rest.is_empty() {
            // As many rows as the rest can have had: their numbers are not given again.
            self.unreadable(seq, rest, checkpoint);
            self.next_seq = self.next_seq.max(seq + (rest.len() / row::LENGTH) as u64 + 1);
        }
    }

    /// Takes a row in; gives when it was received, if it says that.
    fn load(&mut self, seq: u64, bytes: &[u8], checkpoint: u64, sealed: &HashMap<u32, u64>) -> Option<i64> {
        self.next_seq = self.next_seq.max(seq + 1);
        let booked = self.rotten.keys().any(|spot| spot.file == 0 && spot.seq == seq);
        match row::read(seq, bytes) {
            Err(_) => self.unreadable(seq, bytes, checkpoint),
            Ok(Row::Batch(..)) if booked => self.unreadable(seq, bytes, checkpoint),
            Ok(Row::Note(note)) if seq > checkpoint => self.apply(note),
            Ok(Row::Note(_)) => {}
            Ok(Row::Batch(head, payload)) => {
                if seq > checkpoint {
                    self.count((head.node, head.lane), &Delta::stored(head.count.into()));
                }
                if sealed.get(&head.node).is_none_or(|cursor| seq > *cursor) {
                    self.unsealed.push(&head, Batch::new(seq, &head, payload.len()));
                }
                return Some(head.recv_ms);
            }
        }
        None
    }

    /// A row that does not read: it is booked already, or it is to be booked with what is known of it, which is nothing.
    fn unreadable(&mut self, seq: u64, bytes: &[u8], checkpoint: u64) {
        let booked = self.rotten.iter().find(|(spot, _)| spot.file == 0 && spot.seq == seq);
        match booked.map(|(spot, (lane, count))| ((spot.node, *lane), *count)) {
            // The note that moved its records on is read later.
            Some((account, count)) if seq > checkpoint => self.count(account, &Delta::stored(count)),
            Some(_) => {}
            None => self.unreadable.push(Rot {
                spot: Spot::inbox(0, seq),
                lane: Lane::Telemetry,
                count: 0,
                reason: format!("inbox row {seq} is damaged, its node cannot be told"),
                bytes: bytes.to_vec(),
            }),
        }
    }
}

impl Staged {
    /// Takes a batch in; `seq` is what it will have.
    pub(super) fn append(&mut self, seq: u64, head: row::Head, payload: &[u8]) {
        self.arena.reserve(HEAD_BYTES + payload.len() + 4);
        let start = row::begin(&mut self.arena);
        head.write(&mut self.arena);
        self.arena.extend_from_slice(payload);
        row::end(&mut self.arena, start);
        self.ends.push(self.arena.len());
        self.heads.push((head, Batch::new(seq, &head, payload.len())));
    }
}

impl Rows {
    /// The bytes of a row; of one that begins where its chunk cannot be cut into rows any more, all
    /// that are left. Quickest in ascending order: neighbours are in one chunk.
    pub(super) fn raw(&mut self, seq: u64) -> Result<&[u8], Error> {
        let missing = || Error::Damaged { what: format!("inbox row {seq}") };
        if self
            .current
            .as_ref()
            .is_none_or(|(first, ends, _)| !(*first..first + ends.len() as u64).contains(&seq))
        {
            let (first, chunk) = self.table.range(..=seq)?.next_back().transpose()?.ok_or_else(missing)?;
            let mut end = 0;
            let ends = row::each(chunk.value()).map(|row| {
                end += row::LENGTH + row.len();
                end
            });
            let ends = ends.collect();
            self.current = Some((first.value(), ends, chunk));
        }
        let (first, ends, chunk) = self.current.as_ref().ok_or_else(missing)?;
        let at = (seq - first) as usize;
        let start = match at.checked_sub(1) {
            Some(before) => *ends.get(before).ok_or_else(missing)?,
            None => 0,
        };
        let chunk = chunk.value();
        let row = chunk.get(start + row::LENGTH..ends.get(at).copied().unwrap_or(chunk.len()));
        row.ok_or_else(missing)
    }
}

impl Rows {
    /// Where the first chunk begins of which all rows are after `seq`.
    pub(super) fn chunk_after(&self, seq: u64) -> Result<u64, Error> {
        let next = self.table.range(seq.saturating_add(1)..)?.next().transpose()?;
        Ok(next.map_or(u64::MAX, |(key, _)| key.value()))
    }

    /// Shows the rows after `seq`, in order, until `show` says that it is enough; says whether all were shown.
    pub(super) fn each_after(
        &self,
        seq: u64,
        mut show: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<bool, Error> {
        // Rows after it may be in the chunk that it is in itself.
        let first = self.table.range(..=seq)?.next_back().transpose()?.map_or(0, |(key, _)| key.value());
        for entry in self.table.range(first..)? {
            let (key, chunk) = entry?;
            for (at, row) in (key.value()..).zip(row::each(chunk.value())) {
                if at > seq && !show(at, row) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Groups rows, by where they end, into chunks of at most [`CHUNK_BYTES`] (a larger row is one by itself): the
/// number of the first row, and the bytes.
fn chunks(ends: &[usize]) -> Vec<(u64, std::ops::Range<usize>)> {
    let mut chunks: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
    let mut start = 0;
    for (row, end) in ends.iter().enumerate() {
        match chunks.last_mut() {
            Some((_, chunk)) if end - chunk.start <= CHUNK_BYTES => chunk.end = *end,
            Some(_) | None => chunks.push((row as u64, start..*end)),
        }
        start = *end;
    }
    chunks
}

fn create_tables(db: &Database) -> Result<(), Error> {
    let write = db.begin_write()?;
    write.open_table(ROWS)?;
    write.open_table(MARKS)?;
    write.open_table(COUNTERS)?;
    write.open_table(QUARANTINE)?;
    write.open_table(DOOMED)?;
    write.open_table(ROTTEN)?;
    Ok(write.commit()?)
}

fn save_marks(
    write: &redb::WriteTransaction,
    mut marks: Vec<(MarkKey, Option<Box<[u8]>>)>,
) -> Result<(), Error> {
    marks.sort_unstable_by_key(|(key, _)| *key);
    let mut table = write.open_table(MARKS)?;
    for (key, mark) in marks {
        match mark {
            Some(mark) => table.insert(mark_row(&key), &mark[..])?,
            None => table.remove(mark_row(&key))?,
        };
    }
    Ok(())
}

fn save_counters(
    write: &redb::WriteTransaction,
    mut counters: Vec<((u32, Lane), Counters)>,
) -> Result<(), Error> {
    counters.sort_unstable_by_key(|(key, _)| *key);
    let mut table = write.open_table(COUNTERS)?;
    for ((node, lane), counters) in counters {
        table.insert((node, row::lane_code(lane)), &counters::to_bytes(counters)[..])?;
    }
    Ok(())
}

/// Adds rows and removes the oldest above the cap; gives the bytes that stay.
fn quarantine(write: &redb::WriteTransaction, rows: &[Vec<u8>], before: u64, cap: u64) -> Result<u64, Error> {
    let mut table = write.open_table(QUARANTINE)?;
    let mut bytes = before;
    let next = table.last()?.map_or(1, |(seq, _)| seq.value() + 1);
    for (seq, row) in (next..).zip(rows) {
        table.insert(seq, &row[..])?;
        bytes += row.len() as u64;
    }
    while bytes > cap {
        let Some((_, row)) = table.pop_first()? else { break };
        bytes = bytes.saturating_sub(row.value().len() as u64);
    }
    Ok(bytes)
}

fn mark_row(key: &MarkKey) -> (u32, u8, [u8; 16]) {
    (key.node, row::lane_code(key.lane), key.stream.0)
}

fn number(bytes: &[u8], what: &str) -> Result<u64, Error> {
    let number = bytes.try_into().map(u64::from_le_bytes);
    number.map_err(|_| Error::Damaged { what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_packed_whole_into_chunks_that_fill_their_pages() {
        assert_eq!(chunks(&[]), []);
        let ends: Vec<usize> = (1..=40).map(|row| row * 2_000).collect();
        assert_eq!(chunks(&ends), [(0, 0..32_000), (16, 32_000..64_000), (32, 64_000..80_000)]);
        let large = [10, 40_010, 40_020];
        assert_eq!(chunks(&large), [(0, 0..10), (1, 10..40_010), (2, 40_010..40_020)]);
    }

    #[test]
    fn a_large_note_is_written_as_several_that_say_the_same() {
        let key = |n: u32| MarkKey { node: n, lane: Lane::Telemetry, stream: StreamId([1; 16]) };
        let note = Note {
            marks: (0..100).map(|n| (key(n), Some(Box::from([7; 300])))).collect(),
            counters: (0..200).map(|n| ((n, Lane::Backfill), Delta::stored(1))).collect(),
        };
        let parts = note.parts();
        assert!(parts.len() > 5);
        let mut whole = Note::default();
        for part in parts {
            let mut bytes = Vec::new();
            part.write(&mut bytes);
            assert!(bytes.len() < 9_000, "{}", bytes.len());
            whole.marks.extend(part.marks);
            whole.counters.extend(part.counters);
        }
        assert_eq!(whole, note);
        assert_eq!(Note::default().parts(), []);
    }
}
