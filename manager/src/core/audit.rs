//! The trail of changes: who changed what, when. One entry a change, written in the change's own transaction.
//!
//! Says nothing of what is secret; hashes of secrets are left out too.

use fleet_schemas::NodeId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    config::Edit,
    identity::{Change, Operator, Token},
    registry::{Intent, NodePatch},
    rollout::{Act, Wanted},
};

/// One change that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, hub time, Unix milliseconds.
    pub at_ms: i64,
    /// Who: `operator NAME`, `node ID`, or `hub`.
    pub who: String,
    /// What was done, such as `node.patch`.
    pub action: String,
    /// To what, such as a node's id.
    pub target: String,
    /// With what, JSON.
    pub detail: Option<String>,
}

impl Entry {
    /// What an intent does. To be asked before it is applied.
    #[must_use]
    pub fn new(intent: &Intent, who: &str, at_ms: i64) -> Self {
        let (action, target, detail) = said(intent);
        let detail = (!detail.is_null()).then(|| detail.to_string());
        Self { at_ms, who: who.to_owned(), action: action.to_owned(), target, detail }
    }
}

/// Whether an intent changes anything that the trail is for. That a token is used is known by its last use.
#[must_use]
pub fn is_told(intent: &Intent) -> bool {
    !matches!(intent, Intent::Identity(Change::Used { .. }))
}

fn said(intent: &Intent) -> (&'static str, String, Value) {
    match intent {
        Intent::PatchNode { node, patch } => ("node.patch", node.to_string(), patched(patch)),
        Intent::RemoveNode(node) => ("node.remove", node.to_string(), Value::Null),
        Intent::ForgetNode(node) => ("node.forget", node.to_string(), Value::Null),
        Intent::ImportNodes(nodes) => {
            let ids: Vec<_> = nodes.iter().take(LISTED).map(|(node, _)| node.as_str()).collect();
            ("node.import", format!("{} nodes", nodes.len()), json!({ "nodes": ids }))
        }
        Intent::PutGroup { name, selector } => ("group.put", name.clone(), json!({ "selector": selector })),
        Intent::RemoveGroup(name) => ("group.remove", name.clone(), Value::Null),
        Intent::PutSite { name, tz } => ("site.put", name.clone(), json!({ "tz": tz })),
        Intent::RemoveSite(name) => ("site.remove", name.clone(), Value::Null),
        Intent::Identity(change) => identity(change),
        Intent::Command(wanted) => {
            let ids: Vec<_> = wanted.nodes.iter().take(LISTED).map(NodeId::as_str).collect();
            // The parameters may hold what is secret.
            let detail = json!({
                "kind": wanted.kind, "nodes_count": wanted.nodes.len(), "nodes": ids, "selector": wanted.selector,
            });
            ("command.create", wanted.id.to_string(), detail)
        }
        Intent::CancelCommand { id, nodes } => {
            let ids: Option<Vec<_>> =
                nodes.as_ref().map(|nodes| nodes.iter().take(LISTED).map(NodeId::as_str).collect());
            ("command.cancel", id.to_string(), json!({ "nodes": ids }))
        }
        Intent::ApproveCommand { id, nodes } => {
            let ids: Option<Vec<_>> =
                nodes.as_ref().map(|nodes| nodes.iter().take(LISTED).map(NodeId::as_str).collect());
            ("command.approve", id.to_string(), json!({ "nodes": ids }))
        }
        Intent::EditConfig { edit, .. } => edited(edit),
        Intent::RetryConfig(node) => ("config.retry", node.to_string(), Value::Null),
        Intent::Rollout(wanted) => ("rollout.create", wanted.id.to_string(), made(wanted)),
        Intent::ActOnRollout { id, act, .. } => {
            let (action, detail) = acted(act);
            (action, id.to_string(), detail)
        }
        Intent::Rotated(what) => ("pki.rotate", what.clone(), Value::Null),
        Intent::Noted(noted) => (noted.action, noted.target.clone(), noted.detail.clone()),
    }
}

fn made(wanted: &Wanted) -> Value {
    let Wanted { release, seats, selector, terms, .. } = wanted;
    json!({
        "release": format!("{}@{}", release.name, release.version), "nodes_count": seats.len(),
        "selector": selector, "waves": terms.waves.iter().map(|size| size.name()).collect::<Vec<_>>(),
    })
}

fn acted(act: &Act) -> (&'static str, Value) {
    let why = |reason: &Option<String>| json!({ "reason": reason });
    match act {
        Act::Pause { reason } => ("rollout.pause", why(reason)),
        Act::Resume => ("rollout.resume", Value::Null),
        Act::Abort { reason } => ("rollout.abort", why(reason)),
        Act::Rollback { reason } => ("rollout.rollback", why(reason)),
        Act::Approve => ("rollout.approve", Value::Null),
        Act::Gate { wave, why, .. } => ("rollout.gate", json!({ "wave": wave + 1, "verdict": why })),
    }
}

/// The keys at the top that are named; what they are set to stands in the layer's revisions.
fn edited(edit: &Edit) -> (&'static str, String, Value) {
    let keys = |doc: &Value| -> Vec<String> {
        doc.as_object().into_iter().flat_map(|doc| doc.keys().take(LISTED).cloned()).collect()
    };
    match edit {
        Edit::Put { layer, doc, .. } => ("config.put", layer.to_string(), json!({ "keys": keys(doc) })),
        Edit::Patch { layer, patch, .. } => {
            ("config.patch", layer.to_string(), json!({ "keys": keys(patch) }))
        }
        Edit::Return { layer, to, .. } => ("config.rollback", layer.to_string(), json!({ "to": to })),
        Edit::Schema { schema, .. } => {
            ("config.schema", "schema".to_owned(), json!({ "set": schema.is_some() }))
        }
    }
}

fn identity(change: &Change) -> (&'static str, String, Value) {
    match change {
        Change::PutToken(token) => ("join_token.create", token.id.clone(), terms(token)),
        Change::RemoveToken(id) => ("join_token.remove", id.clone(), Value::Null),
        Change::Enrol(ask) => ("node.enrol", ask.node.to_string(), json!({ "join_token": ask.token })),
        Change::Renew { node, certificate, .. } => {
            ("node.renew", node.to_string(), json!({ "not_after_ms": certificate.not_after_ms }))
        }
        Change::Approve(node) => ("node.approve", node.to_string(), Value::Null),
        Change::Revoke { node, reason } => ("node.revoke", node.to_string(), json!({ "reason": reason })),
        Change::PutAccess(access) => {
            ("access.create", access.name.clone(), json!({ "read": access.read, "write": access.write }))
        }
        Change::RemoveAccess(name) => ("access.remove", name.clone(), Value::Null),
        Change::PutOperator(operator) => {
            let Operator { role, expires_ms, on, .. } = operator;
            let detail = json!({ "role": role, "expires_ms": expires_ms, "on": on });
            ("operator.create", operator.name.clone(), detail)
        }
        Change::RemoveOperator(name) => ("operator.remove", name.clone(), Value::Null),
        Change::Used { name, .. } => ("operator.use", name.clone(), Value::Null),
        Change::PutField(token) => {
            let node = token.node.as_ref().map(NodeId::as_str);
            let detail = json!({ "node": node, "expires_ms": token.expires_ms, "labels": token.labels });
            ("field_token.create", token.id.clone(), detail)
        }
        Change::RemoveField(id) => ("field_token.remove", id.clone(), Value::Null),
        Change::Serve(brought, node) => ("node.serve", node.to_string(), json!({ "token": brought.id })),
    }
}

fn terms(token: &Token) -> Value {
    let Token { expires_ms, uses, labels, approve, replace, .. } = token;
    let replace = replace.as_ref().map(ToString::to_string);
    json!({
        "expires_ms": expires_ms, "uses": uses, "labels": labels, "approve": approve, "replace": replace,
    })
}

fn patched(patch: &NodePatch) -> Value {
    serde_json::to_value(patch).unwrap_or(Value::Null)
}

/// Nodes or keys that are listed by name.
const LISTED: usize = 100;
