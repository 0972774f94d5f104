//! The local front: plain MQTT 3.1.1 for the devices behind a node, without a router.
//!
//! Boards in the field (MicroClaw) speak on `clawland/{id}/…` at QoS 0 in packets of at most 512 bytes, and hear their
//! commands on `clawland/{id}/cmd`. What they say comes out of one bounded channel, in the order in which each said it,
//! and is not read from their sockets before there is room; what they hear goes in by [`Speaker::tell`]. Nothing is
//! retained, forwarded to other devices or kept for later.
//!
//! A session is one device's: that of its password, else the first that its topics name. It is held to it.
//! QoS 1 is taken as well and acknowledged when the listener says so ([`Ack`]); QoS 2, wills, other versions and larger
//! packets are refused.

mod conn;
mod crowd;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod session;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use fleet_schemas::{DeviceId, limits};
use tokio::{
    net::{TcpListener, TcpSocket},
    select,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time,
};

use self::crowd::{Crowd, Order};
pub use self::session::On;
use crate::{
    PublishLimit,
    caps::{Caps, Limits},
    clock,
    identity::{Credentials, Refusal},
    packets::{encode::Forward, wire::Version},
    policy::device::cmd_topic,
    stats::{Reason, Stats},
};

/// How the front is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Where it listens; port 0 picks one. Passwords and all that is said cross the network in the clear.
    pub listen: SocketAddr,
    /// Most sessions.
    pub max_sessions: usize,
    /// How fast one session may publish. Above it, it is not read for a while.
    pub publish_limit: PublishLimit,
}

/// Says who a device is. Called on the runtime's thread: it must be quick and must do no IO that can hang.
pub trait Gatekeeper: Send + Sync + 'static {
    /// The device whose session this will be; `None` when any will do, by the first id in its topics.
    ///
    /// # Errors
    /// [`Refusal`] is sent to the client as the protocol's return code, and counted.
    fn admit(&self, credentials: &Credentials<'_>) -> Result<Option<DeviceId>, Refusal>;
}

/// What happens at the front.
#[derive(Debug)]
pub struct Heard {
    /// In which session: a number that is never used again.
    pub session: u64,
    /// Whose session it is.
    pub device: DeviceId,
    /// What.
    pub word: Word,
}

/// What happens in one session.
#[derive(Debug)]
pub enum Word {
    /// It is this device's from now on: by its password, or only by its word.
    Bound {
        /// By its password.
        proven: bool,
    },
    /// The device said something.
    Said {
        /// On which of its topics.
        on: On,
        /// What.
        payload: Vec<u8>,
        /// To be told when it is safe; absent at QoS 0.
        ack: Option<Ack>,
    },
    /// It hears commands from now on, or does not any more.
    Hears(bool),
    /// It is over.
    Gone,
}

/// Acknowledges one message at QoS 1. Dropped, it leaves the message unacknowledged.
#[derive(Debug)]
pub struct Ack {
    orders: mpsc::Sender<Order>,
    id: u16,
}

/// A bound front that does not serve yet.
#[derive(Debug)]
pub struct Front {
    listener: TcpListener,
    address: SocketAddr,
    config: Config,
    stats: Arc<Stats>,
    crowd: Arc<Crowd>,
}

/// Speaks to devices, and ends their sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Speaker {
    crowd: Arc<Crowd>,
}

/// A device was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// Nothing left the node.
    #[error("the device hears no commands now; it has to be connected and subscribed to its topic")]
    Away,
    /// Nothing left the node: too much waits for it already.
    #[error("too much waits for the device already; it does not read")]
    Busy,
    /// Nothing left the node.
    #[error("a command has at most {PACKET_BYTES} bytes with its topic, as a board's buffer takes it")]
    TooLarge,
    /// It may have been told, in whole or in part.
    #[error("the device's connection ended while the command was on its way")]
    Lost,
}

/// What connections share.
struct Shared {
    gatekeeper: Arc<dyn Gatekeeper>,
    config: Config,
    stats: Arc<Stats>,
    crowd: Arc<Crowd>,
    heard: mpsc::Sender<Heard>,
}

/// Largest packet either way, in bytes.
pub const PACKET_BYTES: usize = limits::DEVICE_PACKET_BYTES;
/// Connections beside the sessions: before CONNACK, or hearing last words.
const PENDING: usize = 64;
const PENDING_PER_ADDRESS: usize = 32;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 256;
/// How long a full process (no file descriptors) waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long a stop waits for connections to end.
const CLOSE: Duration = Duration::from_secs(1);

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            max_sessions: limits::DEVICES_PER_NODE,
            // A board says a few things a second; a gateway with a batch for each of many a few dozen.
            publish_limit: PublishLimit {
                messages_per_s: 100,
                bytes_per_s: 32 * 1024,
                burst: Duration::from_secs(4),
            },
        }
    }
}

impl Front {
    /// Binds. Nobody is answered before [`Self::serve`].
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(config: Config) -> io::Result<Self> {
        let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(config.listen)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let stats = Arc::new(Stats::new(clock::now()));
        Ok(Self { listener, address, config, stats, crowd: Arc::new(Crowd::new(config.max_sessions)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters and gauges: `connections`, `sessions`, `sessions_opened`, `up_messages`, `down_messages`,
    /// `throttles` and the reasons are of use here.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Speaks to the devices.
    #[must_use]
    pub fn speaker(&self) -> Speaker {
        Speaker { crowd: self.crowd.clone() }
    }

    /// Serves until `stop` completes, on the calling runtime; then ends the sessions. What happens goes into `heard`,
    /// and sessions wait while it is full.
    pub async fn serve(
        self,
        gatekeeper: Arc<dyn Gatekeeper>,
        heard: mpsc::Sender<Heard>,
        stop: impl Future<Output = ()>,
    ) {
        let Self { listener, address: _, config, stats, crowd } = self;
        let caps = Limits {
            total: config.max_sessions.saturating_add(PENDING),
            pending: PENDING,
            pending_per_address: PENDING_PER_ADDRESS,
        };
        let total = caps.total;
        let caps = Arc::new(Caps::new(caps, stats.clone()));
        let shared =
            Arc::new(Shared { gatekeeper, config, stats: stats.clone(), crowd: crowd.clone(), heard });
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = select! {
                () = &mut stop => break,
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Small answers must not wait for each other; a socket that refuses works without.
                    let _ = stream.set_nodelay(true);
                    match caps.enter(peer.ip(), total) {
                        Ok(slot) => drop(connections.spawn(conn::serve(stream, peer, shared.clone(), slot))),
                        Err(reason) => stats.note(reason, clock::now(), &peer),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    stats.note(Reason::Exhausted, clock::now(), &error);
                    time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        drop(listener);
        crowd.cut(None, Reason::Shutdown);
        let ended = async { while connections.join_next().await.is_some() {} };
        // What does not end in time is dropped with the set.
        let _ = time::timeout(CLOSE, ended).await;
    }
}

impl Speaker {
    /// Says something to a device on its command topic, at QoS 0; returns once the bytes are on their way. That tells
    /// nothing about whether they arrive.
    ///
    /// # Errors
    /// [`Untold`] says whether anything may have left the node.
    pub async fn tell(&self, device: &DeviceId, payload: &[u8]) -> Result<(), Untold> {
        if !fits(device, payload) {
            return Err(Untold::TooLarge);
        }
        let orders = self.crowd.orders_of(device).ok_or(Untold::Away)?;
        let (done, told) = oneshot::channel();
        match orders.try_send(Order::Tell { payload: payload.to_vec(), done }) {
            Ok(()) => told.await.map_err(|_| Untold::Lost),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Untold::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Untold::Away),
        }
    }

    /// Whether a device has an open session, and whether one of its sessions hears commands.
    #[must_use]
    pub fn presence(&self, device: &DeviceId) -> (bool, bool) {
        self.crowd.presence(device)
    }

    /// Ends the sessions of a device.
    pub fn kick(&self, device: &DeviceId) {
        self.crowd.cut(Some(device), Reason::Kicked);
    }

    /// Ends those sessions of a device that no password says to be its.
    pub fn kick_unproven(&self, device: &DeviceId) {
        self.crowd.cut_unproven(device, Reason::Kicked);
    }

    /// Ends one session, which may not be here.
    pub fn turn_away(&self, session: u64) {
        self.crowd.cut_one(session, Reason::NotAuthorized);
    }
}

/// Whether a board's buffer takes this command.
#[must_use]
pub fn fits(device: &DeviceId, payload: &[u8]) -> bool {
    let topic = cmd_topic(device.as_str(), false);
    let packet = Forward { topic: topic.as_bytes(), payload, ..Forward::default() };
    packet.size(Version::V4) <= PACKET_BYTES
}

impl Ack {
    /// It is safe.
    pub fn done(self) {
        // A session that is gone, or takes nothing, has its message again when it asks for it again.
        let _ = self.orders.try_send(Order::Ack(self.id));
    }
}
