//! The sessions of the gate by node, and their outgoing queues.
//!
//! Owns which session is a node's current one. Called from the gate's threads and from the reader of the down
//! path; no lock is held across another or across IO.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use fleet_schemas::{NodeId, Topic};
use tokio::sync::Notify;

use crate::{
    gate::{rivals::Rivals, session::Cut},
    router::pipe::{Carry, Parcel},
    stats::Stats,
};

/// All sessions.
pub(crate) struct Sessions {
    by_node: Mutex<ByNode>,
    stats: Arc<Stats>,
}

struct ByNode {
    outlets: HashMap<NodeId, Arc<Outlet>>,
    rivals: Rivals,
    closed: bool,
}

/// A session is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotOpened {
    /// The gate closes.
    Closed,
    /// The node's sessions took each other over too often.
    Rivals,
}

/// What waits for one session.
#[derive(Default)]
pub(crate) struct Outlet {
    queue: Mutex<Queue>,
    /// Told when something was queued.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct Queue {
    parcels: VecDeque<Parcel>,
    bytes: usize,
    cut: Option<Cut>,
    /// Something was lost for want of room since the session last took something.
    overflowed: bool,
}

/// Most messages that wait for one session: a node that never reads loses its own messages only.
const QUEUE: usize = 256;
/// And most bytes, or a few deaf nodes with large messages would cost more than all others.
const QUEUE_BYTES: usize = 1024 * 1024;
/// A drained queue keeps no more than this.
const QUEUE_KEPT: usize = 8;

impl Sessions {
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        Self {
            by_node: Mutex::new(ByNode { outlets: HashMap::new(), rivals: Rivals::default(), closed: false }),
            stats,
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.by_node).outlets.len()
    }

    pub(crate) fn has(&self, node: &NodeId) -> bool {
        lock(&self.by_node).outlets.contains_key(node)
    }

    /// Makes a new session the node's current one and ends the one before.
    pub(crate) fn open(&self, node: &NodeId, now: Instant) -> Result<Arc<Outlet>, NotOpened> {
        let outlet = Arc::new(Outlet::default());
        let mut by_node = lock(&self.by_node);
        if by_node.closed {
            return Err(NotOpened::Closed);
        }
        if by_node.outlets.contains_key(node) && !by_node.rivals.take_over(node, now) {
            return Err(NotOpened::Rivals);
        }
        let old = by_node.outlets.insert(node.clone(), outlet.clone());
        drop(by_node);
        if let Some(old) = old {
            old.cut(Cut::TakenOver);
        }
        Ok(outlet)
    }

    /// A session ended; a newer one of the same node stays.
    pub(crate) fn close(&self, node: &NodeId, outlet: &Arc<Outlet>) {
        let mut by_node = lock(&self.by_node);
        if by_node.outlets.get(node).is_some_and(|current| Arc::ptr_eq(current, outlet)) {
            by_node.outlets.remove(node);
        }
    }

    /// Queues a message for the node it is for.
    pub(crate) fn deliver(&self, parcel: Parcel) {
        let outlet = match &parcel.topic {
            Topic::Down(node, _) => lock(&self.by_node).outlets.get(node).cloned(),
            Topic::Up(..) | Topic::Hub(_) => None,
        };
        let Some(outlet) = outlet else { return self.stats.down_unrouted.add(1) };
        let mut queue = lock(&outlet.queue);
        if queue.parcels.len() >= QUEUE || queue.bytes >= QUEUE_BYTES {
            queue.overflowed = true;
            return self.stats.down_overflow.add(1);
        }
        queue.bytes += parcel.cost();
        queue.parcels.push_back(parcel);
        drop(queue);
        outlet.wake.notify_one();
    }

    /// Ends a node's session, if it has one.
    pub(crate) fn cut(&self, node: &NodeId, cut: Cut) {
        if let Some(outlet) = lock(&self.by_node).outlets.get(node).cloned() {
            outlet.cut(cut);
        }
    }

    /// Ends all sessions and opens none from now on.
    pub(crate) fn close_all(&self) {
        let mut by_node = lock(&self.by_node);
        by_node.closed = true;
        let outlets: Vec<_> = by_node.outlets.values().cloned().collect();
        drop(by_node);
        for outlet in outlets {
            outlet.cut(Cut::Shutdown);
        }
    }
}

impl Outlet {
    /// Why the session is to end, if it is.
    pub(crate) fn cut_due(&self) -> Option<Cut> {
        lock(&self.queue).cut
    }

    /// Whether something was lost since the session last took something.
    pub(crate) fn overflowed(&self) -> bool {
        lock(&self.queue).overflowed
    }

    /// The next message.
    pub(crate) fn pop(&self) -> Option<Parcel> {
        let mut queue = lock(&self.queue);
        let parcel = queue.parcels.pop_front();
        queue.overflowed &= parcel.is_none();
        queue.bytes -= parcel.as_ref().map_or(0, Parcel::cost);
        if queue.parcels.is_empty() && queue.parcels.capacity() > QUEUE_KEPT {
            queue.parcels = VecDeque::new();
        }
        parcel
    }

    fn cut(&self, cut: Cut) {
        lock(&self.queue).cut.get_or_insert(cut);
        self.wake.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use fleet_schemas::topic::Down;

    use super::*;
    use crate::clock;

    #[test]
    fn a_queue_is_bounded_in_messages_and_in_bytes_and_gives_its_memory_back() {
        let stats = Arc::new(Stats::new(clock::now()));
        let sessions = Sessions::new(stats.clone());
        let node = NodeId::parse("edge-1").unwrap();
        let outlet = sessions.open(&node, clock::now()).unwrap();
        let drained = |payload: &[u8]| {
            for _ in 0..2 * QUEUE {
                sessions.deliver(Parcel::new(Topic::Down(node.clone(), Down::Ack), "t", payload, 1));
            }
            std::iter::from_fn(|| outlet.pop()).count()
        };
        assert_eq!(drained(b"small"), QUEUE);
        assert_eq!(drained(&[0; 200 * 1024]), 6);
        assert_eq!(stats.down_overflow.get() as usize, 4 * QUEUE - QUEUE - 6);
        let queue = lock(&outlet.queue);
        assert!(queue.bytes == 0 && queue.parcels.capacity() <= QUEUE_KEPT);
    }

    #[test]
    fn the_end_of_an_older_session_leaves_the_newer_one() {
        let sessions = Sessions::new(Arc::new(Stats::new(clock::now())));
        let (node, now) = (NodeId::parse("edge-1").unwrap(), clock::now());
        let old = sessions.open(&node, now).unwrap();
        let new = sessions.open(&node, now).unwrap();
        assert_eq!((old.cut_due(), new.cut_due()), (Some(Cut::TakenOver), None));
        sessions.close(&node, &old);
        assert!(sessions.has(&node));
        sessions.close(&node, &new);
        assert!(!sessions.has(&node));
        sessions.close_all();
        assert!(sessions.open(&node, now).is_err());
    }
}
