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
use crate::{
    core::{
        disk::{Act, Forecast},
        fleet::Fleet,
        restored,
    },
    hub::Hub,
    metrics,
};

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
            Ok(api.exporter.render(&metrics::scrape(&api.hub, &api.config.pki, streams)?))
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
            status.disk = disk(&api.hub);
            status.restored = api.hub.with_fleet(restored);
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

/// The filesystem of the hub's data, and what is to come on it.
fn disk(hub: &Hub) -> Option<shapes::DiskSpace> {
    // Free space as it is now; the rest as the tidier found it within the last minute.
    let space = hub.telemetry().space()?;
    let mut shown = shapes::DiskSpace {
        free_bytes: space.free,
        total_bytes: space.total,
        ..shapes::DiskSpace::default()
    };
    let Some(view) = hub.disk() else { return Some(shown) };
    let names = || ["telemetry", "state", "artifacts", "elsewhere"].map(str::to_owned).into_iter();
    let used = view.used;
    shown.level = view.level.as_str().to_owned();
    shown.used_bytes = names().zip([used.telemetry, used.state, used.artifacts, used.elsewhere]).collect();
    shown.telemetry_most_bytes = view.budget.telemetry;
    shown.keep_days = view.budget.days;
    shown.watched_s = u64::try_from(view.since_ms / 1_000).unwrap_or(0);
    shown.forecast =
        view.forecast.map(|Forecast { growth, next, kept_days, full_days }| shapes::DiskForecast {
            daily_bytes: names()
                .zip(
                    [growth.telemetry, growth.state, growth.artifacts, growth.elsewhere]
                        .map(|bytes| bytes as i64),
                )
                .collect(),
            next: next.map(|(act, _)| match act {
                Act::Age => "age".to_owned(),
                Act::Size => "size".to_owned(),
            }),
            next_days: next.map(|(_, days)| days),
            kept_days,
            full_days,
        });
    Some(shown)
}

/// How far the nodes have come since the hub was restored.
fn restored(fleet: &Fleet) -> Option<shapes::Restored> {
    let restore = &fleet.restored.as_ref()?.restore;
    let tally = restored::tally(fleet)?;
    Some(shapes::Restored {
        at_ms: restore.at_ms,
        backup_ms: restore.backup_ms,
        nodes: tally.nodes as u64,
        nodes_back: tally.back as u64,
        nodes_settled: tally.settled as u64,
        nodes_missing: tally.missing.iter().map(ToString::to_string).collect(),
        records_again: tally.again,
        records_due: tally.due,
        records_lost: tally.lost,
        samples_missing: restore.samples_missing,
        held: fleet.commands.held() as u64,
    })
}
