//! The keys of the TLS listener, and the trait through which the gate asks for them.
//!
//! Owns none: certificates and CAs belong to whoever implements [`Keys`].

use std::{fmt, net::SocketAddr, sync::Arc};

/// The TLS listener.
#[derive(Clone)]
pub struct Mqtts {
    /// Where to listen; port 0 picks one.
    pub addr: SocketAddr,
    /// Certificates and rules of the handshake.
    pub keys: Arc<dyn Keys>,
}

/// Says how the next TLS connection is to be served.
///
/// Asked for every accepted connection, so that keys change without a restart: sessions that are open live on with
/// what they began with. The answer should be made beforehand and cloned.
///
/// The configuration should keep no sessions and send no tickets (`NoServerSessionStorage`, `send_tls13_tickets` 0):
/// a session is resumed rarely, and a full handshake of P-256 takes a quarter of a millisecond.
///
/// A client certificate must be optional (third-party tools bring user and password), and its verifier must look at
/// signature and issuer only, or a refusal would end the handshake instead of carrying a reason code; the rest is
/// judged by the [`Directory`](crate::Directory).
pub trait Keys: Send + Sync + 'static {
    /// The configuration of the next connection.
    fn server_config(&self) -> Arc<rustls::ServerConfig>;
}

impl fmt::Debug for Mqtts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mqtts").field("addr", &self.addr).finish_non_exhaustive()
    }
}
