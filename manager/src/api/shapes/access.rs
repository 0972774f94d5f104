//! Who may come in: tokens, operators, tools, certificates, and what was done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer that makes a join token; the only one that has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NewJoinToken {
    /// Names it.
    pub id: String,
    /// The token.
    pub token: String,
    /// When it ends.
    pub expires_ms: i64,
    /// How many nodes may join by it.
    pub uses: u32,
    /// Labels that its nodes get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether each node has to be approved.
    pub approve: bool,
    /// The node that it gives a new key.
    pub replace: Option<String>,
}

/// A join token in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct JoinToken {
    /// Names it.
    pub id: String,
    /// `active|used|expired`.
    pub state: String,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_ms: i64,
    /// How many nodes may join by it.
    pub uses: u32,
    /// The nodes that did.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// Labels that its nodes get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether each node has to be approved.
    pub approve: bool,
    /// The node that it gives a new key.
    pub replace: Option<String>,
}

/// The answer that makes a field token; the only one that has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NewFieldToken {
    /// Names it.
    pub id: String,
    /// The token.
    pub token: String,
    /// The node that it serves; the first that comes, when absent.
    pub node: Option<String>,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// Labels that its node gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A field token in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct FieldToken {
    /// Names it.
    pub id: String,
    /// `unused|bound|expired`.
    pub state: String,
    /// The node that it serves.
    pub node: Option<String>,
    /// When that came first.
    pub bound_ms: Option<i64>,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// Labels that its node gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The holder of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Whoami {
    /// Its name.
    pub name: String,
    /// `viewer|operator|admin`.
    pub role: String,
    /// When the token ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// The selector of the nodes that it may change; all of them, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// The answer that makes an operator; the only one that has the token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NewOperator {
    /// Its name.
    pub name: String,
    /// `viewer|operator|admin`.
    pub role: String,
    /// The API token.
    pub token: String,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// The selector of the nodes that it may change; all of them, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// An operator in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Operator {
    /// Its name.
    pub name: String,
    /// `viewer|operator|admin`.
    pub role: String,
    /// `active|expired`.
    pub state: String,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// The selector of the nodes that it may change; all of them, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// When its token was last used; never, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_ms: Option<i64>,
}

/// The answer that makes an access: a password, or a certificate with the CAs to trust.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NewAccess {
    /// The MQTT user name.
    pub username: String,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_ms: Option<i64>,
    /// The CAs to trust, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// An access in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Access {
    /// The MQTT user name.
    pub name: String,
    /// `password|certificate`.
    pub by: String,
    /// Filters it may subscribe to.
    #[serde(default)]
    pub read: Vec<String>,
    /// Filters it may publish to.
    #[serde(default)]
    pub write: Vec<String>,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
}

/// One change that was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// When.
    pub at_ms: i64,
    /// Who: `operator NAME`, `node ID` or `hub`.
    pub who: String,
    /// What was done, such as `node.patch`.
    pub action: String,
    /// To what.
    pub target: String,
    /// With what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

/// The hub's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Pki {
    /// Where a change of the CA stands: `settled`, `moving` (nodes are given certificates of the new one) or
    /// `draining` (the hub shows the new one).
    pub stage: String,
    /// The CAs that are trusted, oldest first.
    pub authorities: Vec<Authority>,
    /// The hub's own certificate.
    pub server: ServerCertificate,
    /// How many nodes have a certificate of an old CA.
    pub nodes_waiting_count: usize,
    /// The first thousand of them.
    #[serde(default)]
    pub nodes_waiting: Vec<String>,
}

/// A CA of the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Authority {
    /// SHA-256 of its public key, as in join tokens.
    pub pin: String,
    /// When it was made.
    pub made_ms: i64,
    /// When it ends.
    pub not_after_ms: i64,
    /// Whether it signs the certificates of nodes and tools.
    pub signs_clients: bool,
    /// Whether it signed the hub's own.
    pub signs_server: bool,
}

/// The hub's own certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ServerCertificate {
    /// When it was made.
    pub made_ms: i64,
    /// When it ends.
    pub not_after_ms: i64,
    /// The names in it.
    pub names: Vec<String>,
}
