//! Who is on the other end of a session, and the trait through which the gate asks.
//!
//! Owns no identities and stores none: they belong to whoever implements [`Directory`].

use std::{fmt, net::SocketAddr, ops::ControlFlow};

use fleet_schemas::NodeId;

/// What a connection and its CONNECT packet offer as proof.
pub struct Credentials<'a> {
    /// The client identifier (MQTT 5 §3.1.3.1).
    pub client_id: &'a str,
    /// The user name, if one was sent.
    pub user: Option<&'a str>,
    /// The password, if one was sent. Never logged.
    pub password: Option<&'a [u8]>,
    /// The client certificate (DER) whose key the peer has and that the [`Keys`](crate::Keys) let through. Whether it
    /// is in its time and not revoked is for the directory to say. A user name beside it proves nothing.
    pub certificate: Option<&'a [u8]>,
    /// Whether it came over TLS.
    pub encrypted: bool,
    /// Where the connection comes from.
    pub peer: SocketAddr,
}

/// Who a session belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A node: it owns the two prefixes of DESIGN section 2. Its client id is its node id.
    Node(NodeId),
    /// A third-party program.
    Tool {
        /// Its name: with the client id, what tells its sessions apart.
        name: String,
        /// The filters it was granted.
        grants: Grants,
    },
}

/// What a [`Directory`] says of credentials.
pub enum Verdict {
    /// It knows at once.
    Now(Result<Identity, Refusal>),
    /// It has to work for it (a password's slow hash): run by a thread of its own, one after the other, while the
    /// connection waits. Must do no IO that can hang. Beyond 64 that wait, clients are refused as [`Refusal::Busy`].
    Later(Box<dyn FnOnce() -> Result<Identity, Refusal> + Send>),
}

/// What a third-party credential may do. Deny by default: two empty lists open no session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Filters it may subscribe to, or to anything inside them.
    pub read: Vec<String>,
    /// Filters whose topics it may publish to; empty for a read-only credential. What they cover of `fleet/…` is for
    /// nodes and the hub all the same.
    pub write: Vec<String>,
}

/// A retained message of a tool (MQTT 5 §3.3.1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// Where; never below `fleet/`.
    pub topic: String,
    /// What it was published at: 0 or 1.
    pub qos: u8,
    /// What; never empty.
    pub payload: Vec<u8>,
    /// Its MQTT 5 properties that subscribers are given (payload format, content type, response topic, correlation
    /// data, user properties), as they travel and without their length; empty for none. To be kept as they are.
    pub properties: Vec<u8>,
}

/// Why a session is not opened. The gate maps it to the reason codes of MQTT 3.1.1 §3.2.2.3 and MQTT 5 §3.2.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Unknown user or wrong password.
    BadCredentials,
    /// Known, and not allowed here.
    NotAuthorized,
    /// Known, and shut out by an operator.
    Banned,
    /// Its certificate is not in its time.
    Expired,
    /// The client id is not the identity's own.
    ClientId,
    /// No room for one more session.
    Busy,
    /// The directory cannot answer now; the client should come back.
    Unavailable,
}

/// What the gate must know and does not own.
///
/// Called on the gate's threads unless said otherwise: it must be quick and must do no IO, or every session of that
/// thread waits.
pub trait Directory: Send + Sync + 'static {
    /// Says who holds these credentials, or how to find out; asked once per CONNECT. A [`Refusal`] is sent to the
    /// client as the protocol's reason code, and counted.
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict;

    /// Shows `visit` the hub's own retained messages (`fleet/v1/hub/…`) on topics that `filter` may match, as topic
    /// and payload, until it breaks: they answer a tool's subscription. More than the filter matches may be shown.
    ///
    /// Asked on a thread of that tool's own, after everything that is published from then on reaches the tool: what
    /// is shown must be no older than what was published before the call. It may do IO and wait; `visit` waits for a
    /// tool that reads slowly.
    fn retained(&self, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
        let _ = (filter, visit);
    }

    /// The retained messages of tools that [`Self::keep_retained`] was given, one for each topic. Asked once, at the
    /// start; may do IO.
    fn load_retained(&self) -> Vec<Retained> {
        Vec::new()
    }

    /// A tool's retained message on `topic` is another one from now on, or none: to be kept over restarts. Called in
    /// the order of the changes of a topic, under a lock of the gate's: hand it over and return.
    fn keep_retained(&self, topic: &str, value: Option<&Retained>) {
        let _ = (topic, value);
    }

    /// A tool said something, its will included.
    fn said(&self, tool: &str, topic: &str, payload: &[u8]) {
        let _ = (tool, topic, payload);
    }
}

impl Refusal {
    /// The return code of an MQTT 3.1.1 CONNACK (§3.2.2.3).
    #[must_use]
    pub fn v4(self) -> u8 {
        match self {
            Self::ClientId => 0x02,
            Self::Busy | Self::Unavailable => 0x03,
            Self::BadCredentials => 0x04,
            Self::NotAuthorized | Self::Banned | Self::Expired => 0x05,
        }
    }

    /// The reason code of an MQTT 5 CONNACK (§3.2.2.2).
    #[must_use]
    pub fn v5(self) -> u8 {
        match self {
            Self::ClientId => 0x85,
            Self::BadCredentials => 0x86,
            Self::NotAuthorized | Self::Expired => 0x87,
            Self::Unavailable => 0x88,
            Self::Busy => 0x89,
            Self::Banned => 0x8A,
        }
    }
}

impl From<Result<Identity, Refusal>> for Verdict {
    fn from(outcome: Result<Identity, Refusal>) -> Self {
        Self::Now(outcome)
    }
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("client_id", &self.client_id)
            .field("user", &self.user)
            .field("password", &self.password.map(|_| "…"))
            .field("certificate", &self.certificate.map(|_| "…"))
            .field("encrypted", &self.encrypted)
            .field("peer", &self.peer)
            .finish()
    }
}
