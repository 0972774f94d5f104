//! What an agent in the field is told when something is not done: RFC 9457's fields, with `error` beside them, which is
//! what agents in the field look for. Never 404 for a node, never 409.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{family::Family, read::Fault, said::Wrong};
use crate::{
    core::{identity::NotServed, registry::RegistryError},
    hub::IntentError,
};

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub detail: String,
    pub pointer: Option<String>,
    pub retry_s: Option<u64>,
    pub family: Option<Family>,
}

/// When to come back to a hub that cannot do it now, in seconds.
const AGAIN_S: u64 = 5;

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), pointer: None, retry_s: None, family: None }
    }

    pub(super) fn at(pointer: impl Into<String>, why: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, why) }
    }

    /// The hub cannot store it now: nothing was done that the agent could rely on.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_s: Some(AGAIN_S), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    pub(super) fn too_many(detail: &str, retry_s: u64) -> Self {
        Self { retry_s: Some(retry_s), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    pub(super) fn by(self, family: Family) -> Self {
        Self { family: Some(family), ..self }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::at(fault.pointer, fault.why)
    }
}

impl From<Wrong> for Refusal {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Field(fault) => fault.into(),
            Wrong::Many(detail) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail),
        }
    }
}

impl From<NotServed> for Refusal {
    fn from(refused: NotServed) -> Self {
        match &refused {
            NotServed::Unknown => Self::new(StatusCode::UNAUTHORIZED, refused.to_string()),
            NotServed::NoNode(_) => Self::at("/node_id", refused.to_string()),
            NotServed::Expired(_)
            | NotServed::Other { .. }
            | NotServed::Known(_)
            | NotServed::Certified(_)
            | NotServed::Revoked(_)
            | NotServed::Join(_)
            | NotServed::Used(_) => Self::new(StatusCode::FORBIDDEN, refused.to_string()),
        }
    }
}

impl From<IntentError> for Refusal {
    fn from(error: IntentError) -> Self {
        match error {
            IntentError::Registry(RegistryError::NotServed(refused)) => refused.into(),
            IntentError::Registry(other) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, other.to_string()),
            IntentError::Unavailable(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let mut body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail,
            "error": self.detail,
        });
        if let Some(pointer) = &self.pointer {
            body["pointer"] = json!(pointer);
        }
        if self.family == Some(Family::MoltClaw) {
            body["success"] = json!(false);
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry_s) = self.retry_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_s));
        }
        response
    }
}
