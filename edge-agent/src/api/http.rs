//! The routes of the edge API and their answers.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Response, StatusCode, header},
    response::IntoResponse,
    routing::MethodRouter,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use tokio::time;

use super::{
    BODY_BYTES, Config, body, commands, config, devices, field, firmware, grpc,
    places::{Place, Places},
    problem::Problem,
    view::{Facts, LedgerView, OutboxView, StatusView},
    write::{self, Accepted},
};
use crate::{
    clock::Clock,
    devices::Offers,
    metrics::Metrics,
    outbox,
    stop::Stop,
    uplink::{Handed, Receipt},
};

/// The header that makes a repeated write one record.
const NAME: &str = "idempotency-key";
/// What there is to ask, for programs; made from the code and checked against it.
const OPENAPI: &str = include_str!("../../../schemas/openapi-edge.json");

/// What the routes share.
pub(crate) struct Api {
    pub(crate) config: Config,
    pub(crate) facts: Facts,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Stop,
    pub(crate) places: Places,
    /// The firmware that devices may fetch, where any are served.
    pub(crate) offers: Option<Offers>,
}

pub(super) type Answer = Result<Response<Body>, Problem>;
pub(super) type Shared = State<Arc<Api>>;

macro_rules! routes {
    ($($path:literal: $($method:ident $answer:path),+;)*) => {
        /// Every route of the REST API: its path, and the methods it takes. What describes them is compared with this.
        pub const ROUTES: &[(&str, &[&str])] = &[$(($path, &[$(stringify!($method)),+])),*];

        fn routes() -> Router<Arc<Api>> {
            Router::new()$(.route($path, MethodRouter::new()$(.$method($answer))+))*
        }
    };
}

routes! {
    "/healthz": get health;
    "/api/health": get health;
    "/api/v1/status": get status;
    "/api/v1/outbox": get outbox;
    "/api/v1/config": get config::config;
    "/api/v1/ledger": get ledger;
    "/metrics": get metrics;
    "/openapi.json": get openapi;
    "/api/v1/telemetry": post telemetry;
    "/api/v1/events": post events;
    "/report": post field::report;
    "/batch": post field::batch;
    "/api/v1/command": post commands::enqueue;
    "/api/command": post commands::enqueue;
    "/api/v1/queue": get commands::queue;
    "/api/v1/commands/{id}": get commands::one;
    "/api/v1/local/take": post commands::take;
    "/api/v1/local/{id}/extend": post commands::extend;
    "/api/v1/local/{id}/report": post commands::report;
    "/api/v1/devices": get devices::list;
    "/api/v1/devices/{id}": get devices::one, put devices::declare, post devices::declare, delete devices::remove;
    "/api/v1/devices/{id}/sleep": post devices::sleep;
    "/api/v1/firmware/{digest}": get firmware::fetch;
}

pub(super) async fn router(api: Arc<Api>) -> Router {
    let counted = api.metrics.clone();
    routes()
        .merge(grpc::routes(&api).await)
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
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct Health<'a> {
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

async fn ledger(State(api): Shared) -> Answer {
    json(&LedgerView::from(&api.outbox.status().await?))
}

async fn openapi() -> Answer {
    Ok(([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response())
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
        for (period, budget) in [("hour", view.hour_budget), ("day", view.day_budget)] {
            if let Some(budget) = budget {
                metrics.budget(period, budget.used_bytes, budget.budget_bytes);
            }
        }
    }
    let page = api.metrics.render();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response())
}

async fn telemetry(State(api): Shared, request: Request) -> Answer {
    let name = name_in(request.headers())?;
    let Text { bytes, place } = read(&api, request).await?;
    let now_ms = api.clock.now().wall_ms;
    let handed = write::samples(name.as_deref(), now_ms, |now_ms| body::telemetry(&bytes, now_ms))?;
    drop(bytes);
    accept(&api, handed, place).await
}

async fn events(State(api): Shared, request: Request) -> Answer {
    let name = name_in(request.headers())?;
    let Text { bytes, place } = read(&api, request).await?;
    let alone = bytes.trim_ascii_start().first() != Some(&b'[');
    let now_ms = api.clock.now().wall_ms;
    let handed = write::events(name.as_deref(), now_ms, |now_ms| body::events(&bytes, now_ms))?;
    drop(bytes);
    let answer = accept(&api, handed, place).await;
    // One event is not in a list.
    answer.map_err(|problem| if alone { problem.renamed("/0/id", "/id") } else { problem })
}

async fn accept(api: &Api, handed: Handed, place: Place) -> Answer {
    let receipt: Receipt = api.write(handed, place).await?;
    let mut response = json(&Accepted::from(receipt))?;
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// The name that the client gives the write.
pub(super) fn name_in(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    // The draft of the header quotes it; most programs do not.
    let text = value.to_str().ok().map(|text| text.trim().trim_matches('"'));
    let name = text.ok_or_else(|| "give visible ASCII".to_owned()).and_then(write::check_name);
    let wrong =
        |detail| Problem::new(StatusCode::BAD_REQUEST, format!("the header Idempotency-Key: {detail}"));
    Ok(name.map_err(wrong)?.map(str::to_owned))
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

/// A body, and its place for as long as somebody holds it.
pub(super) struct Text {
    pub(super) bytes: Bytes,
    pub(super) place: Place,
}

impl std::ops::Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body of a request: JSON, bounded, in time.
pub(super) async fn read(api: &Api, request: Request) -> Result<Text, Problem> {
    let crowded = || {
        let detail = "too many requests at a time; try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1)
    };
    let place = api.places.body(api.config.read).await.ok_or_else(crowded)?;
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
        Ok(Ok(body)) => Ok(Text { bytes: body.to_bytes(), place }),
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
