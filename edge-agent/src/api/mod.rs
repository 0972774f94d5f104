//! The edge API: what programs on the node may ask and hand in.
//!
//! Owns the listeners and their limits. Accepts a record only after the outbox said that it is on disk.

mod auth;
mod body;
mod commands;
mod config;
#[cfg(test)]
mod described;
mod devices;
mod field;
mod firmware;
pub mod grpc;
mod http;
mod listen;
mod parse;
mod places;
mod preface;
mod problem;
mod tls;
mod view;
mod write;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub(crate) use auth::Auth;
pub use auth::token;
pub use config::{ConfigView, HeldView};
pub(crate) use http::Api;
pub use http::ROUTES;
pub(crate) use listen::{Bound, bind, serve};
pub(crate) use places::Places;
pub(crate) use tls::Tls;
pub use view::Facts;
pub use view::{AccountView, BudgetView, LaneView, LedgerView, OutboxView, StatusView, StreamView};

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
    /// File with the token that clients from other machines have to bring; absent: `api-token` in the data folder,
    /// made when the address is not this machine's alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// TLS for other machines, with a certificate of the agent's own: `api-certificate.pem` in the data folder, for
    /// clients to pin. This machine may do without.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// TLS with this certificate and those that lead to its CA, PEM. Read again when the file changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// Its private key, PEM; not for everybody to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
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
            token_file: None,
            tls: false,
            certificate_file: None,
            key_file: None,
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
    /// The token that an address of other machines needs.
    #[error(
        "the edge API does not listen on {address} without a token, and the token file {path} cannot be used: \
         {problem}; mend that, or listen on 127.0.0.1"
    )]
    Token {
        /// Where it would listen.
        address: SocketAddr,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The certificate, or its key.
    #[error("the edge API cannot speak TLS with {path}: {problem}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
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
