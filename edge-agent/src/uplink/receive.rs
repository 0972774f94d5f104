//! What the hub says: marks, credit, time, and verdicts on single batches.

use fleet_schemas::{
    Lane, StreamId, VERSION,
    ack::{Ack, Verdict},
    batch::{Batch, Envelope, Lost},
    cbor,
    command::Orders,
    config::Desired,
    topic::Down,
};
use sha2::{Digest as _, Sha256};

use super::{Error, MARKS_AT_LATEST, STATE_ANEW, Uplink};
use crate::{
    core::{
        Now,
        lanes::{Stream, StreamNo},
    },
    store::outbox::Write,
};

impl Uplink {
    /// Takes a message from the hub. One that cannot be read is ignored: whatever it said is said again.
    ///
    /// # Errors
    /// [`Error`] when a verdict had to be written down and could not.
    pub fn receive(&mut self, down: Down, payload: &[u8], now: Now) -> Result<(), Error> {
        match down {
            Down::Ack => {
                let ack: Option<Ack> =
                    self.unpacker.unpack(payload).ok().and_then(|plain| cbor::decode(plain).ok());
                match ack {
                    Some(ack) => self.ack(&ack, now),
                    None => Ok(()),
                }
            }
            Down::Command => {
                let orders: Option<Orders> =
                    self.unpacker.unpack(payload).ok().and_then(|plain| cbor::decode(plain).ok());
                orders.map_or(Ok(()), |orders| self.take_orders(&orders, now))
            }
            Down::Config => {
                let desired: Option<Desired> =
                    self.unpacker.unpack(payload).ok().and_then(|plain| cbor::decode(plain).ok());
                desired.map_or(Ok(()), |desired| self.take_desired(&desired, now))
            }
        }
    }

    fn ack(&mut self, ack: &Ack, now: Now) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if ack.session != session.id {
            return Ok(());
        }
        session.answered |= ack.birth;
        if session.answered {
            session.credit = ack.credit;
        }
        self.store_id = Some(ack.store_id);
        self.hub_offset_ms = Some(ack.hub_ms.saturating_sub(now.wall_ms));
        self.hub_ms = Some(ack.hub_ms);
        self.last_ack = Some(now.up);
        self.hear(ack.hub_ms, now);
        for (lane, acks) in &ack.lanes {
            for stream in acks {
                let moved = self.lanes.get_mut(*lane).acked(stream, ack.birth);
                let Some(number) = self.number_of(*lane, stream.stream) else { continue };
                if moved {
                    self.moved.insert((*lane, number));
                    self.marks_due.get_or_insert(now.up + MARKS_AT_LATEST);
                }
                match &stream.verdict {
                    Verdict::Ok => {}
                    Verdict::Refused { seq, max_v, .. } if *max_v >= VERSION => {
                        self.declare_refused(*lane, number, *seq, now)?;
                    }
                    // An older hub: the batch waits, sent again with growing patience, until the hub is upgraded.
                    Verdict::Refused { .. } => {}
                    Verdict::Fork { seq } => self.seal_again(*lane, number, *seq, now)?,
                }
            }
        }
        if ack.birth {
            self.state_anew(now);
        }
        self.config_heard(now)
    }

    /// The hub wants what was evicted between the birth and its answer: only another birth tells it that this is gone.
    fn state_anew(&mut self, now: Now) {
        let gone = |stream: &Stream| stream.mark + 1 < stream.floor_seq;
        if Lane::ALL.iter().any(|lane| self.lanes.get(*lane).streams.values().any(gone))
            && let Some(session) = &mut self.session
        {
            session.answered = false;
            session.birth_due = now.up + STATE_ANEW;
        }
    }

    fn number_of(&self, lane: Lane, id: StreamId) -> Option<StreamNo> {
        let mut streams = self.lanes.get(lane).streams.iter();
        streams.find(|(_, stream)| stream.id == id).map(|(number, _)| *number)
    }

    /// The hub reads our version but not this batch's: a newer agent sealed it, before a downgrade.
    fn declare_refused(&mut self, lane: Lane, number: StreamNo, seq: u64, now: Now) -> Result<(), Error> {
        let Some((at, Some(old))) = self.outbox.batch(lane, number, seq)? else { return Ok(()) };
        let newer = self.unpacker.unpack(&old.payload).ok().and_then(|plain| Batch::decode(plain).ok());
        if at != seq || old.tombstone || !matches!(newer, Some(Envelope::Unknown(_))) {
            return Ok(());
        }
        let held =
            self.tombstone(number, lane, (seq, old.seq_to), (old.first, old.count), Lost::Refused, now);
        if let Some(stream) = self.lanes.get_mut(lane).streams.get_mut(&number) {
            stream.counted = stream.counted.saturating_sub(old.count);
            stream.tombstoned += old.count;
            stream.bytes = (stream.bytes + held.row_bytes()).saturating_sub(old.row_bytes());
            stream.cursor = stream.cursor.min(seq);
        }
        self.lost += old.count;
        self.staged.push(Write::Batch { lane, number, seq, held });
        self.commit()
    }

    /// The hub has something else under this number: everything held from it on goes into a new stream. What lies before
    /// stays: it is acked, and kept for a hub that is set back to a backup.
    fn seal_again(&mut self, lane: Lane, number: StreamNo, seq: u64, now: Now) -> Result<(), Error> {
        // What is staged must be on disk before it is read back.
        self.commit()?;
        if self.number == Some(number) {
            self.number = None;
            self.stream = self.derived_stream(now);
        }
        let mut first = None;
        let (mut bytes, mut counted, mut tombstoned) = (0, 0, 0);
        let mut from = seq;
        while let Some((at, held)) = self.outbox.batch(lane, number, from)? {
            let Some(held) = held else {
                from = at + 1;
                continue;
            };
            from = held.seq_to + 1;
            first.get_or_insert((at, held.first));
            bytes += held.row_bytes();
            *(if held.tombstone { &mut tombstoned } else { &mut counted }) += held.count;
            let batch = self.unpacker.unpack(&held.payload).ok().and_then(|plain| Batch::decode(plain).ok());
            if let Some(Envelope::Known(batch)) = batch {
                self.stage_batch(lane, batch.count, batch.body, batch.lost, now);
            }
        }
        let Some((next_seq, next_record)) = first else { return self.commit() };
        self.staged.push(Write::DropBatches { lane, number, from: seq, to: u64::MAX });
        if let Some(stream) = self.lanes.get_mut(lane).streams.get_mut(&number) {
            (stream.next_seq, stream.next_record) = (next_seq, next_record);
            if stream.floor_seq >= next_seq {
                (stream.floor_seq, stream.floor_record) = (next_seq, next_record);
            }
            stream.bytes = stream.bytes.saturating_sub(bytes);
            stream.counted = stream.counted.saturating_sub(counted);
            stream.tombstoned = stream.tombstoned.saturating_sub(tombstoned);
            stream.mark = stream.mark.min(next_seq - 1);
            stream.sent = stream.sent.min(next_seq - 1);
        }
        self.moved.insert((lane, number));
        self.lanes.get_mut(lane).rewind();
        self.commit()
    }

    /// A new stream id without new randomness: the session's id is random and known to one instance alone.
    pub(super) fn derived_stream(&self, now: Now) -> StreamId {
        let mut hash = Sha256::new();
        hash.update(self.stream.0);
        hash.update(self.session.as_ref().map_or([0; 8], |session| session.id.0));
        hash.update(now.up_ms().to_le_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        StreamId(id)
    }
}
