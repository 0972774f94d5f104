//! Health, version, metrics and the hub in one look.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::{Api, problem::Refusal, query::Params, shapes, stream::STREAMS};
use crate::metrics;

/// `GET /livez`: the process answers.
pub(super) async fn livez() -> Response {
    Json(json!({ "live": true })).into_response()
}

/// `GET /readyz`: 200 while batches are stored and acked, else 503 with the reasons.
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let readiness = api.hub.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": readiness.ready, "reasons": readiness.reasons }))).into_response()
}

/// `GET /version`: the build, and the hub's clock.
pub(super) async fn version(State(api): State<Arc<Api>>) -> Response {
    let now_ms = api.hub.clock().now().wall_ms;
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "now_ms": now_ms })).into_response()
}

/// `GET /metrics`: the text format of Prometheus.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Result<Response, Refusal> {
    let text = api
        .query(|api| {
            let streams = STREAMS - api.streams.available_permits();
            Ok(api.exporter.render(&metrics::scrape(&api.hub, streams)?))
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// `GET status`: what `fleet status` and `fleet top` show of the hub.
pub(super) async fn status(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    let status = api
        .query(|api| {
            let readiness = api.hub.readiness();
            let mut status = shapes::Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                now_ms: api.hub.clock().now().wall_ms,
                ready: readiness.ready,
                reasons: readiness.reasons,
                listeners: api.config.listeners.clone(),
                ..shapes::Status::default()
            };
            status.nodes_by_state = api.hub.with_fleet(|fleet| {
                let mut states = BTreeMap::new();
                for node in fleet.nodes.values() {
                    *states.entry(node.record.presence.state.as_str().to_owned()).or_default() += 1;
                }
                states
            });
            for account in api.hub.ledger()? {
                *status.accounts_by_state.entry(account.state.as_str().to_owned()).or_default() += 1;
                for (term, records) in metrics::terms(&account) {
                    *status.records.entry(term.to_owned()).or_default() += records;
                }
            }
            let space = api.hub.telemetry().space();
            status.disk =
                space.map(|space| shapes::DiskSpace { free_bytes: space.free, total_bytes: space.total });
            let broker = api.hub.stats().broker;
            status.counters = [
                ("sessions", broker.sessions.get()),
                ("up_messages", broker.up_messages.get()),
                ("up_payload_bytes", broker.up_payload_bytes.get()),
                ("router_rebuilds", broker.router_rebuilds.get()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
            Ok(status)
        })
        .await?;
    Ok(Json(status).into_response())
}
