//! The MQTT plane of Clawland Fleet: a gate in front of a supervised rumqttd router, and the hub's own link.
//!
//! Owns sessions, their rules and limits, and the way of messages between nodes, the hub and third-party tools.
//! Stores nothing: who may connect it asks a [`Directory`], and an acknowledgement from here means "in the gate's
//! memory", no more.
//!
//! A tool ([`Identity::Tool`]) listens to filters inside its grants and speaks on topics inside them, outside `fleet/`:
//! at QoS 0 and 1, retained or not, with a will, in a clean session. It gets the bytes that nodes, the hub and other
//! tools published, in order and without a silent gap: one that does not keep up is disconnected (MQTT 5: 0x97), and so
//! are all when the router is replaced (0x8B).
//!
//! [`local`] is another, small front without a router, which an agent has for the devices behind its node; the feature
//! `hub` (a default) is all the rest.
//!
//! rumqttd opens a tracing span at error level for every message; a program that logs should turn its target off
//! ([`LOG_FILTER`]).

#![cfg_attr(
    not(feature = "hub"),
    expect(
        dead_code,
        reason = "the rooms that the local front shares with the gate have more than it needs"
    )
)]

use std::time::Duration;

#[cfg(feature = "hub")]
pub mod bare;
#[cfg(feature = "hub")]
mod branch;
mod caps;
mod clock;
#[cfg(all(fuzzing, feature = "hub"))]
pub mod fuzz;
#[cfg(feature = "hub")]
mod gate;
mod identity;
#[cfg(feature = "hub")]
mod keys;
#[cfg(feature = "hub")]
mod link;
pub mod local;
mod pace;
mod packets;
#[cfg(feature = "hub")]
mod plane;
pub mod policy;
#[cfg(feature = "hub")]
mod router;
mod stats;
#[cfg(feature = "hub")]
#[cfg(test)]
mod tests;

#[cfg(feature = "hub")]
pub use branch::HubKind;
pub use identity::{Credentials, Directory, Grants, Identity, Refusal, Retained, Verdict};
#[cfg(feature = "hub")]
pub use keys::{Keys, Mqtts};
#[cfg(feature = "hub")]
pub use link::{Link, LinkClosed, Message, PublishError, Publisher, Voice};
#[cfg(feature = "hub")]
pub use plane::{Broker, Config, Error};
pub use stats::{Counter, Gauge, Reason, Stats};

/// A directive for a `tracing` filter that keeps the router from formatting every message.
pub const LOG_FILTER: &str = "rumqttd=off";

/// How fast one session may publish; 0 for no limit. Above it, it is not read for a while: nothing is lost and nobody
/// is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishLimit {
    /// Messages a second.
    pub messages_per_s: u64,
    /// Bytes of packets a second.
    pub bytes_per_s: u64,
    /// After a rest, so much time's worth may come at once.
    pub burst: Duration,
}

impl Default for PublishLimit {
    /// Far above what a node on a fast network makes of a week's backlog.
    fn default() -> Self {
        Self { messages_per_s: 20_000, bytes_per_s: 64 * 1024 * 1024, burst: Duration::from_secs(4) }
    }
}
