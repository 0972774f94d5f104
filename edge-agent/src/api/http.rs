//! The routes of the edge API and their answers.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Response, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use tokio::time;

use super::{
    BODY_BYTES, Config, body, commands, config,
    problem::Problem,
    view::{Facts, OutboxView, StatusView},
};
use crate::{clock::Clock, metrics::Metrics, outbox, stop::Stop, uplink::Submission};

/// What the routes share.
pub(crate) struct Api {
    pub(crate) config: Config,
    pub(crate) facts: Facts,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Stop,
}

pub(super) type Answer = Result<Response<Body>, Problem>;
pub(super) type Shared = State<Arc<Api>>;

pub(super) fn router(api: Arc<Api>) -> Router {
    let counted = api.metrics.clone();
    Router::new()
        .route("/healthz", get(health))
        .route("/api/health", get(health))
        .route("/api/v1/status", get(status))
        .route("/api/v1/outbox", get(outbox))
        .route("/api/v1/config", get(config::config))
        .route("/metrics", get(metrics))
        .route("/api/v1/telemetry", post(telemetry))
        .route("/api/v1/events", post(events))
        .route("/api/v1/command", post(commands::enqueue))
        .route("/api/command", post(commands::enqueue))
        .route("/api/v1/queue", get(commands::queue))
        .route("/api/v1/commands/{id}", get(commands::one))
        .route("/api/v1/local/take", post(commands::take))
        .route("/api/v1/local/{id}/extend", post(commands::extend))
        .route("/api/v1/local/{id}/report", post(commands::report))
        .fallback(missing)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::map_response(move |response: Response<Body>| {
            counted.answered(response.status().as_u16());
            std::future::ready(response)
        }))
        .with_state(api)
}

/// `GET /healthz`.
#[derive(Debug, Serialize)]
struct Health<'a> {
    status: &'static str,
    agent: &'static str,
    node_id: &'a str,
    uptime: u64,
}

/// Alive is enough: the link to the hub and the disk are told by the status.
async fn health(State(api): Shared) -> Answer {
    let uptime = api.clock.now().up.saturating_sub(api.facts.started).as_secs();
    let node_id = api.facts.node.as_str();
    json(&Health { status: "ok", agent: "fleet-agent", node_id, uptime })
}

async fn status(State(api): Shared) -> Answer {
    let status = api.outbox.status().await?;
    json(&StatusView::new(&api.facts, &status, api.clock.now()))
}

async fn outbox(State(api): Shared) -> Answer {
    json(&OutboxView::from(&api.outbox.status().await?))
}

async fn metrics(State(api): Shared) -> Answer {
    // The page is useful with a broken disk too: then the last figures stand.
    if let Ok(status) = api.outbox.status().await {
        let view = OutboxView::from(&status);
        let metrics = &api.metrics;
        metrics.outbox_records.set(view.held_records as f64);
        metrics.outbox_unacked.set(view.unacked_batches as f64);
        metrics.outbox_lost.set(view.lost_records as f64);
        metrics.outbox_bytes.set(view.bytes as f64);
        metrics.outbox_quota.set(view.quota_bytes as f64);
    }
    let page = api.metrics.render();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response())
}

async fn telemetry(State(api): Shared, request: Request) -> Answer {
    let body = read(&api, request).await?;
    let samples = body::telemetry(&body, api.clock.now().wall_ms)?;
    drop(body);
    accept(&api, samples.len(), Submission::Samples(samples)).await
}

async fn events(State(api): Shared, request: Request) -> Answer {
    let body = read(&api, request).await?;
    let events = body::events(&body, api.clock.now().wall_ms)?;
    accept(&api, events.len(), Submission::Events(events)).await
}

/// `202` of both posts.
#[derive(Debug, Serialize)]
struct Accepted {
    accepted: usize,
}

async fn accept(api: &Api, accepted: usize, submission: Submission) -> Answer {
    if accepted > 0 {
        api.outbox.submit(submission).await?;
    }
    let mut response = json(&Accepted { accepted })?;
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn missing(request: Request) -> Problem {
    let detail = format!(
        "there is nothing at {}; see `fleet-agent run --help` for what there is",
        request.uri().path()
    );
    Problem::new(StatusCode::NOT_FOUND, detail)
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} takes no {}", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// The body of a request: JSON, bounded, in time.
pub(super) async fn read(api: &Api, request: Request) -> Result<Bytes, Problem> {
    check_type(request.headers())?;
    let large = || {
        let detail = format!("the body is larger than {BODY_BYTES} bytes; send it in parts");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    let declared =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: usize| length > BODY_BYTES) {
        return Err(large());
    }
    let body = Limited::new(request.into_body(), BODY_BYTES);
    match time::timeout(api.config.read, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(large()),
        Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
        Err(_) => {
            let detail = format!("the body did not arrive within {:?}", api.config.read);
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
        }
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let detail = format!("the body's type is {text:?}; send JSON with `Content-Type: application/json`");
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

pub(super) fn json<T: Serialize>(value: &T) -> Answer {
    let bytes = serde_json::to_vec(value).expect("our answers have text keys");
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
