//! The consumer's side: one transaction per drained group.
//!
//! Owns the staging of a group. Nothing is seen by readers, and no number is used up, before it committed.

use std::sync::{Arc, MutexGuard};

use fleet_schemas::{Lane, telemetry::Samples};

use super::{
    Booking, Error, MarkKey, Opened, Quarantined, TelemetryStore, counters::Delta, inbox::Staged, rot::Spot,
    row, week::FileId,
};

/// One accepted batch of the telemetry or backfill lane, as received.
#[derive(Debug, Clone, Copy)]
pub struct InboxBatch<'a> {
    /// The number that the state store gave the node.
    pub node: u32,
    /// [`Lane::Telemetry`] or [`Lane::Backfill`] (late data).
    pub lane: Lane,
    /// The hub's clock at receipt, Unix milliseconds.
    pub recv_ms: i64,
    /// Added to the agent's times to correct an unsynced clock, milliseconds; both times can be told later.
    pub shift_ms: i64,
    /// The decoded body.
    pub samples: &'a Samples,
    /// The same as plain CBOR.
    pub body: &'a [u8],
    /// The whole batch as it travelled, where it is at hand: kept instead of `body` when that is much smaller.
    pub payload: Option<&'a [u8]>,
}

/// A group of batches with the marks and the account they move. Committed as one; dropping it aborts.
pub struct InboxWrite<'a> {
    store: &'a TelemetryStore,
    opened: Arc<Opened>,
    next_seq: u64,
    staged: Staged,
    _writer: MutexGuard<'a, ()>,
}

impl<'a> InboxWrite<'a> {
    pub(super) fn new(store: &'a TelemetryStore, opened: Arc<Opened>, writer: MutexGuard<'a, ()>) -> Self {
        let next_seq = super::read_lock(&opened.inbox.memory).next_seq;
        Self { store, opened, next_seq, staged: Staged::default(), _writer: writer }
    }

    /// Adds a batch and counts its samples as stored; gives its number in the inbox, which it has once this
    /// transaction commits.
    ///
    /// # Errors
    /// [`Error::Lane`].
    pub fn append(&mut self, batch: &InboxBatch<'_>) -> Result<u64, Error> {
        if !batch.lane.carries_samples() {
            return Err(Error::Lane(batch.lane));
        }
        let times = batch.samples.times();
        let corrected = |time: Option<&i64>| time.map_or(0, |time| time.saturating_add(batch.shift_ms));
        // Disks are slower than zstd, but a small batch must save a third to be worth its decompression at sealing.
        let most = if batch.body.len() < 1024 { batch.body.len() * 2 / 3 } else { batch.body.len() * 9 / 10 };
        let wire = batch.payload.filter(|payload| payload.len() < most);
        let head = row::Head {
            wire: wire.is_some(),
            lane: batch.lane,
            node: batch.node,
            recv_ms: batch.recv_ms,
            shift_ms: batch.shift_ms,
            start_ms: corrected(times.iter().min()),
            end_ms: corrected(times.iter().max()),
            count: u32::try_from(batch.samples.count()).unwrap_or(u32::MAX),
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        self.staged.append(seq, head, wire.unwrap_or(batch.body));
        Ok(seq)
    }

    /// The mark of a (node, lane, stream), as this transaction leaves it.
    ///
    /// # Errors
    /// [`Error`] when the inbox cannot be read.
    pub fn mark(&self, key: &MarkKey) -> Result<Option<Vec<u8>>, Error> {
        match self.staged.marks.get(key) {
            Some(mark) => Ok(mark.as_deref().map(<[u8]>::to_vec)),
            None => self.store.note(self.opened.inbox.mark(key)),
        }
    }

    /// Sets a mark: bytes of the ledger core, opaque here.
    pub fn set_mark(&mut self, key: MarkKey, mark: &[u8]) {
        self.staged.marks.insert(key, Some(mark.into()));
    }

    /// Forgets a mark (a closed, drained stream that was folded into another row).
    pub fn remove_mark(&mut self, key: MarkKey) {
        self.staged.marks.insert(key, None);
    }

    /// Keeps a payload whose body cannot be read, and counts its records as quarantined. The oldest payloads
    /// go when there are more than [`super::Config::quarantine_bytes`]; they stay counted.
    pub fn quarantine(&mut self, quarantined: &Quarantined) {
        self.staged.quarantine.push(quarantined.write());
        let delta = Delta::quarantined(quarantined.records);
        self.count(quarantined.node, quarantined.lane, &delta);
    }

    /// Adds to the account what the ledger core decides: losses, write-offs, duplicates. (`stored`, `expired`
    /// and `quarantined` count themselves.)
    pub fn book(&mut self, node: u32, lane: Lane, booking: Booking) {
        self.count(node, lane, &booking.into());
    }

    /// Keeps a body raw that was stored and does not read any more, and remembers its place.
    pub(super) fn rot(&mut self, spot: Spot, raw: &Quarantined) {
        self.staged.quarantine.push(raw.write());
        self.staged.rotten.push((spot, raw.lane, raw.records));
        self.count(raw.node, raw.lane, &Delta::rotten(raw.records));
    }

    /// Books all samples of a file as expired: the intent to unlink it.
    pub(super) fn doom(&mut self, id: FileId, counts: &[(u32, Lane, u64)]) {
        self.staged.doomed = Some(id);
        for (node, lane, count) in counts {
            self.count(*node, *lane, &Delta::expired(*count));
        }
    }

    /// Books stored samples that are in no file as lost.
    pub(super) fn miss(&mut self, node: u32, lane: Lane, samples: u64) {
        self.count(node, lane, &Delta::missing(samples));
    }

    fn count(&mut self, node: u32, lane: Lane, delta: &Delta) {
        self.staged.counters.entry((node, lane)).or_default().add(delta);
    }

    /// Makes it durable, then visible. Ack only after this.
    ///
    /// # Errors
    /// [`Error`]: nothing is known to be stored; see [`TelemetryStore::poisoned`].
    pub fn commit(self) -> Result<(), Error> {
        let cap = self.store.config.quarantine_bytes;
        self.store.note(self.opened.inbox.commit(self.staged, cap))
    }
}
