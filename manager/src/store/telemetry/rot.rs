//! What rotted on the hub's disk: bodies that were stored and do not read any more.
//!
//! Whoever meets one skips it and leaves it here; the sealer's next step books it. Booking is one transaction of the
//! inbox: the records move from `stored` to `quarantined`, the bytes go raw into quarantine, and the place is
//! remembered, so that nothing is booked twice. Nothing is removed from where it lies: files that are over are
//! never written to. Must not decide what is rotten.

use std::{collections::BTreeMap, sync::Arc};

use fleet_schemas::{Lane, cbor::Unpacker, telemetry::Samples};

use super::{
    Error, Opened, Quarantined, TelemetryStore,
    blob::{self, Decoded},
    inbox::Rows,
    lock, read_lock,
    row::{self, Row},
    seal,
    unsealed::Batch,
    week::{Blobs, Entry, FileId},
    write::InboxWrite,
};

/// Found and not yet booked, at most: each keeps its bytes. More are found again.
const FOUND: usize = 64;

/// Where a body lies: in the inbox (file 0, no instant, its seq) or in a week file (the key of its entry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Spot {
    pub file: u64,
    pub node: u32,
    pub start_ms: i64,
    pub seq: u64,
}

/// A body that does not read.
#[derive(Debug, Clone)]
pub(super) struct Rot {
    pub spot: Spot,
    pub lane: Lane,
    /// Its samples, as they were counted when it was stored.
    pub count: u64,
    pub reason: String,
    pub bytes: Vec<u8>,
}

/// Records that could not be read any more and were put into quarantine; announce them by an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotten {
    /// The node's number; 0 when even that could not be read.
    pub node: u32,
    /// The lane.
    pub lane: Lane,
    /// How many samples moved from `stored` to `quarantined`.
    pub records: u64,
    /// Where it lay and what is wrong with it.
    pub reason: String,
}

/// Found and not yet booked.
pub(super) type Found = BTreeMap<Spot, Rot>;

impl Spot {
    pub(super) fn inbox(node: u32, seq: u64) -> Self {
        Self { file: 0, node, start_ms: 0, seq }
    }

    pub(super) fn week(id: FileId, node: u32, start_ms: i64, first_seq: u64) -> Self {
        Self { file: id.key(), node, start_ms, seq: first_seq }
    }

    pub(super) fn row(self) -> (u64, u32, i64, u64) {
        (self.file, self.node, self.start_ms, self.seq)
    }

    pub(super) fn of_row((file, node, start_ms, seq): (u64, u32, i64, u64)) -> Self {
        Self { file, node, start_ms, seq }
    }
}

impl Opened {
    /// A blob of a week file (first instant, first seq, entry); `None` when it has rotted.
    pub(super) fn blob(
        &self,
        id: FileId,
        node: u32,
        (start_ms, first_seq, entry): &(i64, u64, Entry),
        blobs: &mut Blobs,
        unpacker: &mut Unpacker,
    ) -> Result<Option<Decoded>, Error> {
        let bytes = match blobs.get(entry.place) {
            Ok(bytes) => bytes,
            Err(error) if error.is_rot() => &[],
            Err(error) => return Err(error),
        };
        let why = match blob::decode(bytes, unpacker) {
            Ok(decoded)
                if decoded.lane == entry.lane && decoded.samples.count() == u64::from(entry.count) =>
            {
                return Ok(Some(decoded));
            }
            Ok(decoded) => counts(decoded.samples.count()),
            Err(error) if error.is_rot() => error.to_string(),
            Err(error) => return Err(error),
        };
        self.found(Rot {
            spot: Spot::week(id, node, *start_ms, *first_seq),
            lane: entry.lane,
            count: entry.count.into(),
            reason: format!("a blob in {}: {why}", id.name()),
            bytes: bytes.to_vec(),
        });
        Ok(None)
    }

    /// A batch of the inbox with its samples; `None` when it has rotted.
    pub(super) fn batch(
        &self,
        node: u32,
        batch: &Batch,
        rows: &mut Rows,
        unpacker: &mut Unpacker,
    ) -> Result<Option<(row::Head, Samples)>, Error> {
        let bytes = match rows.raw(batch.seq) {
            Ok(bytes) => bytes,
            Err(error) if error.is_rot() => &[],
            Err(error) => return Err(error),
        };
        let read = row::read(batch.seq, bytes).and_then(|row| match row {
            // The index was made of the head when it was known to be good.
            Row::Batch(head, payload) if batch.is_of(node, &head) => {
                Ok((head, seal::body(&head, payload, unpacker)?))
            }
            Row::Batch(..) | Row::Note(_) => Err(Error::Damaged { what: "its head".to_owned() }),
        });
        let why = match read {
            Ok((head, samples)) if samples.count() == u64::from(batch.count) => {
                return Ok(Some((head, samples)));
            }
            Ok((_, samples)) => counts(samples.count()),
            Err(error) if error.is_rot() => error.to_string(),
            Err(error) => return Err(error),
        };
        self.found(Rot {
            spot: Spot::inbox(node, batch.seq),
            lane: batch.lane,
            count: batch.count.into(),
            reason: format!("row {} of the inbox: {why}", batch.seq),
            bytes: bytes.to_vec(),
        });
        Ok(None)
    }

    /// Whether a body was noted or booked: it may be passed over for good.
    pub(super) fn is_known_rotten(&self, spot: Spot) -> bool {
        // One lock at a time.
        let noted = lock(&self.found).contains_key(&spot);
        noted || read_lock(&self.inbox.memory).rotten.contains_key(&spot)
    }

    /// Takes note of a body that does not read, for the sealer to book.
    fn found(&self, rot: Rot) {
        if read_lock(&self.inbox.memory).rotten.contains_key(&rot.spot) {
            return;
        }
        let mut found = lock(&self.found);
        if found.len() < FOUND && !found.contains_key(&rot.spot) {
            let Rot { spot, lane, count, reason, .. } = &rot;
            tracing::warn!(node = spot.node, %lane, count, %reason, "stored samples cannot be read; the rest can");
            found.insert(rot.spot, rot);
        }
    }
}

fn counts(found: u64) -> String {
    format!("it has {found} samples, which is not what was stored")
}

impl TelemetryStore {
    /// Books what was found since.
    pub(super) fn book_found(&self, opened: &Arc<Opened>) -> Result<Vec<Rotten>, Error> {
        let found: Vec<_> = lock(&opened.found).values().cloned().collect();
        let known: Vec<_> = found.iter().map(|rot| rot.spot).collect();
        let booked = self.book_rot(opened, found)?;
        // Forgotten after the commit, so that what a failed one should have booked is still known.
        let mut left = lock(&opened.found);
        known.iter().for_each(|spot| drop(left.remove(spot)));
        Ok(booked)
    }

    /// Books rotten bodies in one transaction; those that are booked already are left alone.
    fn book_rot(&self, opened: &Arc<Opened>, rot: Vec<Rot>) -> Result<Vec<Rotten>, Error> {
        if rot.is_empty() {
            return Ok(Vec::new());
        }
        let mut write = InboxWrite::new(self, Arc::clone(opened), self.turn());
        let mut booked = Vec::new();
        for Rot { spot, lane, count, reason, bytes } in rot {
            if read_lock(&opened.inbox.memory).rotten.contains_key(&spot) {
                continue;
            }
            let raw = Quarantined {
                node: spot.node,
                lane,
                // When it was received cannot be told any more for all of it.
                recv_ms: spot.start_ms,
                records: count,
                reason: reason.clone(),
                payload: bytes,
            };
            write.rot(spot, &raw);
            booked.push(Rotten { node: spot.node, lane, records: count, reason });
        }
        if !booked.is_empty() {
            write.commit()?;
        }
        Ok(booked)
    }
}
