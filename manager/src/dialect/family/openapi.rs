//! The proposed OpenAPI dialect below `/api/v1`: heartbeats every 60 s, down after 180 s.

use axum::http::StatusCode;
use serde_json::json;

use super::{About, Answer, time};

pub(super) fn registered(about: &About) -> Answer {
    let body = json!({
        "node_id": about.node, "token": about.token, "expires_at": about.expires_ms.map(time),
        "fleet_broker": about.broker,
    });
    (StatusCode::OK, body)
}

pub(super) fn heard(about: &About) -> Answer {
    let body = json!({
        "status": if about.warning { "warning" } else { "ok" },
        "next_heartbeat_seconds": about.interval_s, "commands_pending": about.pending,
    });
    (StatusCode::OK, body)
}

pub(super) fn stored(about: &About) -> Answer {
    let body = json!({
        "status": "ok", "events_received": about.received, "events_stored": about.stored.min(about.received),
    });
    (StatusCode::OK, body)
}
