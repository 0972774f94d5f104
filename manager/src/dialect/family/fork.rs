//! Forks on bare `/fleet` paths: 201 for what is made, lists without an object around them, `degraded` for late.

use axum::http::StatusCode;
use serde_json::json;

use super::{About, Answer, time};

pub(super) fn registered(about: &About) -> Answer {
    let body = json!({
        "id": about.node, "node_id": about.node, "status": "online", "registered_at": time(about.now_ms),
        "token": about.token,
    });
    (StatusCode::CREATED, body)
}

pub(super) fn heard(about: &About) -> Answer {
    let body = json!({
        "id": about.node, "node_id": about.node, "status": "ok",
        "next_heartbeat_seconds": about.interval_s, "commands_pending": about.pending,
    });
    (StatusCode::OK, body)
}

pub(super) fn stored(about: &About) -> Answer {
    let (_, body) = super::openapi::stored(about);
    (StatusCode::CREATED, body)
}
