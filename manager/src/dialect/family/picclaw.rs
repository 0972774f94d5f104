//! PicClaw (Go) and the branch with `/fleet` handlers. PicClaw itself looks at the status only: 300 and above is an
//! error to it, after which it does not ask again.

use axum::http::StatusCode;
use serde_json::json;

use super::{About, Answer, time};

pub(super) fn registered(about: &About) -> Answer {
    let body = json!({
        "node_id": about.node, "status": "registered", "message": "welcome", "timestamp": time(about.now_ms),
        "token": about.token, "next_heartbeat_seconds": about.interval_s,
    });
    (StatusCode::OK, body)
}

pub(super) fn heard(about: &About) -> Answer {
    let body = json!({
        "node_id": about.node, "received": true, "next_check_seconds": about.interval_s,
        "status": if about.warning { "warning" } else { "ok" },
        "next_heartbeat_seconds": about.interval_s, "commands_pending": about.pending,
    });
    (StatusCode::OK, body)
}
