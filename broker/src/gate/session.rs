//! A session after CONNACK: a pure state machine of packets, deliveries and time (MQTT 3.1.1 §4, MQTT 5 §4).
//!
//! Owns keepalive, will, acknowledgements and the in-flight window; what a client asks for is judged in `asks`. Knows
//! no socket, no runtime and no clock: every input carries `now`, and what is due comes out as [`Effects`]. What a
//! third-party session may is in `tool`; the rest is a node's.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_schemas::NodeId;

use crate::{
    branch::Branches,
    gate::{
        encode::{self, Forward, code},
        frame::FrameError,
        retained::Full,
        wire::{self, Packet, Unreadable, Version},
    },
    policy::DownFilter,
    router::{pipe::Parcel, saying::Saying},
    stats::Reason,
};

mod asks;
pub(crate) mod subs;
#[cfg(test)]
mod tests;
pub(crate) mod tool;
pub(crate) mod waiting;

use subs::{Sub, Subs};
use tool::Tool;
use waiting::Rest;

/// One opened session.
#[derive(Debug)]
pub(crate) struct Session {
    party: Party,
    version: Version,
    keepalive: Duration,
    last_packet: Instant,
    /// While reading is paused: when the next PINGRESP is due.
    next_ping: Option<Instant>,
    will: Option<Will>,
    /// It asked at CONNECT for its session to be kept.
    keeps: bool,
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

/// What is said when a session is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Will {
    Node(Parcel),
    Tool(Saying),
}

/// What CONNECT agreed on.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) version: Version,
    /// A session without a packet for one and a half of these ends.
    pub(crate) keepalive: Duration,
    pub(crate) will: Option<Will>,
    /// Whether the client asked for its session to be kept, which it is not.
    pub(crate) keeps: bool,
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
    /// What a tool says; what became of it is due to [`Session::handle_said`] before the next packet.
    pub(crate) say: Option<Say>,
    /// How much it said since the effects were last empty.
    pub(crate) said: usize,
    /// What a tool says at its end.
    pub(crate) last_word: Option<Saying>,
    /// What a tool hears from now on; due before anything is written.
    pub(crate) listen: Option<Listen>,
    /// What went wrong without ending the session.
    pub(crate) notes: Vec<Reason>,
    /// The session ended; `None` for the client's own DISCONNECT.
    pub(crate) end: Option<Option<Reason>>,
}

/// A publish of a tool.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Say {
    pub(crate) saying: Saying,
    /// The packet id to be acknowledged, at QoS 1.
    pub(crate) id: Option<u16>,
}

/// What a tool hears.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) subs: Arc<Subs>,
    /// Those that are to be answered with retained messages.
    pub(crate) replay: Vec<Sub>,
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
            keeps: terms.keeps,
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
            Packet::Subscribe { id, filters, identifier } => {
                self.subscribe(id, &filters, identifier, now, out);
            }
            Packet::Unsubscribe { id, filters } => self.unsubscribe(id, &filters, out),
            Packet::Ping => encode::pingresp(&mut out.write),
            // What was not asked for at CONNECT cannot be asked for at the end (MQTT 5 §3.14.2.2.2).
            Packet::Disconnect { keeps: true, .. } if !self.keeps => {
                self.fail(Reason::Protocol, code::PROTOCOL, out);
            }
            Packet::Disconnect { reason, keeps: _ } => self.disconnect(reason, out),
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
            Cut::Slow => {
                let reason = match &self.party {
                    Party::Node(_) => Reason::NodeSlow,
                    Party::Tool(_) => Reason::ToolSlow,
                };
                self.fail(reason, code::QUOTA, out);
            }
            Cut::RouterReplaced => self.fail(Reason::RouterReplaced, code::SHUTDOWN, out),
            Cut::Shutdown => {
                // The will of a node has nobody to hear it; that of a tool may be retained.
                self.will.take_if(|will| matches!(will, Will::Node(_)));
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
        let packet = Forward { topic, payload, qos, ..Forward::default() };
        if packet.size(self.version) > self.packet_max {
            return Delivery::Unwanted;
        }
        let id = if qos > 0 { self.next_id() } else { 0 };
        Forward { id, ..packet }.write(&mut out.write, self.version);
        Delivery::Sent
    }

    /// What became of the last publish of a tool ([`Effects::say`]).
    pub(crate) fn handle_said(&mut self, id: Option<u16>, said: Result<(), Full>, out: &mut Effects) {
        match (said, self.version, id) {
            (Ok(()), _, None) => {}
            (Ok(()), version, Some(id)) => encode::puback(&mut out.write, version, id, 0),
            (Err(Full), Version::V5, Some(id)) => {
                out.notes.push(Reason::RetainedFull);
                encode::puback(&mut out.write, self.version, id, code::QUOTA);
            }
            // As everywhere: what is thrown away is not acknowledged.
            (Err(Full), Version::V4, Some(_)) => self.fail(Reason::RetainedFull, code::QUOTA, out),
            (Err(Full), _, None) => out.notes.push(Reason::RetainedFull),
        }
    }

    /// What is left of the chunk that [`Self::handle_chunk`] was last given.
    pub(crate) fn rest(&mut self) -> Option<Rest> {
        match &mut self.party {
            Party::Node(_) => None,
            Party::Tool(tool) => tool.rest.take(),
        }
    }

    /// Packets for a tool; says whether all could be written. If not, the rest waits for acknowledgements.
    pub(crate) fn handle_chunk(&mut self, mut rest: Rest, now: Instant, out: &mut Effects) -> bool {
        let (version, window) = (self.version, self.window);
        let mut next_id =
            || (self.in_flight.len() < window).then(|| next_id(&mut self.in_flight, &mut self.last_id));
        let all = rest.send(version, now, &mut next_id, &mut out.write);
        if let (false, Party::Tool(tool)) = (all, &mut self.party) {
            tool.rest = Some(rest);
        }
        all
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

    fn disconnect(&mut self, reason: u8, out: &mut Effects) {
        if reason == 0 {
            self.will = None;
        }
        self.say_will(out);
        out.end = Some(None);
    }

    fn next_id(&mut self) -> u16 {
        next_id(&mut self.in_flight, &mut self.last_id)
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
        match self.will.take() {
            None => {}
            Some(Will::Node(parcel)) => out.publish.push(parcel),
            Some(Will::Tool(saying)) => out.last_word = Some(saying),
        }
    }
}

/// A packet id that is free, taken; there are fewer in flight than there are ids.
fn next_id(in_flight: &mut Vec<u16>, last: &mut u16) -> u16 {
    loop {
        *last = last.checked_add(1).unwrap_or(1);
        if !in_flight.contains(last) {
            in_flight.push(*last);
            return *last;
        }
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
