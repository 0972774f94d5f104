//! The edge API: what programs on the node may ask and hand in.
//!
//! Owns the listeners and their limits. Accepts a record only after the outbox said that it is on disk.

mod body;
mod commands;
mod config;
mod http;
mod listen;
mod problem;
mod view;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use config::{ConfigView, HeldView};
pub(crate) use http::Api;
pub(crate) use listen::{Bound, bind, serve};
pub use view::Facts;
pub use view::{LaneView, OutboxView, StatusView, StreamView};

use crate::config::seconds;

/// Largest body of a request, in bytes: about 4,000 samples.
pub const BODY_BYTES: usize = 256 * 1024;

/// How the edge API listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where; port 0 picks one.
    pub listen: SocketAddr,
    /// A Unix socket beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Most connections at a time: each may hold a body in memory.
    pub connections: usize,
    /// Time a client has to send a request's head, and then its body, in seconds.
    #[serde(rename = "read_s", with = "seconds")]
    pub read: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9099)),
            socket: None,
            connections: 32,
            read: Duration::from_secs(10),
        }
    }
}

/// The edge API cannot listen. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken or not ours.
    #[error(
        "the edge API cannot listen on {address}: {source}; choose another with --api, or stop what uses it"
    )]
    Address {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("the edge API cannot make the socket {path}: {source}; choose another `socket` under [api]")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
