//! Where the lanes stand: per (lane, stream) what is held, what the hub's mark covers, what is in flight.
//!
//! The agent's half of the protocol of DESIGN section 4. Pure: numbers in, decisions out. What is held on disk is
//! the outbox's business; it tells this room after each commit.

use std::{collections::BTreeMap, collections::VecDeque, time::Duration};

use fleet_schemas::{Lane, StreamId, ack::StreamAck, session::StreamState};

/// First wait for an ack before everything in flight is sent again; doubles up to [`RESEND_MAX`]. A 256 KiB
/// batch on a 100 kbit/s link takes 21 s.
pub const RESEND: Duration = Duration::from_secs(20);
/// Longest such wait.
pub const RESEND_MAX: Duration = Duration::from_secs(300);

/// One opening of the outbox, oldest first. Short for a [`StreamId`] within this outbox.
pub type StreamNo = u32;

/// Where one (lane, stream) stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its id on the wire.
    pub id: StreamId,
    /// Number of the oldest batch held; equal to `next_seq` when none is.
    pub floor_seq: u64,
    /// Number of the first record of that batch.
    pub floor_record: u64,
    /// Number the next sealed batch gets.
    pub next_seq: u64,
    /// Number the next record gets.
    pub next_record: u64,
    /// Records held, counted row by row when the outbox was opened and kept up since.
    pub counted: u64,
    /// Records that held tombstones stand for.
    pub tombstoned: u64,
    /// Bytes held.
    pub bytes: u64,
    /// The hub's mark as far as we know.
    pub mark: u64,
    /// Highest number that may ever have been sent; on disk before the send.
    pub sent: u64,
    /// Number to send next.
    pub cursor: u64,
}

impl Stream {
    /// A stream of which nothing is sealed yet.
    #[must_use]
    pub fn new(id: StreamId) -> Self {
        Self {
            id,
            floor_seq: 1,
            floor_record: 1,
            next_seq: 1,
            next_record: 1,
            counted: 0,
            tombstoned: 0,
            bytes: 0,
            mark: 0,
            sent: 0,
            cursor: 1,
        }
    }

    /// Whether everything sealed is covered by the mark.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.mark + 1 >= self.next_seq
    }

    /// What birth and heartbeat say of it.
    #[must_use]
    pub fn state(&self) -> StreamState {
        StreamState {
            stream: self.id,
            floor_seq: self.floor_seq,
            floor_record: self.floor_record,
            next_seq: self.next_seq,
            next_record: self.next_record,
            counted: self.counted,
            tombstoned: self.tombstoned,
        }
    }
}

/// A batch on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flight {
    number: StreamNo,
    last_seq: u64,
    at: Duration,
}

/// One lane.
#[derive(Debug, Clone, Default)]
pub struct LaneState {
    /// Its streams, oldest first; the last is the one that sealing appends to, if it was opened this time.
    pub streams: BTreeMap<StreamNo, Stream>,
    flights: VecDeque<Flight>,
    attempts: u32,
    rewound: Option<(StreamNo, u64)>,
}

impl LaneState {
    /// Batches in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        u32::try_from(self.flights.len()).unwrap_or(u32::MAX)
    }

    /// The batch to send next: streams one after the other, so that a lane keeps its order.
    #[must_use]
    pub fn next_to_send(&self) -> Option<(StreamNo, u64)> {
        let unsent = |stream: &Stream| stream.cursor.max(stream.floor_seq) < stream.next_seq;
        let (number, stream) = self.streams.iter().find(|(_, stream)| unsent(stream))?;
        Some((*number, stream.cursor.max(stream.floor_seq)))
    }

    /// Batch numbers that are sealed but not sent in this session.
    #[must_use]
    pub fn unsent(&self) -> u64 {
        self.streams.values().map(|stream| stream.next_seq.saturating_sub(stream.cursor)).sum()
    }

    /// Notes a send; `last_seq` is `seq_to` for a tombstone.
    pub fn sent(&mut self, number: StreamNo, last_seq: u64, at: Duration) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.cursor = last_seq + 1;
            self.flights.push_back(Flight { number, last_seq, at });
        }
    }

    /// When the batches in flight are given up and sent again.
    #[must_use]
    pub fn resend_at(&self) -> Option<Duration> {
        let wait = RESEND.saturating_mul(1 << self.attempts.min(8)).min(RESEND_MAX);
        self.flights.front().map(|flight| flight.at + wait)
    }

    /// Goes back to the marks when the oldest batch in flight is overdue.
    pub fn handle_timeout(&mut self, up: Duration) {
        if self.resend_at().is_some_and(|at| at <= up) {
            self.attempts = self.attempts.saturating_add(1);
            self.rewind();
        }
    }

    /// Goes back to the marks: a new session, or nothing came back.
    pub fn rewind(&mut self) {
        self.flights.clear();
        self.rewound = None;
        for stream in self.streams.values_mut() {
            stream.cursor = stream.mark + 1;
        }
    }

    /// Takes one stream's mark. Returns whether the mark moved (then it is worth writing down).
    ///
    /// Only the answer to a birth may move a mark back; then what is still held from there on is sent again.
    pub fn acked(&mut self, ack: &StreamAck, birth: bool) -> bool {
        let Some((number, stream)) = self.streams.iter_mut().find(|(_, stream)| stream.id == ack.stream)
        else {
            return false;
        };
        let number = *number;
        // A mark beyond what was ever sealed: the outbox was restored from an older image.
        let mark = ack.seq.min(stream.next_seq - 1);
        let before = stream.mark;
        if birth {
            stream.mark = mark;
            stream.cursor = mark + 1;
            self.flights.retain(|flight| flight.number != number);
        } else if mark > before {
            stream.mark = mark;
            stream.cursor = stream.cursor.max(mark + 1);
            self.flights.retain(|flight| flight.number != number || flight.last_seq > mark);
        } else if mark == before
            && self.flights.iter().any(|flight| flight.number == number)
            && self.rewound != Some((number, mark))
        {
            // The hub saw a gap: go back, once per mark (the timeout covers the rest).
            self.rewound = Some((number, mark));
            stream.cursor = mark + 1;
            self.flights.retain(|flight| flight.number != number);
        }
        if stream.mark > before || birth {
            self.attempts = 0;
            self.rewound = None;
        }
        stream.mark != before
    }
}

/// All four lanes.
#[derive(Debug, Clone, Default)]
pub struct Lanes([LaneState; Lane::ALL.len()]);

impl Lanes {
    /// One lane.
    #[must_use]
    pub fn get(&self, lane: Lane) -> &LaneState {
        &self.0[lane as usize]
    }

    /// One lane.
    pub fn get_mut(&mut self, lane: Lane) -> &mut LaneState {
        &mut self.0[lane as usize]
    }

    /// Batches in flight over all lanes.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.0.iter().map(LaneState::in_flight).sum()
    }

    /// Bytes of sealed batches held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().flat_map(|lane| lane.streams.values()).map(|stream| stream.bytes).sum()
    }

    /// What birth and heartbeat say: the streams of which anything was sealed, oldest first, at most `limit` per
    /// lane, and whether any were left out. The newest stream is always among them.
    #[must_use]
    pub fn states(&self, limit: usize) -> (BTreeMap<Lane, Vec<StreamState>>, bool) {
        let mut partial = false;
        let mut lanes = BTreeMap::new();
        for lane in Lane::ALL {
            let sealed = |stream: &&Stream| stream.next_seq > 1;
            let mut states: Vec<_> =
                self.get(lane).streams.values().filter(sealed).map(Stream::state).collect();
            if states.len() > limit {
                partial = true;
                let newest = states[states.len() - 1];
                states.truncate(limit - 1);
                states.push(newest);
            }
            if !states.is_empty() {
                lanes.insert(lane, states);
            }
        }
        (lanes, partial)
    }

    /// Goes back to the marks on every lane.
    pub fn rewind(&mut self) {
        self.0.iter_mut().for_each(LaneState::rewind);
        self.0.iter_mut().for_each(|lane| lane.attempts = 0);
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::ack::Verdict;

    use super::*;

    const S: StreamId = StreamId([1; 16]);

    fn lane(next_seq: u64, mark: u64) -> LaneState {
        let mut lane = LaneState::default();
        lane.streams
            .insert(1, Stream { next_seq, next_record: next_seq, mark, cursor: mark + 1, ..Stream::new(S) });
        lane
    }

    fn ack(seq: u64) -> StreamAck {
        StreamAck { stream: S, seq, verdict: Verdict::Ok }
    }

    fn send_all(lane: &mut LaneState, at: u64) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some((number, seq)) = lane.next_to_send() {
            lane.sent(number, seq, Duration::from_secs(at));
            sent.push(seq);
        }
        sent
    }

    #[test]
    fn acks_move_forward_only() {
        let mut lane = lane(6, 0);
        assert_eq!(send_all(&mut lane, 0), [1, 2, 3, 4, 5]);
        assert!(lane.acked(&ack(3), false));
        assert_eq!(lane.in_flight(), 2);
        assert!(!lane.acked(&ack(2), false));
        assert_eq!((lane.in_flight(), lane.next_to_send()), (2, None));
    }

    #[test]
    fn a_repeated_mark_rewinds_once() {
        let mut lane = lane(6, 0);
        send_all(&mut lane, 0);
        lane.acked(&ack(2), false);
        lane.acked(&ack(2), false);
        assert_eq!(send_all(&mut lane, 1), [3, 4, 5]);
        lane.acked(&ack(2), false);
        assert_eq!(lane.next_to_send(), None);
        assert!(lane.acked(&ack(5), false));
        assert_eq!(lane.in_flight(), 0);
    }

    #[test]
    fn the_answer_to_a_birth_may_move_a_mark_back() {
        let mut lane = lane(6, 4);
        assert!(lane.acked(&ack(1), true));
        assert_eq!(send_all(&mut lane, 0), [2, 3, 4, 5]);
    }

    #[test]
    fn a_mark_beyond_what_was_sealed_drains_the_stream() {
        let mut lane = lane(6, 0);
        assert!(lane.acked(&ack(40), true));
        assert!(lane.streams[&1].is_drained());
        assert_eq!(lane.next_to_send(), None);
    }

    #[test]
    fn overdue_batches_are_sent_again_with_growing_patience() {
        let mut lane = lane(3, 0);
        assert_eq!(send_all(&mut lane, 0), [1, 2]);
        lane.handle_timeout(Duration::from_secs(19));
        assert_eq!(lane.next_to_send(), None);
        lane.handle_timeout(Duration::from_secs(20));
        assert_eq!(send_all(&mut lane, 20), [1, 2]);
        assert_eq!(lane.resend_at(), Some(Duration::from_secs(60)));
    }

    #[test]
    fn streams_are_sent_one_after_the_other() {
        let mut lane = lane(3, 1);
        lane.streams.insert(2, Stream { next_seq: 2, next_record: 2, ..Stream::new(StreamId([2; 16])) });
        assert_eq!(send_all(&mut lane, 0), [2, 1]);
    }
}
