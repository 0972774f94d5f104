//! Who may connect: the gate's directory, over what the store knows and the hub's CAs have signed.
//!
//! Over TLS a node shows its certificate, and a tool a certificate or user and password. On the plain listener, which
//! only programs of this machine reach, a node that nobody knows is admitted with whatever secret it brings and held to
//! it from then on (trust on first use), unless it has joined with a key of its own. Looks at memory only; what has to
//! be written or reckoned is done on other threads.

mod complaints;
mod passwords;
mod retained;
mod secrets;

use std::{
    fmt::Display,
    io,
    net::SocketAddr,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
};

use fleet_broker::{Credentials, Directory, Grants, Identity, Refusal, Retained, Verdict};
use fleet_schemas::{NodeId, topic};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    clock::HubClock,
    consume::Shared,
    core::identity::{Access, Hash, Identities, Refused, Shown, Standing},
    pki::{Peer, Who},
    store::state,
};
use complaints::Complaints;
use passwords::Passwords;
use secrets::Secrets;

/// User name of the local tool.
pub const TOOL: &str = "local";
/// Where its user name and password are kept, in the data folder: two lines, mode 0600.
pub const TOOL_FILE: &str = "access/local";

/// The directory.
pub struct Admission {
    shared: Shared,
    clock: Arc<HubClock>,
    secrets: Secrets,
    passwords: Arc<Passwords>,
    tool: Hash,
    retained: retained::Writer,
    mirror: OnceLock<Box<dyn Mirror>>,
    complaints: Complaints,
}

/// What tools are told of the hub's own topics, and what the hub hears of tools.
pub trait Mirror: Send + Sync + 'static {
    /// As [`Directory::retained`].
    fn retained(&self, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>);

    /// As [`Directory::said`].
    fn said(&self, tool: &str, topic: &str, payload: &[u8]);
}

/// The directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The tool's file, or a thread.
    #[error("{TOOL_FILE} in the data folder cannot be used: {0}; check its permissions")]
    Tool(#[from] io::Error),
}

impl Admission {
    /// Reads the known secrets and the local tool's password, which is made when there is none.
    ///
    /// # Errors
    /// When the store or the tool's file cannot be used.
    pub fn open(shared: Shared, clock: Arc<HubClock>, data: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            secrets: Secrets::open(shared.clone())?,
            tool: secrets::tool_password(&data.join(TOOL_FILE))?,
            retained: retained::Writer::start(shared.clone())?,
            shared,
            clock,
            passwords: Arc::default(),
            mirror: OnceLock::new(),
            complaints: Complaints::default(),
        })
    }

    /// Says who answers for the hub's own topics; once.
    pub fn set_mirror(&self, mirror: Box<dyn Mirror>) {
        // A second one would be a mistake at start, which its own test shows.
        let _ = self.mirror.set(mirror);
    }

    /// Writes what is not written yet, and ends the threads that write. To be called when the gate is shut; blocks.
    pub fn close(&self) {
        self.secrets.close();
        self.retained.close();
    }

    fn judge(&self, credentials: &Credentials<'_>) -> Verdict {
        match (credentials.encrypted, credentials.certificate) {
            (true, Some(der)) => self.by_certificate(der, credentials.peer).into(),
            (true, None) => self.by_password(credentials),
            (false, _) => self.in_the_clear(credentials),
        }
    }

    fn by_certificate(&self, der: &[u8], peer: SocketAddr) -> Result<Identity, Refusal> {
        let Some(Peer { who, shown }) = Peer::read(der) else {
            self.complain("a certificate", &"it names neither a node nor a tool of this hub", peer);
            return Err(Refusal::BadCredentials);
        };
        let now_ms = self.clock.now().wall_ms;
        match who {
            Who::Node(node) => {
                let admitted = self.shared.identities().admit(&node, &shown, now_ms);
                admitted.map_err(|refused| self.turn_away(&node, &refused, peer))?;
                Ok(Identity::Node(node))
            }
            Who::Tool(name) => {
                let known = self.shared.identities().access.get(&name).cloned();
                let known = known.filter(|access| access.key.is_some_and(|key| same(&key, &shown.key)));
                let Some(access) = known else {
                    self.complain(&name, &"its access was removed, or made anew for another key", peer);
                    return Err(Refusal::NotAuthorized);
                };
                self.in_time(&name, &shown, now_ms, peer)?;
                Ok(tool(access))
            }
        }
    }

    fn in_time(&self, name: &str, shown: &Shown, now_ms: i64, peer: SocketAddr) -> Result<(), Refusal> {
        if shown.not_after_ms > now_ms {
            return Ok(());
        }
        self.complain(
            name,
            &"its certificate has ended; make its access anew with `fleet access create`",
            peer,
        );
        Err(Refusal::Expired)
    }

    /// A tool's user and password.
    fn by_password(&self, credentials: &Credentials<'_>) -> Verdict {
        let (Some(user), Some(password)) = (credentials.user, credentials.password) else {
            let why =
                "it shows no certificate and no password; a node has to join first (`fleet-agent join`)";
            self.complain(credentials.client_id, &why, credentials.peer);
            return Verdict::Now(Err(Refusal::BadCredentials));
        };
        if user == TOOL {
            return self.local(password, credentials.peer).into();
        }
        let known = self.shared.identities().access.get(user).cloned();
        let Some((access, hash)) = known.and_then(|known| known.password.clone().map(|hash| (known, hash)))
        else {
            self.complain(
                user,
                &"no tool of this name has a password; see `fleet access ls`",
                credentials.peer,
            );
            return Verdict::Now(Err(Refusal::BadCredentials));
        };
        if self.passwords.remembers(user, password, &hash) {
            return Verdict::Now(Ok(tool(access)));
        }
        let (passwords, shared) = (self.passwords.clone(), self.shared.clone());
        let (user, password) = (user.to_owned(), password.to_vec());
        Verdict::Later(Box::new(move || {
            if !passwords.check(&user, &password, &hash) {
                return Err(Refusal::BadCredentials);
            }
            // It may have been removed while its password was reckoned.
            match shared.identities().access.get(&user) {
                Some(known) if known.password.as_ref() == Some(&hash) => Ok(tool(known.clone())),
                Some(_) | None => Err(Refusal::BadCredentials),
            }
        }))
    }

    /// The local tool, which reads everything.
    fn local(&self, password: &[u8], peer: SocketAddr) -> Result<Identity, Refusal> {
        let hash: Hash = Sha256::digest(password).into();
        if !peer.ip().is_loopback() || !same(&hash, &self.tool) {
            return Err(Refusal::BadCredentials);
        }
        let read = vec![topic::ALL_UP.to_owned(), topic::ALL_HUB.to_owned()];
        Ok(Identity::Tool { name: TOOL.to_owned(), grants: Grants { read, write: Vec::new() } })
    }

    fn in_the_clear(&self, credentials: &Credentials<'_>) -> Verdict {
        let (Some(user), Some(password)) = (credentials.user, credentials.password) else {
            return Verdict::Now(Err(Refusal::BadCredentials));
        };
        if user == TOOL || self.shared.identities().access.contains_key(user) {
            return self.by_password(credentials);
        }
        self.by_secret(user, password, credentials).into()
    }

    fn by_secret(
        &self,
        user: &str,
        password: &[u8],
        credentials: &Credentials<'_>,
    ) -> Result<Identity, Refusal> {
        let node = NodeId::parse(user).map_err(|_| Refusal::BadCredentials)?;
        // The gate holds client ids to identities too; asked here, a stranger's mistake binds no secret.
        if credentials.client_id != user || password.is_empty() {
            return Err(Refusal::ClientId);
        }
        if self.shared.identities().is_served(&node) {
            let why = "a field token serves it, over HTTP; it cannot come by MQTT as well";
            self.complain(user, &why, credentials.peer);
            return Err(Refusal::NotAuthorized);
        }
        if let Some(refused) = held(&self.shared.identities(), &node) {
            match refused {
                Some(refused) => return Err(self.turn_away(&node, &refused, credentials.peer)),
                None => {
                    let why = "it has joined with a key of its own; it has to come by MQTT over TLS";
                    self.complain(user, &why, credentials.peer);
                    return Err(Refusal::NotAuthorized);
                }
            }
        }
        self.secrets.admit(&node, password, credentials.peer.ip().is_loopback())?;
        Ok(Identity::Node(node))
    }

    fn turn_away(&self, node: &NodeId, refused: &Refused, peer: SocketAddr) -> Refusal {
        self.complain(node.as_str(), refused, peer);
        match refused {
            Refused::Revoked(_) => Refusal::Banned,
            Refused::Expired(_) => Refusal::Expired,
            Refused::TokenUnknown(_)
            | Refused::TokenSecret(_)
            | Refused::TokenExpired(_)
            | Refused::TokenUsed(..)
            | Refused::NodeExists(_)
            | Refused::Replaced(_)
            | Refused::Pending(_) => Refusal::NotAuthorized,
        }
    }

    fn complain(&self, who: &str, why: &dyn Display, peer: SocketAddr) {
        if self.complaints.is_due(who) {
            tracing::warn!(who, %why, %peer, "a connection is refused");
        }
    }
}

impl Directory for Admission {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        self.judge(credentials)
    }

    fn retained(&self, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
        if let Some(mirror) = self.mirror.get() {
            mirror.retained(filter, visit);
        }
    }

    fn load_retained(&self) -> Vec<Retained> {
        self.retained.load()
    }

    fn keep_retained(&self, topic: &str, value: Option<&Retained>) {
        self.retained.keep(topic, value);
    }

    fn said(&self, tool: &str, topic: &str, payload: &[u8]) {
        if let Some(mirror) = self.mirror.get() {
            mirror.said(tool, topic, payload);
        }
    }
}

/// Whether a node may come with its certificate only; and why not even so, if that is the case.
fn held(identities: &Identities, node: &NodeId) -> Option<Option<Refused>> {
    identities.enrolments.get(node).map(|known| match known.standing {
        Standing::Revoked { .. } => Some(Refused::Revoked(node.clone())),
        Standing::Pending => Some(Refused::Pending(node.clone())),
        Standing::Enrolled => None,
    })
}

fn tool(access: Access) -> Identity {
    let Access { name, read, write, .. } = access;
    Identity::Tool { name, grants: Grants { read, write } }
}

fn same(a: &Hash, b: &Hash) -> bool {
    a.ct_eq(b).into()
}
