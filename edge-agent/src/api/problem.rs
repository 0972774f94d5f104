//! Problems (RFC 9457): what went wrong, where in the request, and what to do. The one place that maps errors to HTTP.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;
use tonic::Code;

use crate::{
    outbox::{Silent, SubmitError},
    uplink,
};

/// How long a client waits before it tries again what a disk failure refused, in seconds.
const RETRY_SECONDS: u16 = 5;

/// A problem as it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// JSON pointer (RFC 6901) to the field that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    #[serde(skip)]
    retry_after: Option<u16>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            pointer: None,
            retry_after: None,
        }
    }

    /// Well-formed, but a field is wrong.
    pub(crate) fn field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// Like [`Problem::below`], but for the one field that is not of the item.
    pub(crate) fn below_unless(self, field: &str, prefix: &str) -> Self {
        if self.pointer.as_deref() == Some(field) { self } else { self.below(prefix) }
    }

    /// Renames the field that the pointer ends with.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        if let Some(rest) = self.pointer.as_ref().and_then(|pointer| pointer.strip_suffix(from)) {
            self.pointer = Some(format!("{rest}{to}"));
        }
        self
    }

    pub(crate) fn retry_after(self, seconds: u16) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Puts `prefix` before the pointer: the field of an item in a list.
    pub(crate) fn below(mut self, prefix: &str) -> Self {
        self.pointer = self.pointer.map(|pointer| format!("{prefix}{pointer}"));
        self
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let detail = error.to_string();
        match error {
            SubmitError::Refused(uplink::SubmitError::Full) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, detail)
            }
            SubmitError::Refused(uplink::SubmitError::Large) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
            }
            SubmitError::Refused(uplink::SubmitError::Reused { at }) => {
                let pointer = at.map(|at| format!("/{at}/id"));
                Self { pointer, ..Self::new(StatusCode::CONFLICT, detail) }
            }
            SubmitError::Refused(uplink::SubmitError::Device(refused)) => refused.into(),
            SubmitError::Disk(_) | SubmitError::Stopped => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_SECONDS)
            }
        }
    }
}

impl From<Silent> for Problem {
    fn from(error: Silent) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).retry_after(RETRY_SECONDS)
    }
}

/// The same in the codes of gRPC; the message begins with the pointer.
impl From<Problem> for tonic::Status {
    fn from(problem: Problem) -> Self {
        let code = match problem.status {
            400 | 405 | 413 | 415 | 422 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            408 => Code::DeadlineExceeded,
            409 => Code::FailedPrecondition,
            429 | 507 => Code::ResourceExhausted,
            503 => Code::Unavailable,
            _ => Code::Internal,
        };
        let message = match &problem.pointer {
            Some(pointer) if !pointer.is_empty() => format!("{pointer}: {}", problem.detail),
            Some(_) | None => problem.detail,
        };
        let mut status = Self::new(code, message);
        if let Some(seconds) = problem.retry_after {
            status.metadata_mut().insert("retry-after", seconds.into());
        }
        status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).expect("made from a status code");
        let mut response = Response::new(Body::from(serde_json::to_vec(&self).unwrap_or_default()));
        *response.status_mut() = status;
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
