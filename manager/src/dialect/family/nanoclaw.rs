//! NanoClaw (Python): readings, one by `/report` or many by `/batch`. The hub buffers nothing: what is answered is
//! stored.

use axum::http::StatusCode;
use serde_json::json;

use super::{About, Answer};

pub(super) fn stored(about: &About) -> Answer {
    let body = json!({
        "status": "accepted", "node_id": about.node, "buffer_size": 0,
        "received": about.received, "stored": about.stored,
    });
    (StatusCode::CREATED, body)
}
