//! The simulated network and gate: per connection two queues that lose, delay, double and reorder.
//!
//! What is under way belongs to a connection and dies with it, as with TCP.

use std::collections::BTreeMap;

use bytes::Bytes;
use fleet_schemas::{NodeId, Topic};
use rand::{Rng, RngExt as _, rngs::StdRng};

/// What may happen to a message, in permille, and how late it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weather {
    pub lose: u32,
    pub double: u32,
    pub delay_ms: u64,
}

impl Weather {
    /// Everything arrives, in order, after a moment.
    pub(super) const CALM: Self = Self { lose: 0, double: 0, delay_ms: 0 };
}

/// One direction of one connection, or the gate's own voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// From the agent on connection n to the hub.
    Up(u64),
    /// From the hub to the agent on connection n.
    Down(u64),
    /// Wills: from the gate to the hub.
    Gate,
}

#[derive(Debug, Clone)]
struct Packet {
    way: Way,
    topic: Topic,
    payload: Bytes,
}

/// Everything under way.
#[derive(Debug, Default)]
pub(super) struct Net {
    // By delivery time, then by order of sending.
    packets: BTreeMap<(u64, u64), Packet>,
    order: u64,
    connections: u64,
    // Connection and index of the agent that holds it.
    sessions: BTreeMap<NodeId, (u64, usize)>,
}

impl Net {
    /// Opens a connection; a second one of the same node ends the first, whose agent is returned.
    pub(super) fn connect(&mut self, node: &NodeId, agent: usize) -> (u64, Option<usize>) {
        self.connections += 1;
        let before = self.sessions.insert(node.clone(), (self.connections, agent));
        if let Some((connection, _)) = before {
            self.cut(connection);
        }
        (self.connections, before.map(|(_, agent)| agent))
    }

    /// The connection is gone, and with it what was under way on it.
    pub(super) fn disconnect(&mut self, node: &NodeId, connection: u64) {
        if self.sessions.get(node).is_some_and(|(current, _)| *current == connection) {
            self.sessions.remove(node);
        }
        self.cut(connection);
    }

    fn cut(&mut self, connection: u64) {
        self.packets.retain(|_, p| p.way != Way::Up(connection) && p.way != Way::Down(connection));
    }

    /// The hub's process died: all connections and everything under way are gone.
    pub(super) fn clear(&mut self) {
        self.packets.clear();
        self.sessions.clear();
    }

    /// The connection of a node's current session.
    pub(super) fn session(&self, node: &NodeId) -> Option<(u64, usize)> {
        self.sessions.get(node).copied()
    }

    /// Sends a message `after` milliseconds at the earliest.
    pub(super) fn send(
        &mut self,
        rng: &mut StdRng,
        weather: Weather,
        (now, after): (u64, u64),
        way: Way,
        (topic, payload): (&Topic, &Bytes),
    ) {
        if rng.random_range(0..1000) < weather.lose {
            return;
        }
        let copies = 1 + u64::from(rng.random_range(0..1000) < weather.double);
        for _ in 0..copies {
            let late = if weather.delay_ms == 0 { 1 } else { rng.random_range(1..=weather.delay_ms) };
            self.order += 1;
            let packet = Packet { way, topic: topic.clone(), payload: payload.clone() };
            self.packets.insert((now + after + late, self.order), packet);
        }
    }

    /// Takes what has arrived by now, in order of arrival.
    pub(super) fn arrived(&mut self, now: u64) -> Vec<(Way, Topic, Bytes)> {
        let later = self.packets.split_off(&(now + 1, 0));
        let arrived = std::mem::replace(&mut self.packets, later);
        arrived.into_values().map(|p| (p.way, p.topic, p.payload)).collect()
    }

    /// Whether anything is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.packets.is_empty()
    }
}

/// Random bytes.
pub(super) fn bytes<const N: usize>(rng: &mut StdRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}
