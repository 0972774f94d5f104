//! What a machine is told that gets no certificate: problems (RFC 9457) with the codes of the schemas.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fleet_schemas::enrol::RefusalCode;
use serde_json::json;

use crate::{core::identity::Refused, core::registry::RegistryError, hub::IntentError, pki};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: RefusalCode,
    pub status: StatusCode,
    pub detail: String,
    pub retry_s: Option<u64>,
}

/// When to come back to a hub that cannot do it now, in seconds.
const AGAIN_S: u64 = 10;

impl Refusal {
    /// With the status that fits the code.
    pub(super) fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        let (status, retry_s) = match code {
            RefusalCode::TokenUnknown | RefusalCode::TokenSecret => (StatusCode::UNAUTHORIZED, None),
            RefusalCode::TokenExpired
            | RefusalCode::TokenUsed
            | RefusalCode::Revoked
            | RefusalCode::BadCertificate
            | RefusalCode::TooLate => (StatusCode::FORBIDDEN, None),
            RefusalCode::NodeExists => (StatusCode::CONFLICT, None),
            RefusalCode::BadRequest => (StatusCode::BAD_REQUEST, None),
            RefusalCode::ClockInDoubt | RefusalCode::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, Some(AGAIN_S))
            }
            RefusalCode::Other => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        Self { code, status, detail: detail.into(), retry_s }
    }

    /// Too much of it.
    pub(super) fn too_many(detail: &str, retry_s: u64) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { status, retry_s: Some(retry_s), ..Self::new(RefusalCode::Unavailable, detail) }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code(), refused.to_string())
    }
}

impl From<IntentError> for Refusal {
    fn from(error: IntentError) -> Self {
        match error {
            IntentError::Registry(RegistryError::Refused(refused)) => refused.into(),
            IntentError::Registry(other) => Self::new(RefusalCode::BadRequest, other.to_string()),
            IntentError::Unavailable(_) => Self::new(RefusalCode::Unavailable, error.to_string()),
        }
    }
}

impl From<pki::Error> for Refusal {
    fn from(error: pki::Error) -> Self {
        let code = match &error {
            pki::Error::ClockInDoubt => RefusalCode::ClockInDoubt,
            pki::Error::Request(_) => RefusalCode::BadRequest,
            pki::Error::File(_)
            | pki::Error::Make(_)
            | pki::Error::Name(_)
            | pki::Error::Keys(_)
            | pki::Error::Moving
            | pki::Error::Settled => RefusalCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<pki::RequestError> for Refusal {
    fn from(error: pki::RequestError) -> Self {
        pki::Error::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(),
            "detail": self.detail, "code": self.code,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(retry_s) = self.retry_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_s));
        }
        response
    }
}
