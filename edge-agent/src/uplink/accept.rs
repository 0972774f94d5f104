//! Accepting records and sealing them into batches.

use std::collections::BTreeMap;

use fleet_schemas::{
    Lane, VERSION,
    batch::{Batch, Lost},
    cbor,
    event::Event,
    limits,
    telemetry::{Builder, Sample},
};
use serde::Serialize;

use super::{
    Error, Uplink,
    once::{Handed, Receipt},
};
use crate::{
    core::{Now, devices::Refused},
    store::{
        outbox::Write,
        rows::{self, Held},
    },
};

/// Plain bytes after which a batch of events or reports is closed: with the envelope it stays below the packet limit
/// even if nothing compresses.
const RECORD_BODY_BYTES: usize =
    limits::PACKET_BYTES - limits::EVENT_DATA_BYTES - limits::EVENT_MESSAGE_BYTES - 4096;
/// Room for topic and MQTT header beside a payload.
const PACKET_MARGIN: usize = 1024;
/// Batches on their way on the telemetry lane above which new samples count as backlog.
const LIVE_BATCHES: u64 = 4;

/// Records handed in together: all or none of them are accepted.
#[derive(Debug, Clone, PartialEq)]
pub enum Submission {
    /// Samples, sealed on schedule.
    Samples(Vec<Sample>),
    /// Events, sealed at once.
    Events(Vec<Event>),
}

impl Submission {
    /// How many records.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Samples(samples) => samples.len(),
            Self::Events(events) => events.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is of more than one device.
    #[must_use]
    pub fn has_devices(&self) -> bool {
        match self {
            Self::Samples(all) => all.windows(2).any(|pair| pair[0].device != pair[1].device),
            Self::Events(all) => all.windows(2).any(|pair| pair[0].device != pair[1].device),
        }
    }

    /// The same by device, each in its order: where one of them is not taken, that is no matter of the others.
    #[must_use]
    pub fn by_device(self) -> Vec<Self> {
        match self {
            Self::Samples(all) => {
                let mut parts = BTreeMap::<_, Vec<_>>::new();
                all.into_iter().for_each(|one| parts.entry(one.device.clone()).or_default().push(one));
                parts.into_values().map(Self::Samples).collect()
            }
            Self::Events(all) => {
                let mut parts = BTreeMap::<_, Vec<_>>::new();
                all.into_iter().for_each(|one| parts.entry(one.device.clone()).or_default().push(one));
                parts.into_values().map(Self::Events).collect()
            }
        }
    }
}

/// Why records were not accepted. The caller keeps them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The outbox is full of batches that the hub has yet to ack (HTTP 507).
    #[error("the outbox is full; it empties when the hub is reached: check `fleet-agent status`")]
    Full,
    /// More records than one batch may hold.
    #[error("more than {} records at once; send them in parts", limits::BATCH_RECORDS)]
    Large,
    /// The name of a write, or of the record at this place, was used for something else (HTTP 409).
    #[error("this id was used for something else; give each record an id of its own, or none")]
    Reused {
        /// Which record; absent: all of them together.
        at: Option<usize>,
    },
    /// It is of a device that is not taken (HTTP 422).
    #[error(transparent)]
    Device(#[from] Refused),
}

impl Uplink {
    /// Accepts records: one durable transaction for all of them. What it says `Ok` to is on disk.
    ///
    /// # Errors
    /// [`Error`] when the disk failed: none of them is accepted, and the value is dead.
    pub fn submit(
        &mut self,
        submissions: Vec<Submission>,
        now: Now,
    ) -> Result<Vec<Result<(), SubmitError>>, Error> {
        let handed = submissions.into_iter().map(Handed::from).collect();
        let results = self.submit_once(handed, now)?;
        Ok(results.into_iter().map(|result| result.map(|_| ())).collect())
    }

    /// Like [`Uplink::submit`]; what has a name is stored once however often it is handed in.
    ///
    /// # Errors
    /// [`Error`] when the disk failed: none of them is accepted, and the value is dead.
    pub fn submit_once(
        &mut self,
        handed: Vec<Handed>,
        now: Now,
    ) -> Result<Vec<Result<Receipt, SubmitError>>, Error> {
        let mut results = Vec::with_capacity(handed.len());
        let mut samples = Vec::new();
        let mut events = Vec::new();
        self.make_room(now)?;
        let full = self.used_bytes() >= self.config.quota_bytes;
        for handed in handed {
            if handed.submission.len() > limits::BATCH_RECORDS {
                results.push(Err(SubmitError::Large));
                continue;
            }
            let no_room = full && !handed.even_if_full;
            let by_devices = !handed.by_agent;
            results.push(match self.without_repeated(handed) {
                Err(error) => Err(error),
                Ok((receipt, None)) => Ok(receipt),
                Ok((_, Some(_))) if no_room => Err(SubmitError::Full),
                Ok((receipt, Some((submission, names)))) => {
                    if by_devices {
                        if let Err(refused) = self.admit_devices(&submission) {
                            results.push(Err(refused));
                            continue;
                        }
                        self.sight_submission(&submission, now);
                    }
                    match submission {
                        Submission::Samples(more) => samples.extend(more),
                        Submission::Events(more) => events.extend(more),
                    }
                    self.stage_names(names);
                    Ok(receipt)
                }
            });
        }
        if !samples.is_empty() {
            self.stage_rows(samples);
            if !self.meter.has_schedule() {
                self.seal_due = self.seal_due.min(now.up + self.config.prompt);
            }
        }
        self.seal_records(Lane::Event, &events, now);
        if !self.staged.is_empty() {
            self.stage_lazy();
            self.commit()?;
        }
        Ok(results)
    }

    /// Takes samples of the agent's own collectors: in memory until the next transaction, to save the flash. A power
    /// cut loses them, and nobody was told that they were accepted.
    pub fn submit_lazily(&mut self, samples: Vec<Sample>) {
        self.lazy.extend(samples);
        // A limit all the same: without it a dead disk would fill the memory.
        let excess = self.lazy.len().saturating_sub(limits::BATCH_RECORDS);
        self.lazy.drain(..excess);
    }

    pub(super) fn stage_lazy(&mut self) {
        if !self.lazy.is_empty() && self.used_bytes() < self.config.quota_bytes {
            let lazy = std::mem::take(&mut self.lazy);
            self.stage_rows(lazy);
        }
    }

    pub(super) fn stage_rows(&mut self, samples: Vec<Sample>) {
        let bytes = rows::encode_samples(&samples);
        self.row_to += 1;
        self.row_bytes += bytes.len() as u64;
        self.staged.push(Write::Rows { id: self.row_to, bytes });
        self.pending.extend(samples);
    }

    /// Seals samples when it is time or when there are enough for a batch.
    pub(super) fn seal_if_due(&mut self, now: Now) {
        let waiting = self.pending.len() + self.lazy.len();
        if waiting == 0 {
            // An idle outbox does not save up a due date: the next sample waits for its company.
            self.seal_due = self.meter.next_seal(self.config.upload, now);
        }
        self.seal_due = self.meter.sooner(self.seal_due, now);
        let batch_samples = self.meter.batch_samples(self.config.batch_samples);
        if waiting == 0 || (now.up < self.seal_due && waiting < batch_samples) {
            return;
        }
        self.seal_due = self.meter.next_seal(self.config.upload, now);
        if self.used_bytes() >= self.config.quota_bytes {
            return;
        }
        self.seal_samples(now);
    }

    fn seal_samples(&mut self, now: Now) {
        let live = self.session.as_ref().is_some_and(|session| session.answered && session.credit > 0)
            && self.lanes.get(Lane::Telemetry).unsent() <= LIVE_BATCHES;
        let lane = if live { Lane::Telemetry } else { Lane::Backfill };
        let mut builder = Builder::default();
        let batch_samples = self.meter.batch_samples(self.config.batch_samples);
        let mut samples = std::mem::take(&mut self.pending);
        samples.append(&mut self.lazy);
        for sample in samples {
            if builder.len() >= batch_samples {
                self.seal_columns(lane, std::mem::take(&mut builder), now);
            }
            if let Some(first_of_next) = builder.push(sample) {
                self.seal_columns(lane, std::mem::take(&mut builder), now);
                builder.push(first_of_next);
            }
        }
        self.seal_columns(lane, builder, now);
        if self.row_bytes > 0 {
            self.staged.push(Write::DropRows { to: self.row_to });
            self.row_bytes = 0;
        }
    }

    fn seal_columns(&mut self, lane: Lane, builder: Builder, now: Now) {
        let count = builder.len() as u64;
        if count > 0 {
            let body = builder.build().encode();
            self.stage_batch(lane, count, body, None, now);
        }
    }

    /// Seals events or reports at once, in as many batches as packets are needed.
    pub(super) fn seal_records<T: Serialize>(&mut self, lane: Lane, records: &[T], now: Now) {
        let mut rest = records;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |record: &&T| {
                bytes += cbor::encode(record).len();
                bytes <= RECORD_BODY_BYTES
            };
            let len = rest.iter().take_while(fits).count().clamp(1, limits::BATCH_RECORDS);
            let (batch, others) = rest.split_at(len);
            self.stage_batch(lane, batch.len() as u64, cbor::encode(&batch), None, now);
            rest = others;
        }
    }

    /// Seals one batch at the end of the current stream.
    pub(super) fn stage_batch(
        &mut self,
        lane: Lane,
        count: u64,
        body: Vec<u8>,
        lost: Option<Lost>,
        now: Now,
    ) {
        let up_ms = self.stamp_sealed(now);
        let (boot, connected) = (self.profile.boot, self.session.is_some());
        let held_back = self.meter.due().is_some();
        let (id, (number, stream)) = (self.stream, self.current(lane));
        let (seq, first) = (stream.next_seq, stream.next_record);
        let batch = Batch {
            v: VERSION,
            stream: id,
            seq,
            seq_to: None,
            first,
            count,
            boot,
            up_ms,
            clock: now.clock,
            sealed_ms: now.wall_ms,
            lost,
            body,
        };
        let payload = self.packer.pack(cbor::encode(&batch));
        let tombstone = lost.is_some();
        let held = Held { tombstone, seq_to: seq, first, count, sealed_ms: now.wall_ms, payload };
        let (_, stream) = self.current(lane);
        stream.next_seq += 1;
        stream.next_record += count;
        if stream.floor_seq == seq {
            stream.floor_record = first;
        }
        stream.bytes += held.row_bytes();
        match tombstone {
            true => stream.tombstoned += count,
            false => stream.counted += count,
        }
        // What is about to be sent is marked so in the transaction that seals it, which saves one.
        // One that a budget holds back may yet be given up.
        if connected && !held_back && stream.cursor == seq {
            stream.sent = seq;
        }
        self.moved.insert((lane, number));
        self.fresh.insert((lane, number, seq), held.clone());
        self.staged.push(Write::Batch { lane, number, seq, held });
    }

    /// Whether a packed payload fits into a packet with its topic and header.
    #[must_use]
    pub(super) fn fits_packet(payload: &[u8]) -> bool {
        payload.len() + PACKET_MARGIN <= limits::PACKET_BYTES
    }
}
