//! Who may speak to the hub, decided: join tokens, the nodes' certificates, access of third-party tools, operators, field
//! agents.
//!
//! Owns the rules of enrolment, renewal, approval and revocation. Sees hashes of secrets and of public keys only; makes
//! no key and signs nothing. All of it fits into memory and is looked at by the gate for every CONNECT.

mod enrol;
mod field;
mod rights;
#[cfg(test)]
mod tests;
pub mod trail;

use std::collections::BTreeMap;

use fleet_schemas::{NodeId, enrol::RefusalCode};
use serde::{Deserialize, Serialize};

pub(super) use enrol::write_off;
pub use enrol::{Enrolled, Standing};
pub use field::{Brought, FIELD_TOKENS, FieldToken, NotServed, Served};
pub use rights::filter_error;

use super::{
    Now,
    fleet::{Fleet, NodeNo},
    intake::Effects,
    registry::RegistryError,
};

/// SHA-256 of a secret or of a public key (DER `SubjectPublicKeyInfo`).
pub type Hash = [u8; 32];

/// Most join tokens at once.
pub const TOKENS: usize = 10_000;
/// Most tools with access, and most operators.
pub const NAMES: usize = 1_000;
/// Most filters of one access.
pub const FILTERS: usize = 64;
/// Longest name of a tool or an operator, in bytes.
pub const NAME_BYTES: usize = 63;
/// Replaced keys that are remembered of one node; older ones have ended by themselves.
const BARRED: usize = 16;
/// How often it is written down that an operator's token is used, in milliseconds: looking must not write.
pub const USE_KEPT_MS: i64 = 3_600_000;
/// How long a token stays listed after it ended, so that its user is told what became of it.
const TOKEN_KEPT_MS: i64 = 7 * 24 * 3_600_000;

/// Everybody who may speak to the hub.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identities {
    /// Join tokens by id.
    pub tokens: BTreeMap<String, Token>,
    /// Nodes that joined, wait for approval, or were revoked.
    pub enrolments: BTreeMap<NodeId, Enrolment>,
    /// Third-party tools by user name.
    pub access: BTreeMap<String, Access>,
    /// Operators by name.
    pub operators: BTreeMap<String, Operator>,
    /// Tokens of agents that speak a field dialect, by id.
    pub field: BTreeMap<String, FieldToken>,
    /// What operators were bound to that were removed since the start: requests of theirs may be on the way.
    pub removed: BTreeMap<String, String>,
}

/// What an operator may do; each role may do what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Changes nodes, sends commands, runs rollouts.
    Operator,
    /// Decides who gets in.
    Admin,
}

/// Someone with an API token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The name, also in the audit trail.
    pub name: String,
    /// What the token may do.
    pub role: Role,
    /// SHA-256 of the token.
    #[serde(with = "serde_bytes")]
    pub token: Hash,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends, Unix milliseconds.
    pub expires_ms: Option<i64>,
    /// The selector of the nodes that the role is bound to, by [`super::bounds`]; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// When the token was last used, Unix milliseconds; written at most once in [`USE_KEPT_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<i64>,
}

/// A third-party MQTT tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The user name.
    pub name: String,
    /// Filters it may subscribe to, or to anything inside them.
    pub read: Vec<String>,
    /// Filters whose topics it may publish to; outside `fleet/`.
    pub write: Vec<String>,
    /// The password's hash (argon2id, PHC string).
    pub password: Option<String>,
    /// SHA-256 of the public key of its certificate.
    pub key: Option<Hash>,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
}

/// A join token; its secret is known to its users only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// SHA-256 of its secret.
    #[serde(with = "serde_bytes")]
    pub secret: Hash,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends, Unix milliseconds.
    pub expires_ms: i64,
    /// How many nodes may join by it.
    pub uses: u32,
    /// Labels that its nodes get.
    pub labels: BTreeMap<String, String>,
    /// Whether an operator has to approve each node.
    pub approve: bool,
    /// The node that it gives a new key; then it is for this node only.
    pub replace: Option<NodeId>,
    /// The nodes that joined by it.
    pub used_by: Vec<NodeId>,
}

/// A node that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Where it stands.
    pub standing: Standing,
    /// SHA-256 of its newest public key.
    #[serde(with = "serde_bytes")]
    pub key: Hash,
    /// The certificate of that key.
    pub certificate: Option<Certificate>,
    /// Keys that are refused although their certificates have not ended.
    pub barred: Vec<serde_bytes::ByteArray<32>>,
    /// The token it came by.
    pub token: String,
    /// When it joined, Unix milliseconds: certificates that are older, and not of the newest key, are another machine's.
    pub since_ms: i64,
}

/// What a certificate that was shown says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// SHA-256 of its public key.
    pub key: Hash,
    /// When it was made, Unix milliseconds, whole seconds.
    pub issued_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
}

/// A session that has to end, once the change that ends it is committed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Of a node.
    Node {
        /// Which.
        node: NodeId,
        /// Why, for the log.
        why: &'static str,
    },
    /// Of a tool: all of them.
    Tool(String),
}

/// An issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// X.509, DER.
    #[serde(with = "serde_bytes")]
    pub der: Vec<u8>,
    /// When it was made, Unix milliseconds, whole seconds.
    pub issued_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// SHA-256 of the public key of the CA that signed it.
    #[serde(with = "serde_bytes")]
    pub ca: Hash,
}

/// A row of the identities that changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// A join token.
    Token(String),
    /// A node.
    Enrolment(NodeId),
    /// A tool.
    Access(String),
    /// An operator.
    Operator(String),
    /// A field token.
    Field(String),
}

/// A change of who may speak to the hub.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Make a join token.
    PutToken(Token),
    /// Take a join token back; nodes that joined by it stay.
    RemoveToken(String),
    /// A machine asks to become a node.
    Enrol(Ask),
    /// A node has a new key.
    Renew {
        /// Which.
        node: NodeId,
        /// The certificate that it showed.
        shown: Shown,
        /// The new key.
        key: Hash,
        /// Its certificate.
        certificate: Certificate,
    },
    /// Let a node in that waits.
    Approve(NodeId),
    /// Shut a node out.
    Revoke {
        /// Which.
        node: NodeId,
        /// Why, in the operator's words.
        reason: String,
    },
    /// Let a tool in.
    PutAccess(Access),
    /// Shut a tool out.
    RemoveAccess(String),
    /// Let an operator in.
    PutOperator(Operator),
    /// Shut an operator out.
    RemoveOperator(String),
    /// An operator's token was used.
    Used {
        /// Whose.
        name: String,
        /// When, Unix milliseconds.
        at_ms: i64,
    },
    /// Make a field token.
    PutField(FieldToken),
    /// Take a field token back: whoever comes with it is refused from then on.
    RemoveField(String),
    /// A token serves this node from now on.
    Serve(Brought, NodeId),
}

/// A machine asks to become a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The token's id.
    pub token: String,
    /// SHA-256 of the secret that was shown.
    pub secret: Hash,
    /// The id it would like to have.
    pub node: NodeId,
    /// SHA-256 of its public key.
    pub key: Hash,
    /// The certificate that was made for it, once it may have one.
    pub certificate: Option<Certificate>,
}

/// Why somebody stays outside. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such token.
    #[error("the hub knows no join token {0:?}; make a new one with `fleet join-token create`")]
    TokenUnknown(String),
    /// Wrong secret.
    #[error(
        "the secret of join token {0:?} is wrong; copy the whole token as it was printed, or make a new one"
    )]
    TokenSecret(String),
    /// Ended.
    #[error("join token {0:?} has expired; make a new one with `fleet join-token create`")]
    TokenExpired(String),
    /// Used up.
    #[error("join token {0:?} was used up by {1}; make a new one with `fleet join-token create`")]
    TokenUsed(String, String),
    /// The id is taken.
    #[error(
        "node {0} exists already, with another key; choose another id with --node, or give this machine its place \
         with `fleet join-token create --replace {0}`"
    )]
    NodeExists(NodeId),
    /// Shut out.
    #[error("node {0} was revoked; only a token of `fleet join-token create --replace {0}` lets it in again")]
    Revoked(NodeId),
    /// The certificate was replaced.
    #[error("the certificate of node {0} was replaced by another; join again with a new token")]
    Replaced(NodeId),
    /// Waits for approval.
    #[error("node {0} waits for approval: `fleet node approve {0}`")]
    Pending(NodeId),
    /// Its certificate ended.
    #[error("the certificate of node {0} has ended; the agent renews it on the hub's port for nodes")]
    Expired(NodeId),
}

impl Refused {
    /// As it is said to a machine that enrols.
    #[must_use]
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::TokenUnknown(_) => RefusalCode::TokenUnknown,
            Self::TokenSecret(_) => RefusalCode::TokenSecret,
            Self::TokenExpired(_) => RefusalCode::TokenExpired,
            Self::TokenUsed(..) => RefusalCode::TokenUsed,
            Self::NodeExists(_) => RefusalCode::NodeExists,
            Self::Revoked(_) => RefusalCode::Revoked,
            Self::Replaced(_) => RefusalCode::BadCertificate,
            Self::Pending(_) | Self::Expired(_) => RefusalCode::BadCertificate,
        }
    }
}

/// Applies a change, or nothing of it.
///
/// # Errors
/// [`RegistryError`].
pub fn take(
    identities: &mut Identities,
    fleet: &mut Fleet,
    effects: &mut Effects,
    change: Change,
    highest: NodeNo,
    now: Now,
) -> Result<(), RegistryError> {
    let row = match change {
        Change::PutToken(token) => identities.put_token(token, now)?,
        Change::RemoveToken(id) => {
            let gone = identities.tokens.remove(&id);
            gone.map(|_| Row::Token(id.clone())).ok_or_else(|| unknown("join token", &id))?
        }
        Change::Enrol(ask) => return enrol::take(identities, fleet, effects, ask, highest, now),
        Change::Renew { node, shown, key, certificate } => {
            identities.renew(&node, &shown, key, certificate, now)?;
            Row::Enrolment(node)
        }
        Change::Approve(node) => {
            identities.approve(&node)?;
            effects.changed.insert(node.clone());
            Row::Enrolment(node)
        }
        Change::Revoke { node, reason } => {
            identities.revoke(fleet, &node, reason, now)?;
            effects.changed.insert(node.clone());
            effects.left.insert(node.clone());
            effects.cuts.insert(Cut::Node { node: node.clone(), why: "revoked" });
            Row::Enrolment(node)
        }
        Change::PutAccess(access) => identities.put_access(access)?,
        Change::RemoveAccess(name) => {
            identities.access.remove(&name).ok_or_else(|| unknown("access", &name))?;
            effects.cuts.insert(Cut::Tool(name.clone()));
            Row::Access(name)
        }
        Change::PutOperator(operator) => identities.put_operator(operator)?,
        Change::RemoveOperator(name) => identities.remove_operator(name)?,
        Change::Used { name, at_ms } => identities.used(name, at_ms)?,
        Change::PutField(token) => identities.put_field(token, now)?,
        Change::RemoveField(id) => identities.remove_field(id)?,
        Change::Serve(brought, node) => {
            return field::take(identities, fleet, effects, (&brought, &node), highest, now);
        }
    };
    if matches!(row, Row::Token(_)) {
        identities.forget_tokens(effects, now);
    }
    effects.identities.insert(row);
    Ok(())
}

fn unknown(what: &'static str, name: &str) -> RegistryError {
    RegistryError::Unknown { what, name: name.to_owned() }
}
