//! One direction of traffic on its way through the router: what waits to be handed over, what is in the router,
//! and what was received and not yet taken, in one ring (GATE-NOTES 2, 11).
//!
//! The ring keeps its own reference to every message, so a message is recognised on the other side of the router
//! by the address of its bytes, and what a dead router swallowed is handed to the next one. Knows no router.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use fleet_schemas::Topic;
use tokio::sync::Notify;

use crate::stats::{Counter, Gauge};

/// What a pipe takes through the router.
pub(crate) trait Carry: Clone {
    /// Topic and payload as the router has them.
    fn carried(&self) -> (Bytes, Bytes);

    /// Bytes that it counts for in the budget.
    fn cost(&self) -> usize;

    /// Where the topic's bytes are, in an allocation of its own: the router passes them on without copying.
    fn address(&self) -> usize;
}

/// A message of a node, to one, or of the hub: its topic, read and as text, and its payload, in one allocation of its
/// own. The last byte is the QoS it was published at: the router, which is spoken to at QoS 0, carries it to the ears
/// of tools as a part of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parcel {
    pub(crate) topic: Topic,
    bytes: Bytes,
    topic_len: usize,
}

/// A ring of parcels with three marks: received ≤ handed ≤ length.
pub(crate) struct Pipe<P = Parcel> {
    state: Mutex<State<P>>,
    work: Condvar,
    /// Bytes of all parcels of the ring; written under the lock, read without.
    cost: AtomicUsize,
    budget: usize,
    gauge: Arc<Gauge>,
    /// Told when there is room again after there was none.
    room: Notify,
}

struct State<P> {
    ring: VecDeque<Entry<P>>,
    received: usize,
    handed: usize,
    /// Bytes of the entries between the two marks.
    in_router: usize,
    generation: u64,
    closed: bool,
}

struct Entry<P> {
    parcel: P,
    /// How many routers died with it in flight.
    deaths: u8,
}

/// What became of the addresses that came out of a router.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Parcels the router skipped and that came from the ring.
    pub(crate) recovered: usize,
    /// Addresses the ring does not know.
    pub(crate) foreign: usize,
}

/// The pipe has a newer router, or none any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// What a message costs beyond its bytes: the router's log entry, the ring's, the allocation's own head. Counted,
/// or ten thousand small messages would cost many times the budget.
pub(crate) const OVERHEAD: usize = 512;
/// Most parcels handed over at once: bounds how long the router is busy with one batch.
const BATCH: usize = 4_096;
/// A parcel in flight at this many deaths is not shown to a router again.
const DEATHS: u8 = 2;
/// A feeder looks up at least this often, to notice what nobody told it.
const LOOK: Duration = Duration::from_millis(500);

impl Parcel {
    /// `text` is the topic's; `qos` is 0 or 1.
    pub(crate) fn new(topic: Topic, text: &str, payload: &[u8], qos: u8) -> Self {
        let mut bytes = BytesMut::with_capacity(text.len() + payload.len() + 1);
        bytes.put_slice(text.as_bytes());
        bytes.put_slice(payload);
        bytes.put_u8(qos);
        Self { topic, bytes: bytes.freeze(), topic_len: text.len() }
    }

    pub(crate) fn payload(&self) -> Bytes {
        self.bytes.slice(self.topic_len..self.bytes.len() - 1)
    }

    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes[..self.bytes.len() - 1].split_at(self.topic_len)
    }
}

/// The payload and the QoS of a [`Parcel`], of the payload that came out of the router.
pub(crate) fn unpack(carried: &[u8]) -> (&[u8], u8) {
    carried.split_last().map_or((carried, 0), |(qos, payload)| (payload, *qos))
}

impl Carry for Parcel {
    fn carried(&self) -> (Bytes, Bytes) {
        (self.bytes.slice(..self.topic_len), self.bytes.slice(self.topic_len..))
    }

    fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    fn address(&self) -> usize {
        self.bytes.as_ptr().addr()
    }
}

impl<P: Carry> Pipe<P> {
    pub(crate) fn new(budget: usize, gauge: Arc<Gauge>) -> Self {
        let state = State {
            ring: VecDeque::new(),
            received: 0,
            handed: 0,
            in_router: 0,
            generation: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            cost: AtomicUsize::new(0),
            budget,
            gauge,
            room: Notify::new(),
        }
    }

    /// Whether the budget has room. Ask immediately before reading what would be pushed.
    pub(crate) fn has_room(&self) -> bool {
        self.cost.load(Ordering::Acquire) < self.budget
    }

    /// Waits until the budget has room.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// Appends parcels, over the budget if need be: they were already read.
    pub(crate) fn push(&self, parcels: &mut Vec<P>) {
        let mut state = self.lock();
        let cost: usize = parcels.iter().map(P::cost).sum();
        state.ring.extend(parcels.drain(..).map(|parcel| Entry { parcel, deaths: 0 }));
        self.grow(cost);
        drop(state);
        self.work.notify_one();
    }

    /// Appends a parcel if the budget has room and the pipe is open.
    pub(crate) fn try_push(&self, parcel: P) -> Result<(), P> {
        let mut state = self.lock();
        if state.closed || !self.has_room() {
            return Err(parcel);
        }
        let cost = parcel.cost();
        state.ring.push_back(Entry { parcel, deaths: 0 });
        self.grow(cost);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for parcels to hand to the router of `generation`, at most `window` bytes being in it.
    pub(crate) fn next_batch(&self, generation: u64, window: usize, into: &mut Vec<P>) -> Result<(), Stale> {
        let mut state = self.lock();
        loop {
            if state.closed || state.generation != generation {
                return Err(Stale);
            }
            while state.handed < state.ring.len() && state.in_router < window && into.len() < BATCH {
                let entry = &state.ring[state.handed];
                let cost = entry.parcel.cost();
                if entry.deaths < DEATHS {
                    into.push(entry.parcel.clone());
                }
                state.handed += 1;
                state.in_router += cost;
            }
            if !into.is_empty() {
                return Ok(());
            }
            state = self.work.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes note of what came out of the router of `generation`, by address and in order, and gives the parcels.
    /// Parcels that never go through a router come along in their turn; `addresses` may be empty.
    pub(crate) fn receive(
        &self,
        generation: u64,
        addresses: &[usize],
        into: &mut Vec<P>,
    ) -> Result<Received, Stale> {
        let mut state = self.lock();
        if state.generation != generation {
            return Err(Stale);
        }
        let mut outcome = Received::default();
        for &address in addresses {
            state.unrouted(into);
            let ahead = state.ring.range(state.received..state.handed);
            match ahead.into_iter().position(|entry| entry.parcel.address() == address) {
                None => outcome.foreign += 1,
                Some(skipped) => {
                    for _ in 0..=skipped {
                        outcome.recovered += usize::from(state.advance(into));
                    }
                    outcome.recovered -= 1;
                }
            }
        }
        state.unrouted(into);
        if state.handed < state.ring.len() {
            self.work.notify_one();
        }
        Ok(outcome)
    }

    /// After [`Self::close`]: what no router will deliver any more, from the ring.
    pub(crate) fn drain(&self, max: usize, into: &mut Vec<P>) {
        let mut state = self.lock();
        if state.closed {
            state.handed = state.ring.len();
            while state.received < state.handed && into.len() < max {
                state.advance(into);
            }
        }
    }

    /// Forgets the `count` oldest received parcels and gives their bytes back to the budget.
    pub(crate) fn taken(&self, count: usize) {
        let mut state = self.lock();
        let count = count.min(state.received);
        let cost: usize = state.ring.drain(..count).map(|entry| entry.parcel.cost()).sum();
        state.received -= count;
        state.handed -= count;
        if state.ring.capacity() > BATCH && state.ring.len() < state.ring.capacity() / 8 {
            state.ring.shrink_to(BATCH);
        }
        let before = self.cost.fetch_sub(cost, Ordering::AcqRel);
        self.gauge.sub(cost);
        drop(state);
        if before >= self.budget && before - cost < self.budget {
            self.room.notify_waiters();
        }
    }

    /// Lets go of what was handed over: it is not worth saying twice.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        state.received = state.handed;
        state.in_router = 0;
        let count = state.handed;
        drop(state);
        self.taken(count);
    }

    /// A new router takes over: everything handed over and not received goes to it, but for what was in flight at
    /// [`DEATHS`] deaths, which never sees a router again.
    pub(crate) fn restart(&self, generation: u64, quarantined: &Counter) {
        let mut state = self.lock();
        let (received, handed) = (state.received, state.handed);
        for entry in state.ring.range_mut(received..handed).filter(|entry| entry.deaths < DEATHS) {
            entry.deaths += 1;
            quarantined.add(usize::from(entry.deaths == DEATHS));
        }
        state.handed = received;
        state.in_router = 0;
        state.generation = generation;
        drop(state);
        self.work.notify_all();
    }

    /// Whether the router of `generation` is the one in use.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        let state = self.lock();
        !state.closed && state.generation == generation
    }

    /// Ends the feeders.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }

    fn grow(&self, cost: usize) {
        self.cost.fetch_add(cost, Ordering::AcqRel);
        self.gauge.add(cost);
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Carry> State<P> {
    /// Moves the received mark over one entry; says whether the entry was in the router.
    fn advance(&mut self, into: &mut Vec<P>) -> bool {
        let entry = &self.ring[self.received];
        into.push(entry.parcel.clone());
        self.received += 1;
        self.in_router = self.in_router.saturating_sub(entry.parcel.cost());
        entry.deaths < DEATHS
    }

    /// Moves the received mark over entries that no router is shown.
    fn unrouted(&mut self, into: &mut Vec<P>) {
        while self.received < self.ring.len() && self.ring[self.received].deaths >= DEATHS {
            if self.handed == self.received {
                self.in_router += self.ring[self.handed].parcel.cost();
                self.handed += 1;
            }
            self.advance(into);
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{NodeId, topic::Up};

    use super::*;

    fn parcels(range: std::ops::Range<u8>) -> Vec<Parcel> {
        let topic = Topic::Up(NodeId::parse("a").unwrap(), Up::Heartbeat);
        range.map(|n| Parcel::new(topic.clone(), "fleet/v1/a/up/heartbeat", &[n], 0)).collect()
    }

    fn pipe() -> Pipe {
        Pipe::new(10 * 1024, Arc::default())
    }

    #[test]
    fn a_parcel_carries_its_qos_behind_its_payload() {
        let topic = Topic::Up(NodeId::parse("a").unwrap(), Up::Heartbeat);
        for (payload, qos) in [(&b""[..], 1), (b"payload", 0)] {
            let parcel = Parcel::new(topic.clone(), "t", payload, qos);
            let (text, carried) = parcel.carried();
            assert_eq!((&text[..], text.as_ptr().addr()), (&b"t"[..], parcel.address()));
            assert_eq!(unpack(&carried), (payload, qos));
            assert_eq!((parcel.parts(), &parcel.payload()[..]), ((&b"t"[..], payload), payload));
        }
    }

    fn numbers(parcels: &[Parcel]) -> Vec<u8> {
        parcels.iter().map(|parcel| parcel.payload()[0]).collect()
    }

    fn handed(pipe: &Pipe, generation: u64) -> Vec<Parcel> {
        let mut batch = vec![];
        pipe.next_batch(generation, usize::MAX, &mut batch).unwrap();
        batch
    }

    fn received(pipe: &Pipe, generation: u64, parcels: &[Parcel]) -> (Vec<u8>, Received) {
        let addresses: Vec<_> = parcels.iter().map(Parcel::address).collect();
        let mut into = vec![];
        let outcome = pipe.receive(generation, &addresses, &mut into).unwrap();
        (numbers(&into), outcome)
    }

    #[test]
    fn what_a_dead_router_swallowed_goes_to_the_next_in_order() {
        let pipe = pipe();
        pipe.push(&mut parcels(0..6));
        let batch = handed(&pipe, 0);
        assert_eq!(received(&pipe, 0, &batch[..2]).0, [0, 1]);
        let quarantined = Counter::default();
        pipe.restart(1, &quarantined);
        let mut none = vec![];
        assert_eq!(pipe.receive(0, &[batch[2].address()], &mut none), Err(Stale));
        pipe.push(&mut parcels(6..8));
        let batch = handed(&pipe, 1);
        assert_eq!(numbers(&batch), [2, 3, 4, 5, 6, 7]);
        assert_eq!(received(&pipe, 1, &batch), (vec![2, 3, 4, 5, 6, 7], Received::default()));
        assert_eq!(quarantined.get(), 0);
    }

    #[test]
    fn what_was_in_flight_at_two_deaths_is_kept_from_routers_and_still_delivered_in_its_place() {
        let (pipe, quarantined) = (pipe(), Counter::default());
        pipe.push(&mut parcels(0..2));
        handed(&pipe, 0);
        pipe.restart(1, &quarantined);
        handed(&pipe, 1);
        pipe.restart(2, &quarantined);
        assert_eq!(quarantined.get(), 2);
        pipe.push(&mut parcels(2..4));
        let batch = handed(&pipe, 2);
        assert_eq!(numbers(&batch), [2, 3]);
        assert_eq!(received(&pipe, 2, &batch), (vec![0, 1, 2, 3], Received::default()));
    }

    #[test]
    fn what_the_router_skipped_comes_from_the_ring_and_strangers_are_counted() {
        let pipe = pipe();
        pipe.push(&mut parcels(0..4));
        let batch = handed(&pipe, 0);
        let stranger = parcels(9..10);
        let strange = received(&pipe, 0, &stranger);
        assert_eq!(strange, (vec![], Received { recovered: 0, foreign: 1 }));
        let skipping = received(&pipe, 0, &batch[2..]);
        assert_eq!(skipping, (vec![0, 1, 2, 3], Received { recovered: 2, foreign: 0 }));
    }

    #[test]
    fn only_taken_parcels_give_room_back() {
        let gauge = Arc::new(Gauge::default());
        let pipe = Pipe::new(1_000, gauge.clone());
        pipe.push(&mut parcels(0..2));
        assert!(!pipe.has_room());
        assert!(pipe.try_push(parcels(2..3).remove(0)).is_err());
        let batch = handed(&pipe, 0);
        received(&pipe, 0, &batch[..1]);
        assert!(!pipe.has_room());
        pipe.taken(2);
        assert!(pipe.has_room(), "one was received and is taken");
        received(&pipe, 0, &batch[1..]);
        pipe.taken(1);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_window_bounds_what_is_in_the_router() {
        let pipe = pipe();
        pipe.push(&mut parcels(0..4));
        let mut batch = vec![];
        pipe.next_batch(0, 1_000, &mut batch).unwrap();
        assert_eq!(numbers(&batch), [0, 1]);
        received(&pipe, 0, &batch);
        batch.clear();
        pipe.next_batch(0, 1_000, &mut batch).unwrap();
        assert_eq!(numbers(&batch), [2, 3]);
    }

    #[test]
    fn a_closed_pipe_gives_what_is_left_and_ends_its_feeders() {
        let pipe = pipe();
        pipe.push(&mut parcels(0..3));
        let batch = handed(&pipe, 0);
        received(&pipe, 0, &batch[..1]);
        pipe.close();
        let mut rest = vec![];
        assert_eq!(pipe.next_batch(0, usize::MAX, &mut rest), Err(Stale));
        pipe.drain(10, &mut rest);
        assert_eq!(numbers(&rest), [1, 2]);
    }
}
