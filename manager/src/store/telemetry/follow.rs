//! The feed's side: batches of the inbox in the order of their commits, page by page, from a place in the log.
//!
//! Reads in short transactions and decodes after them, so that a slow follower holds no page of the file. Knows no
//! cursors as text and no events.

use fleet_schemas::{Lane, cbor::Unpacker, telemetry::Samples};

use super::{
    Error, Opened, TelemetryStore,
    inbox::Rows,
    read_lock,
    row::{self, Head, Row},
    seal,
};
use crate::store::log::{Gone, Place};

/// Bytes of rows that one page copies, at most, unless the first alone is larger.
const PAGE_BYTES: usize = 256 * 1024;

/// A batch that was committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// The place before it,
    pub before: Place,
    /// and after it.
    pub after: Place,
    /// The node's number.
    pub node: u32,
    /// [`Lane::Telemetry`] or [`Lane::Backfill`].
    pub lane: Lane,
    /// The hub's clock at receipt, Unix milliseconds.
    pub recv_ms: i64,
    /// To be added to the times of the samples.
    pub shift_ms: i64,
    /// The samples.
    pub samples: Samples,
}

/// Some batches in the order of their commits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogPage {
    /// Those that were wanted and can be read.
    pub batches: Vec<Followed>,
    /// The place after the last row that was looked at.
    pub after: Place,
    /// Whether that was the last row there is.
    pub end: bool,
}

// A row that was wanted, copied out of its transaction.
struct Copied {
    before: Place,
    after: Place,
    head: Head,
    payload: Vec<u8>,
}

impl TelemetryStore {
    /// The place after everything that is committed.
    ///
    /// # Errors
    /// [`Error`] when the inbox cannot be read.
    pub fn log_end(&self) -> Result<Place, Error> {
        let opened = self.opened()?;
        let last = read_lock(&opened.inbox.memory).next_seq.saturating_sub(1);
        self.note(place(&mut opened.inbox.rows()?, last))
    }

    /// The place before everything that is held.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn log_start(&self) -> Result<Place, Error> {
        let opened = self.opened()?;
        let front = read_lock(&opened.inbox.memory).front;
        Ok(Place { seq: front.saturating_sub(1), check: 0 })
    }

    /// Whether a follower can go on from `after`.
    ///
    /// # Errors
    /// [`Error`] when the inbox cannot be read.
    pub fn log_has(&self, after: Place) -> Result<Result<(), Gone>, Error> {
        let opened = self.opened()?;
        let had = opened.inbox.rows().and_then(|mut rows| has(&opened, &mut rows, after));
        Ok(self.note(had)?.map(drop))
    }

    /// The batches after a place: those of nodes that are wanted, at most `samples` of them together unless the first
    /// alone has more. What rotted is left out: it is in quarantine, or will be.
    ///
    /// # Errors
    /// [`Error`] when the inbox cannot be read.
    pub fn log_page(
        &self,
        after: Place,
        samples: u64,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Result<LogPage, Gone>, Error> {
        let opened = self.opened()?;
        let copied = self.note(copy(&opened, after, samples, wanted))?;
        Ok(copied.map(|(copied, after, end)| {
            let mut unpacker = Unpacker::default();
            let batches = copied.into_iter().filter_map(|row| row.decode(&mut unpacker)).collect();
            LogPage { batches, after, end }
        }))
    }
}

impl Copied {
    fn decode(self, unpacker: &mut Unpacker) -> Option<Followed> {
        let Self { before, after, head, payload } = self;
        let samples = seal::body(&head, &payload, unpacker).ok()?;
        // As the sealer judges it.
        (samples.count() == u64::from(head.count)).then_some(Followed {
            before,
            after,
            node: head.node,
            lane: head.lane,
            recv_ms: head.recv_ms,
            shift_ms: head.shift_ms,
            samples,
        })
    }
}

fn place(rows: &mut Rows, seq: u64) -> Result<Place, Error> {
    match rows.raw(seq) {
        Ok(row) => Ok(Place::after(seq, row)),
        // Removed, or there never was one.
        Err(error) if error.is_rot() => Ok(Place { seq, check: 0 }),
        Err(error) => Err(error),
    }
}

/// The number after the last row that readers may see, if the log has what follows `after`.
fn has(opened: &Opened, rows: &mut Rows, after: Place) -> Result<Result<u64, Gone>, Error> {
    let (front, next, since_ms) = {
        let memory = read_lock(&opened.inbox.memory);
        (memory.front, memory.next_seq, memory.window.since_ms())
    };
    let known = place(rows, after.seq)?;
    Ok(after.judge(front, next, known, since_ms).map(|()| next))
}

type Copies = (Vec<Copied>, Place, bool);

fn copy(
    opened: &Opened,
    after: Place,
    samples: u64,
    wanted: impl Fn(u32) -> bool,
) -> Result<Result<Copies, Gone>, Error> {
    let mut rows = opened.inbox.rows()?;
    let next = match has(opened, &mut rows, after)? {
        Ok(next) => next,
        Err(gone) => return Ok(Err(gone)),
    };
    let (mut copied, mut at) = (Vec::new(), after);
    let (mut bytes, mut count, mut fresh) = (0, 0, false);
    let end = rows.each_after(after.seq, |seq, row| {
        if seq >= next {
            // Committed a moment ago: the next page has it.
            fresh = true;
            return false;
        }
        let before = at;
        at = Place::after(seq, row);
        bytes += row.len();
        let Ok(Row::Batch(head, payload)) = row::read(seq, row) else {
            return bytes < PAGE_BYTES;
        };
        if wanted(head.node) {
            if !copied.is_empty() && count + u64::from(head.count) > samples {
                at = before;
                return false;
            }
            count += u64::from(head.count);
            copied.push(Copied { before, after: at, head, payload: payload.to_vec() });
        }
        bytes < PAGE_BYTES && count < samples
    })?;
    Ok(Ok((copied, at, end || fresh)))
}
