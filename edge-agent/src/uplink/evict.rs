//! Making room: acked batches go first; then the oldest that were never sent, declared by a tombstone.

use std::time::Duration;

use fleet_schemas::{
    Lane, VERSION,
    batch::{Batch, Clock, Lost},
    cbor, limits,
};

use super::{Error, Uplink};
use crate::{
    core::{
        Now,
        lanes::{Stream, StreamNo},
    },
    store::{outbox::Write, rows::Held},
};

/// How often acked batches are looked at for their age.
const SWEEP: Duration = Duration::from_secs(3600);
/// The order in which lanes give up acked batches.
const CHEAPEST_FIRST: [Lane; 4] = [Lane::Backfill, Lane::Telemetry, Lane::Command, Lane::Event];

impl Uplink {
    /// Evicts what may go when the outbox is over half its quota (acked) or over it (never sent).
    ///
    /// What a birth announced stays until the birth is answered: acked it was by the hub before, and this one, which may
    /// be another or have been set back to a backup, may yet ask for it. Only a full outbox does not wait.
    pub(super) fn make_room(&mut self, now: Now) -> Result<(), Error> {
        let announced = self.is_announced();
        let (quota, used) = (self.config.quota_bytes, self.used_bytes());
        let half = quota / 2;
        if used > half && (!announced || used >= quota) {
            self.evict_acked(used - half, i64::MIN)?;
        }
        if now.up >= self.sweep_due && !announced {
            self.sweep_due = now.up + SWEEP;
            let keep_ms = i64::try_from(self.config.keep.as_millis()).unwrap_or(i64::MAX);
            self.evict_acked(0, now.wall_ms.saturating_sub(keep_ms))?;
            self.forget_results(now)?;
        }
        if self.used_bytes() >= self.config.quota_bytes {
            // A twentieth at once, so that a full outbox does not write a tombstone with every sample.
            let target = self.config.quota_bytes - self.config.quota_bytes / 20;
            self.shed_unsent(self.used_bytes() - target, now)?;
        }
        Ok(())
    }

    /// Whether a birth has said, or is about to say, what is held, and the hub has not answered.
    pub(super) fn is_announced(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.answered)
    }

    /// Drops acked batches, oldest first, until `bytes` are free, and those sealed before `before_ms`.
    fn evict_acked(&mut self, bytes: u64, before_ms: i64) -> Result<(), Error> {
        let mut freed = 0;
        for lane in CHEAPEST_FIRST {
            let numbers: Vec<_> = self.lanes.get(lane).streams.keys().copied().collect();
            for number in numbers {
                freed += self.evict_acked_of(lane, number, bytes.saturating_sub(freed), before_ms)?;
            }
            self.forget_streams(lane);
        }
        Ok(())
    }

    fn evict_acked_of(
        &mut self,
        lane: Lane,
        number: StreamNo,
        bytes: u64,
        before_ms: i64,
    ) -> Result<u64, Error> {
        let Some(stream) = self.lanes.get_mut(lane).streams.get_mut(&number) else { return Ok(0) };
        let (from, mark) = (stream.floor_seq, stream.mark);
        let (mut freed, mut counted, mut tombstoned) = (0, 0, 0);
        let mut floor = None;
        let mut last = None;
        // Batches of the transaction in the making are never acked, so the file alone knows.
        self.outbox.headers(lane, number, from, |seq, size, held| {
            let (seq_to, first) = held.as_ref().map_or((seq, 0), |held| (held.seq_to, held.first));
            let sealed_ms = held.as_ref().map_or(i64::MAX, |held| held.sealed_ms);
            if seq_to > mark || (freed >= bytes && sealed_ms >= before_ms) {
                floor = Some((seq, first));
                return false;
            }
            freed += size;
            last = Some(seq_to);
            if let Some(held) = held {
                *(if held.tombstone { &mut tombstoned } else { &mut counted }) += held.count;
            }
            true
        })?;
        if let Some(to) = last {
            (stream.floor_seq, stream.floor_record) = floor.unwrap_or((stream.next_seq, stream.next_record));
            stream.bytes = stream.bytes.saturating_sub(freed);
            stream.counted = stream.counted.saturating_sub(counted);
            stream.tombstoned = stream.tombstoned.saturating_sub(tombstoned);
            self.staged.push(Write::DropBatches { lane, number, from, to });
        }
        Ok(freed)
    }

    /// Forgets the oldest streams of which nothing is held. The latest are remembered: a hub that was set back to a
    /// backup learns from them what it is missing.
    fn forget_streams(&mut self, lane: Lane) {
        let empty = |stream: &Stream| stream.is_drained() && stream.floor_seq == stream.next_seq;
        let streams = self.lanes.get(lane).streams.iter();
        let mut numbers: Vec<_> =
            streams.filter(|(_, stream)| empty(stream)).map(|(number, _)| *number).collect();
        numbers.retain(|number| Some(*number) != self.number);
        numbers.truncate(numbers.len().saturating_sub(limits::STREAMS_REMEMBERED));
        for number in numbers {
            self.lanes.get_mut(lane).streams.remove(&number);
            self.moved.remove(&(lane, number));
            self.staged.push(Write::DropStream { lane, number });
        }
    }

    /// Replaces the oldest batches that were never sent by a tombstone, until `bytes` are free.
    fn shed_unsent(&mut self, bytes: u64, now: Now) -> Result<(), Error> {
        let mut freed = 0;
        for lane in [Lane::Backfill, Lane::Telemetry] {
            let numbers: Vec<_> = self.lanes.get(lane).streams.keys().copied().collect();
            for number in numbers {
                if freed < bytes {
                    freed += self.shed_unsent_of(lane, number, bytes - freed, Lost::OutboxFull, now)?;
                }
            }
        }
        Ok(())
    }

    /// The budget is gone, and the policy is not to wait: what was never sent is declared. Batches of the transaction in
    /// the making have their turn later.
    pub(super) fn give_up_unsent(&mut self, lane: Lane, number: StreamNo, now: Now) -> Result<(), Error> {
        self.shed_unsent_of(lane, number, u64::MAX, Lost::Budget, now).map(drop)
    }

    fn shed_unsent_of(
        &mut self,
        lane: Lane,
        number: StreamNo,
        bytes: u64,
        lost: Lost,
        now: Now,
    ) -> Result<u64, Error> {
        let Some(stream) = self.lanes.get(lane).streams.get(&number) else { return Ok(0) };
        let from = stream.floor_seq.max(stream.mark.max(stream.sent) + 1);
        let (mut size, mut found) = (0, Vec::new());
        self.outbox.headers(lane, number, from, |seq, row, held| {
            if size >= bytes {
                return false;
            }
            size += row;
            held.is_some_and(|held| {
                found.push((seq, held));
                true
            })
        })?;
        let fresh = found.iter().filter(|(_, held)| !held.tombstone).count();
        let (Some((seq, first)), Some((_, last))) = (found.first(), found.last()) else { return Ok(0) };
        if fresh == 0 {
            return Ok(0);
        }
        let (seq, seq_to, first) = (*seq, last.seq_to, first.first);
        let newly = found.iter().filter(|(_, held)| !held.tombstone).map(|(_, held)| held.count).sum::<u64>();
        let already = found.iter().map(|(_, held)| held.count).sum::<u64>() - newly;
        let tombstone = self.tombstone(number, lane, (seq, seq_to), (first, newly + already), lost, now);
        let row = tombstone.row_bytes();
        self.staged.push(Write::DropBatches { lane, number, from: seq, to: seq_to });
        self.fresh.insert((lane, number, seq), tombstone.clone());
        self.staged.push(Write::Batch { lane, number, seq, held: tombstone });
        if let Some(stream) = self.lanes.get_mut(lane).streams.get_mut(&number) {
            stream.counted = stream.counted.saturating_sub(newly);
            stream.tombstoned += newly;
            stream.bytes = stream.bytes.saturating_sub(size) + row;
        }
        self.lost += newly;
        Ok(size.saturating_sub(row))
    }

    /// What takes the place of batches `seqs.0 … seqs.1` with records from `records.0` on, `records.1` of them.
    pub(super) fn tombstone(
        &mut self,
        number: StreamNo,
        lane: Lane,
        seqs: (u64, u64),
        records: (u64, u64),
        lost: Lost,
        now: Now,
    ) -> Held {
        let id = self.lanes.get(lane).streams.get(&number).map_or(self.stream, |stream| stream.id);
        let up_ms = self.stamp_sealed(now);
        let batch = Batch {
            v: VERSION,
            stream: id,
            seq: seqs.0,
            seq_to: Some(seqs.1),
            first: records.0,
            count: records.1,
            boot: self.profile.boot,
            up_ms,
            clock: Clock::Unsynced,
            sealed_ms: now.wall_ms,
            lost: Some(lost),
            body: Vec::new(),
        };
        let payload = self.packer.pack(cbor::encode(&batch));
        let (first, count) = records;
        Held { tombstone: true, seq_to: seqs.1, first, count, sealed_ms: now.wall_ms, payload }
    }
}
