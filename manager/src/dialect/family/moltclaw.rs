//! MoltClaw (TypeScript): everything that went well is `{success: true, ack: true}`.

use axum::http::StatusCode;
use serde_json::json;

use super::Answer;

pub(super) fn acknowledged() -> Answer {
    (StatusCode::OK, json!({ "success": true, "ack": true }))
}
