//! The mark of one (node, lane, stream): the hub's half of the protocol of DESIGN section 4.
//!
//! Pure. Numbers in, what to do out; the row is written in the transaction that stores the batch.

mod window;

use fleet_schemas::{
    StreamId,
    batch::{Batch, Digest, Lost},
    session::StreamState,
};
use serde::{Deserialize, Serialize};

use window::Window;

/// Where a stream's life stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// The edge lists it.
    Open,
    /// The edge no longer lists it: drained, or its storage is gone and what was missing is booked.
    Closed,
    /// Another copy of it delivered something else under its numbers.
    Forked,
    /// The edge came back with less than it had delivered.
    RolledBack,
}

/// Evidence that something is wrong at the edge; makes the account `broken`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The oldest batch held lies above the mark: records between are neither here nor there.
    FloorAboveMark,
    /// The edge is about to use numbers again that are already stored.
    NextBelowMark,
    /// The rows counted are not as many as the numbers say.
    Miscounted,
}

/// When an edge said something, by its own monotonic clock: orders what arrives out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The boot.
    #[serde(with = "serde_bytes")]
    pub boot: [u8; 8],
    /// Milliseconds since that boot.
    pub up_ms: u64,
}

impl Said {
    /// Whether this was certainly said before `other`.
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        self.boot == other.boot && self.up_ms < other.up_ms
    }
}

/// What the edge last said of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Number its next record will have.
    pub next_record: u64,
    /// What was wrong with it when it arrived.
    pub fault: Option<Fault>,
    /// When it arrived, hub time.
    pub at_ms: i64,
}

/// The row of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Everything up to this batch is stored or accounted for.
    pub seq: u64,
    /// Number of the first record that is not.
    pub next_record: u64,
    /// Where the stream's life stands.
    pub life: Life,
    /// What the edge last said of it.
    pub snapshot: Option<Snapshot>,
    /// The latest evidence of its life at the edge.
    pub said: Option<Said>,
    /// When the row last changed, hub time.
    pub at_ms: i64,
    digests: Window,
    // The lowest number that was called a fork in this session.
    #[serde(skip)]
    forked_at: Option<u64>,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// The next one: store its records, after booking `hole` records before it as lost.
    Next {
        /// Records missing between the mark and the batch although no number is.
        hole: u64,
    },
    /// Already stored: ack again.
    Again,
    /// Not the next: ack the mark again.
    Gap,
    /// Something else is stored under this number: never ack.
    Fork,
}

/// What a birth means for a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// Records that are neither here nor at the edge: to be booked as lost.
    pub hole: u64,
    /// Whether the edge came back with less than it had delivered.
    pub rolled_back: bool,
}

impl Default for Mark {
    fn default() -> Self {
        Self {
            seq: 0,
            next_record: 1,
            life: Life::Open,
            snapshot: None,
            said: None,
            at_ms: 0,
            digests: Window::default(),
            forked_at: None,
        }
    }
}

impl Mark {
    /// Judges a batch by its numbers and digest.
    #[must_use]
    pub fn offer(&self, batch: &Batch, digest: Digest) -> Offer {
        if batch.seq > self.seq + 1 {
            return Offer::Gap;
        }
        if batch.seq <= self.seq {
            return match self.digests.of(batch.seq) {
                Some((first, last, known)) => {
                    let same = first == batch.seq && last == batch.last_seq() && known == digest;
                    if same { Offer::Again } else { Offer::Fork }
                }
                // Older than the window, or booked as a hole.
                None if batch.last_seq() <= self.seq => Offer::Again,
                None => Offer::Fork,
            };
        }
        match batch.first.checked_sub(self.next_record) {
            Some(hole) => Offer::Next { hole },
            None => Offer::Fork,
        }
    }

    /// Moves the mark over a batch that [`Mark::offer`] called the next.
    pub fn take(&mut self, batch: &Batch, digest: Digest, now_ms: i64) {
        self.seq = batch.last_seq();
        self.next_record = batch.next_record();
        self.hear(Said { boot: batch.boot, up_ms: batch.up_ms });
        self.at_ms = now_ms;
        if self.life == Life::Closed {
            self.life = Life::Open;
        }
        self.digests.push((batch.seq, batch.last_seq(), digest));
    }

    /// Batch `seq`, which [`Mark::offer`] called a fork: the edge seals what it holds from there on anew, so nothing
    /// more is owed. Gives whether the stream was none before.
    pub fn fork(&mut self, seq: u64, now_ms: i64) -> bool {
        self.forked_at = Some(self.forked_at.map_or(seq, |before| before.min(seq)));
        let is_new = self.life != Life::Forked;
        if is_new {
            self.life = Life::Forked;
            self.at_ms = now_ms;
        }
        is_new
    }

    /// Whether the edge, by what it says after its birth, still has of this stream what is not here: numbers above the
    /// mark, or numbers that were called a fork and that it has not yet sealed anew. What it holds below is acked.
    #[must_use]
    pub fn is_owed(&self, state: &StreamState) -> bool {
        state.next_seq > self.seq + 1 || self.forked_at.is_some_and(|seq| seq < state.next_seq)
    }

    fn hear(&mut self, said: Said) {
        if self.said.is_none_or(|before| !said.is_before(before)) {
            self.said = Some(said);
        }
    }

    /// Takes what a birth says: the edge's state is compared and settled once for all, so that no lane waits for
    /// what nobody has. Said before the latest batch was sealed: it proves nothing.
    pub fn birth(&mut self, state: &StreamState, said: Said, now_ms: i64) -> Settled {
        if self.said.is_some_and(|latest| said.is_before(latest)) {
            return Settled::default();
        }
        let mut settled = Settled::default();
        self.forked_at = None;
        match self.life {
            // The edge lists what it sealed anew, or what we had given up: only the numbers above the mark count.
            Life::Forked | Life::RolledBack => {}
            Life::Open | Life::Closed => self.life = Life::Open,
        }
        if state.next_seq <= self.seq {
            settled.rolled_back = self.life != Life::RolledBack;
            self.life = Life::RolledBack;
        } else if state.floor_seq > self.seq + 1 {
            settled.hole = state.floor_record.saturating_sub(self.next_record);
            self.seq = state.floor_seq - 1;
            self.next_record = self.next_record.max(state.floor_record);
        }
        self.observe(state, said, now_ms);
        self.at_ms = now_ms;
        settled
    }

    /// Takes what a heartbeat says.
    pub fn observe(&mut self, state: &StreamState, said: Said, now_ms: i64) {
        if self.said.is_some_and(|latest| said.is_before(latest)) {
            return;
        }
        self.hear(said);
        let fault = match self.life {
            Life::Forked | Life::RolledBack => None,
            Life::Open | Life::Closed => self.fault(state),
        };
        self.snapshot = Some(Snapshot { next_record: state.next_record, fault, at_ms: now_ms });
    }

    fn fault(&self, state: &StreamState) -> Option<Fault> {
        let held = state.next_record.saturating_sub(state.floor_record);
        if state.floor_seq > self.seq + 1 {
            Some(Fault::FloorAboveMark)
        } else if state.next_seq <= self.seq {
            Some(Fault::NextBelowMark)
        } else if state.counted.checked_add(state.tombstoned) != Some(held) {
            Some(Fault::Miscounted)
        } else {
            None
        }
    }

    /// The edge no longer lists the stream: whatever it announced and we never got is gone. Returns those records.
    pub fn close(&mut self, said: Said, now_ms: i64) -> u64 {
        let stale = self.said.is_some_and(|latest| said.is_before(latest));
        if self.life != Life::Open || stale {
            return 0;
        }
        let missing = self.at_edge();
        self.next_record += missing;
        self.life = Life::Closed;
        self.at_ms = now_ms;
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.fault = None;
        }
        missing
    }

    /// Gives up what is still at the edge (the node was replaced or removed), and whatever was wrong there. Returns those
    /// records. Should the edge come back with them after all, they are a fork: stored under another stream.
    pub fn write_off(&mut self, now_ms: i64) -> u64 {
        let missing = self.at_edge();
        self.next_record += missing;
        self.life = Life::Closed;
        self.at_ms = now_ms;
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.fault = None;
        }
        missing
    }

    /// Whether nothing more is owed by this stream.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self.life {
            Life::Open => false,
            Life::Closed | Life::Forked | Life::RolledBack => true,
        }
    }

    /// Takes over the account of a stream that is over; this row stands for many from now on.
    pub fn absorb(&mut self, other: &Self, now_ms: i64) {
        self.next_record += other.accounted();
        self.life = Life::Closed;
        self.at_ms = now_ms;
    }

    /// Records that the edge announced and we do not have yet.
    #[must_use]
    pub fn at_edge(&self) -> u64 {
        match self.life {
            Life::Open => {
                self.snapshot.map_or(0, |snapshot| snapshot.next_record.saturating_sub(self.next_record))
            }
            Life::Closed | Life::Forked | Life::RolledBack => 0,
        }
    }

    /// Records that are accounted for here.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.next_record - 1
    }

    /// What is wrong at the edge by its last word.
    #[must_use]
    pub fn fault_now(&self) -> Option<Fault> {
        self.snapshot.and_then(|snapshot| snapshot.fault)
    }
}

/// Why a hole found at a birth is there.
#[must_use]
pub fn reason_for_hole(node_is_new: bool) -> Lost {
    // A node that we never met delivered the first part to another hub; one that we know had an acked part that
    // a restored backup of ours no longer contains.
    if node_is_new { Lost::Moved } else { Lost::HubRollback }
}

/// The stream id under which drained streams are folded into one row.
pub const FOLDED: StreamId = StreamId([0; 16]);

#[cfg(test)]
mod tests {
    use fleet_schemas::{VERSION, batch::Clock};

    use super::*;

    const S: StreamId = StreamId([1; 16]);

    fn batch(seq: u64, first: u64, count: u64) -> Batch {
        Batch {
            v: VERSION,
            stream: S,
            seq,
            seq_to: None,
            first,
            count,
            boot: [1; 8],
            up_ms: seq * 10,
            clock: Clock::Synced,
            sealed_ms: 0,
            lost: None,
            body: vec![],
        }
    }

    fn at(seq: u64) -> Mark {
        let mut mark = Mark::default();
        for n in 1..=seq {
            assert_eq!(mark.offer(&batch(n, n, 1), digest(n)), Offer::Next { hole: 0 });
            mark.take(&batch(n, n, 1), digest(n), 0);
        }
        mark
    }

    fn digest(n: u64) -> Digest {
        n.to_le_bytes()
    }

    fn state(floor: u64, next: u64) -> StreamState {
        StreamState {
            stream: S,
            floor_seq: floor,
            floor_record: floor,
            next_seq: next,
            next_record: next,
            counted: next - floor,
            tombstoned: 0,
        }
    }

    fn said(up_ms: u64) -> Said {
        Said { boot: [1; 8], up_ms }
    }

    #[test]
    fn batches_are_taken_in_order_once() {
        let mark = at(40);
        assert_eq!(mark.offer(&batch(40, 40, 1), digest(40)), Offer::Again);
        assert_eq!(mark.offer(&batch(40, 40, 1), digest(7)), Offer::Fork);
        assert_eq!(mark.offer(&batch(3, 3, 1), digest(7)), Offer::Again);
        assert_eq!(mark.offer(&batch(42, 42, 1), digest(42)), Offer::Gap);
        assert_eq!(mark.offer(&batch(41, 40, 1), digest(41)), Offer::Fork);
        assert_eq!(mark.offer(&batch(41, 44, 1), digest(41)), Offer::Next { hole: 3 });
    }

    #[test]
    fn a_tombstone_covers_its_numbers() {
        let mut mark = at(2);
        let tombstone = Batch { seq_to: Some(9), lost: Some(Lost::OutboxFull), ..batch(3, 3, 70) };
        assert_eq!(mark.offer(&tombstone, digest(3)), Offer::Next { hole: 0 });
        mark.take(&tombstone, digest(3), 0);
        assert_eq!((mark.seq, mark.next_record), (9, 73));
        assert_eq!(mark.offer(&tombstone, digest(3)), Offer::Again);
        assert_eq!(mark.offer(&batch(5, 5, 1), digest(5)), Offer::Fork);
    }

    #[test]
    fn a_restored_hub_books_the_hole_and_goes_on() {
        let mut mark = at(2);
        let settled = mark.birth(&state(7, 9), said(100), 0);
        assert_eq!(settled, Settled { hole: 4, rolled_back: false });
        assert_eq!(mark.offer(&batch(7, 7, 1), digest(7)), Offer::Next { hole: 0 });
        assert_eq!(mark.at_edge(), 2);
    }

    #[test]
    fn a_restored_edge_is_reported_once_and_owes_nothing() {
        let mut mark = at(5);
        assert!(mark.birth(&state(2, 4), said(100), 0).rolled_back);
        assert!(!mark.birth(&state(2, 4), said(101), 0).rolled_back);
        assert_eq!((mark.at_edge(), mark.fault_now()), (0, None));
    }

    #[test]
    fn a_birth_that_was_overtaken_proves_nothing() {
        let mut mark = at(5);
        assert_eq!(mark.birth(&state(2, 4), said(49), 0), Settled::default());
        assert_eq!(mark.life, Life::Open);
        assert_eq!(mark.close(said(49), 0), 0);
        assert_eq!(mark.life, Life::Open);
    }

    #[test]
    fn a_stream_that_vanishes_leaves_what_it_announced_as_lost() {
        let mut mark = at(5);
        mark.observe(&state(2, 9), said(100), 0);
        assert_eq!(mark.at_edge(), 3);
        assert_eq!(mark.close(said(101), 0), 3);
        assert_eq!((mark.at_edge(), mark.accounted()), (0, 8));
        assert_eq!(mark.close(said(102), 0), 0);
    }

    #[test]
    fn faults_are_found() {
        let mut mark = at(5);
        mark.observe(&state(7, 9), said(100), 0);
        assert_eq!(mark.fault_now(), Some(Fault::FloorAboveMark));
        mark.observe(&state(2, 4), said(101), 0);
        assert_eq!(mark.fault_now(), Some(Fault::NextBelowMark));
        mark.observe(&StreamState { counted: 1, ..state(2, 9) }, said(102), 0);
        assert_eq!(mark.fault_now(), Some(Fault::Miscounted));
        mark.observe(&state(2, 9), said(103), 0);
        assert_eq!(mark.fault_now(), None);
    }
}
