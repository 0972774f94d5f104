//! A session after CONNACK: a pure state machine of packets, deliveries and time (MQTT 3.1.1 §4, MQTT 5 §4).
//!
//! Owns keepalive, will, subscriptions, acknowledgements and the in-flight window. Knows no socket, no runtime and
//! no clock: every input carries `now`, and what is due comes out as [`Effects`]. What a third-party session may is
//! in `tool`; the rest is a node's.

use std::{
    fmt,
    time::{Duration, Instant},
};

use fleet_schemas::NodeId;

use crate::{
    branch::Branches,
    gate::{
        encode::{self, code},
        frame::FrameError,
        wire::{self, Packet, Publish, Unreadable, Version},
    },
    policy::{self, Denial, DownFilter},
    router::pipe::Parcel,
    stats::Reason,
};

#[cfg(test)]
mod tests;
pub(crate) mod tool;

use tool::{Answer, Tool};

/// One opened session.
#[derive(Debug)]
pub(crate) struct Session {
    party: Party,
    version: Version,
    keepalive: Duration,
    last_packet: Instant,
    /// While reading is paused: when the next PINGRESP is due.
    next_ping: Option<Instant>,
    will: Option<Parcel>,
    /// Granted QoS by [`DownFilter::index`].
    granted: [Option<u8>; DownFilter::COUNT],
    in_flight: Vec<u16>,
    window: usize,
    packet_max: usize,
    last_id: u16,
}

/// Whose session it is.
#[derive(Debug)]
pub(crate) enum Party {
    Node(NodeId),
    Tool(Box<Tool>),
}

/// What CONNECT agreed on.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) version: Version,
    /// A session without a packet for one and a half of these ends.
    pub(crate) keepalive: Duration,
    pub(crate) will: Option<Parcel>,
    pub(crate) receive_max: u16,
    pub(crate) packet_max: u32,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Bytes for the peer.
    pub(crate) write: Vec<u8>,
    /// Messages for the hub, in order.
    pub(crate) publish: Vec<Parcel>,
    /// The filters that a tool hears from now on; due before anything is written.
    pub(crate) listen: Option<Vec<String>>,
    /// What went wrong without ending the session.
    pub(crate) notes: Vec<Reason>,
    /// The session ended; `None` for the client's own DISCONNECT.
    pub(crate) end: Option<Option<Reason>>,
}

/// What became of a message for the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Written.
    Sent,
    /// The node did not ask for it, or cannot take it.
    Unwanted,
}

/// Why the gate ends a session that did nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The same node or tool connected again (MQTT 5 §3.1.4).
    TakenOver,
    /// An operator said so.
    Kicked(&'static str),
    /// The hub stops: the will stays unsaid, nobody is there to hear it.
    Shutdown,
    /// A tool does not keep up.
    Slow,
    /// What a tool listened to is gone.
    RouterReplaced,
}

/// Most QoS 1 messages to a node that it has not acknowledged.
const WINDOW: u16 = 64;

impl Session {
    pub(crate) fn new(party: Party, terms: Terms, now: Instant) -> Self {
        Self {
            party,
            version: terms.version,
            keepalive: terms.keepalive,
            last_packet: now,
            next_ping: None,
            will: terms.will,
            granted: [None; DownFilter::COUNT],
            in_flight: Vec::new(),
            window: usize::from(terms.receive_max.min(WINDOW)),
            packet_max: usize::try_from(terms.packet_max).unwrap_or(usize::MAX),
            last_id: 0,
        }
    }

    pub(crate) fn party(&self) -> &Party {
        &self.party
    }

    /// A whole packet came.
    pub(crate) fn handle_packet(&mut self, first: u8, body: &[u8], now: Instant, out: &mut Effects) {
        self.last_packet = now;
        let packet = match wire::decode(self.version, first, body) {
            Ok(packet) => packet,
            Err(Unreadable::Malformed) => return self.fail(Reason::Malformed, code::MALFORMED, out),
            Err(Unreadable::Protocol) => return self.fail(Reason::Protocol, code::PROTOCOL, out),
        };
        match packet {
            Packet::Publish(publish) => self.publish(&publish, out),
            Packet::PubAck { id } => self.in_flight.retain(|held| *held != id),
            Packet::Subscribe { identified: true, .. } => {
                self.fail(Reason::NotOffered, code::SUBSCRIPTION_ID, out);
            }
            Packet::Subscribe { id, filters, identified: false } => self.subscribe(id, &filters, now, out),
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, &filters, out),
            Packet::Ping => encode::pingresp(&mut out.write),
            Packet::Disconnect { reason } => self.disconnect(reason, out),
            Packet::Connect | Packet::Unexpected => self.fail(Reason::Protocol, code::PROTOCOL, out),
        }
    }

    /// The stream cannot be cut into packets.
    pub(crate) fn handle_broken_stream(&mut self, error: FrameError, out: &mut Effects) {
        match error {
            FrameError::TooLarge => self.fail(Reason::TooLarge, code::TOO_LARGE, out),
            FrameError::First | FrameError::Length => self.fail(Reason::Malformed, code::MALFORMED, out),
        }
    }

    /// The connection is gone.
    pub(crate) fn handle_lost(&mut self, out: &mut Effects) {
        self.end(Reason::Lost, out);
    }

    /// The gate ends the session.
    pub(crate) fn handle_cut(&mut self, cut: Cut, out: &mut Effects) {
        match cut {
            Cut::TakenOver => self.fail(Reason::TakenOver, code::TAKEN_OVER, out),
            Cut::Kicked(_) => self.fail(Reason::Kicked, code::ADMINISTRATIVE, out),
            Cut::Slow => self.fail(Reason::ToolSlow, code::QUOTA, out),
            Cut::RouterReplaced => self.fail(Reason::RouterReplaced, code::SHUTDOWN, out),
            Cut::Shutdown => {
                self.will = None;
                self.fail(Reason::Shutdown, code::SHUTDOWN, out);
            }
        }
    }

    /// Whether a message can be written now or has to wait for acknowledgements.
    pub(crate) fn can_deliver(&self) -> bool {
        self.in_flight.len() < self.window
    }

    /// A message for the node; ask [`Self::can_deliver`] first.
    pub(crate) fn handle_delivery(&mut self, parcel: &Parcel, out: &mut Effects) -> Delivery {
        let Some(qos) = self.granted_qos(parcel) else { return Delivery::Unwanted };
        let (topic, payload) = parcel.parts();
        if encode::publish_size(self.version, topic, payload, qos) > self.packet_max {
            return Delivery::Unwanted;
        }
        let id = if qos > 0 { self.next_id() } else { 0 };
        encode::publish(&mut out.write, self.version, topic, payload, qos, id);
        Delivery::Sent
    }

    /// Reading stops because the hub is behind: the client's silence is our doing from here on.
    pub(crate) fn handle_pause(&mut self, now: Instant) {
        self.next_ping.get_or_insert(now + self.keepalive / 2);
    }

    /// Reading goes on.
    pub(crate) fn handle_resume(&mut self, now: Instant) {
        if self.next_ping.take().is_some() {
            self.last_packet = now;
        }
    }

    /// The router listens to these branches for the session.
    pub(crate) fn handle_linked(&mut self, branches: Branches, out: &mut Effects) {
        if let Party::Tool(tool) = &mut self.party {
            tool.linked(branches, out);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let alive = self.next_ping.unwrap_or(self.last_packet + self.keepalive * 3 / 2);
        self.link_by().map_or(alive, |link_by| link_by.min(alive))
    }

    fn link_by(&self) -> Option<Instant> {
        match &self.party {
            Party::Node(_) => None,
            Party::Tool(tool) => tool.link_by(),
        }
    }

    /// Time has come to `now`.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Effects) {
        if now < self.poll_timeout() {
            return;
        }
        if self.link_by().is_some_and(|link_by| now >= link_by) {
            self.fail(Reason::Unavailable, code::SERVER_BUSY, out);
        } else if self.next_ping.is_some() {
            encode::pingresp(&mut out.write);
            self.next_ping = Some(now + self.keepalive / 2);
        } else {
            self.fail(Reason::KeepAlive, code::KEEP_ALIVE, out);
        }
    }

    /// MQTT 3.1.1 has no way to refuse a publish but to close (§3.3.5); an acknowledgement of what is thrown away
    /// would be a lie. MQTT 5 says it in the PUBACK; at QoS 0 it is counted and dropped.
    fn publish(&mut self, publish: &Publish<'_>, out: &mut Effects) {
        if publish.not_offered {
            return self.fail(Reason::NotOffered, code::ALIAS, out);
        }
        let judged = match &self.party {
            Party::Node(node) => policy::node_publish(node, publish.topic, publish.qos, publish.retain),
            Party::Tool(tool) => {
                return match tool.refuse(self.version, publish) {
                    Answer::End(reason, code) => self.fail(reason, code, out),
                    Answer::Refuse(code) => {
                        out.notes.push(Reason::PublishDenied);
                        encode::puback(&mut out.write, self.version, publish.id, code);
                    }
                };
            }
        };
        match judged {
            Ok(topic) => {
                out.publish.push(Parcel::new(topic, publish.topic, publish.payload));
                if publish.qos > 0 {
                    encode::puback(&mut out.write, self.version, publish.id, 0);
                }
            }
            Err(Denial::Qos) => self.fail(Reason::Qos, code::QOS, out),
            Err(Denial::Retain) => self.fail(Reason::Retain, code::RETAIN, out),
            Err(denial @ (Denial::Form | Denial::NotYours | Denial::Shared)) => {
                let refusal = if denial == Denial::Form { code::TOPIC_NAME } else { code::NOT_AUTHORIZED };
                match (self.version, publish.qos) {
                    (Version::V4, _) => self.end(Reason::PublishDenied, out),
                    (Version::V5, 0) => out.notes.push(Reason::PublishDenied),
                    (Version::V5, _) => {
                        out.notes.push(Reason::PublishDenied);
                        encode::puback(&mut out.write, self.version, publish.id, refusal);
                    }
                }
            }
        }
    }

    fn subscribe(&mut self, id: u16, filters: &[(&str, u8)], now: Instant, out: &mut Effects) {
        let node = match &mut self.party {
            Party::Node(node) => node,
            Party::Tool(tool) => {
                if !tool.subscribe(self.version, id, filters, now, out) {
                    self.fail(Reason::FilterLimit, code::QUOTA, out);
                }
                return;
            }
        };
        let mut codes = Vec::with_capacity(filters.len());
        for (filter, qos) in filters {
            codes.push(match (policy::node_subscribe(node, filter), self.version) {
                (Ok(down), _) => {
                    let granted = (*qos).min(1);
                    self.granted[down.index()] = Some(granted);
                    granted
                }
                (Err(denial), version) => {
                    out.notes.push(Reason::SubscribeDenied);
                    match (version, denial) {
                        (Version::V4, _) => 0x80,
                        (Version::V5, Denial::Shared) => code::SHARED,
                        (Version::V5, _) => code::NOT_AUTHORIZED,
                    }
                }
            });
        }
        encode::suback(&mut out.write, self.version, 0x90, id, &codes);
    }

    fn unsubscribe(&mut self, id: u16, filters: &[&str], out: &mut Effects) {
        let node = match &mut self.party {
            Party::Node(node) => node,
            Party::Tool(tool) => return tool.unsubscribe(self.version, id, filters, out),
        };
        let mut codes = Vec::with_capacity(filters.len());
        for filter in filters {
            let held = policy::node_subscribe(node, filter)
                .is_ok_and(|down| self.granted[down.index()].take().is_some());
            codes.push(if held { 0 } else { code::NO_SUBSCRIPTION });
        }
        let codes = if self.version == Version::V5 { &codes[..] } else { &[] };
        encode::suback(&mut out.write, self.version, 0xB0, id, codes);
    }

    fn disconnect(&mut self, reason: u8, out: &mut Effects) {
        if reason == 0 {
            self.will = None;
        }
        self.say_will(out);
        out.end = Some(None);
    }

    fn granted_qos(&self, parcel: &Parcel) -> Option<u8> {
        let fleet_schemas::Topic::Down(_, down) = parcel.topic else { return None };
        let of = |filter: DownFilter| self.granted[filter.index()];
        of(DownFilter::Tree).max(of(DownFilter::Level)).max(of(DownFilter::One(down)))
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains(&self.last_id) {
                self.in_flight.push(self.last_id);
                return self.last_id;
            }
        }
    }

    /// Ends the session and says why, where the version can.
    fn fail(&mut self, reason: Reason, code: u8, out: &mut Effects) {
        encode::disconnect(&mut out.write, self.version, code);
        self.end(reason, out);
    }

    fn end(&mut self, reason: Reason, out: &mut Effects) {
        self.say_will(out);
        out.end = Some(Some(reason));
    }

    fn say_will(&mut self, out: &mut Effects) {
        out.publish.extend(self.will.take());
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Tool(tool) => write!(f, "tool {}", tool.key),
        }
    }
}
