//! The families of dialects: who speaks which, and what each is answered. Pure.
//!
//! What is said is read alike for all (`said`); a family decides on answers, status codes and silence.

mod fork;
mod moltclaw;
mod nanoclaw;
mod openapi;
mod picclaw;

use std::time::Duration;

use axum::http::StatusCode;
use fleet_schemas::command::State as CommandState;
use serde_json::{Value, json};

use crate::core::{
    command::Due,
    fleet::{Node, Record},
    presence::State,
};

/// A family of dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// PicClaw itself, and the branch with `/fleet` handlers: bare paths, `node_id`.
    PicClaw,
    /// The proposed OpenAPI: paths below `/api/v1`.
    OpenApi,
    /// Forks on bare paths with `id` or `metrics`.
    Fork,
    /// MoltClaw: `agentId` on whichever path.
    MoltClaw,
    /// NanoClaw: `/report` and `/batch`.
    NanoClaw,
}

/// What an answer may tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct About {
    /// The node, as the request called it.
    pub node: String,
    /// Hub time, Unix milliseconds.
    pub now_ms: i64,
    /// When it should be heard again.
    pub interval_s: u64,
    /// Commands that wait for it.
    pub pending: usize,
    /// The token it came with.
    pub token: String,
    /// When that ends, Unix milliseconds.
    pub expires_ms: Option<i64>,
    /// Where the hub serves MQTT over TLS.
    pub broker: Option<String>,
    /// Its clock is wrong, or it says that it is not well.
    pub warning: bool,
    /// Entries received.
    pub received: usize,
    /// Records stored.
    pub stored: usize,
}

/// An answer.
pub(crate) type Answer = (StatusCode, Value);

impl Family {
    /// Who speaks, by path and fields.
    pub(crate) fn of(versioned: bool, body: &Value) -> Self {
        let has = |key: &str| body.get(key).is_some();
        if has("agentId") {
            Self::MoltClaw
        } else if versioned {
            Self::OpenApi
        } else if !has("node_id") && has("id") || has("metrics") {
            Self::Fork
        } else {
            Self::PicClaw
        }
    }

    /// Its name, as the registry shows it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PicClaw => "picclaw",
            Self::OpenApi => "openapi",
            Self::Fork => "fork",
            Self::MoltClaw => "moltclaw",
            Self::NanoClaw => "nanoclaw",
        }
    }

    /// The kind of a node that never said one.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::PicClaw => "picclaw",
            Self::MoltClaw => "moltclaw",
            Self::NanoClaw => "nanoclaw",
            Self::OpenApi | Self::Fork => "field",
        }
    }

    /// How often its agents are heard unless one shows otherwise; offline is three times that.
    pub(crate) fn interval(self) -> Duration {
        match self {
            Self::PicClaw => Duration::from_secs(30),
            Self::OpenApi | Self::Fork | Self::MoltClaw => Duration::from_secs(60),
            // It sends readings and no heartbeats, a board in deep sleep every hour at the latest.
            Self::NanoClaw => Duration::from_secs(300),
        }
    }

    pub(crate) fn registered(self, about: &About) -> Answer {
        match self {
            Self::PicClaw | Self::NanoClaw => picclaw::registered(about),
            Self::OpenApi => openapi::registered(about),
            Self::Fork => fork::registered(about),
            Self::MoltClaw => moltclaw::acknowledged(),
        }
    }

    pub(crate) fn heard(self, about: &About) -> Answer {
        match self {
            Self::PicClaw | Self::NanoClaw => picclaw::heard(about),
            Self::OpenApi => openapi::heard(about),
            Self::Fork => fork::heard(about),
            Self::MoltClaw => moltclaw::acknowledged(),
        }
    }

    pub(crate) fn stored(self, about: &About) -> Answer {
        match self {
            Self::PicClaw | Self::OpenApi => openapi::stored(about),
            Self::Fork => fork::stored(about),
            Self::MoltClaw => moltclaw::acknowledged(),
            Self::NanoClaw => nanoclaw::stored(about),
        }
    }

    pub(crate) fn commands(self, due: &[Due]) -> Answer {
        let commands: Vec<_> = due.iter().map(command).collect();
        let mut body = json!({ "commands": commands });
        if self == Self::MoltClaw {
            body["success"] = json!(true);
        }
        (StatusCode::OK, body)
    }

    pub(crate) fn acked(self) -> Answer {
        match self {
            Self::MoltClaw => moltclaw::acknowledged(),
            Self::PicClaw | Self::OpenApi | Self::Fork | Self::NanoClaw => {
                (StatusCode::OK, json!({ "status": "ok" }))
            }
        }
    }

    pub(crate) fn published(self, digest: &str, asset_id: Option<&str>, verified: bool) -> Answer {
        match self {
            Self::MoltClaw => moltclaw::acknowledged(),
            Self::PicClaw | Self::OpenApi | Self::Fork | Self::NanoClaw => {
                let asset_id = asset_id.unwrap_or(digest);
                let body = json!({
                    "status": "published", "asset_id": asset_id, "digest": digest, "verified": verified,
                });
                (StatusCode::OK, body)
            }
        }
    }

    /// The fleet as a list; bare paths know no pages.
    pub(crate) fn nodes(self, items: Vec<Value>, total: usize, page: usize, limit: usize) -> Answer {
        let body = match self {
            Self::OpenApi => {
                json!({ "nodes": items, "count": items.len(), "total": total, "page": page, "limit": limit })
            }
            Self::PicClaw | Self::Fork | Self::MoltClaw | Self::NanoClaw => Value::Array(items),
        };
        (StatusCode::OK, body)
    }

    /// Presence in the family's words.
    pub(crate) fn status(self, state: State) -> &'static str {
        match (self, state) {
            (_, State::Online) => "online",
            (Self::OpenApi, State::Offline) => "down",
            (Self::Fork | Self::PicClaw, State::Suspect { .. }) => "degraded",
            (_, State::New | State::Suspect { .. } | State::Offline | State::Sleeping { .. }) => "offline",
        }
    }

    /// A node as its family shows it.
    pub(crate) fn node(self, node: &Node) -> Value {
        let Record { id, kind, capabilities, versions, machine, labels, .. } = &node.record;
        let status = self.status(node.record.presence.state);
        let seen = time(node.record.last_seen_ms);
        json!({
            "node_id": id, "id": id, "name": node.record.display_name(), "node_name": node.record.display_name(),
            "node_type": kind, "type": kind, "status": status, "version": versions.agent,
            "capabilities": capabilities, "last_seen": seen, "last_heartbeat": seen,
            "location": machine.get("location").or_else(|| labels.get("location")).or(node.record.site.as_ref()),
            "metadata": machine,
            "metrics": node.vital.as_ref().map(|vital| vital.system()).unwrap_or_default(),
        })
    }
}

/// One command: kinds that the field knows as they are, others as `custom` with their kind beside.
fn command(due: &Due) -> Value {
    let kind = due.command.kind.as_str();
    let known = matches!(kind, "restart" | "update" | "config");
    let params: Value = due.command.params.deserialized().unwrap_or(Value::Null);
    let params = if params.is_null() { json!({}) } else { params };
    json!({
        "command_id": due.command.id.to_string(), "command_type": if known { kind } else { "custom" },
        "kind": kind, "issued_at": time(due.command.created_ms), "params": params,
        "timeout_seconds": due.command.timeout_ms.div_ceil(1_000),
        "again": due.state >= CommandState::Accepted,
    })
}

/// RFC 3339.
pub(crate) fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms).map_or_else(|_| at_ms.to_string(), |at| at.to_string())
}

/// How soon an agent should be heard again, in seconds, from how long it was silent between its last heartbeats: one
/// pause proves nothing, two of a kind do.
pub(crate) fn interval(usual: Duration, gaps: [Option<Duration>; 2]) -> Duration {
    const MOST: Duration = Duration::from_secs(24 * 3_600);
    match gaps {
        [Some(one), Some(other)] if one.min(other) > usual + usual / 5 => {
            Duration::from_secs(one.min(other).as_secs() + 1).min(MOST)
        }
        _ => usual,
    }
}
