//! Refusals as problems (RFC 9457): the only place where errors become HTTP statuses.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{selector::SelectorError, shapes};
use crate::{
    alerts::{self, PutError},
    artifact, consume,
    core::{
        alert::AlertError,
        bounds::Outside,
        config::{ConfigError, Unfit},
        identity::Role,
        registry::RegistryError,
        rollout::RolloutError,
    },
    hub::IntentError,
    pki, release,
    store::{state, telemetry},
};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The path, the query or the form of the body is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// Values are wrong; each with its place.
    #[error("{detail}")]
    Invalid {
        /// What was not done.
        detail: String,
        /// Where and why.
        faults: Vec<(String, String)>,
    },
    /// It looks like a request that a foreign web page made.
    #[error("{0}")]
    Forbidden(String),
    /// For want of a token or of a right.
    #[error(transparent)]
    Denied(Denied),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It was there, and is not any more.
    #[error("{0}")]
    Gone(String),
    /// The path is known, the method is not.
    #[error("this path does not take this method")]
    Method,
    /// It contradicts what is there, or another request in flight.
    #[error("{0}")]
    Conflict(String),
    /// Another revision counts than was expected.
    #[error("{detail}")]
    Revision {
        /// Which, in words.
        detail: String,
        /// The one that counts.
        current: u64,
    },
    /// `If-Match` does not hold any more.
    #[error("{0}")]
    Stale(String),
    /// The body is larger than allowed.
    #[error("{0}")]
    Large(String),
    /// The body is of another type.
    #[error("{0}")]
    MediaType(String),
    /// The answer would be larger than allowed.
    #[error("{0}")]
    TooMuch(String),
    /// Too many requests at once.
    #[error("the hub answers as many requests as it can; try again")]
    Busy,
    /// It took too long.
    #[error("the answer took too long; ask for less")]
    Slow,
    /// The hub cannot do it now.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of the hub.
    #[error("{0}")]
    Internal(String),
}

/// What a request lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// No token was sent.
    #[error(
        "this needs an API token: `fleet login` with one that an admin made by `fleet operator create`, or send \
         `Authorization: Bearer TOKEN`; on the hub's own machine `--data DIR` finds one"
    )]
    NoToken,
    /// No operator holds the token.
    #[error(
        "this API token is unknown, was removed, or has expired; have an admin make a new one with \
         `fleet operator create`"
    )]
    BadToken,
    /// The token's holder may not do this.
    #[error("{name} is {has} and this needs {needs}; have somebody of that role do it")]
    Role {
        /// Who.
        name: String,
        /// What it is.
        has: Role,
        /// What it should be.
        needs: Role,
    },
    /// Its role is bound to other nodes.
    #[error(transparent)]
    Outside(Box<Outside>),
    /// Too many wrong tokens came from that address.
    #[error("too many wrong API tokens came from this address; correct the token, then try again")]
    TooMany {
        /// When, in seconds.
        retry_s: u64,
    },
}

impl Refusal {
    /// One wrong value.
    pub(crate) fn at(pointer: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { detail: "nothing was changed".to_owned(), faults: vec![(pointer.into(), why.into())] }
    }

    /// One wrong query parameter.
    pub(crate) fn query(name: &str, why: impl Into<String>) -> Self {
        let faults = vec![(format!("?{name}"), why.into())];
        Self::Invalid { detail: format!("the query's {name} is not understood"), faults }
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Invalid { .. } | Self::TooMuch(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Denied(denied) => denied.status(),
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Gone(_) => StatusCode::GONE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) | Self::Revision { .. } => StatusCode::CONFLICT,
            Self::Stale(_) => StatusCode::PRECONDITION_FAILED,
            Self::Large(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let detail = self.to_string();
        if let Self::Internal(why) = &self {
            tracing::error!(%why, "a request failed");
        }
        let retry_s = match &self {
            Self::Denied(Denied::TooMany { retry_s }) => Some(*retry_s),
            busy => matches!(busy, Self::Busy | Self::Unavailable(_)).then_some(1),
        };
        let challenge = if let Self::Denied(denied) = &self { denied.challenge() } else { None };
        let revision = if let Self::Revision { current, .. } = &self { Some(*current) } else { None };
        let errors = match self {
            Self::Invalid { faults, .. } => {
                faults.into_iter().map(|(pointer, detail)| shapes::Fault { pointer, detail }).collect()
            }
            _ => Vec::new(),
        };
        let problem = shapes::Problem {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail,
            errors,
            revision,
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        if let Some(retry_s) = retry_s {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from(retry_s));
        }
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static(challenge));
        }
        response
    }
}

impl Denied {
    /// The metric's word for it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::BadToken => "bad_token",
            Self::Role { .. } => "role",
            Self::Outside(_) => "outside",
            Self::TooMany { .. } => "too_many",
        }
    }

    /// How one may ask (RFC 9110 §11.6.1, RFC 6750 §3).
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::NoToken => Some("Bearer realm=\"fleet\""),
            Self::BadToken => Some("Bearer realm=\"fleet\", error=\"invalid_token\""),
            Self::Role { .. } | Self::Outside(_) => {
                Some("Bearer realm=\"fleet\", error=\"insufficient_scope\"")
            }
            Self::TooMany { .. } => None,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::BadToken => StatusCode::UNAUTHORIZED,
            Self::Role { .. } | Self::Outside(_) => StatusCode::FORBIDDEN,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<SelectorError> for Refusal {
    fn from(error: SelectorError) -> Self {
        Self::query("selector", error.to_string())
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Unknown { .. } => Self::NotFound(error.to_string()),
            RegistryError::Exists { .. } | RegistryError::Refused(_) | RegistryError::NotServed(_) => {
                Self::Conflict(error.to_string())
            }
            RegistryError::Field { pointer, why } => Self::at(pointer, why),
            RegistryError::Config(error) => error.into(),
            RegistryError::Rollout(error) => error.into(),
            RegistryError::Outside(outside) => Denied::Outside(outside).into(),
        }
    }
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Self {
        let detail = error.to_string();
        match error {
            ConfigError::Conflict { current, .. } => Self::Revision { detail, current },
            ConfigError::Nobody(_) => Self::NotFound(detail),
            ConfigError::NotFailed(_) => Self::Conflict(detail),
            ConfigError::NoObject | ConfigError::Unsteady(_) | ConfigError::Schema(_) | ConfigError::Full => {
                Self::at("", detail)
            }
            ConfigError::Unfit { unfit: Unfit::Large(_) | Unfit::Shape(_), .. } => Self::at("", detail),
            ConfigError::Unfit { unfit: Unfit::Invalid(faults), .. } => {
                let faults = faults.into_iter().map(|fault| (fault.pointer, fault.why)).collect();
                Self::Invalid { detail, faults }
            }
        }
    }
}

impl From<RolloutError> for Refusal {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::Unknown(_) => Self::NotFound(error.to_string()),
            RolloutError::Exists(_) | RolloutError::State { .. } | RolloutError::Own(_) => {
                Self::Conflict(error.to_string())
            }
            RolloutError::Field { pointer, why } => Self::at(pointer, why),
        }
    }
}

impl From<alerts::Error> for Refusal {
    fn from(error: alerts::Error) -> Self {
        let detail = error.to_string();
        match error {
            alerts::Error::Alert(AlertError::Unknown(_) | AlertError::NoSilence(_))
            | alerts::Error::NoReceiver(_)
            | alerts::Error::NoKit(_) => Self::NotFound(detail),
            alerts::Error::Alert(AlertError::Silences) => Self::Conflict(detail),
            alerts::Error::Alert(AlertError::Until) => Self::at("/until_ms", detail),
            alerts::Error::Alert(AlertError::Everything) => Self::at("", detail),
            alerts::Error::Put(PutError::Refused(refused)) => {
                let place = format!("{}:{}:{}", refused.file, refused.line, refused.column);
                Self::Invalid { detail, faults: vec![(place, refused.reason)] }
            }
            alerts::Error::Put(PutError::Disk(_)) | alerts::Error::Unavailable(_) => {
                Self::Unavailable(detail)
            }
        }
    }
}

impl From<IntentError> for Refusal {
    fn from(error: IntentError) -> Self {
        match error {
            IntentError::Registry(error) => error.into(),
            IntentError::Unavailable(_) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<telemetry::Error> for Refusal {
    fn from(error: telemetry::Error) -> Self {
        match error {
            telemetry::Error::TooMuch { .. } => {
                Self::TooMuch(format!("{error}; shorten the range, name a metric or give a step"))
            }
            other => Self::Unavailable(format!("the telemetry store does not answer: {other}")),
        }
    }
}

impl From<consume::Error> for Refusal {
    fn from(error: consume::Error) -> Self {
        match error {
            consume::Error::State(error) => error.into(),
            consume::Error::Telemetry(error) => error.into(),
            consume::Error::Mark(_) => Self::Internal(error.to_string()),
            consume::Error::Trail(_) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<pki::Error> for Refusal {
    fn from(error: pki::Error) -> Self {
        match error {
            pki::Error::Request(_) => Self::at("/csr", error.to_string()),
            pki::Error::Moving | pki::Error::Settled => Self::Conflict(error.to_string()),
            pki::Error::ClockInDoubt | pki::Error::File(_) => Self::Unavailable(error.to_string()),
            pki::Error::Make(_) | pki::Error::Name(_) | pki::Error::Keys(_) => {
                Self::Internal(error.to_string())
            }
        }
    }
}

impl From<artifact::Error> for Refusal {
    fn from(error: artifact::Error) -> Self {
        let detail = error.to_string();
        match error {
            artifact::Error::Unknown(_) | artifact::Error::NoUpload(_) => Self::NotFound(detail),
            artifact::Error::Length => Self::at("/length", detail),
            artifact::Error::OtherLength { .. }
            | artifact::Error::Offset { .. }
            | artifact::Error::Busy
            | artifact::Error::Full(_) => Self::Conflict(detail),
            artifact::Error::TooLong(_) => Self::Large(detail),
            artifact::Error::Digest { .. } => Self::at("", detail),
            artifact::Error::Io { .. } => Self::Unavailable(detail),
        }
    }
}

impl From<release::Error> for Refusal {
    fn from(error: release::Error) -> Self {
        let detail = error.to_string();
        match error {
            release::Error::Artifact(error) => error.into(),
            release::Error::Io { .. } | release::Error::ClockInDoubt => Self::Unavailable(detail),
            release::Error::Damaged { .. } | release::Error::Key(_) => Self::Internal(detail),
            release::Error::NoRoot | release::Error::Version { .. } | release::Error::Named { .. } => {
                Self::Conflict(detail)
            }
            release::Error::Refused { file, .. } => {
                Self::at(if file == "root.json" { "/root" } else { "/targets" }, detail)
            }
            release::Error::Make(_) | release::Error::Nodes(_) => Self::at("", detail),
        }
    }
}

impl From<state::Error> for Refusal {
    fn from(error: state::Error) -> Self {
        Self::Unavailable(format!("the state file does not answer: {error}"))
    }
}

impl From<tokio::task::JoinError> for Refusal {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Internal(format!("a query ended early: {error}"))
    }
}
