//! The sealer: moves batches from the inbox into week files, in steps of one transaction each.
//!
//! A step is idempotent: the week file's transaction moves the nodes' cursors with their blobs, and a batch at or
//! below its node's cursor is never sealed again. Only then the index forgets the batch, and only a later
//! checkpoint removes its row. All decoding and encoding is done before the write transaction begins.

use std::{collections::BTreeMap, sync::Arc};

use fleet_schemas::{
    Lane,
    batch::{Batch as WireBatch, Envelope},
    cbor::{Packer, Unpacker},
    limits,
    telemetry::Samples,
};

use super::{
    Config, Error, Opened, TelemetryStore,
    blob::{Blob, Merge},
    inbox::Rows,
    latest::Table,
    lock, read_lock,
    rot::{Rotten, Spot},
    row,
    unsealed::Batch,
    week::{BLOBS, Entry, FileId, LATEST, NODES, NodeRow, Place, Sink, WeekFile},
    write_lock,
};
/// Bytes of payload that one step takes: about 20 ms of work.
const STEP_BYTES: u64 = 1024 * 1024;
/// Rows that one checkpoint removes, at most: about 30 ms of work.
const CHECKPOINT_ROWS: u64 = 50_000;
/// A checkpoint runs when it can remove about this many bytes,
const CHECKPOINT_BYTES: u64 = 16 * 1024 * 1024;
/// or after this time, milliseconds.
const CHECKPOINT_MS: u64 = 60_000;

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SealReport {
    /// Batches that were moved from the inbox to a week file.
    pub batches: u64,
    /// Their samples.
    pub samples: u64,
    /// Blobs written, and their bytes.
    pub blobs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Rows removed from the inbox.
    pub truncated: u64,
    /// Small blobs that were merged into larger ones.
    pub merged: u64,
    /// What could not be read any more and was put into quarantine.
    pub rotten: Vec<Rotten>,
    /// Whether another step has work at once.
    pub more: bool,
}

/// What the sealer keeps from step to step.
pub(super) struct Sealer {
    pub packer: Packer,
    pub unpacker: Unpacker,
    checkpointed_ms: i64,
    pub tidy: super::tidy::Progress,
}

impl Sealer {
    pub(super) fn new(now_ms: i64) -> Self {
        Self {
            packer: Packer::new(limits::ZSTD_LEVEL),
            unpacker: Unpacker::default(),
            checkpointed_ms: now_ms,
            tidy: super::tidy::Progress::default(),
        }
    }
}

/// What a step puts into a week file for one node.
struct Sealed {
    node: u32,
    cursor: u64,
    /// Receive time of the last batch.
    recv_ms: i64,
    batches: u64,
    blobs: Vec<(Lane, u64, u64, Blob)>,
}

impl TelemetryStore {
    /// One step of sealing: some nodes' batches, or a checkpoint, or a part of the daily merging. Call it again
    /// while it says `more`, else in a second or so.
    ///
    /// # Errors
    /// [`Error`]; the same step is tried again by the next call.
    pub fn seal(&self, now_ms: i64) -> Result<SealReport, Error> {
        let opened = self.opened()?;
        let mut sealer = lock(&opened.sealer);
        self.note(self.step(&opened, &mut sealer, now_ms))
    }

    fn step(&self, opened: &Arc<Opened>, sealer: &mut Sealer, now_ms: i64) -> Result<SealReport, Error> {
        let due = due(opened, &self.config, now_ms);
        let mut report = SealReport { rotten: self.book_found(opened)?, ..SealReport::default() };
        if !due.is_empty() {
            self.seal_nodes(opened, sealer, &due, now_ms, &mut report)?;
            report.more = true;
        }
        let (wanted, removable, dirty) = {
            let memory = read_lock(&opened.inbox.memory);
            let wanted = memory.wanted_from(&self.config, now_ms);
            (wanted, memory.window.bytes_below(wanted), memory.is_dirty())
        };
        let late = now_ms.abs_diff(sealer.checkpointed_ms) >= CHECKPOINT_MS;
        if removable >= CHECKPOINT_BYTES || (late && (removable > 0 || dirty)) {
            let _writer = self.turn();
            report.truncated = opened.inbox.checkpoint(CHECKPOINT_ROWS, wanted)?;
            report.more |= report.truncated == CHECKPOINT_ROWS;
            sealer.checkpointed_ms = now_ms;
        }
        if due.is_empty() {
            super::tidy::step(&*self.disk, &self.config, opened, sealer, now_ms, &mut report)?;
        }
        Ok(report)
    }

    fn seal_nodes(
        &self,
        opened: &Arc<Opened>,
        sealer: &mut Sealer,
        due: &[(u32, Vec<Batch>)],
        now_ms: i64,
        report: &mut SealReport,
    ) -> Result<(), Error> {
        let mut rows = opened.inbox.rows()?;
        let mut week = None;
        let mut sealed = Vec::new();
        for (node, batches) in due {
            let merged = merge_node(opened, &mut rows, (*node, batches), &mut week, sealer, now_ms)?;
            sealed.extend(merged);
        }
        report.rotten.extend(self.book_found(opened)?);
        let Some((_, recv_ms)) = week else { return Ok(()) };
        let file = opened.weeks.for_writing(&*self.disk, &self.config, recv_ms)?;
        write(opened, &file, sealer, sealed, now_ms, report)
    }
}

/// Whose batches are to be sealed now, those of the longest-waiting node first, up to a step's worth.
fn due(opened: &Opened, config: &Config, now_ms: i64) -> Vec<(u32, Vec<Batch>)> {
    let memory = read_lock(&opened.inbox.memory);
    let age_ms = u64::try_from(config.seal_age.as_millis()).unwrap_or(u64::MAX);
    let pressed = memory.pressing_bytes() > config.inbox_bytes;
    let front = memory.unsealed_from();
    let front_half = front + (memory.next_seq - front) / 2;
    let mut nodes: Vec<_> = (memory.unsealed.nodes.iter())
        .filter_map(|(number, node)| {
            let first = node.batches.first()?.seq;
            // A clock that jumped back must not stop sealing: far away in either direction is old.
            let due = node.bytes >= config.seal_bytes
                || now_ms.abs_diff(node.since_ms) >= age_ms
                || (pressed && first <= front_half);
            due.then_some((first, *number, node))
        })
        .collect();
    nodes.sort_unstable_by_key(|(first, number, _)| (*first, *number));
    let mut bytes = 0;
    let mut due = Vec::new();
    for (_, number, node) in nodes {
        let mut taken = Vec::new();
        for batch in &node.batches {
            if bytes >= STEP_BYTES {
                break;
            }
            bytes += u64::from(batch.bytes);
            taken.push(*batch);
        }
        if taken.is_empty() {
            break;
        }
        due.push((number, taken));
    }
    due
}

/// Decodes and merges the first of a node's batches that are of one receive week. The first node decides for
/// all: a step writes to one file, and a node's batches are sealed in the order of the inbox.
fn merge_node(
    opened: &Opened,
    rows: &mut Rows,
    (node, batches): (u32, &[Batch]),
    week: &mut Option<(FileId, i64)>,
    sealer: &mut Sealer,
    now_ms: i64,
) -> Result<Option<Sealed>, Error> {
    let mut sealed = Sealed { node, cursor: 0, recv_ms: 0, batches: 0, blobs: Vec::new() };
    let mut merges: BTreeMap<Lane, (Merge, u64, u64)> = BTreeMap::new();
    for batch in batches {
        let Some((head, samples)) = opened.batch(node, batch, rows, &mut sealer.unpacker)? else {
            if !opened.is_known_rotten(Spot::inbox(node, batch.seq)) {
                break;
            }
            // Passed over: it is booked before the cursor moves.
            let (_, recv_ms) = *week.get_or_insert((FileId::of(now_ms), now_ms));
            (sealed.cursor, sealed.recv_ms) = (batch.seq, recv_ms);
            continue;
        };
        let id = FileId::of(head.recv_ms);
        if week.get_or_insert((id, head.recv_ms)).0 != id {
            break;
        }
        let (merge, first, last) = merges.entry(head.lane).or_insert((Merge::default(), batch.seq, 0));
        if !merge.is_empty() && !merge.fits(&samples) {
            let blob = merge.finish(head.lane, &mut sealer.packer);
            sealed.blobs.push((head.lane, *first, *last, blob));
            *first = batch.seq;
        }
        merge.add(&samples, head.shift_ms);
        *last = batch.seq;
        (sealed.cursor, sealed.recv_ms) = (batch.seq, head.recv_ms);
        sealed.batches += 1;
    }
    for (lane, (mut merge, first, last)) in merges {
        if !merge.is_empty() {
            sealed.blobs.push((lane, first, last, merge.finish(lane, &mut sealer.packer)));
        }
    }
    Ok((sealed.cursor > 0).then_some(sealed))
}

/// The samples of a batch row.
pub(super) fn body(head: &row::Head, payload: &[u8], unpacker: &mut Unpacker) -> Result<Samples, Error> {
    if !head.wire {
        return Ok(Samples::decode(payload)?);
    }
    match WireBatch::decode(unpacker.unpack(payload)?)? {
        Envelope::Known(batch) => Ok(Samples::decode(&batch.body)?),
        Envelope::Unknown(_) => Err(Error::Damaged { what: "a batch that was read before".to_owned() }),
    }
}

fn write(
    opened: &Opened,
    file: &Arc<WeekFile>,
    sealer: &mut Sealer,
    sealed: Vec<Sealed>,
    now_ms: i64,
    report: &mut SealReport,
) -> Result<(), Error> {
    let view = file.view()?;
    let mut sink = Sink::after(&view)?;
    let mut entries: Vec<((u32, i64, u64), Entry)> = Vec::new();
    let mut nodes = Vec::new();
    let mut tables = Vec::new();
    let mut cursors = Vec::new();
    for Sealed { node, cursor, recv_ms, batches, blobs } in sealed {
        let mut row = view.node(node)?.unwrap_or(NodeRow::NONE);
        row.cursor = cursor;
        report.batches += batches;
        let mut cached = lock(&opened.latest).nodes.get(&node).cloned();
        if cached.is_none() {
            let table = Table::load(node, opened, &opened.weeks.views()?, &mut sealer.unpacker)?;
            cached = Some(super::latest::Cached { table, ..Default::default() });
        }
        let mut cached = cached.unwrap_or_default();
        for (lane, first_seq, last_seq, mut blob) in blobs {
            cached.table.take_in(std::mem::take(&mut blob.latest));
            cached.blobs += 1;
            row.add(lane, &blob);
            report.blobs += 1;
            report.bytes += blob.bytes.len() as u64;
            report.samples += blob.count;
            let place = sink.put(blob.bytes);
            row.loose += u32::from(matches!(place, Place::Loose { .. }));
            let entry = Entry { end_ms: blob.end_ms, last_seq, count: blob.count as u32, lane, place };
            entries.push(((node, blob.start_ms, first_seq), entry));
        }
        let mut latest = None;
        if cached.is_due(file.id.key(), now_ms) {
            latest = Some(cached.table.to_row(cursor, &mut sealer.packer));
            (cached.file, cached.written_ms, cached.blobs) = (Some(file.id.key()), now_ms, 0);
        }
        nodes.push((node, row, latest));
        tables.push((node, cached));
        cursors.push((node, cursor, recv_ms));
    }
    nodes.sort_unstable_by_key(|(node, ..)| *node);
    entries.sort_unstable_by_key(|(key, _)| *key);

    let write = file.writable().ok_or(Error::Closed)?.begin_write()?;
    {
        sink.write(&write, &[])?;
        let mut table = write.open_table(BLOBS)?;
        for (key, entry) in &entries {
            table.insert(key, &entry.to_bytes()[..])?;
        }
        let mut table = write.open_table(NODES)?;
        let mut latest = write.open_table(LATEST)?;
        for (node, row, newest) in &nodes {
            table.insert(node, &row.to_bytes()[..])?;
            if let Some(newest) = newest {
                latest.insert(node, &newest[..])?;
            }
        }
    }
    write.commit()?;

    // Readers of newest values look at the unsealed batches first, then here: never the other way round.
    let mut cache = lock(&opened.latest);
    tables.into_iter().for_each(|(node, cached)| cache.put(node, cached));
    drop(cache);
    let mut memory = write_lock(&opened.inbox.memory);
    for (node, cursor, recv_ms) in cursors {
        memory.unsealed.sealed(node, cursor, recv_ms);
    }
    Ok(())
}
