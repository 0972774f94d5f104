//! The sessions of the gate by node, their outgoing queues, and the caps on connections.
//!
//! Owns which session is a node's current one. Called from the gate's threads and from the reader of the down
//! path; no lock is held across another or across IO.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fleet_schemas::{NodeId, Topic};
use tokio::sync::Notify;

use crate::{
    gate::session::Cut,
    router::pipe::Parcel,
    stats::{Reason, Stats},
};

/// All sessions.
pub(crate) struct Sessions {
    by_node: Mutex<ByNode>,
    stats: Arc<Stats>,
}

struct ByNode {
    outlets: HashMap<NodeId, Arc<Outlet>>,
    closed: bool,
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
}

/// Counts open connections, in all and by address.
pub(crate) struct Caps {
    open: Mutex<Open>,
    total: usize,
    per_address: usize,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One counted connection; dropping it gives the place back.
pub(crate) struct Slot {
    caps: Arc<Caps>,
    address: IpAddr,
}

/// Most messages that wait for one session: a node that never reads loses its own messages only.
const QUEUE: usize = 256;
/// And most bytes, or a few deaf nodes with large messages would cost more than all others.
const QUEUE_BYTES: usize = 1024 * 1024;
/// A drained queue keeps no more than this.
const QUEUE_KEPT: usize = 8;

impl Sessions {
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        Self { by_node: Mutex::new(ByNode { outlets: HashMap::new(), closed: false }), stats }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.by_node).outlets.len()
    }

    pub(crate) fn has(&self, node: &NodeId) -> bool {
        lock(&self.by_node).outlets.contains_key(node)
    }

    /// Makes a new session the node's current one and ends the one before. `None` when the gate closes.
    pub(crate) fn open(&self, node: &NodeId) -> Option<Arc<Outlet>> {
        let outlet = Arc::new(Outlet::default());
        let mut by_node = lock(&self.by_node);
        if by_node.closed {
            return None;
        }
        let old = by_node.outlets.insert(node.clone(), outlet.clone());
        drop(by_node);
        if let Some(old) = old {
            old.cut(Cut::TakenOver);
        }
        Some(outlet)
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

    /// The next message.
    pub(crate) fn pop(&self) -> Option<Parcel> {
        let mut queue = lock(&self.queue);
        let parcel = queue.parcels.pop_front();
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

impl Caps {
    pub(crate) fn new(total: usize, per_address: usize, stats: Arc<Stats>) -> Self {
        Self { open: Mutex::default(), total, per_address, stats }
    }

    /// Counts a connection, unless one of the caps is reached.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Slot, Reason> {
        let mut open = lock(&self.open);
        if open.total >= self.total {
            return Err(Reason::Busy);
        }
        let here = open.by_address.entry(address).or_default();
        if *here >= self.per_address {
            return Err(Reason::AddressBusy);
        }
        *here += 1;
        open.total += 1;
        self.stats.connections.add(1);
        Ok(Slot { caps: self.clone(), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = lock(&self.caps.open);
        open.total -= 1;
        self.caps.stats.connections.sub(1);
        if let Some(here) = open.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                open.by_address.remove(&self.address);
            }
        }
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
        let outlet = sessions.open(&node).unwrap();
        let drained = |payload: &[u8]| {
            for _ in 0..2 * QUEUE {
                sessions.deliver(Parcel::new(Topic::Down(node.clone(), Down::Ack), "t", payload));
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
        let node = NodeId::parse("edge-1").unwrap();
        let old = sessions.open(&node).unwrap();
        let new = sessions.open(&node).unwrap();
        assert_eq!((old.cut_due(), new.cut_due()), (Some(Cut::TakenOver), None));
        sessions.close(&node, &old);
        assert!(sessions.has(&node));
        sessions.close(&node, &new);
        assert!(!sessions.has(&node));
        sessions.close_all();
        assert!(sessions.open(&node).is_none());
    }
}
