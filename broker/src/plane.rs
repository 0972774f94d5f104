//! The hub's plane: how it is set up, started and stopped (DESIGN section 9).
//!
//! Joins the gate and the supervised router; moves no bytes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    num::NonZero,
    sync::Arc,
    thread,
    time::Duration,
};

use fleet_schemas::NodeId;

use crate::{
    Directory, Link, Mqtts, PublishLimit, Stats, clock,
    gate::{
        self, Crowd, Door, Gate, Running,
        caps::{Caps, Limits},
        judge::Judge,
        retained::{Room, Shelf},
        session::Cut,
        sessions::Sessions,
        talk::Talk,
        tools::Tools,
    },
    router::{Plane, Supervisor},
};

/// How the plane is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Plain MQTT: a loopback address, unless `plain_anywhere`; port 0 picks one.
    pub mqtt: SocketAddr,
    /// Lets `mqtt` be any address: passwords and all that is said cross the network in the clear.
    pub plain_anywhere: bool,
    /// MQTT over TLS, if it is to be served.
    pub mqtts: Option<Mqtts>,
    /// Most sessions of nodes.
    pub max_connections: usize,
    /// Most connections from one address (IPv6: from one /64) on the plain listener.
    pub max_connections_per_address: usize,
    /// The same on the TLS listener, where many nodes may share a carrier's address.
    pub max_tls_connections_per_address: usize,
    /// Most connections that have no session yet: in a handshake or before CONNACK. Above it the oldest of the
    /// address that has the most of them makes room.
    pub max_handshakes: usize,
    /// The same from one address: above it, its own oldest makes room.
    pub max_handshakes_per_address: usize,
    /// How fast one session may publish.
    pub publish_limit: PublishLimit,
    /// Bytes taken from nodes and not yet taken by the consumer, above which reading of sockets waits. A message
    /// counts its topic, its payload and 512 bytes of overhead.
    pub budget_bytes: usize,
    /// Bytes of messages down that wait in the plane, above which more are dropped.
    pub down_budget_bytes: usize,
    /// Most third-party sessions. Each costs a thread, a link to the router and what the router copies into it.
    pub max_tools: usize,
    /// Most filters of one third-party session.
    pub max_tool_filters: usize,
    /// How fast one third-party session may publish.
    pub tool_publish_limit: PublishLimit,
    /// Most topics on which tools may have a retained message. The hub may have twice as many outside `fleet/`.
    pub max_retained_topics: usize,
    /// Bytes of retained messages of tools, with 256 bytes of overhead each. The hub may have four times as many.
    pub retained_budget_bytes: usize,
    /// Bytes that wait for all tools that read too slowly, in equal shares and at most a quarter each. A tool above
    /// its share is disconnected.
    pub tool_budget_bytes: usize,
    /// Threads that serve sessions.
    pub gate_threads: usize,
}

/// A running plane. Dropping it shuts it down.
pub struct Broker {
    pub(crate) gate: Arc<Gate>,
    addrs: Vec<SocketAddr>,
    pub(crate) running: Option<(Running, Supervisor)>,
}

/// Why the plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Passwords would cross the network in the clear.
    #[error("plain MQTT on {0} would show passwords to the network; bind it to 127.0.0.1, nodes use TLS")]
    NotLoopback(SocketAddr),
    /// The listener or a thread could not be had.
    #[error("the gate cannot serve {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The router could not be had.
    #[error("{0}")]
    Router(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Connections that may be open beyond sessions and pending ones: sessions that have ended and hear last words.
const CLOSING: usize = 256;

impl Default for Config {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            mqtt: SocketAddr::from((Ipv4Addr::LOCALHOST, 1883)),
            plain_anywhere: false,
            mqtts: None,
            max_connections: 16_384,
            // All plain connections come from the loopback address.
            max_connections_per_address: 16_384 + CLOSING,
            max_tls_connections_per_address: 8_192,
            // A fleet that comes back at once, over a slow network: a handshake takes a second there.
            max_handshakes: 4_096,
            max_handshakes_per_address: 3_072,
            publish_limit: PublishLimit::default(),
            budget_bytes: 8 * 1024 * 1024,
            down_budget_bytes: 16 * 1024 * 1024,
            max_tools: 64,
            // Home Assistant asks for one a device and some for each of its platforms.
            max_tool_filters: 1_024,
            tool_publish_limit: PublishLimit {
                messages_per_s: 2_000,
                bytes_per_s: 8 * 1024 * 1024,
                burst: Duration::from_secs(4),
            },
            max_retained_topics: 10_000,
            retained_budget_bytes: 16 * 1024 * 1024,
            tool_budget_bytes: 32 * 1024 * 1024,
            // The router has one thread, and the consumer another.
            gate_threads: (cores / 2).clamp(1, 4),
        }
    }
}

impl Broker {
    /// Binds, spawns the router and the gate's threads. Needs no ambient runtime.
    ///
    /// # Errors
    /// [`Error`] says what could not be had; nothing is left running.
    pub fn start(config: Config, directory: Arc<dyn Directory>) -> Result<(Self, Link), Error> {
        if !config.plain_anywhere && !config.mqtt.ip().is_loopback() {
            return Err(Error::NotLoopback(config.mqtt));
        }
        let judge = Judge::start().map_err(|source| Error::Listen { addr: config.mqtt, source })?;
        let stats = Arc::new(Stats::new(clock::now()));
        let sessions = Arc::new(Sessions::new(stats.clone()));
        let tools = Arc::new(Tools::new(config.max_tools, config.tool_budget_bytes, stats.clone()));
        let room = Room { topics: config.max_retained_topics, bytes: config.retained_budget_bytes };
        let shelf = Arc::new(Shelf::load(directory.clone(), room, stats.clone()));
        let (budget, down_budget) = (config.budget_bytes, config.down_budget_bytes);
        let (plane, supervisor) =
            Plane::start(stats.clone(), sessions.clone(), tools.clone(), shelf.clone(), budget, down_budget)
                .map_err(|error| Error::Router(error.into()))?;
        let talk = Arc::new(Talk {
            pipe: plane.talk.clone(),
            shelf,
            tools: tools.clone(),
            limit: config.tool_publish_limit,
            directory: directory.clone(),
            stats: stats.clone(),
        });
        let sessions_most = config.max_connections.saturating_add(config.max_tools);
        let limits = Limits {
            total: sessions_most.saturating_add(config.max_handshakes).saturating_add(CLOSING),
            pending: config.max_handshakes,
            pending_per_address: config.max_handshakes_per_address,
        };
        let caps = Arc::new(Caps::new(limits, stats.clone()));
        let gate = Arc::new(Gate {
            directory,
            stats,
            up: plane.up.clone(),
            sessions,
            max_sessions: config.max_connections,
            tools,
            max_tool_filters: config.max_tool_filters,
            ears: plane.ears.clone(),
            talk: talk.clone(),
            crowd: Crowd::default(),
            judge,
            publish_limit: config.publish_limit,
        });
        let mut doors =
            vec![Door { addr: config.mqtt, keys: None, per_address: config.max_connections_per_address }];
        doors.extend(config.mqtts.map(|Mqtts { addr, keys }| {
            let per_address = config.max_tls_connections_per_address;
            Door { addr, keys: Some(keys), per_address }
        }));
        match gate::start(&gate, doors, &caps, config.gate_threads) {
            Ok(running) => {
                let addrs = running.addrs.clone();
                Ok((Self { gate, addrs, running: Some((running, supervisor)) }, Link::new(plane, talk)))
            }
            Err((addr, source)) => {
                gate.judge.stop();
                supervisor.stop();
                Err(Error::Listen { addr, source })
            }
        }
    }

    /// Where plain MQTT is served.
    #[must_use]
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// Where MQTT over TLS is served.
    #[must_use]
    pub fn mqtts_addr(&self) -> Option<SocketAddr> {
        self.addrs.get(1).copied()
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        self.gate.stats.clone()
    }

    /// Ends a node's session, if it has one; its will is published. `why` is logged.
    pub fn kick(&self, node: &NodeId, why: &'static str) {
        self.gate.sessions.cut(node, Cut::Kicked(why));
    }

    /// Ends all sessions of the tool of this name; their wills are published. `why` is logged.
    pub fn kick_tool(&self, name: &str, why: &'static str) {
        self.gate.tools.cut(name, Cut::Kicked(why));
    }

    /// Stops listening, ends the sessions (MQTT 5: 0x8B; the wills of nodes stay unsaid, those of tools are retained if
    /// they ask for that) and joins all threads, in a few seconds at most. The link still gives what the gate has acknowledged, then [`LinkClosed`].
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some((running, supervisor)) = self.running.take() {
            running.stop(&self.gate);
            supervisor.stop();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}
