//! What the broker counts: plain atomics that the hub exports under its own names.
//!
//! Owns the list of reasons and says each of them once a minute in the log. Must not know a metrics library.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::identity::Refusal;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// Why a session was refused or ended, or a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    /// Unknown user or wrong password.
    BadCredentials,
    /// Known, and not allowed here.
    NotAuthorized,
    /// Shut out by an operator.
    Banned,
    /// A certificate that is not in its time.
    Expired,
    /// The client id is not the identity's own.
    ClientId,
    /// The directory could not answer.
    Unavailable,
    /// Too many sessions or connections.
    Busy,
    /// Too many connections from one address.
    AddressBusy,
    /// A TLS handshake that did not end within its deadline.
    HandshakeLate,
    /// A TLS handshake or session that broke: no TLS, a certificate of a foreign CA, an alert.
    TlsFailed,
    /// A connection without a session that made room for newer ones.
    Crowded,
    /// The system had no socket for one more connection.
    Exhausted,
    /// A node whose sessions took each other over too often: two instances with one identity.
    TakeoverBackoff,
    /// A protocol version other than 3.1.1 and 5.
    Version,
    /// No CONNECT within its deadline.
    ConnectLate,
    /// Something else than CONNECT came first.
    ConnectFirst,
    /// Bytes that are no MQTT packet.
    Malformed,
    /// A packet that is not allowed at this point.
    Protocol,
    /// A packet above the limit.
    TooLarge,
    /// QoS 2.
    Qos,
    /// A retained message of a node.
    Retain,
    /// A publish outside the node's prefix or the tool's grants.
    PublishDenied,
    /// A subscription outside the node's prefix or the tool's grants.
    SubscribeDenied,
    /// A will outside the node's prefix or the tool's grants, of QoS 2, or retained and of a node.
    WillDenied,
    /// A topic alias or subscription identifier, which are not offered.
    NotOffered,
    /// No packet for one and a half keepalives.
    KeepAlive,
    /// The connection ended without DISCONNECT.
    Lost,
    /// A newer session of the same node or tool.
    TakenOver,
    /// A node that reads nothing, or more slowly than what is meant for it comes.
    NodeSlow,
    /// An operator ended the session.
    Kicked,
    /// The hub stops.
    Shutdown,
    /// A tool that reads more slowly than what it subscribed to comes.
    ToolSlow,
    /// A subscription above the most that a tool may have.
    FilterLimit,
    /// A retained message of a tool that found no room.
    RetainedFull,
    /// A tool of MQTT 3.1.1 that wants to be remembered, which is not offered.
    Persistent,
    /// The router was replaced; tools come back, nodes do not notice.
    RouterReplaced,
}

/// Counters and gauges of one broker. Read them at any time from any thread.
#[derive(Debug)]
pub struct Stats {
    /// Open sockets, sessions or not.
    pub connections: Gauge,
    /// Sessions of nodes after CONNACK.
    pub sessions: Gauge,
    /// Sessions of nodes opened since the start.
    pub sessions_opened: Counter,
    /// Third-party sessions after CONNACK.
    pub tools: Gauge,
    /// Third-party sessions opened since the start.
    pub tools_opened: Counter,
    /// Messages copied for tools; how many of them were sent the tools know.
    pub tool_messages: Counter,
    /// Messages above a tool's own packet limit, which it does not get (MQTT 5 §3.1.2.11.4).
    pub tool_skipped: Counter,
    /// Bytes of messages that wait for tools.
    pub tool_queue_bytes: Gauge,
    /// Messages taken from nodes, wills included.
    pub up_messages: Counter,
    /// Their payloads, in bytes.
    pub up_payload_bytes: Counter,
    /// Bytes taken from nodes that the consumer has not yet taken, with a fixed cost per message.
    pub in_flight_bytes: Arc<Gauge>,
    /// Sessions that are not read now: the consumer is behind, or they are above their publish limit.
    pub paused_sessions: Gauge,
    /// Messages on the hub's own topics that no tool wanted to hear.
    pub hub_unheard: Counter,
    /// Messages on the hub's own topics that were dropped because the plane was full.
    pub hub_dropped: Counter,
    /// Messages on the hub's own topics that wait in the plane, in bytes.
    pub hub_in_flight_bytes: Arc<Gauge>,
    /// Messages that tools said, wills included, and the hub outside `fleet/`.
    pub talk_messages: Counter,
    /// Of these, what no tool wanted to hear.
    pub talk_unheard: Counter,
    /// What the hub said outside `fleet/` and was dropped because the plane was full.
    pub talk_dropped: Counter,
    /// Of these, what waits in the plane, in bytes.
    pub talk_in_flight_bytes: Arc<Gauge>,
    /// Topics outside `fleet/` with a retained message.
    pub retained_topics: Gauge,
    /// Bytes of retained messages, with a fixed cost each.
    pub retained_bytes: Gauge,
    /// Messages that were not retained for want of room.
    pub retained_refused: Counter,
    /// Times that a session's reading was paused because the consumer was behind.
    pub pauses: Counter,
    /// Times that a session's reading was paused because it was above its publish limit.
    pub throttles: Counter,
    /// Messages written to nodes.
    pub down_messages: Counter,
    /// Messages down that wait in the plane, in bytes.
    pub down_in_flight_bytes: Arc<Gauge>,
    /// Messages down that were dropped because the plane was full.
    pub down_dropped: Counter,
    /// Messages down for nodes that have no session.
    pub down_unrouted: Counter,
    /// Messages down that a session lost because it reads too slowly.
    pub down_overflow: Counter,
    /// Messages down outside a session's subscriptions, or above its packet limit.
    pub down_unwanted: Counter,
    /// Routers that had to be replaced.
    pub router_rebuilds: Counter,
    /// Messages the router did not deliver and that were taken from the ring instead.
    pub router_recovered: Counter,
    /// Messages in flight at two deaths of the router: kept away from it and delivered to the hub directly.
    pub router_quarantined: Counter,
    /// Messages on the hub's link that the gate never sent.
    pub router_foreign: Counter,
    reasons: [Counter; Reason::ALL.len()],
    logged: [AtomicU64; Reason::ALL.len()],
    since: Instant,
}

/// A reason is logged at most this often; the counter has the rest.
const LOG_EVERY: Duration = Duration::from_secs(60);

impl Counter {
    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Relaxed);
    }
}

impl Gauge {
    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn sub(&self, n: usize) {
        self.0.fetch_sub(n as u64, Relaxed);
    }

    pub(crate) fn set(&self, n: usize) {
        self.0.store(n as u64, Relaxed);
    }
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 36] = [
        Self::BadCredentials,
        Self::NotAuthorized,
        Self::Banned,
        Self::Expired,
        Self::ClientId,
        Self::Unavailable,
        Self::Busy,
        Self::AddressBusy,
        Self::HandshakeLate,
        Self::TlsFailed,
        Self::Crowded,
        Self::Exhausted,
        Self::TakeoverBackoff,
        Self::Version,
        Self::ConnectLate,
        Self::ConnectFirst,
        Self::Malformed,
        Self::Protocol,
        Self::TooLarge,
        Self::Qos,
        Self::Retain,
        Self::PublishDenied,
        Self::SubscribeDenied,
        Self::WillDenied,
        Self::NotOffered,
        Self::KeepAlive,
        Self::Lost,
        Self::TakenOver,
        Self::NodeSlow,
        Self::Kicked,
        Self::Shutdown,
        Self::ToolSlow,
        Self::FilterLimit,
        Self::RetainedFull,
        Self::Persistent,
        Self::RouterReplaced,
    ];

    /// As a label of a metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadCredentials => "bad_credentials",
            Self::NotAuthorized => "not_authorized",
            Self::Banned => "banned",
            Self::Expired => "expired",
            Self::ClientId => "client_id",
            Self::Unavailable => "unavailable",
            Self::Busy => "busy",
            Self::AddressBusy => "address_busy",
            Self::HandshakeLate => "handshake_late",
            Self::TlsFailed => "tls_failed",
            Self::Crowded => "crowded",
            Self::Exhausted => "exhausted",
            Self::TakeoverBackoff => "takeover_backoff",
            Self::Version => "version",
            Self::ConnectLate => "connect_late",
            Self::ConnectFirst => "connect_first",
            Self::Malformed => "malformed",
            Self::Protocol => "protocol",
            Self::TooLarge => "too_large",
            Self::Qos => "qos",
            Self::Retain => "retain",
            Self::PublishDenied => "publish_denied",
            Self::SubscribeDenied => "subscribe_denied",
            Self::WillDenied => "will_denied",
            Self::NotOffered => "not_offered",
            Self::KeepAlive => "keep_alive",
            Self::Lost => "lost",
            Self::TakenOver => "taken_over",
            Self::NodeSlow => "node_slow",
            Self::Kicked => "kicked",
            Self::Shutdown => "shutdown",
            Self::ToolSlow => "tool_slow",
            Self::FilterLimit => "filter_limit",
            Self::RetainedFull => "retained_full",
            Self::Persistent => "persistent",
            Self::RouterReplaced => "router_replaced",
        }
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::BadCredentials => Self::BadCredentials,
            Refusal::NotAuthorized => Self::NotAuthorized,
            Refusal::Banned => Self::Banned,
            Refusal::Expired => Self::Expired,
            Refusal::ClientId => Self::ClientId,
            Refusal::Busy => Self::Busy,
            Refusal::Unavailable => Self::Unavailable,
        }
    }
}

impl Stats {
    pub(crate) fn new(since: Instant) -> Self {
        Self {
            connections: Gauge::default(),
            sessions: Gauge::default(),
            sessions_opened: Counter::default(),
            tools: Gauge::default(),
            tools_opened: Counter::default(),
            tool_messages: Counter::default(),
            tool_skipped: Counter::default(),
            tool_queue_bytes: Gauge::default(),
            up_messages: Counter::default(),
            up_payload_bytes: Counter::default(),
            in_flight_bytes: Arc::default(),
            paused_sessions: Gauge::default(),
            hub_unheard: Counter::default(),
            hub_dropped: Counter::default(),
            hub_in_flight_bytes: Arc::default(),
            talk_messages: Counter::default(),
            talk_unheard: Counter::default(),
            talk_dropped: Counter::default(),
            talk_in_flight_bytes: Arc::default(),
            retained_topics: Gauge::default(),
            retained_bytes: Gauge::default(),
            retained_refused: Counter::default(),
            pauses: Counter::default(),
            throttles: Counter::default(),
            down_messages: Counter::default(),
            down_in_flight_bytes: Arc::default(),
            down_dropped: Counter::default(),
            down_unrouted: Counter::default(),
            down_overflow: Counter::default(),
            down_unwanted: Counter::default(),
            router_rebuilds: Counter::default(),
            router_recovered: Counter::default(),
            router_quarantined: Counter::default(),
            router_foreign: Counter::default(),
            reasons: [const { Counter(AtomicU64::new(0)) }; Reason::ALL.len()],
            logged: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            since,
        }
    }

    /// How often a reason occurred.
    #[must_use]
    pub fn reason(&self, reason: Reason) -> u64 {
        self.reasons[reason as usize].get()
    }

    /// Counts a reason, and logs it with `who` unless it was logged within the minute.
    pub(crate) fn note(&self, reason: Reason, now: Instant, who: &dyn fmt::Display) {
        self.reasons[reason as usize].add(1);
        let second = now.saturating_duration_since(self.since).as_secs() + 1;
        let logged = &self.logged[reason as usize];
        let last = logged.load(Relaxed);
        let due = last == 0 || second >= last + LOG_EVERY.as_secs();
        if due && logged.compare_exchange(last, second, Relaxed, Relaxed).is_ok() {
            let total = self.reason(reason);
            tracing::info!(reason = reason.as_str(), %who, total, "the gate refused or ended something");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_as_listed_and_named_once() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
        let names: std::collections::HashSet<_> = Reason::ALL.into_iter().map(Reason::as_str).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
